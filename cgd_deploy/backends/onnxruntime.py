"""ONNX models on ONNX Runtime: CPU, or CUDA when asked, never one for the other."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..doctor import check_runtime
from ..errors import EngineError, MissingDependency
from ..hardware import available_threads
from .base import Backend

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
ERROR_ONLY = 3


def import_onnxruntime() -> Any:
    """The onnxruntime module; raises MissingDependency without it, or with two wheels of it."""
    check_runtime()
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise MissingDependency(
            "ONNX Runtime is not installed; run `pip install 'cgd-deploy[cpu]'`, or 'cgd-deploy[gpu]' for NVIDIA."
        ) from error
    return onnxruntime


class OnnxRuntimeBackend(Backend):
    """One ONNX Runtime session.

    payload   a serialised ONNX model
    device    "cpu" or "cuda"
    threads   intra-op threads, by default every core this process may use

    Raises EngineError if the model cannot be loaded or the device is not there.
    """

    def __init__(self, payload: bytes, *, device: str = "cpu", threads: int | None = None) -> None:
        ort = import_onnxruntime()
        if device not in PROVIDERS:
            raise EngineError(f"ONNX Runtime knows no device {device!r}; use cpu or cuda.")
        if PROVIDERS[device] not in ort.get_available_providers():
            raise EngineError(
                f"this ONNX Runtime has no {PROVIDERS[device]}; run `pip install 'cgd-deploy[gpu]'` instead of [cpu]."
            )
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads or available_threads()
        options.log_severity_level = ERROR_ONLY
        try:
            self._session = ort.InferenceSession(payload, options, providers=[PROVIDERS[device]])
        except Exception as error:  # ONNX Runtime raises a dozen unrelated types
            reason = str(error).splitlines()[0][:200]
            raise EngineError(f"ONNX Runtime cannot load the model ({reason}); build the engine again.") from error
        if self._session.get_providers()[0] != PROVIDERS[device]:
            raise EngineError(f"ONNX Runtime fell back from {device} to the CPU; check the CUDA driver and libraries.")

    def run(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        outputs: list[NDArray[np.float32]] = self._session.run(None, {"images": images})
        return outputs[0]

    def close(self) -> None:
        self._session = None
