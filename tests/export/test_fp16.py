"""FP16 graphs: what becomes FP16, what does not, and loud activations that leave FP16 in the wrong place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import activation_ranges, ranged_tensors
from onnx import TensorProto, helper, numpy_helper

from cgd_deploy.errors import ExportError
from cgd_deploy.pictures.images import ImageList
from cgd_deploy.runtime.backends.base import DESCRIPTORS
from cgd_deploy.runtime.descriptors import cosines
from cgd_deploy.runtime.engine import load
from cgd_deploy.spec import Precision
from cgd_export.engine_from_onnx import calibration_list
from cgd_export.fp16 import halved, rounded
from cgd_export.int8.quantize import Layout, backbone, quantized
from cgd_export.metadata import FEATURES, get_metadata, load_onnx
from cgd_export.parity import run_onnx


@pytest.fixture(scope="module")
def model(model_onnx: Path) -> onnx.ModelProto:
    return load_onnx(model_onnx)


@pytest.fixture(scope="module")
def int8(model: onnx.ModelProto, model_onnx: Path) -> onnx.ModelProto:
    """The Q/DQ graph that the OpenVINO engine of the session's ``engines`` holds."""
    ranges = activation_ranges(
        model, ranged_tensors(model), calibration_list(model_onnx, None), get_metadata(model).spec
    )
    return quantized(model, ranges, Layout.SYMMETRIC)


def types(model: onnx.ModelProto) -> dict[str, int]:
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    values = {value.name: value.type.tensor_type.elem_type for value in [*graph.value_info, *graph.output]}
    return values | {tensor.name: tensor.data_type for tensor in graph.initializer}


def test_the_backbone_is_fp16_and_the_head_is_not(model: onnx.ModelProto) -> None:
    half = halved(model)
    onnx.checker.check_model(half, full_check=True)
    assert get_metadata(half).precision is Precision.FP16
    found = types(half)
    started = False
    for node in backbone(half)[:-1]:
        started = started or node.op_type == "Conv"
        expected = TensorProto.FLOAT16 if started or node.output[0].endswith("_fp16") else TensorProto.FLOAT
        assert {found[name] for name in node.output} == {expected}, node.name
    inside = {node.name for node in backbone(half)}
    head = [node for node in half.graph.node if node.name not in inside]
    assert found[FEATURES] == found[DESCRIPTORS] == TensorProto.FLOAT
    assert len(head) > 10 and TensorProto.FLOAT16 not in {found[name] for node in head for name in node.output}
    assert sum(node.op_type == "Cast" for node in half.graph.node) == 3  # pixels to FP32, to FP16, features to FP32
    assert half.ByteSize() < 0.6 * model.ByteSize()


def test_fp16_describes_like_fp32(model: onnx.ModelProto, pixels: np.ndarray) -> None:
    assert cosines(run_onnx(rounded(halved(model)), pixels, 8), run_onnx(model, pixels, 8)).min() > 0.9999


def test_int8_keeps_its_codes(
    model: onnx.ModelProto, int8: onnx.ModelProto, engines: dict[tuple[str, str], Path], pixels: np.ndarray
) -> None:
    """An INT8 plan with an FP16 remainder and the OpenVINO engine of the same table describe alike."""
    half = halved(int8)
    onnx.checker.check_model(half, full_check=True)
    assert get_metadata(half).precision is Precision.INT8
    found = types(half)
    decoded = [node.output[0] for node in half.graph.node if node.op_type == "DequantizeLinear"]
    assert len(decoded) == 2 * 20 and {found[name] for name in decoded} == {TensorProto.FLOAT16}
    before, after = ({t.name: numpy_helper.to_array(t) for t in m.graph.initializer} for m in (int8, half))
    scales = [name for name in after if name.endswith("_scale_fp16")]
    assert len(scales) == len(decoded)
    for name in scales:  # nothing is lost where FP32 scales become FP16
        np.testing.assert_array_equal(after[name].astype(np.float32), before[name.removesuffix("_fp16")])
    # Here, untrained, INT8 is noisy: the two CPU engines of the table have 0.9990 too. ResNet-50 with weights: 0.9995.
    with load(engines["openvino", "int8"]) as engine:
        assert cosines(run_onnx(rounded(half), pixels, 8), engine.embed(pixels)).mean() > 0.9985


