"""Find backbones in tables of weights: their layout and their prefix. Reads no file."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from .backbone import HEAD
from .weights import Table

SEQUENTIAL = "cgd-sequential"
"""``features.N`` are the backbone's children in order, ``main_modules.N.0`` the descriptors' linear layers."""
OWN = "cgd-deploy"
"""Our own names, as a bare state_dict."""
BACKBONE = "backbone"
"""A classifier or backbone under torchvision's names."""
NUMBERED = "numbered"
"""A backbone whose children are numbered in order, as nn.Sequential does."""
LAYOUTS = (BACKBONE, SEQUENTIAL, OWN, NUMBERED)
WHOLE = {
    SEQUENTIAL: re.compile(r"(main_modules|auxiliary_module|global_descriptors)\."),
    OWN: re.compile(r"(heads|auxiliary|pools)\.\d+\."),
}
"""Layouts of whole CGD models, and the names that a mere backbone in the same layout does not have."""
INSIDE = {SEQUENTIAL: "features.", OWN: "backbone."}
"""The prefix of the backbone in these layouts."""

PLACES = {"conv1": 0, "bn1": 1, "layer1": 4, "layer2": 5, "layer3": 6, "layer4": 7, "features": 0}
"""Numbers of a network's children with weights; 2 and 3 are ReLU and pooling. Other families have only "features"."""
COUNTERS = ("total_ops", "total_params", "n_averaged")  # thop adds the first two to every module that it profiles
OPTIONAL = "num_batches_tracked"  # absent before torch 0.4.1
AVERAGE = re.compile(r"(^|[._])(ema|swa|avg|averaged?)([._]|$)", re.IGNORECASE)
LOSS = re.compile(r"loss|criterion", re.IGNORECASE)


@dataclass(frozen=True)
class Found:
    """A backbone in a table, and the tensors around it.

    layout    one of ``LAYOUTS``
    place     prefix of its names in the file, such as "state_dict.model."
    weights   tensors that may belong to the model, by name without ``place``; no counters, no classifier
    beside    names of tensors that do not belong to the model, such as weights of a loss
    averaged  whether the weights are an average over training steps (EMA, SWA)
    """

    layout: str
    place: str
    weights: Mapping[str, Tensor]
    beside: tuple[str, ...]
    averaged: bool

    @property
    def whole(self) -> bool:
        """Whether it is a whole CGD model, not only a backbone."""
        return self.layout in WHOLE

    def backbone(self, names: Iterable[str]) -> dict[str, Tensor]:
        """The weights that exist among the backbone's ``names`` (ours, without "backbone.")."""
        foreign = {name: foreign_name(f"backbone.{name}", self.layout) for name in names}
        return {name: self.weights[other] for name, other in foreign.items() if other in self.weights}


def foreign_name(name: str, layout: str) -> str:
    """The name of our parameter ``name`` in this layout."""
    if layout == BACKBONE:
        return name.removeprefix("backbone.")
    if layout == OWN:
        return name
    part, child, rest = name.split(".", 2)
    return {
        "backbone": f"{'' if layout == NUMBERED else 'features.'}{PLACES.get(child, child)}.{rest}",
        "pools": f"global_descriptors.{child}.{rest}",
        "heads": f"main_modules.{child}.0.{rest}",
        "auxiliary": f"auxiliary_module.{child}.{rest}",
    }[part]


def find(tables: Sequence[Table], shapes: Mapping[str, Tensor]) -> list[Found]:
    """Every complete backbone of these ``shapes`` (by our names); if there are CGD models, only the CGD models.

    Two backbones with equal weights count once, for example a compiled module and the module itself.
    """
    fitting: list[tuple[str, Table, str]] = []
    for layout in LAYOUTS:
        expected = _expected(shapes, layout)
        for table in tables:
            prefixes = _prefixes(table.tensors, expected)
            fitting += [(layout, table, p) for p in prefixes if not misfits(_part(table, p, expected), expected)]
    places = {
        f"{table.place}{prefix}{end}" for layout, table, prefix in fitting for end in ("", INSIDE.get(layout, ""))
    }
    found = [_found(layout, table, prefix, shapes, places) for layout, table, prefix in fitting]
    whole = [one for one in found if one.whole and any(map(WHOLE[one.layout].match, one.weights))]
    return _different(whole or [one for one in found if not one.whole], shapes)


