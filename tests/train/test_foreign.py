"""Foreign state_dicts: descriptors survive the import, contradictions are refused, and what is only stated is said."""

from __future__ import annotations

import argparse
import copy
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torchvision.models import mobilenet_v3_small, resnet18, resnet34

from cgd_deploy.errors import CheckpointError, InputError, MissingDependency, SpecError
from cgd_deploy.files import sha256_file
from cgd_deploy.spec import ModelSpec
from cgd_train.checkpoint import Checkpoint, load_checkpoint, save_checkpoint, space_id
from cgd_train.foreign import Imported, import_checkpoint, import_weights, read_backbone
from cgd_train.measuring import embed_images
from cgd_train.model import CGD
from cgd_train.whitening import shrunk

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
    assert wrong.warnings[0].startswith("descriptors GS are taken at your word: the weights also fit SM, SG,")
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
    assert "descriptors SG are taken" in order and "also fit SM, MS, MG, GS, GM," in order
    assert "no_downsample layer3 is taken" in stride
    assert "gem_p 2.5 and gem_eps 1e-06 are taken" in gem
    for value in ("64x96, stretched by bilinear", "mean 0.5, 0.5, 0.25", "std 0.229, 0.224, 0.225", "RGB"):
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
    assert "also fit MG," in imported.warnings[0]
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
    warning, pixels = imported.warnings
    assert "random (seed 0)" in warning and "untrained model" in warning and "baseline" in warning
    assert pixels.startswith("input 64x64, stretched by bilinear, mean") and "--resize" in pixels
    assert torch.equal(model.backbone.layer4[1].conv2.weight, network.layer4[1].conv2.weight)

    again, other = (import_weights(path, SPEC, seed=seed).checkpoint.model for seed in (0, 1))
    assert torch.equal(again.heads[1].weight, model.heads[1].weight)
    assert not torch.equal(other.heads[1].weight, model.heads[1].weight)
    assert torch.equal(other.backbone.conv1.weight, model.backbone.conv1.weight)


def test_pictures_whiten_the_heads_of_a_backbone(picture_list, tmp_path):
    path = saved(resnet18().state_dict(), tmp_path)
    random = torch.get_rng_state()
    imported = import_weights(path, SPEC, pictures=picture_list)
    assert torch.equal(torch.get_rng_state(), random)
    assert "linear layers are a whitening of 30 pictures" in imported.warnings[0]
    model = imported.checkpoint.model
    seen = []
    for head in model.heads:
        head.register_forward_hook(lambda head, inputs, output: seen.append((inputs[0], output)))
    embed_images(model, picture_list)
    for (pooled, output), head in zip(seen, model.heads, strict=True):
        assert torch.allclose(pooled.mean(0), head.mean, atol=1e-5)
        covariance = torch.cov(output.T, correction=0)
        assert (covariance - torch.diag(covariance.diagonal())).abs().max() < 1e-3
        whitened = head.weight.double() @ shrunk(torch.cov(pooled.T.double(), correction=0)) @ head.weight.double().T
        assert torch.allclose(whitened, torch.eye(12, dtype=torch.float64), atol=1e-3)


def test_heads_of_a_whole_model_are_kept(state, picture_list, tmp_path):
    path = saved(state, tmp_path)
    alone, beside = import_weights(path, SPEC), import_weights(path, SPEC, pictures=picture_list)
    assert alone.warnings == beside.warnings
    ours, theirs = alone.checkpoint.model.state_dict(), beside.checkpoint.model.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert not any(name.endswith(".mean") and name.startswith("heads.") for name in ours)


def test_an_unknown_start_of_the_heads_is_refused(tmp_path):
    with pytest.raises(InputError, match="head_init='white' cannot be used; expected whitened or random"):
        import_checkpoint(tmp_path / "none.pth", SPEC, tmp_path / "ckpt.pt", head_init="white")


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
        (7, torch.zeros(1), "7 is left over"),
    ],
)
def test_anything_else_is_refused(name, tensor, text, shapes, tmp_path):
    edited = {**shapes, name: tensor}
    refused(saved({k: v for k, v in edited.items() if v is not None}, tmp_path), text)


def test_a_checkpoint_needs_no_import(tmp_path):
    save_checkpoint(Checkpoint(CGD(SPEC)), tmp_path / "ckpt.pt")
    refused(tmp_path / "ckpt.pt", "is a cgd-deploy checkpoint and needs no import")


