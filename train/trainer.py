"""Train on labelled pictures; write best.pt, last.pt and metrics.jsonl."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from cgd_deploy.cli.terminal import errors
from cgd_deploy.datasets.evaluation import Evaluation, left_out_queries
from cgd_deploy.datasets.layouts import read_dataset
from cgd_deploy.errors import CgdError, InputError
from cgd_deploy.hardware.cpu import available_threads
from cgd_deploy.pictures.images import ImageList

from .checkpoint import Checkpoint, load_checkpoint
from .config import TrainConfig
from .data import EvaluationPictures, Pixels, TrainingPictures, training_batches
from .measuring import Describe, failure, in_float32, measure
from .model import CGD
from .pretrained import with_weights_file
from .processes import Processes, joined, share_threads
from .run import (
    best_epoch,
    check_best,
    check_unchanged,
    good_pictures,
    last_epoch,
    run_settings,
    save_epoch,
    save_progress,
    start_run,
)
from .sampler import epoch_batches
from .schedule import learning_rate
from .step import Losses, Stepper
from .whitening import SAMPLE, whiten_heads

EVALUATION_BATCH = 64
DIFFERENCE = 0.01
"""Between recall@1 in float32 and in the training's arithmetic, more than this is worth a warning."""
MEANS = {
    "loss": "total",
    "ranking": "ranking",
    "ranking_share": "ranking_share",
    "auxiliary": "auxiliary",
    "gradient_norm": "gradient_norm",
}
"""Names in metrics.jsonl, and the fields of ``Losses`` whose mean over an epoch they hold."""
MEASURES = ("recall", "map_at_r", "queries", "mean_cosine")
"""Names in metrics.jsonl that are null for an epoch without an evaluation."""


def train(config: TrainConfig, train_images: ImageList | None = None, test_images: ImageList | None = None) -> Path:
    """Train a CGD model, measure it on the test pictures as it goes, and return the path of best.pt.

    train_images, test_images   lists with classes; None: read ``config.data``, by its own split, or else with the first
                                half of its classes for training and the second half for testing

    Writes three files into ``config.out``, each atomically:

    best.pt         the model with the best recall@1, the later of equals
    last.pt         the latest model, and the state from which ``config.resume`` continues
    metrics.jsonl   a line per epoch; epoch 0 is the untrained model. What was not measured is null. Recall is
                    measured in the training's arithmetic; if that is not float32, best.pt gets both at the end

    A resumed run sees the same batches and pictures as a run that was never interrupted. Under ``torchrun``, every
    process computes a part of each batch and of the test pictures.
    Raises InputError if the pictures or the run folder cannot be used, CgdError if a loss or descriptor is not finite.

    Example:

        best = train(TrainConfig(data="pictures", out=Path("run"), weights=Path("resnet50.pth")))
    """
    device = _device(config.device)
    with joined(device) as processes, torch.random.fork_rng([device] if device.type == "cuda" else []):
        training, testing, notes = _lists(config, train_images, test_images)
        _check_lists(training, testing)
        return _train(config, training, testing, notes, device, processes)


def _train(
    config: TrainConfig,
    training: ImageList,
    testing: Evaluation,
    notes: tuple[str, ...],
    device: torch.device,
    processes: Processes,
) -> Path:
    processes.part(config.batch)  # refuse a batch that cannot be shared before pictures are read
    resumed = last_epoch(config)
    config = with_weights_file(config, processes)
    training, testing, left_out = good_pictures(training, testing, resumed, config.strict, processes)
    _check_lists(training, testing)
    _batches(config, training, epoch=1)  # refuse too few classes before anything is written
    share_threads(config.threads)
    if note := left_out_queries(testing.asked):
        notes += (note,)
    settings = run_settings(config, training, testing)
    if resumed:
        checkpoint, more = resumed, check_unchanged(config.out / "last.pt", resumed, settings, training, testing)
    else:
        classes = len(set(training.classes or ()))
        checkpoint, more = start_run(config, settings, training, testing, classes, left_out)
    run = _Training.of(config, checkpoint, training, testing, device, processes)
    with run.progress:
        for note in notes + more:
            run.tell(note)
        if not resumed:
            if config.whitens:
                run.whiten()
            check_best(checkpoint.model, config.out)
        _train_epochs(run, checkpoint)
        _check_in_float32(run, checkpoint)
    return config.out / "best.pt"


