"""Engines on CUDA, on the device of ``fake_cuda``: what ``load`` makes ready, and memory and streams of others."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import FAKE_SPEC, write_fake_engine
from fake_cuda import FakeContext, FakeDriver, Misuse, described

from cgd_deploy.errors import EngineError, InputError
from cgd_deploy.runtime import dlpack
from cgd_deploy.runtime import engine as module
from cgd_deploy.runtime.backends import Backend
from cgd_deploy.runtime.backends.fake import FakeBackend
from cgd_deploy.runtime.cuda.driver import OutOfDeviceMemory
from cgd_deploy.runtime.cuda.lane import Layout
from cgd_deploy.runtime.cuda.streams import Streams, bucket_sizes
from cgd_deploy.runtime.engine import Engine, load
from cgd_deploy.runtime.golden import golden_images

SPEC = replace(FAKE_SPEC, dim=3, descriptors="S")
SHAPE = (*SPEC.input_size, 3)
BUCKETS, LANES, DEPTH = 4, 2, 3
WORKSPACE = 10_000
"""Bytes that a context takes for each image of a batch size, when that size first runs."""


class WorkspaceContext(FakeContext):
    """A context that asks for memory at the first batch of each size, as ONNX Runtime and cuDNN do."""

    def __init__(self, driver: FakeDriver) -> None:
        super().__init__(driver, SHAPE)
        self._workspaces: dict[int, int] = {}

    def __call__(self, stream: int, batch: int, images: int, descriptors: int) -> bool:
        if batch not in self._workspaces:
            self._workspaces[batch] = self._driver.malloc(batch * WORKSPACE)
        return super().__call__(stream, batch, images, descriptors)

    def close(self) -> None:
        for workspace in self._workspaces.values():
            self._driver.free(workspace)
        super().close()


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDriver]:
    """The device that engines for backend "lanes" run on."""
    driver = FakeDriver()

    class LanesBackend(Backend):
        def __init__(self, payload: bytes, *, threads: int | None, streams: int, max_batch: int) -> None:
            layout = Layout(buckets=bucket_sizes(1, max_batch), image_shape=SHAPE, dim=SPEC.dim)
            self.streams: Streams = Streams(driver, lambda stream: WorkspaceContext(driver), layout, lanes=streams)
            self.concurrency = self.streams.capacity

        def run(self, images: np.ndarray) -> np.ndarray:
            return self.streams.run(images)

        def close(self) -> None:
            self.streams.close()

    monkeypatch.setitem(module.BACKENDS, "lanes", {"cuda": LanesBackend})
    yield driver
    driver.assert_empty()


@pytest.fixture
def cuda_engine(tmp_path: Path) -> Path:
    """An engine for batches of 1 to 8 on the device of ``driver``."""
    return write_fake_engine(tmp_path / "lanes.cgd", SPEC, backend="lanes")


def test_no_request_waits_for_a_graph(driver: FakeDriver, cuda_engine: Path) -> None:
    with load(cuda_engine) as engine:
        assert driver.calls == ["capture"] * BUCKETS * LANES * DEPTH
        pixels = golden_images(SPEC, 8)
        for n in range(1, 9):
            np.testing.assert_array_equal(engine.embed(pixels[:n]), described(pixels[:n]))
        assert [engine.submit(image).result(10).shape for image in pixels] == [(3,)] * 8
        assert driver.calls.count("capture") == BUCKETS * LANES * DEPTH


@pytest.mark.parametrize("lanes", [1, 2, 3])
def test_partial_batches_leave_while_fewer_than_two_are_in_flight(
    driver: FakeDriver, cuda_engine: Path, lanes: int
) -> None:
    with load(cuda_engine, streams=lanes) as engine:
        policy = engine._queue()._queue._policy
        assert (policy.max_batch, policy.enough) == (8, 2)


@pytest.mark.parametrize("streams", [1, 3])
def test_on_the_cpu_partial_batches_leave_while_a_stream_is_idle(fake_engine: Path, streams: int) -> None:
    with load(fake_engine, threads=3, streams=streams) as engine:
        assert engine._queue()._queue._policy.enough == streams


def test_without_warm_up_the_first_batch_makes_what_it_needs(driver: FakeDriver, cuda_engine: Path) -> None:
    with load(cuda_engine, warm_up=False) as engine:
        assert driver.log == []
        engine.embed(golden_images(SPEC, 3))
        assert driver.calls == ["capture"]


BUFFERS = LANES * DEPTH * 8 * (np.prod(SHAPE) + 4 * SPEC.dim) + LANES * 64
WORKSPACES = LANES * WORKSPACE * (1 + 2 + 4 + 8)


def test_memory_is_counted_as_the_next_test_does(driver: FakeDriver, cuda_engine: Path) -> None:
    driver._room = BUFFERS + WORKSPACES
    load(cuda_engine).close()


@pytest.mark.parametrize("room", [0, BUFFERS // 2, BUFFERS - 1, BUFFERS, BUFFERS + WORKSPACES // 2])
def test_too_little_memory_fails_in_load_and_frees_what_was_had(
    driver: FakeDriver, cuda_engine: Path, room: int
) -> None:
    driver._room = room
    with pytest.raises(EngineError, match=r"out of memory\); load with fewer streams\.$"):
        load(cuda_engine)
    driver.assert_empty()


def test_too_little_memory_without_warm_up_fails_in_the_first_batch(driver: FakeDriver, cuda_engine: Path) -> None:
    driver._room = BUFFERS + WORKSPACE
    with load(cuda_engine, warm_up=False) as engine:
        engine.embed(golden_images(SPEC, 1))
        with pytest.raises(EngineError, match="out of memory"):
            engine.embed(golden_images(SPEC, 8))


def test_no_memory_for_a_graph_fails_in_load(
    driver: FakeDriver, cuda_engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise OutOfDeviceMemory("cudaGraphInstantiate failed (out of memory); load with fewer streams.")

    monkeypatch.setattr(driver, "capture", refuse)
    with pytest.raises(EngineError, match="cudaGraphInstantiate failed"):
        load(cuda_engine)
    driver.assert_empty()


def test_a_warm_up_that_is_interrupted_frees_everything(
    driver: FakeDriver, cuda_engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(WorkspaceContext, "__call__", interrupt)
        with pytest.raises(KeyboardInterrupt):
            load(cuda_engine)
    driver.assert_empty()


@pytest.mark.parametrize("warm_up", [True, False])
def test_on_the_cpu_load_runs_nothing(fake_engine: Path, monkeypatch: pytest.MonkeyPatch, warm_up: bool) -> None:
    def run(*_: object) -> Any:
        raise AssertionError("load ran the model")

    monkeypatch.setattr(FakeBackend, "run", run)
    load(fake_engine, warm_up=warm_up).close()


def test_the_time_of_the_warm_up_is_logged(
    driver: FakeDriver, cuda_engine: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "cgd_deploy")
    load(cuda_engine).close()
    load(cuda_engine, warm_up=False).close()
    assert sum("warm-up took" in message for message in caplog.messages) == 1


def test_search_makes_only_what_its_queries_need(
    driver: FakeDriver, cuda_engine: Path, cli: Any, pictures: Path, tmp_path: Path
) -> None:
    index = tmp_path / "index.npy"
    assert cli("embed", pictures, "-e", cuda_engine, "-o", index)[0] == 0
    driver.calls.clear()
    assert cli("search", pictures / "kind-0" / "0.jpg", "-e", cuda_engine, "--index", index, "-k", 2)[0] == 0
    assert driver.calls.count("capture") == 1


ROWS = 3


class Producer:
    """A library with work of its own on a stream: pictures that it uploads, and descriptors that it downloads.

    Nothing here waits for the device, so the fake device raises where a call is not ordered with that work.
    """

    def __init__(self, driver: FakeDriver, stream: int) -> None:
        self.driver, self.stream = driver, stream
        self.pixels = golden_images(SPEC, ROWS)
        self._host = driver.pinned(self.pixels.nbytes)
        self._found = driver.pinned(ROWS * SPEC.dim * 4)
        self.images, self.descriptors = driver.malloc(self._host.nbytes), driver.malloc(self._found.nbytes)
        self._host[:] = self.pixels.reshape(-1)
        driver.upload(self.images, self._host, stream)

    def interfaces(self, **stream: Any) -> tuple[Any, Any]:
        """Both arrays with a CUDA array interface, which has the key "stream" if it is given here."""
        return tuple(
            SimpleNamespace(
                __cuda_array_interface__={"shape": shape, "typestr": kind, "data": (at, False), "version": 3, **stream}
            )
            for at, shape, kind in (
                (self.images, self.pixels.shape, "|u1"),
                (self.descriptors, (ROWS, SPEC.dim), "<f4"),
            )
        )

    def check(self, stream: int | None = None) -> None:
        """Download in ``stream``, by default the library's own, compare, and free everything."""
        stream = stream or self.stream
        self.driver.download(self._found, self.descriptors, stream)
        self.driver.finish(stream)
        found = self._found.view(np.float32).reshape(ROWS, SPEC.dim)
        np.testing.assert_array_equal(found, described(self.pixels))
        self.free()

    def free(self) -> None:
        for pinned in (self._host, self._found):
            self.driver.free_pinned(pinned)
        for pointer in (self.images, self.descriptors):
            self.driver.free(pointer)


