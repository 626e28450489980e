"""The page: complete, self-contained, well formed, accessible, and never the way out for something private."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from fake_run import columns, make_run, table_writer
from hypothesis import given, settings
from hypothesis import strategies as st

from dpvae.errors import RunError
from dpvae.privacy.accountant import price
from dpvae.release.bundle import write_release
from dpvae.report.canvas import STYLE, number, shorten, ticks
from dpvae.report.charts import Marginal, grouped, largest, marginal, marginals
from dpvae.report.html import render
from dpvae.report.results import LARGEST_PAGE
from dpvae.report.run import report_run
from dpvae.report.source import read_run

VOID = {"meta", "link", "br"}


class Page(HTMLParser):
    """Checks nesting; collects what a reader or an auditor would look for."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)
        assert self.stack == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("report")
    return write_release(make_run(root / "runs"), table_writer, rows=1000, to=root / "release", seed=0)


@pytest.fixture(scope="module")
def numbers(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "report.json").read_text()))


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    return Page((folder / "report.html").read_text())


def test_page_is_the_one_that_its_numbers_give(folder: Path, numbers: dict[str, Any]) -> None:
    assert render(numbers) == (folder / "report.html").read_text()


def test_page_is_under_one_megabyte_and_asks_the_network_for_nothing(folder: Path, page: Page) -> None:
    text = (folder / "report.html").read_text()
    assert len(text.encode()) < 1_000_000
    assert page.all("script") == []
    assert "http" not in text
    assert "url(" not in text
    assert "@import" not in text
    for tag, attrs in page.tags:
        for key in ("src", "href"):
            assert (attrs.get(key) or "#")[:1] == "#" or attrs[key] in ("report.json", "data:,"), (tag, attrs)
        assert not any(key.startswith("on") for key in attrs)


def test_every_chart_has_a_spoken_title_and_description(page: Page) -> None:
    charts = page.all("svg")
    assert len(charts) == 5 + len(columns())  # budget, accountants, trade-off, ELBO, epsilon
    ids = [attrs["id"] for _, attrs in page.tags if attrs.get("id")]
    assert len(set(ids)) == len(ids)
    for attrs in charts:
        assert attrs["role"] == "img"
        assert all(name in ids for name in (attrs["aria-labelledby"] or "").split())


def test_every_link_in_the_page_leads_somewhere(page: Page) -> None:
    ids = {attrs.get("id") for _, attrs in page.tags}
    inside = [str(a["href"])[1:] for a in page.all("a") if str(a["href"]).startswith("#")]
    assert len(inside) == 9
    assert set(inside) <= ids


def test_sentence_target_and_every_gap_are_on_the_page(page: Page, numbers: dict[str, Any]) -> None:
    text = " ".join(page.text)
    assert numbers["sentence"].split(" at delta")[0] in text
    for gap in numbers["not_covered"]:
        assert gap["statement"] in text
    assert len(numbers["not_covered"]) >= 5


def test_budget_of_the_phases_adds_up_to_the_price_of_all_events(folder: Path, numbers: dict[str, Any]) -> None:
    source = read_run(folder.parent / "runs" / "adult1")
    total = price(source.events, delta=source.claim.delta).upper
    assert sum(phase["added"] for phase in numbers["phases"]) == pytest.approx(total)
    assert [phase["phase"] for phase in numbers["phases"]] == ["survey", "anchor", "dpsgd", "metric"]
    assert all(phase["added"] >= 0 for phase in numbers["phases"])


def test_shares_of_a_marginal_are_counts_over_their_total(folder: Path, numbers: dict[str, Any]) -> None:
    source = read_run(folder.parent / "runs" / "adult1")
    for item in numbers["marginals"]:
        anchor = source.anchors[item["column"]]
        assert item["noisy"][0] == pytest.approx(anchor.noisy[0] / sum(anchor.noisy))
        assert item["sd"] == pytest.approx(anchor.sd / sum(anchor.noisy))
        assert sum(item["synthetic"]) == pytest.approx(1.0)


def test_distance_of_a_column_equal_to_its_anchor_is_zero(folder: Path) -> None:
    from dpvae.report.numbers import marginals as gathered

    source = read_run(folder.parent / "runs" / "adult1")
    same = {name: anchor.noisy for name, anchor in source.anchors.items()}
    total = {name: int(sum(anchor.noisy)) for name, anchor in source.anchors.items()}
    for item in gathered(source, {"income": same["income"]}, total["income"]):  # type: ignore[dict-item]
        if item["column"] == "income":
            assert item["distance"] == pytest.approx(0.0, abs=1e-12)


def test_missing_cells_and_numpy_scalars_of_sample_rows_are_json(numbers: dict[str, Any]) -> None:
    assert numbers["sample"][3]["age"] is None
    assert numbers["sample"][4]["capital_gain"] == 7688
    assert len(numbers["sample"]) == 10


def test_report_of_a_run_has_everything_but_synthetic_rows(tmp_path: Path) -> None:
    page = report_run(make_run(tmp_path))
    text = page.read_text()
    assert page == tmp_path / "adult1" / "public" / "report.html"
    Page(text)
    assert "This run is differentially private" in text
    assert "Ten synthetic rows" not in text
    assert json.loads(page.with_name("report.json").read_text())["marginals"][0]["synthetic"] is None


