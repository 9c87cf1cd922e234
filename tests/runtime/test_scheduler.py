"""Requests gathered into batches: when they leave, what is shed, cancelled or failed, and that nothing stays behind."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor, wait

import numpy as np
import pytest
from conftest import FAKE_SPEC
from PIL import Image

from cgd_deploy import Batching, EngineError, InputError, Overloaded, load
from cgd_deploy.pictures.preprocess import preprocess
from cgd_deploy.runtime import engine as module
from cgd_deploy.runtime.admission import Policy, Submitted
from cgd_deploy.runtime.golden import golden_images
from cgd_deploy.runtime.scheduler import Scheduler

SOON = 10
"""Seconds after which something that should happen at once has not."""


def picture(value: int) -> np.ndarray:
    return np.full((2, 2, 3), value, np.uint8)


def described(images: np.ndarray) -> np.ndarray:
    """A row says which picture it is of."""
    return np.stack([image.reshape(-1)[:3].astype(np.float32) for image in images])


class Gate:
    """A ``run`` that holds every batch until it is let through, and keeps their sizes."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.passes = threading.Semaphore(0)
        self.sizes: list[int] = []

    def __call__(self, images: np.ndarray) -> np.ndarray:
        self.sizes.append(len(images))
        self.entered.release()
        assert self.passes.acquire(timeout=SOON)
        return described(images)


def scheduler(
    run=described, *, workers=1, decoders=2, max_batch=4, max_delay=0.0, enough=9, max_queue=100
) -> Scheduler:
    policy = Policy(max_batch=max_batch, max_delay=max_delay, enough=enough)
    return Scheduler(run, workers=workers, decoders=decoders, policy=policy, max_queue=max_queue)


@pytest.fixture
def gate():
    return Gate()


@pytest.fixture
def held(gate):
    """A scheduler whose one worker is busy with one picture until the gate lets it go."""
    made = scheduler(gate, max_queue=6)
    first = made.submit(picture(0))
    assert gate.entered.acquire(timeout=SOON)
    yield made, first
    gate.passes.release(100)
    made.close()


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("cgd-deploy")]


def test_every_caller_gets_the_row_of_its_own_picture():
    made = scheduler(workers=3)
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda i: made.submit(picture(i)).result(SOON), range(200)))
    made.close()
    assert np.array_equal(np.stack(found), described(np.stack([picture(i) for i in range(200)])))


def test_what_came_while_a_batch_computed_leaves_in_full_batches(held, gate):
    made, first = held
    futures = [made.submit(picture(i)) for i in range(1, 7)]
    gate.passes.release(3)
    assert [int(f.result(SOON)[0]) for f in [first, *futures]] == list(range(7))
    assert gate.sizes == [1, 4, 2]


def test_a_full_batch_does_not_wait_for_the_deadline():
    made = scheduler(max_delay=1000.0)
    wait([made.submit(picture(i)) for i in range(4)], timeout=SOON)
    late = made.submit(picture(4))
    assert not late.done()
    made.close()  # which does not wait for the deadline either
    assert late.result(0)[0] == 4


def test_a_batch_leaves_when_its_oldest_request_has_waited_enough():
    sizes = []
    made = scheduler(lambda images: sizes.append(len(images)) or described(images), max_delay=0.2)
    before = time.monotonic()
    futures = [made.submit(picture(i)) for i in range(3)]
    wait(futures, timeout=SOON)
    assert time.monotonic() - before >= 0.2
    assert sizes == [3]
    made.close()


def test_all_workers_compute_at_the_same_time():
    meet = threading.Barrier(3, timeout=SOON)

    def run(images: np.ndarray) -> np.ndarray:
        meet.wait()
        return described(images)

    made = scheduler(run, workers=3, max_batch=1)
    assert [int(f.result(SOON)[0]) for f in [made.submit(picture(i)) for i in range(3)]] == [0, 1, 2]
    made.close()


def test_a_full_queue_sheds_and_takes_again_once_there_is_room(held, gate):
    made, _ = held
    futures = [made.submit(picture(i)) for i in range(6)]
    with pytest.raises(Overloaded, match="6 pictures wait already"):
        made.submit(picture(6))
    gate.passes.release(1)
    assert gate.entered.acquire(timeout=SOON)  # four of them compute now
    futures.append(made.submit(picture(6)))
    gate.passes.release(100)
    assert [int(f.result(SOON)[0]) for f in futures] == list(range(7))


def test_a_cancelled_request_is_not_computed_and_makes_room(held, gate):
    made, _ = held
    futures = [made.submit(picture(i)) for i in range(6)]
    assert futures[1].cancel() and futures[2].cancel()
    futures.append(made.submit(picture(6)))
    gate.passes.release(100)
    kept = [0, 3, 4, 5, 6]
    assert [int(futures[i].result(SOON)[0]) for i in kept] == kept
    assert gate.sizes == [1, 4, 1]


