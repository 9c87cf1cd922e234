"""ONNX -> .cgd engine: type the graph for a backend, build it, prove its precision, measure its parity, write it."""

from __future__ import annotations

import platform
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from cgd_deploy.datasets.layouts import read_training
from cgd_deploy.errors import EngineError, ExportError, InputError, MissingDependency
from cgd_deploy.files import sha256_file
from cgd_deploy.hardware.cpu import instruction_sets
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

from .build_options import BuildOptions, Int8Options
from .fp16 import rounded
from .int8.budget import retrieval_facts
from .int8.guard import guarded
from .int8.quantize import Layout, convolutions, residual_adds
from .int8.recipe import Recipe
from .int8.trials import Models, timed
from .kernels import kernels
from .metadata import Metadata, check_exists, get_metadata, load_onnx
from .onnx_from_checkpoint import calibration_beside
from .parity import open_onnx, parity_of, run_in_batches, run_onnx
from .progress import QUIET, Progress
from .proof import COMPILED, compiled_precisions, graph_precisions, prove
from .tensorrt import Plan, plan_from_onnx
from .typed import LAYOUTS, MakeGraph, check_float_precision, check_precision, float_graph, int8_graph

Pixels = NDArray[np.uint8]
Embed = Callable[[Pixels], Descriptors]
"""uint8 [N, H, W, 3] -> the engine's descriptors float32 [N, D]."""

BATCH = 8
USED_FOR_CALIBRATION = 64
"""How many of the recorded training pictures calibrate INT8."""
GRAPH_PICTURES = 16
"""How many pictures measure parity where the engine cannot run: its graph takes about five times as long."""


def choose_backend(name: str = "auto") -> str:
    """Return ``name``; for "auto", the fastest backend here: TensorRT on a GPU, OpenVINO on x86, else ONNX Runtime.

    Raises InputError for an unknown name.
    """
    if name == "auto":
        if find_spec("tensorrt") and has_gpu():
            return "tensorrt"
        x86 = platform.machine().lower() in ("x86_64", "amd64")
        return "openvino" if x86 and package_version("openvino") else "onnxruntime"
    if name not in LAYOUTS:
        raise InputError(f"backend {name!r} is unknown; expected auto, {', '.join(LAYOUTS)}.")
    return name


def calibration_list(model: str | Path, given: str | Path | None) -> ImageList:
    """At most 64 pictures to calibrate on, from ``given`` or else from the list that export wrote beside the model.

    Raises EngineError if there is no model, InputError if there is no list or its files are gone.
    """
    check_exists(model)
    recorded = calibration_beside(model)
    if given is None and not recorded.is_file():
        raise InputError(
            f"INT8 needs pictures to calibrate on and {recorded} does not exist; pass --calib FOLDER or LIST.tsv."
        )
    images = read_training(given or recorded).sample(USED_FOR_CALIBRATION)
    images.check_present("calibration", "--calib")
    return images


@dataclass(frozen=True, kw_only=True)
class _Request:
    """The engine that the caller of ``engine_from_onnx`` asks for."""

    model_path: Path
    output: Path
    precision: Precision
    backend: str
    calibration: ImageList | None
    int8: Int8Options
    options: BuildOptions
    progress: Progress

    @property
    def unfinished(self) -> Path:
        """The file from which an interrupted distillation goes on."""
        return self.output.with_name(f"{self.output.name}.unfinished")


@dataclass(frozen=True, kw_only=True)
class _Typed:
    """A typed graph, its recipe, the nodes that it keeps in float, and its retrieval facts.

    make     types the same model by another recipe
    floats   arithmetic of all that INT8 leaves in float
    """

    graph: onnx.ModelProto
    make: MakeGraph
    recipe: Recipe
    keep_float: Collection[str]
    floats: Precision
    retrieval: Mapping[str, Any] | None


