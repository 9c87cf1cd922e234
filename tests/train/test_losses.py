"""The losses against plain loops over a handful of points."""

import math

import pytest
import torch

from cgd_deploy.errors import InputError
from cgd_train.losses import (
    RANKING_LOSSES,
    auxiliary_classification,
    batch_hard_triplet,
    multi_similarity,
    ranking_loss,
)


def unit_points(*angles: float) -> torch.Tensor:
    return torch.tensor([[math.cos(a), math.sin(a)] for a in angles], dtype=torch.float64, requires_grad=True)


def triplet_by_loops(points: list[list[float]], targets: list[int], margin: float) -> float:
    terms = []
    for a, anchor in enumerate(points):
        positives = [math.dist(anchor, p) for i, p in enumerate(points) if targets[i] == targets[a] and i != a]
        negatives = [math.dist(anchor, n) for i, n in enumerate(points) if targets[i] != targets[a]]
        if positives and negatives:
            terms.append(max(0.0, margin + max(positives) - min(negatives)))
    return sum(terms) / len(terms)


@pytest.mark.parametrize("margin", [0.0, 0.1, 0.7])
def test_triplet_equals_loops(margin):
    points = unit_points(0.0, 0.4, 0.9, 1.0, 1.3, 3.0, 3.2)
    targets = [0, 0, 1, 0, 1, 2, 2]
    loss = batch_hard_triplet(points, torch.tensor(targets), margin)
    assert loss.item() == pytest.approx(triplet_by_loops(points.tolist(), targets, margin))
    assert loss.item() > 0


def all_triplets(points: list[list[float]], targets: list[int]) -> list[tuple[int, int, int]]:
    every = range(len(points))
    return [
        (a, p, n)
        for a in every
        for p in every
        for n in every
        if a != p and targets[a] == targets[p] and targets[a] != targets[n]
    ]


@pytest.mark.parametrize("margin", [0.0, 0.3, 0.7])
def test_semi_hard_equals_loops(margin):
    points = unit_points(0.0, 0.41, 0.93, 1.02, 1.34, 3.0, 3.23, 2.0)
    targets = [0, 0, 1, 0, 1, 2, 2, 3]  # the last is alone in its class
    listed, terms = points.tolist(), []
    for a, p in dict.fromkeys((a, p) for a, p, _ in all_triplets(listed, targets)):
        pair = math.dist(listed[a], listed[p])
        others = [math.dist(listed[a], listed[n]) for n in range(8) if targets[n] != targets[a]]
        farther = [other for other in others if other > pair]
        terms.append(max(0.0, margin + pair - (min(farther) if farther else max(others))))
    loss = RANKING_LOSSES["semi-hard"](points, torch.tensor(targets), margin)
    assert loss.item() == pytest.approx(sum(terms) / len(terms)) and any(terms) == (margin > 0)
    loss.backward()
    assert torch.isfinite(points.grad).all()


@pytest.mark.parametrize("margin", [0.0, 0.1, 0.7])
def test_mixed_equals_loops(margin):
    points = unit_points(0.0, 0.4, 0.9, 1.0, 1.3, 3.0, 3.2)
    targets = [0, 0, 1, 0, 1, 2, 2]
    listed = points.tolist()
    terms = [
        max(0.0, margin + math.dist(listed[a], listed[p]) - math.dist(listed[a], listed[n]))
        for a, p, n in all_triplets(listed, targets)
    ]
    expected = (triplet_by_loops(listed, targets, margin) + sum(terms) / len(terms)) / 2
    assert RANKING_LOSSES["mixed"](points, torch.tensor(targets), margin).item() == pytest.approx(expected)


def test_triplet_leaves_out_anchors_without_a_positive():
    points = unit_points(0.0, 0.4, 0.5)
    targets = [0, 0, 1]  # the third is alone in its class
    loss = batch_hard_triplet(points, torch.tensor(targets), 0.1)
    assert loss.item() == pytest.approx(triplet_by_loops(points.tolist(), targets, 0.1))


def test_triplet_is_zero_for_separated_classes():
    points = unit_points(0.0, 0.01, 3.0, 3.01)
    assert batch_hard_triplet(points, torch.tensor([0, 0, 1, 1]), 0.1).item() == 0


def test_triplet_has_a_finite_useful_gradient_where_points_coincide():
    points = unit_points(0.5, 0.5, 0.5, 0.5)
    batch_hard_triplet(points, torch.tensor([0, 0, 1, 1]), 0.1).backward()
    assert torch.isfinite(points.grad).all()
    near = unit_points(0.5, 0.5 + 1e-6, 0.5, 1.5)
    batch_hard_triplet(near, torch.tensor([0, 0, 1, 1]), 0.1).backward()
    assert 0.1 < near.grad.norm() < 2


@pytest.mark.parametrize("targets", [[0, 1, 2], [0, 0, 0]])
def test_triplet_refuses_a_batch_without_any_triplet(targets):
    with pytest.raises(InputError, match="at least 2 classes with 2 pictures"):
        batch_hard_triplet(unit_points(0.0, 1.0, 2.0), torch.tensor(targets), 0.1)


def cross_entropy_by_loops(
    logits: list[list[float]], targets: list[int], temperature: float, smoothing: float
) -> float:
    total = 0.0
    for row, target in zip(logits, targets, strict=True):
        exponentials = [math.exp(value / temperature) for value in row]
        for c, e in enumerate(exponentials):
            wanted = smoothing / len(row) + (1 - smoothing) * (c == target)
            total -= wanted * math.log(e / sum(exponentials))
    return total / len(logits)


