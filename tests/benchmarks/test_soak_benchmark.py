"""The soak in seconds: what it counts, and that a wrong answer, a leak or an error does not pass."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from conftest import script, write_fake_engine

from cgd_deploy.runtime.backends.fake import FakeBackend


@pytest.fixture
def soak(monkeypatch, tmp_path):
    """Runs benchmarks/soak.py for three seconds on an engine without a model; returns exit status and result."""

    def run() -> tuple[int, dict]:
        benchmark = script("soak")
        engine = write_fake_engine(tmp_path / "fake.cgd")
        out = tmp_path / "soak.json"
        options = ["--minutes", "0.05", "--every", "0.2", "--pause", "0.02", "-o", str(out)]
        monkeypatch.setattr(sys, "argv", ["soak.py", str(engine), *options])
        with pytest.raises(SystemExit) as exit_:
            benchmark.main()
        assert out.with_suffix(".svg").stat().st_size > 1000
        return exit_.value.code, json.loads(out.read_text())

    return run


def test_a_sound_engine_passes(soak):
    status, result = soak()
    assert (status, result["failures"], result["threads_left"]) == (0, [], 0)
    counts = result["counts"]
    assert "wrong" not in counts and counts["right"] > 200
    assert all(counts[kind] for kind in ("cancelled", "refused", "shed"))
    assert result["largest_difference"] < 1e-3 < result["smallest_difference_between_pictures"]
    assert len(result["samples"]) >= 10


def test_rows_in_the_wrong_order_are_found(soak, monkeypatch):
    right = FakeBackend.run
    monkeypatch.setattr(FakeBackend, "run", lambda self, images: np.ascontiguousarray(right(self, images)[::-1]))
    status, result = soak()
    assert status == 3 and result["counts"]["wrong"] > 0


def test_an_error_of_the_backend_is_kept(soak, monkeypatch):
    right = FakeBackend.run

    def fails(self: FakeBackend, images: np.ndarray) -> np.ndarray:
        if len(images) == 8:
            raise ValueError("eight")
        return right(self, images)

    monkeypatch.setattr(FakeBackend, "run", fails)
    status, result = soak()
    assert status == 3 and any("ValueError: eight" in failure for failure in result["failures"])


def test_a_slope_and_its_interval():
    benchmark = script("soak")
    minutes = np.arange(50) / 10
    centred = minutes - minutes.mean()
    covered = 0
    for seed in range(200):
        values = 7 + 0.5 * minutes + np.random.default_rng(seed).normal(0, 0.1, 50)
        found = benchmark.slope(minutes, values)
        expected = sum(c * v for c, v in zip(centred, values, strict=True)) / sum(c * c for c in centred)
        assert found["per_minute"] == pytest.approx(expected, abs=1e-4)
        covered += abs(found["per_minute"] - 0.5) < found["interval"]
    assert 180 <= covered <= 198  # of 190
