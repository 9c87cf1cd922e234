"""``cgd-deploy train``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...errors import not_installed
from ..options import Backbone, Descriptors, ModelOption, ModelOptions, Strict, Threads
from ..pixels import PixelOptions, input_of
from .demo import share_cores

if TYPE_CHECKING:
    from cgd_train.config import TrainConfig

LossOption = partial(typer.Option, rich_help_panel="Losses")
OptimizationOption = partial(typer.Option, rich_help_panel="Optimization")
BatchOption = partial(typer.Option, rich_help_panel="Batches")


@dataclass(frozen=True, kw_only=True)
class TrainOptions(PixelOptions, ModelOptions):
    """The options; those that a TrainConfig has too have the same name there."""

    data: Annotated[
        Path,
        typer.Option(
            metavar="PICTURES",
            help="Folder of a data set (CUB, CARS, SOP, In-shop, or one folder per class), or a LIST.tsv with or "
            "without a split column.",
        ),
    ]
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", metavar="FOLDER", help="Run folder.", show_default="runs/BACKBONE-DESCRIPTORS"),
    ] = None
    weights: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Backbone weights to start from: any file that import reads, or the word torchvision, which downloads "
            "torchvision's ImageNet weights.",
        ),
    ] = None
    no_boxes: Annotated[
        bool, typer.Option("--no-boxes", help="Train on whole pictures, even if the data set has boxes.")
    ] = False
    seed: Annotated[int, typer.Option(metavar="N", help="Random seed of weights, batches and crops.")] = 0
    resume: Annotated[bool, typer.Option("--resume", help="Continue from last.pt in the run folder.")] = False
    strict: Strict = False
    threads: Threads = None

    backbone: Backbone = "resnet50"
    descriptors: Descriptors = "SG"
    learn_p: Annotated[bool, ModelOption("--learn-p", help="Train the exponent of GeM.")] = False
    head_init: Annotated[
        str | None,
        ModelOption(
            metavar="NAME",
            help="Start of the descriptors' linear layers: whitened (from the training pictures) or random.",
            show_default="whitened with --weights, else random",
        ),
    ] = None
    no_centring: Annotated[
        bool, ModelOption("--no-centring", help="Do not subtract the mean before those layers, as in the paper.")
    ] = False

    epochs: Annotated[int, OptimizationOption(metavar="N", help="Passes over the training pictures.")] = 20
    patience: Annotated[
        int | None, OptimizationOption(metavar="N", help="Stop after this many epochs without a better recall@1.")
    ] = None
    evaluate_every: Annotated[
        int, OptimizationOption(metavar="N", help="Measure on the test pictures every N epochs, and at the end.")
    ] = 1
    lr: Annotated[float, OptimizationOption(metavar="RATE", help="Learning rate of Adam.")] = 1e-4
    head_lr: Annotated[
        float, OptimizationOption(metavar="FACTOR", help="The descriptors' linear layers learn at --lr times this.")
    ] = 1.0
    auxiliary_lr: Annotated[
        float,
        OptimizationOption(metavar="FACTOR", help="The auxiliary classifier learns at --lr times this."),
    ] = 10.0
    schedule: Annotated[
        str, OptimizationOption(metavar="NAME", help="Fall of the learning rate: cosine, or step as in the paper.")
    ] = "cosine"
    warm_up: Annotated[
        int,
        OptimizationOption(
            metavar="N", help="First epochs, in which only the new layers learn, if --weights is given."
        ),
    ] = 1
    train_from: Annotated[
        str | None,
        OptimizationOption(metavar="STAGE", help="First backbone stage to train.", show_default="train all stages"),
    ] = None
    amp: Annotated[
        str, OptimizationOption(metavar="FORMAT", help="Number format of the backbone: off, bf16 or fp16.")
    ] = "off"

    classes_per_batch: Annotated[int, BatchOption(metavar="N", help="Classes in a batch.")] = 32
    pictures_per_class: Annotated[int, BatchOption(metavar="N", help="Pictures of each class in a batch.")] = 2
    accumulate: Annotated[
        int, BatchOption(metavar="N", help="Compute a batch in N parts. The losses still see the whole batch.")
    ] = 1

    loss: Annotated[
        str,
        LossOption(
            metavar="NAME",
            help="Ranking loss: batch-hard, semi-hard, mixed, soft-margin, contrastive or multi-similarity.",
        ),
    ] = "batch-hard"
    margin: Annotated[
        float | None,
        LossOption(metavar="NUMBER", help="Margin of the ranking loss.", show_default="depends on the loss"),
    ] = None
    ranking_weight: Annotated[float, LossOption(metavar="WEIGHT", help="Weight of the ranking loss.")] = 1.0
    auxiliary_weight: Annotated[float, LossOption(metavar="WEIGHT", help="Weight of the classification loss.")] = 1.0
    no_auxiliary: Annotated[bool, LossOption("--no-auxiliary", help="Train without the classification loss.")] = False


def train(options: TrainOptions) -> None:
    """Train a CGD model, with recall after every epoch. For several processes, start it with torchrun."""
    share_cores()
    try:
        from cgd_train.trainer import train as run
    except ModuleNotFoundError as error:
        raise not_installed(error, "train") from error

    print(run(_config(options)))


def _config(options: TrainOptions) -> TrainConfig:
    from cgd_train.config import TrainConfig

    pixels = input_of(options)
    given = asdict(options)
    for name in ("crop", "filter", "no_boxes", "no_auxiliary", "no_centring"):
        del given[name]
    given |= asdict(pixels)
    given["size"] = given.pop("input_size")
    given["out"] = options.out or Path("runs") / f"{options.backbone}-{options.descriptors}"
    given["boxes"] = not options.no_boxes
    given["auxiliary"] = not options.no_auxiliary
    given["centred"] = not options.no_centring
    return TrainConfig(**given)
