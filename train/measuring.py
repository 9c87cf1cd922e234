"""Measure a model on its test pictures, and tell when training fails. Changes no weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor

from cgd_deploy.datasets.evaluation import Evaluation
from cgd_deploy.errors import CgdError
from cgd_deploy.pictures.images import ImageList
from cgd_deploy.pictures.preprocess import batches
from cgd_deploy.runtime.descriptors import Descriptors

from .data import EvaluationPictures, Pixels
from .model import CGD, DeployModel
from .processes import Processes

COLLAPSED = 0.95
"""Descriptors with a larger mean cosine are nearly parallel. Trained on CARS196, it was below 0.2 or above 0.99."""

Describe = Callable[[Pixels], Tensor]
"""uint8 [N, H, W, 3] -> unit descriptors float32 [N, dim]"""


def embed_images(model: CGD, images: ImageList, batch_size: int = 64, workers: int | None = None) -> Descriptors:
    """Unit descriptors float32 [N, dim] of every picture in list order, computed as the exported model does.

    Leaves the model in eval mode, on its device. Raises InputError if a picture cannot be decoded.
    """
    made = (pixels for _, pixels in batches(images, model.spec, batch_size, workers))
    return embed_pixels(model, in_float32(model), made)


def in_float32(model: CGD) -> Describe:
    """Describe pixels as the exported model does, on the model's device."""
    deploy = DeployModel(model).to(next(model.parameters()).device)
    return lambda pixels: deploy(torch.from_numpy(pixels).to(deploy.mean.device))


def embed_pixels(model: CGD, describe: Describe, made: Iterable[Pixels]) -> Descriptors:
    """``describe`` every batch of ``made`` with ``model`` in eval mode."""
    model.eval()
    with torch.inference_mode():
        return np.concatenate([describe(pixels).cpu().numpy() for pixels in made])


def measure(
    model: CGD,
    describe: Describe,
    pictures: EvaluationPictures,
    testing: Evaluation,
    processes: Processes,
    progress: Progress,
) -> dict[str, Any]:
    """Recall, mAP@R and the mean cosine of the test pictures' descriptors.

    pictures   this process's part of the test pictures: every ``processes.count``-th

    The first process measures the descriptors of all processes and sends all the result.
    Raises CgdError if a descriptor is not finite.
    """
    task = progress.add_task("recall", total=len(pictures), note="")
    parts = processes.collect(embed_pixels(model, describe, progress.track(pictures, task_id=task)))
    progress.remove_task(task)
    if not all(np.isfinite(part).all() for part in parts):
        raise CgdError("descriptors of test pictures are not finite; start again with a lower learning rate.")
    if not processes.first:
        return processes.collect(None)[0]
    descriptors = np.empty((len(testing.images), parts[0].shape[1]), np.float32)
    for rank, part in enumerate(parts):
        descriptors[rank :: processes.count] = part
    return processes.collect({**testing.measure(descriptors), "mean_cosine": mean_cosine(descriptors)})[0]


def mean_cosine(descriptors: Descriptors) -> float:
    """Mean cosine of two different pictures, from unit descriptors [N, D]; 0 for fewer than two pictures."""
    count = len(descriptors)
    length = np.linalg.norm(descriptors.sum(axis=0, dtype=np.float64))
    return float((length**2 - count) / max(count * (count - 1), 1))


def failure(metrics: Sequence[dict[str, Any]], epochs: int) -> str | None:
    """A sentence on a training that fails, with what to change; None if it does not.

    metrics   the lines of metrics.jsonl so far
    epochs    number of epochs of the whole run
    """
    first, last = metrics[0], metrics[-1]
    if last["epoch"] == 0 or last["recall"] is None:
        return None
    if last["mean_cosine"] > COLLAPSED:
        return (
            f"the descriptors collapse: two test pictures have a mean cosine of {last['mean_cosine']:.3f}, so INT8, "
            "BF16 and small indexes lose their differences; keep --head-init whitened and centring, or lower --lr "
            "and --head-lr."
        )
    is_late = 2 * last["epoch"] >= epochs  # before, recall often falls and rises again
    if is_late and last["recall"]["1"] < first["recall"]["1"]:
        return (
            f"recall@1 is {last['recall']['1']:.1%} after epoch {last['epoch']} and was {first['recall']['1']:.1%} "
            "before training; lower --lr, train more epochs, or freeze stages with --train-from layer4."
        )
    return None
