"""ONNX Runtime behind a lane, on the CPU: real sessions bound to real addresses, the device imagined."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
from fake_cuda import FakeDriver, Step

from cgd_deploy.errors import EngineError
from cgd_deploy.runtime.backends import onnxruntime as module
from cgd_deploy.runtime.backends.onnxruntime import OnnxRuntimeBackend, OnnxRuntimeLane
from cgd_deploy.runtime.cuda.driver import OutOfDeviceMemory
from cgd_deploy.runtime.cuda.streams import Streams


@pytest.fixture
def driver() -> Iterator[FakeDriver]:
    driver = FakeDriver()
    yield driver
    driver.assert_empty()


@pytest.fixture(scope="module")
def payload(model_onnx: Path) -> bytes:
    return model_onnx.read_bytes()


def test_layout_is_read_from_the_model(payload: bytes) -> None:
    layout = module._layout(payload, 6)
    assert (layout.buckets, layout.image_shape, layout.dim) == ((1, 2, 4, 6), (64, 64, 3), 96)


@pytest.mark.parametrize("streams", [1, 2])
def test_a_model_through_lanes(driver: FakeDriver, payload: bytes, pixels: np.ndarray, streams: int) -> None:
    """Descriptors written through bound addresses, batched and padded, are those of one plain call."""
    with OnnxRuntimeBackend(payload) as plain:
        expected = plain.run(pixels)

    class Lane(OnnxRuntimeLane):
        def __call__(self, stream: int, batch: int, images: int, descriptors: int) -> bool:
            def run() -> None:
                assert super(Lane, self).__call__(stream, batch, driver.address(images), driver.address(descriptors))

            driver.kernel(stream, Step("kernel", run, reads=[images], writes=[descriptors]))
            return True

    def make(stream: int) -> Lane:
        return Lane(onnxruntime, module._session(onnxruntime, payload, "cpu", 1), "cpu")

    lanes = Streams(driver, make, module._layout(payload, 8), lanes=streams)
    np.testing.assert_allclose(lanes.run(pixels[:13]), expected[:13], atol=1e-5)
    for i in range(3):
        np.testing.assert_allclose(lanes.run(pixels[i : i + 1]), expected[i : i + 1], atol=1e-5)
    assert driver.calls == []  # no graphs: a session may not be captured
    lanes.close()


def failing_session(message: str) -> Any:
    def run(binding: Any, options: Any) -> None:
        raise RuntimeError(message)

    session = scripted([], []).InferenceSession(b"", None, [])
    session.io_binding = lambda: SimpleNamespace(bind_input=lambda *_: None, bind_output=lambda *_: None)
    session.run_with_iobinding = run
    return session


def test_a_failing_session_says_so() -> None:
    session = failing_session("an unknown shape\nand a trace")
    with pytest.raises(EngineError, match=r"refuses a batch of 2 \(an unknown shape\); use smaller ones"):
        OnnxRuntimeLane(onnxruntime, session, "cuda")(0, 2, 4096, 4096)


SHORTAGES = (
    "Failed to allocate memory for requested buffer of size 4096",
    "CUDA failure 2: out of memory ; GPU=0",
    "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN failure 2: CUDNN_STATUS_ALLOC_FAILED",
)


@pytest.mark.parametrize("message", SHORTAGES)
def test_a_gpu_without_the_memory_is_named(payload: bytes, message: str) -> None:
    with pytest.raises(OutOfDeviceMemory, match=r"memory for a batch of 2 on .*; load with fewer streams"):
        OnnxRuntimeLane(onnxruntime, failing_session(message), "cuda")(0, 2, 4096, 4096)

    def session(*_: Any, **__: Any) -> None:
        raise RuntimeError(message)

    ort = scripted(["CUDAExecutionProvider"], [])
    ort.InferenceSession = session
    with pytest.raises(OutOfDeviceMemory, match=r"memory for the model on .*; load with fewer streams"):
        module._session(ort, payload, "cuda", 1)
    with pytest.raises(EngineError, match="cannot load the model") as raised:
        module._session(ort, payload, "cpu", 1)
    assert not isinstance(raised.value, OutOfDeviceMemory)


def test_cuda_is_refused_by_the_cpu_wheel(payload: bytes) -> None:
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this is the GPU wheel")
    with pytest.raises(EngineError, match=r"no CUDAExecutionProvider; run `pip uninstall -y onnxruntime`, then `pip "):
        OnnxRuntimeBackend(payload, device="cuda")
    with pytest.raises(EngineError, match="knows no device 'tpu'"):
        OnnxRuntimeBackend(payload, device="tpu")


class Settings(SimpleNamespace):
    """Session options that keep their entries."""

    def __init__(self) -> None:
        super().__init__(entries={})

    def add_session_config_entry(self, key: str, value: str) -> None:
        self.entries[key] = value


def scripted(ended: list[str], made: list[Any], calls: list[Any] | None = None) -> SimpleNamespace:
    """An onnxruntime whose sessions end up on these providers; the providers asked for go into ``made``.

    calls   gets the settings of each session, and "preload" when libraries are loaded
    """
    calls = [] if calls is None else calls

    def session(payload: bytes, settings: Any, providers: Any) -> Any:
        made.append(providers)
        calls.append(settings)
        return SimpleNamespace(
            get_providers=lambda: ended,
            get_inputs=lambda: [SimpleNamespace(shape=["batch", 64, 64, 3])],
            get_outputs=lambda: [SimpleNamespace(shape=["batch", 96])],
        )

    return SimpleNamespace(
        get_available_providers=lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"],
        SessionOptions=Settings,
        preload_dlls=lambda: calls.append("preload"),
        RunOptions=lambda: SimpleNamespace(add_run_config_entry=lambda key, value: None),
        InferenceSession=session,
    )


def test_cuda_that_ends_on_the_cpu_is_an_error(
    driver: FakeDriver, payload: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "import_onnxruntime", lambda: scripted(["CPUExecutionProvider"], []))
    monkeypatch.setattr(module, "CudaDriver", lambda: driver)
    with pytest.raises(EngineError, match="fell back from cuda to the CPU"):
        OnnxRuntimeBackend(payload, device="cuda")


def test_each_lane_has_a_session_on_its_own_stream(
    driver: FakeDriver, payload: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []
    monkeypatch.setattr(module, "import_onnxruntime", lambda: scripted(["CUDAExecutionProvider"], made))
    monkeypatch.setattr(module, "CudaDriver", lambda: driver)
    with OnnxRuntimeBackend(payload, device="cuda", streams=3, max_batch=2):
        assert [providers[0][0] for providers in made] == ["CUDAExecutionProvider"] * 3
        assert len({providers[0][1]["user_compute_stream"] for providers in made}) == 3


@pytest.mark.parametrize(("settings", "use_tf32"), [({}, "0"), ({"tf32": True}, "1")], ids=["fp32", "tf32"])
def test_cuda_computes_what_the_manifest_says(
    driver: FakeDriver, payload: bytes, monkeypatch: pytest.MonkeyPatch, settings: dict[str, bool], use_tf32: str
) -> None:
    """TF32 only if asked, no node on the CPU, and NVIDIA's libraries loaded before the first session needs them."""
    made: list[Any] = []
    calls: list[Any] = []
    monkeypatch.setattr(module, "import_onnxruntime", lambda: scripted(["CUDAExecutionProvider"], made, calls))
    monkeypatch.setattr(module, "CudaDriver", lambda: driver)
    with OnnxRuntimeBackend(payload, device="cuda", streams=2, **settings):
        assert {providers[0][1]["use_tf32"] for providers in made} == {use_tf32}
        first, *sessions = calls
        assert first == "preload" and len(sessions) == 2
        assert [session.entries for session in sessions] == [{"session.disable_cpu_ep_fallback": "1"}] * 2


