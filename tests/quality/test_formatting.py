"""Percentages and drops as text."""

from __future__ import annotations

import pytest

from cgd_deploy.quality.formatting import change, change_interval, percent


def test_fractions_are_percentages():
    assert (percent(0.60875), percent(0.0), percent(None), percent(None, "n/a")) == ("60.88%", "0.00%", "", "n/a")


@pytest.mark.parametrize(("drop", "text"), [(0.25, "-0.25"), (-0.25, "+0.25"), (0.0, "+0.00"), (None, "")])
def test_a_drop_is_a_change_of_the_other_sign(drop, text):
    assert change(drop) == text


def test_the_interval_of_a_change_has_the_ends_of_the_drop_the_other_way_round():
    assert change_interval((-0.1, 0.3)) == "-0.30..+0.10"
    assert change_interval([-0.1, 0.3], " to ", digits=1) == "-0.3 to +0.1"
    assert change_interval(()) == ""
