"""Serve trained CGD image-retrieval models fast, without losing neighbours. Imports no torch."""

from __future__ import annotations

from .engine import Engine, load
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