def test_a_backend_gets_contiguous_pixels_whatever_the_caller_has():
    contiguous = []
    made = scheduler(lambda images: contiguous.append(images.flags.c_contiguous) or described(images))
    turned = np.arange(12, dtype=np.uint8).reshape(2, 2, 3).transpose(1, 0, 2)
    assert np.array_equal(made.submit(turned).result(SOON), turned.reshape(-1)[:3])
    wait([made.submit(turned) for _ in range(4)], timeout=SOON)
    made.close()
    assert all(contiguous)


def test_what_is_being_computed_cannot_be_cancelled(held):
    assert not held[1].cancel()


def test_a_failed_batch_fails_only_its_own_requests(held, gate):
    made, first = held

    def run(images: np.ndarray) -> np.ndarray:
        if images.max() == 1:
            raise MemoryError("too much")
        return described(images)

    made._run = run
    futures = [made.submit(picture(value)) for value in (1, 1, 1, 1, 2, 3)]
    gate.passes.release(1)
    wait([first, *futures], timeout=SOON)
    assert [type(f.exception()) for f in futures] == [MemoryError] * 4 + [type(None)] * 2
    assert [int(f.result()[0]) for f in futures[4:]] == [2, 3]


def test_closing_computes_what_waits_and_leaves_no_thread(held, gate):
    made, _ = held
    futures = [made.submit(picture(i)) for i in range(5)]
    assert len(threads()) == 1
    gate.passes.release(100)
    made.close()
    assert all(f.done() for f in futures) and int(futures[4].result()[0]) == 4
    assert threads() == []
    with pytest.raises(EngineError, match="closed"):
        made.submit(picture(0))


def test_closing_without_draining_cancels_what_waits(held, gate):
    made, first = held
    futures = [made.submit(picture(i)) for i in range(5)]
    gate.passes.release(1)
    made.close(drain=False)
    assert first.result()[0] == 0
    for future in futures:
        with pytest.raises(CancelledError):
            future.result(0)


def test_a_callback_may_submit_and_close():
    made = scheduler()
    done = threading.Event()

    def again(_: object) -> None:
        made.submit(picture(1)).add_done_callback(lambda _: (made.close(), done.set()))

    made.submit(picture(0)).add_done_callback(again)
    assert done.wait(SOON)


def test_on_done_never_runs_in_the_thread_that_submits(monkeypatch):
    """Without a lock, the picture would be computed before its callback is added."""
    add, ran_in, done = Submitted.add_done_callback, [], threading.Event()

    def late(future: Submitted, callback: object) -> None:
        if callback is on_done:
            wait([future], 0.1)
        add(future, callback)

    def on_done(future: object) -> None:
        ran_in.append(threading.current_thread().name)
        done.set()

    monkeypatch.setattr(Submitted, "add_done_callback", late)
    with contextlib.closing(scheduler()) as made:
        future = made.submit(picture(0), on_done=on_done)
        assert done.wait(SOON) and future.result()[0] == 0
    assert ran_in == ["cgd-deploy-0"]


def test_who_has_the_error_finds_it_in_the_statistics():
    counted = []
    with contextlib.closing(scheduler()) as made:

        def broken() -> np.ndarray:
            raise InputError("broken.")

        future = made.submit(broken, on_done=lambda _: counted.append(made.stats().pictures["bad_picture"]))
        with pytest.raises(InputError):
            future.result(SOON)
    assert counted == [1]


@pytest.mark.parametrize(
    ("setting", "value"), [("max_batch", 0), ("max_queue", 0), ("max_delay_ms", -1.0), ("max_delay_ms", float("nan"))]
)
def test_settings_that_cannot_be_are_refused(setting, value):
    with pytest.raises(InputError, match=f"{setting}={value}"):
        Batching(**{setting: value})


def test_submit_gives_what_embed_gives(fake_engine, picture_list):
    with load(fake_engine, streams=2, threads=2) as engine:
        found = [future.result(SOON) for future in [engine.submit(path) for path in picture_list.paths]]
        assert np.allclose(np.stack(found), engine.embed(picture_list.paths), atol=1e-6)
        assert len(threads()) == 4  # two that compute and two that decode


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("streams", [1, 2])
def test_real_engines_answer_many_threads(engines, pixels, backend, streams):
    with load(engines[backend, "int8"], threads=2, streams=streams) as engine, ThreadPoolExecutor(8) as pool:
        expected = engine.embed(pixels)
        found = list(pool.map(lambda i: engine.submit(pixels[i]).result(SOON), list(range(len(pixels))) * 3))
    assert np.abs(np.stack(found) - np.concatenate([expected] * 3)).max() <= 1e-5


