"""What the C functions do, on the one runtime: handles are numbers, errors a status and one sentence in C's memory."""

from __future__ import annotations

import atexit
import os
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from itertools import count
from threading import Lock
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ...errors import CgdError, EngineError, InputError, MissingDependency, Overloaded, SpecError
from ...limits import parse_limit, set_limits
from ...pictures.preprocess import Picture, preprocess
from ...runtime.descriptors import Descriptor, Descriptors
from ...runtime.engine import Engine, load
from ...runtime.scheduler import Batching
from ...search.index import Index, read_index
from ...search.retrieval import Indices, neighbours

T = TypeVar("T")

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
_indices: dict[int, Index] = {}
_numbers = count(1)
_limits_lock = Lock()


def serve(ffi: Any, lib: Any) -> None:
    """Define the functions that cgd.c calls; each returns a status plus one."""

    def floats(address: Any, rows: int, columns: int, stride: int = 0) -> NDArray[np.float32]:
        """A view of C's floats [rows, columns]."""
        stride = stride or 4 * columns
        if not rows:
            return np.empty((0, columns), np.float32)
        flat = np.frombuffer(ffi.buffer(address, (rows - 1) * stride + 4 * columns), np.float32)
        return np.lib.stride_tricks.as_strided(flat, (rows, columns), (stride, 4))

    def text(address: Any) -> str:
        return str(ffi.string(address).decode(errors="replace"))

    def pixels(image: Any) -> NDArray[np.uint8]:
        """A view of an image's pixels, RGB [height, width, 3]."""
        shape, strides = (image.height, image.width, 3), (image.stride, 3, 1)
        flat = np.frombuffer(ffi.buffer(image.data, (image.height - 1) * image.stride + 3 * image.width), np.uint8)
        pixels = np.lib.stride_tricks.as_strided(flat, shape, strides)
        return pixels[..., ::-1] if image.format == lib.CGD_BGR8 else pixels

    def strings(texts: Sequence[str]) -> Any:
        """An array of C strings in one block of memory, which C frees."""
        encoded = [_c_string(text) for text in texts]
        starts = np.cumsum([0, *map(len, encoded)], dtype=np.uintp)
        table = len(encoded) * starts.itemsize
        block = lib.malloc(table + int(starts[-1]))
        if not block:
            raise MemoryError("there is no memory left.")
        addresses = starts[:-1] + int(ffi.cast("uintptr_t", block)) + table
        content = addresses.tobytes() + b"".join(encoded)
        ffi.memmove(block, content, len(content))
        return ffi.cast("const char **", block)

    def write_found(found: Indices, products: Descriptors, indices: Any, scores: Any) -> None:
        if found.size:
            np.frombuffer(ffi.buffer(indices, found.size * 8), np.uint64)[:] = found.reshape(-1)
            floats(scores, *found.shape)[:] = products

    def function(body: Callable[..., None], bad_input: str = "CGD_BAD_INPUT") -> None:
        """Define ``body`` for C; an InputError has the status ``bad_input``."""
        statuses: dict[type[Exception], str] = {InputError: bad_input, **STATUSES}

        def call(*arguments: Any) -> int:
            *given, message = arguments
            try:
                body(*given)
            except Exception as error:
                status = next(name for kind, name in statuses.items() if isinstance(error, kind))
                if not isinstance(error, CgdError):
                    traceback.print_exc()
                sentence = " ".join(str(error).split()) or type(error).__name__
                encoded = sentence.encode(errors="replace")[: lib.CGD_MESSAGE - 1] + b"\0"
                ffi.memmove(message, encoded, len(encoded))
                return int(getattr(lib, status)) + 1
            return int(lib.CGD_OK) + 1

        ffi.def_extern(name=f"cgdpy_{body.__name__}")(call)

    @function
    def open(path: Any, options: Any, number: Any, facts: Any) -> None:
        engine = load(
            os.fsdecode(ffi.string(path)),
            device=text(options.device) if options.device else None,
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
        shut_down_first()

    @function
    def close(number: int) -> None:
        engine = _opened(_engines, number)
        del _engines[number]
        engine.close()

    @function
    def self_test(number: int, cosine: Any) -> None:
        cosine[0] = _opened(_engines, number).self_test()

    @function
    def embed(number: int, images: Any, count: int, out: Any) -> None:
        engine = _opened(_engines, number)
        _embed(engine, [pixels(images[i]) for i in range(count)], floats(out, count, engine.spec.dim))

    @function
    def embed_encoded(number: int, files: Any, sizes: Any, count: int, out: Any) -> None:
        engine = _opened(_engines, number)
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
        found, products = neighbours(
            floats(queries, query_count, dim, query_stride), floats(gallery, gallery_count, dim, gallery_stride), k
        )
        write_found(found, products, indices, scores)

    @partial(function, bad_input="CGD_INVALID_ARGUMENT")
    def set_limit(name: Any, value: Any) -> None:
        with _limits_lock:
            set_limits(**parse_limit(f"{text(name)}={text(value)}"))

    @partial(function, bad_input="CGD_BAD_INDEX")
    def index_open(path: Any, number: Any, facts: Any) -> None:
        index = read_index(os.fsdecode(ffi.string(path)))
        facts.size, facts.dim = len(index.paths), index.compact.dim
        facts.texts = strings([index.space_id, *index.paths])
        number[0] = next(_numbers)
        _indices[number[0]] = index

    @function
    def index_close(number: int) -> None:
        _opened(_indices, number)
        del _indices[number]

    @partial(function, bad_input="CGD_BAD_INDEX")
    def index_search(number: int, engine: int, queries: Any, count: int, k: int, indices: Any, scores: Any) -> None:
        made_by = _opened(_engines, engine)
        found, cosines = _opened(_indices, number).search(made_by, floats(queries, count, made_by.spec.dim), k)
        write_found(found, cosines, indices, scores)

    def shut_down_first() -> None:
        """Where the host has a Python: when that ends, wait for running calls before engines are freed."""
        atexit.unregister(lib.shut_down)
        atexit.register(lib.shut_down)

    shut_down_first()


def _c_string(text: str) -> bytes:
    """Raises InputError for a text that C or the file system cannot hold."""
    with suppress(UnicodeEncodeError):
        encoded = os.fsencode(text)
        if b"\0" not in encoded:
            return encoded + b"\0"
    raise InputError(f"the index holds {text!a:.200}, which is no path or name; make the index again.")


def _embed(engine: Engine, pictures: Sequence[Picture], descriptors: NDArray[np.float32]) -> None:
    """One picture joins those of other threads; several are a batch already."""
    if len(pictures) == 1:
        descriptors[0] = _result(engine.submit(pictures[0]))
    elif pictures:
        engine.embed_into(np.stack([preprocess(picture, engine.spec) for picture in pictures]), descriptors)


def _result(future: Future[Descriptor]) -> Descriptor:
    """The result. An interrupt is raised once the future is done, as until then the engine reads pixels of C's.

    Cancelling would not do: a thread may be decoding them.
    """
    try:
        return future.result()
    except BaseException:
        if not future.done():
            _result(future)
        raise


def _opened(things: dict[int, T], number: int) -> T:
    """The engine or index of a handle. Raises EngineError if another thread has closed it meanwhile."""
    try:
        return things[number]
    except KeyError:
        raise EngineError("the engine or index was closed by another thread during this call; open it again.") from None
