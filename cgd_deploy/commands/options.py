"""What several commands share: options, pictures that are left out, and how a result is told."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ..left_out import LeftOut, Pictures

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

ModelOption = partial(typer.Option, rich_help_panel="Model")
Backbone = Annotated[str, ModelOption(metavar="NAME", help="A name in torchvision, or seresnet50 of timm.")]
Descriptors = Annotated[
    str, ModelOption(metavar="LETTERS", help="S, M and G in order; the first one feeds the auxiliary loss.")
]
Dim = Annotated[int, ModelOption(metavar="N", help="Length of the joined descriptor.")]
Size = Annotated[int, ModelOption(metavar="PIXELS", help="Input height and width.")]
NoDownsample = Annotated[
    str, ModelOption(metavar="STAGE", help="Stage that loses its stride: layer2, layer3, layer4 or none.")
]
GemP = Annotated[float, ModelOption(metavar="P", help="Exponent of GeM.")]


def tell(facts: object, sentence: str, as_json: bool) -> None:
    print(json.dumps(facts) if as_json else sentence)


def good_pictures(pictures: Pictures, strict: bool, left_out: list[LeftOut]) -> Pictures:
    """The pictures that can be decoded; the others are told, and added to ``left_out``."""
    from ..left_out import without_bad
    from ..terminal import phases, tell_left_out

    with phases() as on_progress:
        good, bad = without_bad(pictures, strict=strict, on_progress=on_progress)
    tell_left_out(bad)
    left_out += bad
    return good
