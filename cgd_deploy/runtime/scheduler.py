"""Single pictures of many callers, decoded in a bounded pool of threads and computed in batches.

Knows no backend and no picture formats: takes pixels, or functions that make pixels, and gives descriptors.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from threading import Thread, current_thread
from time import monotonic
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .admission import Pixels, Policy, Queue, Request, Submitted
from .calls import Calls
from .descriptors import Descriptor
from .statistics import Statistics, Stats

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True, slots=True)
class Batching:
    """How ``Engine.submit`` gathers pictures.

    max_batch      pictures of a full batch. None: on CUDA the engine's largest batch; on the CPU the batch that
                   ``autotune`` found fastest on this machine, else 8
    max_delay_ms   milliseconds that the oldest decoded picture of a partial batch waits for others
    max_queue      pictures that may wait for a decoder, be decoded, or wait for a batch; one more raises Overloaded

    A full batch leaves as soon as a worker is free. A partial batch leaves after ``max_delay_ms``, but only while a
    stream of the engine is idle (CPU), or while fewer than two batches are in flight (CUDA).

    Raises InputError for a value out of range.

    Example:

        from cgd_deploy import Batching, load

        patient = Batching(max_batch=8, max_delay_ms=5.0, max_queue=64)
        with load("model.cgd", batching=patient) as engine:
            futures = [engine.submit(path) for path in ["photos/a.jpg", "photos/b.jpg"]]
            descriptors = [future.result() for future in futures]
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


class Scheduler:
    """Calls ``run`` with batches in ``workers`` threads until ``close``.

    run         uint8 [n, H, W, 3] -> float32 [n, D]; several threads call it
    decoders    the most threads that decode; each picture to decode starts one more, up to this number
    policy      when a batch leaves
    max_queue   pictures in the queue, not counting pictures that are being computed
    calls       counts each thread as a running call, so the resource of ``run`` is freed after the threads have ended
    """

    def __init__(
        self,
        run: Callable[[NDArray[np.uint8]], NDArray[np.float32]],
        *,
        workers: int,
        decoders: int,
        policy: Policy,
        max_queue: int,
        calls: Calls | None = None,
    ) -> None:
        self._run = run
        self._max_decoders = decoders
        self._statistics = Statistics()
        self._queue = Queue(max_queue, policy, self._statistics)
        self._process = os.getpid()
        self._workers: list[Thread] = []
        self._decoders: list[Thread] = []
        self._calls = calls or Calls("the scheduler", lambda: None)
        try:
            for number in range(workers):
                self._start(self._workers, f"cgd-deploy-{number}", self._compute_next)
        except BaseException:  # the system may refuse a thread
            self.close()
            raise

    def submit(
        self,
        pixels: Pixels | Callable[[], Pixels],
        timeout_ms: float | None = None,
        on_done: Callable[[Future[Descriptor]], object] | None = None,
    ) -> Submitted:
        """Queue a picture. Cancelling the future frees the picture's place.

        pixels       uint8 [H, W, 3], which must not change until the future is done; or a function that makes them. A
                     decoder thread calls the function, and the future raises the function's exception
        timeout_ms   as in ``Request``
        on_done      a callback of the future that never runs inside this call

        Raises Overloaded if ``max_queue`` pictures are in the queue, EngineError after ``close``, InputError for a
        timeout that is not above 0.
        """
        request = Request(pixels, timeout_ms)
        with self._queue.lock:
            self._queue.admit(request)
            if callable(pixels) and len(self._decoders) < self._max_decoders:
                try:
                    self._start(self._decoders, f"cgd-deploy-decode-{len(self._decoders)}", self._decode_next)
                except BaseException:  # the system may refuse a thread
                    request.future.cancel()
                    raise
            if on_done:  # under the lock, so that no thread can finish the request first
                request.future.add_done_callback(on_done)
        return request.future

    def stats(self) -> Stats:
        """What happened to the pictures so far."""
        return self._queue.stats()

    def close(self, drain: bool = True) -> None:
        """Refuse further pictures, compute the pictures in the queue (without ``drain``: cancel them), end the threads.

        Waits for the threads, except in a callback of a future, which runs in one of the threads. Does nothing in a
        forked process.
        """
        if os.getpid() != self._process:
            return
        self._queue.close(drain)
        threads = [*self._workers, *self._decoders]
        if current_thread() not in threads:
            for thread in filter(Thread.is_alive, threads):
                thread.join()

    def _start(self, threads: list[Thread], name: str, step: Callable[[], bool]) -> None:
        """Start a thread that repeats ``step`` until ``step`` returns False."""
        thread = Thread(target=self._repeat, args=(step,), name=name, daemon=True)
        with self._queue.lock:  # a step begins with this lock, so the thread cannot leave before it is counted
            thread.start()
            self._calls.enter_thread(thread)
            threads.append(thread)

    def _repeat(self, step: Callable[[], bool]) -> None:
        try:
            while step():
                pass
        finally:
            self._calls.leave()

    def _decode_next(self) -> bool:
        request = self._queue.next_undecoded()
        if request is None:
            return False
        if error := request.late():
            self._queue.decoded(request, error)
        elif callable(request.pixels):
            began = monotonic()
            outcome = _attempt(request.pixels)
            request.future.seconds["decode"] = seconds = monotonic() - began
            self._statistics.decoded(seconds)
            self._queue.decoded(request, outcome)
        return True

    def _compute_next(self) -> bool:
        batch = self._queue.next_batch()
        if batch is None:
            return False
        wanted = [request for request in batch if request.future.set_running_or_notify_cancel()]
        self._statistics.ended("cancelled", len(batch) - len(wanted))
        if wanted:
            self._compute(wanted)
        else:
            self._queue.finished()
        return True

    def _compute(self, batch: Sequence[Request]) -> None:
        began = monotonic()
        outcome = _attempt(self._computed, [request.pixels for request in batch])
        seconds = monotonic() - began
        self._queue.finished()
        for request in batch:
            request.future.seconds["compute"] = seconds
        if isinstance(outcome, BaseException):
            self._statistics.ended("failed", len(batch))
            for request in batch:
                request.future.set_exception(outcome)
        else:
            self._statistics.ended("described", len(batch))
            self._statistics.computed([request.future.seconds["queue"] for request in batch], seconds)
            for request, row in zip(batch, outcome, strict=True):
                request.future.set_result(row)

    def _computed(self, pixels: Sequence[Pixels]) -> Sequence[Descriptor]:
        return list(self._run(_stacked(pixels)))


def _attempt(function: Callable[..., Result], *arguments: object) -> Result | BaseException:
    """The result or the exception. The callers get the exception, and the thread goes on."""
    try:
        return function(*arguments)
    except BaseException as error:
        return error


def _stacked(pixels: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """C-contiguous [n, H, W, 3]. ``np.stack`` alone keeps another layout of its inputs; one picture is not copied."""
    if len(pixels) == 1:
        return np.ascontiguousarray(pixels[0])[None]
    return np.stack(pixels, out=np.empty((len(pixels), *pixels[0].shape), np.uint8))
