"""Bulk embedding: batches overlap on every backend, in list order, and nothing runs on once it has ended."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from conftest import FAKE_SPEC, write_fake_engine
from fake_cuda import FakeContext, FakeDriver, described
from numpy.typing import NDArray
from PIL import Image

from cgd_deploy.errors import EngineError, InputError
from cgd_deploy.pictures.images import ImageList
from cgd_deploy.pictures.preprocess import ahead, batches
from cgd_deploy.runtime import engine as module
from cgd_deploy.runtime.backends.base import Backend
from cgd_deploy.runtime.backends.fake import FakeBackend
from cgd_deploy.runtime.cuda.lane import Layout
from cgd_deploy.runtime.cuda.streams import Streams, bucket_sizes
from cgd_deploy.runtime.engine import Engine, load
from cgd_deploy.runtime.tuning import this_machine
from cgd_deploy.search.index import Reading, index_images

PATIENCE = 20.0
"""Seconds until a wait that should end at once counts as a failure."""
LANES_SPEC = replace(FAKE_SPEC, descriptors="S", dim=3)
COUNT = 24


@pytest.fixture(scope="module")
def listed(tmp_path_factory) -> ImageList:
    """Pictures of one colour each: picture i has the red value 10 * i."""
    folder = tmp_path_factory.mktemp("colours")
    for number in range(COUNT):
        Image.new("RGB", (32, 32), (number * 10, 0, 0)).save(folder / f"{number}.png")
    return ImageList(folder, tuple(f"{number}.png" for number in range(COUNT)))


@pytest.fixture
def holed(listed, tmp_path) -> ImageList:
    """The same pictures, but 3, 4 and 9 are no pictures."""
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no picture")
    return replace(listed, names=tuple(str(bad) if i in (3, 4, 9) else name for i, name in enumerate(listed.names)))


def numbers(images: NDArray[np.uint8]) -> list[int]:
    """Which pictures these pixels are of."""
    return (images[:, 0, 0, 0] // 10).tolist()


def hook(monkeypatch: pytest.MonkeyPatch, before: Callable[[list[int]], object]) -> None:
    """Call ``before`` with the numbers of the pictures in each run of the fake backend."""
    run = FakeBackend.run

    def hooked(self: FakeBackend, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        before(numbers(images))
        return run(self, images)

    monkeypatch.setattr(FakeBackend, "run", hooked)


def in_order(found: list[tuple[list[int], NDArray[np.float32]]]) -> tuple[list[int], NDArray[np.float32]]:
    return [index for indices, _ in found for index in indices], np.concatenate([part for _, part in found])


@pytest.mark.parametrize("streams", [2, 3])
def test_as_many_batches_compute_at_a_time_as_the_engine_has_streams(fake_engine, listed, monkeypatch, streams):
    with load(fake_engine, threads=4) as engine:
        expected = engine.embed(listed.paths)
    together = threading.Barrier(streams)
    hook(monkeypatch, lambda _: together.wait(PATIENCE))
    with load(fake_engine, threads=4, streams=streams) as engine:
        indices, descriptors = in_order(list(engine.embed_list(listed, batch_size=1)))
    assert indices == list(range(COUNT))
    np.testing.assert_allclose(descriptors, expected, atol=1e-6)


def test_a_slow_part_of_a_batch_holds_up_no_other_stream(fake_engine, listed, monkeypatch):
    """With two streams a batch is cut in two parts. While the first part computes, the other stream goes on."""
    later = threading.Event()

    def before(pictures: list[int]) -> None:
        if 0 in pictures:
            assert later.wait(PATIENCE)
        elif 4 in pictures:
            later.set()

    hook(monkeypatch, before)
    with load(fake_engine, threads=2, streams=2) as engine:
        indices, _ = in_order(list(engine.embed_list(listed, batch_size=4)))
    assert indices == list(range(COUNT))


def test_the_next_batch_is_ready_while_one_stream_computes(fake_engine, listed, monkeypatch):
    """Also with one stream, which would wait for the caller's thread otherwise."""
    made, ready = module.batches, threading.Event()

    def spied(*arguments: Any) -> Iterator[Any]:
        for indices, pixels in made(*arguments):
            if 2 in indices:
                ready.set()
            yield indices, pixels

    monkeypatch.setattr(module, "batches", spied)
    hook(monkeypatch, lambda pictures: 0 not in pictures or ready.wait(PATIENCE) or pytest.fail("not ready"))
    with load(fake_engine, threads=1) as engine:
        assert in_order(list(engine.embed_list(listed, batch_size=2)))[0] == list(range(COUNT))


@pytest.mark.parametrize("streams", [1, 3])
def test_a_caller_that_takes_its_time_bounds_what_is_in_memory(fake_engine, listed, monkeypatch, streams):
    made, stacked = module.batches, []
    monkeypatch.setattr(module, "batches", lambda *asked: (stacked.append(batch) or batch for batch in made(*asked)))
    with load(fake_engine, threads=4, streams=streams) as engine:
        taken = engine.embed_list(listed, batch_size=1)
        for count in range(1, 6):
            next(taken)
            assert len(stacked) == streams + count
        taken.close()


