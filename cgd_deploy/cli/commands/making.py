"""Commands that make something: checkpoints, ONNX files, engines, and the demo that makes all of them."""

from __future__ import annotations

import os
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...errors import GateError, InputError, not_installed
from .options import (
    ARTIFACTS,
    MEAN,
    STD,
    Autotune,
    Backbone,
    Crop,
    Descriptors,
    Dim,
    Filter,
    GemP,
    Json,
    Mean,
    ModelOption,
    NoDownsample,
    Resize,
    Size,
    Std,
    Strict,
    Threads,
    good_pictures,
    input_of,
    tell,
)

if TYPE_CHECKING:
    from ...datasets.left_out import LeftOut

MODEL = ARTIFACTS / "model.onnx"

LossOption = partial(typer.Option, rich_help_panel="Losses")
OptimizationOption = partial(typer.Option, rich_help_panel="Optimization")
Int8Option = partial(typer.Option, rich_help_panel="Options for --int8")
TensorRtOption = partial(typer.Option, rich_help_panel="Options for TensorRT and TensorRT-RTX")


def demo(
    out: Annotated[
        Path, typer.Option("-o", "--out", metavar="FOLDER", help="Folder for every file that the demo writes.")
    ] = ARTIFACTS / "demo",
    seed: Annotated[int, typer.Option(metavar="N", help="Random seed of the pictures and the training.")] = 0,
) -> None:
    """Run the whole pipeline on made pictures, with a report."""
    _share_cores()
    from ...demo.run import run_demo

    run_demo(out, seed)


