"""Percentages and drops as text."""

from __future__ import annotations

import pytest

from cgd_deploy.quality.formatting import change, change_interval, layers_in_float, percent


def test_fractions_are_percentages():
    assert (percent(0.60875), percent(0.0), percent(None), percent(None, "n/a")) == ("60.88%", "0.00%", "", "n/a")


@pytest.mark.parametrize(("drop", "text"), [(0.25, "-0.25"), (-0.25, "+0.25"), (0.0, "+0.00"), (None, "")])
def test_a_drop_is_a_change_of_the_other_sign(drop, text):
    assert change(drop) == text


def test_the_interval_of_a_change_has_the_ends_of_the_drop_the_other_way_round():
    assert change_interval((-0.1, 0.3)) == "-0.30..+0.10"
    assert change_interval([-0.1, 0.3], " to ", digits=1) == "-0.3 to +0.1"
    assert change_interval(()) == ""


def test_layers_in_float_are_counted_by_kind():
    assert layers_in_float({"keep_float": ["a", "b"], "float_adds": 0}) == "2 convolutions"
    assert layers_in_float({"keep_float": ["a", "b", "c"], "float_adds": 2}) == "1 convolutions, 2 adds"
    assert layers_in_float({"keep_float": ["a", "b", "c"], "float_adds": 2}, 53) == "1 of 53 convolutions, 2 adds"
    assert layers_in_float({"keep_float": ["a", "b"]}) == "2 convolutions", "of an engine of release 0.1.0"
