"""Backends by the name that a manifest gives; each imports its library only when it is made."""

from __future__ import annotations

from collections.abc import Callable

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