def test_a_missing_file_is_named(tmp_path):
    refused(tmp_path / "missing.pth", "there is no checkpoint")


class Lit(nn.Module):
    """A training module as Lightning has it: the network under a name, and its loss beside it."""

    def __init__(self, **children: nn.Module) -> None:
        super().__init__()
        for name, child in children.items():
            self.add_module(name, child)
        self.loss = nn.Linear(4, 3)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """A ResNet-18 whose weights are exact in float16, so that a file of those holds the same weights."""
    return resnet18().half().float()


@pytest.fixture(scope="module")
def plain(network) -> dict[str, Tensor]:
    return dict(network.state_dict())


@pytest.fixture(scope="module")
def worse(plain) -> dict[str, Tensor]:
    """Other weights of the same network."""
    return {name: tensor * 2 for name, tensor in plain.items()}


def below(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def space_of(path: Path, **options: str) -> str:
    return space_id(SPEC, import_weights(path, SPEC, **options).checkpoint.model.state_dict())


def average(network: nn.Module) -> dict[str, Tensor]:
    averaged = AveragedModel(network)
    averaged.update_parameters(network)
    return averaged.state_dict()


def cast(network: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: t.to(dtype) if t.is_floating_point() else t for name, t in network.state_dict().items()}


SAVED = {
    "DataParallel": lambda net: nn.DataParallel(net).state_dict(),
    "Lightning": lambda net: {"state_dict": Lit(model=net).state_dict(), "epoch": 3, "loops": {"fit_loop": {}}},
    "compiled": lambda net: torch.compile(net).state_dict(),
    "EMA": average,
    "model_state_dict": lambda net: {"model_state_dict": net.state_dict(), "epoch": 3},
    "fp16": lambda net: cast(net, torch.float16),
}
"""The ways of most files, beside a plain state_dict and safetensors."""
SIBLINGS = {
    "net": lambda net: {"state_dict": Lit(net=net).state_dict()},
    "encoder": lambda net: Lit(encoder=net).state_dict(),
    "backbone": lambda net: {"model": below("backbone.", net.state_dict())},
    "deep": lambda net: {"checkpoint": {"network": {"params": below("a.b.c.", net.state_dict())}}},
    "compiled inside": lambda net: {"state_dict": Lit(backbone=torch.compile(net)).state_dict()},
    "parallel inside": lambda net: Lit(model=Lit(model=nn.DataParallel(net))).state_dict(),
    "a compiled stage": lambda net: {
        name.replace("layer1.", "layer1._orig_mod."): t for name, t in net.state_dict().items()
    },
    "compiled beside itself": lambda net: Lit(model=net, compiled=torch.compile(net)).state_dict(),
    "children beside itself": lambda net: Lit(features=nn.Sequential(*net.children()), model=net).state_dict(),
    "float64": lambda net: {"weights": cast(net, torch.float64)},
    "Sequential": lambda net: nn.Sequential(*list(net.children())[:-1]).state_dict(),
    "Sequential inside": lambda net: Lit(encoder=nn.Sequential(*list(net.children())[:-2])).state_dict(),
    "optimizer": lambda net: {"net": net.state_dict(), "optimizer": adam(net)},
    "counters": lambda net: {**net.state_dict(), "step": torch.tensor(7), "best": 0.5, "names": ["a"]},
    "profiled": lambda net: {**net.state_dict(), "total_ops": torch.zeros(1), "layer1.0.total_params": torch.zeros(1)},
    "Namespace": lambda net: {"state_dict": net.state_dict(), "args": argparse.Namespace(lr=0.1, out=Path("x"))},
    "NumPy": lambda net: {"state_dict": net.state_dict(), "best": np.float64(0.5), "all": np.arange(3)},
    "module": lambda net: net,
    "module beside": lambda net: {"model": net, "epoch": 3},
    "module inside": lambda net: Lit(model=nn.DataParallel(net)),
}


def adam(network: nn.Module) -> dict[str, object]:
    optimizer = torch.optim.Adam(network.parameters())
    sum(p.sum() for p in network.parameters()).backward()
    optimizer.step = None  # its state alone is wanted
    optimizer.state.update({p: {"exp_avg": torch.zeros_like(p)} for p in network.parameters()})
    return optimizer.state_dict()


@pytest.fixture(scope="module")
def space(plain, tmp_path_factory) -> str:
    """The space_id of the network's bare state_dict."""
    return space_of(saved(plain, tmp_path_factory.mktemp("plain")))


@pytest.fixture(scope="module")
def worse_space(worse, tmp_path_factory) -> str:
    return space_of(saved(worse, tmp_path_factory.mktemp("worse")))


@pytest.mark.parametrize("way", SAVED)
def test_however_a_network_was_saved_it_imports_to_the_same_space(way, network, space, tmp_path):
    assert space_of(saved(SAVED[way](network), tmp_path)) == space


@pytest.mark.parametrize("way", SIBLINGS)
def test_training_and_import_find_the_backbone_however_it_was_saved(way, network, plain, tmp_path):
    found, _ = read_backbone(saved(SIBLINGS[way](network), tmp_path), "resnet18")
    assert found.keys() == {name for name in plain if not name.startswith("fc.")}
    assert all(torch.equal(found[name], plain[name]) for name in found)


@pytest.mark.parametrize("name", ["model.safetensors", "model.pth"])
def test_safetensors_import_to_the_same_space(name, plain, space, tmp_path):
    save_file(below("model.", {name: tensor.half() for name, tensor in plain.items()}), tmp_path / name)
    assert space_of(tmp_path / name) == space


def test_without_safetensors_its_file_names_the_line_that_installs_it(plain, tmp_path, monkeypatch):
    save_file(plain, tmp_path / "model.safetensors")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(
        MissingDependency, match=r"model.safetensors needs .* run `pip install '?safetensors>=[\d.]+'?`\.$"
    ):
        import_weights(tmp_path / "model.safetensors", SPEC)


def test_bfloat16_becomes_float32(network, tmp_path):
    rounded = copy.deepcopy(network).bfloat16()
    path = saved({"model": rounded.state_dict()}, tmp_path)
    assert space_of(path) == space_of(saved(rounded.float().state_dict(), tmp_path))


def test_a_whole_cgd_model_comes_out_of_its_wrapper(tmp_path):
    model = foreign_model()
    wrapped = Lit(model=nn.DataParallel(model), metric=nn.Linear(2, 2))
    imported = import_weights(saved({"state_dict": wrapped.state_dict()}, tmp_path), SPEC)
    assert imported.layout == "cgd-sequential" and cosines(imported, described(model)).min() > 0.999999
    assert imported.warnings[-1].startswith("metric.weight, metric.bias and 2 more lie beside the model")


def test_a_loss_inside_a_cgd_model_is_no_part_of_it(state, tmp_path):
    imported = import_weights(saved({**state, "criterion.proxies": torch.ones(3, 24)}, tmp_path), SPEC)
    assert imported.warnings[-1].startswith("criterion.proxies lie beside the model and were left out")


@pytest.mark.parametrize("name", ["loss.weight", "criterion.proxies", "neck.0.weight", "model.embedding.weight"])
def test_what_lies_beside_a_backbone_is_named(name, plain, tmp_path):
    data = {**below("model.", plain), name: torch.ones(3, 4)}
    baseline, _, beside = import_weights(saved({"state_dict": data}, tmp_path), SPEC).warnings
    assert "only as a baseline" in baseline and beside.startswith(f"{name} lie beside the model and were left out;")


@pytest.mark.parametrize("make", ["plain", "state"])
def test_counters_are_no_part_of_a_model(make, plain, state, tmp_path):
    counted = {"plain": plain, "state": state}[make]
    expected = import_weights(saved(counted, tmp_path), SPEC).warnings
    counters = {"step": torch.tensor(7), "queue_ptr": torch.zeros(1, dtype=torch.long), "ready": torch.tensor(True)}
    assert import_weights(saved({**counted, **counters}, tmp_path), SPEC).warnings == expected


def test_what_lies_inside_a_backbone_is_refused(plain, tmp_path):
    attention = {**below("model.", plain), "model.layer1.0.attention.weight": torch.ones(3, 4)}
    refused(saved(attention, tmp_path), r"backbone at model, fits neither .*layer1.0.attention.weight is left over")


def test_objects_beside_the_weights_are_named(plain, tmp_path):
    warning, *_ = import_weights(saved(SIBLINGS["Namespace"](resnet18()), tmp_path), SPEC).warnings
    assert "also holds objects of argparse.Namespace, pathlib." in warning and "for safety" in warning


AVERAGES = {
    "model_ema": lambda good, bad: {"model": bad, "model_ema": good},
    "state_dict_ema": lambda good, bad: {"state_dict_ema": good, "state_dict": bad},
    "ema.module": lambda good, bad: {"model": bad, "ema": {"module": good}},
    "swa_model": lambda good, bad: {"state_dict": {**below("model.", bad), **below("swa_model.module.", good)}},
    "n_averaged": lambda good, bad: {
        "state_dict": {
            **below("model.", bad),
            **below("slow.module.backbone.", good),
            "slow.n_averaged": torch.tensor(3),
        }
    },
}


@pytest.mark.parametrize("way", AVERAGES)
def test_averaged_weights_are_preferred_and_named(way, plain, worse, space, worse_space, tmp_path):
    path = saved(AVERAGES[way](plain, worse), tmp_path)
    imported = import_weights(path, SPEC)
    assert space_id(SPEC, imported.checkpoint.model.state_dict()) == space
    chosen, *_ = imported.warnings
    assert "the averaged weights at" in chosen
    prefix = chosen.split("--prefix ")[1].rstrip(".")
    assert space_of(path, prefix=prefix) == worse_space


def test_equal_weights_need_no_choice(plain, space, tmp_path):
    path = saved({"model": plain, "model_ema": below("module.", plain)}, tmp_path)
    assert space_of(path) == space and len(import_weights(path, SPEC).warnings) == 2


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("teacher.", "student.backbone."),
        ("encoder_q.", "encoder_k."),
        ("model.online.", "model.target."),
        ("model.", "ema_b."),
    ],
)
def test_of_two_networks_one_must_be_named(first, second, plain, worse, space, worse_space, tmp_path):
    both = {"state_dict": {**below(first, plain), **below(second, worse)}}
    if second == "ema_b.":
        both["ema_a"] = {name: tensor * 3 for name, tensor in plain.items()}
    path = saved(both, tmp_path)
    refused(path, f"models with a resnet18, at .*state_dict.{first[:-1]}.* state_dict.{second[:-1]}")
    assert space_of(path, prefix=f"state_dict.{first}") == space
    assert space_of(path, prefix=f"state_dict.{second}") == worse_space
    with pytest.raises(CheckpointError, match="has no resnet18 at 'elsewhere'; pass --prefix with one of state_dict"):
        import_weights(saved(both, tmp_path), SPEC, prefix="elsewhere")


