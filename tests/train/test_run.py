"""A run folder that an older release wrote: its settings lack what that release did not have."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cgd_deploy.datasets.evaluation import Evaluation
from cgd_deploy.errors import InputError
from cgd_train.checkpoint import save_checkpoint
from cgd_train.config import TrainConfig
from cgd_train.run import check_unchanged, last_epoch, run_settings, start_run

NEW = ("resize", "mean", "std")


@pytest.fixture
def config(tmp_path):
    return TrainConfig(backbone="resnet18", dim=8, size=32, out=tmp_path)


@pytest.fixture
def old_run(config, picture_list):
    """(path of a last.pt of release 0.1.0, its checkpoint, its two lists)."""
    training, testing = picture_list.split_classes()
    lists = (training, Evaluation(testing))
    settings = {k: v for k, v in run_settings(config, *lists).items() if k not in NEW}
    checkpoint, _ = start_run(config, settings, *lists, classes=0, left_out={})
    path = save_checkpoint(checkpoint, config.out / "last.pt")
    return path, last_epoch(replace(config, resume=True)), lists


@pytest.mark.parametrize("size", [32, (32, 32)])
def test_a_run_of_an_older_release_resumes(config, old_run, size):
    path, checkpoint, lists = old_run
    now = replace(config, size=size)
    assert check_unchanged(path, checkpoint, run_settings(now, *lists), *lists) == ()
    assert checkpoint.spec.resize == "pillow-bilinear"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"resize": "pillow-bicubic"}, "trained with resize='pillow-bilinear', now it is 'pillow-bicubic'"),
        ({"mean": (0.5, 0.5, 0.5)}, r"trained with mean=\(0.485, 0.456, 0.406\), now it is \(0.5, 0.5, 0.5\)"),
        ({"std": (0.5, 0.5, 0.5)}, r"trained with std="),
        ({"size": (32, 64)}, r"trained with size=32, now it is \(32, 64\)"),
    ],
)
def test_but_not_with_other_pixels(config, old_run, change, says):
    path, checkpoint, lists = old_run
    with pytest.raises(InputError, match=says):
        check_unchanged(path, checkpoint, run_settings(replace(config, **change), *lists), *lists)
