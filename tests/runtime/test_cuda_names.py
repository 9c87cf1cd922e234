"""The driver over cuda-python: names and arguments checked on the real bindings, order and errors on scripted ones."""

from __future__ import annotations

import ctypes
import inspect
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cgd_deploy.errors import CgdError, EngineError, MissingDependency
from cgd_deploy.runtime.cuda import driver
from cgd_deploy.runtime.cuda.driver import CudaDriver, Driver, OutOfDeviceMemory, find_device

HOST = np.zeros(8, np.uint8)

EVERY_CALL: dict[str, Callable[[CudaDriver], object]] = {
    "malloc": lambda driver: driver.malloc(16),
    "owner": lambda driver: driver.owner(4096),
    "free": lambda driver: driver.free(4096),
    "pinned": lambda driver: driver.pinned(16),
    "free_pinned": lambda driver: driver.free_pinned(HOST),
    "stream": lambda driver: driver.stream(),
    "destroy_stream": lambda driver: driver.destroy_stream(1),
    "event": lambda driver: driver.event(),
    "destroy_event": lambda driver: driver.destroy_event(2),
    "record": lambda driver: driver.record(2, 1),
    "wait": lambda driver: driver.wait(1, 2),
    "synchronize": lambda driver: driver.synchronize(2),
    "finish": lambda driver: driver.finish(1),
    "upload": lambda driver: driver.upload(4096, HOST, 1),
    "download": lambda driver: driver.download(HOST, 4096, 1),
    "capture": lambda driver: driver.capture(1, lambda: None),
    "launch": lambda driver: driver.launch(3, 1),
    "destroy_graph": lambda driver: driver.destroy_graph(3),
}


def test_every_method_of_the_seam_is_here() -> None:
    methods = {name for name, _ in inspect.getmembers(Driver, inspect.isfunction) if not name.startswith("_")}
    assert methods == set(EVERY_CALL)


@pytest.mark.parametrize("name", EVERY_CALL)
def test_real_bindings_take_these_arguments(name: str) -> None:
    """Without a driver each call must reach CUDA and come back with its error, not with a TypeError."""
    cudart = pytest.importorskip("cuda.bindings.runtime", reason="cuda-python is not installed")
    try:
        find_device()
    except CgdError:
        with pytest.raises(EngineError, match=r"cuda\w+ failed \(.*\); .*\.$"):
            EVERY_CALL[name](CudaDriver(cudart))
    else:
        pytest.skip("this machine has a GPU, on which made-up handles would crash")


def test_real_bindings_describe_a_device_so() -> None:
    cudart = pytest.importorskip("cuda.bindings.runtime", reason="cuda-python is not installed")
    assert all(hasattr(cudart.cudaDeviceProp, field) for field in ("name", "major", "minor"))


class Runtime:
    """A cudart that notes every call; results by function name, errors where told."""

    class cudaError_t:
        cudaSuccess = SimpleNamespace(name="cudaSuccess")
        cudaErrorMemoryAllocation = SimpleNamespace(name="cudaErrorMemoryAllocation")

    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice="up", cudaMemcpyDeviceToHost="down")
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal="thread-local")
    cudaHostAllocDefault, cudaStreamNonBlocking = 0, 1
    cudaEventBlockingSync, cudaEventDisableTiming = 1, 2

    def __init__(self, failing: str = "", **results: Any) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self._failing = failing
        self._results = results

    def __getattr__(self, name: str) -> Callable[..., tuple[Any, ...]]:
        def call(*arguments: Any) -> tuple[Any, ...]:
            if name == "cudaGetErrorString":
                return None, b"out of memory"
            self.calls.append((name, *arguments))
            if name == self._failing:
                return (self.cudaError_t.cudaErrorMemoryAllocation, None)
            result = (self._results[name],) if name in self._results else ()
            return (self.cudaError_t.cudaSuccess, *result)

        return call


@pytest.mark.parametrize(("options", "flags"), [({}, 3), ({"spinning": True}, 2)], ids=["default", "spinning"])
def test_a_thread_that_waits_for_an_event_sleeps_by_default(options: dict[str, bool], flags: int) -> None:
    """Without cudaEventBlockingSync it would keep a core busy, which decoding and other lanes need."""
    runtime = Runtime(cudaEventCreateWithFlags=5)
    assert CudaDriver(runtime, **options).event() == 5
    assert runtime.calls == [("cudaEventCreateWithFlags", flags)]


