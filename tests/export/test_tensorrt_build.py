"""Plans: built by TensorRT-RTX without a GPU, and by a TensorRT that RTX stands in for where the two are alike."""

from __future__ import annotations

import _thread
import json
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from conftest import listing

from cgd_deploy.errors import EngineError, ExportError, GateError, InputError, MissingDependency
from cgd_deploy.runtime.cuda import driver
from cgd_deploy.runtime.cuda.driver import Device, has_gpu
from cgd_deploy.runtime.descriptors import cosines
from cgd_deploy.runtime.engine import load
from cgd_deploy.runtime.enginefile import read_engine
from cgd_deploy.spec import ModelSpec, Precision
from cgd_export import engine_from_onnx as packing
from cgd_export import tensorrt as module
from cgd_export.build_options import BuildOptions
from cgd_export.engine_from_onnx import calibration_list, choose_backend, engine_from_onnx
from cgd_export.fp16 import halved, rounded
from cgd_export.metadata import get_metadata, load_onnx
from cgd_export.parity import run_onnx
from cgd_export.progress import Progress
from cgd_export.tensorrt import plan_from_onnx

RTX = "tensorrt-rtx"
L4 = Device(name="NVIDIA L4", compute_capability="8.9", cuda="13.0")


without_gpu = pytest.mark.skipif(has_gpu(), reason="this machine has a GPU")


@pytest.fixture(scope="module")
def rtx() -> Any:
    try:
        return module.import_tensorrt(RTX)
    except MissingDependency as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def half(model_onnx: Path) -> onnx.ModelProto:
    return halved(load_onnx(model_onnx))


@pytest.fixture(scope="module")
def spec(half: onnx.ModelProto) -> ModelSpec:
    return get_metadata(half).spec


@pytest.mark.parametrize("precision", [Precision.INT8, Precision.FP16])
def test_built_ahead_of_time(precision: Precision, model_onnx: Path, tmp_path: Path, rtx: Any) -> None:
    output = tmp_path / "engine.cgd"
    calibration = calibration_list(model_onnx, None)
    options = BuildOptions(max_batch=32, compute_capabilities=("8.9", "12.0"))
    engine_from_onnx(model_onnx, output, precision, backend=RTX, calibration=calibration, options=options)
    file = read_engine(output)
    manifest = file.manifest
    assert manifest.proof == {
        "from": "network",
        "asked": precision.value,
        "convolutions": 20,
        "kept_float": [],
        "layers": {precision.value: 20},
        "flops_share": {precision.value: 1.0},
    }
    assert manifest.gpu == {"compute_capability": "8.9,12.0"}
    assert manifest.builder["name"] == RTX and manifest.builder["version"] == rtx.__version__
    assert manifest.profile == {"min": 1, "opt": 8, "max": 32}
    assert manifest.payload == "engine.plan" and len(file.payload) > 1 << 20
    assert manifest.parity and manifest.parity["measured_on"] == "graph"
    assert manifest.parity["cosine_mean"] > (0.9999 if precision is Precision.FP16 else 0.99)
    images, descriptors = file.golden
    assert cosines(descriptors, run_onnx(load_onnx(model_onnx), images, 8)).min() > 0.9
    assert list(listing(tmp_path)) == ["engine.cgd"]


def test_tf32_ahead_of_time(model_onnx: Path, tmp_path: Path, rtx: Any) -> None:
    manifest = engine_from_onnx(model_onnx, tmp_path / "engine.cgd", Precision.TF32, backend=RTX)
    assert manifest.precision is read_engine(tmp_path / "engine.cgd").manifest.precision is Precision.TF32
    assert manifest.proof and (manifest.proof["asked"], manifest.proof["layers"]) == ("tf32", {"fp32": 20})
    assert manifest.parity and manifest.parity["measured_on"] == "graph"


@without_gpu
def test_loading_without_a_gpu(model_onnx: Path, tmp_path: Path, rtx: Any) -> None:
    output = tmp_path / "engine.cgd"
    manifest = engine_from_onnx(model_onnx, output, Precision.FP32, backend=RTX)
    assert manifest.gpu is None and manifest.builder["hardware_compatible"] == "Ampere and later"
    with pytest.raises(EngineError, match=r"no NVIDIA driver|finds no GPU"):
        load(output)


@without_gpu
def test_tensorrt_without_a_driver(half: onnx.ModelProto, spec: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT's objects crash then, so none may be made."""
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__="11.4"))  # type: ignore[arg-type]
    with pytest.raises(EngineError, match=r"no NVIDIA driver|finds no GPU"):
        plan_from_onnx(half, spec, "tensorrt", BuildOptions())


