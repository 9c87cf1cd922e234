"""ONNX models on ONNX Runtime: CPU, or CUDA when asked, never one for the other."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import EngineError, MissingDependency, install_line
from ...hardware.cpu import available_threads
from ...hardware.packages import check_runtime, runtime_lines
from ..cuda.driver import LESS_MEMORY, CudaDriver, Driver, OutOfDeviceMemory
from ..cuda.lane import Layout
from ..cuda.streams import LANES, Streams, bucket_sizes
from .base import DESCRIPTORS, IMAGES, Backend

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
ERROR_ONLY = 3
MAX_BATCH = 32
CPU_NODES = "fallback to CPU EP has been explicitly disabled"
"""Part of ONNX Runtime's error about nodes that its CUDA provider does not take."""
NO_MEMORY = ("out of memory", "Failed to allocate memory", "_ALLOC_FAILED")
"""Parts of the errors of ONNX Runtime, CUDA, cuBLAS and cuDNN about a GPU without enough memory."""


def import_onnxruntime() -> Any:
    """The onnxruntime module, loaded without telemetry; raises MissingDependency without it, or with two wheels of it.

    Newer releases upload events and keep a device id in ~/.cache, unless this variable is set before the import. A
    caller who wants that sets the variable to 0.
    """
    check_runtime()
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise MissingDependency(f"ONNX Runtime is not installed; run {runtime_lines()}.") from error
    return onnxruntime


