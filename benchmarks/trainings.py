"""What the benchmarks that train have in common: their options, one training, and the JSON file that remembers all.

Such a benchmark trains many models, on several days and machines. Whatever a finished training leaves goes into the
JSON file at once. A later run reads the file and skips these trainings, so only the file has to be kept.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch

from cgd_deploy.cli.terminal import errors
from cgd_deploy.datasets.evaluation import Evaluation
from cgd_deploy.errors import InputError, closest_known
from cgd_deploy.files import parse_json, write_text
from cgd_deploy.hardware.cpu import available_threads, cpu_name, instruction_sets
from cgd_deploy.pictures.images import ImageList
from cgd_train.config import TrainConfig
from cgd_train.losses import ranking_loss
from cgd_train.pretrained import weights_file
from cgd_train.run import DEFAULTS, run_settings
from cgd_train.trainer import train

Changes = Mapping[str, Any]
"""Fields of TrainConfig with their values."""

FIXED = ("data", "weights", "out", "resume", "seed", "device", "threads")
"""Fields that options set or that differ between machines, so a recipe cannot change them."""
WORDS = {"true": True, "false": False, "none": None}


def add_options(parser: argparse.ArgumentParser, runs: str) -> None:
    """Options that change ``TrainConfig``'s defaults; ``runs`` is the folder of the runs."""
    parser.add_argument("--data", type=Path, help="folder of a data set, or LIST.tsv")
    parser.add_argument("--weights", type=Path, help='file to start from, or "torchvision", or "none": random weights')
    parser.add_argument("--backbone")
    parser.add_argument("--dim", type=int, help="number of values of each model")
    parser.add_argument("--size", type=int, help="height and width of the pictures")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--patience", type=int, help="stop after so many epochs without a better recall@1")
    parser.add_argument("--evaluate-every", type=int, help="epochs between two looks at test pictures")
    parser.add_argument(
        "--amp",
        help="off, bf16 or fp16 [default: as in the JSON file; without one, bf16 if this machine computes in it]",
    )
    parser.add_argument("--set", nargs="+", default=[], metavar="FIELD=VALUE", help="other fields of TrainConfig")
    parser.add_argument("--seeds", type=int, default=2, help="trainings of each [default: 2]")
    parser.add_argument("--device", help="[default: the GPU if there is one]")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--runs", type=Path, default=Path(runs), help=f"folder of the runs [default: {runs}]")


def base_config(options: argparse.Namespace, recorded: Changes) -> TrainConfig:
    """``TrainConfig``'s defaults with the user's options; ``recorded`` is the recipe in the JSON file, if any.

    Raises InputError without data or weights, and for a value that TrainConfig refuses.
    """
    if options.data is None or options.weights is None:
        raise InputError('--data or --weights is missing; give both. "--weights none" starts from random weights.')
    given = ("backbone", "dim", "size", "epochs", "patience", "evaluate_every", "amp", "device", "threads")
    chosen = {name: value for name in given if (value := getattr(options, name)) is not None}
    chosen.setdefault("amp", recorded.get("amp") or amp_here(device_of(options.device)))
    config = changed(TrainConfig(), {**chosen, **parsed(options.set)})
    if options.weights == Path("none"):
        return config
    return replace(config, weights=weights_file(options.weights, config.backbone))


def changed(config: TrainConfig, changes: Changes) -> TrainConfig:
    """``config`` with ``changes``. Raises InputError or SpecError for a value that cannot be used."""
    config = replace(config, **changes)
    ranking_loss(config.loss, config.margin)
    return config


def parsed(assignments: Sequence[str]) -> dict[str, Any]:
    """["lr=1e-3", "centred=false"] -> {"lr": 0.001, "centred": False}. Raises InputError for an unknown field."""
    known = [field.name for field in fields(TrainConfig) if field.name not in FIXED]
    found = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals or name not in known:
            raise InputError(
                f"{assignment!r} changes no field of a recipe; expected FIELD=VALUE, and {closest_known(name, known)}."
            )
        found[name] = text if isinstance(DEFAULTS[name], str) else _value(text)
    return found


def _value(text: str) -> Any:
    if text.lower() in WORDS:
        return WORDS[text.lower()]
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return text


def device_of(name: str | None) -> torch.device:
    """The device that a training on ``name`` takes."""
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))


