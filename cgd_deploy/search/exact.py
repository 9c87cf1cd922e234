"""Exact nearest neighbours among stored descriptors. Restores a few rows at a time; knows no file and no path.

Measured on 100,000 x 1,536 values with two cores, see ``benchmarks/search.py``: for one query, usearch is six times as
fast as to restore all int8 or float16 rows. For many queries, restoring costs little for each.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..hardware.cpu import available_threads
from ..hardware.packages import package_version
from ..runtime.descriptors import Descriptor, Descriptors
from .compact import Compact, Stored
from .retrieval import CHUNK, Indices

ROWS = 256
"""Gallery rows that are restored at a time: 256 x 1,536 float32 values fit the cache of a core."""
FEW = 128
"""From this many queries on, products of matrices are faster than usearch in every form."""
SHORTLIST, WIDEST, WIDER = 64, 1024, 4
"""Rows that usearch proposes for a query at first and at most, and the factor between two tries."""
HAMMING = 2048
"""Rows of a binary gallery whose bits are most like the bits of a query: recall@10 is 0.99 in 100,000 rows."""
ARITHMETIC = 1e-5
"""More than usearch's own error in a similarity, which was 2e-7 at most."""

Found = tuple[Indices, Descriptors]
"""Row numbers int64 [Q, k] and cosine similarities float32 [Q, k], best first."""


class Rows(NamedTuple):
    """Rows to search in.

    stored    descriptors [N, W] in the form ``compact``; they may be a memory map
    removed   bool [N]: rows that nobody may find
    """

    compact: Compact
    stored: Stored
    removed: NDArray[np.bool_]

    @property
    def offered(self) -> int:
        """Rows that can be found."""
        return len(self.stored) - int(np.count_nonzero(self.removed))


def nearest(rows: Rows, queries: Descriptors, k: int) -> Found:
    """The k most similar rows of each query; equal similarities go to the smaller number.

    queries   unit float32 [Q, L], projected by ``compact``
    k         at most ``rows.offered``

    The result is the result of ``retrieval.neighbours`` among the restored rows, up to the rounding of float32. In a
    binary gallery, fewer than FEW queries may miss a neighbour, see HAMMING.
    """
    several = [_nearest(rows, queries[start : start + CHUNK], k) for start in range(0, len(queries), CHUNK)]
    several = several or [nothing(0, k)]
    return np.concatenate([found for found, _ in several]), np.concatenate([similar for _, similar in several])


