"""Overload: threads send JPEG files faster than the engine can serve them, and it must shed load without wasted work.

    python benchmarks/overload.py int8.cgd --seconds 60 -o benchmarks/results/overload.json

The peak is the throughput of the same threads in a closed loop, measured before and after. Then the threads send at
random (Poisson), together ``--load`` times the peak, and cancel some requests at once. Latency counts from the time
when a request was due. The script counts the pictures that the engine decodes: it may decode served and cancelled
pictures, but no refused ones. Exit status 3 if it does, if a request fails, or if memory grows.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import psutil

import charts
import running
from cgd_deploy import Batching, Engine, Overloaded, load
from cgd_deploy.hardware.cpu import cpu_name
from cgd_deploy.hardware.timing import percentiles_ms
from cgd_deploy.pictures.preprocess import preprocess
from cgd_deploy.quality.contestants import OnProgress
from cgd_deploy.runtime import engine as engine_module
from cgd_deploy.runtime.golden import golden_images
from cgd_deploy.spec import ModelSpec
from httpserver import jpeg_files
from load import closed_loop

PICTURES = 32
CANCELLED = 0.02
"""Of the admitted requests."""
GROWTH = 1.02
"""The largest ratio of memory at the end to memory in the middle that still counts as flat."""


class Decoded:
    """Counts the pictures that engines of this process decode for ``submit``."""

    def __init__(self) -> None:
        self._numbers = count()
        engine_module.preprocess = self._decode

    def _decode(self, image: Any, spec: ModelSpec) -> Any:
        next(self._numbers)
        return preprocess(image, spec)

    def close(self) -> int:
        """Stop counting; returns the number of decoded pictures."""
        engine_module.preprocess = preprocess
        return next(self._numbers)


class Senders:
    """Threads that send in an open loop for ``seconds``, and the outcome of their requests.

    Memory for latencies is allocated before the first request, so nothing here grows with the number of requests.
    """

    def __init__(self, engine: Engine, files: Sequence[bytes], rate: float, seconds: float, threads: int) -> None:
        self._engine, self._files, self._rate = engine, files, rate / threads
        self._latencies = np.full(int(2 * rate * seconds) + 1000, np.nan, np.float32)
        self._served = count()
        self._lock = threading.Lock()
        self.counts: Counter[str] = Counter()
        self.begin = time.perf_counter()
        self.end = self.begin + seconds
        self.threads = [threading.Thread(target=self._send, args=(Random(seed),)) for seed in range(threads)]
        for thread in self.threads:
            thread.start()

    def latencies(self) -> list[float]:
        """The latency of every served request, in seconds."""
        return [float(one) for one in self._latencies[~np.isnan(self._latencies)]]

    def _send(self, random: Random) -> None:
        counts: Counter[str] = Counter()
        due = self.begin + random.expovariate(self._rate)
        while due < self.end:
            time.sleep(max(0.0, due - time.perf_counter()))
            counts["sent"] += 1
            try:
                future = self._engine.submit(random.choice(self._files))
            except Overloaded:
                counts["refused"] += 1
            else:
                future.add_done_callback(partial(self._answered, due))
                counts["cancelled"] += random.random() < CANCELLED and future.cancel()
            due += random.expovariate(self._rate)
        self._add(counts)

    def _answered(self, due: float, future: Future[Any]) -> None:
        if future.cancelled():
            return
        now = time.perf_counter()
        if future.exception():
            self._add(Counter(failed=1))
            return
        self._latencies[next(self._served)] = now - due
        self._add(Counter(served=1, in_time=int(now <= self.end)))

    def _add(self, counts: Counter[str]) -> None:
        with self._lock:
            self.counts.update(counts)


def overloaded(engine: Engine, files: Sequence[bytes], rate: float, options: argparse.Namespace) -> dict[str, Any]:
    """Send at ``rate`` a second, then close the engine: counts, latencies in seconds and memory over time."""
    process, decoded = psutil.Process(), Decoded()
    senders = Senders(engine, files, rate, options.seconds, options.clients)
    memory = []
    while any(thread.is_alive() for thread in senders.threads):
        memory.append((time.perf_counter() - senders.begin, process.memory_info().rss / 2**20))
        time.sleep(options.every)
    engine.close()
    return {
        "counts": {**senders.counts, "decoded": decoded.close()},
        "latencies": senders.latencies(),
        "memory": memory,
    }


def facts(found: dict[str, Any], peak: float, seconds: float) -> dict[str, Any]:
    """The JSON of the open loop; ``peak`` in pictures a second."""
    counts = Counter(found["counts"])
    memory = np.array([mib for _, mib in found["memory"]])
    thirds = [round(float(np.median(part)), 2) for part in np.array_split(memory, 3) if len(part)]
    wasted = counts["decoded"] - counts["served"]
    return {
        "counts": {name: counts[name] for name in ("sent", "refused", "cancelled", "failed", "served", "decoded")},
        "rss_mib": dict(zip(("start", "middle", "end"), thirds, strict=False)),
        "latency_ms": percentiles_ms(found["latencies"]) if found["latencies"] else None,
        "offered_of_peak": round(counts["sent"] / seconds / peak, 4),
        "served_of_peak": round(counts["in_time"] / seconds / peak, 4),
        "checks": {
            "decodes only what it serves": 0 <= wasted <= counts["cancelled"],
            "no request fails": counts["failed"] == 0 and counts["served"] > 0,
            "memory is flat": thirds[-1] <= GROWTH * thirds[len(thirds) // 2],
        },
    }


def measure(options: argparse.Namespace, on_progress: OnProgress) -> dict[str, Any]:
    """Everything but the writing; raises CgdError."""
    batching = Batching(max_queue=options.max_queue)
    peak_seconds = max(1.0, options.seconds / 6)

    def peak() -> float:
        with load(options.engine, threads=options.threads, batching=batching) as engine:
            return closed_loop(engine.submit, files, options.clients, peak_seconds)

    engine = load(options.engine, threads=options.threads, batching=batching)
    files = jpeg_files(golden_images(engine.spec, PICTURES), options.side)
    before = peak()
    on_progress("peak", 1 / 3)
    found = overloaded(engine, files, options.load * before, options)
    on_progress("overload", 2 / 3)
    after = peak()
    on_progress("peak again", 1.0)
    return {
        "schema": 1,
        "environment": {"cpu": cpu_name(), "seconds": options.seconds, "clients": options.clients},
        "engine": {"backend": engine.manifest.backend, "precision": engine.precision.value, "device": engine.device},
        "batching": {"max_queue": options.max_queue},
        "jpeg": {"side": options.side, "bytes": round(float(np.mean([len(file) for file in files])))},
        "load": options.load,
        "peak_images_per_second": [round(before, 2), round(after, 2)],
        **facts(found, (before + after) / 2, options.seconds),
        "memory": [[round(second, 2), round(mib, 2)] for second, mib in found["memory"]],
    }


def chart(result: dict[str, Any], path: Path) -> None:
    """Memory over time, from zero."""
    figure = charts.new_figure(7, 2.6)
    axes = figure.subplots()
    axes.plot(*zip(*result["memory"], strict=True), color="#d95f0e", linewidth=1)
    axes.set(xlabel="seconds", ylabel="memory, MiB", ylim=(0, None))
    charts.tidy(axes)
    charts.save(figure, path)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = running.parser(__doc__, "overload.json")
    parser.add_argument("engine", type=Path, help="a .cgd file")
    parser.add_argument("--seconds", type=float, default=60.0, help="of the overload [default: 60]")
    parser.add_argument("--load", type=float, default=1.5, help="offered, in times the peak [default: 1.5]")
    parser.add_argument("--clients", type=int, default=16, help="threads that send [default: 16]")
    parser.add_argument("--side", type=int, default=320, help="pixels of a JPEG file's sides [default: 320]")
    parser.add_argument("--max-queue", type=int, default=64, help="[default: 64]")
    parser.add_argument(
        "--threads", type=int, help="of the engine, to compute and to decode [default: as load chooses]"
    )
    parser.add_argument("--every", type=float, default=0.5, help="seconds between samples of memory [default: 0.5]")
    options = parser.parse_args(arguments)
    if min(options.clients, options.side - 7) < 1 or options.max_queue < options.clients:
        parser.error("--clients takes 1 or more, --max-queue no fewer than --clients, --side 8 or more")
    if min(options.seconds, options.load, options.every) <= 0:
        parser.error("--seconds, --load and --every take more than 0")
    return options


def main() -> None:
    result = running.run(measure, parse(), chart)
    running.show(result, *(name for name in result if name not in ("schema", "memory")))
    sys.exit(0 if all(result["checks"].values()) else 3)


if __name__ == "__main__":
    main()
