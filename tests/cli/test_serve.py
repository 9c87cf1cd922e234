"""``cgd-deploy serve``: the names of its engines, and what is checked before it is ready."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import FAKE_SPEC, write_fake_engine

from cgd_deploy import EngineError, InputError, Precision, load
from cgd_deploy.cli.commands.serve import _load_models, named_files


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


def test_an_engine_that_gives_other_descriptors_is_not_served(fake_engine, monkeypatch):
    pytest.importorskip("fastapi", reason="the server is not installed")
    monkeypatch.setattr("cgd_deploy.runtime.engine.cosines", lambda *_: np.zeros(3))
    with pytest.raises(EngineError, match="other descriptors"):
        _load_models({"fake": fake_engine}, [], load)


def test_each_index_is_served_by_the_engine_of_its_space(fake_engine, index_file, tmp_path):
    pytest.importorskip("fastapi", reason="the server is not installed")
    other = write_fake_engine(tmp_path / "other.cgd", replace(FAKE_SPEC, space_id="fedcba9876543210"))
    models = _load_models({"other": other, "fake": fake_engine}, [index_file], load)
    assert [(model.name, model.gallery is not None) for model in models] == [("other", False), ("fake", True)]
    for indices, names in (([index_file], {"other": other}), ([index_file] * 2, {"fake": fake_engine})):
        with pytest.raises(InputError, match="no engine describes space 0123456789abcdef"):
            _load_models(names, indices, load)


def test_an_index_of_another_precision_is_told(index_file, tmp_path, caplog):
    pytest.importorskip("fastapi", reason="the server is not installed")
    engine = write_fake_engine(tmp_path / "int8.cgd", precision=Precision.INT8)
    _load_models({"int8": engine}, [index_file], load)
    assert "the index holds fp32 descriptors and the engine makes int8 ones" in caplog.text
