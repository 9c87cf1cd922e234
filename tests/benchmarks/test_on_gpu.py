"""benchmarks/on_gpu.sh where there is no GPU: each stage does what needs none, says what it lacks, and ends well."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from conftest import tensorrt_rtx

from cgd_deploy.runtime.cuda.driver import has_gpu

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(has_gpu(), reason="this machine has a GPU, on which a stage takes minutes")


def stage(name: str, out: Path, **settings: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHON": sys.executable, "OUT": str(out), "OMP_WAIT_POLICY": "PASSIVE"}
    return subprocess.run(
        ["bash", str(ROOT / "benchmarks/on_gpu.sh"), name],
        capture_output=True,
        text=True,
        cwd=out,
        env={**environment, **{key: str(value) for key, value in settings.items()}},
    )


def lacking(done: subprocess.CompletedProcess[str]) -> str:
    """The last line of a stage that ended well."""
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


def test_the_runtime_needs_a_gpu(tmp_path: Path) -> None:
    told = lacking(stage("runtime", tmp_path))
    assert told.startswith("on_gpu runtime: ") and "NVIDIA driver" in told and "Traceback" not in told


@pytest.mark.parametrize("name", ["train", "onnxruntime"])
def test_pictures_that_are_not_there_are_named(tmp_path: Path, name: str) -> None:
    told = lacking(stage(name, tmp_path, PICTURES=tmp_path / "absent"))
    assert told == f"on_gpu {name}: {tmp_path / 'absent'} is not there; set PICTURES and WEIGHTS."


def test_a_library_that_is_not_there_is_named(tmp_path: Path) -> None:
    if find_spec("tensorrt"):
        pytest.skip("TensorRT is installed")
    assert "the library tensorrt cannot be imported: ModuleNotFoundError" in lacking(stage("tensorrt", tmp_path))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from torchvision.models import resnet18

    path = tmp_path_factory.mktemp("weights") / "weights.pth"
    torch.save(resnet18().state_dict(), path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("name", ["onnxruntime", "tensorrt-rtx"])
def test_engines_are_built_before_a_gpu_is_asked_for(tmp_path: Path, pictures: Path, weights: Path, name: str) -> None:
    """The second stage takes the model of the first one."""
    if name == "tensorrt-rtx":
        tensorrt_rtx()
    work, engines = weights.with_name("work"), {"onnxruntime": ("fp32", "tf32"), "tensorrt-rtx": ("fp16", "int8")}
    settings = {"BACKBONE": "resnet18", "SIZE": 64, "WEIGHTS": weights, "WORK": work}
    done = stage(name, tmp_path, PICTURES=pictures, **settings)
    assert "NVIDIA driver" in lacking(done)
    assert ("smallest cosine with torch" in done.stdout) == (name == "onnxruntime")
    assert {path.name for path in work.glob(f"{name}-*.cgd")} == {f"{name}-{kind}.cgd" for kind in engines[name]}


def test_an_unknown_stage_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    done = stage("everything", tmp_path)
    assert done.returncode == 2 and "usage: bash benchmarks/on_gpu.sh runtime|train|onnxruntime" in done.stderr
