"""Fair timing on a noisy machine: contestants take turns, and every turn starts with a call that does not count."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

CALLS_A_TURN = 3
MIN_ROUNDS = 4


def interleaved(
    contestants: Mapping[str, Callable[[], object]],
    seconds: float,
    on_round: Callable[[float], None] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each timed call, by contestant, from rounds of turns: at least 4, and about ``seconds`` in all.

    A turn is one call that warms caches and lets the last contestant's threads go to sleep, then 3 timed ones.
    on_round   called after each round with the fraction done
    """
    taken: dict[str, list[float]] = {name: [] for name in contestants}
    started = clock()
    rounds = 0
    while rounds < MIN_ROUNDS or clock() - started < seconds:
        for name, call in contestants.items():
            call()
            for _ in range(CALLS_A_TURN):
                before = clock()
                call()
                taken[name].append(clock() - before)
        rounds += 1
        if on_round:
            on_round(min(1.0, rounds / MIN_ROUNDS, (clock() - started) / max(seconds, 1e-9)))
    return taken


def percentiles_ms(seconds: Sequence[float]) -> dict[str, float]:
    """Median, 95th and 99th percentile in milliseconds, linear between samples."""
    return {f"p{p}": round(float(np.percentile(seconds, p)) * 1e3, 4) for p in (50, 95, 99)}
