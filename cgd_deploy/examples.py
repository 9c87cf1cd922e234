"""Which queries a report shows, and what each engine found for them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from .images import ImageList
from .report import Neighbour, QueryRow
from .retrieval import Indices, Retrieved


def example_queries(found: Mapping[str, Retrieved], reference: str, images: ImageList, count: int) -> list[QueryRow]:
    """Half the queries whose neighbours changed most under any engine, half spread evenly over the list.

    found       what each engine retrieved among ``images``, by the title of its column; ``reference`` is one of them
    """
    expected = found[reference].indices
    same = [_shared(found[title].indices, expected) for title in found if title != reference]
    worst = np.argsort(np.min(same, axis=0), kind="stable")[: count // 2].tolist() if same else []
    even = np.linspace(0, len(images) - 1, count - count // 2).astype(int).tolist()
    return [
        QueryRow(
            images.path(query),
            images.box(query),
            images.classes[query] if images.classes else None,
            {title: _strip(retrieved, expected, images, query) for title, retrieved in found.items()},
        )
        for query in dict.fromkeys([*worst, *even])
    ]


def _strip(retrieved: Retrieved, expected: Indices, images: ImageList, query: int) -> list[Neighbour]:
    known = set(expected[query].tolist())
    classes = images.classes
    return [
        Neighbour(
            path=images.path(index),
            box=images.box(index),
            label=classes[index] if classes else None,
            similarity=float(similarity),
            correct=classes[index] == classes[query] if classes else None,
            changed=index not in known,
        )
        for index, similarity in zip(retrieved.indices[query].tolist(), retrieved.similarities[query], strict=True)
    ]


def _shared(indices: Indices, expected: Indices) -> list[int]:
    return [len(np.intersect1d(a, b)) for a, b in zip(indices, expected, strict=True)]