def test_another_backbone_is_named_inside_a_wrapper_too(plain, tmp_path):
    path = saved({"state_dict": below("net.", hollow(plain))}, tmp_path)
    refused(path, "holds a resnet18, not a resnet34; pass --backbone resnet18", replace(SPEC, backbone="resnet34"))


def test_objects_that_hide_the_weights_are_named(tmp_path):
    refused(saved({"state_dict": Path("x")}, tmp_path), "without its objects of pathlib.PosixPath, .* no named tensors")
    refused(saved(nn.Linear(1, 1), tmp_path), "without its objects of torch.nn.modules.linear.Linear, .*fits neither")


def test_training_starts_from_the_backbone_of_a_whole_model_too(state, tmp_path):
    model = CGD(SPEC)
    save_checkpoint(Checkpoint(model), tmp_path / "ckpt.pt")
    whole = {saved(state, tmp_path): state["features.0.weight"], tmp_path / "ckpt.pt": model.backbone.conv1.weight}
    for path, weight in whole.items():
        found, [note] = read_backbone(path, "resnet18")
        assert torch.equal(found["conv1.weight"], weight) and "its backbone, with new heads" in note


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ({0: torch.zeros(2), 1: torch.zeros(3)}, "fits neither resnet18"),
        ({"state_dict": [torch.zeros(2)]}, "holds no named tensors"),
        ({}, "holds no named tensors"),
        ([torch.zeros(2)], "holds a list; expected a table"),
        ({"epoch": 3}, "holds no named tensors"),
    ],
)
def test_files_without_a_network_are_refused_by_train_and_import(data, text, tmp_path):
    path = saved(data, tmp_path)
    refused(path, text)
    with pytest.raises(CheckpointError, match=text):
        read_backbone(path, "resnet18")
