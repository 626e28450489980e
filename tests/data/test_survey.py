from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpvae.data import answers, lake
from dpvae.data import bins as binning
from dpvae.data import survey as module
from dpvae.data.cells import typed
from dpvae.data.declare import declare
from dpvae.data.schema import OTHER, Schema
from dpvae.data.survey import STEPS, Survey, survey, survey_events, survey_steps
from dpvae.data.table import TableCodec, validate
from dpvae.errors import ConfigError
from dpvae.privacy.events import Gaussian, Threshold
from dpvae.privacy.noise import SecretKey

QUIET = dict.fromkeys(STEPS, 0.01)
USUAL = {"rows": 60.0, "kinds": 47.0, "missing": 33.0, "values": 25.0, "rare": 14.0, "bounds": 30.0,
         "bins": 17.0}  # epsilon near 1


def mixed(rows: int = 3000) -> pd.DataFrame:
    g = np.random.default_rng(0)
    return pd.DataFrame({
        "job": g.choice(["clerk", "nurse", "smith"], rows, p=[0.6, 0.3, 0.1]),
        "gain": np.where(g.random(rows) < 0.9, 0, np.rint(np.exp(g.normal(8, 1, rows)))).astype(int),
        "age": g.integers(17, 91, rows),
        "lat": np.round(40.7 + 0.05 * g.normal(size=rows), 5),
        "wage": np.where(g.random(rows) < 0.2, np.nan, np.round(np.exp(g.normal(3, 0.5, rows)), 2)),
        "when": (pd.Timestamp("2015-01-01") + pd.to_timedelta(g.integers(0, 1500, rows), "D")).strftime("%Y-%m-%d"),
        "stamp": pd.Timestamp("2020-01-01") + pd.to_timedelta(g.integers(0, 1500, rows), "h"),
        "ok": g.random(rows) < 0.3,
    })


def read(source):
    """A table whose types somebody chose: those of a frame that Python found in its cells are not taken over."""
    typed = pa.Table.from_pandas(source, preserve_index=False) if isinstance(source, pd.DataFrame) else source
    return lake.read(typed)


def run(source, *, noise=None, schema=None, rows=None, key=None, delta=1e-6) -> Survey:
    table = read(source)
    schema = schema or Schema.undeclared(table.header)
    return survey(table, schema, noise=noise or QUIET, delta=delta, key=key or SecretKey.generate(), rows=rows)


def test_every_question_is_closed_and_nearly_true_when_noise_is_small():
    result = run(mixed())
    assert result.schema.resolved
    assert result.rows == 3000
    kinds = {c.name: c.kind for c in result.schema.columns}
    assert kinds == {"job": "categorical", "gain": "integer", "age": "integer", "lat": "continuous",
                     "wage": "continuous", "when": "datetime", "stamp": "datetime", "ok": "boolean"}
    column = result.schema.column
    assert column("job").categories == ("clerk", "nurse", "smith")
    assert column("job").other is False
    assert column("gain").heaps[0] == 0.0
    assert (column("age").lower, column("age").upper) == (17, 90)
    assert (column("lat").decimals, column("wage").decimals) == (5, 2)
    assert column("wage").nullable
    assert not column("age").nullable
    assert (column("when").format, column("when").unit, column("stamp").unit) == ("%Y-%m-%d", "D", "m")
    assert all(c.cardinality <= 33 for c in result.schema.columns)


def test_a_surveyed_table_goes_through_the_codec_and_comes_back_in_its_own_types():
    frame = mixed()
    table = read(frame)
    codec = TableCodec(run(frame).schema)
    back = lake.to_arrow(codec.decode(codec.encode(table), np.random.default_rng(0)))
    assert back.schema == pa.Table.from_pandas(frame).schema.remove_metadata()
    out = back.to_pandas()
    assert pd.to_datetime(out["when"], format="%Y-%m-%d").between("2015-01-01", "2019-02-10").all()
    assert (out["stamp"] == out["stamp"].dt.floor("min")).all()
    assert np.array_equal(out["lat"].round(5), out["lat"])
    assert abs(out["wage"].isna().mean() - frame["wage"].isna().mean()) < 1e-9
    assert out["lat"].quantile([0.1, 0.5, 0.9]).to_numpy() == pytest.approx(
        frame["lat"].quantile([0.1, 0.5, 0.9]).to_numpy(), abs=1e-3)


