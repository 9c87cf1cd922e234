"""A run folder (best.pt, last.pt, metrics.jsonl): started, saved after every epoch, resumed. Knows no training step.

The trainer state in last.pt is {"settings": what decided the numbers so far, "sizes": bytes of each picture file,
"metrics": the lines of metrics.jsonl, "stepper": that of the optimizer}. The batches and crops follow from the seed and
the epoch, so no generator is stored.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import torch

from cgd_deploy.errors import InputError
from cgd_deploy.evaluation import Evaluation
from cgd_deploy.files import sha256_file, write_text
from cgd_deploy.images import ImageList

from .backbone import load_weights
from .checkpoint import CALIBRATION_PICTURES, Checkpoint, load_checkpoint, save_checkpoint, space_id
from .config import TrainConfig
from .model import CGD


def run_settings(config: TrainConfig, training: ImageList, testing: Evaluation) -> dict[str, object]:
    """All that decides a run's numbers, compared when resuming; files by their content, so that they may move."""
    settings = asdict(config)
    for free in ("out", "device", "threads", "resume", "accumulate", "patience", "boxes"):
        del settings[free]
    settings["data"] = f"{training.sha256[:12]} {testing.images.sha256[:12]}"
    settings["weights"] = sha256_file(config.weights)[:12] if config.weights and config.weights.is_file() else None
    settings["freeze_bn"] = config.bn_is_frozen
    return settings


def start_run(
    config: TrainConfig, settings: dict[str, object], training: ImageList, testing: Evaluation, classes: int
) -> Checkpoint:
    """The untrained model with an empty trainer state; raises InputError if ``config.out`` already holds a run.

    A run that was killed while saving its first epoch leaves best.pt alone; the same untrained model may replace it.
    """
    if (config.out / "last.pt").exists():
        raise InputError(f"{config.out} already holds last.pt; add --resume to go on, or choose another -o folder.")
    with torch.random.fork_rng(devices=[]):  # leaves the caller's generator alone
        torch.manual_seed(config.seed)
        model = CGD(config.spec, classes=classes if config.auxiliary else 0, learn_p=config.learn_p)
    if config.weights is not None:
        load_weights(model.backbone, config.weights)
    best = config.out / "best.pt"
    if best.exists() and load_checkpoint(best).spec.space_id != space_id(model.spec, model.state_dict()):
        raise InputError(
            f"{config.out} already holds best.pt and no last.pt to resume from; move it away, or choose another "
            "-o folder."
        )
    state = {"settings": settings, "sizes": _sizes(training, testing), "metrics": [], "stepper": {}}
    return Checkpoint(model, training.sample(CALIBRATION_PICTURES), testing, trainer=state)


def resume_run(
    path: Path, settings: dict[str, object], training: ImageList, testing: Evaluation
) -> tuple[Checkpoint, tuple[str, ...]]:
    """What ``save_epoch`` last wrote to ``path``, and a note if nobody can tell whether pictures changed since.

    Raises InputError that names a setting which is not as it was, or counts the pictures whose files have other sizes.
    Times of files are not compared: a data set that was copied to another machine has others.
    """
    if not path.is_file():
        raise InputError(f"there is no {path} to resume from; leave --resume out to start a new run.")
    checkpoint = load_checkpoint(path)
    if not (before := checkpoint.trainer.get("settings")):
        raise InputError(f"{path} has no trainer state; resume from the last.pt that cgd-deploy train wrote.")
    for field, value in settings.items():
        if before.get(field) != value:
            raise InputError(
                f"{path} was trained with {field}={before.get(field)!r}, now it is {value!r}; "
                f"resume with the same {field}, or choose another -o folder."
            )
    sizes = _sizes(training, testing)
    if "sizes" in checkpoint.trainer:
        _check_sizes(path, checkpoint.trainer["sizes"], sizes, [*training.paths, *testing.images.paths])
        return checkpoint, ()
    checkpoint.trainer["sizes"] = sizes
    note = f"{path} was written by a release that stored no sizes of pictures: changes before now are not noticed"
    return checkpoint, (note,)


def _check_sizes(path: Path, before: list[int], now: list[int], pictures: list[Path]) -> None:
    if changed := [picture for picture, old, new in zip(pictures, before, now, strict=True) if old != new]:
        raise InputError(
            f"{len(changed)} of {len(pictures)} pictures have other sizes than when the run of {path} began, "
            f"{changed[0]} for one; put the former pictures back, or choose another -o folder."
        )


def _sizes(training: ImageList, testing: Evaluation) -> list[int]:
    return training.sizes + testing.images.sizes


def save_epoch(checkpoint: Checkpoint, out: Path) -> None:
    """Write best.pt if the last epoch is (as good as) the best, metrics.jsonl, and last.pt.

    last.pt comes last: killed before it, a resumed run trains the epoch again and writes the others once more.
    """
    metrics = checkpoint.trainer["metrics"]
    if metrics[-1]["recall"]["1"] >= max(line["recall"]["1"] for line in metrics):
        save_checkpoint(replace(checkpoint, trainer={}), out / "best.pt")
    write_text(out / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in metrics))
    save_checkpoint(checkpoint, out / "last.pt")
