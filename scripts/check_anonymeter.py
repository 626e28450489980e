#!/usr/bin/env python3
"""Does Anonymeter, which shares no line with dpvae, find the same risks in the same releases?

    python -m venv other && other/bin/pip install anonymeter
    python scripts/check_anonymeter.py other/bin/python

Anonymeter wants older packages than dpvae is usually run with, so it may have an environment of its own: this file
calls itself there. Without an argument it is expected beside dpvae (pip install 'dpvae[anonymeter]').

Writes reports/anonymeter.md; exits with 1 where two intervals of one attack do not meet. Releases of made-up people:
other people of the same population, half of the members themselves, all of the members themselves. Distances count
columns that differ, in both programs. Singling out differs by design: Anonymeter takes predicates that fit the release
once in another order, and both draw them at random.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np

REPORT = Path(__file__).resolve().parents[1] / "reports" / "anonymeter.md"
COLUMNS, MEMBERS, CONTROL, SEEDS = 8, 400, 600, 3  # a third of the control group is the attacker's reference
GUESSES, NEAREST = 300, 5


def population(rows: int, seed: int) -> Any:
    """People of a few kinds, (rows, :data:`COLUMNS`) codes: columns depend on the kind, so something can be told."""
    law = np.random.default_rng(0).dirichlet(np.full(9, 0.4), (5, COLUMNS))  # (kind, column, code)
    rng = np.random.default_rng(1 + seed)
    kind, place = rng.integers(0, 5, rows), rng.random((rows, COLUMNS, 1))
    return np.asarray((place > law[kind].cumsum(-1)[..., :-1]).sum(-1), dtype=np.int64)


def releases(seed: int) -> tuple[Any, Any, dict[str, Any]]:
    """Members, controls, and what is released."""
    members, control, others = (population(rows, 10 * seed + i) for i, rows in enumerate((MEMBERS, CONTROL, MEMBERS)))
    return members, control, {"other people": others, "half the members": np.concatenate([members[::2], others[::2]]),
                              "the members": members}


def theirs(folder: Path) -> None:
    """Anonymeter's trio on every release: attack -> members, controls, risk, its interval; in its own environment."""
    import pandas as pd
    from anonymeter.evaluators import InferenceEvaluator, LinkabilityEvaluator, SinglingOutEvaluator

    names, found = [f"c{j}" for j in range(COLUMNS)], []
    for seed in range(SEEDS):
        np.random.seed(seed)  # noqa: NPY002  (pandas draws its samples from the global generator)
        members, control, released = releases(seed)
        for label, rows in released.items():
            ori, other, syn = (pd.DataFrame(table, columns=names).astype(str).astype(object)
                               for table in (members, control[CONTROL // 3:], rows))
            common: dict[str, Any] = {"ori": ori, "syn": syn, "control": other}
            singling = SinglingOutEvaluator(**common, n_attacks=GUESSES, n_cols=3, seed=seed)
            linking = LinkabilityEvaluator(**common, n_attacks=len(ori), n_neighbors=NEAREST,
                                           aux_cols=(names[:COLUMNS // 2], names[COLUMNS // 2:]))
            inferring = InferenceEvaluator(**common, n_attacks=len(ori), secret=names[-1], aux_cols=names[:-1],
                                           regression=False)
            singling.evaluate(mode="multivariate")
            linking.evaluate(n_jobs=1)
            inferring.evaluate(n_jobs=1)
            for attack, one in (("singling out", singling), ("linkability", linking), ("inference", inferring)):
                rates, risk = one.results(), one.risk(confidence_level=0.95)
                found.append([label, seed, attack, rates.attack_rate.value, rates.control_rate.value, risk.value,
                              *risk.ci])
    (folder / "theirs.json").write_text(json.dumps(found))


def main(other: str) -> int:
    """Attack, compare, write."""
    from dpvae.audit import attacks

    assert (attacks.GUESSES, attacks.NEAREST) == (GUESSES, NEAREST)
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([other, __file__, "--theirs", folder], check=True)
        found = json.loads((Path(folder) / "theirs.json").read_text())
    ours = {}
    for seed in range(SEEDS):
        members, control, released = releases(seed)
        for label, rows in released.items():
            for risk in attacks.attack_release(members, control, rows, seed=seed).risks:
                ours[label, seed, risk.attack] = risk
    lines = [f"<!-- python scripts/check_anonymeter.py {Path(other).name} -->", "",
             "# The attacks, beside Anonymeter's", "",
             f"{MEMBERS} members, as many controls, {COLUMNS} columns; rates of success on members and on controls, "
             "and the risk with its 95 % interval. Intervals that do not meet are marked.", "",
             "| release | seed | attack | dpvae | risk | Anonymeter | risk | meet |",
             "|---|---|---|---|---|---|---|---|"]
    apart = 0
    for label, seed, attack, inside, outside, value, low, high in found:
        mine = ours[label, seed, attack]
        meet = mine.risk.low <= high and low <= mine.risk.high
        apart += not meet
        lines.append(f"| {label} | {seed} | {attack} | {mine.members.value:.3f} / {mine.control.value:.3f} | "
                     f"{mine.risk.value:.3f} [{mine.risk.low:.3f}, {mine.risk.high:.3f}] | {inside:.3f} / "
                     f"{outside:.3f} | {value:.3f} [{low:.3f}, {high:.3f}] | {'yes' if meet else '**no**'} |")
    REPORT.write_text("\n".join(lines) + "\n")
    print(f"{len(found) - apart} of {len(found)} intervals meet: {REPORT}")
    return int(apart > 0)


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    if sys.argv[1:2] == ["--theirs"]:
        theirs(Path(sys.argv[2]))
    else:
        sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else sys.executable))
