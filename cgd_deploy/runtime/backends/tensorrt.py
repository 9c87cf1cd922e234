"""Runs plans of TensorRT and of TensorRT-RTX on CUDA streams. The two libraries have the same API.

A plan is code for the GPU, and a version-compatible plan also holds code for the CPU: load only files that you trust.
"""

from __future__ import annotations

import importlib
from collections import deque
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import EngineError, MissingDependency, install_line
from ..cuda.driver import CudaDriver, Driver
from ..cuda.lane import Layout, owned
from ..cuda.streams import LANES, Streams, bucket_sizes
from .base import DESCRIPTORS, IMAGES, Backend

MODULES = {"tensorrt": ("tensorrt",), "tensorrt-rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings")}
EXTRAS = {"tensorrt": "gpu", "tensorrt-rtx": "tensorrt-rtx"}
KEPT_ERRORS = 100
"""Messages that a logger keeps; an engine that serves for weeks may log any number."""
SHARED = 4
"""Contexts of a lane for batches of all sizes between the buckets."""


def import_tensorrt(kind: str = "tensorrt") -> Any:
    """The module of "tensorrt" or "tensorrt-rtx". Raises MissingDependency without the module or one of its libraries.

    Call ``driver.find_device`` before you make a Runtime object of the module: without a GPU the object crashes.
    """
    reason = ""
    for name in MODULES[kind]:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError:
            continue
        except ImportError as error:
            reason = f" completely ({error})"
    raise MissingDependency(f"{kind} is not installed{reason}; run `{install_line(EXTRAS[kind], kind)}`.")


def compute_capabilities(trt: Any) -> dict[str, Any]:
    """The compute capabilities that TensorRT-RTX builds for and runs on, by their numbers, for example "8.9".

    Empty for TensorRT, whose module does not list them.
    """
    members = getattr(trt, "ComputeCapability", None)
    known = members.__members__.items() if members else ()
    return {f"{name[2:-1]}.{name[-1]}": value for name, value in known if name.startswith("SM")}


