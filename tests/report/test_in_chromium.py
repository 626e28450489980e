"""The pages in a real browser: nothing loaded, broken, too pale or too wide, and everything spoken."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from browser import CHROMIUM, CONTRAST, DRIVER, MISSING, OVERFLOW, Browser
from fake_run import columns, make_audit, make_preview, make_run

from dpvae.config import CompareConfig
from dpvae.report.compare import compare
from dpvae.report.run import report_run

pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason=MISSING)
PIXEL = ("data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAA"
         "AABJRU5ErkJggg==")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as found:
        yield found


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("pages")
    claim = {"dataset": "census", "cumulative_epsilon": 1.9}
    full, bare = make_run(root, "full", claim=claim), make_run(root, "bare", claim={**claim, "private": False})
    make_audit(full)
    digit = {"title": "Digits", "caption": "seven", "png": PIXEL, "alt": "a digit"}
    make_preview(full, gallery=[digit], texts=["a text"])
    report_run(full), report_run(bare)
    compare(CompareConfig(a="full", b="bare", root=str(root), to=str(root / "both.html")))
    return {"full": full / "public" / "report.html", "not private": bare / "public" / "report.html",
            "both": root / "both.html"}


@pytest.mark.parametrize("name", ["full", "not private", "both"])
@pytest.mark.parametrize(("width", "scheme"), [(1100, "light"), (1100, "dark"), (360, "light")])
def test_a_page_is_readable_on_any_screen_and_loads_nothing(
        browser: Browser, pages: dict[str, Path], name: str, width: int, scheme: str) -> None:
    browser.open(pages[name], width=width, scheme=scheme)
    assert browser.run(CONTRAST) == []
    assert browser.run(OVERFLOW) == []
    assert browser.run("return document.documentElement.scrollWidth") == width
    assert [entry for entry in browser.logs("browser") if entry["level"] in ("SEVERE", "WARNING")] == []
    assert [url for url in browser.requests() if not url.startswith("data:")] == [pages[name].resolve().as_uri()]
    assert len(pages[name].read_bytes()) < 1_000_000


def test_every_chart_is_drawn_and_every_link_leads_somewhere(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["full"])
    tall = browser.run("return [...document.querySelectorAll('svg.chart')].map(e => e.getBoundingClientRect().height)")
    assert len(tall) == 7 + len(columns())  # budget, accountants, trade-off, bounds, ELBO, epsilon, pairs
    assert min(tall) > 40
    dead = browser.run("return [...document.querySelectorAll('a[href^=\"#\"]')].map(e => e.getAttribute('href'))"
                       ".filter(h => !document.querySelector(h))")
    assert dead == []
    files = browser.run("return [...document.querySelectorAll('a:not([href^=\"#\"])')]"
                        ".map(e => e.getAttribute('href'))")
    assert set(files) == {"report.json", "audit.html"}
    assert all((pages["full"].parent / name).is_file() for name in files)
    assert browser.run("return document.querySelector('img').naturalWidth") == 1


def test_a_screen_reader_hears_a_name_for_everything(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["full"])
    spoken = browser.spoken()
    named = [each for each in spoken if each[0] in ("image", "link", "heading", "region", "navigation")]
    assert [each for each in named if not each[1].strip()] == []
    assert {"image", "link", "heading", "region", "navigation", "table", "columnheader"} <= {role for role, _ in spoken}
    levels = browser.run("return [...document.querySelectorAll('h1,h2,h3')].map(e => +e.tagName[1])")
    assert levels[0] == 1
    assert all(b - a <= 1 for a, b in pairwise(levels))
    assert browser.run("return document.documentElement.lang") == "en"


def test_the_keyboard_reaches_the_wide_table_and_skips_the_navigation(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["full"], width=360)
    assert browser.run("document.querySelector('.skip').focus(); return document.activeElement.className") == "skip"
    wide = browser.run("return [...document.querySelectorAll('.wide, pre')].filter(e => e.scrollWidth > e.clientWidth)"
                       ".every(e => e.tabIndex === 0)")
    assert wide is True


def test_the_page_prints_on_a4_without_cutting_its_width(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["full"])
    printed = browser.cdp("Page.printToPDF", printBackground=True, preferCSSPageSize=True)["data"]
    assert printed.startswith("JVBER")  # %PDF
    browser.cdp("Emulation.setEmulatedMedia", media="print")
    browser.cdp("Emulation.setDeviceMetricsOverride", width=688, height=1000, deviceScaleFactor=1, mobile=False)  # A4
    assert browser.run("return document.documentElement.scrollWidth") <= 688
    assert browser.run(CONTRAST) == []
