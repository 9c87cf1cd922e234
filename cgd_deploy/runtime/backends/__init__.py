"""Backends by the name that a manifest gives; each imports its library only when it is made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...spec import Precision
from .base import Backend
from .fake import FakeBackend
from .onnxruntime import OnnxRuntimeBackend
from .openvino import OpenVinoBackend
from .tensorrt import TensorRtBackend, TensorRtRtxBackend

BACKENDS: dict[str, Callable[..., Backend]] = {
    "fake": FakeBackend,
    "onnxruntime": OnnxRuntimeBackend,
    "openvino": OpenVinoBackend,
    "tensorrt": TensorRtBackend,
    "tensorrt-rtx": TensorRtRtxBackend,
}

DEVICES: dict[str, tuple[str, ...]] = {
    "fake": ("cpu",),
    "onnxruntime": ("cpu", "cuda"),
    "openvino": ("cpu",),
    "tensorrt": ("cuda",),
    "tensorrt-rtx": ("cuda",),
}
"""Where each backend runs, its default first."""


def default_device(backend: str, precision: Precision) -> str:
    """The device that an engine runs on unless ``load`` is told another: the backend's first, but CUDA for TF32."""
    return "cuda" if precision is Precision.TF32 else DEVICES[backend][0]


def precision_settings(backend: str, precision: Precision) -> dict[str, Any]:
    """Arguments of ``BACKENDS[backend]`` that follow from the precision. A TensorRT plan contains its own."""
    return {"tf32": True} if backend == "onnxruntime" and precision is Precision.TF32 else {}
