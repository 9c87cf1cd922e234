"""A batch computed in several parts at once, for CPUs: fewer threads on each part wait less for one another."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .base import Backend


class Parallel(Backend):
    """``backend`` with each batch cut into ``streams`` parts that run at the same time."""

    def __init__(self, backend: Backend, streams: int) -> None:
        self._backend = backend
        self.concurrency = streams
        self._pool = ThreadPoolExecutor(streams)

    def run(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return np.concatenate(list(self._pool.map(self._backend.run, self._parts(images))))

    def run_into(self, images: NDArray[np.uint8], descriptors: NDArray[np.float32]) -> None:
        list(self._pool.map(self._backend.run_into, self._parts(images), self._parts(descriptors)))

    def _parts(self, rows: NDArray[Any]) -> list[NDArray[Any]]:
        return np.array_split(rows, max(1, min(self.concurrency, len(rows))))

    def close(self) -> None:
        self._pool.shutdown()
        self._backend.close()
