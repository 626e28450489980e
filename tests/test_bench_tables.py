"""The floors are as private as they are priced, and do what they say; the comparison runs, stops and reports."""

from __future__ import annotations

import importlib
import json
import math
import sys
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from dpvae.data import lake
from dpvae.data.lake import Table
from dpvae.data.schema import Column, Schema
from dpvae.errors import ConfigError
from dpvae.privacy.accountant import price
from dpvae.privacy.events import Gaussian, Threshold
from dpvae.privacy.mechanisms import cell_sd
from dpvae.privacy.noise import SecretKey

ROOT = Path(__file__).resolve().parents[1]
DELTA = 1e-5
ROWS = 6000


def script(name: str) -> ModuleType:
    """A program of scripts/ as a module, which leaves no compiled file beside it."""
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(ROOT / "scripts"))
        sys.dont_write_bytecode = before


floors, bench, report, peers = (script(name) for name in ("table_floors", "bench_tables", "table_report",
                                                          "table_peers"))
FLOORS = tuple(floors.SHARES)


def words(name: str, *values: str) -> Column:
    return Column(name, "categorical", "string", False, categories=values, other=False, declared=("kind", "categories"))


SCHEMA = Schema((words("y", "no", "yes"), words("copy", "a", "b", "c", "d"), words("twin", "a", "b", "c", "d"),
                 words("clue", "low", "high")), "y")


def people(rows: int = ROWS, seed: int = 0) -> Table:
    """``twin`` repeats ``copy``, ``clue`` is the target in nine of ten rows, and nothing else depends on anything."""
    rng = np.random.default_rng(seed)
    y, copy, blurred = rng.random(rows) < 0.3, rng.integers(0, 4, rows), rng.random(rows) < 0.1
    return lake.read({"y": np.where(y, "yes", "no"), "copy": np.array(list("abcd"))[copy],
                      "twin": np.array(list("abcd"))[copy], "clue": np.where(y ^ blurred, "high", "low")})


def made(floor: str, epsilon: float = 5.0, table: Table | None = None, schema: Schema = SCHEMA) -> tuple[Table, Any]:
    table = people() if table is None else table
    bill = floors.make_bill(floor, schema, rows=table.rows, epsilon=epsilon, delta=DELTA)
    cells, events = floors.synthesise(floor, table, schema, bill, rows=table.rows, seed=0, key=SecretKey.generate())
    assert events == bill.events()
    return Table(tuple(cells), tuple(cells.values())), bill


# -- the price -------------------------------------------------------------------------------------------------------


def gaussian_delta(mu: float, epsilon: float) -> float:
    """Balle and Wang 2018, theorem 8: the exact trade-off of the Gaussian mechanism."""
    return float(norm.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * norm.cdf(-mu / 2 - epsilon / mu))


@pytest.mark.parametrize("floor", FLOORS)
@pytest.mark.parametrize("epsilon", [0.5, 1.0, 10.0])
def test_a_floor_s_events_cost_the_epsilon_it_was_given_and_not_more(floor: str, epsilon: float) -> None:
    bill = floors.make_bill(floor, SCHEMA, rows=ROWS, epsilon=epsilon, delta=DELTA)
    assert all(isinstance(event, Gaussian) and event.count == 1 for event in bill.events())
    mu = math.sqrt(sum(1 / event.noise_multiplier**2 for event in bill.events()))
    assert gaussian_delta(mu, epsilon) <= DELTA
    assert gaussian_delta(mu, 0.98 * epsilon) > DELTA
    assert bill.epsilon == price(bill.events(), delta=DELTA)


