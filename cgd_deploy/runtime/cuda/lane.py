"""A lane: one execution context, three CUDA streams (up, compute, down) and a ring of buffer sets.

A GPU copies and computes on different hardware, so one lane already uploads batch i+1 while batch i computes and batch
i-1 downloads. The kernels of a lane run in order, because they share the context's scratch memory. With more lanes, the
kernels of different batches overlap too. Knows no CUDA beyond ``Driver`` and no library that runs models.
"""

from __future__ import annotations

import math
import warnings
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count
from threading import Lock
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from ...errors import EngineError
from .driver import Driver, OutOfDeviceMemory

T = TypeVar("T")


class Enqueue(Protocol):
    """One execution context, which enqueues batches on a CUDA stream. One thread at a time calls it."""

    @property
    def capturable(self) -> bool:
        """Whether a CUDA graph may capture the calls."""
        ...

    def __call__(self, stream: int, batch: int, images: int, descriptors: int) -> bool:
        """Enqueue uint8 [batch, H, W, 3] -> float32 [batch, D] between device pointers; False for a refused batch."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """Batch sizes in rising order, the shape (H, W, 3) of an image, and the length of a descriptor."""

    buckets: tuple[int, ...]
    image_shape: tuple[int, ...]
    dim: int

    def bucket(self, rows: int) -> int:
        """The smallest batch size that holds ``rows``."""
        return self.buckets[bisect_left(self.buckets, rows)]


class Pending:
    """A batch that a lane computes."""

    def __init__(self, slot: Slot, rows: int) -> None:
        self._slot = slot
        self.rows = rows
        self.outcome: NDArray[np.float32] | EngineError | None = None

    def result(self) -> NDArray[np.float32]:
        """Wait for the descriptors, float32 [n, D], which the caller owns. Raises EngineError if the device failed."""
        with self._slot.lock:
            if self.outcome is None:
                self._slot.settle()
        if isinstance(self.outcome, EngineError):
            raise self.outcome
        assert self.outcome is not None
        return self.outcome


class Slot:
    """A buffer set and its batch. ``settle`` copies the descriptors out, and so makes room for the next batch."""

    def __init__(self, driver: Driver, stack: ExitStack, layout: Layout) -> None:
        self._driver = driver
        self.lock = Lock()
        self.pending: Pending | None = None
        self.failure: EngineError | None = None
        batch = layout.buckets[-1]
        image_bytes, descriptor_bytes = batch * math.prod(layout.image_shape), batch * layout.dim * 4
        host_images = owned(stack, driver.pinned(image_bytes), driver.free_pinned)
        host_descriptors = owned(stack, driver.pinned(descriptor_bytes), driver.free_pinned)
        self.host_images = host_images.reshape(batch, *layout.image_shape)
        self.host_descriptors = host_descriptors.view(np.float32).reshape(batch, layout.dim)
        self.images = owned(stack, driver.malloc(image_bytes), driver.free)
        self.descriptors = owned(stack, driver.malloc(descriptor_bytes), driver.free)
        self.uploaded, self.computed, self.downloaded = (
            owned(stack, driver.event(), driver.destroy_event) for _ in range(3)
        )

    def settle(self) -> None:
        """Wait for the batch in this slot, if any, and copy its descriptors out. The caller holds ``lock``."""
        if self.pending is None:
            return
        try:
            self._driver.synchronize(self.downloaded)
            self.pending.outcome = self.host_descriptors[: self.pending.rows].copy()
        except EngineError as error:
            self.pending.outcome = self.failure = error
        self.pending = None


class Graphs:
    """CUDA graphs by (batch, images, descriptors), which a graph fixes. Drops the least recently used graph first."""

    def __init__(self, driver: Driver, capacity: int) -> None:
        self._driver = driver
        self._graphs: OrderedDict[tuple[int, int, int], int] = OrderedDict()
        self.capacity = capacity

    def get(self, key: tuple[int, int, int]) -> int | None:
        if key in self._graphs:
            self._graphs.move_to_end(key)
        return self._graphs.get(key)

    def put(self, key: tuple[int, int, int], graph: int) -> None:
        self._graphs[key] = graph
        if len(self._graphs) > self.capacity:
            self._driver.destroy_graph(self._graphs.popitem(last=False)[1])

    def close(self) -> None:
        with ExitStack() as stack:
            for graph in self._graphs.values():
                stack.callback(self._driver.destroy_graph, graph)
            self._graphs.clear()


class Lane:
    """Sends batches through one context, with several batches in flight. Threads may share it.

    make      makes the lane's Enqueue from its compute stream; the lane closes it
    depth     buffer sets
    graphs    CUDA graphs kept, 0 for none
    failure   why the lane takes no more batches, or None
    """

    def __init__(
        self, driver: Driver, make: Callable[[int], Enqueue], layout: Layout, *, depth: int, graphs: int
    ) -> None:
        self._driver = driver
        self._layout = layout
        self._lock = Lock()
        self._turn = count()
        self._closed = False
        self._failure: EngineError | None = None
        with ExitStack() as stack:
            self._streams = [owned(stack, driver.stream(), driver.destroy_stream) for _ in range(3)]
            self._up, self._compute, self._down = self._streams
            self._entered, self._left = (owned(stack, driver.event(), driver.destroy_event) for _ in range(2))
            self._slots = [Slot(driver, stack, layout) for _ in range(depth)]
            self._enqueue = make(self._compute)
            stack.callback(self._enqueue.close)
            self._graphs = Graphs(driver, graphs if self._enqueue.capturable else 0)
            stack.callback(self._graphs.close)
            for stream in self._streams:
                stack.callback(driver.finish, stream)
            self._resources = stack.pop_all()

    @property
    def failure(self) -> EngineError | None:
        return self._failure or next((slot.failure for slot in self._slots if slot.failure), None)

    def submit(self, images: NDArray[np.uint8]) -> Pending:
        """Send a batch; waits for the oldest batch only if every slot is taken."""
        slot = self._slots[next(self._turn) % len(self._slots)]
        with slot.lock:
            slot.settle()
            with self._lock:
                self._check()
            slot.host_images[: len(images)] = images  # outside the lane's lock, so other threads can send
            with self._lock:
                self._check()
                try:
                    self._send(slot, len(images))
                except BaseException:
                    self._recover()
                    raise
            slot.pending = Pending(slot, len(images))
            return slot.pending

    def run_on(self, streams: Sequence[int], rows: int, images: int, descriptors: int) -> None:
        """Compute from the caller's device buffer to another, after earlier and before later work on ``streams``."""
        with self._lock:
            self._check()
            try:
                for stream in streams:
                    self._driver.record(self._entered, stream)
                    self._driver.wait(self._compute, self._entered)
                self._checked_enqueue(rows, images, descriptors)
                self._driver.record(self._left, self._compute)
                for stream in streams:
                    self._driver.wait(stream, self._left)
            except BaseException:
                self._recover()  # work from before the failure still uses the caller's memory
                raise

    def compute(self, rows: int) -> None:
        """Enqueue one batch on the pixels in the next slot, without copies. Returns at once, see ``finish``."""
        slot = self._slots[next(self._turn) % len(self._slots)]
        with slot.lock:
            slot.settle()
            with self._lock:
                self._check()
                self._run(self._layout.bucket(rows), slot.images, slot.descriptors)

    def finish(self) -> None:
        """Wait for all enqueued work."""
        self._driver.finish(self._compute)

    def close(self) -> None:
        """Wait for all batches, then free everything, once; results stay valid."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        for slot in self._slots:
            with slot.lock:
                slot.settle()
        try:
            self._resources.close()
        except EngineError:
            if not self.failure:  # a failed device refuses every call; its first error was raised before
                raise

    def _send(self, slot: Slot, rows: int) -> None:
        driver = self._driver
        driver.upload(slot.images, slot.host_images[:rows], self._up)
        driver.record(slot.uploaded, self._up)
        driver.wait(self._compute, slot.uploaded)
        self._run(self._layout.bucket(rows), slot.images, slot.descriptors)
        driver.record(slot.computed, self._compute)
        driver.wait(self._down, slot.computed)
        driver.download(slot.host_descriptors[:rows], slot.descriptors, self._down)
        driver.record(slot.downloaded, self._down)

    def _run(self, batch: int, images: int, descriptors: int) -> None:
        key = (batch, images, descriptors)
        if (graph := self._graphs.get(key)) is not None:
            self._driver.launch(graph, self._compute)
            return
        # The first call at a shape does extra work that a graph must not keep, and shows that the batch is accepted.
        self._checked_enqueue(*key)
        if self._graphs.capacity:
            try:
                self._graphs.put(key, self._driver.capture(self._compute, lambda: self._checked_enqueue(*key)))
            except OutOfDeviceMemory:  # the caller can make memory free; running without graphs would hide that
                raise
            except EngineError as error:
                self._graphs.capacity = 0
                warnings.warn(f"running without CUDA graphs, as this engine refuses them: {error}", stacklevel=2)

    def _checked_enqueue(self, batch: int, images: int, descriptors: int) -> None:
        if not self._enqueue(self._compute, batch, images, descriptors):
            raise EngineError(f"the engine refused a batch of {batch}; build it again with a profile that holds it.")

    def _check(self) -> None:
        if self._closed:
            raise EngineError("the engine is closed; load it again.")
        if self.failure:
            raise EngineError(f"this CUDA lane has failed: {self.failure}")

    def _recover(self) -> None:
        """Wait for the streams after a failed batch, so that its buffers can be used again."""
        try:
            for stream in self._streams:
                self._driver.finish(stream)
        except EngineError as error:
            self._failure = error


def owned(stack: ExitStack, resource: T, release: Callable[[T], object]) -> T:
    """Return ``resource``; the stack releases it."""
    stack.callback(release, resource)
    return resource
