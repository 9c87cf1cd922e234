"""ONNX models on ONNX Runtime's CPU provider, and the parts of ONNX Runtime that its CUDA backend shares."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import EngineError, MissingDependency
from ...hardware.cpu import available_threads
from ...hardware.packages import check_runtime, runtime_lines
from .base import DESCRIPTORS, IMAGES, Backend

ERROR_ONLY = 3


def import_onnxruntime() -> Any:
    """The onnxruntime module, loaded without telemetry; raises MissingDependency without it, or with two wheels of it.

    Newer releases upload events and keep a device id in ~/.cache, unless this variable is set before the import. A
    caller who wants telemetry sets the variable to 0.
    """
    check_runtime()
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise MissingDependency(f"ONNX Runtime is not installed; run {runtime_lines()}.") from error
    return onnxruntime


class OnnxRuntimeBackend(Backend):
    """One ONNX Runtime session on the CPU.

    payload   a serialised ONNX model
    threads   intra-op threads, None: every core that this process may use
    streams   how many threads call ``run`` at the same time; they share ``threads``
    fused     whether ONNX Runtime may fuse nodes; otherwise INT8 layers decode their codes and compute in float

    Raises EngineError if the model cannot be loaded, MissingDependency without ONNX Runtime.
    """

    def __init__(self, payload: bytes, *, threads: int | None = None, streams: int = 1, fused: bool = True) -> None:
        ort = import_onnxruntime()
        options = session_options(ort, max(1, (threads or available_threads()) // streams))
        if not fused:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            self._session = ort.InferenceSession(payload, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime raises a dozen unrelated types
            raise cannot_load(error) from error
        self.concurrency = streams

    def run(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return self._session.run([DESCRIPTORS], {IMAGES: images})[0]

    def run_into(self, images: NDArray[np.uint8], descriptors: NDArray[np.float32]) -> None:
        images = np.ascontiguousarray(images)  # bound by address
        binding = self._session.io_binding()
        binding.bind_input(IMAGES, "cpu", 0, np.uint8, images.shape, images.ctypes.data)
        binding.bind_output(DESCRIPTORS, "cpu", 0, np.float32, descriptors.shape, descriptors.ctypes.data)
        self._session.run_with_iobinding(binding)

    def close(self) -> None:
        self._session = None


def session_options(ort: Any, threads: int | None) -> Any:
    """Options for a session with so many threads, None: every core that this process may use."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or available_threads()
    options.log_severity_level = ERROR_ONLY
    return options


def cannot_load(error: Exception) -> EngineError:
    return EngineError(f"ONNX Runtime cannot load the model ({first_line(error)}); build the engine again.")


def first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:200]
