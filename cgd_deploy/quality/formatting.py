"""Percentages, drops and layers as text, the same in the terminal, in the report and in the benchmarks' tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def percent(fraction: float | None, unknown: str = "") -> str:
    """0.5 is "50.00%"; ``unknown`` stands for None."""
    return unknown if fraction is None else f"{100 * fraction:.2f}%"


def change(drop: float | None, digits: int = 2) -> str:
    """A drop as the change of the number: a drop of 0.25 percentage points is "-0.25"; nothing for None."""
    return "" if drop is None else f"{0.0 - drop:+.{digits}f}"


def change_interval(drop: Sequence[float], between: str = "..", digits: int = 2) -> str:
    """The ends of a drop's interval, as the interval of the change: (0.1, 0.3) is "-0.30..-0.10"."""
    return between.join(change(end, digits) for end in reversed(drop))


def layers_in_float(retrieval: Mapping[str, Any], convolutions: int | None = None) -> str:
    """What an INT8 model leaves in float, by its facts in a manifest or in a frontier: "2 of 53 convolutions, 16 adds".

    convolutions   number of convolutions in the whole model; None: the text leaves it out
    """
    adds = retrieval.get("float_adds", 0)  # version 0.1.0 kept all adds in INT8
    of_all = f" of {convolutions}" if convolutions is not None else ""
    return f"{len(retrieval['keep_float']) - adds}{of_all} convolutions" + (f", {adds} adds" if adds else "")
