"""Write the README's results table from the bench JSON files in benchmarks/results/.

python benchmarks/table.py            rewrite README.md between its markers
python benchmarks/table.py --check    exit 1 if that would change anything
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- results: made by benchmarks/table.py -->", "<!-- end of results -->"


def table(results: dict[str, dict[str, Any]]) -> str:
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


def with_table(readme: str, text: str) -> str:
    """The README with what stands between its markers replaced."""
    before, rest = readme.split(BEGIN)
    return f"{before}{BEGIN}\n{text}\n{END}{rest.split(END)[1]}"


def results() -> dict[str, dict[str, Any]]:
    """Bench results by title; a title is what the file is called, underscores for spaces."""
    return {path.stem.replace("_", " "): json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))}


def main() -> None:
    readme = ROOT / "README.md"
    made = with_table(readme.read_text(), table(results()))
    if "--check" in sys.argv:
        sys.exit(made != readme.read_text())
    readme.write_text(made)


if __name__ == "__main__":
    main()
