"""The command line: gives commands their names, and errors their exit status."""

from __future__ import annotations

import io
import sys
import warnings
from collections.abc import Callable
from typing import Annotated

import typer

from .commands import making, serving, using
from .errors import CgdError
from .limits import parse_limit, set_limits

app = typer.Typer(
    help="Serve trained CGD image-retrieval models fast, without losing neighbours.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # brackets in a help text are not markup
)

COMMANDS: dict[str, Callable[..., None]] = {
    "demo": making.demo,
    "train": making.train,
    "import": making.import_,
    "export": making.export,
    "build-engine": making.build_engine,
    "bench": using.bench,
    "embed": using.embed,
    "search": using.search,
    "export-triton": serving.export_triton,
    "install-native": serving.install_native,
    "inspect": using.inspect,
    "doctor": using.doctor,
}
for name, command in COMMANDS.items():
    app.command(name)(command)


@app.callback()
def common(
    limit: Annotated[
        list[str] | None,
        typer.Option(help="NAME=VALUE of what is refused as too large, see SECURITY.md; may be repeated."),
    ] = None,
) -> None:
    for text in limit or ():
        set_limits(**parse_limit(text))


def main() -> None:
    """Entry point: a user's error becomes one line on stderr and its exit status, a bug keeps its traceback."""
    warnings.filterwarnings("ignore", module=r"PIL\.")  # a picture is used, or left out with a sentence of ours
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # a file name in another encoding is told as it is
    try:
        app(prog_name="cgd-deploy")
    except CgdError as error:
        print(f"cgd-deploy: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(error.exit_status)