class TensorRtBackend(Backend):
    """A plan on one GPU. Each lane has an execution context for each batch bucket, and ``SHARED`` for other sizes.

    payload     a serialized plan with input "images" and output "descriptors"
    threads     not used: a plan computes nothing on the CPU
    streams     lanes, see ``Streams``
    max_batch   the largest bucket, by default the plan's own limit
    graphs      CUDA graphs kept by each lane, see ``Streams``
    driver      the CUDA calls; None: a ``CudaDriver``

    Raises EngineError if there is no GPU or it cannot run the plan, MissingDependency without the library.
    """

    kind = "tensorrt"
    streams: Streams

    def __init__(
        self,
        payload: bytes,
        *,
        threads: int | None = None,
        streams: int = LANES,
        max_batch: int | None = None,
        graphs: int | None = None,
        driver: Driver | None = None,
    ) -> None:
        driver = driver or CudaDriver()
        trt = import_tensorrt(self.kind)
        log = error_log(trt)
        self._runtime = trt.Runtime(log)
        self._runtime.engine_host_code_allowed = True  # a version-compatible plan brings its own lean runtime
        self._engine = self._runtime.deserialize_cuda_engine(payload)
        if self._engine is None:
            raise EngineError(f"TensorRT refuses the plan ({last_error(log)}); build the engine again on this machine.")
        names = {self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)}
        if names != {IMAGES, DESCRIPTORS}:
            raise EngineError(f"the plan has tensors {sorted(names)}, expected images and descriptors; build it again.")
        smallest, _, largest = (shape[0] for shape in self._engine.get_tensor_profile_shape(IMAGES, 0))
        layout = Layout(
            buckets=bucket_sizes(smallest, min(largest, max_batch or largest)),
            image_shape=tuple(self._engine.get_tensor_shape(IMAGES))[1:],
            dim=self._engine.get_tensor_shape(DESCRIPTORS)[1],
        )
        self.streams = Streams(
            driver,
            lambda stream: TensorRtLane(trt, self._engine, driver, stream, layout),
            layout,
            lanes=streams,
            graphs=graphs,
        )
        self.concurrency = self.streams.capacity

    def run(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return self.streams.run(images)

    def close(self) -> None:
        self.streams.close()
        self._engine = self._runtime = None


class TensorRtRtxBackend(TensorRtBackend):
    """``TensorRtBackend`` for a plan of TensorRT-RTX."""

    kind = "tensorrt-rtx"


@dataclass(eq=False)
class SharedContext:
    """A context for batches of one size at a time.

    context   TensorRT's execution context
    done      the event after the context's last batch
    batch     the batch size that the context is set to, 0 for none
    """

    context: Any
    done: int
    batch: int = 0


class TensorRtLane:
    """Execution contexts of one lane: one for each bucket, and a few that all other batch sizes share.

    A bucket's context keeps its size, because its CUDA graphs need that size. Other sizes come only from
    ``Streams.run_on``, without graphs. A new size takes over the least recently used shared context, once the GPU is
    done with it. No context is destroyed before ``close``. A lane runs one context at a time, so all contexts share
    the lane's scratch memory, and many of them are cheap.
    """

    def __init__(self, trt: Any, engine: Any, driver: Driver, stream: int, layout: Layout) -> None:
        self._trt = trt
        self._engine = engine
        self._driver = driver
        self._layout = layout
        self._buckets: dict[int, Any] = {}
        self._shared: list[SharedContext] = []
        with ExitStack() as stack:
            self._scratch_size = max(1, engine.device_memory_size_v2)
            self._scratch = owned(stack, driver.malloc(self._scratch_size), driver.free)
            self._events = [owned(stack, driver.event(), driver.destroy_event) for _ in range(SHARED)]
            stack.callback(self._buckets.clear)
            stack.callback(self._shared.clear)
            context = self._bucket(layout.buckets[-1], stream)
            # Only TensorRT-RTX has plans that CUDA graphs cannot capture.
            self.capturable = bool(getattr(context, "is_stream_capturable", lambda stream: True)(stream))
            self._resources = stack.pop_all()

    def __call__(self, stream: int, batch: int, images: int, descriptors: int) -> bool:
        if batch in self._layout.buckets:
            return _enqueue(self._bucket(batch, stream), stream, images, descriptors)
        shared = self._share(batch, stream)
        accepted = _enqueue(shared.context, stream, images, descriptors)
        self._driver.record(shared.done, stream)
        return accepted

    def _bucket(self, batch: int, stream: int) -> Any:
        if batch not in self._buckets:
            context = self._new_context(stream)
            self._resize(context, batch)
            self._buckets[batch] = context
        return self._buckets[batch]

    def _share(self, batch: int, stream: int) -> SharedContext:
        """The shared context for this batch size, marked as the most recently used."""
        shared = next((one for one in self._shared if one.batch == batch), None) or self._free_one(stream)
        if shared.batch != batch:
            shared.batch = 0  # in case TensorRT refuses the size
            self._resize(shared.context, batch)
            shared.batch = batch
        self._shared.remove(shared)
        self._shared.append(shared)
        return shared

    def _free_one(self, stream: int) -> SharedContext:
        """A new shared context, or the least recently used one after its last batch."""
        if len(self._shared) < SHARED:
            self._shared.append(SharedContext(self._new_context(stream), self._events[len(self._shared)]))
            return self._shared[-1]
        self._driver.synchronize(self._shared[0].done)
        return self._shared[0]

    def _resize(self, context: Any, batch: int) -> None:
        if not context.set_input_shape(IMAGES, (batch, *self._layout.image_shape)):
            raise EngineError(f"TensorRT refuses a batch of {batch}; build the engine with a larger --max-batch.")
        if missing := context.infer_shapes():
            raise EngineError(f"TensorRT cannot infer the shape of {missing}; build the engine again.")

    def _new_context(self, stream: int) -> Any:
        """A context on this lane's stream and scratch memory, not yet set to a batch size."""
        context = self._make_context()
        context.set_device_memory(self._scratch, self._scratch_size)
        if not context.set_optimization_profile_async(0, stream):
            raise EngineError("TensorRT refuses the plan's optimization profile; build the engine again.")
        return context

    def _make_context(self) -> Any:
        trt = self._trt
        strategies = getattr(trt, "DynamicShapesKernelSpecializationStrategy", None)
        if strategies is None:
            context = self._engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        else:  # TensorRT-RTX compiles for the shape now; otherwise a graph would keep the slow fallback kernels
            config = self._engine.create_runtime_config()
            config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER
            config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
            context = self._engine.create_execution_context(config)
        if context is None:
            raise EngineError("TensorRT cannot make an execution context; load the engine with fewer streams.")
        return context

    def close(self) -> None:
        self._resources.close()
        self._engine = None


def _enqueue(context: Any, stream: int, images: int, descriptors: int) -> bool:
    return bool(
        context.set_tensor_address(IMAGES, images)
        and context.set_tensor_address(DESCRIPTORS, descriptors)
        and context.execute_async_v3(stream)
    )


def error_log(trt: Any) -> Any:
    """A logger of TensorRT's module ``trt``; its ``errors`` holds the latest error messages, the oldest first.

    A Python IErrorRecorder would do the same, but it crashes at exit (RTX 1.7.1).
    """

    class Log(trt.ILogger):
        def __init__(self) -> None:
            super().__init__()
            self.errors: deque[str] = deque(maxlen=KEPT_ERRORS)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(message)

    return Log()


def last_error(log: Any) -> str:
    """The first line of the last error in an ``error_log``."""
    return log.errors[-1].strip().splitlines()[0][:200] if log.errors else "it gives no reason"