@pytest.mark.parametrize(
    "backend, install",
    [("tensorrt", r"pip install 'tensorrt>=[\d.]+'"), (RTX, r"pip install 'tensorrt-rtx>=[\d.]+'")],
)
def test_missing_library(
    backend: str, install: str, half: onnx.ModelProto, spec: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingDependency, match=f"{backend} is not installed; run `{install}`"):
        plan_from_onnx(half, spec, backend, BuildOptions())


def test_parse_errors_name_the_node(half: onnx.ModelProto, spec: ModelSpec, rtx: Any) -> None:
    strange = onnx.ModelProto()
    strange.CopyFrom(half)
    node = next(node for node in strange.graph.node if node.op_type == "MaxPool")
    node.op_type, node.domain = "Wavelet", "elsewhere"
    strange.opset_import.append(onnx.helper.make_opsetid("elsewhere", 1))
    with pytest.raises(ExportError) as caught:
        plan_from_onnx(strange, spec, RTX, BuildOptions())
    told = str(caught.value)
    assert f"{RTX} cannot parse the model: {node.name} (Wavelet): " in told and "Plugin" in told
    assert "\n" not in told and "/_src" not in told and told.endswith("; export it again with this release.")


def test_a_build_that_fails_says_why(half: onnx.ModelProto, rtx: Any) -> None:
    """A profile that does not fit the input."""
    wrong = ModelSpec(backbone="resnet18", descriptors="S", input_size=(96, 96))
    with pytest.raises(ExportError, match=r"cannot build the model \(.*images.*\); try a smaller batch or workspace"):
        plan_from_onnx(half, wrong, RTX, BuildOptions())


def test_progress(half: onnx.ModelProto, spec: ModelSpec, rtx: Any) -> None:
    steps: list[tuple[str, int, int]] = []
    plan_from_onnx(half, spec, RTX, BuildOptions(), lambda *step: steps.append(step))
    assert len(steps) > 50 and len({phase for phase, _, _ in steps}) > 1
    assert all(1 <= done <= total for _, done, total in steps)


class Enough(Exception):
    pass


@pytest.fixture
def interruptible() -> Iterator[None]:
    """A job in the background of a shell is started deaf to Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("error", [KeyboardInterrupt, Enough])
def test_stopping_leaves_nothing(
    error: type[BaseException], model_onnx: Path, tmp_path: Path, rtx: Any, interruptible: None
) -> None:
    """Ctrl-C while the builder is at work, and a callback that has had enough: not one more step is made."""
    steps = []

    def on_step(*step: object) -> None:
        steps.append(step)
        if error is Enough:
            raise Enough
        if len(steps) == 1:  # a second one would come after the test
            _thread.interrupt_main()
            time.sleep(2.0)  # for the main thread to hear of it, however busy the machine

    output = tmp_path / "engine.cgd"
    output.write_bytes(b"what was there before")
    before = listing(tmp_path)
    with pytest.raises(error):
        engine_from_onnx(model_onnx, output, Precision.FP32, backend=RTX, progress=Progress(on_step=on_step))
    assert len(steps) == 1
    assert listing(tmp_path) == before


@pytest.mark.parametrize(
    "backend, options, told",
    [
        (RTX, BuildOptions(timing_cache=Path("cache")), "tensorrt-rtx has no timing cache; .*--backend tensorrt"),
        (RTX, BuildOptions(hardware_compatible=True), "tensorrt-rtx has no hardware compatible"),
        (RTX, BuildOptions(version_compatible=True), "tensorrt-rtx has no version compatible"),
        ("tensorrt", BuildOptions(compute_capabilities=("8.9",)), "no compute capabilities; .*--backend tensorrt-rtx"),
        ("openvino", BuildOptions(workspace=1), "openvino has no workspace; .*--backend tensorrt or tensorrt-rtx"),
        ("onnxruntime", BuildOptions(optimization_level=5), "onnxruntime has no optimization level"),
    ],
)
def test_options_of_others_are_refused(
    backend: str, options: BuildOptions, told: str, half: onnx.ModelProto, spec: ModelSpec, model_onnx: Path
) -> None:
    with pytest.raises(InputError, match=told):
        engine_from_onnx(model_onnx, "never.cgd", Precision.FP32, backend=backend, options=options)
    with pytest.raises(InputError, match=told):
        plan_from_onnx(half, spec, backend, options)


@pytest.mark.parametrize("capability", ["9.0", "89", "ada", "8.9 "])
def test_unknown_compute_capability(capability: str, half: onnx.ModelProto, spec: ModelSpec, rtx: Any) -> None:
    with pytest.raises(InputError, match=rf"builds for no compute capability {capability}; expected some of .*8\.9"):
        plan_from_onnx(half, spec, RTX, BuildOptions(compute_capabilities=("8.9", capability)))


@pytest.mark.parametrize(
    "values, told",
    [
        ({"min_batch": 0}, "batch sizes 0, 8, 64"),
        ({"max_batch": 4}, "batch sizes 1, 8, 4"),
        ({"workspace": 0}, "workspace=0"),
        ({"optimization_level": 6}, "optimization_level=6"),
    ],
)
def test_options_that_cannot_be(values: dict[str, int], told: str) -> None:
    with pytest.raises(InputError, match=told):
        BuildOptions(**values)  # type: ignore[arg-type]


class StandIn:
    """TensorRT on an L4, as far as a build goes: RTX's builder, and a runtime whose inspector says ``layers``."""

    def __init__(self, rtx: Any) -> None:
        self._rtx = rtx
        self.layers: list[Any] = []
        self.flags: list[Any] = []
        self.cleared: list[Any] = []
        self.cache_fits = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._rtx, name)

    def Builder(self, log: Any) -> Any:
        builder = self._rtx.Builder(log)
        names = ("create_network", "create_optimization_profile", "build_serialized_network")
        made = SimpleNamespace(**{name: getattr(builder, name) for name in names})
        made.build_serialized_network = lambda network, config: builder.build_serialized_network(network, config.real)
        made.create_builder_config = lambda: Config(self, builder.create_builder_config())
        return made

    def Runtime(self, log: Any) -> Any:
        text = json.dumps({"Layers": self.layers, "I/O Tensors": []})
        inspector = SimpleNamespace(get_engine_information=lambda how: text)
        engine = SimpleNamespace(create_engine_inspector=lambda: inspector)
        return SimpleNamespace(deserialize_cuda_engine=lambda payload: engine)


