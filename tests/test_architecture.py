"""The house stands as it was drawn: imports point down, heavy libraries have one door each, nothing seeds globally."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "dpvae"
FLOORS = [  # an import may stay on its floor or go down
    {"errors"},
    {"checks", "files", "memory"},
    {"rng", "config", "engines", "typed"},
    {"privacy", "data", "models"},
    {"train"},
    {"evaluate", "report", "release"},
    {"modalities"},
    {"audit"},
    {"public", "publish"},
    {"api"},
    {"doctor", "estimator", "selection", "simulate", "sweep"},
    {"command"},
    {"cli"},
    {"__init__", "__main__"},
]
LAKE = {f"dpvae.data.lake{part}" for part in (
    "", ".arrow", ".delta", ".delta_home", ".duck", ".files", ".held", ".iceberg", ".iceberg_home", ".push",
    ".register", ".select", ".sql", ".text_files", ".verb", ".write")}
DOORS = {  # who may import it
    "opacus": {"dpvae.train.dpsgd", "dpvae.train.clipping.engine", "dpvae.train.clipping.fallback",
               "dpvae.train.clipping.ghost", "dpvae.train.clipping.optimizer", "dpvae.train.clipping.recorder",
               "dpvae.train.clipping.recurrent", "dpvae.train.clipping.sharded"},
    "hydra": {"dpvae.cli"},
    "omegaconf": {"dpvae.cli"},
    **dict.fromkeys(("pyarrow", "pyiceberg", "deltalake", "duckdb"), LAKE),
    "ray": {"dpvae.engines.ray_data"},
    "pyspark": {"dpvae.engines.spark"},
}
TORCH = {"torch", "opacus"}
TORCH_FREE = ("dpvae", "dpvae.cli", "dpvae.command.verbs", "dpvae.config", "dpvae.rng", "dpvae.privacy",
              "dpvae.audit.verify", "dpvae.audit.published")
UNSEEDED = {"manual_seed", "manual_seed_all", "set_rng_state"}


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


@cache
def tree_of(name: str) -> ast.Module:
    return ast.parse(MODULES[name].read_text())


def runtime(tree: ast.AST, *, lazy: bool) -> Iterator[ast.stmt]:
    """Statements that run: all but the bodies under TYPE_CHECKING and, unless ``lazy``, of functions."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not lazy:
            continue
        if isinstance(node, ast.stmt):
            yield node
        yield from runtime(node, lazy=lazy)


def imports_of(name: str, *, lazy: bool = True) -> set[str]:
    """The modules ``name`` imports, as dotted names; those of dpvae resolved to modules."""
    found: set[str] = set()
    for node in runtime(tree_of(name), lazy=lazy):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative import; write it out"
            source = node.module or ""
            found |= {f"{source}.{a.name}" if f"{source}.{a.name}" in MODULES else source for a in node.names}
    return found


def internal(name: str, *, lazy: bool = True) -> set[str]:
    return {target for target in imports_of(name, lazy=lazy) if target in MODULES}


def reached(name: str) -> set[str]:
    """``name`` and all it loads when imported, parent packages included."""
    seen: set[str] = set()
    waiting = [name]
    while waiting:
        module = waiting.pop()
        if module in MODULES and module not in seen:
            seen.add(module)
            waiting += [module.rpartition(".")[0], *internal(module, lazy=False)]
    return seen


def room(name: str) -> str:
    return name.split(".")[1] if "." in name else "__init__"


def floor(name: str) -> int:
    floors = [level for level, rooms in enumerate(FLOORS) if room(name) in rooms]
    assert floors, f"{name}: no floor; give {room(name)!r} one in FLOORS"
    return floors[0]


@pytest.mark.parametrize("name", MODULES)
def test_an_import_never_points_to_a_higher_floor(name: str) -> None:
    higher = {target for target in internal(name) if target != "dpvae" and floor(target) > floor(name)}
    assert not higher, f"{name} imports {', '.join(higher)} from above"


