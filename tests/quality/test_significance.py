"""The paired bootstrap, derived again by drawing queries one by one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cgd_deploy.datasets.evaluation import Evaluation
from cgd_deploy.pictures.images import ImageList
from cgd_deploy.quality.significance import Drop, mean_interval, paired_drop, recall_drops


def outcomes(both: int, lost: int, won: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    """Queries that hit before and after, only before, only after, and never."""
    counts = (both, lost, won, neither)
    return np.repeat([True, True, False, False], counts), np.repeat([True, False, True, False], counts)


def test_the_drop_is_the_difference_of_the_means():
    before, after = outcomes(50, 9, 4, 17)
    assert paired_drop(before, after).drop == pytest.approx(100 * (59 / 80 - 54 / 80))


def test_the_interval_by_loops():
    before, after = outcomes(25, 8, 3, 4)
    random = np.random.default_rng(1)
    drops = []
    for _ in range(4000):
        drawn = random.integers(0, 40, 40)
        drops.append(100 * (sum(before[i] for i in drawn) - sum(after[i] for i in drawn)) / 40)
    drops.sort()
    found = paired_drop(before, after)
    step = 100 / 40  # one query
    assert found.low == pytest.approx(drops[100], abs=step) and found.high == pytest.approx(drops[3900], abs=step)
    assert found.low < 0 < found.high  # 5 queries of 40 are not enough to be sure


def test_the_interval_covers_the_truth_as_often_as_it_says():
    random = np.random.default_rng(2)
    covered = 0
    for trial in range(300):
        kind = random.choice(4, 500, p=(0.6, 0.08, 0.05, 0.27))  # a true drop of 3 points
        before, after = np.isin(kind, (0, 1)), np.isin(kind, (0, 2))
        _, low, high = paired_drop(before, after, seed=trial)
        covered += low <= 3.0 <= high
    assert 0.91 <= covered / 300 <= 0.98


def test_pairing_narrows_the_interval():
    before, after = outcomes(400, 10, 10, 400)
    paired = paired_drop(before, after)
    apart = paired_drop(before, after[::-1])  # the same two recalls, of unrelated queries
    assert paired.drop == apart.drop == 0
    assert paired.high - paired.low < 0.3 * (apart.high - apart.low)


def test_nothing_changed_is_a_point_and_a_seed_gives_the_same_again():
    before, after = outcomes(10, 2, 1, 5)
    assert paired_drop(before, before) == Drop(0.0, 0.0, 0.0)
    assert paired_drop(before, after) == paired_drop(before, after)


def test_many_queries_cost_no_more_than_few():
    before, after = outcomes(10**6, 3000, 1000, 10**6)
    found = paired_drop(before, after)
    # By the central limit theorem: sqrt of the summed squares of the differences.
    deviation = 100 * np.sqrt(4000) / len(before)
    assert found.low == pytest.approx(found.drop - 1.96 * deviation, rel=0.02)
    assert found.high == pytest.approx(found.drop + 1.96 * deviation, rel=0.02)


@pytest.mark.parametrize("in_gallery", [None, (False, False, False, True, True, True)])
def test_recall_drops_by_loops(in_gallery):
    classes = ("a", "b", "c", "a", "b", "c")
    images = ImageList(Path(), tuple("012345"), classes)
    evaluation = Evaluation(images, in_gallery, recall_at=(1, 2))
    queries = evaluation.queries
    random = np.random.default_rng(0)
    before, after = (random.integers(0, 6, (len(queries), 3)) for _ in range(2))
    found = recall_drops(evaluation, before, after)
    assert list(found) == ["1", "2"]
    for k, drop in found.items():
        hits = [
            [any(classes[j] == classes[q] for j in row[: int(k)]) for q, row in zip(queries, rows, strict=True)]
            for rows in (before, after)
        ]
        assert drop.drop == pytest.approx(100 * (sum(hits[0]) - sum(hits[1])) / len(queries), abs=1e-3)
        assert drop == paired_drop(*map(np.array, hits))
    assert list(recall_drops(evaluation, before, after, ks=(3,))) == ["3"]


def test_without_classes_there_is_nothing_to_drop():
    evaluation = Evaluation(ImageList(Path(), ("a", "b", "c")))
    assert recall_drops(evaluation, np.zeros((3, 1), int), np.zeros((3, 1), int)) == {}


def test_the_interval_of_a_mean_by_drawing_queries():
    """overlap@10 of 60 queries, resampled query by query."""
    random = np.random.default_rng(5)
    values = random.integers(5, 11, 60) / 10
    means = [random.choice(values, len(values)).mean() for _ in range(4000)]
    low, high = mean_interval(values)
    assert (low, high) == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=0.01)
    assert low < values.mean() < high and mean_interval(values) == (low, high)
    assert mean_interval(np.full(9, 0.3)) == (0.3, 0.3)


def test_the_drops_of_some_queries_are_those_of_an_evaluation_of_them():
    evaluation = Evaluation(ImageList(Path("x"), tuple(f"{n}.jpg" for n in range(8)), tuple("aabbccdE")))
    right = np.array([[1], [0], [3], [2], [5], [4], [0], [0]])  # d and E are alone, so unanswerable
    wrong = np.array([[2], [0], [3], [0], [5], [4], [1], [1]])
    assert recall_drops(evaluation, right, wrong, (1,))["1"].drop == pytest.approx(100 * 2 / 6, abs=1e-3)
    for rows, lost, answered in (([0, 1, 2], 1, 3), ([1, 2, 4], 0, 3), ([3, 6], 1, 1)):
        drop = recall_drops(evaluation, right, wrong, (1,), np.array(rows))["1"].drop
        assert drop == pytest.approx(100 * lost / answered, abs=1e-3)
    assert recall_drops(evaluation, right, wrong, (1,), np.array([6, 7])) == {}
