"""Backends by the name in a manifest and by device. A backend imports its library only when one is made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...spec import Precision
from ..enginefile import Manifest
from .base import Backend
from .fake import FakeBackend
from .onnxruntime import OnnxRuntimeBackend
from .onnxruntime_cuda import OnnxRuntimeCudaBackend
from .openvino import OpenVinoBackend
from .tensorrt import TensorRtBackend, TensorRtRtxBackend

BACKENDS: dict[str, dict[str, Callable[..., Backend]]] = {
    "fake": {"cpu": FakeBackend},
    "onnxruntime": {"cpu": OnnxRuntimeBackend, "cuda": OnnxRuntimeCudaBackend},
    "openvino": {"cpu": OpenVinoBackend},
    "tensorrt": {"cuda": TensorRtBackend},
    "tensorrt-rtx": {"cuda": TensorRtRtxBackend},
}
"""The default device of a backend stands first.

Every class takes the payload, ``threads`` and ``streams``; classes for CUDA also take ``max_batch``.
"""


def default_device(backend: str, precision: Precision) -> str:
    """The device that ``load`` chooses if the caller names none: CUDA for TF32, else the backend's first device."""
    return "cuda" if precision is Precision.TF32 else next(iter(BACKENDS[backend]))


def model_settings(manifest: Manifest, device: str) -> dict[str, Any]:
    """Further arguments of ``BACKENDS[backend][device]``, which describe the model. A TensorRT plan contains them."""
    if manifest.backend == "openvino":
        return {"bf16": manifest.needs_bf16}
    if (manifest.backend, device) != ("onnxruntime", "cuda"):
        return {}
    spec = manifest.spec
    return {"input_size": spec.input_size, "dim": spec.dim, "tf32": manifest.precision is Precision.TF32}