def closest(tables: Sequence[Table], shapes: Mapping[str, Tensor]) -> tuple[str, str, list[str]]:
    """The layout and place with most of ``shapes``, and the ``misfits`` there."""
    most, best = -1, (BACKBONE, "", ["it holds no tensors"])
    for layout in LAYOUTS:
        expected = _expected(shapes, layout)
        for table in tables:
            for prefix, count in _prefixes(table.tensors, expected).most_common(1) or [("", 0)]:
                if count > most:
                    wrong = misfits(_part(table, prefix, expected), expected)
                    most, best = count, (layout, f"{table.place}{prefix}", wrong)
    return best


def misfits(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """One phrase for each tensor that is missing, left over or of another shape."""
    missing = [f"{name} is missing" for name in expected if name not in found and not name.endswith(OPTIONAL)]
    left_over = [f"{name} is left over" for name in found if name not in expected]
    reshaped = [
        f"{name} is {_shape(found[name])} instead of {_shape(tensor)}"
        for name, tensor in expected.items()
        if name in found and found[name].shape != tensor.shape
    ]
    return missing + left_over + reshaped


def _expected(shapes: Mapping[str, Tensor], layout: str) -> dict[str, Tensor]:
    return {foreign_name(f"backbone.{name}", layout): tensor for name, tensor in shapes.items()}


def _prefixes(names: Iterable[str], expected: Collection[str]) -> Counter[str]:
    """Count the ``expected`` names below each prefix, such as "model." or ""."""
    counts: Counter[str] = Counter()
    for name in names:
        parts = name.split(".")
        for start in range(len(parts)):
            if ".".join(parts[start:]) in expected:
                counts["".join(f"{part}." for part in parts[:start])] += 1
    return counts


def _below(table: Table, prefix: str) -> dict[str, Tensor]:
    """All tensors below ``prefix`` except counters, by name without ``prefix``."""
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in table.tensors.items()
        if name.startswith(prefix) and not _is_counter(name, tensor)
    }


def _part(table: Table, prefix: str, expected: Iterable[str]) -> dict[str, Tensor]:
    """The tensors of the backbone: all tensors below its own children."""
    children = {_child(name) for name in expected}
    return {name: tensor for name, tensor in _below(table, prefix).items() if _child(name) in children}


def _found(layout: str, table: Table, prefix: str, shapes: Mapping[str, Tensor], places: Collection[str]) -> Found:
    """``places`` of all backbones in the file; tensors below another backbone do not belong to this one."""
    place = f"{table.place}{prefix}"
    elsewhere = tuple(p for p in places if not place.startswith(p) and p != f"{place}{INSIDE.get(layout)}")
    below = {
        name: tensor for name, tensor in _below(table, prefix).items() if not f"{place}{name}".startswith(elsewhere)
    }
    if layout in WHOLE:
        others = {name for name in below if LOSS.search(_child(name))}
    else:
        others = below.keys() - _part(table, prefix, _expected(shapes, layout)).keys()
    outside = [name for name in _below(table, "") if not name.startswith(prefix)]
    beside = [f"{prefix}{name}" for name in below if name in others and _child(name) not in HEAD] + outside
    return Found(
        layout,
        place,
        {name: tensor for name, tensor in below.items() if name not in others},
        tuple(name for name in beside if not f"{table.place}{name}".startswith(elsewhere)),
        _is_average(table, prefix, place),
    )


def _is_average(table: Table, prefix: str, place: str) -> bool:
    """Whether a name says so, or the counter of torch's AveragedModel lies beside the weights."""
    above = accumulate((f"{part}." for part in prefix.split(".")[:-1]), initial="")
    return bool(AVERAGE.search(place)) or any(f"{start}n_averaged" in table.tensors for start in above)


def _is_counter(name: str, tensor: Tensor) -> bool:
    last = name.rpartition(".")[2]
    return last in COUNTERS or (last != OPTIONAL and not tensor.is_floating_point() and tensor.numel() <= 1)


def _different(found: Iterable[Found], shapes: Mapping[str, Tensor]) -> list[Found]:
    kept: list[Found] = []
    for one in found:
        if not any(_equal(one, other, shapes) for other in kept):
            kept.append(one)
    return kept


def _equal(one: Found, other: Found, shapes: Mapping[str, Tensor]) -> bool:
    pairs = [(one.backbone(shapes), other.backbone(shapes))]
    if one.whole:
        pairs.append((dict(one.weights), dict(other.weights)))
    return all(a.keys() == b.keys() and all(_same(a[name], b[name]) for name in a) for a, b in pairs)


def _same(a: Tensor, b: Tensor) -> bool:
    return a is b or (is_weight(a) and is_weight(b) and a.dtype == b.dtype and torch.equal(a, b))


def is_weight(tensor: Tensor) -> bool:
    """Whether it is a plain dense tensor of floats or integers on the CPU."""
    return tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized


def _child(name: str) -> str:
    return name.split(".")[0]


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a scalar"
