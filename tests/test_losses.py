"""The losses against plain loops over a handful of points."""

import math

import pytest
import torch

from cgd_deploy.errors import InputError
from cgd_train.losses import auxiliary_classification, batch_hard_triplet


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