def _train_epochs(run: _Training, checkpoint: Checkpoint) -> None:
    config, metrics, warned = run.config, checkpoint.trainer["metrics"], False
    for epoch in range(len(metrics), config.epochs + 1):
        if _has_converged(metrics, config.patience):
            run.tell(f"no better recall@1 for {config.patience} epochs: stopped")
            break
        metrics.append(run.epoch(epoch))
        checkpoint.trainer["stepper"] = run.stepper.state_dict()
        if run.processes.first:
            save_epoch(checkpoint, config.out)
        run.tell(_told(metrics[-1], config.epochs))
        if not warned and (sentence := failure(metrics, config.epochs)):
            run.warn(sentence)
            warned = True


def _check_in_float32(run: _Training, checkpoint: Checkpoint) -> None:
    """Measure best.pt in float32 too, if the training measured it in another format, and add the result to its line."""
    config, metrics = run.config, checkpoint.trainer["metrics"]
    best = best_epoch(metrics)
    if config.amp == "off" or "float32" in metrics[best]:
        return
    run.processes.collect(None)  # the first process may still be writing best.pt
    model = load_checkpoint(config.out / "best.pt").model.to(run.stepper.device)
    metrics[best]["float32"] = measured = run.measure(model, in_float32(model))
    if run.processes.first:
        save_progress(checkpoint, config.out)
    recall, recall32 = metrics[best]["recall"]["1"], measured["recall"]["1"]
    run.tell(f"best.pt in float32: recall@1 {recall32:.1%}  mAP@R {measured['map_at_r']:.1%}")
    if abs(recall32 - recall) > DIFFERENCE:
        run.warn(
            f"recall@1 of best.pt is {recall32:.1%} in float32 and was {recall:.1%} in {config.amp}, which chose it; "
            "train with --amp off, or look at mean_cosine in metrics.jsonl: parallel descriptors need float32."
        )


