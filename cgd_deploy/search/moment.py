"""The rows of a gallery at one moment: those that were read, those that came later, and those that are gone.

A change makes another moment and leaves the older one as it is, so a search needs no lock. Knows no engine and no file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, repeat

import numpy as np
from numpy.typing import NDArray

from ..runtime.descriptors import Descriptors
from .compact import Compact, Stored
from .contents import UNKNOWN, Contents, as_array
from .exact import Found, Rows, merged, nearest
from .graph import Graph
from .retrieval import CHUNK, Indices


@dataclass(frozen=True, eq=False)
class Moment:
    """A row keeps its number through all moments: 0 to N - 1 for ``stored``, then ``added``.

    stored           [N, W] in the form ``compact``; it may be a memory map
    names, contents  paths and checksums of the N pictures; checksums may be None
    added            [A, W]
    later            path and checksum of each added picture; later moments append to the same list
    removed          bool [N + A]
    graph            None, or a graph of ``stored``
    """

    compact: Compact
    stored: Stored
    names: Sequence[str]
    contents: Contents | None
    added: Stored
    later: list[tuple[str, bytes]]
    removed: NDArray[np.bool_]
    graph: Graph | None = None

    def __len__(self) -> int:
        return len(self.removed) - int(np.count_nonzero(self.removed))

    @property
    def changed(self) -> bool:
        """Whether anything was added or removed."""
        return bool(len(self.added) or self.removed.any())

    def nearest(self, queries: Descriptors, k: int) -> Found:
        """The numbers of the k nearest rows of each query float32 [Q, L]; ``k`` is at most ``len(self)``."""
        count = len(self.stored)
        rows = Rows(self.compact, self.stored, self.removed[:count])
        later = Rows(self.compact, self.added, self.removed[count:])
        search = self.graph.nearest if self.graph else nearest
        found = search(rows, queries, min(k, rows.offered))
        if not later.offered:
            return found
        indices, similarities = nearest(later, queries, min(k, later.offered))
        return merged(found, (indices + count, similarities), k)

    def path(self, number: int) -> str:
        """The path of a row's picture."""
        return self.names[number] if number < len(self.stored) else self.later[number - len(self.stored)][0]

    def places(self, numbers: Indices) -> Indices:
        """For the numbers of rows that are there, their places in ``paths``."""
        return self._places[numbers] if self.changed else numbers

    @cached_property
    def paths(self) -> Sequence[str]:
        """The paths of the pictures that are there, in the order of their rows."""
        return [self.path(number) for number in self._there.tolist()] if self.changed else self.names

    @property
    def checksums(self) -> Contents | None:
        """The checksums of the pictures that are there; None if the gallery has none."""
        if self.contents is None or not self.changed:
            return self.contents
        added = as_array([content for _, content in self.later[: len(self.added)]])
        return np.concatenate([self.contents, added])[self._there]

    def pictures(self) -> Iterator[tuple[int, str, bytes]]:
        """The number, path and checksum of each row that is there; UNKNOWN where nobody knows the checksum."""
        contents = repeat(UNKNOWN) if self.contents is None else map(np.ndarray.tobytes, self.contents)
        known = chain(zip(self.names, contents, strict=False), self.later)
        for number, ((path, content), removed) in enumerate(zip(known, self.removed.tolist(), strict=False)):
            if not removed:
                yield number, path, content

    def blocks(self) -> Iterator[Stored]:
        """The stored form of the rows that are there, at most CHUNK at a time."""
        for start in range(0, len(self.removed), CHUNK):
            numbers = np.arange(start, min(start + CHUNK, len(self.removed)))
            yield self.rows(numbers[~self.removed[numbers]])

    def rows(self, numbers: Indices) -> Stored:
        """The stored form of rows, by ascending numbers."""
        later = int(np.searchsorted(numbers, len(self.stored)))
        return np.concatenate([self.stored[numbers[:later]], self.added[numbers[later:] - len(self.stored)]])

    @cached_property
    def _there(self) -> Indices:
        return np.flatnonzero(~self.removed)

    @cached_property
    def _places(self) -> Indices:
        return np.cumsum(~self.removed) - 1
