"""benchmarks/overload.py: a short run on an engine without a model, and that waste, failures and growth do not pass."""

from __future__ import annotations

import json
import sys
from concurrent.futures import Future

import pytest
from conftest import script

from cgd_deploy.runtime.backends.fake import FakeBackend
from cgd_deploy.runtime.engine import Engine

SOUND = {"sent": 100, "refused": 50, "cancelled": 3, "failed": 0, "served": 47, "in_time": 40, "decoded": 48}


@pytest.fixture
def benchmark():
    return script("overload")


def found(memory=(100.0,) * 9, **counts: int) -> dict:
    return {
        "counts": {**SOUND, **counts},
        "latencies": [0.1] * 100,
        "memory": [(float(second), mib) for second, mib in enumerate(memory)],
    }


def test_facts_worked_out_by_hand(benchmark):
    facts = benchmark.facts(found(range(100, 109)), peak=10.0, seconds=5.0)
    assert facts["rss_mib"] == {"start": 101, "middle": 104, "end": 107}
    assert (facts["offered_of_peak"], facts["served_of_peak"]) == (2.0, 0.8)
    assert facts["latency_ms"]["p99"] == pytest.approx(100)
    assert "in_time" not in facts["counts"]


@pytest.mark.parametrize(
    ("changes", "failed"),
    [
        ({}, []),
        ({"decoded": 47 + 3}, []),
        ({"decoded": 47 + 4}, ["decodes only what it serves"]),
        ({"decoded": 46}, ["decodes only what it serves"]),
        ({"failed": 1}, ["no request fails"]),
        ({"memory": (100, 100, 102)}, []),
        ({"memory": (100, 100, 103)}, ["memory is flat"]),
    ],
    ids=str,
)
def test_what_does_not_pass(benchmark, changes, failed):
    checks = benchmark.facts(found(**changes), peak=10.0, seconds=5.0)["checks"]
    assert [name for name, passed in checks.items() if not passed] == failed


@pytest.fixture
def overload(benchmark, monkeypatch, fake_engine, tmp_path):
    """Runs the script for half a second at many times the peak; returns exit status and result."""

    def run() -> tuple[int, dict]:
        out = tmp_path / "overload.json"
        options = [
            "--seconds",
            "0.5",
            "--load",
            "4",
            "--clients",
            "4",
            "--max-queue",
            "4",
            "--every",
            "0.02",
            "-o",
            str(out),
        ]
        monkeypatch.setattr(sys, "argv", ["overload.py", str(fake_engine), *options])
        monkeypatch.setattr(benchmark, "GROWTH", 2.0)
        with pytest.raises(SystemExit) as exit_:
            benchmark.main()
        assert "memory, MiB" in out.with_suffix(".svg").read_text()
        return exit_.value.code, json.loads(out.read_text())

    return run


def test_every_request_is_served_refused_or_cancelled(overload):
    status, result = overload()
    counts = result["counts"]
    assert status == 0 and all(result["checks"].values())
    assert counts["sent"] == counts["served"] + counts["refused"] + counts["cancelled"]
    assert counts["refused"] > 0 and counts["served"] > 0


def test_pictures_decoded_for_nothing_are_found(overload, benchmark, monkeypatch):
    """As if pictures were decoded before they get a place."""
    submit = Engine.submit

    def wasteful(engine: Engine, image: bytes, timeout_ms: float | None = None) -> Future:
        pixels = benchmark.engine_module.preprocess(image, engine.spec)
        return submit(engine, pixels, timeout_ms)

    monkeypatch.setattr(Engine, "submit", wasteful)
    status, result = overload()
    assert status == 3 and not result["checks"]["decodes only what it serves"]


def test_failures_are_found(overload, monkeypatch):
    def fails(self: FakeBackend, images: object) -> None:
        raise ValueError("no")

    peak = FakeBackend.run
    calls = iter(range(10**9))
    monkeypatch.setattr(FakeBackend, "run", lambda self, images: (fails if next(calls) > 50 else peak)(self, images))
    with pytest.raises(ValueError, match="no"):  # the closed loop stands for every request
        overload()
