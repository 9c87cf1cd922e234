"""The Python side of the C functions: an engine or index is a number, an error is a status and one sentence."""

from __future__ import annotations

import atexit
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from itertools import count
from threading import Lock
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ...errors import CgdError, EngineError, InputError, MissingDependency, Overloaded, SpecError
from ...limits import parse_limit, set_limits
from ...pictures.preprocess import Picture, preprocess
from ...runtime.descriptors import Descriptor
from ...runtime.engine import Engine, load
from ...runtime.scheduler import Batching
from ...search.index import Index, read_index
from ...search.retrieval import neighbours
from .memory import Memory

T = TypeVar("T")

STATUSES: dict[type[Exception], str] = {
    Overloaded: "CGD_OVERLOADED",
    MissingDependency: "CGD_MISSING_DEPENDENCY",
    EngineError: "CGD_BAD_ENGINE",
    SpecError: "CGD_BAD_ENGINE",
    CgdError: "CGD_BAD_INPUT",
    Exception: "CGD_INTERNAL",
}
"""Status by error; the first class that fits counts. An error that is no CgdError leaves a traceback on stderr."""

BAD_INPUT = {
    "set_limit": "CGD_INVALID_ARGUMENT",
    "index_open": "CGD_BAD_INDEX",
    "index_search": "CGD_BAD_INDEX",
}
"""Status of an InputError, by function; CGD_BAD_INPUT for the other functions."""

_engines: dict[int, Engine] = {}
_indices: dict[int, Index] = {}
_numbers = count(1)
_limits_lock = Lock()


def serve(ffi: Any, lib: Any) -> None:
    """Define the functions that cgd.c calls, each a method of ``Functions``. A function returns a status plus one."""
    memory = Memory(ffi, lib)
    functions = Functions(memory, lib.shut_down)
    for name in [name for name in vars(Functions) if not name.startswith("_")]:
        ffi.def_extern(name=f"cgdpy_{name}")(partial(_call, getattr(functions, name), name, memory, lib))


def _call(body: Callable[..., None], name: str, memory: Memory, lib: Any, *arguments: Any) -> int:
    """Call ``body`` with C's arguments but the last, a buffer that gets the sentence of an error."""
    *given, message = arguments
    try:
        body(*given)
    except Exception as error:
        if not isinstance(error, CgdError):
            traceback.print_exc()
        memory.write_message(message, " ".join(str(error).split()) or type(error).__name__)
        return int(getattr(lib, _status(error, name))) + 1
    return int(lib.CGD_OK) + 1


def _status(error: Exception, function: str) -> str:
    if isinstance(error, InputError) and function in BAD_INPUT:
        return BAD_INPUT[function]
    return next(status for kind, status in STATUSES.items() if isinstance(error, kind))


class Functions:
    """The functions of install.FUNCTIONS, by their names there without "cgdpy_" and without the message.

    shut_down   C's function that waits for running calls and refuses later ones
    """

    def __init__(self, memory: Memory, shut_down: Callable[[], None]) -> None:
        self._memory = memory
        self._shut_down = shut_down
        self._shut_down_first()

    def open(self, path: Any, options: Any, number: Any, facts: Any) -> None:
        engine = load(
            self._memory.path(path),
            device=self._memory.text(options.device) if options.device else None,
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
        self._shut_down_first()

    def close(self, number: int) -> None:
        engine = _opened(_engines, number)
        del _engines[number]
        engine.close()

    def self_test(self, number: int, cosine: Any) -> None:
        cosine[0] = _opened(_engines, number).self_test()

    def embed(self, number: int, images: Any, count: int, out: Any) -> None:
        engine = _opened(_engines, number)
        pictures = [self._memory.pixels(images[i]) for i in range(count)]
        _embed(engine, pictures, self._memory.floats(out, count, engine.spec.dim))

    def embed_encoded(self, number: int, files: Any, sizes: Any, count: int, out: Any) -> None:
        engine = _opened(_engines, number)
        pictures = [self._memory.content(files[i], sizes[i]) for i in range(count)]
        _embed(engine, pictures, self._memory.floats(out, count, engine.spec.dim))

    def search(self, queries: Any, gallery: Any, dim: int, k: int, found: Any) -> None:
        indices, scores = neighbours(self._memory.rows(queries, dim), self._memory.rows(gallery, dim), k)
        self._memory.write_found(found, indices, scores)

    def set_limit(self, name: Any, value: Any) -> None:
        with _limits_lock:
            set_limits(**parse_limit(f"{self._memory.text(name)}={self._memory.text(value)}"))

    def index_open(self, path: Any, number: Any, facts: Any) -> None:
        index = read_index(self._memory.path(path))
        facts.size, facts.dim = len(index.paths), index.compact.dim
        facts.texts = self._memory.strings([index.space_id, *index.paths])
        number[0] = next(_numbers)
        _indices[number[0]] = index

    def index_close(self, number: int) -> None:
        _opened(_indices, number)
        del _indices[number]

    def index_search(self, number: int, engine: int, queries: Any, k: int, found: Any) -> None:
        made_by = _opened(_engines, engine)
        descriptors = self._memory.rows(queries, made_by.spec.dim)
        self._memory.write_found(found, *_opened(_indices, number).search(made_by, descriptors, k))

    def _shut_down_first(self) -> None:
        """Where the host has a Python: when that Python ends, wait for running calls before engines are freed."""
        atexit.unregister(self._shut_down)
        atexit.register(self._shut_down)


def _embed(engine: Engine, pictures: Sequence[Picture], descriptors: NDArray[np.float32]) -> None:
    """Describe ``pictures``; a single picture joins the pictures of other threads, several are a batch already."""
    if len(pictures) == 1:
        descriptors[0] = _result(engine.submit(pictures[0]))
    elif pictures:
        engine.embed_into(np.stack([preprocess(picture, engine.spec) for picture in pictures]), descriptors)


def _result(future: Future[Descriptor]) -> Descriptor:
    """Wait for the result. The engine reads C's pixels, so an interrupt is raised only once the future is done.

    Cancelling the future would not stop a thread that decodes the picture.
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
