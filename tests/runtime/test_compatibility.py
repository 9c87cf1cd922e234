"""What ``load`` says to TensorRT engines that this machine cannot run, before any payload is touched."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import FAKE_SPEC, write_fake_engine

from cgd_deploy import load
from cgd_deploy.errors import CgdError, EngineError, InputError, MissingDependency
from cgd_deploy.runtime import compatibility
from cgd_deploy.runtime.backends import BACKENDS
from cgd_deploy.runtime.cuda.driver import Device, has_gpu
from cgd_deploy.spec import Precision

ADA = Device(name="NVIDIA L4", compute_capability="8.9", cuda="13.0")


def plan(
    path: Path,
    backend: str = "tensorrt",
    version: str = "11.4.0.106",
    capability: str | None = "8.9",
    **builder: Any,
) -> Path:
    """An engine file whose manifest says that a plan is in it."""
    return write_fake_engine(
        path / "plan.cgd",
        backend=backend,
        builder={"name": backend, "version": version, "cgd_deploy": "0.1.0", **builder},
        gpu=None if capability is None else {"name": "NVIDIA L4", "compute_capability": capability},
    )


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A machine with an L4 and both libraries, whose backends only note that they were given a payload."""
    here = SimpleNamespace(device=ADA, version="11.4.0.106", made=[])

    def make(payload: bytes, **options: Any) -> object:
        here.made.append(options)
        return SimpleNamespace(close=lambda: None, streams=SimpleNamespace(warm_up=lambda: None))

    monkeypatch.setattr(compatibility, "find_device", lambda: here.device)
    monkeypatch.setattr(compatibility, "import_tensorrt", lambda kind: SimpleNamespace(__version__=here.version))
    monkeypatch.setitem(BACKENDS, "tensorrt", {"cuda": make})
    monkeypatch.setitem(BACKENDS, "tensorrt-rtx", {"cuda": make})
    return here


def refusal(path: Path, **options: Any) -> str:
    """The one sentence, with a command in it, that ``load`` refuses with."""
    with pytest.raises(CgdError) as caught:
        load(path, **options)
    text = str(caught.value)
    assert "\n" not in text and text.endswith(".") and ". " not in text
    assert "`" in text
    return text


@pytest.mark.skipif(has_gpu(), reason="this machine has a GPU")
@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
def test_without_cuda(tmp_path: Path, backend: str) -> None:
    text = refusal(plan(tmp_path, backend))
    assert re.search("no NVIDIA driver|finds no GPU", text)
    assert "build-engine --backend onnxruntime" in text


def test_without_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compatibility, "find_device", lambda: ADA)
    for name in ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingDependency, match=r"tensorrt is not installed; run `pip install 'tensorrt>=[\d.]+'`"):
        load(plan(tmp_path))
    with pytest.raises(MissingDependency, match=r"tensorrt-rtx is not installed; .*'tensorrt-rtx>=[\d.]+'`"):
        load(plan(tmp_path, "tensorrt-rtx"))


def test_with_half_of_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def import_module(name: str) -> None:
        raise ImportError("libnvonnxparser.so.11: cannot open shared object file")

    monkeypatch.setattr(compatibility, "find_device", lambda: ADA)
    monkeypatch.setattr(importlib, "import_module", import_module)
    assert "tensorrt is not installed completely (libnvonnxparser.so.11" in refusal(plan(tmp_path))


def test_the_right_machine(tmp_path: Path, machine: SimpleNamespace) -> None:
    load(plan(tmp_path)).close()
    load(plan(tmp_path), streams=4).close()
    assert machine.made == [
        {"threads": None, "streams": 2, "max_batch": 8},
        {"threads": None, "streams": 4, "max_batch": 8},
    ]


def test_another_builder(tmp_path: Path, machine: SimpleNamespace) -> None:
    path = write_fake_engine(
        tmp_path / "plan.cgd", backend="tensorrt", builder={"name": "tensorrt-rtx", "version": "1.7.1.116"}
    )
    text = refusal(path)
    assert "is for tensorrt, but tensorrt-rtx built its plan" in text
    assert "`cgd-deploy build-engine --fp32 --backend tensorrt`" in text


def test_another_version(tmp_path: Path, machine: SimpleNamespace) -> None:
    text = refusal(plan(tmp_path, version="10.16.1.11"))
    assert "built with tensorrt 10.16.1.11, this machine has 11.4.0.106" in text
    assert "`pip install tensorrt==10.16.1.11`" in text


def test_another_compute_capability(tmp_path: Path, machine: SimpleNamespace) -> None:
    text = refusal(plan(tmp_path, capability="9.0"))
    assert "compute capability 9.0, this machine's NVIDIA L4 has 8.9" in text
    assert "`cgd-deploy build-engine --fp32 --backend tensorrt` on this machine" in text


