"""Admission: a request gets its place before it is decoded, in a bounded pool, and gives the place back once."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor, wait
from math import inf

import numpy as np
import pytest
from conftest import FAKE_SPEC
from test_scheduler import SOON, Gate, described, picture, scheduler, threads

from cgd_deploy import Batching, DeadlineExceeded, EngineError, InputError, Overloaded, load
from cgd_deploy.pictures.preprocess import preprocess
from cgd_deploy.runtime import admission
from cgd_deploy.runtime import engine as module
from cgd_deploy.runtime.admission import Policy
from cgd_deploy.runtime.engine import Engine
from cgd_deploy.runtime.golden import golden_images
from cgd_deploy.runtime.scheduler import Scheduler

POLICY = Policy(max_batch=4, max_delay=2.0, enough=2)


class Decodes:
    """Decode functions, each held until ``go``; notes which began, and how many ran at the same time."""

    def __init__(self) -> None:
        self.entered, self.go = threading.Semaphore(0), threading.Semaphore(0)
        self.begun: list[int] = []
        self.most = self.running = 0
        self._lock = threading.Lock()

    def __call__(self, value: int) -> Callable[[], np.ndarray]:
        return lambda: self.hold(value)

    def hold(self, value: int) -> np.ndarray:
        with self._lock:
            self.begun.append(value)
            self.running += 1
            self.most = max(self.most, self.running)
        self.entered.release()
        assert self.go.acquire(timeout=SOON)
        with self._lock:
            self.running -= 1
        return picture(value)

    def wait_for(self, count: int) -> None:
        for _ in range(count):
            assert self.entered.acquire(timeout=SOON)

    def release(self) -> None:
        self.go.release(1000)


@pytest.fixture
def decodes() -> Iterator[Decodes]:
    made = Decodes()
    yield made
    made.release()


@pytest.fixture
def gate() -> Iterator[Gate]:
    made = Gate()
    yield made
    made.passes.release(1000)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that the queue's clock shows."""
    now = [1000.0]
    monkeypatch.setattr(admission, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize(
    ("waiting", "waited", "in_flight", "closed", "expected"),
    [
        (0, 0.0, 0, False, inf),
        (0, 0.0, 0, True, inf),
        (1, 0.0, 0, False, 2.0),
        (1, 0.5, 1, False, 1.5),
        (3, 2.0, 1, False, 0.0),
        (3, 9.0, 0, False, 0.0),
        (3, 9.0, 2, False, inf),
        (4, 0.0, 2, False, 0.0),
        (9, 0.0, 6, False, 0.0),
        (1, 0.0, 6, True, 0.0),
    ],
)
def test_when_a_batch_leaves(waiting, waited, in_flight, closed, expected):
    assert POLICY.wait(waiting, waited, in_flight, closed) == expected


def test_nothing_that_is_refused_was_decoded(fake_engine, pictures, monkeypatch, gate):
    """16 threads send files without a pause while the backend stands still, and again once it goes on."""
    file = (pictures / "kind-0" / "0.jpg").read_bytes()
    decoded, refused, sent = [], [], []

    def noted(image, spec):
        decoded.append(image)
        return preprocess(image, spec)

    def client(_: int) -> None:
        for _ in range(20):
            try:
                sent.append(engine.submit(file))
            except Overloaded:
                refused.append(None)

    monkeypatch.setattr(module, "preprocess", noted)
    with load(fake_engine, batching=Batching(max_batch=2, max_queue=5, max_delay_ms=0)) as engine:
        monkeypatch.setattr(engine._backend, "run", gate)
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(client, range(16)))
            held = len(sent), len(decoded)
            gate.passes.release(1000)
            list(pool.map(client, range(16)))
        wait(sent, timeout=SOON)
    assert held[0] in (5, 6, 7) and held[1] <= held[0]  # the queue, and what computes
    assert len(decoded) == len(sent) == 640 - len(refused) and len(refused) > 300
    assert sum(gate.sizes) == len(decoded)


def test_a_picture_at_the_input_size_is_not_decoded(fake_engine):
    with load(fake_engine) as engine:
        engine.submit(golden_images(FAKE_SPEC, 1)[0]).result(SOON)
        assert threads() == ["cgd-deploy-0"]


