"""``cgd-deploy export-triton``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from ..options import Engine, Json


@dataclass(frozen=True, kw_only=True)
class ExportTritonOptions:
    engine: Engine
    out: Annotated[Path, typer.Option("-o", "--out", metavar="FOLDER", help="Model repository to write into.")]
    name: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Model name in the repository.", show_default="the engine's file name"),
    ] = None
    python: Annotated[
        bool, typer.Option("--python", help="Run the .cgd in Triton's Python backend, whatever backend it is for.")
    ] = False
    max_delay_ms: Annotated[
        float, typer.Option(min=0, metavar="MS", help="How long Triton may hold a request to fill a batch.")
    ] = 0.0
    as_json: Json = False


def export_triton(options: ExportTritonOptions) -> None:
    """Write a model repository for Triton Inference Server. Triton batches the requests."""
    from ...serving.triton import export_triton as run
    from ..terminal import print_result

    out = options.out
    model = run(options.engine, out, name=options.name, python=options.python, max_delay_ms=options.max_delay_ms)
    print_result(
        {"repository": str(out), "model": model.name, "backend": model.backend, "folder": str(model.folder)},
        f"{model.folder}: for Triton's {model.backend} backend; run `tritonserver --model-repository {out}`",
        options.as_json,
    )
