"""Single pictures of many callers gathered into batches: one leaves when it is full or its oldest has waited enough.

Knows no backend and no picture formats: rows go in, rows come out.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from threading import Condition, Thread, current_thread
from time import monotonic

import numpy as np
from numpy.typing import NDArray

from ..errors import EngineError, InputError, Overloaded
from .calls import Calls
from .descriptors import Descriptor


@dataclass(frozen=True, kw_only=True, slots=True)
class Batching:
    """How ``Engine.submit`` gathers pictures.

    max_batch      pictures of a full batch; None: on CUDA the engine's largest, on the CPU what ``autotune`` found
                   to be fastest here, else 8
    max_delay_ms   how long a picture waits for others while nothing else computes
    max_queue      pictures that may wait; one more raises ``Overloaded``
    """

    max_batch: int | None = None
    max_delay_ms: float = 2.0
    max_queue: int = 256

    def __post_init__(self) -> None:
        if self.max_batch is not None and self.max_batch < 1:
            raise InputError(f"max_batch={self.max_batch} cannot be used; expected at least 1.")
        if self.max_queue < 1:
            raise InputError(f"max_queue={self.max_queue} cannot be used; expected at least 1.")
        if not 0 <= self.max_delay_ms < float("inf"):
            raise InputError(f"max_delay_ms={self.max_delay_ms} cannot be used; expected 0 or more milliseconds.")


@dataclass(frozen=True, slots=True)
class Request:
    pixels: NDArray[np.uint8]
    future: Future[Descriptor]
    arrived: float


class Scheduler:
    """``run`` called with batches in ``workers`` threads, which are there until ``close``.

    run         uint8 [n, H, W, 3] -> float32 [n, D]; several threads call it
    max_batch   the largest n
    max_delay   seconds
    max_queue   rows that may wait, beside those being computed
    calls       each thread counts as a running call here, so ``run``'s resource lives until the threads have ended
    """

    def __init__(
        self,
        run: Callable[[NDArray[np.uint8]], NDArray[np.float32]],
        *,
        workers: int,
        max_batch: int,
        max_delay: float,
        max_queue: int,
        calls: Calls | None = None,
    ) -> None:
        self._run = run
        self._max_batch = max_batch
        self._max_delay = max_delay
        self._max_queue = max_queue
        self._waiting: deque[Request] = deque()
        self._change = Condition()
        self._closed = False
        self._process = os.getpid()
        self._threads = [Thread(target=self._work, name=f"cgd-deploy-{i}", daemon=True) for i in range(workers)]
        self._calls = calls or Calls("the scheduler", lambda: None)
        try:
            for thread in self._threads:
                thread.start()
                self._calls.enter(thread.ident)
        except BaseException:  # the system may refuse a thread
            self.close()
            raise

    def submit(self, pixels: NDArray[np.uint8]) -> Future[Descriptor]:
        """Queue uint8 [H, W, 3], which must stay as it is until the future is done; cancelling it leaves the queue.

        Raises Overloaded if ``max_queue`` rows wait, EngineError after ``close``.
        """
        future: Future[Descriptor] = Future()
        with self._change:
            if self._closed:
                raise EngineError("the engine is closed; load it again.")
            if len(self._waiting) >= self._max_queue:
                self._waiting = deque(request for request in self._waiting if not request.future.cancelled())
            if len(self._waiting) >= self._max_queue:
                raise Overloaded(
                    f"{self._max_queue} pictures wait already; send fewer at a time, or try again in a moment."
                )
            self._waiting.append(Request(pixels, future, monotonic()))
            if len(self._waiting) % self._max_batch in (
                0,
                1,
            ):  # a batch is full, or another begins, which needs watching
                self._change.notify()
        return future

    def close(self, drain: bool = True) -> None:
        """Take no more; compute what waits, or cancel it without ``drain``; end the threads. In a fork: nothing.

        Waits for the threads, unless it is called in one of them by a future's callback: they end by themselves.
        """
        if os.getpid() != self._process:
            return
        with self._change:
            self._closed = True
            while self._waiting and not drain:
                self._waiting.popleft().future.cancel()
            self._change.notify_all()
        if current_thread() not in self._threads:
            for thread in filter(Thread.is_alive, self._threads):
                thread.join()

    def _work(self) -> None:
        try:
            while batch := self._next_batch():
                self._compute(batch)
        finally:
            self._calls.leave()

    def _next_batch(self) -> list[Request]:
        """The oldest requests, once they are enough or have waited enough; none if there will be no more."""
        with self._change:
            while not self._ready():
                if self._closed:
                    return []
                oldest = self._waiting[0].arrived if self._waiting else None
                self._change.wait(None if oldest is None else max(0.0, oldest + self._max_delay - monotonic()))
            return [self._waiting.popleft() for _ in range(min(self._max_batch, len(self._waiting)))]

    def _ready(self) -> bool:
        if not self._waiting:
            return False
        waited = monotonic() - self._waiting[0].arrived
        return self._closed or len(self._waiting) >= self._max_batch or waited >= self._max_delay

    def _compute(self, batch: list[Request]) -> None:
        wanted = [request for request in batch if request.future.set_running_or_notify_cancel()]
        if not wanted:
            return
        try:
            rows = self._run(_stacked([request.pixels for request in wanted]))
        except BaseException as error:  # whatever the backend raises is these callers', and the thread goes on
            for request in wanted:
                request.future.set_exception(error)
            return
        for request, row in zip(wanted, rows, strict=True):
            request.future.set_result(row)


def _stacked(pixels: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """C-contiguous [n, H, W, 3], which ``np.stack`` alone is not if its inputs are not; a single picture as it is."""
    if len(pixels) == 1:
        return np.ascontiguousarray(pixels[0])[None]
    return np.stack(pixels, out=np.empty((len(pixels), *pixels[0].shape), np.uint8))
