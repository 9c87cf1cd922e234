"""When should a partial batch leave? The engine's own policy on a simulated clock and simulated devices.

    python benchmarks/batching.py -o benchmarks/results/batching.json

Pictures arrive at random (Poisson) at a share of the device's peak. ``admission.Policy`` of the runtime decides when
a batch leaves. Its ``enough`` takes several values: a partial batch only leaves while fewer batches are in flight. If
``enough`` is the number of workers, every idle worker takes the pictures that have waited for the delay. No time is
measured, so the numbers are the same on every machine.
"""

from __future__ import annotations

import argparse
import heapq
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

import numpy as np

import charts
import running
from cgd_deploy.hardware.timing import percentile
from cgd_deploy.quality.contestants import OnProgress
from cgd_deploy.runtime.admission import Policy
from cgd_deploy.runtime.cuda.streams import bucket_sizes

LOADS = (0.1, 0.5, 0.8, 0.95, 1.1)
DELAYS = (0.0, 0.002)
"""Seconds."""
MAX_QUEUE = 256
MOMENT = 1e-9
"""Shorter waits count as zero, in seconds: the simulated clock rounds."""


@dataclass(frozen=True, kw_only=True)
class Device:
    """A simulated device; all times in seconds.

    workers   batches in flight at most
    enough    the values of ``Policy.enough`` to compare; the last is the number of workers
    batch     pictures of a full batch
    fixed     time of a batch, whatever its size
    each      additional time for every picture
    host      time for a worker to stack one picture into pinned memory; workers do this in parallel
    copy      time to copy one picture to the device; batches are copied one after another while earlier ones compute
    serial    whether batches compute one after another, as kernels on a GPU; else each worker has a part of the cores
    """

    workers: int
    enough: tuple[int, ...]
    batch: int
    fixed: float
    each: float
    host: float = 0.0
    copy: float = 0.0
    serial: bool = True

    def seconds(self, rows: int) -> float:
        """Time to compute a batch; on a GPU the batch is padded to the next bucket."""
        if self.serial:
            rows = next(size for size in bucket_sizes(1, self.batch) if size >= rows)
        return self.fixed + self.each * rows

    @property
    def peak(self) -> float:
        """Pictures a second in full batches."""
        return self.batch / self.seconds(self.batch) * (1 if self.serial else self.workers)


DEVICES = {
    "GPU of 45,000 images/s": Device(
        workers=6, enough=(1, 2, 3, 6), batch=64, fixed=0.0003, each=(64 / 45_000 - 0.0003) / 64, host=2e-5, copy=6e-6
    ),
    "GPU of 5,000 images/s": Device(
        workers=6, enough=(1, 2, 3, 6), batch=32, fixed=0.0005, each=(32 / 5_000 - 0.0005) / 32, host=2e-5, copy=1.2e-5
    ),
    "CPU, 1 stream": Device(workers=1, enough=(1,), batch=8, fixed=0.0, each=0.004, serial=False),
    "CPU, 2 streams": Device(workers=2, enough=(1, 2), batch=8, fixed=0.0, each=0.008, serial=False),
    "CPU, 4 streams": Device(workers=4, enough=(1, 2, 4), batch=8, fixed=0.0, each=0.016, serial=False),
}


