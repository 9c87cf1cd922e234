"""The CPU of this machine: the cores that this process may use, their load, and their instruction sets."""

from __future__ import annotations

import math
import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path

from .cgroups import cpu_quota

PROC_STAT = Path("/proc/stat")
FAST_INT8 = {"avx_vnni", "avx512_vnni", "amx_int8", "i8mm"}
FAST_BF16 = {"avx512_bf16", "amx_bf16"}
SLOW_INT8 = (
    "this CPU has no VNNI, AMX or i8mm: INT8 may be no faster than FP32 here, and sums of its products saturate unless "
    "weights have 7 bits."
)

ONEDNN_LIMIT, ONEDNN_FORMER_LIMIT = "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"
ONEDNN_ALLOWS = {
    "sse41": (),
    "avx": (),
    "avx2": ("avx2",),
    "avx2_vnni": ("avx2", "avx_vnni"),
    "avx2_vnni_2": ("avx2", "avx_vnni"),
    "avx512_core": ("avx2", "avx512f"),
    "avx512_core_vnni": ("avx2", "avx512f", "avx512_vnni"),
    "avx512_core_bf16": ("avx2", "avx512f", "avx512_vnni", "avx512_bf16"),
    "avx512_core_fp16": ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16"),
}
"""Instruction sets that OpenVINO's oneDNN uses, by the value of ONEDNN_MAX_CPU_ISA; other values allow all sets."""


def available_threads() -> int:
    """Number of cores that this process may use: its CPU affinity, capped by its smallest cgroup quota; at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota()
    return max(1, min(cores, math.floor(quota))) if quota else max(1, cores)


@dataclass(frozen=True, kw_only=True)
class CpuClock:
    """Seconds on several clocks at one moment. Only differences between two moments have a meaning.

    wall     real time
    ours     this process on any core
    all      every process, on the cores that this process may use
    stolen   time on these cores that the hypervisor gave to other machines
    cores    number of these cores
    """

    wall: float
    ours: float
    all: float
    stolen: float
    cores: int


def cpu_clock() -> CpuClock | None:
    """The clocks now; None on systems without them, as outside Linux and in some sandboxes."""
    try:
        cores = {f"cpu{number}" for number in os.sched_getaffinity(0)}
        rows = [line.split() for line in PROC_STAT.read_text().splitlines()]
        ticks = [[int(count) for count in row[1:9]] for row in rows if row and row[0] in cores]
        user, nice, system, idle, waiting, irq, softirq, steal = map(sum, zip(*ticks, strict=True))
    except (AttributeError, OSError, ValueError):
        return None
    used = user + nice + system + irq + softirq
    if not used + idle + waiting:
        return None
    second = os.sysconf("SC_CLK_TCK")
    return CpuClock(
        wall=time.monotonic(), ours=time.process_time(), all=used / second, stolen=steal / second, cores=len(ticks)
    )


def cpu_name() -> str:
    for line in _cpuinfo():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()  # platform.processor() would start a process


def instruction_sets() -> list[str]:
    """The instruction sets that decide INT8 and BF16, as Linux names them, within the limit of ONEDNN_MAX_CPU_ISA."""
    wanted = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimddp", "i8mm")
    limit = os.environ.get(ONEDNN_LIMIT, os.environ.get(ONEDNN_FORMER_LIMIT, ""))
    allowed = ONEDNN_ALLOWS.get(limit.lower(), wanted)
    for line in _cpuinfo():
        if line.startswith(("flags", "Features")):
            found = set(line.split())
            return [name for name in wanted if name in found and name in allowed]
    return []


def has_fast_int8() -> bool:
    """Whether the CPU multiplies 8-bit integers into 32-bit sums in one instruction (VNNI, AMX, i8mm)."""
    return not FAST_INT8.isdisjoint(instruction_sets())


def has_fast_bf16() -> bool:
    """Whether the CPU multiplies BF16 values into FP32 sums in one instruction (AVX512-BF16, AMX-BF16)."""
    return not FAST_BF16.isdisjoint(instruction_sets())


def _cpuinfo() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