@pytest.fixture
def engine(driver: FakeDriver, cuda_engine: Path) -> Iterator[Engine]:
    with load(cuda_engine, warm_up=False) as engine:
        yield engine


@pytest.fixture
def theirs(driver: FakeDriver) -> Iterator[int]:
    """A stream of another library's."""
    stream = driver.stream()
    yield stream
    driver.finish(stream)
    driver.destroy_stream(stream)


def test_the_stream_that_the_arrays_name_is_waited_for_and_waits(
    driver: FakeDriver, engine: Engine, theirs: int
) -> None:
    """As CuPy does it."""
    for _ in range(4):
        producer = Producer(driver, theirs)
        engine.embed_into(*producer.interfaces(stream=theirs))
        producer.check()


@pytest.mark.parametrize("stream", [1, 2])
def test_default_streams_by_their_numbers(driver: FakeDriver, engine: Engine, stream: int) -> None:
    producer = Producer(driver, stream)
    engine.embed_into(*producer.interfaces(stream=stream))
    producer.check()


def test_arrays_that_name_no_stream_are_in_order_with_the_legacy_default_stream(
    driver: FakeDriver, engine: Engine
) -> None:
    for stream in ({}, {"stream": None}):
        producer = Producer(driver, 1)
        engine.embed_into(*producer.interfaces(**stream))
        producer.check()


