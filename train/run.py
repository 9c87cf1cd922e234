"""A run folder with best.pt, last.pt and metrics.jsonl: start it, save it after every epoch, resume it.

Knows no training step. The trainer state in last.pt is a dict:

    settings   every setting that changes the numbers
    sizes      bytes of each picture file
    left_out   names of pictures that could not be decoded
    metrics    the lines of metrics.jsonl
    stepper    state of the optimizer

It holds no random generator, because batches and crops follow from the seed and the epoch.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cgd_deploy.cli.terminal import counting, tell_left_out
from cgd_deploy.datasets.evaluation import Evaluation
from cgd_deploy.datasets.left_out import bad_pictures, sort_out
from cgd_deploy.errors import InputError
from cgd_deploy.files import sha256_file, write_text
from cgd_deploy.pictures.images import ImageList

from .checkpoint import RECORDED_FOR_CALIBRATION, Checkpoint, load_checkpoint, save_checkpoint
from .config import TrainConfig
from .foreign import read_backbone
from .model import CGD
from .processes import Processes

LeftOutNames = dict[str, list[str]]
"""Under "training" and "testing", the names of the pictures that a run leaves out."""


def good_pictures(
    training: ImageList, testing: Evaluation, resumed: Checkpoint | None, strict: bool, processes: Processes
) -> tuple[ImageList, Evaluation, LeftOutNames]:
    """Leave out and report pictures that cannot be decoded; returns the other pictures and the names left out.

    resumed   checkpoint of the resumed run, or None; a resumed run leaves out the same pictures as before, even if
              their files are repaired or deleted by now, so that every epoch sees the same pictures

    Raises InputError for the first bad picture if ``strict``, and for a picture that was good when the resumed run
    began.
    """
    before: LeftOutNames = resumed.trainer.get("left_out", {}) if resumed else {}
    kept: dict[str, list[int]] = {}
    left_out: LeftOutNames = {}
    for part, images in (("training", training), ("testing", testing.images)):
        known = set(before.get(part, ()))
        others = [number for number, name in enumerate(images.names) if name not in known]
        checked = images.subset(others)
        good, bad = sort_out(checked, _bad_pictures(checked, processes), strict)
        if bad and resumed:
            raise InputError(
                f"{bad[0].path} could be read when this run began, and now it cannot; restore the file, or "
                "choose another -o folder."
            )
        if processes.first:
            tell_left_out(bad)
        kept[part] = [others[number] for number in good]
        left_out[part] = [images.names[number] for number in sorted(set(others) - set(kept[part]))]
    return training.subset(kept["training"]), testing.subset(kept["testing"]), left_out


def _bad_pictures(images: ImageList, processes: Processes) -> dict[int, InputError]:
    """``bad_pictures`` of the whole list; every process decodes a part."""
    ours = range(processes.rank, len(images), processes.count)
    with counting("Checking pictures", len(ours) if processes.first else 0) as advance:
        bad = bad_pictures(images.subset(ours), lambda _: advance(1))
    found = processes.collect({ours[number]: error for number, error in bad.items()})
    return {number: error for part in found for number, error in part.items()}


DEFAULTS = {field.name: field.default for field in fields(TrainConfig)}
"""The value of a setting in runs of older releases, which did not have the setting."""


def run_settings(config: TrainConfig, training: ImageList, testing: Evaluation) -> dict[str, object]:
    """Every setting that changes the numbers of a run. Files count by content, so they may move."""
    settings = asdict(config)
    for free in ("out", "device", "threads", "resume", "accumulate", "patience", "boxes", "strict"):
        del settings[free]
    settings["data"] = f"{training.sha256[:12]} {testing.images.sha256[:12]}"
    settings["weights"] = sha256_file(config.weights)[:12] if config.weights and config.weights.is_file() else None
    settings["freeze_bn"] = config.bn_is_frozen
    return settings


def last_epoch(config: TrainConfig) -> Checkpoint | None:
    """The last.pt in ``config.out`` if ``config`` resumes, None for a new run.

    Raises InputError for a new run in the folder of another run, and without a last.pt to resume from.
    """
    path = config.out / "last.pt"
    if not config.resume:
        if path.exists():
            raise InputError(
                f"{config.out} already holds last.pt; add --resume to continue that run, or choose another -o folder."
            )
        return None
    if not path.is_file():
        raise InputError(f"there is no {path} to resume from; leave --resume out to start a new run.")
    checkpoint = load_checkpoint(path)
    if not checkpoint.trainer.get("settings"):
        raise InputError(f"{path} has no trainer state; resume from the last.pt that cgd-deploy train wrote.")
    return checkpoint


def start_run(
    config: TrainConfig,
    settings: dict[str, object],
    training: ImageList,
    testing: Evaluation,
    classes: int,
    left_out: LeftOutNames,
) -> tuple[Checkpoint, tuple[str, ...]]:
    """The untrained model with an empty trainer state, and notes on its pretrained weights.

    Raises the errors of ``read_backbone``.
    """
    with torch.random.fork_rng(devices=[]):  # keeps the caller's generator as it is
        torch.manual_seed(config.seed)
        auxiliary = classes if config.auxiliary else 0
        model = CGD(config.spec, classes=auxiliary, learn_p=config.learn_p, centred=config.centred)
    notes: tuple[str, ...] = ()
    if config.weights is not None:
        weights, notes = read_backbone(config.weights, config.backbone)
        model.backbone.load_state_dict({**model.backbone.state_dict(), **weights})
    state = {
        "settings": settings,
        "sizes": _sizes(training, testing),
        "left_out": left_out,
        "metrics": [],
        "stepper": {},
    }
    return Checkpoint(model, training.sample(RECORDED_FOR_CALIBRATION), testing, trainer=state), notes


def check_best(model: CGD, out: Path) -> None:
    """Raise InputError if ``out`` holds a best.pt of another model than the untrained ``model``.

    A run that was killed while saving its first epoch leaves best.pt without last.pt; the same model may replace it.
    """
    best = out / "best.pt"
    if not best.exists():
        return
    other = load_checkpoint(best).model
    ours, theirs = model.state_dict(), other.state_dict()
    same = replace(other.spec, space_id="") == replace(model.spec, space_id="") and ours.keys() == theirs.keys()
    if not (same and all(_alike(ours[name].cpu(), tensor) for name, tensor in theirs.items())):
        raise InputError(
            f"{out} already holds best.pt and no last.pt to resume from; move it away, or choose another -o folder."
        )


def _alike(one: Tensor, other: Tensor) -> bool:
    """Equal, but for the last digits, which differ in heads that were whitened twice."""
    return one.shape == other.shape and torch.allclose(one.float(), other.float(), rtol=1e-3)


def check_unchanged(
    path: Path, checkpoint: Checkpoint, settings: dict[str, object], training: ImageList, testing: Evaluation
) -> tuple[str, ...]:
    """Compare the resumed ``checkpoint`` in ``path`` with the settings and pictures of this call.

    Returns a note if the checkpoint holds no sizes of pictures to compare. Times of files are not compared, because a
    copied data set has new ones.
    Raises InputError that names a changed setting, or counts the pictures whose files have other sizes.
    """
    before = checkpoint.trainer["settings"]
    for field, value in settings.items():
        if (old := before.get(field, DEFAULTS.get(field))) != value:
            raise InputError(
                f"{path} was trained with {field}={old!r}, now it is {value!r}; "
                f"resume with the same {field}, or choose another -o folder."
            )
    sizes = _sizes(training, testing)
    if "sizes" in checkpoint.trainer:
        _check_sizes(path, checkpoint.trainer["sizes"], sizes, [*training.paths, *testing.images.paths])
        return ()
    checkpoint.trainer["sizes"] = sizes
    note = f"{path} holds no sizes of pictures, so pictures that changed before now are not noticed"
    return (note,)


def _check_sizes(path: Path, before: list[int], now: list[int], pictures: list[Path]) -> None:
    if changed := [picture for picture, old, new in zip(pictures, before, now, strict=True) if old != new]:
        raise InputError(
            f"{len(changed)} of {len(pictures)} pictures have other sizes than when the run of {path} began, "
            f"{changed[0]} for one; restore the pictures, or choose another -o folder."
        )


def _sizes(training: ImageList, testing: Evaluation) -> list[int]:
    return training.sizes + testing.images.sizes


def save_epoch(checkpoint: Checkpoint, out: Path) -> None:
    """Write best.pt if the last epoch is the best, then metrics.jsonl, then last.pt.

    last.pt comes last: if the process is killed before, a resumed run repeats the epoch and writes all files again.
    """
    metrics = checkpoint.trainer["metrics"]
    if best_epoch(metrics) == metrics[-1]["epoch"]:
        save_checkpoint(replace(checkpoint, trainer={}), out / "best.pt")
    save_progress(checkpoint, out)


def save_progress(checkpoint: Checkpoint, out: Path) -> None:
    """Write metrics.jsonl, then last.pt."""
    metrics = checkpoint.trainer["metrics"]
    write_text(out / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in metrics))
    save_checkpoint(checkpoint, out / "last.pt")


def best_epoch(metrics: Sequence[dict[str, Any]], first: bool = False) -> int:
    """The epoch with the best recall@1; of equals the last, or the ``first``."""
    measured = [line for line in metrics if line["recall"] is not None]
    if not first:
        measured.reverse()
    return max(measured, key=lambda line: line["recall"]["1"])["epoch"]