@dataclass(frozen=True, kw_only=True)
class _Training:
    """The objects that every epoch uses.

    targets     class number of each training picture, int64 [N]
    evaluated   the test pictures of this process
    workers     threads that decode
    """

    stepper: Stepper
    training: ImageList
    pictures: TrainingPictures
    targets: Tensor
    testing: Evaluation
    evaluated: EvaluationPictures
    workers: int
    progress: Progress

    @classmethod
    def of(
        cls,
        config: TrainConfig,
        checkpoint: Checkpoint,
        training: ImageList,
        testing: Evaluation,
        device: torch.device,
        processes: Processes,
    ) -> _Training:
        model = checkpoint.model.to(device).to(memory_format=torch.channels_last)
        for stage in _frozen_stages(model, config.train_from):
            stage.requires_grad_(False)
        stepper = Stepper(model, config, processes)
        if checkpoint.trainer["stepper"]:
            stepper.load_state_dict(checkpoint.trainer["stepper"])
        workers = min(config.threads or available_threads(), 8)
        labels = {label: number for number, label in enumerate(sorted(set(training.classes or ())))}
        shared = processes.share(testing.images)
        return cls(
            stepper=stepper,
            training=training,
            pictures=TrainingPictures(training, config.spec),
            targets=torch.tensor([labels[label] for label in training.classes or ()]),
            testing=testing,
            evaluated=EvaluationPictures(shared, config.spec, EVALUATION_BATCH, workers),
            workers=workers,
            progress=_progress(quiet=not processes.first),
        )

    @property
    def config(self) -> TrainConfig:
        return self.stepper.config

    @property
    def processes(self) -> Processes:
        return self.stepper.processes

    def tell(self, text: str) -> None:
        """Print a line on stderr, in the first process only."""
        self.progress.console.print(text, highlight=False, soft_wrap=True)

    def warn(self, text: str) -> None:
        self.progress.console.print(f"warning: {text}", style="yellow", highlight=False, soft_wrap=True)

    def whiten(self) -> None:
        """Start the heads as the whitening of the training pictures' features."""
        stepper = self.stepper
        ours = self.processes.share(self.training.sample(SAMPLE))
        pictures = EvaluationPictures(ours, self.config.spec, EVALUATION_BATCH, self.workers, cache_bytes=0)
        task = self.progress.add_task("whitening", total=len(pictures), note="")
        stepper.model.eval()
        with torch.no_grad():
            made = (stepper.pooled(pixels) for pixels in self.progress.track(pictures, task_id=task))
            whiten_heads(stepper.model, made, self.processes, self.config.seed)
        self.progress.remove_task(task)

    def epoch(self, number: int) -> dict[str, Any]:
        """Train one epoch, or none for number 0, and measure if it is time to; returns the line of metrics.jsonl."""
        config, started, cpu_started = self.config, time.perf_counter(), time.process_time()
        line: dict[str, Any] = {"epoch": number, **dict.fromkeys(MEANS)}
        if number > 0:
            line.update(self._train(number))
        trained, cpu = time.perf_counter() - started, time.process_time() - cpu_started
        measured: dict[str, Any] = dict.fromkeys(MEASURES)
        if number % config.evaluate_every == 0 or number == config.epochs:
            measured = self.measure(self.stepper.model, self.stepper.descriptors)
        seconds = {
            "seconds": round(time.perf_counter() - started, 3),
            "training_seconds": round(trained, 3),
            "training_cpu_seconds": round(cpu, 3),
        }
        return {**line, **seconds, **measured}

    def measure(self, model: CGD, describe: Describe) -> dict[str, Any]:
        """See ``measuring.measure``."""
        return measure(model, describe, self.evaluated, self.testing, self.processes, self.progress)

    def _train(self, number: int) -> dict[str, float | None]:
        stepper, config = self.stepper, self.config
        indices = _batches(config, self.training, number)
        made = training_batches(
            self.pictures,
            indices,
            seed=config.seed,
            epoch=number,
            workers=self.workers,
            places=self.processes.part(config.batch),
        )
        _train_mode(stepper.model, config)
        stepper.trains_backbone = number > config.warm_up or config.weights is None
        return _train_epoch(stepper, made, [self.targets[batch] for batch in indices], number, self.progress)


def _train_epoch(
    stepper: Stepper, made: Iterable[Pixels], targets: list[Tensor], epoch: int, progress: Progress
) -> dict[str, float | None]:
    """One pass over ``made``; returns the means of ``MEANS`` over its batches."""
    config = stepper.config
    task = progress.add_task(f"epoch {epoch}/{config.epochs}", total=len(targets), note="")
    started = time.perf_counter()
    seen: list[Losses] = []
    for number, (pixels, target) in enumerate(zip(made, targets, strict=True)):
        seed = np.random.SeedSequence((config.seed, epoch, number, stepper.processes.rank)).generate_state(1)
        stepper.set_learning_rate(learning_rate(config, epoch - 1 + number / len(targets)))
        losses = stepper.step(pixels, target, int(seed[0]))
        if not math.isfinite(losses.total):
            raise CgdError(
                f"the loss became {losses.total} in epoch {epoch}; start again with a learning rate below "
                f"{config.lr:g} or a larger batch, {config.out / 'last.pt'} still holds epoch {epoch - 1}."
            )
        seen.append(losses)
        speed = len(seen) * config.batch / (time.perf_counter() - started)
        progress.update(task, advance=1, note=f"loss {losses.total:.3f}  {speed:.0f} pictures/s")
    progress.remove_task(task)
    return _means(seen)


