"""FP32 ONNX -> Q/DQ ONNX, in the layout that each runtime runs fast.

Reads only the nodes upstream of the feature map, so the descriptor head stays FP32.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from cgd_deploy.errors import ExportError
from cgd_deploy.spec import Precision

from ..metadata import FEATURES, Metadata, get_metadata, set_metadata
from .calibrate import Ranges

CONVOLUTIONS = {"Conv": 0, "MatMul": 1}
"""Operator -> axis of its weight's output channels; MatMul is a pointwise convolution over channels that come last."""

CUT_AT_ZERO = {"Relu", "Sigmoid", "HardSigmoid"}
POOL_OR_MOVE = ("MaxPool", "GlobalMaxPool", "GlobalAveragePool", "ReduceMean", "Flatten", "Reshape", "Transpose")
KEEPS_SIGN = {**dict.fromkeys(POOL_OR_MOVE, 1), "Add": 2, "Mul": 2}
"""Operator -> n: if its first n inputs are never negative, its output is never negative."""

FULL_RANGE, REDUCED_RANGE = 127, 64
"""The largest magnitude of a weight's code. CPUs without VNNI, AMX or i8mm add two products of codes in 16 bits. An
activation's code is at most 255, so 2 x 255 x 64 fits and 2 x 255 x 127 does not."""

SMALLEST_SCALE = 2.0**-24
"""The smallest FP16 number above zero, for a tensor or a weight row that is all zero."""


@dataclass(frozen=True)
class Codes:
    """The integers of an activation: clip(round(x / scale), low, high), stored with ``zero_point`` added."""

    low: int
    high: int
    zero_point: np.int8 | np.uint8

    def scale(self, largest: float) -> NDArray[np.float32]:
        """The scale, a scalar, at which ``high`` stands for ``largest``."""
        return _scales(np.array(largest / self.high), np.float16)


SIGNED = Codes(-128, 127, np.int8(0))
OFFSET = Codes(-128, 127, np.uint8(128))
UNSIGNED = Codes(0, 255, np.uint8(0))


class Layout(str, Enum):
    """Which tensors have INT8 codes, and which codes; all layouts use the same ranges.

    SYMMETRIC   int8 with zero point 0, on the inputs of convolutions and on the other input of a residual add.
                TensorRT fuses convolution, add and ReLU around these codes, and accepts no zero points.
    MIXED       the same tensors, and the input of a MaxPool behind an INT8 convolution. Tensors that are never negative
                are uint8 with zero point 0, which gives them twice as many codes. OpenVINO fuses both types.
    UINT8       uint8 everywhere, with zero point 128 for tensors that may be negative, and also between a convolution
                or add and its readers. ONNX Runtime's x86 kernels need integers of one type as inputs *and* outputs
                (ResNet-50: 3 times the speed of FP32, SYMMETRIC 0.7 times).
    """

    SYMMETRIC = "symmetric"
    MIXED = "mixed"
    UINT8 = "uint8"

    def codes(self, never_negative: bool) -> Codes:
        if never_negative and self is not Layout.SYMMETRIC:
            return UNSIGNED
        return OFFSET if self is Layout.UINT8 else SIGNED

    @property
    def weight_scales(self) -> type[np.floating]:
        """The type to which scales of weights are rounded.

        FP16 in SYMMETRIC, so that an engine has the same codes whether its other layers are FP16 or FP32. Small weights
        have FP16 scales that are wrong by up to 1.6 %, which cuts off their largest values.
        """
        return np.float16 if self is Layout.SYMMETRIC else np.float32


@dataclass(frozen=True)
class Rounding:
    """What INT8 rounds.

    layout         places and codes of activations
    keep_float     convolutions and residual adds that stay float, by node name
    weight_range   FULL_RANGE or REDUCED_RANGE
    """

    layout: Layout = Layout.SYMMETRIC
    keep_float: Collection[str] = ()
    weight_range: int = FULL_RANGE


@dataclass(frozen=True)
class Edge:
    """Input ``position`` of ``node`` reads ``tensor`` through ``codes`` that cover the range of ``ranged``.

    A MaxPool output shares the range of its input, so the pool can run on INT8 codes.
    """

    node: str
    position: int
    tensor: str
    ranged: str
    codes: Codes


