"""Serve trained CGD image-retrieval models fast, without losing neighbours. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .errors import (
    CgdError,
    CheckpointError,
    EngineError,
    ExportError,
    GateError,
    InputError,
    MissingDependency,
    Overloaded,
    SpecError,
)
from .images import ImageList, read_images
from .limits import Limits, set_limits
from .spec import ModelSpec, Precision

if TYPE_CHECKING:
    from .engine import Engine, load
    from .scheduler import Batching

__all__ = [
    "Batching",
    "CgdError",
    "CheckpointError",
    "Engine",
    "EngineError",
    "ExportError",
    "GateError",
    "ImageList",
    "InputError",
    "Limits",
    "MissingDependency",
    "ModelSpec",
    "Overloaded",
    "Precision",
    "SpecError",
    "load",
    "read_images",
    "set_limits",
]


def __getattr__(name: str) -> Any:
    """The runtime on first use: it brings NumPy and Pillow, which ``cgd-deploy --help`` does without."""
    if name in ("Batching", "Engine", "load"):
        from . import engine

        return getattr(engine, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
