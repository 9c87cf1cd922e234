"""Heads that do not collapse: the subtracted mean, and the start from the pictures' covariance."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from cgd_deploy.spec import ModelSpec
from cgd_train.losses import batch_hard_triplet
from cgd_train.measuring import mean_cosine
from cgd_train.model import CGD, Head, unit
from cgd_train.processes import Processes
from cgd_train.whitening import Moments, shrunk, whiten_heads, whitening

CLASSES, PICTURES, CHANNELS = 16, 4, 32


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


def features(seed: int) -> Tensor:
    """Like pooled ReLU features: [64, 32], positive, with a large common mean, four noisy pictures of each class."""
    random = torch.Generator().manual_seed(seed)
    mean = 2 + torch.rand(CHANNELS, generator=torch.Generator().manual_seed(0))
    centres = 0.15 * torch.randn(CLASSES, 1, CHANNELS, generator=random)
    noise = 0.25 * torch.randn(CLASSES, PICTURES, CHANNELS, generator=random)
    return (mean + centres + noise).clamp_min(0).reshape(-1, CHANNELS)


TARGETS = torch.arange(CLASSES).repeat_interleave(PICTURES)


@pytest.mark.parametrize("centred", [True, False])
def test_batch_hard_collapses_a_head_exactly_if_it_is_not_centred(centred):
    """Fails if the head no longer subtracts the mean."""
    torch.manual_seed(0)
    head = Head(CHANNELS, 16, centred)
    optimizer = torch.optim.Adam(head.parameters(), lr=3e-3)
    for step in range(400):
        loss = batch_hard_triplet(unit(head(features(step))), TARGETS)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    head.eval()
    with torch.no_grad():
        cosine = mean_cosine(unit(head(features(1000))).numpy())
    assert abs(cosine) < 0.1 if centred else cosine > 0.99


def test_mean_cosine_equals_loops():
    descriptors = unit(torch.randn(7, 5, generator=torch.Generator().manual_seed(2)) + 0.3).numpy()
    pairs = [float(a @ b) for i, a in enumerate(descriptors) for j, b in enumerate(descriptors) if i != j]
    assert mean_cosine(descriptors) == pytest.approx(sum(pairs) / len(pairs), abs=1e-6)
    assert mean_cosine(descriptors[:1]) == pytest.approx(0, abs=1e-6)


def test_a_centred_head_subtracts_the_batchs_mean_in_training_and_the_running_mean_later():
    head = Head(CHANNELS, 8, centred=True)
    first, second = features(1), features(2)
    for pooled in (first, second):
        expected = (pooled - pooled.mean(0)) @ head.weight.T
        assert torch.allclose(head(pooled), expected, atol=1e-5)
    running = 0.9 * (0.1 * first.mean(0)) + 0.1 * second.mean(0)  # it starts at 0
    assert torch.allclose(head.eval().mean, running, atol=1e-6)
    assert torch.allclose(head(first), (first - running) @ head.weight.T, atol=1e-5)
    assert torch.allclose(head.mean, running)


def test_no_gradient_moves_all_descriptors_of_a_batch():
    pooled = features(3).requires_grad_()
    batch_hard_triplet(unit(Head(CHANNELS, 8, centred=True)(pooled)), TARGETS).backward()
    assert pooled.grad.abs().max() > 1e-4
    assert pooled.grad.sum(0).abs().max() < 1e-6


@pytest.mark.parametrize("centred", [True, False])
def test_a_folded_head_is_one_linear_layer_with_the_same_results(centred):
    head = Head(CHANNELS, 8, centred)
    head(features(1))
    head.eval()
    layer = head.folded()
    assert type(layer) is torch.nn.Linear and (layer.bias is not None) == centred
    assert torch.allclose(layer(features(2)), head(features(2)), atol=1e-5)


def test_whitened_descriptors_have_mean_0_and_covariance_1():
    vectors = torch.randn(5000, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    vectors = vectors @ torch.randn(6, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64) + 4
    moments = Moments.of(vectors[:2000, None]) + Moments.of(vectors[2000:, None])
    assert torch.allclose(moments.mean[0], vectors.mean(0))
    assert np.allclose(moments.covariance[0], np.cov(vectors.T.numpy(), bias=True))
    rows = whitening(moments.covariance[0], 6, torch.Generator())
    white = (vectors - vectors.mean(0)) @ rows.T
    assert torch.allclose(white.T @ white / 5000, torch.eye(6, dtype=torch.float64), atol=1e-8)
    assert all(row[row.abs().argmax()] > 0 for row in rows), "the signs are the same in every run"
    variances = [row @ moments.covariance[0] @ row / (row @ row) for row in rows]
    assert variances == sorted(variances, reverse=True)


def test_rows_beyond_the_channels_are_mixtures_with_variance_1():
    covariance = torch.diag(torch.tensor([4.0, 1.0, 0.25], dtype=torch.float64))
    rows = whitening(covariance, 5, torch.Generator().manual_seed(0))
    assert rows.shape == (5, 3)
    assert torch.diag(rows @ covariance @ rows.T) == pytest.approx(torch.ones(5, dtype=torch.float64))


def test_shrinkage_moves_variances_towards_their_mean():
    covariance = torch.tensor([[9.0, 2.0, 0.0], [2.0, 3.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    expected = torch.tensor([[8.0, 1.6, 0.0], [1.6, 3.2, 0.0], [0.0, 0.0, 0.8]], dtype=torch.float64)
    assert torch.allclose(shrunk(covariance), expected)


@pytest.mark.parametrize("pooled", [torch.zeros(4, 1, 3), torch.ones(1, 1, 3)])
def test_features_without_variance_give_finite_heads(pooled):
    moments = Moments.of(pooled)
    rows = whitening(shrunk(moments.covariance[0]), 3, torch.Generator())
    assert torch.isfinite(rows).all()


def test_heads_are_whitened_by_the_pictures_of_all_processes():
    spec = ModelSpec(backbone="resnet18", descriptors="SG", dim=12, input_size=(32, 32))
    model = CGD(spec, centred=True)
    pooled = 1 + torch.rand(40, 2, 512, generator=torch.Generator().manual_seed(3))
    others = [Moments.of(pooled[20:30]), Moments.of(pooled[30:])]

    class Three(Processes):
        def collect(self, thing):  # type: ignore[no-untyped-def]
            return [thing, *others]

    alone = copy.deepcopy(model)
    whiten_heads(alone, [pooled[:7], pooled[7:]], Processes(), seed=0)
    whiten_heads(model, [pooled[:20]], Three(), seed=0)
    for ours, theirs, branch in zip(model.heads, alone.heads, pooled.unbind(1), strict=True):
        assert torch.allclose(ours.mean, branch.mean(0), atol=1e-6)
        assert torch.allclose(ours.weight.abs(), theirs.weight.abs(), rtol=1e-3, atol=1e-3 * math.sqrt(512))
