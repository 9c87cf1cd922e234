"""``cgd-deploy serve``: the names of its engines."""

from __future__ import annotations

from pathlib import Path

import pytest

from cgd_deploy import InputError
from cgd_deploy.cli.commands.serve import named_files


def test_an_engine_is_called_like_its_file_unless_it_is_given_a_name():
    assert named_files(["a/model.cgd", "cars=b/model.cgd"]) == {
        "model": Path("a/model.cgd"),
        "cars": Path("b/model.cgd"),
    }


def test_a_path_may_hold_an_equals_sign():
    assert named_files(["runs/lr=0.1/model.cgd"]) == {"model": Path("runs/lr=0.1/model.cgd")}


def test_two_engines_of_one_name_are_refused():
    with pytest.raises(InputError, match="two engines are called model"):
        named_files(["a/model.cgd", "b/model.cgd"])
