"""Compares an engine's neighbours with the reference's, for float32 and compact galleries.

Runs no engine: takes descriptors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

from ..datasets.evaluation import Evaluation
from ..runtime.descriptors import cosines
from ..search.compact import fit
from ..search.retrieval import NEIGHBOURS, Indices, Retrieved, overlaps
from .significance import mean_interval, recall_drops

Form = tuple[str, int | None]
"""A descriptor dtype, and the number of PCA components or None."""


def retrieval_quality(found: Retrieved, expected: Retrieved, evaluation: Evaluation) -> dict[str, Any]:
    """The JSON of one engine's retrieval: recall, and neighbours and cosines compared with the reference.

    found, expected   neighbours of the engine and of the reference
    """
    similar = cosines(found.descriptors, expected.descriptors)
    depth = found.indices.shape[1]
    crossed, _ = evaluation.neighbours(found.descriptors, depth, gallery=expected.descriptors)
    before, across = evaluation.recall(expected.indices), evaluation.recall(crossed)
    return {
        **_against(expected.indices, found.indices, evaluation),
        "cross_recall_drop_pp": {k: round(100 * (before[k] - across[k]), 4) for k in before},
        "cosine": {"min": float(similar.min()), "mean": float(similar.mean())},
        "rank_flips": int((found.indices[:, 0] != expected.indices[:, 0]).sum()),
    }


def compact_forms(dtypes: Sequence[str], pcas: Sequence[int]) -> list[Form]:
    """Each dtype with each PCA, once. Without dtypes it is float32, without PCAs no PCA; without both it is empty."""
    components: Sequence[int | None] = pcas or [None]
    return list(dict.fromkeys(product(dtypes or ["float32"], components))) if dtypes or pcas else []


def compact_quality(
    found: Retrieved,
    expected: Retrieved,
    evaluation: Evaluation,
    forms: Sequence[Form],
    on_form: Callable[[float], None] = lambda done: None,
) -> list[dict[str, Any]]:
    """The JSON of an engine's retrieval with its gallery in each form, compared with the reference's float32 gallery.

    found, expected   neighbours of the engine and of the reference
    on_form           called with the fraction of the forms that is done

    The PCA is fitted to the gallery, as ``cgd-deploy embed`` fits it; queries are projected and not rounded. Raises
    InputError for a form that the gallery cannot have.
    """
    measured: list[dict[str, Any]] = []
    for dtype, pca in forms:
        compact = fit(found.descriptors[evaluation.gallery], dtype, pca)
        gallery = compact.restore(compact.store(found.descriptors))
        indices, _ = evaluation.neighbours(compact.project(found.descriptors), found.indices.shape[1], gallery=gallery)
        measured.append(
            {
                "descriptor_dtype": dtype,
                "pca": pca,
                "bytes_per_descriptor": compact.bytes_per_descriptor,
                **_against(expected.indices, indices, evaluation),
            }
        )
        on_form(len(measured) / len(forms))
    return measured


def _against(expected: Indices, found: Indices, evaluation: Evaluation) -> dict[str, Any]:
    before, after = evaluation.recall(expected), evaluation.recall(found)
    shared = overlaps(found[:, :NEIGHBOURS], expected[:, :NEIGHBOURS])
    drops = recall_drops(evaluation, expected, found)
    return {
        "recall": after,
        "recall_drop_pp": {k: round(100 * (before[k] - after[k]), 4) for k in before},
        "recall_drop_interval_pp": {k: [drop.low, drop.high] for k, drop in drops.items()},
        "overlap_at_10": round(float(shared.mean()), 5),
        "overlap_at_10_interval": list(mean_interval(shared)),
    }
