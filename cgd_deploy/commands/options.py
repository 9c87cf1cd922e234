"""What several commands share: options, and how a result is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

ARTIFACTS = Path("artifacts")

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads [default: all this process may use].")]
Streams = Annotated[int | None, typer.Option(min=1, help="Parts of a batch at the same time, which share the threads.")]

Backbone = Annotated[str, typer.Option(help="Name in torchvision, or seresnet50 of timm.")]
Descriptors = Annotated[str, typer.Option(help="S, M and G in order; the first feeds the auxiliary loss.")]
Dim = Annotated[int, typer.Option(help="Length of the joined descriptor.")]
Size = Annotated[int, typer.Option(help="Input height and width in pixels.")]
NoDownsample = Annotated[str, typer.Option(help="Stage that loses its stride: layer2, layer3, layer4 or none.")]
GemP = Annotated[float, typer.Option(help="GeM's exponent.")]


def tell(facts: object, sentence: str, as_json: bool) -> None:
    print(json.dumps(facts) if as_json else sentence)
