"""INT8 on CPUs without VNNI, AMX or i8mm, which add two 8-bit products in 16 bits: noticed, refused, and built for."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import write_fake_engine
from onnx import numpy_helper

from cgd_deploy import load
from cgd_deploy.errors import EngineError, InputError
from cgd_deploy.hardware.cpu import ONEDNN_LIMIT, has_fast_int8, instruction_sets
from cgd_deploy.runtime import engine
from cgd_deploy.runtime.backends.fake import FakeBackend
from cgd_deploy.runtime.backends.onnxruntime import OnnxRuntimeBackend
from cgd_deploy.runtime.compatibility import is_proven_here
from cgd_deploy.runtime.descriptors import cosines
from cgd_deploy.runtime.enginefile import Manifest, read_engine
from cgd_deploy.spec import Precision
from cgd_export.build_options import Int8Options
from cgd_export.engine_from_onnx import calibration_list, engine_from_onnx
from cgd_export.int8.quantize import FULL_RANGE, REDUCED_RANGE, Layout, convolutions
from cgd_export.int8.recipe import Int8Models, Recipe
from cgd_export.parity import run_onnx

OLD_CPU = "AVX2"
BACKENDS = ("openvino", "onnxruntime")

needs_vnni = pytest.mark.skipif(not has_fast_int8(), reason="this CPU has no VNNI, AMX or i8mm to switch off")

REPLAY = """
import sys
from cgd_deploy.runtime.backends import BACKENDS
from cgd_deploy.runtime.enginefile import read_engine
from cgd_deploy.runtime.descriptors import cosines

for path in sys.argv[1:]:
    file = read_engine(path)
    with BACKENDS[file.manifest.backend]["cpu"](file.payload, threads=1) as backend:
        images, expected = file.golden
        print(cosines(backend.run(images), expected).min())
"""

LOAD = """
import sys
from cgd_deploy import load
for path in sys.argv[1:]:
    load(path).close()
"""


@pytest.fixture(scope="module")
def reduced(model_onnx, tmp_path_factory) -> dict[str, Path]:
    """Backend -> an INT8 engine with 7-bit weights."""
    folder = tmp_path_factory.mktemp("reduced")
    calibration = calibration_list(model_onnx, None)
    for backend in BACKENDS:
        engine_from_onnx(
            model_onnx,
            folder / f"{backend}.cgd",
            Precision.INT8,
            backend=backend,
            calibration=calibration,
            int8=Int8Options(reduced_range=True),
        )
    return {backend: folder / f"{backend}.cgd" for backend in BACKENDS}


def python(code: str, *paths: Path, before: tuple[str, ...] = (), **variables: str) -> subprocess.CompletedProcess[str]:
    command = [*before, sys.executable, "-c", code, *map(str, paths)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **variables})


@needs_vnni
def test_an_old_cpu_refuses_what_it_would_compute_wrong_and_runs_a_reduced_range(engines, reduced):
    full = engines["openvino", "int8"]
    wrong, right = map(float, python(REPLAY, full, reduced["openvino"], ONEDNN_MAX_CPU_ISA=OLD_CPU).stdout.split())
    assert wrong < 0.995 and right > 0.999
    refused = python(LOAD, full, ONEDNN_MAX_CPU_ISA=OLD_CPU)
    assert f"(cosine {wrong:.4f} < 0.999); this CPU has no VNNI" in refused.stderr
    assert refused.stderr.endswith("`cgd-deploy build-engine --int8 --reduced-range`.\n")
    loaded = python(LOAD, reduced["openvino"], engines["openvino", "fp32"], ONEDNN_MAX_CPU_ISA=OLD_CPU)
    assert (loaded.returncode, loaded.stderr) == (0, "")


@pytest.mark.slow
@needs_vnni
def test_onnxruntime_saturates_too(engines, reduced):
    """Valgrind's CPU has AVX2 and no VNNI."""
    if not shutil.which("valgrind"):
        pytest.skip("valgrind is not installed, which stands in for an older CPU")
    done = python(
        REPLAY, engines["onnxruntime", "int8"], reduced["onnxruntime"], before=("valgrind", "-q", "--tool=none")
    )
    wrong, right = map(float, done.stdout.split())
    assert wrong < 0.995 and right > 0.999


