"""Parts of a batch: however a batch ends, no part of it uses the caller's memory afterwards."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cgd_deploy.runtime.backends.base import Backend
from cgd_deploy.runtime.backends.parallel import Parallel

A_MOMENT = 0.2
"""Seconds in which a batch that does not wait for its parts would have raised."""
SOON = 10


class Scripted(Backend):
    """Calls ``part`` with the number of the part, which is its first pixel; the descriptors are the pixels."""

    def __init__(self, part: Callable[[int], object]) -> None:
        self._part = part
        self.closed = False

    def run(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        self._part(int(images.flat[0]))
        return images.reshape(len(images), -1).astype(np.float32)

    def close(self) -> None:
        self.closed = True


PIXELS = np.arange(4, dtype=np.uint8).reshape(4, 1, 1, 1)


def run(parallel: Parallel) -> NDArray[np.float32]:
    return parallel.run(PIXELS)


def run_into(parallel: Parallel) -> NDArray[np.float32]:
    descriptors = np.zeros((4, 1), np.float32)
    parallel.run_into(PIXELS, descriptors)
    return descriptors


both = pytest.mark.parametrize("use", [run, run_into])


@both
def test_rows_keep_their_order(use):
    parallel = Parallel(Scripted(lambda number: None), 3)
    assert use(parallel).ravel().tolist() == [0, 1, 2, 3]
    parallel.close()


class Late:
    """The other parts of a failing batch: they end only after the batch would have raised without them."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.raised = threading.Event()
        self.begun = threading.Barrier(4, timeout=SOON)

    def wait(self, number: int) -> None:
        self.raised.wait(A_MOMENT)
        self.events.append(number)

    def fails(self, use: Callable[[], object], error: type[BaseException]) -> None:
        with pytest.raises(error):
            use()
        self.events.append("raised")
        self.raised.set()


@both
@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
def test_a_part_fails_while_the_others_run(use, error):
    late = Late()

    def part(number: int) -> None:
        late.begun.wait()
        if number == 0:
            raise error
        late.wait(number)

    parallel = Parallel(Scripted(part), 4)
    late.fails(lambda: use(parallel), error)
    assert late.events[-1] == "raised" and sorted(late.events[:-1]) == [1, 2, 3]
    parallel.close()


@both
@pytest.mark.parametrize("times", [1, 3])
def test_an_interrupt_while_the_parts_run(use, times):
    late = Late()

    def part(number: int) -> None:
        late.begun.wait()
        for _ in range(times if number == 0 else 0):
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            late.raised.wait(A_MOMENT / 10)
        late.wait(number)

    parallel = Parallel(Scripted(part), 4)
    late.fails(lambda: use(parallel), KeyboardInterrupt)
    assert late.events[-1] == "raised" and sorted(late.events[:-1]) == [0, 1, 2, 3]
    parallel.close()


@both
@pytest.mark.parametrize("threads", [1, 2])
def test_the_system_refuses_a_thread(use, threads, monkeypatch):
    """The pool queues a part before it starts the thread; an earlier thread must not run that part afterwards."""
    late = Late()
    parallel = Parallel(Scripted(late.wait), 4)
    start, started = threading.Thread.start, []

    def refused(thread: threading.Thread) -> None:
        started.append(thread)
        if len(started) > threads:
            raise RuntimeError("can't start new thread")
        start(thread)

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refused)
        late.fails(lambda: use(parallel), RuntimeError)
    parallel._pool._threads.discard(started[-1])
    parallel._pool.shutdown()  # after whatever is still queued
    assert late.events[-1] == "raised" and len(late.events) <= threads + 1


def test_parts_that_had_not_begun_do_not_run():
    """Two batches share the threads; the parts of the second wait in the queue when it fails."""
    begun, go, ran = threading.Event(), threading.Event(), []

    def part(number: int) -> None:
        begun.set()
        ran.append(number)
        assert go.wait(SOON)

    parallel = Parallel(Scripted(part), 1)
    first = threading.Thread(target=run, args=(parallel,))
    first.start()
    assert begun.wait(SOON)
    submit = parallel._pool.submit

    def interrupted(*given: Any) -> None:
        submit(*given)
        raise KeyboardInterrupt

    parallel._pool.submit = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        parallel.run(PIXELS + 1)
    go.set()
    first.join(SOON)
    parallel._pool.shutdown()
    assert ran == [0]


def test_close_closes_the_backend_also_in_a_thread_of_the_pool():
    backend = Scripted(lambda number: None)
    parallel = Parallel(backend, 2)
    parallel._pool.submit(parallel.close).result(SOON)
    assert backend.closed
