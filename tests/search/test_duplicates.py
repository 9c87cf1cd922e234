"""Groups of near-duplicates are those of a plain double loop, in little memory."""

from __future__ import annotations

import numpy as np
import pytest

from cgd_deploy.errors import InputError
from cgd_deploy.runtime.descriptors import Descriptors
from cgd_deploy.search import duplicates as module
from cgd_deploy.search.compact import DTYPES, Compact, fit
from cgd_deploy.search.duplicates import Duplicates, find_duplicates
from cgd_deploy.search.index import Index


def index_of(descriptors: Descriptors, dtype: str = "float32", pca: int | None = None) -> Index:
    compact = fit(descriptors, dtype, pca)
    paths = [f"{row}.jpg" for row in range(len(descriptors))]
    return Index(compact.store(descriptors), paths, "0123456789abcdef", "fp32", compact)


def at_angles(*degrees: float) -> Index:
    """Descriptors in a plane: the cosine of two is the cosine of the angle between them."""
    radians = np.radians(degrees)
    return index_of(np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32))


def degrees(angle: float) -> float:
    return float(np.cos(np.radians(angle)))


@pytest.fixture
def clusters() -> Descriptors:
    """Unit float32 [50, 16]: twelve directions, each with one to seven descriptors at various distances, shuffled."""
    random = np.random.default_rng(5)
    centres = random.normal(size=(12, 16))
    rows = [
        centre + random.normal(scale=0.25, size=16) for place, centre in enumerate(centres) for _ in range(place % 7)
    ]
    rows += list(random.normal(size=(50 - len(rows), 16)))
    descriptors = random.permutation(np.array(rows))
    return (descriptors / np.linalg.norm(descriptors, axis=1, keepdims=True)).astype(np.float32)


def by_double_loop(descriptors: Descriptors, limit: float) -> dict[frozenset[int], tuple[int, list[float]]]:
    """Each group, with its centre and the cosines of its other pictures with the centre, largest first."""
    rows = range(len(descriptors))
    cosine = [
        [sum(float(a) * float(b) for a, b in zip(one, other, strict=True)) for other in descriptors]
        for one in descriptors
    ]
    near = {row: [other for other in rows if other != row and cosine[row][other] >= limit] for row in rows}
    groups: dict[frozenset[int], tuple[int, list[float]]] = {}
    for row in rows:
        group, waiting = {row}, [row]
        while waiting:
            new = set(near[waiting.pop()]) - group
            group |= new
            waiting += new
        if len(group) > 1:
            centre = max(sorted(group), key=lambda member: len(near[member]))
            others = sorted((cosine[centre][member] for member in group - {centre}), reverse=True)
            groups[frozenset(group)] = centre, others
    return groups


def gap(descriptors: Descriptors, limit: float) -> float:
    """The middle of the widest gap between cosines near ``limit``, so that rounding decides nothing."""
    cosines = np.unique((descriptors.astype(np.float64) @ descriptors.T.astype(np.float64)).round(6))
    near = cosines[np.abs(cosines - limit) < 0.2]
    widest = np.diff(near).argmax()
    return float(near[widest : widest + 2].mean())


@pytest.mark.parametrize("chunk", [7, 1024])
@pytest.mark.parametrize("pca", [None, 9])
@pytest.mark.parametrize("dtype", DTYPES)
def test_groups_are_those_of_a_double_loop(clusters, monkeypatch, dtype, pca, chunk):
    monkeypatch.setattr(module, "CHUNK", chunk)
    index = index_of(clusters, dtype, pca)
    limit = gap(index.descriptors, 0.75)
    expected = by_double_loop(index.descriptors, limit)
    found = find_duplicates(index, limit)
    assert len(found) == len(expected) >= 3
    for group in found:
        centre, others = expected[frozenset(group.rows)]
        assert group.rows[0] == centre and len(group.rows) == len(set(group.rows))
        assert group.similarities == pytest.approx([1, *others], abs=1e-5)
        restored = index.descriptors[group.rows]
        assert group.similarities[1:] == pytest.approx((restored @ restored[0])[1:].tolist(), abs=1e-5)
    sizes = [len(group.rows) for group in found]
    assert sizes == sorted(sizes, reverse=True)


