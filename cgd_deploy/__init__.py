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
    SpecError,
)
from .images import ImageList, read_images
from .spec import ModelSpec, Precision

if TYPE_CHECKING:
    from .engine import Engine, load

__all__ = [
    "CgdError",
    "CheckpointError",
    "Engine",
    "EngineError",
    "ExportError",
    "GateError",
    "ImageList",
    "InputError",
    "MissingDependency",
    "ModelSpec",
    "Precision",
    "SpecError",
    "load",
    "read_images",
]


def __getattr__(name: str) -> Any:
    """``Engine`` and ``load`` on first use: they bring NumPy and Pillow, which ``cgd-deploy --help`` does without."""
    if name in ("Engine", "load"):
        from . import engine

        return getattr(engine, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
