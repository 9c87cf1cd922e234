"""How many threads this process may use, on machines that the test makes up."""

from __future__ import annotations

import os

import numpy as np
import pytest

from cgd_deploy.hardware import cpu
from cgd_deploy.hardware.cpu import available_threads, cpu_clock, cpu_name, has_fast_bf16, instruction_sets
from cgd_deploy.hardware.packages import package_version


@pytest.fixture
def machine(monkeypatch):
    """Make a machine with 8 cores and the given quota."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)

    def make(quota: float | None = None) -> None:
        monkeypatch.setattr(cpu, "cpu_quota", lambda: quota)

    return make


@pytest.mark.parametrize(
    ("quota", "threads"), [(None, 8), (2, 2), (2.5, 2), (0.5, 1), (0.01, 1), (32, 8), (8, 8), (7.99, 7)]
)
def test_threads_are_the_affinity_capped_by_the_quota(machine, quota, threads):
    machine(quota)
    assert available_threads() == threads


def test_threads_where_there_is_no_affinity(machine, monkeypatch):
    machine()
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 5)
    assert available_threads() == 5
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert available_threads() == 1


def test_instruction_sets_of_x86_and_arm(monkeypatch):
    flags = ["model name\t: Some CPU @ 2 GHz", "flags\t\t: fpu avx2 avx512f avx512_vnni sse"]
    monkeypatch.setattr(cpu, "_cpuinfo", lambda: flags)
    assert instruction_sets() == ["avx2", "avx512f", "avx512_vnni"]
    assert cpu_name() == "Some CPU @ 2 GHz"
    monkeypatch.setattr(cpu, "_cpuinfo", lambda: ["Features\t: fp asimd asimddp i8mm"])
    assert instruction_sets() == ["asimddp", "i8mm"]
    assert cpu_name()


@pytest.mark.parametrize(
    ("flags", "limit", "fast"),
    [
        ("avx512f avx512_vnni", "", False),
        ("avx512f avx512_bf16", "", True),
        ("avx512f amx_tile amx_bf16", "", True),
        ("avx512f amx_tile amx_bf16", "AVX512_CORE_AMX", True),
        ("avx512f avx512_bf16 amx_bf16", "AVX512_CORE_VNNI", False),
        ("avx512f avx512_bf16 amx_bf16", "AVX512_CORE_BF16", True),
    ],
)
def test_fast_bf16_within_the_limit_that_openvino_heeds(flags, limit, fast, monkeypatch):
    monkeypatch.setattr(cpu, "_cpuinfo", lambda: [f"flags\t: {flags}"])
    monkeypatch.setenv(cpu.ONEDNN_LIMIT, limit)
    assert has_fast_bf16() is fast


def test_a_machine_that_tells_nothing(monkeypatch):
    monkeypatch.setattr(cpu, "_cpuinfo", lambda: [])
    assert instruction_sets() == []
    assert isinstance(cpu_name(), str)


def test_package_versions():
    assert package_version("numpy") == np.__version__
    assert package_version("no-such-package-as-this") is None


STAT = """cpu  999 0 999 999 0 0 0 0 0 0
cpu0 100 10 20 1000 5 1 2 30 7 0
cpu1 200 0 40 2000 0 0 0 0 0 0
cpu8 999 0 999 999 0 0 0 999 0 0
intr 12345
"""


def test_the_clock_counts_the_cores_that_this_process_may_use(machine, monkeypatch, tmp_path):
    machine()
    monkeypatch.setattr(cpu, "PROC_STAT", tmp_path / "stat")
    monkeypatch.setattr(os, "sysconf", lambda _: 100)
    (tmp_path / "stat").write_text(STAT)
    clock = cpu_clock()
    assert (clock.all, clock.stolen, clock.cores) == (pytest.approx(3.73), 0.3, 2)  # cpu8 is not among the first eight


@pytest.mark.parametrize(
    "text",
    [None, "", "cpu0\n", "cpu0 1 2 3\n", "cpu0 a b c d e f g h\n", "cpu0 0 0 0 0 0 0 0 0\n", "cpu9 1 1 1 1 1 1 1 1\n"],
)
def test_a_system_that_does_not_count_has_no_clock(machine, monkeypatch, tmp_path, text):
    machine()
    monkeypatch.setattr(cpu, "PROC_STAT", tmp_path / "stat")
    if text is not None:
        (tmp_path / "stat").write_text(text)
    assert cpu_clock() is None


def test_the_clock_of_a_system_without_affinity(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity")
    assert cpu_clock() is None