def test_another_compute_capability_ahead_of_time(tmp_path: Path, machine: SimpleNamespace) -> None:
    machine.version = "1.7.1.116"
    text = refusal(plan(tmp_path, "tensorrt-rtx", "1.7.1.116", "7.5,12.0"))
    assert "compute capability 7.5 or 12.0" in text
    assert "--backend tensorrt-rtx --compute-capability 8.9`" in text


def test_too_old_a_gpu_for_ampere_and_later(tmp_path: Path, machine: SimpleNamespace) -> None:
    machine.device = Device(name="Tesla T4", compute_capability="7.5", cuda="13.0")
    text = refusal(plan(tmp_path, "tensorrt-rtx", capability=None, hardware_compatible="Ampere and later"))
    assert "compute capability 8.0 or later, this machine's Tesla T4 has 7.5" in text
    assert "--backend tensorrt-rtx --compute-capability 7.5`" in text


def rtx(*names: str) -> SimpleNamespace:
    """TensorRT-RTX whose release runs on these compute capabilities."""
    members = {name: object() for name in ("NONE", "CURRENT", *names)}
    return SimpleNamespace(__version__="1.7.1.116", ComputeCapability=SimpleNamespace(__members__=members))


@pytest.mark.parametrize(
    ("here", "capability", "builder"),
    [
        ("9.0", None, {"hardware_compatible": "Ampere and later"}),  # as a plan without a named capability is
        ("9.0", "9.0", {}),
        ("10.0", None, {"hardware_compatible": "Ampere and later"}),
    ],
)
def test_a_gpu_that_tensorrt_rtx_does_not_run_on(
    tmp_path: Path,
    machine: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
    here: str,
    capability: str | None,
    builder: dict[str, str],
) -> None:
    """H100 and B200: to build the plan again would not help."""
    monkeypatch.setattr(compatibility, "import_tensorrt", lambda kind: rtx("SM75", "SM86", "SM120"))
    machine.device = Device(name="NVIDIA H100", compute_capability=here, cuda="13.0")
    text = refusal(plan(tmp_path, "tensorrt-rtx", "1.7.1.116", capability, **builder))
    assert f"runs on compute capability 7.5, 8.6, 12.0, not on {here} of this machine's NVIDIA H100" in text
    assert "`cgd-deploy build-engine --fp32 --backend tensorrt`" in text
    assert machine.made == []
    machine.device = Device(name="NVIDIA RTX PRO 6000", compute_capability="12.0", cuda="13.0")
    load(plan(tmp_path, "tensorrt-rtx", "1.7.1.116", None, hardware_compatible="Ampere and later"))


def test_nothing_was_deserialized(tmp_path: Path, machine: SimpleNamespace) -> None:
    for changes in ({"version": "1"}, {"capability": "12.0"}):
        refusal(plan(tmp_path, **changes))
    assert machine.made == []


@pytest.mark.parametrize(
    ("built", "installed", "version_compatible", "runs"),
    [
        ("11.4.0.106", "11.4.0.106", False, True),
        ("11.4.0.106", "11.5.0.1", False, False),
        ("11.4.0.106", "11.5.0.1", True, True),
        ("11.4.0.106", "11.4.0.106", True, True),
        ("11.4.0.106", "11.3.0.9", True, False),
        ("10.16.1.11", "11.4.0.106", True, False),
        ("None", "11.4.0.106", True, False),
    ],
)
def test_versions(
    tmp_path: Path, machine: SimpleNamespace, built: str, installed: str, version_compatible: bool, runs: bool
) -> None:
    machine.version = installed
    path = plan(tmp_path, version=built, version_compatible=version_compatible)
    if runs:
        load(path)
    else:
        refusal(path)
    assert bool(machine.made) is runs


@pytest.mark.parametrize(
    ("built", "here", "hardware_compatible", "runs"),
    [
        ("8.9", "8.9", False, True),
        ("8.6", "8.9", False, False),
        ("8.6", "8.9", True, True),
        ("8.0", "12.0", True, True),
        ("8.0", "7.5", True, False),
        ("8.6,8.9,12.0", "12.0", False, True),
        ("8.6, 8.9", "8.9", False, True),
        ("8.6,8.9,12.0", "9.0", False, False),
        ("12.0", "2.0", False, False),
        (None, "9.0", False, True),
    ],
)
def test_compute_capabilities(
    tmp_path: Path, machine: SimpleNamespace, built: str | None, here: str, hardware_compatible: bool, runs: bool
) -> None:
    machine.device = Device(name="a GPU", compute_capability=here, cuda="13.0")
    path = plan(tmp_path, capability=built, hardware_compatible=hardware_compatible)
    if runs:
        load(path)
    else:
        refusal(path)
    assert bool(machine.made) is runs


def test_int8_of_the_cpu_is_not_run_in_float_on_cuda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime's CUDA provider would decode every code and compute in float, slower than FP32."""
    made: list[dict[str, Any]] = []
    make: Any = lambda payload, **options: made.append(options)  # noqa: E731
    monkeypatch.setitem(BACKENDS, "onnxruntime", {"cpu": make, "cuda": make})
    path = write_fake_engine(tmp_path / "int8.cgd", backend="onnxruntime", precision=Precision.INT8)
    text = refusal(path, device="cuda")
    assert "is INT8 for the CPU" in text and "`cgd-deploy build-engine --int8 --backend tensorrt`" in text
    assert made == []


