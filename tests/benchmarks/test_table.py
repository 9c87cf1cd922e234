"""benchmarks/table.py: a row of each table, worked out by hand, and which tables are made at all."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conftest import script

CPU = "<!-- cpu: made by benchmarks/table.py -->\n{}\n<!-- end of cpu -->"


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, with an empty folder of results."""
    module = script("table")
    monkeypatch.setattr(module, "RESULTS", tmp_path)
    return module


def contestant(title: str, ours: bool, milliseconds: float, speedups: list[float], shares: list[Any]) -> dict[str, Any]:
    return {
        "title": title,
        "ours": ours,
        "int8_share": 0.944 if ours else None,
        "speed": {
            size: {"latency_ms": {"p50": milliseconds}, "speedup_vs_torch": speedup, "share_of_peak": share}
            for size, speedup, share in zip(("1", "8"), speedups, shares, strict=True)
        },
        "recall": {"1": 0.4},
        "recall_drop_pp": {"1": 0.38},
        "recall_drop_interval_pp": {"1": [-0.25, 1.0]},
        "cross_recall_drop_pp": {"1": -0.5},
        "overlap_at_10": 0.8764,
    }


CPU_RESULT = {
    "environment": {"threads": 2},
    "contestants": [
        contestant("torch", False, 90.0, [1.0, 1.0], [0.3, 0.4]),
        contestant("OpenVINO bf16", False, 45.0, [2.0, 2.5], [None, None]),
        contestant("cgd-deploy int8", True, 15.0, [6.0, 5.5], [0.61, 0.58]),
    ],
}


def test_the_cpu_table_has_changes_with_the_sign_of_gains_and_marks_what_is_ours(table: ModuleType) -> None:
    head, _, first, second, third = table.cpu_table(CPU_RESULT).splitlines()
    assert head.startswith("| on 2 threads | ms, batch 1 | x torch, batch 1 | x torch, batch 8 | of peak | recall@1 |")
    assert first == "| torch | 90.0 | 1.00 | 1.00 | 40% | 40.0% |  |  |  |"
    assert second == "| OpenVINO bf16 | 45.0 | 2.00 | 2.50 |  | 40.0% | -0.38 (-1.0 to +0.2) | +0.50 | 0.876 |"
    assert third.startswith(
        "| **cgd-deploy int8** (94.4% INT8) | 15.0 | 6.00 | 5.50 | 61% | 40.0% | -0.38 (-1.0 to +0.2) |"
    )


def test_what_has_no_results_or_no_markers_stays_as_it_is(table: ModuleType, tmp_path: Path) -> None:
    readme = f"before\n{CPU.format('old')}\nafter"
    assert table.tables() == {} and table.with_tables(readme) == readme
    (tmp_path / "cpu.json").write_text(json.dumps(CPU_RESULT))
    assert table.with_tables(readme) == f"before\n{CPU.format(table.cpu_table(CPU_RESULT))}\nafter"
    assert table.with_tables("no markers") == "no markers"


def step(load: float, p99: float | None, **counts: float) -> dict[str, Any]:
    full_batches = None if p99 is None else p99 / 100
    return {"server": "ours", "load": load, "latency_ms": {"p99": p99}, "p99_full_batches": full_batches, **counts}


LOAD_RESULT = {
    "open_loop": [step(0.4, 60.4), step(0.8, 141.7), step(1.5, 900.0, of_peak=0.976, shed=30, sent=120)],
    "closed_loop": {"clients": 16, "servers": {"ours": {"of_peak": 0.99}}},
}


def test_the_load_table_has_latency_below_the_peak_and_throughput_above(table: ModuleType) -> None:
    head, _, line = table.load_table(LOAD_RESULT).splitlines()
    assert head.endswith("| p99 at 40% | p99 at 80% | served at 150% | shed at 150% | 16 clients |")
    assert line == "| ours | 60 (0.6) | 142 (1.4) | 98% | 25% | 99% |"


def test_a_percentile_that_is_unknown_is_an_empty_cell(table: ModuleType) -> None:
    steps = [step(0.4, None), {**step(0.8, None), "latency_ms": None}, LOAD_RESULT["open_loop"][2]]
    assert table.load_table({**LOAD_RESULT, "open_loop": steps}).endswith("| ours |  |  | 98% | 25% | 99% |")


def test_the_ablation_has_its_chart_once_there_is_one(table: ModuleType, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(table, "ablation_table", lambda result: "made")
    (tmp_path / "ablation.json").write_text("{}")
    assert table.tables()["ablation"] == "made"
    (tmp_path / "ablation.svg").touch()
    assert table.tables()["ablation"] == "made\n\n![recall and cost of each model](results/ablation.svg)"


def test_the_embed_table_has_a_line_for_each_size(table: ModuleType) -> None:
    kinds = [(0.1, False, 80.4), (0.1, True, 81.0), (4.0, False, 40.0), (4.0, True, 60.0)]
    files = [
        {
            "megapixels": size,
            "bytes": 30_000 * size,
            "fast_decode": fast,
            "images_per_second": speed,
            "files_over_memory": speed / 100,
        }
        for size, fast, speed in kinds
    ]
    assert table.embed_table({"files": files}).splitlines()[2:] == [
        "| 0.1 | 3 | 80 | 80% | 81 | 81% |",
        "| 4 | 120 | 40 | 40% | 60 | 60% |",
    ]


def test_the_search_table_compares_memory_with_float32(table: ModuleType) -> None:
    row = {"name": "cgd-deploy int8", "rows": 1000, "resident_bytes": 1.6e6, "recall_at_10": 0.98765}
    result = {"data": {"dim": 1536}, "rows": [{**row, "milliseconds": {"1": 1.234, "32": 0.5}}]}
    assert table.search_table(result).splitlines()[2] == (
        "| **cgd-deploy int8** | 1,000 | 2 | 0.26 | 1.23 | 0.50 | 0.988 |"
    )