def amp_here(device: torch.device) -> str:
    """ "bf16" if ``device`` computes in it, else "off"."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "off"
    return "off" if {"avx512_bf16", "amx_bf16"}.isdisjoint(instruction_sets()) else "bf16"


def machine(device: torch.device) -> dict[str, Any]:
    """What trained a model, and when."""
    return {
        "cpu": cpu_name(),
        "threads": available_threads(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }


def settings(config: TrainConfig, training: ImageList, testing: Evaluation) -> dict[str, Any]:
    """Every setting that changes a training's numbers, as JSON; the seed and the pictures are told elsewhere."""
    told = {**run_settings(config, training, testing), "patience": config.patience}
    return _as_json({name: value for name, value in told.items() if name not in ("data", "seed")})


def run_training(
    config: TrainConfig, training: ImageList | None = None, testing: ImageList | None = None
) -> list[dict[str, Any]]:
    """Train, or continue from last.pt in ``config.out``; returns the lines of metrics.jsonl."""
    errors.print(f"training in {config.out}")
    train(replace(config, resume=(config.out / "last.pt").exists()), training, testing)
    return metrics(config.out)


def checksums(training: ImageList, testing: ImageList) -> dict[str, str]:
    """What has to be equal so that two trainings saw the same pictures."""
    return {"training": training.sha256, "testing": testing.sha256}


def metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, or none if there is no such file."""
    path = run / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def cost(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Seconds of training without measuring, over all epochs."""
    return {name: round(sum(line[name] for line in lines), 1) for name in ("training_cpu_seconds", "training_seconds")}


class Record:
    """The JSON file of a benchmark's trainings, as ``result``:

    schema     of the file
    recipe     settings that all trainings share
    pictures   checksums of the training and test lists
    changes    {name: fields}: each model or recipe, and the fields of ``recipe`` that it changes
    wanted     {"names", "seeds"}: the trainings that the last command asked for
    entries    one for each finished training, with its "name" and "seed"

    Raises InputError for a file that is not such a result.
    """

    def __init__(self, path: Path, schema: int) -> None:
        self.path = path
        self.result: dict[str, Any] = {"schema": schema, "recipe": {}, "pictures": {}, "changes": {}, "entries": []}
        if not path.exists():
            return
        try:
            result = parse_json(path.read_bytes())
            fits = result["schema"] == schema and self.result.keys() <= result.keys()
        except (OSError, ValueError, KeyError, TypeError):
            fits = False
        if not fits:
            raise InputError(f"{path} is no result of this benchmark in schema {schema}; choose another -o file.")
        self.result = result

    def begin(
        self,
        recipe: Changes,
        pictures: Mapping[str, str],
        changes: Mapping[str, Changes],
        wanted: Mapping[str, Any],
    ) -> None:
        """Say what will be trained; raises InputError if the file holds trainings of something else.

        A setting that the file lacks did not exist when the file was written, so it had its default.
        """
        result, recipe, changes = self.result, _as_json(recipe), _as_json(changes)
        if result["entries"]:
            self._check("recipe", result["recipe"], recipe, _as_json(DEFAULTS))
            self._check("pictures", result["pictures"], pictures, {})
        for name in changes.keys() & {one["name"] for one in result["entries"]}:
            if changes[name] != (before := result["changes"][name]):
                raise InputError(
                    f"{self.path} holds trainings of {name} with {_told(before)}, and now {name} means "
                    f"{_told(changes[name])}; give it another name, or choose another -o file."
                )
        result.update(recipe=recipe, pictures=dict(pictures), changes={**result["changes"], **changes})
        result["wanted"] = dict(wanted)

    def _check(self, part: str, before: Mapping[str, Any], now: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
        for name, value in now.items():
            if (old := before.get(name, defaults.get(name))) != value:
                raise InputError(
                    f"{self.path} holds trainings of another {part}: {name} was {old!r}, now it is {value!r}; use the "
                    f"same {name}, or choose another -o file."
                )

    def entry(self, name: str, seed: int) -> dict[str, Any] | None:
        """What this training left; None if it is still to do."""
        return next((one for one in self.result["entries"] if (one["name"], one["seed"]) == (name, seed)), None)

    def add(self, entry: dict[str, Any]) -> None:
        """Replace the entry of this name and seed, or add it; ``save`` writes it."""
        others = [o for o in self.result["entries"] if (o["name"], o["seed"]) != (entry["name"], entry["seed"])]
        self.result["entries"] = [*others, _as_json(entry)]

    def save(self) -> None:
        write_text(self.path, json.dumps(self.result, indent=1) + "\n")


def _told(changes: Changes) -> str:
    return ", ".join(f"{name}={value}" for name, value in changes.items()) or "no changes"


def _as_json(values: Mapping[str, Any]) -> Any:
    """The values as they come back from a JSON file; numbers that JSON does not have become None."""
    return json.loads(json.dumps(values, default=str), parse_constant=lambda _: None)
