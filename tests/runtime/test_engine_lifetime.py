"""The end of an engine: ``close`` waits for running calls, and an engine that is dropped frees what it holds."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_tensorrt_backend as tensorrt_tests
from conftest import FAKE_SPEC, write_fake_engine
from fake_cuda import FakeContext, FakeDriver, described

from cgd_deploy import Batching, load
from cgd_deploy.errors import EngineError
from cgd_deploy.runtime.backends import tensorrt
from cgd_deploy.runtime.backends.base import Backend
from cgd_deploy.runtime.cuda.lane import Layout
from cgd_deploy.runtime.cuda.streams import Streams
from cgd_deploy.runtime.engine import Engine
from cgd_deploy.runtime.enginefile import read_engine
from cgd_deploy.runtime.golden import golden_images

SOON = 10
"""Seconds after which something that should happen at once has not."""
A_MOMENT = 0.2
"""Seconds in which a ``close`` that does not wait would have freed the backend."""

SPEC = replace(FAKE_SPEC, descriptors="SMG", dim=3)
SHAPE = (*SPEC.input_size, 3)
PIXELS = golden_images(SPEC, 5)


class Cuda(Backend):
    """A model on the lanes of a fake device."""

    def __init__(self, driver: FakeDriver, lanes: int = 2) -> None:
        layout = Layout(buckets=(1, 2, 4, 8), image_shape=SHAPE, dim=3)
        self.streams = Streams(driver, lambda stream: FakeContext(driver, SHAPE), layout, lanes=lanes)
        self.concurrency = self.streams.capacity

    def run(self, images: np.ndarray) -> np.ndarray:
        return self.streams.run(images)

    def close(self) -> None:
        self.streams.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_fake_engine(tmp_path / "small.cgd", SPEC)


@pytest.fixture(params=["cpu", "cpu in parts", "cuda"])
def engine(request: pytest.FixtureRequest, path: Path) -> Iterator[Engine]:
    if request.param != "cuda":
        yield load(path, threads=2, streams=2 if "parts" in request.param else 1)
        return
    driver = FakeDriver()
    yield Engine(read_engine(path), Cuda(driver))
    gc.collect()
    driver.assert_empty()


class Watch:
    """Holds every run of an engine's backend until ``go``, and notes what happens in which order."""

    def __init__(self, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.events: list[str] = []
        self.entered, self.freed, self.go = threading.Event(), threading.Event(), threading.Event()
        self.in_run: Callable[[], object] = lambda: None
        backend = engine._backend
        run, close = backend.run, backend.close

        def watched_run(images: np.ndarray) -> np.ndarray:
            self.entered.set()
            self.in_run()
            assert self.go.wait(SOON)
            self.freed.wait(A_MOMENT if engine._calls.closed else 0)
            found = run(images)
            self.events.append("computed")
            return found

        def watched_close() -> None:
            self.events.append("freed")
            self.freed.set()
            close()

        monkeypatch.setattr(backend, "run", watched_run)
        monkeypatch.setattr(backend, "close", watched_close)


@pytest.fixture
def watch(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Watch:
    return Watch(engine, monkeypatch)


def into(engine: Engine) -> np.ndarray:
    found = np.zeros((5, 3), np.float32)
    engine.embed_into(PIXELS, found)
    return found


def by_list(engine: Engine) -> np.ndarray:
    with ThreadPoolExecutor(1) as pool:  # the call is made in a thread of its own
        return pool.submit(lambda: engine.embed([*PIXELS])).result()


USES: dict[str, Callable[[Engine], Any]] = {
    "embed pixels": lambda engine: engine.embed(PIXELS),
    "embed a list": lambda engine: engine.embed([*PIXELS]),
    "embed from a pool": by_list,
    "embed_into": into,
    "submit": lambda engine: engine.submit(PIXELS[0]).result(SOON),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_close_waits_for_calls_of_other_threads(engine, watch, use):
    with ThreadPoolExecutor(2) as pool:
        running = pool.submit(use, engine)
        assert watch.entered.wait(SOON)
        closing = pool.submit(engine.close)
        while not engine._calls.closed:
            pass
        with pytest.raises(EngineError, match="is closed; load it again"):
            engine.embed(PIXELS)
        watch.go.set()
        assert running.result(SOON) is not None
        closing.result(SOON)
    assert watch.events.count("freed") == 1 and watch.events[-1] == "freed" and len(watch.events) > 1


def test_close_without_draining_waits_for_calls_too(engine, watch):
    with ThreadPoolExecutor(2) as pool:
        running = pool.submit(engine.embed, PIXELS)
        assert watch.entered.wait(SOON)
        closing = pool.submit(engine.close, drain=False)
        while not engine._calls.closed:
            pass
        watch.go.set()
        assert running.result(SOON).shape == (5, 3)
        closing.result(SOON)
    assert watch.events[-1] == "freed"


def test_close_waits_while_a_call_decodes(engine, watch):
    """Nothing of the backend runs yet, but the call has begun and is answered."""
    decoding, decode = threading.Event(), threading.Event()

    def pictures() -> Iterator[np.ndarray]:
        decoding.set()
        assert decode.wait(SOON)
        yield PIXELS[0]

    watch.go.set()
    with ThreadPoolExecutor(2) as pool:
        running = pool.submit(engine.embed, pictures())
        assert decoding.wait(SOON)
        closing = pool.submit(engine.close)
        while not engine._calls.closed:
            pass
        decode.set()
        assert running.result(SOON).shape == (1, 3)
        closing.result(SOON)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("streams", [1, 2])
def test_real_engines_close_under_load(engines, pixels, backend, streams):
    """A call gives descriptors or says that the engine is closed; a session that is gone is never touched."""
    engine = load(engines[backend, "fp32"], threads=2, streams=streams)
    expected, started = engine.embed(pixels[:4]), threading.Barrier(5, timeout=SOON)

    def embed_until_closed(_: int) -> int:
        started.wait()
        for number in range(10**6):
            try:
                found = engine.embed(pixels[:4])
            except EngineError as error:
                assert "is closed; load it again" in str(error)
                return number
            assert np.abs(found - expected).max() <= 1e-5
        return 0

    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(embed_until_closed, number) for number in range(4)]
        started.wait()
        engine.close()
        for one in running:
            one.result(SOON)


def test_close_in_a_signal_handler_of_a_thread_that_embeds(engine, watch):
    before = signal.signal(signal.SIGTERM, lambda *_: engine.close())
    watch.in_run = lambda: signal.raise_signal(signal.SIGTERM)
    watch.go.set()
    try:
        assert engine.embed(PIXELS[:1]).shape == (1, 3)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert watch.events == ["computed", "freed"]
    with pytest.raises(EngineError, match="is closed"):
        engine.embed(PIXELS)


CLOSED_ELSEWHERE = """
import signal, sys, threading
from cgd_deploy import load
engine = load(sys.argv[1])
closing = threading.Thread(target=engine.close)
closing.start()
closing.join()
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_a_signal_after_another_thread_closed_the_engine(engines, backend):
    """OpenVINO takes a signal stack of the thread that loads it and frees that stack in the thread that closes."""
    command = [sys.executable, "-c", CLOSED_ELSEWHERE, engines[backend, "fp32"]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "interrupted\n"), done.stderr


def test_a_callback_closes_and_what_waits_is_computed_first(engine, watch):
    engine._batching = Batching(max_batch=1, max_delay_ms=0)
    first, *others = [engine.submit(row) for row in PIXELS]
    first.add_done_callback(lambda _: engine.close())
    watch.go.set()
    for future in others:
        assert future.result(SOON).shape == (3,)
    engine.close()
    assert watch.events == ["computed"] * 5 + ["freed"]


def test_callbacks_in_two_threads_close_at_the_same_time(path, monkeypatch):
    engine = load(path, threads=2, streams=2, batching=Batching(max_batch=1, max_delay_ms=0))
    both = threading.Barrier(2, timeout=SOON)
    closed: list[Future[None]] = [Future(), Future()]

    def close(done: Future[None]) -> None:
        both.wait()
        engine.close()
        done.set_result(None)

    for done in closed:
        engine.submit(PIXELS[0]).add_done_callback(lambda _, done=done: close(done))
    for done in closed:
        done.result(SOON)
    engine.close()


def test_close_in_the_event_loop_while_calls_run(engine, watch):
    async def main() -> tuple[np.ndarray, np.ndarray]:
        whole = asyncio.create_task(asyncio.to_thread(engine.embed, PIXELS))
        single = asyncio.create_task(engine.aembed(PIXELS[0]))
        while not watch.entered.is_set() or engine._scheduler is None:
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        watch.go.set()
        engine.close()
        with pytest.raises(EngineError, match="is closed"):
            await engine.aembed(PIXELS[0])
        return await whole, await single

    found, one = asyncio.run(asyncio.wait_for(main(), SOON))
    assert np.allclose(found[0], one, atol=1e-6) and watch.events[-1] == "freed"


def test_a_thread_that_cannot_start_leaves_nothing_to_wait_for(path, monkeypatch):
    engine = load(path, threads=2, streams=2)
    start, started = threading.Thread.start, []

    def refused(thread: threading.Thread) -> None:
        started.append(thread)
        if len(started) == 2:
            raise RuntimeError("can't start new thread")
        start(thread)

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refused)
        with pytest.raises(RuntimeError, match="can't start"):
            engine.submit(PIXELS[0])
    assert not started[0].is_alive()
    assert engine.submit(PIXELS[0]).result(SOON).shape == (3,)
    engine.close()


def dropped_unused(engine: Engine) -> None:
    pass


def dropped_after_use(engine: Engine) -> None:
    engine.embed(PIXELS)
    engine.submit(PIXELS[0]).result(SOON)


def dropped_in_a_cycle(engine: Engine) -> None:
    engine.embed(PIXELS)
    engine.myself = engine  # type: ignore[attr-defined]


def dropped_with_batches_on_their_way(engine: Engine) -> list[Any]:
    return [engine._backend.streams.submit(PIXELS[:2]) for _ in range(9)]


def dropped_with_pictures_in_the_queue(engine: Engine) -> list[Any]:
    engine._batching = Batching(max_delay_ms=60_000)
    return [engine.submit(PIXELS[0]) for _ in range(2)]


DROPPED = (
    dropped_unused,
    dropped_after_use,
    dropped_in_a_cycle,
    dropped_with_batches_on_their_way,
    dropped_with_pictures_in_the_queue,
)


@pytest.mark.parametrize("use", DROPPED)
def test_a_dropped_engine_frees_the_device(path, driver, use):
    engine = Engine(read_engine(path), Cuda(driver))
    assert driver._memory
    waiting = use(engine)
    del engine
    gc.collect()
    driver.assert_empty()
    for one in waiting or []:
        expected = described(PIXELS[:2] if use is dropped_with_batches_on_their_way else PIXELS[:1])
        np.testing.assert_array_equal(np.atleast_2d(one.result()), expected)


@pytest.mark.parametrize("use", DROPPED)
def test_a_dropped_engine_of_tensorrt_frees_the_device(path, driver, use, monkeypatch):
    monkeypatch.setattr(tensorrt, "CudaDriver", lambda: driver)
    monkeypatch.setattr(tensorrt, "import_tensorrt", lambda kind: tensorrt_tests.FakeTensorRt(driver))
    monkeypatch.setattr(tensorrt_tests, "SHAPE", SHAPE)
    engine = Engine(read_engine(path), tensorrt.TensorRtBackend(b"plan"))
    waiting = use(engine)
    del engine
    gc.collect()
    driver.assert_empty()
    for one in waiting or []:
        assert one.result() is not None


def test_an_engine_dropped_while_the_callers_stream_runs(path, driver):
    """What run_on gave to the device is done before anything is freed, and the caller's stream goes on."""
    engine = Engine(read_engine(path), Cuda(driver))
    stream, images, descriptors = driver.stream(), driver.malloc(PIXELS[:2].nbytes), driver.malloc(2 * 12)
    up, down = driver.pinned(PIXELS[:2].nbytes), driver.pinned(2 * 12)
    up[:] = PIXELS[:2].reshape(-1)
    driver.upload(images, up, stream)
    engine.embed_into(images, descriptors, rows=2, stream=stream)
    driver.download(down, descriptors, stream)
    del engine
    gc.collect()
    driver.finish(stream)
    np.testing.assert_array_equal(down.view(np.float32).reshape(2, 3), described(PIXELS[:2]))
    for pointer in (images, descriptors):
        driver.free(pointer)
    for array in (up, down):
        driver.free_pinned(array)
    driver.destroy_stream(stream)


def test_a_device_that_fails_is_told_when_a_dropped_engine_is_freed(path, caplog):
    driver = FakeDriver()
    engine = Engine(read_engine(path), Cuda(driver))
    driver.failing = "unspecified launch failure"
    del engine
    gc.collect()
    (told,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "dropped without close" in told.message and "unspecified launch failure" in told.message


@pytest.mark.parametrize(("backend", "session"), [("onnxruntime", "_session"), ("openvino", "_compiled")])
@pytest.mark.parametrize("streams", [1, 2])
def test_nothing_keeps_a_dropped_session(engines, pixels, backend, session, streams):
    engine = load(engines[backend, "fp32"], threads=2, streams=streams)
    engine.embed(pixels[:4])
    engine.submit(pixels[0]).result(SOON)
    kept = [weakref.ref(engine._backend), weakref.ref(getattr(engine._backend, session))]
    del engine
    gc.collect()
    assert [one() for one in kept] == [None, None]


ENDS = """
import sys, threading
import numpy as np
from cgd_deploy import EngineError, load
engine = load(sys.argv[1])
entered, running, run = threading.Event(), [], engine._backend.run

def slow(images):
    running.append(1)
    entered.set()
    threading.Event().wait(0.1)
    running.pop()
    return run(images)

def embed():
    try:
        while True:
            engine.embed(np.zeros((1, 32, 32, 3), np.uint8))
    except EngineError:
        pass

engine._backend.run = slow
engine._backend.close = lambda: print("freed while", len(running), "run", flush=True)
threading.Thread(target=embed, daemon=True).start()
assert entered.wait(10)
"""


def test_the_end_of_the_process_waits_for_running_calls(path):
    done = subprocess.run([sys.executable, "-c", ENDS, path], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "freed while 0 run\n", "")