def test_events_are_known_before_the_data_is_opened():
    frame = mixed(200)
    table = read(frame)
    steps = survey_steps(Schema.undeclared(table.header), rows_known=False)
    assert steps == STEPS
    planned = survey_events(steps, noise=USUAL, delta=1e-7)
    assert run(frame, noise=USUAL, delta=1e-7).events == planned
    assert [type(e) for e in planned] == [Gaussian] * 3 + [Threshold] * 2 + [Gaussian] * 2
    assert {e.phase for e in planned} == {"survey"}
    assert (planned[3].delta, planned[4].delta) == (1e-7, 1e-7)


def test_steps_follow_from_the_schema_alone():
    schema = declare({"columns": {"n": {"kind": "integer", "min": 0, "max": 9}, "c": {"categories": ["a"]}}})
    schema = schema.bind((("n", "int64"), ("c", "string")))
    assert survey_steps(schema, rows_known=True) == ("bins",)
    assert survey_steps(schema, rows_known=False) == ("rows", "bins")
    wide = declare({"columns": {"n": {"kind": "integer", "min": 0, "max": 10**6}}}).bind((("n", "int64"),))
    assert survey_steps(wide, rows_known=True) == ("values", "bins")
    done = declare({"columns": {"n": {"kind": "integer", "edges": [0, 9], "heaps": []}}}).bind((("n", "int64"),))
    assert survey_steps(done, rows_known=True) == ()


def test_a_planned_step_without_columns_is_paid_for_all_the_same():
    frame = pd.DataFrame({"c": ["a", "b"] * 50})  # text might have been dates: bounds and bins were planned
    result = run(frame)
    assert len(result.events) == len(STEPS) == 7
    assert result.schema.resolved


def test_a_declared_fact_is_never_changed():
    frame = mixed()[["age", "job"]]
    schema = declare({"columns": {"age": {"kind": "integer", "min": 0, "max": 120, "heaps": [40]}, "job": {
        "categories": ["smith", "nurse", "clerk", "pope"]}}}).bind(lake.header(frame))
    result = run(frame, schema=schema, rows=3000)
    age, job = result.schema.columns
    assert (age.lower, age.upper, age.heaps) == (0, 120, (40.0,))
    assert age.edges[0] == -0.5
    assert age.edges[-1] == 120.5
    assert job.categories == ("smith", "nurse", "clerk", "pope")
    assert result.rows == 3000


@pytest.mark.parametrize("outside", ["error", "clip", "missing"])
def test_a_missing_cell_that_was_too_rare_to_be_measured_stops_nothing(outside):
    frame = pd.DataFrame({"n": [None, *[1.0, 2.0, 3.0] * 100], "c": [None, *["a", "b", "c"] * 100]})
    table = read(frame)
    schema = declare({"columns": {"n": {"kind": "continuous", "min": 0, "max": 9, "missing": "measure"},
                                  "c": {"categories": ["a", "b", "c"], "missing": "measure"}}}).bind(table.header)
    found = survey(table, schema, noise=dict.fromkeys(STEPS, 30.0), delta=1e-6, key=SecretKey.from_seed(1), rows=300,
                   outside=outside).schema
    assert not any(c.nullable for c in found.columns)
    codes = TableCodec(found).encode(table, outside)
    assert (codes >= 0).all()
    assert (codes < np.array(found.cardinalities)).all()


@pytest.mark.parametrize("noise", [0.01, 1.0, 50.0, 1e5])
def test_constant_and_all_missing_columns_come_back(noise):
    frame = pd.DataFrame({"c": ["a"] * 200, "i": [5] * 200, "f": [1.5] * 200, "gone": [np.nan] * 200,
                          "none": pa.nulls(200).to_pandas(), "x": np.arange(200)})
    table = read(frame)
    result = run(frame, noise=dict.fromkeys(STEPS, noise))
    codec = TableCodec(result.schema)
    codes = codec.encode(table)
    back = lake.to_pandas(codec.decode(codes, np.random.default_rng(0)))
    assert min(result.schema.cardinalities) >= 1
    assert [str(t) for t in back.dtypes] == [str(t) for t in frame.dtypes]
    assert all(len(c.labels) == c.cardinality for c in result.schema.columns)
    if noise == 0.01:
        assert (back["i"] == 5).all()
        assert (back["f"] == 1.5).all()
        assert (back["c"] == "a").all()
        assert back["gone"].isna().all()
        assert back["none"].isna().all()


