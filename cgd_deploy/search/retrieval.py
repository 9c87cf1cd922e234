"""Exact nearest neighbours among unit descriptors, and measures of retrieval. Takes arrays; knows no picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..runtime.descriptors import Descriptors

Indices = NDArray[np.int64]
Groups = tuple[Indices, Indices]
"""Group numbers of the queries int64 [Q] and of the gallery int64 [G]."""

NEIGHBOURS = 10
"""Neighbours of each query that reports show and that overlap@10 compares."""
CHUNK = 1024
NEVER = 1 << 62
RECALL_AT = (1, 2, 4, 8)
"""The K of recall@K on CARS196 and CUB200."""


@dataclass(frozen=True)
class Retrieved:
    """Descriptors of all pictures [N, D], and each query's neighbours: picture numbers and cosines, both [Q, K]."""

    descriptors: Descriptors
    indices: Indices
    similarities: Descriptors


def neighbours(
    queries: Descriptors, gallery: Descriptors, k: int, *, skip_self: bool = False, groups: Groups | None = None
) -> tuple[Indices, Descriptors]:
    """The k most similar gallery rows of each query, best first; equal similarities go to the smaller index.

    queries, gallery   unit descriptors float32 [Q, D] and [G, D]
    skip_self          query i is gallery row i and may not find itself
    groups             a query may not find gallery rows of its own group; if fewer than k other rows are left, rows of
                       its group come last with a similarity of -inf

    Returns indices int64 [Q, k] and cosine similarities float32 [Q, k]. Memory holds CHUNK x G similarities at a time.
    Raises InputError if the gallery offers fewer than k rows, or if queries and gallery differ in D.
    """
    parts = list(neighbour_chunks(queries, gallery, k, skip_self=skip_self, groups=groups))
    indices = [found for _, found, _ in parts] or [np.empty((0, k), np.int64)]
    similarities = [similar for _, _, similar in parts] or [np.empty((0, k), np.float32)]
    return np.concatenate(indices), np.concatenate(similarities)


def neighbour_chunks(
    queries: Descriptors, gallery: Descriptors, k: int, *, skip_self: bool = False, groups: Groups | None = None
) -> Iterator[tuple[slice, Indices, Descriptors]]:
    """``neighbours`` for CHUNK queries at a time, with their rows, so that a caller need not hold all results."""
    check_search(queries, gallery.shape[1], k, len(gallery) - skip_self)
    for start in range(0, len(queries), CHUNK):
        rows = slice(start, min(start + CHUNK, len(queries)))
        scores = queries[rows] @ gallery.T  # (n, G)
        if skip_self:
            scores[np.arange(len(scores)), np.arange(rows.start, rows.stop)] = -np.inf
        if groups:
            scores[groups[0][rows, None] == groups[1]] = -np.inf
        # Sort all candidates for the k best, so that equal scores always come in the same order.
        bounds = _lower_bounds(scores, k)
        indices = np.empty((len(scores), k), np.int64)
        for row, score in enumerate(scores):
            candidates = np.flatnonzero(score >= bounds[row])
            indices[row] = candidates[np.argsort(-score[candidates], kind="stable")[:k]]
        yield rows, indices, np.take_along_axis(scores, indices, axis=1)


def check_search(queries: Descriptors, values: int, k: int, offered: int) -> None:
    """Raise InputError unless queries [Q, D] have D = ``values``, and ``k`` neighbours are among those ``offered``."""
    if not 1 <= k <= offered:
        raise InputError(f"{k} neighbours were asked of a gallery that offers {offered}; ask for 1 to {offered}.")
    if queries.shape[1] != values:
        raise InputError(f"queries have {queries.shape[1]} values, the gallery has {values}; use one model.")


def _lower_bounds(scores: Descriptors, k: int) -> Descriptors:
    """A lower bound of the k-th best score of each row of [n, G]: the k-th best maximum of small groups of columns.

    Partitioning the maxima is ten times as fast as partitioning all scores.
    """
    width = max(1, scores.shape[1] // (8 * k))
    groups = scores[:, : scores.shape[1] // width * width].reshape(len(scores), -1, width)
    return np.partition(groups.max(axis=2), -k, axis=1)[:, -k]


def first_correct(correct: NDArray[np.bool_]) -> Indices:
    """The rank of each query's first correct neighbour, counted from 0, or NEVER: int64 [Q].

    correct   bool [Q, K']: whether each neighbour has its query's class
    """
    return np.where(correct.any(axis=1), correct.argmax(axis=1), NEVER)


def recall_at(first: Indices, ks: Sequence[int]) -> dict[str, float]:
    """Recall@K by K: the fraction of queries with a correct picture among their first K neighbours (CGD section 4).

    first   int64 [Q] from ``first_correct``; if K is above the number of neighbours, all neighbours count
    """
    return {str(k): float((first < k).mean()) for k in ks}


def precision_at_r(correct: NDArray[np.bool_], relevant: Indices) -> NDArray[np.float64]:
    """Average precision at R of each query, float64 [Q]; its mean is mAP@R (Musgrave et al. 2020, section 3.2).

    correct    bool [Q, K'] as for ``first_correct``, with K' at least the largest R
    relevant   R, int64 [Q]: how many gallery pictures have the query's class; where R is 0, the precision is 0

    AP@R = 1/R * sum over correct ranks i <= R of (number of correct neighbours among the first i) / i.
    """
    ranks = np.arange(1, correct.shape[1] + 1)
    counted = correct & (ranks <= relevant[:, None])  # (Q, K')
    precision = counted.cumsum(axis=1) / ranks
    return (precision * counted).sum(axis=1) / np.maximum(relevant, 1)


def overlap(found: Indices, reference: Indices) -> float:
    """The mean of ``overlaps``."""
    return float(overlaps(found, reference).mean())


def overlaps(found: Indices, reference: Indices) -> NDArray[np.float64]:
    """Share of the reference's K neighbours that are also in ``found``, in any order: [Q]; both int64 [Q, K]."""
    return np.array([len(np.intersect1d(a, b)) / len(b) for a, b in zip(found, reference, strict=True)])
