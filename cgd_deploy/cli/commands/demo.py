"""``cgd-deploy demo``."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from ..options import ARTIFACTS


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    out: Annotated[
        Path, typer.Option("-o", "--out", metavar="FOLDER", help="Folder for every file that the demo writes.")
    ] = ARTIFACTS / "demo"
    seed: Annotated[int, typer.Option(metavar="N", help="Random seed of the pictures and the training.")] = 0


def demo(options: DemoOptions) -> None:
    """Run the whole pipeline on made pictures and write a report."""
    share_cores()
    from ...demo.run import run_demo

    run_demo(options.out, options.seed)


def share_cores() -> None:
    """Let torch's idle threads sleep, before torch is imported.

    Spinning threads train 4 to 6 times slower once another process needs a core.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
