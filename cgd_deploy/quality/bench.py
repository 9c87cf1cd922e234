"""The bench: how fast engines are, and whether they retrieve what the trained model retrieves.

Every engine is measured against one reference on the same pictures, in one run; the result is the JSON contract.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..datasets.evaluation import Evaluation
from ..datasets.layouts import read_evaluation
from ..datasets.left_out import LeftOut, without_bad
from ..errors import InputError
from ..files import sha256_file
from ..hardware.cpu import available_threads, cpu_clock, cpu_name, instruction_sets
from ..hardware.packages import package_version
from ..hardware.timing import interleaved, load_between
from ..pictures.images import ImageList
from ..runtime.cuda.facts import gpu_facts
from ..runtime.engine import Engine, load
from ..runtime.enginefile import Manifest
from ..runtime.golden import golden_images
from ..runtime.provenance import stale
from ..search.compact import check_form
from ..search.retrieval import NEIGHBOURS, Retrieved
from ..spec import ModelSpec, Precision
from .comparison import compact_forms, compact_quality, retrieval_quality
from .contestants import Contestant, OnProgress, retrieve, speed
from .examples import example_queries
from .reference import TorchBackend
from .report import QueryRow

SCHEMA = 1
PACKAGES = (
    "cgd-deploy", "numpy", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "tensorrt-rtx-cu13-bindings",
    "cuda-bindings", "nvidia-cudnn-cu13", "torch",
)  # fmt: skip

LIMITS = {
    Precision.FP32: {"max_recall_drop_pp": 0.05, "min_overlap_at_10": 0.99},
    Precision.TF32: {"max_recall_drop_pp": 0.2, "min_overlap_at_10": 0.98},
    Precision.BF16: {"max_recall_drop_pp": 0.5, "min_overlap_at_10": 0.95},
    Precision.FP16: {"max_recall_drop_pp": 0.2, "min_overlap_at_10": 0.98},
    Precision.INT8: {"max_recall_drop_pp": 1.0, "min_overlap_at_10": 0.8},
}
"""Limits of the gate by precision: the largest drop of recall@1, in percentage points, and the smallest overlap@10."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchOptions:
    """How ``bench`` measures.

    data          folder of a data set or LIST.tsv; None: the test pictures that the checkpoint records
    reference     a checkpoint (torch) or an engine; None: the checkpoint that the first engine was made from
    batch_sizes   batch sizes to time
    seconds       of timing for each batch size
    threads       CPU threads of each engine and of torch; None: all that this process may use
    streams       of each engine, see ``load``
    limits        override LIMITS for every precision
    confident     whether the limits count for the worse ends of the 95 % intervals
    descriptor_dtypes, pcas   compact forms of each engine's gallery to measure too, see ``compact_forms``
    queries       how many example queries to return for the report
    strict        stop at the first bad test picture; otherwise bad pictures are left out and listed in the result
    """

    data: str | Path | None = None
    reference: str | Path | None = None
    batch_sizes: Sequence[int] = (1, 8)
    seconds: float = 20.0
    threads: int | None = None
    streams: int = 1
    limits: Mapping[str, float] | None = None
    confident: bool = False
    descriptor_dtypes: Sequence[str] = ()
    pcas: Sequence[int] = ()
    queries: int = 8
    strict: bool = False


@dataclass(frozen=True)
class BenchContestant(Contestant):
    """An engine, or the reference.

    backend      the library that runs it
    path         its file
    checkpoint   sha256 of the checkpoint it was made from, None if unknown
    stale        why an engine is not of the model beside it, see ``provenance.stale``
    cudnn        the version of cuDNN that torch on CUDA uses
    """

    backend: str
    spec: ModelSpec
    path: Path
    checkpoint: str | None = None
    stale: str | None = None
    cudnn: int | None = None


@dataclass(frozen=True)
class _Field:
    """All contestants of one bench.

    others     the reference's model in other precisions; they are only timed
    device     on which all of them run
    recorded   the test pictures that the reference's checkpoint records
    """

    reference: BenchContestant
    others: list[BenchContestant]
    engines: list[BenchContestant]
    device: str
    recorded: Evaluation | None


