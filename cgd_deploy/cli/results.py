"""Results of commands as text and tables for people."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from ..datasets.evaluation import left_out_queries
from ..hardware.timing import load_warning
from ..pictures.folders import counted
from ..quality.formatting import change, change_interval, layers_in_float, percent
from ..quality.report import form_name, headline, notes, warnings
from ..runtime.enginefile import Manifest
from ..runtime.tuning import Setting
from ..spec import Precision
from .terminal import output

NUMBER_WIDTH = 6
KEPT_AS = "engine, gallery kept as"
TRIED = "recipe, in float"


def search_lines(found: Sequence[tuple[Path, Sequence[tuple[str, float]]]]) -> str:
    """A block for each query: its path, and below it rank, similarity and path of each neighbour in columns."""
    blocks = []
    for query, neighbours in found:
        width = len(str(len(neighbours)))
        lines = [f"  {rank:>{width}}  {s:7.4f}  {path}" for rank, (path, s) in enumerate(neighbours, start=1)]
        blocks.append("\n".join([str(query), *lines]))
    return "\n\n".join(blocks)


def duplicates_lines(groups: Sequence[Sequence[tuple[str, float]]], pictures: int) -> str:
    """A block for each group, with its first picture as the query, and below them how many pictures they hold."""
    counts = f"{counted(groups, 'group')} found, with {sum(map(len, groups))} of {pictures} pictures"
    blocks = search_lines([(Path(first), others) for (first, _), *others in groups])
    return f"{blocks}\n\n{counts}" if groups else counts


def build_summary(path: Path, manifest: Manifest) -> str:
    """Describe a new engine: size, share of the convolution work in each precision, parity with FP32, tuning."""
    parity, proof = manifest.parity or {}, manifest.proof or {}
    shares = ", ".join(f"{share:.1%} {name}" for name, share in proof["flops_share"].items())
    layers = ", ".join(f"{count} {name}" for name, count in proof["layers"].items())
    measured_on = parity["measured_on"]
    if manifest.precision is Precision.TF32:
        shares += ", which the GPU may multiply in TF32"
        measured_on += ", in FP32" if measured_on == "graph" else ""
    lines = [
        f"{path}: {manifest.backend} {manifest.precision.value}, {path.stat().st_size / 1e6:.1f} MB",
        f"  convolution work: {shares} (layers: {layers}; read from the {proof['from']})",
        f"  against FP32: {_closeness(parity)} over {parity['pictures']} pictures (run on the {measured_on})",
    ]
    if full := parity.get("full_range"):
        lines.append(f"  weights have 7 bits (reduced range); with 8 bits it would be {_closeness(full)}")
    if manifest.retrieval:
        lines += _retrieval_lines(
            manifest.retrieval, proof["convolutions"], (manifest.float_precision or Precision.FP32).value
        )
    if manifest.tuning:
        lines += _tuning_lines(manifest.tuning)
    return "\n".join(lines)


def _closeness(parity: Mapping[str, Any]) -> str:
    overlap = parity["overlap_at_10"]
    return f"mean cosine {parity['cosine_mean']:.5f}" + ("" if overlap is None else f", overlap@10 {overlap:.3f}")


def _retrieval_lines(found: Mapping[str, Any], convolutions: int, floats: str) -> Iterator[str]:
    """What an INT8 engine retrieves on test pictures.

    convolutions   number of convolutions in the whole model
    floats         precision of all that is not INT8
    """
    low, high = found["overlap_at_10_interval"]
    told = [f"overlap@10 {found['overlap_at_10']:.3f} (95 %: {low:.3f} to {high:.3f})"]
    if drop := found["recall_drop_pp"].get("1"):
        interval = change_interval((drop["low"], drop["high"]), " to ")
        told.append(f"recall@1 {change(drop['drop'])} pp (95 %: {interval})")
    told.append(f"calibrated by {found['recipe']}")
    told.append(f"{layers_in_float(found, convolutions)} in {floats}")
    yield f"  on {found['compared']} held-out queries: {', '.join(told)} (run on the {found['measured_on']})"
    yield f"  {found['statement']}"
    if note := left_out_queries(found["queries"]) if "queries" in found else None:
        yield f"  {note}"


def _tuning_lines(tuning: Mapping[str, Any]) -> Iterator[str]:
    speeds = {Setting(run["threads"], run["streams"], run["batch"]): run for run in tuning["measured"]}
    for purpose in ("latency", "throughput"):
        setting = Setting(**tuning[purpose])
        yield f"  best {purpose} here: {setting}, {speeds[setting]['images_per_second']:.1f} images/s"
    if warning := load_warning(tuning["load"]):
        yield f"  warning: {warning}"


def trial_table(trials: Sequence[Mapping[str, Any]]) -> Table:
    """A row for each INT8 model that the search for a recipe and for float convolutions measured, in that order.

    A row names its recipe if the recipe changes there, or if every convolution is INT8. The last row may be the chosen
    model on the held-out queries.
    """
    table = _table(TRIED, "INT8", "queries", "overlap@10", "change pp", "95 %", "cross pp")
    recipe = None
    for trial in trials:
        named = [] if trial["keep_float"] and trial["recipe"] == recipe else [trial["recipe"]]
        if trial["held_out"]:
            named = ["held out"]
        recipe = trial["recipe"]
        drop = trial["recall_drop_pp"].get("1")
        crossed = [drops["1"]["drop"] for drops in trial["cross_recall_drop_pp"].values()]
        table.add_row(
            ", ".join([*named, *_first_of(trial["keep_float"])]),
            f"{trial['int8_share']:.1%}",
            str(trial["compared"]),
            with_margin(trial["overlap_at_10"], trial["overlap_at_10_interval"]),
            change(drop and drop["drop"]),
            drop and change_interval((drop["low"], drop["high"])),
            change(max(crossed, default=None)),
        )
    return table


def frontier_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """A row for each engine of a frontier; "best" marks those that no other row beats in speed and neighbours."""
    sizes = list(rows[0]["ms"])
    table = _table("engine", *(f"ms, batch {size}" for size in sizes), "overlap@10", "recall@1", "pp, 95 %", "best")
    for row in rows:
        found = row["retrieval"]
        drop = found["recall_drop_pp"].get("1")
        table.add_row(
            row["name"],
            *(f"{row['ms'][size]:.2f}" for size in sizes),
            with_margin(found["overlap_at_10"], found["overlap_at_10_interval"]),
            percent(found["recall"].get("1")),
            drop and change_interval((drop["low"], drop["high"])),
            "*" if row["best"] else "",
        )
    return table


def with_margin(value: float, ends: Sequence[float]) -> str:
    """A share and half the width of its 95 % interval, for example "0.832±0.012"."""
    low, high = ends
    return f"{value:.3f}±{(high - low) / 2:.3f}"


def print_bench(result: dict[str, Any]) -> None:
    """Print a bench result: tables of speed and retrieval, then warnings, notes, the headline and the gate."""
    engines = list({run["path"]: run for run in result["engines"]}.values())
    for table in (_speed_table(result), _retrieval_table(result["reference"], engines), _compact_table(engines)):
        if table.row_count:
            output.print(table)
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


def _speed_table(result: Mapping[str, Any]) -> Table:
    """A row for each engine and batch, the reference first."""
    table = _table("engine", "backend", "batch", "p50 ms", "p99 ms", "images/s", "x torch")
    reference = result["reference"]
    for run in reference["runs"]:
        table.add_row("reference", f"{reference['backend']} {run['precision']}", *_speed_cells(run))
    for run in result["engines"]:
        table.add_row(Path(run["path"]).name, f"{run['backend']} {run['precision']}", *_speed_cells(run))
    return table


def _speed_cells(run: Mapping[str, Any]) -> Iterator[str]:
    """Batch, p50, p99, images a second and speedup over torch; an unknown number gives an empty cell."""
    ms = run["latency_ms"]
    yield str(run["batch"])
    for value, digits in ((ms["p50"], 2), (ms["p99"], 2), (run["images_per_second"], 1), (run["speedup_vs_torch"], 2)):
        yield "" if value is None else f"{value:.{digits}f}"


def _retrieval_table(reference: Mapping[str, Any], engines: Iterable[Mapping[str, Any]]) -> Table:
    table = _table("engine", "recall@1", "change pp", "95 %", "cross pp", "overlap@10", "min cosine")
    table.add_row(f"{reference['backend']} {reference['precision']}", percent(reference["recall"].get("1")))
    for run in engines:
        table.add_row(
            Path(run["path"]).name,
            percent(run["recall"].get("1")),
            change(run["recall_drop_pp"].get("1")),
            change_interval(run["recall_drop_interval_pp"].get("1", ())),
            change(run["cross_recall_drop_pp"].get("1")),
            with_margin(run["overlap_at_10"], run["overlap_at_10_interval"]),
            f"{run['cosine']['min']:.5f}",
        )
    return table


def _compact_table(engines: Iterable[Mapping[str, Any]]) -> Table:
    """A row for each engine with compact galleries, and below it a row for each of these galleries."""
    table = _table(KEPT_AS, "bytes", "recall@1", "change pp", "95 %", "overlap@10")
    for run in engines:
        if run["compact"]:
            table.add_row(Path(run["path"]).name)
        for form in run["compact"]:
            table.add_row(
                f"  {form_name(form)}",
                str(form["bytes_per_descriptor"]),
                percent(form["recall"].get("1")),
                change(form["recall_drop_pp"].get("1")),
                change_interval(form["recall_drop_interval_pp"].get("1", ())),
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
    """The first name and the number of further names; an empty list for no names."""
    more = f" +{len(names) - 1}" if len(names) > 1 else ""
    return [f"{names[0]}{more}"] if names else []
