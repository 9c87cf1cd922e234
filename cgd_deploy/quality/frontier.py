"""The page of a frontier: engines as points, milliseconds across and kept neighbours up, and their table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .report import write_page

WIDTH, HEIGHT, EDGE = 640, 360, 50


def write_frontier_page(path: str | Path, result: Mapping[str, Any]) -> Path:
    """Write the result of ``cgd_export.frontier`` as one HTML page; returns its path."""
    rows = result["rows"]
    batch = list(rows[0]["ms"])[-1]
    ms = [row["ms"][batch] for row in rows]
    kept = [row["retrieval"]["overlap_at_10"] for row in rows]
    ends = [row["retrieval"]["overlap_at_10_interval"] for row in rows]
    least = min(low for low, _ in ends)
    across = _places(ms, 0.0, max(ms), EDGE, WIDTH - 2 * EDGE)
    points = [
        {"row": row, "x": x, "y": y, "low": low, "high": high}
        for row, x, y, low, high in zip(
            rows,
            across,
            _heights(kept, least),
            _heights([low for low, _ in ends], least),
            _heights([high for _, high in ends], least),
            strict=True,
        )
    ]
    return write_page(
        path,
        "frontier.html",
        (),
        result=result,
        points=points,
        batch=batch,
        slowest=max(ms),
        least=least,
        size=(WIDTH, HEIGHT, EDGE),
    )


def _heights(shares: Sequence[float], least: float) -> list[float]:
    return _places(shares, least, 1.0, HEIGHT - EDGE, EDGE / 2)


def _places(values: Sequence[float], low: float, high: float, first: float, last: float) -> list[float]:
    """Pixels of ``values`` on an axis from ``low``, at ``first``, to ``high``, at ``last``."""
    return [round(first + (value - low) / max(high - low, 1e-9) * (last - first), 1) for value in values]
