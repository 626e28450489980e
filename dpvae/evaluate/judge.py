"""``dpvae evaluate``: a synthetic table against real train and test rows; a sealed look, for its owner's eyes.

Every number here is computed from private rows without noise. It costs no epsilon only while it stays sealed: shown to
whoever may see the rows, written where that person says, and never published. So nothing is written unless ``to`` names
a file, that file may not lie in a release or in the public half of a run, and every form of the result says what it is.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from dpvae.checks import did_you_mean
from dpvae.config import EvaluateConfig
from dpvae.data import lake
from dpvae.data.lake import Table
from dpvae.data.schema import Schema
from dpvae.errors import ConfigError, DataError
from dpvae.evaluate.fidelity import Declared, Fidelity, Quantiles, fidelity, select
from dpvae.evaluate.texts import TextEvaluation, evaluate_texts, synthetic_schema
from dpvae.evaluate.utility import Utility, sklearn_or_say_so, utility

SEALED = ("computed from private rows without noise: costs no epsilon only while it stays sealed, so do not publish it "
          "or choose a release by it")
Judgement = TypeVar("Judgement", "Evaluation", TextEvaluation)
CERTIFICATE = "certificate.json"


@dataclass(frozen=True)
class Evaluation:
    """The judgement; ``utility`` is ``None`` where no target was named."""

    rows: dict[str, int]
    fidelity: Fidelity
    utility: Utility | None
    where: str | None = None  # the condition on the real rows that the release was made of

    def to_dict(self) -> dict[str, Any]:
        """As JSON, under the names outside judges use (``tstr.gb.roc_auc``, ``fidelity.tvd_2way``, ...)."""
        found: dict[str, Any] = {"sealed": SEALED, "rows": self.rows, "fidelity": asdict(self.fidelity)}
        found |= {"where": self.where} if self.where is not None else {}
        if self.utility is not None:
            facts = asdict(self.utility)
            found |= {name: facts.pop(name) for name in ("tstr", "trtr")} | {"target": facts}
        return _no_nan(found)

    def __str__(self) -> str:
        return "\n".join([f"SEALED: {SEALED}", "", *_lines(self)])


def evaluate(config: EvaluateConfig) -> Evaluation | TextEvaluation:
    """Judge ``config.synth`` and, if asked, write the judgement to ``config.to``. Raises before anything is computed
    where a table cannot be read, lacks a column, or ``to`` lies where things are published."""
    if config.to is not None:
        _refuse_public(Path(config.to))
    if (schema := synthetic_schema(config.synth)) is not None:
        return _kept(config, evaluate_texts(config, schema))
    if config.target is not None and config.test is None:
        raise ConfigError("test=null: a target needs real rows to be tested on; say test=TEST.csv, or leave target out")
    if config.target is not None:
        sklearn_or_say_so()
    release = _released(config.synth)
    real = lake.read(_part(config.real, release))
    if config.target is not None and config.target not in real.names:
        raise DataError(f"target={config.target!r}: no such column{did_you_mean(config.target, real.names)}")
    synth = _like(real, read_synthetic(config.synth), config.synth)
    test = None if config.test is None else _like(real, lake.read(_part(config.test, release)), config.test)
    found = judge(real, synth, test, target=config.target, bins=config.bins, seed=config.seed,
                  schema=_schema(config, release, real))
    return _kept(config, replace(found, where=release.where if release is not None else None))


def _kept(config: EvaluateConfig, found: Judgement) -> Judgement:
    """Written where it was asked to be."""
    if config.to is not None:
        _write(Path(config.to), json.dumps(found.to_dict(), indent=1) + "\n")
    return found


def judge(real: Table, synth: Table, test: Table | None, *, target: str | None, bins: int, seed: int,
          schema: Schema | None = None) -> Evaluation:
    """The judgement of tables with the same columns; ``schema`` (resolved, public) replaces the quantile bins."""
    binning = Quantiles(real, bins) if schema is None else Declared(schema)
    rows = {"train": real.rows, "synth": synth.rows} | ({"test": test.rows} if test is not None else {})
    useful = utility(real, synth, test, target, seed=seed) if target is not None and test is not None else None
    return Evaluation(rows, fidelity(real, synth, binning=binning, test=test, target=target), useful)


def read_synthetic(place: str | Path) -> Table:
    """A file, or a folder of Parquet files: a release, or its ``data`` folder."""
    folder = Path(place)
    if not folder.is_dir():
        return lake.read(place)
    parts = sorted(folder.glob("data/*.parquet")) or sorted(folder.glob("*.parquet"))
    if not parts:
        raise DataError(f"synth={place}: no Parquet file there; expected a release folder, or one table")
    tables = [lake.read(part) for part in parts]
    if any(table.header != tables[0].header for table in tables):
        raise DataError(f"synth={place}: its Parquet files have different columns; expected the parts of one table")
    return Table(tables[0].names, tuple(
        lake.Cells(np.concatenate([c.values for c in cells]), np.concatenate([c.missing for c in cells]),
                   cells[0].dtype) for cells in zip(*(table.cells for table in tables), strict=True)))


def _like(real: Table, other: Table, place: str) -> Table:
    """The columns of ``real``; others (an index, a weight) are left out."""
    missing = [name for name in real.names if name not in other.names]
    if missing:
        raise DataError(f"column={missing[0]!r}: in the real table, but not in {place}; expected "
                        f"the same columns{did_you_mean(missing[0], other.names)}")
    return select(other, real.names)


def _released(synth: str) -> Schema | None:
    """The schema of a release, which says what part of a table it was made of."""
    path = Path(synth) / "schema.json"
    return Schema.from_dict(json.loads(path.read_text())) if path.is_file() else None


def _part(place: str, release: Schema | None) -> Any:
    """The part of a table that a release is about: the rows and the columns that took part."""
    if release is None or (release.where is None and not release.chosen):
        return place
    names = ", ".join('"' + name.replace('"', '""') + '"' for name in release.names) if release.chosen else None
    return lake.selected(place, columns=names, where=release.where)


def _schema(config: EvaluateConfig, schema: Schema | None, real: Table) -> Schema | None:
    """The public bins of a release, where they were asked for."""
    if not config.public_bins:
        return None
    if schema is None:
        raise ConfigError(f"public_bins=true: {Path(config.synth) / 'schema.json'} is absent; expected synth to be a "
                          "release folder, or public_bins=false to cut at the real table's quantiles")
    return schema.bind(real.header) if schema.names != real.names else schema


def _refuse_public(target: Path) -> None:
    folders = target.absolute().resolve().parents
    for folder in folders:
        if (folder / CERTIFICATE).exists():
            raise ConfigError(f"to={target}: lies in the release {folder}; what was computed from private rows must "
                              "not be published. Name a place outside it")
        if folder.name == "public" and (folder.parent / "run.json").exists():
            raise ConfigError(f"to={target}: lies in the public half of a run; name a place in its private/ folder")
    if target.is_dir():
        raise ConfigError(f"to={target}: is a folder; expected a file, such as to=sealed.json")
    if not folders[0].is_dir():
        raise ConfigError(f"to={target}: its folder does not exist; make it first")


def _write(path: Path, text: str) -> None:
    path.touch(mode=0o600)  # its owner's, like everything sealed
    path.write_text(text)


def _no_nan(value: Any) -> Any:
    """JSON has no nan: ``null`` says that a number does not exist."""
    if isinstance(value, dict):
        return {key: _no_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_no_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _lines(found: Evaluation) -> list[str]:
    fit = found.fidelity
    lines = [", ".join(f"{count:,} {name} rows" for name, count in found.rows.items())
             + (f", real ones where {found.where}" if found.where is not None else ""), "",
             f"{'total variation distance':34}{'this':>8}{'floor':>8}"]
    for words, value, floor in (("one column, mean", fit.tvd_1way, fit.sampling_floor_1way),
                                ("two columns, mean", fit.tvd_2way, fit.sampling_floor_2way),
                                ("two columns, one the target", fit.tvd_2way_with_target, math.nan),
                                ("worst column", fit.tvd_1way_max, math.nan),
                                ("worst pair", fit.tvd_2way_max, math.nan)):
        if not math.isnan(value):
            lines.append(f"  {words:32}{value:8.4f}{'' if math.isnan(floor) else f'{floor:8.4f}'}")
    lines += ["  worst columns: " + ", ".join(f"{name} {value:.3f}" for name, value in fit.worst_columns)]
    if fit.worst_pairs:
        lines += ["  worst pairs: " + ", ".join(f"{a} x {b} {value:.3f}" for a, b, value in fit.worst_pairs)]
    if not math.isnan(fit.rank_correlation_error):
        a, b, worst = fit.worst_rank_correlations[0]
        lines += [f"rank correlation error: mean {fit.rank_correlation_error:.4f}, worst {worst:.4f} ({a} x {b})"]
    return lines + (_useful(found.utility) if found.utility is not None else [])


def _useful(found: Utility) -> list[str]:
    lines = ["", f"predicting {found.target} = {found.positive} on real test rows",
             f"  {'trained on the synthetic rows':32}{'AUC':>8}{'ceiling':>9}{'accuracy':>10}{'ceiling':>9}"]
    for name, words in (("gb", "gradient boosting"), ("lr", "logistic regression")):
        ours, best = found.tstr[name], found.trtr[name]
        lines.append(f"  {words:32}{ours.roc_auc:8.4f}{best.roc_auc:9.4f}{ours.accuracy:10.4f}{best.accuracy:9.4f}")
    if any(score.degenerate for score in found.tstr.values()):
        lines.append("  the synthetic target has one class only: nothing could be learned from it")
    return lines