def test_a_node_that_cuda_does_not_take_is_an_error(
    driver: FakeDriver, payload: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    ort = scripted(["CUDAExecutionProvider"], [])

    def session(*_: Any, **__: Any) -> None:
        raise RuntimeError(
            "[ONNXRuntimeError] : 1 : FAIL : This session contains graph nodes that are assigned to the default CPU "
            "EP, but fallback to CPU EP has been explicitly disabled by the user."
        )

    ort.InferenceSession = session
    monkeypatch.setattr(module, "import_onnxruntime", lambda: ort)
    monkeypatch.setattr(module, "CudaDriver", lambda: driver)
    with pytest.raises(EngineError, match=r"would compute a part of this model on the CPU.*`cgd-deploy build-engine"):
        OnnxRuntimeBackend(payload, device="cuda")


def test_the_real_library_refuses_nodes_on_the_cpu_with_these_words(payload: bytes) -> None:
    """A session for a provider that takes no node; the CPU provider is added only as the fallback."""
    if "AzureExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has no provider that takes no node")
    settings = onnxruntime.SessionOptions()
    settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    with pytest.raises(Exception, match=module.CPU_NODES):
        onnxruntime.InferenceSession(payload, settings, providers=["AzureExecutionProvider"])


def test_a_cpu_computes_no_tf32(payload: bytes) -> None:
    with pytest.raises(EngineError, match=r"has no TF32 and would compute FP32; use device cuda, or no tf32\.$"):
        OnnxRuntimeBackend(payload, tf32=True)
