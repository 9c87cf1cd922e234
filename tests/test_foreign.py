"""Foreign state_dicts: descriptors survive the import, contradictions are refused, and what is only stated is said."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import mobilenet_v3_small, resnet18, resnet34

from cgd_deploy.errors import CheckpointError, SpecError
from cgd_deploy.files import sha256_file
from cgd_deploy.spec import ModelSpec
from cgd_train.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from cgd_train.foreign import Imported, import_weights
from cgd_train.model import CGD

SPEC = ModelSpec(
    backbone="resnet18", descriptors="SG", dim=24, no_downsample="layer3", gem_eps=0.0, input_size=(64, 64)
)
IMAGES = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Foreign(nn.Module):
    """CGD as other code has it: numbered children, pools without weights, linear layers inside a Sequential."""

    def __init__(self, stage: str, letters: str = "SG", length: int = 12) -> None:
        super().__init__()
        network = resnet18()
        for module in getattr(network, stage).modules():
            if isinstance(module, nn.Conv2d):
                module.stride = (1, 1)
        self.letters = letters
        self.features = nn.Sequential(*list(network.children())[:-2])
        self.main_modules = nn.ModuleList(nn.Sequential(nn.Linear(512, length, bias=False)) for _ in letters)
        self.auxiliary_module = nn.Sequential(nn.BatchNorm1d(512), nn.Linear(512, 5))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.features(images).flatten(2)  # (N, 512, h * w)
        pools = {
            "S": features.sum(2) / features.shape[2],
            "M": features.max(2).values,
            "G": ((features * features * features).sum(2) / features.shape[2]) ** (1 / 3),
        }
        pooled = [pools[letter] for letter in self.letters]
        parts = [linear(vector) for linear, vector in zip(self.main_modules, pooled, strict=True)]
        joined = torch.cat([part / part.square().sum(1, keepdim=True).sqrt() for part in parts], 1)
        return joined / joined.square().sum(1, keepdim=True).sqrt(), self.auxiliary_module(pooled[0])


def foreign_model(stage: str = "layer3", letters: str = "SG") -> Foreign:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = Foreign(stage, letters)
        for module in model.modules():
            if isinstance(module, (nn.BatchNorm2d, nn.BatchNorm1d)):
                module.momentum = 0.8
        model(IMAGES)  # batch statistics unlike those of a new network
    return model.eval()


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return dict(foreign_model().state_dict())


def hollow(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same names and shapes in a small file: each tensor is one stored number."""
    return {name: torch.ones((), dtype=tensor.dtype).expand(tensor.shape) for name, tensor in state.items()}


@pytest.fixture(scope="module")
def shapes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return hollow(state)


def saved(data: object, folder: Path) -> Path:
    torch.save(data, folder / "weights.pth")
    return folder / "weights.pth"


def described(model: nn.Module) -> Tensor:
    with torch.inference_mode():
        return model(IMAGES)[0]


def cosines(imported: Imported, expected: Tensor) -> Tensor:
    return (described(imported.checkpoint.model).double() * expected.double()).sum(1)


def refused(path: Path, text: str, spec: ModelSpec = SPEC) -> None:
    with pytest.raises(CheckpointError, match=text) as caught:
        import_weights(path, spec)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")


@pytest.mark.parametrize(("stage", "letters"), [("layer3", "SG"), ("layer4", "GMS")])
def test_descriptors_survive_the_import(stage, letters, tmp_path):
    model = foreign_model(stage, letters)
    spec = replace(SPEC, descriptors=letters, dim=12 * len(letters), no_downsample=stage)
    imported = import_weights(saved(model.state_dict(), tmp_path), spec)
    assert imported.layout == "cgd-sequential" and imported.checkpoint.spec == spec
    assert cosines(imported, described(model)).min() > 0.999999
    assert not imported.checkpoint.model.training


def test_the_auxiliary_head_comes_along(state, tmp_path):
    imported = import_weights(saved(state, tmp_path), SPEC)
    with torch.inference_mode():
        logits = imported.checkpoint.model(IMAGES)[1]
        torch.testing.assert_close(logits, foreign_model()(IMAGES)[1])

    headless = {name: tensor for name, tensor in state.items() if not name.startswith("auxiliary_module.")}
    imported = import_weights(saved(headless, tmp_path), SPEC)
    assert imported.checkpoint.model.auxiliary is None
    assert cosines(imported, described(foreign_model())).min() > 0.999999


