"""ONNX graphs for tests: a few nodes made into a model, and what is inside of any model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from cgd_deploy.pictures.images import ImageList
from cgd_deploy.spec import ModelSpec, Precision
from cgd_export.int8.calibrate import Activations, Calibration, Ranges
from cgd_export.int8.quantize import Layout, int8_edges
from cgd_export.metadata import FEATURES, Metadata, set_metadata

SPEC = ModelSpec(backbone="resnet18", descriptors="S", dim=2, input_size=(32, 32))
WEIGHT = np.random.default_rng(0).normal(size=(3, 3, 1, 1))
NOISE = np.random.default_rng(2).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)


def tiny(*graph_nodes: onnx.NodeProto, **weights: np.ndarray) -> onnx.ModelProto:
    """images -> x, float [N, 3, 32, 32] -> the given nodes, of which one makes FEATURES."""
    start = [
        helper.make_node("Cast", ["images"], ["float"], to=TensorProto.FLOAT, name="cast"),
        helper.make_node("Transpose", ["float"], ["x"], perm=[0, 3, 1, 2], name="move"),
    ]
    end = [helper.make_node("GlobalAveragePool", [FEATURES], ["descriptors"], name="pool")]
    graph = helper.make_graph(
        [*start, *graph_nodes, *end],
        "tiny",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", 32, 32, 3])],
        [helper.make_tensor_value_info("descriptors", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    set_metadata(model, Metadata(spec=SPEC, precision=Precision.FP32))
    return model


def conv(name: str, x: str, y: str, *weights: str, **attributes: int | list[int]) -> onnx.NodeProto:
    """``weights``: its weight, "w" if not given, and its bias if it has one."""
    return helper.make_node("Conv", [x, *(weights or ["w"])], [y], name=name, **attributes)


def relu(x: str, y: str) -> onnx.NodeProto:
    return helper.make_node("Relu", [x], [y], name=f"{y}_relu")


def makers(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    """tensor -> the node that computes it"""
    return {output: node for node in model.graph.node for output in node.output}


def arrays(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def nodes(model: onnx.ModelProto, operator: str) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type == operator]


def session(model: onnx.ModelProto, optimized: Path | None = None) -> onnxruntime.InferenceSession:
    """ONNX Runtime without its optimizer, or with it and its result in a file."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if optimized:
        options.optimized_model_filepath = str(optimized)
    else:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def outputs_of(model: onnx.ModelProto, names: list[str], pixels: np.ndarray) -> list[np.ndarray]:
    """What ONNX Runtime computes for inner tensors."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return session(probe).run(names, {"images": pixels})


def ranged_tensors(model: onnx.ModelProto) -> list[str]:
    """Every tensor whose range some layout needs, in graph order."""
    edges = [edge for layout in Layout for edge in int8_edges(model, layout)]
    return list(dict.fromkeys(edge.ranged for edge in edges))


def activation_ranges(
    model: onnx.ModelProto,
    tensors: Sequence[str],
    images: ImageList,
    spec: ModelSpec,
    on_pictures: Callable[[int], None] | None = None,
) -> Ranges:
    """The mean over pictures of each tensor's largest magnitude."""
    return Activations(model, dict.fromkeys(tensors, 0), {}, images, spec, on_pictures).ranges(Calibration.MEAN)