def test_a_plan_is_not_for_the_cpu_nor_openvino_for_cuda(tmp_path: Path, machine: SimpleNamespace) -> None:
    assert "tensorrt, which runs on cuda, not on 'cpu'" in refusal(plan(tmp_path), device="cpu")
    path = write_fake_engine(tmp_path / "fake.cgd")
    assert "fake, which runs on cpu, not on 'cuda'" in refusal(path, device="cuda")
    with pytest.raises(InputError, match="streams=0 cannot be used"):
        load(path, streams=0)


@pytest.mark.skipif(has_gpu(), reason="this machine has a GPU")
def test_the_backend_itself_makes_nothing_of_tensorrt_without_cuda() -> None:
    with pytest.raises(EngineError, match=r"no NVIDIA driver|finds no GPU"):
        BACKENDS["tensorrt-rtx"]["cuda"](b"")


def test_bf16_needs_a_cpu_that_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_bf16_cpu: None) -> None:
    made: list[dict[str, Any]] = []
    monkeypatch.setitem(BACKENDS, "openvino", {"cpu": lambda payload, **options: made.append(options)})
    for precision, floats, told in (
        (Precision.BF16, None, "`cgd-deploy build-engine --int8` or `--fp32`"),
        (Precision.INT8, Precision.BF16, "`cgd-deploy build-engine --int8 --int8-float fp32`"),
    ):
        path = write_fake_engine(tmp_path / "bf16.cgd", backend="openvino", precision=precision, float_precision=floats)
        text = refusal(path)
        assert "bf16.cgd computes in BF16, which needs a CPU with AVX512-BF16 or AMX-BF16" in text and told in text
    assert made == []


def test_openvino_is_told_of_bf16(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bf16_cpu: None) -> None:
    made: list[bool] = []

    def make(payload: bytes, *, threads: int, streams: int, bf16: bool) -> object:
        made.append(bf16)
        return SimpleNamespace(close=lambda: None, streams=None)

    monkeypatch.setitem(BACKENDS, "openvino", {"cpu": make})
    for changes in (
        {"precision": Precision.BF16},
        {"precision": Precision.FP32},
        {"precision": Precision.FP32, "float_precision": Precision.BF16},
    ):
        load(write_fake_engine(tmp_path / "a.cgd", backend="openvino", **changes)).close()
    assert made == [True, False, True]


def tf32(path: Path, backend: str = "onnxruntime", **changes: Any) -> Path:
    return write_fake_engine(path / "tf32.cgd", backend=backend, precision=Precision.TF32, **changes)


def test_tf32_runs_on_cuda_and_says_so_to_onnx_runtime(
    tmp_path: Path, machine: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CUDA without being asked for, although ONNX Runtime runs other engines on the CPU unless told."""
    monkeypatch.setitem(BACKENDS["onnxruntime"], "cuda", BACKENDS["tensorrt"]["cuda"])
    for options in ({}, {"device": "cuda"}):
        load(tf32(tmp_path), **options).close()
    model = {"input_size": FAKE_SPEC.input_size, "dim": FAKE_SPEC.dim, "tf32": True}
    assert machine.made == [{**model, "threads": None, "streams": 2, "max_batch": 8}] * 2
    builder = {"name": "tensorrt", "version": machine.version}
    load(tf32(tmp_path, "tensorrt", builder=builder)).close()
    assert "tf32" not in machine.made[-1]  # the plan contains the setting


def test_tf32_on_a_cpu_would_be_fp32(tmp_path: Path) -> None:
    text = refusal(tf32(tmp_path), device="cpu")
    assert "is TF32, which a CPU cannot compute; load it with device cuda" in text
    assert "`cgd-deploy build-engine --fp32 --backend onnxruntime`" in text
    assert "openvino, which runs on cpu, not on 'cuda'" in refusal(tf32(tmp_path, "openvino"))


@pytest.mark.skipif(has_gpu(), reason="this machine has a GPU")
def test_tf32_without_a_gpu(tmp_path: Path) -> None:
    assert re.search("no NVIDIA driver|finds no GPU", refusal(tf32(tmp_path)))


@pytest.mark.parametrize("backend", ["onnxruntime", "tensorrt"])
def test_a_gpu_before_ampere_has_no_tf32(tmp_path: Path, machine: SimpleNamespace, backend: str) -> None:
    machine.device = Device(name="Tesla T4", compute_capability="7.5", cuda="13.0")
    text = refusal(tf32(tmp_path, backend, builder={"name": backend, "version": machine.version}))
    assert "is TF32, which needs compute capability 8.0 or later, and this machine's Tesla T4 has 7.5" in text
    assert f"`cgd-deploy build-engine --fp32 --backend {backend}`" in text
    assert machine.made == []
