"""Which pixels a model sees: the options of train and import, and the fields of a ModelSpec that they become."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import typer

from ..errors import InputError
from ..resize import FILTERS, ResizeRule
from ..spec import IMAGENET_MEAN, IMAGENET_STD

MEAN, STD = (",".join(map(str, numbers)) for numbers in (IMAGENET_MEAN, IMAGENET_STD))

PixelOption = partial(typer.Option, rich_help_panel="Input of the model")


@dataclass(frozen=True, kw_only=True)
class PixelOptions:
    """The options as the user types them."""

    size: Annotated[
        str | None,
        PixelOption(
            metavar="PIXELS",
            help="Input size, as N or HEIGHTxWIDTH. Pictures are stretched to it, or cut to it after --resize.",
            show_default="224",
        ),
    ] = None
    resize: Annotated[
        int | None,
        PixelOption(metavar="PIXELS", help="Resize the shorter side to this length, then cut out the centre."),
    ] = None
    crop: Annotated[
        str | None,
        PixelOption(
            metavar="PIXELS", help="Input size to cut out after --resize, as N or HEIGHTxWIDTH.", show_default="--size"
        ),
    ] = None
    filter: Annotated[str, PixelOption(metavar="NAME", help=f"Filter that resizes pictures: {', '.join(FILTERS)}.")] = (
        "bilinear"
    )
    mean: Annotated[str, PixelOption(metavar="R,G,B", help="Mean of each channel, for pixels divided by 255.")] = MEAN
    std: Annotated[
        str, PixelOption(metavar="R,G,B", help="Standard deviation of each channel, for pixels divided by 255.")
    ] = STD


@dataclass(frozen=True, kw_only=True, slots=True)
class Input:
    """Fields of a ModelSpec.

    input_size  height and width in pixels
    resize      a ResizeRule as text
    mean, std   of red, green and blue, for pixels divided by 255
    """

    input_size: tuple[int, int]
    resize: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def input_of(options: PixelOptions) -> Input:
    """Parse the options. Raises InputError or SpecError if an option is malformed or two options exclude each other."""
    size, crop = options.size, options.crop
    if crop is not None and options.resize is None:
        raise InputError("--crop cuts pictures that --resize has resized; add --resize PIXELS, or pass --size instead.")
    if crop is not None and size is not None:
        raise InputError("--size and --crop both name the model's input; pass one of them.")
    return Input(
        input_size=_size("--size", "224" if size is None else size) if crop is None else _size("--crop", crop),
        resize=str(ResizeRule(options.filter, options.resize)),
        mean=_channels("--mean", options.mean),
        std=_channels("--std", options.std),
    )


def _size(option: str, text: str) -> tuple[int, int]:
    if (sides := re.fullmatch(r"([0-9]{1,5})(?:[xX]([0-9]{1,5}))?", text)) is None:
        raise InputError(f"{option}={text!r:.60} is not a size; expected N or HEIGHTxWIDTH, such as 224 or 256x128.")
    return int(sides[1]), int(sides[2] or sides[1])


def _channels(option: str, text: str) -> tuple[float, float, float]:
    try:
        red, green, blue = map(float, text.split(","))
    except ValueError as error:
        raise InputError(f"{option}={text!r:.60} is not R,G,B; expected three numbers, such as {MEAN}.") from error
    if max(numbers := (red, green, blue)) > 1:
        divided = ",".join(f"{number / 255:.4g}" for number in numbers)
        raise InputError(f"{option}={text} is for pixels from 0 to 255; divide it by 255, and pass {option} {divided}.")
    return numbers
