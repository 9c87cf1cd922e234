"""The learning rate over a run."""

import pytest

from cgd_train.config import TrainConfig
from cgd_train.schedule import learning_rate


def test_a_step_schedule_falls_at_60_and_80_percent():
    config = TrainConfig(lr=1.0, epochs=20, schedule="step")
    rates = [learning_rate(config, epoch) for epoch in range(20)]
    assert rates == pytest.approx([1.0] * 12 + [0.1] * 4 + [0.01] * 4)
    assert learning_rate(config, 11.99) == 1.0


def test_a_cosine_schedule_falls_smoothly_to_zero():
    config = TrainConfig(lr=2.0, epochs=4, schedule="cosine")
    assert [learning_rate(config, done) for done in (0, 1, 2, 4)] == pytest.approx([2, 1 + 0.5**0.5, 1, 0])