@pytest.mark.parametrize(("temperature", "smoothing"), [(0.5, 0.1), (1.0, 0.0), (2.0, 0.3)])
def test_auxiliary_equals_loops(temperature, smoothing):
    logits = [[1.0, -0.5, 0.2], [0.3, 0.1, 2.0], [-1.0, 0.0, 0.5]]
    targets = [0, 2, 1]
    loss = auxiliary_classification(torch.tensor(logits), torch.tensor(targets), temperature, smoothing)
    assert loss.item() == pytest.approx(cross_entropy_by_loops(logits, targets, temperature, smoothing), rel=1e-5)


TARGETS = [0, 0, 1, 0, 1, 2, 2]


def seven_points() -> torch.Tensor:
    return unit_points(0.0, 0.4, 0.9, 1.0, 1.3, 3.0, 3.2)


def pairs_of(targets: list[int], anchor: int) -> tuple[list[int], list[int]]:
    """The other pictures of the anchor's class, and those of other classes."""
    others = [i for i in range(len(targets)) if i != anchor]
    return (
        [i for i in others if targets[i] == targets[anchor]],
        [i for i in others if targets[i] != targets[anchor]],
    )


def soft_margin_by_loops(points: list[list[float]], targets: list[int]) -> float:
    total = 0.0
    for a, anchor in enumerate(points):
        positives, negatives = pairs_of(targets, a)
        gap = max(math.dist(anchor, points[p]) for p in positives) - min(
            math.dist(anchor, points[n]) for n in negatives
        )
        total += math.log(1 + math.exp(gap))
    return total / len(points)


def contrastive_by_loops(points: list[list[float]], targets: list[int], margin: float) -> float:
    pulls, pushes = [], []
    for a, anchor in enumerate(points):
        positives, negatives = pairs_of(targets, a)
        pulls += [math.dist(anchor, points[p]) ** 2 for p in positives]
        pushes += [max(0.0, margin - math.dist(anchor, points[n])) ** 2 for n in negatives]
    pushes = [push for push in pushes if push > 0]
    return sum(pulls) / len(pulls) + sum(pushes) / max(len(pushes), 1)


def multi_similarity_by_loops(points, targets, alpha=2.0, beta=50.0, base=0.5, epsilon=0.1) -> float:
    total = 0.0
    for a, anchor in enumerate(points):
        similar = [sum(x * y for x, y in zip(anchor, point, strict=True)) for point in points]
        positives, negatives = pairs_of(targets, a)
        pulled = [p for p in positives if similar[p] < max(similar[n] for n in negatives) + epsilon]
        pushed = [n for n in negatives if similar[n] > min(similar[p] for p in positives) - epsilon]
        total += math.log(1 + sum(math.exp(-alpha * (similar[p] - base)) for p in pulled)) / alpha
        total += math.log(1 + sum(math.exp(beta * (similar[n] - base)) for n in pushed)) / beta
    return total / len(points)


def test_soft_margin_equals_loops():
    points = seven_points()
    loss = ranking_loss("soft-margin")(points, torch.tensor(TARGETS))
    assert loss.item() == pytest.approx(soft_margin_by_loops(points.tolist(), TARGETS))


@pytest.mark.parametrize("margin", [0.05, 0.5, 1.2])
def test_contrastive_equals_loops(margin):
    points = seven_points()
    loss = ranking_loss("contrastive", margin)(points, torch.tensor(TARGETS))
    assert loss.item() == pytest.approx(contrastive_by_loops(points.tolist(), TARGETS, margin))


@pytest.mark.parametrize("changes", [{}, {"epsilon": -0.2}, {"alpha": 1.0, "beta": 4.0, "base": 0.9}])
def test_multi_similarity_equals_loops(changes):
    points = seven_points()
    loss = multi_similarity(points, torch.tensor(TARGETS), **changes)
    assert loss.item() == pytest.approx(multi_similarity_by_loops(points.tolist(), TARGETS, **changes))


@pytest.mark.parametrize("name", RANKING_LOSSES)
def test_every_ranking_loss_pulls_classes_together_and_refuses_a_batch_without_pairs(name):
    angles = torch.tensor([0.0, 0.5, 0.3, 0.9], dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([0, 0, 1, 1])
    loss = ranking_loss(name)

    def at(angles: torch.Tensor) -> torch.Tensor:
        return loss(torch.stack([angles.cos(), angles.sin()], dim=1), targets)

    before = at(angles)
    before.backward()
    assert torch.isfinite(angles.grad).all()
    assert at(angles.detach() - 1e-3 * angles.grad).item() < before.item()
    with pytest.raises(InputError, match="at least 2 classes with 2 pictures"):
        loss(unit_points(0.0, 1.0, 2.0), torch.tensor([0, 1, 2]))


@pytest.mark.parametrize("name", RANKING_LOSSES)
def test_equal_descriptors_have_a_finite_gradient(name):
    points = torch.ones(4, 3, dtype=torch.float64, requires_grad=True)
    ranking_loss(name)(points / points.norm(dim=1, keepdim=True), torch.tensor([0, 0, 1, 1])).backward()
    assert torch.isfinite(points.grad).all()


def test_unknown_losses_and_margins_without_use_are_refused():
    with pytest.raises(InputError, match="loss='batch-hrad' is unknown; the closest known ones are batch-hard"):
        ranking_loss("batch-hrad")
    with pytest.raises(InputError, match=r"margin=0\.2 cannot be used because the loss 'soft-margin' has no margin"):
        ranking_loss("soft-margin", 0.2)
