"""benchmarks/trainings.py: recipes from the command line, and the file that records finished trainings."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import trainings
from cgd_deploy.datasets.evaluation import Evaluation
from cgd_deploy.errors import InputError
from cgd_train.config import TrainConfig

RECIPE = {"lr": 0.1, "size": (32, 48)}
PICTURES = {"training": "aa", "testing": "bb"}
CHANGES = {"S": {"descriptors": "S"}}
WANTED = {"names": ["S"], "seeds": 1}


def options(*arguments: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    trainings.add_options(parser, "runs")
    return parser.parse_args(list(map(str, arguments)))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file with one training."""
    record = trainings.Record(tmp_path / "made.json", 1)
    record.begin(RECIPE, PICTURES, CHANGES, WANTED)
    record.add({"name": "S", "seed": 0, "recall": 0.5})
    record.save()
    return record.path


def test_a_file_remembers_what_is_trained(path: Path) -> None:
    record = trainings.Record(path, 1)
    record.begin(RECIPE, PICTURES, CHANGES, {"names": ["S", "M"], "seeds": 2})
    assert record.entry("S", 0) == {"name": "S", "seed": 0, "recall": 0.5}
    assert record.entry("S", 1) is None and record.entry("M", 0) is None
    record.add({"name": "S", "seed": 0, "recall": float("nan")})
    record.save()
    assert trainings.Record(path, 1).entry("S", 0) == {"name": "S", "seed": 0, "recall": None}, "NaN is not JSON"
    assert record.result["wanted"] == {"names": ["S", "M"], "seeds": 2}


@pytest.mark.parametrize(
    "recipe, pictures, changes, told",
    (
        ({**RECIPE, "lr": 0.2}, PICTURES, CHANGES, "another recipe: lr was 0.1, now it is 0.2; use the same lr"),
        (RECIPE, {**PICTURES, "testing": "cc"}, CHANGES, "another pictures: testing was 'bb', now it is 'cc'"),
        (RECIPE, PICTURES, {"S": {"descriptors": "M"}}, "trainings of S with descriptors=S, and now S means"),
        ({**RECIPE, "centred": False}, PICTURES, CHANGES, "centred was True, now it is False"),
    ),
)
def test_trainings_of_something_else_are_refused(
    path: Path, recipe: Any, pictures: Any, changes: Any, told: str
) -> None:
    with pytest.raises(InputError) as refused:
        trainings.Record(path, 1).begin(recipe, pictures, changes, WANTED)
    assert told in str(refused.value) and "another -o file" in str(refused.value)


def test_a_setting_that_is_newer_than_the_file_had_its_default(path: Path) -> None:
    trainings.Record(path, 1).begin({**RECIPE, "centred": True}, PICTURES, CHANGES, WANTED)


def test_a_file_without_trainings_may_get_another_recipe(tmp_path: Path) -> None:
    record = trainings.Record(tmp_path / "made.json", 1)
    for recipe in (RECIPE, {"lr": 0.2}):
        record.begin(recipe, PICTURES, CHANGES, WANTED)
    assert record.result["recipe"] == {"lr": 0.2}


@pytest.mark.parametrize("text", ("", "[]", '{"schema": 1}', '{"schema": 2}'))
def test_a_file_that_is_no_result_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "made.json").write_text(text)
    with pytest.raises(InputError, match="is no result of this benchmark in schema 1"):
        trainings.Record(tmp_path / "made.json", 1)


def test_fields_of_a_recipe_are_read() -> None:
    found = trainings.parsed(["lr=1e-3", "epochs=3", "centred=false", "margin=none", "no_downsample=none"])
    expected = {"lr": 0.001, "epochs": 3, "centred": False, "margin": None}
    assert found == {**expected, "no_downsample": "none"}, "a stage's name is a text"


@pytest.mark.parametrize("assignment", ("lrr=1", "lr", "seed=1", "out=x", "weights=none"))
def test_what_is_no_field_of_a_recipe_is_refused(assignment: str) -> None:
    with pytest.raises(InputError, match="changes no field of a recipe"):
        trainings.parsed([assignment])


def test_options_change_the_defaults() -> None:
    given = options("--data", "x", "--weights", "none", "--size", 64, "--amp", "off", "--set", "lr=1e-3")
    assert trainings.base_config(given, {}) == replace(TrainConfig(), size=64, lr=1e-3)
    with pytest.raises(InputError, match="--data or --weights is missing"):
        trainings.base_config(options("--data", "x"), {})
    with pytest.raises(InputError, match="loss='nearest' is unknown"):
        trainings.base_config(options("--data", "x", "--weights", "none", "--set", "loss=nearest"), {})


@pytest.mark.parametrize("sets, amp", ((["avx2"], "off"), (["avx2", "avx512_bf16"], "bf16"), (["amx_bf16"], "bf16")))
def test_arithmetic_is_that_of_the_file_or_else_fast_here(monkeypatch: Any, sets: list[str], amp: str) -> None:
    monkeypatch.setattr(trainings, "instruction_sets", lambda: sets)
    given = options("--data", "x", "--weights", "none", "--device", "cpu")
    assert trainings.base_config(given, {}).amp == trainings.amp_here(torch.device("cpu")) == amp
    assert trainings.base_config(given, {"amp": "fp16"}).amp == "fp16"


def test_settings_hold_what_changes_the_numbers_and_no_paths(picture_list: Any, tmp_path: Path) -> None:
    training, testing = picture_list.split_classes()
    config = TrainConfig(out=tmp_path / "a", seed=0, patience=3, size=(32, 48))
    found = trainings.settings(config, training, Evaluation(testing))
    assert found == trainings.settings(replace(config, out=tmp_path / "b", seed=1), training, Evaluation(testing))
    assert found != trainings.settings(replace(config, patience=4), training, Evaluation(testing))
    assert found["size"] == [32, 48] and str(tmp_path) not in json.dumps(found)