@dataclass(frozen=True)
class _Measured:
    """What was measured.

    found     neighbours by title
    samples   seconds of each timed call, by batch size and title
    load      of the machine meanwhile, see ``load_between``
    """

    evaluation: Evaluation
    found: dict[str, Retrieved]
    samples: dict[int, dict[str, list[float]]]
    load: dict[str, Any]
    threads: int


def bench(
    engine_paths: Sequence[Path],
    options: BenchOptions | None = None,
    on_progress: OnProgress = lambda what, done: None,
) -> tuple[dict[str, Any], list[QueryRow]]:
    """Measure engines against the model they came from; returns the bench JSON and example queries for the report.

    A checkpoint runs in torch on the engines' device. On CUDA it is also timed in FP16 autocast, and in TF32 if one of
    the engines is TF32.

    Raises InputError, EngineError, CheckpointError or MissingDependency. A missed limit raises nothing: the result's
    gate lists it.
    """
    options = options or BenchOptions()
    threads = options.threads or available_threads()
    with ExitStack() as stack:
        entered = _enter(stack, list(dict.fromkeys(map(Path, engine_paths))), options, threads)
        evaluation, left_out = _evaluation(options, entered.recorded, on_progress)
        for dtype, pca in compact_forms(options.descriptor_dtypes, options.pcas):
            check_form(dtype, pca, entered.reference.spec.dim, len(evaluation.gallery))
        measured = _measure(entered, evaluation, options, threads, on_progress)
    runs = [
        run for engine in entered.engines for run in _runs(engine, entered.reference, measured, options, on_progress)
    ]
    result = {
        "schema": SCHEMA,
        "notes": list(evaluation.images.notes),
        "environment": _environment(entered, measured),
        "queries": evaluation.asked,
        "reference": _reference_facts(entered, measured),
        "engines": runs,
        "gate": gate(runs, options.limits, options.confident),
        "left_out": [picture._asdict() for picture in left_out],
    }
    return result, example_queries(measured.found, entered.reference.title, evaluation, options.queries)


def gate(
    runs: Sequence[Mapping[str, Any]], limits: Mapping[str, float] | None = None, confident: bool = False
) -> dict[str, Any]:
    """Check each engine's drop of recall@1, if there are classes, and its overlap@10 against limits for its precision.

    limits      override LIMITS for every precision
    confident   whether the limits count for the worse ends of the 95 % intervals; otherwise for the means

    Returns {"passed", "limits", "confident", "failures"}; a failure is a sentence part that names the engine.
    """
    allowed = {run["precision"]: {**LIMITS[Precision(run["precision"])], **(limits or {})} for run in runs}
    failures = []
    for run in {run["path"]: run for run in runs}.values():
        limit = allowed[run["precision"]]
        drop, shared, where = run["recall_drop_pp"].get("1"), run["overlap_at_10"], ""
        if confident:
            drop = drop if drop is None else run["recall_drop_interval_pp"]["1"][1]
            shared, where = run["overlap_at_10_interval"][0], " at the worse end of the 95 % interval"
        if drop is not None and not drop <= limit["max_recall_drop_pp"]:
            allows = limit["max_recall_drop_pp"]
            failures.append(f"{run['path']}: recall@1 drops {drop:.2f} pp{where}, allowed {allows} pp")
        if not shared >= limit["min_overlap_at_10"]:
            failures.append(f"{run['path']}: overlap@10 is {shared:.3f}{where}, wanted {limit['min_overlap_at_10']}")
    return {"passed": not failures, "limits": allowed, "confident": confident, "failures": failures}


