"""benchmarks/embed.py on an engine without a model: what it writes, and in which setting it measured."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "embed.py"


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["embed.py", *map(str, arguments)])
    runpy.run_path(str(SCRIPT), run_name="__main__")


def test_files_are_compared_with_the_same_pixels_in_memory(monkeypatch, fake_engine, pictures, tmp_path, capsys):
    out = tmp_path / "embed.json"
    run(monkeypatch, fake_engine, pictures, "-o", out, "--seconds", 0, "--pictures", 6, "--batch", 4, "--threads", 1)
    result = json.loads(out.read_text())
    speeds = result["images_per_second"]
    assert result["setting"] == {"threads": 1, "streams": 1, "batch": 4, "fast_decode": False}
    assert result["environment"]["pictures"] == 6
    assert result["environment"]["load"]["busy"] is None  # too short to tell
    assert "whether this machine was busy is unknown" in capsys.readouterr().err
    assert result["files_over_memory"] == pytest.approx(speeds["files"] / speeds["memory"], rel=1e-2)
    assert speeds["files"] < speeds["memory"]  # decoding is all the work there is


def test_an_engine_that_is_none_is_told(monkeypatch, pictures, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, tmp_path / "no.cgd", pictures)
    assert ended.value.code == 2 and capsys.readouterr().err.startswith("there is no engine")
