"""ONNX Runtime behind a lane, on the CPU: real sessions bound to real addresses, the device imagined."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from fake_cuda import FakeDriver, Step
from fake_onnxruntime import FakeOnnxRuntime

from cgd_deploy.errors import EngineError
from cgd_deploy.runtime.backends import onnxruntime as shared
from cgd_deploy.runtime.backends import onnxruntime_cuda as module
from cgd_deploy.runtime.backends.onnxruntime import OnnxRuntimeBackend
from cgd_deploy.runtime.backends.onnxruntime_cuda import OnnxRuntimeCudaBackend, OnnxRuntimeLane
from cgd_deploy.runtime.cuda.driver import OutOfDeviceMemory
from cgd_deploy.runtime.cuda.lane import Layout
from cgd_deploy.runtime.cuda.streams import Streams

LAYOUT = Layout(buckets=(1, 2, 4, 8), image_shape=(64, 64, 3), dim=96)


@pytest.fixture
def ort(monkeypatch: pytest.MonkeyPatch) -> FakeOnnxRuntime:
    """The ONNX Runtime that backends on CUDA import."""
    ort = FakeOnnxRuntime()
    monkeypatch.setattr(module, "import_onnxruntime", lambda: ort)
    return ort


@pytest.fixture(scope="module")
def payload(model_onnx: Path) -> bytes:
    return model_onnx.read_bytes()


def on_cuda(driver: FakeDriver, **settings: Any) -> OnnxRuntimeCudaBackend:
    return OnnxRuntimeCudaBackend(b"a model", input_size=(64, 64), dim=96, driver=driver, **settings)


@pytest.mark.parametrize("streams", [1, 2])
def test_a_model_through_lanes(driver: FakeDriver, payload: bytes, pixels: np.ndarray, streams: int) -> None:
    """Descriptors written through bound addresses, batched and padded, are those of one plain call."""
    with OnnxRuntimeBackend(payload) as plain:
        expected = plain.run(pixels)

    class Lane(OnnxRuntimeLane):
        device = "cpu"

        def __call__(self, stream: int, batch: int, images: int, descriptors: int) -> bool:
            def run() -> None:
                assert super(Lane, self).__call__(stream, batch, driver.address(images), driver.address(descriptors))

            driver.kernel(stream, Step("kernel", run, reads=[images], writes=[descriptors]))
            return True

    def make(stream: int) -> Lane:
        session = onnxruntime.InferenceSession(payload, providers=["CPUExecutionProvider"])
        return Lane(onnxruntime, session, LAYOUT)

    lanes = Streams(driver, make, LAYOUT, lanes=streams)
    np.testing.assert_allclose(lanes.run(pixels[:13]), expected[:13], atol=1e-5)
    for i in range(3):
        np.testing.assert_allclose(lanes.run(pixels[i : i + 1]), expected[i : i + 1], atol=1e-5)
    assert driver.calls == []  # no graphs: a session may not be captured
    lanes.close()


def failing_lane(ort: FakeOnnxRuntime, message: str) -> OnnxRuntimeLane:
    def run(binding: Any, options: Any) -> None:
        raise RuntimeError(message)

    ort.run = run
    return OnnxRuntimeLane(ort, ort.InferenceSession(b"", ort.SessionOptions(), []), LAYOUT)


def test_a_failing_session_says_so(ort: FakeOnnxRuntime) -> None:
    lane = failing_lane(ort, "an unknown shape\nand a trace")
    with pytest.raises(EngineError, match=r"refuses a batch of 2 \(an unknown shape\); use smaller ones"):
        lane(0, 2, 4096, 4096)


SHORTAGES = (
    "Failed to allocate memory for requested buffer of size 4096",
    "CUDA failure 2: out of memory ; GPU=0",
    "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN failure 2: CUDNN_STATUS_ALLOC_FAILED",
)


@pytest.mark.parametrize("message", SHORTAGES)
def test_a_gpu_without_the_memory_is_named(
    driver: FakeDriver, ort: FakeOnnxRuntime, monkeypatch: pytest.MonkeyPatch, message: str
) -> None:
    with pytest.raises(OutOfDeviceMemory, match=r"memory for a batch of 2 on .*; load with fewer streams"):
        failing_lane(ort, message)(0, 2, 4096, 4096)
    ort.refusal = message
    with pytest.raises(OutOfDeviceMemory, match=r"memory for the model on .*; load with fewer streams"):
        on_cuda(driver)
    monkeypatch.setattr(shared, "import_onnxruntime", lambda: ort)
    with pytest.raises(EngineError, match="cannot load the model") as raised:
        OnnxRuntimeBackend(b"")
    assert not isinstance(raised.value, OutOfDeviceMemory)


def test_cuda_is_refused_by_the_cpu_wheel(driver: FakeDriver) -> None:
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this is the GPU wheel")
    with pytest.raises(EngineError, match=r"no CUDAExecutionProvider; run `pip uninstall -y onnxruntime`, then `pip "):
        on_cuda(driver)


def test_cuda_that_ends_on_the_cpu_is_an_error(driver: FakeDriver, ort: FakeOnnxRuntime) -> None:
    ort.provider = "CPUExecutionProvider"
    with pytest.raises(EngineError, match="fell back from cuda to the CPU"):
        on_cuda(driver)


@pytest.mark.parametrize(("image_shape", "dim"), [((32, 64, 3), 96), ((64, 64, 3), 48)], ids=["image", "dim"])
def test_a_model_with_other_shapes_than_its_spec_is_refused(
    driver: FakeDriver, ort: FakeOnnxRuntime, image_shape: tuple[int, ...], dim: int
) -> None:
    """Its session would read and write beyond the lane's buffers."""
    ort.image_shape, ort.dim = image_shape, dim
    with pytest.raises(EngineError, match=r"spec says \[\[64, 64, 3\], \[96\]\]; build the engine again"):
        on_cuda(driver)


