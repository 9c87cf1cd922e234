"""benchmarks/ablation.py: its models, its table and chart, and once everything on tiny pictures."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from conftest import FAKE_SPEC, script, write_fake_engine

import claim
from cgd_deploy.errors import InputError
from cgd_deploy.pictures.images import ImageList
from cgd_deploy.runtime.enginefile import read_engine

pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def ablation() -> ModuleType:
    return script("ablation")


def compared(recalls: list[float], over_single: list[float] | None, over_ensemble: list[float] | None) -> dict:
    return {
        "recall_at_1": recalls,
        "each": [recalls[1], recalls[2]],
        "map_at_r": 0.25,
        "mean_cosine": 0.1234,
        "over_single": over_single,
        "over_ensemble": over_ensemble,
    }


def timed(parameters: int, latency: float) -> dict:
    return {"parameters": parameters, "milliseconds": {batch: {"p50": latency} for batch in ("1", "8")}}


RESULT: dict[str, Any] = {
    "recipe": {"dim": 12},
    "wanted": {"names": ["S", "SG", "S+M+G"], "seeds": 1},
    "entries": [{"name": name, "seed": 0} for name in ("S", "SG", "S+M+G")],
    "compared": {
        "single": "S",
        "combination": "SG",
        "models": {
            "SG": compared([40.0, 38.0, 42.0], [2.0, 1.0, 3.0], [-1.0, -2.0, 0.5]),
            "S": compared([38.0, 36.0, 40.0], None, [-3.0, -4.0, -2.0]),
            "S+M+G": compared([41.0, 39.0, 43.0], [3.0, 2.0, 4.0], None),
        },
    },
    "latency": {"models": {"S": timed(100, 4.0), "SG": timed(120, 5.0), "S+M+G": timed(300, 12.0)}},
}


def test_the_ensemble_joins_unit_vectors(ablation: ModuleType) -> None:
    parts = [np.array([[1, 0], [0, 1]], np.float32), np.array([[0, 1], [1, 0]], np.float32)]
    joined = ablation.ensemble(parts)
    assert joined == pytest.approx(np.array([[1, 0, 0, 1], [0, 1, 1, 0]]) / 2**0.5)


def test_all_models_and_the_ensemble_together_have_as_many_values(ablation: ModuleType) -> None:
    changes = ablation.changes_of(1536, claim.MODELS)
    assert [change["dim"] for change in changes.values()] == [1536] * 6 + [512] * 3
    assert [change["descriptors"] for change in changes.values()] == ["S", "M", "G", "SG", "GM", "SMG", "S", "M", "G"]
    assert list(ablation.changes_of(8, ["SG"])) == ["SG"]
    with pytest.raises(InputError, match=r"dim=8 cannot be shared among the models of S\+M\+G; pass a multiple of 6"):
        ablation.changes_of(8, claim.MODELS)


def test_a_training_watches_two_pictures_of_some_classes(ablation: ModuleType, monkeypatch: Any) -> None:
    classes = [str(number // 5) for number in range(20)] + ["alone"]
    images = ImageList(Path(), tuple(map(str, range(21))), tuple(classes))
    assert ablation.watched(images).names == ("0", "2", "5", "7", "10", "12", "15", "17")
    monkeypatch.setattr(ablation, "WATCHED", 2)
    assert ablation.watched(images).names == ("0", "2", "10", "12")


def test_the_table_has_intervals_differences_costs_and_the_answer() -> None:
    head, _, first, second, third, _, told = script("table").ablation_table(RESULT).splitlines()
    assert head.endswith("| parameters, x S | batch 1, x S | batch 8, x S |")
    assert first.startswith("| S | 12 | 38.0% (36.0 to 40.0) | 36.0, 40.0 | 25.0% | 0.123 |  | -3.0 (-4.0 to -2.0) |")
    assert second.endswith("| +2.0 (+1.0 to +3.0) | -1.0 (-2.0 to +0.5) | 1.20 | 1.25 | 1.25 |")
    assert third.startswith("| S+M+G | 3 x 4 |") and third.endswith("|  | 3.00 | 3.00 | 3.00 |")
    assert told == claim.answer(RESULT)


def test_the_table_of_a_part_names_what_is_missing_and_leaves_costs_empty() -> None:
    part = {**RESULT, "latency": None, "wanted": {"names": ["S", "SG"], "seeds": 2}}
    text = script("table").ablation_table(part)
    assert "| -3.0 (-4.0 to -2.0) |  |  |  |\n" in text
    assert "\nNot trained yet: S (seed 1), SG (seed 1).\n" in text
    nothing = {**part, "compared": claim.compared([]), "entries": []}
    assert "There is no answer yet" in script("table").ablation_table(nothing)


def test_the_chart_names_every_model_and_is_the_same_each_time(ablation: ModuleType, tmp_path: Path) -> None:
    for name in ("a.svg", "b.svg"):
        ablation.chart(RESULT, tmp_path / name)
    text = (tmp_path / "a.svg").read_text()
    assert ElementTree.fromstring(text).tag.endswith("svg")
    assert all(f"<!-- {name} -->" in text for name in RESULT["compared"]["models"])
    assert text == (tmp_path / "b.svg").read_text()
    ablation.chart({**RESULT, "latency": None, "compared": claim.compared([])}, tmp_path / "empty.svg")


def test_engines_to_be_timed_are_of_the_recorded_recipe(ablation: ModuleType, tmp_path: Path) -> None:
    recipe = {"backbone": "resnet18", "size": [32, 32], "dim": 24, "weights": "0123", "of-a-later-release": 1}
    spec = ablation.spec_of(recipe, {"descriptors": "SM", "dim": 8})
    assert (spec.backbone, spec.descriptors, spec.dim, spec.input_size) == ("resnet18", "SM", 8, (32, 32))
    manifest, parameters = ablation.untrained_engine(spec, tmp_path)
    assert parameters == 11176512 + 2 * 512 * 4
    assert read_engine(tmp_path / "model.cgd").manifest.spec.dim == manifest.spec.dim == 8


class Command:
    """The whole command on tiny pictures, with engines without a model."""

    def __init__(self, ablation: ModuleType, monkeypatch: Any, pictures: Path, folder: Path) -> None:
        self.ablation, self.monkeypatch, self.folder = ablation, monkeypatch, folder
        self.arguments = [
            "--data",
            pictures,
            "--weights",
            "none",
            "--backbone",
            "mobilenet_v3_small",
            "--size",
            32,
            "--dim",
            12,
        ]
        self.arguments += ["--epochs", 1, "--set", "classes_per_batch=3", "--threads", 1, "--seconds", 0]
        self.arguments += ["--runs", folder / "runs", "-o", folder / "ablation.json"]
        self.trained: list[str] = []
        train = ablation.run_training
        monkeypatch.setattr(ablation, "run_training", lambda config, *lists: self._trained(train, config, *lists))
        monkeypatch.setattr(ablation, "untrained_engine", _fake_engine)

    def _trained(self, train: Any, config: Any, *lists: Any) -> Any:
        self.trained.append(config.out.name)
        return train(config, *lists)

    def __call__(self, *arguments: object) -> dict[str, Any]:
        self.trained.clear()
        self.monkeypatch.setattr(sys, "argv", ["ablation.py", *map(str, [*self.arguments, *arguments])])
        self.ablation.main()
        return json.loads((self.folder / "ablation.json").read_text())


def _fake_engine(spec: Any, folder: Path) -> tuple[Any, int]:
    folder.mkdir()
    write_fake_engine(folder / "model.cgd", replace(FAKE_SPEC, dim=spec.dim))
    return read_engine(folder / "model.cgd").manifest, spec.dim


def test_the_command_trains_only_what_its_file_lacks(
    ablation: ModuleType, monkeypatch: Any, pictures: Path, tmp_path: Path, capsys: Any
) -> None:
    command = Command(ablation, monkeypatch, pictures, tmp_path)
    result = command("--descriptors", "S", "SG", "--seeds", 1, "--no-latency")
    assert command.trained == ["S-0", "SG-0"] and result["latency"] is None
    single, combined = result["entries"]
    for one in (single, combined):
        found = claim.unpacked(one["found"], one["queries"]["asked"])
        assert found.mean() == one["recall"]["1"] and one["epochs"] == 1 and one["training_seconds"] > 0
    assert str(tmp_path) not in json.dumps(result)
    assert "We found no difference" in capsys.readouterr().out and (tmp_path / "ablation.svg").is_file()

    (runs := tmp_path / "runs").rename(tmp_path / "lost")  # another machine
    result = command("--descriptors", "S", "S+M+G", "--seeds", 1)
    assert command.trained == ["S-of-S+M+G-0", "M-of-S+M+G-0", "G-of-S+M+G-0"]
    assert result["entries"][:2] == [single, combined], "earlier entries stay"
    assert list(result["compared"]["models"]) == ["S", "SG", "S+M+G"]
    ensemble = result["entries"][-1]
    assert ensemble["name"] == "S+M+G" and ensemble["epochs"] == 3
    assert result["latency"]["models"]["S+M+G"]["parameters"] == 12, "the ensemble's models have a third of 12 each"
    assert result["latency"]["models"]["S"]["milliseconds"]["8"]["p50"] > 0

    result["entries"] = [one for one in result["entries"] if one["name"] != "S+M+G"]
    (tmp_path / "ablation.json").write_text(json.dumps(result))
    (runs / "M-of-S+M+G-0" / "descriptors.npy").unlink()
    again = command("--descriptors", "S+M+G", "--seeds", 1, "--no-latency")
    assert command.trained == ["M-of-S+M+G-0"], "the other parts have their descriptors.npy"
    assert again["entries"][-1] == ensemble, "the M part continued from its last.pt"

    with pytest.raises(SystemExit):
        command("--descriptors", "S", "--set", "lr=0.5", "classes_per_batch=3")
    assert command.trained == [] and "lr was 0.0001, now it is 0.5" in capsys.readouterr().err


def test_engines_can_be_timed_by_the_file_alone(
    ablation: ModuleType, monkeypatch: Any, pictures: Path, tmp_path: Path, capsys: Any
) -> None:
    command = Command(ablation, monkeypatch, pictures, tmp_path)
    with pytest.raises(SystemExit):
        command("--latency-only")
    assert "holds no recipe to build engines by; train first" in capsys.readouterr().err
    recipe = {"backbone": "resnet18", "size": 32, "dim": 12}
    made = {"schema": 2, "recipe": recipe, "pictures": {}, "changes": {}, "entries": [], "wanted": WANTED}
    (tmp_path / "ablation.json").write_text(json.dumps(made))
    result = command("--latency-only")
    assert command.trained == [] and list(result["latency"]["models"]) == list(claim.MODELS)
    assert result["latency"]["environment"]["backend"] == "fake"


WANTED = {"names": ["S"], "seeds": 1}


def test_a_model_that_cannot_be_built_is_refused_before_anything_is_trained(
    ablation: ModuleType, monkeypatch: Any, pictures: Path, tmp_path: Path, capsys: Any
) -> None:
    command = Command(ablation, monkeypatch, pictures, tmp_path)
    with pytest.raises(SystemExit):
        command("--descriptors", "S", "SG", "--dim", 13)
    assert command.trained == [] and "dim=13" in capsys.readouterr().err
    assert not (tmp_path / "ablation.json").exists()
