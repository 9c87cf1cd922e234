"""Backbones by torchvision name, with one stage's down-sampling removed."""

from __future__ import annotations

import difflib
from pathlib import Path

import torch
from torch import nn
from torchvision import models

from cgd_deploy.errors import CheckpointError, SpecError

RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnext50_32x4d", "wide_resnet50_2")
STAGES = ("none", "layer2", "layer3", "layer4")


class Backbone(nn.Sequential):
    """Float images [N, 3, H, W] -> feature maps [N, channels, h, w]."""

    channels: int


def build_backbone(name: str, no_downsample: str) -> Backbone:
    """The convolutional part of a torchvision ResNet, randomly initialised.

    The stride of stage ``no_downsample`` is removed (paper: the last stage, so 224 -> 14x14). The modules keep their
    torchvision names, so torchvision weights load into it.
    Raises SpecError for an unknown backbone or stage.
    """
    if name not in RESNETS:
        close = difflib.get_close_matches(name, RESNETS, n=3, cutoff=0.4) or list(RESNETS)
        raise SpecError(f"backbone {name!r} is unknown; the closest known ones are {', '.join(close)}.")
    if no_downsample not in STAGES:
        raise SpecError(f"no_downsample={no_downsample!r} is unknown; expected one of {', '.join(STAGES)}.")
    resnet = getattr(models, name)()
    if no_downsample != "none":
        _remove_stride(getattr(resnet, no_downsample))
    backbone = Backbone()
    for child, module in resnet.named_children():
        if child not in ("avgpool", "fc"):
            backbone.add_module(child, module)
    backbone.channels = resnet.fc.in_features
    return backbone


def _remove_stride(stage: nn.Module) -> None:
    for module in stage.modules():
        if isinstance(module, nn.Conv2d):
            module.stride = (1, 1)


def load_weights(backbone: nn.Module, path: str | Path) -> None:
    """Load a torchvision state_dict (any float type) into ``backbone``; its classifier ``fc`` is left out.

    Raises CheckpointError if the file is not such a state_dict or any other key is missing or left over.
    """
    state = load_tensors(path)
    state = {key: value for key, value in state.items() if not key.startswith("fc.")}
    try:
        backbone.load_state_dict(state)
    except (RuntimeError, AttributeError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise CheckpointError(
            f"{path} does not fit this backbone ({reason[:200]}); pass weights of the same name."
        ) from error


def load_tensors(path: str | Path) -> dict:
    """``torch.load`` of plain tensors and containers, never of pickled code; raises CheckpointError."""
    if not Path(path).is_file():
        raise CheckpointError(f"there is no checkpoint at {path}; check the path.")
    try:
        data = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen types for damaged files
        raise CheckpointError(
            f"{path} is not a checkpoint that torch can load safely; pass a .pt or .pth file."
        ) from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} holds a {type(data).__name__}; expected a table of tensors.")
    return data
