"""The start and end of each benchmark's command: options, progress, a JSON file and a chart beside it."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cgd_deploy import CgdError
from cgd_deploy.cli.terminal import errors, phases
from cgd_deploy.files import write_text
from cgd_deploy.quality.contestants import OnProgress

Result = dict[str, Any]


def parser(doc: str | None, output: str | Path) -> argparse.ArgumentParser:
    """A parser with the first line of a module's docstring as its summary, and with -o for the JSON."""
    found = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    found.add_argument(
        "-o", "--output", type=Path, default=Path(output), help="JSON to write; a chart goes beside it, if there is one"
    )
    return found


def run(
    measure: Callable[[argparse.Namespace, OnProgress], Result],
    options: argparse.Namespace,
    chart: Callable[[Result, Path], None] | None = None,
) -> Result:
    """Measure, then write the result to ``options.output`` and its chart beside that; returns the result.

    A CgdError ends the process as it ends cgd-deploy: its sentence goes to stderr, and its exit status counts.
    """
    try:
        with phases() as on_progress:
            result = measure(options, on_progress)
        write_text(options.output, json.dumps(result, indent=1) + "\n")
        if chart:
            chart(result, options.output.with_suffix(".svg"))
    except CgdError as error:
        errors.print(str(error))
        sys.exit(error.exit_status)
    drawn = f" and its chart {options.output.with_suffix('.svg')}" if chart else ""
    print(f"wrote {options.output}{drawn}")
    return result


def show(result: Result, *names: str) -> None:
    """Print these parts of a result as JSON."""
    print(json.dumps({name: result[name] for name in names}))