class Clock:
    """The state of a device: when each started batch will end."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._copied = self._computed = 0.0
        self.ends: list[float] = []

    def start(self, now: float, rows: int) -> float:
        """Begin a batch and return when it ends."""
        device = self._device
        self._copied = max(now + device.host * rows, self._copied) + device.copy * rows
        begin = max(self._copied, self._computed) if device.serial else self._copied
        self._computed = begin + device.seconds(rows)
        heapq.heappush(self.ends, self._computed)
        return self._computed


def simulate(device: Device, policy: Policy, load: float, pictures: int, seed: int) -> dict[str, Any]:
    """Simulate pictures that arrive at ``load`` times the peak; returns latencies in ms, rows a batch and shares."""
    random = np.random.default_rng(seed)
    arrivals = deque(np.cumsum(random.exponential(1 / (load * device.peak), size=pictures)).tolist())
    duration = arrivals[-1]
    clock, waiting = Clock(device), deque[float]()
    latencies: list[float] = []
    sizes: list[int] = []
    now, in_time = 0.0, 0
    while arrivals or waiting or clock.ends:
        wait = inf
        if len(clock.ends) < device.workers:
            wait = policy.wait(len(waiting), now - waiting[0] if waiting else 0.0, len(clock.ends), not arrivals)
        if wait < MOMENT:
            batch = [waiting.popleft() for _ in range(min(device.batch, len(waiting)))]
            end = clock.start(now, len(batch))
            sizes.append(len(batch))
            latencies += [end - arrived for arrived in batch]
            in_time += len(batch) * (end <= duration)
            continue
        now = min(now + wait, arrivals[0] if arrivals else inf, clock.ends[0] if clock.ends else inf)
        while clock.ends and clock.ends[0] <= now:
            heapq.heappop(clock.ends)
        if arrivals and arrivals[0] <= now:
            arrived = arrivals.popleft()
            if len(waiting) < MAX_QUEUE:
                waiting.append(arrived)
    return {
        "p50_ms": round(1000 * float(np.median(latencies)), 3),
        "p99_ms": round(1000 * (percentile(latencies, 99) or 0.0), 3),
        "rows_a_batch": round(float(np.mean(sizes)), 2),
        "of_peak": round(in_time / duration / device.peak, 4),
        "shed": round(1 - len(latencies) / pictures, 4),
    }


def measure(options: argparse.Namespace, on_progress: OnProgress) -> dict[str, Any]:
    """Every device, policy and load."""
    steps = [
        (name, delay, enough, load)
        for name, device in DEVICES.items()
        for delay in DELAYS
        for enough in device.enough
        for load in LOADS
    ]
    found = []
    for number, (name, delay, enough, load) in enumerate(steps):
        device = DEVICES[name]
        policy = Policy(max_batch=device.batch, max_delay=delay, enough=enough)
        facts = simulate(device, policy, load, options.pictures, options.seed)
        found.append({"device": name, "max_delay_ms": 1000 * delay, "enough": enough, "load": load, **facts})
        on_progress("simulating", (number + 1) / len(steps))
    return {
        "schema": 1,
        "environment": {"pictures": options.pictures, "seed": options.seed},
        "max_queue": MAX_QUEUE,
        "devices": {
            name: {"images_per_second": round(device.peak, 1), "workers": device.workers, "batch": device.batch}
            for name, device in DEVICES.items()
        },
        "simulated": found,
    }


def lines(result: dict[str, Any], name: str) -> dict[tuple[float, int], list[dict[str, Any]]]:
    """The steps of one device by delay (ms) and policy, in the order of the loads."""
    found: dict[tuple[float, int], list[dict[str, Any]]] = {}
    for one in result["simulated"]:
        if one["device"] == name:
            found.setdefault((one["max_delay_ms"], one["enough"]), []).append(one)
    return found


def chart(result: dict[str, Any], path: Path) -> None:
    """The 99th percentile of latency against load: a panel for each device, a line for each policy."""
    devices = [name for name in result["devices"] if len(DEVICES[name].enough) > 1]
    figure = charts.new_figure(3.4 * len(devices), 3.6)
    for axes, name in zip(figure.subplots(1, len(devices), squeeze=False)[0], devices, strict=True):
        for (delay, enough), steps in lines(result, name).items():
            loads = [100 * one["load"] for one in steps if one["load"] < 1]
            p99 = [one["p99_ms"] for one in steps if one["load"] < 1]
            style = {"marker": "o", "markersize": 4, "linestyle": "-" if delay else ":"}
            axes.plot(
                loads, p99, color=f"C{DEVICES[name].enough.index(enough)}", label=f"{enough}, {delay:g} ms", **style
            )
        axes.set_title(name, fontsize=9)
        axes.set(xlabel="offered load, % of peak", ylabel="p99, ms", ylim=(0, None))
        charts.tidy(axes)
        axes.legend(title="enough, max_delay_ms", title_fontsize=7, frameon=False, fontsize=7)
    charts.save(figure, path)


def table(result: dict[str, Any]) -> str:
    """A line for each device, delay and policy: p50 / p99 in ms, rows a batch, share of the peak, at each load."""
    rows = [f"{'':24} delay enough" + "".join(f" | {f'{load:.0%}: p50 / p99 ms, rows, of peak':^32}" for load in LOADS)]
    for name in result["devices"]:
        for (delay, enough), steps in lines(result, name).items():
            cells = (
                f" | {one['p50_ms']:8.2f} / {one['p99_ms']:8.2f} {one['rows_a_batch']:6.1f} {one['of_peak']:5.0%}"
                for one in steps
            )
            rows.append(f"{name:24} {delay:5g} {enough:6}" + "".join(cells))
    return "\n".join(rows)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = running.parser(__doc__, "batching.json")
    parser.add_argument("--pictures", type=int, default=100_000, help="of each step [default: 100000]")
    parser.add_argument("--seed", type=int, default=0, help="[default: 0]")
    options = parser.parse_args(arguments)
    if options.pictures < 1:
        parser.error("--pictures takes 1 or more")
    return options


def main() -> None:
    print(table(running.run(measure, parse(), chart)))


if __name__ == "__main__":
    main()