def test_a_stream_that_is_passed_joins_those_that_the_arrays_name(
    driver: FakeDriver, engine: Engine, theirs: int
) -> None:
    consumer = driver.stream()
    producer = Producer(driver, theirs)
    engine.embed_into(*producer.interfaces(stream=theirs), stream=SimpleNamespace(handle=consumer))
    producer.check(consumer)
    driver.destroy_stream(consumer)


def test_images_and_descriptors_may_name_two_streams(driver: FakeDriver, engine: Engine, theirs: int) -> None:
    producer = Producer(driver, theirs)
    images, _ = producer.interfaces(stream=theirs)
    _, descriptors = producer.interfaces(stream=2)
    engine.embed_into(images, descriptors)
    producer.check(2)


def test_arrays_of_pycuda_with_its_stream(driver: FakeDriver, engine: Engine, theirs: int) -> None:
    """They name no stream; a DeviceAllocation is no more than an address."""
    producer = Producer(driver, theirs)
    engine.embed_into(*producer.interfaces(), stream=SimpleNamespace(handle=theirs))
    producer.check()
    producer = Producer(driver, theirs)
    engine.embed_into(producer.images, producer.descriptors, rows=ROWS, stream=theirs)
    producer.check()


class Torch:
    """A tensor: an interface of version 2, and DLPack that lets the consumer's stream wait for the current one."""

    def __init__(self, producer: Producer, interface: Any) -> None:
        self._producer = producer
        self.__cuda_array_interface__ = interface.__cuda_array_interface__

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0

    def __dlpack__(self, *, stream: int, max_version: Any = None) -> Any:
        driver = self._producer.driver
        event = driver.event()
        driver.record(event, self._producer.stream)
        driver.wait(stream, event)
        driver.destroy_event(event)
        return self._capsule()

    def _capsule(self) -> Any:
        return None  # nobody needs it, as the interface has all of it


