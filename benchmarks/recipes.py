"""Compares training recipes: each trains the same model on the same pictures with the same seeds.

    python benchmarks/recipes.py --list
    python benchmarks/recipes.py --data cars196 --weights resnet50.pth --within-training
    python benchmarks/recipes.py --data cars196 --weights resnet50.pth --recipe default --recipe slow lr=3e-5 warm_up=1

A recipe is a name and some fields of TrainConfig with other values than the defaults; the options change the defaults
of all recipes. All recipes of one seed come before the next seed. A finished training is written into the JSON file at
once and never trained again, so a run can be stopped, and continued on another machine by that file.

--within-training divides the training classes in two halves and measures on the second half. Then the choice of a
recipe does not see the test pictures, and a later result on them is not flattered by the choice.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import running
import trainings
from cgd_deploy.cli.terminal import warn
from cgd_deploy.datasets.evaluation import Evaluation
from cgd_deploy.datasets.layouts import Dataset, read_dataset
from cgd_deploy.errors import CgdError, InputError, closest_known
from cgd_deploy.quality.contestants import OnProgress
from cgd_train.config import TrainConfig
from cgd_train.losses import RANKING_LOSSES
from cgd_train.run import best_epoch
from table import recipes_table
from trainings import Changes, Record, add_options, base_config, changed, checksums, cost, device_of, machine

SCHEMA = 1
BUILT_IN: dict[str, dict[str, Any]] = {
    "default": {},
    "paper": {
        "centred": False,
        "head_init": "random",
        "schedule": "step",
        "lr": 1e-4,
        "head_lr": 1.0,
        "auxiliary_lr": 1.0,
        "warm_up": 0,
        "classes_per_batch": 32,
        "pictures_per_class": 4,
        "loss": "batch-hard",
        "margin": 0.1,
    },
    "random-heads": {"head_init": "random"},
    "not-centred": {"head_init": "random", "centred": False},
    "step-schedule": {"schedule": "step"},
    "auxiliary-only": {"ranking_weight": 0.0},
    "ranking-only": {"auxiliary_weight": 0.0},
    "auxiliary-half": {"auxiliary_weight": 0.5},
    "auxiliary-slow": {"auxiliary_lr": 1.0},
    **{f"loss-{name}": {"loss": name, "margin": None} for name in RANKING_LOSSES},
    **{
        f"batch-{classes}x{pictures}": {"classes_per_batch": classes, "pictures_per_class": pictures}
        for classes, pictures in ((32, 2), (32, 4), (16, 4))
    },
    **{f"lr-{rate}": {"lr": float(rate)} for rate in ("3e-5", "1e-4", "3e-4")},
    **{f"head-lr-{rate}": {"head_lr": float(rate)} for rate in (1, 10)},
    **{f"warm-up-{epochs}": {"warm_up": epochs} for epochs in (0, 1)},
}
"""Without --recipe, those that only repeat today's defaults are left out, see ``different``."""
MEASURED = ("loss", "ranking_share", "map_at_r", "mean_cosine")
"""Numbers of a line of metrics.jsonl that an entry tells, beside recall@1."""


def measure(options: argparse.Namespace, on_progress: OnProgress) -> running.Result:
    """Train the missing recipes. Returns the content of the JSON file."""
    recipes = chosen(options.recipe)
    record = Record(options.output, SCHEMA)
    config = base_config(options, record.result["recipe"])
    configs = {name: _changed(config, name, changes) for name, changes in recipes.items()}
    if not options.recipe:
        recipes = {name: recipes[name] for name in different(configs)}
    dataset = read_dataset(options.data)
    lists: tuple[Any, ...] = ()
    if options.within_training:
        lists = dataset.training.split_classes()
        dataset = Dataset(dataset.name, lists[0], Evaluation(lists[1]))
    dataset.testing.check_recall()
    base = trainings.settings(config, dataset.training, dataset.testing)
    pictures = checksums(dataset.training, dataset.testing.images)
    record.begin(base, pictures, recipes, {"names": list(recipes), "seeds": options.seeds})
    for seed, name in product(range(options.seeds), recipes):
        if not record.entry(name, seed):
            out = options.runs / f"{name}-{seed}"
            entry = train_recipe(replace(configs[name], data=options.data, seed=seed, out=out), lists)
            record.add({"name": name, "seed": seed, **entry})
            record.save()
    return record.result


def chosen(asked: Sequence[Sequence[str]]) -> dict[str, dict[str, Any]]:
    """The recipes of --recipe, or else all built-in ones, by name.

    asked   ["NAME"] for a built-in recipe, or ["NAME", "FIELD=VALUE", ...] for another one

    Raises InputError for an unknown name, and for another recipe under a built-in name.
    """
    if not asked:
        return BUILT_IN
    found = {}
    for name, *assignments in asked:
        changes = trainings.parsed(assignments)
        if not assignments and name not in BUILT_IN:
            raise InputError(f"there is no recipe {name}; {closest_known(name, BUILT_IN)}, or add FIELD=VALUE.")
        if assignments and name in {*BUILT_IN, *found}:
            raise InputError(f"there is already a recipe {name}; choose another name.")
        found[name] = changes if assignments else BUILT_IN[name]
    return found


def different(configs: Mapping[str, TrainConfig]) -> list[str]:
    """The names without those that mean the same as an earlier name."""
    every = list(configs)
    return [name for place, name in enumerate(every) if configs[name] not in [configs[n] for n in every[:place]]]


def _changed(config: TrainConfig, name: str, changes: Changes) -> TrainConfig:
    try:
        return changed(config, changes)
    except CgdError as error:
        raise InputError(f"the recipe {name} cannot be used: {error}") from error


def train_recipe(config: TrainConfig, lists: Sequence[Any]) -> dict[str, Any]:
    """Train one recipe; returns its entry without name and seed.

    lists    training and test pictures; empty: read ``config.data``

    A recipe whose loss becomes infinite has an entry too, with "failed" and the epochs before.
    """
    failed = False
    try:
        lines = trainings.run_training(config, *lists)
    except InputError:
        raise
    except CgdError as error:
        warn(str(error))
        lines, failed = trainings.metrics(config.out), True
    return {
        "failed": failed,
        "last": epoch(lines[-1]),
        "best": epoch(lines[best_epoch(lines, first=True)]),
        **cost(lines),
        "machine": machine(device_of(config.device)),
    }


def epoch(line: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of an epoch that an entry keeps. A number that the epoch did not measure is None."""
    recall = line["recall"]
    return {
        "epoch": line["epoch"],
        "recall_at_1": recall and recall["1"],
        **{name: line.get(name) for name in MEASURED},
    }


def main() -> None:
    parser = running.parser(__doc__, Path(__file__).parent / "results" / "recipes.json")
    add_options(parser, "runs/recipes")
    parser.add_argument(
        "--recipe",
        nargs="+",
        action="append",
        default=[],
        metavar=("NAME", "FIELD=VALUE"),
        help="a built-in recipe, or another one with its changes; repeatable [default: all built-in ones]",
    )
    parser.add_argument("--within-training", action="store_true", help="measure on half of the training classes")
    parser.add_argument("--list", action="store_true", help="print the built-in recipes and their changes")
    options = parser.parse_args()
    if options.list:
        for name, changes in BUILT_IN.items():
            print(name, *(f"{field}={value}" for field, value in changes.items()))
        return
    print(recipes_table(running.run(measure, options)))


if __name__ == "__main__":
    main()
