"""The documents tell the truth: their commands compose, their scripts exist, their marked code runs."""

from __future__ import annotations

import os
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from dpvae import cli

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md",
             *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"(?P<mark><!-- [^\n]* -->\n)?```(?P<language>\w+)\n(?P<code>.*?)```", re.DOTALL)
INLINE = re.compile(r"`(dpvae [a-z][^`]*)`")


def blocks(document: str, language: str) -> list[re.Match[str]]:
    found = FENCE.finditer((ROOT / document).read_text())
    return [block for block in found if block["language"] == language]


def commands() -> list[tuple[str, str]]:
    """Every ``dpvae`` command of the documents, whole: not those that only name a verb or use a placeholder."""
    run = [(document, block["code"]) for document in DOCUMENTS for block in blocks(document, "bash")
           if not (block["mark"] or "").startswith("<!-- not run: ")]
    lines = [(document, line) for document, code in run for line in code.splitlines() if line.startswith("dpvae ")]
    inline = [(document, text) for document in DOCUMENTS for text in INLINE.findall((ROOT / document).read_text())]
    once = {" ".join(line.partition("#")[0].split()): (document, line) for document, line in reversed(lines + inline)}
    return [each for each in reversed(once.values()) if "key=value" not in each[1]]


@pytest.mark.parametrize(("document", "line"), commands())
def test_a_command_in_the_documents_has_a_verb_and_composes(
    document: str, line: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[object] = []
    for name, members in {"dpvae.api": ("plan", "train", "release", "audit"), "dpvae.audit.verify": ("verify",),
                          "dpvae.release.verbs": ("score", "sample", "impute"),
                          "dpvae.sweep": ("book", "preview"), "dpvae.selection": ("plan", "select"),
                          "dpvae.data.lake.verb": ("act",),
                          "dpvae.audit.published": ("verify_table",),
                          "dpvae.privacy.ledger_view": ("act",), "dpvae.report.run": ("report",),
                          "dpvae.report.compare": ("compare",), "dpvae.data.draft": ("draft",),
                          "dpvae.doctor": ("examine",), "dpvae.simulate": ("sweep",),
                          "dpvae.evaluate.judge": ("evaluate",)}.items():
        module = ModuleType(name)
        for member in members:
            setattr(module, member, lambda config: seen.append(config) or Passed())
        module.self_test = lambda tell: seen.append(tell) or []  # type: ignore[attr-defined]  # nothing was missed
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.chdir(tmp_path)
    if line.startswith("dpvae verify "):
        Path(line.split()[2]).mkdir(parents=True, exist_ok=True)
    assert cli.main(shlex.split(line, comments=True)[1:]) == 0
    assert seen


class Passed:
    """A verification, or an audit, that holds."""

    ok = passed = well = True

    def to_dict(self) -> dict[str, bool]:
        return {"ok": True}

    def give_back(self) -> None:
        """As a sweep's booking does."""


@pytest.mark.parametrize("document", DOCUMENTS)
def test_a_script_named_in_the_documents_exists_and_may_be_run(document: str) -> None:
    for script in re.findall(r"\./(scripts/[\w/]+(?:\.py)?)", (ROOT / document).read_text()):
        assert os.access(ROOT / script, os.X_OK), script


def headings(document: Path) -> set[str]:
    """What a link may name after its ``#``, as GitHub and the site spell it."""
    plain = (re.sub(r"[^\w\s-]", "", line.lower()) for line in re.findall(r"^#+ (.*)$", document.read_text(), re.M))
    return {re.sub(r"\s+", "-", text.strip()) for text in plain}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_a_link_in_the_documents_leads_to_a_file_and_to_a_heading_of_it(document: str) -> None:
    home = ROOT / document
    for link in re.findall(r"\]\(((?!https?:)[^)\s]+)\)", home.read_text()):
        name, _, heading = link.partition("#")
        there = home.parent / name if name else home
        assert there.exists(), link
        assert not heading or heading in headings(there), link


def test_the_readme_is_read_in_one_sitting() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) < 200


SCRIPTS = sorted(path for path in (ROOT / "scripts").iterdir() if path.is_file())


@pytest.mark.parametrize("script", [*SCRIPTS, ROOT / ".ci" / "run"], ids=lambda p: p.name)
def test_a_script_says_what_runs_it_and_stops_at_the_first_failure(script: Path) -> None:
    text = script.read_text()
    assert text.startswith("#!/usr/bin/env ")
    assert "bash" not in text.splitlines()[0] or "set -euo pipefail" in text or text.splitlines()[1].startswith("exec ")


def test_the_continuous_integration_runs_the_readme_s_test_command() -> None:
    first, second = next(block for block in blocks("README.md", "bash"))["code"].split()
    assert (first, second) == ("./scripts/demo", "./scripts/test")
    assert (ROOT / ".ci" / "run").read_text().splitlines()[1] == 'exec "$(dirname "$0")/../scripts/test"'


def test_the_schema_of_the_readme_is_a_schema(tmp_path: Path) -> None:
    from dpvae.data.schema import Schema

    (block,) = blocks("README.md", "yaml")
    (tmp_path / "orders.yaml").write_text(block["code"])
    schema = Schema.from_yaml(tmp_path / "orders.yaml")
    assert schema.target == "returned"
    assert [column.kind for column in schema.columns] == ["categorical", "continuous", "datetime", "boolean"]


def test_the_marked_code_of_the_readme_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import pandas

    rng = np.random.default_rng(5)
    frame = pandas.DataFrame({"age": rng.integers(18, 80, 400), "hours": rng.normal(38, 6, 400).round(1),
                              "city": rng.choice(["north", "south"], 400)})
    marked = [block for document in DOCUMENTS for block in blocks(document, "python")
              if block["mark"] == "<!-- tested -->\n"]
    assert marked
    monkeypatch.chdir(tmp_path)
    for block in marked:
        names = {"frame": frame}
        exec(compile(block["code"], "<README.md>", "exec"), names)
        assert len(names["rows"]) == 100
        assert list(names["rows"].columns) == list(frame.columns)
        assert len(names["scores"]) == len(frame)
