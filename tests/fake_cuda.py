"""A CUDA device of the imagination: it runs nothing until someone waits for it, and it does not forgive.

Work given to a stream runs in order, when the host waits for it and no sooner; across streams only events order it.
Of every buffer it knows which work touched it last, and raises ``Misuse`` where two pieces of work, one of which
writes, are not ordered by streams, events or the host: that is a race on a real device, whether or not this run would
have seen it. So do pinned memory changed before its upload, use after free, double frees, and whatever is left over.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from threading import Lock, RLock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cgd_deploy.errors import EngineError

GARBAGE = 0xA5
DEFAULT_STREAMS = (1, 2)
"""Handles of the legacy default stream and of the thread's, which exist from the start."""


class Misuse(Exception):
    """A real device would have given wrong results, perhaps, some day."""


@dataclass(eq=False)
class Work:
    """One copy, kernel, record or wait. ``before`` has a bit set for each piece of work certain to be done before."""

    number: int
    name: str
    run: Callable[[], None]
    before: int


@dataclass(eq=False)
class Memory:
    """Bytes, and the numbers of the work that last wrote them and has read them since."""

    data: NDArray[np.uint8]
    writer: int | None = None
    readers: list[int] = field(default_factory=list)

    @property
    def users(self) -> list[int]:
        return self.readers if self.writer is None else [self.writer, *self.readers]


@dataclass
class Step:
    """A kernel as a captured graph keeps it: all arguments frozen."""

    name: str
    run: Callable[[], None]
    reads: Sequence[int]
    writes: Sequence[int]


