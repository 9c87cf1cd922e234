"""ONNX -> .cgd engine: type the graph for a backend, prove it by its types and on pictures, pack it."""

from __future__ import annotations

import platform
from collections.abc import Callable, Collection
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from cgd_deploy.datasets.layouts import read_training
from cgd_deploy.errors import EngineError, ExportError, InputError, MissingDependency, not_installed
from cgd_deploy.files import sha256_file
from cgd_deploy.hardware.cpu import has_fast_int8, instruction_sets
from cgd_deploy.hardware.packages import package_version
from cgd_deploy.pictures.images import ImageList
from cgd_deploy.pictures.preprocess import batches
from cgd_deploy.runtime.backends import BACKENDS, Backend, default_device, model_settings
from cgd_deploy.runtime.backends.onnxruntime import OnnxRuntimeBackend
from cgd_deploy.runtime.backends.tensorrt import MODULES
from cgd_deploy.runtime.compatibility import check_compatibility
from cgd_deploy.runtime.cuda.driver import has_gpu
from cgd_deploy.runtime.descriptors import Descriptors
from cgd_deploy.runtime.enginefile import Manifest, write_engine
from cgd_deploy.runtime.golden import golden_images
from cgd_deploy.spec import ModelSpec, Precision

from .build_options import BuildOptions
from .fp16 import halved, rounded
from .int8.budget import Budget, Trial, check_disjoint, retrieval_facts
from .int8.calibrate import Ranges
from .int8.guard import guarded
from .int8.quantize import Layout, quantized
from .int8.recipe import DEFAULT, Int8Models, Recipe
from .metadata import check_exists, get_metadata, load_onnx
from .onnx_from_checkpoint import calibration_beside
from .parity import open_onnx, parity_of, run_in_batches, run_onnx
from .proof import graph_precisions, prove
from .tensorrt import OnStep, Plan, plan_from_onnx

Tune = Callable[[onnx.ModelProto, Ranges], tuple[onnx.ModelProto, Ranges]]
Typing = Callable[[Recipe, Collection[str]], onnx.ModelProto]
"""From a recipe for INT8 and convolutions to keep float to the graph whose types say the precision."""

BATCH = 8
CALIBRATION_PICTURES = 64
GRAPH_PICTURES = 16
"""Parity pictures for an engine that cannot run here: its graph takes about five times as long."""

LAYOUTS = {
    "onnxruntime": Layout.UINT8,
    "openvino": Layout.MIXED,
    "tensorrt": Layout.SYMMETRIC,
    "tensorrt-rtx": Layout.SYMMETRIC,
}


def choose_backend(name: str = "auto") -> str:
    """``name`` itself, or for "auto" the fastest installed here: TensorRT on a GPU, OpenVINO on x86, ONNX Runtime."""
    if name == "auto":
        if find_spec("tensorrt") and has_gpu():
            return "tensorrt"
        x86 = platform.machine().lower() in ("x86_64", "amd64")
        return "openvino" if x86 and package_version("openvino") else "onnxruntime"
    if name not in LAYOUTS:
        raise InputError(f"backend {name!r} is unknown; expected auto, {', '.join(LAYOUTS)}.")
    return name


def calibration_list(model: str | Path, given: str | Path | None) -> ImageList:
    """The pictures to calibrate on: ``given``, or the list that export left beside the model; at most 64 of them.

    Raises EngineError if there is no model, InputError if there is no list or its files are gone.
    """
    check_exists(model)
    recorded = calibration_beside(model)
    if given is None and not recorded.is_file():
        raise InputError(
            f"INT8 needs pictures to calibrate on and {recorded} does not exist; pass --calib FOLDER or LIST.tsv."
        )
    images = read_training(given or recorded).sample(CALIBRATION_PICTURES)
    images.check_present("calibration", "--calib")
    return images


