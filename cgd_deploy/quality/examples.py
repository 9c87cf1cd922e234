"""Chooses the queries of a report, and lists the neighbours that each engine found for them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..datasets.evaluation import Evaluation
from ..search.retrieval import NEIGHBOURS, Indices, Retrieved
from .report import Neighbour, QueryRow


def example_queries(
    found: Mapping[str, Retrieved], reference: str, evaluation: Evaluation, count: int
) -> list[QueryRow]:
    """Half are the queries whose neighbours changed most under any engine; half are spread evenly over the list.

    found       neighbours by the title of a column
    reference   title of the reference's column
    """
    images, queries = evaluation.images, evaluation.queries.tolist()
    expected = found[reference].indices[:, :NEIGHBOURS]
    same = [_shared(found[title].indices[:, :NEIGHBOURS], expected) for title in found if title != reference]
    worst = np.argsort(np.min(same, axis=0), kind="stable")[: count // 2].tolist() if same else []
    even = np.linspace(0, len(queries) - 1, count - count // 2).astype(int).tolist()
    return [
        QueryRow(
            images.path(queries[row]),
            images.box(queries[row]),
            images.classes[queries[row]] if images.classes else None,
            {title: _strip(retrieved, expected, evaluation, row) for title, retrieved in found.items()},
        )
        for row in dict.fromkeys([*worst, *even])
    ]


def _strip(retrieved: Retrieved, expected: Indices, evaluation: Evaluation, row: int) -> list[Neighbour]:
    known = set(expected[row].tolist())
    images = evaluation.images
    label = images.classes[evaluation.queries[row]] if images.classes else None
    indices, similarities = (
        retrieved.indices[row, :NEIGHBOURS].tolist(),
        retrieved.similarities[row, :NEIGHBOURS].tolist(),
    )
    return [
        Neighbour(
            path=images.path(index),
            box=images.box(index),
            label=images.classes[index] if images.classes else None,
            similarity=similarity,
            correct=images.classes[index] == label if images.classes else None,
            changed=index not in known,
        )
        for index, similarity in zip(indices, similarities, strict=True)
    ]


def _shared(indices: Indices, expected: Indices) -> list[int]:
    return [len(np.intersect1d(a, b)) for a, b in zip(indices, expected, strict=True)]
