"""What a test set asks: which pictures search among which, and how well descriptors answer. Knows no model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .errors import InputError
from .images import ImageList
from .retrieval import (
    RECALL_AT,
    Descriptors,
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

    images       all of them, queries and gallery
    in_gallery   None: every picture searches all the others (CARS196, CUB200, SOP); otherwise, of each picture,
                 whether it is searched (True) or searches (False), as in In-shop
    recall_at    the K of recall@K

    Raises InputError if ``in_gallery`` does not fit the pictures or leaves no query or no gallery.
    """

    images: ImageList
    in_gallery: tuple[bool, ...] | None = None
    recall_at: tuple[int, ...] = RECALL_AT

    def __post_init__(self) -> None:
        roles = self.in_gallery
        if roles is not None and (len(roles) != len(self.images) or all(roles) or not any(roles)):
            raise InputError(
                f"of {len(self.images)} test pictures {sum(roles)} are the gallery and {len(roles) - sum(roles)} are "
                "queries; expected every picture to be one of the two, and at least one of each."
            )

    def __repr__(self) -> str:
        searched = (
            f"{len(self.queries)} queries, {len(self.gallery)} gallery"
            if self.in_gallery
            else "every picture searches the others"
        )
        return f"<Evaluation: {searched}, in {self.images!r}>"

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
        """How many pictures a query can find."""
        return len(self.gallery) - (self.in_gallery is None)

    def subset(self, indices: Iterable[int]) -> Evaluation:
        """The test pictures at ``indices``, in that order, with their roles.

        Raises InputError if no query or no gallery picture is left.
        """
        chosen = list(indices)
        if not chosen:
            raise InputError(f"no test picture of {self.images.root} is left; pass pictures that can be read.")
        roles = tuple(self.in_gallery[i] for i in chosen) if self.in_gallery else None
        return replace(self, images=self.images.subset(chosen), in_gallery=roles)

    def without(self, numbers: Iterable[int]) -> Evaluation:
        """All test pictures but those at ``numbers``; raises InputError as ``subset`` does."""
        left_out = set(numbers)
        return self.subset(number for number in range(len(self.images)) if number not in left_out)

    def neighbours(
        self, descriptors: Descriptors, k: int, gallery: Descriptors | None = None
    ) -> tuple[Indices, Descriptors]:
        """The k nearest gallery pictures of each query, best first.

        descriptors   unit, float32 [N, D], of all pictures in list order
        gallery       the same of another engine, [N, D], to search in
        Returns picture numbers int64 [Q, k] and cosine similarities float32 [Q, k]; raises InputError as
        ``retrieval.neighbours`` does.
        """
        searched = descriptors if gallery is None else gallery
        found, similarities = neighbours(
            descriptors[self.queries], searched[self.gallery], k, skip_self=self.in_gallery is None
        )
        return self.gallery[found], similarities

    def recall(self, found: Indices) -> dict[str, float]:
        """Recall@K by K from picture numbers [Q, K'] that ``neighbours`` gave; empty without classes."""
        return {} if self.images.classes is None else recall_at(self.first_correct(found), self.recall_at)

    def first_correct(self, found: Indices) -> Indices:
        """Of each query, the place of the first neighbour of its class, see ``retrieval.first_correct``: int64 [Q].

        found   picture numbers int64 [Q, K'] that ``neighbours`` gave, of pictures that have classes
        """
        labels = np.asarray(self.images.classes)
        return first_correct(labels[found] == labels[self.queries, None])

    def measure(self, descriptors: Descriptors) -> dict[str, Any]:
        """{"recall": recall@K by K, "map_at_r": mAP@R} of unit descriptors float32 [N, D].

        Held in memory are CHUNK x G similarities at a time, however many queries there are. Raises InputError if the
        pictures have no classes.
        """
        if self.images.classes is None:
            raise InputError(f"the test pictures in {self.images.root} have no classes; recall needs them.")
        _, labels = np.unique(self.images.classes, return_inverse=True)
        queries, gallery = labels[self.queries], labels[self.gallery]
        relevant = np.bincount(gallery, minlength=labels.max() + 1)[queries] - (self.in_gallery is None)
        depth = min(max(*self.recall_at, relevant.max()), self.offered)
        firsts, precisions = [], []
        for rows, found, _ in neighbour_chunks(
            descriptors[self.queries], descriptors[self.gallery], depth, skip_self=self.in_gallery is None
        ):
            correct = gallery[found] == queries[rows, None]
            firsts.append(first_correct(correct))
            precisions.append(precision_at_r(correct, relevant[rows]))
        return {
            "recall": recall_at(np.concatenate(firsts), self.recall_at),
            "map_at_r": float(np.concatenate(precisions).mean()),
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, strings and numbers, for a checkpoint."""
        return {
            "images": self.images.to_dict(),
            "in_gallery": list(self.in_gallery) if self.in_gallery else None,
            "recall_at": list(self.recall_at),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Evaluation:
        """The inverse of ``to_dict``."""
        roles: Sequence[bool] | None = data["in_gallery"]
        return cls(ImageList.from_dict(data["images"]), tuple(roles) if roles else None, tuple(data["recall_at"]))
