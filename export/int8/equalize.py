"""Cross-layer equalization: the same FP32 function with more even ranges of channels, so that one scale suits all.

Moves a factor from the weights that write a channel to the weights that read it. Knows no codes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from .calibrate import Channels
from .quantize import by_group, convolutions

HOMOGENEOUS = {"Relu", "MaxPool"}
"""Operators with f(s x) = s f(x) for s > 0, channel by channel."""

LEAST = 0.01
"""The importance of a channel is its range times the range of the weights that read it. It counts as at least this
part of the largest importance, because calibration may have missed large values of the channel."""

Weights = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Link:
    """A convolution, and the convolutions that are the only readers of its output, at most through Relu and MaxPool."""

    writer: onnx.NodeProto
    readers: tuple[onnx.NodeProto, ...]


def equalized(model: onnx.ModelProto, largest: Channels) -> onnx.ModelProto:
    """A copy of ``model`` with the same descriptors to the last bit, in which linked channels have more even ranges.

    largest   largest magnitude of each channel of each convolution's input, see ``Activations.largest``

    Let r be the range of a channel and w the range of the weights that read it. The channel is divided by
    s = sqrt(r / w) and the weights are multiplied by s, so both ranges become sqrt(r w). This is equation 4 of Xiao et
    al. 2023 (SmoothQuant) at alpha 0.5. It is also equation 11 of Nagel et al. 2019 (Data-free quantization through
    weight equalization and bias correction) with the range of the activation in place of the weights that write it:
    those weights have one scale per channel already. s is a power of two, so no product is rounded.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    weights = {tensor.name: numpy_helper.to_array(tensor).copy() for tensor in result.graph.initializer}
    changed: set[str] = set()
    for link in links(model):
        activation = np.max([largest[reader.input[0]] for reader in link.readers], axis=0)
        views = [by_group(reader, weights[reader.input[1]]) for reader in link.readers]
        weight = np.max([np.abs(view).max(axis=(1, 3)).ravel() for view in views], axis=0)
        factors = _factors(activation, weight)
        for name in link.writer.input[1:]:
            weights[name] /= factors.reshape(-1, *(1,) * (weights[name].ndim - 1))
        for view in views:
            view *= factors.reshape(len(view), 1, -1, 1)
        changed.update(link.writer.input[1:], *(reader.input[1:2] for reader in link.readers))
    for tensor in result.graph.initializer:
        if tensor.name in changed:
            tensor.CopyFrom(numpy_helper.from_array(weights[tensor.name], tensor.name))
    return result


def links(model: onnx.ModelProto) -> list[Link]:
    """The links of the backbone in graph order; no other node reads the weights of a link."""
    inside = {node.name: node for node in convolutions(model) if node.op_type == "Conv"}
    constants = {tensor.name for tensor in model.graph.initializer}
    outputs = {output.name for output in model.graph.output}
    reads: dict[str, list[tuple[onnx.NodeProto, int]]] = defaultdict(list)
    for node in model.graph.node:
        for position, name in enumerate(node.input):
            reads[name].append((node, position))

    def own(names: Iterable[str]) -> bool:
        return all(name in constants and len(reads[name]) == 1 for name in names)

    def readers(tensor: str) -> list[onnx.NodeProto]:
        """The convolutions that read ``tensor``; none if any other node reads it."""
        found: list[onnx.NodeProto] = []
        for node, position in reads[tensor]:
            if node.name in inside and position == 0 and own(node.input[1:2]):
                behind = [node]
            else:
                behind = readers(node.output[0]) if node.op_type in HOMOGENEOUS else []
            if not behind:
                return []
            found += behind
        return [] if tensor in outputs else found

    found = [Link(node, tuple(readers(node.output[0]))) for node in inside.values() if own(node.input[1:])]
    return [link for link in found if link.readers]


def _factors(activation: NDArray[np.floating], weight: NDArray[np.floating]) -> NDArray[np.float32]:
    """s [C] from r [C] and w [C]; 1 where no weight reads the channel, and everywhere if all channels are zero."""
    floor = LEAST * (activation * weight).max()
    if not 0 < floor < np.inf:
        return np.ones(len(weight), np.float32)
    read = np.where(weight > 0, weight, 1)
    squared = np.where(weight > 0, np.maximum(activation, floor / read) / read, 1)
    return np.exp2(np.round(np.log2(squared) / 2)).astype(np.float32)