@pytest.mark.parametrize("floor", FLOORS)
def test_what_the_schema_leaves_open_is_paid_for_by_a_floor_too(floor: str) -> None:
    schema = Schema.undeclared([("y", "string"), ("x", "int64")], "y")
    bill = floors.make_bill(floor, schema, rows=ROWS, epsilon=1.0, delta=DELTA)
    assert {event.what for event in bill.events() if isinstance(event, Threshold)}
    assert 0.99 <= price(bill.events(), delta=DELTA).upper <= 1.0
    rng = np.random.default_rng(0)
    table = lake.read({"y": rng.choice(["a", "b"], ROWS), "x": rng.integers(0, 9, ROWS)})
    found, _ = made(floor, 1.0, table, schema)
    assert found.rows == ROWS


class Bare:
    """The statistics of a floor before their noise."""

    def __init__(self, table: Table) -> None:
        from dpvae.data.table import TableCodec

        self.seen: dict[str, list[np.ndarray]] = {}
        noise = dict.fromkeys(floors.WHAT, 1.0)
        self.measured = floors.Measured(TableCodec(SCHEMA).encode(table), SCHEMA, noise, SecretKey.from_seed(0))
        self.measured._release = self.release

    def release(self, name: str, exact: list[np.ndarray]) -> list[np.ndarray]:
        self.seen[name] = exact
        return exact


def moved(one: Sequence[np.ndarray], other: Sequence[np.ndarray]) -> float:
    """L2 distance of two joint releases, in units of the sensitivity that is paid for."""
    gaps = [np.ravel(a).astype(float) - np.ravel(b) for a, b in zip(one, other, strict=True)]
    return float(np.linalg.norm(np.concatenate(gaps))) / math.sqrt(len(one))


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.integers(0, 59))
def test_a_record_moves_every_release_of_a_floor_by_at_most_what_is_paid_for(seed: int, gone: int) -> None:
    table = people(60, seed)
    without = table.take(np.arange(60) != gone)
    rng = np.random.default_rng(seed)
    pairs = list(combinations((1, 2, 3), 2))
    public = {pair: rng.integers(0, 30, [SCHEMA.cardinalities[j] for j in (*pair, 0)]) for pair in pairs}
    both = []
    for rows in (table, without):
        bare = Bare(rows)
        bare.measured.tables("one-way", [(j,) for j in range(4)])
        bare.measured.tables("with-target", [(j, 0) for j in (1, 2, 3)])
        bare.measured.tables("edges", [(1, 2, 0), (1, 3, 0)])
        bare.measured.scores(public)
        both.append(bare.seen)
    for name in floors.WHAT:
        assert moved(both[0][name], both[1][name]) <= 1 + 1e-12, name
        assert all(np.issubdtype(table.dtype, np.integer) for table in both[0][name]), name
    doubled = [2 * table for table in both[0]["scores"]], [2 * table for table in both[1]["scores"]]
    assert moved(*doubled) > 1, "a score that counts twice must not pass as one that counts once"


def test_the_noise_on_a_floor_s_tables_is_that_of_its_bill() -> None:
    bill = floors.make_bill("tan", SCHEMA, rows=ROWS, epsilon=1.0, delta=DELTA)
    schema = Schema((words("y", "no", "yes"), *(words(f"x{i}", *map(str, range(500))) for i in range(4))), "y")
    nobody = np.zeros((0, 5), dtype=np.int64)
    for release, multiplier in bill.noise.items():
        measured = floors.Measured(nobody, schema, bill.noise, SecretKey.generate())
        if release == "scores":
            continue  # six numbers: too few to see a spread; they pass through the same _release
        drawn = np.concatenate([table.ravel() for table in measured.tables(release, [(j, 0) for j in range(1, 5)])])
        assert drawn.std() == pytest.approx(cell_sd(multiplier, 4), rel=0.06)
        assert measured.events == [Gaussian("floor", floors.WHAT[release], multiplier)]


def test_two_runs_of_a_floor_with_one_public_seed_differ_because_their_noise_is_secret() -> None:
    first, second = (made("independent", 1.0)[0] for _ in range(2))
    assert any((a.values != b.values).any() for a, b in zip(first.cells, second.cells, strict=True))


# -- what they say ---------------------------------------------------------------------------------------------------


