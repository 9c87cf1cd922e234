"""benchmarks/batching.py: its simulated devices, worked out by hand, and what the engine's choice rests on."""

from __future__ import annotations

import json
import sys

import pytest
from conftest import BENCHMARKS, script

from cgd_deploy.runtime.admission import Policy
from cgd_deploy.runtime.engine import ENOUGH_ON_CUDA


@pytest.fixture(scope="module")
def benchmark():
    return script("batching")


def policy(device, enough: int, delay: float = 0.0) -> Policy:
    return Policy(max_batch=device.batch, max_delay=delay, enough=enough)


def test_a_gpu_pads_to_buckets_and_computes_one_batch_after_another(benchmark):
    device = benchmark.Device(workers=6, enough=(6,), batch=8, fixed=1.0, each=0.5, host=0.01, copy=0.1)
    assert (device.seconds(3), device.seconds(8), device.peak) == (3.0, 5.0, 1.6)
    clock = benchmark.Clock(device)
    assert clock.start(10.0, 3) == pytest.approx(10 + 3 * 0.11 + 3)
    assert clock.start(10.0, 1) == pytest.approx(10 + 3 * 0.11 + 3 + 1.5)  # copied meanwhile
    assert clock.ends == sorted(clock.ends)


def test_streams_of_a_cpu_compute_side_by_side(benchmark):
    device = benchmark.Device(workers=2, enough=(2,), batch=8, fixed=0.0, each=0.5, serial=False)
    clock = benchmark.Clock(device)
    assert device.peak == 4 and [clock.start(1.0, 3), clock.start(1.0, 2)] == [2.5, 2.0]


def test_a_device_with_little_to_do_answers_in_the_time_of_one_picture_and_the_delay(benchmark):
    device = benchmark.Device(workers=1, enough=(1,), batch=8, fixed=0.0, each=0.001, serial=False)
    found = benchmark.simulate(device, policy(device, 1, delay=0.002), 0.0001, 200, seed=0)
    assert (found["p50_ms"], found["rows_a_batch"], found["shed"]) == (3.0, 1.0, 0.0)


def test_beyond_the_peak_batches_are_full_and_the_rest_is_shed(benchmark):
    device = benchmark.DEVICES["CPU, 1 stream"]
    found = benchmark.simulate(device, policy(device, 1), 2.0, 20_000, seed=0)
    assert found["rows_a_batch"] > 7.9 and found["of_peak"] == pytest.approx(1, abs=0.01)
    assert found["shed"] == pytest.approx(0.5, abs=0.03)


def test_partial_batches_one_behind_another_make_each_other_wait(benchmark):
    """A batch takes 1 ms whatever its size, so whoever joins one waits for two of them at most, not for six."""
    device = benchmark.Device(workers=6, enough=(1, 6), batch=64, fixed=0.001, each=0.0)
    one, six = (benchmark.simulate(device, policy(device, enough), 0.2, 5000, seed=0)["p99_ms"] for enough in (1, 6))
    assert one <= 2.0 and 5.0 < six <= 7.0


def test_the_engines_choice_is_the_one_that_the_results_speak_for():
    """On every GPU: near the peak much quicker than if every idle worker took a part, and no slower at low load."""
    found = json.loads((BENCHMARKS / "results" / "batching.json").read_text())["simulated"]
    p99 = {(one["device"], one["max_delay_ms"], one["enough"], one["load"]): one["p99_ms"] for one in found}
    for device, delay, enough, load in p99:
        if device.startswith("GPU") and enough == 6:
            assert p99[device, delay, ENOUGH_ON_CUDA, load] <= 1.02 * p99[device, delay, enough, load]
    assert p99["GPU of 5,000 images/s", 2, ENOUGH_ON_CUDA, 0.8] < 0.5 * p99["GPU of 5,000 images/s", 2, 6, 0.8]


def test_a_run_is_the_same_every_time(benchmark, monkeypatch, tmp_path, capsys):
    written = []
    for name in ("a.json", "b.json"):
        out = tmp_path / name
        monkeypatch.setattr(sys, "argv", ["batching.py", "--pictures", "300", "-o", str(out)])
        benchmark.main()
        assert "CPU, 4 streams" in capsys.readouterr().out and "GPU of" in out.with_suffix(".svg").read_text()
        written.append(out.read_text())
    assert written[0] == written[1]
    steps = json.loads(written[0])["simulated"]
    assert len(steps) == len({(one["device"], one["max_delay_ms"], one["enough"], one["load"]) for one in steps})
