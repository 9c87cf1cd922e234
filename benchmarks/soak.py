"""A soak test of serving: memory and handles stay flat, and every answer belongs to its own picture.

    python benchmarks/soak.py int8.cgd --minutes 30 -o benchmarks/results/soak.json

Threads, asyncio tasks and callers of ``embed_into`` share one engine. They send pictures at random, some as damaged
files, cancel some, and sometimes send more than the queue takes. Every descriptor is compared with the descriptor that
was computed before for the same picture. Memory counts after the first fifth of the time; its slope has a 95 %
interval.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray
from PIL import Image

import charts
import running
from cgd_deploy import Batching, Engine, InputError, Overloaded, load
from cgd_deploy.hardware.cpu import cpu_name
from cgd_deploy.runtime.golden import golden_images

OnShare = Callable[[float], None]

PICTURES = 32
WARM_UP = 0.2
"""Share of the time in which allocators and caches fill."""
QUEUE = 32
TOLERANCE = 1e-3
"""Largest difference in a component between two descriptors of one picture, from different batches."""


class Soak:
    """Sends pictures with known descriptors to one engine, and counts the outcomes."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.pixels = golden_images(engine.spec, PICTURES)
        self.files = [_png(image) for image in self.pixels]
        self.expected = np.concatenate([engine.embed(self.pixels[i : i + 1]) for i in range(PICTURES)])
        distances = np.abs(self.expected[:, None] - self.expected).max(axis=2)
        self.closest = float(distances[~np.eye(PICTURES, dtype=bool)].min())
        self.counts: Counter[str] = Counter()
        self.worst = 0.0
        self._lock = threading.Lock()

    def check(self, number: int, found: NDArray[np.float32]) -> None:
        error = float(np.abs(found - self.expected[number]).max())
        with self._lock:
            self.worst = max(self.worst, error)
            self.counts["right" if error <= TOLERANCE else "wrong"] += 1

    def count(self, what: str) -> None:
        with self._lock:
            self.counts[what] += 1

    def submit(self, random: random.Random) -> None:
        """A burst of single pictures, as pixels or files, some of them damaged or cancelled."""
        sent: list[tuple[int, Future[Any]]] = []
        for _ in range(random.choice((1, 1, 2, 4, 8, 2 * QUEUE))):
            number = random.randrange(PICTURES)
            kind = random.random()
            try:
                picture = self.pixels[number] if kind < 0.6 else self.files[number]
                sent.append((number, self.engine.submit(self.files[number][:40] if kind > 0.95 else picture)))
            except Overloaded:
                self.count("shed")
        for number, future in sent:
            if random.random() < 0.05:
                future.cancel()
            try:
                self.check(number, future.result(60))
            except CancelledError:
                self.count("cancelled")
            except InputError:
                self.count("refused")

    def gather(self, random: random.Random) -> None:
        """Four tasks in a new event loop."""

        async def tasks() -> None:
            numbers = [random.randrange(PICTURES) for _ in range(4)]
            found = await asyncio.gather(*(self.engine.aembed(self.files[n]) for n in numbers), return_exceptions=True)
            for number, one in zip(numbers, found, strict=True):
                if isinstance(one, Overloaded):
                    self.count("shed")
                elif isinstance(one, BaseException):
                    raise one
                else:
                    self.check(number, one)

        asyncio.run(tasks())

    def embed_into(self, random: random.Random) -> None:
        start = random.randrange(PICTURES - 4)
        descriptors = np.zeros((4, self.engine.spec.dim), np.float32)
        self.engine.embed_into(self.pixels[start : start + 4], descriptors)
        for number, found in enumerate(descriptors, start):
            self.check(number, found)


def keep_on(work: Callable[[random.Random], None], seed: int, end: float, pause: float, failed: list[str]) -> None:
    """Call ``work`` until ``end`` with random pauses; an error ends the calls and is added to ``failed``."""
    chance = random.Random(seed)
    try:
        while time.monotonic() < end:
            work(chance)
            time.sleep(chance.expovariate(1 / pause))
    except Exception as error:
        failed.append(f"{work.__name__}: {type(error).__name__}: {error}")


def slope(minutes: NDArray[np.float64], values: NDArray[np.float64]) -> dict[str, float]:
    """The least-squares slope per minute, and the half-width of its 95 % interval from the residuals."""
    centred = minutes - minutes.mean()
    spread = float((centred**2).sum())
    found = float((centred * values).sum() / spread)
    residuals = values - values.mean() - found * centred
    error = float(np.sqrt((residuals**2).sum() / max(1, len(values) - 2) / spread))
    return {"per_minute": round(found, 4), "interval": round(1.96 * error, 4)}