@pytest.mark.parametrize(("limit", "literal"), [("DEFAULT", False), (OLD_CPU, True)])
@needs_vnni
def test_a_graph_that_stands_for_an_engine_is_computed_in_float_on_an_old_cpu(
    limit, literal, engines, pixels, monkeypatch
):
    file = read_engine(engines["onnxruntime", "int8"])
    made = []
    make = OnnxRuntimeBackend.__init__

    def note(self: OnnxRuntimeBackend, payload: bytes, **options: bool) -> None:
        made.append(options)
        make(self, payload, **options)

    monkeypatch.setattr(OnnxRuntimeBackend, "__init__", note)
    monkeypatch.setenv(ONEDNN_LIMIT, limit)
    found = run_onnx(onnx.load_from_string(file.payload), pixels, 8)
    assert made == [{"fused": not literal}]
    with load(file.path) as engine:
        assert cosines(found, engine.embed(pixels)).min() > 0.999


@pytest.mark.parametrize("weight_range", [REDUCED_RANGE, FULL_RANGE])
def test_a_reduced_range_is_the_largest_that_fits_in_16_bits(weight_range):
    codes = (0, 1, 127, 128, 255)
    weights = (-weight_range, -1, 0, 1, weight_range)
    saturates = False
    for a, b in product(codes, codes):
        for v, w in product(weights, weights):
            exact = a * v + b * w
            saturates |= max(-32768, min(32767, exact)) != exact
    assert saturates == (weight_range == FULL_RANGE)
    assert 2 * 255 * (REDUCED_RANGE + 1) > 32767


@pytest.mark.parametrize("layout", Layout)
def test_weights_of_a_reduced_range_have_7_bits_and_half_a_step_of_error(layout, model_onnx):
    model = onnx.load(model_onnx)
    exact = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    made = Int8Models(model, layout, calibration_list(model_onnx, None)).make(Recipe(reduced_range=True))
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in made.graph.initializer}
    coded = [name.removesuffix("_q") for name in tensors if name.endswith("_q")]
    assert len(coded) == 20
    first = convolutions(model)[0].input[1]  # its errors make up for each other, so a weight may be off by more
    for name in coded:
        codes = tensors[f"{name}_q"].astype(np.int64)
        scale = tensors[f"{name}_scale"].reshape(-1, 1, 1, 1)
        assert np.abs(codes).max() == REDUCED_RANGE
        if name != first:
            assert (np.abs(codes * scale - exact[name]) <= 0.5001 * scale + REDUCED_RANGE * scale * 2**-11).all()


def test_an_old_cpu_builds_with_a_reduced_range_by_itself(model_onnx, tmp_path, monkeypatch):
    monkeypatch.setenv(ONEDNN_LIMIT, OLD_CPU)
    made: dict[bool | None, Manifest] = {}
    for asked in (None, False):
        made[asked] = engine_from_onnx(
            model_onnx,
            tmp_path / "e.cgd",
            Precision.INT8,
            calibration=calibration_list(model_onnx, None),
            int8=Int8Options(reduced_range=asked),
        )
        assert made[asked].builder["instruction_sets"] == " ".join(instruction_sets())
    assert made[None].source["calibration"] == "mean + bias corrected + reduced range"
    assert made[False].source["calibration"] == "mean + bias corrected"


def test_a_plan_for_a_gpu_keeps_8_bits_on_any_cpu(monkeypatch):
    monkeypatch.setenv(ONEDNN_LIMIT, OLD_CPU)
    assert Int8Options(recipe=Recipe()).first_recipe("tensorrt") == Recipe()
    assert Int8Options(recipe=Recipe()).first_recipe("openvino") == Recipe(reduced_range=True)
    asked = Int8Options(recipe=Recipe(reduced_range=True), reduced_range=False)
    assert asked.first_recipe("openvino") == Recipe()


def test_only_int8_has_a_range(model_onnx, tmp_path):
    with pytest.raises(InputError, match="a reduced range is for INT8 weights, and fp32 was asked"):
        engine_from_onnx(model_onnx, tmp_path / "e.cgd", Precision.FP32, int8=Int8Options(reduced_range=True))