@pytest.mark.parametrize("streams", [1, 2, 3])
def test_bad_pictures_are_told_once_and_left_out(fake_engine, holed, streams):
    told: list[int] = []
    with load(fake_engine, threads=4, streams=streams) as engine:
        found = list(engine.embed_list(holed, 4, lambda index, _: told.append(index)))
        indices, descriptors = in_order(found)
        assert told == [3, 4, 9]
        assert indices == [i for i in range(COUNT) if i not in told]
        assert [len(part) for part, _ in found] == [4, 4, 4, 4, 4, 1]
        np.testing.assert_allclose(descriptors, engine.embed([holed.path(i) for i in indices]), atol=1e-6)
        with pytest.raises(InputError, match=r"bad\.png"):
            list(engine.embed_list(holed, 4))
        assert list(engine.embed_list(holed.subset([3, 9]), 4, lambda *_: None)) == []


def fail(*_: object) -> None:
    raise ZeroDivisionError


@pytest.mark.parametrize("streams", [1, 3])
@pytest.mark.parametrize(
    ("stop", "error"),
    [
        ("closed", None),
        ("at the end", None),
        ("bad picture", InputError),
        ("on_error raises", ZeroDivisionError),
        ("backend raises", ZeroDivisionError),
    ],
)
def test_nothing_runs_on_after_the_end(fake_engine, listed, holed, monkeypatch, streams, stop, error):
    before = threading.active_count()
    images = holed if error else listed
    if stop == "backend raises":
        hook(monkeypatch, lambda pictures: 5 in pictures and fail())
    on_error = {"on_error raises": fail, "backend raises": lambda *_: None}.get(stop)
    with load(fake_engine, threads=4, streams=streams) as engine:
        made = engine.embed_list(images, 2, on_error)
        with pytest.raises(error) if error else nullcontext():
            for _ in made:
                if stop == "closed":
                    made.close()
        of_the_engine = streams if streams > 1 else 0
        assert threading.active_count() <= before + of_the_engine
    deadline = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.001)  # idle threads of the engine end by themselves
    assert threading.active_count() == before


def test_a_closed_engine_says_so(fake_engine, listed):
    engine = load(fake_engine)
    engine.close()
    with pytest.raises(EngineError, match="is closed"):
        list(engine.embed_list(listed))


@pytest.mark.parametrize("size", [0, -1])
@pytest.mark.parametrize(
    "embed",
    [
        lambda engine, images, size: list(engine.embed_list(images, size)),
        lambda engine, images, size: index_images(engine, images, Reading(batch_size=size)),
    ],
    ids=["embed_list", "index_images"],
)
def test_less_than_one_picture_is_no_batch(fake_engine, listed, embed, size):
    with load(fake_engine) as engine, pytest.raises(InputError, match=f"batch_size={size} .* at least 1"):
        embed(engine, listed, size)


def tuning(batch: int) -> dict[str, Any]:
    setting = {"threads": 2, "streams": 1, "batch": batch}
    return {"machine": this_machine(), "latency": {**setting, "batch": 1}, "throughput": setting}


@pytest.mark.parametrize(
    ("changes", "asked", "sizes"),
    [
        ({}, None, [8, 8, 8]),
        ({"tuning": tuning(12)}, None, [12, 12]),
        ({"tuning": tuning(12)}, 20, [20, 4]),
        ({"tuning": tuning(80)}, None, [16, 8]),
        ({}, 100, [16, 8]),
    ],
)
def test_the_default_batch_on_the_cpu(tmp_path, listed, changes, asked, sizes):
    largest = 32 if asked == 20 else 16
    path = write_fake_engine(tmp_path / "e.cgd", profile={"min": 1, "opt": 4, "max": largest}, **changes)
    with load(path) as engine:
        assert [len(indices) for indices, _ in engine.embed_list(listed, asked)] == sizes


class Gated(FakeDriver):
    """A device on which nobody may wait for a batch before ``batches`` of them are on their way."""

    def __init__(self, batches: int) -> None:
        super().__init__()
        self._wanted = batches
        self._sent = threading.Condition()

    def upload(self, *arguments: Any) -> None:
        with self._sent:
            super().upload(*arguments)
            self._sent.notify_all()

    def synchronize(self, event: int) -> None:
        with self._sent:
            if not self._sent.wait_for(lambda: len(self.named("upload")) >= self._wanted, PATIENCE):
                raise EngineError(f"only {len(self.named('upload'))} batches are on their way")
        super().synchronize(event)


