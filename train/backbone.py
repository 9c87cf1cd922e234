"""Backbones of several families as one kind of module, with named stages.

Knows neither descriptors nor training.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional
from torchvision import models
from torchvision.ops import SqueezeExcitation

from cgd_deploy.errors import MissingDependency, SpecError, closest_known, install_line

STAGES = ("none", "layer2", "layer3", "layer4")
HEAD = ("avgpool", "global_pool", "fc", "classifier")
"""Children of a library's network that come after its feature map."""


@dataclass(frozen=True)
class Family:
    """Networks with the same stages.

    names     names in ``library``
    starts    number of the trunk's modules before layer1, layer2, layer3 and layer4
    """

    names: tuple[str, ...]
    starts: tuple[int, int, int, int]
    library: str = "torchvision"


FAMILIES = (
    Family(("resnet18", "resnet34", "resnet50", "resnet101", "resnext50_32x4d", "wide_resnet50_2"), (4, 5, 6, 7)),
    Family(("seresnet50",), (4, 5, 6, 7), "timm"),
    Family(("mobilenet_v3_small",), (1, 2, 4, 9)),
    Family(("mobilenet_v3_large",), (2, 4, 7, 13)),
    Family(("efficientnet_b0", "efficientnet_b1", "efficientnet_b2", "efficientnet_b3"), (2, 3, 4, 6)),
    Family(("convnext_tiny", "convnext_small"), (1, 2, 4, 6)),
)
BACKBONES = {name: family for family in FAMILIES for name in family.names}


def family_of(name: str) -> Family:
    """The family of a backbone; raises SpecError for an unknown name."""
    if name not in BACKBONES:
        raise SpecError(f"backbone {name!r} is unknown; {closest_known(name, BACKBONES)}.")
    return BACKBONES[name]


class GlobalMean(nn.Module):
    """[N, C, H, W] -> [N, C, 1, 1], like AdaptiveAvgPool2d(1), whose ONNX export has a Gather over a dynamic N."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3), keepdim=True)


class Backbone(nn.Sequential):
    """Float images [N, 3, H, W] -> feature maps [N, channels, h, w].

    channels   channels of the feature map
    stages     the modules of stem, layer1, layer2, layer3 and layer4, in order; layer4 includes the modules between the
               last stage and the feature map
    """

    channels: int
    stages: dict[str, list[nn.Module]]


def build_backbone(name: str, no_downsample: str) -> Backbone:
    """The convolutional part of a network of torchvision or timm, randomly initialised.

    name            a key of BACKBONES
    no_downsample   the stage that keeps the resolution of its input, one of STAGES (CGD section 3.1: "layer4", so a
                    picture of 224 pixels gives a map of 14x14)

    In every family, layer2, layer3 and layer4 reduce the map from 1/4 to 1/8, 1/16 and 1/32 of the picture's side.
    Weights keep the library's names and shapes, so the library's weights load.
    Raises SpecError for an unknown backbone or stage, MissingDependency if the backbone's library is not installed.
    """
    family = family_of(name)
    if no_downsample not in STAGES:
        raise SpecError(f"no_downsample={no_downsample!r} is unknown; expected one of {', '.join(STAGES)}.")
    children = dict(_network(name, family.library).named_children())
    backbone = Backbone()
    for child, module in children.items():
        if child not in HEAD:
            backbone.add_module(child, module)
    head = nn.ModuleList(children[child] for child in HEAD if child in children)
    backbone.channels = next(module.in_features for module in head.modules() if isinstance(module, nn.Linear))
    trunk = list(children.get("features", backbone).children())
    bounds = pairwise([0, *family.starts, len(trunk)])
    names = ("stem", "layer1", "layer2", "layer3", "layer4")
    backbone.stages = {stage: trunk[start:end] for stage, (start, end) in zip(names, bounds, strict=True)}
    _keep_side(backbone.stages.get(no_downsample, []))
    for module in backbone.modules():
        if isinstance(module, SqueezeExcitation):
            module.avgpool = GlobalMean()
    return backbone


def _network(name: str, library: str) -> nn.Module:
    if library == "torchvision":
        return getattr(models, name)()
    try:
        import timm
    except ModuleNotFoundError as error:
        raise MissingDependency(f"{name} needs timm; run `{install_line('timm')}`.") from error
    return timm.create_model(name, pretrained=False)


def _keep_side(stage: list[nn.Module]) -> None:
    """Remove the strides of a stage's convolutions, so that its map keeps the size of its input."""
    for module in nn.ModuleList(stage).modules():
        if isinstance(module, nn.Conv2d) and module.stride != (1, 1):
            module.stride = (1, 1)
            if module.kernel_size == (2, 2):  # ConvNeXt; padding="same" would do the same, but warns in training
                module.register_forward_pre_hook(_pad_below_and_right)


def _pad_below_and_right(_: nn.Module, inputs: tuple[Tensor]) -> Tensor:
    return functional.pad(inputs[0], (0, 1, 0, 1))
