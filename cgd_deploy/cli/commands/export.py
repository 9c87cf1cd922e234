"""``cgd-deploy export``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from ..options import ARTIFACTS, Json

MODEL = ARTIFACTS / "model.onnx"


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="A checkpoint of train or import.")]
    out: Annotated[Path, typer.Option("-o", "--out", metavar="FILE", help="ONNX file to write.")] = MODEL
    keep_gem: Annotated[bool, typer.Option("--keep-gem", help="Keep GeM as the ONNX function cgd::GeM.")] = False
    as_json: Json = False


def export(options: ExportOptions) -> None:
    """Convert a checkpoint to ONNX and check it against torch."""
    from ...hardware.packages import check_runtime

    check_runtime()
    from cgd_export.onnx_from_checkpoint import calibration_beside, onnx_from_checkpoint

    from ...runtime.provenance import changes, contents, stale_engines
    from ..terminal import errors, print_result, warn

    checkpoint, out = options.checkpoint, options.out
    listed = calibration_beside(out)
    before = contents(out, listed)
    with errors.status("Exporting"):
        parity = onnx_from_checkpoint(checkpoint, out, keep_gem=options.keep_gem)
    for change in changes(before):
        warn(change)
    if before[listed] and not listed.exists():
        warn(f"{listed} was deleted: {checkpoint} records no calibration pictures; pass --calib to build INT8 engines.")
    for engine, reason in stale_engines(out.parent).items():
        warn(f"{engine} is stale: {reason}; build it again.")
    print_result(
        {"path": str(out), "cosine_min": parity.cosine_min, "pictures": parity.pictures},
        f"{out}: smallest cosine with torch {parity.cosine_min:.7f}, {parity.pictures} pictures singly and in a batch",
        options.as_json,
    )
