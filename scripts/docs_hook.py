#!/usr/bin/env python
"""What the documentation site says of the code is written from the code: knobs, Python names, and the project's files.

mkdocs calls :func:`on_files` (mkdocs.yml); ``python scripts/docs_hook.py`` prints the pages. Nothing of it is
committed, so nothing of it can be out of date.
"""

from __future__ import annotations

import ast
import dataclasses
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from dpvae import verbs  # noqa: E402

ROOMS = ("errors", "checks", "config", "privacy", "data", "models", "train", "evaluate", "report", "release",
         "modalities", "audit", "api", "estimator", "selection", "sweep", "simulate", "doctor")
FROM_ROOT = {"project/changelog.md": "CHANGELOG.md", "project/contributing.md": "CONTRIBUTING.md",
             "project/security.md": "SECURITY.md"}


def pages() -> dict[str, str]:
    """Path inside docs/ -> Markdown, for every page that is made and not written."""
    made = {"reference/knobs.md": knobs(), "reference/python.md": python()}
    for page, source in FROM_ROOT.items():
        made[page] = (ROOT / source).read_text()
    return made


def on_files(files: Any, config: Any) -> Any:
    """mkdocs: add the pages that are made."""
    from mkdocs.structure.files import File

    for page, text in pages().items():
        files.append(File.generated(config, page, content=text))
    return files


# -- knobs -----------------------------------------------------------------------------------------------------------


def knobs() -> str:
    """Every verb with every knob: its default, its type, and the words beside it in dpvae/config.py."""
    words = _comments()
    lines = ["# Verbs and knobs", "", "Made from `dpvae/verbs.py` and `dpvae/config.py`. Every verb also takes "
             "`output=text|json|quiet`.", ""]
    for person, asks in verbs.PEOPLE.items():
        lines += [f"## {person[0].upper()}{person[1:]}: {asks}", ""]
        for word, verb in verbs.VERBS.items():
            if verb.person == person:
                lines += [f"### dpvae {word}", "", f"{verb.says[0].upper()}{verb.says[1:]}.", "",
                          "```bash", *(f"dpvae {word} {example}".rstrip() for example in verb.examples), "```", ""]
                if word == "plan":
                    lines += ["The knobs of `train`.", ""]
                else:
                    lines += [*_table(verb.config, words), ""]
    return "\n".join(lines)


def _table(cls: type, words: dict[tuple[str, str], str]) -> list[str]:
    rows = ["| knob | default | meaning |", "|---|---|---|"]
    for key, default, meaning in _knobs(cls, words, ""):
        rows.append(f"| `{key}` | `{default}` | {meaning} |")
    return rows


def _knobs(cls: type, words: dict[tuple[str, str], str], prefix: str) -> Iterator[tuple[str, str, str]]:
    for field in dataclasses.fields(cls):
        inner = field.default_factory if field.default is dataclasses.MISSING else None
        if isinstance(inner, type) and dataclasses.is_dataclass(inner):
            yield from _knobs(inner, words, f"{prefix}{field.name}.")
        else:
            default = "null" if field.default is None else str(field.default).lower() if isinstance(
                field.default, bool) else str(field.default) or '""'
            yield f"{prefix}{field.name}", default, words.get((cls.__name__, field.name), "").replace("|", "\\|")


def _comments() -> dict[tuple[str, str], str]:
    """(class, field) -> the comment on its line."""
    source = (ROOT / "dpvae" / "config.py").read_text()
    lines, found = source.splitlines(), {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef):
            for item in node.body:
                if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                    comment = re.search(r"#\s*(.*)$", lines[item.lineno - 1])
                    found[node.name, item.target.id] = comment[1] if comment else ""
    return found


# -- Python ----------------------------------------------------------------------------------------------------------


def python() -> str:
    """Every public name of every module with its signature and its docstring."""
    lines = ["# Python", "", "Made from the docstrings. The names that are promised to stay are those of `dpvae` "
             "itself: `DPVAE`, `plan`, `train`, `release`, `verify`; the rest is how they are made.", ""]
    paths = [p for p in sorted((ROOT / "dpvae").rglob("*.py")) if "mutants" not in p.parts]
    for room in ROOMS:
        for path in paths:
            relative = path.relative_to(ROOT / "dpvae").with_suffix("")
            if relative.parts[0] == room:
                name = "dpvae." + ".".join(relative.parts).removesuffix(".__init__")
                lines += _module(name, ast.parse(path.read_text()))
    return "\n".join(lines)


def _module(name: str, tree: ast.Module) -> list[str]:
    public = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)
              and not node.name.startswith("_")]
    if not public:
        return []
    lines = [f"## {name}", "", *_text(ast.get_docstring(tree)), ""]
    for node in public:
        lines += [f"### {node.name}", "", "```text", signature(node), "```", "", *_text(ast.get_docstring(node)), ""]
        if isinstance(node, ast.ClassDef):
            lines += [f"- `{signature(item)}` {_line(ast.get_docstring(item))}" for item in node.body
                      if isinstance(item, ast.FunctionDef) and not item.name.startswith("_")]
            lines.append("")
    return lines


def signature(node: ast.FunctionDef | ast.ClassDef) -> str:
    """As it would be typed."""
    if isinstance(node, ast.ClassDef):
        fields = [item for item in node.body if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)]
        return f"{node.name}({', '.join(ast.unparse(item) for item in fields)})"
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"{node.name}({ast.unparse(node.args)}){returns}"


def _text(docstring: str | None) -> list[str]:
    """A docstring as Markdown: roles become code, doctests and indented drawings become blocks."""
    text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", docstring or "").replace("``", "`")
    found: list[str] = []
    inside = False
    for line in text.splitlines():
        block = line.startswith((">>>", "...", "    ")) or (inside and line.strip() != "" and not line[0].isupper())
        if block != inside:
            found += ["```text"] if block else ["```", ""]
            inside = block
        found.append(line if block else line.replace("<", "&lt;").replace("[", "\\["))
    return [*found, "```"] if inside else found


def _line(docstring: str | None) -> str:
    return " ".join(" ".join(_text((docstring or "").split("\n\n")[0])).split())


if __name__ == "__main__":
    for made in pages().values():
        print(made)
