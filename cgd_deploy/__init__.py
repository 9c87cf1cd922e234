"""Serve trained CGD image-retrieval models fast, without losing neighbours.

Example:

    from cgd_deploy import load, read_images

    with load("model-int8.cgd") as engine:
        descriptors = engine.embed(read_images("pictures").paths)  # float32 [N, D], unit norm

The package does not import torch. Modules that need NumPy are imported when a name of theirs is used.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

from .errors import (
    CgdError,
    CheckpointError,
    DeadlineExceeded,
    EngineError,
    ExportError,
    GateError,
    InputError,
    MissingDependency,
    Overloaded,
    SpecError,
)
from .limits import Limits, set_limits
from .pictures.images import ImageList, read_images
from .spec import ModelSpec, Precision

if TYPE_CHECKING:
    from .runtime.engine import Engine, load
    from .runtime.scheduler import Batching
    from .runtime.statistics import Stats
    from .search.index import Index, read_index

__all__ = [
    "Batching",
    "CgdError",
    "CheckpointError",
    "DeadlineExceeded",
    "Engine",
    "EngineError",
    "ExportError",
    "GateError",
    "ImageList",
    "Index",
    "InputError",
    "Limits",
    "MissingDependency",
    "ModelSpec",
    "Overloaded",
    "Precision",
    "SpecError",
    "Stats",
    "load",
    "read_images",
    "read_index",
    "set_limits",
]

_IMPORTED_ON_USE = {
    "Batching": "runtime.scheduler",
    "Engine": "runtime.engine",
    "Index": "search.index",
    "Stats": "runtime.statistics",
    "load": "runtime.engine",
    "read_index": "search.index",
}
"""Module of each name that needs NumPy. ``cgd-deploy --help`` is faster without it."""

logging.getLogger(__name__).addHandler(logging.NullHandler())


def __getattr__(name: str) -> Any:
    if name not in _IMPORTED_ON_USE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_IMPORTED_ON_USE[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