def test_the_manifest_and_the_summary_say_what_a_reduced_range_costs(model_onnx, reduced, cli, tmp_path):
    parity = read_engine(reduced["openvino"]).manifest.parity
    assert parity is not None
    full = parity["full_range"]
    assert full.keys() == {"cosine_min", "cosine_mean", "overlap_at_10", "pictures"}
    assert full["cosine_mean"] > parity["cosine_mean"] and full["pictures"] == parity["pictures"] == 15
    code, out, err = cli("build-engine", model_onnx, "--int8", "--reduced-range", "-o", tmp_path / "e.cgd")
    assert (code, err) == (0, "")
    told = f"with 8 bits it would be mean cosine {full['cosine_mean']:.5f}, overlap@10 {full['overlap_at_10']:.3f}"
    assert f"  weights have 7 bits (reduced range); {told}" in out.splitlines()


# ---- when the golden pictures are replayed ----

HERE = ["avx2", "avx512f", "avx512_vnni"]


@pytest.mark.parametrize(
    ("precision", "built_on", "here", "proven"),
    [
        ("int8", HERE, HERE, True),
        ("int8", ["avx2", "avx_vnni"], HERE, False),
        ("int8", None, HERE, False),  # of a release that did not record them
        ("int8", ["avx2"], ["avx2"], False),
        ("int8", ["asimddp", "i8mm"], ["asimddp", "i8mm"], True),
        ("fp32", None, ["avx2"], True),
        ("fp16", None, HERE, True),
    ],
)
def test_int8_is_replayed_unless_the_cpu_is_the_builders_and_sums_in_32_bits(
    precision, built_on, here, proven, fake_engine, monkeypatch
):
    for module in ("hardware.cpu", "runtime.compatibility"):
        monkeypatch.setattr(f"cgd_deploy.{module}.instruction_sets", lambda: here)
    builder = {"name": "fake", "version": "0"} | ({"instruction_sets": " ".join(built_on)} if built_on else {})
    manifest = replace(read_engine(fake_engine).manifest, precision=Precision(precision), builder=builder)
    assert is_proven_here(manifest) is proven


def test_load_replays_an_engine_that_is_not_proven_and_only_that(tmp_path, monkeypatch):
    """A backend that computes something else here than where the engine was built."""
    closed = []

    class Here(FakeBackend):
        def close(self) -> None:
            closed.append(self)

    monkeypatch.setitem(engine.BACKENDS, "noisy", {"cpu": Here})

    def write(precision: Precision, sets: list[str]) -> Path:
        builder = {"name": "fake", "version": "0", "instruction_sets": " ".join(sets)}
        return write_fake_engine(tmp_path / "e.cgd", noise=0.2, backend="noisy", precision=precision, builder=builder)

    for module in ("hardware.cpu", "runtime.compatibility"):
        monkeypatch.setattr(f"cgd_deploy.{module}.instruction_sets", lambda: HERE)
    load(write(Precision.INT8, HERE)).close()
    load(write(Precision.FP32, ["avx2"])).close()
    closed.clear()
    with pytest.raises(EngineError, match=r"e\.cgd gives other descriptors than when it was built \(cosine 0\.9"):
        load(write(Precision.INT8, ["avx2", "avx_vnni"]))
    assert len(closed) == 1


@pytest.mark.parametrize(
    ("limit", "found"),
    [
        ("", HERE),
        ("DEFAULT", HERE),
        ("AVX512_CORE_VNNI", HERE),
        ("avx512_core", ["avx2", "avx512f"]),
        ("AVX2", ["avx2"]),
        ("SSE41", []),
        ("AVX512_CORE_AMX", HERE),
    ],
)
def test_instruction_sets_heed_the_limit_that_openvino_heeds(limit, found, monkeypatch):
    monkeypatch.setattr("cgd_deploy.hardware.cpu._cpuinfo", lambda: [f"flags : fpu {' '.join(HERE)} sse4_1"])
    monkeypatch.setenv(ONEDNN_LIMIT, limit)
    assert instruction_sets() == found


def test_the_former_name_of_the_limit_counts_where_the_present_one_is_not_set(monkeypatch):
    monkeypatch.setattr("cgd_deploy.hardware.cpu._cpuinfo", lambda: [f"flags : {' '.join(HERE)}"])
    monkeypatch.delenv(ONEDNN_LIMIT, raising=False)
    monkeypatch.setenv("DNNL_MAX_CPU_ISA", "AVX2")
    assert instruction_sets() == ["avx2"]
    monkeypatch.setenv(ONEDNN_LIMIT, "DEFAULT")
    assert instruction_sets() == HERE
