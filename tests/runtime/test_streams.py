"""Streams and lanes against a fake device that raises on every race, early reuse, use after free and leak."""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fake_cuda import FakeContext, FakeDriver, Misuse, described
from numpy.typing import NDArray

from cgd_deploy.errors import EngineError, InputError
from cgd_deploy.runtime.admission import Policy
from cgd_deploy.runtime.cuda.driver import OutOfDeviceMemory
from cgd_deploy.runtime.cuda.lane import Layout
from cgd_deploy.runtime.cuda.streams import Streams, bucket_sizes
from cgd_deploy.runtime.scheduler import Scheduler

LAYOUT = Layout(buckets=(1, 2, 4, 8), image_shape=(4, 4, 3), dim=3)


class Rig(Streams):
    """Streams of fake contexts, which it keeps at hand."""

    def __init__(self, driver: FakeDriver, capturable: bool = True, layout: Layout = LAYOUT, **options: Any) -> None:
        self.contexts: list[FakeContext] = []

        def make(stream: int) -> FakeContext:
            context = FakeContext(driver, LAYOUT.image_shape)
            context.capturable = capturable
            self.contexts.append(context)
            return context

        super().__init__(driver, make, layout, **options)

    def __enter__(self) -> Rig:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def batch(n: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng([n, seed]).integers(0, 256, (n, *LAYOUT.image_shape), np.uint8)


@pytest.mark.parametrize(
    ("smallest", "largest", "sizes"),
    [(1, 1, (1,)), (1, 8, (1, 2, 4, 8)), (1, 12, (1, 2, 4, 8, 12)), (3, 20, (3, 4, 8, 16, 20)), (4, 4, (4,))],
)
def test_bucket_sizes(smallest: int, largest: int, sizes: tuple[int, ...]) -> None:
    assert bucket_sizes(smallest, largest) == sizes


@pytest.mark.parametrize("n", [0, 1, 2, 3, 5, 8, 9, 30])
@pytest.mark.parametrize("graphs", [0, 32])
def test_any_number_of_images_and_never_a_padded_row(driver: FakeDriver, n: int, graphs: int) -> None:
    with Rig(driver, graphs=graphs) as streams:
        for seed in range(3):
            images = batch(n, seed)
            found = streams.run(images)
            assert found.shape == (n, 3)
            if n:
                np.testing.assert_array_equal(found, described(images))


def test_a_batch_takes_the_smallest_bucket(driver: FakeDriver) -> None:
    with Rig(driver, lanes=1, graphs=0) as streams:
        for n in (1, 2, 3, 4, 5, 8):
            streams.run(batch(n))
        assert streams.contexts[0].batches == [1, 2, 4, 4, 8, 8]


def test_results_in_any_order_and_twice(driver: FakeDriver) -> None:
    with Rig(driver) as streams:
        sent = [(images, streams.submit(images)) for images in (batch(n) for n in (3, 1, 8, 2))]
        for images, pending in [*reversed(sent), *sent]:
            np.testing.assert_array_equal(pending.result(), described(images))


def test_more_batches_than_buffers_without_asking(driver: FakeDriver) -> None:
    with Rig(driver, lanes=1, depth=3) as streams:
        sent = [(images, streams.submit(images)) for images in (batch(4, seed) for seed in range(20))]
        for images, pending in sent:
            np.testing.assert_array_equal(pending.result(), described(images))


def test_images_may_be_reused_and_results_kept(driver: FakeDriver) -> None:
    with Rig(driver, lanes=1) as streams:
        images = batch(4)
        expected = described(images)
        pending = streams.submit(images)
        images[:] = 0
        kept = pending.result()
        list(streams.run_many(batch(4, seed) for seed in range(1, 8)))
        np.testing.assert_array_equal(kept, expected)


def test_run_many_keeps_order_and_fills_the_buffers(driver: FakeDriver) -> None:
    with Rig(driver, lanes=2, depth=2) as streams:
        batches = [batch(n, seed) for seed, n in enumerate((4, 1, 8, 3, 2, 8, 8, 1, 5))]
        stream = streams.run_many(batches)
        found = [next(stream)]
        assert len(driver.named("upload")) == streams.capacity == 4
        found += stream
        for images, descriptors in zip(batches, found, strict=True):
            np.testing.assert_array_equal(descriptors, described(images))


@pytest.mark.parametrize("graphs", [0, 32])
def test_upload_compute_and_download_of_three_batches_may_overlap(driver: FakeDriver, graphs: int) -> None:
    with Rig(driver, lanes=1, depth=3, graphs=graphs) as streams:
        for seed in range(9):
            streams.submit(batch(8, seed))
        up, kernels, down = (driver.named(name)[-3:] for name in ("upload", "kernel", "download"))
        assert driver.may_overlap(up[2], kernels[1])
        assert driver.may_overlap(up[2], down[0])
        assert driver.may_overlap(kernels[1], down[0])
        assert not driver.may_overlap(kernels[0], kernels[1])  # they share the context's scratch memory


def test_kernels_of_two_lanes_may_overlap(driver: FakeDriver) -> None:
    with Rig(driver, lanes=2) as streams:
        streams.submit(batch(8, 0))
        streams.submit(batch(8, 1))
        assert driver.may_overlap(*driver.named("kernel"))


def test_one_graph_for_each_bucket_and_buffer_set(driver: FakeDriver) -> None:
    with Rig(driver, lanes=1, depth=2) as streams:
        for seed in range(12):
            images = batch((8, 3)[seed // 2 % 2], seed)
            np.testing.assert_array_equal(streams.run(images), described(images))
        assert driver.calls == ["capture"] * 4 + ["launch"] * 8
        assert driver.graphs == 4


def test_warm_up_leaves_nothing_to_capture(driver: FakeDriver) -> None:
    with Rig(driver, lanes=2, depth=3) as streams:
        streams.warm_up()
        assert driver.calls.count("capture") == driver.graphs == 2 * 3 * 4
        for n in range(1, 9):
            streams.run(batch(n))
        assert driver.calls.count("capture") == 24


def test_warm_up_keeps_the_graphs_of_many_batch_sizes(driver: FakeDriver) -> None:
    """14 batch sizes and 3 buffer sets are more graphs than any fixed number would have kept."""
    layout = Layout(buckets=bucket_sizes(1, 5000), image_shape=(4, 4, 3), dim=3)
    with Rig(driver, lanes=1, depth=3, layout=layout) as streams:
        streams.warm_up()
        assert driver.calls == ["capture"] * len(layout.buckets) * 3
        for size in layout.buckets:
            deque(streams.run_many(batch(size) for _ in range(3)), maxlen=0)
        assert set(driver.calls[len(layout.buckets) * 3 :]) == {"launch"}


def test_warm_up_starts_with_what_needs_the_most_memory(driver: FakeDriver) -> None:
    with Rig(driver, lanes=1, depth=1, graphs=0) as streams:
        streams.warm_up()
        assert streams.contexts[0].batches == [8, 4, 2, 1]


def test_no_memory_for_a_graph_is_no_reason_to_go_without(driver: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OutOfDeviceMemory("cudaGraphInstantiate failed (out of memory); load with fewer streams.")

    monkeypatch.setattr(driver, "capture", refuse)
    with Rig(driver) as streams, pytest.raises(OutOfDeviceMemory, match="fewer streams"):
        streams.warm_up()


def test_the_least_recently_used_graph_goes(driver: FakeDriver) -> None:
    with Rig(driver, lanes=1, depth=1, graphs=2) as streams:
        for n in (1, 2, 1, 4, 1, 2):
            images = batch(n)
            np.testing.assert_array_equal(streams.run(images), described(images))
            assert driver.graphs <= 2
        new, old, again = ["capture"], ["capture", "destroy_graph"], ["launch"]
        assert driver.calls == [*new, *new, *again, *old, *again, *old]


def test_no_graphs_where_the_engine_cannot_be_captured(driver: FakeDriver) -> None:
    with Rig(driver, capturable=False) as streams:
        streams.warm_up()
        assert driver.calls == []


def test_a_failed_capture_is_told_and_done_without(driver: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise EngineError("no capture today")

    monkeypatch.setattr(driver, "capture", refuse)
    with Rig(driver, lanes=1) as streams:
        with pytest.warns(UserWarning, match="without CUDA graphs.*no capture today"):
            np.testing.assert_array_equal(streams.run(batch(4)), described(batch(4)))
        np.testing.assert_array_equal(streams.run(batch(5)), described(batch(5)))


@pytest.mark.parametrize("depth", [1, 3])
def test_a_refused_batch_raises_and_the_lane_goes_on(driver: FakeDriver, depth: int) -> None:
    with Rig(driver, lanes=1, depth=depth) as streams:
        before = streams.submit(batch(2))
        streams.contexts[0].refusing = True
        with pytest.raises(EngineError, match="refused a batch of 8"):
            streams.run(batch(7))
        streams.contexts[0].refusing = False
        np.testing.assert_array_equal(before.result(), described(batch(2)))
        for seed in range(1, 8):
            np.testing.assert_array_equal(streams.run(batch(7, seed)), described(batch(7, seed)))


def test_an_error_inside_the_engine_comes_out_and_the_lane_goes_on(
    driver: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Rig(driver, lanes=1) as streams:
        with monkeypatch.context() as patched:

            def crash(*_: object) -> None:
                raise ZeroDivisionError

            patched.setattr(driver, "kernel", crash)
            with pytest.raises(ZeroDivisionError):
                streams.submit(batch(4))
        np.testing.assert_array_equal(streams.run(batch(4)), described(batch(4)))


def test_a_failed_lane_is_left_out(driver: FakeDriver) -> None:
    with Rig(driver, lanes=2) as streams:
        broken, fine = streams.submit(batch(4)), streams.submit(batch(5))
        driver.failing = "an illegal memory access was encountered"
        with pytest.raises(EngineError, match="illegal memory access"):
            broken.result()
        driver.failing = None
        np.testing.assert_array_equal(fine.result(), described(batch(5)))
        for seed in range(4):
            np.testing.assert_array_equal(streams.run(batch(3, seed)), described(batch(3, seed)))
        assert streams.contexts[0].batches[1:] in ([], [4])  # the capture, perhaps, and nothing since


def test_a_failed_device_says_so_and_closes_quietly() -> None:
    driver = FakeDriver()
    streams = Rig(driver, lanes=2)
    sent = [streams.submit(batch(4)) for _ in range(2)]
    driver.failing = "unspecified launch failure"
    for pending in sent:
        with pytest.raises(EngineError, match="unspecified launch failure"):
            pending.result()
    with pytest.raises(EngineError, match="lane has failed: unspecified launch failure"):
        streams.run(batch(1))
    streams.close()


@pytest.mark.parametrize("room", [0, 400, 1450, 1504, 3000, 4500])
def test_too_little_memory_frees_what_was_had(driver: FakeDriver, room: int) -> None:
    driver._room = room
    with pytest.raises(EngineError, match="out of memory"):
        Rig(driver, lanes=3)


def test_close_waits_frees_once_and_keeps_results(driver: FakeDriver) -> None:
    streams = Rig(driver)
    pending = [streams.submit(batch(4, seed)) for seed in range(5)]
    streams.close()
    streams.close()
    driver.assert_empty()
    for seed, one in enumerate(pending):
        np.testing.assert_array_equal(one.result(), described(batch(4, seed)))
    with pytest.raises(EngineError, match="closed"):
        streams.submit(batch(1))


@pytest.mark.parametrize(("lanes", "depth"), [(1, 1), (1, 3), (3, 2)])
def test_threads(driver: FakeDriver, lanes: int, depth: int) -> None:
    with Rig(driver, lanes=lanes, depth=depth) as streams, ThreadPoolExecutor(8) as pool:
        batches = [batch(1 + seed % 11, seed) for seed in range(120)]
        for images, found in zip(batches, pool.map(streams.run, batches), strict=True):
            np.testing.assert_array_equal(found, described(images))


def test_single_pictures_gathered_into_batches_keep_every_lane_at_work(driver: FakeDriver) -> None:
    with Rig(driver, lanes=2, graphs=0) as streams:
        policy = Policy(max_batch=8, max_delay=0.001, enough=streams.capacity)
        scheduler = Scheduler(streams.run, workers=streams.capacity, decoders=1, policy=policy, max_queue=400)
        pictures = [batch(1, seed)[0] for seed in range(300)]
        for picture, future in [(picture, scheduler.submit(picture)) for picture in pictures]:
            np.testing.assert_array_equal(future.result(10), described(picture[None])[0])
        scheduler.close()
        assert all(sum(context.batches) > 50 for context in streams.contexts)


def test_close_under_load_drains_or_refuses(driver: FakeDriver) -> None:
    streams = Rig(driver)

    def work(seed: int) -> bool:
        try:
            found = streams.run(batch(4, seed))
        except EngineError as error:
            assert "closed" in str(error)
            return False
        np.testing.assert_array_equal(found, described(batch(4, seed)))
        return True

    with ThreadPoolExecutor(6) as pool:
        done = [pool.submit(work, seed) for seed in range(60)]
        done[5].result()
        streams.close()
        finished = [one.result() for one in done]
    assert any(finished)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((1, 4, 4, 3), np.float32), r"float32 \[1, 4, 4, 3\]; expected uint8 \[n, 4, 4, 3\]"),
        (np.zeros((1, 4, 5, 3), np.uint8), "expected uint8"),
        (np.zeros((0, 4, 4, 3), np.uint8), "0 images; expected 1 to 8"),
        (np.zeros((9, 4, 4, 3), np.uint8), "9 images; expected 1 to 8"),
    ],
)
def test_wrong_batches(driver: FakeDriver, images: NDArray[Any], message: str) -> None:
    with Rig(driver) as streams, pytest.raises(InputError, match=message):
        streams.submit(images)


@pytest.mark.parametrize("lanes", [1, 2])
def test_the_callers_device_memory_and_stream(driver: FakeDriver, lanes: int) -> None:
    """Copies of the caller's own go before and after in the caller's stream; nobody waits in between."""
    with Rig(driver, lanes=lanes) as streams:
        stream, rows = driver.stream(), 3
        calls = []
        for seed in range(5):
            images, descriptors = driver.malloc(rows * 48), driver.malloc(rows * 12)
            up, down = driver.pinned(rows * 48), driver.pinned(rows * 12)
            up[:] = batch(rows, seed).reshape(-1)
            driver.upload(images, up, stream)
            streams.submit(batch(8, seed))
            streams.run_on(SimpleNamespace(handle=stream), rows, images, descriptors)
            driver.download(down, descriptors, stream)
            calls.append((seed, images, descriptors, up, down))
        driver.finish(stream)
        for seed, *device, up, down in calls:
            np.testing.assert_array_equal(down.view(np.float32).reshape(rows, 3), described(batch(rows, seed)))
            for pointer in device:
                driver.free(pointer)
            driver.free_pinned(up)
            driver.free_pinned(down)
        driver.destroy_stream(stream)
        assert streams.contexts[-1].batches.count(3) == 5


def test_the_callers_memory_is_never_padded(driver: FakeDriver) -> None:
    with Rig(driver, layout=Layout(buckets=(2, 4), image_shape=(4, 4, 3), dim=3)) as streams:
        for rows in (1, 5):
            with pytest.raises(InputError, match="expected 2 to 4"):
                streams.run_on(1, rows, 2, 3)


def test_the_fake_device_does_not_forgive() -> None:
    """A race, an early change, a use after free, a double free and a leak are each caught."""
    driver = FakeDriver()
    one, other = driver.stream(), driver.stream()
    pointer, host = driver.malloc(8), driver.pinned(8)
    driver.upload(pointer, host, one)
    with pytest.raises(Misuse, match="download does not wait for upload"):
        driver.download(host, pointer, other)
    host[:] = 1
    with pytest.raises(Misuse, match="changed before its upload"):
        driver.finish(one)
    with pytest.raises(Misuse, match="left behind"):
        driver.assert_empty()
    driver = FakeDriver()
    driver.free(pointer := driver.malloc(8))
    with pytest.raises(Misuse, match="after it was freed"):
        driver.free(pointer)


@pytest.mark.parametrize("lanes", [1, 2, 3])
def test_batches_without_copies_run_in_every_lane(driver: FakeDriver, lanes: int) -> None:
    """To measure the device alone: the same graphs, no upload and no download, and all is done when it returns."""
    with Rig(driver, lanes=lanes) as rig:
        rig.warm_up()
        before = {name: len(driver.named(name)) for name in ("upload", "download")}
        launched = driver.calls.count("launch")
        rig.compute(3, 2 * lanes)
        assert {name: len(driver.named(name)) for name in before} == before
        assert driver.calls.count("launch") - launched == 2 * lanes
        np.testing.assert_array_equal(rig.run(batch(5)), described(batch(5)))
        with pytest.raises(InputError, match="the batch has 9 images"):
            rig.compute(9, 1)


def test_a_call_that_fails_half_way_leaves_the_callers_memory_alone(driver: FakeDriver) -> None:
    """The engine gives its kernel to the stream and then refuses, as a model of several nodes may."""
    with Rig(driver, lanes=1) as streams:
        stream, images, descriptors = driver.stream(), driver.malloc(48), driver.malloc(12)
        pixels = driver.pinned(48)
        pixels[:] = batch(1).reshape(-1)
        driver.upload(images, pixels, stream)
        (context,) = streams.contexts
        launch = context._launch
        context._launch = lambda *given: launch(*given) and False  # type: ignore[method-assign]
        for _ in range(2):
            with pytest.raises(EngineError, match="refused a batch of 1"):
                streams.run_on(stream, 1, images, descriptors)
        driver.free(images)
        driver.free(descriptors)
        driver.free_pinned(pixels)
        driver.destroy_stream(stream)
        context._launch = launch  # type: ignore[method-assign]
        np.testing.assert_array_equal(streams.run(batch(3)), described(batch(3)))
