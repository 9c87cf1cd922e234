"""Fair timing on a noisy machine: contestants take turns, and every turn starts with a call that does not count.

Turns spread a load over all contestants, but each loses differently by it, so ``load_between`` tells of the load.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from .cpu import CpuClock

CALLS_A_TURN = 3
MIN_ROUNDS = 4
MIN_CALLS = {50: 1, 95: 20, 99: 100}
"""Fewest timed calls for each percentile: with fewer, no call lies beyond it."""

BUSY = 0.1
"""Cores. A call waits for its slowest thread, so others on one core for a tenth of the time may slow it by a tenth."""
SHORTEST_WATCH = 1.0
"""Seconds. The kernel counts in hundredths of a second on each core."""


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


def percentile(values: Sequence[float], percent: int) -> float | None:
    """The percentile, linear between values; None for fewer values than ``MIN_CALLS``."""
    return float(np.percentile(values, percent)) if len(values) >= MIN_CALLS[percent] else None


def percentiles_ms(seconds: Sequence[float]) -> dict[str, float | None]:
    """Median, 95th and 99th ``percentile`` in milliseconds."""
    found = {f"p{percent}": percentile(seconds, percent) for percent in MIN_CALLS}
    return {name: None if value is None else round(value * 1e3, 4) for name, value in found.items()}


def load_between(before: CpuClock | None, after: CpuClock | None, threads: int) -> dict[str, Any]:
    """Whether others took cores that ``threads`` of this process wanted; unknown values are None.

    cores    that this process may use
    others   how many of them other processes used, on average
    steal    how many of them the hypervisor gave to other machines, on average
    busy     whether more than ``BUSY`` cores were missing: those stolen, and those that others used beyond the spare

    Other processes of a container that has a CPU quota are not seen to use up that quota.
    """
    if before is None or after is None or after.wall - before.wall < SHORTEST_WATCH:
        return dict.fromkeys(("busy", "cores", "others", "steal"))
    wall = after.wall - before.wall
    others = max(0.0, (after.all - before.all - (after.ours - before.ours)) / wall)
    steal = (after.stolen - before.stolen) / wall
    spare = max(0, after.cores - threads)
    return {
        "busy": max(0.0, others - spare) + steal > BUSY,
        "cores": after.cores,
        "others": round(others, 2),
        "steal": round(steal, 2),
    }


def load_warning(load: Mapping[str, Any]) -> str | None:
    """A sentence on a load under which speeds should not be believed, or on one that is unknown."""
    if load["busy"] is None:
        return "whether this machine was busy is unknown (/proc/stat and a second of timing tell); be sure it is quiet."
    if not load["busy"]:
        return None
    steal = f" and the hypervisor {load['steal']:.2f}" if load["steal"] else ""
    return (
        f"this machine was busy: other processes took {load['others']:.2f}{steal} of {load['cores']} cores while speed "
        "was measured; do not trust speeds or their ratios, and measure again on a quiet machine."
    )