def _means(seen: list[Losses]) -> dict[str, float | None]:
    """The mean of each number over the batches that have it, None if no batch has it."""
    means: dict[str, float | None] = {}
    for line, field in MEANS.items():
        numbers = [n for losses in seen if (n := getattr(losses, field)) is not None and math.isfinite(n)]
        means[line] = float(np.mean(numbers)) if numbers else None
    return means


def _told(line: dict[str, Any], epochs: int) -> str:
    parts = [f"epoch {line['epoch']}/{epochs}", "untrained" if line["loss"] is None else f"loss {line['loss']:.4f}"]
    if line["recall"] is not None:
        parts.append(f"recall@1 {line['recall']['1']:.1%}  mAP@R {line['map_at_r']:.1%}")
    return "  ".join([*parts, f"{line['seconds']:.1f} s"])


def _has_converged(metrics: list[dict[str, Any]], patience: int | None) -> bool:
    """Whether the best recall@1 is ``patience`` epochs old."""
    return patience is not None and bool(metrics) and len(metrics) - 1 - best_epoch(metrics, first=True) >= patience


def _batches(config: TrainConfig, training: ImageList, epoch: int) -> list[list[int]]:
    per_batch = (config.classes_per_batch, config.pictures_per_class)
    return epoch_batches(training.classes or (), *per_batch, seed=config.seed, epoch=epoch)


def _frozen_stages(model: CGD, train_from: str | None) -> list[nn.Module]:
    """The backbone's modules before stage ``train_from``."""
    if train_from is None:
        return []
    stages = model.backbone.stages
    if train_from not in stages:
        raise InputError(f"train_from={train_from!r} is not a stage; expected one of {', '.join(stages)}.")
    names = list(stages)
    return [module for name in names[: names.index(train_from)] for module in stages[name]]


def _train_mode(model: CGD, config: TrainConfig) -> None:
    """Set training mode, except in frozen stages, and in the backbone's BatchNorm if it is frozen."""
    model.train()
    for stage in _frozen_stages(model, config.train_from):
        stage.eval()
    if config.bn_is_frozen:
        for module in model.backbone.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()


def _device(name: str | None) -> torch.device:
    """``name``, or the GPU if there is one; under ``torchrun``, the GPU of this process."""
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise InputError(f"device={name!r} is unknown to torch; expected cpu, cuda or cuda:1.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device={name!r} was asked for but torch finds no GPU; use 'cpu' or install torch for CUDA.")
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return device


def _progress(quiet: bool) -> Progress:
    console = Console(stderr=True, quiet=quiet or errors.quiet)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[note]}"), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=console.quiet or not console.is_terminal)


def _lists(
    config: TrainConfig, training: ImageList | None, testing: ImageList | None
) -> tuple[ImageList, Evaluation, tuple[str, ...]]:
    """The training pictures, the test pictures, and notes on choices made for the user."""
    if (training is None) != (testing is None):
        raise InputError("train needs both a training and a test list, or neither; pass the other one too.")
    notes: tuple[str, ...] = ()
    if training is None or testing is None:
        if config.data is None:
            raise InputError("there is nothing to train on; set data to the folder of a data set or a LIST.tsv.")
        dataset = read_dataset(config.data, boxes=config.boxes)
        training, evaluation, notes = dataset.training, dataset.testing, dataset.notes
    else:
        evaluation = Evaluation(testing)
    return training, evaluation, notes


def _check_lists(training: ImageList, testing: Evaluation) -> None:
    for name, images in (("training", training), ("test", testing.images)):
        if images.classes is None or len(images) < 2:
            raise InputError(f"the {name} list has {len(images)} pictures with classes; expected at least 2.")
    testing.check_recall()
