"""``train`` and ``import`` as a user calls them: the start of the heads, the schedule, and what a run says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torchvision.models import resnet18

from cgd_train.checkpoint import load_checkpoint

SMALL = ["--backbone", "resnet18", "--descriptors", "SG", "--dim", 12, "--size", 32]
BATCHES = ["--classes-per-batch", 3, "--threads", 1, "--epochs", 2]


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.save(resnet18().state_dict(), tmp_path / "resnet18.pth")
    return tmp_path / "resnet18.pth"


def test_the_papers_start_and_schedule_are_two_options_away(cli, pictures, tmp_path):
    paper = ["--no-centring", "--head-init", "random", "--schedule", "step", "--warm-up", 0, "--auxiliary-lr", 1]
    code, out, err = cli(
        "train", "--data", pictures, *SMALL, *BATCHES, *paper, "--evaluate-every", 2, "-o", tmp_path / "run"
    )
    assert (code, out) == (0, f"{tmp_path / 'run' / 'best.pt'}\n"), err
    last = load_checkpoint(tmp_path / "run" / "last.pt")
    assert not any(name.startswith("heads.") and name.endswith(".mean") for name in last.model.state_dict())
    asked = {"centred": False, "head_init": "random", "schedule": "step", "warm_up": 0, "auxiliary_lr": 1.0}
    assert asked.items() <= last.trainer["settings"].items()
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["recall"] is None for line in lines] == [False, True, False]


def test_a_whitened_model_is_trained_exported_and_run(cli, pictures, weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = cli("train", "--data", pictures, "--weights", weights, *SMALL, *BATCHES, "-o", "run")
    assert code == 0, err
    heads = load_checkpoint("run/last.pt").model.heads
    assert all(head.mean is not None and head.mean.abs().max() > 0 for head in heads)
    for command in (["export", "run/last.pt"], ["build-engine", "--fp32", "--backend", "onnxruntime"]):
        code, _, err = cli(*command)
        assert code == 0, err
    code, out, err = cli("bench", "artifacts/model-fp32.cgd", "--seconds", 0, "--json")
    assert code == 0, err
    assert {run["overlap_at_10"] for run in json.loads(out)["engines"]} == {1.0}


@pytest.mark.parametrize(("start", "whitened"), [((), True), (("--head-init", "random"), False)])
def test_import_whitens_a_bare_backbone_if_it_gets_pictures(cli, pictures, weights, tmp_path, start, whitened):
    code, _, err = cli("import", weights, *SMALL, "--data", pictures, *start, "-o", tmp_path / "ckpt.pt")
    assert code == 0, err
    assert ("linear layers are a whitening of 15 pictures" in err) == whitened
    heads = load_checkpoint(tmp_path / "ckpt.pt").model.heads
    assert all((head.mean is not None) == whitened for head in heads)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--head-init", "white"], "head_init='white' cannot be used; expected whitened or random"),
        (["--head-init", "whitened", "--no-centring"], "head_init='whitened' needs centred heads"),
        (["--schedule", "linear"], "schedule='linear' cannot be used; expected step or cosine"),
        (["--evaluate-every", 0], "evaluate_every=0 cannot be used; expected at least 1"),
        (["--auxiliary-lr", 0], "auxiliary_lr=0.0 cannot be used; expected positive"),
    ],
)
def test_what_cannot_be_used_is_refused_before_pictures_are_read(cli, options, says):
    code, out, err = cli("train", "--data", "nowhere", *options)
    assert (code, out) == (2, "") and says in err and err.count("\n") == 1
