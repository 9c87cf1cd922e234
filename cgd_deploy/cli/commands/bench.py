"""``cgd-deploy bench``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from zipfile import is_zipfile

import typer

from ...errors import GateError, InputError
from ..options import ARTIFACTS, Streams, Strict, Threads

if TYPE_CHECKING:
    from ...quality.report import QueryRow

MeasureOption = partial(typer.Option, rich_help_panel="What to measure")
SpeedOption = partial(typer.Option, rich_help_panel="Speed")
GateOption = partial(typer.Option, rich_help_panel="Gate")


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    engines: Annotated[
        list[Path] | None,
        typer.Argument(metavar="ENGINE", help="The .cgd engines to measure.", show_default="those in artifacts/"),
    ] = None

    data: Annotated[
        Path | None,
        MeasureOption(
            metavar="PICTURES",
            help="Test pictures: one folder per class, or a LIST.tsv.",
            show_default="the checkpoint's test pictures",
        ),
    ] = None
    reference: Annotated[
        Path | None,
        MeasureOption(
            metavar="FILE", help="Checkpoint or FP32 engine to compare with.", show_default="the engine's checkpoint"
        ),
    ] = None
    descriptor_dtype: Annotated[
        list[str] | None,
        MeasureOption(
            metavar="TYPE", help="Also measure a gallery kept as float32, float16, int8 or binary; may be repeated."
        ),
    ] = None
    pca: Annotated[
        list[int] | None,
        MeasureOption(metavar="N", help="Also measure a gallery of N principal components; may be repeated."),
    ] = None

    batch: Annotated[
        list[int] | None,
        SpeedOption(min=1, metavar="N", help="Batch to time; may be repeated.", show_default="1 and 8"),
    ] = None
    seconds: Annotated[float, SpeedOption(min=0, metavar="S", help="How long to time each batch size.")] = 20.0
    threads: Threads = None
    streams: Streams = None

    max_recall_drop: Annotated[
        float | None,
        GateOption(metavar="POINTS", help="Largest loss of recall@1 that passes, in percentage points."),
    ] = None
    min_overlap: Annotated[
        float | None, GateOption(metavar="SHARE", help="Smallest overlap@10 that passes, from 0 to 1.")
    ] = None

    confident: Annotated[
        bool,
        GateOption("--confident", help="Limits hold at the worse end of the 95 % interval, not only for the mean."),
    ] = False

    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="FILE", help="Write the result to a JSON file.")
    ] = None
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a report with charts and pictures.")] = None
    strict: Strict = False
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the result as JSON. --json FILE.json writes it there instead.")
    ] = False


def bench(options: BenchOptions) -> None:
    """Measure engines' speed and retrieval against their model. Exit 3 if the gate fails."""
    from ...hardware.packages import check_runtime

    paths, out, printed = _files(options)
    check_runtime()
    from ...datasets.left_out import LeftOut
    from ...files import write_text
    from ...quality.report import write_bench_report
    from ..results import print_bench
    from ..terminal import tell_left_out

    result, rows = _measure(paths or _engines_of_artifacts(), options)
    tell_left_out(LeftOut(**picture) for picture in result["left_out"])
    if out:
        write_text(out, json.dumps(result, indent=1) + "\n")
    if options.html:
        write_bench_report(options.html, result, rows)
    if printed:
        print(json.dumps(result))
    else:
        print_bench(result)
    if failures := result["gate"]["failures"]:
        raise GateError("; ".join(failures))


def _files(options: BenchOptions) -> tuple[list[Path], Path | None, bool]:
    """The engines, the JSON file to write, and whether to print JSON. Raises InputError if a file would be lost."""
    paths, named = _engines_and_json_file(options.engines or [], options.as_json)
    if named and options.out:
        raise InputError(f"--out {options.out} and --json {named} name two JSON files; leave one of them out.")
    out = options.out or named
    for written in (out, options.html):
        if written and _is_zip(written):
            raise InputError(f"{written} is an engine or a checkpoint, and bench would replace it; name another file.")
    return paths, out, options.as_json and not named


def _engines_and_json_file(arguments: list[Path], as_json: bool) -> tuple[list[Path], Path | None]:
    """Tell engines from the FILE.json of ``--json FILE.json``: --json is a flag, so FILE.json is an argument."""
    if not as_json:
        return arguments, None
    files = [path for path in arguments if path.suffix == ".json"]
    engines = [path for path in arguments if path not in files]
    if len(files) > 1:
        raise InputError(f"bench writes one JSON file, and {files[0]} and {files[1]} are two; leave one out.")
    if odd := next((path for path in engines if path.suffix != ".cgd" and not _is_zip(path)), None):
        raise InputError(f"{odd} is not an engine; to write JSON into it pass --out {odd}, or end its name in .json.")
    return engines, next(iter(files), None)


def _is_zip(path: Path) -> bool:
    """Whether a file is a zip, as engines and checkpoints are. Does not open pipes: that would wait."""
    return path.is_file() and is_zipfile(path)


def _engines_of_artifacts() -> list[Path]:
    from ...runtime.provenance import engines_of_one_model
    from ..terminal import warn

    paths, left_out = engines_of_one_model(ARTIFACTS)
    for path, reason in left_out.items():
        warn(f"{path} is left out: {reason}; build it again, or name it to measure it.")
    return paths


def _measure(paths: list[Path], options: BenchOptions) -> tuple[dict[str, Any], list[QueryRow]]:
    from ...quality.bench import BenchOptions as Settings
    from ...quality.bench import bench as run
    from ..terminal import phases

    limits = {"max_recall_drop_pp": options.max_recall_drop, "min_overlap_at_10": options.min_overlap}
    settings = Settings(
        data=options.data,
        reference=options.reference,
        batch_sizes=options.batch or [1, 8],
        seconds=options.seconds,
        threads=options.threads,
        streams=options.streams or 1,
        limits={name: value for name, value in limits.items() if value is not None},
        confident=options.confident,
        descriptor_dtypes=options.descriptor_dtype or (),
        pcas=options.pca or (),
        strict=options.strict,
    )
    with phases() as on_progress:
        return run(paths, settings, on_progress)
