"""Exact nearest neighbours among unit descriptors, and what is measured on them. Arrays in, numbers out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .errors import InputError

Descriptors = NDArray[np.float32]
Indices = NDArray[np.int64]

CHUNK = 1024
RECALL_AT = (1, 2, 4, 8)
"""The K of recall@K on CARS196 and CUB200."""


@dataclass(frozen=True)
class Retrieved:
    """Descriptors of some pictures [N, D] and, of each, its nearest others: indices and cosine similarities [N, K]."""

    descriptors: Descriptors
    indices: Indices
    similarities: Descriptors


def neighbours(
    queries: Descriptors, gallery: Descriptors, k: int, *, skip_self: bool = False
) -> tuple[Indices, Descriptors]:
    """The k most similar gallery rows of each query, best first; equal similarities go to the smaller index.

    queries, gallery   unit descriptors float32 [Q, D] and [G, D]
    skip_self          query i is gallery row i and may not find itself
    Returns indices int64 [Q, k] and cosine similarities float32 [Q, k]; at most CHUNK x G similarities are held.
    Raises InputError if the gallery has fewer than k rows to offer or the lengths of the descriptors differ.
    """
    offered = len(gallery) - skip_self
    if not 1 <= k <= offered:
        raise InputError(f"{k} neighbours were asked of a gallery that offers {offered}; ask for 1 to {offered}.")
    if queries.shape[1] != gallery.shape[1]:
        raise InputError(f"queries have {queries.shape[1]} values, the gallery has {gallery.shape[1]}; use one model.")
    indices = np.empty((len(queries), k), np.int64)
    similarities = np.empty((len(queries), k), np.float32)
    for start in range(0, len(queries), CHUNK):
        rows = slice(start, min(start + CHUNK, len(queries)))
        scores = queries[rows] @ gallery.T  # (n, G)
        if skip_self:
            scores[np.arange(len(scores)), np.arange(rows.start, rows.stop)] = -np.inf
        # argpartition keeps an arbitrary one of equal scores, so everything at least as good as the k-th is sorted.
        kth = np.partition(scores, -k, axis=1)[:, -k]
        for row, score in enumerate(scores):
            candidates = np.flatnonzero(score >= kth[row])
            best = candidates[np.argsort(-score[candidates], kind="stable")[:k]]
            indices[start + row] = best
            similarities[start + row] = score[best]
    return indices, similarities


def recall_at(
    found: Indices, query_classes: Sequence[str], gallery_classes: Sequence[str], ks: Sequence[int]
) -> dict[int, float]:
    """Recall@K: the fraction of queries with at least one of their class among the first K found (CGD section 4).

    found   int64 [Q, K'] with K' >= max(ks); a K above K' counts what is there.
    """
    correct = np.asarray(gallery_classes)[found] == np.asarray(query_classes)[:, None]  # (Q, K')
    return {k: float(correct[:, :k].any(axis=1).mean()) for k in ks}


def overlap(found: Indices, reference: Indices) -> float:
    """Mean fraction of the reference's K neighbours that are found too, in any order; both int64 [Q, K]."""
    return float(np.mean([len(np.intersect1d(a, b)) / len(b) for a, b in zip(found, reference, strict=True)]))


def cosines(descriptors: Descriptors, reference: Descriptors) -> Descriptors:
    """Row by row cosine similarity of two float32 [N, D] sets of unit descriptors: float32 [N]."""
    return np.einsum("nd,nd->n", descriptors, reference)
