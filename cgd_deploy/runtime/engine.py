"""Engine: turns pictures into unit descriptors, on the backend that its file was built for."""

from __future__ import annotations

import asyncio
import logging
import os
import weakref
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from contextlib import closing
from functools import partial
from pathlib import Path
from threading import RLock
from time import perf_counter
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import EngineError, InputError
from ..hardware.cpu import available_threads
from ..pictures.images import ImageList
from ..pictures.preprocess import Picture, ahead, batches, is_ready, preprocess
from ..spec import ModelSpec, Precision
from .admission import Policy, Submitted
from .backends import BACKENDS, Backend, default_device, model_settings
from .backends.parallel import Parallel
from .calls import Calls
from .compatibility import check_compatibility, is_proven_here, repair
from .cuda.nvjpeg import check_decoder, nvjpeg_batches
from .cuda.streams import LANES
from .descriptors import Descriptor, Descriptors, cosines
from .enginefile import EngineFile, Manifest, read_engine
from .interop import array_length, host_array, on_device
from .scheduler import Batching, Scheduler
from .statistics import Statistics, Stats
from .tuning import setting_here

log = logging.getLogger(__name__)

SELF_TEST_COSINE = 0.999
CPU_BATCH = 8
"""Pictures of a full batch on a CPU without a tuning: larger batches are no faster, and each picture waits longer."""
ENOUGH_ON_CUDA = 2
"""Batches in flight that keep a GPU busy: one computes while the next is copied. benchmarks/batching.py chose it."""


