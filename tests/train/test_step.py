"""One training step: in parts, with other weights of the losses, with other number formats."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cgd_train.config import TrainConfig
from cgd_train.losses import auxiliary_classification, batch_hard_triplet
from cgd_train.model import CGD
from cgd_train.processes import Processes
from cgd_train.step import Stepper

CONFIG = TrainConfig(
    backbone="resnet18",
    descriptors="MSG",
    dim=12,
    size=32,
    classes_per_batch=3,
    pictures_per_class=2,
    learn_p=True,
    freeze_bn=True,
    out=Path("unused"),
)
PIXELS = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
TARGETS = torch.tensor([0, 0, 1, 1, 2, 2])


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


def stepper(config: TrainConfig, seed: int = 0) -> Stepper:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = CGD(config.spec, classes=3 if config.auxiliary else 0, learn_p=config.learn_p)
    made = Stepper(model, config, Processes())
    model.train()
    model.backbone.eval()
    return made


def gradients(config: TrainConfig, **options) -> dict[str, torch.Tensor]:
    """Of every parameter after one step."""
    made = stepper(config)
    made.step(PIXELS, TARGETS, seed=1, **options)
    return {name: parameter.grad for name, parameter in made.model.named_parameters()}


def test_the_loss_is_the_weighted_sum_of_the_papers_two():
    config = replace(CONFIG, ranking_weight=0.3, auxiliary_weight=2.0, margin=0.4)
    made = stepper(config)
    descriptors, logits = made.model(made.deploy.normalized(torch.from_numpy(PIXELS)))
    ranking = batch_hard_triplet(descriptors, TARGETS, 0.4).item()
    auxiliary = auxiliary_classification(logits, TARGETS, 0.5, 0.1).item()
    losses = stepper(config).step(PIXELS, TARGETS, seed=1)
    assert (losses.ranking, losses.auxiliary) == (pytest.approx(ranking, rel=1e-4), pytest.approx(auxiliary, rel=1e-4))
    assert losses.total == pytest.approx(0.3 * ranking + 2.0 * auxiliary, rel=1e-4)


def test_without_the_auxiliary_loss_only_the_ranking_counts():
    losses = stepper(replace(CONFIG, auxiliary=False)).step(PIXELS, TARGETS, seed=1)
    assert losses.auxiliary is None and losses.total == pytest.approx(losses.ranking)


@pytest.mark.parametrize("parts", [2, 4, 6])
def test_a_batch_in_parts_has_the_gradients_of_the_whole(parts):
    """Mining runs over all pictures, however few pass the backbone at a time."""
    whole, in_parts = gradients(CONFIG), gradients(replace(CONFIG, accumulate=parts))
    assert any(name.startswith("pools.") for name in whole)
    for name, gradient in whole.items():
        assert torch.allclose(in_parts[name], gradient, rtol=1e-3, atol=1e-3 * gradient.abs().max()), name


def test_parts_drop_the_same_layers_in_both_passes():
    """ConvNeXt drops blocks at random; a second pass with other blocks would give another gradient."""
    config = replace(CONFIG, backbone="convnext_tiny", accumulate=2)
    made = stepper(config)
    made.model.backbone.train()
    first, second = (made._pooled(PIXELS, seed=3) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, made._pooled(PIXELS, seed=4))


def test_batch_norm_counts_each_part_once():
    made = stepper(replace(CONFIG, accumulate=2))
    norm = made.model.backbone.bn1.train()
    seen = []
    norm.register_forward_hook(lambda norm, inputs, output: seen.append(inputs[0].mean((0, 2, 3)).detach()))
    made.step(PIXELS, TARGETS, seed=1)
    *_, first, second = seen
    assert torch.allclose(norm.running_mean, 0.1 * (0.9 * first + second), atol=1e-6)  # it starts at 0
    assert norm.momentum == 0.1


def test_a_step_follows_the_gradient_at_the_rate_of_each_group():
    """Adam's first step is the learning rate in the direction of the gradient's sign."""
    made = stepper(replace(CONFIG, head_lr=7.0, auxiliary_lr=4.0))
    made.set_learning_rate(1e-3)
    before = {name: parameter.detach().clone() for name, parameter in made.model.named_parameters()}
    losses = made.step(PIXELS, TARGETS, seed=1)
    for name, parameter in made.model.named_parameters():
        moved = (parameter - before[name])[parameter.grad.abs() > 1e-5]
        rate = {"backbone": 1e-3, "auxiliary": 4e-3}.get(name.partition(".")[0], 7e-3)
        signs = -parameter.grad[parameter.grad.abs() > 1e-5].sign()
        assert torch.allclose(moved, rate * signs, rtol=0.02), name
    assert made.step(PIXELS, TARGETS, seed=2).total < losses.total


@pytest.mark.parametrize("parts", [1, 2])
def test_in_the_warm_up_only_the_new_layers_move(parts):
    made = stepper(replace(CONFIG, accumulate=parts))
    made.trains_backbone = False
    before = copy.deepcopy(made.model.state_dict())
    made.step(PIXELS, TARGETS, seed=1)
    for name, parameter in made.model.named_parameters():
        assert torch.equal(parameter, before[name]) == name.startswith("backbone."), name


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_half_precision_moves_only_the_backbones_arithmetic(amp):
    full = stepper(CONFIG).step(PIXELS, TARGETS, seed=1)
    made = stepper(replace(CONFIG, amp=amp))
    half = made.step(PIXELS, TARGETS, seed=1)
    assert half.total == pytest.approx(full.total, rel=0.05) and half.total != full.total
    assert made._pooled(PIXELS, seed=1).dtype == torch.float32
    assert made.scaler.is_enabled() == (amp == "fp16")


def test_a_loss_that_is_no_number_changes_nothing():
    made = stepper(CONFIG)
    with torch.no_grad():
        made.model.heads[0].weight[:] = math.nan
    before = {name: tensor.clone() for name, tensor in made.model.backbone.state_dict().items()}
    assert math.isnan(made.step(PIXELS, TARGETS, seed=1).total)
    assert all(torch.equal(tensor, before[name]) for name, tensor in made.model.backbone.state_dict().items())


def test_state_brings_the_optimizer_back():
    made = stepper(CONFIG)
    made.step(PIXELS, TARGETS, seed=1)
    again = stepper(CONFIG)
    again.model.load_state_dict(made.model.state_dict())
    again.load_state_dict(copy.deepcopy(made.state_dict()))
    assert made.step(PIXELS, TARGETS, seed=2) == again.step(PIXELS, TARGETS, seed=2)
    for ours, theirs in zip(made.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
