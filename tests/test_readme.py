"""What the README shows is what the commands do."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import script, tensorrt_rtx

from cgd_deploy.pictures.images import read_images

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {path.stem: path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))}
ELSEWHERE = ("native", "server", "triton", "vector-databases")
"""Pages whose blocks have tests of their own: they need a compiler, a server or a database."""


def blocks(page: str) -> list[tuple[str, str]]:
    """(language, text) of each fenced block."""
    return re.findall(r"^```(\w*)\n(.*?)^```", page, re.MULTILINE | re.DOTALL)


def commands(page: str) -> list[str]:
    lines = [line for _, block in blocks(page) for line in block.splitlines()]
    return [line.split("#")[0].strip() for line in lines if line.startswith("cgd-deploy ")]


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


def run_blocks(page: str, folder: Path) -> None:
    """Every cgd-deploy command, then every block of Python, in the order of the page."""
    for command in commands(page):
        extra = ["--seconds", "0"] if " bench" in command else []
        _run([sys.executable, "-m", "cgd_deploy", *shlex.split(command)[1:], *extra], folder)
    for kind, block in blocks(page):
        if kind == "python":
            assert _run([sys.executable, "-c", block], folder).stdout


@pytest.fixture(scope="module")
def after_readme(workplace: Path) -> Path:
    run_blocks(README, workplace)
    return workplace


def test_every_command_and_python_block_runs_in_order(after_readme: Path) -> None:
    assert len(commands(README)) >= 6 and "python" in dict(blocks(README))
    assert (after_readme / "found.html").stat().st_size > 1000


@pytest.mark.parametrize("page", [page for page in PAGES if page not in ELSEWHERE])
def test_so_does_every_page_of_the_documentation(after_readme: Path, page: str) -> None:
    if page == "gpu":
        tensorrt_rtx()
    run_blocks(PAGES[page], after_readme)


def test_links_lead_somewhere() -> None:
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "benchmarks" / "README.md"]:
        folder, text = path.parent, path.read_text(encoding="utf-8")
        for target in re.findall(r"\]\((?!https?:)([^)#]*)(?:#[^)]*)?\)", text):
            assert (folder / target).exists(), target


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    lines = [line for _, block in blocks(README) for line in block.splitlines()]
    targets = [line.split()[1] for line in lines if line.startswith("make ")]
    assert targets == ["demo", "test", "wheel"]
    assert all(f"\n{target}:" in makefile for target in targets)
    assert "make check test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_install_lines_name_what_is_there() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    version = re.findall(r'^version = "(.+)"$', project, re.MULTILINE)
    lines = re.findall(r"pip install .*'(\.|dist/\S+)\[([a-z,-]+)\]'", "\n".join([README, *PAGES.values()]))
    assert {what for what, _ in lines} == {".", f"dist/cgd_deploy-{version[0]}-py3-none-any.whl"}
    for _, extras in lines:
        assert all(f"\n{extra} = [" in project for extra in extras.split(",")), extras
    assert "cgd-deploy[" not in "".join([README, *PAGES.values()]), "no index has cgd-deploy"


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