def test_a_weight_beyond_fp16_is_refused(model: onnx.ModelProto) -> None:
    loud = onnx.ModelProto()
    loud.CopyFrom(model)
    weight = next(tensor for tensor in loud.graph.initializer if tensor.name.endswith("layer1.0.conv1.weight"))
    values = numpy_helper.to_array(weight).copy()
    values[0, 0, 0, 0] = -70000
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    with pytest.raises(ExportError, match=r"layer1\.0\.conv1\.weight holds 7e\+04, FP16 ends at 65504; .*--fp32\.$"):
        halved(loud)


def louder(model: onnx.ModelProto, factor: float) -> onnx.ModelProto:
    """The feature map times ``factor``, which no descriptor of a norm of 1 can tell."""
    loud = onnx.ModelProto()
    loud.CopyFrom(model)
    position, last = next((i, node) for i, node in enumerate(loud.graph.node) if FEATURES in node.output)
    last.output[0] = "quiet"
    loud.graph.initializer.append(numpy_helper.from_array(np.array(factor, np.float32), "factor"))
    loud.graph.node.insert(position + 1, helper.make_node("Mul", ["quiet", "factor"], [FEATURES], name="louder"))
    del loud.graph.value_info[:]
    return loud


def naive(model: onnx.ModelProto) -> onnx.ModelProto:
    """Everything in FP16, as converters without a list of exceptions do it."""
    half = onnx.ModelProto()
    half.CopyFrom(model)
    for tensor in half.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    for node in half.graph.node:
        if node.op_type == "Cast" and node.attribute[0].i == TensorProto.FLOAT:
            node.attribute[0].i = TensorProto.FLOAT16
        if DESCRIPTORS in node.output:
            node.output[0] = "half"
    half.graph.node.append(helper.make_node("Cast", ["half"], [DESCRIPTORS], name="last", to=TensorProto.FLOAT))
    del half.graph.value_info[:]
    onnx.checker.check_model(half, full_check=True)
    return half


def test_loud_activations(model: onnx.ModelProto, picture_list: ImageList, pixels: np.ndarray) -> None:
    """Above 40 GeM's cube leaves FP16: the head in FP32 does not care, a graph cast as a whole gives no numbers."""
    spec = get_metadata(model).spec
    quiet = activation_ranges(model, [FEATURES], picture_list.sample(8), spec)[FEATURES]
    loud = louder(model, 500 / quiet)
    assert activation_ranges(loud, [FEATURES], picture_list.sample(8), spec)[FEATURES] == pytest.approx(500, rel=1e-3)
    reference = run_onnx(model, pixels[:8], 8)
    descriptors = run_onnx(rounded(halved(loud)), pixels[:8], 8)
    assert np.isfinite(descriptors).all() and cosines(descriptors, reference).min() > 0.9999
    cast = run_onnx(rounded(naive(loud)), pixels[:8], 8)
    assert not (cosines(np.nan_to_num(cast), reference) > 0.99).any()


def test_rounding_is_that_of_fp16() -> None:
    """Step by step NumPy's, overflow included, although ONNX Runtime computes in FP32."""
    nodes = [
        helper.make_node("Cast", ["images"], ["x"], name="to", to=TensorProto.FLOAT16),
        helper.make_node("Mul", ["x", "x"], ["square"], name="square"),
        helper.make_node("Mul", ["square", "third"], ["y"], name="third"),
        helper.make_node("Cast", ["y"], ["descriptors"], name="from", to=TensorProto.FLOAT),
    ]
    graph = helper.make_graph(
        nodes,
        "squares",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, [None, 1])],
        [helper.make_tensor_value_info("descriptors", TensorProto.FLOAT, [None, 1])],
        [numpy_helper.from_array(np.array(1 / 3 * 4, np.float16), "third")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    pixels = np.arange(256, dtype=np.uint8)[:, None]
    with np.errstate(over="ignore"):
        x = pixels.astype(np.float16)
        expected = (x * x * np.float16(1 / 3 * 4)).astype(np.float32)
    assert np.isinf(expected[-1]) and np.isfinite(expected[:200]).all()
    np.testing.assert_array_equal(run_onnx(rounded(model), pixels, 256), expected)
