"""The gallery in memory: searched by engines, and changed while other threads search."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import numpy as np

from ..errors import InputError
from ..runtime.descriptors import Descriptor, Descriptors
from ..runtime.engine import Engine
from ..spec import Precision
from .compact import Compact, Stored, check_finite
from .contents import UNKNOWN, Contents
from .exact import Found, has_usearch
from .graph import Graph
from .moment import Moment
from .paths import RELATIVE
from .retrieval import check_search

ROOM = 64
"""Added rows for which memory is first taken."""


class Mixing(NamedTuple):
    """Whether an engine of one precision may search an index of another precision.

    safe   True if a measurement found it safe; False if it did not, or if nobody measured
    told   the measurement, or that there is none, and what to do: a sentence without its full stop
    """

    safe: bool
    told: str


class Index:
    """A gallery to search: descriptors of pictures, and the paths of the pictures.

    stored      descriptors [N, W] in the form ``compact``: float32, float16, int8, or bits in uint8
    paths       N paths of the pictures, as they can be opened from the current folder
    space_id    space of the engine that made the index
    precision   precision of that engine
    statement   whether that engine may share a gallery with FP32, see ``Manifest``; None if nobody measured it
    contents    checksums of the pictures uint8 [N, 16], see ``contents``; None if nobody knows them
    graph       a graph over ``stored``, see ``graph``; None: every search is exact
    paths_are   how its file stores paths, see ``paths``

    Any number of threads may search and change one index.

    Example:

        index = read_index("gallery.npy")
        with load("model-int8.cgd") as engine:
            indices, similarities = index.search(engine, engine.embed(["query.jpg"]), k=8)
        print([index.paths[i] for i in indices[0]])
    """

    def __init__(
        self,
        stored: Stored,
        paths: Sequence[str],
        space_id: str,
        precision: str,
        compact: Compact,
        statement: str | None = None,
        contents: Contents | None = None,
        graph: Graph | None = None,
    ) -> None:
        self.space_id, self.precision, self.compact, self.statement = space_id, precision, compact, statement
        removed = np.zeros(len(stored), np.bool_)
        self.paths_are = RELATIVE
        self._room = np.empty((0, stored.shape[1]), stored.dtype)
        self._moment = Moment(compact, stored, paths, contents, self._room, [], removed, graph)
        self._written = self._moment
        self._numbers: dict[str, list[int]] | None = None
        self._lock = Lock()

    def __repr__(self) -> str:
        form = f"{self.compact.length} values as {self.compact.dtype}"
        return f"<Index: {len(self)} pictures, {form}, space {self.space_id}>"

    def __len__(self) -> int:
        """Number of rows; a picture with several boxes has several rows."""
        return len(self._moment)

    def __contains__(self, path: object) -> bool:
        """Whether a picture of this path is there."""
        with self._lock:
            return path in self._index_of_paths()

    @property
    def moment(self) -> Moment:
        """The rows as they are now. Later changes leave this value as it is."""
        return self._moment

    @property
    def changed(self) -> bool:
        """Whether a picture was put or removed since the index was read, made or written."""
        return self._moment is not self._written

    @property
    def slow(self) -> bool:
        """Whether searches would take a fraction of the time if usearch were installed."""
        return self.compact.dtype in ("float16", "int8") and not has_usearch()

    @property
    def stored(self) -> Stored:
        """Descriptors [N, W] in the form ``compact``; a copy of all rows if any was put or removed."""
        moment = self._moment
        return np.concatenate(list(moment.blocks())) if moment.changed else moment.stored

    @property
    def descriptors(self) -> Descriptors:
        """All rows restored, float32 [N, L]; L is the engine's dim, or the number of PCA components. Takes memory."""
        return self.compact.restore(self.stored)

    @property
    def paths(self) -> Sequence[str]:
        """Paths of the pictures, one for each row, as they can be opened from the current folder."""
        return self._moment.paths

    def search(self, engine: Engine, queries: Descriptors, k: int) -> Found:
        """The k nearest pictures of each query, best first; equal similarities go to the smaller index.

        engine    the engine that embedded the queries
        queries   unit descriptors float32 [Q, dim]

        Returns indices into ``paths``, int64 [Q, k], and cosine similarities, float32 [Q, k]. If another thread may
        change the index meanwhile, call ``find``. Raises InputError if the engine describes another space than the
        index, if k is above N, or if a query is not finite.
        """
        moment = self._moment
        numbers, similarities = self._nearest(moment, engine, queries, k)
        return moment.places(numbers), similarities

    def find(self, engine: Engine, queries: Descriptors, k: int) -> list[list[tuple[str, float]]]:
        """For each query, the paths and cosine similarities of its k nearest pictures, best first.

        Gives fewer pictures if the gallery has fewer; takes other arguments and raises as ``search`` does. The paths
        are right whatever other threads change meanwhile.
        """
        moment = self._moment
        if not len(moment):
            self._check_space(engine)
            return [[] for _ in queries]
        k = min(k, len(moment))
        numbers, similarities = self._nearest(moment, engine, queries, k)
        return [
            [(moment.path(number), similarity) for number, similarity in zip(row, similar, strict=True)]
            for row, similar in zip(numbers.tolist(), similarities.tolist(), strict=True)
        ]

    def put(self, path: str | Path, descriptor: Descriptor) -> None:
        """Add a picture, or replace every row of its path; the new row comes last.

        path         compared with ``paths`` as text
        descriptor   unit float32 [dim], from an engine of this space

        The first change of an index lists its paths, which takes seconds for a million; others cost far less than a
        search. Raises InputError for a descriptor of another shape or with values that are not finite.
        """
        descriptors = np.asarray(descriptor, np.float32)[None]
        if descriptors.shape != (1, self.compact.dim):
            shape = list(descriptors.shape[1:])
            raise InputError(
                f"the descriptor of {path} has shape {shape}, the index takes [{self.compact.dim}]; use one model."
            )
        check_finite(descriptors, lambda _: str(path))
        row = self.compact.store(descriptors)
        with self._lock:
            gone = self._index_of_paths().pop(str(path), [])
            self._change(gone, row, [(str(path), UNKNOWN)])

    def remove(self, path: str | Path) -> None:
        """Remove every row of a path. Raises InputError if the index has no such path."""
        with self._lock:
            gone = self._index_of_paths().pop(str(path), None)
            if gone is None:
                raise InputError(f"{path} is not in the index; pass one of its paths.")
            self._change(gone, self._room[:0], [])

    def update(self, gone: Collection[int], rows: Stored, named: Sequence[tuple[str, bytes]]) -> None:
        """Remove rows by their numbers in ``moment``, and add rows [n, W] with paths and checksums."""
        with self._lock:
            self._numbers = None
            self._change(gone, rows, named)

    def written(self, moment: Moment) -> None:
        """Remember that a moment is in a file: ``changed`` is False until the next change."""
        self._written = moment

    def mixing(self, engine: Engine) -> Mixing | None:
        """Whether ``engine`` may search this index although their precisions differ; None if they do not.

        `build-engine --data` measures how an engine mixes with FP32. The engine keeps the result as a statement, and so
        does every index of that engine. Raises InputError if the engine describes another space than the index.
        """
        self._check_space(engine)
        indexed, asking = self.precision, engine.precision.value
        if indexed == asking:
            return None
        told = f"the index holds {indexed} descriptors and the engine makes {asking} ones"
        statement = {indexed: engine.manifest.statement, asking: self.statement}.get(Precision.FP32.value)
        again = "make the index again with this engine"
        if statement is None:
            return Mixing(False, f"{told}, and whether they may be mixed was not measured; {again}")
        safe = statement.startswith("safe")
        return Mixing(safe, f"{told}, measured as {statement}" + ("" if safe else f"; {again}"))

    def _nearest(self, moment: Moment, engine: Engine, queries: Descriptors, k: int) -> Found:
        self._check_space(engine)
        check_search(queries, self.compact.dim, k, len(moment))
        check_finite(queries, lambda number: f"query {number}")
        return moment.nearest(self.compact.project(queries), k)

    def _check_space(self, engine: Engine) -> None:
        if engine.spec.space_id != self.space_id:
            raise InputError(
                f"the index describes space {self.space_id}, the engine {engine.spec.space_id}; "
                "make the index again with this model's engine."
            )

    def _index_of_paths(self) -> dict[str, list[int]]:
        """The numbers of the rows of each path; the caller holds the lock."""
        if self._numbers is None:
            self._numbers, moment = {}, self._moment
            for number in np.flatnonzero(~moment.removed).tolist():
                self._numbers.setdefault(moment.path(number), []).append(number)
        return self._numbers

    def _change(self, gone: Collection[int], rows: Stored, named: Sequence[tuple[str, bytes]]) -> None:
        """Make the next moment; the caller holds the lock. Older moments see a part of the same memory."""
        moment = self._moment
        count = len(moment.added) + len(rows)
        if count > len(self._room):
            self._room = np.empty((max(ROOM, 2 * count), rows.shape[1]), rows.dtype)
            self._room[: len(moment.added)] = moment.added
        self._room[len(moment.added) : count] = rows
        removed = np.append(moment.removed, np.zeros(len(rows), np.bool_))
        removed[list(gone)] = True
        if self._numbers is not None:
            for number, (path, _) in enumerate(named, len(moment.removed)):
                self._numbers.setdefault(path, []).append(number)
        moment.later.extend(named)
        self._moment = replace(moment, added=self._room[:count], removed=removed)
