"""What the README shows is what the commands do."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import script

from cgd_deploy.images import read_images

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
COMMANDS = [
    line.split("#")[0].strip()
    for kind, block in BLOCKS
    for line in block.splitlines()
    if line.startswith("cgd-deploy ")
]
PYTHON = [block for kind, block in BLOCKS if kind == "python"]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path, pictures: Path) -> Path:
    """A folder as the README's reader has it: a checkpoint and some pictures."""
    folder = tmp_path_factory.mktemp("readme")
    shutil.copy(checkpoint, folder / "ckpt.pt")
    shutil.copytree(pictures, folder / "pictures")
    for name, picture in zip(("query.jpg", "a.jpg", "b.jpg"), sorted(pictures.rglob("*.jpg")), strict=False):
        shutil.copy(picture, folder / name)
    read_images(pictures).split_classes()[1].write(folder / "unseen.tsv")
    return folder


def test_every_command_and_python_block_runs_in_order(workplace: Path) -> None:
    assert len(COMMANDS) >= 7 and PYTHON
    for command in COMMANDS:
        extra = ["--seconds", "0"] if " bench" in command else []
        _run([sys.executable, "-m", "cgd_deploy", *shlex.split(command)[1:], *extra], workplace)
    for block in PYTHON:
        assert _run([sys.executable, "-c", block], workplace).stdout
    assert (workplace / "found.html").stat().st_size > 1000


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = [line.split()[1] for _, block in BLOCKS for line in block.splitlines() if line.startswith("make ")]
    assert targets == ["demo", "test"]
    assert all(f"\n{target}:" in makefile for target in targets)
    assert "make check test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_tables_are_made_from_the_committed_json() -> None:
    table = script("table")
    texts = [path.read_text(encoding="utf-8") for path in table.FILES]
    assert [table.with_tables(text) for text in texts] == texts
    for name, made in table.tables().items():
        (holder,) = [text for text in texts if made in text]
        assert table.with_tables(holder.replace(made, "")) == holder, name


def test_it_stays_readable() -> None:
    assert len(README.splitlines()) <= 150


def _run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done