@st.composite
def small_frames(draw) -> pd.DataFrame:
    rows = draw(st.integers(2, 40))
    kinds = {"i": st.integers(-(2**62), 2**62), "n": st.integers(-3, 300), "f": st.floats(-1e9, 1e9),
             "c": st.floats(-1e3, 1e3).map(lambda v: round(v, 2)),
             "s": st.sampled_from(["a", "b", "c d", "2020-01-01"]),
             "t": st.datetimes(pd.Timestamp("1700-01-01"), pd.Timestamp("2200-01-01")), "b": st.booleans()}
    return pd.DataFrame({name: draw(st.lists(st.just(None) | values if name in "fcst" else values,
                                             min_size=rows, max_size=rows)) for name, values in kinds.items()})


@settings(max_examples=120, deadline=None)
@given(small_frames(), st.sampled_from([0.01, 0.3, 2.0, 30.0, 1e4]), st.integers(0, 10**6))
def test_whatever_the_table_and_the_noise_the_survey_ends_in_a_codec_that_works(frame, noise, seed):
    """An exception here would come after the budget was spent."""
    table = read(frame)
    result = run(frame, noise=dict.fromkeys(STEPS, noise), key=SecretKey.from_seed(seed))
    codec = TableCodec(result.schema)
    codes = codec.encode(table)
    assert (codes >= 0).all()
    assert (codes < np.array(result.schema.cardinalities)).all()
    back = codec.decode(codes, np.random.default_rng(seed))
    assert lake.to_arrow(back).schema == lake.to_arrow(table).schema
    assert np.isfinite(codec.log_density_offset(codes)).all()
    for column in result.schema.columns:
        assert len(column.labels) == column.cardinality
        every = np.zeros((column.cardinality, len(codes[0])), dtype=int)
        every[:, result.schema.names.index(column.name)] = np.arange(column.cardinality)
        lake.to_arrow(codec.decode(every, np.random.default_rng(seed)))


def test_a_csv_is_surveyed_into_the_types_it_was_written_from(tmp_path):
    frame = mixed()
    frame["flag"] = np.where(frame["ok"], "true", "false")
    frame.drop(columns="ok").to_csv(tmp_path / "t.csv", index=False)
    schema = run(tmp_path / "t.csv").schema
    kinds = {c.name: c.kind for c in schema.columns}
    assert kinds == {"job": "categorical", "gain": "integer", "age": "integer", "lat": "continuous",
                     "wage": "continuous", "when": "datetime", "stamp": "datetime", "flag": "boolean"}
    table = lake.read(tmp_path / "t.csv")
    codec = TableCodec(schema)
    back = lake.to_arrow(codec.decode(codec.encode(table), np.random.default_rng(0)))
    assert [str(t) for t in back.schema.types] == ["string", "int64", "int64", "double", "double", "string", "string",
                                                   "bool"]


def test_numbers_that_the_noise_hides_are_not_all_next_to_zero():
    """Evenly over scale cells, of which most octaves are tiny, a tenth of these cells came back as 1e-9."""
    tiny = []
    for seed in range(3):
        g = np.random.default_rng(seed)
        scales = (1.0, 3.0, 10.0, 30.0, 100.0) * 2
        frame = pd.DataFrame({f"x{i}": g.normal(5, scale, 500) for i, scale in enumerate(scales)})
        found = run(frame, noise=USUAL | {"bounds": 10.0, "bins": 14.0, "values": 10.0}, rows=500,
                    key=SecretKey.from_seed(seed)).schema
        codec = TableCodec(found)
        back = lake.to_arrow(codec.decode(codec.encode(read(frame), "clip"), np.random.default_rng(0))).to_pandas()
        tiny.append((back.abs() < 1e-3).to_numpy().mean())
    assert np.mean(tiny) < 0.01


