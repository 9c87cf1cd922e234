"""The range that a tensor's codes had better cover, from a histogram of its magnitudes. Knows no pictures, no graphs.

A histogram is int64 [BINS]: how many |x| lie in each of as many equal parts of 0 to the largest. Every function returns
a number of bins, counted from zero. What lies in the first one is left out where rounding counts: most of it is what a
ReLU has cut, which every range gives its own code.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BINS = 4096
STEP = 16
"""Ranges are tried every so many bins."""
PERCENTILE = 99.99

Counts = NDArray[np.int64]


def percentile_bins(counts: Counts, high: int) -> int:
    """The fewest bins that hold 99.99 % of all values, however many codes there are."""
    return int(np.searchsorted(counts.cumsum(), counts.sum() * PERCENTILE / 100)) + 1


def entropy_bins(counts: Counts, high: int) -> int:
    """The bins whose values, told by codes 0..high, lose the least information against all values.

    That is the smallest Kullback-Leibler divergence of Migacz 2017 (8-bit inference with TensorRT): against the bins
    as they are, with what lies beyond added to the last of them, of the same bins when those of one code share alike.
    """
    return min(_candidates(high), key=lambda bins: _divergence(counts, bins, high + 1))


def mse_bins(counts: Counts, high: int) -> int:
    """The bins with the least sum of (x - scale * min(round(x / scale), high))^2, scale being their width / high."""
    middles = np.arange(BINS) + 0.5

    def error(bins: int) -> float:
        scale = bins / high
        rounded = scale * np.minimum(np.round(middles / scale), high)
        return float(counts[1:] @ np.square(middles - rounded)[1:])

    return min(_candidates(high), key=error)


def _candidates(high: int) -> range:
    """Never less than a bin for each code, and all of them in the end."""
    return range(BINS, high, -STEP)


def _divergence(counts: Counts, bins: int, codes: int) -> float:
    kept = counts[:bins].astype(np.float64)
    kept[0] = 0
    told = kept.copy()
    told[-1] += counts[bins:].sum()
    starts = np.ceil(np.arange(codes) * bins / codes).astype(int)
    members = np.diff(np.append(starts, bins))
    filled = np.repeat(np.maximum(np.add.reduceat((kept > 0).astype(float), starts), 1), members)
    shared = np.repeat(np.add.reduceat(kept, starts), members) / filled * (kept > 0)
    at = told > 0
    if not at.any() or not shared[at].all():
        return float(np.inf)
    p, q = told[at] / told.sum(), shared[at] / shared.sum()
    return float(p @ np.log(p / q))