class FakeDriver:
    """Implements ``cgd_deploy.runtime.cuda.driver.Driver``.

    log         every piece of work in the order given, for asking what may overlap
    calls       names of the driver calls made
    elsewhere   pointers to memory of other devices, each with the ordinal of its device
    failing     while set, waiting and releasing raise EngineError with this text, as after a failed kernel
    """

    def __init__(self, memory: int = 1 << 30) -> None:
        self.log: list[Work] = []
        self.calls: list[str] = []
        self.elsewhere: dict[int, int] = {}
        self.failing: str | None = None
        self._lock = RLock()
        self._room = memory
        self._next = 1000
        self._memory: dict[int, Memory] = {}
        self._pinned: dict[int, Memory] = {}
        self._freed_pinned: list[Memory] = []
        self._streams: dict[int, deque[Work]] = {stream: deque() for stream in DEFAULT_STREAMS}
        self._last: dict[int, int] = {}
        self._events: dict[int, Work | None] = {}
        self._graphs: dict[int, list[Step]] = {}
        self._capturing: dict[int, list[Step]] = {}
        self._done = 0

    # Memory

    def malloc(self, size: int) -> int:
        with self._lock:
            if size > self._room:
                raise EngineError("cudaMalloc failed (out of memory); load with fewer streams.")
            self._room -= size
            pointer = self._handle(step=1 << 20)
            self._memory[pointer] = Memory(np.full(size, GARBAGE, np.uint8))
            return pointer

    def free(self, pointer: int) -> None:
        with self._lock:
            self._fail()
            memory = self._at(pointer)
            self._unused(memory)
            self._room += len(memory.data)
            del self._memory[pointer]

    def owner(self, pointer: int) -> int | None:
        return self.elsewhere.get(pointer, 0 if pointer in self._memory else None)

    def pinned(self, size: int) -> NDArray[np.uint8]:
        with self._lock:
            memory = Memory(np.full(size, GARBAGE, np.uint8))
            self._pinned[memory.data.ctypes.data] = memory
            return memory.data

    def free_pinned(self, array: NDArray[np.uint8]) -> None:
        with self._lock:
            self._fail()
            memory = self._pinned.pop(array.ctypes.data, None)
            if memory is None:
                raise Misuse("pinned memory freed twice")
            self._unused(memory)
            memory.data[:] = GARBAGE
            self._freed_pinned.append(memory)  # kept, so that its address is not given out again

    # Streams and events

    def stream(self) -> int:
        with self._lock:
            handle = self._handle()
            self._streams[handle] = deque()
            return handle

    def destroy_stream(self, stream: int) -> None:
        with self._lock:
            self._fail()
            if self._queue(stream):
                raise Misuse("stream destroyed with work in it")
            del self._streams[stream]

    def event(self) -> int:
        with self._lock:
            handle = self._handle()
            self._events[handle] = None
            return handle

    def destroy_event(self, event: int) -> None:
        with self._lock:
            self._fail()
            self._recorded(event)
            del self._events[event]

    def record(self, event: int, stream: int) -> None:
        with self._lock:
            self._recorded(event)
            self._events[event] = self._give(stream, "record", lambda: None)

    def wait(self, stream: int, event: int) -> None:
        with self._lock:
            record = self._recorded(event)
            if record is not None:
                self._give(stream, "wait", lambda: self._run_until(record), record.before | 1 << record.number)

    def synchronize(self, event: int) -> None:
        with self._lock:
            self._fail()
            if (record := self._recorded(event)) is not None:
                self._run_until(record)

    def finish(self, stream: int) -> None:
        with self._lock:
            self._fail()
            queue = self._queue(stream)
            while queue:
                self._run_next(queue)

    # Copies and kernels

    def upload(self, pointer: int, array: NDArray[Any], stream: int) -> None:
        with self._lock:
            host = self._in_pinned(array)
            promised = array.copy()

            def run() -> None:
                if not np.array_equal(array, promised):
                    raise Misuse("pinned memory was changed before its upload")
                self.write(pointer, promised.tobytes())

            self._touch(self._give(stream, "upload", run), reads=[host], writes=[self._at(pointer)])

    def download(self, array: NDArray[Any], pointer: int, stream: int) -> None:
        with self._lock:
            host = self._in_pinned(array)
            array.view(np.uint8)[...] = GARBAGE

            def run() -> None:
                array.view(np.uint8).reshape(-1)[:] = self._at(pointer).data[: array.nbytes]

            self._touch(self._give(stream, "download", run), reads=[self._written(pointer)], writes=[host])

    def kernel(self, stream: int, step: Step) -> None:
        """What a runtime library would launch: runs now-frozen ``step``, or captures it."""
        with self._lock:
            if stream in self._capturing:
                self._capturing[stream].append(step)
            else:
                reads = [self._written(pointer) for pointer in step.reads]
                writes = [self._at(pointer) for pointer in step.writes]
                self._touch(self._give(stream, step.name, step.run), reads, writes)

    def read(self, pointer: int, size: int) -> bytes:
        """For kernels: bytes of device memory now."""
        return self._at(pointer).data[:size].tobytes()

    def write(self, pointer: int, data: bytes) -> None:
        """For kernels: fill device memory now."""
        self._at(pointer).data[: len(data)] = np.frombuffer(data, np.uint8)

    def address(self, pointer: int) -> int:
        """For kernels of libraries on the CPU: where the bytes of this device memory really are."""
        return self._at(pointer).data.ctypes.data

    # Graphs

    def capture(self, stream: int, enqueue: Callable[[], None]) -> int:
        with self._lock:
            self.calls.append("capture")
            self._queue(stream)
            self._capturing[stream] = []
            try:
                enqueue()
            finally:
                steps = self._capturing.pop(stream)
            graph = self._handle()
            self._graphs[graph] = steps
            return graph

    def launch(self, graph: int, stream: int) -> None:
        with self._lock:
            self.calls.append("launch")
            if graph not in self._graphs:
                raise Misuse("a destroyed graph was launched")
            for step in self._graphs[graph]:
                self.kernel(stream, step)

    def destroy_graph(self, graph: int) -> None:
        with self._lock:
            self._fail()
            self.calls.append("destroy_graph")
            if self._graphs.pop(graph, None) is None:
                raise Misuse("graph destroyed twice")

    # For tests

    @property
    def graphs(self) -> int:
        return len(self._graphs)

    def named(self, name: str) -> list[Work]:
        return [work for work in self.log if work.name == name]

    def has_run(self, work: Work) -> bool:
        """Whether the host knows that it is done."""
        return bool(self._done >> work.number & 1)

    def captures(self, stream: int) -> bool:
        return stream in self._capturing

    @staticmethod
    def may_overlap(one: Work, other: Work) -> bool:
        """Whether nothing orders these two."""
        return not (one.before >> other.number & 1 or other.before >> one.number & 1)

    def assert_empty(self) -> None:
        """Everything that was made has been released."""
        left = {
            "memory": self._memory,
            "pinned": self._pinned,
            "streams": self._streams.keys() - DEFAULT_STREAMS,
            "events": self._events,
            "graphs": self._graphs,
        }
        if leaks := {name: len(things) for name, things in left.items() if things}:
            raise Misuse(f"left behind: {leaks}")

    # Inside

    def _handle(self, step: int = 1) -> int:
        handle = self._next
        self._next += step
        return handle

    def _at(self, pointer: int) -> Memory:
        if pointer not in self._memory:
            raise Misuse(f"device memory {pointer} is used after it was freed, or never was")
        return self._memory[pointer]

    def _written(self, pointer: int) -> Memory:
        memory = self._at(pointer)
        if memory.writer is None:
            raise Misuse("device memory is read before anything was written to it")
        return memory

    def _unused(self, memory: Memory) -> None:
        for number in memory.users:
            if not self._done >> number & 1:
                raise Misuse(f"memory freed before {self.log[number].name} was done with it")

    def _queue(self, stream: int) -> deque[Work]:
        if stream not in self._streams:
            raise Misuse("a destroyed stream is used")
        return self._streams[stream]

    def _recorded(self, event: int) -> Work | None:
        if event not in self._events:
            raise Misuse("a destroyed event is used")
        return self._events[event]

    def _in_pinned(self, array: NDArray[Any]) -> Memory:
        start = array.ctypes.data
        for base, memory in self._pinned.items():
            if base <= start and start + array.nbytes <= base + len(memory.data):
                return memory
        raise Misuse("an asynchronous copy of memory that is not pinned, or was freed")

    def _give(self, stream: int, name: str, run: Callable[[], None], before: int = 0) -> Work:
        queue = self._queue(stream)
        if stream in self._capturing:
            raise Misuse(f"{name} while its stream is captured")
        if (last := self._last.get(stream)) is not None:
            before |= self.log[last].before | 1 << last
        work = Work(len(self.log), name, run, before | self._done)
        self.log.append(work)
        queue.append(work)
        self._last[stream] = work.number
        return work

    def _touch(self, work: Work, reads: Sequence[Memory] = (), writes: Sequence[Memory] = ()) -> None:
        for memory in [*reads, *writes]:
            others = memory.users if memory in writes else [memory.writer]
            for number in others:
                if number is not None and not work.before >> number & 1:
                    raise Misuse(f"{work.name} does not wait for {self.log[number].name} of the same memory")
        for memory in reads:
            memory.readers.append(work.number)
        for memory in writes:
            memory.writer, memory.readers = work.number, []

    def _run_next(self, queue: deque[Work]) -> None:
        work = queue.popleft()
        work.run()
        self._done |= 1 << work.number

    def _run_until(self, work: Work) -> None:
        for queue in self._streams.values():
            if work in queue:
                while not self._done >> work.number & 1:
                    self._run_next(queue)

    def _fail(self) -> None:
        if self.failing:
            raise EngineError(self.failing)


