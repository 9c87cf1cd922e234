"""The command line: names the commands, holds the options of all commands, and turns errors into exit statuses."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from dataclasses import fields
from typing import Annotated, Any

import typer

from ..errors import CgdError
from ..hardware.packages import package_version
from ..limits import Limits, parse_limit, set_limits
from . import logs, stdio
from .commands.bench import bench
from .commands.build_engine import build_engine
from .commands.demo import demo
from .commands.doctor import doctor
from .commands.duplicates import duplicates
from .commands.embed import embed
from .commands.export import export
from .commands.export_triton import export_triton
from .commands.import_ import import_
from .commands.inspect import inspect
from .commands.install_native import install_native
from .commands.search import search
from .commands.serve import serve
from .commands.train import train
from .parser import Command, Group, parsed

GROUPS: dict[str, dict[str, Callable[[Any], None]]] = {
    "Try it": {"demo": demo, "doctor": doctor},
    "Make an engine": {"train": train, "import": import_, "export": export, "build-engine": build_engine},
    "Measure an engine": {"bench": bench, "inspect": inspect},
    "Use an engine": {"embed": embed, "search": search, "duplicates": duplicates},
    "Serve an engine": {"serve": serve, "export-triton": export_triton, "install-native": install_native},
}
COMMANDS = {name: command for group in GROUPS.values() for name, command in group.items()}

app = typer.Typer(
    help="Serve trained CGD image-retrieval models fast, without losing neighbours.",
    cls=Group,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # brackets in a help text are not markup
    context_settings={"max_content_width": sys.maxsize},  # help is as wide as the terminal
)
for title, group in GROUPS.items():
    for name, command in group.items():
        app.command(name, cls=Command, rich_help_panel=title)(parsed(command))


def show_version(wanted: bool) -> None:
    if wanted:
        print(f"cgd-deploy {package_version('cgd-deploy') or 'from a checkout that is not installed'}")
        raise typer.Exit


@app.callback()
def common(
    limit: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="Change the limit of an input; may be repeated. "
            f"Names: {', '.join(field.name for field in fields(Limits))}.",
        ),
    ] = None,
    quiet: Annotated[
        bool, typer.Option("--quiet", help="Show only results and errors, no progress and notes.")
    ] = False,
    log_level: Annotated[
        logs.Level | None,
        typer.Option(metavar="LEVEL", help="Log to stderr: debug, info, warning or error.", show_default="no log"),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=show_version, help="Show the version and exit.")
    ] = False,
) -> None:
    for text in limit or ():
        set_limits(**parse_limit(text))
    if log_level:
        logs.log_to_stderr(log_level)
    if quiet:
        from .terminal import errors

        errors.quiet = True


def main() -> None:
    """Run the command that ``sys.argv`` names, and exit.

    An error of the user becomes one line on stderr and its exit status. A bug keeps its traceback.
    """
    warnings.filterwarnings("ignore", module=r"PIL\.")  # our own messages say which pictures are left out
    stdio.take_over()
    status = _exit_status(lambda: app(prog_name="cgd-deploy"))
    sys.exit(_exit_status(sys.stdout.flush) or status)


def _exit_status(call: Callable[[], Any]) -> Any:
    """Call, print the error if there is one, and return the exit status."""
    try:
        call()
    except SystemExit as end:
        return end.code
    except CgdError as error:
        print(f"cgd-deploy: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_status
    return 0
