"""The picture of a frontier: points where milliseconds and shares say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from cgd_deploy.quality.frontier import EDGE, HEIGHT, WIDTH, write_frontier_page


def row(name: str, ms: float, kept: float, recall: float | None = None, best: bool = True) -> dict[str, Any]:
    drop = {"1": {"drop": 0.5, "low": -0.1, "high": 1.1}} if recall else {}
    found = {
        "overlap_at_10": kept,
        "overlap_at_10_interval": [kept - 0.02, min(1.0, kept + 0.02)],
        "recall": {"1": recall} if recall else {},
        "recall_drop_pp": drop,
        "keep_float": ["a", "b", "c"],
        "float_adds": 1,
    }
    floats = "bf16" if name.startswith("int8") else None
    return {"name": name, "ms": {"1": 2 * ms, "8": ms}, "float_precision": floats, "best": best, "retrieval": found}


@pytest.mark.parametrize("recall", [None, 0.75])
def test_points_lie_where_their_numbers_say(tmp_path: Path, recall: float | None) -> None:
    rows = [
        row("fp32", 8.0, 1.0, recall),
        row("int8-2", 2.0, 0.9, recall, best=False),
        row("<int8>", 4.0, 0.95, recall),
    ]
    page = write_frontier_page(tmp_path / "f.html", {"backend": "openvino", "cpu": "a CPU", "rows": rows}).read_text()
    points = [tuple(map(float, found)) for found in re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', page)]
    bottom, top, right = HEIGHT - EDGE, EDGE / 2, WIDTH - 2 * EDGE
    for (x, y), ms, kept in zip(points, (8.0, 2.0, 4.0), (1.0, 0.9, 0.95), strict=True):
        assert x == pytest.approx(EDGE + ms / 8 * (right - EDGE), abs=0.1)
        assert y == pytest.approx(bottom + (kept - 0.88) / 0.12 * (top - bottom), abs=0.1)  # from the lowest end, 0.88
    assert page.count('fill="var(--accent)"') == 2 and page.count('fill="var(--page)"') == 1
    assert "&lt;int8&gt;" in page and "2 convolutions, 1 adds in bf16" in page and "0.880 to 0.920" in page
    assert ("75.00%" in page and "\N{MINUS SIGN}1.10 to +0.10 pp" in page) is bool(recall)