def test_each_lane_has_a_session_on_its_own_stream(driver: FakeDriver, ort: FakeOnnxRuntime) -> None:
    with on_cuda(driver, streams=3, max_batch=6) as backend:
        assert backend.streams and backend.streams.layout.buckets == (1, 2, 4, 6)
        assert len({settings["user_compute_stream"] for settings in ort.settings}) == len(ort.settings) == 3


@pytest.mark.parametrize(("settings", "use_tf32"), [({}, "0"), ({"tf32": True}, "1")], ids=["fp32", "tf32"])
def test_cuda_computes_what_the_manifest_says(
    driver: FakeDriver, ort: FakeOnnxRuntime, settings: dict[str, bool], use_tf32: str
) -> None:
    """TF32 only if asked, no node on the CPU, and NVIDIA's libraries loaded before the first session needs them."""
    with on_cuda(driver, streams=2, **settings):
        assert [given["use_tf32"] for given in ort.settings] == [use_tf32] * 2
        assert ort.preloaded is True
        assert [options.entries for options in ort.options] == [{"session.disable_cpu_ep_fallback": "1"}] * 2


def test_a_node_that_cuda_does_not_take_is_an_error(driver: FakeDriver, ort: FakeOnnxRuntime) -> None:
    ort.refusal = (
        "[ONNXRuntimeError] : 1 : FAIL : This session contains graph nodes that are assigned to the default CPU "
        "EP, but fallback to CPU EP has been explicitly disabled by the user."
    )
    with pytest.raises(EngineError, match=r"would compute a part of this model on the CPU.*`cgd-deploy build-engine"):
        on_cuda(driver)


def test_the_real_library_refuses_nodes_on_the_cpu_with_these_words(payload: bytes) -> None:
    """A session for a provider that takes no node; the CPU provider is added only as the fallback."""
    if "AzureExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has no provider that takes no node")
    settings = onnxruntime.SessionOptions()
    settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    with pytest.raises(Exception, match=module.CPU_NODES):
        onnxruntime.InferenceSession(payload, settings, providers=["AzureExecutionProvider"])
