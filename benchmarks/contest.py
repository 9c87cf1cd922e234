"""What a benchmark's contestants retrieve, and how much work their model is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cgd_deploy.datasets.evaluation import Evaluation
from cgd_deploy.datasets.layouts import read_evaluation
from cgd_deploy.errors import InputError
from cgd_deploy.pictures.preprocess import batches
from cgd_deploy.quality.bench import QUALITY_BATCH, OnProgress
from cgd_deploy.runtime.descriptors import Descriptors
from cgd_deploy.search.retrieval import NEIGHBOURS, Retrieved
from cgd_deploy.spec import ModelSpec
from cgd_export.metadata import load_onnx
from cgd_export.proof import convolution_work
from cgd_train.model import CGD


class Embeds(Protocol):
    """A contestant: ``run`` makes descriptors float32 [N, D] of pictures uint8 [N, H, W, 3]."""

    @property
    def title(self) -> str: ...

    @property
    def run(self) -> Callable[[NDArray[np.uint8]], Descriptors]: ...


def gflop_per_image(model: CGD, onnx: Path) -> float:
    """2 x multiply-adds, in 1e9, of the backbone's convolutions and of the descriptor head's layers."""
    heads = sum(2 * head.weight.numel() for head in model.heads)
    return (sum(convolution_work(load_onnx(onnx)).values()) + heads) / 1e9


def retrieve(
    contestants: Sequence[Embeds], evaluation: Evaluation, spec: ModelSpec, on_progress: OnProgress
) -> dict[str, Retrieved]:
    """What each finds, by title. Descriptors are made unit vectors first, which those computed in BF16 just miss."""
    parts: dict[str, list[Descriptors]] = {contestant.title: [] for contestant in contestants}
    seen = 0
    for indices, pixels in batches(evaluation.images, spec, QUALITY_BATCH):
        whole = np.resize(pixels, (QUALITY_BATCH, *pixels.shape[1:]))  # torch.compile would compile the last, short one
        for contestant in contestants:
            found = contestant.run(whole)[: len(pixels)]
            parts[contestant.title].append(found / np.linalg.norm(found, axis=1, keepdims=True))
        seen += len(indices)
        on_progress("embedding", seen / len(evaluation.images))
    depth = min(max(NEIGHBOURS, *evaluation.recall_at), evaluation.offered)
    embedded = {title: np.concatenate(part) for title, part in parts.items()}
    return {title: Retrieved(found, *evaluation.neighbours(found, depth)) for title, found in embedded.items()}


def evaluation_of(recorded: Evaluation | None, data: str | None, count: int | None) -> Evaluation:
    """The pictures of ``data``, else the recorded ones; ``count`` of them, evenly. Raises InputError for too few."""
    evaluation = recorded if data is None else read_evaluation(data)
    if evaluation is None:
        raise InputError("the checkpoint records no test pictures; pass --data FOLDER or LIST.tsv.")
    if count:
        total = len(evaluation.images)
        chosen = np.linspace(0, total - 1, min(count, total)).round().astype(int)
        evaluation = evaluation.subset(chosen.tolist())
    evaluation.check_recall()
    if evaluation.offered <= NEIGHBOURS:
        raise InputError(
            f"{NEIGHBOURS} neighbours are compared and {evaluation.offered} can be found; test on more pictures."
        )
    evaluation.images.check_present("test", "--data")
    return evaluation
