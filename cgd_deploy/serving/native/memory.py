"""A C program's memory, read and written in place through cffi. Knows no engine and no index."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from math import inf
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError
from ...runtime.descriptors import Descriptors
from ...runtime.statistics import Stats
from ...search.retrieval import Indices


class Memory:
    """C's memory. A view is valid until the C function returns.

    ffi, lib   cffi's two objects of the compiled library; ``lib`` has C's constants and functions
    """

    def __init__(self, ffi: Any, lib: Any) -> None:
        self._ffi = ffi
        self._lib = lib

    def text(self, address: Any) -> str:
        return str(self._ffi.string(address).decode(errors="replace"))

    def path(self, address: Any) -> str:
        return os.fsdecode(self._ffi.string(address))

    def content(self, address: Any, size: int) -> bytes:
        return bytes(self._ffi.buffer(address, size))

    def floats(self, address: Any, rows: int, columns: int, stride: int = 0) -> NDArray[np.float32]:
        """A view of floats [rows, columns]; ``stride`` is the bytes from row to row, 0 for rows without a gap."""
        stride = stride or 4 * columns
        if not rows:
            return np.empty((0, columns), np.float32)
        flat = np.frombuffer(self._ffi.buffer(address, (rows - 1) * stride + 4 * columns), np.float32)
        return np.lib.stride_tricks.as_strided(flat, (rows, columns), (stride, 4))

    def rows(self, rows: Any, dim: int) -> NDArray[np.float32]:
        """A view of a ``cgd_rows``: float32 [count, dim]."""
        return self.floats(rows.values, rows.count, dim, rows.stride)

    def pixels(self, image: Any) -> NDArray[np.uint8]:
        """A view of a ``cgd_image``: uint8 [height, width, 3] in RGB."""
        shape, strides = (image.height, image.width, 3), (image.stride, 3, 1)
        size = (image.height - 1) * image.stride + 3 * image.width
        flat = np.frombuffer(self._ffi.buffer(image.data, size), np.uint8)
        pixels = np.lib.stride_tricks.as_strided(flat, shape, strides)
        return pixels[..., ::-1] if image.format == self._lib.CGD_BGR8 else pixels

    def write_found(self, found: Any, indices: Indices, scores: Descriptors) -> None:
        """Write neighbours [queries, k] and their scores to the two arrays of a ``cgd_found``."""
        if indices.size:
            np.frombuffer(self._ffi.buffer(found.indices, indices.size * 8), np.uint64)[:] = indices.reshape(-1)
            self.floats(found.scores, *indices.shape)[:] = scores

    def write_stats(self, target: Any, stats: Stats) -> None:
        """Write all of ``stats`` to a ``cgd_stats``, which has more bins than its histograms need."""
        target.waiting, target.in_flight = stats.waiting, stats.in_flight
        for outcome, pictures in stats.pictures.items():
            setattr(target, {"bad_picture": "bad_input"}.get(outcome, outcome), pictures)
        histograms = {"batch_sizes": stats.batch_sizes} | {f"{stage}_seconds": h for stage, h in stats.seconds.items()}
        for name, histogram in histograms.items():
            bins = getattr(target, name)
            unused = self._lib.CGD_BINS - len(histogram.bounds)
            bins.bounds = [*histogram.bounds, *[inf] * unused]
            bins.counts[0 : len(histogram.counts)] = histogram.counts
            bins.total = histogram.total

    def write_message(self, message: Any, sentence: str) -> None:
        """Write ``sentence`` to a buffer of CGD_MESSAGE bytes, and cut off what does not fit."""
        encoded = sentence.encode(errors="replace")[: self._lib.CGD_MESSAGE - 1] + b"\0"
        self._ffi.memmove(message, encoded, len(encoded))

    def strings(self, texts: Sequence[str]) -> Any:
        """A new array of C strings in one block of memory, which C frees.

        Raises InputError for a text that C or the file system cannot hold.
        """
        encoded = [_c_string(text) for text in texts]
        starts = np.cumsum([0, *map(len, encoded)], dtype=np.uintp)
        table = len(encoded) * starts.itemsize
        block = self._lib.malloc(table + int(starts[-1]))
        if not block:
            raise MemoryError("there is no memory left.")
        addresses = starts[:-1] + int(self._ffi.cast("uintptr_t", block)) + table
        content = addresses.tobytes() + b"".join(encoded)
        self._ffi.memmove(block, content, len(content))
        return self._ffi.cast("const char **", block)


def _c_string(text: str) -> bytes:
    with suppress(UnicodeEncodeError):
        encoded = os.fsencode(text)
        if b"\0" not in encoded:
            return encoded + b"\0"
    raise InputError(f"the index holds {text!a:.200}, which is not a path or name; make the index again.")