class Config:
    """RTX's config, but for what only TensorRT has."""

    def __init__(self, trt: StandIn, real: Any) -> None:
        self.__dict__.update(trt=trt, real=real, cache=b"")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "hardware_compatibility_level":
            self.trt.flags.append(value)
        else:
            setattr(self.real, name, value)

    def set_flag(self, flag: Any) -> None:
        self.trt.flags.append(flag)

    def clear_flag(self, flag: Any) -> None:
        self.trt.cleared.append(flag)

    def create_timing_cache(self, data: bytes) -> bytes:
        self.__dict__["cache"] = data + b"+"
        return data

    def set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> bool:
        return self.trt.cache_fits and not ignore_mismatch

    def get_timing_cache(self) -> Any:
        return SimpleNamespace(serialize=lambda: self.cache)


@pytest.fixture
def trt(rtx: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    trt = StandIn(rtx)
    monkeypatch.setattr(module, "import_tensorrt", lambda backend: trt)
    monkeypatch.setattr(module, "find_device", lambda: L4)
    monkeypatch.setattr(packing, "check_compatibility", lambda path, manifest: None)
    yield trt


@pytest.fixture
def on_the_gpu(half: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch) -> None:
    """The FP16 plan of the session's model "runs" as its graph does."""

    class Backend:
        def __init__(self, payload: bytes) -> None:
            assert len(payload) > 1 << 20

        def run(self, images: np.ndarray) -> np.ndarray:
            return run_onnx(rounded(half), images, 8)

        def __enter__(self) -> Backend:
            return self

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setitem(packing.BACKENDS, "tensorrt", {"cuda": Backend})  # type: ignore[arg-type]


def inspected(half: onnx.ModelProto, how: str) -> list[Any]:
    names = [node.name for node in half.graph.node if node.op_type == "Conv"]
    return ["a layer without details"] + [
        {"Name": f"{name} + relu", "LayerType": "CaskConvolution", "Inputs": [{"Format/Datatype": how}]}
        for name in names
    ]


def test_the_engine_proves_itself(
    trt: StandIn, on_the_gpu: None, half: onnx.ModelProto, model_onnx: Path, tmp_path: Path
) -> None:
    trt.layers = inspected(half, "Channel major FP16 format where channel % 8 == 0")
    options = BuildOptions(hardware_compatible=True, version_compatible=True, timing_cache=tmp_path / "cache")
    for expected in (b"+", b"++"):  # a new cache, then one to add to
        manifest = engine_from_onnx(model_onnx, tmp_path / "e.cgd", Precision.FP16, backend="tensorrt", options=options)
        assert (tmp_path / "cache").read_bytes() == expected
    assert manifest.proof and manifest.proof["from"] == "engine" and manifest.proof["layers"] == {"fp16": 20}
    assert manifest.gpu == {"name": "NVIDIA L4", "compute_capability": "8.9"}
    assert {"hardware_compatible", "version_compatible"} < set(manifest.builder)
    assert manifest.parity and manifest.parity["measured_on"] == "engine"
    level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    assert trt.flags == [level, trt.BuilderFlag.VERSION_COMPATIBLE] * 2


def test_tf32_is_a_flag_of_the_builder(trt: StandIn, on_the_gpu: None, model_onnx: Path, tmp_path: Path) -> None:
    """The library sets it by default, so FP32 clears it."""
    engine_from_onnx(model_onnx, tmp_path / "e.cgd", Precision.FP32, backend="tensorrt")
    assert (trt.flags, trt.cleared) == ([], [trt.BuilderFlag.TF32])
    engine_from_onnx(model_onnx, tmp_path / "e.cgd", Precision.TF32, backend="tensorrt")
    assert (trt.flags, trt.cleared) == ([trt.BuilderFlag.TF32], [trt.BuilderFlag.TF32])


def test_tf32_is_refused_for_a_gpu_without_it(
    trt: StandIn, model_onnx: Path, spec: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_onnx(model_onnx)
    monkeypatch.setattr(module, "find_device", lambda: Device(name="Tesla T4", compute_capability="7.5", cuda="13.0"))
    with pytest.raises(EngineError, match=r"needs compute capability 8\.0 or later, and this machine's Tesla T4 has 7"):
        plan_from_onnx(model, spec, "tensorrt", BuildOptions(), tf32=True)
    options = BuildOptions(compute_capabilities=("8.9", "7.5"))
    with pytest.raises(EngineError, match=r"a GPU that was asked for has 7\.5; .*--fp32 --backend tensorrt-rtx`\.$"):
        plan_from_onnx(model, spec, RTX, options, tf32=True)


def test_an_engine_that_went_its_own_way(trt: StandIn, half: onnx.ModelProto, model_onnx: Path, tmp_path: Path) -> None:
    trt.layers = inspected(half, "Row major linear FP32")
    with pytest.raises(GateError, match="fp16 was asked, but the engine has 100 % fp32"):
        engine_from_onnx(model_onnx, tmp_path / "e.cgd", Precision.FP16, backend="tensorrt")
    trt.layers = trt.layers[:5]  # the network speaks for what the engine does not name, not for what it does
    with pytest.raises(GateError, match=r"fp16 was asked, but the network has \d+ % fp32, \d+ % fp16"):
        engine_from_onnx(model_onnx, tmp_path / "e.cgd", Precision.FP16, backend="tensorrt")
    assert listing(tmp_path) == {}


def test_a_timing_cache_of_another_gpu(trt: StandIn, half: onnx.ModelProto, spec: ModelSpec, tmp_path: Path) -> None:
    trt.cache_fits = False
    with pytest.raises(InputError, match=r"the timing cache .* was made with another GPU or TensorRT; pass a new"):
        plan_from_onnx(half, spec, "tensorrt", BuildOptions(timing_cache=tmp_path / "cache"))


def test_options_that_a_release_lacks(trt: StandIn, half: onnx.ModelProto, spec: ModelSpec) -> None:
    trt.HardwareCompatibilityLevel = SimpleNamespace(NONE=0)
    with pytest.raises(InputError, match=r"tensorrt 1\.7\S+ lacks an option that was asked for: .*'AMPERE_PLUS'\.$"):
        plan_from_onnx(half, spec, "tensorrt", BuildOptions(hardware_compatible=True))


def test_an_engine_that_overflows_is_refused(
    trt: StandIn, half: onnx.ModelProto, model_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trt.layers = inspected(half, "Half")
    nothing = np.full((4, 96), np.nan, np.float32)
    monkeypatch.setattr(packing, "_embed", lambda *_: nothing)
    with pytest.raises(ExportError, match="the fp16 engine gives descriptors that are not numbers; build with --fp32"):
        engine_from_onnx(model_onnx, tmp_path / "e.cgd", Precision.FP16, backend="tensorrt")
    assert listing(tmp_path) == {}


def test_auto_takes_tensorrt_only_with_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "find_spec", lambda name: object())
    monkeypatch.setattr(driver, "find_device", lambda: L4)
    assert choose_backend() == "tensorrt"
    monkeypatch.setattr(packing, "find_spec", lambda name: None)
    assert choose_backend() in ("openvino", "onnxruntime")

    def none() -> Device:
        raise EngineError("no GPU")

    monkeypatch.setattr(packing, "find_spec", lambda name: object())
    monkeypatch.setattr(driver, "find_device", none)
    assert choose_backend() in ("openvino", "onnxruntime")
    with pytest.raises(InputError, match="expected auto, onnxruntime, openvino, tensorrt, tensorrt-rtx"):
        choose_backend("cuda")
