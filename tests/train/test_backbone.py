"""Every family of backbones: sides of its maps, names of its weights, its stages, and the way down to an engine."""

import copy
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from conftest import SPEC
from torch import nn
from torchvision import models
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.efficientnet import EfficientNet, MBConvConfig

from cgd_deploy.errors import CheckpointError, MissingDependency, SpecError
from cgd_deploy.pictures.images import ImageList
from cgd_deploy.pictures.preprocess import preprocess
from cgd_deploy.runtime.descriptors import cosines
from cgd_deploy.runtime.engine import load
from cgd_deploy.runtime.golden import golden_images
from cgd_deploy.spec import Precision
from cgd_export.engine_from_onnx import engine_from_onnx
from cgd_export.fp16 import halved, rounded
from cgd_export.metadata import load_onnx
from cgd_export.onnx_from_checkpoint import onnx_from_checkpoint
from cgd_export.parity import run_onnx
from cgd_train import backbone as backbone_module
from cgd_train.backbone import BACKBONES, STAGES, build_backbone
from cgd_train.checkpoint import Checkpoint, save_checkpoint
from cgd_train.foreign import read_backbone
from cgd_train.model import CGD, DeployModel

FAMILIES = ["resnet18", "seresnet50", "mobilenet_v3_small", "efficientnet_b0", "convnext_tiny"]
SIDES = {"none": [16, 8, 4, 2], "layer2": [16, 16, 8, 4], "layer3": [16, 8, 8, 4], "layer4": [16, 8, 4, 4]}
"""Of the maps behind layer1 to layer4 where the picture's side is 64."""


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    """Two threads wait for each other on a busy machine; these inputs are small."""
    torch.set_num_threads(1)


def whole(name: str) -> nn.Module:
    """The network with its classifier, as its library makes it."""
    if name == "seresnet50":
        return pytest.importorskip("timm").create_model(name, pretrained=False)
    return getattr(models, name)()


def test_the_known_names() -> None:
    assert set(FAMILIES) < set(BACKBONES)
    assert {"resnet34", "resnet50", "resnet101", "wide_resnet50_2", "resnext50_32x4d"} < set(BACKBONES)
    assert {"mobilenet_v3_large", "efficientnet_b1", "efficientnet_b3", "convnext_small"} < set(BACKBONES)


@pytest.mark.parametrize("name", BACKBONES)
def test_sides_stages_and_names_of_weights(name: str) -> None:
    with torch.device("meta"):  # shapes only
        network = whole(name)
        expected = {
            key: value.shape
            for key, value in network.state_dict().items()
            if not key.startswith(("fc.", "classifier."))
        }
        for no_downsample in STAGES:
            backbone = build_backbone(name, no_downsample).eval()
            assert {key: value.shape for key, value in backbone.state_dict().items()} == expected
            assert list(backbone.stages) == ["stem", "layer1", "layer2", "layer3", "layer4"]
            x, sides = torch.zeros(1, 3, 64, 64), {}
            for stage, modules in backbone.stages.items():
                for module in modules:
                    x = module(x)
                sides[stage] = x.shape[-1]
            assert list(sides.values())[1:] == SIDES[no_downsample]
            assert backbone(torch.zeros(1, 3, 64, 64)).shape == x.shape
            assert x.shape == (1, backbone.channels, SIDES[no_downsample][-1], SIDES[no_downsample][-1])
            staged = [p for modules in backbone.stages.values() for module in modules for p in module.parameters()]
            assert [id(p) for p in staged] == [id(p) for p in backbone.parameters()]


@pytest.mark.parametrize("name", FAMILIES)
def test_weights_load_and_give_the_features_of_their_library(name: str, tmp_path: Path) -> None:
    network = whole(name).half()
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    backbone = build_backbone(name, "none").eval()
    backbone.load_state_dict(read_backbone(tmp_path / "weights.pth", name)[0])
    seen = []
    pool = network.global_pool if name == "seresnet50" else network.avgpool
    pool.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        network.float().eval()(x)
        assert torch.allclose(backbone(x), seen[0], rtol=1e-4, atol=1e-5 * float(seen[0].abs().max()))


@pytest.mark.parametrize("name", FAMILIES)
def test_without_its_stride_a_convolution_gives_the_strided_values_and_those_between(name: str) -> None:
    if name == "seresnet50":
        pytest.importorskip("timm")
    convolutions = []
    for no_downsample in ("none", "layer4"):
        stage = nn.ModuleList(build_backbone(name, no_downsample).stages["layer4"])
        convolutions.append([module for module in stage.modules() if isinstance(module, nn.Conv2d)])
    changed = [pair for pair in zip(*convolutions, strict=True) if pair[0].stride != pair[1].stride]
    assert len(changed) == (2 if "resnet" in name else 1)
    for strided, dense in changed:
        dense.load_state_dict(strided.state_dict())
        x = torch.randn(1, strided.in_channels, 6, 6)
        with torch.inference_mode():
            values = dense(x)
            assert values.shape[-2:] == x.shape[-2:]
            assert torch.allclose(values[..., ::2, ::2], strided(x), atol=1e-5)


