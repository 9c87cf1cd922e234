"""The queue of an engine: a bounded number of requests that wait for a decoder, are decoded, or wait for a batch.

Decides which requests get a place, and when a batch leaves. Starts no threads and reads no pictures.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from math import inf
from threading import TIMEOUT_MAX, Condition, RLock
from time import monotonic
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..errors import DeadlineExceeded, EngineError, InputError, Overloaded
from .descriptors import Descriptor
from .statistics import Statistics, Stats

Pixels: TypeAlias = NDArray[np.uint8]
"""The pixels of one picture, uint8 [H, W, 3]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Policy:
    """When a batch leaves the queue.

    max_batch   pictures of a full batch, which leaves as soon as a worker is free
    max_delay   seconds that the oldest picture of a partial batch waits for others
    enough      batches in flight that keep the backend busy; a partial batch leaves only while fewer are in flight
    """

    max_batch: int
    max_delay: float
    enough: int

    def wait(self, waiting: int, waited: float, in_flight: int, closed: bool = False) -> float:
        """Seconds until a batch leaves if nothing else happens: 0 for now, inf for never.

        waiting     decoded pictures that wait for a batch
        waited      seconds that the oldest of these pictures has waited
        in_flight   batches that are being computed
        closed      whether the queue refuses further pictures, so that a partial batch has nothing to wait for
        """
        if waiting == 0:
            return inf
        if closed or waiting >= self.max_batch:
            return 0.0
        if in_flight >= self.enough:
            return inf
        return max(0.0, self.max_delay - waited)


class Submitted(Future[Descriptor]):
    """The future of a submitted picture. Its result is the unit descriptor, float32 [dim].

    seconds   how long each finished stage of this picture took, by ``statistics.STAGES``
    """

    def __init__(self) -> None:
        super().__init__()
        self.seconds: dict[str, float] = {}


class Request:
    """One picture on its way to its descriptor.

    pixels       the pixels, or the function that makes them
    timeout_ms   milliseconds from now after which the picture is no longer computed; None: no limit

    Raises InputError for a timeout that is not above 0.
    """

    __slots__ = ("expires", "future", "pixels", "ready", "timeout_ms")

    def __init__(self, pixels: Pixels | Callable[[], Pixels], timeout_ms: float | None = None) -> None:
        if timeout_ms is not None and not timeout_ms > 0:
            raise InputError(f"timeout_ms={timeout_ms} cannot be used; expected more than 0 milliseconds, or None.")
        self.pixels = pixels
        self.timeout_ms = timeout_ms
        self.future = Submitted()
        self.ready = monotonic()
        self.expires = inf if timeout_ms is None else self.ready + timeout_ms / 1000

    def stop_waiting(self) -> None:
        """Add the time since the picture was ready for its next stage to the seconds that it waited."""
        waited = self.future.seconds
        waited["queue"] = waited.get("queue", 0.0) + monotonic() - self.ready

    def late(self) -> DeadlineExceeded | None:
        """The error for a picture whose timeout has passed, else None."""
        if monotonic() < self.expires:
            return None
        return DeadlineExceeded(
            f"the picture was not computed within its timeout of {self.timeout_ms} ms; allow more time, or send fewer "
            "pictures at a time."
        )

    def fail(self, error: BaseException, statistics: Statistics) -> None:
        """Give ``error`` to the caller, unless the caller has cancelled. The request must have left the queue.

        Counts the outcome first, so that a caller who has the error finds it in the statistics.
        """
        if not self.future.set_running_or_notify_cancel():
            statistics.ended("cancelled")
            return
        statistics.ended(next((outcome for kind, outcome in _OUTCOMES.items() if isinstance(error, kind)), "failed"))
        self.future.set_exception(error)


_OUTCOMES: dict[type[BaseException], str] = {DeadlineExceeded: "expired", InputError: "bad_picture"}


