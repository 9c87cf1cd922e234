"""The trained model itself in torch: the reference that every engine is measured against."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import not_installed
from ..evaluation import Evaluation
from ..hardware import available_threads
from ..spec import ModelSpec
from .base import Backend


class TorchBackend(Backend):
    """A checkpoint in eager FP32.

    spec         the checkpoint's
    evaluation   the held-out pictures it records, or None

    Raises CheckpointError for a damaged checkpoint, MissingDependency without torch.
    """

    spec: ModelSpec
    evaluation: Evaluation | None

    def __init__(self, checkpoint: str | Path, *, device: str = "cpu", threads: int | None = None) -> None:
        try:
            import torch

            from cgd_train.checkpoint import load_checkpoint
            from cgd_train.model import DeployModel
        except ModuleNotFoundError as error:
            raise not_installed(error, "train") from error
        torch.set_num_threads(threads or available_threads())
        loaded = load_checkpoint(checkpoint)
        self.spec, self.evaluation = loaded.spec, loaded.evaluation
        self._torch = torch
        self._device = device
        self._model = DeployModel(loaded.model).to(device)

    def run(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        with self._torch.inference_mode():
            descriptors: NDArray[np.float32] = (
                self._model(self._torch.from_numpy(images).to(self._device)).cpu().numpy()
            )
        return descriptors

    def close(self) -> None:
        del self._model
