"""What cpu.py and gpu.py share: test pictures, retrieval, and the work of one picture in GFLOP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cgd_deploy.datasets.evaluation import Evaluation
from cgd_deploy.datasets.layouts import read_evaluation
from cgd_deploy.errors import InputError
from cgd_deploy.quality import contestants as in_bench
from cgd_deploy.quality.contestants import QUALITY_BATCH, Contestant, OnProgress, Run
from cgd_deploy.runtime.descriptors import Descriptors
from cgd_deploy.search.retrieval import NEIGHBOURS, Retrieved
from cgd_deploy.spec import ModelSpec
from cgd_export.metadata import load_onnx
from cgd_export.proof import convolution_work
from cgd_train.model import CGD


def gflop_per_image(model: CGD, onnx: Path) -> float:
    """2 x multiply-adds, in 1e9, of the backbone's convolutions and of the descriptor head's layers."""
    heads = sum(2 * head.weight.numel() for head in model.heads)
    return (sum(convolution_work(load_onnx(onnx)).values()) + heads) / 1e9


def retrieve(
    contestants: Sequence[Contestant], evaluation: Evaluation, spec: ModelSpec, on_progress: OnProgress
) -> dict[str, Retrieved]:
    """The neighbours that each contestant finds, by title, as ``cgd-deploy bench`` compares them."""
    whole = [replace(contestant, run=in_whole_batches(contestant.run)) for contestant in contestants]
    return in_bench.retrieve(whole, evaluation, spec, on_progress)


def in_whole_batches(run: Run) -> Run:
    """``run``, always called with QUALITY_BATCH pictures, and its descriptors made unit vectors.

    torch.compile would compile again for a short batch, and descriptors computed in BF16 are not quite unit vectors.
    """

    def padded(pixels: NDArray[np.uint8]) -> Descriptors:
        found = run(np.resize(pixels, (QUALITY_BATCH, *pixels.shape[1:])))[: len(pixels)]
        return found / np.linalg.norm(found, axis=1, keepdims=True)

    return padded


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
    evaluation.check_neighbours(NEIGHBOURS, "the benchmark")
    evaluation.images.check_present("test", "--data")
    return evaluation
