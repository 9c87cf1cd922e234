"""How the benchmarks' charts look and how they are written: the same result gives the same SVG file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cgd_deploy.files import replacing


def new_figure(width: float, height: float) -> Any:
    """A matplotlib figure, in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def tidy(axes: Any, grid: str = "both") -> None:
    """A pale grid behind the data along "x", "y" or "both", and no frame at the top and right."""
    axes.grid(axis=grid, alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def save(figure: Any, path: Path) -> None:
    """Write a figure as SVG, without a date and with fixed ids."""
    from matplotlib import rc_context

    with rc_context({"svg.hashsalt": "cgd"}), replacing(path) as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None})