def train(
    data: Annotated[
        Path,
        typer.Option(
            metavar="PICTURES",
            help="Folder of a data set (CUB, CARS, SOP, In-shop, or one folder per class), or a LIST.tsv.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", metavar="FOLDER", help="Run folder.", show_default="runs/BACKBONE-DESCRIPTORS"),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Start from these weights of the backbone: any file that import reads."),
    ] = None,
    backbone: Backbone = "resnet50",
    descriptors: Descriptors = "SG",
    dim: Dim = 1536,
    size: Size = None,
    resize: Resize = None,
    crop: Crop = None,
    filter: Filter = "bilinear",
    mean: Mean = MEAN,
    std: Std = STD,
    no_downsample: NoDownsample = "layer4",
    gem_p: GemP = 3.0,
    learn_p: Annotated[bool, ModelOption("--learn-p", help="Train the exponent of GeM.")] = False,
    no_boxes: Annotated[
        bool, typer.Option("--no-boxes", help="Train on whole pictures, even if the data set has boxes.")
    ] = False,
    epochs: Annotated[int, OptimizationOption(metavar="N", help="Passes over the training pictures.")] = 20,
    patience: Annotated[
        int | None, OptimizationOption(metavar="N", help="Stop after this many epochs without a better recall@1.")
    ] = None,
    lr: Annotated[float, OptimizationOption(metavar="RATE", help="Learning rate of Adam.")] = 1e-4,
    head_lr: Annotated[
        float, OptimizationOption(metavar="FACTOR", help="The new layers learn at --lr times this factor.")
    ] = 10.0,
    warm_up: Annotated[
        int, OptimizationOption(metavar="N", help="Epochs that train only the new layers, if --weights is given.")
    ] = 1,
    classes_per_batch: Annotated[int, OptimizationOption(metavar="N", help="Classes in a batch.")] = 32,
    pictures_per_class: Annotated[int, OptimizationOption(metavar="N", help="Pictures of each class in a batch.")] = 4,
    accumulate: Annotated[
        int, OptimizationOption(metavar="N", help="Compute a batch in N parts; the losses still see the whole batch.")
    ] = 1,
    amp: Annotated[
        str, OptimizationOption(metavar="FORMAT", help="Number format of the backbone: off, bf16 or fp16.")
    ] = "off",
    loss: Annotated[
        str, LossOption(metavar="NAME", help="Ranking loss: batch-hard, soft-margin, contrastive or multi-similarity.")
    ] = "batch-hard",
    margin: Annotated[
        float | None,
        LossOption(metavar="NUMBER", help="Margin of the ranking loss.", show_default="depends on the loss"),
    ] = None,
    ranking_weight: Annotated[float, LossOption(metavar="WEIGHT", help="Weight of the ranking loss.")] = 1.0,
    auxiliary_weight: Annotated[float, LossOption(metavar="WEIGHT", help="Weight of the classification loss.")] = 1.0,
    no_auxiliary: Annotated[bool, LossOption("--no-auxiliary", help="Train without the classification loss.")] = False,
    train_from: Annotated[
        str | None,
        OptimizationOption(metavar="STAGE", help="First backbone stage to train.", show_default="train all stages"),
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Random seed of weights, batches and crops.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from last.pt in the run folder.")] = False,
    strict: Strict = False,
    threads: Threads = None,
) -> None:
    """Train a CGD model, with recall after every epoch. For several processes, start it with torchrun."""
    _share_cores()
    try:
        from cgd_train.config import TrainConfig
        from cgd_train.trainer import train as run
    except ModuleNotFoundError as error:
        raise not_installed(error, "train") from error

    pixels = input_of(size, resize, crop, filter, mean, std)
    config = TrainConfig(
        data=data,
        boxes=not no_boxes,
        out=out or Path("runs") / f"{backbone}-{descriptors}",
        weights=weights,
        backbone=backbone,
        descriptors=descriptors,
        dim=dim,
        size=pixels.input_size,
        resize=pixels.resize,
        mean=pixels.mean,
        std=pixels.std,
        no_downsample=no_downsample,
        gem_p=gem_p,
        learn_p=learn_p,
        epochs=epochs,
        patience=patience,
        lr=lr,
        head_lr=head_lr,
        warm_up=warm_up,
        classes_per_batch=classes_per_batch,
        pictures_per_class=pictures_per_class,
        accumulate=accumulate,
        amp=amp,
        loss=loss,
        margin=margin,
        ranking_weight=ranking_weight,
        auxiliary_weight=auxiliary_weight,
        auxiliary=not no_auxiliary,
        train_from=train_from,
        seed=seed,
        resume=resume,
        strict=strict,
        threads=threads,
    )
    print(run(config))


def import_(
    weights: Annotated[
        Path,
        typer.Argument(
            metavar="WEIGHTS", help="Weights of a backbone or of a CGD model: .pth, .pt, .ckpt or .safetensors."
        ),
    ],
    backbone: Backbone,
    descriptors: Descriptors,
    dim: Dim = 1536,
    size: Size = None,
    resize: Resize = None,
    crop: Crop = None,
    filter: Filter = "bilinear",
    mean: Mean = MEAN,
    std: Std = STD,
    no_downsample: NoDownsample = "layer4",
    gem_p: GemP = 3.0,
    gem_eps: Annotated[
        float, typer.Option(metavar="EPS", help="GeM's lower clamp; 0 if the original code does not clamp.")
    ] = 1e-6,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="PICTURES", help="Data set: its training pictures calibrate INT8, its test pictures test."
        ),
    ] = None,
    prefix: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Where a file of several models has the one to import, such as teacher or ema.model.",
            show_default="the only one, else averaged weights",
        ),
    ] = None,
    out: Annotated[Path, typer.Option("-o", "--out", metavar="FILE", help="Checkpoint to write.")] = Path("ckpt.pt"),
) -> None:
    """Make a checkpoint of weights from elsewhere. Warnings name what the weights cannot confirm."""
    from ...spec import ModelSpec
    from ..terminal import warn

    spec = ModelSpec(
        backbone=backbone,
        descriptors=descriptors,
        dim=dim,
        no_downsample=no_downsample,
        gem_p=gem_p,
        gem_eps=gem_eps,
        **asdict(input_of(size, resize, crop, filter, mean, std)),
    )
    try:
        from cgd_train.foreign import import_checkpoint
    except ModuleNotFoundError as error:
        raise not_installed(error, "train") from error

    for warning in import_checkpoint(weights, spec, out, data=data, prefix=prefix):
        warn(warning)
    print(out)


def export(
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="A checkpoint of cgd-deploy train.")],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="FILE", help="ONNX file to write.")] = MODEL,
    keep_gem: Annotated[bool, typer.Option("--keep-gem", help="Keep GeM as the ONNX function cgd::GeM.")] = False,
    as_json: Json = False,
) -> None:
    """Lower a checkpoint to ONNX and check it against torch."""
    from ...hardware.packages import check_runtime

    check_runtime()
    from cgd_export.onnx_from_checkpoint import calibration_beside, onnx_from_checkpoint

    from ...runtime.provenance import changes, contents, stale_engines
    from ..terminal import errors, warn

    listed = calibration_beside(out)
    before = contents(out, listed)
    with errors.status("Exporting"):
        parity = onnx_from_checkpoint(checkpoint, out, keep_gem=keep_gem)
    for change in changes(before):
        warn(change)
    if before[listed] and not listed.exists():
        warn(f"{listed} was deleted: {checkpoint} records no calibration pictures; pass --calib to build INT8 engines.")
    for engine, reason in stale_engines(out.parent).items():
        warn(f"{engine} is stale: {reason}; build it again.")
    tell(
        {"path": str(out), "cosine_min": parity.cosine_min, "pictures": parity.pictures},
        f"{out}: smallest cosine with torch {parity.cosine_min:.7f}, {parity.pictures} pictures singly and in a batch",
        as_json,
    )