class Engine:
    """A loaded .cgd file, made by ``load``. A context manager, else call ``close``. Threads may share it.

    A forked process must load its own engine: the threads of the backend stay in the parent process.

    Example:

        from cgd_deploy import load, read_images

        with load("model.cgd") as engine:
            descriptors = engine.embed(["photos/a.jpg", "photos/b.jpg"])  # float32 [2, dim]
            similarity = float(descriptors[0] @ descriptors[1])  # cosine, as descriptors are unit vectors
            for indices, batch in engine.embed_list(read_images("photos")):
                print(indices, batch.shape)
    """

    def __init__(
        self,
        file: EngineFile,
        backend: Backend,
        streams: int = 1,
        batching: Batching | None = None,
        decode_threads: int | None = None,
    ) -> None:
        self._file = file
        self._backend = backend
        self._batches = batches = backend if streams == 1 else Parallel(backend, streams)
        self._batching = batching or Batching()
        self._decode_threads = decode_threads
        self._process = os.getpid()
        self._lock = RLock()  # a signal handler may close while its thread submits
        self._scheduler: Scheduler | None = None
        self._calls = Calls(str(file.path), lambda: batches.close())
        weakref.finalize(self, _free, self._calls)

    def __repr__(self) -> str:
        name, spec = self._file.path.name, self.spec
        runs = f"{self.manifest.backend} {self.precision.value} on {self.device}"
        return f"<Engine {name}: {runs}, {spec.summary}{', closed' if self._calls.closed else ''}>"

    @property
    def manifest(self) -> Manifest:
        """The manifest of the engine file."""
        return self._file.manifest

    @property
    def spec(self) -> ModelSpec:
        """The model: its descriptors, their length, the input size and the ``space_id``."""
        return self.manifest.spec

    @property
    def precision(self) -> Precision:
        """The precision of the backbone's convolutions."""
        return self.manifest.precision

    @property
    def device(self) -> str:
        """Where the engine runs, "cpu" or "cuda"."""
        return "cuda" if self._backend.streams else "cpu"

    @property
    def max_batch(self) -> int:
        """The largest batch that the backend runs; ``embed`` splits larger batches."""
        return self.manifest.profile["max"]

    def embed(self, images: NDArray[np.uint8] | Sequence[Picture]) -> Descriptors:
        """Describe pictures.

        images   uint8 RGB [N, H, W, 3] at the spec's input size, or a sequence of pictures of any size: paths, encoded
                 bytes, Pillow images, uint8 RGB arrays [H, W, 3]

        Returns unit descriptors float32 [N, dim] in the same order.
        Raises InputError for a picture that cannot be used, EngineError if the engine is closed.
        """
        if isinstance(images, np.ndarray) and images.ndim == 4:
            return self._embed_pixels(images)
        if isinstance(images, (str, bytes, Path, np.ndarray)):
            raise InputError("embed takes several pictures; pass a list, or uint8 [N, height, width, 3].")
        with self._call():
            pixels = [preprocess(image, self.spec) for image in images]
            return self._embed_pixels(np.stack(pixels) if pixels else np.empty((0, *self._image_shape), np.uint8))

    def submit(
        self,
        image: Picture,
        timeout_ms: float | None = None,
        on_done: Callable[[Future[Descriptor]], object] | None = None,
    ) -> Submitted:
        """Describe one picture in a batch with pictures of other threads, as ``load``'s ``batching`` says.

        image        uint8 RGB [H, W, 3] at the spec's input size, or any picture that ``embed`` takes, which a pool of
                     threads decodes. The engine reads an array or a Pillow image later: do not change, close or use it
                     elsewhere until the future is done
        timeout_ms   milliseconds from now after which the engine drops the picture; None: no limit
        on_done      a callback of the future. A callback that the caller adds later runs in the caller's thread if the
                     future is done already; ``on_done`` never does

        Returns a future at once. Its result is the unit descriptor, float32 [dim], and ``seconds`` says how long the
        picture spent in each stage: "decode", "queue" and "compute". The future raises InputError for a
        picture that cannot be used. It raises DeadlineExceeded if the timeout has passed when a thread takes the
        picture to decode or compute it. Cancelling the future frees the picture's place in the queue. Callbacks of the
        future run in a thread of the engine, which waits for them.

        Raises Overloaded, before it decodes anything, if ``max_queue`` pictures are in the queue; EngineError if the
        engine is closed; InputError for a timeout that is not above 0.
        """
        pixels = image if is_ready(image, self.spec) else partial(preprocess, image, self.spec)
        return self._queue().submit(pixels, timeout_ms, on_done)

    async def aembed(self, image: Picture, timeout_ms: float | None = None) -> Descriptor:
        """``submit`` for asyncio. The event loop never decodes or blocks; cancelling the task cancels the request."""
        return await asyncio.wrap_future(self.submit(image, timeout_ms))

    def embed_into(self, images: Any, descriptors: Any, *, rows: int | None = None, stream: Any = None) -> None:
        """Read pixels from the caller's memory and write descriptors to it, without a copy on the CPU.

        images        uint8 RGB [N, H, W, 3] at the spec's input size, C-contiguous
        descriptors   float32 [N, dim], C-contiguous
        rows          N; needed if ``images`` is a bare address
        stream        for device memory: a stream of pycuda, torch, CuPy or cuda.core, or its handle. None: the streams
                      that the arrays name in ``__cuda_array_interface__``, else the legacy default stream

        In host memory, each array is a NumPy array, has DLPack or a buffer, or is an address as an integer. On CUDA,
        both arrays have ``__cuda_array_interface__`` or DLPack, or are device addresses with a ``stream``.

        On CUDA the call returns at once. The batch starts after all earlier work on ``stream`` and on the arrays' own
        streams. Later work on these streams starts after the batch; keep both arrays until then.

        Raises InputError for another shape, dtype or layout, or memory on another device; EngineError if the engine is
        closed.
        """
        self._check_open()
        rows = array_length(images) if rows is None else rows
        if stream is not None or on_device(images) or on_device(descriptors):
            if self._backend.streams is None:
                raise InputError("this engine runs on the CPU; pass arrays in host memory and no stream.")
            with self._call():
                self._backend.streams.run_on(stream, rows, images, descriptors)
            return
        pixels = host_array(images, (rows, *self._image_shape), np.uint8)
        self._run_into(pixels, host_array(descriptors, (rows, self.spec.dim), np.float32, writable=True))

    def embed_list(
        self,
        images: ImageList,
        batch_size: int | None = None,
        on_error: Callable[[int, InputError], None] | None = None,
        fast_decode: bool = False,
        decoder: str = "pillow",
        on_note: Callable[[str], None] | None = None,
    ) -> Generator[tuple[list[int], Descriptors], None, None]:
        """Yield (indices, unit descriptors float32 [n, dim]) of each batch, in list order.

        batch_size    pictures of a batch, ``max_batch`` at most. None: on CUDA ``max_batch``; on the CPU the batch that
                      ``autotune`` found fastest on this machine, else 8
        on_error      called with the index and the InputError of each picture that cannot be used; the picture is left
                      out. None: the first such picture raises its InputError, and later batches are dropped
        fast_decode   decode large JPEG files at a smaller size, see ``preprocess``
        decoder       what decodes JPEG files: "pillow" on the CPU, or "nvjpeg" on the GPU of an engine on CUDA. Pillow
                      decodes every file that nvJPEG does not take
        on_note       called at the end with one sentence that says how many pictures Pillow decoded in place of nvJPEG,
                      if it decoded any. None: ``warnings.warn``

        Raises InputError for nvJPEG without CUDA or with ``fast_decode``, MissingDependency without nvImageCodec,
        EngineError if nvJPEG does not decode on this machine.

        The engine computes as many batches at a time as its backend can, while threads decode the next batches. All
        these threads end before the iteration ends, raises or is closed.
        """
        if batch_size is not None and batch_size < 1:
            raise InputError(f"batch_size={batch_size} cannot be used; expected at least 1.")
        check_decoder(decoder, fast_decode)
        if decoder == "nvjpeg" and self.device != "cuda":
            raise InputError("nvJPEG decodes on a GPU, and this engine runs on the CPU; decode with pillow.")

        def described(batch: tuple[list[int], NDArray[np.uint8]]) -> tuple[list[int], Descriptors]:
            indices, pixels = batch
            return indices, self._embed_pixels(pixels)

        size, at_once = self._batch_size(batch_size), self._backend.concurrency
        if decoder == "nvjpeg":
            decoded = nvjpeg_batches(images, self.spec, size, self._decode_threads, on_error, on_note)
        else:
            decoded = batches(images, self.spec, size, self._decode_threads, on_error, fast_decode)
        # One batch more than the backend runs is ready, so no stream of the backend waits for this thread.
        with closing(decoded), closing(ahead(described, decoded, at_once, depth=at_once + 1)) as made:
            yield from made

    def stats(self) -> Stats:
        """What happened to the pictures of ``submit`` and ``aembed`` since the engine was loaded."""
        return self._scheduler.stats() if self._scheduler else Statistics().stats()

    def self_test(self) -> float:
        """Embed the golden pictures, and return the smallest cosine with the descriptors stored at build time.

        Raises EngineError for a cosine below 0.999.
        """
        images, expected = self._file.golden
        smallest = float(cosines(self._embed_pixels(images), expected).min())
        if not smallest >= SELF_TEST_COSINE:
            raise EngineError(
                f"{self._file.path} gives other descriptors than when it was built (cosine {smallest:.4f} < "
                f"{SELF_TEST_COSINE}); {repair(self.manifest)}."
            )
        return smallest

    @property
    def _image_shape(self) -> tuple[int, int, int]:
        return (*self.spec.input_size, 3)

    def _embed_pixels(self, images: NDArray[np.uint8]) -> Descriptors:
        height, width = self.spec.input_size
        if images.dtype != np.uint8 or images.shape[1:] != (height, width, 3):
            raise InputError(
                f"images are {images.dtype} {list(images.shape)}; expected uint8 [N, {height}, {width}, 3]."
            )
        descriptors = np.empty((len(images), self.spec.dim), np.float32)
        self._run_into(np.ascontiguousarray(images), descriptors)
        return descriptors

    def _run_into(self, images: NDArray[np.uint8], descriptors: Descriptors) -> None:
        # CUDA lanes cut the pictures into batches themselves, and overlap these batches.
        size = len(images) if self._backend.streams else self.max_batch
        with self._call():
            for start in range(0, len(images), max(size, 1)):
                part = slice(start, start + size)
                self._batches.run_into(images[part], descriptors[part])

    def _call(self) -> Calls:
        """A context manager; ``close`` waits for its end. Raises EngineError if the engine is closed or in a fork."""
        self._check_process()
        return self._calls

    def _queue(self) -> Scheduler:
        """The scheduler, made for the first submitted picture. The first picture to decode starts a decoder."""
        self._check_open()  # before the lock, which a fork may have copied locked
        with self._lock:
            self._check_open()
            if self._scheduler is None:
                batching, workers = self._batching, self._backend.concurrency
                self._scheduler = Scheduler(
                    self._backend.run,
                    workers=workers,
                    decoders=self._decode_threads or available_threads(),
                    policy=Policy(
                        max_batch=self._batch_size(batching.max_batch),
                        max_delay=batching.max_delay_ms / 1000,
                        enough=ENOUGH_ON_CUDA if self._backend.streams else workers,
                    ),
                    max_queue=batching.max_queue,
                    calls=self._calls,
                )
                weakref.finalize(self, self._scheduler.close)
            return self._scheduler

    def _batch_size(self, asked: int | None) -> int:
        """Pictures in a full batch: ``asked``, or for None the fastest batch on this machine; ``max_batch`` at most."""
        if asked is None and self._backend.streams:
            return self.max_batch
        tuned = setting_here(self._file.tunings, "throughput")
        return min(asked or (tuned.batch if tuned else CPU_BATCH), self.max_batch)

    def _check_open(self) -> None:
        self._calls.check()
        self._check_process()

    def _check_process(self) -> None:
        if os.getpid() != self._process:
            raise EngineError(
                f"{self._file.path} was loaded before this process was forked, and its threads stayed behind; "
                "load it in the new process."
            )

    def close(self, drain: bool = True) -> None:
        """Wait for running calls and submitted pictures, then free the engine. Does nothing in a forked process.

        Later calls of other threads raise EngineError. Inside a call of the engine or a callback of a future, ``close``
        returns at once, and the last running call frees the engine.

        drain   False: cancel submitted pictures that are not being computed yet
        """
        if os.getpid() != self._process:
            return
        with self._lock:  # no thread makes a scheduler after this
            was_open = self._calls.refuse()
        if self._scheduler:
            self._scheduler.close(drain)
        self._calls.close()
        if was_open:
            log.info("closed %s", self._file.path)

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _free(calls: Calls) -> None:
    """Free an engine that nobody closed, when it is collected or the process ends."""
    try:
        calls.close()
    except EngineError as error:  # nobody could catch it here
        log.warning("an engine was dropped without close, and freeing it failed: %s", error)


