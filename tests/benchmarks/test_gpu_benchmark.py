"""benchmarks/gpu.py as far as a machine without a GPU goes: its arguments, its refusal, its arithmetic, its chart."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import ExitStack, closing, nullcontext
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import FAKE_SPEC, script, write_fake_engine
from fake_cuda import FakeContext, FakeDriver

from cgd_deploy.errors import CgdError
from cgd_deploy.runtime.backends.onnxruntime import OnnxRuntimeBackend
from cgd_deploy.runtime.cuda.driver import find_device
from cgd_deploy.runtime.cuda.lane import Layout
from cgd_deploy.runtime.cuda.streams import Streams
from cgd_deploy.spec import Precision

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


def contestant(
    gpu: ModuleType, title: str, precision: str, run: Any = None, streams: int = 1, backend: str = "torch"
) -> Any:
    call = lambda images, count, transfers: lambda: run(images)  # noqa: E731
    return gpu.GpuContestant(title, precision, run, backend, streams, call)


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
    gpu: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    checkpoint: Path,
    model_onnx: Path,
) -> None:
    """Everything but CUDA: the JSON and the chart of contestants that run on the CPU."""
    plain = OnnxRuntimeBackend(model_onnx.read_bytes())

    def hurt(images: np.ndarray) -> np.ndarray:
        found = plain.run(images) + np.random.default_rng(0).normal(0, 0.2, (len(images), 96)).astype(np.float32)
        return found / np.linalg.norm(found, axis=1, keepdims=True)

    torch = [contestant(gpu, f"torch eager {name}", name, plain.run) for name in ("fp32", "fp16")]
    monkeypatch.setattr(gpu, "find_device", lambda: None)
    monkeypatch.setattr(gpu, "examine", lambda: {"gpu": {"name": "NVIDIA H100 & co"}})
    monkeypatch.setattr(gpu, "torch_contestants", lambda model, compiled, tf32: torch)
    monkeypatch.setattr(
        gpu, "by_engine", lambda stack, path, *_: contestant(gpu, path.stem, "int8", hurt, backend="onnxruntime")
    )
    monkeypatch.setattr(gpu, "open_lanes", lambda stack, path, streams, largest, driver: SimpleNamespace(run=hurt))
    monkeypatch.setattr(gpu, "CudaDriver", lambda spinning: None)
    monkeypatch.setattr(gpu, "matmul_peaks", lambda: {"fp16": 1e15, "int8": 2e15})
    monkeypatch.chdir(tmp_path)
    write_fake_engine(Path("hurt.cgd"))
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
    assert [(one["engine"], one["events"]) for one in result["waiting"]] == [
        ("hurt.cgd", "blocking"),
        ("hurt.cgd", "spinning"),
    ]
    assert result["trtexec"] == []
    assert all(aim["met"] is None for aim in result["aims"][:4])
    assert "wanted of resnet50 SG 224x224, and this is resnet18 SMG 64x64" in capsys.readouterr().out


def test_single_pictures_wait_on_both_kinds_of_events(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    drivers: dict[bool, FakeDriver] = {}
    monkeypatch.setattr(gpu, "CudaDriver", lambda spinning: drivers.setdefault(spinning, FakeDriver()))
    clock = iter(range(1000))
    monkeypatch.setattr(gpu.time, "process_time", lambda: next(clock))

    def backend(payload: bytes, *, driver: FakeDriver, streams: int, max_batch: int) -> Any:
        layout = Layout(buckets=(max_batch,), image_shape=(32, 32, 3), dim=3)
        lanes = Streams(driver, lambda stream: FakeContext(driver, (32, 32, 3)), layout, lanes=streams)
        return closing(SimpleNamespace(streams=lanes, close=lanes.close))

    monkeypatch.setitem(gpu.BACKENDS, "fake", {"cuda": backend})
    engine = write_fake_engine(tmp_path / "e.cgd")
    found = gpu.waiting(engine, (32, 32), 0.0, lambda what, done: None)
    assert [(one["engine"], one["events"]) for one in found] == [("e.cgd", "blocking"), ("e.cgd", "spinning")]
    assert all(one["latency_ms"]["p50"] > 0 and one["cpu_seconds_a_second"] > 100 for one in found)
    assert set(drivers) == {False, True}
    for driver in drivers.values():
        assert len(driver.named("download")) > 12
        driver.assert_empty()


def test_cpu_time_is_counted_beside_wall_time(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    wall, cpu = iter([10.0, 12.0]), iter([5.0, 5.5])
    monkeypatch.setattr(gpu.time, "perf_counter", lambda: next(wall))
    monkeypatch.setattr(gpu.time, "process_time", lambda: next(cpu))
    spent: list[tuple[float, float]] = []
    gpu.metered(lambda: None, spent)()
    assert spent == [(2.0, 0.5)]


TRTEXEC = {
    "good": ("echo 'Throughput: 351.5 qps'", 45_000.0, None),
    "failing": ("echo 'no engine' >&2; exit 1", None, "trtexec failed: no engine"),
    "silent": ("true", None, "trtexec failed: it prints nothing"),
}


@pytest.mark.parametrize("how", TRTEXEC)
def test_trtexec_runs_the_same_plan(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, how: str) -> None:
    command, theirs, why = TRTEXEC[how]
    program = tmp_path / "trtexec"
    program.write_text(f"#!/bin/sh\necho $@ > {tmp_path}/given\n{command}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    plan = write_fake_engine(tmp_path / "plan.cgd", backend="tensorrt", precision=Precision.INT8)
    cases = [(1, False, 40_000.0), (2, False, 42_000.0), (2, True, 43_000.0)]
    found = [
        {"title": gpu.title_of(plan, n), "backend": "tensorrt", "streams": n, "batch": 128, "transfers": transfers,
         "images_per_second": speed}
        for n, transfers, speed in cases
    ]  # fmt: skip
    [run] = gpu.beside_trtexec([plan, tmp_path / "other.cgd"], found, (224, 224))
    given = (tmp_path / "given").read_text()
    assert "--shapes=images:128x224x224x3 --infStreams=2" in given and "--noDataTransfers --useCudaGraph" in given
    assert run["trtexec"] == (theirs and pytest.approx(theirs, abs=20)) and run["why"] == why
    assert (run["title"], run["batch"], run["ours"]) == ("plan, 2 streams", 128, 42_000.0)


def test_without_trtexec_it_says_so(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu.shutil, "which", lambda name: None)
    assert gpu.trtexec(b"plan", 8, 1, (224, 224)) == (None, "trtexec is not on the PATH")


def test_a_tf32_engine_is_measured_in_tf32(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made: list[dict[str, Any]] = []

    def backend(payload: bytes, **options: Any) -> Any:
        made.append(options)
        return nullcontext(SimpleNamespace(streams=SimpleNamespace(warm_up=lambda: None, run=None)))

    monkeypatch.setattr(gpu, "check_compatibility", lambda path, manifest: None)
    monkeypatch.setitem(gpu.BACKENDS, "onnxruntime", {"cuda": backend})
    engine = write_fake_engine(tmp_path / "e.cgd", backend="onnxruntime", precision=Precision.TF32)
    with ExitStack() as stack:
        assert gpu.by_engine(stack, engine, 2, 8).precision == "tf32"
    model = {"input_size": FAKE_SPEC.input_size, "dim": FAKE_SPEC.dim, "tf32": True}
    assert made == [{**model, "driver": None, "streams": 2, "max_batch": 8}]
