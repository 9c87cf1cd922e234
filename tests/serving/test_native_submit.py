"""Submitted images of the C ABI: tickets, callbacks, timeouts, cancelling, statistics and the log."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from math import inf, isinf, nan
from time import sleep

import numpy as np
import pytest
from conftest import SPEC
from native_build import NEEDS_NATIVE
from native_ctypes import BGR, HISTOGRAMS, OUTCOMES, Library, Request, Stats, Submitted, at, image

from cgd_deploy.runtime.golden import golden_images

pytestmark = NEEDS_NATIVE

PIXELS = golden_images(SPEC, 6)
IMAGES = [image(pixels) for pixels in PIXELS]
LONG = 600_000.0
SOON = 10


@pytest.fixture
def patient(library, native_engine) -> Iterator[ctypes.c_void_p]:
    """An engine that computes two images together, and waits for the second."""
    status, engine = library.open(native_engine, max_batch=2, max_delay_ms=LONG)
    assert status == "CGD_OK"
    yield engine
    library.engine_close(engine)


def test_an_image_is_pending_until_its_batch_leaves(library, patient, expected):
    first = Submitted(library, patient, IMAGES[0])
    assert (first.status, first.error) == ("CGD_OK", "") and first.ticket
    assert [first.wait(0), first.wait(5)] == ["CGD_PENDING", "CGD_PENDING"] and "wait again" in library.error
    assert library.stats(patient).waiting == 1
    second = Submitted(library, patient, IMAGES[1])
    assert [one.wait() for one in (first, second)] == ["CGD_OK", "CGD_OK"] and library.error == ""
    assert first.wait(0) == "CGD_OK"
    assert np.allclose(np.stack([first.out, second.out]), expected(PIXELS[:2]), atol=1e-5)
    for one in (first, second):
        one.free()


def test_images_of_every_kind_get_pythons_descriptors(library, opened, expected, pictures):
    wide = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    bgr = np.ascontiguousarray(PIXELS[0][..., ::-1])
    file = (pictures / "kind-1" / "0.jpg").read_bytes()
    for source, picture in ((image(wide), wide), (image(bgr, BGR), PIXELS[0]), (file, file)):
        one = Submitted(library, opened, source)
        assert one.wait() == "CGD_OK" and np.array_equal(one.out, expected([picture])[0])
        one.free()


def test_done_is_called_once_in_another_thread(library, opened, expected):
    threads, called = [], threading.Event()

    def done() -> None:
        threads.append(threading.get_ident())
        called.set()

    one = Submitted(library, opened, IMAGES[0], done, context=12345)
    assert one.wait() == "CGD_OK"  # done has returned
    assert one.calls == [(12345, "CGD_OK", "")] and threads[0] != threading.get_ident()
    one.free()
    assert len(one.calls) == 1 and np.array_equal(one.out, expected(PIXELS[:1])[0])
    called.clear()
    alone = Submitted(library, opened, IMAGES[1], done, keep=False)
    assert called.wait(SOON) and alone.status == "CGD_OK" and not alone.ticket
    assert np.array_equal(alone.out, expected(PIXELS[1:2])[0])


def test_done_may_submit_the_next_image(library, opened):
    made: list[Submitted] = []
    last = threading.Event()

    def submit_next() -> None:
        if len(made) == 3:
            last.set()
        else:
            made.append(Submitted(library, opened, IMAGES[len(made)], submit_next, keep=False))

    submit_next()
    assert last.wait(SOON) and [one.calls[0][1] for one in made] == ["CGD_OK"] * 3


def test_an_image_that_cannot_be_used_has_a_status_and_a_sentence(library, opened):
    one = Submitted(library, opened, b"no picture at all", lambda: None)
    assert one.status == "CGD_OK" and one.wait() == "CGD_BAD_INPUT" and "cannot be decoded" in library.error
    ((_, status, message),) = one.calls
    assert (status, message) == ("CGD_BAD_INPUT", library.error)
    one.free()
    assert library.error == ""


def test_close_computes_images_but_late_ones(library, native_engine, expected):
    """The tickets live longer than the engine."""
    _, engine = library.open(native_engine, max_batch=3, max_delay_ms=LONG)
    late = Submitted(library, engine, IMAGES[0], lambda: None, timeout_ms=1.0)
    sleep(0.02)
    other = Submitted(library, engine, IMAGES[1], lambda: None, timeout_ms=LONG)
    library.engine_close(engine)
    assert [call[1] for one in (late, other) for call in one.calls] == ["CGD_TIMED_OUT", "CGD_OK"]
    assert late.wait(0) == "CGD_TIMED_OUT" and "timeout of 1.0 ms" in library.error and (late.out == 7).all()
    assert other.wait(0) == "CGD_OK" and np.array_equal(other.out, expected(PIXELS[1:2])[0])
    for one in (late, other):
        one.free()


def test_free_cancels_an_image_that_waits(library, patient):
    one = Submitted(library, patient, IMAGES[0], lambda: None)
    one.free()
    ((_, status, message),) = one.calls
    assert status == "CGD_CANCELLED" and "freed" in message and library.error == ""
    assert (one.out == 7).all()
    stats = library.stats(patient)
    assert (stats.waiting, stats.cancelled, stats.described) == (0, 1, 0)
    library.ticket_free(None)


def test_a_waiting_thread_learns_that_the_image_is_done(library, patient):
    with ThreadPoolExecutor(1) as pool:
        one = Submitted(library, patient, IMAGES[0])
        waiting = pool.submit(one.wait)
        other = Submitted(library, patient, IMAGES[1])
        assert waiting.result(SOON) == "CGD_OK"
        for each in (one, other):
            each.free()


def test_a_full_queue_refuses_and_a_cancelled_image_makes_room(library, native_engine):
    _, engine = library.open(native_engine, max_queue=1, max_delay_ms=LONG)
    first, shed = (Submitted(library, engine, one, lambda: None) for one in IMAGES[:2])
    assert (first.status, shed.status) == ("CGD_OK", "CGD_OVERLOADED") and "wait already" in shed.error
    assert not shed.ticket and shed.calls == []
    first.free()
    second = Submitted(library, engine, IMAGES[1])
    assert second.status == "CGD_OK"
    library.engine_close(engine)
    assert second.wait(0) == "CGD_OK" and shed.calls == []
    second.free()


def test_several_threads(library, opened, expected):
    def describe(number: int) -> np.ndarray:
        submitted = [Submitted(library, opened, one) for one in IMAGES]
        assert [one.wait() for one in submitted] == ["CGD_OK"] * len(IMAGES)
        for one in submitted:
            one.free()
        return np.stack([one.out for one in submitted])

    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(describe, range(8)):
            assert np.allclose(found, expected(PIXELS), atol=1e-5)
    assert library.stats(opened).described == 8 * len(IMAGES)


def test_the_statistics_add_up(library, native_engine, pictures):
    _, engine = library.open(native_engine, max_batch=2, max_queue=2, max_delay_ms=LONG)
    empty = library.stats(engine)
    assert [getattr(empty, name) for name in ("waiting", "in_flight", *OUTCOMES)] == [0] * 8
    file = (pictures / "kind-0" / "0.jpg").read_bytes()
    pair = [Submitted(library, engine, source) for source in (file, IMAGES[0])]
    assert [one.wait() for one in pair] == ["CGD_OK", "CGD_OK"]
    bad = Submitted(library, engine, b"no picture")
    assert bad.wait() == "CGD_BAD_INPUT"
    Submitted(library, engine, IMAGES[1]).free()
    waiting = [Submitted(library, engine, b"no picture"), Submitted(library, engine, IMAGES[2])]
    assert waiting[0].wait() == "CGD_BAD_INPUT"
    late = Submitted(library, engine, IMAGES[3], timeout_ms=1e-3)
    assert late.wait() == "CGD_TIMED_OUT" and waiting[1].wait() == "CGD_OK"
    stats = library.stats(engine)
    counts = {name: getattr(stats, name) for name in OUTCOMES}
    assert counts == {"described": 3, "shed": 0, "expired": 1, "bad_input": 2, "failed": 0, "cancelled": 1}
    assert (stats.waiting, stats.in_flight) == (0, 0)
    assert [getattr(stats, name).count for name in HISTOGRAMS] == [2, 3, 3, 2]
    assert stats.batch_sizes.total == 3 and list(stats.batch_sizes.counts[:3]) == [1, 1, 0]
    for name in HISTOGRAMS:
        histogram = getattr(stats, name)
        finite = [bound for bound in histogram.bounds if not isinf(bound)]
        assert finite == sorted(finite) and histogram.bounds[:] == [*finite, *[inf] * (16 - len(finite))]
        assert histogram.bounds[-1] == inf and not any(histogram.counts[len(finite) + 1 :])
        assert 0 < histogram.total < SOON * histogram.count
    for one in (*pair, bad, *waiting, late):
        one.free()
    library.engine_close(engine)


def refusals(library: Library, engine: ctypes.c_void_p) -> dict[str, tuple[Callable[[], object], str]]:
    """Name -> a call that is refused, and the words of its error."""
    out, one, ticket = np.zeros(96, np.float32), ctypes.byref(IMAGES[0]), ctypes.c_void_p()
    room, get = ctypes.c_size_t(96), ctypes.byref(ticket)
    broken = image(PIXELS[0], 9)
    return {
        "engine": (lambda: library.submit(None, one, None, at(out), room, get), "NULL"),
        "image": (lambda: library.submit(engine, None, None, at(out), room, get), "NULL"),
        "out": (lambda: library.submit(engine, one, None, None, room, get), "NULL"),
        "file": (lambda: library.submit_encoded(engine, None, room, None, at(out), room, get), "NULL"),
        "ticket": (lambda: library.submit(engine, one, None, at(out), room, None), "done"),
        "format": (lambda: library.submit(engine, ctypes.byref(broken), None, at(out), room, get), "format 9"),
        "wait for NULL": (lambda: library.ticket_wait(None, ctypes.c_double(0)), "NULL"),
        "stats of NULL": (lambda: library.engine_stats(None, ctypes.byref(Stats())), "NULL"),
        "stats to NULL": (lambda: library.engine_stats(engine, None), "NULL"),
        "stats without size": (lambda: library.engine_stats(engine, ctypes.byref(Stats())), "sizeof"),
        "level": (lambda: library.set_log(ctypes.cast(1, ctypes.c_void_p), None, 9), "CGD_LOG_DEBUG"),
    }


def test_what_cannot_be_is_refused(library, patient):
    for name, (call, words) in refusals(library, patient).items():
        assert library.status(call()) == "CGD_INVALID_ARGUMENT", name
        assert words in library.error, name
    for timeout in (-1.0, nan):
        one = Submitted(library, patient, IMAGES[0], lambda: None, timeout_ms=timeout)
        assert one.status == "CGD_INVALID_ARGUMENT" and "timeout_ms" in one.error and not one.ticket and not one.calls
    out, ticket = np.zeros(95, np.float32), ctypes.c_void_p(1)
    code = library.submit(patient, ctypes.byref(IMAGES[0]), None, at(out), ctypes.c_size_t(95), ctypes.byref(ticket))
    assert library.status(code) == "CGD_BUFFER_TOO_SMALL" and "expected 96" in library.error and not ticket
    one = Submitted(library, patient, IMAGES[0])
    code = library.ticket_wait(one.ticket, ctypes.c_double(nan))
    assert library.status(code) == "CGD_INVALID_ARGUMENT" and "number" in library.error
    one.free()
    assert library.stats(patient).cancelled == 1


def test_structs_of_other_headers(library, opened):
    """An older header ends before a field, so the library neither reads nor writes it."""
    assert library.request().size == ctypes.sizeof(Request)
    for size, status in ((8, "CGD_OK"), (16, "CGD_OK"), (40, "CGD_OK"), (0, "CGD_INVALID_ARGUMENT")):
        short = Submitted(library, opened, IMAGES[0], lambda: None, size=size)
        assert short.status == status and (status == "CGD_OK" or "sizeof" in short.error)
        if status == "CGD_OK":
            assert short.wait() == "CGD_OK" and len(short.calls) == (size > 16)
            short.free()
    newest = library.stats(opened)
    short = Stats(size=Stats.shed.offset, shed=123)
    assert library.engine_stats(opened, ctypes.byref(short)) == 0
    assert (short.size, short.described, short.shed) == (Stats.shed.offset, newest.described, 123)


def test_the_log(library, native_engine):
    def opened_with(least: int | None) -> list[tuple[int, str]]:
        lines: list[tuple[int, str]] = []
        kept = library.log_to((lambda level, line: lines.append((level, line))) if least else None, least or 0)
        _, engine = library.open(native_engine)
        library.engine_close(engine)
        library.log_to(None)
        _, engine = library.open(native_engine)
        library.engine_close(engine)
        assert kept
        return lines

    told = opened_with(2)
    assert [level for level, line in told if line.startswith(f"loaded {native_engine}")] == [2]
    assert all(level >= 2 and "\n" not in line for level, line in told)
    assert opened_with(4) == []
    assert len(opened_with(1)) >= len(told)


def test_a_function_before_gets_no_more_messages(library, native_engine):
    lines: dict[str, list[str]] = {"first": [], "second": []}
    kept = [library.log_to(lambda _, line, name=name: lines[name].append(line)) for name in lines]
    _, engine = library.open(native_engine)
    library.engine_close(engine)
    library.log_to(None)
    assert kept and lines["first"] == [] and lines["second"]
