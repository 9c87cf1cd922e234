"""What an engine is optimized for, and which backends know of it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

from cgd_deploy.errors import InputError

RTX = "tensorrt-rtx"
OWNERS = {
    "workspace": ("tensorrt", RTX),
    "optimization_level": ("tensorrt", RTX),
    "timing_cache": ("tensorrt",),
    "hardware_compatible": ("tensorrt",),
    "version_compatible": ("tensorrt",),
    "compute_capabilities": (RTX,),
}
"""The backends that know an option; what is not here all know."""


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """What a plan is optimized for.

    min_batch, opt_batch, max_batch   the smallest batch it takes, the one it is fastest at, the largest
    workspace                         bytes of scratch memory that a layer may take on the GPU
    optimization_level                0, the quickest build, to 5, the longest search
    timing_cache                      file of kernel timings to start from and to add to         (TensorRT)
    hardware_compatible               also runs on every other GPU from Ampere on                 (TensorRT)
    version_compatible                also runs on later releases of the same major version      (TensorRT)
    compute_capabilities              GPUs to build for, such as "8.9"; none: Ampere and later    (TensorRT-RTX)

    Raises InputError that names the field and its value.
    """

    min_batch: int = 1
    opt_batch: int = 8
    max_batch: int = 64
    workspace: int = 2 << 30
    optimization_level: int = 3
    timing_cache: Path | None = None
    hardware_compatible: bool = False
    version_compatible: bool = False
    compute_capabilities: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= self.min_batch <= self.opt_batch <= self.max_batch:
            raise InputError(
                f"batches of {self.min_batch}, {self.opt_batch}, {self.max_batch} cannot be built for; "
                "expected 1 <= smallest <= best <= largest."
            )
        if self.workspace < 1:
            raise InputError(f"workspace={self.workspace} must be a number of bytes above zero.")
        if not 0 <= self.optimization_level <= 5:
            raise InputError(f"optimization_level={self.optimization_level} must lie between 0 and 5.")

    @property
    def profile(self) -> dict[str, int]:
        return {"min": self.min_batch, "opt": self.opt_batch, "max": self.max_batch}

    def check(self, backend: str) -> None:
        """Raise InputError for an option that ``backend`` does not have, rather than leave it out."""
        for option in fields(self):
            owners = OWNERS.get(option.name, (backend,))
            if backend not in owners and getattr(self, option.name) != option.default:
                raise InputError(
                    f"{backend} has no {option.name.replace('_', ' ')}; leave it out, or build with "
                    f"--backend {' or '.join(owners)}."
                )
