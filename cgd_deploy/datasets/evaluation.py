"""Test pictures: which of them are queries, which are the gallery, and how recall is measured. Knows no model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..pictures.images import ImageList
from ..runtime.descriptors import Descriptors
from ..search.retrieval import (
    RECALL_AT,
    Indices,
    first_correct,
    neighbour_chunks,
    neighbours,
    precision_at_r,
    recall_at,
)


@dataclass(frozen=True)
class Evaluation:
    """Test pictures and their protocol.

    images       all test pictures, queries and gallery
    in_gallery   None: every picture searches all others (CARS196, CUB200, SOP); otherwise whether each picture belongs
                 to the gallery (True) or is a query (False), as in In-shop
    recall_at    the K of recall@K
    cameras      None, or the camera of each picture: a query does not search pictures that have both its class and its
                 camera (Market-1501)

    A query without a picture of its class to find is *unanswerable*: no model can answer it, so recall and mAP@R leave
    it out. Overlap@10 still compares its neighbours.

    Raises InputError if ``in_gallery`` or ``cameras`` have another length than ``images``, if there is no query or no
    gallery, or if there are cameras but no classes.
    """

    images: ImageList
    in_gallery: tuple[bool, ...] | None = None
    recall_at: tuple[int, ...] = RECALL_AT
    cameras: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        roles, cameras = self.in_gallery, self.cameras
        if roles is not None and (len(roles) != len(self.images) or all(roles) or not any(roles)):
            raise InputError(
                f"of {len(self.images)} test pictures {sum(roles)} are the gallery and {len(roles) - sum(roles)} are "
                "queries; expected every picture to be one of the two, and at least one of each."
            )
        if cameras is not None and (len(cameras) != len(self.images) or self.images.classes is None):
            raise InputError(
                f"{len(cameras)} cameras are given for {self.images!r}; expected one for each picture, and classes."
            )

    def __repr__(self) -> str:
        searched = (
            f"{len(self.queries)} queries, {len(self.gallery)} gallery"
            if self.in_gallery
            else "every picture searches the others"
        )
        cameras = f", {len(set(self.cameras))} cameras" if self.cameras else ""
        return f"<Evaluation: {searched}{cameras}, in {self.images!r}>"

    @property
    def queries(self) -> Indices:
        """Picture numbers of the queries, int64 [Q]."""
        return np.flatnonzero(~np.array(self.in_gallery)) if self.in_gallery else np.arange(len(self.images))

    @property
    def gallery(self) -> Indices:
        """Picture numbers of the gallery, int64 [G]."""
        return np.flatnonzero(np.array(self.in_gallery)) if self.in_gallery else np.arange(len(self.images))

    @property
    def offered(self) -> int:
        """How many pictures every query can find at least; with ``cameras`` some queries can find more."""
        return len(self.gallery) - int(self._hidden.max(initial=0))

    @cached_property
    def relevant(self) -> Indices:
        """How many pictures of its class each query can find, int64 [Q]. The pictures must have classes."""
        return _counts(self._labels[self.queries], self._labels[self.gallery]) - self._hidden

    @property
    def has_recall(self) -> bool:
        """Whether the pictures have classes and at least one query is answerable."""
        return self.images.classes is not None and bool(self.relevant.any())

    @property
    def asked(self) -> dict[str, int | None]:
        """{"asked": number of queries, "unanswerable": number that recall leaves out, None without classes}."""
        unanswerable = None if self.images.classes is None else int((self.relevant == 0).sum())
        return {"asked": len(self.queries), "unanswerable": unanswerable}

    def halves(self) -> tuple[Indices, Indices]:
        """Split the queries into halves, to choose on one and to report on the other: rows of ``queries``, in order.

        A class has queries in one half only, unless one class has more than half of all queries. Both halves search the
        same gallery, because a smaller gallery keeps more neighbours. With a single query, the second half is empty.
        """
        total = len(self.queries)
        groups = np.arange(total) if self.images.classes is None else self._labels[self.queries]
        if 2 * np.bincount(groups).max() > total:
            groups = np.arange(total)
        counts = np.bincount(groups)
        in_second, sizes = np.zeros(len(counts), bool), [0, 0]
        for group in np.argsort(-counts, kind="stable"):
            smaller = int(sizes[1] < sizes[0])
            in_second[group] = smaller
            sizes[smaller] += counts[group]
        second = in_second[groups]
        return np.flatnonzero(~second), np.flatnonzero(second)

    def check_recall(self) -> None:
        """Raise InputError if recall cannot be measured."""
        if self.images.classes is None:
            raise InputError(f"the test pictures in {self.images.root} have no classes; recall needs them.")
        if not self.has_recall:
            raise InputError(
                f"none of the {len(self.queries)} queries in {self.images.root} has a picture of its class to find, "
                "and recall needs one; pass test pictures with at least two of a class."
            )

    def check_neighbours(self, k: int, who: str) -> None:
        """Raise InputError, in which ``who`` compares ``k`` neighbours, unless each query can find more than ``k``."""
        if self.offered <= k:
            raise InputError(
                f"{who} compares {k} neighbours of each picture, of which {self.offered} can be found, and got "
                f"{len(self.images)} pictures; pass at least {k + 2}, with {k + 1} or more in the gallery."
            )

    def subset(self, indices: Iterable[int]) -> Evaluation:
        """The test pictures at ``indices``, in that order, with their roles and cameras.

        Raises InputError if no query or no gallery picture remains.
        """
        chosen = list(indices)
        if not chosen:
            raise InputError(f"no test picture of {self.images.root} is left; pass pictures that can be read.")
        roles = tuple(self.in_gallery[i] for i in chosen) if self.in_gallery else None
        cameras = tuple(self.cameras[i] for i in chosen) if self.cameras else None
        return replace(self, images=self.images.subset(chosen), in_gallery=roles, cameras=cameras)

    def neighbours(
        self, descriptors: Descriptors, k: int, gallery: Descriptors | None = None
    ) -> tuple[Indices, Descriptors]:
        """The k nearest gallery pictures of each query, best first.

        descriptors   unit descriptors float32 [N, D] of all pictures, in list order
        gallery       unit descriptors float32 [N, D] of another engine to search in; None: ``descriptors``

        Returns picture numbers int64 [Q, k] and cosine similarities float32 [Q, k]. Raises InputError as
        ``retrieval.neighbours`` does, and if k is above ``offered``.
        """
        if k > self.offered:
            raise InputError(f"{k} neighbours were asked and a query can find {self.offered}; ask for fewer.")
        searched = descriptors if gallery is None else gallery
        found, similarities = neighbours(descriptors[self.queries], searched[self.gallery], k, **self._rules)
        return self.gallery[found], similarities

    def recall(self, found: Indices) -> dict[str, float]:
        """Recall@K by K; empty unless ``has_recall``.

        found   picture numbers int64 [Q, K'] from ``neighbours``
        """
        return recall_at(self.first_correct(found), self.recall_at) if self.has_recall else {}

    def first_correct(self, found: Indices, rows: Indices | None = None) -> Indices:
        """The rank of the first correct neighbour of each answerable query: int64 [A], A <= Q.

        found   picture numbers int64 [Q, K'] from ``neighbours``; the pictures must have classes
        rows    rows of the queries that count, None: all

        See ``retrieval.first_correct``.
        """
        answerable = self.relevant > 0
        if rows is not None:
            answerable &= np.isin(np.arange(len(answerable)), rows)
        return first_correct(self._correct(found, slice(None)))[answerable]

    def measure(self, descriptors: Descriptors) -> dict[str, Any]:
        """Measure recall and mAP@R of unit descriptors float32 [N, D].

        Returns {"recall": recall@K by K, "map_at_r": mAP@R, "queries": ``asked``}. Memory holds CHUNK x G similarities
        at a time, however many queries there are. Raises InputError as ``check_recall`` does.
        """
        self.check_recall()
        depth = min(max(*self.recall_at, self.relevant.max()), len(self.gallery) - (self.in_gallery is None))
        firsts, precisions = [], []
        for rows, found, _ in neighbour_chunks(
            descriptors[self.queries], descriptors[self.gallery], depth, **self._rules
        ):
            correct = self._correct(self.gallery[found], rows)
            firsts.append(first_correct(correct))
            precisions.append(precision_at_r(correct, self.relevant[rows]))
        answerable = self.relevant > 0
        return {
            "recall": recall_at(np.concatenate(firsts)[answerable], self.recall_at),
            "map_at_r": float(np.concatenate(precisions)[answerable].mean()),
            "queries": self.asked,
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, strings and numbers, for a checkpoint."""
        return {
            "images": self.images.to_dict(),
            "in_gallery": list(self.in_gallery) if self.in_gallery else None,
            "recall_at": list(self.recall_at),
            "cameras": list(self.cameras) if self.cameras else None,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Evaluation:
        """The inverse of ``to_dict``; dicts of older releases have no "cameras"."""
        roles: Sequence[bool] | None = data["in_gallery"]
        cameras: Sequence[str] | None = data.get("cameras")
        return cls(
            ImageList.from_dict(data["images"]),
            tuple(roles) if roles else None,
            tuple(data["recall_at"]),
            tuple(cameras) if cameras else None,
        )

    @cached_property
    def _labels(self) -> Indices:
        return _numbered(self.images.classes or ())

    @cached_property
    def _sightings(self) -> Indices:
        """A number for each pair of class and camera, int64 [N]."""
        return _numbered([f"{camera} {label}" for camera, label in zip(self.cameras or (), self._labels, strict=True)])

    @cached_property
    def _hidden(self) -> Indices:
        """How many gallery pictures are hidden from each query, int64 [Q]."""
        if self.cameras is None:
            return np.full(len(self.queries), self.in_gallery is None, np.int64)
        return _counts(self._sightings[self.queries], self._sightings[self.gallery])

    @property
    def _rules(self) -> dict[str, Any]:
        """Which gallery pictures ``retrieval.neighbours`` hides from which query."""
        groups = (self._sightings[self.queries], self._sightings[self.gallery]) if self.cameras else None
        return {"skip_self": self.in_gallery is None, "groups": groups}

    def _correct(self, found: Indices, rows: slice) -> NDArray[np.bool_]:
        """Whether each found picture has its query's class, for the queries at ``rows``: bool, shaped as ``found``.

        Hidden pictures come after all others, so they are neither first nor among the first R.
        """
        return self._labels[found] == self._labels[self.queries[rows, None]]


def left_out_queries(asked: Mapping[str, int | None]) -> str | None:
    """A sentence on the queries that recall leaves out, see ``Evaluation.asked``; None if there are none."""
    queries, unanswerable = asked["asked"], asked["unanswerable"]
    if not unanswerable:
        return None
    if queries == unanswerable:
        return f"recall is not measured: none of the {queries} queries has a picture of its class to find."
    return f"recall leaves out {unanswerable} of {queries} queries: there is no picture of their class to find."


def _numbered(names: Sequence[str]) -> Indices:
    """Number the names, int64 [N]: equal names get equal numbers, counted from 0."""
    return np.unique(np.asarray(names, str), return_inverse=True)[1].astype(np.int64)


def _counts(numbers: Indices, among: Indices) -> Indices:
    """How often each number occurs in ``among``, int64 shaped as ``numbers``."""
    return np.bincount(among, minlength=int(numbers.max(initial=0)) + 1)[numbers]
