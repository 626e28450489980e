"""Two runs side by side: what differs, what noise explains, and what both cost together."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from fake_run import EVENTS, make_audit, make_run, table_writer

from dpvae.config import CompareConfig
from dpvae.errors import ConfigError, RunError
from dpvae.privacy.accountant import price
from dpvae.privacy.events import Gaussian
from dpvae.release.bundle import write_release
from dpvae.report.compare import compare

DATASET = {"dataset": "census", "cumulative_epsilon": 0.9}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    make_run(tmp_path / "runs", "one", claim=DATASET)
    make_run(tmp_path / "runs", "two", claim=DATASET,
             events=(*EVENTS[:-1], Gaussian("metric", "noisy ELBO", noise_multiplier=90.0, count=5)))
    return tmp_path / "runs"


def rows(a: str, b: str, root: Path, **more: Any) -> dict[str, Any]:
    return dict(json.loads(compare(CompareConfig(a=a, b=b, root=str(root), format="json", **more))))


def test_both_columns_hold_what_each_run_says(root: Path) -> None:
    make_audit(root / "two", proved=0.4)
    found = rows("one", "two", root)
    assert (found["a"], found["b"]) == ("one: run", "two: run")
    assert found["rows"]["data set"] == ["census", "census"]
    assert found["rows"]["audit"] == ["not audited", "audit holds, 14 questions"]
    assert found["rows"]["proved by the audit"] == ["-", "0.400 of 0.700 (f-dp)"]
    assert found["rows"]["spent: dpsgd"][0] == found["rows"]["spent: dpsgd"][1]


def test_what_both_cost_together_is_the_price_of_all_their_events(root: Path) -> None:
    both = (*EVENTS, *EVENTS[:-1], Gaussian("metric", "noisy ELBO", noise_multiplier=90.0, count=5))
    (said,) = [text for text in rows("one", "two", root)["says"] if "together" in text]
    told = float(re.findall(r"epsilon <= ([\d.]+)", said)[0])
    assert told == pytest.approx(price(both, delta=1e-5).upper, abs=2e-3)


def test_equal_elbos_are_told_to_differ_by_noise_alone(root: Path) -> None:
    assert any("noise alone explains" in text for text in rows("one", "two", root)["says"])


def test_a_better_elbo_is_told_with_its_noise(root: Path) -> None:
    path = root / "two" / "public" / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[-1]["noisy_elbo"] += 1.0
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "The second describes the rows better by 1.00 ± 0.23 nats per row." in rows("one", "two", root)["says"]


def test_a_run_beside_its_release_costs_nothing_more(root: Path, tmp_path: Path) -> None:
    folder = write_release(root / "one", table_writer, rows=1000, to=tmp_path / "release", seed=0)
    found = rows("one", str(folder), root)
    assert found["rows"]["rows released"] == ["-", "1,000"]
    assert found["says"] == ["They are of one run: what it spent was spent once."]


def test_two_runs_of_one_plan_are_two_spends(root: Path) -> None:
    run = make_run(root, "again", claim=DATASET)
    path = run / "public" / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[0]["noisy_elbo"] += 0.01  # other noise
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (said,) = [text for text in rows("one", "again", root)["says"] if "together" in text]
    assert float(re.findall(r"epsilon <= ([\d.]+)", said)[0]) == pytest.approx(
        price((*EVENTS, *EVENTS), delta=1e-5).upper, abs=2e-3)


def test_a_run_that_is_not_private_beside_another_says_so(root: Path) -> None:
    make_run(root, "open", claim={**DATASET, "private": False})
    assert "One of them promises nothing: it is NOT PRIVATE." in rows("one", "open", root)["says"]


def test_the_page_draws_both_with_names_of_their_own(root: Path, tmp_path: Path) -> None:
    found = compare(CompareConfig(a="one", b="two", root=str(root), to=str(tmp_path / "both.html")))
    text = (tmp_path / "both.html").read_text()
    assert str(tmp_path / "both.html") in str(found)
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(set(ids)) == len(ids)
    assert text.count("<svg") == 6
    with pytest.raises(ConfigError, match="is there already"):
        compare(CompareConfig(a="one", b="two", root=str(root), to=str(tmp_path / "both.html")))


def test_what_is_neither_run_nor_release_is_one_line(root: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match="neither a finished run nor a release"):
        rows("one", str(tmp_path / "empty"), root)
    with pytest.raises(RunError, match="not a run folder"):
        rows("one", "three", root)
    with pytest.raises(ConfigError, match="say dpvae compare first second"):
        compare(CompareConfig(a="one", root=str(root)))