def load(
    path: str | Path,
    device: str | None = None,
    threads: int | None = None,
    streams: int | None = None,
    batching: Batching | None = None,
    warm_up: bool = True,
) -> Engine:
    """Open a .cgd engine.

    device    "cpu" or "cuda"; None: the device that the engine was built for. ``load`` never falls back to another
    threads   CPU threads that compute, and threads that decode for ``embed_list`` and for ``submit``. None: the threads
              that ``autotune`` found fastest for one picture on this machine, else one for each core that this process
              may use (affinity and cgroup quota); one for each such core decodes
    streams   on CUDA, execution contexts whose batches overlap, None: 2. On the CPU, parts of a batch, or batches of
              ``submit``, that run at the same time and share ``threads``, None: 1
    batching  how ``submit`` gathers pictures
    warm_up   on CUDA, run every batch size on every buffer set before returning, so that no request waits for an
              execution context, a CUDA graph or a search for algorithms. False: the first batch of each size waits.
              Without effect on the CPU

    A TF32 engine runs on CUDA only. Where this CPU differs from the CPU that built an INT8 engine, ``load`` runs the
    engine's self-test.

    Raises InputError for an argument out of range; EngineError if the file is damaged, not for this machine, or needs
    more memory than the GPU has; MissingDependency if the library of its backend is not installed.

    Example:

        import numpy as np
        from cgd_deploy import Batching, load

        engine = load("model.cgd", device="cpu", threads=2, batching=Batching(max_delay_ms=1.0))
        height, width = engine.spec.input_size
        future = engine.submit(np.zeros((height, width, 3), np.uint8), timeout_ms=60_000)
        descriptor = future.result()  # float32 [dim]
        engine.close()
    """
    return open_engine(read_engine(path), device, threads, streams, batching, warm_up)


