"""benchmarks/soak_server.py: good and bad requests of a short run, and that a wrong answer is found."""

from __future__ import annotations

import json
import sys

import pytest
from conftest import script

pytest.importorskip("fastapi", reason="the server is not installed")


@pytest.fixture
def benchmark():
    return script("soak_server")


def test_a_sound_server_passes(benchmark, fake_engine, tmp_path, monkeypatch):
    out = tmp_path / "soak-server.json"
    arguments = ["--minutes", "0.05", "--every", "0.25", "--pause", "0.01", "-o", str(out)]
    monkeypatch.setattr(sys, "argv", ["soak_server.py", str(fake_engine), *arguments])
    with pytest.raises(SystemExit) as exit_:
        benchmark.main()
    result = json.loads(out.read_text())
    assert (exit_.value.code, result["failures"]) == (0, [])
    assert {"one", "form", "openai", "gone", "404", "413", "415", "422"} <= set(result["counts"])
    assert len(result["samples"]) >= 5
    assert out.with_suffix(".svg").stat().st_size > 1000


def test_wrong_answers_are_found(benchmark, fake_engine):
    traffic = benchmark.Traffic(fake_engine, "127.0.0.1:1")
    right = traffic.expected[:1]
    traffic._check("one", 200, right.tobytes(), slice(0, 1))
    traffic._check("one", 503, b"", slice(0, 1))
    assert traffic.wrong == []
    traffic._check("one", 200, traffic.expected[1:2].tobytes(), slice(0, 1))
    traffic._check("one", 200, right.tobytes()[:-4], slice(0, 1))
    traffic._check("one", 500, b"", slice(0, 1))
    assert len(traffic.wrong) == traffic.counts["wrong"] == 3
    traffic.client.close()
