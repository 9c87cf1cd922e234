"""Search on stored rows finds what the reference finds among restored rows, and restores few rows at a time."""

from __future__ import annotations

import numpy as np
import pytest

from cgd_deploy.search import exact
from cgd_deploy.search.compact import DTYPES, Compact, fit
from cgd_deploy.search.exact import HAMMING, ROWS, Rows, merged, nearest, nothing, ranked
from cgd_deploy.search.retrieval import neighbours

EXACT = [dtype for dtype in DTYPES if dtype != "binary"]
WAYS = [pytest.param(way, id=name) for way, name in ((True, "usearch"), (False, "numpy"))]


@pytest.fixture(params=WAYS)
def way(request, monkeypatch) -> bool:
    if request.param and not exact.has_usearch():
        pytest.skip("no usearch before 2.26 is installed")
    monkeypatch.setattr(exact, "has_usearch", lambda: request.param)
    return request.param


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def gallery(count: int, dim: int = 48, seed: int = 0) -> np.ndarray:
    """Rows in clusters of about ten."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(count // 10 + 1, dim))
    return unit(centres[random.integers(len(centres), size=count)] + random.normal(0, 0.5, (count, dim)))


def rows_of(compact: Compact, descriptors: np.ndarray, removed: list[int] | None = None) -> Rows:
    gone = np.zeros(len(descriptors), bool)
    gone[removed or []] = True
    return Rows(compact, compact.store(descriptors), gone)


def same(found: tuple[np.ndarray, np.ndarray], rows: Rows, queries: np.ndarray, k: int) -> None:
    """The result is right by plain loops in float64; neighbours may change places where float32 sees no difference."""
    restored = rows.compact.restore(rows.stored).astype(np.float64)
    for query, indices, similarities in zip(queries, *found, strict=True):
        cosines = [float(query @ row) if not gone else -2 for row, gone in zip(restored, rows.removed, strict=True)]
        best = sorted(cosines, reverse=True)[:k]
        assert len(set(indices.tolist())) == k and not rows.removed[indices].any()
        assert similarities == pytest.approx(best, abs=1e-6)
        assert [cosines[i] for i in indices] == pytest.approx(best, abs=1e-6)


@pytest.mark.parametrize("pca", [None, 20])
@pytest.mark.parametrize("dtype", EXACT)
@pytest.mark.parametrize("count", [25, ROWS, 3 * ROWS + 7])
def test_the_reference_finds_the_same(way, count, dtype, pca):
    descriptors = gallery(count)
    compact = fit(descriptors, dtype, pca)
    rows, queries = rows_of(compact, descriptors), compact.project(gallery(9, seed=1))
    found = nearest(rows, queries, 10)
    indices, similarities = neighbours(queries, compact.restore(rows.stored), 10)
    assert found[0].dtype == np.int64 and found[1].dtype == np.float32
    assert np.array_equal(found[0], indices) and np.allclose(found[1], similarities, atol=1e-6)
    same(found, rows, queries, 10)


def test_few_binary_rows_and_many_queries_are_searched_exactly():
    for count, queries in ((700, 5), (3 * HAMMING, exact.FEW)):
        descriptors = gallery(count)
        rows = rows_of(Compact("binary", 48), descriptors)
        expected = neighbours(descriptors[:queries], rows.compact.restore(rows.stored), 8)[1]
        assert np.allclose(nearest(rows, descriptors[:queries], 8)[1], expected, atol=1e-6)


@pytest.mark.parametrize("dim", [128, 200])
def test_few_queries_find_nearly_all_of_many_binary_rows(dim):
    descriptors = gallery(3 * HAMMING, dim)
    removed = list(range(0, 3 * HAMMING, 7))
    rows, queries = rows_of(Compact("binary", dim), descriptors, removed), descriptors[:20]
    restored = rows.compact.restore(rows.stored)
    restored[removed] = -queries[0]
    found, similarities = nearest(rows, queries, 10)
    expected = [np.setdiff1d(np.argsort(-(restored @ query)), removed, assume_unique=True)[:10] for query in queries]
    assert not rows.removed[found].any()
    assert np.mean([len(np.intersect1d(a, b)) / 10 for a, b in zip(expected, found, strict=True)]) >= 0.99
    assert np.allclose(similarities[0], restored[found[0]] @ queries[0], atol=1e-6)


@pytest.mark.parametrize("width", [3, 8, 16])
def test_different_bits_are_counted(width):
    random = np.random.default_rng(width)
    rows, bits = random.integers(0, 256, (50, width), np.uint8), random.integers(0, 256, width, np.uint8)
    expected = [sum((int(a) ^ int(b)).bit_count() for a, b in zip(row, bits, strict=True)) for row in rows]
    assert exact._different_bits(rows, bits).tolist() == expected


@pytest.mark.parametrize("dtype", DTYPES)
def test_removed_rows_are_not_found(way, dtype):
    descriptors = gallery(900)
    compact = Compact(dtype, 48)
    removed = [number for number in range(900) if number % 3]
    rows = rows_of(compact, descriptors, removed)
    assert rows.offered == 300
    same(nearest(rows, descriptors[:4], 12), rows, descriptors[:4], 12)
    everything = nearest(rows, descriptors[:2], 300)[0]
    assert [sorted(row) for row in everything.tolist()] == [list(range(0, 900, 3))] * 2


@pytest.mark.parametrize("dtype", DTYPES)
def test_equal_rows_come_by_their_numbers(way, dtype):
    """A shortlist of usearch cannot hold all of them, nor the first ones, so that it proves nothing."""
    descriptors = np.repeat(gallery(4), 500, axis=0)[np.random.default_rng(3).permutation(2000)]
    rows = rows_of(Compact(dtype, 48), descriptors)
    stored, asked = rows.stored, rows.stored[17]
    equal = [number for number in range(2000) if np.array_equal(stored[number], asked)]
    indices, _ = nearest(rows, descriptors[17:18], 9)
    assert indices.tolist() == [equal[:9]]


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_a_neighbour_that_rounding_moves_far_back_is_found(dtype):
    """Rows so close to each other that a rounded query takes them in any order."""
    if not exact.has_usearch():
        pytest.skip("no usearch before 2.26 is installed")
    random = np.random.default_rng(5)
    centre = random.normal(size=32)
    descriptors = unit(centre + random.normal(0, 2e-3, (4000, 32)))
    query = unit(centre[None] + random.normal(0, 0.3, (1, 32)))
    rows = rows_of(Compact(dtype, 32), descriptors)
    same(nearest(rows, query, 10), rows, query, 10)


def test_usearch_proposes_for_few_queries_of_compact_rows_alone(monkeypatch):
    if not exact.has_usearch():
        pytest.skip("no usearch before 2.26 is installed")
    asked = []
    real = exact._propose
    monkeypatch.setattr(
        exact, "_propose", lambda rows, rounded, count: asked.append(count) or real(rows, rounded, count)
    )
    descriptors = gallery(2000, dim=256)
    for dtype in ("float32", "int8"):
        nearest(rows_of(Compact(dtype, 256), descriptors), descriptors[:3], 5)
    assert asked[:1] == [exact.SHORTLIST]
    asked.clear()
    nearest(rows_of(Compact("int8", 256), descriptors), descriptors[: exact.FEW], 5)
    assert asked == []


@pytest.mark.parametrize("queries", [1, 40])
@pytest.mark.parametrize("dtype", DTYPES)
def test_few_rows_are_restored_at_a_time(way, monkeypatch, dtype, queries):
    restored = []
    real = Compact.restore
    monkeypatch.setattr(Compact, "restore", lambda self, stored: restored.append(len(stored)) or real(self, stored))
    descriptors = gallery(6000)
    nearest(rows_of(Compact(dtype, 48), descriptors), descriptors[:queries], 5)
    assert 0 < max(restored) <= max(ROWS, HAMMING)


def test_more_queries_than_fit_at_once(way, monkeypatch):
    monkeypatch.setattr(exact, "CHUNK", 4)
    descriptors = gallery(300)
    rows = rows_of(Compact("int8", 48), descriptors)
    same(nearest(rows, descriptors[:11], 3), rows, descriptors[:11], 3)
    empty = nearest(rows, descriptors[:0], 3)
    assert empty[0].shape == empty[1].shape == (0, 3)


def test_of_two_results_the_first_wins_a_tie():
    one = np.array([[4, 9]]), np.array([[0.5, 0.25]], np.float32)
    other = np.array([[1, 2, 3]]), np.array([[0.75, 0.5, 0.125]], np.float32)
    indices, similarities = merged(one, other, 3)
    assert indices.tolist() == [[1, 4, 2]] and similarities.tolist() == [[0.75, 0.5, 0.5]]
    assert merged(nothing(1, 2), one, 2)[0].tolist() == [[4, 9]]


def test_ranking_leaves_removed_rows_out_and_may_find_fewer():
    descriptors = gallery(5)
    rows = rows_of(Compact("float32", 48), descriptors, [2])
    indices, similar = ranked(rows, descriptors[3], np.array([3, 2, 1]), 3)
    assert indices.tolist() == [3, 1] and similar[0] == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    ("version", "works"), [(None, False), ("2.23.0", True), ("2.25.3", True), ("2.26.6", False), ("3.0.0", False)]
)
def test_releases_of_usearch_that_break_others_are_not_used(monkeypatch, version, works):
    monkeypatch.setattr(exact, "package_version", lambda name: version)
    assert exact.has_usearch.__wrapped__() is works


def test_a_shortlist_that_proves_nothing_is_not_believed(monkeypatch):
    descriptors = gallery(2000)
    rows = rows_of(Compact("int8", 48), descriptors)
    worst = np.argsort(rows.compact.restore(rows.stored) @ descriptors[0])
    asked = []

    def propose(stored: np.ndarray, rounded: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        asked.append(count)
        return worst[None, :count], np.ones(1, np.float32)

    monkeypatch.setattr(exact, "has_usearch", lambda: True)
    monkeypatch.setattr(exact, "_propose", propose)
    same(nearest(rows, descriptors[:1], 10), rows, descriptors[:1], 10)
    assert asked == [64, 256]  # 1,024 would be more than half of the rows


def test_removed_binary_rows_take_no_place_in_a_shortlist():
    query = gallery(1, 128)
    descriptors = np.vstack([np.repeat(query, 2 * HAMMING, axis=0), gallery(2 * HAMMING, 128, seed=1)])
    rows = rows_of(Compact("binary", 128), descriptors, list(range(2 * HAMMING)))
    indices, _ = nearest(rows, query, 10)
    assert (indices >= 2 * HAMMING).all() and len(set(indices[0].tolist())) == 10
