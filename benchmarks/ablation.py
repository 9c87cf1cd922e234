"""The paper's claim, checked: does one model of several descriptors beat a single one, and come near an ensemble?

    python benchmarks/ablation.py --data cars196 --weights resnet50.pth
    python benchmarks/ablation.py --data cars196 --weights resnet50.pth --descriptors S G SG --no-latency
    python benchmarks/ablation.py --latency-only

Trains S, M, G, SG, GM and SMG by one recipe, all with --dim values. The ensemble S+M+G has as many values: its three
models have a third each, and their descriptors are joined and normalised again. All models of one seed come before the
next seed. A finished training is written into the JSON file at once and never trained again, so a run can be stopped,
and continued on another machine by that file. An unfinished training continues from its folder in --runs. The parts of
an unfinished ensemble continue from their descriptors.npy there.

We measure the model of the last epoch on all test pictures, so nothing is chosen by its test recall. While it trains, a
model sees only a few test pictures, see ``watched``. With --patience their recall decides when a training stops, so
they choose the number of epochs.

Latency is the time of FP32 engines on this machine, which take turns. It does not depend on weights, so the engines
are built from untrained models.
"""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import fields, replace
from functools import partial
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads of torch would take cores from the engines

import numpy as np
import torch

import charts
import claim
import running
import trainings
from cgd_deploy.cli.terminal import warn_of_load
from cgd_deploy.datasets.evaluation import Evaluation
from cgd_deploy.datasets.layouts import Dataset, read_dataset
from cgd_deploy.errors import InputError
from cgd_deploy.files import replacing, sha256_file
from cgd_deploy.hardware.cpu import available_threads, cpu_clock
from cgd_deploy.hardware.packages import package_version
from cgd_deploy.hardware.timing import interleaved, load_between, percentiles_ms
from cgd_deploy.pictures.images import ImageList
from cgd_deploy.quality.contestants import OnProgress
from cgd_deploy.runtime.descriptors import Descriptors
from cgd_deploy.runtime.engine import load
from cgd_deploy.runtime.enginefile import Manifest
from cgd_deploy.runtime.golden import golden_images
from cgd_deploy.spec import ModelSpec, Precision
from cgd_export.engine_from_onnx import engine_from_onnx
from cgd_export.onnx_from_checkpoint import onnx_from_checkpoint
from cgd_train.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from cgd_train.config import TrainConfig
from cgd_train.measuring import embed_images, mean_cosine
from cgd_train.model import CGD
from claim import ENSEMBLE, MODELS, SINGLES
from trainings import Record, add_options, base_config, changed, checksums, cost, device_of, machine, run_training

SCHEMA = 2
BATCHES = (1, 8)
WATCHED = 98
"""Classes of which a training watches two test pictures."""
PARTS = {name: f"{name} of {ENSEMBLE}" for name in SINGLES}
"""The ensemble's models, by their descriptor."""
COLOURS = {1: "#8a8a8a", 2: "#2c7fb8", 3: "#d95f0e"}
"""By the number of descriptors."""


def measure(options: argparse.Namespace, on_progress: OnProgress) -> running.Result:
    """Train the missing models, then time the engines. Returns the content of the JSON file."""
    record = Record(options.output, SCHEMA)
    record.result.setdefault("latency", None)
    if not options.latency_only:
        config = base_config(options, record.result["recipe"])
        dataset = read_dataset(options.data)
        _begin(record, config, dataset, options)
        for seed, name in product(range(options.seeds), options.descriptors):
            if not record.entry(name, seed):
                train_model(record, replace(config, seed=seed, out=options.runs), dataset, name)
    elif not record.result["recipe"]:
        raise InputError(f"{options.output} holds no recipe to build engines by; train first, or name another -o file.")
    if options.latency_only or (not options.no_latency and _lacks_latency(record, options.descriptors)):
        record.result["latency"] = latency(record.result, options, on_progress)
        warn_of_load(record.result["latency"]["environment"]["load"])
    record.result["compared"] = claim.compared(record.result["entries"])
    return record.result