class FakeContext:
    """An Enqueue whose descriptors are ``described`` below.

    Like TensorRT's contexts it needs one ordinary call at a batch size before that size may be captured, and all its
    kernels share scratch memory, so two of them in different streams are a race; nor may two threads call it at once.
    ``refusing`` makes it return False.
    """

    def __init__(self, driver: FakeDriver, image_shape: tuple[int, ...], scratch: int | None = None) -> None:
        self._driver = driver
        self._image_shape = image_shape
        self._scratch = scratch or driver.malloc(64)
        self._warm: set[int] = set()
        self._busy = Lock()
        self.refusing = False
        self.capturable = True
        self.batches: list[int] = []

    def __call__(self, stream: int, batch: int, images: int, descriptors: int) -> bool:
        if not self._busy.acquire(blocking=False):
            raise Misuse("two threads in one context")
        try:
            time.sleep(1e-4)
            return not self.refusing and self._launch(stream, batch, images, descriptors)
        finally:
            self._busy.release()

    def _launch(self, stream: int, batch: int, images: int, descriptors: int) -> bool:
        if self._driver.captures(stream) and batch not in self._warm:
            raise Misuse(f"batch {batch} was captured without an ordinary call before")
        self._warm.add(batch)
        self.batches.append(batch)

        def run() -> None:
            size = batch * int(np.prod(self._image_shape))
            pixels = np.frombuffer(self._driver.read(images, size), np.uint8).reshape(batch, *self._image_shape)
            self._driver.write(descriptors, described(pixels).tobytes())

        self._driver.kernel(stream, Step("kernel", run, reads=[images], writes=[descriptors, self._scratch]))
        return True

    def close(self) -> None:
        self._driver.free(self._scratch)


def described(images: NDArray[np.uint8], dim: int = 3) -> NDArray[np.float32]:
    """What a FakeContext computes: float32 [n, dim], from the means of ``dim`` runs of the pixels."""
    parts = np.array_split(images.reshape(len(images), -1).astype(np.float64), dim, axis=1)
    return np.stack([part.mean(axis=1) for part in parts], axis=1).astype(np.float32)