def test_words_and_times_of_day_are_surveyed_as_their_source_writes_them(tmp_path):
    g = np.random.default_rng(1)
    minutes = g.integers(0, 180, 3000)
    frame = pd.DataFrame({"woken": [f"{6 + m // 60:02}:{m % 60:02}" for m in minutes],
                          "paid": np.where(g.random(3000) < 0.3, "Yes", "No"), "ok": g.random(3000) < 0.5})
    frame.to_csv(tmp_path / "t.csv", index=False)
    table = lake.read(tmp_path / "t.csv")
    declared = declare({"columns": {"woken": {}, "paid": {"kind": "boolean"}, "ok": {}}}).bind(table.header)
    assert "kinds" in survey_steps(replace(declared, columns=declared.columns[1:2]), rows_known=True), "it is paid for"
    schema = run(tmp_path / "t.csv", schema=declared).schema
    assert [c.kind for c in schema.columns] == ["time", "boolean", "boolean"]
    assert (schema.column("woken").lower, schema.column("woken").upper) == (6 * 3600, 9 * 3600 - 60)
    assert [schema.column(name).spelling for name in ("paid", "ok")] == [("No", "Yes"), ("False", "True")]
    codec = TableCodec(schema)
    back = codec.decode(codec.encode(table), np.random.default_rng(0))
    assert set(back["paid"].values) == {"Yes", "No"}
    assert pd.Series(back["woken"].values).between("06:00", "08:59").all()
    base = lake.to_arrow({column.name: typed(column, back[column.name]) for column in schema.columns})
    assert [str(kind) for kind in base.schema.types] == ["time64[us]", "bool", "bool"]


def test_rare_values_are_folded_into_other():
    frame = pd.DataFrame({"c": ["a"] * 900 + ["b"] * 900 + [f"rare{i}" for i in range(90)] * 3})
    result = run(frame, noise=dict.fromkeys(STEPS, 3.0))
    column = result.schema.column("c")
    assert set(column.categories) == {"a", "b"}
    assert column.other
    codes = TableCodec(result.schema).encode(read(frame))
    assert (codes == column.values).sum() == 270


def test_a_second_look_at_the_columns_with_many_values_publishes_rarer_ones():
    """Four columns share the first look's noise; the one that has a tail gets the second to itself."""
    tail = [f"rare{i:02}" for i in range(50) for _ in range(60)]
    frame = pd.DataFrame({"c": ["a"] * 3000 + tail, **{name: ["x", "y"] * 3000 for name in "def"}})
    result = run(frame, noise={**dict.fromkeys(STEPS, 3.0), "values": 60.0, "rare": 5.0})
    column = result.schema.column("c")
    assert set(column.categories) == {"a", *tail}
    assert set(result.measured["rare"]["columns"]) == {"c"}
    assert set(result.schema.column("d").categories) == {"x", "y"}


def test_the_second_look_sees_most_where_most_is_hidden():
    """Equal parts of it would leave the many values of one column under the noise of three that hide little."""
    many = [f"rare{i:02}" for i in range(40) for _ in range(150)]
    frame = pd.DataFrame({"c": ["a"] * 4000 + many, **{name: ["x"] * 8600 + [*"opqr"] * 350 for name in "def"}})
    result = run(frame, noise={**dict.fromkeys(STEPS, 3.0), "values": 60.0, "rare": 11.0}, rows=10_000,
                 key=SecretKey.from_seed(2))
    sd = result.measured["rare"]["sd"]
    assert set(sd) == set("cdef")
    assert sd["c"] < 18 < 22 < min(sd["d"], sd["e"], sd["f"])
    assert sum((11.0 / each) ** 2 for each in sd.values()) == pytest.approx(1.0)
    assert set(result.schema.column("c").categories) == {"a", *many}
    assert module._shares([8000.0, 1000.0]) == pytest.approx([0.8, 0.2])


def test_a_value_that_a_tenth_of_few_rows_hold_is_looked_for_again():
    """400 of 4,000 rows are below the first look's threshold, and less than three sds of what the others leave."""
    frame = pd.DataFrame({"c": ["a"] * 1200 + ["b"] * 1000 + ["d"] * 800 + ["e"] * 600 + ["f"] * 400})
    found = [set(run(frame, noise={**dict.fromkeys(STEPS, 3.0), "values": 100.0, "rare": 45.0}, rows=4000,
                     key=SecretKey.from_seed(seed)).schema.column("c").categories) for seed in range(10)]
    assert sum("f" in values for values in found) >= 7
    assert set.union(*found) == set("abdef")


