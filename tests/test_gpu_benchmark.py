"""benchmarks/gpu.py as far as a machine without a GPU goes: its arguments, its refusal, its arithmetic, its chart."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest
from conftest import script

from cgd_deploy.cuda import find_device
from cgd_deploy.errors import CgdError

SCRIPT = Path(__file__).resolve().parent.parent / "benchmarks" / "gpu.py"


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


def test_rows(gpu: ModuleType) -> None:
    """Torch: 10 batches of 4 in 0.2 s are 200 images/s; the engine takes 0.05 s, so 800 and 4 times as fast."""
    reference = gpu.Contestant(gpu.REFERENCE, "torch", "fp16", 1, None)
    engine = gpu.Contestant("int8, 2 streams", "tensorrt", "int8", 2, None)
    samples = {
        gpu.Case(reference, 4, 1, True): [0.02, 0.03, 0.04],
        gpu.Case(reference, 4, 10, True): [0.1, 0.2, 0.9],
        gpu.Case(engine, 4, 1, True): [0.01, 0.01],
        gpu.Case(engine, 4, 10, True): [0.05],
    }
    first, second = gpu.rows(samples)
    assert first["latency_ms"] == {"p50": 30.0, "p95": None, "p99": None}
    assert (first["images_per_second"], first["speedup_vs_torch"]) == (200.0, 1.0)
    assert (second["images_per_second"], second["speedup_vs_torch"]) == (800.0, 4.0)
    assert (second["title"], second["precision"], second["streams"], second["batch"]) == (engine.title, "int8", 2, 4)


def test_chart(gpu: ModuleType) -> None:
    found = [
        {"title": "a <b>", "batch": batch, "transfers": transfers, "images_per_second": speed}
        for batch, transfers, speed in [(1, True, 50.0), (1, False, 100.0), (8, True, 400.0)]
    ]
    svg = ElementTree.fromstring(gpu.chart("NVIDIA L4 & co", found))
    widths = [float(bar.get("width", "")) for bar in svg.iter() if bar.tag.endswith("rect")]
    assert widths == [70.0, 140.0, 560.0]
    texts = [text.text for text in svg.iter() if text.tag.endswith("text")]
    assert texts[0] == "Images a second on NVIDIA L4 & co"
    assert "a <b>, on the device" in texts
