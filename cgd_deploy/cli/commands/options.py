"""What several commands share: options, pictures that are left out, and how a result is told."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...errors import InputError
from ...resize import FILTERS, ResizeRule
from ...spec import IMAGENET_MEAN, IMAGENET_STD

if TYPE_CHECKING:
    from ...datasets.left_out import LeftOut, Pictures

ARTIFACTS = Path("artifacts")

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Threads = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="CPU threads.", show_default="all that this process may use")
]
Streams = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Parts of a batch that run at the same time and share the threads."),
]

Strict = Annotated[bool, typer.Option("--strict", help="Stop at the first bad picture instead of leaving it out.")]

Autotune = Annotated[
    bool,
    typer.Option(
        "--autotune",
        help="Measure which threads, streams and batch are fastest here, and keep them in ENGINE.tuning.json.",
    ),
]

ModelOption = partial(typer.Option, rich_help_panel="Model")
Backbone = Annotated[str, ModelOption(metavar="NAME", help="A name in torchvision, or seresnet50 of timm.")]
Descriptors = Annotated[
    str, ModelOption(metavar="LETTERS", help="S, M and G in order; the first one feeds the auxiliary loss.")
]
Dim = Annotated[int, ModelOption(metavar="N", help="Length of the joined descriptor.")]
Size = Annotated[
    str | None,
    ModelOption(
        metavar="PIXELS",
        help="Input as N or HEIGHTxWIDTH. Pictures are stretched to it; with --resize, it is the crop.",
        show_default="224",
    ),
]
Resize = Annotated[
    int | None,
    ModelOption(
        metavar="PIXELS",
        help="Resize the shorter side to this, keep the aspect ratio, and cut the input out of the centre.",
    ),
]
Crop = Annotated[
    str | None,
    ModelOption(
        metavar="PIXELS", help="Input that is cut out after --resize, as N or HEIGHTxWIDTH.", show_default="--size"
    ),
]
Filter = Annotated[str, ModelOption(metavar="NAME", help=f"Filter of the resize: {', '.join(FILTERS)}.")]
Mean = Annotated[str, ModelOption(metavar="R,G,B", help="Mean of each channel, for pixels divided by 255.")]
Std = Annotated[
    str, ModelOption(metavar="R,G,B", help="Standard deviation of each channel, for pixels divided by 255.")
]
MEAN, STD = (",".join(map(str, numbers)) for numbers in (IMAGENET_MEAN, IMAGENET_STD))
NoDownsample = Annotated[
    str, ModelOption(metavar="STAGE", help="Stage that loses its stride: layer2, layer3, layer4 or none.")
]
GemP = Annotated[float, ModelOption(metavar="P", help="Exponent of GeM.")]


def tell(facts: object, sentence: str, as_json: bool) -> None:
    print(json.dumps(facts) if as_json else sentence)


def good_pictures(pictures: Pictures, strict: bool, left_out: list[LeftOut]) -> Pictures:
    """The pictures that can be decoded; the others are told, and added to ``left_out``."""
    from ...datasets.left_out import without_bad
    from ..terminal import phases, tell_left_out

    with phases() as on_progress:
        good, bad = without_bad(pictures, strict=strict, on_progress=on_progress)
    tell_left_out(bad)
    left_out += bad
    return good


@dataclass(frozen=True, kw_only=True, slots=True)
class Input:
    """The fields of a ModelSpec that say what pixels the model sees.

    input_size  height and width
    """

    input_size: tuple[int, int]
    resize: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def input_of(size: str | None, resize: int | None, crop: str | None, filter: str, mean: str, std: str) -> Input:
    """Turn the options into the model's input. Raises InputError or SpecError for options that do not fit."""
    if crop is not None and resize is None:
        raise InputError("--crop cuts pictures that --resize has resized; add --resize PIXELS, or pass --size instead.")
    if crop is not None and size is not None:
        raise InputError("--size and --crop both name the model's input; pass one of them.")
    return Input(
        input_size=_size("--size", "224" if size is None else size) if crop is None else _size("--crop", crop),
        resize=str(ResizeRule(filter, resize)),
        mean=_channels("--mean", mean),
        std=_channels("--std", std),
    )


def _size(option: str, text: str) -> tuple[int, int]:
    if (sides := re.fullmatch(r"([0-9]{1,5})(?:[xX]([0-9]{1,5}))?", text)) is None:
        raise InputError(f"{option}={text!r:.60} is no size; expected N or HEIGHTxWIDTH, for example 224 or 256x128.")
    return int(sides[1]), int(sides[2] or sides[1])


def _channels(option: str, text: str) -> tuple[float, float, float]:
    try:
        red, green, blue = map(float, text.split(","))
    except ValueError as error:
        raise InputError(f"{option}={text!r:.60} is not R,G,B; expected three numbers, for example {MEAN}.") from error
    if max(numbers := (red, green, blue)) > 1:
        divided = ",".join(f"{number / 255:.4g}" for number in numbers)
        raise InputError(f"{option}={text} is for pixels from 0 to 255; divide it by 255, and pass {option} {divided}.")
    return numbers