def test_threads_and_tasks_share_a_bounded_pool(fake_engine, pictures, monkeypatch, decodes):
    path = pictures / "kind-0" / "0.jpg"

    async def tasks() -> None:
        await asyncio.gather(*(engine.aembed(path) for _ in range(10)))

    monkeypatch.setattr(module, "preprocess", lambda image, spec: (decodes.hold(0), preprocess(image, spec))[1])
    with load(fake_engine, threads=2) as engine, ThreadPoolExecutor(9) as pool:
        running = [pool.submit(lambda: engine.submit(path).result(SOON)) for _ in range(8)]
        running.append(pool.submit(asyncio.run, tasks()))
        decodes.wait_for(2)
        for _ in range(16):  # one leaves, one enters
            decodes.go.release()
            decodes.wait_for(1)
        decodes.release()
        for one in running:
            one.result(SOON)
        assert (decodes.most, len(decodes.begun)) == (2, 18)
        assert len(threads()) == 3


def test_the_event_loop_runs_on_while_a_picture_is_decoded(fake_engine, pictures, monkeypatch, decodes):
    monkeypatch.setattr(module, "preprocess", lambda image, spec: (decodes.hold(0), preprocess(image, spec))[1])

    async def main() -> np.ndarray:
        answer = asyncio.create_task(engine.aembed(pictures / "kind-0" / "0.jpg"))
        while not decodes.begun:
            await asyncio.sleep(0)
        decodes.release()  # the loop has come here, so it did not wait for the decoder
        return await answer

    with load(fake_engine) as engine:
        assert asyncio.run(main()).shape == (24,)


def test_decoded_pictures_get_their_own_rows(decodes):
    decodes.release()
    made = scheduler(workers=2, decoders=3)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: made.submit(decodes(i)).result(SOON), range(90)))
    made.close()
    assert [int(row[0]) for row in found] == list(range(90))


@pytest.mark.parametrize("number", [0, 1], ids=["being decoded", "waiting for a decoder"])
def test_cancelling_gives_the_place_back_at_once(decodes, number):
    made = scheduler(decoders=1, max_queue=2)
    futures = [made.submit(decodes(1)), made.submit(decodes(2))]
    decodes.wait_for(1)
    with pytest.raises(Overloaded, match="2 pictures wait already"):
        made.submit(picture(3))
    assert futures[number].cancel() and futures[number].cancel()
    assert not wait(futures[number : number + 1], timeout=SOON).not_done
    assert made.submit(picture(3)).result(SOON)[0] == 3
    futures.append(made.submit(picture(4)))
    decodes.release()
    made.close()
    kept = [future for future in futures if not future.cancelled()]
    assert [int(future.result(SOON)[0]) for future in kept] == [2 - number, 4]
    assert (2 in decodes.begun) == (number == 0)


def test_a_cancelled_task_gives_its_place_back(fake_engine, pictures, monkeypatch, decodes):
    monkeypatch.setattr(module, "preprocess", lambda image, spec: (decodes.hold(0), preprocess(image, spec))[1])

    async def main() -> None:
        first = asyncio.create_task(engine.aembed(pictures / "kind-0" / "0.jpg"))
        while not decodes.begun:
            await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await engine.aembed(pictures / "kind-0" / "1.jpg")
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        second = asyncio.create_task(engine.aembed(pictures / "kind-0" / "1.jpg"))
        decodes.release()
        assert (await second).shape == (24,)

    with load(fake_engine, batching=Batching(max_queue=1)) as engine:
        asyncio.run(main())


@pytest.mark.parametrize("error", [InputError("no picture"), RuntimeError("a bug"), MemoryError("too much")], ids=repr)
def test_an_error_in_decoding_reaches_the_future_and_gives_the_place_back(error):
    def fails() -> np.ndarray:
        raise error

    made = scheduler(max_queue=1)
    for _ in range(3):
        assert made.submit(fails).exception(SOON) is error
    assert made.submit(picture(3)).result(SOON)[0] == 3
    made.close()


def test_a_decoder_that_cannot_start_takes_no_place(monkeypatch, decodes):
    decodes.release()
    made = scheduler(max_queue=1)

    def refused(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refused)
        with pytest.raises(RuntimeError, match="can't start"):
            made.submit(decodes(1))
    assert made.submit(decodes(2)).result(SOON)[0] == 2
    made.close()
    assert decodes.begun == [2] and threads() == []


