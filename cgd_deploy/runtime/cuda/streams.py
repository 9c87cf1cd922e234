"""Stream batching on a GPU: lanes take batches in turn, so that copies and kernels of different batches overlap.

Knows no CUDA beyond ``Driver`` and no library that runs models. ``lane`` explains lanes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError
from ..interop import DeviceArray, check_place, streams_of
from .driver import Driver
from .lane import Enqueue, Lane, Layout, Pending, owned

LANES = 2
DEPTH = 3
"""Buffer sets of a lane: one is uploaded, one computed, one downloaded."""


def bucket_sizes(smallest: int, largest: int) -> tuple[int, ...]:
    """Batch sizes to pad to: ``smallest``, the powers of two above it, ``largest``."""
    powers = (1 << k for k in range(largest.bit_length()))
    return tuple(sorted({smallest, *(size for size in powers if size > smallest), largest}))


class Streams:
    """A model on ``lanes`` CUDA lanes. Threads may share it; call ``close`` at the end.

    make      makes a lane's Enqueue from its compute stream; the lane closes it
    layout    batch sizes and shapes; a batch is padded to the smallest size that holds it
    lanes     execution contexts
    depth     buffer sets of each lane
    graphs    CUDA graphs that each lane keeps; None: one for each batch size and buffer set; 0: none

    Raises EngineError if the device lacks the memory, after freeing everything.
    """

    def __init__(
        self,
        driver: Driver,
        make: Callable[[int], Enqueue],
        layout: Layout,
        *,
        lanes: int = LANES,
        depth: int = DEPTH,
        graphs: int | None = None,
    ) -> None:
        graphs = depth * len(layout.buckets) if graphs is None else graphs
        self._driver = driver
        self.layout = layout
        self.capacity = lanes * depth
        self._turn = count()
        with ExitStack() as stack:
            self._lanes = [
                owned(stack, Lane(driver, make, layout, depth=depth, graphs=graphs), Lane.close) for _ in range(lanes)
            ]
            self._resources = stack.pop_all()

    def submit(self, images: NDArray[np.uint8]) -> Pending:
        """Send uint8 [n, H, W, 3], n from 1 to the largest batch size. The caller may reuse ``images`` at once.

        Returns before the GPU is done. If every buffer set of the lane is taken, waits for the oldest batch first.
        Raises InputError for another shape, EngineError if the engine refuses the batch, has failed, or is closed.
        """
        if images.dtype != np.uint8 or images.shape[1:] != self.layout.image_shape:
            expected = ", ".join(map(str, self.layout.image_shape))
            raise InputError(f"images are {images.dtype} {list(images.shape)}; expected uint8 [n, {expected}].")
        self._check_rows(len(images), 1)
        return self._lane().submit(images)

    def run(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 [n, H, W, 3] of any n -> float32 [n, D], cut into batches of at most the largest batch size."""
        largest = self.layout.buckets[-1]
        parts = list(self.run_many(images[start : start + largest] for start in range(0, len(images), largest)))
        return np.concatenate(parts) if parts else np.empty((0, self.layout.dim), np.float32)

    def run_many(self, batches: Iterable[NDArray[np.uint8]]) -> Iterator[NDArray[np.float32]]:
        """Yield the descriptors of each batch in order, with a batch in flight for each buffer set."""
        waiting: deque[Pending] = deque()
        for images in batches:
            if len(waiting) == self.capacity:
                yield waiting.popleft().result()
            waiting.append(self.submit(images))
        while waiting:
            yield waiting.popleft().result()

    def run_on(self, stream: Any, rows: int, images: Any, descriptors: Any) -> None:
        """Enqueue a batch from one device array of the caller to another, in order with their streams. Returns at once.

        stream        a stream of pycuda, torch, CuPy or cuda.core, or its handle; None: only the streams that the
                      arrays name, else the legacy default stream
        images        uint8 [rows, H, W, 3]: a device array or its address
        descriptors   float32 [rows, D]: a device array or its address

        The batch starts after all earlier work on these streams, and later work on these streams starts after the
        batch. Keep both arrays, and do not call ``close``, until the batch is done.

        The batch is not padded, because a padded batch would use memory beyond the caller's. So it has no CUDA graph.
        TensorRT prepares a context for each size, so a batch of a new size may wait for an earlier batch.

        Raises InputError for arrays of another shape, dtype, layout or device.
        """
        self._check_rows(rows, self.layout.buckets[0])
        source, target = DeviceArray(images), DeviceArray(descriptors)
        streams = streams_of(stream, source, target)
        pointers = (
            source.pointer((rows, *self.layout.image_shape), np.uint8, streams[0]),
            target.pointer((rows, self.layout.dim), np.float32, streams[0], writable=True),
        )
        for pointer in pointers:
            check_place(self._driver.owner(pointer))
        self._lane().run_on(streams, rows, *pointers)

    def warm_up(self) -> None:
        """Run every batch size through every buffer set of every lane.

        This makes all execution contexts, CUDA graphs and workspaces, and chooses algorithms. Raises EngineError if the
        device lacks the memory; ``close`` then still frees everything.
        """
        for size in reversed(self.layout.buckets):  # the largest needs the most memory, so it shows a shortage first
            blank = np.zeros((size, *self.layout.image_shape), np.uint8)
            deque(self.run_many(blank for _ in range(self.capacity)), maxlen=0)

    def compute(self, rows: int, times: int) -> None:
        """Compute ``times`` batches of ``rows`` pictures, whatever the buffer sets hold, and wait for them.

        Copies nothing, to measure the GPU alone. No other thread may use the streams meanwhile.
        """
        self._check_rows(rows, 1)
        lanes = [self._lane() for _ in range(times)]
        for lane in lanes:
            lane.compute(rows)
        for lane in dict.fromkeys(lanes):
            lane.finish()

    def close(self) -> None:
        """Wait for all batches, then free everything; results stay valid. Closing again does nothing."""
        self._resources.close()

    def _check_rows(self, rows: int, smallest: int) -> None:
        largest = self.layout.buckets[-1]
        if not smallest <= rows <= largest:
            raise InputError(f"the batch has {rows} images; expected {smallest} to {largest}.")

    def _lane(self) -> Lane:
        """The next lane that has not failed, or, if all have failed, a lane whose error gives the reason."""
        start = next(self._turn) % len(self._lanes)
        lanes = self._lanes[start:] + self._lanes[:start]
        return next((lane for lane in lanes if not lane.failure), lanes[0])
