"""The learning rate over a run. Knows no optimizer."""

from __future__ import annotations

import math

from .config import TrainConfig


def learning_rate(config: TrainConfig, done: float) -> float:
    """The rate after ``done`` of ``config.epochs`` epochs, counted from 0 in epochs and parts of one.

    step     lr, lr / 10 after 60 % of the run, lr / 100 after 80 %, as in the paper (CGD section 4.1)
    cosine   lr (1 + cos(pi done / epochs)) / 2, which ends at 0 (Loshchilov and Hutter 2017, equation 5)
    """
    if config.schedule == "cosine":
        return config.lr * (1 + math.cos(math.pi * done / config.epochs)) / 2
    return config.lr * 0.1 ** ((10 * done >= 6 * config.epochs) + (10 * done >= 8 * config.epochs))
