"""Write the README's tables from the JSON files in benchmarks/results/: ablation.json, and those of bench.

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


def with_tables(readme: str) -> str:
    """The README with what stands between its markers made anew."""
    ablation = json.loads((RESULTS / "ablation.json").read_text())
    benches = {
        path.stem.replace("_", " "): json.loads(path.read_text())  # a file is called what its title says
        for path in sorted(RESULTS.glob("*.json"))
        if path.stem != "ablation"
    }
    for name, text in (("ablation", ablation_table(ablation)), ("results", bench_table(benches))):
        begin, end = (marker.format(name) for marker in MARKERS)
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
