"""Near-duplicates: groups of pictures in an index whose descriptors are almost equal. Opens no picture."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from ..errors import InputError
from ..runtime.descriptors import Descriptors
from .index import Index
from .retrieval import CHUNK, Indices

ROUNDING = 1e-5
"""In float32 the cosine of two equal descriptors may be this much below 1."""


@dataclass(frozen=True)
class Duplicates:
    """One group of near-duplicates, at least two pictures.

    rows           rows of the index: first the picture that has the most near-duplicates, then the others, most
                   similar first
    similarities   cosine of each picture with the first one; the first is 1
    """

    rows: list[int]
    similarities: list[float]


def check_min_similarity(min_similarity: float) -> None:
    """Raise InputError unless ``min_similarity`` is above 0 and at most 1."""
    if not 0 < min_similarity <= 1:
        raise InputError(
            f"a smallest similarity of {min_similarity} cannot be used; pass a cosine above 0 and at most 1."
        )


def find_duplicates(
    index: Index, min_similarity: float, on_progress: Callable[[str, float], None] | None = None
) -> list[Duplicates]:
    """The groups of near-duplicates in an index, the largest group first.

    min_similarity   two pictures are near-duplicates if the cosine of their stored descriptors is at least this
    on_progress      called with "Comparing pictures" and the fraction of the comparisons that is done

    Near-duplicates of near-duplicates join the same group, so two pictures of a group may be less similar than
    ``min_similarity``. If a path is listed several times, only its first row counts. Memory holds two chunks of CHUNK
    descriptors and their similarities at a time, and a few numbers for each picture. Raises InputError for a
    ``min_similarity`` that ``check_min_similarity`` refuses.
    """
    check_min_similarity(min_similarity)
    group_of = np.arange(len(index.paths))
    counts = np.zeros(len(index.paths), np.int64)
    for done, left, right in _pairs(index, min_similarity - ROUNDING):
        _join(group_of, left, right)
        np.add.at(counts, left, 1)
        np.add.at(counts, right, 1)
        if on_progress:
            on_progress("Comparing pictures", done)
    groups = defaultdict(list)
    for row in np.flatnonzero(counts).tolist():
        groups[group_of[row]].append(row)
    return [
        _around_its_centre(index, np.array(group), counts) for group in sorted(groups.values(), key=len, reverse=True)
    ]


def _pairs(index: Index, least: float) -> Iterator[tuple[float, Indices, Indices]]:
    """The rows of each pair of pictures with a cosine of at least ``least``, and the fraction of comparisons done.

    Each path takes part with its first row, and each pair comes once.
    """
    first: dict[str, int] = {}
    for row, path in enumerate(index.paths):
        first.setdefault(path, row)
    chunks = _chunks(np.array(list(first.values()), np.int64))
    done, total = 0, len(chunks) * (len(chunks) + 1) // 2
    for place, chunk in enumerate(chunks):
        descriptors = _restored(index, chunk)
        for other in chunks[place:]:
            similar = descriptors @ _restored(index, other).T >= least  # (n, m)
            left, right = np.nonzero(np.triu(similar, 1) if other is chunk else similar)
            done += 1
            yield done / total, chunk[left], other[right]


def _join(group_of: Indices, left: Indices, right: Indices) -> None:
    """Join the groups of each pair of rows; ``group_of`` gives each row the smallest row of its group."""
    while (group_of[left] != group_of[right]).any():
        one, other = group_of[left], group_of[right]
        np.minimum.at(group_of, np.maximum(one, other), np.minimum(one, other))
        while (group_of != group_of[group_of]).any():
            group_of[:] = group_of[group_of]


def _around_its_centre(index: Index, rows: Indices, counts: Indices) -> Duplicates:
    """A group in order; ``counts`` gives each row the number of its near-duplicates."""
    centre = rows[counts[rows].argmax()]
    others = rows[rows != centre]
    (descriptor,) = _restored(index, np.array([centre]))
    similarities = np.concatenate([_restored(index, chunk) @ descriptor for chunk in _chunks(others)])
    order = np.argsort(-similarities, kind="stable")
    return Duplicates([int(centre), *others[order].tolist()], [1.0, *similarities[order].tolist()])


def _chunks(rows: Indices) -> list[Indices]:
    return [rows[start : start + CHUNK] for start in range(0, len(rows), CHUNK)]


def _restored(index: Index, rows: Indices) -> Descriptors:
    return index.compact.restore(index.stored[rows])
