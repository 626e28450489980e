from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpvae.data import bins, guess, kinds, lake, survey
from dpvae.data.schema import Column, Schema
from dpvae.data.table import TableCodec
from dpvae.privacy.noise import SecretKey

FLOAT = Column("x", "continuous", "double", decimals=9, nullable=False)
DAY = Column("d", "datetime", "csv", unit="D", format="%Y-%m-%d", nullable=False)
HIDDEN = {"rows": 60.0, "kinds": 150.0, "missing": 150.0, "values": 150.0, "rare": 150.0, "bounds": 150.0,
          "bins": 150.0}


def found(column: Column, values: np.ndarray, sd: float, seed: int) -> tuple[float, float, bool]:
    edges = bins.scale_cells(column)
    rng = np.random.default_rng(seed)
    tables = [t + rng.normal(0, sd, len(t)) for t in bins.coarsened(bins.count(edges, values))[:survey.SCALES]]
    mass, bare = guess.magnitudes(column, edges, tables, sd, float(len(values)))
    held = np.flatnonzero(mass > 0)
    return edges[held[0]], edges[held[-1] + 1], bare


def test_evidence_is_the_ratio_of_two_normal_densities():
    seen, sd, rows = np.array([12.0, -3.0]), 5.0, 20.0
    shape = np.array([0.75, 0.25])
    law = [math.log(NormalDist(m, sd).pdf(x)) - math.log(NormalDist(0, sd).pdf(x))
           for m, x in zip(rows * shape, seen, strict=True)]
    assert guess.log_likelihood([seen], [shape[None]], sd, rows)[0] == pytest.approx(sum(law))


@pytest.mark.parametrize(("name", "low", "high"), [("alcohol", 11, 15), ("proline", 280, 1680), ("change", -0.1, 0.2),
                                                  ("loss", -900, -300), ("price", 20_000, 90_000)])
def test_a_range_is_found_where_no_block_stands_out(name, low, high):
    rng, held, wide = np.random.default_rng(1), [], []
    for seed in range(20):
        values = rng.uniform(low, high, 180)
        a, b, _ = found(FLOAT, values, sd=25.0, seed=seed)
        held.append(((values >= a) & (values <= b)).mean())
        wide.append((b - a) / (high - low))
    assert np.mean(held) > 0.8, name
    assert np.median(wide) < 4, name
    assert max(wide) < 1000, name


def test_without_any_evidence_a_number_lies_between_0_and_64_and_a_date_in_our_time():
    low, high, bare = found(FLOAT, np.full(100, 5.0), sd=1e6, seed=0)
    assert (round(low), round(high), bare) == (0, 64, True)
    low, high, bare = found(DAY, np.full(100, 1.4e9), sd=1e6, seed=0)
    assert bare
    assert 2010 <= pd.Timestamp(low, unit="s").year <= pd.Timestamp(high, unit="s").year <= 2021


def test_a_date_is_found_within_years():
    inside = []
    for seed in range(20):
        values = np.random.default_rng(seed).uniform(1.1e9, 1.2e9, 200)  # 2004 to 2008
        low, high, _ = found(DAY, values, sd=30.0, seed=seed)
        inside.append(low <= 1.13e9 and high >= 1.17e9 and high - low < 21 * 366 * 86400)
    assert np.mean(inside) >= 0.9


def test_noise_alone_is_hardly_ever_taken_for_more_than_a_bare_guess():
    empty = np.empty(0)
    surprises = 0
    for seed in range(40):
        edges = bins.scale_cells(FLOAT)
        rng = np.random.default_rng(seed)
        tables = [t + rng.normal(0, 30.0, len(t)) for t in bins.coarsened(bins.count(edges, empty))[:survey.SCALES]]
        surprises += not guess.magnitudes(FLOAT, edges, tables, 30.0, 180.0)[1]
    assert surprises <= 3


def test_a_class_of_cells_is_found_below_the_usual_threshold():
    column, rng, right = Column("x", dtype="csv"), np.random.default_rng(0), 0
    for _ in range(50):
        noisy = {name: 200.0 * (name == "decimals 2") + rng.normal(0, 40.0) for name in kinds.TEXT}
        right += kinds.decide(column, noisy, 40.0, 14 * len(noisy), rows=200)["kind"] == "continuous"
    assert right >= 47