def engine_from_onnx(
    model_path: str | Path,
    output: str | Path,
    precision: Precision,
    *,
    backend: str = "auto",
    calibration: ImageList | None = None,
    recipe: Recipe | None = None,
    reduced_range: bool | None = None,
    on_pictures: Callable[[int], None] | None = None,
    options: BuildOptions | None = None,
    keep_float: Collection[str] = (),
    on_step: OnStep | None = None,
    budget: Budget | None = None,
    on_trial: Callable[[Trial], None] | None = None,
    distill: ImageList | None = None,
    distill_steps: int | None = None,
) -> Manifest:
    """Build an engine and write it to ``output``; returns its manifest, proof and parity with FP32 included.

    model_path    an FP32 model from ``onnx_from_checkpoint``
    calibration   pictures for INT8, see ``calibration_list``; FP16 and TF32 measure their parity on them
    recipe        how INT8 is made of FP32; None for the plain one, unless ``budget`` needs a better one
    reduced_range 7-bit weights, which sum right on CPUs without VNNI, AMX or i8mm; None: if this CPU is one of them
    on_pictures   called with the number of calibration pictures just measured, in each pass over them
    options       batch sizes, and what only TensorRT knows
    keep_float    convolutions that INT8 leaves out, by node name
    on_step       hears of TensorRT's progress, see ``plan_from_onnx``, and of the guard's
    budget        what INT8 may lose; convolutions return to float until it holds, see ``guarded``
    on_trial      hears of everything that the guard measured
    distill       pictures without labels to tune INT8 on, see ``distilled``, in that many steps; interrupted, it goes
                  on from a file beside ``output``

    Raises EngineError, SpecError or ExportError for a model that cannot be used, InputError for pictures or options
    that cannot, MissingDependency without the backend, GateError if the precision is not in the engine or the budget
    cannot be held.
    """
    backend = choose_backend(backend)
    options = options or BuildOptions()
    options.check(backend)
    model = load_onnx(model_path)
    metadata = get_metadata(model, str(model_path))
    if metadata.precision is not Precision.FP32:
        raise ExportError(f"{model_path} is already {metadata.precision.value}; pass the FP32 model that export wrote.")
    if budget:
        if precision is not Precision.INT8:
            raise InputError(f"limits guard INT8, and {precision.value} was asked; pass --int8, or no --data.")
        for purpose, listed in (("calibration", calibration), ("distillation", distill)):
            if listed:
                check_disjoint(listed, budget.evaluation.images, purpose)
    if recipe and precision is not Precision.INT8:
        raise InputError(
            f"{recipe} calibrates INT8, and {precision.value} was asked; pass --int8, or no --calibration."
        )
    if distill and precision is not Precision.INT8:
        raise InputError(f"distillation tunes INT8, and {precision.value} was asked; pass --int8, or no --distill.")
    if reduced_range and precision is not Precision.INT8:
        raise InputError(
            f"a reduced range is for INT8 weights, and {precision.value} was asked; pass --int8, or no --reduced-range."
        )
    tune, search = None, recipe is None and not distill
    recipe = _with_range(recipe or (Recipe() if distill else DEFAULT), reduced_range, backend)
    if distill:
        if recipe.equalized or recipe.bias_corrected:
            raise InputError(
                f"distillation moves weights and biases itself and {recipe} was asked; pass --calibration "
                f"{recipe.calibration.value}, or no --distill."
            )
        state = Path(output).with_name(f"{Path(output).name}.unfinished")
        tune = _tuning(distill, distill_steps, LAYOUTS[backend], keep_float, recipe.weight_range, state, on_step)
    typing = _typing(model, backend, precision, calibration, on_pictures, tune, recipe)
    retrieval = None
    if budget:
        trial = guarded(
            model,
            lambda: OnnxRuntimeBackend(model.SerializeToString()),
            lambda tried, floats: _opened(backend, typing(tried, floats)),
            budget,
            keep_float,
            recipe,
            search,
            on_step,
            on_trial,
        )
        recipe, keep_float = trial.recipe, trial.keep_float
        measured_on = "graph" if backend in MODULES else "engine"
        retrieval = {**retrieval_facts(trial, budget), "measured_on": measured_on}
    typed = typing(recipe, keep_float)
    onnx.checker.check_model(typed, full_check=True)
    plan, proof = _built(typed, metadata.spec, backend, precision, options, keep_float, on_step)
    manifest = Manifest(
        spec=metadata.spec,
        backend=backend,
        precision=precision,
        payload="engine.plan" if backend in MODULES else "model.onnx",
        profile=options.profile,
        builder={
            **plan.builder,
            "cgd_deploy": package_version("cgd-deploy") or "unknown",
            "instruction_sets": " ".join(instruction_sets()),
        },
        gpu=plan.gpu,
        source={
            "onnx_sha256": sha256_file(model_path),
            "checkpoint": metadata.source.checkpoint if metadata.source else None,
            "checkpoint_sha256": metadata.source.sha256 if metadata.source else None,
            "calibration_sha256": calibration.sha256 if calibration else None,
            "calibration": str(recipe) if precision is Precision.INT8 else None,
            "distillation_sha256": distill.sha256 if distill else None,
            "evaluation_sha256": budget.evaluation.images.sha256 if budget else None,
        },
        proof=proof,
        retrieval=retrieval,
    )

    runs_here = _runs_here(output, manifest)
    images = golden = golden_images(metadata.spec)
    compared = slice(len(golden))
    if calibration and precision is not Precision.FP32:
        pictures = calibration if runs_here else calibration.sample(GRAPH_PICTURES)
        images = np.concatenate([golden, *(pixels for _, pixels in batches(pictures, metadata.spec, BATCH))])
        compared = slice(len(golden), None)
    if runs_here:
        descriptors = _engine_descriptors(backend, metadata.spec, precision, plan, images)
    else:
        descriptors = run_onnx(rounded(typed), images, BATCH)
    if not np.isfinite(descriptors).all():
        raise ExportError(f"the {precision.value} engine gives descriptors that are not numbers; build with --fp32.")
    images, reference = images[compared], run_onnx(model, images[compared], BATCH)
    told = {**asdict(parity_of(descriptors[compared], reference)), "measured_on": "engine" if runs_here else "graph"}
    if recipe.reduced_range and precision is Precision.INT8 and not distill:
        full = rounded(typing(replace(recipe, reduced_range=False), keep_float))
        told["full_range"] = asdict(parity_of(run_onnx(full, images, BATCH), reference))
    write_engine(output, replace(manifest, parity=told), plan.payload, golden, descriptors[: len(golden)])
    return replace(manifest, parity=told)


