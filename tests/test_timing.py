"""Taking turns, with a clock that the test moves."""

from __future__ import annotations

import pytest

from cgd_deploy.timing import interleaved, percentiles_ms


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
    # Five samples are at 0, 25, 50, 75 and 100 %; 95 % lies four fifths of the way from the fourth to the fifth.
    assert percentiles_ms([0.005, 0.001, 0.003, 0.002, 0.004]) == {"p50": 3.0, "p95": 4.8, "p99": 4.96}
