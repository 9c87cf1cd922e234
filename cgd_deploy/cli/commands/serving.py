"""Commands that take an engine into other people's services."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import Json, tell


def export_triton(
    engine: Annotated[Path, typer.Argument(metavar="ENGINE", help="A .cgd engine.")],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="FOLDER", help="Model repository to write into.")],
    name: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Model name in the repository.", show_default="the engine's file name"),
    ] = None,
    python: Annotated[
        bool,
        typer.Option("--python", help="Run the .cgd in Triton's Python backend, whatever the engine's backend is."),
    ] = False,
    max_delay_ms: Annotated[
        float, typer.Option(min=0, metavar="MS", help="How long Triton holds a request for a fuller batch.")
    ] = 0.0,
    as_json: Json = False,
) -> None:
    """Write a model repository for Triton Inference Server. It batches dynamically."""
    from ...serving.triton import export_triton as run

    model = run(engine, out, name=name, python=python, max_delay_ms=max_delay_ms)
    facts = {"repository": str(out), "model": model.name, "backend": model.backend, "folder": str(model.folder)}
    tell(
        facts,
        f"{model.folder}: for Triton's {model.backend} backend; run `tritonserver --model-repository {out}`",
        as_json,
    )


def install_native(
    prefix: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder that gets include/, lib/ and share/.")],
    as_json: Json = False,
) -> None:
    """Build and install libcgd.so for C and C++. The library runs this Python. pkg-config and CMake find it."""
    from ...serving.native.install import install_native as run

    files = run(prefix)
    facts = {"prefix": str(prefix), "files": [str(path) for path in files]}
    tell(facts, f"{prefix}: {', '.join(str(path.relative_to(prefix)) for path in files)}", as_json)
