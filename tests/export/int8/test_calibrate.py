"""What a model's tensors are on calibration pictures, by plain loops over pictures and values."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from graphs import activation_ranges, conv, outputs_of, relu, tiny

from cgd_deploy.pictures.images import ImageList
from cgd_deploy.pictures.preprocess import preprocess
from cgd_deploy.spec import ModelSpec
from cgd_export.int8 import calibrate as module
from cgd_export.int8.calibrate import Activations, Calibration
from cgd_export.int8.histogram import BINS, entropy_bins, mse_bins, percentile_bins
from cgd_export.metadata import FEATURES, get_metadata

RANGED = {"x": 127, "z": 255, "dead": 255}
CHANNELS = {"x": 1, "last": -1}


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    """Pixels, a convolution, and what a ReLU leaves of it; its channels once more as the last axis."""
    weight = np.random.default_rng(0).normal(size=(4, 3, 1, 1))
    return tiny(
        conv("c", "x", "y"),
        relu("y", "z"),
        onnx.helper.make_node("Transpose", ["z"], ["last"], perm=[0, 2, 3, 1], name="last"),
        onnx.helper.make_node("Mul", ["z", "zero"], ["dead"], name="dead"),
        onnx.helper.make_node("Add", ["z", "dead"], [FEATURES], name="sum"),
        w=weight,
        zero=np.array(0.0),
    )


@pytest.fixture(scope="module")
def spec(model) -> ModelSpec:
    return get_metadata(model).spec


@pytest.fixture(scope="module")
def calibration(picture_list) -> ImageList:
    return picture_list.subset(range(0, 30, 5))


@pytest.fixture(scope="module")
def measured(model, calibration, spec) -> Activations:
    return Activations(model, RANGED, CHANNELS, calibration, spec)


@pytest.fixture(scope="module")
def values(model, calibration, spec) -> dict[str, list[np.ndarray]]:
    """tensor -> its values for each picture"""
    names = [*RANGED, "last"]
    found = [outputs_of(model, names, preprocess(path, spec)[None]) for path in calibration.paths]
    return {name: [row[i][0] for row in found] for i, name in enumerate(names)}


def test_means_and_largest_by_loops(measured, values):
    tops = {name: [float(np.abs(value).max()) for value in values[name]] for name in RANGED}
    means = {name: sum(top) / len(top) for name, top in tops.items()}
    assert measured.ranges(Calibration.MEAN) == pytest.approx(means, rel=1e-6)
    assert measured.ranges(Calibration.MIN_MAX) == pytest.approx({name: max(tops[name]) for name in tops}, rel=1e-6)
    assert means["z"] < 0.99 * max(tops["z"])


def test_the_mean_is_what_activation_ranges_gives(model, measured, calibration, spec):
    assert activation_ranges(model, list(RANGED), calibration, spec) == measured.ranges(Calibration.MEAN)


@pytest.mark.parametrize(
    ("method", "bins"),
    [
        (Calibration.PERCENTILE, lambda counts, high: percentile_bins(counts)),
        (Calibration.ENTROPY, entropy_bins),
        (Calibration.MSE, mse_bins),
    ],
)
def test_the_others_come_from_a_histogram_of_all_magnitudes(measured, values, method, bins):
    found, largest = measured.ranges(method), measured.ranges(Calibration.MIN_MAX)
    for name in ("x", "z"):
        everything = np.abs(np.concatenate([value.ravel() for value in values[name]])) / largest[name]
        counts = np.bincount(np.minimum((everything * BINS).astype(int), BINS - 1), minlength=BINS)
        assert found[name] == pytest.approx(bins(counts, RANGED[name]) / BINS * largest[name], rel=0.01)
        assert 0 < found[name] <= largest[name]


@pytest.mark.parametrize("method", Calibration)
def test_what_is_zero_throughout_has_no_range(measured, method):
    assert measured.ranges(method)["dead"] == 0


@pytest.mark.parametrize("bad", [np.inf, np.nan, 1e-39])
def test_what_is_not_finite_or_too_small_for_a_histogram_has_its_largest_magnitude(calibration, spec, bad):
    model = tiny(
        conv("c", "x", "y"),
        onnx.helper.make_node("Mul", ["y", "bad"], [FEATURES], name="bad"),
        w=np.ones((1, 3, 1, 1)) / 765,
        bad=np.array(bad),
    )
    measured = Activations(model, {FEATURES: 127}, {"x": 1}, calibration, spec)
    for method in Calibration:
        assert measured.ranges(method)[FEATURES] == pytest.approx(
            measured.ranges(Calibration.MIN_MAX)[FEATURES], nan_ok=True
        )


def test_channels_by_loops(measured, values):
    for name, axis in CHANNELS.items():
        rows = [np.moveaxis(value, 0 if axis == 1 else -1, 0) for value in values[name]]
        for channel in range(len(rows[0])):
            numbers = [float(number) for row in rows for number in row[channel].ravel()]
            assert measured.means[name][channel] == pytest.approx(sum(numbers) / len(numbers), rel=1e-4)
            assert measured.largest[name][channel] == pytest.approx(max(map(abs, numbers)), rel=1e-6)
    assert len(measured.means["last"]) == 4


def test_a_pass_is_made_when_it_is_needed_and_once(model, calibration, spec, monkeypatch):
    seen: list[int] = []
    measured = Activations(model, RANGED, CHANNELS, calibration, spec, seen.append)
    assert seen == []
    for _ in range(2):
        assert measured.ranges(Calibration.MEAN) and measured.ranges(Calibration.MIN_MAX)
        assert sum(seen) == len(calibration)
    for _ in range(2):
        assert measured.ranges(Calibration.MSE) and measured.ranges(Calibration.ENTROPY)
        assert len(measured.means) == len(measured.largest) == 2
        assert sum(seen) == 2 * len(calibration)


@pytest.mark.parametrize("size", [1, 100])
def test_nothing_depends_on_batches(model, measured, calibration, spec, monkeypatch, size):
    monkeypatch.setattr(module, "BATCH", size)
    again = Activations(model, RANGED, CHANNELS, calibration, spec)
    for method in Calibration:
        assert again.ranges(method) == pytest.approx(measured.ranges(method), rel=1e-5)
    for name in CHANNELS:
        assert again.means[name] == pytest.approx(measured.means[name], rel=1e-5)
        assert again.largest[name] == pytest.approx(measured.largest[name], rel=1e-6)
