"""benchmarks/load.py: that it counts what became of every request, and what it writes of an engine without a model."""

from __future__ import annotations

import json
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pytest
from conftest import script

from cgd_deploy import InputError, Overloaded

PICTURES = np.zeros((4, 2, 2, 3), np.uint8)


@pytest.fixture(scope="module")
def benchmark():
    return script("load")


def test_every_request_is_served_shed_failed_or_lost(benchmark):
    sent: list[Future] = []

    def send(_: np.ndarray) -> Future:
        kind = len(sent) % 4
        future: Future = Future()
        sent.append(future)
        if kind == 0:
            raise Overloaded("no")
        if kind == 1:
            future.set_exception(RuntimeError("no"))
        if kind == 2:
            future.set_result(None)
        return future

    found = benchmark.open_loop(send, PICTURES, 400, 0.2, np.random.default_rng(0), patience=0.01)
    counted = [sum(number % 4 == kind for number in range(len(sent))) for kind in range(4)]
    assert found.sent == len(sent) and min(counted) > 5
    assert [found.shed, found.failed, len(found.latencies), found.lost] == counted


def test_requests_come_at_the_rate_and_at_random(benchmark):
    moments = []

    def send(_: np.ndarray) -> Future:
        moments.append(time.perf_counter())
        future: Future = Future()
        future.set_result(None)
        return future

    found = benchmark.open_loop(send, PICTURES, 300, 1.0, np.random.default_rng(0))
    gaps = np.diff(moments)
    assert 240 < found.sent < 360  # 300 with a standard deviation of 17
    assert gaps.std() > 0.5 * gaps.mean()  # of exponential gaps they are equal, of even ones none


def test_latency_counts_from_when_the_request_was_due(benchmark):
    """A sender that is held up for 0.2 s must not hide that those behind it waited."""
    calls = []

    def send(_: np.ndarray) -> Future:
        calls.append(None)
        if len(calls) == 1:
            time.sleep(0.2)
        future: Future = Future()
        future.set_result(None)
        return future

    found = benchmark.open_loop(send, PICTURES, 200, 0.3, np.random.default_rng(0))
    assert sum(latency > 0.05 for latency in found.latencies) > 10


def test_a_closed_loop_counts_answers_a_second(benchmark):
    with ThreadPoolExecutor(4) as pool:
        found = benchmark.closed_loop(lambda _: pool.submit(time.sleep, 0.02), PICTURES, 4, 0.5)
    assert 100 < found < 205  # four at a time, 0.02 s each


def test_a_step_is_set_beside_the_measures_before_and_after_it(benchmark):
    measures = iter([10.0, 20.0, 40.0])
    beside = benchmark.Beside(lambda: next(measures))
    assert beside.step(lambda last: last + 1) == (11, 15)
    assert beside.step(lambda last: last + 1) == (21, 30)


def test_rates_are_parts_of_the_measures_beside_them(benchmark):
    base, rates = iter([10.0, 10.0, 20.0, 20.0, 20.0]), {"a": iter([10.0, 20.0]), "b": iter([30.0, 10.0])}
    calls = {name: lambda rate=rate: next(rate) for name, rate in rates.items()}
    found = benchmark.throughputs("base", lambda: next(base), calls, 2, lambda _: None)
    assert found["base"] == {"images_per_second": 20}
    assert found["a"] == {"images_per_second": 15, "of_base": 1, "rounds": [1, 1]}
    assert found["b"] == {"images_per_second": 20, "of_base": 1.25, "rounds": [2, 0.5]}


def test_latencies_and_answers_in_parts_of_the_peak(benchmark):
    answers = benchmark.Answers(sent=3, seconds=2.0, in_time=3, latencies=[0.202, 0.402, 0.602])
    answers.set_beside(20.0, batch=4, max_delay_ms=2)  # a full batch takes 0.2 s, and 40 pictures could be served
    facts = answers.facts()
    assert answers.full_batches == pytest.approx([1, 2, 3]) and facts["p99_full_batches"] is None
    assert facts["of_peak"] == 3 / 40
    answers.full_batches = [float(number) for number in range(101)]
    assert answers.facts()["p99_full_batches"] == pytest.approx(99)


def test_a_run_on_an_engine_without_a_model(benchmark, monkeypatch, fake_engine, tmp_path, capsys):
    service = tmp_path / "service"
    service.write_text(f"#!{sys.executable}\nprint('warm')\nprint('{{\"images_per_second\": 50.0}}')\n")
    service.chmod(0o755)
    out = tmp_path / "load.json"
    arguments = ["--seconds", "0.1", "--rounds", "2", "--loads", "0.02", "0.05", "--clients", "4", "--batch", "2"]
    monkeypatch.setattr(
        sys, "argv", ["load.py", str(fake_engine), *arguments, "--service", str(service), "-o", str(out)]
    )
    benchmark.main()
    result = json.loads(out.read_text())
    assert {(one["server"], one["load"]) for one in result["open_loop"]} == {
        (server, share) for server in ("one at a time", "full batches only", "cgd-deploy") for share in (0.02, 0.05)
    }
    for one in result["open_loop"]:
        assert one["sent"] == one["served"] + one["shed"] and one["failed"] == one["lost"] == 0
    assert result["full_batch_ms"] == pytest.approx(2000 / result["peak_images_per_second"], abs=0.01)
    assert result["closed_loop"]["servers"]["cgd-deploy"]["of_peak"] > 0
    callers = result["from_c"]["callers"]
    assert callers["C"]["images_per_second"] == 50 and callers["C"]["of_Python"] > 0
    assert "cgd-deploy" in out.with_suffix(".svg").read_text()
    assert "load.svg" in capsys.readouterr().out


def test_the_server_gets_jpeg_files_over_http(benchmark, fake_engine, pictures, tmp_path):
    pytest.importorskip("fastapi", reason="the server is not installed")
    arguments = ["--http", "--pictures", str(pictures), "--seconds", "0.2", "--rounds", "1", "--loads", "0.002"]
    options = benchmark.parse([str(fake_engine), *arguments, "--clients", "4", "--batch", "2"])
    result = benchmark.measure(options, lambda *_: None)
    [http] = [one for one in result["open_loop"] if one["server"] == benchmark.HTTP]
    assert http["sent"] == http["served"] > 0
    assert result["closed_loop"]["servers"][benchmark.HTTP]["of_peak"] > 0


def test_a_full_server_sheds(benchmark):
    def send(_: np.ndarray) -> Future:
        future: Future = Future()
        future.set_exception(Overloaded("no"))
        return future

    found = benchmark.open_loop(send, PICTURES, 200, 0.1, np.random.default_rng(0))
    assert found.shed == found.sent > 0 and found.failed == 0


def test_a_service_that_fails_is_told(benchmark, tmp_path):
    with pytest.raises(InputError, match="build it again"):
        benchmark.from_c("/bin/false", tmp_path, 1, 1.0)
