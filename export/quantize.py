"""FP32 ONNX -> Q/DQ ONNX: which tensors become INT8, in the two layouts that runtimes are fast at.

Only what lies upstream of the feature map is ever looked at, so the descriptor head stays FP32 by construction.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from cgd_deploy.errors import ExportError
from cgd_deploy.spec import Precision

from .calibrate import Ranges
from .metadata import FEATURES, Metadata, get_metadata, set_metadata

CONVOLUTIONS = {"Conv": 0, "MatMul": 1}
"""Operator -> axis of its weight's output channels; MatMul is a pointwise convolution over channels that come last."""

SMALLEST_SCALE = 2.0**-24
"""The smallest FP16 above zero, for a tensor or a weight row that is zero throughout."""


class Layout(str, Enum):
    """How INT8 is written down. Both hold the same codes, from one table of ranges.

    SYMMETRIC   int8, zero point 0, on convolution inputs and on the branch that a residual addition does not compute
                itself: TensorRT and OpenVINO fuse convolution, addition and ReLU around it.
    UINT8       the codes as uint8 with zero point 128, and also between a convolution or addition and what reads it:
                ONNX Runtime's x86 kernels take only integers in *and* out (ResNet-50: 3 times FP32, SYMMETRIC 0.7
                times).
    """

    SYMMETRIC = "symmetric"
    UINT8 = "uint8"

    @property
    def zero_point(self) -> NDArray[np.generic]:
        return np.array(128, np.uint8) if self is Layout.UINT8 else np.array(0, np.int8)


@dataclass(frozen=True)
class Edge:
    """Input ``position`` of ``node`` reads ``tensor`` through INT8 codes that cover the range of ``ranged``."""

    node: str
    position: int
    tensor: str
    ranged: str


def quantized(
    model: onnx.ModelProto, ranges: Ranges, layout: Layout, keep_float: Collection[str] = ()
) -> onnx.ModelProto:
    """A copy of ``model`` with QuantizeLinear/DequantizeLinear around its convolutions; biases stay FP32.

    ranges       from ``activation_ranges`` over ``ranged_tensors(model)``
    keep_float   names of convolutions to leave in FP32

    Raises ExportError for a model without a marked feature map or without convolutions.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    edges = _edges(result, layout, set(keep_float))
    pairs = {(edge.tensor, edge.ranged): f"{edge.tensor}_as_{edge.ranged}" for edge in edges}
    renamed = {(edge.node, edge.position): f"{pairs[edge.tensor, edge.ranged]}_dq" for edge in edges}
    after: dict[str, list[onnx.NodeProto]] = {}
    for (tensor, ranged), name in pairs.items():
        scale = _scales(np.array(ranges[ranged]))
        after.setdefault(tensor, []).extend(_pair(graph, tensor, name, scale, layout.zero_point))
    nodes = []
    for node in graph.node:
        if node.op_type in CONVOLUTIONS and (node.name, 0) in renamed:
            nodes.append(_quantize_weight(graph, node))
        for position in range(len(node.input)):
            node.input[position] = renamed.get((node.name, position), node.input[position])
        nodes.append(node)
        for output in node.output:
            nodes += after.get(output, [])
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.value_info[:]
    before = get_metadata(model)
    set_metadata(result, Metadata(spec=before.spec, precision=Precision.INT8, source=before.source))
    return result


def ranged_tensors(model: onnx.ModelProto) -> list[str]:
    """Every tensor whose range some layout needs, in graph order."""
    edges = [edge for layout in Layout for edge in _edges(model, layout, set())]
    return list(dict.fromkeys(edge.ranged for edge in edges))


def convolutions(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The backbone's convolutions, in graph order: Conv, and MatMul by a weight."""
    return [node for node in backbone(model) if node.op_type in CONVOLUTIONS]