class Queue:
    """Holds requests from their admission until their batch leaves. Threads share it.

    places       the most requests in the queue; one more raises Overloaded
    policy       when a batch leaves
    statistics   counts the requests that end in the queue
    lock         guards the queue; reentrant. The thread that removes a request answers its future, so each is answered
                 once
    """

    def __init__(self, places: int, policy: Policy, statistics: Statistics | None = None) -> None:
        self._places = places
        self._policy = policy
        self._statistics = statistics or Statistics()
        self._undecoded: OrderedDict[Future[Descriptor], Request] = OrderedDict()
        self._decoding: OrderedDict[Future[Descriptor], Request] = OrderedDict()
        self._decoded: OrderedDict[Future[Descriptor], Request] = OrderedDict()
        self._parts = (self._undecoded, self._decoding, self._decoded)
        self._in_flight = 0
        self._closed = False
        self.lock = RLock()
        self._decoder_wanted = Condition(self.lock)
        self._worker_wanted = Condition(self.lock)

    def admit(self, request: Request) -> None:
        """Give ``request`` a place. Raises Overloaded if every place is taken, EngineError after ``close``."""
        request.future.add_done_callback(self._forget_cancelled)
        with self.lock:
            if self._closed:
                raise EngineError("the engine is closed; load it again.")
            if self._waiting() >= self._places:
                self._statistics.ended("shed")
                raise Overloaded(
                    f"{self._places} pictures wait already; send fewer at a time, or try again in a moment."
                )
            if callable(request.pixels):
                self._undecoded[request.future] = request
                self._decoder_wanted.notify()
            else:
                self._add_decoded(request)

    def next_undecoded(self) -> Request | None:
        """Wait for a request to decode; None if the queue is closed. The caller then calls ``decoded``."""
        with self.lock:
            while not self._undecoded:
                if self._closed:
                    return None
                self._decoder_wanted.wait()
            future, request = self._undecoded.popitem(last=False)
            self._decoding[future] = request
            request.stop_waiting()
            return request

    def decoded(self, request: Request, outcome: Pixels | BaseException) -> None:
        """Store the pixels of ``request`` for a batch, or fail the request. Does nothing for a cancelled request."""
        with self.lock:
            if self._decoding.pop(request.future, None) is None:
                return
            if not isinstance(outcome, BaseException):
                request.pixels, request.ready = outcome, monotonic()
                self._add_decoded(request)
                return
            self._wake_if_over()
        request.fail(outcome, self._statistics)

    def next_batch(self) -> list[Request] | None:
        """Wait for the next batch, which is in flight until ``finished``; None if the queue is closed and empty.

        Requests whose timeout has passed fail here and leave the batch, which may then be empty.
        """
        with self.lock:
            while wait := self._policy.wait(len(self._decoded), self._waited(), self._in_flight, self._closed):
                if self._closed and not any(self._parts):
                    return None
                self._worker_wanted.wait(min(wait, TIMEOUT_MAX))
            batch, late = self._take()
            self._in_flight += 1
            self._wake_if_over()
        for request, error in late:
            request.fail(error, self._statistics)
        return batch

    def finished(self) -> None:
        """Count one batch less in flight."""
        with self.lock:
            self._in_flight -= 1
            if self._decoded:
                self._worker_wanted.notify()

    def stats(self) -> Stats:
        with self.lock:
            return self._statistics.stats(self._waiting(), self._in_flight)

    def close(self, drain: bool) -> None:
        """Admit no more; without ``drain``, cancel every request in the queue."""
        with self.lock:
            self._closed = True
            dropped = [] if drain else [future for part in self._parts for future in part]
            for part in self._parts if dropped else ():
                part.clear()
            self._decoder_wanted.notify_all()
            self._worker_wanted.notify_all()
        self._statistics.ended("cancelled", len(dropped))
        for future in dropped:
            future.cancel()
            future.set_running_or_notify_cancel()

    def _waiting(self) -> int:
        return sum(map(len, self._parts))

    def _add_decoded(self, request: Request) -> None:
        self._decoded[request.future] = request
        if len(self._decoded) % self._policy.max_batch in (0, 1):  # a batch is full, or begins and needs watching
            self._worker_wanted.notify()

    def _waited(self) -> float:
        """Seconds that the oldest decoded request has waited."""
        return monotonic() - next(iter(self._decoded.values())).ready if self._decoded else 0.0

    def _take(self) -> tuple[list[Request], list[tuple[Request, DeadlineExceeded]]]:
        """Remove the oldest requests: at most a full batch, and the late requests before its end with their errors."""
        batch: list[Request] = []
        late: list[tuple[Request, DeadlineExceeded]] = []
        while self._decoded and len(batch) < self._policy.max_batch:
            _, request = self._decoded.popitem(last=False)
            if error := request.late():
                late.append((request, error))
            else:
                request.stop_waiting()
                batch.append(request)
        return batch, late

    def _forget_cancelled(self, future: Future[Descriptor]) -> None:
        """Free the place of a request that its caller has cancelled."""
        if not future.cancelled():
            return
        with self.lock:
            if not any(part.pop(future, None) for part in self._parts):
                return  # a thread has taken the request, and sees that it is cancelled
            self._statistics.ended("cancelled")
            self._wake_if_over()
        future.set_running_or_notify_cancel()

    def _wake_if_over(self) -> None:
        """Wake every thread once a closed queue is empty, so that the thread ends."""
        if self._closed and not any(self._parts):
            self._worker_wanted.notify_all()