def engine_from_onnx(
    model_path: str | Path,
    output: str | Path,
    precision: Precision,
    *,
    backend: str = "auto",
    calibration: ImageList | None = None,
    int8: Int8Options | None = None,
    options: BuildOptions | None = None,
    progress: Progress = QUIET,
) -> Manifest:
    """Build an engine, write it to ``output`` and return its manifest with proof and parity.

    model_path    an FP32 model from ``onnx_from_checkpoint``
    backend       "onnxruntime", "openvino", "tensorrt", "tensorrt-rtx", or "auto", see ``choose_backend``
    calibration   pictures for INT8, see ``calibration_list``; BF16, FP16 and TF32 measure parity on them
    int8          recipe, guard and distillation, see ``Int8Options``
    options       batch sizes and TensorRT's options, see ``BuildOptions``
    progress      hears how far the build is, see ``Progress``

    An interrupted distillation goes on from a file beside ``output``.
    Raises EngineError, SpecError or ExportError for a model that cannot be used, InputError for pictures or options
    that cannot be used, MissingDependency without the backend, GateError if the engine misses the precision or the
    budget.

    Example:

        calibration = calibration_list("model.onnx", None)
        manifest = engine_from_onnx("model.onnx", "model.cgd", Precision.INT8, calibration=calibration)
    """
    request = _Request(
        model_path=Path(model_path),
        output=Path(output),
        precision=precision,
        backend=choose_backend(backend),
        calibration=calibration,
        int8=int8 or Int8Options(),
        options=options or BuildOptions(),
        progress=progress,
    )
    request.options.check(request.backend)
    model, metadata = fp32_model(request.model_path)
    request.int8.check(precision, calibration)
    typed = _typed(request, model)
    onnx.checker.check_model(typed.graph, full_check=True)
    plan, proof = _built(request, metadata.spec, typed)
    manifest = _manifest(request, metadata, typed, plan, proof)
    runs_here = _runs_here(request.output, manifest)
    if runs_here and default_device(request.backend, precision) == "cpu":
        manifest = replace(manifest, proof=_compiled_proof(manifest, typed, plan))
    golden = golden_images(metadata.spec)
    descriptors, parity = _replayed(
        request, model, typed, golden, partial(_embed, manifest, plan) if runs_here else None
    )
    manifest = replace(manifest, parity=parity)
    write_engine(request.output, manifest, plan.payload, golden, descriptors)
    return manifest


def fp32_model(path: Path) -> tuple[onnx.ModelProto, Metadata]:
    """The model at ``path`` and its metadata. Raises EngineError, SpecError or ExportError for one that is not FP32."""
    model = load_onnx(path)
    metadata = get_metadata(model, str(path))
    if metadata.precision is not Precision.FP32:
        raise ExportError(f"{path} is already {metadata.precision.value}; pass the FP32 model that export wrote.")
    return model, metadata


def _typed(request: _Request, model: onnx.ModelProto) -> _Typed:
    """The typed graph; with a budget, of the INT8 model that holds it."""
    backend, int8 = request.backend, request.int8
    check_precision(backend, request.precision)
    check_float_precision(backend, int8.float_precision)
    if request.precision is Precision.INT8:
        make = int8_graph(model, backend, request.calibration, int8, request.unfinished, request.progress)
    else:
        make = float_graph(model, request.precision)
    recipe, keep_float, retrieval = int8.first_recipe(backend), int8.keep_float, int8.retrieval
    if int8.budget:
        trial = guarded(
            model,
            models_of(model, backend, make, int8),
            int8.budget,
            keep_float,
            recipe,
            int8.searches_recipes,
            request.progress,
        )
        recipe, keep_float = trial.recipe, trial.keep_float
        measured_on = "graph" if backend in MODULES else "engine"
        facts = retrieval_facts(trial, int8.budget.evaluation, int8.budget.limits)
        retrieval = {**facts, "measured_on": measured_on}
    return _Typed(
        graph=make(recipe, keep_float),
        make=make,
        recipe=recipe,
        keep_float=keep_float,
        floats=int8.floats(backend, keep_float),
        retrieval=retrieval,
    )


def models_of(model: onnx.ModelProto, backend: str, make: MakeGraph, int8: Int8Options) -> Models:
    """Opens the FP32 ``model``, and the INT8 models that ``make`` types for ``backend``."""
    return Models(
        fp32=lambda: OnnxRuntimeBackend(model.SerializeToString()),
        int8=lambda recipe, names: opened(backend, make(recipe, names), int8.floats(backend, names)),
        timer=None if backend in MODULES else timed,
        adds=residual_adds(model) if LAYOUTS[backend] is Layout.MIXED else (),
    )


def opened(backend: str, typed: onnx.ModelProto, floats: Precision) -> Backend:
    """The graph on the runtime that will run the engine; on ONNX Runtime if the engine is a plan, not built yet."""
    if backend in MODULES:
        return open_onnx(rounded(typed))
    settings = {"bf16": floats is Precision.BF16} if backend == "openvino" else {}
    return BACKENDS[backend]["cpu"](typed.SerializeToString(), **settings)