def test_a_bad_picture_fails_only_itself(fake_engine):
    with load(fake_engine) as engine:
        good = engine.submit(Image.new("RGB", (40, 40)))
        with pytest.raises(InputError, match="cannot be decoded"):
            engine.submit(b"not a picture").result(SOON)
        assert good.result(SOON).shape == (24,)


def test_the_queue_is_as_long_as_asked_for(fake_engine, monkeypatch, gate):
    with load(fake_engine, batching=Batching(max_batch=2, max_queue=3, max_delay_ms=0)) as engine:
        monkeypatch.setattr(engine._backend, "run", gate)
        pixels = golden_images(FAKE_SPEC, 1)[0]
        engine.submit(pixels)
        assert gate.entered.acquire(timeout=SOON)
        for _ in range(3):
            engine.submit(pixels)
        with pytest.raises(Overloaded):
            engine.submit(pixels)
        gate.passes.release(10)
    assert gate.sizes == [1, 2, 1]


def test_asyncio(fake_engine, picture_list):
    async def all_of_them(engine) -> list[np.ndarray]:
        return await asyncio.gather(*(engine.aembed(path) for path in picture_list.paths))

    with load(fake_engine) as engine:
        assert np.allclose(asyncio.run(all_of_them(engine)), engine.embed(picture_list.paths), atol=1e-6)


def test_asyncio_decodes_in_another_thread(fake_engine, pictures, monkeypatch):
    decoded = []

    def noted(image, spec):
        decoded.append(threading.current_thread())
        return preprocess(image, spec)

    monkeypatch.setattr(module, "preprocess", noted)
    with load(fake_engine) as engine:
        asyncio.run(engine.aembed(pictures / "kind-0" / "0.jpg"))
    assert decoded and threading.main_thread() not in decoded


def test_a_cancelled_task_takes_its_picture_out_of_the_queue(fake_engine, monkeypatch, gate):
    pixels = golden_images(FAKE_SPEC, 1)[0]

    async def impatient(engine) -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(engine.aembed(pixels), 0.1)

    with load(fake_engine) as engine:
        monkeypatch.setattr(engine._backend, "run", gate)
        first = engine.submit(pixels)
        assert gate.entered.acquire(timeout=SOON)
        asyncio.run(impatient(engine))
        gate.passes.release(10)
        first.result(SOON)
    assert gate.sizes == [1]


def test_a_closed_engine_says_so(fake_engine):
    engine = load(fake_engine)
    engine.close()
    pixels = golden_images(FAKE_SPEC, 1)
    for use in (lambda: engine.submit(pixels[0]), lambda: engine.embed(pixels)):
        with pytest.raises(EngineError, match="is closed; load it again"):
            use()
    engine.close()


def test_an_engine_that_is_forgotten_leaves_no_thread(fake_engine):
    engine = load(fake_engine)
    engine.submit(golden_images(FAKE_SPEC, 1)[0]).result(SOON)
    assert len(threads()) == 1
    del engine
    gc.collect()
    assert threads() == []


def test_a_process_ends_by_itself_with_its_pictures_computed(fake_engine):
    code = """
import sys
from cgd_deploy import Batching, load
from cgd_deploy.runtime import engine as module
from cgd_deploy.runtime.admission import Policy, Submitted
from cgd_deploy.runtime.golden import golden_images
from cgd_deploy.pictures.preprocess import preprocess
engine = load(sys.argv[1], batching=Batching(max_delay_ms=60000))
engine.submit(golden_images(engine.spec, 1)[0]).add_done_callback(lambda done: print(done.result().shape, flush=True))
"""
    done = subprocess.run([sys.executable, "-c", code, fake_engine], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "(24,)\n", "")


def _use_in_child(engine, answers) -> None:
    pixels = golden_images(engine.spec, 1)
    for use in (lambda: engine.embed(pixels), lambda: engine.submit(pixels[0])):
        try:
            use()
        except EngineError as error:
            answers.put(str(error))
    engine.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Python 3.12 and later: forking with threads
@pytest.mark.parametrize("backend", ["fake", "openvino"])
def test_a_forked_process_is_told_to_load_its_own(fake_engine, engines, backend):
    path = fake_engine if backend == "fake" else engines["openvino", "fp32"]
    with load(path, threads=2) as engine:
        engine.submit(golden_images(engine.spec, 1)[0]).result(SOON)
        fork = multiprocessing.get_context("fork")
        answers = fork.Queue()
        child = fork.Process(target=_use_in_child, args=(engine, answers))
        child.start()
        found = [answers.get(timeout=SOON) for _ in range(2)]
        child.join(SOON)
        assert child.exitcode == 0
        assert all("before this process was forked" in answer for answer in found)
        engine.submit(golden_images(engine.spec, 1)[0]).result(SOON)