def agreement(table: Table, a: str, b: str, values: Mapping[str, str] | None = None) -> float:
    left = table.column(a).values
    left = left if values is None else np.array([values[value] for value in left])
    return float(np.mean(left == table.column(b).values))


CLUE = {"yes": "high", "no": "low"}


def test_independent_columns_keep_their_shares_and_nothing_else() -> None:
    found, _ = made("independent")
    assert np.mean(found.column("y").values == "yes") == pytest.approx(0.3, abs=0.03)
    assert agreement(found, "copy", "twin") == pytest.approx(0.25, abs=0.04)
    assert agreement(found, "y", "clue", CLUE) == pytest.approx(0.3 * 0.34 + 0.7 * 0.66, abs=0.04)


def test_naive_bayes_keeps_what_depends_on_the_target_and_nothing_else() -> None:
    found, _ = made("naive_bayes")
    assert agreement(found, "y", "clue", CLUE) == pytest.approx(0.9, abs=0.03)
    assert agreement(found, "copy", "twin") == pytest.approx(0.25, abs=0.04)


def test_the_tree_keeps_the_target_and_the_pair_that_repeats_itself() -> None:
    found, _ = made("tan")
    assert agreement(found, "y", "clue", CLUE) == pytest.approx(0.9, abs=0.03)
    assert agreement(found, "copy", "twin") > 0.95


def test_the_tree_adds_no_edge_where_noise_is_all_there_is_and_pays_all_the_same() -> None:
    rng = np.random.default_rng(1)
    table = lake.read({"y": rng.choice(["no", "yes"], 300), "copy": rng.choice(list("abcd"), 300),
                       "twin": rng.choice(list("abcd"), 300), "clue": rng.choice(["low", "high"], 300)})
    _, bill = made("tan", 0.5, table)
    assert {event.what for event in bill.events()} == {floors.WHAT[name] for name in ("with-target", "scores", "edges")}


def test_a_floor_that_predicts_needs_something_to_predict() -> None:
    with pytest.raises(ConfigError, match="target=null"):
        made("naive_bayes", schema=SCHEMA.with_target(None))


def test_the_forest_is_the_heaviest_one_and_names_parents_before_children() -> None:
    gains = {(0, 1): 5.0, (1, 2): 4.0, (0, 2): 4.5, (2, 3): 1.0, (0, 3): -2.0, (4, 5): 3.0, (3, 4): -0.1}
    parents = floors.forest(gains)
    assert parents == {1: 0, 2: 0, 3: 2, 5: 4}
    order = list(parents)
    assert all(parent not in order or order.index(parent) < order.index(child) for child, parent in parents.items())
    assert floors.forest({(0, 1): 0.0}) == {}


@settings(max_examples=50)
@given(st.lists(st.integers(-50, 50), min_size=1, max_size=12), st.integers(0, 100))
def test_the_projection_is_the_nearest_non_negative_vector_of_that_sum(noisy: list[int], total: int) -> None:
    values = np.array(noisy, dtype=float)
    found = floors.project(values, float(total))
    assert (found >= 0).all()
    assert found.sum() == pytest.approx(total, abs=1e-6)
    if total:  # Karush-Kuhn-Tucker: what is kept was moved by the same amount, what is dropped by no more
        shift = (values - found)[found > 0]
        assert np.ptp(shift) < 1e-9
        assert (values[found == 0] <= shift.max() + 1e-9).all()


# -- the comparison --------------------------------------------------------------------------------------------------

OLD = ["--train", "a/train.csv", "--test", "a/test.csv", "--judge", "j.py", "--schema", "s.yaml", "--target", "income",
       "--epsilon", "1", "3", "--seeds", "0", "1", "--set", "trainer.steps=5", "--out", "reports/bench/x"]


