"""The paper's claim, checked: does one model of several descriptors beat a single one, and come near an ensemble?

    python benchmarks/ablation.py --data cars196 --weights resnet18.pth -o runs/ablation

Trains S, M, G, SG, GM and SMG from the same weights with the same recipe and several seeds; all descriptors have the
same length. The ensemble joins the descriptors of the S, M and G models of one seed and normalises them again. We
measure the model of the last epoch on held-out classes: nothing is chosen by its test recall. A stopped run continues
where it stopped. Training is counted in CPU seconds, which other programs change little. Inference is timed on FP32
engines for this machine's CPU, which take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads of torch would take cores from the engines

import numpy as np

import charts
from cgd_deploy.cli.terminal import warn_of_load
from cgd_deploy.datasets.evaluation import Evaluation
from cgd_deploy.datasets.layouts import read_dataset
from cgd_deploy.files import sha256_file, write_text
from cgd_deploy.hardware.cpu import available_threads, cpu_clock, cpu_name
from cgd_deploy.hardware.packages import package_version
from cgd_deploy.hardware.timing import interleaved, load_between, percentiles_ms
from cgd_deploy.pictures.images import ImageList
from cgd_deploy.runtime.descriptors import Descriptors
from cgd_deploy.runtime.engine import load
from cgd_deploy.runtime.golden import golden_images
from cgd_deploy.spec import Precision
from cgd_export.engine_from_onnx import engine_from_onnx
from cgd_export.onnx_from_checkpoint import onnx_from_checkpoint
from cgd_train.checkpoint import load_checkpoint
from cgd_train.config import TrainConfig
from cgd_train.measuring import embed_images
from cgd_train.trainer import train

SINGLES = ("S", "M", "G")
COMBINED = ("SG", "GM", "SMG")
ENSEMBLE = "S + M + G"
BATCHES = (1, 8)
WATCHED = 196  # test pictures that training itself looks at; the others are embedded once, at the end


def main() -> None:
    options = _options()
    dataset = read_dataset(options.data)
    models = {name: [] for name in (*SINGLES, *options.combined, ENSEMBLE)}
    for seed in range(options.seeds):
        descriptors = {}
        for name in (*SINGLES, *options.combined):
            run = _train(_recipe(options, name, seed), dataset.training, dataset.testing)
            descriptors[name] = _descriptors(run, dataset.testing)
            models[name].append(_measured(descriptors[name], dataset.testing, seed, _cpu_seconds(run)))
        seconds = sum(models[name][-1]["training_cpu_seconds"] for name in SINGLES)
        joined = ensemble([descriptors[name] for name in SINGLES])
        models[ENSEMBLE].append(_measured(joined, dataset.testing, seed, seconds))
    result = {
        "schema": 1,
        "recipe": _told(options),
        "environment": _environment(options, dataset.testing.images),
        "models": [{"descriptors": name, **_cost(options, name), "seeds": seeds} for name, seeds in models.items()],
    }
    result["environment"]["load"] = _add_latency(result["models"], options)
    warn_of_load(result["environment"]["load"])
    write_text(options.json, json.dumps(result, indent=1) + "\n")
    chart(result, options.json.with_suffix(".svg"))
    print(f"wrote {options.json} and its chart {options.json.with_suffix('.svg')}")


def ensemble(parts: Sequence[Descriptors]) -> Descriptors:
    """Unit descriptors [N, D] of several models -> unit descriptors [N, sum of D]."""
    joined = np.concatenate(parts, axis=1)
    return joined / np.linalg.norm(joined, axis=1, keepdims=True)


def chart(result: dict[str, Any], path: Path) -> None:
    """SVG of the recall of each model: a dot for each seed, a bar at the mean, and the cost of a picture below."""
    figure = charts.new_figure(7, 3.6)
    axes = figure.subplots()
    models = result["models"]
    baseline = models[0]["latency_ms"]["1"]["p50"]
    colours = {1: "#8a8a8a", 2: "#2c7fb8", 3: "#d95f0e"}
    for place, model in enumerate(models):
        recalls = [100 * seed["recall"]["1"] for seed in model["seeds"]]
        colour = colours.get(len(model["descriptors"]), "#111111")
        axes.plot([place] * len(recalls), recalls, "o", color=colour, markersize=5, alpha=0.5, markeredgewidth=0)
        axes.plot(place, np.mean(recalls), "_", color=colour, markersize=24, markeredgewidth=2.5)
    costs = [model["latency_ms"]["1"]["p50"] / baseline for model in models]
    names = [f"{model['descriptors']}\n{cost:.1f} x" for model, cost in zip(models, costs, strict=True)]
    axes.set_xticks(range(len(models)), names)
    axes.set_xlabel("descriptors, and the time of one picture in times that of S")
    axes.set_ylabel("recall@1, %")
    charts.tidy(axes, "y")
    charts.save(figure, path)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="data set")
    parser.add_argument("--weights", type=Path, required=True, help="ImageNet weights of the backbone")
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--combined", nargs="+", default=COMBINED, help="beside S, M and G")
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--size", type=int, default=112)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--classes-per-batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--head-lr", type=float, default=10.0)
    parser.add_argument("--warm-up", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=30.0, help="of timing for each batch size")
    parser.add_argument("-o", "--out", type=Path, default=Path("runs/ablation"), help="folder of the runs")
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "results" / "ablation.json")
    return parser.parse_args()


def _recipe(options: argparse.Namespace, descriptors: str, seed: int) -> TrainConfig:
    out = options.out / f"{descriptors}-{seed}"
    return TrainConfig(
        backbone=options.backbone,
        weights=options.weights,
        descriptors=descriptors,
        dim=options.dim,
        size=options.size,
        epochs=options.epochs,
        classes_per_batch=options.classes_per_batch,
        lr=options.lr,
        head_lr=options.head_lr,
        warm_up=options.warm_up,
        amp="bf16",
        seed=seed,
        out=out,
        resume=(out / "last.pt").exists(),
    )


def _told(options: argparse.Namespace) -> dict[str, Any]:
    """The recipe for the JSON, without options that differ between runs and without paths of this machine."""
    config = _recipe(options, "S", 0)
    told = {name: value for name, value in vars(config).items() if name not in ("data", "out", "resume", "seed")}
    return {**told, "weights": sha256_file(options.weights), "descriptors": "as below"}


def _train(config: TrainConfig, training: ImageList, testing: Evaluation) -> Path:
    train(config, training, testing.images.sample(WATCHED))
    return config.out


def _descriptors(run: Path, testing: Evaluation) -> Descriptors:
    return embed_images(load_checkpoint(run / "last.pt").model, testing.images, workers=available_threads())


def _cpu_seconds(run: Path) -> float:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return sum(json.loads(line)["training_cpu_seconds"] for line in lines)


def _measured(descriptors: Descriptors, testing: Evaluation, seed: int, seconds: float) -> dict[str, Any]:
    return {"seed": seed, **testing.measure(descriptors), "training_cpu_seconds": round(seconds, 1)}


def _cost(options: argparse.Namespace, name: str) -> dict[str, int]:
    """Length of the descriptor, and number of parameters of the deployed model."""
    runs = [options.out / f"{part}-0" for part in (SINGLES if name == ENSEMBLE else [name])]
    models = [load_checkpoint(run / "last.pt").model for run in runs]
    deployed = [p for model in models for n, p in model.named_parameters() if not n.startswith("auxiliary.")]
    return {"dim": options.dim * len(runs), "parameters": sum(p.numel() for p in deployed)}


def _add_latency(models: list[dict[str, Any]], options: argparse.Namespace) -> dict[str, Any]:
    """Add milliseconds of one call by batch size to each model; the ensemble calls its three engines in sequence.

    Returns the load of the machine meanwhile.
    """
    with ExitStack() as stack:
        engines = {}
        for name in (*SINGLES, *options.combined):
            run = options.out / f"{name}-0"
            onnx_from_checkpoint(run / "last.pt", run / "model.onnx")
            engine_from_onnx(run / "model.onnx", run / "model.cgd", Precision.FP32)
            engines[name] = stack.enter_context(load(run / "model.cgd"))
        calls: dict[str, Callable[..., object]] = {name: engine.embed for name, engine in engines.items()}
        calls[ENSEMBLE] = lambda pixels: ensemble([engines[name].embed(pixels) for name in SINGLES])
        started = cpu_clock()
        for batch in BATCHES:
            pixels = golden_images(engines["S"].spec, batch)
            taken = interleaved(
                {name: (lambda call=call, pixels=pixels: call(pixels)) for name, call in calls.items()}, options.seconds
            )
            for model in models:
                latency = percentiles_ms(taken[model["descriptors"]])
                model.setdefault("latency_ms", {})[str(batch)] = latency
        return load_between(started, cpu_clock(), available_threads())


def _environment(options: argparse.Namespace, testing: ImageList) -> dict[str, Any]:
    packages = ("cgd-deploy", "torch", "openvino", "onnxruntime")
    return {
        "cpu": cpu_name(),
        "threads": available_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "packages": {name: version for name in packages if (version := package_version(name))},
        "pictures": len(testing),
        "pictures_sha256": testing.sha256,
        "date": time.strftime("%Y-%m-%d"),
    }


if __name__ == "__main__":
    main()