def changes_of(dim: int, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What each model changes in the recipe; the ensemble stands for its parts, which have a third of ``dim`` each."""
    found = {name: {"descriptors": name, "dim": dim} for name in names if name != ENSEMBLE}
    if ENSEMBLE in names:
        if dim % len(PARTS):
            raise InputError(f"dim={dim} cannot be shared among the models of {ENSEMBLE}; pass a multiple of 6.")
        found |= {part: {"descriptors": name, "dim": dim // len(PARTS)} for name, part in PARTS.items()}
    return found


def _begin(record: Record, config: TrainConfig, dataset: Dataset, options: argparse.Namespace) -> None:
    dataset.testing.check_recall()
    changes = changes_of(config.dim, options.descriptors)
    for change in changes.values():
        changed(config, change)  # refuse a model that cannot be built before anything is trained
    recipe = trainings.settings(config, dataset.training, dataset.testing)
    del recipe["descriptors"]
    pictures = checksums(dataset.training, dataset.testing.images)
    if not record.result["entries"]:
        record.result["latency"] = None  # perhaps of models with another size
    record.begin(recipe, pictures, changes, {"names": options.descriptors, "seeds": options.seeds})


def train_model(record: Record, config: TrainConfig, dataset: Dataset, name: str) -> None:
    """Train the model ``name`` with the seed of ``config``, in a folder below ``config.out``, and record it."""
    if name != ENSEMBLE:
        descriptors, facts = _trained(record, config, dataset, name)
        _add(record, {"name": name, "seed": config.seed, **_measured(descriptors, dataset.testing), **facts})
        return
    parts = [_part(record, config, dataset, part) for part in PARTS.values()]
    trained = [record.entry(part, config.seed) or {} for part in PARTS.values()]
    facts = {
        fact: round(sum(one[fact] for one in trained), 1)
        for fact in ("epochs", "training_cpu_seconds", "training_seconds")
    }
    measured = _measured(ensemble(parts), dataset.testing)
    _add(record, {"name": name, "seed": config.seed, **measured, **facts, "machine": trained[-1]["machine"]})


def _part(record: Record, config: TrainConfig, dataset: Dataset, part: str) -> Descriptors:
    """The test descriptors of a part of the ensemble, which stay in its folder until the ensemble is measured."""
    kept = _folder(config, part) / "descriptors.npy"
    entry = record.entry(part, config.seed)
    if entry and kept.is_file() and sha256_file(kept) == entry["descriptors_sha256"]:
        return np.load(kept)
    descriptors, facts = _trained(record, config, dataset, part)
    with replacing(kept) as temporary, temporary.open("wb") as file:
        np.save(file, descriptors)
    facts["descriptors_sha256"] = sha256_file(kept)
    _add(record, {"name": part, "seed": config.seed, **_measured(descriptors, dataset.testing), **facts})
    return descriptors


def _trained(record: Record, config: TrainConfig, dataset: Dataset, name: str) -> tuple[Descriptors, dict[str, Any]]:
    """Train one model; returns its test descriptors, and what its entry tells of the training."""
    config = changed(replace(config, out=_folder(config, name)), record.result["changes"][name])
    lines = run_training(config, dataset.training, watched(dataset.testing.images))
    device = device_of(config.device)
    model = load_checkpoint(config.out / "last.pt").model.to(device)
    descriptors = embed_images(model, dataset.testing.images, workers=available_threads())
    return descriptors, {"epochs": lines[-1]["epoch"], **cost(lines), "machine": machine(device)}


def _folder(config: TrainConfig, name: str) -> Path:
    return config.out / f"{name.replace(' ', '-')}-{config.seed}"


def _measured(descriptors: Descriptors, testing: Evaluation) -> dict[str, Any]:
    found, _ = testing.neighbours(descriptors, 1)
    return {
        **testing.measure(descriptors),
        "mean_cosine": round(mean_cosine(descriptors), 4),
        "found": claim.packed(testing.first_correct(found) < 1),
    }


def _add(record: Record, entry: dict[str, Any]) -> None:
    record.add(entry)
    record.result["compared"] = claim.compared(record.result["entries"])
    record.save()


def watched(testing: ImageList) -> ImageList:
    """Two pictures of each of up to ``WATCHED`` classes, evenly spread: each has one picture to find.

    They show whether a training works, and cost little next to all test pictures.
    """
    of: dict[str, list[int]] = {}
    for number, label in enumerate(testing.classes or ()):
        of.setdefault(label, []).append(number)
    several = [numbers for numbers in of.values() if len(numbers) > 1]
    step = max(1.0, len(several) / WATCHED)
    chosen = [several[int(place * step)] for place in range(min(WATCHED, len(several)))]
    return testing.subset(sorted(number for numbers in chosen for number in (numbers[0], numbers[len(numbers) // 2])))


def ensemble(parts: Sequence[Descriptors]) -> Descriptors:
    """Unit descriptors [N, D] of several models -> unit descriptors [N, sum of D]."""
    joined = np.concatenate(parts, axis=1)
    return joined / np.linalg.norm(joined, axis=1, keepdims=True)


def _lacks_latency(record: Record, names: Sequence[str]) -> bool:
    timed = record.result["latency"]
    return timed is None or not set(names) <= timed["models"].keys()


def latency(result: running.Result, options: argparse.Namespace, on_progress: OnProgress) -> dict[str, Any]:
    """Parameters and milliseconds of one call by batch size, of each model; the ensemble calls its engines in turn."""
    names = options.descriptors
    dim = result["recipe"]["dim"]
    threads = options.threads or available_threads()
    models: dict[str, dict[str, Any]] = {name: {"parameters": 0, "milliseconds": {}} for name in names}
    with TemporaryDirectory() as folder, ExitStack() as stack:
        engines = {}
        for number, (name, change) in enumerate(changes := list(changes_of(dim, names).items())):
            on_progress("building engines", number / len(changes))
            manifest, parameters = untrained_engine(spec_of(result["recipe"], change), Path(folder) / name)
            engines[name] = stack.enter_context(load(Path(folder) / name / "model.cgd", threads=threads))
            models[ENSEMBLE if name in PARTS.values() else name]["parameters"] += parameters
        on_progress("building engines", 1.0)
        calls: dict[str, Callable[[Any], object]] = {name: engines[name].embed for name in names if name != ENSEMBLE}
        if ENSEMBLE in names:
            calls[ENSEMBLE] = lambda pixels: ensemble([engines[part].embed(pixels) for part in PARTS.values()])
        started = cpu_clock()
        for batch in BATCHES:
            pixels = golden_images(next(iter(engines.values())).spec, batch)
            timed = {name: partial(call, pixels) for name, call in calls.items()}
            taken = interleaved(timed, options.seconds, partial(on_progress, f"timing batches of {batch}"))
            for name in names:
                models[name]["milliseconds"][str(batch)] = percentiles_ms(taken[name])
        load_meanwhile = load_between(started, cpu_clock(), threads)
    return {"environment": _environment(manifest.backend, threads, load_meanwhile), "models": models}


def spec_of(recipe: trainings.Changes, changes: trainings.Changes) -> ModelSpec:
    """The model of a recorded recipe."""
    known = {field.name for field in fields(TrainConfig)} - set(trainings.FIXED)
    read = {name: tuple(value) if isinstance(value, list) else value for name, value in recipe.items()}
    return TrainConfig(**{name: value for name, value in {**read, **changes}.items() if name in known}).spec


def untrained_engine(spec: ModelSpec, folder: Path) -> tuple[Manifest, int]:
    """Build model.cgd in ``folder``, an FP32 engine with random weights; its manifest and number of parameters."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = CGD(spec)
    parameters = sum(p.numel() for p in model.parameters())
    save_checkpoint(Checkpoint(model), folder / "model.pt")
    onnx_from_checkpoint(folder / "model.pt", folder / "model.onnx")
    return engine_from_onnx(folder / "model.onnx", folder / "model.cgd", Precision.FP32), parameters


def _environment(backend: str, threads: int, load_meanwhile: dict[str, Any]) -> dict[str, Any]:
    packages = ("cgd-deploy", "openvino", "onnxruntime", "tensorrt")
    return {
        **machine(torch.device("cuda" if backend.startswith("tensorrt") else "cpu")),
        "threads": threads,
        "backend": backend,
        "system": f"{platform.system()} {platform.machine()}",
        "packages": {name: version for name in packages if (version := package_version(name))},
        "load": load_meanwhile,
    }


def chart(result: running.Result, path: Path) -> None:
    """SVG of each model's recall, with a dot for each seed and its 95 % interval; below, the time of one picture."""
    models, timed = result["compared"]["models"], (result["latency"] or {"models": {}})["models"]
    names = [name for name in MODELS if name in models or name in timed]
    figure = charts.new_figure(7, 5)
    recalls, costs = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    for place, name in enumerate(names):
        colour = COLOURS.get(len(name), "#111111")
        if model := models.get(name):
            mean, low, high = model["recall_at_1"]
            recalls.plot([place, place], [low, high], color=colour, linewidth=1.5)
            recalls.plot(place, mean, "_", color=colour, markersize=20, markeredgewidth=2.5)
            each = model["each"]
            recalls.plot([place] * len(each), each, "o", color=colour, markersize=5, alpha=0.5, markeredgewidth=0)
        if name in timed:
            costs.bar(place, timed[name]["milliseconds"]["1"]["p50"], 0.5, color=colour)
    recalls.set_ylabel("recall@1, % (bar: 95 %)")
    costs.set_ylabel("one picture, ms")
    costs.set_xticks(range(len(names)), names)
    costs.set_xlabel("descriptors; all models have as many values, the ensemble S+M+G together")
    for axes in (recalls, costs):
        charts.tidy(axes, "y")
    charts.save(figure, path)


def main() -> None:
    parser = running.parser(__doc__, Path(__file__).parent / "results" / "ablation.json")
    add_options(parser, "runs/ablation")
    parser.add_argument("--descriptors", nargs="+", choices=MODELS, default=list(MODELS), help="models [default: all]")
    parser.add_argument("--seconds", type=float, default=30.0, help="of timing for each batch size [default: 30]")
    timing = parser.add_mutually_exclusive_group()
    timing.add_argument("--no-latency", action="store_true", help="train only")
    timing.add_argument("--latency-only", action="store_true", help="train nothing; time the engines anew")
    result = running.run(measure, parser.parse_args(), chart)
    print(claim.answer(result))


if __name__ == "__main__":
    main()
