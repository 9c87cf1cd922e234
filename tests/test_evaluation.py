"""Test protocols, by loops: everybody searches everybody else, or queries search a gallery."""

from pathlib import Path

import numpy as np
import pytest

from cgd_deploy import retrieval
from cgd_deploy.errors import InputError
from cgd_deploy.evaluation import Evaluation
from cgd_deploy.images import ImageList

CLASSES = ("a", "b", "a", "c", "b", "a", "b", "d", "a", "c", "b")
IN_GALLERY = tuple(number % 3 != 0 for number in range(len(CLASSES)))
IMAGES = ImageList(Path("pictures"), tuple(f"{n}.jpg" for n in range(len(CLASSES))), CLASSES)
ROLES = pytest.mark.parametrize("in_gallery", [None, IN_GALLERY])


def descriptors(seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(len(CLASSES), 4)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def ranked(rows: np.ndarray, gallery: np.ndarray, in_gallery: tuple[bool, ...] | None) -> dict[int, list[int]]:
    """Of each query, every picture that it may find, the nearest first."""
    found = {}
    for q in range(len(rows)):
        if in_gallery is None or not in_gallery[q]:
            others = [g for g in range(len(rows)) if (g != q if in_gallery is None else in_gallery[g])]
            found[q] = sorted(others, key=lambda g: -float(rows[q] @ gallery[g]))
    return found


@ROLES
def test_neighbours_are_picture_numbers(in_gallery):
    ours, theirs = descriptors(0), descriptors(1)
    evaluation = Evaluation(IMAGES, in_gallery)
    for gallery in (None, theirs):
        expected = ranked(ours, ours if gallery is None else gallery, in_gallery)
        found, similarities = evaluation.neighbours(ours, 3, gallery)
        assert evaluation.queries.tolist() == list(expected)
        assert found.tolist() == [row[:3] for row in expected.values()]
        searched = ours if gallery is None else gallery
        assert similarities[1] == pytest.approx([ours[evaluation.queries[1]] @ searched[g] for g in found[1]], abs=1e-6)
    assert evaluation.offered == len(next(iter(expected.values())))


@ROLES
@pytest.mark.parametrize("chunk", [2, 1024])
def test_measured_recall_and_map_equal_loops(monkeypatch, in_gallery, chunk):
    monkeypatch.setattr(retrieval, "CHUNK", chunk)
    expected = ranked(descriptors(), descriptors(), in_gallery)
    evaluation = Evaluation(IMAGES, in_gallery, recall_at=(1, 3, 50))
    measured = evaluation.measure(descriptors())
    for k in (1, 3, 50):
        hits = [any(CLASSES[g] == CLASSES[q] for g in row[:k]) for q, row in expected.items()]
        assert measured["recall"][str(k)] == pytest.approx(sum(hits) / len(hits))
    precisions = []
    for q, row in expected.items():
        relevant = sum(CLASSES[g] == CLASSES[q] for g in row)
        hits = [CLASSES[g] == CLASSES[q] for g in row[:relevant]]
        terms = [sum(hits[: i + 1]) / (i + 1) for i in range(relevant) if hits[i]]
        precisions.append(sum(terms) / relevant if relevant else 0.0)
    assert measured["map_at_r"] == pytest.approx(sum(precisions) / len(precisions))
    found, _ = evaluation.neighbours(descriptors(), evaluation.offered)
    assert evaluation.recall(found) == pytest.approx(measured["recall"])


def test_without_classes_there_is_no_recall():
    evaluation = Evaluation(ImageList(Path(), IMAGES.names))
    assert evaluation.recall(evaluation.neighbours(descriptors(), 2)[0]) == {}
    with pytest.raises(InputError, match="have no classes; recall needs them"):
        evaluation.measure(descriptors())


@ROLES
def test_a_dict_brings_it_back(in_gallery):
    evaluation = Evaluation(IMAGES, in_gallery, recall_at=(1, 10))
    back = Evaluation.from_dict(evaluation.to_dict())
    assert (back.in_gallery, back.recall_at) == (in_gallery, (1, 10))
    assert back.images.names == IMAGES.names and back.images.classes == CLASSES


def test_the_repr_says_who_searches_whom():
    listed = "<ImageList pictures: 11 pictures of 4 classes>"
    assert repr(Evaluation(IMAGES)) == f"<Evaluation: every picture searches the others, in {listed}>"
    assert repr(Evaluation(IMAGES, IN_GALLERY)) == f"<Evaluation: 4 queries, 7 gallery, in {listed}>"


@pytest.mark.parametrize("roles", [(True,) * 11, (False,) * 11, (True, False)])
def test_a_protocol_needs_queries_and_a_gallery(roles):
    with pytest.raises(InputError, match="expected every picture to be one of the two, and at least one of each"):
        Evaluation(IMAGES, roles)


@ROLES
def test_pictures_can_be_left_out(in_gallery):
    evaluation = Evaluation(IMAGES, in_gallery, recall_at=(1, 5))
    left = evaluation.without([1, 3, 10])
    kept = [0, 2, 4, 5, 6, 7, 8, 9]
    assert left == evaluation.subset(kept)
    assert left.images.names == tuple(f"{n}.jpg" for n in kept)
    assert left.images.classes == tuple(CLASSES[n] for n in kept)
    assert left.in_gallery == (None if in_gallery is None else tuple(in_gallery[n] for n in kept))
    assert left.recall_at == (1, 5)
    assert evaluation.without([]) == evaluation


def test_a_subset_needs_queries_and_a_gallery():
    with pytest.raises(InputError, match="no test picture of pictures is left"):
        Evaluation(IMAGES).without(range(len(CLASSES)))
    for role in (True, False):
        others = [number for number, searched in enumerate(IN_GALLERY) if searched is not role]
        with pytest.raises(InputError, match="expected every picture to be one of the two, and at least one of each"):
            Evaluation(IMAGES, IN_GALLERY).subset(others)