def slopes(samples: Sequence[dict[str, float]], start: float) -> dict[str, dict[str, float]]:
    """The slope of memory, handles and threads after minute ``start``."""
    steady = [one for one in samples if one["minute"] >= start]
    minutes = np.array([one["minute"] for one in steady])
    return {name: slope(minutes, np.array([one[name] for one in steady])) for name in ("rss_mib", "handles", "threads")}


def watch(
    process: psutil.Process, threads: Sequence[threading.Thread], options: argparse.Namespace, on_share: OnShare
) -> list[dict[str, float]]:
    """Memory, handles and threads of ``process`` every ``options.every`` seconds, until the threads have ended."""
    begin = time.monotonic()
    samples: list[dict[str, float]] = []
    while any(thread.is_alive() for thread in threads):
        time.sleep(options.every)
        minute = (time.monotonic() - begin) / 60
        samples.append(
            {
                "minute": round(minute, 3),
                "rss_mib": round(process.memory_info().rss / 2**20, 2),
                "handles": process.num_fds(),
                "threads": process.num_threads(),
            }
        )
        on_share(min(1.0, minute / options.minutes))
    return samples


def measure(options: argparse.Namespace, on_progress: Callable[[str, float], None]) -> dict[str, Any]:
    failed: list[str] = []
    batching = Batching(max_queue=QUEUE)
    with load(options.engine, threads=options.threads, streams=options.streams, batching=batching) as engine:
        soak = Soak(engine)
        end = time.monotonic() + 60 * options.minutes
        kinds = [soak.submit] * 4 + [soak.gather, soak.embed_into]
        threads = [
            threading.Thread(target=keep_on, args=(work, seed, end, options.pause, failed))
            for seed, work in enumerate(kinds)
        ]
        for thread in threads:
            thread.start()
        samples = watch(psutil.Process(), threads, options, partial(on_progress, "soaking"))
        manifest = engine.manifest
    return {
        "schema": 1,
        "environment": {"cpu": cpu_name(), "minutes": options.minutes},
        "engine": {"backend": manifest.backend, "precision": manifest.precision.value},
        "counts": dict(sorted(soak.counts.items())),
        "failures": failed,
        "largest_difference": soak.worst,
        "smallest_difference_between_pictures": soak.closest,
        "slopes": slopes(samples, WARM_UP * options.minutes),
        "threads_left": sum(thread.name.startswith("cgd-deploy") for thread in threading.enumerate()),
        "samples": samples,
    }


def chart(result: dict[str, Any], path: Path) -> None:
    """Memory, handles and threads over time, each from zero."""
    figure = charts.new_figure(8, 5)
    panels = figure.subplots(3, 1, sharex=True)
    minutes = [one["minute"] for one in result["samples"]]
    titles = {"rss_mib": "memory, MiB", "handles": "file handles", "threads": "threads"}
    for axes, (name, title) in zip(panels, titles.items(), strict=True):
        axes.plot(minutes, [one[name] for one in result["samples"]], color="#d95f0e", linewidth=1)
        axes.set(ylabel=title, ylim=(0, None))
        slope = result["slopes"][name]
        axes.set_title(f"{slope['per_minute']:+.3f} ± {slope['interval']:.3f} a minute", fontsize=8, loc="right")
        charts.tidy(axes)
    panels[-1].set_xlabel("minutes")
    charts.save(figure, path)


def _png(image: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def main() -> None:
    parser = running.parser(__doc__, "soak.json")
    parser.add_argument("engine", type=Path, help="a .cgd file")
    parser.add_argument("--minutes", type=float, default=30.0, help="[default: 30]")
    parser.add_argument("--every", type=float, default=5.0, help="seconds between samples [default: 5]")
    parser.add_argument(
        "--pause", type=float, default=0.2, help="mean seconds between a sender's bursts [default: 0.2]"
    )
    parser.add_argument("--threads", type=int)
    parser.add_argument("--streams", type=int)
    result = running.run(measure, parser.parse_args(), chart)
    running.show(result, *(name for name in result if name not in ("schema", "environment", "engine", "samples")))
    sys.exit(3 if result["failures"] or result["counts"].get("wrong") or result["threads_left"] else 0)


if __name__ == "__main__":
    main()