def build_engine(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="An FP32 model of cgd-deploy export.")] = MODEL,
    int8: Annotated[bool, typer.Option("--int8", help="INT8 backbone, FP32 head.")] = False,
    fp16: Annotated[bool, typer.Option("--fp16", help="FP16 backbone, FP32 head (GPU).")] = False,
    tf32: Annotated[bool, typer.Option("--tf32", help="FP32 whose products the GPU may compute in TF32.")] = False,
    fp32: Annotated[bool, typer.Option("--fp32", help="FP32 throughout.")] = False,
    backend: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="onnxruntime, openvino, tensorrt or tensorrt-rtx; auto takes the fastest one on this machine.",
        ),
    ] = "auto",
    calib: Annotated[
        Path | None,
        Int8Option(
            metavar="PICTURES",
            help="Pictures that calibrate INT8, or that compare FP16 or TF32 with FP32.",
            show_default="the checkpoint's, for INT8",
        ),
    ] = None,
    data: Annotated[
        Path | None,
        Int8Option(metavar="PICTURES", help="Test pictures for the two limits below: a data set's folder or LIST.tsv."),
    ] = None,
    max_recall_drop: Annotated[
        float | None,
        Int8Option(
            metavar="POINTS",
            help="Percentage points of recall@1 that INT8 may lose. Layers return to float until the limit holds.",
        ),
    ] = None,
    min_overlap: Annotated[
        float | None,
        Int8Option(
            metavar="SHARE",
            help="Overlap@10 with FP32 that INT8 must keep, from 0 to 1. Layers return to float likewise; the "
            "pictures need no classes.",
        ),
    ] = None,
    calibration: Annotated[
        str,
        Int8Option(
            metavar="RECIPE",
            help="Calibration range of each tensor: mean (of each picture's largest value), min-max, percentile, "
            "entropy or mse; append '+ equalized', '+ bias corrected' or both. auto is mean + bias corrected; if "
            "that misses a limit, auto takes the recipe that keeps most neighbours.",
        ),
    ] = "auto",
    reduced_range: Annotated[
        bool | None,
        Int8Option(
            "--reduced-range/--full-range",
            help="INT8 weights of 7 or 8 bits. CPUs without VNNI, AMX or i8mm need 7: there, sums of 8 bits saturate.",
            show_default="what this CPU needs",
        ),
    ] = None,
    distill: Annotated[
        Path | None,
        Int8Option(metavar="PICTURES", help="Fine-tune INT8 on these pictures to describe like FP32; no labels."),
    ] = None,
    distill_steps: Annotated[
        int | None,
        Int8Option(
            min=1, metavar="N", help="Batches of 16 pictures for --distill.", show_default="120, minutes on a CPU"
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", metavar="FILE", help="Engine to write.", show_default="MODEL-PRECISION.cgd"),
    ] = None,
    autotune: Autotune = False,
    min_batch: Annotated[int, typer.Option(metavar="N", help="Smallest batch.")] = 1,
    opt_batch: Annotated[int, typer.Option(metavar="N", help="Batch size to optimize for.")] = 8,
    max_batch: Annotated[int, typer.Option(metavar="N", help="Largest batch.")] = 64,
    compute_capability: Annotated[
        list[str] | None,
        TensorRtOption(
            metavar="X.Y", help="GPU to build for ahead of time, e.g. 8.9; may be repeated; TensorRT-RTX only."
        ),
    ] = None,
    workspace_mib: Annotated[int, TensorRtOption(metavar="MIB", help="Scratch memory on the GPU.")] = 2048,
    optimization_level: Annotated[
        int, TensorRtOption(metavar="0-5", help="Higher levels search longer for fast kernels.")
    ] = 3,
    timing_cache: Annotated[
        Path | None, TensorRtOption(metavar="FILE", help="Kernel timings to reuse and extend; TensorRT only.")
    ] = None,
    hardware_compatible: Annotated[
        bool, TensorRtOption("--hardware-compatible", help="Run on every GPU from Ampere on; TensorRT only.")
    ] = False,
    version_compatible: Annotated[
        bool, TensorRtOption("--version-compatible", help="Run on later releases of this major version; TensorRT only.")
    ] = False,
    strict: Strict = False,
    as_json: Json = False,
) -> None:
    """Build an engine of an ONNX model and prove its precision."""
    from ...hardware.packages import check_runtime
    from ...spec import Precision

    choices = {Precision.INT8: int8, Precision.FP16: fp16, Precision.TF32: tf32, Precision.FP32: fp32}
    asked = [choice for choice, on in choices.items() if on]
    if len(asked) != 1:
        raise InputError("build-engine needs exactly one of --int8, --fp16, --tf32 and --fp32.")
    precision = asked[0]
    check_runtime()
    from cgd_export.build_options import BuildOptions, Int8Options
    from cgd_export.engine_from_onnx import calibration_list, choose_backend, engine_from_onnx
    from cgd_export.int8.budget import Trial, read_budget
    from cgd_export.int8.recipe import Recipe
    from cgd_export.progress import Progress

    from ...datasets.layouts import read_training
    from ...hardware.cpu import SLOW_INT8, has_fast_int8
    from ...runtime.autotune import autotune as tune
    from ...runtime.autotune import check_tunable
    from ...runtime.backends import DEVICES
    from ...runtime.enginefile import read_engine
    from ...runtime.provenance import changes, contents
    from ..terminal import build_summary, errors, phases, trial_table, warn, warn_all

    backend = choose_backend(backend)
    if autotune:
        check_tunable(backend, precision)
    if precision is Precision.INT8 and "cpu" in DEVICES[backend] and not has_fast_int8():
        warn(SLOW_INT8)
    recipe = None if calibration == "auto" else Recipe.parse(calibration)
    budget = read_budget(data, max_recall_drop, min_overlap)
    options = BuildOptions(
        min_batch=min_batch,
        opt_batch=opt_batch,
        max_batch=max_batch,
        workspace=workspace_mib << 20,
        optimization_level=optimization_level,
        timing_cache=timing_cache,
        hardware_compatible=hardware_compatible,
        version_compatible=version_compatible,
        compute_capabilities=tuple(compute_capability or ()),
    )
    out = out or model.with_name(f"{model.stem}-{precision.value}.cgd")
    left_out: list[LeftOut] = []
    good = partial(good_pictures, strict=strict, left_out=left_out)
    pictures = calibration_list(model, calib) if precision is Precision.INT8 or calib else None
    distillation = read_training(distill) if distill else None
    tested = budget.evaluation.images if budget else None
    warn_all(note for images in (pictures, tested, distillation) if images for note in images.notes)
    pictures = good(pictures) if pictures else None
    distillation = good(distillation) if distillation else None
    if budget:
        budget = replace(budget, evaluation=good(budget.evaluation))
    before = contents(out)
    measured = 0
    trials: list[Trial] = []
    try:
        with phases() as on_progress:

            def on_pictures(count: int) -> None:
                nonlocal measured
                measured = measured % len(pictures or [0]) + count  # each pass over the pictures begins anew
                on_progress("Calibrating", measured / len(pictures or [0]))

            manifest = engine_from_onnx(
                model,
                out,
                precision,
                backend=backend,
                calibration=pictures,
                int8=Int8Options(
                    recipe=recipe,
                    reduced_range=reduced_range,
                    budget=budget,
                    distill=distillation,
                    distill_steps=distill_steps,
                ),
                options=options,
                progress=Progress(
                    on_step=lambda phase, step, steps: on_progress(phase[:40], step / max(steps, 1)),
                    on_pictures=on_pictures,
                    on_trial=trials.append,
                ),
            )
    except GateError:
        if trials:
            errors.print(trial_table([trial.to_dict() for trial in trials]), soft_wrap=False)
        raise
    if autotune:
        with phases() as on_progress:
            manifest = tune(out, on_progress=on_progress)
    elif untuned := read_engine(out).untuned:
        warn(untuned)
    for change in changes(before):
        warn(change)
    facts = manifest.to_dict()
    told = {name: facts[name] for name in ("backend", "precision", "parity", "proof", "retrieval", "tuning")}
    told["trials"] = [trial.to_dict() for trial in trials]
    told["left_out"] = [picture._asdict() for picture in left_out]
    tell({"path": str(out), **told}, build_summary(out, manifest), as_json)


def _share_cores() -> None:
    """Let torch's idle threads sleep: spinning, they train 4 to 6 times slower once another process needs a core."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
