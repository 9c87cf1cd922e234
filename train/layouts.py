"""Where a table of weights has a backbone: in which layout, below which prefix. Reads no file."""

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
"""Our own names, without the checkpoint around them."""
BACKBONE = "backbone"
"""A classifier or backbone under torchvision's names."""
NUMBERED = "numbered"
"""A backbone whose children are numbered in order, as nn.Sequential does."""
LAYOUTS = (BACKBONE, SEQUENTIAL, OWN, NUMBERED)
WHOLE = {
    SEQUENTIAL: re.compile(r"(main_modules|auxiliary_module|global_descriptors)\."),
    OWN: re.compile(r"(heads|auxiliary|pools)\.\d+\."),
}
"""Layouts of whole CGD models, and the names that tell them from a backbone of the same name."""
INSIDE = {SEQUENTIAL: "features.", OWN: "backbone."}
"""Where they have their backbone."""

PLACES = {"conv1": 0, "bn1": 1, "layer1": 4, "layer2": 5, "layer3": 6, "layer4": 7, "features": 0}
"""Of a network's children that have weights; 2 and 3 are ReLU and pooling, other families' one child is "features"."""
COUNTERS = ("total_ops", "total_params", "n_averaged")  # thop leaves the first two in every module it has profiled
OPTIONAL = "num_batches_tracked"  # absent before torch 0.4.1
AVERAGE = re.compile(r"(^|[._])(ema|swa|avg|averaged?)([._]|$)", re.IGNORECASE)
LOSS = re.compile(r"loss|criterion", re.IGNORECASE)


@dataclass(frozen=True)
class Found:
    """A backbone in a table, with what lies around it.

    layout    one of ``LAYOUTS``
    place     where its names begin in the file, such as "state_dict.model."
    weights   all that may be part of the model, by name without ``place``; no counters, no classifier of a backbone
    beside    names of what is no part of the model, such as weights of a loss
    averaged  whether the weights are an average over training steps (EMA, SWA)
    """

    layout: str
    place: str
    weights: Mapping[str, Tensor]
    beside: tuple[str, ...]
    averaged: bool

    @property
    def whole(self) -> bool:
        """Whether it is a CGD model and not a backbone alone."""
        return self.layout in WHOLE

    def backbone(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Those of the backbone's weights ``names`` that are there, by our names without "backbone."."""
        foreign = {name: foreign_name(f"backbone.{name}", self.layout) for name in names}
        return {name: self.weights[other] for name, other in foreign.items() if other in self.weights}


def foreign_name(name: str, layout: str) -> str:
    """What our parameter ``name`` is called in this layout."""
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
    """Every complete backbone of these ``shapes`` (by our names); only those of CGD models, if there are any.

    A backbone that is there twice with equal weights, as a compiled module beside the module itself, counts once.
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
    """Layout and place where most of ``shapes`` is found, and what is missing, left over or of another shape there."""
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
    """What is missing, left over or of another shape."""
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
    """How many of the names ``expected`` are there below each prefix; "model." is one, and so is ""."""
    counts: Counter[str] = Counter()
    for name in names:
        parts = name.split(".")
        for start in range(len(parts)):
            if ".".join(parts[start:]) in expected:
                counts["".join(f"{part}." for part in parts[:start])] += 1
    return counts


def _below(table: Table, prefix: str) -> dict[str, Tensor]:
    """Everything below ``prefix`` but counters, by its name there."""
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in table.tensors.items()
        if name.startswith(prefix) and not _is_counter(name, tensor)
    }


def _part(table: Table, prefix: str, expected: Iterable[str]) -> dict[str, Tensor]:
    """What belongs to the backbone: everything below its own children."""
    children = {_child(name) for name in expected}
    return {name: tensor for name, tensor in _below(table, prefix).items() if _child(name) in children}


def _found(layout: str, table: Table, prefix: str, shapes: Mapping[str, Tensor], places: Collection[str]) -> Found:
    """``places`` are those of all backbones in the file: what lies below another one is not told of this one."""
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
    """As a name says it, or the counter of torch's AveragedModel beside the weights."""
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
    """Whether it is a plain table of numbers in memory, of floats or integers."""
    return tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized


def _child(name: str) -> str:
    return name.split(".")[0]


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a scalar"
