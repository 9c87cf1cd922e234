"""``cgd-deploy install-native``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from ..options import Json


@dataclass(frozen=True, kw_only=True)
class InstallNativeOptions:
    prefix: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder that gets include/ and lib/.")]
    embed_python: Annotated[
        bool,
        typer.Option("--embed-python", help="Build the library that runs this Python, for all engines."),
    ] = False
    as_json: Json = False


def install_native(options: InstallNativeOptions) -> None:
    """Build and install libcgd.so for C and C++. Programs need no Python; pkg-config and CMake find the library."""
    from ...serving.native.install import install_native as run
    from ..terminal import print_result

    prefix = options.prefix
    files = run(prefix, options.embed_python)
    facts = {"prefix": str(prefix), "files": [str(path) for path in files]}
    print_result(facts, f"{prefix}: {', '.join(str(path.relative_to(prefix)) for path in files)}", options.as_json)
