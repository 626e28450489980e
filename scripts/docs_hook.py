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
import textwrap
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from dpvae.command import verbs  # noqa: E402

ROOMS = {  # a page -> the modules and packages of dpvae that it describes, and what they are about
    "foundations": (("errors", "checks", "config", "rng"), "errors, checks, configuration, random streams"),
    "privacy": (("privacy",), "events, accountants, ledger, mechanisms, noise, the plan; never loads torch"),
    "data": (("data", "engines"), "rows in and out, schemas, what is surveyed, lake tables and engines"),
    "models": (("models",), "networks, priors, likelihoods; knows neither privacy nor files"),
    "train": (("train",), "noisy statistics, DP-SGD, the free encoder, checkpoints"),
    "evaluate": (("evaluate",), "how good a synthetic table is, for those who hold the real one"),
    "release": (("release", "public", "publish"), "rows, scores, certificates, signatures, folders"),
    "audit": (("audit",), "whether the claim is true"),
    "report": (("report",), "pages, charts, progress"),
    "modalities": (("modalities",), "what tables, images and texts have to offer to the verbs"),
    "verbs": (("api", "estimator", "selection", "sweep", "simulate", "doctor"), "the verbs, in Python"),
}
PROMISED = {"estimator": ("DPVAE",), "api": ("plan", "train", "release", "Run"), "audit.verify": ("verify", "Verdict")}
FROM_ROOT = {"project/changelog.md": "CHANGELOG.md", "project/contributing.md": "CONTRIBUTING.md",
             "project/security.md": "SECURITY.md"}


def pages() -> dict[str, str]:
    """Path inside docs/ -> Markdown, for every page that is made and not written."""
    made = {"reference/knobs.md": knobs(), "reference/python.md": python()}
    made |= {f"reference/python-{page}.md": _room(page, rooms, says) for page, (rooms, says) in ROOMS.items()}
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
    """Every verb with every knob: its default, its type, and the words beside it in dpvae/config/."""
    words = _comments()
    lines = ["# Verbs and knobs", "", "Made from `dpvae/command/verbs.py` and `dpvae/config/`. Every verb also takes "
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
    found = {}
    for path in sorted((ROOT / "dpvae" / "config").glob("*.py")):
        source = path.read_text()
        lines = source.splitlines()
        for node in ast.parse(source).body:
            for item in node.body if isinstance(node, ast.ClassDef) else ():
                if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                    comment = re.search(r"#\s*(.*)$", lines[item.lineno - 1])
                    found[node.name, item.target.id] = comment[1] if comment else ""
    return found


# -- Python ----------------------------------------------------------------------------------------------------------


def python() -> str:
    """The names that are promised to stay, and where the rest is."""
    lines = ["# Python", "", "The names that are promised to stay are those of `dpvae` itself: `DPVAE`, `plan`, "
             "`train`, `release`, `verify`. The rest is how they are made:", ""]
    lines += [f"- [{page}](python-{page}.md): {says}" for page, (_, says) in ROOMS.items()] + [""]
    for module, names in PROMISED.items():
        tree = ast.parse((ROOT / "dpvae" / f"{module.replace('.', '/')}.py").read_text())
        lines += [line for node in _public(tree) if node.name in names for line in _name(node)]
    return "\n".join(lines)


def _room(page: str, rooms: Collection[str], says: str) -> str:
    """Every public name of the modules of one page with its signature and its docstring."""
    lines = [f"# dpvae: {page}", "", f"{says[0].upper()}{says[1:]}.", ""]
    paths = [p for p in sorted((ROOT / "dpvae").rglob("*.py")) if "mutants" not in p.parts]
    for room in rooms:
        for path in paths:
            relative = path.relative_to(ROOT / "dpvae").with_suffix("")
            if relative.parts[0] == room:
                name = "dpvae." + ".".join(relative.parts).removesuffix(".__init__")
                lines += _module(name, ast.parse(path.read_text()))
    return "\n".join(lines)


def _public(tree: ast.Module) -> list[ast.FunctionDef | ast.ClassDef]:
    return [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)
            and not node.name.startswith("_")]


def _module(name: str, tree: ast.Module) -> list[str]:
    public = _public(tree)
    head = [f"## {name}", "", *_text(ast.get_docstring(tree)), ""] if public else []
    return head + [line for node in public for line in _name(node)]


def _name(node: ast.FunctionDef | ast.ClassDef) -> list[str]:
    typed = textwrap.fill(signature(node), 80, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)
    lines = [f"### {node.name}", "", "```text", typed, "```", "", *_text(ast.get_docstring(node)), ""]
    if isinstance(node, ast.ClassDef):
        lines += [f"- `{signature(item)}` {_line(ast.get_docstring(item))}" for item in node.body
                  if isinstance(item, ast.FunctionDef) and not item.name.startswith("_")]
        lines.append("")
    return lines


def signature(node: ast.FunctionDef | ast.ClassDef) -> str:
    """As it would be typed."""
    if isinstance(node, ast.ClassDef):
        for item in node.body:
            if isinstance(item, ast.FunctionDef) and item.name == "__init__":
                return f"{node.name}({ast.unparse(item.args).removeprefix('self').lstrip(', ')})"
        fields = [item for item in node.body if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)]
        return f"{node.name}({', '.join(ast.unparse(item) for item in fields)})"
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"{node.name}({ast.unparse(node.args)}){returns}"


LISTS = ("Args:", "Attributes:")


def _text(docstring: str | None) -> list[str]:
    """A docstring as Markdown: roles become code, doctests and indented drawings become blocks."""
    text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", docstring or "").replace("``", "`")
    found: list[str] = []
    inside = listed = False
    for line in text.splitlines():
        listed = line in LISTS or (listed and line.startswith("    "))
        if listed:  # "    name: what it is", which may go on further indented
            item = re.match(r" {4}(\w[\w, ]*): (.*)", line)
            found += [line, ""] if line in LISTS else [f"- `{item[1]}`: {item[2]}" if item else line.strip()]
            continue
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
