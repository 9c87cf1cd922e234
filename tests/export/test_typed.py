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
from cgd_deploy.errors import EngineError, ExportError, GateError
from cgd_deploy.quality.bench import LIMITS
from cgd_deploy.runtime.descriptors import cosines
from cgd_deploy.runtime.enginefile import read_engine
from cgd_deploy.spec import Precision
from cgd_export.build_options import Int8Options
from cgd_export.engine_from_onnx import calibration_list, engine_from_onnx
from cgd_export.int8.quantize import convolutions
from cgd_export.metadata import load_onnx
from cgd_export.proof import COMPILED, prove
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


@pytest.mark.parametrize(
    ("backend", "asked", "keep_float", "floats"),
    [
        ("openvino", None, (), "fp32"),  # plain INT8 runs on every CPU
        ("openvino", None, ("a",), "bf16"),
        ("openvino", Precision.FP32, ("a",), "fp32"),
        ("openvino", Precision.BF16, (), "bf16"),
        ("onnxruntime", None, ("a",), "fp32"),
        ("tensorrt", None, ("a",), "fp16"),
    ],
)
def test_what_int8_leaves_in_float(
    backend: str, asked: Precision | None, keep_float: tuple[str, ...], floats: str, bf16_cpu: None
) -> None:
    assert Int8Options(float_precision=asked).floats(backend, keep_float).value == floats


def test_without_fast_bf16_int8_leaves_fp32(no_bf16_cpu: None) -> None:
    assert Int8Options().floats("openvino", ("a",)) is Precision.FP32


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--backend", "onnxruntime", "--int8", "--int8-float", "bf16"], "onnxruntime has no BF16; leave --int8-float"),
        (["--backend", "openvino", "--int8", "--int8-float", "bf16"], "neither AVX512-BF16 nor AMX-BF16"),
        (["--backend", "tensorrt-rtx", "--int8", "--int8-float", "fp32"], "tensorrt-rtx leaves FP16 where INT8"),
        (["--fp32", "--int8-float", "fp32"], "fp32 was asked; pass --int8, or no --int8-float"),
    ],
)
def test_floats_of_int8_that_cannot_be(
    cli: Callable[..., Any], model_onnx: Path, options: list[str], told: str, tmp_path: Path, no_bf16_cpu: None
) -> None:
    code, out, err = cli("build-engine", model_onnx, *options, "-o", tmp_path / "e.cgd")
    assert (code, out, err.count("\n")) == (2, "", 1) and told in err


def test_int8_with_layers_in_bf16(
    cli: Callable[..., Any], model_onnx: Path, pixels: np.ndarray, tmp_path: Path, monkeypatch: Any, bf16_cpu: None
) -> None:
    """Proven by the kernels, kept in the manifest, and loaded as BF16; refused on a CPU without it."""
    names = [node.name for node in convolutions(load_onnx(model_onnx))]
    kept = [*names[:3], names[9]]
    calibration = calibration_list(model_onnx, None)
    found = {}
    for floats in (None, Precision.FP32):
        int8 = Int8Options(keep_float=kept, float_precision=floats)
        path = tmp_path / f"{floats}.cgd"
        manifest = engine_from_onnx(
            model_onnx, path, Precision.INT8, backend="openvino", calibration=calibration, int8=int8
        )
        shown = (floats or Precision.BF16).value
        assert manifest.float_precision and manifest.float_precision.value == shown
        assert read_engine(path).manifest.float_precision is manifest.float_precision
        assert manifest.proof and manifest.proof["layers"] == {shown: 4, "int8": 16}
        assert json.loads(cli("inspect", path, "--json")[1])["float_precision"] == shown
        with load(path) as engine:
            found[shown] = engine.embed(pixels)
    similar = cosines(found["bf16"], found["fp32"])
    assert similar.min() > 0.98 and similar.max() < 1 - 1e-7
    monkeypatch.setattr("cgd_deploy.hardware.cpu.instruction_sets", lambda: ["avx2", "avx512_vnni"])
    with pytest.raises(EngineError, match="--int8-float fp32"):
        load(tmp_path / "None.cgd")


def test_layers_in_bf16_that_are_computed_in_fp32_are_found_out(model_onnx: Path) -> None:
    model = load_onnx(model_onnx)
    names = [node.name for node in convolutions(model)]
    shown = {name: Precision.FP32 if name in names[:5] else Precision.INT8 for name in names}
    prove(COMPILED, shown, model, Precision.INT8, names[:5])
    with pytest.raises(GateError, match=r"bf16 beside int8 was asked, but the compiled model has .* fp32"):
        prove(COMPILED, shown, model, Precision.INT8, names[:5], Precision.BF16)


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
