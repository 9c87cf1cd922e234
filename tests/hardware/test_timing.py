"""Taking turns, with a clock that the test moves."""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack

import numpy as np
import pytest

from cgd_deploy.hardware.cpu import CpuClock, cpu_clock
from cgd_deploy.hardware.timing import interleaved, load_between, load_warning, percentile, percentiles_ms


class Clock:
    """Time passes only while a contestant works."""

    def __init__(self) -> None:
        self.now = 100.0
        self.log: list[str] = []

    def __call__(self) -> float:
        return self.now

    def contestant(self, name: str, *durations: float):
        calls = iter(durations)

        def call() -> None:
            self.log.append(name)
            self.now += next(calls, durations[-1])

        return call


def test_contestants_take_turns_and_the_first_call_of_a_turn_does_not_count():
    clock = Clock()
    a = clock.contestant("a", 9.0, 1.0, 2.0, 3.0, 9.0, 4.0, 5.0, 6.0, 0.0)
    taken = interleaved({"a": a, "b": clock.contestant("b", 0.5)}, 0.0, clock=clock)
    assert taken["a"][:6] == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    assert taken["b"] == [0.5] * 12
    assert "".join(clock.log) == "aaaabbbb" * 4


def test_rounds_go_on_until_the_time_is_spent():
    clock = Clock()
    interleaved({"a": clock.contestant("a", 1.0)}, 23.0, clock=clock)
    assert len(clock.log) == 6 * 4  # a round takes 4 seconds, and the sixth starts at 20


def test_a_slow_contestant_still_gets_four_rounds():
    clock = Clock()
    assert len(interleaved({"a": clock.contestant("a", 50.0)}, 1.0, clock=clock)["a"]) == 12


@pytest.mark.parametrize("seconds", [0.0, 10.0, 100.0])
def test_progress_grows_to_one(seconds):
    clock = Clock()
    done: list[float] = []
    interleaved({"a": clock.contestant("a", 1.0)}, seconds, done.append, clock)
    assert done == sorted(done) and done[-1] == 1.0 and done[0] <= 0.25


def test_percentiles_are_linear_between_samples():
    # 101 samples are at 0, 1, ... 100 %; with one more, 95 % lies 95 hundredths of the way from the 96th to the 97th.
    assert percentiles_ms([number / 1000 for number in reversed(range(101))]) == {"p50": 50.0, "p95": 95.0, "p99": 99.0}
    assert percentile(range(102), 95) == pytest.approx(95.95)


@pytest.mark.parametrize(
    ("calls", "known"), [(0, []), (1, ["p50"]), (19, ["p50"]), (20, ["p50", "p95"]), (99, ["p50", "p95"])]
)
def test_a_percentile_of_too_few_calls_is_not_told(calls, known):
    assert percentiles_ms([0.002] * calls) == {"p50": None, "p95": None, "p99": None} | dict.fromkeys(known, 2.0)


def clocks(*, seconds: float = 10.0, ours: float = 0.0, others: float = 0.0, stolen: float = 0.0, cores: int = 2):
    """The clocks before and after ``seconds`` in which these used so many cores."""
    before = CpuClock(wall=5.0, ours=7.0, all=100.0, stolen=3.0, cores=cores)
    after = CpuClock(
        wall=5.0 + seconds,
        ours=7.0 + ours * seconds,
        all=100.0 + (ours + others) * seconds,
        stolen=3.0 + stolen * seconds,
        cores=cores,
    )
    return before, after


@pytest.mark.parametrize(
    ("used", "busy"),
    [
        ({"ours": 2.0}, False),  # threads that spin are ours
        ({"ours": 2.0, "others": 0.09}, False),
        ({"ours": 1.0, "others": 1.0}, True),
        ({"ours": 0.0, "others": 0.11}, True),
        ({"ours": 1.5, "stolen": 0.5}, True),
        ({"ours": 1.9, "others": 0.06, "stolen": 0.06}, True),
        ({"ours": 2.0, "others": -0.02}, False),  # the two clocks are read one after the other
        ({"ours": 4.0, "others": 3.9, "cores": 8}, False),  # six cores are left beside two threads
        ({"ours": 2.0, "others": 6.2, "cores": 8}, True),
        ({"ours": 4.0, "stolen": 0.2, "cores": 8}, True),  # a core that idles is never stolen
        ({"ours": 1.0, "cores": 1}, False),  # more threads than cores are no load of others
    ],
)
def test_others_on_cores_that_the_threads_wanted_make_a_machine_busy(used, busy):
    load = load_between(*clocks(**used), threads=2)
    assert load["busy"] is busy
    assert load["others"] == pytest.approx(max(0.0, used.get("others", 0.0)), abs=0.005)
    assert (load["steal"], load["cores"]) == (pytest.approx(used.get("stolen", 0.0), abs=0.005), used.get("cores", 2))
    assert bool(load_warning(load)) is busy


@pytest.mark.parametrize("missing", ["before", "after", "time"])
def test_a_load_that_was_not_measured_is_unknown(missing):
    before, after = clocks(seconds=0.5 if missing == "time" else 10.0)
    load = load_between(None if missing == "before" else before, None if missing == "after" else after, threads=2)
    assert load == {"busy": None, "cores": None, "others": None, "steal": None}
    assert "unknown" in load_warning(load)


@pytest.mark.skipif(cpu_clock() is None, reason="this system does not count what processes use")
def test_busy_loops_beside_the_timing_are_seen():
    cores = cpu_clock().cores
    command = [sys.executable, "-c", "while True: pass"]
    with ExitStack() as stack:
        for _ in range(cores):
            process = stack.enter_context(subprocess.Popen(command))
            stack.callback(process.kill)
        started = cpu_clock()
        matrix = np.ones((200, 200))
        interleaved({"a": lambda: matrix @ matrix}, 1.5)
        load = load_between(started, cpu_clock(), threads=cores)
    assert load["busy"] and load["others"] > 0.1
