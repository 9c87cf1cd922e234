"""Progress bars and tables for people, on stderr and stdout."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from ..datasets.evaluation import left_out_queries
from ..datasets.left_out import LeftOut
from ..hardware.timing import load_warning
from ..quality.formatting import change as _change
from ..quality.formatting import change_interval
from ..quality.formatting import percent as _percent
from ..quality.report import form_name, headline, notes, warnings
from ..runtime.enginefile import Manifest
from ..runtime.tuning import Setting
from ..spec import Precision

NUMBER_WIDTH = 6
FIRST = 10
"""Lines of one kind that are printed one by one."""
REASONS = 5
"""Different reasons that are told of the others."""
KEPT_AS = "engine, gallery kept as"
TRIED = "recipe, in float"

errors = Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)
output = Console(highlight=False, markup=False, emoji=False)


def warn(text: str) -> None:
    """Print a warning on stderr."""
    errors.print(f"warning: {text}", style="yellow", soft_wrap=True)


def warn_all(notes: Iterable[str]) -> None:
    """Print each note as a warning on stderr, and a note that comes twice once."""
    for note in dict.fromkeys(notes):
        warn(note)


def warn_of_load(load: Mapping[str, Any]) -> None:
    """Warn if the machine was busy while speed was measured, or if nobody knows, see ``timing.load_between``."""
    if warning := load_warning(load):
        warn(warning)


@contextmanager
def counting(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar over ``total`` things, if there are any; call what it yields with the number just done."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=errors, transient=True, disable=not (total and _shows_bars())) as progress:
        task = progress.add_task(what, total=total)
        yield lambda count: progress.advance(task, count)


@contextmanager
def first_few(title: str) -> Iterator[Callable[[str, str], None]]:
    """Print the first lines on stderr; if there are more, one last line tells how many, and the most common reasons.

    Yields a function that takes a line and its reason. Reasons that differ only in numbers, or in the advice after the
    semicolon, are counted together.
    """
    reasons: Counter[str] = Counter()

    def tell(line: str, reason: str) -> None:
        reasons[re.sub(r"\d[\d,]*", "N", reason.rpartition("; ")[0] or reason)] += 1
        if reasons.total() <= FIRST:
            errors.print(line, style="yellow")

    yield tell
    if reasons.total() > FIRST:
        told = [f"{count} x {reason}" for reason, count in reasons.most_common(REASONS)]
        if others := reasons.total() - sum(count for _, count in reasons.most_common(REASONS)):
            told.append(f"{others} x other reasons")
        errors.print(f"{title}: {reasons.total()} in all, {', '.join(told)}", style="yellow")


def tell_left_out(left_out: Iterable[LeftOut]) -> None:
    """Print the pictures that were left out, see ``first_few``."""
    with first_few("left out") as tell:
        for picture in left_out:
            tell(str(picture), picture.reason)


@contextmanager
def phases() -> Iterator[Callable[[str, float], None]]:
    """A progress bar for each thing that is named; call what it yields with the name and the fraction done."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
    with Progress(*columns, console=errors, transient=True, disable=not _shows_bars()) as progress:
        tasks: dict[str, Any] = {}

        def update(what: str, done: float) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=1.0)
            progress.update(tasks[what], completed=done)

        yield update


def _shows_bars() -> bool:
    return errors.is_terminal and not errors.quiet


def search_lines(found: Sequence[tuple[Path, Sequence[tuple[str, float]]]]) -> str:
    """Each query, and below it rank, similarity and path of its neighbours in columns."""
    blocks = []
    for query, neighbours in found:
        width = len(str(len(neighbours)))
        lines = [f"  {rank:>{width}}  {s:7.4f}  {path}" for rank, (path, s) in enumerate(neighbours, start=1)]
        blocks.append("\n".join([str(query), *lines]))
    return "\n\n".join(blocks)


def build_summary(path: Path, manifest: Manifest) -> str:
    """What was built, the share of the convolution work in each precision, and how close it stays to FP32."""
    parity, proof = manifest.parity or {}, manifest.proof or {}
    shares = ", ".join(f"{share:.1%} {name}" for name, share in proof["flops_share"].items())
    layers = ", ".join(f"{count} {name}" for name, count in proof["layers"].items())
    close, measured_on = _closeness(parity), parity["measured_on"]
    if manifest.precision is Precision.TF32:
        shares += ", which the GPU may multiply in TF32"
        measured_on += ", in FP32" if measured_on == "graph" else ""
    lines = [
        f"{path}: {manifest.backend} {manifest.precision.value}, {path.stat().st_size / 1e6:.1f} MB",
        f"  convolution work: {shares} (layers: {layers}; read from the {proof['from']})",
        f"  against FP32: {close} over {parity['pictures']} pictures (run on the {measured_on})",
    ]
    if full := parity.get("full_range"):
        lines.append(f"  weights have 7 bits (reduced range); with 8 bits it would be {_closeness(full)}")
    if found := manifest.retrieval:
        told = [f"overlap@10 {found['overlap_at_10']:.3f}"]
        if drop := found["recall_drop_pp"].get("1"):
            change, low, high = (_change(drop[name]) for name in ("drop", "high", "low"))
            told.append(f"recall@1 {change} pp (95 %: {low} to {high})")
        told.append(f"calibrated by {found['recipe']}")
        told.append(f"{len(found['keep_float'])} of {proof['convolutions']} convolutions in float")
        lines.append(f"  on {found['pictures']} test pictures: {', '.join(told)} (run on the {found['measured_on']})")
        lines.append(f"  {found['statement']}")
        if note := left_out_queries(found["queries"]) if "queries" in found else None:
            lines.append(f"  {note}")
    if tuning := manifest.tuning:
        speeds = {Setting(one["threads"], one["streams"], one["batch"]): one for one in tuning["measured"]}
        for purpose in ("latency", "throughput"):
            setting = Setting(**tuning[purpose])
            lines.append(f"  best {purpose} here: {setting}, {speeds[setting]['images_per_second']:.1f} images/s")
        if warning := load_warning(tuning["load"]):
            lines.append(f"  warning: {warning}")
    return "\n".join(lines)