@pytest.mark.parametrize("timeout", [0, -1.0, float("nan")])
def test_timeouts_that_cannot_be_are_refused(fake_engine, timeout):
    with load(fake_engine) as engine, pytest.raises(InputError, match=f"timeout_ms={timeout} cannot be used"):
        engine.submit(golden_images(FAKE_SPEC, 1)[0], timeout_ms=timeout)


def test_a_late_picture_is_not_decoded(decodes, clock):
    made = scheduler(decoders=1)
    first, late, patient = (made.submit(decodes(i), timeout) for i, timeout in ((1, 500), (2, 400), (3, None)))
    decodes.wait_for(1)
    clock[0] += 0.45
    decodes.release()
    with pytest.raises(DeadlineExceeded, match=r"within its timeout of 400 ms; allow more time") as raised:
        late.result(SOON)
    assert isinstance(raised.value, Overloaded)
    assert [int(future.result(SOON)[0]) for future in (first, patient)] == [1, 3]
    made.close()
    assert decodes.begun == [1, 3]


def test_a_late_picture_is_not_computed_and_does_not_count_in_a_batch(gate, clock):
    made = scheduler(gate)
    made.submit(picture(0))
    assert gate.entered.acquire(timeout=SOON)
    futures = [made.submit(picture(i), 100 if i < 3 else 1000) for i in range(8)]
    clock[0] += 0.1
    gate.passes.release(1000)
    made.close()
    assert [type(future.exception(SOON)) for future in futures] == [DeadlineExceeded] * 3 + [type(None)] * 5
    assert gate.sizes == [1, 4, 1]


def test_a_picture_that_is_late_after_decoding_is_not_computed(decodes, clock):
    made = scheduler()
    late = made.submit(decodes(1), 100)
    decodes.wait_for(1)
    clock[0] += 1
    decodes.release()
    assert type(late.exception(SOON)) is DeadlineExceeded
    made.close()


def test_a_late_picture_gives_its_place_back(gate, clock):
    made = scheduler(gate, max_queue=1)
    made.submit(picture(0))
    assert gate.entered.acquire(timeout=SOON)
    late = made.submit(picture(1), 100)
    clock[0] += 1
    gate.passes.release(1000)
    assert isinstance(late.exception(SOON), DeadlineExceeded)
    assert made.submit(picture(2), 100).result(SOON)[0] == 2
    made.close()


def test_aembed_takes_a_timeout(fake_engine, monkeypatch, gate, clock):
    pixels = golden_images(FAKE_SPEC, 1)[0]

    async def main() -> None:
        answer = asyncio.create_task(engine.aembed(pixels, timeout_ms=100))
        await asyncio.sleep(0)
        clock[0] += 1
        gate.passes.release(1000)
        with pytest.raises(DeadlineExceeded):
            await answer

    with load(fake_engine, batching=Batching(max_delay_ms=0)) as engine:
        monkeypatch.setattr(engine._backend, "run", gate)
        engine.submit(pixels)
        assert gate.entered.acquire(timeout=SOON)
        asyncio.run(main())


def test_a_partial_batch_waits_while_enough_batches_are_in_flight(gate):
    made = scheduler(gate, workers=3, enough=1)
    made.submit(picture(0))
    assert gate.entered.acquire(timeout=SOON)
    futures = [made.submit(picture(i)) for i in range(1, 10)]  # two full batches, which leave, and one more
    for _ in range(2):
        assert gate.entered.acquire(timeout=SOON)
    assert gate.sizes == [1, 4, 4]
    gate.passes.release(1000)
    assert [int(future.result(SOON)[0]) for future in futures] == list(range(1, 10))
    made.close()
    assert gate.sizes == [1, 4, 4, 1]


def test_a_partial_batch_leaves_when_a_batch_ends_even_if_its_callback_does_not():
    entered, passes, hold = threading.Semaphore(0), threading.Semaphore(0), threading.Event()

    def run(images: np.ndarray) -> np.ndarray:
        entered.release()
        assert passes.acquire(timeout=SOON)
        return described(images)

    made = scheduler(run, workers=2, enough=1)
    made.submit(picture(1)).add_done_callback(lambda _: hold.wait(SOON))
    assert entered.acquire(timeout=SOON)
    second = made.submit(picture(2))
    passes.release(2)
    assert second.result(SOON)[0] == 2 and not hold.is_set()
    hold.set()
    made.close()


