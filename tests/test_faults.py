"""Processes killed where they write, full disks, two writers: nothing half is taken for whole, the next run works."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from cgd_deploy import load
from cgd_deploy.search.index import read_index

KILLED = """
import os, signal, sys
from cgd_deploy import files

left, real = int(sys.argv[1]), files.sync

def sync(path):
    global left
    left -= 1
    if left == 0:
        if os.path.isfile(path):
            os.truncate(path, os.path.getsize(path) // 2)
        os.kill(os.getpid(), signal.SIGKILL)
    real(path)

files.sync = sync
sys.argv = ["cgd-deploy", *sys.argv[2:]]
from cgd_deploy.cli.app import main
main()
"""
"""The command line, which dies the n-th time that bytes are to reach the disk: with half of a file, before it gets its
name, or just after."""
DIED = -9


def run(*arguments: object, dies_at: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", KILLED, str(dies_at), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.fixture
def desk(checkpoint, pictures, model_onnx, engines, tmp_path, monkeypatch) -> Path:
    """The working folder, with a checkpoint, a model, an engine and pictures."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(checkpoint, "ckpt.pt")
    for path in (model_onnx, *model_onnx.parent.glob("model.calibration.tsv")):
        shutil.copy(path, path.name)
    shutil.copy(engines["openvino", "int8"], "engine.cgd")
    os.symlink(pictures, "pictures")
    return tmp_path


def is_model(path: Path) -> None:
    from cgd_export.metadata import get_metadata, load_onnx

    get_metadata(load_onnx(path))


def is_engine(path: Path) -> None:
    with load(path) as engine:
        engine.self_test()


def is_index(path: Path) -> None:
    assert len(read_index(path).paths) == 30


def is_checkpoint(path: Path) -> None:
    from cgd_train.checkpoint import load_checkpoint

    load_checkpoint(path)


TRAIN = "train --data pictures --backbone resnet18 --size 32 --dim 8 --descriptors SG --epochs 1 --threads 1"
TRAIN += " --classes-per-batch 3 --pictures-per-class 2 -o run"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "product", "is_whole", "deaths"),
    [
        ("export ckpt.pt -o out.onnx", "out.onnx", is_model, (1, 3)),
        ("build-engine model.onnx --int8 --backend openvino -o out.cgd", "out.cgd", is_engine, (1, 2)),
        ("embed pictures -e engine.cgd -o out.npy", "out.npy", is_index, (1, 3, 5)),
    ],
    ids=["export", "build-engine", "embed"],
)
def test_a_killed_command_leaves_nothing_half_and_works_again(desk, command, product, is_whole, deaths):
    path, killed = Path(product), 0
    for dies_at in deaths:
        path.unlink(missing_ok=True)
        done = run(*command.split(), dies_at=dies_at)
        if path.exists():
            is_whole(path)
        if done.returncode == 0:
            break
        assert done.returncode == DIED, done.stderr
        killed += 1
    assert killed >= 2
    done = run(*command.split())
    assert done.returncode == 0, done.stderr
    is_whole(path)


@pytest.mark.slow
def test_a_killed_training_goes_on_and_forgets_no_epoch(desk):
    """Killed before any file has its name, then with best.pt alone, then in the last epoch before last.pt is new."""
    for dies_at, there in ((1, set()), (3, {"best.pt"}), (9, {"best.pt", "metrics.jsonl", "last.pt"})):
        done = run(*TRAIN.split(), dies_at=dies_at)
        assert done.returncode == DIED, done.stderr
        assert {path.name for path in Path("run").glob("[!.]*")} == there
        for path in Path("run").glob("[!.]*.pt"):
            is_checkpoint(path)
    done = run(*TRAIN.split(), "--resume")
    assert done.returncode == 0, done.stderr
    is_checkpoint(Path("run/last.pt"))
    is_checkpoint(Path("run/best.pt"))
    assert [json.loads(line)["epoch"] for line in Path("run/metrics.jsonl").read_text().splitlines()] == [0, 1]


def test_an_older_engine_stays_when_the_next_build_is_killed(desk):
    command = ["build-engine", "model.onnx", "--fp32", "--backend", "onnxruntime", "-o", "engine.cgd"]
    before = Path("engine.cgd").read_bytes()
    assert run(*command, dies_at=1).returncode == DIED
    assert Path("engine.cgd").read_bytes() == before
    [left] = Path().glob(".engine.cgd.*.part")
    with pytest.raises(Exception, match=r"there is no engine|not a whole"):
        load(Path("engine.cgd.part"))
    assert left.suffix == ".part", "nobody takes it for an engine by its name"


def test_two_builds_of_one_engine_at_once(desk):
    command = [sys.executable, "-m", "cgd_deploy", *["build-engine", "model.onnx", "--int8", "--backend", "openvino"]]
    both = [subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) for _ in range(2)]
    for process in both:
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
    is_engine(Path("model-int8.cgd"))
    assert not list(Path().glob(".*.part"))


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Callable[..., Path]]:
    """A file system of so many bytes, which may be read-only ("ro")."""
    folder = tmp_path / "small"
    folder.mkdir()

    def mount(size: int, mode: str = "rw") -> Path:
        options = f"size={size},{mode}"
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True)
        if done.returncode:
            pytest.skip("only root may mount a small file system")
        return folder

    yield mount
    subprocess.run(["umount", folder], capture_output=True)


@pytest.mark.parametrize(
    ("command", "product"),
    [
        ("export ckpt.pt -o {}/out.onnx", "out.onnx"),
        ("build-engine model.onnx --fp32 --backend onnxruntime -o {}/out.cgd", "out.cgd"),
        ("embed pictures -e engine.cgd -o {}/out.npy", "out.npy"),
        ("embed pictures -e engine.cgd -o {}/out.parquet", "out.parquet"),
        (TRAIN.replace("-o run", "-o {}/run"), "run/best.pt"),
    ],
    ids=["export", "build-engine", "npy", "parquet", "train"],
)
def test_a_full_disk_is_told_and_leaves_nothing(cli, desk, small_disk, command, product):
    disk = small_disk(8192)
    code, _, err = cli(*command.format(disk).split())
    last = err.splitlines()[-1]
    assert code == 2 and last.startswith("cgd-deploy: cannot write ") and "No space left on device" in last
    assert not (disk / product).exists() and not list(disk.rglob(".*.part"))


def test_a_file_that_may_not_grow_is_told_and_leaves_nothing(desk):
    """As on a full disk, without a mount."""
    code = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))\n" + KILLED
    command = [sys.executable, "-c", code, "0", "embed", "pictures", "-e", "engine.cgd", "-o", "out/o.npy"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.endswith(": File too large; choose another output path.\n")
    assert list(Path("out").iterdir()) == []


def test_a_read_only_disk_is_told(cli, desk, small_disk):
    disk = small_disk(8192, "ro")
    code, _, err = cli("embed", "pictures/kind-0", "-e", "engine.cgd", "-o", disk / "out.npy")
    assert code == 2 and "cannot write" in err and "Read-only file system" in err and err.count("\n") == 1


def test_a_full_disk_leaves_the_index_of_before(cli, desk, small_disk):
    disk = small_disk(32768)
    index = disk / "index.npy"
    assert cli("embed", "pictures/kind-0", "-e", "engine.cgd", "-o", index)[0] == 0
    before = np.load(index)
    (disk / "full").write_bytes(bytes(12000))
    assert cli("embed", "pictures", "-e", "engine.cgd", "-o", index)[0] == 2
    assert np.array_equal(read_index(index).stored, before)
