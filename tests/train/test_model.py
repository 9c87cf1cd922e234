"""The CGD model against the formulas of the paper, on small random inputs."""

import math
from itertools import permutations

import pytest
import torch

from cgd_deploy.spec import ModelSpec
from cgd_train.model import CGD, DeployModel, GeM


def spec(**changes) -> ModelSpec:
    return ModelSpec(**{"backbone": "resnet18", "descriptors": "SG", "dim": 12, "input_size": (64, 64), **changes})


def gem_by_loops(x: torch.Tensor, p: float, eps: float) -> list[list[float]]:
    """(mean over the map of max(x, eps)^p)^(1/p) of each picture and channel."""
    out = []
    for picture in x.tolist():
        row = []
        for channel in picture:
            values = [max(value, eps) ** p for line in channel for value in line]
            row.append((sum(values) / len(values)) ** (1 / p))
        out.append(row)
    return out


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    """Two threads wait for each other on a busy machine; these inputs are small."""
    torch.set_num_threads(1)


@pytest.fixture
def features() -> torch.Tensor:
    return torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0)).relu()


@pytest.mark.parametrize("p", [2.0, 3.0, 4.5])
def test_gem_equals_the_formula(features, p):
    assert GeM(p, 1e-6)(features) == pytest.approx(torch.tensor(gem_by_loops(features, p, 1e-6)), rel=1e-4)


def test_gem_clamps_at_eps():
    negative = torch.full((1, 1, 2, 2), -1.0)
    assert GeM(3.0, 0.25)(negative).item() == pytest.approx(0.25)


def test_spoc_and_mac_are_the_limits_of_gem(features):
    assert torch.equal(GeM(1.0, 1e-6)(features), features.mean((2, 3)))
    assert torch.equal(GeM(math.inf, 1e-6)(features), features.amax((2, 3)))
    positive = features.double() + 0.1
    assert torch.allclose(GeM(1.000001, 1e-6)(positive), positive.mean((2, 3)), atol=1e-5)
    assert torch.allclose(GeM(400.0, 1e-6)(positive), positive.amax((2, 3)), rtol=0.01)


def test_learned_p_is_a_parameter_of_the_g_branch_alone(features):
    model = CGD(spec(descriptors="SMG"), learn_p=True)
    assert [name for name, _ in model.pools.named_parameters()] == ["2.p"]
    pool = GeM(3.0, 1e-6, learn=True)
    assert pool(features).detach() == pytest.approx(torch.tensor(gem_by_loops(features, 3.0, 1e-6)), rel=1e-4)
    pool(features).sum().backward()
    step = 1e-2
    sums = [sum(map(sum, gem_by_loops(features, 3.0 + d, 1e-6))) for d in (-step, step)]
    assert pool.p.grad.item() == pytest.approx((sums[1] - sums[0]) / (2 * step), rel=1e-2)


def test_a_frozen_p_is_a_number_and_pools_alike(features):
    pool = GeM(2.5, 1e-6, learn=True)
    learned = pool(features).detach()
    pool.freeze()
    assert pool.p == 2.5 and isinstance(pool.p, float) and not list(pool.parameters())
    assert torch.allclose(pool(features), learned)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))


COMBINATIONS = ["".join(letters) for count in (1, 2, 3) for letters in permutations("SMG", count)]


@pytest.mark.parametrize("descriptors", COMBINATIONS)
def test_descriptors_are_unit_vectors_of_the_joined_branches_in_order(images, descriptors):
    model = CGD(spec(descriptors=descriptors)).eval()
    with torch.inference_mode():
        joined, logits = model(images)
        features = model.backbone(images)
    assert logits is None
    assert joined.shape == (3, 12)
    assert joined.norm(dim=1) == pytest.approx(torch.ones(3), abs=1e-5)
    share = 12 // len(descriptors)
    gem = torch.tensor(gem_by_loops(features, 3.0, 1e-6))
    pooled = {"S": features.mean((2, 3)), "M": features.amax((2, 3)), "G": gem}
    for i, letter in enumerate(descriptors):
        part = pooled[letter] @ model.heads[i].weight.T
        part = part / part.norm(dim=1, keepdim=True) / math.sqrt(len(descriptors))
        assert torch.allclose(joined[:, i * share : (i + 1) * share], part, atol=1e-5)


def test_order_decides_what_the_auxiliary_head_sees(images):
    seen = {}
    for descriptors in ("SG", "GS"):
        torch.manual_seed(0)
        model = CGD(spec(descriptors=descriptors), classes=5).eval()
        model.auxiliary.register_forward_pre_hook(lambda _, args, key=descriptors: seen.update({key: args[0]}))
        with torch.inference_mode():
            logits = model(images)[1]
            features = model.backbone(images)
        assert logits.shape == (3, 5)
    assert torch.allclose(seen["SG"], features.mean((2, 3)), atol=1e-6)
    assert torch.allclose(seen["GS"], torch.tensor(gem_by_loops(features, 3.0, 1e-6)), rtol=1e-4, atol=1e-5)


def test_deploy_model_normalises_pixels_and_leaves_the_auxiliary_head_out():
    model = CGD(spec(mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7)), classes=5)
    deploy = DeployModel(model)
    pixels = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    floats = pixels.permute(0, 3, 1, 2).double() / 255
    for channel, (mean, std) in enumerate(zip(model.spec.mean, model.spec.std, strict=True)):
        floats[:, channel] = (floats[:, channel] - mean) / std
    assert torch.allclose(deploy.normalized(pixels), floats.float(), atol=1e-5)
    with torch.inference_mode():
        assert torch.allclose(deploy(pixels), model(floats.float())[0], atol=1e-5)
    model.auxiliary = None
    assert deploy(pixels).shape == (2, 12)