def quantized(
    model: onnx.ModelProto,
    ranges: Ranges,
    layout: Layout,
    keep_float: Collection[str] = (),
    weight_range: int = FULL_RANGE,
) -> onnx.ModelProto:
    """A copy of ``model`` with QuantizeLinear/DequantizeLinear around its convolutions; biases stay FP32.

    ranges       range of every tensor that is ``ranged`` in an edge of ``int8_edges``, see ``Activations.ranges``
    keep_float   names of convolutions to leave in FP32, and of residual adds that read no codes; in UINT8 they still do
    weight_range FULL_RANGE or REDUCED_RANGE

    Raises ExportError for a model without a marked feature map or without convolutions.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    edges = {(edge.node, edge.position): edge for edge in int8_edges(result, layout, keep_float)}
    read = {edge.tensor: edge for edge in edges.values()}
    pairs = {tensor: _pair(graph, tensor, edge.codes, ranges[edge.ranged]) for tensor, edge in read.items()}
    nodes = []
    for node in graph.node:
        if node.op_type in CONVOLUTIONS and (node.name, 0) in edges and node.name not in keep_float:
            nodes.append(_quantize_weight(graph, node, weight_range, layout))
        for position, tensor in enumerate(node.input):
            if (node.name, position) in edges:
                node.input[position] = f"{tensor}_dq"
        if node.op_type == "Conv" and node.name in keep_float and (node.name, 0) in edges:
            nodes.append(_decode_by_channel(graph, node, edges[node.name, 0], ranges))
        nodes.append(node)
        for output in node.output:
            nodes += pairs.get(output, [])
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.value_info[:]
    before = get_metadata(model)
    set_metadata(result, Metadata(spec=before.spec, precision=Precision.INT8, source=before.source))
    return result


def convolutions(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The backbone's convolutions, in graph order: Conv, and MatMul by a weight."""
    return [node for node in backbone(model) if node.op_type in CONVOLUTIONS]