def test_a_second_look_with_more_noise_than_the_first_changes_no_count(monkeypatch):
    told = []
    real = module._Survey._categories
    monkeypatch.setattr(module._Survey, "_categories", lambda self, j, counts, sd: (
        told.append(dict(counts)), real(self, j, counts, sd)))
    frame = pd.DataFrame({"c": ["a"] * 30_000 + [f"rare{i}" for i in range(100) for _ in range(100)]})
    for rare, same in ((100.0, True), (5.0, False)):
        told.clear()
        run(frame, noise={**dict.fromkeys(STEPS, 3.0), "values": 30.0, "rare": rare}, key=SecretKey.from_seed(3))
        first, second = told
        assert (first["a"] == second["a"]) is same


def test_counts_of_the_survey_are_handed_on_by_code_with_the_noise_they_carry():
    """The rows counted by code, and what each look released of them; the first look's sd is 6 times the second's."""
    frame = pd.DataFrame({"c": ["a"] * 6000 + [f"rare{i}" for i in range(30) for _ in range(100)],
                          "gain": [0] * 8000 + list(range(1, 1001))})
    noise = {**dict.fromkeys(STEPS, 1.0), "values": 30.0, "rare": 5.0}
    result = run(frame, noise=noise, rows=9000, key=SecretKey.from_seed(4))
    codes = TableCodec(result.schema).encode(read(frame), "clip")
    of_c, of_gain = result.counted
    assert len(of_c) == 31
    assert {sd for _, sd in of_c.values()} == {5.0}
    assert of_gain.keys() == {0}
    assert of_gain[0][1] == pytest.approx(30 * 2**0.5)
    for j, counted in enumerate(result.counted):
        for code, (count, sd) in counted.items():
            assert abs(count - int((codes[:, j] == code).sum())) < 4.5 * sd


def test_values_beyond_the_codes_share_one_and_come_back_by_their_counts(monkeypatch):
    monkeypatch.setattr(answers, "MOST_CATEGORIES", 2)
    sizes = {"a": 4000, "b": 3000, "c": 900, "d": 300}
    known = [name for name, size in sizes.items() for _ in range(size)]
    frame = pd.DataFrame({"c": known + [f"u{i}" for i in range(600)]})
    schema = run(frame, noise=dict.fromkeys(STEPS, 3.0)).schema
    column = schema.column("c")
    assert column.categories == ("a", "b")
    assert column.rare[0] == ("c", "d")
    assert (column.other, column.cardinality) == (True, 3)
    assert Schema.from_dict(json.loads(json.dumps(schema.to_dict()))) == schema
    codec = TableCodec(schema)
    codes = codec.encode(read(frame))
    assert np.bincount(codes.ravel()).tolist() == [4000, 3000, 1800]
    back = pd.Series(codec.decode(codes, np.random.default_rng(0))["c"].values).value_counts()
    for name, size in {**sizes, OTHER: 600}.items():
        assert abs(back[name] - size) < 5 * np.sqrt(size) + 60


def test_noise_multipliers_for_every_step_are_required():
    with pytest.raises(ConfigError, match="noise: has no step 'bins'"):
        run(mixed(100), noise={k: v for k, v in QUIET.items() if k != "bins"})


def test_the_same_key_gives_the_same_survey_and_another_key_another():
    frame = mixed(500)
    key = SecretKey.generate()
    first, second, third = (run(frame, noise=USUAL, key=k) for k in (key, key, SecretKey.generate()))
    assert first == second
    assert first.measured != third.measured


def test_what_was_measured_is_json():
    result = run(mixed(500), noise=USUAL)
    assert json.loads(json.dumps(result.measured))["rows"]["sd"] == 60.0
    assert Schema.from_dict(json.loads(json.dumps(result.schema.to_dict()))) == result.schema


# ---- privacy ----------------------------------------------------------------------------------------------------