def _closeness(parity: Mapping[str, Any]) -> str:
    overlap = parity["overlap_at_10"]
    return f"mean cosine {parity['cosine_mean']:.5f}" + ("" if overlap is None else f", overlap@10 {overlap:.3f}")


def trial_table(trials: Sequence[Mapping[str, Any]]) -> Table:
    """What a search for a recipe and for convolutions to keep in float measured, a row each, in that order.

    A recipe is named where it changes and where nothing is in float.
    """
    table = _table(TRIED, "INT8", "pictures", "overlap@10", "change pp", "95 %", "cross pp")
    recipe = None
    for trial in trials:
        named = [] if trial["keep_float"] and trial["recipe"] == recipe else [trial["recipe"]]
        recipe = trial["recipe"]
        drop = trial["recall_drop_pp"].get("1")
        crossed = [drops["1"]["drop"] for drops in trial["cross_recall_drop_pp"].values()]
        table.add_row(
            ", ".join([*named, *_first_of(trial["keep_float"])]),
            f"{trial['int8_share']:.1%}",
            str(trial["pictures"]),
            f"{trial['overlap_at_10']:.3f}",
            _change(drop and drop["drop"]),
            drop and _between(drop["low"], drop["high"]),
            _change(max(crossed, default=None)),
        )
    return table


def bench_tables(result: dict[str, Any]) -> None:
    """Print a bench result: speed by engine and batch, retrieval by engine and by form, the headline and the gate."""
    reference = result["reference"]
    speed = _table("engine", "backend", "batch", "p50 ms", "p99 ms", "images/s", "x torch")
    name = f"{reference['backend']} {reference['precision']}"
    for run in reference["runs"]:
        speed.add_row("reference", f"{reference['backend']} {run['precision']}", *_speed_cells(run))
    for run in result["engines"]:
        speed.add_row(Path(run["path"]).name, f"{run['backend']} {run['precision']}", *_speed_cells(run))
    retrieval = _table("engine", "recall@1", "change pp", "95 %", "cross pp", "overlap@10", "min cosine")
    retrieval.add_row(name, _percent(reference["recall"].get("1")))
    engines = {run["path"]: run for run in result["engines"]}.values()
    for run in engines:
        retrieval.add_row(
            Path(run["path"]).name,
            _percent(run["recall"].get("1")),
            _change(run["recall_drop_pp"].get("1")),
            _between(*run["recall_drop_interval_pp"].get("1", ())),
            _change(run["cross_recall_drop_pp"].get("1")),
            f"{run['overlap_at_10']:.3f}",
            f"{run['cosine']['min']:.5f}",
        )
    compact = _compact_table(engines)
    for part in (speed, retrieval, compact):
        if part.row_count:
            output.print(part)
            output.print()
    for warning in warnings(result):
        output.print(Text("warning: ", style="yellow").append(warning, style="default"), soft_wrap=True)
    for note in notes(result):
        output.print(f"note: {note}", soft_wrap=True)
    output.print(headline(result), soft_wrap=True)
    for failure in result["gate"]["failures"]:
        output.print(Text("gate failed: ", style="red").append(failure, style="default"), soft_wrap=True)
    if result["gate"]["passed"]:
        output.print("gate passed", style="green")


def _speed_cells(run: Mapping[str, Any]) -> Iterator[str]:
    """Batch, p50, p99, images a second and times torch; empty where a number is unknown."""
    ms = run["latency_ms"]
    yield str(run["batch"])
    for value, digits in ((ms["p50"], 2), (ms["p99"], 2), (run["images_per_second"], 1), (run["speedup_vs_torch"], 2)):
        yield "" if value is None else f"{value:.{digits}f}"


def _compact_table(runs: Iterable[Mapping[str, Any]]) -> Table:
    """Each engine's name, and below it the forms that its gallery was kept in; no rows if there are none."""
    table = _table(KEPT_AS, "bytes", "recall@1", "change pp", "95 %", "overlap@10")
    for run in runs:
        if run["compact"]:
            table.add_row(Path(run["path"]).name)
        for form in run["compact"]:
            table.add_row(
                f"  {form_name(form)}",
                str(form["bytes_per_descriptor"]),
                _percent(form["recall"].get("1")),
                _change(form["recall_drop_pp"].get("1")),
                _between(*form["recall_drop_interval_pp"].get("1", ())),
                f"{form['overlap_at_10']:.3f}",
            )
    return table


def _table(*columns: str) -> Table:
    table = Table(header_style="bold", box=None, pad_edge=False, collapse_padding=True)
    for name in columns:
        if name in ("engine", "backend", TRIED, KEPT_AS):
            table.add_column(name, overflow="fold")
        else:
            table.add_column(name, justify="right", no_wrap=True, min_width=max(len(name), NUMBER_WIDTH))
    return table


def _first_of(names: Sequence[str]) -> list[str]:
    """The first name, and how many more there are; nothing for nothing."""
    more = f" +{len(names) - 1}" if len(names) > 1 else ""
    return [f"{names[0]}{more}"] if names else []


def _between(*drop: float) -> str:
    return change_interval(drop)
