"""The bench: how fast each engine is, and whether it retrieves what the trained model retrieves.

Every engine is measured against one reference on the same pictures, in one run; the result is the JSON contract.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Collection, Mapping, Sequence
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
from ..hardware.timing import interleaved, load_between, percentiles_ms
from ..pictures.images import ImageList
from ..pictures.preprocess import batches
from ..runtime.cuda.facts import gpu_facts
from ..runtime.descriptors import Descriptors
from ..runtime.engine import Engine, load
from ..runtime.enginefile import Manifest
from ..runtime.golden import golden_images
from ..runtime.provenance import stale
from ..search.compact import check_form
from ..search.retrieval import NEIGHBOURS, Retrieved
from ..spec import ModelSpec, Precision
from .comparison import compact_forms, compact_quality, retrieval_quality
from .examples import example_queries
from .reference import TorchBackend
from .report import QueryRow

SCHEMA = 1
QUALITY_BATCH = 8
PACKAGES = (
    "cgd-deploy", "numpy", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "tensorrt-rtx-cu13-bindings",
    "cuda-bindings", "nvidia-cudnn-cu13", "torch",
)  # fmt: skip

LIMITS = {
    Precision.FP32: {"max_recall_drop_pp": 0.05, "min_overlap_at_10": 0.99},
    Precision.TF32: {"max_recall_drop_pp": 0.2, "min_overlap_at_10": 0.98},
    Precision.FP16: {"max_recall_drop_pp": 0.2, "min_overlap_at_10": 0.98},
    Precision.INT8: {"max_recall_drop_pp": 1.0, "min_overlap_at_10": 0.8},
}
"""What the gate allows at recall@1 and among the ten nearest neighbours, by the precision asked for."""

OnProgress = Callable[[str, float], None]
"""Called with what is being done and the fraction of it that is done."""


@dataclass(frozen=True)
class Contestant:
    """Something that embeds: an engine, or the reference.

    checkpoint   sha256 of the checkpoint it was made from, None if that is unknown
    stale        why an engine is not of the model beside it, see ``provenance.stale``
    cudnn        the version of cuDNN that torch on CUDA uses
    """

    title: str
    backend: str
    precision: str
    spec: ModelSpec
    run: Callable[[NDArray[np.uint8]], Descriptors]
    path: Path
    checkpoint: str | None = None
    stale: str | None = None
    cudnn: int | None = None


def bench(
    engine_paths: Sequence[Path],
    *,
    data: str | Path | None = None,
    reference: str | Path | None = None,
    batch_sizes: Sequence[int] = (1, 8),
    seconds: float = 20.0,
    threads: int | None = None,
    streams: int = 1,
    limits: Mapping[str, float] | None = None,
    descriptor_dtypes: Sequence[str] = (),
    pcas: Sequence[int] = (),
    queries: int = 8,
    strict: bool = False,
    on_progress: OnProgress = lambda what, done: None,
) -> tuple[dict[str, Any], list[QueryRow]]:
    """Measure engines against the model they came from; returns the bench JSON and example queries for the report.

    A checkpoint runs in torch on the engines' device; on CUDA it is timed in FP16 autocast as well as in FP32, and
    in TF32 if one of the engines is TF32.

    data        folder of a data set or LIST.tsv; by default the test pictures that the checkpoint records
    reference   a checkpoint (torch) or an engine; by default the checkpoint that the first engine was made from
    seconds     of timing for each batch size
    streams     of each engine, see ``load``
    limits      override LIMITS for every precision
    strict      stop at the first bad test picture; otherwise bad pictures are left out and listed in the result
    descriptor_dtypes, pcas   compact forms of each engine's gallery to measure too, see ``quality.compact_forms``

    Raises InputError, EngineError, CheckpointError or MissingDependency; a missed limit is in the result's gate.
    """
    threads = threads or available_threads()
    paths = list(dict.fromkeys(map(Path, engine_paths)))
    stems = ["reference", *(path.stem for path in paths)]
    with ExitStack() as stack:
        loaded = [stack.enter_context(load(path, threads=threads, streams=streams)) for path in paths]
        engines = [
            _engine(engine, path, path.stem if stems.count(path.stem) == 1 else str(path))
            for engine, path in zip(loaded, paths, strict=True)
        ]
        device = _device(loaded)
        checkpoint = reference or _recorded_checkpoint(loaded[0].manifest)
        precisions = {engine.precision for engine in engines}
        base, others, recorded = _reference(stack, checkpoint, threads, device, precisions)
        for engine in engines:
            if engine.spec.space_id != base.spec.space_id:
                raise InputError(
                    f"{engine.path} describes space {engine.spec.space_id}, the reference {base.path} describes "
                    f"{base.spec.space_id}; bench engines of one model at a time."
                )
        evaluation, left_out = _evaluation(data, recorded, strict, on_progress)
        if "max_recall_drop_pp" in (limits or {}):
            evaluation.check_recall()
        forms = compact_forms(descriptor_dtypes, pcas)
        for dtype, pca in forms:
            check_form(dtype, pca, base.spec.dim, len(evaluation.gallery))
        found = _retrieve([base, *engines], evaluation, on_progress)
        started = cpu_clock()
        timed = [base, *others, *engines]
        samples = {size: _time(timed, size, seconds, on_progress) for size in batch_sizes}
        machine_load = load_between(started, cpu_clock(), threads)
    expected = found[base.title]
    runs = []
    for engine in engines:
        quality = retrieval_quality(found[engine.title], expected, evaluation)
        on_form = partial(on_progress, f"compact forms of {engine.title}")
        compact = compact_quality(found[engine.title], expected, evaluation, forms, on_form)
        for size in batch_sizes:
            runs.append(
                {
                    "path": str(engine.path),
                    "backend": engine.backend,
                    "precision": engine.precision,
                    "batch": size,
                    "threads": threads,
                    "streams": streams,
                    **_speed(samples[size], engine, base, size),
                    "bytes": engine.path.stat().st_size,
                    **quality,
                    "compact": compact,
                    "stale": engine.stale or _of_another_checkpoint(engine, base),
                }
            )
    result = {
        "schema": SCHEMA,
        "notes": list(evaluation.images.notes),
        "environment": {
            "input": base.spec.input_text,
            **environment(evaluation.images, threads, samples, machine_load),
            **({"gpu": gpu_facts(), "cudnn": base.cudnn} if device == "cuda" else {}),
        },
        "queries": evaluation.asked,
        "reference": {
            "backend": base.backend,
            "precision": base.precision,
            "recall": evaluation.recall(expected.indices),
            "runs": [
                {"precision": one.precision, "batch": size, "threads": threads, **_speed(taken, one, base, size)}
                for one in (base, *others)
                for size, taken in samples.items()
            ],
        },
        "engines": runs,
        "gate": gate(runs, limits),
        "left_out": [picture._asdict() for picture in left_out],
    }
    return result, example_queries(found, base.title, evaluation, queries)


def gate(runs: Sequence[Mapping[str, Any]], limits: Mapping[str, float] | None = None) -> dict[str, Any]:
    """Hold each run's recall@1 drop (where there are classes) and overlap@10 against the limits of its precision."""
    allowed = {run["precision"]: {**LIMITS[Precision(run["precision"])], **(limits or {})} for run in runs}
    failures = []
    for run in {run["path"]: run for run in runs}.values():
        limit = allowed[run["precision"]]
        drop = run["recall_drop_pp"].get("1")
        if drop is not None and not drop <= limit["max_recall_drop_pp"]:
            failures.append(f"{run['path']}: recall@1 drops {drop:.2f} pp, allowed {limit['max_recall_drop_pp']} pp")
        if not run["overlap_at_10"] >= limit["min_overlap_at_10"]:
            failures.append(
                f"{run['path']}: overlap@10 is {run['overlap_at_10']:.3f}, wanted {limit['min_overlap_at_10']}"
            )
    return {"passed": not failures, "limits": allowed, "failures": failures}