class OnnxRuntimeBackend(Backend):
    """One ONNX Runtime session on the CPU, or one for each CUDA lane.

    payload     a serialised ONNX model
    device      "cpu" or "cuda"
    threads     intra-op threads, by default every core this process may use
    streams     on CUDA: lanes, see ``Streams``, by default 2; each lane has its own copy of the weights. On the CPU:
                how many threads call ``run`` at the same time, by default 1; they share ``threads``
    max_batch   the largest batch on CUDA
    fused       on the CPU, whether ONNX Runtime may fuse nodes; otherwise INT8 layers decode, and compute in float
    tf32        on CUDA, whether FP32 products may be computed in TF32
    driver      what calls CUDA; None: a ``CudaDriver``

    Raises EngineError if the model cannot be loaded or the device is not there, or for TF32 on the CPU.
    """

    def __init__(
        self,
        payload: bytes,
        *,
        device: str = "cpu",
        threads: int | None = None,
        streams: int | None = None,
        max_batch: int = MAX_BATCH,
        fused: bool = True,
        tf32: bool = False,
        driver: Driver | None = None,
    ) -> None:
        ort = import_onnxruntime()
        if device not in PROVIDERS:
            raise EngineError(f"ONNX Runtime knows no device {device!r}; use cpu or cuda.")
        if tf32 and device == "cpu":
            raise EngineError("ONNX Runtime on a CPU has no TF32 and would compute FP32; use device cuda, or no tf32.")
        if PROVIDERS[device] not in ort.get_available_providers():
            raise EngineError(
                f"this ONNX Runtime has no {PROVIDERS[device]}; run `pip uninstall -y onnxruntime`, then "
                f"`{install_line('gpu')}`."
            )
        if device == "cpu":
            each = max(1, (threads or available_threads()) // (streams or 1))
            self._session = _session(ort, payload, device, each, fused=fused)
            self.concurrency = streams or 1
            return
        ort.preload_dlls()  # CUDA and cuDNN out of NVIDIA's packages, which nothing else would find

        def lane(stream: int) -> OnnxRuntimeLane:
            # ONNX Runtime itself allows TF32; here FP32 means FP32.
            options = {"device_id": "0", "user_compute_stream": str(stream), "use_tf32": str(int(tf32))}
            return OnnxRuntimeLane(ort, _session(ort, payload, device, threads, options), device)

        self.streams = Streams(driver or CudaDriver(), lane, _layout(payload, max_batch), lanes=streams or LANES)
        self.concurrency = self.streams.capacity

    def run(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        if self.streams:
            return self.streams.run(images)
        return self._session.run([DESCRIPTORS], {IMAGES: images})[0]

    def run_into(self, images: NDArray[np.uint8], descriptors: NDArray[np.float32]) -> None:
        if self.streams:
            descriptors[...] = self.streams.run(images)
            return
        images = np.ascontiguousarray(images)  # bound by address
        binding = self._session.io_binding()
        binding.bind_input(IMAGES, "cpu", 0, np.uint8, images.shape, images.ctypes.data)
        binding.bind_output(DESCRIPTORS, "cpu", 0, np.float32, descriptors.shape, descriptors.ctypes.data)
        self._session.run_with_iobinding(binding)

    def close(self) -> None:
        if self.streams:
            self.streams.close()
        self._session = None


class OnnxRuntimeLane:
    """A session that reads and writes device memory on the stream it was made for, and does not wait for it.

    Not for CUDA graphs: a session may allocate and synchronise inside a run.
    """

    capturable = False

    def __init__(self, ort: Any, session: Any, device: str) -> None:
        self._session = session
        self._device = device
        self._options = ort.RunOptions()
        self._options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        self._image_shape = session.get_inputs()[0].shape[1:]
        self._dim = session.get_outputs()[0].shape[1]

    def __call__(self, stream: int, batch: int, images: int, descriptors: int) -> bool:
        binding = self._session.io_binding()
        binding.bind_input(IMAGES, self._device, 0, np.uint8, (batch, *self._image_shape), images)
        binding.bind_output(DESCRIPTORS, self._device, 0, np.float32, (batch, self._dim), descriptors)
        try:
            self._session.run_with_iobinding(binding, self._options)
        except Exception as error:  # ONNX Runtime raises a dozen unrelated types
            _check_memory(error, f"a batch of {batch}")
            raise EngineError(
                f"ONNX Runtime refuses a batch of {batch} ({_reason(error)}); use smaller ones."
            ) from error
        return True

    def close(self) -> None:
        self._session = None


def _session(
    ort: Any,
    payload: bytes,
    device: str,
    threads: int | None,
    options: Mapping[str, str] | None = None,
    fused: bool = True,
) -> Any:
    settings = ort.SessionOptions()
    if not fused:
        settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    settings.intra_op_num_threads = threads or available_threads()
    settings.log_severity_level = ERROR_ONLY
    if device != "cpu":
        settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    try:
        session = ort.InferenceSession(payload, settings, providers=[(PROVIDERS[device], dict(options or {}))])
    except Exception as error:  # ONNX Runtime raises a dozen unrelated types
        if device == "cuda":
            _check_memory(error, "the model")
        if CPU_NODES in str(error):
            raise EngineError(
                "ONNX Runtime would compute a part of this model on the CPU, and the engine was to run on CUDA alone; "
                "build an engine with `cgd-deploy build-engine --backend tensorrt`, or load this one with device cpu."
            ) from error
        raise EngineError(f"ONNX Runtime cannot load the model ({_reason(error)}); build the engine again.") from error
    if session.get_providers()[0] != PROVIDERS[device]:
        raise EngineError(f"ONNX Runtime fell back from {device} to the CPU; check the CUDA driver and libraries.")
    return session


def _layout(payload: bytes, max_batch: int) -> Layout:
    """Shapes of the model, read from the file: a session exists only after its lane, and a lane needs the shapes."""
    import onnx

    graph = onnx.load_model_from_string(payload).graph
    (_, *image_shape), (_, dim) = (
        [size.dim_value for size in tensor.type.tensor_type.shape.dim] for tensor in (graph.input[0], graph.output[0])
    )
    return Layout(buckets=bucket_sizes(1, max_batch), image_shape=tuple(image_shape), dim=dim)


def _check_memory(error: Exception, what: str) -> None:
    """Raise OutOfDeviceMemory if ``error`` says that the GPU lacks the memory for ``what``."""
    if any(text in str(error) for text in NO_MEMORY):
        raise OutOfDeviceMemory(
            f"the GPU has not the memory for {what} on ONNX Runtime ({_reason(error)}); {LESS_MEMORY}."
        ) from error


def _reason(error: Exception) -> str:
    return str(error).splitlines()[0][:200]
