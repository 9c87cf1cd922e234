"""libcgd.so through ctypes: its structs, and a class with its functions. Serves both libraries."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cgd_deploy import load

RGB, BGR = 1, 2
BINS = 16
DONE = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p)
LOG = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p)


class Image(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("width", ctypes.c_uint32),
        ("height", ctypes.c_uint32),
        ("stride", ctypes.c_size_t),
        ("format", ctypes.c_int),
    )


class Options(ctypes.Structure):
    _fields_ = (
        ("size", ctypes.c_size_t),
        ("device", ctypes.c_char_p),
        *((name, ctypes.c_uint32) for name in ("threads", "streams", "max_batch", "max_queue")),
        ("max_delay_ms", ctypes.c_double),
    )


class Request(ctypes.Structure):
    _fields_ = (
        ("size", ctypes.c_size_t),
        ("timeout_ms", ctypes.c_double),
        ("done", DONE),
        ("context", ctypes.c_void_p),
    )


class Histogram(ctypes.Structure):
    _fields_ = (
        ("bounds", ctypes.c_double * BINS),
        ("counts", ctypes.c_uint64 * BINS),
        ("total", ctypes.c_double),
    )

    @property
    def count(self) -> int:
        return sum(self.counts)


OUTCOMES = ("described", "shed", "expired", "bad_input", "failed", "cancelled")
HISTOGRAMS = ("batch_sizes", "decode_seconds", "queue_seconds", "compute_seconds")


class Stats(ctypes.Structure):
    _fields_ = (
        ("size", ctypes.c_size_t),
        *((name, ctypes.c_uint64) for name in ("waiting", "in_flight", *OUTCOMES)),
        *((name, Histogram) for name in HISTOGRAMS),
    )


def image(pixels: np.ndarray, format: int = RGB) -> Image:
    """The C image of an array."""
    height, width, _ = pixels.shape
    made = Image(pixels.ctypes.data, width, height, pixels.strides[0], format)
    made.pixels = pixels  # C knows the address alone
    return made


def at(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


class Submitted:
    """A submitted image with all the memory that C needs.

    keep            False: without a ticket
    status, error   of the call
    out             the descriptor
    calls           the context, status and message of each call of ``done``
    """

    def __init__(
        self,
        library: Library,
        engine: ctypes.c_void_p,
        source: Image | bytes,
        on_done: Callable[[], object] | None = None,
        keep: bool = True,
        **fields: Any,
    ) -> None:
        self._library = library
        self._on_done = on_done
        self.source = source
        self.calls: list[tuple[int | None, str, str]] = []
        if on_done:
            fields["done"] = DONE(self._done)
        self.out = np.full(library.engine_dim(engine), 7, np.float32)
        self.ticket = ctypes.c_void_p()
        self.request = library.request(**fields)
        ticket = ctypes.byref(self.ticket) if keep else None
        common = (ctypes.byref(self.request), at(self.out), ctypes.c_size_t(self.out.size), ticket)
        if isinstance(source, Image):
            code = library.submit(engine, ctypes.byref(source), *common)
        else:
            code = library.submit_encoded(engine, source, ctypes.c_size_t(len(source)), *common)
        self.status, self.error = library.status(code), library.error

    def _done(self, context: int | None, status: int, message: bytes) -> None:
        assert self._on_done
        self.calls.append((context, self._library.status(status), message.decode()))
        self._on_done()

    def wait(self, milliseconds: float = -1) -> str:
        return self._library.status(self._library.ticket_wait(self.ticket, ctypes.c_double(milliseconds)))

    def free(self) -> None:
        self._library.ticket_free(self.ticket)


class Library:
    """libcgd.so in this process, which has a Python that the library may join."""

    def __init__(self, path: Path) -> None:
        self._library = ctypes.CDLL(str(path))
        for name in ("last_error", "status_string", "version", "engine_space_id", "index_space_id", "index_path"):
            getattr(self, name).restype = ctypes.c_char_p
        for name in ("engine_dim", "index_size", "index_dim"):
            getattr(self, name).restype = ctypes.c_size_t

    def __getattr__(self, name: str) -> Any:
        return getattr(self._library, f"cgd_{name}")

    def status(self, code: int) -> str:
        return self.status_string(code).decode()

    @property
    def error(self) -> str:
        return self.last_error().decode()

    def options(self, **fields: Any) -> Options:
        options = Options()
        self.options_init(ctypes.byref(options))
        return changed(options, **fields)

    def request(self, **fields: Any) -> Request:
        request = Request()
        self.request_init(ctypes.byref(request))
        return changed(request, **fields)

    def open(self, path: Path, **options: Any) -> tuple[str, ctypes.c_void_p]:
        engine, chosen = ctypes.c_void_p(), ctypes.byref(self.options(**options)) if options else None
        return self.status(self.engine_open(os.fsencode(path), chosen, ctypes.byref(engine))), engine

    @contextmanager
    def opened(self, path: Path) -> Iterator[ctypes.c_void_p]:
        status, engine = self.open(path)
        assert (status, self.error) == ("CGD_OK", "")
        yield engine
        self.engine_close(engine)

    def describe(self, engine: ctypes.c_void_p, images: list[Image], dim: int | None = None) -> tuple[str, np.ndarray]:
        out = np.full((len(images), self.engine_dim(engine) if dim is None else dim), 7, np.float32)
        array = (Image * len(images))(*images)
        code = self.embed(engine, array, ctypes.c_size_t(len(images)), at(out), ctypes.c_size_t(out.size))
        return self.status(code), out

    def describe_files(self, engine: ctypes.c_void_p, files: list[bytes]) -> tuple[str, np.ndarray]:
        out = np.full((len(files), self.engine_dim(engine)), 7, np.float32)
        data, sizes = (ctypes.c_char_p * len(files))(*files), (ctypes.c_size_t * len(files))(*map(len, files))
        count, capacity = ctypes.c_size_t(len(files)), ctypes.c_size_t(out.size)
        return self.status(self.embed_encoded(engine, data, sizes, count, at(out), capacity)), out

    def stats(self, engine: ctypes.c_void_p) -> Stats:
        stats = Stats(size=ctypes.sizeof(Stats))
        assert self.engine_stats(engine, ctypes.byref(stats)) == 0, self.error
        return stats

    def log_to(self, function: Callable[[int, str], object] | None, least: int = 2) -> object:
        """Returns the C function, which must live until the log goes elsewhere."""
        c_function = LOG(lambda _, level, line: function(level, line.decode())) if function else LOG()
        assert self.set_log(c_function, None, least) == 0, self.error
        return c_function

    def open_index(self, path: Path) -> tuple[str, ctypes.c_void_p]:
        index = ctypes.c_void_p()
        return self.status(self.index_open(os.fsencode(path), ctypes.byref(index))), index

    def search_index(self, index, engine, queries: np.ndarray, k: int) -> tuple[str, np.ndarray, np.ndarray]:
        indices, scores = np.zeros((len(queries), k), np.uint64), np.zeros((len(queries), k), np.float32)
        count, k_ = ctypes.c_size_t(len(queries)), ctypes.c_size_t(k)
        code = self.index_search(index, engine, at(queries), count, k_, at(indices), at(scores))
        return self.status(code), indices, scores


def changed(struct: Any, **fields: Any) -> Any:
    for name, value in fields.items():
        setattr(struct, name, value)
    return struct


@pytest.fixture(scope="module")
def library(prefix: Path) -> Library:
    return Library(prefix / "lib" / "libcgd.so")


@pytest.fixture(scope="session")
def native_engine(engines: dict[tuple[str, str], Path]) -> Path:
    """An engine that every implementation of the library runs."""
    return engines["openvino", "fp32"]


@pytest.fixture
def opened(library: Library, native_engine: Path) -> Iterator[ctypes.c_void_p]:
    with library.opened(native_engine) as engine:
        yield engine


@pytest.fixture
def expected(native_engine: Path) -> Iterator[Callable[..., np.ndarray]]:
    """Python's ``embed`` of the same engine."""
    with load(native_engine) as engine:
        yield engine.embed