def by_group(convolution: onnx.NodeProto, weight: NDArray[np.floating]) -> NDArray[np.floating]:
    """A view of a Conv's weight as [groups, output channels of a group, input channels of a group, kernel]."""
    groups = _groups(convolution)
    return weight.reshape(groups, len(weight) // groups, weight.shape[1], -1)


def _groups(convolution: onnx.NodeProto) -> int:
    return next((attribute.i for attribute in convolution.attribute if attribute.name == "group"), 1)


def backbone(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The nodes that compute FEATURES, in graph order; raises ExportError if none of them is a convolution."""
    needed = {FEATURES}
    nodes = []
    for node in reversed(model.graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            nodes.append(node)
    if not any(node.op_type == "Conv" for node in nodes):
        raise ExportError("the model has no convolutions under a tensor named 'features'; export it with cgd-deploy.")
    return nodes[::-1]


def residual_adds(model: onnx.ModelProto) -> tuple[str, ...]:
    """The names of the backbone's additions of a convolution and another branch, in graph order."""
    places = _around_convolutions(model, set(), pools=False)
    return tuple(node.name for node, _ in places if node.op_type == "Add")


def int8_edges(model: onnx.ModelProto, layout: Layout, keep_float: Collection[str] = ()) -> list[Edge]:
    """Every input of a node that reads codes, in graph order; raises ExportError for a model without convolutions."""
    unsigned = never_negative(model)
    ranged: dict[str, str] = {}
    for node in backbone(model):
        if node.op_type == "MaxPool":
            ranged[node.output[0]] = ranged.get(node.input[0], node.input[0])
    floats = set(keep_float)
    if layout is Layout.UINT8:
        places = _throughout(model, floats)
    else:
        places = _around_convolutions(model, floats, pools=layout is Layout.MIXED)
    return [
        Edge(node.name, position, tensor, ranged.get(tensor, tensor), layout.codes(tensor in unsigned))
        for node, position in places
        for tensor in [node.input[position]]
    ]


def never_negative(model: onnx.ModelProto) -> set[str]:
    """Tensors of the backbone that no picture can make negative, whatever the trained weights are."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    found: set[str] = set()
    for node in backbone(model):
        cut = node.op_type in CUT_AT_ZERO
        if node.op_type == "Clip" and len(node.input) > 1 and node.input[1] in constants:
            cut = bool((numpy_helper.to_array(constants[node.input[1]]) >= 0).all())
        kept = node.op_type in KEEPS_SIGN and found.issuperset(node.input[: KEEPS_SIGN[node.op_type]])
        if cut or kept:
            found.update(node.output)
    return found


def _around_convolutions(
    model: onnx.ModelProto, keep_float: set[str], pools: bool
) -> Iterator[tuple[onnx.NodeProto, int]]:
    constants = {tensor.name for tensor in model.graph.initializer}
    computed: set[str] = set()  # outputs of convolutions
    integer: set[str] = set()  # outputs of INT8 convolutions
    rectified: set[str] = set()  # the same after a ReLU
    for node in backbone(model):
        if node.op_type in CONVOLUTIONS:
            computed.add(node.output[0])
            if node.name not in keep_float:
                integer.add(node.output[0])
                yield node, 0
        elif node.name not in keep_float and _joins(node, integer, constants):
            yield node, next((i for i in (0, 1) if node.input[i] not in computed), 1)
        elif node.op_type == "Relu" and integer.intersection(node.input):
            rectified.add(node.output[0])
        elif pools and node.op_type == "MaxPool" and rectified.intersection(node.input):
            yield node, 0


def _throughout(model: onnx.ModelProto, keep_float: set[str]) -> Iterator[tuple[onnx.NodeProto, int]]:
    constants = {tensor.name for tensor in model.graph.initializer}
    integer: set[str] = set()  # outputs of INT8 convolutions and of the adds behind them
    rectified: set[str] = set()  # the same after a ReLU
    for node in backbone(model):
        positions = [i for i, tensor in enumerate(node.input) if tensor in integer | rectified]
        if node.op_type in CONVOLUTIONS and node.name not in keep_float:
            positions = [0]
            integer.add(node.output[0])
        elif _joins(node, integer, constants):
            positions = [0, 1]
            integer.add(node.output[0])
        elif node.op_type == "Relu" and integer.intersection(node.input):
            # The codes of its output are cut at zero, so ONNX Runtime removes the ReLU.
            positions = []
            rectified.add(node.output[0])
        for position in positions:
            yield node, position


def _joins(node: onnx.NodeProto, integer: set[str], constants: set[str]) -> bool:
    """Whether the node adds two branches, of which an INT8 convolution computes at least one."""
    return node.op_type == "Add" and not integer.isdisjoint(node.input) and constants.isdisjoint(node.input)


def _pair(graph: onnx.GraphProto, tensor: str, codes: Codes, largest: float) -> list[onnx.NodeProto]:
    constants = {f"{tensor}_scale": codes.scale(largest), f"{tensor}_zero": np.array(codes.zero_point)}
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    return [
        helper.make_node("QuantizeLinear", [tensor, *constants], [f"{tensor}_q"], name=f"{tensor}_quantize"),
        helper.make_node(
            "DequantizeLinear", [f"{tensor}_q", *constants], [f"{tensor}_dq"], name=f"{tensor}_dequantize"
        ),
    ]


def _decode_by_channel(
    graph: onnx.GraphProto, convolution: onnx.NodeProto, edge: Edge, ranges: Ranges
) -> onnx.NodeProto:
    """Let a float convolution decode its input with a scale for each channel, all of them equal; returns the decoder.

    If there is a single scale, ONNX Runtime rounds the convolution's weights to INT8 and computes in integers.
    """
    weight = next(tensor for tensor in graph.initializer if tensor.name == convolution.input[1])
    channels, name = weight.dims[1] * _groups(convolution), f"{convolution.name}_input"
    constants = {
        f"{name}_scale": np.full(channels, edge.codes.scale(ranges[edge.ranged])),
        f"{name}_zero": np.full(channels, edge.codes.zero_point),
    }
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    convolution.input[0] = f"{name}_dq"
    inputs = [f"{edge.tensor}_q", *constants]
    return helper.make_node("DequantizeLinear", inputs, [f"{name}_dq"], name=f"{name}_dequantize", axis=1)


def _quantize_weight(
    graph: onnx.GraphProto, convolution: onnx.NodeProto, weight_range: int, layout: Layout
) -> onnx.NodeProto:
    """Replace a convolution's weight by int8 codes with a scale per output channel; returns their DequantizeLinear."""
    name, axis = convolution.input[1], CONVOLUTIONS[convolution.op_type]
    position = next(i for i, tensor in enumerate(graph.initializer) if tensor.name == name)
    weight = numpy_helper.to_array(graph.initializer[position])  # (out, in / groups, h, w) or (in, out)
    others = tuple(i for i in range(weight.ndim) if i != axis)
    scale = _scales(np.abs(weight).max(axis=others, keepdims=True) / weight_range, layout.weight_scales)
    codes = np.clip(np.round(weight / scale), -weight_range, weight_range).astype(np.int8)
    del graph.initializer[position]
    zero = np.zeros(scale.size, np.int8)
    tensors: dict[str, NDArray[Any]] = {f"{name}_q": codes, f"{name}_scale": scale.ravel(), f"{name}_zero": zero}
    graph.initializer.extend(numpy_helper.from_array(array, key) for key, array in tensors.items())
    convolution.input[1] = f"{name}_dq"
    return helper.make_node("DequantizeLinear", list(tensors), [f"{name}_dq"], name=f"{name}_dequantize", axis=axis)


def _scales(exact: NDArray[np.floating], rounded_to: type[np.floating]) -> NDArray[np.float32]:
    return np.maximum(exact, SMALLEST_SCALE).astype(rounded_to).astype(np.float32)
