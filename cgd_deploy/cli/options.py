"""Options that several commands share. Reads nothing and prints nothing."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

ARTIFACTS = Path("artifacts")
"""The folder that export, build-engine and bench use unless the user names files."""

Engine = Annotated[Path, typer.Argument(metavar="ENGINE", help="A .cgd engine.")]
EngineOption = Annotated[Path, typer.Option("-e", "--engine", metavar="FILE", help="A .cgd engine.")]
Pictures = Annotated[
    list[str],
    typer.Argument(metavar="PICTURES", help="Folders, lists (LIST.tsv, .csv or .txt), glob patterns or pictures."),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Strict = Annotated[bool, typer.Option("--strict", help="Stop at the first bad picture instead of leaving it out.")]
Threads = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="CPU threads.", show_default="all that this process may use")
]
Streams = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Split a batch into N parts that run at the same time and share --threads."),
]
Autotune = Annotated[
    bool,
    typer.Option(
        "--autotune",
        help="Measure which threads, streams and batch are fastest here, and write them to ENGINE.tuning.json.",
    ),
]

ModelOption = partial(typer.Option, rich_help_panel="Model")
Backbone = Annotated[str, ModelOption(metavar="NAME", help="A model of torchvision, or seresnet50 of timm.")]
Descriptors = Annotated[
    str,
    ModelOption(metavar="LETTERS", help="One to three of S, M and G, such as SG. The auxiliary loss uses the first."),
]


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Options of train and import that describe the model."""

    backbone: Backbone
    descriptors: Descriptors
    dim: Annotated[int, ModelOption(metavar="N", help="Length of the joined descriptor.")] = 1536
    no_downsample: Annotated[
        str, ModelOption(metavar="STAGE", help="Stage whose stride is removed: layer2, layer3, layer4 or none.")
    ] = "layer4"
    gem_p: Annotated[float, ModelOption(metavar="P", help="Exponent of GeM.")] = 3.0
