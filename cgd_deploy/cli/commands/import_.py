"""``cgd-deploy import``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer

from ...errors import not_installed
from ..options import ModelOption, ModelOptions
from ..pixels import PixelOptions, input_of


@dataclass(frozen=True, kw_only=True)
class ImportOptions(PixelOptions, ModelOptions):
    weights: Annotated[
        Path,
        typer.Argument(
            metavar="WEIGHTS",
            help="Weights of a backbone or of a CGD model: .pth, .pt, .ckpt or .safetensors; or the word torchvision, "
            "which downloads torchvision's ImageNet weights.",
        ),
    ]
    gem_eps: Annotated[
        float, ModelOption(metavar="EPS", help="Lower clamp of GeM; 0 if the original code does not clamp.")
    ] = 1e-6
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="PICTURES",
            help="Data set. Its training pictures calibrate INT8, and bench searches its test pictures.",
        ),
    ] = None
    head_init: Annotated[
        str,
        ModelOption(
            metavar="NAME",
            help="Linear layers of a bare backbone: whitened by the training pictures of --data, or random.",
        ),
    ] = "whitened"
    prefix: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Which model of a file with several models, such as teacher or ema.model.",
            show_default="the only one, else averaged weights",
        ),
    ] = None
    out: Annotated[Path, typer.Option("-o", "--out", metavar="FILE", help="Checkpoint to write.")] = Path("ckpt.pt")


def import_(options: ImportOptions) -> None:
    """Make a checkpoint from weights of another program. Warnings name what the weights cannot confirm."""
    from ...spec import ModelSpec
    from ..terminal import warn

    spec = ModelSpec(
        backbone=options.backbone,
        descriptors=options.descriptors,
        dim=options.dim,
        no_downsample=options.no_downsample,
        gem_p=options.gem_p,
        gem_eps=options.gem_eps,
        **asdict(input_of(options)),
    )
    try:
        from cgd_train.foreign import import_checkpoint
    except ModuleNotFoundError as error:
        raise not_installed(error, "train") from error

    for warning in import_checkpoint(
        options.weights, spec, options.out, data=options.data, prefix=options.prefix, head_init=options.head_init
    ):
        warn(warning)
    print(options.out)
