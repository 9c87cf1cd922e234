"""The first convolution's rounding by plain loops: moments of patches, codes, and what must stay as it is."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from graphs import arrays, conv, nodes, outputs_of, relu, tiny
from onnx import helper

from cgd_deploy.pictures.images import ImageList
from cgd_deploy.pictures.preprocess import batches
from cgd_export.int8.compensate import compensated, compensating_codes, first_window
from cgd_export.int8.patches import STEP, Patches, Window
from cgd_export.int8.quantize import Layout, convolutions, quantized
from cgd_export.int8.recipe import DEFAULT, Int8Models, Recipe
from cgd_export.metadata import FEATURES, get_metadata, load_onnx


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(5).normal(size=shape)


def correlated(count: int) -> np.ndarray:
    """The covariance of values that are almost equal to their neighbours."""
    place = np.arange(count)
    return np.exp(-np.abs(place[:, None] - place) / (2 * count))


@pytest.mark.parametrize("batches_of", [1, 3])
def test_moments_by_loops(batches_of):
    window = Window("x", kernel=(3, 2), strides=(2, 1), pads=(1, 0, 2, 1))
    value = normal(3, 2, 9, 7).astype(np.float32)
    patches = Patches(window)
    for start in range(0, len(value), batches_of):
        patches.add(value[start : start + batches_of])
    found = []
    for picture in value:
        for top in range(-1, 9 + 2 - 3 + 1, 2 * STEP):
            for left in range(0, 7 + 1 - 2 + 1, STEP):
                vector = []
                for channel in range(2):
                    for row in range(top, top + 3):
                        for column in range(left, left + 2):
                            inside = 0 <= row < 9 and 0 <= column < 7
                            vector.append(float(picture[channel, row, column]) if inside else 0.0)
                found.append(vector)
    rows = np.array(found)
    np.testing.assert_allclose(patches.second_moment, rows.T @ rows / len(rows), atol=1e-5)
    np.testing.assert_allclose(patches.covariance, np.cov(rows.T, bias=True), atol=1e-5)


def test_codes_by_loops():
    """Each column is rounded; then the best later columns make up for all errors so far, by a linear system."""
    weight, scale, moment = normal(4, 6), np.full(4, 0.3), correlated(6)
    damped = moment + 1e-3 * np.diag(moment).mean() * np.eye(6)
    for row, codes in zip(weight, compensating_codes(weight, scale, moment, 127), strict=True):
        left = row.copy()
        for column in range(6):
            code = np.round(left[column] / 0.3)
            assert codes[column] == code
            left[column] = code * 0.3
            done, later = slice(None, column + 1), slice(column + 1, None)
            left[later] = row[later] - np.linalg.solve(damped[later, later], damped[later, done] @ (left - row)[done])


def test_errors_make_up_for_each_other():
    weight, moment = normal(8, 49), correlated(49)
    scale = np.abs(weight).max(axis=1) / 15
    nearest = np.round(weight / scale[:, None])

    def loss(codes: np.ndarray) -> float:
        error = codes * scale[:, None] - weight
        return float(np.einsum("ok,kl,ol->", error, moment, error))

    assert loss(compensating_codes(weight, scale, moment, 127)) < 0.1 * loss(nearest)


@pytest.mark.parametrize("moment", [np.eye(5), np.zeros((5, 5)), np.full((5, 5), np.nan), np.full((5, 5), np.inf)])
def test_without_correlation_codes_are_the_nearest(moment):
    weight = normal(3, 5)
    codes = compensating_codes(weight, np.full(3, 0.1), moment, 12)
    assert codes.dtype == np.int8
    assert np.array_equal(codes, np.clip(np.round(weight / 0.1), -12, 12))


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({}, Window("x", (2, 3), (1, 1), (0, 0, 0, 0))),
        ({"strides": [2, 1], "pads": [1, 0, 2, 1]}, Window("x", (2, 3), (2, 1), (1, 0, 2, 1))),
        ({"dilations": [2, 2]}, None),
        ({"group": 3}, None),
    ],
)
def test_what_the_first_convolution_reads(attributes, expected):
    weight = normal(3, 1 if "group" in attributes else 3, 2, 3)
    assert first_window(tiny(conv("c", "x", FEATURES, **attributes), w=weight)) == expected


def test_a_product_of_channels_has_no_window():
    last = helper.make_node("Transpose", ["x"], ["last"], perm=[0, 2, 3, 1], name="last")
    product = helper.make_node("MatMul", ["last", "w"], ["moved"], name="product")
    back = helper.make_node("Transpose", ["moved"], ["y"], perm=[0, 3, 1, 2], name="back")
    model = tiny(last, product, back, conv("later", "y", FEATURES, "v"), w=np.eye(3), v=np.ones((3, 3, 1, 1)))
    assert first_window(model) is None


def two() -> onnx.ModelProto:
    weights = {"w": normal(4, 3, 3, 3), "v": normal(5, 4, 3, 3)}
    return tiny(conv("first", "x", "y", "w"), relu("y", "z"), conv("second", "z", FEATURES, "v"), **weights)


@pytest.mark.parametrize("layout", Layout)
@pytest.mark.parametrize("largest", [127, 64])
def test_only_the_first_codes_change(layout, largest):
    model = two()
    int8 = quantized(model, {"x": 255.0, "y": 9.0, "z": 9.0, FEATURES: 9.0}, layout, weight_range=largest)
    before, after = arrays(int8), arrays(compensated(int8, model, correlated(27), largest))
    assert [name for name in before if not np.array_equal(before[name], after[name])] == ["w_q"]
    assert np.abs(after["w_q"].astype(int)).max() <= largest


def test_a_float_convolution_keeps_its_weights():
    model = two()
    int8 = quantized(model, {"x": 255.0, "y": 9.0, "z": 9.0}, Layout.MIXED, ["first"])
    assert compensated(int8, model, correlated(27), 127) == int8


@pytest.mark.parametrize("recipe", [Recipe(), DEFAULT], ids=str)
def test_the_first_convolution_of_a_model_errs_less(model_onnx, picture_list: ImageList, recipe, monkeypatch):
    """Of its output alone, on pictures: less than a third of the squared error of the nearest codes."""
    model = load_onnx(model_onnx)
    [(_, pixels)] = batches(picture_list, get_metadata(model).spec, len(picture_list))
    output = convolutions(model)[0].output[0]
    [exact] = outputs_of(model, [output], pixels)

    def error() -> float:
        int8 = Int8Models(model, Layout.MIXED, picture_list).make(recipe)
        nodes(int8, "Conv")[0].input[0] = convolutions(model)[0].input[0]  # the pixels are not rounded
        return float(np.square(outputs_of(int8, [output], pixels)[0] - exact).mean())

    compensating = error()
    monkeypatch.setattr("cgd_export.int8.recipe.compensated", lambda int8, *_: int8)
    assert compensating < error() / 3
