"""Computes a batch on a CPU in several parts at the same time: the fewer threads of a part wait less for each other."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..calls import Calls
from .base import Backend


class Parallel(Backend):
    """Cuts each batch into ``streams`` parts, which ``backend`` runs at the same time."""

    def __init__(self, backend: Backend, streams: int) -> None:
        self._backend = backend
        self.concurrency = streams
        self._pool = ThreadPoolExecutor(streams)

    def run(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return np.concatenate(self._at_once(self._backend.run, self._parts(images)))

    def run_into(self, images: NDArray[np.uint8], descriptors: NDArray[np.float32]) -> None:
        self._at_once(self._backend.run_into, self._parts(images), self._parts(descriptors))

    def _parts(self, rows: NDArray[Any]) -> list[NDArray[Any]]:
        return np.array_split(rows, max(1, min(self.concurrency, len(rows))))

    def _at_once(self, run: Callable[..., Any], *arguments: list[NDArray[Any]]) -> list[Any]:
        """Run every part. When this function returns or raises, no part uses the caller's memory."""
        running = Calls("the batch", lambda: None)

        def run_part(*part: NDArray[Any]) -> Any:
            with running:  # a part that has not begun when the batch fails is refused here
                return run(*part)

        try:
            return list(self._pool.map(run_part, *arguments))
        finally:
            _wait(running)

    def close(self) -> None:
        # Every batch has waited for its parts. A thread of the pool may call ``close``, so it cannot wait for the pool.
        self._pool.shutdown(wait=False)
        self._backend.close()


def _wait(running: Calls) -> None:
    """Wait for every running part, then raise an interrupt that came meanwhile."""
    try:
        running.close()
    except BaseException:
        _wait(running)
        raise
