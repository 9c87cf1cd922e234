"""Training: from a list of labelled pictures to best.pt, last.pt and metrics.jsonl."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn

from cgd_deploy.errors import CgdError, InputError
from cgd_deploy.hardware import available_threads
from cgd_deploy.images import ImageList, read_images
from cgd_deploy.preprocess import batches
from cgd_deploy.retrieval import RECALL_AT, Descriptors, neighbours, recall_at

from .config import TrainConfig
from .data import EvaluationPictures, Pixels, TrainingPictures, training_batches
from .losses import auxiliary_classification, batch_hard_triplet
from .model import CGD, DeployModel
from .run import resume_run, run_settings, save_epoch, start_run
from .sampler import epoch_batches

EVALUATION_BATCH = 64


def train(config: TrainConfig, train_images: ImageList | None = None, test_images: ImageList | None = None) -> Path:
    """Train a CGD model, measure recall on the test pictures after every epoch, and return the path of best.pt.

    Without lists, the first half of the classes in ``config.data`` trains and the second half tests.
    Into ``config.out`` go, each written whole or not at all: best.pt (best recall@1, the later of equals), last.pt
    (also what resuming needs) and metrics.jsonl (epoch 0 is the untrained model; its loss is null).
    A resumed run sees the same batches and pictures as one that was never interrupted.

    Raises InputError if the pictures or the run folder cannot be used, CgdError if the loss is no longer finite.
    """
    training, testing = _lists(config, train_images, test_images)
    labels = {label: number for number, label in enumerate(sorted(set(training.classes or ())))}
    targets = torch.tensor([labels[label] for label in training.classes or ()])
    _batches(config, training, epoch=1)  # too few classes are refused before anything is written
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    workers = min(config.threads or available_threads(), 8)

    settings = run_settings(config, training, testing)
    if config.resume:
        checkpoint = resume_run(config.out / "last.pt", settings)
    else:
        checkpoint = start_run(config, settings, training, testing, classes=len(labels))
    device = _device(config.device)
    deploy = DeployModel(checkpoint.model).to(device).to(memory_format=torch.channels_last)
    trained = _trained_parameters(checkpoint.model, config.train_from)
    optimizer = torch.optim.Adam(trained, lr=config.lr, fused=True)
    if optimizer_state := checkpoint.trainer["optimizer"]:
        optimizer.load_state_dict(optimizer_state)

    pictures = TrainingPictures(training, config.size)
    evaluated = EvaluationPictures(testing, config.spec, EVALUATION_BATCH, workers)
    metrics = checkpoint.trainer["metrics"]
    with _progress() as progress:
        for epoch in range(len(metrics), config.epochs + 1):
            started = time.perf_counter()
            loss = None
            if epoch > 0:
                optimizer.param_groups[0]["lr"] = _learning_rate(config, epoch)
                indices = _batches(config, training, epoch)
                made = training_batches(pictures, indices, seed=config.seed, epoch=epoch, workers=workers)
                _train_mode(checkpoint.model, config)
                loss = _train_epoch(
                    config, deploy, optimizer, made, [targets[batch] for batch in indices], epoch, progress
                )
            recall = _recall(deploy, evaluated, testing.classes or (), progress)
            seconds = time.perf_counter() - started
            metrics.append({"epoch": epoch, "loss": loss, "seconds": round(seconds, 3), "recall": recall})
            checkpoint.trainer["optimizer"] = optimizer.state_dict()
            save_epoch(checkpoint, config.out)
            told = "untrained" if loss is None else f"loss {loss:.4f}"
            progress.console.print(
                f"epoch {epoch}/{config.epochs}  {told}  recall@1 {recall['1']:.1%}  {seconds:.1f} s", highlight=False
            )
    return config.out / "best.pt"


def embed_images(model: CGD, images: ImageList, batch_size: int = 64, workers: int = 2) -> Descriptors:
    """Unit descriptors float32 [N, dim] of every picture in list order, through the deployed path.

    Leaves the model in eval mode, where it is. Raises InputError if a picture cannot be decoded.
    """
    deploy = DeployModel(model).to(next(model.parameters()).device)
    return _embed(deploy, (pixels for _, pixels in batches(images, model.spec, batch_size, workers)))


def _embed(deploy: DeployModel, made: Iterable[Pixels]) -> Descriptors:
    deploy.eval()
    with torch.inference_mode():
        parts = [deploy(torch.from_numpy(pixels).to(deploy.mean.device)).cpu().numpy() for pixels in made]
    return np.concatenate(parts)


def _recall(
    deploy: DeployModel, evaluated: EvaluationPictures, classes: Sequence[str], progress: Progress
) -> dict[str, float]:
    task = progress.add_task("recall", total=len(evaluated), note="")
    descriptors = _embed(deploy, progress.track(evaluated, task_id=task))
    progress.remove_task(task)
    found, _ = neighbours(descriptors, descriptors, min(max(RECALL_AT), len(classes) - 1), skip_self=True)
    return {str(k): value for k, value in recall_at(found, classes, classes, RECALL_AT).items()}


def _train_epoch(
    config: TrainConfig,
    deploy: DeployModel,
    optimizer: torch.optim.Optimizer,
    made: Iterable[Pixels],
    targets: list[torch.Tensor],
    epoch: int,
    progress: Progress,
) -> float:
    """One pass over ``made``; returns the mean loss of its batches."""
    task = progress.add_task(f"epoch {epoch}/{config.epochs}", total=len(targets), note="")
    started = time.perf_counter()
    losses: list[float] = []
    seen = 0
    device = deploy.mean.device
    for pixels, target in zip(made, targets, strict=True):
        target = target.to(device)
        descriptors, logits = deploy.model(deploy.normalized(torch.from_numpy(pixels).to(device)))
        loss = batch_hard_triplet(descriptors, target, config.margin)
        if logits is not None:
            loss = loss + auxiliary_classification(logits, target, config.temperature, config.smoothing)
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            raise CgdError(
                f"the loss became {losses[-1]} in epoch {epoch}; start again with a learning rate below {config.lr:g} "
                f"or a larger batch, {config.out / 'last.pt'} still holds epoch {epoch - 1}."
            )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen += len(target)
        note = f"loss {losses[-1]:.3f}  {seen / (time.perf_counter() - started):.0f} pictures/s"
        progress.update(task, advance=1, note=note)
    progress.remove_task(task)
    return sum(losses) / len(losses)


def _batches(config: TrainConfig, training: ImageList, epoch: int) -> list[list[int]]:
    per_batch = (config.classes_per_batch, config.pictures_per_class)
    return epoch_batches(training.classes or (), *per_batch, seed=config.seed, epoch=epoch)


def _learning_rate(config: TrainConfig, epoch: int) -> float:
    """lr, a tenth of it after 60 % of the epochs, a hundredth after 80 %; ``epoch`` counts from 1."""
    done = epoch - 1
    return config.lr * 0.1 ** ((10 * done >= 6 * config.epochs) + (10 * done >= 8 * config.epochs))


def _trained_parameters(model: CGD, train_from: str | None) -> list[nn.Parameter]:
    """Freeze the backbone's stages before ``train_from``: autograd then starts at it."""
    if train_from is not None:
        for stage in _frozen_stages(model, train_from):
            stage.requires_grad_(False)
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _frozen_stages(model: CGD, train_from: str | None) -> list[nn.Module]:
    names = [name for name, _ in model.backbone.named_children()]
    if train_from is None:
        return []
    if train_from not in names:
        raise InputError(f"train_from={train_from!r} is no stage of the backbone; expected one of {', '.join(names)}.")
    return [getattr(model.backbone, name) for name in names[: names.index(train_from)]]


def _train_mode(model: CGD, config: TrainConfig) -> None:
    model.train()
    frozen = [model.backbone] if config.bn_is_frozen else _frozen_stages(model, config.train_from)
    for stage in frozen:
        for module in stage.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()


def _device(name: str | None) -> torch.device:
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise InputError(f"device={name!r} is unknown to torch; expected cpu, cuda or cuda:1.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device={name!r} was asked for but torch finds no GPU; use 'cpu' or install torch for CUDA.")
    return device


def _progress() -> Progress:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[note]}"), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def _lists(config: TrainConfig, training: ImageList | None, testing: ImageList | None) -> tuple[ImageList, ImageList]:
    if (training is None) != (testing is None):
        raise InputError("train needs both a training and a test list, or neither; pass the other one too.")
    if training is None or testing is None:
        if config.data is None:
            raise InputError("there is nothing to train on; set data to a folder a class or a LIST.tsv.")
        training, testing = read_images(config.data).split_classes()
    for name, images in (("training", training), ("test", testing)):
        if images.classes is None or len(images) < 2:
            raise InputError(f"the {name} list has {len(images)} pictures with classes; expected at least 2.")
    return training, testing
