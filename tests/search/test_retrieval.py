"""Neighbours, recall, overlap and cosines against plain loops."""

import itertools
import tracemalloc

import numpy as np
import pytest

from cgd_deploy.errors import InputError
from cgd_deploy.runtime.descriptors import cosines
from cgd_deploy.search import retrieval
from cgd_deploy.search.retrieval import first_correct, neighbour_chunks, neighbours, overlap, precision_at_r, recall_at


def unit_rows(count: int, dim: int = 5, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(count, dim))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def neighbours_by_loops(queries, gallery, k, skip_self):
    found = []
    for q, query in enumerate(queries):
        scores = [
            (-sum(float(a) * float(b) for a, b in zip(query, row, strict=True)), g)
            for g, row in enumerate(gallery)
            if not (skip_self and g == q)
        ]
        found.append([g for _, g in sorted(scores)[:k]])
    return found


@pytest.mark.parametrize("skip_self", [False, True])
@pytest.mark.parametrize("k", [1, 3, 8])
def test_neighbours_equal_loops_across_chunks(monkeypatch, k, skip_self):
    monkeypatch.setattr(retrieval, "CHUNK", 4)
    points = unit_rows(9)
    found, similarities = neighbours(points, points, k, skip_self=skip_self)
    assert found.tolist() == neighbours_by_loops(points, points, k, skip_self)
    assert (found.dtype, similarities.dtype, similarities.shape) == (np.int64, np.float32, (9, k))
    for q in range(9):
        assert similarities[q] == pytest.approx([float(points[q] @ points[g]) for g in found[q]], abs=1e-6)


def test_neighbours_of_other_queries():
    queries, gallery = unit_rows(3, seed=1), unit_rows(11, seed=2)
    assert neighbours(queries, gallery, 4)[0].tolist() == neighbours_by_loops(queries, gallery, 4, False)


def test_equal_similarities_go_to_the_smaller_index():
    gallery = np.tile(np.array([[1, 0]], np.float32), (6, 1))
    assert neighbours(gallery[:1], gallery, 3)[0].tolist() == [[0, 1, 2]]
    two_heights = np.array([[1, 0] if i % 3 else [0, 1] for i in range(90)], np.float32)
    assert neighbours(gallery[:1], two_heights, 70)[0].tolist() == [
        [i for i in range(90) if i % 3] + [0, 3, 6, 9, 12, 15, 18, 21, 24, 27]
    ]
    assert neighbours(gallery, gallery, 2, skip_self=True)[0].tolist()[:3] == [[1, 2], [0, 2], [0, 1]]


@pytest.mark.parametrize(("k", "skip_self"), [(0, False), (6, False), (5, True)])
def test_an_impossible_k_is_refused(k, skip_self):
    points = unit_rows(5)
    with pytest.raises(InputError, match=f"{k} neighbours were asked of a gallery that offers"):
        neighbours(points, points, k, skip_self=skip_self)


def test_descriptors_of_two_models_are_refused():
    with pytest.raises(InputError, match="queries have 5 values, the gallery has 6; use one model"):
        neighbours(unit_rows(2, 5), unit_rows(2, 6), 1)


FOUND = np.array([[1, 2, 3], [3, 2, 0], [3, 0, 1], [2, 1, 0]])
QUERIES, GALLERY = ["a", "a", "b", "c"], ["a", "b", "a", "b"]
CORRECT = np.array([[GALLERY[g] == label for g in row] for row, label in zip(FOUND, QUERIES, strict=True)])


def test_recall_equals_loops():
    for k, value in recall_at(first_correct(CORRECT), [1, 2, 3, 9]).items():
        hits = [any(GALLERY[g] == label for g in row[: int(k)]) for row, label in zip(FOUND, QUERIES, strict=True)]
        assert value == sum(hits) / len(hits)
    assert recall_at(first_correct(CORRECT), [1, 2]) == {"1": 0.25, "2": 0.75}


def precision_at_r_by_loops(correct: list[bool], relevant: int) -> float:
    total, hits = 0.0, 0
    for rank, hit in enumerate(correct[:relevant], start=1):
        hits += hit
        total += hits / rank if hit else 0.0
    return total / relevant if relevant else 0.0


def test_precision_at_r_equals_loops():
    random = np.random.default_rng(0)
    correct = random.random((40, 12)) < 0.4
    relevant = random.integers(0, 13, 40)
    expected = [precision_at_r_by_loops(list(row), r) for row, r in zip(correct, relevant, strict=True)]
    assert precision_at_r(correct, relevant) == pytest.approx(expected)
    assert 0 in relevant and 12 in relevant


def test_precision_at_r_of_a_worked_example():
    """Two of three found, at ranks 1 and 3: (1/1 + 2/3) / 3; what comes after rank R does not count."""
    correct = np.array([[True, False, True, True]])
    assert precision_at_r(correct, np.array([3])) == pytest.approx([(1 + 2 / 3) / 3])


def test_memory_stays_small_at_sixty_thousand_by_sixty_thousand():
    """Every chunk of queries holds its own similarities alone: 60,000 x 60,000 floats would be 14 GB."""
    points = unit_rows(60_000, 4)
    chunks = neighbour_chunks(points, points, 10, skip_self=True)
    tracemalloc.start()
    try:
        rows = [rows for rows, _, _ in itertools.islice(chunks, 3)]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert rows == [slice(0, 1024), slice(1024, 2048), slice(2048, 3072)]
    assert peak < 3 * 1024 * 60_000 * 4


def test_overlap_counts_common_neighbours_in_any_order():
    found = np.array([[0, 1, 2, 3], [4, 5, 6, 7]])
    reference = np.array([[3, 2, 1, 9], [4, 5, 6, 7][::-1]])
    assert overlap(found, reference) == (3 / 4 + 4 / 4) / 2


def test_cosines_are_row_by_row():
    a, b = unit_rows(4, seed=1), unit_rows(4, seed=2)
    expected = [sum(float(x) * float(y) for x, y in zip(p, q, strict=True)) for p, q in zip(a, b, strict=True)]
    assert cosines(a, b) == pytest.approx(expected, abs=1e-6)