def test_a_column_of_cells_of_no_class_is_no_number():
    noisy = dict.fromkeys(kinds.TEXT, 0.0)
    assert kinds.decide(Column("x", dtype="csv"), noisy, 5.0, rows=3000) == {"kind": "categorical"}
    bare = kinds.decide(Column("x", dtype="csv"), noisy, 5000.0, rows=100)
    assert bare == {"kind": "integer", "guessed": ("kind",)}


def small(draw_seed: int, rows: int, scale: float, shift: float) -> pd.DataFrame:
    g = np.random.default_rng(draw_seed)
    frame = pd.DataFrame({
        "n": g.integers(-5, 50, rows), "x": shift + scale * g.standard_cauchy(rows),
        "t": pd.Timestamp("1990-01-01") + pd.to_timedelta(g.integers(0, 20_000, rows), "D"),
        "s": g.choice(["a", "b", "c"], rows), "b": g.random(rows) < 0.5, "w": g.random(rows)})
    frame.loc[g.random(rows) < 0.3, "w"] = np.nan
    return frame


def surveyed(source: pd.DataFrame, key: SecretKey, *, text: bool, rows: int | None = None) -> survey.Survey:
    texts = source.astype(object).where(source.notna(), None).map(lambda v: v if v is None else str(v))
    table = lake.read(pa.Table.from_pandas(texts if text else source, preserve_index=False))
    return survey.survey(table, Schema.undeclared(table.header, "n"), noise=HIDDEN, delta=1e-7, key=key, rows=rows)


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 300), st.floats(1e-6, 1e9), st.floats(-1e12, 1e12), st.booleans())
def test_bounds_are_finite_ordered_and_of_this_world_whatever_the_rows_are(seed, rows, scale, shift, text):
    result = surveyed(small(seed, rows, scale, shift), SecretKey.from_seed(seed), text=text)
    for column in result.schema.columns:
        if column.is_numeric:
            assert column.lower is not None
            assert -2.0**43 <= column.lower <= column.upper <= 2.0**43
            assert column.edges == () or all(a < b for a, b in zip(column.edges, column.edges[1:], strict=False))
    codec = TableCodec(result.schema)
    rng = np.random.default_rng(0)
    codec.decode(np.stack([rng.integers(0, max(c, 1), 20) for c in result.schema.cardinalities], 1), rng)


class Canned:
    """Releases that do not depend on the rows: what follows from them may not either."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(5)

    def counts(self, tables, *, noise_multiplier, stream, phase, what):
        return [np.rint(self.rng.normal(20, 60, len(t))).astype(np.int64) for t in tables], None

    def frequent(self, tables, **how):
        return [{7: 60, 3: 41} if how["shares"] is not None else {} for _ in tables], None  # the second look finds two


def schemas_of_two_tables(monkeypatch: pytest.MonkeyPatch) -> list[Schema]:
    made = []
    for seed, rows in ((1, 90), (2, 230)):
        canned = Canned()
        monkeypatch.setattr(survey, "noisy_counts", canned.counts)
        monkeypatch.setattr(survey, "frequent_values", canned.frequent)
        made.append(surveyed(small(seed, rows, 10.0 * seed, 5.0), SecretKey.from_seed(1), text=False).schema)
    return made


def test_what_is_guessed_follows_from_released_numbers_alone(monkeypatch):
    one, other = schemas_of_two_tables(monkeypatch)
    assert any("range" in (column.guessed or ()) for column in one.columns)
    assert one.column("n").heaps == (7.0, 3.0), "the target was looked at twice"
    assert one == other


def test_a_guess_that_looks_at_the_rows_is_caught(monkeypatch):
    monkeypatch.setattr(survey._Survey, "_present", lambda self, j: float(self.table.rows))
    one, other = schemas_of_two_tables(monkeypatch)
    assert one != other


def test_a_person_is_told_what_was_guessed_and_what_to_do():
    columns = [Column("age", "integer", guessed=("kind", "range")), Column("city", "categorical", guessed=("values",)),
               Column("sex", "categorical")]
    said = guess.said((c.name, c.to_dict()) for c in columns)
    assert said.startswith("guessed, because the noise hid it: the kind of age; the range of age; the values of city.")
    assert "min and max" in said
    assert guess.said([("sex", columns[2].to_dict())]) == ""
    assert guess.said([("sex", {"guessed": 3})]) == ""
    many = guess.said((f"c{i}", {"guessed": ["range"]}) for i in range(11))
    assert "c7 and 3 more" in many
