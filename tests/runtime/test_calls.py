"""Calls: what they use is freed once, after the last of them, and closing never waits for its own thread."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from cgd_deploy.errors import EngineError
from cgd_deploy.runtime.calls import Calls

SOON = 10
"""Seconds after which something that should happen at once has not."""


@pytest.fixture
def events() -> list[str]:
    return []


@pytest.fixture
def calls(events: list[str]) -> Calls:
    return Calls("the thing", lambda: events.append("freed"))


def test_close_waits_for_every_call_and_frees_once(calls, events):
    entered, go = threading.Barrier(4, timeout=SOON), threading.Event()

    def call(number: int) -> None:
        with calls:
            entered.wait()
            assert go.wait(SOON)
            events.append("done")

    with ThreadPoolExecutor(5) as pool:
        running = [pool.submit(call, number) for number in range(3)]
        entered.wait()
        closing = [pool.submit(calls.close) for _ in range(2)]
        while not calls.closed:
            pass
        assert events == []
        go.set()
        for one in (*running, *closing):
            one.result(SOON)
    assert events == ["done"] * 3 + ["freed"]
    calls.close()
    assert events.count("freed") == 1


def test_after_close_a_call_is_refused(calls):
    with calls:
        pass
    assert calls.refuse() and not calls.refuse()
    with pytest.raises(EngineError, match="the thing is closed; load it again"), calls:
        pytest.fail("it ran")
    assert not calls.enter()


def test_a_call_inside_a_running_call_is_not_refused(calls, events):
    with calls:
        calls.refuse()
        with calls:
            events.append("inside")
    calls.close()
    assert events == ["inside", "freed"]


def test_a_thread_that_a_running_call_starts_is_not_refused(calls, events):
    go = threading.Event()

    def work() -> None:
        assert go.wait(SOON)
        events.append("worked")
        calls.leave()

    with calls:
        calls.refuse()
        thread = threading.Thread(target=work)
        thread.start()
        calls.enter_thread(thread)
    with ThreadPoolExecutor(1) as pool:
        closing = pool.submit(calls.close)
        go.set()
        closing.result(SOON)
    assert events == ["worked", "freed"]


@pytest.mark.parametrize("depth", [1, 2])
def test_close_inside_a_call_leaves_freeing_to_the_last_call(calls, events, depth):
    entered, go = threading.Event(), threading.Event()

    def other() -> None:
        with calls:
            entered.set()
            assert go.wait(SOON)
            events.append("other")

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(other)
        assert entered.wait(SOON)
        for _ in range(depth):
            calls.__enter__()
        calls.close()
        for _ in range(depth):
            calls.__exit__()
        assert events == []
        go.set()
        running.result(SOON)
    assert events == ["other", "freed"]


def test_two_calls_that_close_do_not_wait_for_each_other(calls, events):
    both = threading.Barrier(2, timeout=SOON)

    def call(_: int) -> None:
        with calls:
            both.wait()
            calls.close()
            both.wait()

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(call, range(2)))
    assert events == ["freed"]


def test_an_interrupted_close_can_be_repeated(calls, events, monkeypatch):
    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(calls._change, "wait_for", interrupted)
        with pytest.raises(KeyboardInterrupt):
            calls.close()
    assert calls.closed and events == []
    calls.close()
    assert events == ["freed"]


def test_who_closes_gets_the_error_of_freeing():
    def fail() -> None:
        raise EngineError("the device is gone")

    calls = Calls("the thing", fail)
    with pytest.raises(EngineError, match="the device is gone"):
        calls.close()
    calls.close()


def test_a_fork_frees_nothing(calls, events, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(os, "getpid", lambda: -1)
        calls.close()
    assert events == [] and not calls.closed