def open_engine(
    file: EngineFile,
    device: str | None = None,
    threads: int | None = None,
    streams: int | None = None,
    batching: Batching | None = None,
    warm_up: bool = True,
) -> Engine:
    """``load`` for a file that the caller has read, for example to look at its manifest first."""
    path = file.path
    for name, value in (("threads", threads), ("streams", streams)):
        if value is not None and value < 1:
            raise InputError(f"{name}={value} cannot be used; expected at least 1.")
    backend, precision = file.manifest.backend, file.manifest.precision
    if backend not in BACKENDS:
        raise EngineError(f"{path} is for backend {backend!r}; this release has {', '.join(BACKENDS)}.")
    device = device or default_device(backend, precision)
    if device not in BACKENDS[backend]:
        raise EngineError(
            f"{path} is for {backend}, which runs on {' or '.join(BACKENDS[backend])}, not on {device!r}; "
            "build an engine with `cgd-deploy build-engine --backend onnxruntime`, which runs on cpu and cuda."
        )
    if device == "cpu" and precision is Precision.TF32:
        raise EngineError(
            f"{path} is TF32, which a CPU cannot compute; load it with device cuda, or build an engine for the CPU "
            f"with `cgd-deploy build-engine --fp32 --backend {backend}`."
        )
    if device == "cuda" and backend == "onnxruntime" and precision is Precision.INT8:
        raise EngineError(
            f"{path} is INT8 for the CPU, and ONNX Runtime computes such a model in float on CUDA; build one with "
            "`cgd-deploy build-engine --int8 --backend tensorrt`."
        )
    check_compatibility(path, file.manifest)
    decode_threads = threads
    options = model_settings(file.manifest, device)
    if device == "cuda":
        streams, parts = streams or LANES, 1
        options["max_batch"] = file.manifest.profile["max"]
    else:
        if file.untuned:
            log.warning("%s", file.untuned)
        tuned = setting_here(file.tunings, "latency")
        threads = threads or (tuned.threads if tuned else available_threads())
        streams = parts = streams or 1
        if streams > threads:
            raise InputError(f"streams={streams} cannot share threads={threads}; ask for no more streams than threads.")
    started = perf_counter()
    runner = BACKENDS[backend][device](file.payload, threads=threads, streams=streams, **options)
    log.debug("%s: %s took %.0f ms to load the model", path, backend, 1000 * (perf_counter() - started))
    if warm_up:
        _warm_up(path, runner)
    engine = Engine(file, runner, parts, batching, decode_threads)
    if device == "cpu" and not is_proven_here(file.manifest):
        _replay(engine)
    space_id = file.manifest.spec.space_id
    settings = f"device={device} threads={threads or 'default'} streams={streams}"
    log.info("loaded %s: backend=%s precision=%s %s space_id=%s", path, backend, precision.value, settings, space_id)
    return engine


def _warm_up(path: Path, runner: Backend) -> None:
    """On CUDA, run every batch size once. Close the backend if that fails."""
    if runner.streams is None:
        return
    started = perf_counter()
    try:
        runner.streams.warm_up()
    except BaseException:
        runner.close()
        raise
    log.debug("%s: warm-up took %.0f ms", path, 1000 * (perf_counter() - started))


def _replay(engine: Engine) -> None:
    """Run the self-test. Close the engine and raise EngineError if it fails."""
    try:
        engine.self_test()
    except EngineError:
        engine.close()
        raise