def _with_range(recipe: Recipe, reduced: bool | None, backend: str) -> Recipe:
    """``recipe`` with the range of weights that was asked for, or else the one that this CPU needs."""
    needed = "cpu" in BACKENDS[backend] and not has_fast_int8()
    return replace(recipe, reduced_range=recipe.reduced_range or needed if reduced is None else reduced)


def _typing(
    model: onnx.ModelProto,
    backend: str,
    precision: Precision,
    calibration: ImageList | None,
    on_pictures: Callable[[int], None] | None,
    tune: Tune | None,
    recipe: Recipe,
) -> Typing:
    """What types ``model``; ``tune`` starts from the ranges of ``recipe``, and what it made knows no other."""
    _check_precision(backend, precision)
    if precision is not Precision.INT8:
        return lambda recipe, keep_float: halved(model) if precision is Precision.FP16 else model
    if not calibration:
        raise InputError("INT8 needs pictures to calibrate on; pass --calib FOLDER or LIST.tsv.")
    layout = LAYOUTS[backend]
    models = Int8Models(model, layout, calibration, on_pictures)
    tuned = tune(model, models.ranges(recipe)) if tune else None

    def typed(recipe: Recipe, keep_float: Collection[str]) -> onnx.ModelProto:
        result = (
            quantized(*tuned, layout, keep_float, recipe.weight_range) if tuned else models.make(recipe, keep_float)
        )
        return halved(result) if backend in MODULES else result

    return typed


def _check_precision(backend: str, precision: Precision) -> None:
    """Raise ExportError for a precision that the backend lacks, or computes more slowly than FP32."""
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


def _tuning(
    images: ImageList,
    steps: int | None,
    layout: Layout,
    keep_float: Collection[str],
    weight_range: int,
    state: Path,
    on_step: OnStep | None,
) -> Tune:
    try:
        from .int8.distill import distilled
    except ModuleNotFoundError as error:
        raise not_installed(error, "train") from error
    return lambda model, ranges: distilled(
        model,
        ranges,
        images,
        keep_float=keep_float,
        layout=layout,
        weight_range=weight_range,
        steps=steps,
        state=state,
        on_step=on_step,
    )


def _opened(backend: str, typed: onnx.ModelProto) -> Backend:
    """The graph on the runtime that will run the engine, or, for a plan that is yet to be built, on ONNX Runtime."""
    if backend in MODULES:
        return open_onnx(rounded(typed))
    return BACKENDS[backend]["cpu"](typed.SerializeToString())


def _built(
    typed: onnx.ModelProto,
    spec: ModelSpec,
    backend: str,
    precision: Precision,
    options: BuildOptions,
    keep_float: Collection[str],
    on_step: OnStep | None,
) -> tuple[Plan, dict[str, Any]]:
    """The payload, and the proof that it has the precision; the graph's own types are looked at before any build."""
    proof = prove("graph", graph_precisions(typed), typed, precision, keep_float)
    if backend not in MODULES:
        builder = {"name": backend, "version": package_version(backend) or "unknown"}
        return Plan(payload=typed.SerializeToString(), builder=builder), proof
    plan = plan_from_onnx(typed, spec, backend, options, on_step, tf32=precision is Precision.TF32)
    source = "engine" if len(plan.engine) == proof["convolutions"] else "network"
    return plan, prove(source, {**plan.network, **plan.engine}, typed, precision, keep_float)


def _runs_here(path: str | Path, manifest: Manifest) -> bool:
    try:
        check_compatibility(path, manifest)
    except (EngineError, MissingDependency):
        return False
    return True


def _engine_descriptors(
    backend: str, spec: ModelSpec, precision: Precision, plan: Plan, images: NDArray[np.uint8]
) -> Descriptors:
    device = default_device(backend, precision)
    with BACKENDS[backend][device](plan.payload, **model_settings(backend, device, spec, precision)) as runner:
        return run_in_batches(runner, images, BATCH)
