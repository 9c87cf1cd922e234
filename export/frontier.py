"""What each engine of a model costs and keeps: float, plain INT8, mixtures and distilled INT8, measured alike.

Opens models as their engines will run them, and builds no engine. The engine of a row is built by ``build_row``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import onnx

from cgd_deploy.errors import InputError
from cgd_deploy.files import sha256_file
from cgd_deploy.hardware.cpu import available_threads, cpu_clock, cpu_name
from cgd_deploy.hardware.timing import load_between
from cgd_deploy.pictures.images import ImageList
from cgd_deploy.runtime.backends import Backend
from cgd_deploy.runtime.backends.tensorrt import MODULES
from cgd_deploy.runtime.golden import golden_images
from cgd_deploy.spec import ModelSpec, Precision

from .build_options import Int8Options
from .engine_from_onnx import fp32_model, models_of, opened
from .int8.budget import Found, retrieval_facts
from .int8.guard import ranked_parts
from .int8.recipe import Recipe
from .int8.trials import Timer, Trials, timed
from .progress import QUIET, Progress
from .typed import MakeGraph, check_float_precision, int8_graph, precisions_here

MIXTURES = (1, 2, 4, 8)
"""How many parts the mixtures leave in float: residual blocks, or all residual adds together."""
BATCHES = (1, 8)
WORDS = {
    "onnx_sha256": "model",
    "calibration_sha256": "list of calibration pictures",
    "distillation_sha256": "list of pictures for --distill",
}
"""What each checksum of a frontier is of."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """An engine that could be built.

    name         "fp32", "bf16", "int8", "int8-4" with four parts in float, or "distilled"
    open         opens the model as the engine will run it
    recipe       of an INT8 model, else None
    keep_float   convolutions and residual adds that stay float in an INT8 model
    floats       precision of these
    """

    name: str
    precision: Precision
    open: Callable[[], Backend]
    recipe: Recipe | None = None
    keep_float: tuple[str, ...] = ()
    floats: Precision | None = None


def frontier(
    model_path: str | Path,
    backend: str,
    calibration: ImageList,
    int8: Int8Options,
    progress: Progress = QUIET,
    timer: Timer | None = None,
) -> dict[str, Any]:
    """Measure the engines that ``backend`` can have here: their time, and what held-out queries find.

    int8    its budget names the test pictures, its limits do not count; ``distill`` adds a distilled engine
    timer   times all engines in turns, None: ``timed``

    Returns a table for JSON with "rows". Each row has "name", "precision", "float_precision", "ms" of a picture by
    batch size, "best" (whether no other row is as fast and keeps more) and "retrieval", see ``retrieval_facts``.
    Raises InputError for a backend on GPUs, and what ``engine_from_onnx`` raises.
    """
    if backend in MODULES:
        raise InputError(f"{backend} engines do not run before they are built; pass --backend openvino or onnxruntime.")
    if int8.budget is None:
        raise InputError("a frontier is measured on test pictures; pass --data FOLDER or LIST.tsv with them.")
    check_float_precision(backend, int8.float_precision)
    int8.check(Precision.INT8, calibration)
    started = cpu_clock()
    model, metadata = fp32_model(Path(model_path))
    plain = replace(int8, distill=None)
    make = int8_graph(model, backend, calibration, plain, _unfinished(model_path), progress)
    evaluation, always = int8.budget.evaluation, frozenset(int8.keep_float)
    trials = Trials(model, models_of(model, backend, make, plain), evaluation, always, progress)
    candidates = [
        *_floats(model, backend),
        *_mixtures(model, backend, make, plain, trials),
        *_distilled(model, backend, calibration, int8, _unfinished(model_path), progress),
    ]
    found = [_measured(candidate, trials) for candidate in candidates]
    ms = _milliseconds(candidates, metadata.spec, timer or timed)
    rows = [
        {
            "name": candidate.name,
            "precision": candidate.precision.value,
            "float_precision": candidate.floats and candidate.floats.value,
            "ms": ms[candidate.name],
            "retrieval": {**retrieval_facts(each, evaluation, {}), "measured_on": "engine"},
        }
        for candidate, each in zip(candidates, found, strict=True)
    ]
    return {
        "schema": 1,
        "backend": backend,
        "cpu": cpu_name(),
        "load": load_between(started, cpu_clock(), available_threads()),
        **_sources(model_path, calibration, int8.distill),
        "rows": [{**row, "best": _is_best(row, rows)} for row in rows],
    }


def build_row(
    measured: Mapping[str, Any], name: str, model_path: str | Path, calibration: ImageList | None, int8: Int8Options
) -> tuple[Precision, Int8Options]:
    """The precision and the INT8 options by which ``engine_from_onnx`` builds the row ``name`` of a ``frontier``.

    Raises InputError if there is no such row, or if model or pictures differ from those that were measured.
    """
    row = find_row(measured, name)
    precision = Precision(row["precision"])
    distilled = name == "distilled"
    if bool(int8.distill) != distilled:
        told = "repeat the --distill that it was measured with" if distilled else "leave --distill out"
        raise InputError(f"{name} is {'' if distilled else 'not '}a distilled engine; {told}.")
    here = _sources(model_path, calibration, int8.distill)
    counted = (
        ["onnx_sha256"] + ["calibration_sha256"] * bool(row["float_precision"]) + ["distillation_sha256"] * distilled
    )
    if other := next((key for key in counted if here[key] != measured[key]), None):
        raise InputError(
            f"the frontier was measured with another {WORDS[other]}; repeat it with --frontier, or pass the same."
        )
    if precision is not Precision.INT8:
        return precision, Int8Options()
    facts = row["retrieval"]
    recipe = Recipe.parse(facts["recipe"])
    floats = Precision(row["float_precision"])
    return precision, replace(
        int8, recipe=recipe, keep_float=facts["keep_float"], float_precision=floats, retrieval=facts
    )


def find_row(measured: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The row ``name`` of a ``frontier``. Raises InputError that lists the names if there is none."""
    row: Mapping[str, Any] | None = next((row for row in measured["rows"] if row["name"] == name), None)
    if row is None:
        names = ", ".join(row["name"] for row in measured["rows"])
        raise InputError(f"the frontier has no row {name!r:.60}; expected {names}.")
    return row


