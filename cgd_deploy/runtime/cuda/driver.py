"""The CUDA calls that the runtime makes, behind a protocol that tests implement too. Knows no model and no batch.

Handles and device pointers are plain integers, so handles of pycuda, CuPy or torch work too. All memory and streams
belong to the primary context of the first visible device, which ``CUDA_VISIBLE_DEVICES`` chooses.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ...errors import EngineError, MissingDependency, install_line

DRIVER_LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
ELSE_CPU = "or build an engine for the CPU with `cgd-deploy build-engine --backend onnxruntime`"
ORDINAL = 0
"""The device that engines run on, among the visible ones."""
OUT_OF_MEMORY = "cudaErrorMemoryAllocation"
LESS_MEMORY = "load with fewer streams, or build the engine with a smaller --max-batch"


class OutOfDeviceMemory(EngineError):
    """The device lacks the memory that a call asked for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Device:
    """A GPU: its name, compute capability such as "8.9", and the newest CUDA version that the driver knows."""

    name: str
    compute_capability: str
    cuda: str


class Driver(Protocol):
    """Memory, streams, events and graphs of one CUDA device. Safe to call from several threads; raises EngineError."""

    def malloc(self, size: int) -> int:
        """A pointer to ``size`` bytes on the device, undefined until written; the caller frees it."""
        ...

    def free(self, pointer: int) -> None: ...

    def owner(self, pointer: int) -> int | None:
        """Ordinal of the device with this memory; ``ORDINAL`` for managed or pinned memory, None for other memory."""
        ...

    def pinned(self, size: int) -> NDArray[np.uint8]:
        """Page-locked host memory, uint8 [size]. Nobody may use it or its views after ``free_pinned``."""
        ...

    def free_pinned(self, array: NDArray[np.uint8]) -> None: ...

    def stream(self) -> int: ...

    def destroy_stream(self, stream: int) -> None: ...

    def event(self) -> int: ...

    def destroy_event(self, event: int) -> None: ...

    def record(self, event: int, stream: int) -> None:
        """Record ``event`` after all earlier work on ``stream``."""
        ...

    def wait(self, stream: int, event: int) -> None:
        """Start later work on ``stream`` only after the work before ``event``; returns at once."""
        ...

    def synchronize(self, event: int) -> None:
        """Block this thread until the work before ``event`` is done; raises EngineError if the device failed."""
        ...

    def finish(self, stream: int) -> None:
        """Block this thread until the stream is empty."""
        ...

    def upload(self, pointer: int, array: NDArray[Any], stream: int) -> None:
        """Copy a C-contiguous view of pinned memory to the device; the view must not change until it is copied."""
        ...

    def download(self, array: NDArray[Any], pointer: int, stream: int) -> None:
        """Copy from the device into a C-contiguous view of pinned memory, which is undefined until the copy is done."""
        ...

    def capture(self, stream: int, enqueue: Callable[[], None]) -> int:
        """A graph of the work that ``enqueue`` gives to ``stream``, which does not run now. The caller destroys it."""
        ...

    def launch(self, graph: int, stream: int) -> None: ...

    def destroy_graph(self, graph: int) -> None:
        """Destroy a graph. CUDA frees a running graph after it has run."""
        ...


def import_cudart() -> Any:
    """NVIDIA's ``cuda.bindings.runtime``; raises MissingDependency without it."""
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        raise MissingDependency(f"cuda-python is not installed; run `{install_line('gpu', 'cuda-python')}`.") from error
    return runtime


def find_device() -> Device:
    """The first visible GPU. Raises EngineError without a driver or a GPU, MissingDependency without cuda-python.

    Call it before TensorRT: without a driver, TensorRT returns objects that crash when they are used.
    """
    try:
        status = ctypes.CDLL(DRIVER_LIBRARY).cuInit(0)
    except OSError as error:
        raise EngineError(f"this machine has no NVIDIA driver, which CUDA needs; install it, {ELSE_CPU}.") from error
    if status:
        raise EngineError(
            f"the NVIDIA driver finds no GPU to use (cuInit gives {status}); look at `nvidia-smi`, {ELSE_CPU}."
        )
    cudart = import_cudart()
    properties = _checked(cudart, "cudaGetDeviceProperties", 0)
    version = _checked(cudart, "cudaDriverGetVersion")
    return Device(
        name=properties.name.decode().rstrip("\0"),
        compute_capability=f"{properties.major}.{properties.minor}",
        cuda=f"{version // 1000}.{version % 1000 // 10}",
    )


def has_gpu() -> bool:
    """Whether ``find_device`` finds one."""
    try:
        find_device()
    except (EngineError, MissingDependency):
        return False
    return True


