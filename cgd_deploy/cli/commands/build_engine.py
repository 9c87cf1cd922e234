"""``cgd-deploy build-engine``."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...errors import GateError, InputError
from ...spec import Precision
from ..options import Autotune, Json, Strict
from .export import MODEL

if TYPE_CHECKING:
    from cgd_export.build_options import BuildOptions, Int8Options
    from cgd_export.int8.budget import Budget, Trial
    from cgd_export.int8.recipe import Recipe
    from cgd_export.progress import Progress

    from ...datasets.left_out import LeftOut
    from ...pictures.images import ImageList
    from ...runtime.enginefile import Manifest

TOLD = ("backend", "precision", "float_precision", "parity", "proof", "retrieval", "tuning")
"""The fields of the manifest that --json prints."""

BuildOption = partial(typer.Option, rich_help_panel="What to build")
Int8Option = partial(typer.Option, rich_help_panel="INT8")
LimitOption = partial(typer.Option, rich_help_panel="Limits of INT8")
FrontierOption = partial(typer.Option, rich_help_panel="Choice by measurement")
BatchOption = partial(typer.Option, rich_help_panel="Batches")
TensorRtOption = partial(typer.Option, rich_help_panel="TensorRT and TensorRT-RTX")


class FloatPrecision(str, Enum):
    """The values of --int8-float."""

    BF16 = "bf16"
    FP32 = "fp32"


@dataclass(frozen=True, kw_only=True)
class BuildEngineOptions:
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="FP32 model of cgd-deploy export.")] = MODEL

    int8: Annotated[bool, BuildOption("--int8", help="INT8 backbone, FP32 head.")] = False
    bf16: Annotated[bool, BuildOption("--bf16", help="BF16 throughout. For CPUs with AVX512-BF16 or AMX.")] = False
    fp16: Annotated[bool, BuildOption("--fp16", help="FP16 backbone, FP32 head. For GPUs.")] = False
    tf32: Annotated[bool, BuildOption("--tf32", help="FP32, but the GPU may multiply in TF32.")] = False
    fp32: Annotated[bool, BuildOption("--fp32", help="FP32 throughout.")] = False
    backend: Annotated[
        str,
        BuildOption(
            metavar="NAME",
            help="onnxruntime, openvino, tensorrt or tensorrt-rtx. auto takes the fastest on this machine.",
        ),
    ] = "auto"

    calib: Annotated[
        Path | None,
        Int8Option(
            metavar="PICTURES",
            help="Pictures that calibrate INT8. BF16, FP16 and TF32 are compared with FP32 on them.",
            show_default="the checkpoint's, for INT8",
        ),
    ] = None
    calibration: Annotated[
        str,
        Int8Option(
            metavar="RECIPE",
            help="Calibration range of each tensor: mean (of each picture's largest value), min-max, percentile, "
            "entropy or mse. Append '+ equalized', '+ bias corrected' or both. auto is mean + bias corrected; if it "
            "misses a limit, auto takes the recipe that keeps most neighbours.",
        ),
    ] = "auto"
    reduced_range: Annotated[
        bool | None,
        Int8Option(
            "--reduced-range/--full-range",
            help="INT8 weights of 7 or 8 bits. CPUs without VNNI, AMX or i8mm need 7: their sums saturate with 8.",
            show_default="what this CPU needs",
        ),
    ] = None
    int8_float: Annotated[
        FloatPrecision | None,
        Int8Option(
            metavar="bf16|fp32",
            help="Arithmetic of the layers that stay in float.",
            show_default="bf16 where it is fast and layers stay in float, else fp32; fp16 on GPUs",
        ),
    ] = None
    distill: Annotated[
        Path | None,
        Int8Option(
            metavar="PICTURES", help="Train INT8 on these pictures to give FP32's descriptors. Needs no labels."
        ),
    ] = None
    distill_steps: Annotated[
        int | None,
        Int8Option(
            min=1, metavar="N", help="Batches of 16 pictures for --distill.", show_default="120, minutes on a CPU"
        ),
    ] = None

    data: Annotated[
        Path | None,
        LimitOption(metavar="PICTURES", help="Test pictures to hold the limits on: a data set's folder or LIST.tsv."),
    ] = None
    max_recall_drop: Annotated[
        float | None,
        LimitOption(
            metavar="POINTS",
            help="Percentage points of recall@1 that INT8 may lose. Layers return to float until the limit holds.",
        ),
    ] = None
    min_overlap: Annotated[
        float | None,
        LimitOption(
            metavar="SHARE",
            help="Overlap@10 with FP32 that INT8 must keep, from 0 to 1. Layers return to float until the limit "
            "holds. The pictures need no classes.",
        ),
    ] = None

    confident: Annotated[
        bool,
        LimitOption("--confident", help="Limits hold at the worse end of the 95 % interval, not only for the mean."),
    ] = False

    frontier: Annotated[
        bool,
        FrontierOption(
            "--frontier",
            help="Build nothing: measure FP32, BF16 if it is fast here, INT8, INT8 with some layers in float, and "
            "with --distill distilled INT8, on --data. Writes MODEL.frontier.json and .html.",
        ),
    ] = False
    pick: Annotated[
        str | None,
        FrontierOption(metavar="NAME", help="Build the engine of this row of MODEL.frontier.json."),
    ] = None

    min_batch: Annotated[int, BatchOption(metavar="N", help="Smallest batch.")] = 1
    opt_batch: Annotated[int, BatchOption(metavar="N", help="Batch to optimize for.")] = 8
    max_batch: Annotated[int, BatchOption(metavar="N", help="Largest batch.")] = 64

    compute_capability: Annotated[
        list[str] | None,
        TensorRtOption(
            metavar="X.Y", help="GPU to build for ahead of time, such as 8.9; may be repeated. TensorRT-RTX only."
        ),
    ] = None
    workspace_mib: Annotated[int, TensorRtOption(metavar="MIB", help="Scratch memory on the GPU, in MiB.")] = 2048
    optimization_level: Annotated[
        int, TensorRtOption(metavar="0-5", help="Higher levels search longer for fast kernels.")
    ] = 3
    timing_cache: Annotated[
        Path | None, TensorRtOption(metavar="FILE", help="Kernel timings to reuse and extend. TensorRT only.")
    ] = None
    hardware_compatible: Annotated[
        bool, TensorRtOption("--hardware-compatible", help="Run on every GPU from Ampere on. TensorRT only.")
    ] = False
    version_compatible: Annotated[
        bool, TensorRtOption("--version-compatible", help="Run on later releases of this major version. TensorRT only.")
    ] = False

    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", metavar="FILE", help="Engine to write.", show_default="MODEL-PRECISION.cgd"),
    ] = None
    autotune: Autotune = False
    strict: Strict = False
    as_json: Json = False

    @property
    def precision(self) -> Precision:
        """The one precision that was chosen. Raises InputError for none or several."""
        chosen = [precision for precision in Precision if getattr(self, precision.value)]
        if len(chosen) != 1:
            raise InputError("build-engine needs exactly one of --int8, --bf16, --fp16, --tf32 and --fp32.")
        return chosen[0]

    @property
    def frontier_file(self) -> Path:
        """The file of --frontier."""
        return self.model.with_suffix(".frontier.json")

    @property
    def engine(self) -> Path:
        """The file to write."""
        return self.out or self.model.with_name(f"{self.model.stem}-{self.precision.value}.cgd")


@dataclass(frozen=True, kw_only=True)
class Job:
    """What the options name, parsed and read.

    recipe                      how to quantize; None if the build chooses
    settings                    batch sizes and options of TensorRT
    budget                      the limits of INT8 and their test pictures
    calibration, distillation   pictures that can be decoded
    left_out                    pictures that cannot be decoded
    """

    backend: str
    recipe: Recipe | None
    settings: BuildOptions
    budget: Budget | None
    calibration: ImageList | None
    distillation: ImageList | None
    left_out: list[LeftOut]


def build_engine(options: BuildEngineOptions) -> None:
    """Build an engine from an ONNX model and prove its precision.

    Choose one of --int8, --bf16, --fp16, --tf32 and --fp32. Or measure them with --frontier, then --pick one.
    """
    from ...hardware.packages import check_runtime
    from ..choice import explain_precisions, picked

    if options.frontier:
        _frontier(options)
        return
    if options.pick:
        options = picked(options)
    if not any(getattr(options, precision.value) for precision in Precision):
        explain_precisions(options.backend)
    engine = options.engine
    check_runtime()
    from ...runtime.provenance import changes, contents
    from ..results import build_summary
    from ..terminal import print_result, warn

    job = _read_job(options)
    before = contents(engine)
    manifest, trials = _build(options, job)
    if options.autotune:
        manifest = _tune(engine)
    else:
        _warn_if_untuned(engine)
    for change in changes(before):
        warn(change)
    facts = manifest.to_dict()
    told = {name: facts[name] for name in TOLD}
    told["trials"] = [trial.to_dict() for trial in trials]
    told["left_out"] = [picture._asdict() for picture in job.left_out]
    print_result({"path": str(engine), **told}, build_summary(engine, manifest), options.as_json)


def _frontier(options: BuildEngineOptions) -> None:
    """Measure, write and print the frontier."""
    from cgd_export.frontier import frontier

    from ...files import write_text
    from ...hardware.packages import check_runtime
    from ...quality.frontier import write_frontier_page
    from ..results import frontier_table
    from ..terminal import output, warn_of_load

    if options.pick or options.max_recall_drop is not None or options.min_overlap is not None or options.confident:
        raise InputError("--frontier measures without limits; leave --pick and the limits out.")
    if options.precision is not Precision.INT8 or options.data is None:
        raise InputError("--frontier compares INT8 engines on test pictures; pass --int8 and --data PICTURES.")
    check_runtime()
    job = _read_job(replace(options, min_overlap=0.0))
    assert job.calibration  # for --int8
    with _progress(job, []) as progress:
        result = frontier(options.model, job.backend, job.calibration, _int8_options(options, job), progress)
    write_text(options.frontier_file, json.dumps(result, indent=1))
    page = write_frontier_page(options.frontier_file.with_suffix(".html"), result)
    warn_of_load(result["load"])
    if options.as_json:
        print(json.dumps(result))
        return
    output.print(frontier_table(result["rows"]))
    output.print(f"{page}: the rows as a picture; build-engine --pick NAME builds a row.", soft_wrap=True)


def _read_job(options: BuildEngineOptions) -> Job:
    """Check the options, then read the pictures and leave out the bad ones."""
    from cgd_export.engine_from_onnx import calibration_list
    from cgd_export.int8.budget import read_budget
    from cgd_export.int8.recipe import Recipe

    from ...datasets.layouts import read_training
    from ..terminal import good_pictures, warn_all

    backend = _backend(options)
    recipe = None if options.calibration == "auto" else Recipe.parse(options.calibration)
    budget = read_budget(options.data, options.max_recall_drop, options.min_overlap, options.confident)
    settings = _settings(options)
    calibration = calibration_list(options.model, options.calib) if options.int8 or options.calib else None
    distillation = read_training(options.distill) if options.distill else None
    tested = budget.evaluation.images if budget else None
    warn_all(note for images in (calibration, tested, distillation) if images for note in images.notes)
    left_out: list[LeftOut] = []
    good = partial(good_pictures, strict=options.strict, left_out=left_out)
    return Job(
        backend=backend,
        recipe=recipe,
        settings=settings,
        calibration=good(calibration) if calibration else None,
        distillation=good(distillation) if distillation else None,
        budget=replace(budget, evaluation=good(budget.evaluation)) if budget else None,
        left_out=left_out,
    )


def _backend(options: BuildEngineOptions) -> str:
    """Choose the backend, check that --autotune can measure it, and warn if this CPU is slow with INT8."""
    from cgd_export.engine_from_onnx import choose_backend

    from ...hardware.cpu import SLOW_INT8, has_fast_int8
    from ...runtime.autotune import check_tunable
    from ...runtime.backends import BACKENDS
    from ..terminal import warn

    backend = choose_backend(options.backend)
    if options.autotune:
        check_tunable(backend, options.precision)
    if options.int8 and "cpu" in BACKENDS[backend] and not has_fast_int8():
        warn(SLOW_INT8)
    return backend


def _settings(options: BuildEngineOptions) -> BuildOptions:
    from cgd_export.build_options import BuildOptions

    return BuildOptions(
        min_batch=options.min_batch,
        opt_batch=options.opt_batch,
        max_batch=options.max_batch,
        workspace=options.workspace_mib << 20,
        optimization_level=options.optimization_level,
        timing_cache=options.timing_cache,
        hardware_compatible=options.hardware_compatible,
        version_compatible=options.version_compatible,
        compute_capabilities=tuple(options.compute_capability or ()),
    )


def _int8_options(options: BuildEngineOptions, job: Job) -> Int8Options:
    from cgd_export.build_options import Int8Options

    return Int8Options(
        recipe=job.recipe,
        reduced_range=options.reduced_range,
        float_precision=Precision(options.int8_float.value) if options.int8_float else None,
        budget=job.budget,
        distill=job.distillation,
        distill_steps=options.distill_steps,
    )


@contextmanager
def _progress(job: Job, trials: list[Trial]) -> Iterator[Progress]:
    """Progress bars; appends every trial to ``trials``."""
    from cgd_export.progress import Progress

    from ..terminal import phases

    with phases() as on_progress:
        yield Progress(
            on_step=lambda phase, step, steps: on_progress(phase[:40], step / max(steps, 1)),
            on_pictures=_passes(len(job.calibration or [0]), partial(on_progress, "Calibrating")),
            on_trial=trials.append,
        )


def _build(options: BuildEngineOptions, job: Job) -> tuple[Manifest, list[Trial]]:
    """Build the engine with progress bars. If no model holds the limits, print what was tried."""
    from cgd_export.engine_from_onnx import engine_from_onnx
    from cgd_export.frontier import build_row

    from ..choice import measured
    from ..results import trial_table
    from ..terminal import errors

    trials: list[Trial] = []
    precision, int8 = options.precision, _int8_options(options, job)
    if options.pick:
        precision, int8 = build_row(measured(options.frontier_file), options.pick, options.model, job.calibration, int8)
    try:
        with _progress(job, trials) as progress:
            manifest = engine_from_onnx(
                options.model,
                options.engine,
                precision,
                backend=job.backend,
                calibration=job.calibration,
                int8=int8,
                options=job.settings,
                progress=progress,
            )
    except GateError:
        if trials:
            errors.print(trial_table([trial.to_dict() for trial in trials]), soft_wrap=False)
        raise
    return manifest, trials


def _passes(total: int, on_fraction: Callable[[float], None]) -> Callable[[int], None]:
    """Count items in passes over ``total`` items, and report the fraction of the current pass that is done."""
    done = 0

    def on_items(count: int) -> None:
        nonlocal done
        done = done % total + count
        on_fraction(done / total)

    return on_items


def _tune(engine: Path) -> Manifest:
    from ...runtime.autotune import autotune
    from ..terminal import phases

    with phases() as on_progress:
        return autotune(engine, on_progress=on_progress)


def _warn_if_untuned(engine: Path) -> None:
    from ...runtime.enginefile import read_engine
    from ..terminal import warn

    if untuned := read_engine(engine).untuned:
        warn(untuned)