class DlpackAlone(Torch):
    """An array of a library that offers nothing else."""

    def __init__(self, producer: Producer, interface: Any) -> None:
        told = interface.__cuda_array_interface__
        self._producer, self.shape = producer, told["shape"]
        self._dims = (ctypes.c_int64 * len(self.shape))(*self.shape)
        code, bits = {"|u1": (1, 8), "<f4": (2, 32)}[told["typestr"]]
        self._tensor = dlpack._Tensor(
            data=told["data"][0], ndim=len(self.shape), type_code=code, bits=bits, lanes=1, shape=self._dims
        )

    def _capsule(self) -> Any:
        new = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
        return new(("PyCapsule_New", ctypes.pythonapi))(ctypes.addressof(self._tensor), b"dltensor", None)


@pytest.mark.parametrize("kind", [Torch, DlpackAlone])
@pytest.mark.parametrize("passed", [None, 0, 2])
def test_dlpack_makes_our_stream_wait_for_the_current_one(
    driver: FakeDriver, engine: Engine, theirs: int, kind: type[Torch], passed: int | None
) -> None:
    producer = Producer(driver, theirs)
    engine.embed_into(*(kind(producer, each) for each in producer.interfaces()), stream=passed)
    producer.check(passed or 1)


def test_the_fake_device_would_see_a_stream_that_is_left_out(driver: FakeDriver, engine: Engine, theirs: int) -> None:
    producer = Producer(driver, theirs)
    with pytest.raises(Misuse, match="kernel does not wait for upload"):
        engine.embed_into(*producer.interfaces(stream=None))
    driver.finish(theirs)
    engine.close()
    producer.free()


def refused(engine: Engine, producer: Producer, message: str, images: Any, descriptors: Any, **options: Any) -> None:
    """The call is refused with this message, and nothing was given to the device."""
    before = len(producer.driver.log)
    with pytest.raises(InputError, match=message):
        engine.embed_into(images, descriptors, **options)
    assert len(producer.driver.log) == before


def test_what_is_not_on_the_engines_device_is_refused(driver: FakeDriver, engine: Engine, theirs: int) -> None:
    producer = Producer(driver, theirs)
    images, descriptors = producer.interfaces(stream=theirs)
    host = np.zeros((ROWS, SPEC.dim), np.float32)
    refused(engine, producer, "ndarray is not on a CUDA device", images, host)
    refused(engine, producer, "ndarray is not on a CUDA device", producer.pixels, descriptors)
    not_cuda = {"rows": ROWS, "stream": theirs}
    refused(engine, producer, "not in CUDA memory", producer.pixels.ctypes.data, producer.descriptors, **not_cuda)
    refused(engine, producer, "not in CUDA memory", producer.images, host.ctypes.data, **not_cuda)
    for pointer in (producer.images, producer.descriptors):
        driver.elsewhere = {pointer: 1}
        refused(engine, producer, r"on CUDA device 1, and the engine on device 0; copy it there", images, descriptors)
        refused(engine, producer, "on CUDA device 1", producer.images, producer.descriptors, **not_cuda)
    driver.elsewhere = {}
    engine.embed_into(images, descriptors)
    producer.check()


def test_stream_0_of_the_interface_is_refused(driver: FakeDriver, engine: Engine, theirs: int) -> None:
    producer = Producer(driver, theirs)
    good, bad = producer.interfaces(stream=theirs), producer.interfaces(stream=0)
    refused(engine, producer, "names stream 0", bad[0], good[1])
    refused(engine, producer, "names stream 0", good[0], bad[1])
    engine.embed_into(*good)
    producer.check()