class Tape:
    """Records what the mechanisms are given; answers the second run with what the first run released."""

    def __init__(self, monkeypatch) -> None:
        self.given: list[list] = []
        self.shares: list[list[float] | None] = []  # of a look at values
        self.answers: list = []
        self.replay: list | None = None
        real = {"noisy_counts": module.noisy_counts, "frequent_values": module.frequent_values}
        for name, mechanism in real.items():
            monkeypatch.setattr(module, name, self._wrap(mechanism))

    def _wrap(self, mechanism):
        def call(tables, **settings):
            self.given.append([dict(t) if hasattr(t, "keys") else np.array(t) for t in tables])
            self.shares.append(settings.get("shares"))
            if self.replay is not None:
                return self.replay[len(self.given) - 1]
            self.answers.append(mechanism(tables, **settings))
            return self.answers[-1]
        return call


def largest_move(before, after) -> float:
    """Largest L1 distance over the tables of one release."""
    moves = [0.0]
    for a, b in zip(before, after, strict=True):
        if isinstance(a, dict):
            moves.append(sum(abs(a.get(k, 0) - b.get(k, 0)) for k in {*a, *b}))
        else:
            assert a.shape == b.shape, "the shape of a release followed the data"
            moves.append(float(np.abs(a - b).sum()))
    return max(moves)


ONE_MORE = pd.DataFrame({"job": ["the only pope"], "gain": [10**9], "age": [117], "lat": [-89.123456], "wage": [1e-5],
                         "when": ["1234-01-01"], "stamp": [pd.Timestamp("1699-01-01 00:00:01")], "ok": [True]})


def moves_of_one_record(monkeypatch, noise) -> list[float]:
    frame, key = mixed(400), SecretKey.generate()
    tape = Tape(monkeypatch)
    run(frame, noise=noise, key=key)
    first, tape.given, tape.replay = tape.given, [], tape.answers
    run(pd.concat([frame, ONE_MORE]), noise=noise, key=key)
    assert len(first) == len(tape.given)
    return [largest_move(a, b) for a, b in zip(first, tape.given, strict=True)]


@pytest.mark.parametrize("noise", [QUIET, USUAL])
def test_given_earlier_releases_one_record_moves_every_table_by_at_most_one(monkeypatch, noise):
    moves = moves_of_one_record(monkeypatch, noise)
    assert len(moves) >= 4
    assert max(moves) == 1


# ---- the second look at a target ---------------------------------------------------------------------------------

TWICE = USUAL | {"values": 20.0, "rare": 6.0}


def labelled(rows: int = 2000) -> pd.DataFrame:
    """A rare event, shops of which most are too small to be published, and a number."""
    g = np.random.default_rng(2)
    return pd.DataFrame({"shop": [f"s{i}" for i in g.integers(0, 200, rows)], "pay": g.exponential(80, rows).round(2),
                         "grade": g.choice(["low", "mid", *(f"g{i}" for i in range(30))], rows,
                                           p=[0.4, 0.3, *[0.01] * 30])})


def second_look(monkeypatch, other: pd.DataFrame) -> tuple[list[float], list, list]:
    """By how much the releases of ``other`` differ, given those of :func:`labelled`; and the shares of both's looks."""
    frame, key = labelled(), SecretKey.from_seed(1)
    tape = Tape(monkeypatch)
    schema = with_target(frame, "grade")
    run(frame, noise=TWICE, key=key, schema=schema, rows=2000)
    first, shares, tape.given, tape.shares, tape.replay = tape.given, tape.shares, [], [], tape.answers
    run(other, noise=TWICE, key=key, schema=schema, rows=2000)
    moves = [largest_move(a, b) for a, b in zip(first, tape.given, strict=True)]
    return moves, shares, tape.shares


def one_more(**cells) -> pd.DataFrame:
    return pd.concat([labelled(), pd.DataFrame({"shop": ["s1"], "pay": [3.0], "grade": ["low"]} | cells)])


@pytest.mark.parametrize("cells", [{"grade": ["the only pope"]}, {"grade": ["g7"]}, {"shop": ["new"]}])
def test_one_record_moves_the_second_look_at_a_target_by_at_most_one_and_its_shares_not_at_all(monkeypatch, cells):
    moves, before, after = second_look(monkeypatch, one_more(**cells))
    assert max(moves) == 1
    assert before == after
    (shares,) = [each for each in before if each is not None]
    assert len(shares) == 2, "the shops and the target"
    assert sum(shares) == pytest.approx(1)
    assert shares[-1] >= 0.2 - 1e-9


