"""FP16 as types of the graph: the backbone is FP16 from its first convolution to the feature map, the rest FP32.

ModelOpt's AutoCast is not used. It chooses nodes by sampled magnitudes and turned 127 of 129 nodes of a ResNet-50 CGD
into FP16, GeM's cube and the L2 norm among them. It also pins its own versions of onnx and ONNX Runtime.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from cgd_deploy.errors import ExportError
from cgd_deploy.spec import Precision

from .int8.quantize import backbone
from .metadata import FEATURES, Metadata, get_metadata, set_metadata

LARGEST = float(np.finfo(np.float16).max)


def halved(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of an FP32 or symmetric Q/DQ ``model`` whose backbone has FP16 weights, biases, scales and additions.

    Pixels are normalized in FP32. The descriptor head reads the feature map through a Cast to FP32, because GeM's x^3
    overflows FP16 above x = 40. A Q/DQ model keeps its INT8 codes, and its metadata still says INT8.
    Raises ExportError if a weight is too large for FP16.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    floats = {tensor.name: tensor for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT}
    constants = {tensor.name for tensor in graph.initializer}
    inside = {name for node in backbone(result) for name in node.output}
    half: set[str] = set()  # outputs of FP16 nodes, and INT8 codes: they need no Cast
    new: dict[str, onnx.TensorProto] = {}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.op_type == "DequantizeLinear":
            half.add(node.input[0])
        if inside.issuperset(node.output) and (node.op_type == "Conv" or half.intersection(node.input)):
            for position, name in enumerate(node.input):
                if name in floats:
                    node.input[position] = f"{name}_fp16"
                    new[node.input[position]] = _halved(floats[name], node.input[position])
                elif name and name not in constants and name not in half:
                    node.input[position] = f"{name}_fp16"
                    if node.input[position] not in half:
                        nodes.append(_cast(name, node.input[position], TensorProto.FLOAT16))
                        half.add(node.input[position])
            half.update(node.output)
        nodes.append(node)
        if FEATURES in node.output:
            node.output[list(node.output).index(FEATURES)] = f"{FEATURES}_fp16"
            nodes.append(_cast(f"{FEATURES}_fp16", FEATURES, TensorProto.FLOAT))
    del graph.node[:]
    graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend([*kept, *new.values()])
    del graph.value_info[:]
    before = get_metadata(model)
    precision = Precision.FP16 if before.precision is Precision.FP32 else before.precision
    set_metadata(result, Metadata(spec=before.spec, precision=precision, source=before.source))
    return result


def rounded(model: onnx.ModelProto) -> onnx.ModelProto:
    """An FP32 copy of a typed ``model`` that rounds each FP16 tensor by Casts, to get on a CPU what a GPU computes.

    On the CPU, ONNX Runtime computes a float16 graph in FP32 and so leaves out its roundings and overflows. Its
    optimizer turns a float16 Q/DQ graph into another function (mean cosine 0.992 with the graph not optimized).
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    inferred = onnx.shape_inference.infer_shapes(model).graph
    half = {v.name for v in inferred.value_info if v.type.tensor_type.elem_type == TensorProto.FLOAT16}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        nodes.append(node)
        if node.op_type == "Cast" and node.output[0] in half:
            node.attribute[0].i = TensorProto.FLOAT
        for position, name in enumerate(node.output):
            if name in half:
                node.output[position] = f"{name}_exact"
                nodes.append(_cast(f"{name}_exact", f"{name}_half", TensorProto.FLOAT16))
                nodes.append(_cast(f"{name}_half", name, TensorProto.FLOAT))
    del graph.node[:]
    graph.node.extend(nodes)
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT16:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
    del graph.value_info[:]
    return result


def _halved(tensor: onnx.TensorProto, name: str) -> onnx.TensorProto:
    values = numpy_helper.to_array(tensor)
    if not (largest := float(np.abs(values).max(initial=0))) <= LARGEST:
        raise ExportError(f"{tensor.name} holds {largest:.3g}, FP16 ends at {LARGEST:.0f}; build with --fp32.")
    return numpy_helper.from_array(values.astype(np.float16), name)


def _cast(x: str, y: str, to: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [x], [y], name=f"{x}_to_{y}", to=to)
