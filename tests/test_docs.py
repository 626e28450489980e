"""The documentation does what it says: every command and every line of Python on its pages is run, in order, for real.

A block that cannot be run here says why: ``<!-- not run: needs a server -->``. Models are trained in a shortened way.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import yaml
from small_images import pictures

from dpvae import cli

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md"))
FENCE = re.compile(r"(?:<!-- (?P<mark>[^\n]*) -->\n)?```(?P<language>\w+)\n(?P<code>.*?)```", re.DOTALL)
SHORT = ["experiment=smoke"]


class Block(NamedTuple):
    """One fenced block of a page; ``mark`` is what the comment above it says."""

    mark: str
    language: str
    code: str


def blocks(page: str) -> list[Block]:
    return [Block(m["mark"] or "", m["language"], m["code"]) for m in FENCE.finditer((DOCS / page).read_text())]


RUN = [page for page in PAGES if any(b.language in ("bash", "python") and not b.mark.startswith("not run")
                                     for b in blocks(page))]


def orders(rows: int, holes: bool = False) -> str:
    """Made-up orders."""
    rng = np.random.default_rng(8)
    lines = ["country,price,items,returned"]
    for country, price, items in zip(rng.choice(["DE", "FR", "IT"], rows, p=[0.5, 0.3, 0.2]),
                                     rng.gamma(2, 40, rows).clip(0, 499), rng.integers(1, 10, rows), strict=True):
        shown = "" if holes and items > 7 else str(items)
        lines.append(f"{country},{price:.2f},{shown},{'yes' if price * items > 500 else 'no'}")
    return "\n".join(lines) + "\n"


def photos(folder: Path) -> None:
    """A folder of PNG files for each of two classes."""
    image = pytest.importorskip("PIL.Image", reason="needs pip install 'dpvae[images]'")
    made = pictures(120)
    for i, (pixels, label) in enumerate(zip(made["images"], made["labels"], strict=True)):
        (folder / label).mkdir(parents=True, exist_ok=True)
        image.fromarray(pixels).save(folder / label / f"{i}.png")


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the reader of a page has already: a table, its schema, a run of it, and a release of that."""
    home = tmp_path_factory.mktemp("docs")
    schema = next(block for block in blocks("tutorials/train.md") if block.mark == "file: orders.yaml")
    (home / "orders.csv").write_text(orders(600))
    (home / "orders.yaml").write_text(schema.code)
    (home / "holes.csv").write_text(orders(60, holes=True))
    photos(home / "photos")
    before = Path.cwd()
    os.chdir(home)
    try:
        train = next(line for block in blocks("tutorials/train.md") for line in block.code.splitlines()
                     if line.startswith("dpvae train") and "run.name=orders" in line)
        assert cli.main([*shlex.split(train)[1:], *SHORT]) == 0
        assert cli.main(["release", "run=orders", "rows=100", "to=release/orders"]) == 0
    finally:
        os.chdir(before)
    return home


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN)
def test_a_page_runs_from_its_first_block_to_its_last(
        page: str, begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    shutil.copytree(begun, home)
    monkeypatch.chdir(home)
    names: dict[str, object] = {}
    for block in blocks(page):
        if block.mark.startswith("not run"):
            continue
        if block.language == "python":
            exec(compile(block.code, page, "exec"), names)
        elif block.language == "bash":
            for line in block.code.splitlines():
                words = shlex.split(line, comments=True)
                if words[0] == "torchrun":
                    subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", *words[1:], *SHORT],
                                   check=True, timeout=600, env={**os.environ, "PYTHONPATH": str(ROOT)})
                    continue
                assert words[0] == "dpvae", line
                short = SHORT if words[1] in ("train", "plan") else []
                assert cli.main([*words[1:], *short]) == 0, line


ROWS = re.compile(r"^\| `([^`]+)` \|", re.MULTILINE)  # the first cell of a table: what the program says


@cache
def printed() -> str:
    """Every text of the program's source, its pieces joined as Python joins them."""
    found = []
    for path in (ROOT / "dpvae").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(str(part.value) if isinstance(part, ast.Constant) else "\0"
                                     for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


@pytest.mark.parametrize("page", ["troubleshooting.md", "tutorials/images.md"])
def test_a_message_in_a_table_of_remedies_is_one_that_the_program_prints(page: str) -> None:
    messages, source = ROWS.findall((DOCS / page).read_text()), printed()
    assert len(messages) >= 8
    for message in messages:
        pieces = [piece.strip() for piece in message.split("...") if piece.strip()]
        assert all(piece in source for piece in pieces), message


def test_a_block_that_is_not_run_says_why() -> None:
    marks = [block.mark for page in PAGES for block in blocks(page) if block.mark.startswith("not run")]
    assert marks
    assert all(re.fullmatch(r"not run: [a-z].{8,}", mark) for mark in marks)


def test_every_page_is_in_the_navigation_and_every_entry_is_a_page() -> None:
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        made = runpy.run_path(str(ROOT / "scripts" / "docs_hook.py"))
    finally:
        sys.path.remove(str(ROOT / "scripts"))
    text = (ROOT / "mkdocs.yml").read_text()
    listed: list[str] = []

    def walk(item: object) -> None:
        for value in item.values() if isinstance(item, dict) else item if isinstance(item, list) else ():
            listed.append(value) if isinstance(value, str) else walk(value)

    walk(yaml.safe_load(text)["nav"])
    pages = made["pages"]()
    assert sorted(listed) == sorted([*PAGES, *pages])
    assert "`privacy.epsilon` | `1.0`" in pages["reference/knobs.md"]
    assert all(f"### dpvae {word}" in pages["reference/knobs.md"] for word in cli.VERBS)
    assert "### DPVAE" in pages["reference/python.md"]
    assert "### verify" in pages["reference/python.md"]
    assert all("\n### " in page for name, page in pages.items() if name.startswith("reference/python"))


def test_the_table_of_the_rule_is_what_the_code_says() -> None:
    made = runpy.run_path(str(ROOT / "scripts" / "rule_table.py"))
    page = (DOCS / "reference" / "rules.md").read_text()
    for facts in ((15, 50_000, 1.0), (4, 1_000, 10.0)):
        assert made["row"](facts) in page, "run: python scripts/rule_table.py"


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("material") is None, reason="needs pip install 'dpvae[docs]'")
def test_the_site_builds_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)],
                          capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) >= len(PAGES)
    for page in pages:
        loaded = re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(https?://[^"]+)"', page.read_text())
        assert [url for url in loaded if "canonical" not in url] == [], page


def test_the_citation_names_this_version() -> None:
    import dpvae

    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == dpvae.__version__
