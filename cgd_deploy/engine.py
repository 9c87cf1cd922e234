"""Engine: pictures in, unit descriptors out, on the backend that its file was built for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from .backends import BACKENDS, DEVICES, Backend
from .backends.parallel import Parallel
from .compatibility import check_compatibility
from .enginefile import EngineFile, Manifest, read_engine
from .errors import EngineError, InputError
from .hardware import available_threads
from .images import ImageList
from .preprocess import Picture, batches, preprocess
from .retrieval import Descriptors, cosines
from .spec import ModelSpec, Precision
from .streams import LANES
from .tuning import setting_here

SELF_TEST_COSINE = 0.999


class Engine:
    """A loaded .cgd file; make one with ``load``. A context manager, else call ``close``; threads may share it."""

    def __init__(self, file: EngineFile, backend: Backend) -> None:
        self._file = file
        self._backend = backend

    @property
    def manifest(self) -> Manifest:
        return self._file.manifest

    @property
    def spec(self) -> ModelSpec:
        return self.manifest.spec

    @property
    def precision(self) -> Precision:
        return self.manifest.precision

    @property
    def max_batch(self) -> int:
        return self.manifest.profile["max"]

    def embed(self, images: NDArray[np.uint8] | Sequence[Picture]) -> Descriptors:
        """Describe pictures.

        images   uint8 RGB [N, H, W, 3] already at the spec's input size, or a sequence of anything that
                 ``preprocess`` takes: paths, encoded bytes, Pillow images, RGB arrays of any size
        Returns unit descriptors float32 [N, dim] in the same order.
        Raises InputError for pictures that cannot be used.
        """
        if isinstance(images, np.ndarray) and images.ndim == 4:
            return self._embed_pixels(images)
        if isinstance(images, (str, bytes, Path, np.ndarray)):
            raise InputError("embed takes several pictures; pass a list, or uint8 [N, height, width, 3].")
        pixels = [preprocess(image, self.spec) for image in images]
        height, width = self.spec.input_size
        return self._embed_pixels(np.stack(pixels) if pixels else np.empty((0, height, width, 3), np.uint8))

    def embed_list(
        self,
        images: ImageList,
        batch_size: int = 8,
        on_error: Callable[[int, InputError], None] | None = None,
        fast_decode: bool = False,
    ) -> Iterator[tuple[list[int], Descriptors]]:
        """Yield (indices, descriptors) batch by batch, decoding ahead; the rest as in ``preprocess.batches``."""
        size = min(batch_size, self.max_batch)
        for indices, pixels in batches(images, self.spec, size, on_error=on_error, fast_decode=fast_decode):
            yield indices, self._backend.run(pixels)

    def self_test(self) -> float:
        """Replay the golden pictures and return the smallest cosine with the descriptors stored at build time.

        Raises EngineError below 0.999.
        """
        images, expected = self._file.golden
        smallest = float(cosines(self._embed_pixels(images), expected).min())
        if not smallest >= SELF_TEST_COSINE:
            raise EngineError(
                f"{self._file.path} gives other descriptors than when it was built (cosine {smallest:.4f} < "
                f"{SELF_TEST_COSINE}); build it again on this machine."
            )
        return smallest

    def _embed_pixels(self, images: NDArray[np.uint8]) -> Descriptors:
        height, width = self.spec.input_size
        if images.dtype != np.uint8 or images.shape[1:] != (height, width, 3):
            raise InputError(
                f"images are {images.dtype} {list(images.shape)}; expected uint8 [N, {height}, {width}, 3]."
            )
        images = np.ascontiguousarray(images)
        starts = range(0, len(images), self.max_batch)
        parts = [self._backend.run(images[start : start + self.max_batch]) for start in starts]
        return np.concatenate(parts) if parts else np.empty((0, self.spec.dim), np.float32)

    def close(self) -> None:
        self._backend.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def load(path: str | Path, device: str | None = None, threads: int | None = None, streams: int | None = None) -> Engine:
    """Open a .cgd engine.

    device    "cpu" or "cuda"; None: what the engine was built for. Never another one in silence.
    threads   CPU threads; None: what ``autotune`` found to be fastest for one picture on this machine, else every core
              this process may use (affinity and cgroup quota)
    streams   on CUDA, execution contexts whose batches overlap, None: 2; on the CPU, parts of a batch that run at the
              same time and share the threads, None: 1

    Raises EngineError if the file is damaged or not for this machine, MissingDependency without its backend.
    """
    return open_engine(read_engine(path), device, threads, streams)


def open_engine(
    file: EngineFile, device: str | None = None, threads: int | None = None, streams: int | None = None
) -> Engine:
    """``load`` for a file that has been read, so that what its manifest says can be looked at before."""
    path = file.path
    for name, value in (("threads", threads), ("streams", streams)):
        if value is not None and value < 1:
            raise InputError(f"{name}={value} cannot be used; expected at least 1.")
    backend = file.manifest.backend
    if backend not in BACKENDS:
        raise EngineError(f"{path} is for backend {backend!r}; this release has {', '.join(BACKENDS)}.")
    device = device or DEVICES[backend][0]
    if device not in DEVICES[backend]:
        raise EngineError(
            f"{path} is for {backend}, which runs on {' or '.join(DEVICES[backend])}, not on {device!r}; "
            "build an engine with `cgd-deploy build-engine --backend onnxruntime`, which runs on cpu and cuda."
        )
    check_compatibility(path, file.manifest)
    if device == "cuda":
        largest = file.manifest.profile["max"]
        runner = BACKENDS[backend](
            file.payload, device=device, threads=threads, streams=streams or LANES, max_batch=largest
        )
        return Engine(file, runner)
    tuned = setting_here(file.manifest, "latency")
    threads = threads or (tuned.threads if tuned else available_threads())
    streams = streams or 1
    if streams > threads:
        raise InputError(f"streams={streams} cannot share threads={threads}; ask for no more streams than threads.")
    runner = BACKENDS[backend](file.payload, device=device, threads=threads, streams=streams)
    return Engine(file, runner if streams == 1 else Parallel(runner, streams))
