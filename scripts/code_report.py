#!/usr/bin/env python3
"""The code as a stranger meets it: sizes of modules and functions, the floors of its imports, what occurs twice.

    python scripts/code_report.py                 # writes reports/code.md; seconds
    python scripts/code_report.py --undocumented  # public names without a docstring, one a line

Twice is: six or more statements in a row that read the same once names and numbers are left out.
"""

from __future__ import annotations

import ast
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "dpvae"
REPORT = ROOT / "reports" / "code.md"
ALIKE = 6  # statements
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Part:
    """A function with its length in lines."""

    where: str
    lines: int


def modules() -> dict[str, ast.Module]:
    """Dotted name -> syntax tree."""
    paths = sorted(PACKAGE.rglob("*.py"))
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in paths]
    return {name: ast.parse(path.read_text()) for name, path in zip(names, paths, strict=True)}


def functions(name: str, tree: ast.Module) -> Iterator[Part]:
    """Every function and method, docstring and all."""
    for node in ast.walk(tree):
        if isinstance(node, Function):
            yield Part(f"{name}.{node.name}", (node.end_lineno or node.lineno) - node.lineno + 1)


def undocumented() -> list[str]:
    """Public functions, classes and methods without a docstring.

    Three things speak for themselves: a broken program of the audit (its decorator says what is broken), a method that
    does what its protocol or base class says, and what is written out in one line behind its name (``...``).
    """
    found = []
    for name, tree in modules().items():
        if ".mutants." in name:
            continue
        said = {node.name for owner, node in _public(tree) if owner and ast.get_docstring(node)}
        for owner, node in _public(tree):
            body = node.body[0]
            stub = isinstance(body, ast.Expr) and isinstance(body.value, ast.Constant) and body.value.value is ...
            again = bool(owner) and node.name in said  # another class of this module says what it does
            if not ast.get_docstring(node) and not stub and not again:
                found.append(f"{name}.{owner}{node.name}")
    return sorted(found)


def _public(tree: ast.AST, owner: str = "") -> Iterator[tuple[str, Function | ast.ClassDef]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_"):
            yield owner, node
            if isinstance(node, ast.ClassDef):
                yield from _public(node, f"{owner}{node.name}.")


class _Blank(ast.NodeTransformer):
    """Leaves the shape: names, attributes and constants all read alike."""

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return ast.Name("_", node.ctx)

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        return ast.Constant(0)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        return ast.arg("_")


def twice() -> list[tuple[str, ...]]:
    """Places of one shape: runs of ALIKE statements that occur in more than one function."""
    seen: dict[str, list[str]] = defaultdict(list)
    for name, tree in modules().items():
        for node in ast.walk(tree):
            body = node.body if isinstance(node, Function) else []
            shapes = [ast.dump(_Blank().visit(ast.parse(ast.unparse(each)))) for each in body]
            for start in range(len(shapes) - ALIKE + 1):
                seen["\n".join(shapes[start:start + ALIKE])].append(f"{name}.{getattr(node, 'name', '')}")
    return sorted({tuple(sorted(set(places))) for places in seen.values() if len(set(places)) > 1})


def imports(tree: ast.Module) -> set[str]:
    """Rooms of dpvae that a module imports."""
    found = set()
    for node in ast.walk(tree):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else (
            [node.module or ""] if isinstance(node, ast.ImportFrom) else [])
        found |= {name.split(".")[1] for name in names if name.startswith("dpvae.")}
    return found


def report() -> str:
    """The page."""
    trees = modules()
    sizes = dict(zip(trees, (len(path.read_text().splitlines()) for path in sorted(PACKAGE.rglob("*.py"))),
                     strict=True))
    parts = [part for name, tree in trees.items() for part in functions(name, tree)]
    lengths = sorted(part.lines for part in parts)
    rooms: dict[str, set[str]] = defaultdict(set)
    for name, tree in trees.items():
        room = name.split(".")[1] if "." in name else "dpvae"
        rooms[room] |= imports(tree) - {room}
    longest = sorted(parts, key=lambda part: -part.lines)[:12]
    same = twice()
    return "\n".join([
        "<!-- python scripts/code_report.py -->", "# The code as a stranger meets it", "",
        f"{len(sizes)} modules, {sum(sizes.values()):,} lines; {len(parts):,} functions.", "",
        f"- A module has {statistics.median(sizes.values()):.0f} lines in the middle, {max(sizes.values())} at most.",
        f"- A function has {statistics.median(lengths):.0f} lines in the middle; nine in ten have at most "
        f"{lengths[len(lengths) * 9 // 10]}, {sum(n > 30 for n in lengths)} have more than 30.",
        f"- {len(undocumented())} public names have no docstring.",
        f"- {len(same)} runs of {ALIKE} statements have the shape of another.", "",
        "| longest functions | lines |", "|---|---|", *(f"| {part.where} | {part.lines} |" for part in longest), "",
        "| longest modules | lines |", "|---|---|",
        *(f"| {name} | {n} |" for name, n in sorted(sizes.items(), key=lambda item: -item[1])[:12]), "",
        "| room | imports from |", "|---|---|",
        *(f"| {room} | {', '.join(sorted(below)) or '-'} |" for room, below in sorted(rooms.items())), "",
        "Of one shape:", "", *(f"- {', '.join(places)}" for places in same), ""])


if __name__ == "__main__":
    if "--undocumented" in sys.argv:
        print("\n".join(undocumented()))
    else:
        REPORT.write_text(report())
        print(f"wrote {REPORT.relative_to(ROOT)}")
