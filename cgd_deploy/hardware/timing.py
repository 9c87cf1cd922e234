"""Fair timing on a noisy machine: contestants take turns, and every turn starts with a call that does not count.

Turns spread other load over all contestants, but contestants differ in how much it slows them. ``load_between`` reports
the load.
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
"""The fewest timed calls for each percentile: with fewer calls, no call is slower than the percentile."""

BUSY = 0.1
"""Cores. A call waits for its slowest thread, so other load on a tenth of one core can slow the call by a tenth."""
SHORTEST_WATCH = 1.0
"""Seconds. The kernel counts CPU time in hundredths of a second for each core."""


def interleaved(
    contestants: Mapping[str, Callable[[], object]],
    seconds: float,
    on_round: Callable[[float], None] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each timed call, by contestant. In each round, every contestant has a turn.

    A turn is one call that warms caches and lets the previous contestant's threads go to sleep, then 3 timed calls.

    seconds    about how long all rounds take; there are at least 4 rounds
    on_round   called after each round with the fraction done
    clock      gives the time in seconds
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
    """The load between two clocks, for this process with ``threads`` threads. Unknown values are None.

    cores    cores that this process may use
    others   how many of these cores other processes used, on average
    steal    how many of these cores the hypervisor gave to other machines, on average
    busy     whether this process missed more than ``BUSY`` cores: stolen cores, and cores that other processes used
             beyond the spare cores

    In a container with a CPU quota, other processes also use up the quota, which these numbers do not show.
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
    """A warning for a busy machine, or for one whose load is unknown; else None."""
    if load["busy"] is None:
        return "whether this machine was busy is unknown (no /proc/stat, or timing under a second); be sure it is idle."
    if not load["busy"]:
        return None
    steal = f" and the hypervisor {load['steal']:.2f}" if load["steal"] else ""
    return (
        f"this machine was busy: other processes took {load['others']:.2f}{steal} of {load['cores']} cores while speed "
        "was measured; do not trust speeds or their ratios, and measure again on a quiet machine."
    )