def _checked(cudart: Any, name: str, *arguments: Any) -> Any:
    """Call a CUDA function and return its result. Raises EngineError if the call fails."""
    status, *results = getattr(cudart, name)(*arguments)
    if status != cudart.cudaError_t.cudaSuccess:
        text = cudart.cudaGetErrorString(status)[1].decode()
        if status.name == OUT_OF_MEMORY:
            raise OutOfDeviceMemory(f"{name} failed ({text}); {LESS_MEMORY}.")
        raise EngineError(f"{name} failed ({text}); look at `nvidia-smi`, then load the engine in a new process.")
    return results[0] if results else None


def _address(handle: Any) -> int:
    """The handle of a cuda-python object as a number; a number is returned unchanged."""
    if isinstance(handle, int):
        return handle
    from cuda.bindings.utils import get_cuda_native_handle

    return get_cuda_native_handle(handle)


class CudaDriver:
    """The Driver on NVIDIA's cuda-python. Without a ``cudart``, raises as ``find_device`` does.

    cudart     stands in for the module ``cuda.bindings.runtime``
    spinning   whether a thread that waits for an event polls it, which keeps a core busy; otherwise the thread sleeps
    """

    def __init__(self, cudart: Any = None, *, spinning: bool = False) -> None:
        if cudart is None:
            find_device()
            cudart = import_cudart()
        self._cudart = cudart
        waiting = 0 if spinning else cudart.cudaEventBlockingSync
        self._event_flags = cudart.cudaEventDisableTiming | waiting

    def _call(self, name: str, *arguments: Any) -> Any:
        return _checked(self._cudart, name, *arguments)

    def malloc(self, size: int) -> int:
        return _address(self._call("cudaMalloc", size))

    def free(self, pointer: int) -> None:
        self._call("cudaFree", pointer)

    def owner(self, pointer: int) -> int | None:
        found = self._call("cudaPointerGetAttributes", pointer)
        kinds = self._cudart.cudaMemoryType
        if found.type == kinds.cudaMemoryTypeUnregistered:
            return None
        return int(found.device) if found.type == kinds.cudaMemoryTypeDevice else ORDINAL

    def pinned(self, size: int) -> NDArray[np.uint8]:
        pointer = _address(self._call("cudaHostAlloc", size, self._cudart.cudaHostAllocDefault))
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(pointer))

    def free_pinned(self, array: NDArray[np.uint8]) -> None:
        self._call("cudaFreeHost", array.ctypes.data)

    def stream(self) -> int:
        # Non-blocking, or the legacy default stream, which other libraries use, would serialise the lanes.
        return _address(self._call("cudaStreamCreateWithFlags", self._cudart.cudaStreamNonBlocking))

    def destroy_stream(self, stream: int) -> None:
        self._call("cudaStreamDestroy", stream)

    def event(self) -> int:
        return _address(self._call("cudaEventCreateWithFlags", self._event_flags))

    def destroy_event(self, event: int) -> None:
        self._call("cudaEventDestroy", event)

    def record(self, event: int, stream: int) -> None:
        self._call("cudaEventRecord", event, stream)

    def wait(self, stream: int, event: int) -> None:
        self._call("cudaStreamWaitEvent", stream, event, 0)

    def synchronize(self, event: int) -> None:
        self._call("cudaEventSynchronize", event)

    def finish(self, stream: int) -> None:
        self._call("cudaStreamSynchronize", stream)

    def upload(self, pointer: int, array: NDArray[Any], stream: int) -> None:
        kind = self._cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", pointer, array.ctypes.data, array.nbytes, kind, stream)

    def download(self, array: NDArray[Any], pointer: int, stream: int) -> None:
        kind = self._cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", array.ctypes.data, pointer, array.nbytes, kind, stream)

    def capture(self, stream: int, enqueue: Callable[[], None]) -> int:
        # Thread-local: other threads may allocate and synchronise while this thread captures.
        mode = self._cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", stream, mode)
        try:
            enqueue()
        except BaseException:
            with suppress(EngineError):  # ending a broken capture may fail; the stream leaves the capture anyway
                self._call("cudaGraphDestroy", self._call("cudaStreamEndCapture", stream))
            raise
        template = self._call("cudaStreamEndCapture", stream)
        try:
            return _address(self._call("cudaGraphInstantiate", template, 0))
        finally:
            self._call("cudaGraphDestroy", template)

    def launch(self, graph: int, stream: int) -> None:
        self._call("cudaGraphLaunch", graph, stream)

    def destroy_graph(self, graph: int) -> None:
        self._call("cudaGraphExecDestroy", graph)