def environment(
    images: ImageList, threads: int, samples: Mapping[int, Mapping[str, list[float]]], load: Mapping[str, Any]
) -> dict[str, Any]:
    """The machine, the packages and the pictures of a measurement, for its JSON.

    load   of the machine while ``samples`` were timed, see ``load_between``
    """
    versions = {name: version for name in PACKAGES if (version := package_version(name))}
    return {
        "cpu": cpu_name(),
        "instruction_sets": instruction_sets(),
        "threads": threads,
        "load": dict(load),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": versions,
        "pictures": len(images),
        "pictures_sha256": images.sha256,
        "timed_calls": {str(size): min(map(len, taken.values())) for size, taken in samples.items()},
        "date": time.strftime("%Y-%m-%d"),
    }


def _enter(stack: ExitStack, paths: Sequence[Path], options: BenchOptions, threads: int) -> _Field:
    """Load engines and reference; the stack closes them. Raises InputError unless all describe one space."""
    loaded = [stack.enter_context(load(path, threads=threads, streams=options.streams)) for path in paths]
    stems = ["reference", *(path.stem for path in paths)]
    engines = [
        _engine(engine, path, path.stem if stems.count(path.stem) == 1 else str(path))
        for engine, path in zip(loaded, paths, strict=True)
    ]
    device = _device(loaded)
    checkpoint = Path(options.reference or _recorded_checkpoint(loaded[0].manifest))
    precisions = {engine.precision for engine in engines}
    base, others, recorded = _reference(stack, checkpoint, threads, device, precisions)
    for engine in engines:
        if engine.spec.space_id != base.spec.space_id:
            raise InputError(
                f"{engine.path} describes space {engine.spec.space_id}, the reference {base.path} describes "
                f"{base.spec.space_id}; bench engines of one model at a time."
            )
    return _Field(base, others, engines, device, recorded)


def _engine(engine: Engine, path: Path, name: str) -> BenchContestant:
    manifest = engine.manifest
    return BenchContestant(
        title=f"{name}: {manifest.backend} {manifest.precision.value}",
        precision=manifest.precision.value,
        run=engine.embed,
        backend=manifest.backend,
        spec=engine.spec,
        path=path,
        checkpoint=manifest.source.get("checkpoint_sha256"),
        stale=stale(path, manifest),
    )


def _device(engines: Sequence[Engine]) -> str:
    """The device of all engines; raises InputError if they have several."""
    devices = sorted({engine.device for engine in engines})
    if len(devices) > 1:
        raise InputError(f"the engines run on {' and on '.join(devices)}; bench engines of one device at a time.")
    return devices[0]


def _reference(
    stack: ExitStack, path: Path, threads: int, device: str, precisions: Collection[str]
) -> tuple[BenchContestant, list[BenchContestant], Evaluation | None]:
    """The reference; the same model in other precisions; and the test pictures that a checkpoint records.

    precisions   of the engines: torch is timed in TF32 too if one of them is TF32
    """
    if path.suffix == ".cgd":
        return _engine(stack.enter_context(load(path, threads=threads)), path, "reference"), [], None
    torch = stack.enter_context(TorchBackend(path, device=device, threads=threads))
    base = BenchContestant(
        title="reference: torch fp32",
        precision="fp32",
        run=torch.run,
        backend="torch",
        spec=torch.spec,
        path=path,
        checkpoint=sha256_file(path),
        cudnn=torch.cudnn,
    )
    runs = {"tf32": torch.run_tf32, "fp16": torch.run_fp16}
    others = [
        replace(base, title=f"reference: torch {precision}", precision=precision, run=run)
        for precision, run in runs.items()
        if device == "cuda" and (precision == "fp16" or precision in precisions)
    ]
    return base, others, torch.evaluation


def _recorded_checkpoint(manifest: Manifest) -> Path:
    recorded = Path(manifest.source.get("checkpoint") or "an unknown place")
    if not recorded.is_file():
        raise InputError(f"the checkpoint of the engine is not at {recorded}; pass --reference CKPT.pt or FP32.cgd.")
    if sha256_file(recorded) != manifest.source["checkpoint_sha256"]:
        raise InputError(f"{recorded} changed since the engine was made from it; export again or pass --reference.")
    return recorded