def environment(
    images: ImageList, threads: int, samples: Mapping[int, Mapping[str, list[float]]], load: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything around the numbers that could have changed them.

    load   of the machine while ``samples`` were taken, see ``load_between``
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


def _engine(engine: Engine, path: Path, name: str) -> Contestant:
    manifest = engine.manifest
    precision = manifest.precision.value
    title = f"{name}: {manifest.backend} {precision}"
    checkpoint = manifest.source.get("checkpoint_sha256")
    return Contestant(
        title, manifest.backend, precision, engine.spec, engine.embed, path, checkpoint, stale(path, manifest)
    )


def _device(engines: Sequence[Engine]) -> str:
    """The device of all engines; raises InputError if they have several."""
    devices = sorted({engine.device for engine in engines})
    if len(devices) > 1:
        raise InputError(f"the engines run on {' and on '.join(devices)}; bench engines of one device at a time.")
    return devices[0]


def _reference(
    stack: ExitStack, path: str | Path, threads: int, device: str, precisions: Collection[str]
) -> tuple[Contestant, list[Contestant], Evaluation | None]:
    """The reference; the same model in other precisions; and the test pictures that a checkpoint records.

    precisions   of the engines: torch is timed in TF32 too if one of them is TF32
    """
    path = Path(path)
    if path.suffix == ".cgd":
        return _engine(stack.enter_context(load(path, threads=threads)), path, "reference"), [], None
    torch = stack.enter_context(TorchBackend(path, device=device, threads=threads))
    base = Contestant(
        "reference: torch fp32", "torch", "fp32", torch.spec, torch.run, path, sha256_file(path), cudnn=torch.cudnn
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
        raise InputError(
            f"the checkpoint that the engine was made from is not at {recorded}; pass --reference CKPT.pt or FP32.cgd."
        )
    if sha256_file(recorded) != manifest.source["checkpoint_sha256"]:
        raise InputError(f"{recorded} changed since the engine was made from it; export again or pass --reference.")
    return recorded


def _evaluation(
    data: str | Path | None, recorded: Evaluation | None, strict: bool, on_progress: OnProgress
) -> tuple[Evaluation, list[LeftOut]]:
    """The test pictures that can be decoded, and the others."""
    evaluation = read_evaluation(data) if data is not None else recorded
    if evaluation is None:
        raise InputError("there are no test pictures to bench on; pass --data FOLDER or LIST.tsv.")
    evaluation.images.check_present("test", "--data")
    evaluation, left_out = without_bad(evaluation, strict=strict, on_progress=on_progress)
    if evaluation.offered <= NEIGHBOURS:
        raise InputError(
            f"bench compares {NEIGHBOURS} neighbours a picture and got {len(evaluation.images)} pictures; "
            f"pass at least {NEIGHBOURS + 2}, and {NEIGHBOURS + 1} to search in."
        )
    return evaluation, left_out


def _of_another_checkpoint(engine: Contestant, base: Contestant) -> str | None:
    known = engine.checkpoint and base.checkpoint
    return "made from another checkpoint than the reference" if known and engine.checkpoint != base.checkpoint else None


def _retrieve(
    contestants: Sequence[Contestant], evaluation: Evaluation, on_progress: OnProgress
) -> dict[str, Retrieved]:
    parts: dict[str, list[Descriptors]] = {contestant.title: [] for contestant in contestants}
    seen = 0
    for indices, pixels in batches(evaluation.images, contestants[0].spec, QUALITY_BATCH):
        for contestant in contestants:
            parts[contestant.title].append(contestant.run(pixels))
        seen += len(indices)
        on_progress("embedding", seen / len(evaluation.images))
    depth = min(max(NEIGHBOURS, *evaluation.recall_at), evaluation.offered)
    found = {}
    for title, part in parts.items():
        descriptors = np.concatenate(part)
        found[title] = Retrieved(descriptors, *evaluation.neighbours(descriptors, depth))
    return found


def _time(
    contestants: Sequence[Contestant], batch_size: int, seconds: float, on_progress: OnProgress
) -> dict[str, list[float]]:
    pixels = golden_images(contestants[0].spec, batch_size)
    calls = {contestant.title: (lambda run=contestant.run: run(pixels)) for contestant in contestants}
    return interleaved(calls, seconds, lambda done: on_progress(f"timing batch {batch_size}", done))


def _speed(taken: Mapping[str, list[float]], engine: Contestant, base: Contestant, batch: int) -> dict[str, Any]:
    median = float(np.median(taken[engine.title]))
    reference = float(np.median(taken[base.title]))
    return {
        "latency_ms": percentiles_ms(taken[engine.title]),
        "images_per_second": round(batch / median, 3),
        "speedup_vs_torch": round(reference / median, 4) if base.backend == "torch" else None,
    }
