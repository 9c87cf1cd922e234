"""benchmarks/native.py: how a round calls the programs, and how it reads their answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import FAKE_SPEC

import native
from cgd_deploy.errors import InputError
from cgd_deploy.runtime.enginefile import read_engine


def program(folder: Path, name: str, **answer: float) -> Path:
    """A program that notes its arguments and prints ``answer``."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\necho $@ >> '{path}.calls'\necho '{json.dumps(answer)}'\n")
    path.chmod(0o755)
    return path


def test_a_round(tmp_path, fake_engine, monkeypatch):
    monkeypatch.setattr(native, "available_threads", lambda: 2)
    built = {name: tmp_path / folder for name, folder in (("without Python", "a"), ("with Python", "b"))}
    limit = program(built["without Python"], "bare", start=2.0, kilobytes=100)
    for folder, share in zip(built.values(), (0.99, 0.5), strict=True):
        program(folder, "calls", start=3.0, kilobytes=110, beyond_microseconds=40.0)
        pairs = program(folder, "pairs", batch_ms=100.0, share=share)
    found = native.one_round(built, read_engine(fake_engine), Path("model.onnx"), 3.0)
    assert found["OpenVINO alone"] == {"start": 2.0, "kilobytes": 100}
    assert [found[name]["share"] for name in built] == [0.99, 0.5]
    assert found["with Python"]["beyond_microseconds"] == 40.0
    side, dim = FAKE_SPEC.input_size[0], FAKE_SPEC.dim
    assert Path(f"{limit}.calls").read_text() == f"model.onnx 2 {side} {dim}\n" * native.STARTS
    assert Path(f"{pairs}.calls").read_text() == f"model.onnx {fake_engine} 3.0 2 {side} {dim}\n"


def test_medians():
    rounds = [{"a": {"x": value, "y": 1.0}} for value in (5.0, 1.0, 2.0)]
    assert native.medians(rounds) == {"a": {"x": 2.0, "y": 1.0}}


def test_a_program_that_fails_is_told():
    with pytest.raises(InputError, match="false failed"):
        native.told(Path("/bin/false"))
