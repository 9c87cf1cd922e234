"""Write the README's tables from the JSON files in benchmarks/results/: ablation.json, cpu.json, and those of bench.

A table whose JSON or whose markers are not there is left alone.

python benchmarks/table.py            rewrite README.md between its markers
python benchmarks/table.py --check    exit 1 if that would change anything
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
MARKERS = "<!-- {}: made by benchmarks/table.py -->", "<!-- end of {} -->"


def bench_table(results: dict[str, dict[str, Any]]) -> str:
    """Markdown of one line an engine: speed at each batch, then what it retrieves."""
    lines = [
        "| model, pictures | engine | x torch, batch 1 | x torch, batch 8 | recall@1 | change, pp | overlap@10 |",
        "|---|---|---|---|---|---|---|",
    ]
    for title, result in results.items():
        reference = result["reference"]
        recall = reference["recall"]["1"]
        lines.append(f"| {title} | {reference['backend']} {reference['precision']} | 1 | 1 | {recall:.1%} | | |")
        engines: dict[str, list[dict[str, Any]]] = {}
        for run in result["engines"]:
            engines.setdefault(run["path"], []).append(run)
        for runs in engines.values():
            speed = {run["batch"]: f"{run['speedup_vs_torch']:.1f}" for run in runs}
            run = runs[0]
            lines.append(
                f"| | {run['backend']} {run['precision']} | {speed.get(1, '')} | {speed.get(8, '')} "
                f"| {run['recall']['1']:.1%} | {-run['recall_drop_pp']['1']:+.2f} | {run['overlap_at_10']:.3f} |"
            )
    return "\n".join(lines)


def ablation_table(result: dict[str, Any]) -> str:
    """Markdown of one line a model: means over the seeds, and cost in times that of the first model."""
    lines = [
        "| descriptors | values | recall@1, each seed | mean | mAP@R | training | parameters | batch 1 | batch 8 |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    first = result["models"][0]
    for model in result["models"]:
        recalls = [seed["recall"]["1"] for seed in model["seeds"]]
        each = ", ".join(f"{100 * recall:.1f}" for recall in recalls)
        map_at_r = _mean(model, lambda seed: seed["map_at_r"])
        training = _mean(model, _training) / _mean(first, _training)
        parameters = model["parameters"] / first["parameters"]
        latency = " | ".join(
            f"{model['latency_ms'][batch]['p50'] / first['latency_ms'][batch]['p50']:.2f}" for batch in ("1", "8")
        )
        lines.append(
            f"| {model['descriptors']} | {model['dim']} | {each} | {sum(recalls) / len(recalls):.1%} "
            f"| {map_at_r:.1%} | {training:.2f} | {parameters:.2f} | {latency} |"
        )
    return "\n".join(lines)


def cpu_table(result: dict[str, Any]) -> str:
    """Markdown of one line a contestant: speed at each batch, then what it retrieves next to the first one's."""
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
        low, high = (f"{0.0 - drop:+.1f}" for drop in reversed(one["recall_drop_interval_pp"]["1"]))
        change, across = (f"{0.0 - one[drop]['1']:+.2f}" for drop in ("recall_drop_pp", "cross_recall_drop_pp"))
        cells = [
            f"**{one['title']}**" if one["ours"] else one["title"],
            f"{speeds[sizes[0]]['latency_ms']['p50']:.1f}",
            *(f"{speeds[size]['speedup_vs_torch']:.2f}" for size in sizes),
            f"{max(shares):.0%}" if shares else "",
            f"{one['recall']['1']:.1%}",
            *(["", "", ""] if one is first else [f"{change} ({low} to {high})", across, f"{one['overlap_at_10']:.3f}"]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def tables() -> dict[str, str]:
    """Markdown by the name that its markers have, of what there are results of."""
    results = {path.stem: json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))}
    of_name = {"ablation": ablation_table, "cpu": cpu_table}
    made = {name: table(results[name]) for name, table in of_name.items() if name in results}
    benches = {name.replace("_", " "): result for name, result in results.items() if "gate" in result}
    return (
        {**made, "results": bench_table(benches)} if benches else made
    )  # a bench's file is called what its title says


def with_tables(readme: str) -> str:
    """The README with what stands between its markers made anew."""
    for name, text in tables().items():
        begin, end = (marker.format(name) for marker in MARKERS)
        if begin in readme:
            before, rest = readme.split(begin)
            readme = f"{before}{begin}\n{text}\n{end}{rest.split(end)[1]}"
    return readme


def main() -> None:
    readme = ROOT / "README.md"
    made = with_tables(readme.read_text())
    if "--check" in sys.argv:
        sys.exit(made != readme.read_text())
    readme.write_text(made)


def _mean(model: dict[str, Any], value: Callable[[dict[str, Any]], float]) -> float:
    return sum(map(value, model["seeds"])) / len(model["seeds"])


def _training(seed: dict[str, Any]) -> float:
    return seed["training_cpu_seconds"]


if __name__ == "__main__":
    main()
