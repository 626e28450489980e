"""Law 5, as one person would ask it: is there anything of me in what you published?

The person holds a category that nobody else holds, a value far beyond everybody's, and the only missing cell. Tables
with and without them go the whole way, training and release, and every byte that leaves is searched: all files of the
release, all files of the run's public folder, and every decoded cell of the Parquet files. What is unmistakable must
never be there; what noise alone can also produce (a missing cell, a far value) must be there equally often.

Confidence: were the person betrayed in a fraction f of releases, N releases with them would all be clean with
probability (1 - f)^N. None betrayed in 100 therefore shows f < 3 % with 95 % confidence; none in 30, f < 10 %.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import stats
from small_runs import TRAINERS, people, small_config

from dpvae import api
from dpvae.data import survey as survey_module
from dpvae.data.schema import Schema
from dpvae.data.survey import _Survey
from dpvae.files import read_json
from dpvae.modalities import table as table_modality
from dpvae.train.checkpoint import load_model
from dpvae.train.linked import NEVER

ROWS = 200
CITY, PAY = "Ushuaia", 987654321012.5  # others: three cities; pay below a few hundred
FAR = 1e5  # no other pay comes near it
MARKS: dict[str, tuple[bytes, ...]] = {
    "category": (CITY.encode(), CITY.lower().encode(), CITY.encode("utf-16-le"), CITY.encode()[::-1]),
    "extreme value": (b"987654321012", b"987,654,321", b"9.876543e+11", b"9.87654e+11", struct.pack("<d", PAY),
                      struct.pack(">d", PAY), struct.pack("<q", int(PAY))),  # long enough not to occur by chance
}


def table(with_person: bool, seed: int) -> pa.Table:
    columns = people(ROWS, seed)
    if with_person:
        place = seed % ROWS
        for name, cell in {"city": CITY, "age": None, "pay": PAY, "income": "high"}.items():
            columns[name].insert(place, cell)
    return pa.table(columns)


def betrayed(folder: Path, seed: int, *, with_person: bool) -> set[str]:
    """Train, release, search: which marks of the person are anywhere in what leaves."""
    config = small_config(TRAINERS[seed % len(TRAINERS)], run={"root": str(folder), "name": "run"},
                          data={"target": "income", "rows": ROWS if seed % 2 else None},
                          privacy={"epsilon": 8.0, "delta": 1e-5})
    run = api.train(config, table(with_person, seed))
    released = api.release(folder / "release", run, rows=60, seed=seed)
    leaving = [path for top in (released, run.path / "public") for path in top.rglob("*") if path.is_file()]
    assert len(leaving) > 15
    found = {name for path in leaving for name, marks in MARKS.items()
             if any(mark in path.read_bytes() or mark in path.name.encode() for mark in marks)}
    for path in released.rglob("*.parquet"):
        found |= in_cells(pq.read_table(path))
    for name, tensor in load_model(run.path / "public").state_dict().items():
        largest = 1 / NEVER if name.startswith("link_") else FAR  # a link's ratios end there, below the person's pay
        if bool((tensor.abs() > largest).any()):
            found.add("extreme value")  # four bytes of a float would also be found by chance
    return found | in_schema(Schema.from_dict(read_json(run.path / "public" / "schema.json")))


def in_cells(rows: pa.Table) -> set[str]:
    found = set()
    if any(CITY.lower() in str(value).lower() for name in rows.column_names for value in rows[name].to_pylist()):
        found.add("category")
    if any(value is not None and value > FAR for value in rows["pay"].to_pylist()):
        found.add("far value")
    if rows["age"].null_count:
        found.add("missing cell")
    return found


def in_schema(schema: Schema) -> set[str]:
    columns = {column.name: column for column in schema.columns}
    found = {"missing cell"} if columns["age"].nullable else set()
    upper = columns["pay"].upper
    return found | ({"far value"} if upper is not None and upper > FAR else set())


def tallies(folder: Path, each: int) -> dict[bool, Counter[str]]:
    """In how many of ``each`` releases with and without the person each mark was found."""
    return {with_person: Counter(mark for seed in range(each) for mark in betrayed(
        folder / f"{with_person}-{seed}", seed, with_person=with_person)) for with_person in (True, False)}


def no_trace(folder: Path, each: int) -> None:
    found = tallies(folder, each)
    for mark in MARKS:
        assert (found[True][mark], found[False][mark]) == (0, 0), f"{mark}: found in releases with, without the person"
    for mark in ("far value", "missing cell"):
        held, others = found[True][mark], found[False][mark]
        p = stats.fisher_exact([[held, each - held], [others, each - others]]).pvalue
        assert p > 1e-5, f"{mark}: in {held} of {each} releases with the person, in {others} without"


def test_a_person_with_a_unique_category_an_extreme_value_and_the_only_missing_cell_leaves_no_trace_in_sixty_releases(
        tmp_path: Path) -> None:
    no_trace(tmp_path, 30)


@pytest.mark.slow
def test_a_person_with_a_unique_category_an_extreme_value_and_the_only_missing_cell_leaves_no_trace_in_400_releases(
        tmp_path: Path) -> None:
    no_trace(tmp_path, 200)


def test_a_hundred_clean_releases_exclude_three_per_cent_with_95_per_cent_confidence() -> None:
    assert 0.97**100 < 0.05
    assert 0.90**30 < 0.05
    assert pytest.approx(0.0149, abs=1e-4) == 1 - 0.05 ** (1 / 200), "what 200 exclude"


# -- mutants: the search finds what a careless program publishes -----------------------------------------------------


def publishes_every_value(patch: pytest.MonkeyPatch) -> None:
    real = survey_module.frequent_values

    def unthresholded(histograms: Any, **rest: Any) -> Any:
        _, event = real(histograms, **rest)
        return [dict(histogram) for histogram in histograms], event

    patch.setattr(survey_module, "frequent_values", unthresholded)


def reads_the_bounds_off_the_rows(patch: pytest.MonkeyPatch) -> None:
    real = _Survey.finish

    def exact(self: _Survey) -> Schema:
        j = next(j for j, column in enumerate(self.columns) if column.name == "pay")
        self.columns[j] = replace(self.columns[j], upper=float(np.nanmax(np.concatenate(list(self._values(j))))))
        return real(self)

    patch.setattr(_Survey, "finish", exact)


def looks_whether_a_cell_is_missing(patch: pytest.MonkeyPatch) -> None:
    def exact(self: _Survey) -> None:
        for j in self._which("missing"):
            self.gone[j] = float(self._count_missing(j))
            self._answer(j, nullable=self.gone[j] > 0)

    patch.setattr(_Survey, "missing", exact)


def writes_an_exact_count(patch: pytest.MonkeyPatch) -> None:
    """A debugging aid that found its way into the public folder."""
    real = survey_module.survey

    def chatty(data: Any, schema: Schema, **rest: Any) -> Any:
        done = real(data, schema, **rest)
        values = sorted({str(v) for v in data.column("city").values})
        first = done.schema.columns[0]
        named = replace(first, categories=(*(first.categories or ()), *(v for v in values if v == CITY)))
        return replace(done, schema=replace(done.schema, columns=(named, *done.schema.columns[1:])))

    patch.setattr(table_modality, "survey", chatty)


MUTANTS = {"category": (publishes_every_value, writes_an_exact_count), "far value": (reads_the_bounds_off_the_rows,),
           "missing cell": (looks_whether_a_cell_is_missing,)}


@pytest.mark.parametrize(("mark", "mutate"), [(mark, m) for mark, mutants in MUTANTS.items() for m in mutants],
                         ids=lambda value: getattr(value, "__name__", value))
def test_a_program_that_publishes_a_person_is_seen(mark: str, mutate: Callable[[pytest.MonkeyPatch], None],
                                                   tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mutate(monkeypatch)
    held = sum(mark in betrayed(tmp_path / f"with-{seed}", seed, with_person=True) for seed in range(6))
    others = sum(mark in betrayed(tmp_path / f"without-{seed}", seed, with_person=False) for seed in range(6))
    assert held == 6
    assert others <= 3, "noise alone may produce a far value or a missing cell now and then"