def test_another_table_altogether_has_the_same_second_look_given_the_same_first(monkeypatch):
    _, before, after = second_look(monkeypatch, labelled().assign(grade="mid", shop="s1"))
    assert before == after


def exact_label(real):
    """A mutant: whether the target has few values, and how much of it is hidden, are read off the rows."""
    def label(self):
        j = real(self)
        target = self.schema.names.index(self.schema.target)
        counts = self._histogram(target).values()
        self.hidden[target] = float(sum(counts) - max(counts))
        return j if len(counts) < 100 else None

    return label


def exact_few(real):
    """A mutant: a target is looked at twice where the rows say that it has several values."""
    return lambda self: real(self) if len(self._histogram(self.schema.names.index(self.schema.target))) > 1 else None


@pytest.mark.parametrize("mutant", [exact_label, exact_few])
def test_a_second_look_that_follows_the_rows_is_caught(monkeypatch, mutant):
    monkeypatch.setattr(module._Survey, "_label", mutant(module._Survey._label))
    try:
        _, before, after = second_look(monkeypatch, labelled().assign(grade="mid", shop="s1"))
    except ValueError:  # another number of tables than were released
        before, after = [], None
    assert before != after


def test_a_share_of_the_target_on_top_of_all_others_is_refused(monkeypatch):
    """A mutant: shares of the noise that add up to more than there is."""
    real = module._shares
    monkeypatch.setattr(module, "_shares", lambda hidden, label=False: [
        *real(hidden[:-1]), module.LABEL_SHARE] if label else real(hidden))
    with pytest.raises(ConfigError, match="add up to at most 1"):
        run(labelled(), noise=TWICE, schema=with_target(labelled(), "grade"), rows=2000, key=SecretKey.from_seed(1))


@given(st.lists(st.floats(1e-3, 1e6), min_size=1, max_size=12), st.booleans())
def test_shares_of_a_second_look_add_up_to_one_and_a_target_has_a_fifth(hidden, label):
    shares = module._shares(hidden, label)
    assert sum(shares) == pytest.approx(1)
    assert min(shares) > 0
    assert not label or shares[-1] >= module.LABEL_SHARE - 1e-9


@pytest.mark.parametrize("mutant", ["counts twice", "shape from data"])
def test_the_sensitivity_test_catches_a_broken_survey(monkeypatch, mutant):
    real = binning.count
    if mutant == "counts twice":
        monkeypatch.setattr(binning, "count", lambda edges, axis: 2 * real(edges, axis))
    else:
        monkeypatch.setattr(binning, "count", lambda edges, axis: real(edges, axis)[:len(axis)])
    try:
        caught = max(moves_of_one_record(monkeypatch, QUIET)) > 1
    except (AssertionError, ValueError):  # or the survey itself has found that its tables have another size
        caught = True
    assert caught


def published(frame: pd.DataFrame, times: int) -> int:
    """In how many surveys the secret of the last row is to be found in anything public."""
    found = 0
    for _ in range(times):
        result = run(frame, noise=USUAL)
        text = json.dumps([result.schema.to_dict(), result.measured])
        found += "pope" in text or "1234567" in text or "1234-" in text
    return found


def test_a_value_of_one_person_is_never_published(monkeypatch):
    frame = pd.concat([mixed(300), ONE_MORE.assign(gain=1234567)])[["job", "gain"]]
    assert published(frame, 60) == 0

    def leaky(histograms, **settings):  # the mutant: no threshold
        released, event = real(histograms, **settings)
        return [{**dict(h), **r} for h, r in zip(histograms, released, strict=True)], event

    real = module.frequent_values
    monkeypatch.setattr(module, "frequent_values", leaky)
    assert published(frame, 3) == 3


def test_the_order_of_the_rows_does_not_matter():
    frame, key = mixed(500), SecretKey.generate()
    assert run(frame, noise=USUAL, key=key) == run(frame[::-1].reset_index(drop=True), noise=USUAL, key=key)


def test_the_survey_takes_what_validate_has_passed():
    frame = mixed(300)
    table = read(frame)
    validate(table, Schema.undeclared(table.header))
    assert run(frame, noise=USUAL).schema.resolved