def test_the_options_of_before_still_work_and_peers_run_only_where_asked_for() -> None:
    args = bench.parse(OLD)
    assert (args.epsilon, args.seeds, args.override, args.out, args.table) == (
        [1.0, 3.0], [0, 1], ["trainer.steps=5"], Path("reports/bench/x"), "a")
    assert bench.systems_of(args) == [bench.REAL, *FLOORS, bench.OURS]
    assert set(bench.systems_of(bench.parse([*OLD, "--peers"]))) >= set(peers.PEERS)
    assert bench.systems_of(bench.parse([*OLD, "--systems", "dpvae", "--peers", "tvae"])) == ["dpvae", "tvae"]
    everything = bench.parse([*OLD[:4], "--target", "y"])
    assert (everything.epsilon, everything.seeds, str(everything.out)) == (
        [0.5, 1.0, 3.0, 10.0], [0, 1, 2], "reports/bench/tables")


def test_what_is_not_private_has_no_epsilon_and_real_rows_no_seed() -> None:
    found = bench.jobs(bench.parse([*OLD, "--systems", "real rows", "dpvae", "--peers", "tvae"]))
    assert found == [("real rows", math.inf, 0), ("dpvae", 1.0, 0), ("dpvae", 1.0, 1), ("dpvae", 3.0, 0),
                     ("dpvae", 3.0, 1), ("tvae", math.inf, 0), ("tvae", math.inf, 1)]
    assert set(peers.RUN) == set(peers.PEERS)


@pytest.mark.parametrize(("code", "limit", "says"), [
    ("while True: pass", {"cpu_s": 0.3}, "over its limit of 0.3 CPU seconds"),
    ("import time; time.sleep(60)", {"wall_s": 0.3}, "over its limit of 0.3 seconds"),
    ("import time; x = bytearray(3 * 10**8); time.sleep(60)", {"memory_mb": 200.0}, "over its limit of 200 MB"),
    ("raise ValueError('no such thing')", {}, "exit code 1: ValueError: no such thing"),
])
def test_a_system_over_its_limit_or_with_an_error_is_ended_with_its_reason(
    code: str, limit: dict[str, float], says: str, tmp_path: Path
) -> None:
    with pytest.raises(bench.Failed) as failure:
        bench.measured([sys.executable, "-c", code], tmp_path, bench.Limits(**limit))
    assert str(failure.value) == says


def test_a_process_is_charged_its_own_cpu_seconds(tmp_path: Path) -> None:
    code = "import time; t = time.process_time()\nwhile time.process_time() - t < 0.5: pass\nprint('done')"
    cost, said = bench.measured([sys.executable, "-c", code], tmp_path)
    assert 0.5 <= cost["cpu_s"] < 3
    assert 5 < cost["peak_mb"] < 500
    assert said == "done\n"


