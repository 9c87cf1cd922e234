"""Callbacks that hear how far a build is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .int8.budget import Trial

OnStep = Callable[[str, int, int], None]
"""Called with the name of a phase, the steps done and the steps in all; often, and perhaps from another thread."""


def silent(*_: object) -> None:
    """Ignore a report."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """The callbacks of a build.

    on_step       hears of TensorRT's build, of distillation and of the guard; an exception that it raises stops them
    on_pictures   gets the number of calibration pictures just measured, in each pass over the pictures
    on_trial      gets every measurement of the guard
    """

    on_step: OnStep = silent
    on_pictures: Callable[[int], None] = silent
    on_trial: Callable[[Trial], None] = silent


QUIET = Progress()
