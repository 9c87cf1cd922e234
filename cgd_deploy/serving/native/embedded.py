"""The Python side of the C functions: an engine or index is a number, an error is a status and one sentence."""

from __future__ import annotations

import atexit
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from functools import partial
from itertools import count
from threading import Lock
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ...errors import CgdError, DeadlineExceeded, EngineError, InputError, MissingDependency, Overloaded, SpecError
from ...limits import parse_limit, set_limits
from ...pictures.preprocess import Picture, is_ready, preprocess
from ...runtime.descriptors import Descriptor
from ...runtime.engine import Engine, load
from ...runtime.scheduler import Batching
from ...search.index import Index, read_index
from ...search.retrieval import neighbours
from .hostlog import HostLog
from .memory import Memory

T = TypeVar("T")

STATUSES: dict[type[BaseException], str] = {
    DeadlineExceeded: "CGD_TIMED_OUT",
    Overloaded: "CGD_OVERLOADED",
    MissingDependency: "CGD_MISSING_DEPENDENCY",
    EngineError: "CGD_BAD_ENGINE",
    SpecError: "CGD_BAD_ENGINE",
    CgdError: "CGD_BAD_INPUT",
    BaseException: "CGD_INTERNAL",
}
"""Status by error; the first class that fits counts. CGD_INTERNAL leaves a traceback on stderr."""

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
    functions = Functions(memory, lib)
    for name in [name for name in vars(Functions) if not name.startswith("_")]:
        ffi.def_extern(name=f"inside_{name}")(partial(_call, getattr(functions, name), name, memory, lib))


def _call(body: Callable[..., None], name: str, memory: Memory, lib: Any, *arguments: Any) -> int:
    """Call ``body`` with C's arguments but the last, a buffer that gets the sentence of an error."""
    *given, message = arguments
    try:
        body(*given)
    except Exception as error:
        status, sentence = _told(error, name)
        memory.write_message(message, sentence)
        return int(getattr(lib, status)) + 1
    return int(lib.CGD_OK) + 1


def _told(error: BaseException, function: str) -> tuple[str, str]:
    """The name of a status and one sentence."""
    status = next(status for kind, status in STATUSES.items() if isinstance(error, kind))
    if isinstance(error, InputError):
        status = BAD_INPUT.get(function, status)
    if status == "CGD_INTERNAL":
        traceback.print_exception(error)
    return status, " ".join(str(error).split()) or type(error).__name__


class Functions:
    """The functions of inside.h, by their names without "inside_" and without the message.

    lib   C's constants and the functions of build_embedded.FOR_PYTHON
    """

    def __init__(self, memory: Memory, lib: Any) -> None:
        self._memory = memory
        self._lib = lib
        self._shut_down: Callable[[], None] = lib.shut_down
        self._pending: dict[Any, Future[Descriptor]] = {}
        self._log = HostLog()
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

    def submit(self, number: int, image: Any, wanted: Any) -> None:
        engine = _opened(_engines, number)
        pixels = self._memory.pixels(image)
        # A decoder reads on after its picture was cancelled, when C may free the pixels.
        self._submit(engine, pixels if is_ready(pixels, engine.spec) else pixels.copy(), wanted)

    def submit_encoded(self, number: int, file: Any, size: int, wanted: Any) -> None:
        self._submit(_opened(_engines, number), self._memory.content(file, size), wanted)

    def cancel(self, ticket: Any) -> None:
        if future := self._pending.get(ticket):
            future.cancel()

    def stats(self, number: int, stats: Any) -> None:
        self._memory.write_stats(stats, _opened(_engines, number).stats())

    def set_log(self, log: Any, context: Any, least: int) -> None:
        self._log.send_to(partial(log, context) if log else None, least)

    def search(self, queries: Any, gallery: Any, dim: int, k: int, found: Any) -> None:
        indices, scores = neighbours(self._memory.rows(queries, dim), self._memory.rows(gallery, dim), k)
        self._memory.write_found(found, indices, scores)

    def set_limit(self, name: Any, value: Any) -> None:
        with _limits_lock:
            set_limits(**parse_limit(f"{self._memory.text(name)}={self._memory.text(value)}"))

    def index_open(self, path: Any, number: Any, facts: Any) -> None:
        index = read_index(self._memory.path(path), exact=True)
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

    def _submit(self, engine: Engine, picture: Picture, wanted: Any) -> None:
        ticket, row = wanted.ticket, self._memory.floats(wanted.out, 1, engine.spec.dim)[0]
        future = engine.submit(picture, wanted.timeout_ms or None, partial(self._finish, ticket, row))
        self._pending[ticket] = future
        if future.done():  # perhaps before it was noted
            self._pending.pop(ticket, None)

    def _finish(self, ticket: Any, row: Descriptor, future: Future[Descriptor]) -> None:
        """Write the descriptor, and tell C that the picture is done."""
        status, sentence = "CGD_OK", ""
        try:
            row[:] = future.result()
        except CancelledError:
            status, sentence = "CGD_CANCELLED", "the caller freed the ticket before the image was computed."
        except BaseException as error:
            status, sentence = _told(error, "submit")
        self._pending.pop(ticket, None)
        self._lib.finish_ticket(ticket, getattr(self._lib, status), sentence.encode(errors="replace"))

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