class Closing(threading.Thread):
    """Closes a scheduler or an engine beside the test, so that a test whose close never ends can fail."""

    def __init__(self, made: Scheduler | Engine, drain: bool = True) -> None:
        super().__init__(target=made.close, args=(drain,), daemon=True)
        self.start()

    def ends(self) -> bool:
        self.join(SOON)
        return not self.is_alive()


def test_closing_decodes_and_computes_what_was_admitted(decodes):
    made = scheduler(workers=2, decoders=1)
    futures = [made.submit(decodes(i)) for i in range(1, 7)]
    decodes.wait_for(1)
    closing = Closing(made)
    while not made._queue._closed:
        pass
    with pytest.raises(EngineError, match="closed"):
        made.submit(decodes(7))
    decodes.release()
    assert closing.ends()
    assert [int(future.result(0)[0]) for future in futures] == list(range(1, 7))
    assert threads() == []


def closed_with_idle_workers(queue: admission.Queue, workers: int) -> bool:
    with queue.lock:
        return queue._closed and len(queue._worker_wanted._waiters) == workers


@pytest.mark.parametrize("end", ["computed", "failed", "cancelled"])
def test_closing_ends_once_the_last_picture_is(decodes, end):
    """The idle workers, which waited for that picture, must hear that there will be none."""

    def decode() -> np.ndarray:
        pixels = decodes.hold(1)
        if end == "failed":
            raise InputError("no picture")
        return pixels

    made = scheduler(workers=2, decoders=1)
    future = made.submit(decode)
    decodes.wait_for(1)
    closing = Closing(made)
    while not closed_with_idle_workers(made._queue, 2):
        pass
    assert end != "cancelled" or future.cancel()
    decodes.release()
    assert closing.ends() and threads() == []


def test_closing_without_draining_cancels_what_is_decoded(decodes):
    made = scheduler(decoders=1)
    futures = [made.submit(decodes(i)) for i in range(3)]
    decodes.wait_for(1)
    closing = Closing(made, drain=False)
    assert len(wait(futures, timeout=SOON).done) == 3
    decodes.release()
    assert closing.ends()
    for future in futures:
        with pytest.raises(CancelledError):
            future.result(0)
    assert decodes.begun == [0] and threads() == []


@pytest.mark.parametrize("drain", [True, False])
def test_a_callback_in_the_only_decoder_closes(fake_engine, pictures, monkeypatch, decodes, drain):
    """The thread cannot wait for itself, and pictures that only it can decode wait behind it."""
    monkeypatch.setattr(module, "preprocess", lambda image, spec: (decodes.hold(0), preprocess(image, spec))[1])
    engine = load(fake_engine, threads=1)
    bad = engine.submit(b"not a picture")
    decodes.wait_for(1)
    others = [engine.submit(path) for path in (pictures / "kind-0").iterdir()]
    bad.add_done_callback(lambda _: engine.close(drain))
    decodes.release()
    assert len(wait([bad, *others], timeout=SOON).done) == 6
    assert [future.cancelled() for future in others] == [not drain] * 5
    assert Closing(engine).ends()
    assert threads() == []


def test_a_forgotten_engine_answers_what_it_decodes(fake_engine, pictures):
    engine = load(fake_engine, batching=Batching(max_delay_ms=60_000))
    futures = [engine.submit(path) for path in (pictures / "kind-0").iterdir()]
    del engine
    gc.collect()
    assert all(future.result(0).shape == (24,) for future in futures) and threads() == []


def test_a_process_ends_by_itself_with_its_pictures_decoded(fake_engine, pictures):
    code = """
import sys
from cgd_deploy import Batching, load
engine = load(sys.argv[1], batching=Batching(max_delay_ms=60000))
engine.submit(sys.argv[2]).add_done_callback(lambda done: print(done.result().shape, flush=True))
"""
    command = [sys.executable, "-c", code, fake_engine, pictures / "kind-0" / "0.jpg"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "(24,)\n", "")
