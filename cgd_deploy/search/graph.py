"""Approximate nearest neighbours: a graph of the gallery (HNSW, Malkov and Yashunin 2018), built and read by usearch.

The graph proposes rows by rounded queries, and float32 queries rank them, as in ``exact``. Knows no path of a picture.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from ..errors import InputError, MissingDependency, install_line
from ..hardware.cpu import available_threads
from ..runtime.descriptors import Descriptors
from .compact import Compact, Stored
from .exact import Found, Rows, has_usearch, nearest, nothing, ranked
from .retrieval import CHUNK, NEIGHBOURS

KINDS = {"float32": "f32", "float16": "f16", "int8": "i8", "binary": "b1"}
"""usearch's names of the stored forms."""
LINKS, WIDTH_BUILDING, WIDTH_SEARCHING = 16, 128, 96
"""Links of a row, and how many candidates are kept while the graph is built and searched. In 20,000 int8 rows in
clusters of 20, widths from 64 to 256 all found every neighbour; 256 took twice as long as 64."""
PROPOSED = 40
"""Rows that the graph proposes for a query; more for k above 10."""
SAMPLE = 1000
"""Rows that ask for their neighbours when the recall of a graph is measured."""


class Graph:
    """A graph of the stored rows [N, W] of a gallery, with a copy of them; ``read`` maps its file into memory.

    recall_at_10   share of the 10 nearest rows that it finds, measured when it was built; None for a single row
    """

    def __init__(self, graph: Any, recall_at_10: float | None = None) -> None:
        self._graph, self.recall_at_10 = graph, recall_at_10
        self._lock = Lock()  # two calls of usearch at a time would share the working memory of a thread

    @classmethod
    def build(cls, compact: Compact, stored: Stored, on_rows: Callable[[int], None] | None = None) -> Graph:
        """Build the graph of rows [N, W] and measure its recall; raises MissingDependency without usearch.

        on_rows   called with how many rows were added since the last call
        """
        metric = "hamming" if compact.dtype == "binary" else "cos"
        graph = import_usearch().Index(
            ndim=compact.length,
            metric=metric,
            dtype=KINDS[compact.dtype],
            connectivity=LINKS,
            expansion_add=WIDTH_BUILDING,
            expansion_search=WIDTH_SEARCHING,
        )
        for start in range(0, len(stored), CHUNK):
            rows = np.ascontiguousarray(stored[start : start + CHUNK])
            # Threads that begin a graph together may leave rows out of reach: recall was 0.93 once in 1,500 rows.
            graph.add(np.arange(start, start + len(rows)), rows, threads=available_threads() if start else 1)
            if on_rows:
                on_rows(len(rows))
        built = cls(graph)
        built.recall_at_10 = built._recall(compact, stored)
        return built

    @classmethod
    def read(cls, path: Path, rows: int, recall_at_10: float | None) -> Graph:
        """Map a graph of ``rows`` rows. Raises InputError for another file, MissingDependency without usearch."""
        usearch = import_usearch()
        try:
            graph = usearch.Index.restore(path, view=True)
        except (OSError, RuntimeError, ValueError) as error:
            raise InputError(f"{path} cannot be read ({error}); make the index again with --ann.") from error
        if graph is None or len(graph) != rows:
            raise InputError(f"{path} is no graph of {rows} pictures; make the index again with --ann.")
        graph.expansion_search = WIDTH_SEARCHING  # usearch does not store it
        return cls(graph, recall_at_10)

    def write(self, path: Path) -> None:
        """Write the graph to a file that ``read`` takes."""
        self._graph.save(path)

    def nearest(self, rows: Rows, queries: Descriptors, k: int) -> Found:
        """The k most similar of ``rows``, of which the graph was built; a few may be missing, see ``recall_at_10``.

        A query that finds fewer than k rows, because others are removed, is searched exactly.
        """
        if not len(queries):
            return nothing(0, k)
        count = min(max(PROPOSED, 4 * k), len(rows.stored))
        rounded = rows.compact.encode(queries)
        with self._lock:
            matches = self._graph.search(rounded, count, threads=min(len(queries), available_threads()))
        proposed = [matches] if len(queries) == 1 else matches  # usearch answers one query without a list
        indices, similarities = nothing(len(queries), k)
        lacking = []
        for number, (query, match) in enumerate(zip(queries, proposed, strict=True)):
            found, similar = ranked(rows, query, match.keys.astype(np.int64), k)
            if len(found) == k:
                indices[number], similarities[number] = found, similar
            else:
                lacking.append(number)
        if lacking:
            indices[lacking], similarities[lacking] = nearest(rows, queries[lacking], k)
        return indices, similarities

    def _recall(self, compact: Compact, stored: Stored) -> float | None:
        """The mean share of the NEIGHBOURS nearest other rows that the graph finds, for up to SAMPLE of the rows."""
        k = min(NEIGHBOURS + 1, len(stored))
        if k < 2:
            return None
        sample = np.unique(np.linspace(0, len(stored) - 1, SAMPLE).astype(np.int64))
        rows, queries = Rows(compact, stored, np.zeros(len(stored), np.bool_)), compact.restore(stored[sample])
        exact, found = nearest(rows, queries, k)[0], self.nearest(rows, queries, k)[0]
        wanted = [np.setdiff1d(row, me) for row, me in zip(exact, sample, strict=True)]
        return float(np.mean([np.isin(w, row).mean() for w, row in zip(wanted, found, strict=True)]))


def import_usearch() -> Any:
    """Import usearch.index. Raises MissingDependency without a release of usearch that works."""
    if not has_usearch():
        raise MissingDependency(
            f"a graph needs usearch of a release before 2.26; run `{install_line('search')}`, or search with --exact."
        )
    import usearch.index

    return usearch.index
