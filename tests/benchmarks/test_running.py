"""What all benchmarks do before and after they measure."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

import running
from cgd_deploy.cli import terminal
from cgd_deploy.errors import InputError


def options(*arguments: object):
    return running.parser("Summary.\n\nMore.", "made.json").parse_args(list(map(str, arguments)))


def test_the_result_is_written_with_its_chart(tmp_path, capsys):
    drawn: list[Path] = []
    result = running.run(lambda *_: {"a": 1}, options("-o", tmp_path / "x.json"), lambda _, path: drawn.append(path))
    assert result == json.loads((tmp_path / "x.json").read_text()) == {"a": 1}
    assert drawn == [tmp_path / "x.svg"]
    assert capsys.readouterr().out == f"wrote {tmp_path / 'x.json'} and its chart {tmp_path / 'x.svg'}\n"


def test_a_result_may_have_no_chart(tmp_path, capsys):
    running.run(lambda *_: {"a": 1}, options("-o", tmp_path / "x.json"))
    assert capsys.readouterr().out == f"wrote {tmp_path / 'x.json'}\n"
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


def test_an_error_is_one_sentence_and_writes_nothing(tmp_path, monkeypatch, capsys):
    def measure(*_: object) -> dict:
        raise InputError("there is no engine; build one.")

    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        running.run(measure, options())
    assert (ended.value.code, capsys.readouterr().err) == (2, "there is no engine; build one.\n")
    assert not list(tmp_path.iterdir())


def test_bars_leave_the_terminal_free_before_the_first_phase(tmp_path, monkeypatch):
    shown = io.StringIO()
    monkeypatch.setattr(terminal, "errors", Console(file=shown, force_terminal=True))

    def measure(_: object, on_progress: running.OnProgress) -> dict:
        assert not shown.getvalue(), "a training shows bars of its own here"
        on_progress("timing", 0.5)
        return {"bars": "timing" in shown.getvalue()}

    assert running.run(measure, options("-o", tmp_path / "x.json")) == {"bars": True}
