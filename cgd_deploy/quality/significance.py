"""Confidence intervals of the difference between two recalls of the same queries. Knows no model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..datasets.evaluation import Evaluation
from ..search.retrieval import Indices

RESAMPLES = 10_000
PERCENTILES = (2.5, 97.5)


class Drop(NamedTuple):
    """A drop in percentage points and the ends of its 95 % confidence interval; below zero is a gain."""

    drop: float
    low: float
    high: float


def paired_drop(before: NDArray[np.bool_], after: NDArray[np.bool_], seed: int = 0) -> Drop:
    """The drop of a recall, with the percentile interval of the paired bootstrap (Efron and Tibshirani 1993, ch. 13).

    before, after   bool [Q]: whether each query found its class; query i is the same in both

    d_q = before_q - after_q is -1, 0 or 1, and drop = 100 / Q * sum_q d_q. A bootstrap sample draws Q queries with
    replacement. Its drop depends only on how many queries have each difference, and these counts follow
    (m-, m0, m+) ~ Multinomial(Q, (n-, n0, n+) / Q), where n are the observed counts. So we draw the counts 10,000
    times, without drawing queries: drop* = 100 * (m+ - m-) / Q. low and high are the 2.5 and 97.5 percentiles.
    If no query changes, the interval is a point. The interval is about other queries, not about another gallery.
    """
    total = len(before)
    differences = before.astype(np.int8) - after.astype(np.int8)
    shares = np.array([(differences == value).sum() for value in (-1, 0, 1)]) / total
    drawn = np.random.default_rng(seed).multinomial(total, shares, RESAMPLES)  # (10_000, 3)
    low, high = np.percentile(100 * (drawn[:, 2] - drawn[:, 0]) / total, PERCENTILES)
    return Drop(*(round(float(value), 4) for value in (100 * differences.mean(), low, high)))


def mean_interval(values: NDArray[np.float64], seed: int = 0) -> tuple[float, float]:
    """The ends of the 95 % interval of the mean of ``values`` [Q], by the bootstrap over queries as in ``paired_drop``.

    The values of overlap@K are few, so we draw how often each value occurs.
    """
    distinct, counts = np.unique(values, return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(len(values), counts / len(values), RESAMPLES)  # (10_000, V)
    low, high = np.percentile(drawn @ distinct / len(values), PERCENTILES)
    return round(float(low), 5), round(float(high), 5)


def recall_drops(
    evaluation: Evaluation,
    before: Indices,
    after: Indices,
    ks: Sequence[int] | None = None,
    rows: Indices | None = None,
) -> dict[str, Drop]:
    """The drop of recall@K by K; empty without classes, or if no query is answerable.

    before, after   picture numbers int64 [Q, K'] from ``Evaluation.neighbours``
    ks              None: the K of ``evaluation``
    rows            rows of the queries that count; None: all
    """
    if not evaluation.has_recall:
        return {}
    first, second = (evaluation.first_correct(found, rows) for found in (before, after))
    if not len(first):
        return {}
    return {str(k): paired_drop(first < k, second < k) for k in ks or evaluation.recall_at}
