"""benchmarks/gpu.py as far as a machine without a GPU goes: its arguments, its refusal, its arithmetic, its chart."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from conftest import script

from cgd_deploy.errors import CgdError
from cgd_deploy.runtime.backends.onnxruntime import OnnxRuntimeBackend
from cgd_deploy.runtime.cuda.driver import find_device

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu.py"


@pytest.fixture(scope="module")
def gpu() -> ModuleType:
    return script("gpu")


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], cwd=cwd, capture_output=True, text=True)


def test_help(tmp_path: Path) -> None:
    done = run("--help", cwd=tmp_path)
    assert done.returncode == 0
    assert all(option in done.stdout for option in ("--batch", "--streams", "--seconds", "--output"))


def test_refuses_in_one_sentence_without_a_gpu(tmp_path: Path) -> None:
    try:
        find_device()
    except CgdError as error:
        done = run("ckpt.pt", "model.cgd", cwd=tmp_path)
        assert (done.returncode, done.stdout, done.stderr) == (2, "", f"{error}\n")
        assert list(tmp_path.iterdir()) == []
    else:
        pytest.skip("this machine has a GPU")


@pytest.mark.parametrize("wrong", [["--batches", "1"], ["--batch", "0"], ["--streams", "2", "0"]])
def test_refuses_settings_that_make_no_sense(tmp_path: Path, wrong: list[str]) -> None:
    assert run("ckpt.pt", "model.cgd", *wrong, cwd=tmp_path).returncode == 2


def contestant(gpu: ModuleType, title: str, precision: str, run: Any = None, streams: int = 1) -> Any:
    return gpu.Contestant(title, "torch", precision, streams, run, lambda images, count, transfers: lambda: run(images))


QUALITY = {"recall": {"1": 0.5}, "overlap_at_10": 0.9}


def test_rows(gpu: ModuleType) -> None:
    """Torch: 10 batches of 4 in 0.2 s are 200 images/s; the engine takes 0.05 s, so 800 and 4 times as fast.

    800 images of 2 GFLOP are 1.6 TFLOP a second, of a peak of 16 a tenth.
    """
    reference, engine = contestant(gpu, gpu.BASELINE, "fp16"), contestant(gpu, "int8, 2 streams", "int8", streams=2)
    samples = {
        gpu.Case(reference, 4, 1, True): [0.02, 0.03, 0.04],
        gpu.Case(reference, 4, 10, True): [0.1, 0.2, 0.9],
        gpu.Case(engine, 4, 1, True): [0.01, 0.01],
        gpu.Case(engine, 4, 10, True): [0.05],
    }
    quality = {gpu.BASELINE: {"recall": {}}, engine.title: QUALITY}
    first, second = gpu.rows(samples, quality, gflop=2.0, peaks={"int8": 16e12})
    assert first["latency_ms"] == {"p50": 30.0, "p95": None, "p99": None}
    assert (first["images_per_second"], first["speedup_vs_torch"]) == (200.0, 1.0)
    assert first["share_of_peak"] is None
    assert (second["images_per_second"], second["speedup_vs_torch"]) == (800.0, 4.0)
    assert second["share_of_peak"] == 0.1 and second["overlap_at_10"] == 0.9
    assert (second["title"], second["precision"], second["streams"], second["batch"]) == (engine.title, "int8", 2, 4)


def test_a_run_with_a_gpu_of_paper(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, checkpoint: Path, model_onnx: Path
) -> None:
    """Everything but CUDA: the JSON and the chart of contestants that run on the CPU."""
    plain = OnnxRuntimeBackend(model_onnx.read_bytes())

    def hurt(images: np.ndarray) -> np.ndarray:
        found = plain.run(images) + np.random.default_rng(0).normal(0, 0.2, (len(images), 96)).astype(np.float32)
        return found / np.linalg.norm(found, axis=1, keepdims=True)

    torch = [contestant(gpu, f"torch eager {name}", name, plain.run) for name in ("fp32", "fp16")]
    monkeypatch.setattr(gpu, "find_device", lambda: None)
    monkeypatch.setattr(gpu, "examine", lambda: {"gpu": {"name": "NVIDIA H100 & co"}})
    monkeypatch.setattr(gpu, "torch_contestants", lambda model, compiled: torch)
    monkeypatch.setattr(
        gpu, "by_engine", lambda stack, path, streams, largest: contestant(gpu, path.stem, "int8", hurt)
    )
    monkeypatch.setattr(gpu, "matmul_peaks", lambda: {"fp16": 1e15, "int8": 2e15})
    monkeypatch.chdir(tmp_path)
    Path("hurt.cgd").write_bytes(b"an engine")
    given = ["gpu.py", str(checkpoint), "hurt.cgd", "--batch", "1", "2", "--streams", "1", "--seconds", "0"]
    monkeypatch.setattr(sys, "argv", given)
    gpu.main()
    result = json.loads(Path("gpu.json").read_text())
    assert len(result["rows"]) == 3 * 2 * 2  # contestants, batches, transfers
    exact, worse = result["rows"][0], result["rows"][-1]
    assert exact["overlap_at_10"] == 1.0 and worse["title"] == "hurt" and worse["overlap_at_10"] < 0.9
    assert worse["share_of_peak"] > 0 and worse["recall"] and worse["recall_drop_pp"]
    assert result["settings"]["input"].startswith("64x64") and result["peak_tops"] == {"fp16": 1000.0, "int8": 2000.0}
    texts = Path("gpu.svg").read_text()
    assert "NVIDIA H100 &amp; co" in texts and "batch 2" in texts