def test_report_of_a_run_with_fixed_noise_says_not_private_first(tmp_path: Path) -> None:
    text = report_run(make_run(tmp_path, claim={"private": False})).read_text()
    assert '<p class="claim bad">This run is NOT PRIVATE' in text
    assert "is differentially private" not in text
    assert "What is guaranteed" not in text
    assert "What it means" not in text


def test_report_of_a_run_without_metrics_or_anchors_still_comes_out(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    for name in ("metrics.jsonl", "reference.json", "config.json", "model.safetensors"):
        (run / "public" / name).unlink()
    Page(report_run(run).read_text())


def test_page_holds_neither_the_sealed_key_nor_the_data_path(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    report_run(run)
    for name in ("report.html", "report.json"):
        text = (run / "public" / name).read_text()
        assert "SECRET" not in text
        assert "/secret/" not in text
        assert str(tmp_path) not in text


def test_folder_that_is_no_run_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no run\.json"):
        report_run(tmp_path)


def test_very_wide_table_stays_under_one_megabyte(numbers: dict[str, Any]) -> None:
    wide = {**numbers, "marginals": numbers["marginals"] * 100}
    text = render(wide)
    assert LARGEST_PAGE < len(text.encode()) < 1_000_000
    assert "more columns are in report.json" in text


def test_names_that_are_markup_stay_text() -> None:
    evil = '<script>alert(1)</script>"&'
    data = Marginal(column=evil, kind="categorical", labels=(evil, "b"), noisy=(0.5, 0.5), sd=(0.1, 0.1))
    for svg in (marginal(data, "x"), marginals([data])):
        ElementTree.fromstring(svg)
        assert "<script" not in svg


def test_readme_picture_is_a_standalone_file_with_its_own_colours(numbers: dict[str, Any]) -> None:
    svg = marginals([Marginal.of(item) for item in numbers["marginals"]])
    root = ElementTree.fromstring(svg)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "prefers-color-scheme:dark" in svg
    assert len(svg) < 100_000


KINDS = st.sampled_from(["categorical", "integer", "boolean", "datetime"])
SHARES = st.floats(-0.2, 1.5)


@settings(max_examples=100, deadline=None)
@given(kind=KINDS, noisy=st.lists(SHARES, min_size=1, max_size=200), sd=st.floats(0, 10), synthetic=st.booleans())
def test_any_marginal_is_drawn_as_well_formed_svg_without_nan(
        kind: str, noisy: list[float], sd: float, synthetic: bool) -> None:
    data = Marginal(column="c", kind=kind, labels=tuple(map(str, range(len(noisy)))), noisy=tuple(noisy),
                    sd=(sd,) * len(noisy), synthetic=tuple(noisy) if synthetic else None)
    svg = marginal(data, "m")
    ElementTree.fromstring(svg)
    assert "nan" not in svg
    assert "inf" not in svg


@given(noisy=st.lists(SHARES, min_size=1, max_size=200), rows=st.integers(2, 80))
def test_joining_bars_keeps_their_sum_and_their_noise(noisy: list[float], rows: int) -> None:
    data = Marginal(column="c", kind="categorical", labels=tuple(map(str, range(len(noisy)))), noisy=tuple(noisy),
                    sd=(0.01,) * len(noisy))
    for joined in (largest(data, rows), grouped(data, rows)):
        assert len(joined.labels) <= rows
        assert sum(joined.noisy) == pytest.approx(sum(noisy))
        assert sum(sd**2 for sd in joined.sd) == pytest.approx(len(noisy) * 1e-4)


def luminance(colour: str) -> float:
    digits = colour if len(colour) == 6 else "".join(c * 2 for c in colour)
    parts = [int(digits[i:i + 2], 16) / 255 for i in (0, 2, 4)]
    r, g, b = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def contrast(a: str, b: str) -> float:
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_text_has_contrast_of_at_least_four_and_a_half_and_marks_of_three(theme: int) -> None:
    colours = dict(re.findall(r"--(\w+):#(\w+)", STYLE.split("@media")[theme]))
    for ground in ("bg", "panel"):
        assert min(contrast(colours[name], colours[ground]) for name in ("ink", "muted", "c0", "c5")) >= 4.5
        assert min(contrast(colours[f"c{i}"], colours[ground]) for i in range(6)) >= 3
        assert contrast(colours["mark"], colours[ground]) >= 4.5
    assert contrast(colours["mark"], colours["bar"]) >= 3


def test_ticks_are_round_and_inside() -> None:
    assert ticks(0, 100) == [0.0, 25.0, 50.0, 75.0, 100.0]
    assert ticks(0.9, 1.1) == [0.9, 0.95, 1.0, 1.05, 1.1]
    assert all(-18.3 <= tick <= -14.9 for tick in ticks(-18.3, -14.9))


def test_long_words_are_cut_with_an_ellipsis_and_numbers_are_short() -> None:
    assert shorten("Self-emp-not-inc", 8) == "Self-em…"
    assert number(1e-7) == "1e-07"
    assert number(25.0) == "25"
