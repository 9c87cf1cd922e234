"""Which precisions a backend makes here, and BF16 engines from the command to the descriptors.

OpenVINO emulates BF16 on CPUs with AVX-512, so the tests can run what users must not build there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import listing

from cgd_deploy import load
from cgd_deploy.errors import ExportError
from cgd_deploy.quality.bench import LIMITS
from cgd_deploy.runtime.descriptors import cosines
from cgd_deploy.runtime.enginefile import read_engine
from cgd_deploy.spec import Precision
from cgd_export.typed import check_precision, precisions_here


@pytest.mark.parametrize(("backend", "able"), [("openvino", True), ("onnxruntime", False), ("tensorrt", False)])
def test_openvino_alone_makes_bf16(backend: str, able: bool, bf16_cpu: None) -> None:
    assert (Precision.BF16 in precisions_here(backend)) is able
    if able:
        check_precision(backend, Precision.BF16)
    else:
        with pytest.raises(ExportError, match=f"{backend} has no BF16; leave --bf16 out, .* --backend openvino"):
            check_precision(backend, Precision.BF16)


def test_every_precision_here_can_be_made(bf16_cpu: None) -> None:
    for backend in ("onnxruntime", "openvino", "tensorrt", "tensorrt-rtx"):
        for precision in precisions_here(backend):
            check_precision(backend, precision)


def test_a_cpu_without_bf16_builds_none(
    cli: Callable[..., Any], model_onnx: Path, tmp_path: Path, no_bf16_cpu: None
) -> None:
    options = ["--bf16", "--backend", "openvino", "-o", tmp_path / "e.cgd"]
    code, out, err = cli("build-engine", model_onnx, *options)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "this CPU has neither AVX512-BF16 nor AMX-BF16" in err and "leave --bf16 out" in err
    assert listing(tmp_path) == {}


def test_a_bf16_engine(
    cli: Callable[..., Any], model_onnx: Path, checkpoint: Path, pixels: np.ndarray, tmp_path: Path, bf16_cpu: None
) -> None:
    path = tmp_path / "model-bf16.cgd"
    build = ["build-engine", model_onnx, "--bf16", "--backend", "openvino", "-o", path]
    code, out, err = cli(*build)
    assert (code, err) == (0, "")
    assert f"{path}: openvino bf16, " in out and "convolution work: 100.0% bf16 (layers: 20 bf16; read from the" in out
    file = read_engine(path)
    assert (file.manifest.precision, file.payload) == (Precision.BF16, model_onnx.read_bytes())
    proof, parity = file.manifest.proof or {}, file.manifest.parity or {}
    assert (proof["from"], proof["asked"], proof["flops_share"]) == ("compiled model", "bf16", {"bf16": 1.0})
    assert 0.99 < parity["cosine_mean"] < 1 - 1e-7 and parity["measured_on"] == "engine"
    facts = json.loads(cli("inspect", path, "--self-test", "--json")[1])
    assert facts["precision"] == "bf16" and facts["self_test"]["cosine_min"] > 0.9999

    with load(path) as engine:
        found = engine.embed(pixels)
        assert engine.precision is Precision.BF16
    fp32 = tmp_path / "fp32.cgd"
    assert cli("build-engine", model_onnx, "--fp32", "--backend", "openvino", "-o", fp32)[0] == 0
    with load(fp32) as engine:
        similar = cosines(found, engine.embed(pixels))
    assert similar.min() > 0.99 and similar.max() < 1 - 1e-7  # BF16 rounds, and little

    report = tmp_path / "bench.html"
    bench = ["bench", path, "--reference", checkpoint, "--seconds", 0, "--json", "--html", report]
    result = json.loads(cli(*bench)[1])
    assert {run["precision"] for run in result["engines"]} == {"bf16"}
    assert result["gate"]["limits"] == {"bf16": LIMITS[Precision.BF16]} and "openvino bf16" in report.read_text()


def test_openvino_does_not_compute_bf16_as_fp32_unnoticed(model_onnx: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from cgd_deploy.runtime.backends.openvino import OpenVinoBackend\n"
        "OpenVinoBackend(Path(sys.argv[1]).read_bytes(), bf16=True)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(model_onnx)],
        capture_output=True,
        text=True,
        env={**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"},
    )
    assert "EngineError: OpenVINO would compute this BF16 model in FP32 here" in done.stderr
