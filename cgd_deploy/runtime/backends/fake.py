"""A backend without a model, for tests. Fast, deterministic; similar pictures get similar descriptors."""

from __future__ import annotations

import json

import numpy as np
from numpy.typing import NDArray

from .base import Backend

GRID = 4


class FakeBackend(Backend):
    """Projects mean colours on a 4x4 grid to the ``dim`` in the JSON payload."""

    def __init__(self, payload: bytes, *, threads: int | None = None, streams: int = 1) -> None:
        self.concurrency = streams
        dim = json.loads(payload)["dim"]
        self._projection = np.random.default_rng(0).normal(size=(GRID * GRID * 3, dim)).astype(np.float32)

    def run(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        n, height, width, _ = images.shape
        rows, columns = height // GRID, width // GRID
        cut = images[:, : rows * GRID, : columns * GRID].reshape(n, GRID, rows, GRID, columns, 3)
        colours = cut.mean(axis=(2, 4), dtype=np.float64).reshape(n, -1) / 255 - 0.5
        descriptors = colours.astype(np.float32) @ self._projection
        norms = np.linalg.norm(descriptors, axis=1, keepdims=True)
        unit: NDArray[np.float32] = descriptors / np.maximum(norms, 1e-12)
        return unit

    def close(self) -> None:
        pass
