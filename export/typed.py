"""FP32 graph -> a graph whose tensor types say the precision, in the form that a backend runs fast.

Writes nothing to disk but the state of an unfinished distillation.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

import onnx

from cgd_deploy.errors import ExportError, InputError, not_installed
from cgd_deploy.hardware.cpu import has_fast_bf16, has_fast_int8
from cgd_deploy.pictures.images import ImageList
from cgd_deploy.runtime.backends import BACKENDS
from cgd_deploy.runtime.backends.tensorrt import MODULES
from cgd_deploy.spec import Precision

from .build_options import Int8Options
from .fp16 import halved
from .int8.calibrate import Ranges
from .int8.quantize import Layout, Rounding, quantized
from .int8.recipe import Int8Models, Recipe
from .progress import Progress

MakeGraph = Callable[[Recipe, Collection[str]], onnx.ModelProto]
"""(recipe for INT8, names of nodes to keep float) -> the typed graph."""

LAYOUTS = {
    "onnxruntime": Layout.UINT8,
    "openvino": Layout.MIXED,
    "tensorrt": Layout.SYMMETRIC,
    "tensorrt-rtx": Layout.SYMMETRIC,
}


def check_precision(backend: str, precision: Precision) -> None:
    """Raise ExportError for a precision that the backend or this CPU lacks, or computes more slowly than FP32."""
    if precision is Precision.BF16:
        check_bf16(backend, "--bf16")
    if precision is Precision.FP16 and backend not in MODULES:
        raise ExportError(
            f"{backend} computes FP16 slower than FP32 on a CPU; use --int8 or --fp32, or --backend tensorrt-rtx."
        )
    if precision is Precision.TF32 and "cuda" not in BACKENDS[backend]:
        able = [name for name in LAYOUTS if "cuda" in BACKENDS[name]]
        raise ExportError(
            f"{backend} runs on CPUs, which have no TF32; use --fp32, or for an NVIDIA GPU --backend "
            f"{', '.join(able[:-1])} or {able[-1]}."
        )


def precisions_here(backend: str) -> list[Precision]:
    """The precisions in which ``backend`` makes engines for this machine, the fastest first."""
    if backend in MODULES:
        return [Precision.INT8, Precision.FP16, Precision.TF32, Precision.FP32]
    floats = [Precision.BF16] if backend == "openvino" and has_fast_bf16() else []
    floats.append(Precision.FP32)
    return [Precision.INT8, *floats] if has_fast_int8() else [*floats, Precision.INT8]


def check_bf16(backend: str, option: str) -> None:
    """Raise ExportError unless ``backend`` computes BF16 on this CPU; ``option`` of build-engine asked for BF16."""
    if backend != "openvino":
        raise ExportError(f"{backend} has no BF16; leave {option} out, or for a CPU with BF16 pass --backend openvino.")
    if not has_fast_bf16():
        raise ExportError(
            f"this CPU has neither AVX512-BF16 nor AMX-BF16, and would compute BF16 slower than FP32; leave {option} "
            "out, or build on a CPU that has one of them."
        )


def check_float_precision(backend: str, asked: Precision | None) -> None:
    """Raise ExportError unless INT8 engines of ``backend`` can leave something in float as ``asked``."""
    if asked and backend in MODULES:
        raise ExportError(f"{backend} leaves FP16 where INT8 engines have floats; leave --int8-float out.")
    if asked is Precision.BF16:
        check_bf16(backend, "--int8-float bf16")


def float_graph(model: onnx.ModelProto, precision: Precision) -> MakeGraph:
    """Make the graph for FP16, BF16, TF32 or FP32; recipe and nodes to keep float change nothing."""
    typed = halved(model) if precision is Precision.FP16 else model
    return lambda recipe, keep_float: typed


def int8_graph(
    model: onnx.ModelProto,
    backend: str,
    calibration: ImageList | None,
    int8: Int8Options,
    state: Path,
    progress: Progress,
) -> MakeGraph:
    """Make INT8 graphs of the FP32 ``model``.

    state   file from which an interrupted distillation goes on

    With ``int8.distill``, distillation runs here once, from the ranges of the first recipe; later recipes then change
    nothing but the range of the weights.
    Raises InputError without calibration pictures, MissingDependency if distillation needs torch and it is missing.
    """
    if not calibration:
        raise InputError("INT8 needs pictures to calibrate on; pass --calib FOLDER or LIST.tsv.")
    layout, tuned = LAYOUTS[backend], None
    models = Int8Models(model, layout, calibration, progress.on_pictures)
    if int8.distill:
        first = int8.first_recipe(backend)
        rounding = Rounding(layout, int8.keep_float, first.weight_range)
        tuned = _distilled(model, models.ranges(first), int8.distill, rounding, int8.distill_steps, state, progress)

    def typed(recipe: Recipe, keep_float: Collection[str]) -> onnx.ModelProto:
        if tuned:
            result = quantized(*tuned, layout, keep_float, recipe.weight_range)
        else:
            result = models.make(recipe, keep_float)
        return halved(result) if backend in MODULES else result

    return typed


def _distilled(
    model: onnx.ModelProto,
    ranges: Ranges,
    images: ImageList,
    rounding: Rounding,
    steps: int | None,
    state: Path,
    progress: Progress,
) -> tuple[onnx.ModelProto, Ranges]:
    try:
        from .int8.distill import STEPS, Schedule, distilled
    except ModuleNotFoundError as error:
        raise not_installed(error, "train") from error
    schedule = Schedule(steps=STEPS if steps is None else steps)
    return distilled(model, ranges, images, rounding, schedule=schedule, state=state, on_step=progress.on_step)
