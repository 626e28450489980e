#!/usr/bin/env python3
"""One other generator of tables, at its best-known settings; runs inside a virtual environment that holds it.

    PEER/bin/python scripts/table_peers.py dpmm_mst --train TRAIN.csv --facts FACTS.json --epsilon 1 --out OUT.csv

``scripts/bench_tables.py`` makes the environments (see PEERS for what is installed in each) and calls this. FACTS.json
holds what is publicly declared about the columns, which a peer is given wherever it can use it. Nothing of dpvae is
imported here: what a peer needs, and nothing else, is installed beside it.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Peer:
    """``package`` is installed from PyPI; ``without`` is removed again, where it breaks the import."""

    package: str
    private: bool
    settings: str
    without: str = ""


PEERS = {
    "dpmm_mst": Peer("dpmm", True, "MST, 0.1 epsilon for PrivTree bins, declared domains"),
    "smartnoise_mst": Peer("smartnoise-synth", True, "MST, 0.1 epsilon for inferred bounds"),
    "mostlyai": Peer("mostlyai-engine", True, "TabularARGN, 12 epochs, noise calibrated to epsilon, a quarter of it "
                     "for value protection", without="torchvision"),
    "tvae": Peer("ctgan", False, "TVAE, 30 epochs, not private"),
    "ctgan": Peer("ctgan", False, "CTGAN, 30 epochs, not private"),
}
EPOCHS, MOSTLY_EPOCHS, MOSTLY_BATCH = 30, 12, 256


@dataclass(frozen=True)
class Task:
    """What every peer gets."""

    frame: Any  # pandas
    facts: dict[str, dict[str, Any]]
    epsilon: float
    delta: float
    seed: int

    @property
    def words(self) -> list[str]:
        """Columns that are categories: by declaration, or because they hold text."""
        import pandas

        return [name for name in self.frame.columns if "categories" in self.facts.get(name, {})
                or not pandas.api.types.is_numeric_dtype(self.frame[name])]

    @property
    def numbers(self) -> list[str]:
        return [name for name in self.frame.columns if name not in self.words]


def dpmm_mst(task: Task) -> Any:
    """Its own default gives the bins a tenth; ``epsilon`` there is what the model alone spends."""
    from dpmm.pipelines import MSTPipeline

    pipeline = MSTPipeline(epsilon=0.9 * task.epsilon, delta=task.delta, proc_epsilon=0.1 * task.epsilon, n_jobs=1)
    frame = task.frame.astype(dict.fromkeys(task.words, "category"))
    pipeline.fit(frame, domain={name: facts for name, facts in task.facts.items() if facts}, random_state=task.seed)
    return pipeline.generate(n_records=len(frame), random_state=task.seed)


def smartnoise_mst(task: Task) -> Any:
    from snsynth import Synthesizer

    synth = Synthesizer.create("mst", epsilon=task.epsilon, delta=task.delta)
    synth.fit(task.frame, preprocessor_eps=0.1 * task.epsilon, categorical_columns=task.words,
              continuous_columns=task.numbers, nullable=bool(task.frame.isna().any().any()))
    return synth.sample(len(task.frame))


def mostlyai(task: Task) -> Any:
    """Its own default noise stops the training at small epsilons after an epoch or two: here it is solved for."""
    from mostlyai.engine import TabularARGN
    from mostlyai.engine.domain import DifferentialPrivacyConfig
    from opacus.accountants.utils import get_noise_multiplier

    protected = 0.25 * task.epsilon
    noise = get_noise_multiplier(target_epsilon=task.epsilon - protected, target_delta=task.delta, accountant="rdp",
                                 sample_rate=MOSTLY_BATCH / (0.9 * len(task.frame)), epochs=MOSTLY_EPOCHS + 1)
    place = Path(tempfile.mkdtemp())
    try:
        model = TabularARGN(
            max_epochs=MOSTLY_EPOCHS, batch_size=MOSTLY_BATCH, gradient_accumulation_steps=1, workspace_dir=place,
            differential_privacy=DifferentialPrivacyConfig(
                max_epsilon=task.epsilon, delta=task.delta, noise_multiplier=noise, max_grad_norm=1.0,
                value_protection_epsilon=protected),
            random_state=task.seed, device="cpu")
        model.fit(task.frame)
        return model.sample(n_samples=len(task.frame))
    finally:
        shutil.rmtree(place, ignore_errors=True)


def tvae(task: Task) -> Any:
    from ctgan import TVAE

    return _sdv(TVAE(epochs=EPOCHS, enable_gpu=False), task)


def ctgan(task: Task) -> Any:
    from ctgan import CTGAN

    return _sdv(CTGAN(epochs=EPOCHS, enable_gpu=False), task)


def _sdv(model: Any, task: Task) -> Any:
    frame = task.frame.copy()
    frame[task.numbers] = frame[task.numbers].fillna(frame[task.numbers].median())  # it takes no missing numbers
    frame[task.words] = frame[task.words].fillna("")
    model.set_random_state(task.seed)
    model.fit(frame, task.words)
    return model.sample(len(frame))


RUN: dict[str, Callable[[Task], Any]] = {
    "dpmm_mst": dpmm_mst, "smartnoise_mst": smartnoise_mst, "mostlyai": mostlyai, "tvae": tvae, "ctgan": ctgan}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--facts", type=Path)
    parser.add_argument("--epsilon", type=float, required=True)
    parser.add_argument("--delta", type=float, default=1e-5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    import pandas

    frame = pandas.read_csv(args.train, skipinitialspace=True, low_memory=False, keep_default_na=False, na_values=[""])
    facts = json.loads(args.facts.read_text()) if args.facts else {}
    made = RUN[args.peer](Task(frame, facts, args.epsilon, args.delta, args.seed))
    pandas.DataFrame(made, columns=frame.columns).to_csv(args.out, index=False)
    print(json.dumps({"version": importlib.metadata.version(PEERS[args.peer].package)}))


if __name__ == "__main__":
    main()
