"""The trained model in torch: the reference for every engine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..datasets.evaluation import Evaluation
from ..errors import not_installed
from ..hardware.cpu import available_threads
from ..runtime.backends.base import Backend
from ..spec import ModelSpec


@contextmanager
def products(torch: Any, precision: str) -> Iterator[None]:
    """In this block torch computes FP32 products on CUDA as ``precision`` says: "ieee", which is FP32, or "tf32".

    By default torch allows TF32 in convolutions. ``cudnn.flags`` is no help: by default it switches cuDNN off.
    """
    settings = (torch.backends.cudnn.conv, torch.backends.cuda.matmul)
    before = [setting.fp32_precision for setting in settings]
    try:
        for setting in settings:
            setting.fp32_precision = precision
        yield
    finally:
        for setting, value in zip(settings, before, strict=True):
            setting.fp32_precision = value


class TorchBackend(Backend):
    """A checkpoint in eager torch: ``run`` in FP32, ``run_tf32`` in TF32 on CUDA, ``run_fp16`` in FP16 autocast.

    device       "cpu" or "cuda"; on CUDA the model is channels last
    spec         the spec of the checkpoint
    evaluation   the held-out pictures that the checkpoint records, or None
    cudnn        the version of cuDNN that torch uses on CUDA, or None

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
        if device == "cuda":
            self._model = self._model.to(memory_format=torch.channels_last)
        self.cudnn: int | None = torch.backends.cudnn.version() if device == "cuda" else None

    def run(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        if self._device == "cpu":
            return self._run(images)
        with products(self._torch, "ieee"):
            return self._run(images)

    def run_tf32(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """``run`` in TF32, on CUDA."""
        with products(self._torch, "tf32"):
            return self._run(images)

    def run_fp16(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """``run`` in FP16 autocast."""
        with self._torch.autocast(self._device, self._torch.float16):
            return self._run(images)

    def _run(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        with self._torch.inference_mode():
            descriptors = self._model(self._torch.from_numpy(images).to(self._device))
            found: NDArray[np.float32] = descriptors.float().cpu().numpy()
        return found

    def close(self) -> None:
        del self._model
