"""The numbers of a run besides its losses, and the warnings of a run that fails."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.models import resnet18

from cgd_deploy.errors import CgdError, InputError
from cgd_train.checkpoint import Checkpoint, load_checkpoint
from cgd_train.config import TrainConfig
from cgd_train.losses import RANKING_LOSSES
from cgd_train.measuring import embed_images, failure, mean_cosine
from cgd_train.model import CGD
from cgd_train.processes import Processes
from cgd_train.step import Stepper
from cgd_train.trainer import train


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.manual_seed(0)
    torch.save(resnet18().state_dict(), path)
    return path


def tiny(pictures: Path, out: Path, **changes: Any) -> TrainConfig:
    settings = {"backbone": "resnet18", "dim": 16, "size": 32, "epochs": 2, "threads": 1}
    batches = {"classes_per_batch": 3, "pictures_per_class": 2}
    return TrainConfig(**{"data": pictures, "out": out, **settings, **batches, **changes})


def metrics(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_every_line_tells_collapse_and_gradients(pictures, weights, tmp_path, capsys):
    best = train(tiny(pictures, tmp_path, weights=weights, evaluate_every=2, epochs=3))
    untrained, first, second, third = metrics(tmp_path)
    assert untrained["ranking_share"] is None and untrained["gradient_norm"] is None
    for line in (first, second, third):
        assert line["ranking_share"] == pytest.approx(line["ranking"] / 0.1)  # the margin of batch-hard
        assert 0 < line["gradient_norm"] < math.inf
    assert first["recall"] is first["map_at_r"] is first["mean_cosine"] is None
    told = capsys.readouterr().err
    assert "epoch 1/3  loss" in told and told.count("recall@1") >= 3
    found = load_checkpoint(best)
    descriptors = embed_images(found.model, found.evaluation.images)
    best_line = max((untrained, second, third), key=lambda line: (line["recall"]["1"], line["epoch"]))
    assert best_line["mean_cosine"] == pytest.approx(mean_cosine(descriptors), abs=1e-5)
    assert "float32" not in best_line


def pooled_mean(checkpoint: Checkpoint) -> Tensor:
    """Mean of the second head's inputs over the training pictures."""
    seen: list[Tensor] = []
    checkpoint.model.heads[1].register_forward_hook(lambda head, inputs, output: seen.append(inputs[0].mean(0)))
    embed_images(checkpoint.model, checkpoint.calibration)
    return seen[0]


def test_the_start_is_whitened_by_the_training_pictures(pictures, weights, tmp_path):
    for name, changes in {
        "whitened": {"weights": weights},
        "random": {"weights": weights, "head_init": "random"},
        "scratch": {},
    }.items():
        train(tiny(pictures, tmp_path / name, epochs=0, **changes))
        found = load_checkpoint(tmp_path / name / "best.pt")
        assert torch.allclose(pooled_mean(found), found.model.heads[1].mean, atol=1e-5) == (name == "whitened")
    assert metrics(tmp_path / "whitened")[0]["mean_cosine"] < metrics(tmp_path / "random")[0]["mean_cosine"]


def test_whitening_needs_centred_heads(pictures, tmp_path):
    with pytest.raises(InputError, match="head_init='whitened' needs centred heads"):
        tiny(pictures, tmp_path, head_init="whitened", centred=False)
    assert not tiny(pictures, tmp_path, weights=Path("w.pth"), centred=False).whitens
    train(tiny(pictures, tmp_path, epochs=0, centred=False))
    assert all(head.mean is None for head in load_checkpoint(tmp_path / "best.pt").model.heads)


def test_recall_is_measured_in_bf16_and_of_the_best_in_float32_too(pictures, weights, tmp_path, capsys):
    config = tiny(pictures, tmp_path, weights=weights, amp="bf16")
    train(config)
    lines = metrics(tmp_path)
    [best] = [line for line in lines if "float32" in line]
    assert best["float32"]["mean_cosine"] != best["mean_cosine"]
    assert best["float32"]["mean_cosine"] == pytest.approx(best["mean_cosine"], abs=0.1)
    found = load_checkpoint(tmp_path / "best.pt")
    descriptors = embed_images(found.model, found.evaluation.images)
    assert best["float32"]["mean_cosine"] == pytest.approx(mean_cosine(descriptors), abs=1e-5)
    assert "best.pt in float32: recall@1" in capsys.readouterr().err
    train(replace(config, resume=True))
    assert metrics(tmp_path) == lines


def test_ranking_share_is_1_where_all_descriptors_are_equal(pictures, tmp_path):
    targets = torch.tensor([0, 0, 1, 1, 2, 2])
    equal = torch.nn.functional.normalize(torch.ones(6, 8), dim=1)
    for name, loss in RANKING_LOSSES.items():
        stepper = Stepper(CGD(tiny(pictures, tmp_path).spec), tiny(pictures, tmp_path, loss=name), Processes())
        expected = loss(equal, targets).item()
        stepper.model.described = lambda pooled: (equal, None)
        assert stepper._losses(torch.zeros(6, 2, 512), targets)[1].ranking_share == pytest.approx(1), name
        assert stepper.ranking(equal, targets).item() == pytest.approx(expected) and expected > 0


def line(epoch: int, recall: float, cosine: float) -> dict[str, Any]:
    return {"epoch": epoch, "recall": {"1": recall}, "mean_cosine": cosine}


@pytest.mark.parametrize(
    ("last", "sentence"),
    [
        (line(1, 0.5, 0.96), r"descriptors collapse: two test pictures have a mean cosine of 0\.960, .*lower --lr"),
        (line(5, 0.39, 0.2), r"recall@1 is 39\.0% after epoch 5 and was 40\.0% before training; lower --lr"),
    ],
)
def test_a_training_that_fails_is_told_with_what_to_change(last, sentence):
    assert re.search(sentence, failure([line(0, 0.4, 0.99), last], epochs=10) or "")


@pytest.mark.parametrize(
    "lines",
    [
        [line(0, 0.4, 0.99)],  # untrained
        [line(0, 0.4, 0.1), line(4, 0.3, 0.2)],  # early recall often falls
        [line(0, 0.4, 0.1), line(9, 0.4, 0.94)],
        [line(0, 0.4, 0.1), {"epoch": 9, "recall": None, "mean_cosine": None}],
    ],
)
def test_a_training_that_does_not_fail_is_not_told(lines):
    assert failure(lines, epochs=10) is None


def test_a_collapse_is_told_once(pictures, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("cgd_train.measuring.mean_cosine", lambda descriptors: 0.99)
    train(tiny(pictures, tmp_path))
    assert capsys.readouterr().err.count("warning: the descriptors collapse") == 1


def test_descriptors_that_are_not_finite_end_the_run(pictures, tmp_path):
    """The last step of an epoch has no later loss that would show it."""
    with pytest.raises(CgdError, match="descriptors of test pictures are not finite; start again with a lower"):
        train(tiny(pictures, tmp_path, lr=1e30, pictures_per_class=5))  # one batch an epoch
    assert [line["epoch"] for line in metrics(tmp_path)] == [0]