def test_wrappers_come_off(state, tmp_path):
    expected = described(foreign_model())
    parallel = {f"module.{name}": tensor for name, tensor in state.items()}
    compiled = {f"_orig_mod.{name}": tensor for name, tensor in parallel.items()}
    profiled = {**parallel, "module.features.0.total_ops": torch.zeros(1), "total_params": torch.zeros(1)}
    old = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    for data in ({"state_dict": parallel, "epoch": 3}, {"model": compiled}, profiled, old):
        assert cosines(import_weights(saved(data, tmp_path), SPEC), expected).min() > 0.999999


def test_half_precision_becomes_float32(state, tmp_path):
    half = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    model = import_weights(saved(half, tmp_path), SPEC).checkpoint.model
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert torch.equal(model.heads[1].weight, state["main_modules.1.0.weight"].half().float())


def test_the_origin_is_written_down(state, tmp_path):
    path = saved(state, tmp_path)
    save_checkpoint(import_weights(path, SPEC).checkpoint, tmp_path / "ckpt.pt")
    origin = load_checkpoint(tmp_path / "ckpt.pt").origin
    assert origin["imported_from"] == "weights.pth" and origin["layout"] == "cgd-sequential"
    assert origin["sha256"] == sha256_file(path)
    assert ModelSpec.from_json(origin["stated"]) == SPEC and json.loads(origin["stated"])["descriptors"] == "SG"


def test_the_wrong_order_imports_and_is_another_space(state, tmp_path):
    path = saved(state, tmp_path)
    right = import_weights(path, SPEC)
    wrong = import_weights(path, replace(SPEC, descriptors="GS"))
    assert wrong.warnings[0].startswith("descriptors GS taken at your word: the weights fit SM, SG,")
    assert cosines(wrong, described(right.checkpoint.model)).max() < 0.9999
    spaces = set()
    for imported in (right, wrong):
        save_checkpoint(imported.checkpoint, tmp_path / "ckpt.pt")
        spaces.add(load_checkpoint(tmp_path / "ckpt.pt").spec.space_id)
    assert len(spaces) == 2


def test_what_is_only_stated_is_said_with_its_value(shapes, tmp_path):
    spec = replace(SPEC, gem_p=2.5, gem_eps=1e-6, mean=(0.5, 0.5, 0.25), input_size=(64, 96))
    path = saved(shapes, tmp_path)
    order, stride, gem, pixels = import_weights(path, spec).warnings
    assert "descriptors SG taken" in order and "fit SM, MS, MG, GS, GM as well" in order
    assert "no_downsample layer3 taken" in stride
    assert "gem_p 2.5 and gem_eps 1e-06 taken" in gem
    for value in ("64x96", "pillow-bilinear", "mean 0.5, 0.5, 0.25", "std 0.229, 0.224, 0.225", "RGB"):
        assert value in pixels
    assert len(import_weights(path, replace(spec, descriptors="SM")).warnings) == 3


def test_our_own_names(tmp_path):
    model = CGD(SPEC, classes=3)
    save_checkpoint(Checkpoint(model), tmp_path / "original.pt")
    imported = import_weights(saved(model.state_dict(), tmp_path), SPEC)
    assert imported.layout == "cgd-deploy" and len(imported.warnings) == 4
    save_checkpoint(imported.checkpoint, tmp_path / "ckpt.pt")
    assert load_checkpoint(tmp_path / "ckpt.pt").spec == model.spec
    assert imported.checkpoint.model.auxiliary[1].out_features == 3


def test_a_learned_exponent_tells_where_gem_is(tmp_path):
    model = CGD(SPEC, learn_p=True)
    nn.init.constant_(model.pools[1].p, 2.7)
    path = saved(model.state_dict(), tmp_path)
    imported = import_weights(path, replace(SPEC, gem_p=2.7))
    assert imported.checkpoint.spec.gem_p == 2.7
    assert "fit MG as well" in imported.warnings[0]
    assert not any("gem_p" in warning for warning in imported.warnings)
    refused(path, r"holds pools\.1\.p = 2\.7, not 3; pass --gem-p 2\.7")
    refused(path, "descriptor 2 is G and not S", replace(SPEC, descriptors="GS"))


def test_a_backbone_is_a_baseline_with_random_heads(tmp_path):
    network = resnet18()
    path = saved(network.state_dict(), tmp_path)
    random = torch.get_rng_state()
    imported = import_weights(path, SPEC)
    assert torch.equal(torch.get_rng_state(), random)
    model = imported.checkpoint.model
    assert imported.layout == "backbone" and model.auxiliary is None
    (warning,) = imported.warnings
    assert "random (seed 0)" in warning and "untrained beyond its backbone" in warning and "baseline" in warning
    assert torch.equal(model.backbone.layer4[1].conv2.weight, network.layer4[1].conv2.weight)

    again, other = (import_weights(path, SPEC, seed=seed).checkpoint.model for seed in (0, 1))
    assert torch.equal(again.heads[1].weight, model.heads[1].weight)
    assert not torch.equal(other.heads[1].weight, model.heads[1].weight)
    assert torch.equal(other.backbone.conv1.weight, model.backbone.conv1.weight)


