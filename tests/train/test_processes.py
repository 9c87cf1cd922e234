"""Several processes train as one would: under torchrun, as a user starts it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torchvision.models import resnet18

from cgd_deploy.errors import InputError
from cgd_train.checkpoint import load_checkpoint
from cgd_train.processes import Processes

TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "cgd_deploy"]


def run(pictures: Path, out: Path, weights: Path, *command: str) -> list[dict]:
    """Two epochs on three classes with four pictures each a batch; returns metrics.jsonl."""
    settings = ["--backbone", "resnet18", "--weights", weights, "--dim", 16, "--size", 32, "--epochs", 2]
    batches = ["--classes-per-batch", 3, "--pictures-per-class", 4, "--threads", 1]
    arguments = ["train", "--data", pictures, "-o", out, *settings, *batches]
    done = subprocess.run(
        [sys.executable, "-m", *command, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    told = ("epoch 2/2", "no split of its own")
    assert [done.stderr.count(text) for text in told] == [1, 1], "one process talks"
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_two_processes_train_like_one(pictures, tmp_path):
    """Mining and the auxiliary BatchNorm see the whole batch; the backbone's BatchNorm is frozen, as in the paper."""
    torch.save(resnet18().state_dict(), tmp_path / "weights.pth")
    alone = run(pictures, tmp_path / "alone", tmp_path / "weights.pth", "cgd_deploy")
    together = run(pictures, tmp_path / "together", tmp_path / "weights.pth", *TORCHRUN)
    assert len(alone) == len(together) == 3
    for ours, theirs in zip(alone, together, strict=True):
        assert theirs["recall"] == ours["recall"]
        if ours["epoch"]:
            for loss in ("loss", "ranking", "auxiliary"):
                assert theirs[loss] == pytest.approx(ours[loss], rel=1e-4), (ours["epoch"], loss)
    weights = [load_checkpoint(tmp_path / name / "last.pt").model.state_dict() for name in ("alone", "together")]
    for name, tensor in weights[0].items():
        assert torch.allclose(tensor.float(), weights[1][name].float(), atol=1e-3), name


def test_parts_of_a_batch_are_consecutive_and_cover_it():
    assert [Processes(rank, 3).part(12) for rank in range(3)] == [slice(0, 4), slice(4, 8), slice(8, 12)]
    assert Processes().part(5) == slice(0, 5)
    with pytest.raises(InputError, match="a batch of 10 pictures cannot be shared among 3 processes"):
        Processes(0, 3).part(10)


def test_a_process_alone_talks_to_nobody():
    part = torch.ones(2, 3, requires_grad=True)
    assert Processes().gather(part) is part
    Processes().average_gradients([torch.nn.Parameter(part)])
    assert Processes().collect("thing") == ["thing"]