def test_the_declared_facts_a_peer_is_given_are_those_of_the_schema(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("age,city\n1,a\n")
    (tmp_path / "s.yaml").write_text(
        "columns:\n  age: {kind: integer, min: 0, max: 9}\n  city: {kind: categorical, categories: [a, b]}\n")
    assert bench.declared(tmp_path / "t.csv", tmp_path / "s.yaml") == {
        "age": {"lower": 0, "upper": 9}, "city": {"categories": ("a", "b")}}
    assert bench.declared(tmp_path / "t.csv", None) == {}


def run_of(system: str, seed: int, auc: float, epsilon: float | None = 1.0) -> dict[str, Any]:
    return {"table": "adult", "system": system, "epsilon": epsilon, "seed": seed, "gb_auc": auc, "lr_auc": 0.5,
            "tvd_2way": 0.1, "tvd_1way": 0.1, "tvd_1way_max": 0.1, "rank_error": 0.0, "cpu_s": 1.0, "peak_mb": 9.0}


def test_the_report_starts_with_its_command_keeps_other_runs_and_marks_what_was_only_read(tmp_path: Path) -> None:
    out = tmp_path / "tables"
    (tmp_path / "cited.json").write_text(json.dumps({"tables": {"adult": [
        {"system": "AIM", "settings": "x", "epsilon": 1, "gb_auc": 0.907}], "other": [{"system": "Z", "epsilon": 1}]}}))
    report.write(out, "adult", "first", [run_of("dpvae", 0, 0.1), run_of("dpvae", 1, 0.92), run_of("tan", 0, 0.89)])
    report.write(out, "adult", "second", [
        run_of("dpvae", 0, 0.90), run_of("real rows", 0, 0.93, None), {**run_of("tvae", 0, 0.8, None), "version": "7"}])
    report.write(out, "adult", "third", [{"table": "adult", "system": "ctgan", "epsilon": None, "seed": 0,
                                          "skipped": "it did not install"}])
    held = json.loads((tmp_path / "tables.json").read_text())
    assert held["commands"] == ["third", "second", "first"]
    assert len(held["runs"]) == 6
    text = (tmp_path / "tables.md").read_text()
    assert text.splitlines()[0] == "`third`"
    assert "| 1 | dpvae | 2 | 0.9100 | 0.5000 |" in text
    assert "| 1 | AIM (cited) | 1 | 0.9070 |  |" in text
    assert "- CTGAN (not private) skipped at epsilon -: it did not install" in text
    assert "| - | TVAE (not private) 7 | 1 | 0.8000 |" in text
    assert "| Z" not in text
    assert text.index("| dpvae") < text.index("| AIM (cited)") < text.index("| floor: tree-augmented naive Bayes")
    drawn = ElementTree.fromstring((tmp_path / "tables.svg").read_text())
    dots = [dot for dot in drawn.iter() if dot.tag.endswith("circle")]
    assert len(dots) == 2 + 4 + 3  # two of the legend; AUC of four systems, distance of the three that have one


def test_a_report_elsewhere_cites_what_the_repository_cites(tmp_path: Path) -> None:
    report.write(tmp_path / "tables", "adult", "first", [run_of("dpvae", 0, 0.9)])
    assert "private-pgm AIM (cited)" in (tmp_path / "tables.md").read_text()


def test_without_figures_to_cite_a_comparison_ends_before_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "CITED", tmp_path / "gone" / "cited.json")
    with pytest.raises(SystemExit, match=r"cited\.json: no such file; .*Restore it, or write .* to .*cited\.json"):
        report.citations(tmp_path / "tables")
    (tmp_path / "cited.json").write_text('{"tables": {}}')
    report.write(tmp_path / "tables", "adult", "first", [run_of("dpvae", 0, 0.9)])
    assert (tmp_path / "tables.md").exists()


def test_a_file_that_is_not_there_is_named_before_anything_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["bench_tables.py", "--train", "gone.csv", "--test", "gone.csv", "--target", "y"])
    with pytest.raises(SystemExit, match=r"--train .*gone\.csv: no such file"):
        bench.main()


def test_a_comparison_runs_from_the_command_line_with_our_own_judge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, seed in (("train", 0), ("test", 1)):
        table = people(300, seed)
        rows = zip(*(cells.values for cells in table.cells), strict=True)
        (tmp_path / f"{name}.csv").write_text(",".join(table.names) + "\n" + "".join(",".join(r) + "\n" for r in rows))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(sys, "argv", [
        "bench_tables.py", "--train", str(tmp_path / "train.csv"), "--test", str(tmp_path / "test.csv"),
        "--target", "y", "--epsilon", "3", "--seeds", "0", "--systems", "real rows", "independent",
        "--out", str(tmp_path / "tables"), "--table", "people"])
    bench.main()
    real, floor = json.loads((tmp_path / "tables.json").read_text())["runs"]
    assert (real["system"], floor["system"]) == ("real rows", "independent")
    assert real["gb_auc"] > 0.8 > 0.65 > floor["gb_auc"]
    assert floor["tvd_2way"] > real["tvd_2way"] > 0
    assert (tmp_path / "tables.md").read_text().startswith("`python scripts/bench_tables.py --train train.csv")