def backbone(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The nodes that FEATURES is computed from, in graph order; raises ExportError if no convolution is among them."""
    needed = {FEATURES}
    nodes = []
    for node in reversed(model.graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            nodes.append(node)
    if not any(node.op_type == "Conv" for node in nodes):
        raise ExportError("the model has no convolutions under a tensor named 'features'; export it with cgd-deploy.")
    return nodes[::-1]


def _edges(model: onnx.ModelProto, layout: Layout, keep_float: set[str]) -> list[Edge]:
    """Where integers flow; ``integer`` holds the tensors that INT8 convolutions compute, also through an Add."""
    edges: list[Edge] = []
    integer: set[str] = set()
    from_convolution: set[str] = set()
    constants = {tensor.name for tensor in model.graph.initializer}
    for node in backbone(model):
        if node.op_type in CONVOLUTIONS:
            from_convolution.add(node.output[0])
            if node.name not in keep_float:
                edges.append(Edge(node.name, 0, node.input[0], node.input[0]))
                integer.add(node.output[0])
        elif node.op_type == "Add" and integer.intersection(node.input) and constants.isdisjoint(node.input):
            if layout is Layout.UINT8:
                positions = [0, 1]
                integer.add(node.output[0])
            else:
                positions = [next((i for i in (0, 1) if node.input[i] not in from_convolution), 1)]
            edges += [Edge(node.name, i, node.input[i], node.input[i]) for i in positions]
        elif node.op_type == "Relu" and layout is Layout.UINT8 and integer.intersection(node.input):
            # Quantizing before the ReLU with its output's scale gives the same codes: ReLU cuts at code zero.
            edges += [Edge(node.name, 0, node.input[0], y) for y in node.output if y != FEATURES]
        elif layout is Layout.UINT8:  # HardSwish, Sigmoid, a bias, ...: the convolution's own range, nothing is cut
            edges += [Edge(node.name, i, x, x) for i, x in enumerate(node.input) if x in integer]
    return edges


def _pair(
    graph: onnx.GraphProto, tensor: str, name: str, scale: NDArray[np.float32], zero: NDArray[np.generic]
) -> list[onnx.NodeProto]:
    graph.initializer.extend(
        [numpy_helper.from_array(scale, f"{name}_scale"), numpy_helper.from_array(zero, f"{name}_zero")]
    )
    how = [f"{name}_scale", f"{name}_zero"]
    return [
        helper.make_node("QuantizeLinear", [tensor, *how], [f"{name}_q"], name=f"{name}_quantize"),
        helper.make_node("DequantizeLinear", [f"{name}_q", *how], [f"{name}_dq"], name=f"{name}_dequantize"),
    ]


def _quantize_weight(graph: onnx.GraphProto, convolution: onnx.NodeProto) -> onnx.NodeProto:
    """Replace a convolution's weight by int8 codes, one scale an output channel, behind a DequantizeLinear."""
    name, axis = convolution.input[1], CONVOLUTIONS[convolution.op_type]
    position = next(i for i, tensor in enumerate(graph.initializer) if tensor.name == name)
    weight = numpy_helper.to_array(graph.initializer[position])  # (out, in / groups, h, w) or (in, out)
    others = tuple(i for i in range(weight.ndim) if i != axis)
    scale = _scales(np.abs(weight).max(axis=others, keepdims=True))
    codes = np.clip(np.round(weight / scale), -127, 127).astype(np.int8)
    del graph.initializer[position]
    zero = np.zeros(scale.size, np.int8)
    tensors: dict[str, NDArray[Any]] = {f"{name}_q": codes, f"{name}_scale": scale.ravel(), f"{name}_zero": zero}
    graph.initializer.extend(numpy_helper.from_array(array, key) for key, array in tensors.items())
    convolution.input[1] = f"{name}_dq"
    return helper.make_node("DequantizeLinear", list(tensors), [f"{name}_dq"], name=f"{name}_dequantize", axis=axis)


def _scales(largest: NDArray[np.floating]) -> NDArray[np.float32]:
    """FP16 values, so that an engine whose remainder is FP16 has the codes of one whose remainder is FP32."""
    return np.maximum(largest / 127, SMALLEST_SCALE).astype(np.float16).astype(np.float32)