def test_no_two_modules_import_each_other_however_far_the_circle_goes() -> None:
    graph = {name: internal(name, lazy=False) - {name, "dpvae"} for name in MODULES}
    assert len(list(TopologicalSorter(graph).static_order())) >= len(MODULES)  # raises CycleError on a circle


def test_models_know_neither_privacy_nor_files() -> None:
    for name in MODULES:
        if room(name) == "models":
            wrong = {target for target in internal(name) if room(target) in ("privacy", "data")}
            assert not wrong, f"{name} imports {', '.join(wrong)}"


@pytest.mark.parametrize("library", DOORS)
def test_a_heavy_library_enters_by_its_one_door(library: str) -> None:
    users = {name for name in MODULES if any(target.split(".")[0] == library for target in imports_of(name))}
    assert users <= DOORS[library], f"{library} is imported by {', '.join(sorted(users - DOORS[library]))}"


def torch_free() -> list[str]:
    return [name for name in MODULES if name in TORCH_FREE or name.startswith("dpvae.privacy.")]


@pytest.mark.parametrize("name", torch_free())
def test_what_an_auditor_loads_names_torch_nowhere(name: str) -> None:
    for module in reached(name):
        libraries = {target.split(".")[0] for target in imports_of(module, lazy=module in torch_free())}
        assert not libraries & TORCH, f"{name} reaches {module}, which imports torch"


def test_importing_what_an_auditor_loads_leaves_torch_unloaded() -> None:
    code = f"import sys, {', '.join(torch_free())}\nprint(*sorted({TORCH!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    assert done.stdout.split() == []


def dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def hidden_randomness(tree: ast.AST) -> list[str]:
    """Calls that seed a global generator, draw from one, or make one that nobody can name."""
    found: list[str] = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        *owner, last = dotted(node.func).split(".")
        legacy = owner[-2:] in (["np", "random"], ["numpy", "random"]) and last.islower() and last != "default_rng"
        unnamed = last in {"default_rng", "RandomState", "Philox", "PCG64"} and not (node.args or node.keywords)
        if (last in UNSEEDED and owner[:1] == ["torch"]) or legacy or unnamed or owner == ["random"]:
            found.append(f"line {node.lineno}: {ast.unparse(node)}")
    return found


@pytest.mark.parametrize("name", MODULES)
def test_no_module_seeds_a_global_generator_or_hides_one(name: str) -> None:
    assert hidden_randomness(tree_of(name)) == []


@pytest.mark.parametrize("mutant", [
    "torch.manual_seed(0)", "np.random.seed(1)", "np.random.normal(size=3)", "np.random.default_rng()",
    "random.shuffle(rows)", "torch.cuda.manual_seed_all(1)",
])
def test_the_search_for_hidden_randomness_finds_what_it_looks_for(mutant: str) -> None:
    assert hidden_randomness(ast.parse(mutant))


def test_every_module_with_code_opens_with_its_reason() -> None:
    silent = [name for name in MODULES if tree_of(name).body and not ast.get_docstring(tree_of(name))]
    assert silent == []


def test_no_test_file_shares_its_name_with_another() -> None:
    names = [path.name for path in Path(__file__).parent.rglob("test_*.py")]
    assert sorted(set(names)) == sorted(names)


def test_the_size_of_every_module_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {name: len(path.read_text().splitlines()) for name, path in MODULES.items()}
    with capsys.disabled():
        longest = ", ".join(f"{name} {n}" for name, n in sorted(sizes.items(), key=lambda item: -item[1])[:5])
        print(f"\n{len(sizes)} modules, {sum(sizes.values())} lines; longest: {longest}")
    assert all(lines < 600 for lines in sizes.values()), "a module of 600 lines is two modules"


def test_every_public_name_says_what_it_is_for() -> None:
    import runpy

    report = runpy.run_path(str(PACKAGE.parent / "scripts" / "code_report.py"))
    assert report["undocumented"]() == []
