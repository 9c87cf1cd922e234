"""What the C functions do, on the one runtime: handles are numbers, errors a status and one sentence in C's memory."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..engine import Engine, load
from ..errors import CgdError, EngineError, MissingDependency, Overloaded, SpecError
from ..preprocess import Picture, preprocess
from ..retrieval import neighbours
from ..scheduler import Batching

STATUSES: dict[type[Exception], str] = {
    Overloaded: "CGD_OVERLOADED",
    MissingDependency: "CGD_MISSING_DEPENDENCY",
    EngineError: "CGD_BAD_ENGINE",
    SpecError: "CGD_BAD_ENGINE",
    CgdError: "CGD_BAD_INPUT",
    Exception: "CGD_INTERNAL",
}
"""The first that an error is one of; only what is not a CgdError leaves a traceback on stderr."""

_engines: dict[int, Engine] = {}
_numbers = count(1)


def serve(ffi: Any, lib: Any) -> None:
    """Define the functions that cgd.c calls; each returns a status plus one."""

    def floats(address: Any, rows: int, columns: int, stride: int = 0) -> NDArray[np.float32]:
        """A view of C's floats [rows, columns]."""
        stride = stride or 4 * columns
        if not rows:
            return np.empty((0, columns), np.float32)
        flat = np.frombuffer(ffi.buffer(address, (rows - 1) * stride + 4 * columns), np.float32)
        return np.lib.stride_tricks.as_strided(flat, (rows, columns), (stride, 4))

    def pixels(image: Any) -> NDArray[np.uint8]:
        """A view of an image's pixels, RGB [height, width, 3]."""
        shape, strides = (image.height, image.width, 3), (image.stride, 3, 1)
        flat = np.frombuffer(ffi.buffer(image.data, (image.height - 1) * image.stride + 3 * image.width), np.uint8)
        pixels = np.lib.stride_tricks.as_strided(flat, shape, strides)
        return pixels[..., ::-1] if image.format == lib.CGD_BGR8 else pixels

    def function(body: Callable[..., None]) -> None:
        def call(*arguments: Any) -> int:
            *given, message = arguments
            try:
                body(*given)
            except Exception as error:
                status = next(name for kind, name in STATUSES.items() if isinstance(error, kind))
                if not isinstance(error, CgdError):
                    traceback.print_exc()
                sentence = " ".join(str(error).split()) or type(error).__name__
                text = sentence.encode(errors="replace")[: lib.CGD_MESSAGE - 1] + b"\0"
                ffi.memmove(message, text, len(text))
                return int(getattr(lib, status)) + 1
            return int(lib.CGD_OK) + 1

        ffi.def_extern(name=f"cgdpy_{body.__name__}")(call)

    @function
    def open(path: Any, options: Any, number: Any, facts: Any) -> None:
        engine = load(
            ffi.string(path).decode(sys.getfilesystemencoding(), "surrogateescape"),
            device=ffi.string(options.device).decode() if options.device else None,
            threads=options.threads or None,
            streams=options.streams or None,
            batching=Batching(
                max_batch=options.max_batch or None,
                max_queue=options.max_queue,
                max_delay_ms=options.max_delay_ms,
            ),
        )
        facts.dim = engine.spec.dim
        facts.height, facts.width = engine.spec.input_size
        facts.space_id = engine.spec.space_id.encode()
        number[0] = next(_numbers)
        _engines[number[0]] = engine

    @function
    def close(number: int) -> None:
        _engines.pop(number).close()

    @function
    def self_test(number: int, cosine: Any) -> None:
        cosine[0] = _engines[number].self_test()

    @function
    def embed(number: int, images: Any, count: int, out: Any) -> None:
        engine = _engines[number]
        _embed(engine, [pixels(images[i]) for i in range(count)], floats(out, count, engine.spec.dim))

    @function
    def embed_encoded(number: int, files: Any, sizes: Any, count: int, out: Any) -> None:
        engine = _engines[number]
        pictures = [bytes(ffi.buffer(files[i], sizes[i])) for i in range(count)]
        _embed(engine, pictures, floats(out, count, engine.spec.dim))

    @function
    def search(
        queries: Any,
        query_count: int,
        query_stride: int,
        gallery: Any,
        gallery_count: int,
        gallery_stride: int,
        dim: int,
        k: int,
        indices: Any,
        scores: Any,
    ) -> None:
        if not query_count:
            return
        found, products = neighbours(
            floats(queries, query_count, dim, query_stride), floats(gallery, gallery_count, dim, gallery_stride), k
        )
        np.frombuffer(ffi.buffer(indices, found.size * 8), np.uint64)[:] = found.reshape(-1)
        floats(scores, query_count, k)[:] = products


def _embed(engine: Engine, pictures: Sequence[Picture], descriptors: NDArray[np.float32]) -> None:
    """One picture joins those of other threads; several are a batch already."""
    if len(pictures) == 1:
        descriptors[0] = engine.submit(pictures[0]).result()
    elif pictures:
        engine.embed_into(np.stack([preprocess(picture, engine.spec) for picture in pictures]), descriptors)
