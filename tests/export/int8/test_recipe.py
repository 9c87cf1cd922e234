"""Recipes: their names, the model that each makes, and what it takes to make it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from graphs import activation_ranges, arrays, nodes, ranged_tensors

from cgd_deploy.errors import InputError
from cgd_deploy.pictures.images import ImageList
from cgd_deploy.runtime.enginefile import read_engine
from cgd_deploy.spec import Precision
from cgd_export.build_options import Int8Options
from cgd_export.engine_from_onnx import calibration_list, engine_from_onnx
from cgd_export.int8.calibrate import Calibration
from cgd_export.int8.quantize import Layout, convolutions, quantized
from cgd_export.int8.recipe import DEFAULT, Int8Models, Recipe
from cgd_export.metadata import get_metadata, load_onnx
from cgd_export.parity import run_onnx

LAYOUTS = list(Layout)


@pytest.fixture(scope="module")
def model(model_onnx: Path) -> onnx.ModelProto:
    return load_onnx(model_onnx)


@pytest.fixture(scope="module")
def calibration(picture_list) -> ImageList:
    return picture_list.subset(range(0, 30, 5))


@pytest.fixture(scope="module")
def models(model, calibration) -> Int8Models:
    return Int8Models(model, Layout.UINT8, calibration)


@pytest.mark.parametrize("calibrated", Calibration)
@pytest.mark.parametrize("equalized", [False, True])
@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("reduced", [False, True])
def test_what_a_recipe_tells_can_be_read(calibrated, equalized, corrected, reduced):
    recipe = Recipe(calibrated, equalized, corrected, reduced)
    assert Recipe.parse(str(recipe)) == Recipe.parse(str(recipe).replace(" + ", "+")) == recipe


def test_how_recipes_are_told():
    assert str(Recipe()) == "mean"
    assert str(Recipe(Calibration.MSE, equalized=True, bias_corrected=True)) == "mse + equalized + bias corrected"
    assert Recipe.parse("min-max+bias corrected+equalized") == Recipe(Calibration.MIN_MAX, True, True)
    assert str(Recipe(reduced_range=True)) == "mean + reduced range"


@pytest.mark.parametrize(
    "text", ["", "kl", "MEAN", "equalized", "mean +", "mean + mse", "mean + equalized + equalized"]
)
def test_other_recipes_are_refused_with_those_there_are(text):
    with pytest.raises(InputError) as caught:
        Recipe.parse(text)
    told = str(caught.value)
    assert told.startswith(f"calibration {text!r} is unknown; expected auto, mean, min-max, percentile, entropy or mse")
    assert "'+ equalized'" in told and "'+ bias corrected'" in told and told.endswith(".") and "\n" not in told


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_plain_one_is_what_ranges_and_rounding_alone_make(model, calibration, layout, monkeypatch):
    monkeypatch.setattr("cgd_export.int8.recipe.compensated", lambda int8, *_: int8)
    ranges = activation_ranges(model, ranged_tensors(model), calibration, get_metadata(model).spec)
    kept = [convolutions(model)[3].name]
    expected = quantized(model, ranges, layout, kept)
    assert Int8Models(model, layout, calibration).make(Recipe(), kept) == expected


def scales(model: onnx.ModelProto) -> list[float]:
    """Of what each convolution reads, in graph order."""
    values = arrays(model)
    return [float(values[f"{node.input[0].removesuffix('_dq')}_scale"]) for node in nodes(model, "Conv")]


def test_calibrations_differ_in_scales_alone_and_none_covers_more_than_min_max(models):
    plain, widest = models.make(Recipe()), scales(models.make(Recipe(Calibration.MIN_MAX)))
    for method in list(Calibration)[1:]:
        other = models.make(Recipe(method))
        assert scales(other) != scales(plain)
        assert all(found <= most * 1.001 for found, most in zip(scales(other), widest, strict=True))
        for before, after in zip(convolutions(plain), convolutions(other), strict=True):
            weights = (
                arrays(each)[f"{node.input[1].removesuffix('_dq')}_q"]
                for each, node in ((plain, before), (other, after))
            )
            assert np.array_equal(*weights)


def test_unsigned_codes_are_searched_with_twice_as_many(model, calibration):
    recipe = Recipe(Calibration.MSE)
    signed, unsigned = (
        Int8Models(model, each, calibration).ranges(recipe) for each in (Layout.SYMMETRIC, Layout.UINT8)
    )
    assert all(signed[name] <= unsigned[name] for name in signed)
    assert any(signed[name] < unsigned[name] for name in signed)


@pytest.mark.parametrize(
    ("layout", "text"),
    [
        (Layout.SYMMETRIC, "entropy + equalized + bias corrected"),
        (Layout.MIXED, "mse + equalized"),
        (Layout.UINT8, "mean + bias corrected"),
    ],
)
def test_every_layout_takes_every_part(model, calibration, pixels, layout, text):
    result = Int8Models(model, layout, calibration).make(Recipe.parse(text), [convolutions(model)[3].name])
    onnx.checker.check_model(result, full_check=True)
    assert get_metadata(result).precision is Precision.INT8
    assert (run_onnx(result, pixels[:8], 8) * run_onnx(model, pixels[:8], 8)).sum(axis=1).min() > 0.95


def test_biases_are_corrected_for_the_weights_as_they_were_equalized(model, models):
    both = Recipe(equalized=True, bias_corrected=True)
    uncorrected, corrected = models.make(replace(both, bias_corrected=False)), models.make(both)
    for before, after in zip(nodes(uncorrected, "Conv"), nodes(corrected, "Conv"), strict=True):
        moved = arrays(corrected)[after.input[2]] - arrays(uncorrected)[before.input[2]]
        assert np.abs(moved).max() > 0
        assert after.input[:2] == before.input[:2]


def test_pictures_are_read_twice_for_a_model_and_not_at_all_before(model, calibration):
    seen: list[int] = []
    models = Int8Models(model, Layout.MIXED, calibration, seen.append)
    passes = []
    for text in ("mean", "mean", "min-max", "mse", "entropy + bias corrected", "mse + equalized", "mean + equalized"):
        models.make(Recipe.parse(text))
        passes.append(sum(seen) // len(calibration))
    assert passes == [1, 1, 1, 2, 2, 4, 4]


def test_a_method_is_used_as_it_is_without_limits_and_told(cli, model_onnx, tmp_path):
    found = {}
    for name in ("auto", "mean", "mse"):
        path = tmp_path / f"{name}.cgd"
        options = ["--int8", "--backend", "onnxruntime", "--calibration", name, "-o", path]
        assert cli("build-engine", model_onnx, *options)[0] == 0
        found[name] = read_engine(path).manifest
    assert [each.source["calibration"] for each in found.values()] == [str(DEFAULT), "mean", "mse"]
    assert len({str(each.sha256) for each in found.values()}) == 3
    assert all(each.retrieval is None for each in found.values())


def test_an_unknown_method_is_refused_before_anything_is_read(cli, tmp_path):
    status, _, err = cli("build-engine", tmp_path / "none.onnx", "--int8", "--calibration", "kl")
    assert status == 2 and "calibration 'kl' is unknown" in err and err.count("\n") == 1


def test_recipes_are_for_int8_and_distillation_takes_methods_alone(model_onnx, calibration, tmp_path):
    listed = calibration_list(model_onnx, None)

    def refused(precision: Precision, **options: Any) -> str:
        with pytest.raises(InputError) as caught:
            int8 = Int8Options(**options)
            engine_from_onnx(model_onnx, tmp_path / "e.cgd", precision, calibration=listed, int8=int8)
        assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())
        return str(caught.value)

    assert "pass --int8, or no --calibration" in refused(Precision.FP32, recipe=Recipe(Calibration.MSE))
    assert "pass --int8, or no --distill" in refused(Precision.FP32, distill=calibration)
    recipe = Recipe(Calibration.MSE, bias_corrected=True)
    assert "--calibration mse, or no --distill" in refused(Precision.INT8, recipe=recipe, distill=calibration)
