"""Imports run one way, as CONTRIBUTING.md's map says, and functions stay small."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {"cgd_deploy": "cgd_deploy", "cgd_train": "train", "cgd_export": "export"}
LAYERS = (
    "cgd_deploy",
    "cgd_deploy.hardware",
    "cgd_deploy.pictures",
    "cgd_deploy.runtime",
    "cgd_deploy.search",
    "cgd_deploy.datasets",
    "cgd_deploy.quality",
    "cgd_deploy.serving",
    "cgd_deploy.cli",
    "cgd_train",
    "cgd_export",
    "cgd_deploy.demo",
)
"""A module imports modules of its own layer and of the layers above it in this list."""
LINES, ARGUMENTS = 70, 8
DOORS = ("cgd_deploy", "cgd_deploy.__main__")
"""``import cgd_deploy`` and ``python -m cgd_deploy``: they lead to later layers."""


def modules() -> dict[str, Path]:
    found = {}
    for package, folder in FOLDERS.items():
        for path in (ROOT / folder).rglob("*.py"):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            if "templates" not in parts:
                found[".".join((package, *parts)).removesuffix(".__init__")] = path
    return found


def at_import(tree: ast.Module) -> Iterator[ast.stmt]:
    """The import statements that run when the module is imported."""
    for node in tree.body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield node


def imported(module: str, path: Path, known: set[str]) -> set[str]:
    """Our modules that ``module`` needs before it is there itself."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found = set()
    for node in at_import(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
            continue
        parts = package.split(".")
        base = parts[: len(parts) - node.level + 1] if node.level else []
        source = ".".join([*base, *([node.module] if node.module else [])])
        found |= {f"{source}.{alias.name}" if f"{source}.{alias.name}" in known else source for alias in node.names}
    return found & known


def layer(module: str) -> int:
    """The place in LAYERS of the innermost package there that holds the module."""
    return max(place for place, name in enumerate(LAYERS) if f"{module}.".startswith(f"{name}."))


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    known = modules()
    return {module: imported(module, path, set(known)) for module, path in known.items()}


def test_the_graph_is_seen(graph):
    assert len(graph) > 100
    assert "cgd_deploy.runtime.scheduler" in graph["cgd_deploy.runtime.engine"]
    assert "cgd_deploy.cli.commands.bench" in graph["cgd_deploy.cli.app"]
    assert "cgd_train.checkpoint" in graph["cgd_export.int8.distill"]
    assert {layer(module) for module in graph} == set(range(len(LAYERS)))


def test_no_module_imports_itself_by_way_of_others(graph):
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_no_import_runs_to_a_later_layer(graph):
    later = [
        f"{module} imports {name}"
        for module, needed in graph.items()
        for name in sorted(needed)
        if layer(name) > layer(module) and module not in DOORS
    ]
    assert later == []


def test_the_root_holds_little():
    assert len(list((ROOT / "cgd_deploy").glob("*.py"))) <= 8


def test_the_map_names_every_module_in_its_folder_and_no_other():
    """A row of the map begins with its folder; of what stands in backquotes in it, the lower-case words are modules."""
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `([a-z0-9_/]+)/`[^|]*\|(.*)\|$", page, re.MULTILINE))
    for folder in FOLDERS.values():
        for package in {path.parent for path in (ROOT / folder).rglob("*.py")}:
            name = package.relative_to(ROOT).as_posix()
            there = {path.stem for path in package.glob("[!_]*.py")}
            if there and package.name != "templates":
                assert set(re.findall(r"`([a-z0-9_]+)`", rows[name])) == there, name


def functions() -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Every function and method with its module's name."""
    for module, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield module, node


def test_functions_fit_a_screen_and_take_few_arguments():
    large = []
    for module, node in functions():
        lines = (node.end_lineno or node.lineno) - node.lineno + 1
        named = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        given = [argument for argument in named if argument.arg not in ("self", "cls")]
        if lines > LINES or len(given) > ARGUMENTS:
            large.append(f"{module}.{node.name}: {lines} lines, {len(given)} arguments")
    assert large == []
