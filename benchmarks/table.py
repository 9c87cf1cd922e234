"""Write the tables of README.md and benchmarks/README.md from the JSON files in benchmarks/results/.

A table without JSON or without markers is left unchanged.

python benchmarks/table.py            rewrite both between their markers
python benchmarks/table.py --check    exit 1 if that would change anything
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import claim
from cgd_deploy.quality.formatting import change, change_interval

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
FILES = (ROOT / "README.md", ROOT / "benchmarks" / "README.md")
MARKERS = "<!-- {}: made by benchmarks/table.py -->", "<!-- end of {} -->"


def ablation_table(result: dict[str, Any]) -> str:
    """Markdown: a line for each trained model, the missing trainings, and the answer. Costs are ratios."""
    models, timed = result["compared"]["models"], (result["latency"] or {"models": {}})["models"]
    first = next((name for name in claim.MODELS if name in timed), "S")
    heads = ["descriptors", "values", "recall@1 (95 %)", "each seed", "mAP@R", "mean cosine"]
    heads += ["over the best single one, pp (95 %)", "over the ensemble, pp (95 %)"]
    heads += [f"{cost}, x {first}" for cost in ("parameters", "batch 1", "batch 8")]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name in (name for name in claim.MODELS if name in models):
        model, dim = models[name], result["recipe"]["dim"]
        mean, low, high = model["recall_at_1"]
        cells = [
            name,
            f"3 x {dim // 3}" if name == claim.ENSEMBLE else str(dim),
            f"{mean:.1f}% ({low:.1f} to {high:.1f})",
            ", ".join(f"{recall:.1f}" for recall in model["each"]),
            f"{model['map_at_r']:.1%}",
            f"{model['mean_cosine']:.3f}",
            _gain(model["over_single"]),
            _gain(model["over_ensemble"]),
            *_times(timed, name, first),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += _missing(result)
    return "\n".join([*lines, "", claim.answer(result)])


def recipes_table(result: dict[str, Any]) -> str:
    """Markdown with one line per recipe: means over its seeds, after the last epoch and after the best one."""
    lines = [
        "| recipe | changes | recall@1 | each seed | best epoch | mAP@R | mean cosine | ranking share | minutes |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(one["name"] for one in result["entries"]):
        ones = [one for one in result["entries"] if one["name"] == name]
        last = {fact: _mean([one["last"][fact] for one in ones]) for fact in ones[0]["last"]}
        failed = "".join(f", failed after epoch {one['last']['epoch']}" for one in ones if one["failed"])
        cells = [
            name,
            ", ".join(f"{field}={value}" for field, value in result["changes"][name].items()),
            _shown(last["recall_at_1"], "{:.1%}"),
            ", ".join(_shown(one["last"]["recall_at_1"], "{:.1%}") for one in ones) + failed,
            _shown(_mean([one["best"]["recall_at_1"] for one in ones]), "{:.1%}"),
            _shown(last["map_at_r"], "{:.1%}"),
            _shown(last["mean_cosine"], "{:.3f}"),
            _shown(last["ranking_share"], "{:.2f}"),
            _shown(_mean([one["training_seconds"] for one in ones]), "{:.0f}", 1 / 60),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, *_missing(result)])


def cpu_table(result: dict[str, Any]) -> str:
    """Markdown with one line per contestant: speed at each batch size, then retrieval compared with the first one."""
    first = result["contestants"][0]
    sizes = list(first["speed"])
    heads = ["ms, batch " + sizes[0], *(f"x torch, batch {size}" for size in sizes), "of peak", "recall@1"]
    heads += ["change, pp (95 %)", "across, pp", "overlap@10"]
    lines = [
        f"| on {result['environment']['threads']} threads | {' | '.join(heads)} |",
        "|---" * (len(heads) + 1) + "|",
    ]
    for one in result["contestants"]:
        speeds = one["speed"]
        shares = [speed["share_of_peak"] for speed in speeds.values() if speed["share_of_peak"] is not None]
        lost, across = (change(one[drop]["1"]) for drop in ("recall_drop_pp", "cross_recall_drop_pp"))
        between = change_interval(one["recall_drop_interval_pp"]["1"], " to ", digits=1)
        mixed = f" ({one['int8_share']:.1%} INT8)" if 0 < (one["int8_share"] or 0) < 1 else ""
        cells = [
            f"**{one['title']}**{mixed}" if one["ours"] else one["title"],
            f"{speeds[sizes[0]]['latency_ms']['p50']:.1f}",
            *(f"{speeds[size]['speedup_vs_torch']:.2f}" for size in sizes),
            f"{max(shares):.0%}" if shares else "",
            f"{one['recall']['1']:.1%}",
            *(["", "", ""] if one is first else [f"{lost} ({between})", across, f"{one['overlap_at_10']:.3f}"]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def load_table(result: dict[str, Any]) -> str:
    """Markdown with one line per server: 99th percentile of latency at each load, then throughput."""
    steps = result["open_loop"]
    loads = list(dict.fromkeys(one["load"] for one in steps))
    over = loads[-1]
    heads = [f"p99 at {load:.0%}" for load in loads if load < 1]
    heads += [f"served at {over:.0%}", f"shed at {over:.0%}", f"{result['closed_loop']['clients']} clients"]
    lines = [
        "| ms (full batches); throughput of the peak | " + " | ".join(heads) + " |",
        "|---" * (len(heads) + 1) + "|",
    ]
    for name in dict.fromkeys(one["server"] for one in steps):
        of = {one["load"]: one for one in steps if one["server"] == name}
        cells = [_tail(of[load]) for load in loads if load < 1]
        cells.append(f"{of[over]['of_peak']:.0%}")
        cells.append(f"{of[over]['shed'] / of[over]['sent']:.0%}")
        cells.append(f"{result['closed_loop']['servers'][name]['of_peak']:.0%}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def embed_table(result: dict[str, Any]) -> str:
    """Markdown with one line per size of the files: images a second and their share of the speed from memory."""
    lines = ["| megapixels | kB | images a second | of memory | with `--fast-decode` | of memory |", "|---" * 6 + "|"]
    plain = [one for one in result["files"] if not one["fast_decode"]]
    fast = [one for one in result["files"] if one["fast_decode"]]
    for one, faster in zip(plain, fast, strict=True):
        speeds = (f"{x['images_per_second']:.0f} | {x['files_over_memory']:.0%}" for x in (one, faster))
        lines.append(f"| {one['megapixels']:g} | {one['bytes'] / 1000:.0f} | {' | '.join(speeds)} |")
    return "\n".join(lines)


def search_table(result: dict[str, Any]) -> str:
    """Markdown with one line per contestant and size: memory, time for a query, and recall@10."""
    bytes_of_float32 = 4 * result["data"]["dim"]
    lines = [
        "| gallery | rows | memory, MB | x float32 | ms a query, alone | ms a query, of 32 | recall@10 |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in result["rows"]:
        alone, together = (one["milliseconds"][batch] for batch in ("1", "32"))
        cells = [
            f"**{one['name']}**" if one["name"].startswith("cgd") else one["name"],
            f"{one['rows']:,}",
            f"{one['resident_bytes'] / 1e6:,.0f}",
            f"{one['resident_bytes'] / one['rows'] / bytes_of_float32:.2f}",
            f"{alone:.2f}",
            f"{together:.2f}",
            f"{one['recall_at_10']:.3f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def native_table(result: dict[str, Any]) -> str:
    """Markdown with one line per library: its figures, and in brackets their ratio to OpenVINO's own program."""
    found = result["medians"]
    limit = found["OpenVINO alone"]
    lines = ["| | start, s | memory, MB | beyond inference, µs | of the throughput |", "|---|---|---|---|---|"]
    for name, one in found.items():
        cells = [
            name,
            f"{one['start']:.2f} ({one['start'] / limit['start']:.2f})",
            f"{one['kilobytes'] / 1000:.0f} ({one['kilobytes'] / limit['kilobytes']:.2f})",
            _shown(one.get("beyond_microseconds"), "{:.0f}"),
            _shown(one.get("share"), "{:.0%}"),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def batching_table(result: dict[str, Any]) -> str:
    """Markdown with one line per device and policy at the largest delay: p99 of latency, and rows a batch."""
    delay = max(one["max_delay_ms"] for one in result["simulated"])
    steps = [one for one in result["simulated"] if one["max_delay_ms"] == delay]
    loads = list(dict.fromkeys(one["load"] for one in steps))
    lines = [
        "| p99 in ms (rows a batch) | partial batches leave while | "
        + " | ".join(f"at {load:.0%}" for load in loads)
        + " |",
        "|---" * (len(loads) + 2) + "|",
    ]
    for device, enough in dict.fromkeys((one["device"], one["enough"]) for one in steps):
        of = {one["load"]: one for one in steps if (one["device"], one["enough"]) == (device, enough)}
        cells = [f"{of[load]['p99_ms']:.1f} ({of[load]['rows_a_batch']:.1f})" for load in loads]
        some = enough < result["devices"][device]["workers"]
        rule = f"fewer than {enough} in flight" if some else "a worker is idle"
        lines.append(f"| {device} | {rule} | {' | '.join(cells)} |")
    return "\n".join(lines)


def tables() -> dict[str, str]:
    """The table of each result that exists, as Markdown, by the name in its markers."""
    made = {
        "ablation": ablation_table,
        "batching": batching_table,
        "cpu": cpu_table,
        "cpu-amd": cpu_table,
        "embed": embed_table,
        "load": load_table,
        "native": native_table,
        "recipes": recipes_table,
        "search": search_table,
    }
    found = {name: RESULTS / f"{name}.json" for name in made}
    tables = {name: made[name](json.loads(path.read_text())) for name, path in found.items() if path.is_file()}
    if "ablation" in tables and (RESULTS / "ablation.svg").is_file():
        tables["ablation"] += "\n\n![recall and cost of each model](results/ablation.svg)"
    return tables


def with_tables(text: str) -> str:
    """The text with new tables between its markers."""
    for name, table in tables().items():
        begin, end = (marker.format(name) for marker in MARKERS)
        if begin in text:
            before, rest = text.split(begin)
            text = f"{before}{begin}\n{table}\n{end}{rest.split(end)[1]}"
    return text


def main() -> None:
    made = {path: with_tables(path.read_text()) for path in FILES}
    if "--check" in sys.argv:
        sys.exit(any(text != path.read_text() for path, text in made.items()))
    for path, text in made.items():
        path.write_text(text)


def _tail(step: dict[str, Any]) -> str:
    """The 99th percentile in milliseconds and in full batches; empty if too few requests were answered."""
    p99 = step["latency_ms"] and step["latency_ms"]["p99"]
    return "" if p99 is None else f"{p99:.0f} ({step['p99_full_batches']:.1f})"


def _gain(points: Sequence[float] | None) -> str:
    """A difference in percentage points with its interval; empty if it was not measured."""
    return "" if points is None else "{:+.1f} ({:+.1f} to {:+.1f})".format(*points)


def _times(timed: dict[str, Any], name: str, first: str) -> list[str]:
    """Parameters and latency at batch 1 and 8, divided by the numbers of the model ``first``; empty if not timed."""
    if name not in timed:
        return ["", "", ""]
    one, base = timed[name], timed[first]
    latencies = [one["milliseconds"][batch]["p50"] / base["milliseconds"][batch]["p50"] for batch in ("1", "8")]
    return [f"{ratio:.2f}" for ratio in (one["parameters"] / base["parameters"], *latencies)]


def _missing(result: dict[str, Any]) -> list[str]:
    """Lines below a table of which trainings are missing."""
    missing = claim.missing(result)
    return ["", f"Not trained yet: {', '.join(missing)}."] if missing else []


def _mean(values: Sequence[float | None]) -> float | None:
    """The mean of the values that were measured; None if there is none."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _shown(value: float | None, form: str, factor: float = 1.0) -> str:
    return "" if value is None else form.format(value * factor)


if __name__ == "__main__":
    main()
