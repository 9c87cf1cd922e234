"""Choose the range of a tensor from a histogram of its magnitudes. Knows no pictures and no graphs.

A histogram is int64 [BINS]: the counts of |x| in BINS equal parts of 0 to the largest |x|. Every function returns how
many bins, from zero up, the range covers. ENTROPY and MSE leave out the first bin: a ReLU fills it with zeros, and
zero has a code in every range.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BINS = 4096
STEP = 16
"""Candidate ranges differ by this many bins."""
PERCENTILE = 99.99

Counts = NDArray[np.int64]


def percentile_bins(counts: Counts) -> int:
    """The fewest bins that hold 99.99 % of all values."""
    return int(np.searchsorted(counts.cumsum(), counts.sum() * PERCENTILE / 100)) + 1


def entropy_bins(counts: Counts, high: int) -> int:
    """The bins that lose the least information when codes 0..high stand for them.

    Takes the smallest Kullback-Leibler divergence of Migacz 2017 (8-bit inference with TensorRT). It compares the bins,
    with all values beyond added to the last bin, with the same bins after the bins of one code share values evenly.
    """
    return min(_candidates(high), key=lambda bins: _divergence(counts, bins, high + 1))


def mse_bins(counts: Counts, high: int) -> int:
    """The bins with the least sum of (x - scale * min(round(x / scale), high))^2, where scale = bins / high."""
    middles = np.arange(BINS) + 0.5

    def error(bins: int) -> float:
        scale = bins / high
        rounded = scale * np.minimum(np.round(middles / scale), high)
        return float(counts[1:] @ np.square(middles - rounded)[1:])

    return min(_candidates(high), key=error)


def _candidates(high: int) -> range:
    """Numbers of bins to try: from all bins down to one for each code."""
    return range(BINS, high, -STEP)


def _divergence(counts: Counts, bins: int, codes: int) -> float:
    kept = counts[:bins].astype(np.float64)
    kept[0] = 0
    clipped = kept.copy()
    clipped[-1] += counts[bins:].sum()
    starts = np.ceil(np.arange(codes) * bins / codes).astype(int)
    members = np.diff(np.append(starts, bins))
    filled = np.repeat(np.maximum(np.add.reduceat((kept > 0).astype(float), starts), 1), members)
    shared = np.repeat(np.add.reduceat(kept, starts), members) / filled * (kept > 0)
    at = clipped > 0
    if not at.any() or not shared[at].all():
        return float(np.inf)
    p, q = clipped[at] / clipped.sum(), shared[at] / shared.sum()
    return float(p @ np.log(p / q))
