"""Imports run one way, between packages and between modules, as CONTRIBUTING.md's map says."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {"cgd_deploy": "cgd_deploy", "cgd_train": "train", "cgd_export": "export"}
ALLOWED = {"cgd_deploy": set(), "cgd_train": {"cgd_deploy"}, "cgd_export": {"cgd_deploy", "cgd_train"}}


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


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    known = modules()
    return {module: imported(module, path, set(known)) for module, path in known.items()}


def test_the_graph_is_seen(graph):
    assert len(graph) > 80
    assert "cgd_deploy.scheduler" in graph["cgd_deploy.engine"]
    assert "cgd_deploy.commands.serving" in graph["cgd_deploy.cli"]
    assert "cgd_train.checkpoint" in graph["cgd_export.distill"]


def test_no_module_imports_itself_by_way_of_others(graph):
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_packages_import_one_way(graph):
    for module, needed in graph.items():
        package = module.split(".")[0]
        others = {name.split(".")[0] for name in needed} - {package}
        assert others <= ALLOWED[package], module


def test_the_map_names_every_module():
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    paths = [path for folder in FOLDERS.values() for path in (ROOT / folder).glob("[!_]*.py")]
    assert [path.name for path in paths if f"`{path.stem}`" not in page] == []
