"""Decides from the manifest whether this machine can run an engine.

TensorRT crashes or says little about a plan for another machine. Libraries for CPUs compute wrong INT8 and say nothing.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ..errors import EngineError
from ..hardware.cpu import has_fast_bf16, has_fast_int8, instruction_sets
from ..spec import Precision
from .backends.tensorrt import MODULES, compute_capabilities, import_tensorrt
from .cuda.driver import Device, find_device
from .enginefile import Manifest

AMPERE = "8.0"
"""The first compute capability with TF32, and the first that a hardware-compatible plan runs on."""


def check_compatibility(path: str | Path, manifest: Manifest) -> None:
    """Check that this machine's TensorRT and GPU can run a plan, and that it has TF32 or BF16 if the engine needs them.

    Raises EngineError or MissingDependency in one sentence that says what is expected and what to do.
    """
    if manifest.precision is Precision.TF32:
        device = find_device()
        check_tf32(str(path), manifest.backend, device.compute_capability, f"this machine's {device.name}")
    if manifest.needs_bf16 and not has_fast_bf16():
        instead = "--int8` or `--fp32" if manifest.precision is Precision.BF16 else "--int8 --int8-float fp32"
        raise EngineError(
            f"{path} computes in BF16, which needs a CPU with AVX512-BF16 or AMX-BF16; build an engine for this CPU "
            f"with `cgd-deploy build-engine {instead}`."
        )
    if manifest.backend not in MODULES:
        return
    builder = manifest.builder.get("name")
    if builder != manifest.backend:
        raise EngineError(f"{path} is for {manifest.backend}, but {builder} built its plan; {_rebuild(manifest)}.")
    device = find_device()
    trt = import_tensorrt(manifest.backend)
    check_plan(path, manifest, str(trt.__version__), device)
    check_library(path, manifest, trt, device)


def is_proven_here(manifest: Manifest) -> bool:
    """Whether a CPU engine may run without a self-test.

    An INT8 engine may not if it was built on another CPU, or if this CPU has no VNNI, AMX or i8mm: libraries then add
    products of 8-bit codes in 16 bits, and the sums saturate.
    """
    if manifest.precision is not Precision.INT8:
        return True
    same_cpu = manifest.builder.get("instruction_sets", "").split() == instruction_sets()
    return same_cpu and has_fast_int8()


def repair(manifest: Manifest) -> str:
    """What the user can do about an engine that fails its self-test here."""
    if manifest.precision is not Precision.INT8 or manifest.backend in MODULES or has_fast_int8():
        return "build it again on this machine"
    return (
        "this CPU has no VNNI, AMX or i8mm, so sums of INT8 products saturate: build it again with "
        "`cgd-deploy build-engine --int8 --reduced-range`"
    )


def check_plan(path: str | Path, manifest: Manifest, installed: str, device: Device) -> None:
    """Raise EngineError unless TensorRT of version ``installed`` runs the plan of this manifest on ``device``."""
    built = str(manifest.builder.get("version"))
    if not (installed == built or (manifest.builder.get("version_compatible") and _newer(installed, built))):
        raise EngineError(
            f"{path} was built with {manifest.backend} {built}, this machine has {installed}; "
            f"run `pip install {manifest.backend}=={built}`, or {_rebuild(manifest)}."
        )
    here = device.compute_capability
    if manifest.builder.get("hardware_compatible"):
        fits, expected = _numbers(here) >= _numbers(AMPERE), f"{AMPERE} or later"
    else:
        named = str((manifest.gpu or {}).get("compute_capability") or here).replace(" ", "").split(",")
        fits, expected = here in named, " or ".join(named)
    if not fits:
        ahead = manifest.backend == "tensorrt-rtx"
        raise EngineError(
            f"{path} is for compute capability {expected}, this machine's {device.name} has {here}; "
            + _rebuild(manifest, f" --compute-capability {here}" if ahead else "")
            + ("." if ahead else " on this machine.")
        )


def check_tf32(engine: str, backend: str, capability: str, gpu: str) -> None:
    """Raise EngineError for a compute capability without TF32: libraries would compute FP32 and say nothing.

    engine, gpu   names of the engine and the GPU in the error message
    """
    if _numbers(capability) < _numbers(AMPERE):
        raise EngineError(
            f"{engine} is TF32, which needs compute capability {AMPERE} or later, and {gpu} has {capability}; build an "
            f"engine with `cgd-deploy build-engine --fp32 --backend {backend}`."
        )


def check_library(path: str | Path, manifest: Manifest, trt: Any, device: Device) -> None:
    """Raise EngineError if this release of TensorRT-RTX runs no plan at all on this device."""
    supported = compute_capabilities(trt)
    if supported and device.compute_capability not in supported:
        raise EngineError(
            f"{path} needs tensorrt-rtx, and release {trt.__version__} runs on compute capability "
            f"{', '.join(supported)}, not on {device.compute_capability} of this machine's {device.name}; build an "
            f"engine with `cgd-deploy build-engine --{manifest.precision.value} --backend tensorrt`."
        )


def _newer(installed: str, built: str) -> bool:
    """A version-compatible plan runs on every later TensorRT of the same major version."""
    here, there = _numbers(installed), _numbers(built)
    return bool(there) and here[:1] == there[:1] and here >= there


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version))


def _rebuild(manifest: Manifest, more: str = "") -> str:
    options = f"--{manifest.precision.value} --backend {manifest.backend}{more}"
    return f"build it again with `cgd-deploy build-engine {options}`"
