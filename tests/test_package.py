"""The wheel: everything that runs is in it, and nothing else."""

from __future__ import annotations

import ast
import shlex
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from email import message_from_bytes
from importlib.util import find_spec
from pathlib import Path

import pytest

from cgd_deploy import errors
from cgd_deploy.runtime.backends.tensorrt import EXTRAS

ROOT = Path(__file__).parents[1]
FOLDERS = {"cgd_deploy": "cgd_deploy", "cgd_train": "train", "cgd_export": "export"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Iterator[zipfile.ZipFile]:
    """A wheel that is built from a copy of the sources, as pip would."""
    if not (find_spec("setuptools") and find_spec("wheel")):
        pytest.skip("setuptools and wheel are not installed")
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for folder in FOLDERS.values():
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    (source / "tests").mkdir()
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", str(out), source]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "absent from" not in done.stderr, done.stderr
    with zipfile.ZipFile(next(out.glob("*.whl"))) as archive:
        yield archive


@pytest.fixture(scope="module")
def names(wheel) -> set[str]:
    return set(wheel.namelist())


def test_the_wheel_holds_every_file(names):
    for package, folder in FOLDERS.items():
        files = [path.relative_to(ROOT / folder) for path in (ROOT / folder).rglob("*") if path.is_file()]
        files = [path.as_posix() for path in files if "__pycache__" not in path.parts]
        assert "py.typed" in files
        assert {f"{package}/{path}" for path in files} <= names


def test_the_wheel_holds_nothing_else(names):
    others = {name.split("/")[0] for name in names} - set(FOLDERS)
    assert all(name.endswith(".dist-info") for name in others), others
    assert not [name for name in names if Path(name).name.startswith("test") or name.endswith((".pyc", ".pt", ".cgd"))]


def test_the_command_is_installed(wheel, names):
    [entry_points] = [name for name in names if name.endswith("entry_points.txt")]
    assert wheel.read(entry_points).decode().split() == [
        "[console_scripts]",
        "cgd-deploy",
        "=",
        "cgd_deploy.cli.app:main",
    ]


@pytest.fixture(scope="module")
def extras() -> dict[str, list[str]]:
    """The requirements of each extra in pyproject.toml."""
    tomllib = pytest.importorskip("tomllib", reason="Python before 3.11 has no reader of TOML")
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def test_install_line_gives_a_shell_the_packages_of_an_extra(wheel, names, extras, monkeypatch):
    [wheel_metadata] = [name for name in names if name.endswith(".dist-info/METADATA")]
    requirements = message_from_bytes(wheel.read(wheel_metadata)).get_all("Requires-Dist")
    monkeypatch.setattr(errors.metadata, "requires", lambda name: requirements)
    for extra, packages in extras.items():
        assert shlex.split(errors.install_line(extra)) == ["pip", "install", *packages]
    assert "'ray[data]>=" in errors.install_line("ray")
    assert errors.install_line("cpu", "openvino") == f"pip install '{extras['cpu'][1]}'"


def test_install_line_of_a_checkout_that_is_not_installed(monkeypatch):
    def requires(name: str) -> None:
        raise errors.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(errors.metadata, "requires", requires)
    assert shlex.split(errors.install_line("cpu")) == ["pip", "install", "-e", f"{ROOT}[cpu]"]


def test_every_sentence_that_names_an_extra_gives_a_line_that_installs_it(extras):
    named = {(extra, kind) for kind, extra in EXTRAS.items()}
    for folder in FOLDERS.values():
        for source in (ROOT / folder).rglob("*.py"):
            text = source.read_text(encoding="utf-8")
            assert "cgd-deploy[" not in text, f"{source} asks an index for cgd-deploy; use install_line"
            for call in ast.walk(ast.parse(text)):
                if isinstance(call, ast.Call) and getattr(call.func, "id", "") in ("install_line", "not_installed"):
                    constants = tuple(argument.value for argument in call.args if isinstance(argument, ast.Constant))
                    named |= {constants} - {()}
    assert {extra for extra, *_ in named} > {"cpu", "gpu", "train", "native", "parquet", "ray", "timm"}
    for extra, *package in named:
        assert any(requirement.startswith(package[0] if package else "") for requirement in extras[extra])
