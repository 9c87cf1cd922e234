"""Threads, streams and batch size that run an engine fastest on a machine, kept in the engine's manifest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .enginefile import Manifest
from .hardware import available_threads, cpu_name, instruction_sets

TIE = 0.97
"""Of the most images a second: as good within noise, so the setting with the shorter wait is taken."""


@dataclass(frozen=True)
class Setting:
    """How a CPU runs an engine: ``streams`` parts of each ``batch`` at the same time, sharing ``threads``."""

    threads: int
    streams: int
    batch: int

    def __str__(self) -> str:
        counts = ((self.threads, "thread"), (self.streams, "stream"))
        return ", ".join(f"{count} {name}{'s' * (count > 1)}" for count, name in counts) + f", batch {self.batch}"


def candidates(threads: int, batches: Sequence[int]) -> list[Setting]:
    """What is worth measuring: all threads and half of them, in 1, 2, 4, ... streams, and each batch they can share."""
    return [
        Setting(count, streams, batch)
        for count in sorted({threads, max(1, threads // 2)}, reverse=True)
        for streams in (1 << power for power in range(count.bit_length()))
        for batch in batches
        if count % streams == 0 and batch >= streams
    ]


def choice(speeds: Mapping[Setting, float]) -> dict[str, Any]:
    """A manifest's ``tuning`` from images a second by setting, measured here.

    For latency, one picture in one stream. For throughput, of the settings within 3 % of the fastest the one with the
    smallest batch, then the fewest streams.
    """
    single = {setting: speed for setting, speed in speeds.items() if setting.batch == 1}
    latency = max(single, key=lambda setting: single[setting])
    enough = TIE * max(speeds.values())
    good = [setting for setting, speed in speeds.items() if speed >= enough]
    throughput = min(good, key=lambda setting: (setting.batch, setting.streams, -speeds[setting]))
    return {
        "machine": this_machine(),
        "latency": asdict(latency),
        "throughput": asdict(throughput),
        "measured": [{**asdict(setting), "images_per_second": round(speed, 3)} for setting, speed in speeds.items()],
    }


def setting_here(manifest: Manifest, purpose: str) -> Setting | None:
    """The fastest setting for "latency" or "throughput"; None if it was not measured on a machine like this one."""
    tuning = manifest.tuning
    return Setting(**tuning[purpose]) if tuning and tuning["machine"] == this_machine() else None


def this_machine() -> dict[str, Any]:
    return {"cpu": cpu_name(), "instruction_sets": instruction_sets(), "threads": available_threads()}
