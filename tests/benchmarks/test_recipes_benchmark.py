"""benchmarks/recipes.py: its recipes, its table, and once everything on tiny pictures."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conftest import script

from cgd_deploy.errors import InputError
from cgd_train.config import TrainConfig


@pytest.fixture(scope="module")
def recipes() -> ModuleType:
    return script("recipes")


def test_every_built_in_recipe_is_one_that_trains(recipes: ModuleType) -> None:
    configs = {name: recipes._changed(TrainConfig(), name, changes) for name, changes in recipes.BUILT_IN.items()}
    assert configs["default"] == TrainConfig()
    different = recipes.different(configs)
    assert "paper" in different and "loss-contrastive" in different
    assert len({str(configs[name]) for name in different}) == len(different)
    assert "loss-batch-hard" not in different, "it is the default's"


def test_recipes_are_chosen_by_name_or_made(recipes: ModuleType) -> None:
    found = recipes.chosen([["random-heads"], ["mine", "lr=1e-5", "warm_up=2"]])
    assert found == {"random-heads": {"head_init": "random"}, "mine": {"lr": 1e-5, "warm_up": 2}}
    assert recipes.chosen([]) == recipes.BUILT_IN


@pytest.mark.parametrize(
    "asked, told",
    (
        ([["papers"]], "there is no recipe papers; the closest known ones are paper"),
        ([["paper", "lr=1"]], "there is already a recipe paper"),
        ([["mine", "lr=1"], ["mine", "lr=2"]], "there is already a recipe mine"),
        ([["mine", "speed=1"]], "'speed=1' changes no field of a recipe"),
    ),
)
def test_a_recipe_that_is_none_is_refused(recipes: ModuleType, asked: list[list[str]], told: str) -> None:
    with pytest.raises(InputError, match=told):
        recipes.chosen(asked)


def entry(name: str, seed: int, recall: float, failed: bool = False) -> dict[str, Any]:
    line = {"epoch": 3, "recall_at_1": recall, "map_at_r": 0.1, "mean_cosine": 0.2, "ranking_share": None}
    best = {**line, "recall_at_1": 0.5}
    return {"name": name, "seed": seed, "failed": failed, "last": line, "best": best, "training_seconds": 120.0}


def test_the_table_has_means_over_seeds_and_tells_what_failed() -> None:
    result = {
        "changes": {"default": {}, "mine": {"lr": 0.1, "warm_up": 1}},
        "wanted": {"names": ["default", "mine"], "seeds": 2},
        "entries": [entry("default", 0, 0.4), entry("mine", 0, 0.3, failed=True), entry("default", 1, 0.5)],
    }
    _, _, first, second, _, told = script("table").recipes_table(result).splitlines()
    assert first == "| default |  | 45.0% | 40.0%, 50.0% | 50.0% | 10.0% | 0.200 |  | 2 |"
    assert second.startswith("| mine | lr=0.1, warm_up=1 | 30.0% | 30.0%, failed after epoch 3 |")
    assert told == "Not trained yet: mine (seed 1)."


def run(recipes: ModuleType, monkeypatch: Any, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["recipes.py", *map(str, arguments)])
    recipes.main()


def test_the_built_in_recipes_are_listed_without_training(recipes: ModuleType, monkeypatch: Any, capsys: Any) -> None:
    run(recipes, monkeypatch, "--list")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(recipes.BUILT_IN)
    assert "random-heads head_init=random" in lines


def test_the_command_trains_only_what_its_file_lacks(
    recipes: ModuleType, monkeypatch: Any, pictures: Path, tmp_path: Path, capsys: Any
) -> None:
    path = tmp_path / "recipes.json"
    command = ["--data", pictures, "--weights", "none", "--backbone", "mobilenet_v3_small", "--size", 32, "--dim", 12]
    command += ["--epochs", 1, "--set", "classes_per_batch=3", "--threads", 1, "--seeds", 1, "-o", path]
    command += ["--runs", tmp_path / "runs", "--recipe", "default"]
    run(recipes, monkeypatch, *command, "--recipe", "endless", "loss=contrastive", "margin=1e30")
    printed = capsys.readouterr()
    assert "warning: the loss became inf in epoch 1" in printed.err
    default, endless = json.loads(path.read_text())["entries"]
    assert (default["name"], default["failed"], default["last"]["epoch"]) == ("default", False, 1)
    assert (endless["name"], endless["failed"], endless["last"]["epoch"]) == ("endless", True, 0)
    assert default["last"]["ranking_share"] > 0 and abs(default["last"]["mean_cosine"]) < 1.001  # rounded
    assert default["best"]["recall_at_1"] >= default["last"]["recall_at_1"]
    assert "| endless | loss=contrastive, margin=1e+30 |" in printed.out and str(tmp_path) not in path.read_text()

    (tmp_path / "runs").rename(tmp_path / "lost")  # another machine
    run(recipes, monkeypatch, *command, "--recipe", "slow", "lr=1e-5")
    assert [one["name"] for one in json.loads(path.read_text())["entries"]] == ["default", "endless", "slow"]
    assert [run.name for run in (tmp_path / "runs").iterdir()] == ["slow-0"]
    for changed, told in ((["--within-training"], "another pictures"), (["--dim", 24], "dim was 12, now it is 24")):
        with pytest.raises(SystemExit):
            run(recipes, monkeypatch, *command, *changed)
        assert told in capsys.readouterr().err