@pytest.mark.filterwarnings("error")
def test_handles_of_the_real_bindings_become_numbers() -> None:
    cudart = pytest.importorskip("cuda.bindings.runtime", reason="cuda-python is not installed")
    kinds = {
        "stream": ("cudaStreamCreateWithFlags", cudart.cudaStream_t),
        "event": ("cudaEventCreateWithFlags", cudart.cudaEvent_t),
    }
    for method, (name, kind) in kinds.items():
        address = getattr(CudaDriver(Runtime(**{name: kind(4096)})), method)()
        assert (type(address), address) == (int, 4096)
    graph = Runtime(cudaStreamEndCapture="template", cudaGraphInstantiate=cudart.cudaGraphExec_t(8192))
    assert CudaDriver(graph).capture(1, lambda: None) == 8192


def test_pinned_memory_is_the_drivers_own() -> None:
    memory = (ctypes.c_uint8 * 24)()
    runtime = Runtime(cudaHostAlloc=ctypes.addressof(memory))
    driver = CudaDriver(runtime)
    array = driver.pinned(24)
    array.view(np.float32)[:] = 1.5
    assert bytes(memory) == np.full(6, 1.5, np.float32).tobytes()
    driver.upload(7, array[:8], 1)
    driver.download(array.view(np.float32)[2:4], 9, 1)
    driver.free_pinned(array)
    base = ctypes.addressof(memory)
    assert runtime.calls[1:] == [
        ("cudaMemcpyAsync", 7, base, 8, "up", 1),
        ("cudaMemcpyAsync", base + 8, 9, 8, "down", 1),
        ("cudaFreeHost", base),
    ]


def test_capture_destroys_the_template() -> None:
    runtime = Runtime(cudaStreamEndCapture="template", cudaGraphInstantiate=77)
    driver = CudaDriver(runtime)
    assert driver.capture(5, lambda: driver.record(2, 5)) == 77
    assert [call[0] for call in runtime.calls] == [
        "cudaStreamBeginCapture",
        "cudaEventRecord",
        "cudaStreamEndCapture",
        "cudaGraphInstantiate",
        "cudaGraphDestroy",
    ]
    assert runtime.calls[-1] == ("cudaGraphDestroy", "template")


@pytest.mark.parametrize("failing", ["", "cudaStreamEndCapture", "cudaGraphDestroy"])
def test_a_broken_capture_ends_and_says_why(failing: str) -> None:
    runtime = Runtime(failing, cudaStreamEndCapture="template")

    def refuse() -> None:
        raise EngineError("refused")

    with pytest.raises(EngineError, match=r"^refused$"):
        CudaDriver(runtime).capture(5, refuse)
    assert ("cudaStreamEndCapture", 5) in runtime.calls


def test_a_graph_that_cannot_be_instantiated_leaves_no_template() -> None:
    runtime = Runtime("cudaGraphInstantiate", cudaStreamEndCapture="template")
    with pytest.raises(EngineError, match="cudaGraphInstantiate failed"):
        CudaDriver(runtime).capture(5, lambda: None)
    assert runtime.calls[-1] == ("cudaGraphDestroy", "template")


def test_errors_say_what_to_do() -> None:
    with pytest.raises(OutOfDeviceMemory, match=r"cudaMalloc failed \(out of memory\); load with fewer streams"):
        CudaDriver(Runtime("cudaMalloc")).malloc(1 << 40)


@pytest.mark.parametrize(
    ("kind", "device", "owner"),
    [("Device", 0, 0), ("Device", 3, 3), ("Managed", 3, 0), ("Host", 3, 0), ("Unregistered", -2, None)],
)
def test_whose_memory_it_is(kind: str, device: int, owner: int | None) -> None:
    """Every device reaches managed and pinned memory, so the device that made it does not matter."""
    cudart = pytest.importorskip("cuda.bindings.runtime", reason="cuda-python is not installed")
    attributes = cudart.cudaPointerAttributes()
    attributes.type, attributes.device = getattr(cudart.cudaMemoryType, f"cudaMemoryType{kind}"), device
    runtime = Runtime(cudaPointerGetAttributes=attributes)
    runtime.cudaMemoryType = cudart.cudaMemoryType
    assert CudaDriver(runtime).owner(4096) == owner


class Libcuda:
    def __init__(self, status: int) -> None:
        self.cuInit = lambda flags: status


def test_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    properties = SimpleNamespace(name=b"NVIDIA L4\0\0", major=8, minor=9)
    runtime = Runtime(cudaGetDeviceProperties=properties, cudaDriverGetVersion=13020)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Libcuda(0))
    monkeypatch.setattr(driver, "import_cudart", lambda: runtime)
    assert find_device() == driver.Device(name="NVIDIA L4", compute_capability="8.9", cuda="13.2")


def test_a_driver_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Libcuda(100))
    with pytest.raises(EngineError, match=r"finds no GPU to use \(cuInit gives 100\)"):
        find_device()


def test_a_gpu_without_cuda_python(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setattr(ctypes, "CDLL", lambda name: Libcuda(0))
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(MissingDependency, match="cuda-python is not installed; run `pip install"):
        find_device()
