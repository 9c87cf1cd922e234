"""The choice of an engine: what each precision costs and keeps, and the row of a frontier that a user picks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..files import parse_json
from ..spec import Precision
from .terminal import errors

if TYPE_CHECKING:
    from .commands.build_engine import BuildEngineOptions

KEPT = {
    Precision.FP32: "all",
    Precision.FP16: "0.99",
    Precision.BF16: "0.96 to 0.98",
    Precision.INT8: "0.85 to 0.93",
}
"""Overlap@10 with FP32, measured on CARS196 with trained and untrained ResNet-50 models."""


def explain_precisions(backend: str) -> None:
    """Print two lines on stderr: the precisions of this machine, fastest first, and the neighbours that each keeps."""
    from cgd_export.engine_from_onnx import choose_backend
    from cgd_export.typed import precisions_here

    chosen = choose_backend(backend)
    able = precisions_here(chosen)
    errors.print(f"{chosen} here, fastest first: {', '.join(f'--{precision.value}' for precision in able)}.")
    kept = ", ".join(f"--{one.value} {KEPT[one]}" for one in Precision if one in able and one in KEPT)
    errors.print(
        f"Of the ten nearest neighbours of ResNet-50, they keep: {kept}; --min-overlap makes --int8 keep more."
    )


def measured(path: Path) -> dict[str, Any]:
    """The frontier that build-engine --frontier wrote to ``path``. Raises InputError if there is none."""
    if not path.is_file():
        raise InputError(f"there is no {path}; measure it with build-engine --int8 --frontier --data PICTURES.")
    try:
        found: dict[str, Any] = parse_json(path.read_bytes())
        names = [row["name"] for row in found["rows"]]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is not a frontier of this release; measure it again with --frontier.") from error
    if not names:
        raise InputError(f"{path} has no rows; measure it again with --frontier.")
    return found


def picked(options: BuildEngineOptions) -> BuildEngineOptions:
    """The options with the precision, the backend and the file of the row that ``options.pick`` names.

    Raises InputError if there is no such row, or if other options contradict it.
    """
    from cgd_export.frontier import find_row

    if options.data or options.calibration != "auto" or options.reduced_range is not None or options.int8_float:
        raise InputError("--pick builds a row as it was measured; leave --data and the options of INT8 out.")
    name, found = options.pick or "", measured(options.frontier_file)
    precision = Precision(find_row(found, name)["precision"])
    if any(getattr(options, other.value) for other in Precision if other is not precision):
        raise InputError(f"{name} is a {precision.value} engine; leave the other precision out.")
    if options.backend not in ("auto", found["backend"]):
        raise InputError(f"{name} was measured with {found['backend']}; leave --backend out, or repeat --frontier.")
    return replace(
        options,
        backend=found["backend"],
        out=options.out or options.model.with_name(f"{options.model.stem}-{name}.cgd"),
        int8=precision is Precision.INT8,
        bf16=precision is Precision.BF16,
        fp32=precision is Precision.FP32,
    )