def _built(request: _Request, spec: ModelSpec, typed: _Typed) -> tuple[Plan, dict[str, Any]]:
    """The payload and the proof of its precision; the types of the graph are checked before TensorRT builds."""
    backend, asked = request.backend, request.precision
    proof = prove("graph", graph_precisions(typed.graph), typed.graph, asked, typed.keep_float)
    if backend not in MODULES:
        builder = {"name": backend, "version": package_version(backend) or "unknown"}
        return Plan(payload=typed.graph.SerializeToString(), builder=builder), proof
    tf32 = asked is Precision.TF32
    plan = plan_from_onnx(typed.graph, spec, backend, request.options, request.progress.on_step, tf32)
    source = "engine" if len(plan.engine) == proof["convolutions"] else "network"
    return plan, prove(source, {**plan.network, **plan.engine}, typed.graph, asked, typed.keep_float)


def _manifest(request: _Request, metadata: Metadata, typed: _Typed, plan: Plan, proof: dict[str, Any]) -> Manifest:
    calibration, distill, budget = request.calibration, request.int8.distill, request.int8.budget
    return Manifest(
        spec=metadata.spec,
        backend=request.backend,
        precision=request.precision,
        payload="engine.plan" if request.backend in MODULES else "model.onnx",
        profile=request.options.profile,
        builder={
            **plan.builder,
            "cgd_deploy": package_version("cgd-deploy") or "unknown",
            "instruction_sets": " ".join(instruction_sets()),
        },
        gpu=plan.gpu,
        source={
            "onnx_sha256": sha256_file(request.model_path),
            "checkpoint": metadata.source.checkpoint if metadata.source else None,
            "checkpoint_sha256": metadata.source.sha256 if metadata.source else None,
            "calibration_sha256": calibration.sha256 if calibration else None,
            "calibration": str(typed.recipe) if request.precision is Precision.INT8 else None,
            "distillation_sha256": distill.sha256 if distill else None,
            "evaluation_sha256": budget.evaluation.images.sha256 if budget else None,
        },
        proof=proof,
        retrieval=typed.retrieval,
        float_precision=typed.floats if request.precision is Precision.INT8 else None,
    )


def _compiled_proof(manifest: Manifest, typed: _Typed, plan: Plan) -> dict[str, Any]:
    """The proof by the kernels that the CPU's runtime chose."""
    names = [node.name for node in convolutions(typed.graph)]
    found = compiled_precisions(kernels(manifest.backend, plan.payload, manifest.needs_bf16), names)
    return prove(COMPILED, found, typed.graph, manifest.precision, typed.keep_float, typed.floats)


def _runs_here(path: Path, manifest: Manifest) -> bool:
    try:
        check_compatibility(path, manifest)
    except (EngineError, MissingDependency):
        return False
    return True


def _replayed(
    request: _Request, model: onnx.ModelProto, typed: _Typed, golden: Pixels, engine: Embed | None
) -> tuple[Descriptors, dict[str, Any]]:
    """The engine's descriptors of the golden pictures, float32 [N, D], and its parity with FP32.

    engine   None if it cannot run here; its graph then stands for it

    Parity is measured on the calibration pictures if there are any, else on the golden ones.
    """
    images = _parity_images(request, get_metadata(model).spec, engine is not None)
    everything = golden if images is None else np.concatenate([golden, images])
    descriptors = engine(everything) if engine else run_onnx(rounded(typed.graph), everything, BATCH)
    if not np.isfinite(descriptors).all():
        raise ExportError(
            f"the {request.precision.value} engine gives descriptors that are not numbers; build with --fp32."
        )
    of_golden, found = descriptors[: len(golden)], descriptors[len(golden) :]
    if images is None:
        images, found = golden, of_golden
    reference = run_onnx(model, images, BATCH)
    parity = {**asdict(parity_of(found, reference)), "measured_on": "engine" if engine else "graph"}
    if request.precision is Precision.INT8 and typed.recipe.reduced_range and not request.int8.distill:
        full = rounded(typed.make(replace(typed.recipe, reduced_range=False), typed.keep_float))
        parity["full_range"] = asdict(parity_of(run_onnx(full, images, BATCH), reference))
    return of_golden, parity


def _parity_images(request: _Request, spec: ModelSpec, runs_here: bool) -> Pixels | None:
    """The calibration pictures, uint8 [N, H, W, 3]; None without calibration pictures, and for FP32."""
    if not request.calibration or request.precision is Precision.FP32:
        return None
    pictures = request.calibration if runs_here else request.calibration.sample(GRAPH_PICTURES)
    return np.concatenate([pixels for _, pixels in batches(pictures, spec, BATCH)])


def _embed(manifest: Manifest, plan: Plan, images: Pixels) -> Descriptors:
    device = default_device(manifest.backend, manifest.precision)
    with BACKENDS[manifest.backend][device](plan.payload, **model_settings(manifest, device)) as runner:
        return run_in_batches(runner, images, BATCH)