def _sources(model_path: str | Path, calibration: ImageList | None, distill: ImageList | None) -> dict[str, str | None]:
    return {
        "onnx_sha256": sha256_file(model_path),
        "calibration_sha256": calibration.sha256 if calibration else None,
        "distillation_sha256": distill.sha256 if distill else None,
    }


def _unfinished(model_path: str | Path) -> Path:
    return Path(model_path).with_suffix(".frontier.unfinished")


def _floats(model: onnx.ModelProto, backend: str) -> Iterator[Candidate]:
    for precision in precisions_here(backend):
        if precision is not Precision.INT8:
            yield Candidate(name=precision.value, precision=precision, open=partial(opened, backend, model, precision))


def _mixtures(
    model: onnx.ModelProto, backend: str, make: MakeGraph, int8: Int8Options, trials: Trials
) -> Iterator[Candidate]:
    """Plain INT8, and INT8 with the parts in float that gain most neighbours for their cost."""
    recipe = int8.first_recipe(backend)
    ranked = ranked_parts(model, trials, recipe)
    for count in (0, *(count for count in MIXTURES if count <= len(ranked))):
        names = trials.work.in_order(trials.always.union(*ranked[:count]))
        floats = int8.floats(backend, names)
        yield Candidate(
            name=f"int8-{count}" if count else "int8",
            precision=Precision.INT8,
            open=partial(_opened_int8, backend, make, recipe, names, floats),
            recipe=recipe,
            keep_float=names,
            floats=floats,
        )


def _opened_int8(backend: str, make: MakeGraph, recipe: Recipe, names: Collection[str], floats: Precision) -> Backend:
    return opened(backend, make(recipe, names), floats)


def _distilled(
    model: onnx.ModelProto,
    backend: str,
    calibration: ImageList,
    int8: Int8Options,
    state: Path,
    progress: Progress,
) -> Iterator[Candidate]:
    if int8.distill:
        make = int8_graph(model, backend, calibration, int8, state, progress)
        recipe, names = int8.first_recipe(backend), tuple(int8.keep_float)
        floats = int8.floats(backend, names)
        yield Candidate(
            name="distilled",
            precision=Precision.INT8,
            open=partial(_opened_int8, backend, make, recipe, names, floats),
            recipe=recipe,
            keep_float=names,
            floats=floats,
        )


def _measured(candidate: Candidate, trials: Trials) -> Found:
    """What held-out queries find."""
    _, found = trials.compared(candidate.open(), f"Measuring {candidate.name}")
    return trials.trial(candidate.recipe, candidate.keep_float, found) if candidate.recipe else found


def _milliseconds(candidates: Sequence[Candidate], spec: ModelSpec, timer: Timer) -> dict[str, dict[str, float]]:
    """Median milliseconds for one picture, by candidate and batch size; all candidates take turns."""
    found: dict[str, dict[str, float]] = {candidate.name: {} for candidate in candidates}
    with ExitStack() as stack:
        runs = {candidate.name: stack.enter_context(candidate.open()).run for candidate in candidates}
        for size in BATCHES:
            seconds = timer({name: partial(run, golden_images(spec, size)) for name, run in runs.items()})
            for name, value in seconds.items():
                found[name][str(size)] = round(1e3 * value / size, 4)
    return found


def _is_best(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether no other row is at least as fast in full batches and keeps at least as much, and one of these better."""

    def merits(one: Mapping[str, Any]) -> tuple[float, float]:
        return -one["ms"][str(BATCHES[-1])], one["retrieval"]["overlap_at_10"]

    speed, kept = merits(row)
    return not any(other[0] >= speed and other[1] >= kept and other != (speed, kept) for other in map(merits, rows))