def _evaluation(
    options: BenchOptions, recorded: Evaluation | None, on_progress: OnProgress
) -> tuple[Evaluation, list[LeftOut]]:
    """The test pictures that can be decoded, and the others. Raises InputError if they cannot be benched on."""
    evaluation = read_evaluation(options.data) if options.data is not None else recorded
    if evaluation is None:
        raise InputError("there are no test pictures to bench on; pass --data FOLDER or LIST.tsv.")
    evaluation.images.check_present("test", "--data")
    evaluation, left_out = without_bad(evaluation, strict=options.strict, on_progress=on_progress)
    evaluation.check_neighbours(NEIGHBOURS, "bench")
    if "max_recall_drop_pp" in (options.limits or {}):
        evaluation.check_recall()
    return evaluation, left_out


def _measure(
    entered: _Field, evaluation: Evaluation, options: BenchOptions, threads: int, on_progress: OnProgress
) -> _Measured:
    spec = entered.reference.spec
    found = retrieve([entered.reference, *entered.engines], evaluation, spec, on_progress)
    timed = [entered.reference, *entered.others, *entered.engines]
    started = cpu_clock()
    samples = {
        size: _time(timed, golden_images(spec, size), options.seconds, on_progress) for size in options.batch_sizes
    }
    return _Measured(evaluation, found, samples, load_between(started, cpu_clock(), threads), threads)


def _time(
    contestants: Sequence[Contestant], pixels: NDArray[np.uint8], seconds: float, on_progress: OnProgress
) -> dict[str, list[float]]:
    """Seconds of each call, by title; the contestants take turns."""
    calls = {contestant.title: partial(contestant.run, pixels) for contestant in contestants}
    return interleaved(calls, seconds, partial(on_progress, f"timing batch {len(pixels)}"))


def _runs(
    engine: BenchContestant,
    reference: BenchContestant,
    measured: _Measured,
    options: BenchOptions,
    on_progress: OnProgress,
) -> list[dict[str, Any]]:
    """The JSON of one engine, a run for each batch size."""
    found, expected = measured.found[engine.title], measured.found[reference.title]
    on_form = partial(on_progress, f"compact forms of {engine.title}")
    forms = compact_forms(options.descriptor_dtypes, options.pcas)
    quality = retrieval_quality(found, expected, measured.evaluation)
    compact = compact_quality(found, expected, measured.evaluation, forms, on_form)
    return [
        {
            "path": str(engine.path),
            "backend": engine.backend,
            "precision": engine.precision,
            "batch": size,
            "threads": measured.threads,
            "streams": options.streams,
            **_speed(taken, engine, reference, size),
            "bytes": engine.path.stat().st_size,
            **quality,
            "compact": compact,
            "stale": engine.stale or _of_another_checkpoint(engine, reference),
        }
        for size, taken in measured.samples.items()
    ]


def _reference_facts(entered: _Field, measured: _Measured) -> dict[str, Any]:
    base = entered.reference
    return {
        "backend": base.backend,
        "precision": base.precision,
        "recall": measured.evaluation.recall(measured.found[base.title].indices),
        "runs": [
            {
                "precision": one.precision,
                "batch": size,
                "threads": measured.threads,
                **_speed(taken, one, base, size),
            }
            for one in (base, *entered.others)
            for size, taken in measured.samples.items()
        ],
    }


def _environment(entered: _Field, measured: _Measured) -> dict[str, Any]:
    base = entered.reference
    return {
        "input": base.spec.input_text,
        **environment(measured.evaluation.images, measured.threads, measured.samples, measured.load),
        **({"gpu": gpu_facts(), "cudnn": base.cudnn} if entered.device == "cuda" else {}),
    }


def _speed(taken: Mapping[str, list[float]], one: BenchContestant, base: BenchContestant, batch: int) -> dict[str, Any]:
    return speed(taken, one.title, base.title if base.backend == "torch" else None, batch)


def _of_another_checkpoint(engine: BenchContestant, base: BenchContestant) -> str | None:
    known = engine.checkpoint and base.checkpoint
    return "made from another checkpoint than the reference" if known and engine.checkpoint != base.checkpoint else None
