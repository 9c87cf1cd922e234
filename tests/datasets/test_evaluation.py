"""Test protocols, by loops: everybody searches everybody else, or queries search a gallery."""

from pathlib import Path

import numpy as np
import pytest

from cgd_deploy.datasets.evaluation import Evaluation
from cgd_deploy.errors import InputError
from cgd_deploy.pictures.images import ImageList
from cgd_deploy.quality.significance import recall_drops
from cgd_deploy.search import retrieval

CLASSES = ("a", "b", "a", "c", "b", "a", "b", "d", "a", "c", "b", "e")
CAMERAS = ("1", "1", "2", "1", "2", "1", "3", "1", "3", "1", "1", "2")
IN_GALLERY = tuple(number % 3 != 0 for number in range(len(CLASSES)))
IMAGES = ImageList(Path("pictures"), tuple(f"{n}.jpg" for n in range(len(CLASSES))), CLASSES)
ROLES = pytest.mark.parametrize("in_gallery", [None, IN_GALLERY])
SEEN_BY = pytest.mark.parametrize("cameras", [None, CAMERAS])


def descriptors(seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(len(CLASSES), 4)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def ranked(
    rows: np.ndarray, gallery: np.ndarray, in_gallery: tuple[bool, ...] | None, cameras: tuple[str, ...] | None
) -> dict[int, list[int]]:
    """Of each query, every picture that it may find, the nearest first."""
    found = {}
    for q in range(len(rows)):
        if in_gallery is None or not in_gallery[q]:
            others = [g for g in range(len(rows)) if (g != q if in_gallery is None else in_gallery[g])]
            if cameras:
                others = [g for g in others if CLASSES[g] != CLASSES[q] or cameras[g] != cameras[q]]
            found[q] = sorted(others, key=lambda g: -float(rows[q] @ gallery[g]))
    return found


@ROLES
@SEEN_BY
def test_neighbours_are_picture_numbers(in_gallery, cameras):
    ours, theirs = descriptors(0), descriptors(1)
    evaluation = Evaluation(IMAGES, in_gallery, cameras=cameras)
    for gallery in (None, theirs):
        expected = ranked(ours, ours if gallery is None else gallery, in_gallery, cameras)
        found, similarities = evaluation.neighbours(ours, 3, gallery)
        assert evaluation.queries.tolist() == list(expected)
        assert found.tolist() == [row[:3] for row in expected.values()]
        searched = ours if gallery is None else gallery
        assert similarities[1] == pytest.approx([ours[evaluation.queries[1]] @ searched[g] for g in found[1]], abs=1e-6)
    assert evaluation.offered == min(map(len, expected.values()))
    with pytest.raises(InputError, match=f"a query can find {evaluation.offered}; ask for fewer"):
        evaluation.neighbours(ours, evaluation.offered + 1)


@ROLES
@SEEN_BY
@pytest.mark.parametrize("chunk", [2, 1024])
def test_measured_recall_and_map_equal_loops(monkeypatch, in_gallery, cameras, chunk):
    monkeypatch.setattr(retrieval, "CHUNK", chunk)
    expected = ranked(descriptors(), descriptors(), in_gallery, cameras)
    answers = {q: [CLASSES[g] == CLASSES[q] for g in row] for q, row in expected.items()}
    answerable = [hits for hits in answers.values() if any(hits)]
    evaluation = Evaluation(IMAGES, in_gallery, (1, 3, 50), cameras)
    measured = evaluation.measure(descriptors())
    assert measured["queries"] == {"asked": len(answers), "unanswerable": len(answers) - len(answerable)}
    assert 0 < len(answerable) < len(answers)
    for k in (1, 3, 50):
        assert measured["recall"][str(k)] == pytest.approx(np.mean([any(hits[:k]) for hits in answerable]))
    precisions = []
    for hits in answerable:
        relevant = sum(hits)
        precisions.append(sum(sum(hits[: i + 1]) / (i + 1) for i in range(relevant) if hits[i]) / relevant)
    assert measured["map_at_r"] == pytest.approx(np.mean(precisions))
    found, _ = evaluation.neighbours(descriptors(), evaluation.offered)
    recall = evaluation.recall(found)
    assert (recall["1"], recall["3"]) == (measured["recall"]["1"], measured["recall"]["3"])
    assert recall["50"] == pytest.approx(np.mean([any(hits[: evaluation.offered]) for hits in answerable]))


@pytest.mark.parametrize(
    ("classes", "in_gallery", "cameras"),
    [
        (("a", "b", "c", "d"), None, None),
        (("a", "a", "b", "b"), (False, False, True, True), None),
        (("a", "a", "b", "b"), None, ("1", "1", "2", "2")),
        (("a", "b", "a", "b"), (False, False, True, True), ("1", "1", "1", "1")),
    ],
)
def test_where_no_query_can_be_answered_there_is_no_recall(classes, in_gallery, cameras):
    evaluation = Evaluation(ImageList(Path("lonely"), tuple("1234"), classes), in_gallery, (1, 2), cameras)
    queries = len(evaluation.queries)
    assert evaluation.asked == {"asked": queries, "unanswerable": queries}
    found, _ = evaluation.neighbours(descriptors()[:4], 1)
    assert evaluation.recall(found) == {} and recall_drops(evaluation, found, found) == {}
    with pytest.raises(InputError, match=f"none of the {queries} queries in lonely has a picture of its class to find"):
        evaluation.measure(descriptors()[:4])


def test_pictures_that_are_alone_in_their_class_change_no_recall():
    """Descriptors of their own are put where no query looks, so only their own answers could count."""
    pairs = ("a", "a", "b", "b")
    rows = np.eye(8, dtype=np.float32)[[0, 0, 1, 2]]
    alone = np.eye(8, dtype=np.float32)[[5, 6, 7]]
    expected = Evaluation(ImageList(Path(), tuple("1234"), pairs)).measure(rows)
    mixed = Evaluation(ImageList(Path(), tuple("1234567"), (*pairs, "x", "y", "z")))
    found = mixed.measure(np.concatenate([rows, alone]))
    assert found["recall"]["1"] == expected["recall"]["1"] == 0.5
    assert found["map_at_r"] == expected["map_at_r"] == 0.5
    assert (found["queries"], expected["queries"]) == (
        {"asked": 7, "unanswerable": 3},
        {"asked": 4, "unanswerable": 0},
    )


def test_without_classes_there_is_no_recall():
    evaluation = Evaluation(ImageList(Path(), IMAGES.names))
    assert evaluation.recall(evaluation.neighbours(descriptors(), 2)[0]) == {}
    with pytest.raises(InputError, match="have no classes; recall needs them"):
        evaluation.measure(descriptors())


@ROLES
@SEEN_BY
def test_a_dict_brings_it_back(in_gallery, cameras):
    evaluation = Evaluation(IMAGES, in_gallery, (1, 10), cameras)
    back = Evaluation.from_dict(evaluation.to_dict())
    assert (back.in_gallery, back.recall_at, back.cameras) == (in_gallery, (1, 10), cameras)
    assert back.images.names == IMAGES.names and back.images.classes == CLASSES


def test_a_dict_of_before_there_were_cameras_has_none():
    before = Evaluation(IMAGES, IN_GALLERY).to_dict()
    del before["cameras"]
    assert Evaluation.from_dict(before).cameras is None


def test_the_repr_says_who_searches_whom():
    listed = "<ImageList pictures: 12 pictures of 5 classes>"
    assert repr(Evaluation(IMAGES)) == f"<Evaluation: every picture searches the others, in {listed}>"
    assert "8 gallery, 3 cameras, in" in repr(Evaluation(IMAGES, IN_GALLERY, cameras=CAMERAS))
    assert repr(Evaluation(IMAGES, IN_GALLERY)) == f"<Evaluation: 4 queries, 8 gallery, in {listed}>"


@pytest.mark.parametrize("roles", [(True,) * 12, (False,) * 12, (True, False)])
def test_a_protocol_needs_queries_and_a_gallery(roles):
    with pytest.raises(InputError, match="expected every picture to be one of the two, and at least one of each"):
        Evaluation(IMAGES, roles)


@pytest.mark.parametrize(("images", "cameras"), [(IMAGES, CAMERAS[1:]), (ImageList(Path(), IMAGES.names), CAMERAS)])
def test_cameras_need_a_class_for_each_picture(images, cameras):
    with pytest.raises(InputError, match="expected one for each picture, and classes"):
        Evaluation(images, cameras=cameras)


@ROLES
@SEEN_BY
def test_a_subset_keeps_roles_and_cameras(in_gallery, cameras):
    evaluation = Evaluation(IMAGES, in_gallery, (1, 5), cameras)
    kept = [0, 2, 4, 5, 6, 7, 8, 9, 11]
    left = evaluation.subset(kept)
    assert left.cameras == (cameras and tuple(cameras[n] for n in kept))
    assert left.images.names == tuple(f"{n}.jpg" for n in kept)
    assert left.images.classes == tuple(CLASSES[n] for n in kept)
    assert left.in_gallery == (None if in_gallery is None else tuple(in_gallery[n] for n in kept))
    assert left.recall_at == (1, 5)
    assert evaluation.subset(range(len(CLASSES))) == evaluation


def test_a_subset_needs_queries_and_a_gallery():
    with pytest.raises(InputError, match="no test picture of pictures is left"):
        Evaluation(IMAGES).subset([])
    for role in (True, False):
        others = [number for number, searched in enumerate(IN_GALLERY) if searched is not role]
        with pytest.raises(InputError, match="expected every picture to be one of the two, and at least one of each"):
            Evaluation(IMAGES, IN_GALLERY).subset(others)


@ROLES
@SEEN_BY
def test_halves_share_no_query_and_no_class(in_gallery, cameras):
    evaluation = Evaluation(IMAGES, in_gallery, cameras=cameras)
    first, second = (list(evaluation.queries[rows]) for rows in evaluation.halves())
    assert sorted(first + second) == list(evaluation.queries) and first == sorted(first)
    assert not {CLASSES[q] for q in first} & {CLASSES[q] for q in second}
    assert abs(len(first) - len(second)) <= 1


@pytest.mark.parametrize("classes", [None, ("a",) * 9, ("a",) * 5 + tuple("bcde")])
def test_halves_without_classes_or_with_one_large_class_split_pictures(classes):
    images = ImageList(Path("pictures"), tuple(f"{n}.jpg" for n in range(9)), classes)
    first, second = Evaluation(images).halves()
    assert (list(first), list(second)) == ([0, 2, 4, 6, 8], [1, 3, 5, 7])


def test_a_class_that_only_the_gallery_has_is_in_no_half():
    images = ImageList(Path("pictures"), tuple(f"{n}.jpg" for n in range(12)), tuple("zzzzzzzzabab"))
    evaluation = Evaluation(images, (True,) * 10 + (False, False))
    assert [list(rows) for rows in evaluation.halves()] == [[0], [1]]
