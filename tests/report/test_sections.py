"""What a page holds beyond tables: the audit under the claim, the worst pairs, pictures and texts."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from fake_run import make_audit, make_preview, make_run

from dpvae.config import PageConfig
from dpvae.errors import ReleaseError, RunError
from dpvae.report.charts import NAME, Marginal, marginal, ordered
from dpvae.report.html import render
from dpvae.report.page import document, picture, table
from dpvae.report.results import training
from dpvae.report.run import numbers_of, report, report_run

PNG = "data:image/png;base64," + base64.b64encode(b"\x89PNG fake").decode()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "runs", claim={"dataset": "census", "cumulative_epsilon": 2.25})


def sections(text: str) -> list[str]:
    return re.findall(r'<section id="(\w+)">', text)


def test_a_page_answers_in_the_order_of_its_readers(run: Path) -> None:
    make_audit(run)
    make_preview(run)
    found = sections(render(numbers_of(run)))
    assert found == ["guarantee", "meaning", "audit", "training", "marginals", "pairs", "rows", "limits", "check"]


def test_what_the_data_set_has_paid_for_in_all_stands_beside_the_budget(run: Path) -> None:
    numbers = numbers_of(run)
    assert numbers["cumulative"] == {"dataset": "census", "epsilon": 2.25}
    assert "every run on the data set so far: 2.2500" in render(numbers)


def test_an_audit_stands_under_the_claim_with_a_light_for_each_test(run: Path) -> None:
    make_audit(run, proved=0.4)
    text = report_run(run).read_text()
    assert text.count('class="light good" role="img" aria-label="holds"') == 2
    assert "Nothing contradicts the claim." in text
    assert "f-dp: 0.40 of 0.70" in text  # spoken by the chart
    assert "caught 20 of 20 programs" in text
    assert 'href="audit.html"' in text
    assert "One record &lt;moves&gt;" in text


def test_a_failed_audit_is_red(run: Path) -> None:
    make_audit(run, passed=False)
    text = render(numbers_of(run))
    assert 'aria-label="does not hold"' in text
    assert '<p class="claim bad">The claim must not be relied on' in text


def test_an_audit_of_another_model_is_not_shown(run: Path) -> None:
    make_audit(run)
    (run / "public" / "model.safetensors").write_bytes(b"others")
    assert numbers_of(run)["audit"] is None
    assert "has not been audited" in render(numbers_of(run))


def test_an_audit_that_does_not_parse_is_one_line(run: Path) -> None:
    found = make_audit(run)
    del found["self_test"]
    (run / "public" / "audit.json").write_text(json.dumps(found))
    with pytest.raises(RunError, match="run dpvae audit again"):
        report_run(run)


def test_the_worst_pairs_are_drawn_with_what_noise_explains(run: Path) -> None:
    make_preview(run)
    text = render(numbers_of(run))
    assert "age by hours per &lt;week&gt; &amp; more: 0.090, noise alone 0.040" in text
    assert "Of 15 pairs" in text


def test_the_page_of_a_run_shows_rows_of_its_own_model(run: Path) -> None:
    preview = make_preview(run)
    numbers = numbers_of(run)
    assert numbers["sample"] == preview["sample"]
    assert sum(numbers["marginals"][0]["synthetic"]) == pytest.approx(1.0)
    assert numbers["rows_released"] is None
    assert "Ten synthetic rows" in render(numbers)


def test_a_sample_of_many_columns_stands_on_its_side_and_loses_no_cell(run: Path) -> None:
    names = [f"c{i}" for i in range(12)]
    text = render({**numbers_of(run), "sample": [{name: f"{name}r{j}" for name in names} for j in range(3)]})
    head, *rows = re.findall(r"<tr>(.*?)</tr>", text[text.index('<table class="side">'):])
    assert re.findall(r">(\w+)</th>", head) == ["column", "1", "2", "3"]
    assert [re.findall(r">(\w+)</td>", row) for row in rows] == [
        [name, *(f"{name}r{j}" for j in range(3))] for name in names]


def test_columns_without_synthetic_rows_are_not_called_a_comparison(run: Path) -> None:
    assert "The real data, as it was released" in render(numbers_of(run))
    make_preview(run)
    text = render(numbers_of(run))
    assert "Real against synthetic, column by column" in text
    assert "The real data, as it was released" not in text


def test_the_audit_that_is_missing_is_named_with_its_run(run: Path) -> None:
    assert f"<code>dpvae audit run={numbers_of(run)['title'].partition(':')[0]}</code>" in report_run(run).read_text()


@pytest.mark.parametrize(("gain", "units", "light", "says"), [
    (0.6, 5, "good", "has learned how columns go together"), (0.3, 5, "open", "less than the noise of 0.50"),
    (0.3, 0, "poor", "has collapsed"), (-0.1, 5, "poor", "has collapsed"), (-0.9, 0, "poor", "has collapsed")])
def test_a_model_has_learned_has_collapsed_or_noise_hides_which(
        gain: float, units: int, light: str, says: str, run: Path) -> None:
    numbers = numbers_of(run)
    last = {**numbers["metrics"][-1], "noisy_elbo": -10 + gain, "sd": 0.25}
    found = {"independent_elbo": -10.0, "rate": 0.7, "active_units": units, "latent_dim": 8, "unit": "nats per row"}
    text = training({**numbers, "metrics": [last], "diagnostics": found})
    assert f'class="light {light}"' in text
    assert says in text


def test_a_number_s_values_and_bins_stand_in_one_order() -> None:
    data = Marginal(column="x", kind="integer", labels=("8", "-2", "3..7", "missing"), noisy=(0.1, 0.2, 0.3, 0.4),
                    sd=(0.01,) * 4, synthetic=(0.4, 0.3, 0.2, 0.1))
    found = ordered(data)
    assert found.labels == ("-2", "3..7", "8", "missing")
    assert (found.noisy, found.synthetic) == ((0.2, 0.3, 0.1, 0.4), (0.3, 0.2, 0.4, 0.1))


def test_the_name_of_a_value_begins_within_its_picture() -> None:
    data = Marginal(column="x", kind="categorical", labels=("Married-civ-spouse", "W" * 30), noisy=(0.6, 0.4),
                    sd=(0.01, 0.01))
    drawn = marginal(data, "m")
    for end, words in re.findall(r'<text class="t" x="([\d.]+)" y="[\d.]+" text-anchor="end">([^<]+)', drawn):
        assert float(end) - NAME * len(words) >= 0, words


def test_pictures_and_texts_are_shown_where_a_kind_of_data_has_them(run: Path) -> None:
    item = {"title": "Digits", "caption": "by <class>", "png": PNG, "alt": "ten rows of digits"}
    make_preview(run, gallery=[item, item], texts=["a <b> c", "d"])
    text = render(numbers_of(run))
    assert text.count(f'<img src="{PNG}" alt="ten rows of digits">') == 2
    assert "by &lt;class&gt;" in text
    assert "<blockquote>a &lt;b&gt; c</blockquote>" in text


def test_a_picture_from_elsewhere_is_refused(run: Path) -> None:
    for source in ("https://example.org/a.png", "data:image/svg+xml;base64,AAAA", PNG + '" onload="x'):
        with pytest.raises(ReleaseError, match="loads nothing from outside"):
            picture(source, "alt")


def test_too_many_pictures_stay_under_one_megabyte(run: Path) -> None:
    large = "data:image/png;base64," + "A" * 400_000
    make_preview(run, gallery=[{"png": large, "alt": f"{i}"} for i in range(5)])
    text = render(numbers_of(run))
    assert "3 more pictures are in report.json" in text
    assert len(text.encode()) < 1_000_000


def test_a_page_without_tables_pairs_or_map_is_whole(run: Path) -> None:
    for name in ("reference.json", "diagnostics.json", "map.json"):
        (run / "public" / name).unlink(missing_ok=True)
    make_preview(run, histograms={}, sample=[], pairs=None, gallery=[{"png": PNG, "alt": "digits"}])
    found = sections(render(numbers_of(run)))
    assert found == ["guarantee", "meaning", "audit", "training", "rows", "limits", "check"]


def test_the_verb_makes_the_page_anew_and_a_copy_to_pass_on(run: Path, tmp_path: Path) -> None:
    report_run(run)
    make_audit(run)
    made = report(PageConfig(run="latest", root=str(run.parent), to=str(tmp_path / "board")))
    assert made.page == tmp_path / "board" / "report.html"
    assert "This run is differentially private" in str(made)
    assert "Nothing contradicts the claim." in (run / "public" / "report.html").read_text()
    assert {path.name for path in made.page.parent.iterdir()} == {"report.html", "report.json", "audit.html",
                                                                 "audit.json"}
    with pytest.raises(RunError, match="is there already"):
        report(PageConfig(run="latest", root=str(run.parent), to=str(tmp_path / "board")))


def test_the_page_of_a_release_is_sealed(tmp_path: Path) -> None:
    (tmp_path / "certificate.json").write_text("{}")
    with pytest.raises(ReleaseError, match="sealed by its signature"):
        report(PageConfig(run=str(tmp_path)))


def test_whatever_comes_from_outside_is_escaped() -> None:
    evil = '<script>alert(1)</script>"&'

    class Tags(HTMLParser):
        seen: list[str] = []  # noqa: RUF012

        def handle_starttag(self, tag: str, attrs: Any) -> None:
            self.seen.append(tag)

    body = table([evil], [[evil]], label=evil) + picture(PNG, evil, evil, evil)
    Tags().feed(document(evil, evil, [("a", evil, body)]))
    assert "script" not in Tags.seen
