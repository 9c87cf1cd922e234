"""Proof of precision: the arithmetic of each convolution, weighted by its work.

The typed graph holds the precision that we ask for. The compiled model of OpenVINO or ONNX Runtime tells what runs, and
so do TensorRT's parsed network (binding, because it is strongly typed) and its built engine. An INT8 build that
silently became FP32 fails here.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from math import prod
from typing import Any

import onnx
from onnx import TensorProto

from cgd_deploy.errors import GateError
from cgd_deploy.runtime.backends.base import IMAGES
from cgd_deploy.spec import Precision

from .int8.quantize import CONVOLUTIONS, convolutions

Precisions = dict[str, Precision]
"""The arithmetic of each convolution, by the name of its ONNX node."""

MIN_SHARE = 0.95
COMPILED = "compiled model"
"""The source of a proof by the kernels of OpenVINO or ONNX Runtime."""
INTEGER = re.compile("_[Ii]8$|^QLinear|^QGemm$|Integer$")
"""Kernels of OpenVINO and operators of ONNX Runtime that multiply integers."""
BFLOAT16 = re.compile("_bf16$")
"""Kernels of OpenVINO that multiply BF16 values."""
NARROWEST_FIRST = {
    Precision.INT8: re.compile("(?<!u)int8", re.IGNORECASE),
    Precision.FP16: re.compile("fp16|half", re.IGNORECASE),
    Precision.FP32: re.compile("fp32|float", re.IGNORECASE),
}


def prove(
    source: str,
    found: Precisions,
    model: onnx.ModelProto,
    asked: Precision,
    keep_float: Collection[str] = (),
    floats: Precision = Precision.FP32,
) -> dict[str, Any]:
    """Count the convolutions and their share of the work (2 x multiply-adds) in each precision.

    source       where ``found`` comes from: "graph", COMPILED, "network" or "engine"
    found        precision of each convolution
    model        the graph of the build, typed or not
    asked        TF32 and BF16 count as FP32, except that a compiled model tells BF16: no other source says so
    keep_float   nodes that stay float on purpose; only the convolutions among them count
    floats       precision of these; checked in a compiled model

    Raises GateError if less than 95 % of the other convolutions' work has the precision ``asked``, or less than 95 % of
    the work of ``keep_float`` the precision ``floats``.
    """
    work = convolution_work(model)
    total = sum(work.values())
    layers, share = {}, {}
    for precision in Precision:
        names = [name for name in work if found.get(name) is precision]
        if names:
            layers[precision.value] = len(names)
            share[precision.value] = sum(work[name] for name in names) / total
    floating = sorted(work.keys() & keep_float)
    wanted = {name: asked if source == COMPILED else asked.in_graph for name in work if name not in keep_float}
    kept = dict.fromkeys(floating, floats) if source == COMPILED else {}
    for meant, told in ((wanted, asked.value), (kept, f"{floats.value} beside {asked.value}")):
        done = sum(work[name] for name, precision in meant.items() if found.get(name) is precision)
        if done < MIN_SHARE * sum(work[name] for name in meant):
            shares = ", ".join(f"{100 * part:.0f} % {name}" for name, part in share.items()) or "no convolution at all"
            raise GateError(
                f"{told} was asked, but the {source} has {shares} of the convolution work where {MIN_SHARE:.0%} was "
                "expected; nothing was written, report this model and backend."
            )
    return {
        "from": source,
        "asked": asked.value,
        "convolutions": len(work),
        "kept_float": floating,
        "layers": layers,
        "flops_share": share,
    }


def convolution_work(model: onnx.ModelProto) -> dict[str, int]:
    """Floating-point operations of each of the backbone's convolutions for one picture, by node name."""
    inferred = onnx.shape_inference.infer_shapes(model)
    shapes = {
        value.name: [axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in [*inferred.graph.value_info, *inferred.graph.output]
    }
    shapes.update((tensor.name, list(tensor.dims)) for tensor in model.graph.initializer)
    # One output value takes a multiply-add for every weight of its output channel.
    work = {}
    for node in convolutions(model):
        kernel = shapes[node.input[1]]
        work[node.name] = 2 * prod(shapes[node.output[0]][1:]) * prod(kernel) // kernel[CONVOLUTIONS[node.op_type]]
    return work


def graph_precisions(model: onnx.ModelProto) -> Precisions:
    """Precision of each convolution by the types of a graph: INT8 if both inputs are dequantized, else the weight's."""
    made_by = {name: node for node in model.graph.node for name in node.output}
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    found = {}
    for node in convolutions(model):
        decoded = [made_by[name].input[1] for name in node.input[:2] if _is_decoded(made_by.get(name))]
        if len(decoded) == 2:
            found[node.name] = Precision.INT8
        else:  # a decoded weight has the type of its scale
            half = types.get((decoded or node.input[1:])[0]) == TensorProto.FLOAT16
            found[node.name] = Precision.FP16 if half else Precision.FP32
    return found


def compiled_precisions(kernels: Mapping[str, str], names: Collection[str]) -> Precisions:
    """Precision of the convolutions ``names`` by the kernels of OpenVINO or ONNX Runtime: INT8, BF16, or else FP32."""
    patterns = {Precision.INT8: INTEGER, Precision.BF16: BFLOAT16}
    return {
        name: next((one for one, pattern in patterns.items() if pattern.search(kernels.get(name, ""))), Precision.FP32)
        for name in names
    }


def _is_decoded(maker: onnx.NodeProto | None) -> bool:
    return maker is not None and maker.op_type == "DequantizeLinear"


def network_precisions(trt: Any, network: Any, names: Collection[str]) -> Precisions:
    """Precision of the convolutions ``names`` in a parsed INetworkDefinition; its layers have the ONNX nodes' names."""
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    made_by = {layer.get_output(i).name: layer for layer in layers for i in range(layer.num_outputs)}
    found = {}
    for layer in layers:
        if layer.type not in (trt.LayerType.CONVOLUTION, trt.LayerType.MATRIX_MULTIPLY) or layer.name not in names:
            continue
        inputs = [tensor for i in range(layer.num_inputs) if (tensor := layer.get_input(i)) is not None][:2]
        makers = [made_by.get(tensor.name) for tensor in inputs]
        for i, maker in enumerate(makers):
            if maker and maker.type == trt.LayerType.SHUFFLE:  # the parser adds axes to a matrix
                makers[i] = made_by.get(maker.get_input(0).name)
        if len(makers) == 2 and all(maker and maker.type == trt.LayerType.DEQUANTIZE for maker in makers):
            found[layer.name] = Precision.INT8
        else:
            found[layer.name] = Precision.FP16 if inputs[0].dtype == trt.DataType.HALF else Precision.FP32
    return found


def engine_precisions(layers: Collection[Mapping[str, Any]], names: Collection[str]) -> Precisions:
    """Precision of the convolutions ``names`` by an engine inspector's layers, which TensorRT fused and renamed.

    A layer names the ONNX nodes that it computes. The type of its weight decides; without a weight, the narrowest type
    of its inputs. Pixels do not count as inputs, because they have 8 bits in every precision.
    The result leaves out convolutions that no layer names.
    """
    found: Precisions = {}
    for layer in layers:
        if layer.get("LayerType") == "Reformat":
            continue
        mentioned = set(re.findall(r"[^\s+\[\],|\x1e]+", f"{layer.get('Name', '')} {layer.get('Metadata', '')}"))
        weight = str(layer.get("Weights", {}).get("Type", ""))
        tensors = [tensor for tensor in layer.get("Inputs", []) if tensor.get("Name") != IMAGES]
        inputs = " ".join(str(tensor.get("Format/Datatype", "")) for tensor in tensors)
        precision = next((p for p, pattern in NARROWEST_FIRST.items() if pattern.search(weight or inputs)), None)
        for name in mentioned.intersection(names):
            if precision and (weight or name not in found):
                found[name] = precision
    return found