def merged(one: Found, other: Found, k: int) -> Found:
    """The k best of two results for the same queries; of equal similarities, those of ``one`` come first."""
    indices, similarities = np.hstack([one[0], other[0]]), np.hstack([one[1], other[1]])
    order = np.argsort(-similarities, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(indices, order, axis=1), np.take_along_axis(similarities, order, axis=1)


def ranked(rows: Rows, query: Descriptor, proposed: Indices, k: int) -> tuple[Indices, Descriptor]:
    """At most k of the proposed rows, by the similarity of their restored values to a query float32 [L]."""
    there = np.sort(proposed[~rows.removed[proposed]])
    # A sum for each row, and no product of matrices: equal rows get equal similarities.
    similar = (rows.compact.restore(rows.stored[there]) * query).sum(axis=1)
    order = np.argsort(-similar, kind="stable")[:k]
    return there[order], similar[order]


def nothing(queries: int, k: int) -> Found:
    """A result that every other one is better than."""
    return np.zeros((queries, k), np.int64), np.full((queries, k), -np.inf, np.float32)


@cache
def has_usearch() -> bool:
    """Whether a release of usearch is installed that works here.

    If releases from 2.26.2 on are imported before ONNX Runtime or torch, these two crash or compute nonsense.
    """
    version = package_version("usearch")
    return version is not None and [int(part) for part in version.split(".")[:2]] < [2, 26]


def _nearest(rows: Rows, queries: Descriptors, k: int) -> Found:
    # float32 rows need no restoring, so NumPy reads them as fast as usearch does.
    dtype = rows.compact.dtype
    if dtype == "float32" or len(queries) >= FEW:
        return _by_products(rows, queries, k)
    if dtype == "binary":
        return _by_bits(rows, queries, k)
    return _by_shortlist(rows, queries, k) if has_usearch() else _by_products(rows, queries, k)


def _by_products(rows: Rows, queries: Descriptors, k: int) -> Found:
    best = nothing(len(queries), k)
    for start in range(0, len(rows.stored), ROWS):
        part = slice(start, start + ROWS)
        scores = queries @ rows.compact.restore(rows.stored[part]).T  # (Q, ROWS)
        scores[:, rows.removed[part]] = -np.inf
        better = np.flatnonzero((scores > best[1][:, -1:]).any(axis=0))
        if len(better):
            numbers = np.broadcast_to(better + start, (len(queries), len(better)))
            best = merged(best, (numbers, scores[:, better]), k)
    return best


def _by_shortlist(rows: Rows, queries: Descriptors, k: int) -> Found:
    """Let usearch propose rows by rounded queries, and rank these rows by the queries themselves.

    A rounded query is wrong by a vector of length e, so each similarity is wrong by e at most. If the k-th ranked row
    is better by e than the last proposed row is to the rounded query, no other row can be among the k best. Queries
    without this proof get a longer shortlist, and at last all rows.
    """
    indices, similarities = nothing(len(queries), k)
    count = max(SHORTLIST, 4 * k)
    waiting = np.arange(len(queries))
    while len(waiting) and count <= WIDEST and 2 * count <= len(rows.stored):
        asking = queries[waiting]
        rounded = rows.compact.encode(asking)
        error = np.linalg.norm(asking - rows.compact.restore(rounded), axis=1) + ARITHMETIC
        proposed, last = _propose(rows.stored, rounded, count)
        unproven = []
        for number, row, bound in zip(waiting, proposed, last + error, strict=True):
            found, similar = ranked(rows, queries[number], row, k)
            if len(found) == k and similar[-1] > bound:
                indices[number], similarities[number] = found, similar
            else:
                unproven.append(number)
        waiting, count = np.array(unproven, np.int64), count * WIDER
    if len(waiting):
        indices[waiting], similarities[waiting] = _by_products(rows, queries[waiting], k)
    return indices, similarities


def _propose(stored: Stored, rounded: Stored, count: int) -> Found:
    """For each rounded query [Q, W], the ``count`` nearest rows [Q, count], and its similarity to the last one [Q]."""
    from usearch.index import MetricKind, search

    found = search(stored, rounded, count, MetricKind.Cos, exact=True, threads=available_threads())
    shape = (len(rounded), count)  # usearch leaves the first dimension out for one query
    return found.keys.reshape(shape).astype(np.int64), 1 - found.distances.reshape(shape)[:, -1]


def _by_bits(rows: Rows, queries: Descriptors, k: int) -> Found:
    """Rank the rows whose bits differ least from the bits of the query. In a small gallery, rank all rows."""
    count = max(HAMMING, 4 * k)
    if 2 * count > rows.offered:
        return _by_products(rows, queries, k)
    indices, similarities = nothing(len(queries), k)
    for number, (query, bits) in enumerate(zip(queries, rows.compact.encode(queries), strict=True)):
        different = _different_bits(rows.stored, bits)
        different[rows.removed] = np.iinfo(different.dtype).max
        indices[number], similarities[number] = ranked(rows, query, np.argpartition(different, count)[:count], k)
    return indices, similarities


def _different_bits(stored: Stored, bits: Stored) -> NDArray[np.uint32]:
    """How many bits of each row uint8 [N, W] differ from ``bits`` [W]: uint32 [N]."""
    words = np.uint64 if stored.shape[1] % 8 == 0 else np.uint8
    different = np.empty(len(stored), np.uint32)
    for start in range(0, len(stored), CHUNK):
        block = stored[start : start + CHUNK].view(words)
        different[start : start + CHUNK] = np.bitwise_count(block ^ bits.view(words)).sum(axis=1, dtype=np.uint32)
    return different
