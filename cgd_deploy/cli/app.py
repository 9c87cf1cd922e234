"""The command line: names the commands, sets what they share, and turns errors into exit statuses."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable
from dataclasses import fields
from enum import Enum
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from ..errors import CgdError
from ..hardware.packages import package_version
from ..limits import Limits, parse_limit, set_limits
from . import stdio
from .commands import making, serving, using

app = typer.Typer(
    help="Serve trained CGD image-retrieval models fast, without losing neighbours.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # brackets in a help text are not markup
    context_settings={"max_content_width": sys.maxsize},  # help is as wide as the terminal
)


def help_sections(command: Any, ctx: Any) -> dict[str, list[tuple[str, str]]]:
    """(name, text) of each argument and option, by the title of its section; arguments without their Python types."""
    sections: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
    for param in command.get_params(ctx):
        name, text = param.get_help_record(ctx)
        if param.param_type_name == "argument":
            sections["Arguments"].append((name.split()[0], text))
        else:
            sections.setdefault(param.rich_help_panel or "Options", []).append((name, text))
    return {title: records for title, records in sections.items() if records}


class Command(TyperCommand):
    """A command whose help lists its options in sections."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        for title, records in help_sections(self, ctx).items():
            with formatter.section(title):
                formatter.write_dl(records)


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
    app.command(name, cls=Command)(command)


class LogLevel(str, Enum):
    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class StderrHandler(logging.Handler):
    """Prints to the current ``sys.stderr``, which a progress bar replaces while it is drawn."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr)


def log_to_stderr(level: LogLevel) -> None:
    handler = StderrHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger = logging.getLogger("cgd_deploy")
    logger.handlers = [handler]
    logger.setLevel(level.name)


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
            help="Change how large an input may be; may be repeated. "
            f"Names: {', '.join(field.name for field in fields(Limits))}.",
        ),
    ] = None,
    quiet: Annotated[
        bool, typer.Option("--quiet", help="Show only results and errors: no progress bars, no notes.")
    ] = False,
    log_level: Annotated[
        LogLevel | None,
        typer.Option(metavar="LEVEL", help="Log to stderr: debug, info, warning or error.", show_default="no log"),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=show_version, help="Show the version and exit.")
    ] = False,
) -> None:
    for text in limit or ():
        set_limits(**parse_limit(text))
    if log_level:
        log_to_stderr(log_level)
    if quiet:
        from .terminal import errors

        errors.quiet = True


def main() -> None:
    """Entry point: a user's error becomes one line on stderr and its exit status, a bug keeps its traceback."""
    warnings.filterwarnings("ignore", module=r"PIL\.")  # a picture is used, or left out with a sentence of ours
    stdio.take_over()
    status = _run(lambda: app(prog_name="cgd-deploy"))
    sys.exit(_run(sys.stdout.flush) or status)


def _run(call: Callable[[], Any]) -> Any:
    """The exit status of ``call``, whose error is told."""
    try:
        call()
    except SystemExit as end:
        return end.code
    except CgdError as error:
        print(f"cgd-deploy: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_status
    return 0
