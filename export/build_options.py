"""The options of a build: what an engine is optimized for, and how INT8 is made of FP32."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from cgd_deploy.errors import InputError
from cgd_deploy.hardware.cpu import has_fast_bf16, has_fast_int8
from cgd_deploy.pictures.images import ImageList
from cgd_deploy.runtime.backends import BACKENDS
from cgd_deploy.runtime.backends.tensorrt import MODULES
from cgd_deploy.spec import Precision

from .int8.budget import Budget, check_disjoint
from .int8.recipe import DEFAULT, Recipe

RTX = "tensorrt-rtx"
OWNERS = {
    "workspace": ("tensorrt", RTX),
    "optimization_level": ("tensorrt", RTX),
    "timing_cache": ("tensorrt",),
    "hardware_compatible": ("tensorrt",),
    "version_compatible": ("tensorrt",),
    "compute_capabilities": (RTX,),
}
"""The backends that have an option; every backend has the options that are not here."""


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """What an engine is optimized for; the options after ``max_batch`` are for TensorRT alone.

    min_batch, max_batch   the smallest and the largest batch that the engine takes
    opt_batch              the batch size at which the engine is fastest
    workspace              bytes of GPU memory that a layer may use for scratch
    optimization_level     0, the quickest build, to 5, the longest search
    timing_cache           file of kernel timings that the build reads and extends                     (TensorRT)
    hardware_compatible    whether the engine also runs on every other GPU from Ampere on              (TensorRT)
    version_compatible     whether it also runs on later releases of the same major version            (TensorRT)
    compute_capabilities   GPUs to build for, such as "8.9"; empty: Ampere and later                   (TensorRT-RTX)

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
                f"batch sizes {self.min_batch}, {self.opt_batch}, {self.max_batch} cannot be used; "
                "expected 1 <= smallest <= fastest <= largest."
            )
        if self.workspace < 1:
            raise InputError(f"workspace={self.workspace} must be a number of bytes above zero.")
        if not 0 <= self.optimization_level <= 5:
            raise InputError(f"optimization_level={self.optimization_level} must lie between 0 and 5.")

    @property
    def profile(self) -> dict[str, int]:
        return {"min": self.min_batch, "opt": self.opt_batch, "max": self.max_batch}

    def check(self, backend: str) -> None:
        """Raise InputError for an option that ``backend`` does not have."""
        for option in fields(self):
            owners = OWNERS.get(option.name, (backend,))
            if backend not in owners and getattr(self, option.name) != option.default:
                raise InputError(
                    f"{backend} has no {option.name.replace('_', ' ')}; leave it out, or build with "
                    f"--backend {' or '.join(owners)}."
                )


@dataclass(frozen=True, kw_only=True)
class Int8Options:
    """How INT8 is made of FP32, and how much it may lose.

    recipe          calibration and corrections; None: the default, or with ``budget`` the recipe that loses least
    reduced_range   7-bit weights, whose sums CPUs without VNNI, AMX or i8mm compute right; None: if this CPU needs them
    keep_float      names of convolutions and residual adds that stay float
    float_precision BF16 or FP32 for all that stays float; None: see ``floats``
    budget          what INT8 may lose; layers return to float until the model holds it, see ``guarded``
    distill         pictures without labels to tune INT8 on, see ``distilled``
    distill_steps   steps of that tuning, None for 120
    retrieval       what this model retrieves, if a frontier measured it before, see ``retrieval_facts``

    Raises InputError for distillation by a recipe that moves weights or biases itself.
    """

    recipe: Recipe | None = None
    reduced_range: bool | None = None
    keep_float: Collection[str] = ()
    float_precision: Precision | None = None
    budget: Budget | None = None
    distill: ImageList | None = None
    distill_steps: int | None = None
    retrieval: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.distill and self.recipe and (self.recipe.equalized or self.recipe.bias_corrected):
            raise InputError(
                f"distillation moves weights and biases itself and {self.recipe} was asked; pass --calibration "
                f"{self.recipe.calibration.value}, or no --distill."
            )

    @property
    def searches_recipes(self) -> bool:
        return self.recipe is None and not self.distill

    def first_recipe(self, backend: str) -> Recipe:
        """The recipe of plain INT8; unless ``reduced_range`` is set, its weights have the range that this CPU needs."""
        recipe = self.recipe or (Recipe() if self.distill else DEFAULT)
        if self.reduced_range is not None:
            return replace(recipe, reduced_range=self.reduced_range)
        needed = "cpu" in BACKENDS[backend] and not has_fast_int8()
        return replace(recipe, reduced_range=recipe.reduced_range or needed)

    def floats(self, backend: str, keep_float: Collection[str]) -> Precision:
        """Arithmetic of all that stays float, if these nodes do: FP16 in a plan for a GPU, else FP32 or BF16.

        Without ``float_precision``, it is BF16 if a node stays float, and the backend and this CPU are fast in BF16.
        Otherwise it is FP32: without a float node, BF16 is no faster.
        """
        if backend in MODULES:
            return Precision.FP16
        fast = bool(keep_float) and backend == "openvino" and has_fast_bf16()
        return self.float_precision or (Precision.BF16 if fast else Precision.FP32)

    def check(self, precision: Precision, calibration: ImageList | None) -> None:
        """Raise InputError if these options are not for ``precision``, or pictures are among the test pictures."""
        if precision is not Precision.INT8:
            self._check_unused(precision)
        elif self.budget:
            for purpose, images in (("calibration", calibration), ("distillation", self.distill)):
                if images:
                    check_disjoint(images, self.budget.evaluation.images, purpose)

    def _check_unused(self, precision: Precision) -> None:
        for given, told, option in (
            (self.budget, "limits guard INT8", "--data"),
            (self.recipe, f"{self.recipe} calibrates INT8", "--calibration"),
            (self.distill, "distillation tunes INT8", "--distill"),
            (self.reduced_range, "a reduced range is for INT8 weights", "--reduced-range"),
            (self.float_precision, "INT8 engines alone leave something in float", "--int8-float"),
        ):
            if given:
                raise InputError(f"{told}, and {precision.value} was asked; pass --int8, or no {option}.")
