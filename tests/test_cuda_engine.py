"""Engines on CUDA, on the device of ``fake_cuda``: what ``load`` makes ready, and memory and streams of others."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import FAKE_SPEC, write_fake_engine
from fake_cuda import FakeContext, FakeDriver, described

from cgd_deploy import engine as module
from cgd_deploy.backends import Backend
from cgd_deploy.backends.fake import FakeBackend
from cgd_deploy.cuda import OutOfDeviceMemory
from cgd_deploy.engine import load
from cgd_deploy.errors import EngineError
from cgd_deploy.golden import golden_images
from cgd_deploy.lane import Layout
from cgd_deploy.streams import Streams, bucket_sizes

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
        def __init__(self, payload: bytes, *, device: str, threads: int | None, streams: int, max_batch: int) -> None:
            assert device == "cuda"
            layout = Layout(buckets=bucket_sizes(1, max_batch), image_shape=SHAPE, dim=SPEC.dim)
            self.streams: Streams = Streams(driver, lambda stream: WorkspaceContext(driver), layout, lanes=streams)
            self.concurrency = self.streams.capacity

        def run(self, images: np.ndarray) -> np.ndarray:
            return self.streams.run(images)

        def close(self) -> None:
            self.streams.close()

    monkeypatch.setitem(module.BACKENDS, "lanes", LanesBackend)
    monkeypatch.setitem(module.DEVICES, "lanes", ("cuda",))
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