def test_stages_of_a_copy_are_the_copys() -> None:
    backbone = copy.deepcopy(build_backbone("resnet18", "layer4"))
    assert backbone.stages["layer4"] == [backbone.layer4]


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=r"fits neither resnet18 .* nor any other known backbone"):
        read_backbone(tmp_path / "weights.pth", "resnet18")


def test_unknown_names_are_refused() -> None:
    with pytest.raises(SpecError, match="'resnet19' is unknown; the closest known ones are resnet18"):
        build_backbone("resnet19", "layer4")
    with pytest.raises(SpecError, match="'mobilenet_v3' is unknown; the closest known ones are mobilenet_v3_"):
        build_backbone("mobilenet_v3", "layer4")
    with pytest.raises(SpecError, match="no_downsample='layer5' is unknown"):
        build_backbone("resnet18", "layer5")


def test_without_timm_its_backbone_names_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingDependency, match=r"^seresnet50 needs timm; run `pip install 'timm>=[\d.]+'`\.$"):
        build_backbone("seresnet50", "layer4")


def shallow(name: str, library: str) -> nn.Module:
    """A network of the family with as few blocks as it can have, where the smallest of all is still slow to build."""
    if library == "timm":
        return pytest.importorskip("timm").create_model(name, layers=(1, 1, 1, 1))
    if name == "convnext_tiny":
        widths = (24, 48, 96, 192)
        blocks = [CNBlockConfig(width, wider, 1) for width, wider in zip(widths, (*widths[1:], None), strict=True)]
        return ConvNeXt(blocks)
    if name == "efficientnet_b0":
        strides, sizes = (1, 2, 2, 2, 1, 2, 1), (8, 8, 16, 24, 32, 32, 48, 48)
        shapes = zip(strides, sizes[:-1], sizes[1:], strict=True)
        return EfficientNet([MBConvConfig(4, 3, *shape, 1) for shape in shapes], 0.2)
    return getattr(models, name)()


def untrained(name: str, pixels: torch.Tensor) -> CGD:
    """A model as if trained: BatchNorm has seen ``pixels``, every residual branch counts, and no bias is zero."""
    torch.manual_seed(0)
    model = CGD(replace(SPEC, backbone=name, dim=24))
    for key, parameter in model.named_parameters():
        if key.endswith("layer_scale"):
            nn.init.constant_(parameter, 0.3)
        elif key.endswith("bias"):  # OpenVINO computes an INT8 convolution without one wrongly if two nodes read it
            nn.init.normal_(parameter, std=0.1)
    images = DeployModel(model).normalized(pixels)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train().momentum = 1.0
    with torch.no_grad():
        model(images)
    return model.eval()


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "resnet18"])
def test_every_family_reaches_its_engines(
    name: str, tmp_path: Path, picture_list: ImageList, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backbone_module, "_network", shallow)
    calibration = picture_list.sample(6)
    pixels = np.stack([preprocess(path, SPEC) for path in calibration.paths])
    model = untrained(name, torch.from_numpy(np.concatenate([pixels, golden_images(SPEC, 5)])))
    with torch.inference_mode():
        expected = DeployModel(model)(torch.from_numpy(pixels)).numpy()
    exported = tmp_path / "model.onnx"
    onnx_from_checkpoint(save_checkpoint(Checkpoint(model), tmp_path / "ckpt.pt"), exported)
    fp32 = load_onnx(exported)
    assert cosines(run_onnx(fp32, pixels, 6), expected).min() > 0.99999
    assert not {"Shape", "Gather", "Range"} & {node.op_type for node in fp32.graph.node}
    convolutions = sum(node.op_type in ("Conv", "MatMul") for node in fp32.graph.node)  # the head's are Gemm
    for backend in ("onnxruntime", "openvino"):
        for precision, closest in ((Precision.FP32, 0.99999), (Precision.INT8, 0.8)):
            path = tmp_path / f"{backend}-{precision.value}.cgd"
            manifest = engine_from_onnx(exported, path, precision, backend=backend, calibration=calibration)
            assert manifest.proof["layers"] == {precision.value: convolutions}
            with load(path) as engine:
                found = engine.embed(pixels)
            assert np.linalg.norm(found, axis=1) == pytest.approx(1, abs=1e-5)
            assert cosines(found, expected).min() > closest
    half = halved(fp32)
    onnx.checker.check_model(half, full_check=True)
    assert cosines(run_onnx(rounded(half), pixels, 6), expected).min() > 0.999
