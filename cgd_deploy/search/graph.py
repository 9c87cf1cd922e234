"""Approximate nearest neighbours: a graph of the gallery (HNSW, Malkov and Yashunin 2018), built and read by usearch.

The graph holds one bit of each value: whether it is above the gallery's mean. It proposes the rows whose bits differ
least from the bits of the query, and the float32 query ranks them, as in ``exact``. For 1,536 values, a search reads
192 bytes of a row and not 1,536, and the graph needs no copy of the rows. Knows no path of a picture.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, MissingDependency, install_line
from ..hardware.cpu import available_threads
from ..runtime.descriptors import Descriptor, Descriptors
from .compact import Compact, Stored
from .exact import Found, Rows, has_usearch, nearest, nothing, ranked
from .retrieval import CHUNK, NEIGHBOURS, Indices

BITS = "b1"
"""usearch's name of vectors of bits."""
LINKS, WIDTH_BUILDING, WIDTH_SEARCHING = 32, 128, 128
"""Links of a row, and how many candidates are kept while the graph is built and searched."""
PROPOSED = 128
"""Rows that the graph proposes for a query; more for k above 16. Among 3,136 pictures, the nearest 128 by bits hold
99.6 % of the ten nearest."""
ENOUGH = 4
"""Proposed rows for each wanted one; twice as many are asked for, because some may be removed."""
SAMPLE = 1000
"""Rows of which the mean is taken, and that ask for their neighbours when the recall of a graph is measured."""


class Graph:
    """A graph of the stored rows of a gallery; ``read`` maps its file into memory.

    mean           float32 [L], see ``mean_of``
    recall_at_10   share of the 10 nearest rows that it finds, measured when it was built; None for a single row
    """

    def __init__(self, graph: Any, mean: Descriptor, recall_at_10: float | None = None) -> None:
        self._graph, self._mean, self.recall_at_10 = graph, mean, recall_at_10
        self._lock = Lock()  # two calls of usearch at a time would share the working memory of a thread

    @classmethod
    def build(cls, compact: Compact, stored: Stored, on_rows: Callable[[int], None] | None = None) -> Graph:
        """Build the graph of rows [N, W] and measure its recall; raises MissingDependency without usearch.

        on_rows   called with how many rows were added since the last call
        """
        graph = import_usearch().Index(
            ndim=compact.length,
            metric="hamming",
            dtype=BITS,
            connectivity=LINKS,
            expansion_add=WIDTH_BUILDING,
            expansion_search=WIDTH_SEARCHING,
        )
        built = cls(graph, mean_of(compact, stored))
        for start in range(0, len(stored), CHUNK):
            bits = built._bits(compact.restore(stored[start : start + CHUNK]))
            # Threads that begin a graph together may leave rows out of reach: recall was 0.93 once in 1,500 rows.
            graph.add(np.arange(start, start + len(bits)), bits, threads=available_threads() if start else 1)
            if on_rows:
                on_rows(len(bits))
        built.recall_at_10 = built._recall(compact, stored)
        return built

    @classmethod
    def read(cls, path: Path, compact: Compact, stored: Stored, recall_at_10: float | None) -> Graph:
        """Map a graph of ``stored``. Raises InputError for another file, MissingDependency without usearch."""
        usearch = import_usearch()
        try:
            graph = usearch.Index.restore(path, view=True)
        except (OSError, RuntimeError, ValueError) as error:
            raise InputError(f"{path} cannot be read ({error}); make the index again with --ann.") from error
        expected = (len(stored), compact.length, BITS)
        if graph is None or (len(graph), graph.ndim, graph.dtype.name.lower()) != expected:
            raise InputError(f"{path} is no graph of {len(stored)} pictures; make the index again with --ann.")
        graph.expansion_search = WIDTH_SEARCHING  # usearch does not store it
        return cls(graph, mean_of(compact, stored), recall_at_10)

    def write(self, path: Path) -> None:
        """Write the graph to a file that ``read`` takes."""
        self._graph.save(path)

    def nearest(self, rows: Rows, queries: Descriptors, k: int) -> Found:
        """The k most similar of ``rows``, of which the graph was built; a few may be missing, see ``recall_at_10``.

        A query for which the graph proposes mostly removed rows is searched exactly.
        """
        if not len(queries):
            return nothing(0, k)
        count = min(max(PROPOSED, 2 * ENOUGH * k), len(rows.stored))
        with self._lock:
            matches = self._graph.search(self._bits(queries), count, threads=min(len(queries), available_threads()))
        proposed = [matches] if len(queries) == 1 else matches  # usearch answers one query without a list
        indices, similarities = nothing(len(queries), k)
        lacking = []
        for number, (query, match) in enumerate(zip(queries, proposed, strict=True)):
            keys = match.keys.astype(np.int64)
            there = keys[~rows.removed[keys]]
            if len(there) >= min(ENOUGH * k, rows.offered):
                indices[number], similarities[number] = ranked(rows, query, there, k)
            else:
                lacking.append(number)
        if lacking:
            indices[lacking], similarities[lacking] = nearest(rows, queries[lacking], k)
        return indices, similarities

    def _bits(self, descriptors: Descriptors) -> NDArray[np.uint8]:
        """Float32 [N, L] -> uint8 [N, ceil(L / 8)]"""
        return np.packbits(descriptors > self._mean, axis=1)

    def _recall(self, compact: Compact, stored: Stored) -> float | None:
        """The mean share of the NEIGHBOURS nearest other rows that the graph finds, for up to SAMPLE of the rows."""
        k = min(NEIGHBOURS + 1, len(stored))
        if k < 2:
            return None
        sample = _spread(len(stored))
        rows, queries = Rows(compact, stored, np.zeros(len(stored), np.bool_)), compact.restore(stored[sample])
        exact, found = nearest(rows, queries, k)[0], self.nearest(rows, queries, k)[0]
        wanted = [np.setdiff1d(row, me) for row, me in zip(exact, sample, strict=True)]
        return float(np.mean([np.isin(w, row).mean() for w, row in zip(wanted, found, strict=True)]))


def mean_of(compact: Compact, stored: Stored) -> Descriptor:
    """The mean float32 [L] of up to SAMPLE evenly spread rows.

    Without it, bits would tell little about descriptors with a large common part: all rows would have the same bits.
    """
    return compact.restore(stored[_spread(len(stored))]).mean(axis=0)


def _spread(rows: int) -> Indices:
    """Up to SAMPLE evenly spread row numbers."""
    return np.unique(np.linspace(0, rows - 1, SAMPLE).astype(np.int64))


def import_usearch() -> Any:
    """Import usearch.index. Raises MissingDependency without a release of usearch that works."""
    if not has_usearch():
        raise MissingDependency(
            f"a graph needs usearch of a release before 2.26; run `{install_line('search')}`, or search with --exact."
        )
    import usearch.index

    return usearch.index
