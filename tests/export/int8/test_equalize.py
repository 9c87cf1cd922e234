"""Equalization: the same function to the last bit, its factors by loops, and what it must not touch."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import NOISE, WEIGHT, arrays, conv, outputs_of, ranged_tensors, relu, tiny
from onnx import helper

from cgd_export.int8.equalize import LEAST, equalized, links
from cgd_export.int8.quantize import Layout, convolutions, quantized
from cgd_export.metadata import FEATURES, get_metadata, load_onnx, save_onnx
from cgd_export.parity import run_onnx

RANDOM = np.random.default_rng(5)
SPREAD = 10.0 ** np.array([0, 1, -1, 2])


def node(operator: str, x: str, y: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(operator, [x], [y], name=f"{y}_node", **attributes)


def pool(x: str, y: str) -> onnx.NodeProto:
    return node("MaxPool", x, y, kernel_shape=[3, 3], pads=[1, 1, 1, 1])


def uneven(rows: int, columns: int, kernel: int = 1) -> np.ndarray:
    """A weight whose rows, the channels that it writes, are of very different size."""
    return RANDOM.normal(size=(rows, columns, kernel, kernel)) * np.resize(SPREAD, rows).reshape(-1, 1, 1, 1)


def names(model: onnx.ModelProto) -> list[tuple[str, ...]]:
    return [(link.writer.name, *(reader.name for reader in link.readers)) for link in links(model)]


def largest_of(model: onnx.ModelProto, pixels: np.ndarray = NOISE) -> dict[str, np.ndarray]:
    tensors = list(dict.fromkeys(each.input[0] for each in convolutions(model)))
    return {
        name: np.abs(value).max(axis=(0, 2, 3))
        for name, value in zip(tensors, outputs_of(model, tensors, pixels), strict=True)
    }


def chain(*between: onnx.NodeProto, **weights: np.ndarray) -> onnx.ModelProto:
    """Two convolutions a and b with the nodes from y to z between them."""
    given = {"w": uneven(4, 3), "bias": RANDOM.normal(size=4) * SPREAD, "v": uneven(3, 4, 3)} | weights
    return tiny(conv("a", "x", "y", "w", "bias"), *between, conv("b", "z", FEATURES, "v"), **given)


LINKED = {
    "nothing": [node("Relu", "y", "z")],
    "maxpool": [relu("y", "m"), pool("m", "z")],
    "pool first": [pool("y", "m"), relu("m", "z")],
}


@pytest.mark.parametrize("between", LINKED)
def test_a_link_goes_through_what_keeps_a_factor(between):
    assert names(chain(*LINKED[between])) == [("a", "b")]


def test_factors_by_loops():
    model = chain(relu("y", "z"))
    largest = largest_of(model)
    after = arrays(equalized(model, largest))
    before, r = arrays(model), largest["z"]
    importance = [r[i] * max(abs(float(v)) for v in before["v"][:, i].ravel()) for i in range(4)]
    for i in range(4):
        w = max(abs(float(v)) for v in before["v"][:, i].ravel())
        s = 2.0 ** round(math.log2(math.sqrt(max(r[i], LEAST * max(importance) / w) / w)))
        assert (after["w"][i] == before["w"][i] / np.float32(s)).all()
        assert after["bias"][i] == before["bias"][i] / np.float32(s)
        assert (after["v"][:, i] == before["v"][:, i] * np.float32(s)).all()
        assert s != 1
    assert importance[0] > LEAST * max(importance)  # so that the formula itself was tested too


def test_ranges_become_more_even_and_int8_better():
    model = chain(relu("y", "z"), v=RANDOM.normal(size=(3, 4, 3, 3)) / SPREAD.reshape(1, 4, 1, 1))
    even = equalized(model, largest_of(model))

    def spread(of: onnx.ModelProto) -> float:
        found = largest_of(of)["z"]
        return found.max() / found.min()

    def lost(of: onnx.ModelProto) -> float:
        tensors = ranged_tensors(of)
        ranges = {n: float(np.abs(v).max()) for n, v in zip(tensors, outputs_of(of, tensors, NOISE), strict=True)}
        int8 = quantized(of, ranges, Layout.UINT8)
        return np.abs(outputs_of(int8, [FEATURES], NOISE)[0] - outputs_of(of, [FEATURES], NOISE)[0]).mean()

    assert spread(model) > 50 and spread(even) < 10
    assert lost(even) < 0.2 * lost(model)


def test_descriptors_are_the_same_to_the_last_bit(model_onnx: Path, pixels, tmp_path):
    model = load_onnx(model_onnx)
    before = model.SerializeToString()
    largest = largest_of(model, pixels[:4])
    even = equalized(model, largest)
    assert len(links(model)) == 8  # the first convolution of each block
    assert model.SerializeToString() == before != even.SerializeToString()
    assert np.array_equal(run_onnx(even, pixels, 8), run_onnx(model, pixels, 8))
    save_onnx(even, tmp_path / "even.onnx")
    assert get_metadata(even) == get_metadata(model)
    quantized(even, dict.fromkeys(ranged_tensors(even), 4.0), Layout.MIXED)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("writer_groups", [1, 4])
def test_grouped_and_depthwise_convolutions_stay_the_same_function(groups, writer_groups):
    """Four channels between them; the second reads one, two or all of them with each row."""
    model = tiny(
        conv("first", "x", "four", "w"),
        conv("a", "four", "y", "depth" if writer_groups > 1 else "full", "bias", group=writer_groups),
        relu("y", "z"),
        conv("b", "z", FEATURES, "v", group=groups, pads=[1, 1, 1, 1]),
        w=uneven(4, 3),
        depth=uneven(4, 1),
        full=uneven(4, 4),
        bias=RANDOM.normal(size=4),
        v=uneven(8, 4 // groups, 3),
    )
    even = equalized(model, largest_of(model))
    assert names(model) == [("first", "a"), ("a", "b")]
    assert not np.array_equal(arrays(even)["v"], arrays(model)["v"])
    expected, found = (outputs_of(each, [FEATURES], NOISE)[0] for each in (model, even))
    assert np.abs(found - expected).max() <= 1e-6 * np.abs(expected).max()


def test_a_channel_read_by_two_convolutions_has_one_factor():
    model = tiny(
        conv("a", "x", "y"),
        relu("y", "z"),
        pool("y", "m"),
        conv("b", "z", "one", "v"),
        conv("c", "m", "other", "u"),
        helper.make_node("Add", ["one", "other"], [FEATURES], name="sum"),
        w=uneven(4, 3),
        v=uneven(3, 4),
        u=uneven(3, 4),
    )
    assert names(model) == [("a", "b", "c")]
    even = equalized(model, largest_of(model))
    ratios = [(arrays(even)[name] / arrays(model)[name])[:, :, 0, 0] for name in "vu"]
    assert np.array_equal(*ratios) and (ratios[0] != 1).any()
    assert np.array_equal(*(outputs_of(each, [FEATURES], NOISE)[0] for each in (model, even)))


def left_alone() -> dict[str, onnx.ModelProto]:
    gate, add = helper.make_node("Mul", ["y", "s"], ["z"], name="mul"), helper.make_node
    shared = {"w": uneven(3, 3), "v": WEIGHT}
    declared = chain(relu("y", "z"))
    declared.graph.output.append(helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, None))
    behind = tiny(conv("a", "x", FEATURES), conv("b", FEATURES, "more", "v"), **shared)
    behind.graph.node[-1].input[0] = "more"
    return {
        "sigmoid": chain(node("Sigmoid", "y", "s"), gate),
        "clip": chain(add("Clip", ["y", "low", "high"], ["z"], name="clip"), low=np.array(0.0), high=np.array(6.0)),
        "two readers, one an addition": tiny(
            conv("a", "x", "y"),
            relu("y", "z"),
            conv("b", "z", "branch", "v"),
            add("Add", ["branch", "z"], [FEATURES], name="sum"),
            **shared,
        ),
        "one weight for both": tiny(conv("a", "x", "y"), relu("y", "z"), conv("b", "z", FEATURES), w=WEIGHT),
        "one bias for both": tiny(
            conv("a", "x", "y", "w", "bias"),
            relu("y", "z"),
            conv("b", "z", FEATURES, "v", "bias"),
            **shared,
            bias=np.ones(3),
        ),
        "an output of the model": declared,
        "the head": behind,
    }


@pytest.mark.parametrize("reason", left_alone())
def test_what_else_reads_a_channel_leaves_it_alone(reason):
    model = left_alone()[reason]
    assert names(model) == []
    assert equalized(model, largest_of(model)) == model


def test_a_channel_scaled_on_purpose_is_scaled_back():
    plain = {
        "w": RANDOM.normal(size=(4, 3, 1, 1)),
        "bias": RANDOM.normal(size=4),
        "v": RANDOM.normal(size=(3, 4, 3, 3)),
    }
    hard = {name: value.copy() for name, value in plain.items()}
    hard["w"][1] *= 128
    hard["bias"][1] *= 128
    hard["v"][:, 1] /= 128
    even, evened = (
        arrays(equalized(model, largest_of(model)))
        for model in (chain(relu("y", "z"), **plain), chain(relu("y", "z"), **hard))
    )
    for name in plain:
        assert np.array_equal(even[name], evened[name])


@pytest.mark.parametrize("dead", ["written", "read", "both", "all"])
def test_dead_channels_stay_finite(dead):
    w, v = uneven(4, 3), uneven(3, 4, 3)
    if dead in ("written", "both"):
        w[1] = 0
    if dead in ("read", "both"):
        v[:, 1] = 0
    if dead == "all":
        w[:] = 0
    model = chain(relu("y", "z"), w=w, v=v, bias=np.zeros(4))
    even = equalized(model, largest_of(model))
    assert all(np.isfinite(value).all() for value in arrays(even).values())
    assert np.array_equal(*(outputs_of(each, [FEATURES], NOISE)[0] for each in (model, even)))
    if dead in ("read", "both"):
        assert np.array_equal(arrays(even)["w"][1], arrays(model)["w"][1])
