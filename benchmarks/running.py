"""What the benchmarks' commands share: progress while they measure, then a JSON file and a chart beside it."""

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
from cgd_deploy.quality.bench import OnProgress

Result = dict[str, Any]


def run(
    measure: Callable[[argparse.Namespace, OnProgress], Result],
    chart: Callable[[Result, Path], None],
    options: argparse.Namespace,
) -> Result:
    """What ``measure`` found, once it stands in ``options.output`` and its chart beside that.

    Ends as cgd-deploy does where it raises CgdError: the sentence on stderr, and its exit status.
    """
    drawing = options.output.with_suffix(".svg")
    try:
        with phases() as on_progress:
            result = measure(options, on_progress)
        write_text(options.output, json.dumps(result, indent=1) + "\n")
        chart(result, drawing)
    except CgdError as error:
        errors.print(str(error))
        sys.exit(error.exit_status)
    print(f"wrote {options.output} and its chart {drawing}")
    return result