class LanesBackend(Backend):
    """The fake device behind an engine, as the backends for CUDA are built."""

    driver: FakeDriver

    def __init__(self, payload: bytes, *, threads: int | None, streams: int, max_batch: int) -> None:
        shape = (*LANES_SPEC.input_size, 3)
        layout = Layout(buckets=bucket_sizes(1, max_batch), image_shape=shape, dim=LANES_SPEC.dim)
        self.streams = Streams(self.driver, lambda _: FakeContext(self.driver, shape), layout, lanes=streams)
        self.concurrency = self.streams.capacity

    def run(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return self.streams.run(images)

    def close(self) -> None:
        self.streams.close()


@pytest.fixture
def on_cuda(tmp_path, monkeypatch) -> Iterator[Callable[..., Engine]]:
    """Load an engine for batches up to ``max_batch`` on lanes of a device that is ``Gated`` at ``batches``."""
    monkeypatch.setitem(module.BACKENDS, "lanes", {"cuda": LanesBackend})
    opened: list[Engine] = []

    def open_(batches: int, streams: int, max_batch: int = 8) -> Engine:
        LanesBackend.driver = Gated(batches)
        profile = {"min": 1, "opt": 1, "max": max_batch}
        path = write_fake_engine(tmp_path / "lanes.cgd", LANES_SPEC, backend="lanes", profile=profile)
        opened.append(load(path, streams=streams))
        return opened[-1]

    yield open_
    for engine in opened:
        engine.close()
    LanesBackend.driver.assert_empty()


def pixels_of(images: ImageList) -> NDArray[np.uint8]:
    return np.stack([np.asarray(Image.open(path)) for path in images.paths])


@pytest.mark.parametrize("lanes", [1, 2])
def test_every_lane_of_a_gpu_is_kept_busy(on_cuda, listed, lanes):
    engine = on_cuda(batches=3 * lanes, streams=lanes)
    indices, descriptors = in_order(list(engine.embed_list(listed, batch_size=2)))
    assert indices == list(range(COUNT))
    np.testing.assert_array_equal(descriptors, described(pixels_of(listed)))
    assert_overlap(LanesBackend.driver, lanes)


@pytest.mark.parametrize("lanes", [1, 2])
@pytest.mark.parametrize("into", [False, True])
def test_pixels_of_more_than_one_batch_overlap_too(on_cuda, listed, lanes, into):
    engine, pixels = on_cuda(batches=3 * lanes, streams=lanes, max_batch=4), pixels_of(listed)
    found = np.empty((COUNT, LANES_SPEC.dim), np.float32)
    if into:
        engine.embed_into(pixels, found)
    else:
        found = engine.embed(pixels)
    np.testing.assert_array_equal(found, described(pixels))
    assert engine.embed(pixels[:0]).shape == (0, LANES_SPEC.dim)
    assert_overlap(LanesBackend.driver, lanes)


def assert_overlap(driver: FakeDriver, lanes: int) -> None:
    up, kernels = (driver.named(name)[: 3 * lanes] for name in ("upload", "kernel"))
    if lanes == 1:  # the log has the batches in turn
        assert all(driver.may_overlap(up[i + 1], kernels[i]) for i in range(2))
    else:
        assert any(driver.may_overlap(one, other) for one in kernels for other in kernels if one is not other)


@pytest.mark.parametrize("max_batch", [5, 16])
def test_the_default_batch_on_cuda_is_the_engines_largest(on_cuda, listed, max_batch):
    engine = on_cuda(batches=1, streams=2, max_batch=max_batch)
    sizes = [len(indices) for indices, _ in engine.embed_list(listed)]
    assert sizes[0] == max_batch and sum(sizes) == COUNT
    assert index_images(engine, listed).paths == [str(path) for path in listed.paths]


@pytest.fixture
def decoders(monkeypatch) -> list[int]:
    """How many threads decode, of each list that is embedded."""
    seen: list[int] = []

    def spied(function: Any, items: Any, workers: int, depth: int) -> Any:
        seen.append(workers)
        return ahead(function, items, workers, depth)

    monkeypatch.setattr("cgd_deploy.pictures.preprocess.ahead", spied)
    return seen


@pytest.mark.parametrize("threads", [1, 3])
def test_as_many_threads_decode_as_the_engine_was_given(fake_engine, listed, decoders, threads):
    with load(fake_engine, threads=threads) as engine:
        list(engine.embed_list(listed))
        index_images(engine, listed)
    assert decoders == [threads, threads]


@pytest.mark.parametrize("cores", [1, 3])
def test_without_a_number_every_core_decodes(tmp_path, listed, decoders, monkeypatch, cores):
    """Also where autotuning found two threads to be best for one picture."""
    monkeypatch.setattr("cgd_deploy.pictures.preprocess.available_threads", lambda: cores)
    with load(write_fake_engine(tmp_path / "e.cgd", tuning=tuning(8))) as engine:
        list(engine.embed_list(listed))
        list(batches(listed, FAKE_SPEC, 4))
    assert decoders == [cores, cores]
