"""INT8 by plain loops over the graph: which tensors, which scales, which codes, and what stays FP32."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import (
    NOISE,
    WEIGHT,
    activation_ranges,
    arrays,
    conv,
    makers,
    nodes,
    outputs_of,
    ranged_tensors,
    relu,
    session,
    tiny,
)
from onnx import helper, numpy_helper

from cgd_deploy.errors import ExportError, InputError
from cgd_deploy.pictures.images import ImageList
from cgd_deploy.pictures.preprocess import preprocess
from cgd_deploy.runtime.backends.openvino import OpenVinoBackend
from cgd_deploy.runtime.descriptors import cosines
from cgd_deploy.spec import Precision
from cgd_export.int8 import calibrate
from cgd_export.int8 import quantize as module
from cgd_export.int8.quantize import Layout, convolutions, never_negative, quantized, residual_adds
from cgd_export.metadata import FEATURES, get_metadata, load_onnx
from cgd_export.parity import run_onnx

LAYOUTS = list(Layout)
WITH_UNSIGNED = [Layout.MIXED, Layout.UINT8]
FP16 = 2.0**-11  # scales are rounded to FP16 values


@pytest.fixture(scope="module")
def model(model_onnx: Path) -> onnx.ModelProto:
    return load_onnx(model_onnx)


@pytest.fixture(scope="module")
def calibration(picture_list) -> ImageList:
    return picture_list.subset(range(0, 30, 4))


@pytest.fixture(scope="module")
def ranges(model, calibration) -> dict[str, float]:
    return activation_ranges(model, ranged_tensors(model), calibration, get_metadata(model).spec)


@pytest.fixture(scope="module")
def int8(model, ranges) -> dict[Layout, onnx.ModelProto]:
    return {layout: quantized(model, ranges, layout) for layout in LAYOUTS}


def reading(model: onnx.ModelProto, conv: onnx.NodeProto) -> onnx.NodeProto:
    """The QuantizeLinear whose codes a convolution reads."""
    made = makers(model)
    decode = made[conv.input[0]]
    encode = made[decode.input[0]]
    assert (decode.op_type, encode.op_type) == ("DequantizeLinear", "QuantizeLinear")
    assert list(decode.input[1:]) == list(encode.input[1:])
    return encode


def test_the_backbone_has_twenty_convolutions(model):
    assert len(convolutions(model)) == 20  # ResNet-18: 1 + 8 x 2 + 3 projections


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_weight_has_its_own_int8_codes_by_loops(model, int8, layout):
    made, values, originals = makers(int8[layout]), arrays(int8[layout]), arrays(model)
    for before, after in zip(nodes(model, "Conv"), nodes(int8[layout], "Conv"), strict=True):
        decode = made[after.input[1]]
        assert decode.op_type == "DequantizeLinear" and helper.get_node_attr_value(decode, "axis") == 0
        codes, scales, zeros = (values[name] for name in decode.input)
        weight = originals[before.input[1]]
        assert (codes.dtype, zeros.dtype, codes.shape) == (np.int8, np.int8, weight.shape)
        assert scales.shape == zeros.shape == (len(weight),) and not zeros.any()
        for channel in range(len(weight)):
            exact = np.abs(weight[channel]).max() / 127
            assert scales[channel] == pytest.approx(exact, rel=FP16 if layout is Layout.SYMMETRIC else 1e-7)
        for channel in (0, len(weight) - 1):
            for value, code in zip(weight[channel].ravel()[:100], codes[channel].ravel()[:100], strict=True):
                assert code == max(-127, min(127, round(float(value / scales[channel]))))
        assert np.abs(codes * scales[:, None, None, None] - weight).max() <= scales.max() * 0.6


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_convolution_reads_codes_that_cover_the_range_of_its_input(model, int8, ranges, layout):
    """The first reads pixels around zero, the others what a ReLU has cut."""
    values = arrays(int8[layout])
    steps = [127] + 19 * [127 if layout is Layout.SYMMETRIC else 255]
    for before, after, high in zip(nodes(model, "Conv"), nodes(int8[layout], "Conv"), steps, strict=True):
        encode = reading(int8[layout], after)
        assert encode.input[0] == before.input[0]
        scale = values[encode.input[1]]
        made = makers(model)[before.input[0]]
        ranged = made.input[0] if made.op_type == "MaxPool" else before.input[0]
        assert scale.shape == () and scale == pytest.approx(ranges[ranged] / high, rel=FP16)


SIGNED = {Layout.SYMMETRIC: np.int8(0), Layout.MIXED: np.int8(0), Layout.UINT8: np.uint8(128)}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_zero_points(model, int8, layout):
    """Zero for what a ReLU has cut, except that TensorRT takes but one type."""
    values, made = arrays(int8[layout]), makers(model)
    encodes = nodes(int8[layout], "QuantizeLinear")
    for encode in encodes:
        cut = layout is not Layout.SYMMETRIC and made[encode.input[0]].op_type in ("Relu", "MaxPool")
        expected = np.uint8(0) if cut else SIGNED[layout]
        zero = values[encode.input[2]]
        assert zero.shape == () and zero == expected and zero.dtype == expected.dtype
    pixels, pooled, projections, branches = 1, 1, 3, 8
    rectified = 15 if layout is Layout.SYMMETRIC else 16  # of 17; the last is the feature map, the first is pooled
    assert len(encodes) == pixels + pooled + projections + rectified + branches * (layout is Layout.UINT8)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_small_weights_are_cut_off_only_where_scales_must_be_fp16(layout):
    """Largest weights of 0.0002: in FP16 their scales have five bits, and are wrong by more than a percent."""
    weight = np.linspace(1.9e-4, 2.1e-4, 48).reshape(16, 3, 1, 1).astype(np.float32)
    result = quantized(tiny(conv("c", "x", FEATURES), w=weight), {"x": 255.0}, layout)
    values = arrays(result)
    decoded = values["w_q"] * values["w_scale"][:, None, None, None]
    error = float((np.abs(decoded - weight).max(axis=(1, 2, 3)) / np.abs(weight).max(axis=(1, 2, 3))).max())
    assert error > 0.01 if layout is Layout.SYMMETRIC else error <= 0.5001 / 127


def test_one_table_makes_the_scales_of_all_layouts(int8):
    def scales(layout: Layout) -> list[tuple[float, list[float]]]:
        made, values = makers(int8[layout]), arrays(int8[layout])
        reads = [(made[conv.input[0]], made[conv.input[1]]) for conv in nodes(int8[layout], "Conv")]
        return [(float(values[x.input[1]]), values[w.input[1]].tolist()) for x, w in reads]

    assert scales(Layout.MIXED) == scales(Layout.UINT8)
    for (signed, weight), (unsigned, same) in list(zip(scales(Layout.SYMMETRIC), scales(Layout.MIXED), strict=True))[
        1:
    ]:
        assert unsigned == pytest.approx(signed * 127 / 255, rel=2 * FP16)
        assert weight == np.array(same).astype(np.float16).astype(np.float32).tolist()


def test_all_layouts_have_the_same_codes_of_what_may_be_negative_by_loops(int8, pixels):
    found = {}
    for layout in LAYOUTS:
        model = int8[layout]
        encode = reading(model, nodes(model, "Conv")[0])
        x, codes = outputs_of(model, [encode.input[0], encode.output[0]], pixels[:1])
        scale, zero = (arrays(model)[name] for name in encode.input[1:])
        found[layout] = codes.astype(int) - int(zero)
        for value, code in zip(x.ravel()[:500], found[layout].ravel()[:500], strict=True):
            assert code == max(-128, min(127, round(float(value / scale))))
    assert np.array_equal(found[Layout.SYMMETRIC], found[Layout.UINT8])
    assert np.array_equal(found[Layout.SYMMETRIC], found[Layout.MIXED])


@pytest.mark.parametrize("layout", WITH_UNSIGNED)
def test_what_is_never_negative_has_256_codes_by_loops(layout):
    model = tiny(conv("c", "x", "y"), relu("y", "z"), conv("d", "z", FEATURES, "v"), w=WEIGHT, v=WEIGHT)
    largest = float(outputs_of(model, ["z"], NOISE)[0].max())
    result = quantized(model, {"x": 255.0, "y": largest, "z": largest / 2}, layout)  # so that half are cut off
    encode = reading(result, nodes(result, "Conv")[1])
    scale, zero = (arrays(result)[name] for name in encode.input[1:])
    assert scale == pytest.approx(largest / 2 / 255, rel=FP16) and zero == 0 and zero.dtype == np.uint8
    x, codes = outputs_of(result, [encode.input[0], encode.output[0]], NOISE)
    assert (codes.dtype, codes.min(), codes.max()) == (np.uint8, 0, 255) and x.max() > 1.5 * 255 * scale
    for value, code in zip(x.ravel()[:3000], codes.ravel()[:3000], strict=True):
        assert code == max(0, min(255, round(float(value / scale))))


def test_what_is_never_negative_follows_from_the_graph():
    """Calibrated or not: a tensor counts only where no picture and no trained weight could make it negative."""
    gate = helper.make_node
    model = tiny(
        conv("c", "x", "y"),
        relu("y", "a"),
        relu("x", "b"),
        gate("Add", ["a", "b"], ["sum"], name="sum"),
        gate("Add", ["sum", "y"], ["unsure"], name="unsure"),
        gate("Add", ["sum", "bias"], ["moved"], name="moved"),
        gate("MaxPool", ["sum"], ["pooled"], name="pooled", kernel_shape=[1, 1]),
        gate("ReduceMean", ["pooled", "axes"], ["mean"], name="mean"),
        gate("MaxPool", ["y"], ["y_pooled"], name="y_pooled", kernel_shape=[1, 1]),
        gate("Transpose", ["pooled"], ["turned"], name="turned", perm=[0, 1, 3, 2]),
        gate("Sigmoid", ["y"], ["sigmoid"], name="sigmoid"),
        gate("Mul", ["y", "sigmoid"], ["silu"], name="silu"),
        gate("HardSigmoid", ["y"], ["hard"], name="hard"),
        gate("Mul", ["turned", "hard"], ["gated"], name="gated"),
        gate("HardSwish", ["gated"], ["swish"], name="swish"),
        gate("Clip", ["y", "zero", "six"], ["relu6"], name="relu6"),
        gate("Clip", ["y", "below", "six"], ["clipped"], name="clipped"),
        gate("Clip", ["y", "", "six"], ["capped"], name="capped"),
        *(gate("Add", [one, other], [out], name=out) for one, other, out in JOINED),
        gate("Add", ["all6", "capped"], [FEATURES], name="features"),
        w=WEIGHT,
        bias=np.ones((3, 1, 1)),
        zero=np.array(0.0),
        below=np.array(-1.0),
        six=np.array(6.0),
        axes=np.array([2, 3]),
    )
    expected = {"a", "b", "sum", "pooled", "mean", "turned", "sigmoid", "hard", "gated", "relu6"}
    assert never_negative(model) == expected


JOINED = [  # so that FEATURES needs all of them
    ("unsure", "moved", "all0"),
    ("y_pooled", "silu", "all1"),
    ("swish", "relu6", "all2"),
    ("clipped", "all0", "all4"),
    ("all1", "all2", "all5"),
    ("all4", "all5", "all3"),
    ("mean", "all3", "all6"),
]


@pytest.mark.parametrize("layout", WITH_UNSIGNED)
def test_an_addition_of_what_a_relu_cut_and_what_it_did_not(layout):
    """A block with a projection: codes of both signs on what it adds, unsigned ones on what the next one reads."""
    model = tiny(
        conv("c", "x", "y"),
        relu("y", "z"),
        conv("d", "z", "branch", "w1"),
        conv("e", "z", "side", "w2"),
        helper.make_node("Add", ["branch", "side"], ["sum"], name="sum"),
        relu("sum", "out"),
        conv("f", "out", FEATURES, "w3"),
        **dict.fromkeys(("w", "w1", "w2", "w3"), WEIGHT),
    )
    result = quantized(model, dict.fromkeys(ranged_tensors(model), 4.0), layout)
    zeros = {node.input[0]: arrays(result)[node.input[2]] for node in nodes(result, "QuantizeLinear")}
    added = ("branch", "side") if layout is Layout.UINT8 else ("side",)
    assert zeros == {"x": SIGNED[layout], "z": 0, "out": 0, **dict.fromkeys(added, SIGNED[layout])}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_dequantize_for_each_weight_and_each_pair(int8, layout):
    decodes, encodes = nodes(int8[layout], "DequantizeLinear"), nodes(int8[layout], "QuantizeLinear")
    assert len(decodes) == len(encodes) + 20
    assert len({node.output[0] for node in decodes}) == len(decodes)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_head_is_what_it_was(model, int8, layout):
    def head(graph_of: onnx.ModelProto) -> tuple[list[str], list[np.ndarray]]:
        values, reached, operators, constants = arrays(graph_of), {FEATURES}, [], []
        for node in graph_of.graph.node:
            if reached.intersection(node.input):
                reached.update(node.output)
                operators.append(node.op_type)
                constants += [values[name] for name in node.input if name in values]
        return operators, constants

    before, after = head(model), head(int8[layout])
    assert "Gemm" in before[0] or "MatMul" in before[0]
    assert after[0] == before[0]
    assert not {"QuantizeLinear", "DequantizeLinear"}.intersection(after[0])
    for one, other in zip(before[1], after[1], strict=True):
        assert one.dtype == other.dtype and np.array_equal(one, other)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_feature_map_is_not_rounded(int8, layout):
    made = makers(int8[layout])
    assert made[FEATURES].op_type == "Relu"
    assert made[made[FEATURES].input[0]].op_type == "Add"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_biases_stay_float(model, int8, layout):
    before, after = arrays(model), arrays(int8[layout])
    for node in nodes(int8[layout], "Conv"):
        assert after[node.input[2]].dtype == np.float32
        assert np.array_equal(after[node.input[2]], before[node.input[2]])


def quantized_inputs(model: onnx.ModelProto, node: onnx.NodeProto) -> list[bool]:
    made = makers(model)
    return [name in made and made[name].op_type == "DequantizeLinear" for name in node.input]


@pytest.mark.parametrize("layout", [Layout.SYMMETRIC, Layout.MIXED])
def test_a_residual_addition_reads_one_branch_as_integers_where_a_runtime_fuses_it(model, int8, layout):
    additions = nodes(int8[layout], "Add")
    residual = [node for node in additions if any(quantized_inputs(int8[layout], node))]
    assert len(residual) == 8
    made = makers(model)
    for after in residual:
        before = next(node for node in model.graph.node if node.name == after.name)
        as_integers = quantized_inputs(int8[layout], after)
        assert sum(as_integers) == 1
        branches = [made[name].op_type for name in before.input]
        if "Relu" in branches:  # the identity branch, so that the convolution fuses with the addition
            assert branches[as_integers.index(True)] == "Relu"


def test_a_residual_addition_reads_both_branches_as_integers_in_the_uint8_layout(int8):
    both = [quantized_inputs(int8[Layout.UINT8], node) for node in nodes(int8[Layout.UINT8], "Add")]
    assert both.count([True, True]) == 8 and [True, False] not in both and [False, True] not in both


@pytest.mark.parametrize("layout", LAYOUTS)
def test_keep_float_leaves_that_convolution_alone(model, ranges, layout):
    kept = convolutions(model)[3]
    result = quantized(model, ranges, layout, keep_float=[kept.name])
    after = next(node for node in result.graph.node if node.name == kept.name)
    assert list(after.input[1:]) == list(kept.input[1:])
    assert not quantized_inputs(result, after)[1]
    assert np.array_equal(arrays(result)[kept.input[1]], arrays(model)[kept.input[1]])
    weights = [quantized_inputs(result, conv)[1] for conv in nodes(result, "Conv")]
    assert weights.count(True) == 19
    if layout is not Layout.UINT8:
        assert after.input[0] == kept.input[0]


@pytest.mark.parametrize("layout", [Layout.SYMMETRIC, Layout.MIXED])
def test_residual_adds_in_float_read_what_the_fp32_model_reads(model, ranges, layout, pixels):
    adds = residual_adds(model)
    assert len(adds) == 8 and list(adds) == [node.name for node in model.graph.node if node.name in adds]
    plain, one, every = (quantized(model, ranges, layout, keep_float=floats) for floats in ((), adds[:1], adds))
    for name in adds:
        before, after, in_one, in_every = (
            next(node for node in each.graph.node if node.name == name) for each in (model, plain, one, every)
        )
        assert list(in_every.input) == list(before.input) and list(after.input) != list(before.input)
        assert list(in_one.input) == list((before if name == adds[0] else after).input)
    assert [sum(quantized_inputs(every, conv)) for conv in nodes(every, "Conv")] == [2] * 20
    reference = run_onnx(model, pixels, 8)
    lost = [1 - cosines(run_onnx(each, pixels, 8), reference).mean() for each in (plain, one, every)]
    assert lost[0] > lost[2] and lost[1] > lost[2]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_result_is_a_valid_int8_model_and_the_given_one_is_unchanged(model, ranges, layout):
    before = model.SerializeToString()
    result = quantized(model, ranges, layout)
    onnx.checker.check_model(result, full_check=True)
    assert model.SerializeToString() == before
    metadata = get_metadata(result)
    assert metadata.precision is Precision.INT8
    assert (metadata.spec, metadata.source) == (get_metadata(model).spec, get_metadata(model).source)
    assert len(result.SerializeToString()) < 0.3 * len(before)


def test_descriptors_stay_close(model, int8, pixels):
    # Different pictures of this untrained model have cosines from 0.84 to 0.98.
    reference = run_onnx(model, pixels, 8)
    found = {layout: run_onnx(int8[layout], pixels, 8) for layout in LAYOUTS}
    for layout in LAYOUTS:
        assert cosines(found[layout], reference).min() >= 0.975
        assert cosines(found[layout], reference).mean() >= 0.985
    assert cosines(found[Layout.MIXED], found[Layout.UINT8]).min() >= 0.995


def on_onnxruntime(model: onnx.ModelProto, pixels: np.ndarray) -> np.ndarray:
    return run_onnx(model, pixels, 8)


def on_openvino(model: onnx.ModelProto, pixels: np.ndarray) -> np.ndarray:
    with OpenVinoBackend(model.SerializeToString(), threads=1) as backend:
        return np.concatenate([backend.run(batch) for batch in np.split(pixels, range(8, len(pixels), 8))])


@pytest.mark.parametrize(("layout", "run"), [(Layout.UINT8, on_onnxruntime), (Layout.MIXED, on_openvino)])
def test_unsigned_codes_bring_the_descriptors_closer(model, ranges, int8, pixels, monkeypatch, layout, run):
    reference = run_onnx(model, pixels, 8)
    unsigned = cosines(run(int8[layout], pixels), reference).mean()
    monkeypatch.setattr(module, "never_negative", lambda model: set())
    signed = cosines(run(quantized(model, ranges, layout), pixels), reference).mean()
    assert 1 - unsigned < 0.96 * (1 - signed)  # most is lost by the weights


def test_onnxruntime_stays_in_integers_from_the_first_convolution_to_the_last_addition(model, ranges, pixels, tmp_path):
    uneven = {name: value * (1 + i / 1000) for i, (name, value) in enumerate(ranges.items())}  # as if distilled
    int8 = quantized(model, uneven, Layout.UINT8)
    found = session(int8, tmp_path / "optimized.onnx").run(None, {"images": pixels})[0]
    optimized = onnx.load(tmp_path / "optimized.onnx")
    operators = Counter(node.op_type for node in optimized.graph.node)
    assert (operators["QLinearConv"], operators["Conv"], operators["QLinearAdd"]) == (20, 0, 7)
    assert (operators["QuantizeLinear"], operators["DequantizeLinear"], operators["Relu"]) == (1, 2, 1)
    assert operators["NhwcMaxPool"] == 1
    [expected] = outputs_of(int8, ["descriptors"], pixels)
    assert cosines(found, expected).min() > 0.999  # biases become integers


def test_ranges_by_loops(model, calibration, ranges):
    names = [*ranged_tensors(model)[:2], FEATURES]
    spec = get_metadata(model).spec
    totals = [0.0, 0.0, 0.0]
    for path in calibration.paths:
        values = outputs_of(model, names, preprocess(path, spec)[None])
        for i, value in enumerate(values):
            totals[i] += max(abs(float(v)) for v in value.ravel())
    found = activation_ranges(model, names, calibration, spec)
    assert list(found) == names
    for name, total in zip(names, totals, strict=True):
        assert found[name] == pytest.approx(total / len(calibration), rel=1e-4)
    assert ranges[names[0]] == pytest.approx(found[names[0]])


@pytest.mark.parametrize("size", [1, 3, 100])
def test_ranges_do_not_depend_on_batches(model, calibration, ranges, monkeypatch, size):
    monkeypatch.setattr(calibrate, "BATCH", size)
    seen: list[int] = []
    again = activation_ranges(model, list(ranges), calibration, get_metadata(model).spec, seen.append)
    assert again == pytest.approx(ranges, rel=1e-5)
    assert sum(seen) == len(calibration)


def test_calibration_stops_at_a_bad_picture(model, tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"bad\.jpg"):
        activation_ranges(model, [FEATURES], ImageList(tmp_path, ("bad.jpg",)), get_metadata(model).spec)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_channel_without_weights_and_an_empty_range_stay_finite(layout):
    model = tiny(conv("c", "x", FEATURES), w=WEIGHT * np.array([1, 0, 1]).reshape(3, 1, 1, 1))
    result = quantized(model, {"x": 0.0}, layout)
    assert (arrays(result)["w_scale"] > 0).all() and not arrays(result)["w_q"][1].any()
    found = run_onnx(result, np.full((1, 32, 32, 3), 255, np.uint8), 1)
    assert np.isfinite(found).all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_matrix_has_a_scale_for_each_column_and_its_bias_stays_float(layout):
    moves = [
        helper.make_node("Transpose", ["y"], ["last"], perm=[0, 2, 3, 1], name="last"),
        helper.make_node("MatMul", ["last", "matrix"], ["product"], name="product"),
        helper.make_node("Add", ["product", "bias"], ["moved"], name="add"),
        helper.make_node("Transpose", ["moved"], [FEATURES], perm=[0, 3, 1, 2], name="back"),
    ]
    matrix = np.random.default_rng(1).normal(size=(3, 5)) * [1, 10, 100, 0.1, 0.01]
    model = tiny(conv("c", "x", "y"), *moves, w=WEIGHT, matrix=matrix, bias=np.arange(5))
    ranges = {name: float(np.abs(outputs_of(model, [name], NOISE)[0]).max()) for name in ranged_tensors(model)}
    result = quantized(model, ranges, layout)
    product, add = (next(node for node in result.graph.node if node.name == name) for name in ("product", "add"))
    assert quantized_inputs(result, product) == [True, True] and add.input[1] == "bias"
    decode, values = makers(result)[product.input[1]], arrays(result)
    assert helper.get_node_attr_value(decode, "axis") == 1
    codes, scales = (values[name] for name in decode.input[:2])
    for column in range(5):
        assert scales[column] == pytest.approx(np.abs(matrix[:, column]).max() / 127, rel=FP16)
        for row in range(3):
            assert codes[row, column] == max(-127, min(127, round(float(matrix[row, column] / scales[column]))))
    assert cosines(run_onnx(result, NOISE, 2)[..., 0, 0], run_onnx(model, NOISE, 2)[..., 0, 0]).min() > 0.999


def test_in_the_uint8_layout_all_that_reads_a_convolution_reads_its_codes():
    """SiLU: x * sigmoid(x) between two convolutions."""
    silu = [
        helper.make_node("Sigmoid", ["y"], ["gate"], name="sigmoid"),
        helper.make_node("Mul", ["y", "gate"], ["z"], name="mul"),
    ]
    model = tiny(conv("c", "x", "y"), *silu, conv("d", "z", FEATURES, "v"), w=WEIGHT, v=WEIGHT.transpose(1, 0, 2, 3))
    for layout, expected in ((Layout.SYMMETRIC, "y"), (Layout.MIXED, "y"), (Layout.UINT8, "y_dq")):
        result = quantized(model, dict.fromkeys(ranged_tensors(model), 4.0), layout)
        reads = {node.name: list(node.input) for node in result.graph.node}
        assert (reads["sigmoid"], reads["mul"]) == ([expected], [expected, "gate"])
        assert reads["d"][0] == "z_dq"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_convolutions_behind_the_features_are_left_alone(layout):
    model = tiny(conv("c", "x", FEATURES), conv("later", FEATURES, "more"), w=WEIGHT)
    model.graph.node[-1].input[0] = "more"
    model.graph.initializer.append(numpy_helper.from_array(WEIGHT.astype(np.float32), "head"))
    model.graph.node[-2].input[1] = "head"
    assert [node.name for node in convolutions(model)] == ["c"]
    assert ranged_tensors(model) == ["x"]
    later = next(node for node in quantized(model, {"x": 255.0}, layout).graph.node if node.name == "later")
    assert list(later.input) == [FEATURES, "head"]


@pytest.mark.parametrize("features", ["x", "unmarked"])
def test_a_model_without_convolutions_under_the_features_is_refused(features):
    identity = helper.make_node("Relu", ["x"], [FEATURES if features == "x" else "other"], name="r")
    with pytest.raises(ExportError, match="no convolutions"):
        ranged_tensors(tiny(identity))
