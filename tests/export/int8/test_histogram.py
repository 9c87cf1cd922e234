"""Ranges from a histogram, against plain loops over values."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cgd_export.int8.histogram import BINS, STEP, entropy_bins, mse_bins, percentile_bins

HIGH = [127, 255]


def counts_of(values: np.ndarray) -> np.ndarray:
    """Of magnitudes up to 1."""
    counts = np.zeros(BINS, np.int64)
    for value in values:
        counts[min(int(value * BINS), BINS - 1)] += 1
    return counts


@pytest.fixture(scope="module")
def values() -> np.ndarray:
    """A bell with long tails, of which half is cut off at zero."""
    random = np.random.default_rng(0)
    bell = np.abs(random.standard_t(3, 20000))
    bell[random.random(20000) < 0.5] = 0
    return bell / bell.max()


@pytest.mark.parametrize("outliers", [1, 2, 5])
def test_99_99_percent_of_the_values_are_in_the_percentile_bins(outliers):
    values = np.concatenate([np.linspace(0, 0.25, 20000), np.full(outliers, 0.9)])
    bins = percentile_bins(counts_of(values))
    inside = sum(value < bins / BINS for value in values)
    fewer = sum(value < (bins - 1) / BINS for value in values)
    assert fewer / len(values) < 0.9999 <= inside / len(values)
    assert (bins > BINS * 0.89) == (outliers > 2)


@pytest.mark.parametrize(("high", "gain"), [(3, 0.3), (15, 0.5), (127, 0.98)])
def test_the_squared_error_of_the_values_themselves_is_least(values, high, gain):
    def error(bins: int) -> float:
        scale = bins / BINS / high
        return sum((v - scale * min(high, round(v / scale))) ** 2 for v in values.tolist())

    found = mse_bins(counts_of(values), high)
    assert found % STEP == 0 and found < BINS
    others = range(BINS, high, -10 * STEP)
    assert error(found) <= 1.02 * min(error(bins) for bins in others)
    assert error(found) < gain * error(BINS)


@pytest.mark.parametrize("high", HIGH)
def test_the_least_information_is_lost_by_loops(values, high):
    counts = counts_of(values)

    def divergence(bins: int) -> float:
        """Of all values, told by the bins of which codes 0..high share, from the bins themselves."""
        told = [0.0, *(float(n) for n in counts[1:bins])]
        shared = [0.0] * bins
        for code in range(high + 1):
            members = [i for i in range(1, bins) if i * (high + 1) // bins == code]
            filled = [i for i in members if counts[i]]
            for i in filled:
                shared[i] = sum(told[j] for j in members) / len(filled)
        told[-1] += sum(counts[bins:].tolist())
        if not shared[-1]:
            return math.inf
        total, kept = sum(told), sum(shared)
        return sum(p / total * math.log(p / total / (q / kept)) for p, q in zip(told, shared, strict=True) if p)

    found = entropy_bins(counts, high)
    others = [found + step for step in (-10 * STEP, -2 * STEP, -STEP, STEP, 2 * STEP, 10 * STEP)]
    others = [bins for bins in [*others, BINS] if high < bins <= BINS]
    assert all(divergence(found) <= divergence(bins) * (1 + 1e-9) for bins in others)
    assert high < found < 0.5 * BINS and divergence(found) < math.inf


@pytest.mark.parametrize("high", HIGH)
@pytest.mark.parametrize("value", [1.0, 0.0])
def test_a_tensor_with_one_value_keeps_its_range(high, value):
    counts = counts_of(np.full(100, value))
    assert mse_bins(counts, high) == entropy_bins(counts, high) == BINS
    assert percentile_bins(counts) == (BINS if value else 1)


@pytest.mark.parametrize("choose", [mse_bins, entropy_bins])
def test_what_a_relu_has_cut_does_not_decide(values, choose):
    counts = counts_of(values)
    more = counts.copy()
    more[0] += 10**9
    assert choose(more, 255) == choose(counts, 255)
