"""Counts what happens to submitted pictures, and how long each stage takes. Starts no threads."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from threading import Lock

OUTCOMES = ("described", "shed", "expired", "bad_picture", "failed", "cancelled")
STAGES = ("decode", "queue", "compute")
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
PICTURES = (1, 2, 4, 8, 16, 32, 64, 128)


@dataclass(frozen=True, slots=True)
class Histogram:
    """How often values fell between bounds.

    bounds   ascending
    counts   one more than bounds: values up to each bound and above the bound before it; the last counts the rest
    total    sum of all values
    """

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    total: float

    @property
    def count(self) -> int:
        """Number of values."""
        return sum(self.counts)

    @property
    def mean(self) -> float | None:
        """Mean of all values, None without values."""
        return self.total / self.count if self.count else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Stats:
    """What an engine has done with the pictures of ``submit`` and ``aembed`` since it was loaded.

    waiting       pictures in the queue now: they wait for a decoder, are being decoded, or wait for a batch
    in_flight     batches that are being computed now
    pictures      pictures by outcome: "described"; "shed" (the queue was full); "expired" (the timeout passed);
                  "bad_picture" (could not be decoded); "failed" (the batch failed); "cancelled"
    batch_sizes   pictures of each computed batch
    seconds       by stage: "decode" of a picture; "queue", the waiting of a picture for a decoder and for a batch;
                  "compute" of a batch

    Example:

        from cgd_deploy import load

        with load("model.cgd") as engine:
            engine.submit("photos/a.jpg").result()
            stats = engine.stats()
            print(stats.pictures["described"], stats.batch_sizes.mean, stats.seconds["compute"].mean)
    """

    waiting: int
    in_flight: int
    pictures: Mapping[str, int]
    batch_sizes: Histogram
    seconds: Mapping[str, Histogram]


class Statistics:
    """The counters behind ``Stats``. Threads share it."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._pictures: Counter[str] = Counter(dict.fromkeys(OUTCOMES, 0))
        self._batches = _Bins(PICTURES)
        self._stages = {stage: _Bins(SECONDS) for stage in STAGES}

    def ended(self, outcome: str, pictures: int = 1) -> None:
        """Count pictures that ended with one of OUTCOMES."""
        with self._lock:
            self._pictures[outcome] += pictures

    def computed(self, waited: Sequence[float], seconds: float) -> None:
        """Count a batch: the seconds that each of its pictures waited, and the seconds of its computation."""
        with self._lock:
            self._batches.add(len(waited))
            self._stages["compute"].add(seconds)
            for wait in waited:
                self._stages["queue"].add(wait)

    def decoded(self, seconds: float) -> None:
        """Count a picture that a thread has decoded, or tried to."""
        with self._lock:
            self._stages["decode"].add(seconds)

    def stats(self, waiting: int = 0, in_flight: int = 0) -> Stats:
        with self._lock:
            return Stats(
                waiting=waiting,
                in_flight=in_flight,
                pictures=dict(self._pictures),
                batch_sizes=self._batches.histogram(),
                seconds={stage: bins.histogram() for stage, bins in self._stages.items()},
            )


class _Bins:
    """A histogram that grows."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._total = 0.0

    def add(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._total += value

    def histogram(self) -> Histogram:
        return Histogram(self._bounds, tuple(self._counts), self._total)