def test_a_chain_is_one_group_around_its_middle():
    (group,) = find_duplicates(at_angles(0, 10, 20, 90), degrees(12))
    assert group.rows == [1, 0, 2] or group.rows == [1, 2, 0]
    assert group.similarities == pytest.approx([1, degrees(10), degrees(10)], abs=1e-6)


@pytest.mark.parametrize("chunk", [3, 1024])
def test_a_long_chain_in_any_order_is_one_group(monkeypatch, chunk):
    monkeypatch.setattr(module, "CHUNK", chunk)
    angles = np.random.default_rng(1).permutation(100)
    (group,) = find_duplicates(at_angles(*angles), degrees(1.5))
    assert sorted(group.rows) == list(range(100))
    assert len(find_duplicates(at_angles(*angles[angles != 50]), degrees(1.5))) == 2


def test_every_picture_of_joined_groups_gets_the_smallest_row():
    group_of = np.array([0, 0, 2, 2, 4, 4])
    module._join(group_of, np.array([0, 2]), np.array([2, 4]))
    assert group_of.tolist() == [0] * 6


def test_no_picture_has_a_duplicate():
    assert find_duplicates(at_angles(0, 20, 40), degrees(19)) == []
    assert find_duplicates(at_angles(0), 0.5) == []


@pytest.mark.parametrize("dtype", DTYPES)
def test_all_pictures_are_duplicates_and_a_limit_of_one_finds_equal_descriptors(monkeypatch, dtype):
    monkeypatch.setattr(module, "CHUNK", 4)
    vectors = np.random.default_rng(2).normal(size=(40, 1536)).astype(np.float32)
    for vector in vectors / np.linalg.norm(vectors, axis=1, keepdims=True):
        (group,) = find_duplicates(index_of(np.tile(vector, (10, 1)), dtype), 1.0)
        assert group.rows[0] == 0 and sorted(group.rows) == list(range(10))
        assert group.similarities == pytest.approx([1] * 10, abs=module.ROUNDING)


def test_the_largest_group_comes_first_then_the_one_that_begins_first():
    found = find_duplicates(at_angles(0, 40, 80, 1, 41, 81, 82, 83, 120, 121), degrees(2))
    assert [sorted(group.rows) for group in found] == [[2, 5, 6, 7], [0, 3], [1, 4], [8, 9]]
    assert found[1] == Duplicates([0, 3], pytest.approx([1, degrees(1)], abs=1e-6))


def test_a_path_that_is_listed_twice_counts_once():
    index = at_angles(0, 0, 50, 51, 50)
    twice = Index(index.stored, ["a.jpg", "a.jpg", "b.jpg", "c.jpg", "b.jpg"], "0" * 16, "fp32", index.compact)
    assert [group.rows for group in find_duplicates(twice, degrees(2))] == [[2, 3]]


def test_memory_holds_a_chunk_of_restored_descriptors_at_a_time(clusters, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 8)
    restored, restore = [], Compact.restore
    monkeypatch.setattr(Compact, "restore", lambda form, rows: restored.append(len(rows)) or restore(form, rows))
    assert find_duplicates(index_of(clusters, "int8"), 0.01)
    assert max(restored) == 8


def test_progress_ends_at_one(clusters, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 20)
    told = []
    find_duplicates(index_of(clusters), 0.9, lambda what, done: told.append((what, done)))
    assert told == [("Comparing pictures", pytest.approx(part / 6)) for part in range(1, 7)]


@pytest.mark.parametrize("limit", [0, -0.5, 1.001, float("nan"), float("inf")])
def test_a_limit_that_is_no_cosine_is_refused(limit):
    with pytest.raises(InputError, match=f"{limit} cannot be used; pass a cosine above 0 and at most 1"):
        find_duplicates(at_angles(0, 1), limit)
