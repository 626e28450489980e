#!/usr/bin/env python3
"""Pages in a real Chromium, by the measures of a browser's own audit: readable, reachable, spoken, self-contained.

    python scripts/check_pages.py runs/first/public/report.html release/first/report.html
    python scripts/check_pages.py --write PAGE...       # also writes reports/pages.md

Ends with 1 where a page loads anything, logs an error, is wider than a telephone, is too pale (contrast below 4.5 in
light or dark), leaves a picture, link, heading or region without a name, or is larger than a megabyte.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from browser import CONTRAST, OVERFLOW, Browser  # noqa: E402

NAMED = ("image", "img", "link", "heading", "region", "navigation")
SPEED = ("const t = performance.getEntriesByType('navigation')[0];"
         "return t.domContentLoadedEventEnd - t.startTime;")


@dataclass(frozen=True)
class Looked:
    """What was found on one page; everything but size, charts and milliseconds should be nothing."""

    page: str
    kilobytes: float
    charts: int
    milliseconds: float
    requests: int
    errors: int
    pale: int
    wide: int
    unnamed: int
    dead: int

    @property
    def well(self) -> bool:
        """Whether nothing is wrong."""
        return not any((self.requests, self.errors, self.pale, self.wide, self.unnamed, self.dead)) and (
            self.kilobytes < 1000)


def look(browser: Browser, page: Path) -> Looked:
    """Open it wide, dark and on a telephone."""
    pale = wide = errors = requests = 0
    for width, scheme in ((1100, "light"), (1100, "dark"), (360, "light"), (360, "dark")):
        browser.open(page, width=width, scheme=scheme)
        pale += len(browser.run(CONTRAST))
        wide += len(browser.run(OVERFLOW)) + (browser.run("return document.documentElement.scrollWidth") > width)
        errors += sum(entry["level"] in ("SEVERE", "WARNING") for entry in browser.logs("browser"))
        own = page.resolve().as_uri()
        requests += sum(not url.startswith("data:") and url != own for url in browser.requests())
    dead = browser.run("return [...document.querySelectorAll('a[href^=\"#\"]')]"
                       ".filter(e => !document.querySelector(e.getAttribute('href'))).length")
    files = browser.run("return [...document.querySelectorAll('a:not([href^=\"#\"])')]"
                        ".map(e => e.getAttribute('href'))")
    dead += sum(not (page.parent / name).is_file() for name in files)
    unnamed = sum(role in NAMED and not name.strip() for role, name in browser.spoken())
    charts = browser.run("return document.querySelectorAll('svg, img').length")
    return Looked(str(page), len(page.read_bytes()) / 1000, charts, browser.run(SPEED), requests, errors, pale, wide,
                  unnamed, dead)


def main(arguments: list[str]) -> int:
    """Look at every page that is named."""
    pages = [Path(name) for name in arguments if name != "--write"]
    with Browser() as browser:
        found = [look(browser, page) for page in pages]
    rows = [f"| {each.page} | {each.kilobytes:.0f} | {each.charts} | {each.milliseconds:.0f} | {each.requests} | "
            f"{each.errors} | {each.pale} | {each.wide} | {each.unnamed} | {each.dead} |" for each in found]
    text = "\n".join([
        "<!-- python scripts/check_pages.py --write PAGE... -->", "# Pages in Chromium", "",
        "Each page in light and dark, 1100 and 360 pixels wide. Counted are requests beyond the page itself, console "
        "errors and warnings, texts with a contrast below 4.5, elements wider than the window, unnamed nodes of the "
        "accessibility tree, and dead links.", "",
        "| page | kB | charts | ms | requests | errors | pale | wide | unnamed | dead |", "|---" * 10 + "|", *rows, ""])
    print(text)
    if "--write" in arguments:
        (ROOT / "reports" / "pages.md").write_text(text)
    return 0 if all(each.well for each in found) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
