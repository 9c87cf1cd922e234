"""Threads, streams and batch size that run an engine fastest, one entry for each machine, in a file beside the engine.

Tuning changes no descriptor, so it is not part of the engine file, whose checksum identifies a run. Release 0.1.0 wrote
the entry into the manifest; that entry counts if the file beside the engine has no entry for the same machine.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import EngineError, in_one_line
from ..files import check_file, parse_json, write_text
from ..hardware.cpu import available_threads, cpu_name, instruction_sets

TIE = 0.97
"""A setting with this share of the highest speed is as fast within noise; of these, the smallest batch is chosen."""
SCHEMA = 1
SUFFIX = ".tuning.json"
LARGEST_COUNT = 1 << 16
PURPOSES = ("latency", "throughput")
AGAIN = "measure again with `cgd-deploy inspect --autotune`, or remove the file"


@dataclass(frozen=True)
class Setting:
    """How a CPU runs an engine: ``streams`` parts of each ``batch`` run at the same time and share ``threads``."""

    threads: int
    streams: int
    batch: int

    def __str__(self) -> str:
        counts = ((self.threads, "thread"), (self.streams, "stream"))
        return ", ".join(f"{count} {name}{'s' * (count > 1)}" for count, name in counts) + f", batch {self.batch}"


def candidates(threads: int, batches: Sequence[int]) -> list[Setting]:
    """Settings to measure: all threads and half of them, 1, 2, 4, ... streams, each batch with a picture a stream."""
    return [
        Setting(count, streams, batch)
        for count in sorted({threads, max(1, threads // 2)}, reverse=True)
        for streams in (1 << power for power in range(count.bit_length()))
        for batch in batches
        if count % streams == 0 and batch >= streams
    ]


def choice(speeds: Mapping[Setting, float]) -> dict[str, Any]:
    """The tuning of this machine.

    speeds   images per second by setting, measured on this machine

    The latency setting is the fastest with batch 1. The throughput setting is, among the settings within 3 % of the
    fastest, the one with the smallest batch, then with the fewest streams.
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


def this_machine() -> dict[str, Any]:
    return {"cpu": cpu_name(), "instruction_sets": instruction_sets(), "threads": available_threads()}


def tuning_here(tunings: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The first tuning of a machine like this one, or None."""
    here = this_machine() if tunings else None
    return next((tuning for tuning in tunings if tuning["machine"] == here), None)


def setting_here(tunings: Sequence[Mapping[str, Any]], purpose: str) -> Setting | None:
    """The fastest setting for ``purpose``, "latency" or "throughput"; None without a tuning of a machine like this."""
    tuning = tuning_here(tunings)
    return Setting(**tuning[purpose]) if tuning else None


def tuning_path(engine: Path) -> Path:
    """model.cgd -> model.cgd.tuning.json"""
    return engine.with_name(engine.name + SUFFIX)


def read_tunings(engine: Path, manifest_sha256: str) -> list[Mapping[str, Any]]:
    """The tunings in the file beside an engine, one for each machine; an empty list without a file.

    Raises EngineError for a damaged file, and for tunings of an engine with another ``manifest_sha256``.
    """
    path = tuning_path(engine)
    try:
        check_file(path, "manifest_bytes", EngineError)
        told = parse_json(path.read_bytes())
        if told["schema"] != SCHEMA:
            raise ValueError(f"schema {told['schema']!r:.60}, this release reads {SCHEMA}")
        measured_for, tunings = told["manifest_sha256"], told["machines"]
        for tuning in tunings:
            check_tuning(tuning)
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise EngineError(f"{path} is not a tuning of an engine ({in_one_line(error)}); {AGAIN}.") from error
    if measured_for != manifest_sha256:
        raise EngineError(f"{path} was measured for another engine than {engine.name} is now; {AGAIN}.")
    return list(tunings)


def write_tuning(engine: Path, manifest_sha256: str, tuning: Mapping[str, Any]) -> Path:
    """Write a tuning beside the engine. It replaces a tuning of the same machine; tunings of other machines stay.

    Replaces a file that ``read_tunings`` refuses. Raises InputError if the file cannot be written.
    """
    try:
        before = read_tunings(engine, manifest_sha256)
    except EngineError:
        before = []
    others = [one for one in before if one["machine"] != tuning["machine"]]
    told = {"schema": SCHEMA, "manifest_sha256": manifest_sha256, "machines": [*others, tuning]}
    return write_text(tuning_path(engine), json.dumps(told, indent=1) + "\n")


def check_tuning(tuning: Any) -> None:
    """Raise ValueError, KeyError or TypeError unless ``tuning`` is the tuning of one machine."""
    if not isinstance(tuning, Mapping):
        raise TypeError("the tuning is not a table")
    for purpose in PURPOSES:
        if not isinstance(tuning[purpose], Mapping):
            raise TypeError(f"{purpose} is not a table")
        check_counts(tuning[purpose], "threads", "streams", "batch")
        Setting(**tuning[purpose])
    if "machine" not in tuning:
        raise KeyError("machine")


def check_counts(table: Mapping[str, Any], *names: str) -> None:
    """Raise KeyError or ValueError unless each of ``names`` is a whole number from 1 to 65,536."""
    for name in names:
        if type(table[name]) is not int or not 1 <= table[name] <= LARGEST_COUNT:
            raise ValueError(f"{name} is {table[name]!r:.60}")
