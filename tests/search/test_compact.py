"""Smaller forms of descriptors, re-derived value by value."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cgd_deploy.errors import InputError
from cgd_deploy.search.compact import DTYPES, Compact, check_form, fit
from cgd_deploy.search.retrieval import neighbours

N, D = 40, 13


def unit_rows(count: int, dim: int, seed: int = 0) -> np.ndarray:
    """Unit float32 rows whose dimensions differ in spread and whose mean is not zero."""
    rows = np.random.default_rng(seed).normal(0.3, np.linspace(0.2, 2, dim), (count, dim))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def rows() -> np.ndarray:
    return unit_rows(N, D)


def normalised(row: list[float]) -> list[float]:
    norm = math.sqrt(sum(value * value for value in row))
    return [value / norm for value in row]


@pytest.mark.parametrize(
    ("dtype", "stored", "size"), [("float32", "float32", 52), ("float16", "float16", 26), ("int8", "int8", 13)]
)
def test_each_value_has_the_bytes_of_its_dtype(rows, dtype, stored, size):
    form = fit(rows, dtype)
    kept = form.store(rows)
    assert (str(kept.dtype), kept.shape, kept.nbytes) == (stored, (N, D), N * size)
    assert (form.bytes_per_descriptor, form.length, form.dim, form.pca) == (size, D, D, None)


def test_float32_is_kept_to_the_bit(rows):
    form = fit(rows)
    assert np.array_equal(form.restore(form.store(rows)), rows)


def test_float16_is_normalised_when_it_is_read(rows):
    form = fit(rows, "float16")
    restored = form.restore(form.store(rows))
    for row, found in zip(rows, restored, strict=True):
        assert found == pytest.approx(normalised([float(np.float16(value)) for value in row]), abs=1e-6)
    assert np.abs(np.linalg.norm(restored, axis=1) - 1).max() < 1e-6


def test_int8_scales_each_row_by_its_own_largest_magnitude(rows):
    form = fit(rows, "int8")
    kept = form.store(rows)
    for row, codes, found in zip(rows.tolist(), kept.tolist(), form.restore(kept), strict=True):
        largest = max(abs(value) for value in row)
        assert codes == [round(value / largest * 127) for value in row]
        assert max(map(abs, codes)) == 127
        assert found == pytest.approx(normalised(codes), abs=1e-6)


@pytest.mark.parametrize("length", [1, 7, 8, 9, 64])
def test_binary_keeps_a_sign_a_bit(length):
    rows = unit_rows(N, length)
    form = fit(rows, "binary")
    kept = form.store(rows)
    assert (kept.dtype, kept.shape) == (np.uint8, (N, math.ceil(length / 8)))
    assert form.bytes_per_descriptor == math.ceil(length / 8)
    for row, bits, found in zip(rows.tolist(), kept.tolist(), form.restore(kept).tolist(), strict=True):
        for i, value in enumerate(row):
            assert (bits[i // 8] >> (7 - i % 8)) & 1 == (value >= 0)
        assert found == pytest.approx([math.copysign(length**-0.5, value) for value in row])


def test_queries_are_not_rounded(rows):
    form = fit(rows, "binary")
    assert form.project(rows) is rows
    [[first, *_]], [[similarity, *_]] = neighbours(form.project(rows[:1]), form.restore(form.store(rows)), 3)
    assert first == 0
    assert similarity == pytest.approx(sum(abs(float(value)) for value in rows[0]) / math.sqrt(D), abs=1e-6)


def test_pca_by_power_iteration(rows):
    """The components are the directions of largest variance, found here one after another by deflation."""
    projection = fit(rows, pca=3).projection
    centred = rows.astype(np.float64) - rows.astype(np.float64).sum(axis=0) / N
    assert projection.dtype == np.float32 and projection.shape == (4, D)
    assert projection[0] == pytest.approx(rows.astype(np.float64).sum(axis=0) / N, abs=1e-7)
    for component in projection[1:].astype(np.float64):
        direction = np.ones(D)
        for _ in range(3000):
            direction = centred.T @ (centred @ direction)
            direction /= np.linalg.norm(direction)
        assert abs(direction @ component) == pytest.approx(1, abs=1e-5)
        centred = centred - np.outer(centred @ direction, direction)


def test_a_components_largest_entry_is_positive(rows):
    for component in fit(rows, pca=D).projection[1:].tolist():
        assert max(component) == max(map(abs, component))


def test_queries_go_through_the_gallerys_projection(rows):
    form = fit(rows, pca=5)
    queries = unit_rows(4, D, seed=1)
    mean, components = form.projection[0].tolist(), form.projection[1:].tolist()
    for query, found in zip(queries.tolist(), form.project(queries), strict=True):
        centred = [value - middle for value, middle in zip(query, mean, strict=True)]
        values = [sum(a * b for a, b in zip(centred, component, strict=True)) for component in components]
        assert found == pytest.approx(normalised(values), abs=1e-5)
    assert form.project(queries).dtype == np.float32


def test_a_large_gallery_is_fitted_in_parts_as_if_whole():
    rows = unit_rows(2500, 6)
    _, vectors = np.linalg.eigh(np.cov(rows.astype(np.float64).T))
    found = fit(rows, pca=2).projection[1:]
    assert np.abs(found @ vectors[:, :-3:-1]) == pytest.approx(np.eye(2), abs=1e-5)


def test_all_components_keep_the_distances_between_centred_rows(rows):
    projected = fit(rows, pca=D).project(rows)
    centred = rows - rows.mean(axis=0)
    centred /= np.linalg.norm(centred, axis=1, keepdims=True)
    assert projected @ projected.T == pytest.approx(centred @ centred.T, abs=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_pca_and_dtype_go_together(rows, dtype):
    form = fit(rows, dtype, 9)
    kept = form.store(rows)
    assert kept.nbytes == N * form.bytes_per_descriptor
    assert form.bytes_per_descriptor == {"float32": 36, "float16": 18, "int8": 9, "binary": 2}[dtype]
    form.check(kept)
    restored = form.restore(kept)
    assert restored.dtype == np.float32 and restored.shape == (N, 9)
    close = (restored * form.project(rows)).sum(axis=1).min()
    assert close > (1 / math.sqrt(9) if dtype == "binary" else 0.999)  # a sum of magnitudes is no less than the norm


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_of_zeros_is_not_nan(dtype):
    same = np.repeat(unit_rows(1, D), 3, axis=0)  # the mean itself: nothing is left of it
    form = fit(same, dtype, 2)
    assert not form.project(same).any()
    restored = form.restore(form.store(same))
    assert np.isfinite(restored).all()
    assert dtype == "binary" or not restored.any()


def test_it_is_the_same_every_time(rows):
    one, other = (fit(rows, "int8", 4) for _ in range(2))
    assert np.array_equal(one.projection, other.projection)
    assert np.array_equal(one.store(rows), other.store(rows))


def refused(message: str, call, *arguments) -> None:
    with pytest.raises(InputError, match=message) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")


@pytest.mark.parametrize(
    ("pca", "dim", "pictures", "advice"),
    [
        (0, 8, 100, "pass 1 to 8"),
        (-1, 8, 100, "pass 1 to 8"),
        (9, 8, 100, "pass 1 to 8"),
        (5, 8, 5, "pass 1 to 4"),
        (1, 8, 1, "leave it out"),
    ],
)
def test_more_components_than_there_are_are_refused(pca, dim, pictures, advice):
    refused(f"pca={pca} cannot be fitted .*{advice}", check_form, "int8", pca, dim, pictures)
    refused(advice, fit, unit_rows(pictures, dim), "int8", pca)


def test_the_most_components_there_are_are_fitted():
    assert fit(unit_rows(5, 8), pca=4).length == 4
    assert fit(unit_rows(50, 8), pca=8).length == 8


def test_an_unknown_dtype_is_refused(rows):
    for call in (lambda: fit(rows, "int4"), lambda: check_form("int4", None, D, N), lambda: Compact("int4", D)):
        refused("'int4' is unknown; expected one of float32, float16, int8, binary", call)


def test_queries_of_another_length_are_refused(rows):
    refused("12 values, the PCA takes 13", fit(rows, pca=2).project, rows[:, :12])


@pytest.mark.parametrize("stored", [np.zeros((3, 13), np.float32), np.zeros((3, 12), np.int8), np.zeros(13, np.int8)])
def test_arrays_of_another_form_are_refused(rows, stored):
    refused("expected|make the index again", fit(rows, "int8").check, stored)
