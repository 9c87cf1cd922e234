"""benchmarks/ablation.py: its arithmetic, its table and chart, and once everything on tiny pictures."""

from __future__ import annotations

import json
import subprocess
import sys
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from conftest import BENCHMARKS, script
from torchvision.models import resnet18

from cgd_deploy.datasets.layouts import read_dataset

pytest.importorskip("matplotlib")


def model(descriptors: str, recalls: list[float], seconds: float, parameters: int, latency: float) -> dict:
    seeds = [
        {"seed": seed, "recall": {"1": recall}, "map_at_r": recall / 2, "training_cpu_seconds": seconds}
        for seed, recall in enumerate(recalls)
    ]
    milliseconds = {batch: {"p50": latency} for batch in ("1", "8")}
    return {
        "descriptors": descriptors,
        "dim": 8,
        "parameters": parameters,
        "seeds": seeds,
        "latency_ms": milliseconds,
    }


RESULT = {
    "models": [
        model("S", [0.2, 0.3], 10.0, 100, 4.0),
        model("SG", [0.4, 0.3], 11.0, 120, 5.0),
        model("S + M + G", [0.4, 0.4], 30.0, 300, 12.0),
    ]
}


def test_the_ensemble_joins_unit_vectors():
    parts = [np.array([[1, 0], [0, 1]], np.float32), np.array([[0, 1], [1, 0]], np.float32)]
    joined = script("ablation").ensemble(parts)
    assert joined == pytest.approx(np.array([[1, 0, 0, 1], [0, 1, 1, 0]]) / 2**0.5)


def test_the_table_divides_costs_by_those_of_the_first_model():
    *_, second, third = script("table").ablation_table(RESULT).splitlines()
    assert second == "| SG | 8 | 40.0, 30.0 | 35.0% | 17.5% | 1.10 | 1.20 | 1.25 | 1.25 |"
    assert third == "| S + M + G | 8 | 40.0, 40.0 | 40.0% | 20.0% | 3.00 | 3.00 | 3.00 | 3.00 |"


def test_the_chart_names_every_model_and_is_the_same_each_time(tmp_path):
    ablation = script("ablation")
    for name in ("a.svg", "b.svg"):
        ablation.chart(RESULT, tmp_path / name)
    text = (tmp_path / "a.svg").read_text()
    assert ElementTree.fromstring(text).tag.endswith("svg")
    assert all(f"<!-- {model['descriptors']} -->" in text for model in RESULT["models"])
    assert text == (tmp_path / "b.svg").read_text()


@pytest.mark.slow
def test_one_command_makes_the_table_and_the_chart_and_goes_on_where_it_stopped(
    pictures, tmp_path, monkeypatch, capsys
):
    torch.save(resnet18().state_dict(), tmp_path / "weights.pth")
    command = [BENCHMARKS / "ablation.py", "--data", pictures, "--weights", tmp_path / "weights.pth"]
    command += ["--size", 32, "--dim", 12, "--epochs", 1, "--classes-per-batch", 3, "--seeds", 1, "--seconds", 0]
    command += ["--combined", "SG", "-o", tmp_path / "runs", "--json", tmp_path / "ablation.json"]
    command = list(map(str, command))
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr.count("epoch 1/1") == 4, done.stderr
    result = json.loads((tmp_path / "ablation.json").read_text())
    assert [m["descriptors"] for m in result["models"]] == ["S", "M", "G", "SG", "S + M + G"]
    s, m, g, *_, ensemble = result["models"]
    assert ensemble["parameters"] == sum(single["parameters"] for single in (s, m, g))
    assert ensemble["dim"] == 36 and ensemble["latency_ms"]["1"]["p50"] > s["latency_ms"]["1"]["p50"]
    assert all(0 <= one["seeds"][0]["recall"]["1"] <= 1 for one in result["models"])
    assert str(tmp_path) not in (tmp_path / "ablation.json").read_text()
    assert (tmp_path / "ablation.svg").stat().st_size > 5000
    monkeypatch.setattr(sys, "argv", command)
    ablation = script("ablation")
    dataset, options = read_dataset(pictures), ablation._options()
    ablation._train(ablation._recipe(options, "M", 0), dataset.training, dataset.testing)
    assert "epoch" not in capsys.readouterr().err, "the second time nothing is left to train"