def test_amounts_of_a_form_come_back_as_few_values_and_a_smooth_column_does_not():
    g = np.random.default_rng(1)
    values = g.choice(g.integers(1, 100_000, 60), 20_000)
    table = lake.read({"amount": values, "length": np.rint(g.normal(50_000, 9000, 20_000)).astype(int)})
    declared = declare({"columns": {name: {"kind": "integer", "min": 0, "max": 100_000, "heaps": []}
                                    for name in ("amount", "length")}}).bind(table.header)
    schema = run(table, noise=USUAL, schema=declared, rows=20_000, key=SecretKey.from_seed(1)).schema
    assert [column.repeats for column in schema.columns] == [True, None]
    codec = TableCodec(schema)
    back = codec.decode(codec.encode(table), np.random.default_rng(0))
    assert len(np.unique(back["amount"].values)) <= 4 * 32
    assert len(np.unique(back["length"].values)) > 4000
    assert Schema.from_dict(schema.to_dict()) == schema


def rare_event(rows: int = 12_000, share: float = 0.02) -> pd.DataFrame:
    g = np.random.default_rng(4)
    shops = [f"s{i}" for i in range(300)]
    return pd.DataFrame({"shop": g.choice(shops, rows), "amount": g.exponential(80, rows).round(2),
                         "fraud": (g.random(rows) < share).astype(int), "grade": g.integers(1, 6, rows)})


def with_target(frame: pd.DataFrame, target: str | None) -> Schema:
    return Schema.undeclared(read(frame).header, target)


@pytest.mark.parametrize("text", [True, False])
def test_a_rare_event_keeps_its_code_where_it_is_the_target(text):
    frame = rare_event().astype(str) if text else rare_event()
    noise = USUAL | {"values": 40.0, "rare": 10.0, "bounds": 45.0, "bins": 40.0}  # 240 rows are not seen at first
    for seed in range(5):
        found = run(frame, noise=noise, schema=with_target(frame, "fraud"), rows=12_000, key=SecretKey.from_seed(seed))
        column = found.schema.column("fraud")
        if text:
            assert set(column.categories) == {"0", "1"}
            continue
        assert set(column.heaps) == {0.0, 1.0}
        assert (column.lower, column.upper, column.edges) == (0.0, 1.0, ())
        count, sd = found.counted[2][column.heaps.index(1.0)]
        assert abs(count - frame["fraud"].astype(int).sum()) < 5 * sd


def test_whether_the_target_is_looked_at_twice_is_known_before_the_data_is_opened():
    numbers = rare_event()[["amount", "fraud"]]
    assert "rare" in survey_steps(with_target(numbers, "fraud"), rows_known=True)
    assert "rare" not in survey_steps(with_target(numbers, "amount"), rows_known=True)
    assert "rare" not in survey_steps(with_target(numbers, None), rows_known=True)


def test_a_target_of_many_values_is_no_label():
    g = np.random.default_rng(0)
    frame = pd.DataFrame({"x": g.normal(size=6000), "pay": g.integers(0, 10**6, 6000)})
    found = run(frame, noise=USUAL, schema=with_target(frame, "pay"), rows=6000, key=SecretKey.from_seed(1))
    assert found.schema.column("pay").bins > 5
    assert found.schema.column("pay").heaps == ()


def test_each_of_a_few_declared_numbers_has_a_code_however_rare():
    grades = declare({"columns": {"grade": {"kind": "integer", "min": 1, "max": 5}}})
    frame = pd.DataFrame({"grade": [1] * 990 + [5] * 10})
    found = run(frame, noise=USUAL, schema=grades.bind((("grade", "int64"),)), rows=1000)
    column = found.schema.column("grade")
    assert (sorted(column.heaps), column.edges, column.lower, column.upper) == ([1, 2, 3, 4, 5], (), 1, 5)


def test_a_column_of_one_value_stays_one_value():
    frame = pd.DataFrame({"zero": np.zeros(5000, dtype=int), "x": np.arange(5000)})
    for seed in range(10):
        column = run(frame, noise=USUAL, rows=5000, key=SecretKey.from_seed(seed)).schema.column("zero")
        assert column.heaps == (0.0,)
        assert (column.lower, column.upper) == (0.0, 0.0)
