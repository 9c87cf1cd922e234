"""What an engine tells about its queue: every picture is counted once, and each stage is timed."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from conftest import FAKE_SPEC

from cgd_deploy import Batching, DeadlineExceeded, InputError, Overloaded, load
from cgd_deploy.runtime.admission import Policy
from cgd_deploy.runtime.scheduler import Scheduler
from cgd_deploy.runtime.statistics import OUTCOMES, PICTURES, SECONDS, STAGES, Statistics

SOON = 10
PIXELS = np.zeros((2, 2, 3), np.uint8)


def scheduler(run, **changes) -> Scheduler:
    policy = Policy(max_batch=changes.pop("max_batch", 4), max_delay=changes.pop("max_delay", 0.0), enough=9)
    return Scheduler(run, workers=1, decoders=1, policy=policy, max_queue=changes.pop("max_queue", 100), **changes)


def described(images: np.ndarray) -> np.ndarray:
    return images[:, 0, 0].astype(np.float32)


def fails(*_) -> np.ndarray:
    raise RuntimeError("the backend failed")


def test_values_fall_into_the_bin_of_the_next_bound():
    statistics = Statistics()
    for seconds in (0.0, 0.001, 0.0011, 0.3, 99.0):
        statistics.decoded(seconds)
    decode = statistics.stats().seconds["decode"]
    expected = [0] * (len(SECONDS) + 1)
    for seconds in (0.0, 0.001, 0.0011, 0.3, 99.0):
        expected[sum(bound < seconds for bound in SECONDS)] += 1
    assert decode.counts == tuple(expected)
    assert decode.count == 5
    assert decode.total == pytest.approx(99.3021)
    assert decode.mean == pytest.approx(99.3021 / 5)
    assert statistics.stats().seconds["compute"].mean is None


def test_each_outcome_is_counted_once():
    entered, go = threading.Semaphore(0), threading.Event()

    def held(images):
        entered.release()
        assert go.wait(SOON)
        return described(images)

    made = scheduler(held, max_queue=4)
    running = made.submit(PIXELS)
    assert entered.acquire(timeout=SOON)
    cancelled, late, fine = made.submit(PIXELS), made.submit(PIXELS, timeout_ms=1), made.submit(PIXELS)
    bad = made.submit(lambda: (_ for _ in ()).throw(InputError("no picture.")))
    while not bad.done():
        time.sleep(0.001)
    assert cancelled.cancel()
    stats = made.stats()
    assert (stats.waiting, stats.in_flight) == (2, 1)
    more = [made.submit(PIXELS) for _ in range(2)]
    with pytest.raises(Overloaded):
        made.submit(PIXELS)
    go.set()
    made.close()
    assert all(future.result(SOON).shape == (3,) for future in (running, fine, *more))
    assert isinstance(late.exception(SOON), DeadlineExceeded)
    stats = made.stats()
    assert (stats.waiting, stats.in_flight) == (0, 0)
    assert stats.pictures == {
        "described": 4,
        "shed": 1,
        "expired": 1,
        "bad_picture": 1,
        "failed": 0,
        "cancelled": 1,
    }
    assert set(stats.pictures) == set(OUTCOMES)
    assert stats.batch_sizes.total == 4


def test_pictures_that_close_drops_are_cancelled():
    entered, go = threading.Semaphore(0), threading.Event()

    def held(images):
        entered.release()
        assert go.wait(SOON)
        return described(images)

    made = scheduler(held)
    made.submit(PIXELS)
    assert entered.acquire(timeout=SOON)
    made.submit(PIXELS)
    threading.Timer(0.05, go.set).start()
    made.close(drain=False)
    assert made.stats().pictures["cancelled"] == 1
    assert made.stats().pictures["described"] == 1


def test_a_failed_batch_counts_its_pictures_as_failed_and_no_batch():
    made = scheduler(fails)
    future = made.submit(PIXELS)
    assert isinstance(future.exception(SOON), RuntimeError)
    made.close()
    assert made.stats().pictures["failed"] == 1
    assert made.stats().pictures["described"] == 0
    assert made.stats().batch_sizes.count == 0


def test_a_batch_is_one_value_of_its_size_and_one_of_its_computation():
    made = scheduler(described, max_batch=3, max_delay=60.0)
    for future in [made.submit(PIXELS) for _ in range(6)]:
        future.result(SOON)
    made.close()
    stats = made.stats()
    assert stats.batch_sizes.counts[PICTURES.index(4)] == 2  # 3 pictures are above 2 and at most 4
    assert stats.batch_sizes.total == 6
    assert stats.seconds["compute"].count == 2
    assert stats.seconds["queue"].count == 6


def test_the_future_tells_how_long_each_stage_took():
    def slow_pixels():
        time.sleep(0.02)
        return PIXELS

    def slow(images):
        time.sleep(0.03)
        return described(images)

    made = scheduler(slow, max_batch=2, max_delay=0.05)
    future = made.submit(slow_pixels)
    future.result(SOON)
    made.close()
    assert set(future.seconds) == set(STAGES)
    assert future.seconds["decode"] >= 0.02
    assert future.seconds["compute"] >= 0.03
    assert future.seconds["queue"] >= 0.05  # it waited for a second picture
    seconds = made.stats().seconds
    assert {stage: seconds[stage].total for stage in STAGES} == pytest.approx(future.seconds)


def test_an_engine_tells_its_numbers_before_and_after_its_first_picture(fake_engine):
    with load(fake_engine, batching=Batching(max_queue=2)) as engine:
        assert engine.stats().pictures == dict.fromkeys(OUTCOMES, 0)
        engine.submit(np.zeros((*FAKE_SPEC.input_size, 3), np.uint8)).result(SOON)
        assert engine.stats().pictures["described"] == 1
        assert engine.stats().seconds["decode"].count == 0  # pixels of the input size need no decoding
    assert engine.stats().pictures["described"] == 1
