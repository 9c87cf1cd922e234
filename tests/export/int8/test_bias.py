"""Bias correction by plain loops: the mean output of rounded weights, and what must stay as it is."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from graphs import NOISE, arrays, conv, makers, nodes, outputs_of, ranged_tensors, relu, tiny
from onnx import helper

from cgd_deploy.runtime.backends.openvino import OpenVinoBackend
from cgd_export.int8.bias import bias_corrected
from cgd_export.int8.quantize import Layout, convolutions, quantized
from cgd_export.metadata import FEATURES
from cgd_export.parity import run_onnx

LAYOUTS = list(Layout)
RANDOM = np.random.default_rng(7)


def rounded(model: onnx.ModelProto, layout: Layout, keep_float: tuple[str, ...] = ()) -> onnx.ModelProto:
    """INT8 with the ranges that the tensors have on NOISE."""
    tensors = ranged_tensors(model)
    values = outputs_of(model, tensors, NOISE)
    ranges = {name: float(np.abs(value).max()) for name, value in zip(tensors, values, strict=True)}
    return quantized(model, ranges, layout, keep_float)


def means_of(model: onnx.ModelProto, axes: dict[str, int]) -> dict[str, np.ndarray]:
    values = outputs_of(model, list(axes), NOISE)
    return {
        name: np.moveaxis(value, axes[name], 0).reshape(value.shape[axes[name]], -1).mean(axis=1, dtype=np.float64)
        for name, value in zip(axes, values, strict=True)
    }


def skewed(*shape: int) -> np.ndarray:
    """One large value in each row, so that the others are rounded coarsely."""
    weight = RANDOM.normal(size=shape) + 0.3
    weight[:, 0, 0, 0] = 40
    return weight


def two(group: int = 1, biased: bool = True, **attributes: list[int]) -> onnx.ModelProto:
    weights = {"w": skewed(4, 3, 1, 1), "v": skewed(6, 4 // group, 3, 3)}
    biases = {"b": RANDOM.normal(size=4), "c": RANDOM.normal(size=6)} if biased else {}
    return tiny(
        conv("first", "x", "y", "w", *(["b"] if biased else [])),
        relu("y", "z"),
        conv("second", "z", FEATURES, "v", *(["c"] if biased else []), group=group, **attributes),
        **weights,
        **biases,
    )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize("biased", [True, False])
def test_biases_by_loops(layout, group, biased):
    model = two(group, biased)
    means = means_of(model, {"x": 1, "z": 1})
    int8 = rounded(model, layout)
    result = bias_corrected(int8, model, means)
    exact, codes, after = arrays(model), arrays(int8), arrays(result)
    for before, node, tensor in zip(convolutions(model), nodes(result, "Conv"), ("x", "z"), strict=True):
        weight, of = exact[before.input[1]], before.input[1]
        groups, rows = (group if tensor == "z" else 1), len(weight)
        for out in range(rows):
            moved = 0.0
            for channel in range(weight.shape[1]):
                mean = means[tensor][out // (rows // groups) * weight.shape[1] + channel]
                coded = codes[f"{of}_q"][out, channel].ravel()
                for value, code in zip(weight[out, channel].ravel(), coded, strict=True):
                    moved += (float(code) * float(codes[f"{of}_scale"][out]) - float(value)) * mean
            bias = float(exact[before.input[2]][out]) if biased else 0.0
            assert after[node.input[2]][out] == pytest.approx(bias - moved, rel=1e-4, abs=1e-4)
    unchanged = set(codes) - {"b", "c"}
    assert all(np.array_equal(codes[name], after[name]) for name in unchanged)
    assert {"b", "c"}.isdisjoint(after)


@pytest.mark.parametrize("group", [1, 2])
def test_without_padding_the_mean_output_is_that_of_the_exact_weights(group):
    """Of the second convolution alone, on the very pictures; its input is not rounded."""
    model = two(group)
    kernel = arrays(model)["v"].shape[2:]
    assert kernel == (3, 3)
    int8 = quantized(model, dict.fromkeys(ranged_tensors(model), 1.0), Layout.SYMMETRIC, keep_float=["first"])
    decode = makers(int8)[nodes(int8, "Conv")[1].input[1]]
    corrected = bias_corrected(int8, model, means_of(model, {"x": 1, "z": 1}))

    def mean(of: onnx.ModelProto) -> np.ndarray:
        """With what the second reads not rounded."""
        probe = onnx.ModelProto()
        probe.CopyFrom(of)
        nodes(probe, "Conv")[1].input[0] = "z"
        return outputs_of(probe, [FEATURES], NOISE)[0].mean(axis=(0, 2, 3))

    assert decode.op_type == "DequantizeLinear"
    expected = outputs_of(model, [FEATURES], NOISE)[0].mean(axis=(0, 2, 3))
    before, after = np.abs(mean(int8) - expected), np.abs(mean(corrected) - expected)
    assert after.max() < 0.15 * before.max()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_kept_float_keeps_its_bias(layout):
    model = two()
    int8 = rounded(model, layout, keep_float=("first",))
    result = bias_corrected(int8, model, means_of(model, {"x": 1, "z": 1}))
    first, second = nodes(result, "Conv")
    assert first.input[2] == "b" and np.array_equal(arrays(result)["b"], arrays(model)["b"])
    assert second.input[2] != "c"


def matrix(add: bool = True) -> onnx.ModelProto:
    moves = [
        helper.make_node("Transpose", ["y"], ["last"], perm=[0, 2, 3, 1], name="last"),
        helper.make_node("MatMul", ["last", "matrix"], ["product"], name="product"),
        helper.make_node("Add", ["bias", "product"] if add else ["product", "product"], ["moved"], name="add"),
        helper.make_node("Transpose", ["moved"], [FEATURES], perm=[0, 3, 1, 2], name="back"),
    ]
    weight = skewed(5, 3, 1, 1)[:, :, 0, 0].T
    return tiny(conv("c", "x", "y"), *moves, w=skewed(3, 3, 1, 1), matrix=weight, bias=np.arange(5))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_matrix_has_its_correction_in_the_addition_behind_it(layout):
    model = matrix()
    means = means_of(model, {"x": 1, "last": -1})
    int8 = rounded(model, layout)
    result = bias_corrected(int8, model, means)
    codes = arrays(int8)
    add = next(node for node in result.graph.node if node.name == "add")
    found = arrays(result)[add.input[0]]
    for column in range(5):
        moved = 0.0
        for row in range(3):
            decoded = float(codes["matrix_q"][row, column]) * float(codes["matrix_scale"][column])
            moved += (decoded - float(arrays(model)["matrix"][row, column])) * means["last"][row]
        assert found[column] == pytest.approx(column - moved, rel=1e-4, abs=1e-4)
    assert add.input[1] == next(node for node in int8.graph.node if node.name == "add").input[1]


def test_a_matrix_without_a_bias_is_left_alone():
    model = matrix(add=False)
    int8 = rounded(model, Layout.MIXED)
    result = bias_corrected(int8, model, means_of(model, {"x": 1, "last": -1}))
    assert [list(node.input) for node in result.graph.node if node.name in ("product", "add")] == [
        list(node.input) for node in int8.graph.node if node.name in ("product", "add")
    ]


def test_runtimes_take_it_and_describe_more_closely():
    model = two(pads=[1, 1, 1, 1])
    expected = run_onnx(model, NOISE, 2)
    for layout in (Layout.UINT8, Layout.MIXED):
        int8 = rounded(model, layout)
        corrected = bias_corrected(int8, model, means_of(model, {"x": 1, "z": 1}))
        found = []
        for each in (int8, corrected):
            if layout is Layout.UINT8:
                found.append(run_onnx(each, NOISE, 2))
            else:
                with OpenVinoBackend(each.SerializeToString(), threads=1) as backend:
                    found.append(backend.run(NOISE))
        plain, better = (np.abs(each - expected).mean() for each in found)
        assert better < 0.6 * plain