def test_a_backbone_whose_own_names_start_with_features(tmp_path):
    path = saved(hollow(mobilenet_v3_small().state_dict()), tmp_path)
    assert import_weights(path, replace(SPEC, backbone="mobilenet_v3_small")).layout == "backbone"
    refused(path, "holds a mobilenet_v3_small, not a resnet18; pass --backbone mobilenet_v3_small")


def test_another_backbone_is_named(shapes, tmp_path):
    path = saved(shapes, tmp_path)
    refused(path, "holds a resnet18, not a resnet34; pass --backbone resnet18", replace(SPEC, backbone="resnet34"))
    refused(
        saved(hollow(resnet34().state_dict()), tmp_path), "holds a resnet34, not a resnet18; pass --backbone resnet34"
    )
    with pytest.raises(SpecError, match="backbone 'resnet19' is unknown"):
        import_weights(path, replace(SPEC, backbone="resnet19"))


def test_no_known_backbone(shapes, tmp_path):
    without = {name: tensor for name, tensor in shapes.items() if name != "features.0.weight"}
    refused(saved(without, tmp_path), r"as cgd-sequential, fits neither resnet18 \(features.0.weight is missing\) nor")
    refused(saved({"embeddings.weight": torch.zeros(2, 2)}, tmp_path), "fits neither .*conv1.weight is missing,.* more")


def test_number_and_length_of_descriptors(shapes, tmp_path):
    path = saved(shapes, tmp_path)
    refused(path, "holds 2 descriptors, SMG names 3; pass --descriptors with 2 of", replace(SPEC, descriptors="SMG"))
    refused(path, "2 descriptors of length 12, together 24 and not 32; pass --dim 24", replace(SPEC, dim=32))
    heads = {name: tensor for name, tensor in shapes.items() if not name.startswith("main_modules.")}
    refused(saved(heads, tmp_path), "has no main_modules.0.0.weight; pass")


@pytest.mark.parametrize(
    ("name", "tensor", "text"),
    [
        ("main_modules.1.0.bias", torch.zeros(12), "main_modules.1.0.bias is left over"),
        ("fusion_layer.weight", torch.zeros(24, 24), "fusion_layer.weight is left over"),
        ("backbone.conv1.weight", torch.zeros(64, 3, 7, 7), "backbone.conv1.weight is left over"),
        ("main_modules.1.0.weight", torch.zeros(12, 2048), "weight is 12x2048 instead of 12x512"),
        ("global_descriptors.1.p", torch.ones(512), "global_descriptors.1.p is left over"),
        ("main_modules.1.0.weight", torch.zeros(8, 512), "weight is 8x512 instead of 12x512"),
        ("main_modules.1.0.weight", torch.tensor(1.0), "weight is a scalar instead of 12x512"),
        ("auxiliary_module.1.bias", torch.zeros(9), "auxiliary_module.1.bias is 9 instead of 5"),
        ("auxiliary_module.0.running_var", None, "auxiliary_module.0.running_var is missing"),
        ("main_modules.0.0.weight", torch.full((12, 512), torch.nan), "NaN, .* in main_modules.0.0.weight; pass"),
        ("features.1.bias", torch.full((64,), 1e300, dtype=torch.float64), "beyond float32 in features.1.bias"),
        ("features.1.bias", torch.zeros(64, dtype=torch.int8), r"no floating-point weights \(features.1.bias\)"),
        ("features.1.bias", torch.zeros(64, device="meta"), r"no floating-point weights \(features.1.bias\)"),
        ("classes", ["a", "b"], r"no floating-point weights \(classes\)"),
        (7, torch.zeros(1), r"no floating-point weights \(7\)"),
    ],
)
def test_anything_else_is_refused(name, tensor, text, shapes, tmp_path):
    edited = {**shapes, name: tensor}
    refused(saved({k: v for k, v in edited.items() if v is not None}, tmp_path), text)


def test_a_checkpoint_needs_no_import(tmp_path):
    save_checkpoint(Checkpoint(CGD(SPEC)), tmp_path / "ckpt.pt")
    refused(tmp_path / "ckpt.pt", "is a cgd-deploy checkpoint and needs no import")


def test_nothing_is_unpickled(tmp_path):
    refused(saved({"state_dict": Path("x")}, tmp_path), "load safely")
    refused(saved(nn.Linear(1, 1), tmp_path), "load safely")
    refused(tmp_path / "missing.pth", "there is no checkpoint")
