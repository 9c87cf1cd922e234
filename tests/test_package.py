"""The wheel: everything that runs is in it, and nothing else."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

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
    assert not [name for name in names if "test" in Path(name).name or name.endswith((".pyc", ".pt", ".cgd"))]


def test_the_command_is_installed(wheel, names):
    [entry_points] = [name for name in names if name.endswith("entry_points.txt")]
    assert wheel.read(entry_points).decode().split() == ["[console_scripts]", "cgd-deploy", "=", "cgd_deploy.cli:main"]
