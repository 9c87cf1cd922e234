"""Facts about the GPU that engines run on."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path

from ...errors import EngineError, MissingDependency
from .driver import find_device

DRIVER_VERSION = Path("/proc/driver/nvidia/version")


def gpu_facts() -> dict[str, str] | str:
    """Name, compute capability, CUDA version and driver of the first GPU, or why there is none."""
    try:
        device = find_device()
    except (EngineError, MissingDependency) as error:
        return "none: " + str(error).partition(";")[0]
    return {**asdict(device), "driver": _driver_version()}


def _driver_version() -> str:
    """The version of NVIDIA's kernel driver, for example 580.159.03."""
    try:
        found = re.search(r"\b\d{3}\.[\d.]+", DRIVER_VERSION.read_text())
    except OSError:
        found = None
    return found[0] if found else "unknown"
