"""What is installed here, what it allows, and what is wrong with it."""

from __future__ import annotations

import importlib
import platform
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .errors import EngineError, MissingDependency, in_one_line, install_line
from .hardware import available_threads, cpu_name, has_fast_int8, instruction_sets, package_folder, package_version

ROLES = {
    "onnxruntime": "FP32 and INT8 engines on the CPU",
    "openvino": "FP32 and INT8 engines on x86 CPUs, the fastest there",
    "onnxruntime-gpu": "engines on CUDA",
    "tensorrt": "TensorRT engines on NVIDIA GPUs",
    "tensorrt-rtx": "TensorRT-RTX engines, built ahead of time without a GPU",
    "tensorrt-rtx-cu13-bindings": "the part of tensorrt-rtx that Python imports",
    "cuda-python": "streams and CUDA graphs",
    "torch": "training, export, the reference of bench",
    "torchvision": "backbones",
    "onnxscript": "export",
    "pyarrow": "Parquet output of embed",
}
RUNTIMES = ("onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "tensorrt-rtx", "tensorrt-rtx-cu13-bindings")
MODULES = {
    "onnxruntime-gpu": "onnxruntime",
    "tensorrt-rtx": "tensorrt_rtx",
    "tensorrt-rtx-cu13-bindings": "tensorrt_rtx_bindings",
    "cuda-python": "cuda.bindings.runtime",
}
"""What a package is imported as, where that is not its own name."""
DRIVER_VERSION = Path("/proc/driver/nvidia/version")


def check_runtime() -> None:
    """Raise MissingDependency if nothing here can run an engine, or if two wheels have overwritten each other."""
    installed = [name for name in RUNTIMES if package_version(name)]
    if not installed:
        raise MissingDependency(f"no runtime is installed; run {runtime_lines()}.")
    if "onnxruntime" in installed and "onnxruntime-gpu" in installed and _share_a_folder():
        raise MissingDependency(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files; run "
            f"`pip uninstall -y onnxruntime onnxruntime-gpu`, then {runtime_lines()}."
        )


def _share_a_folder() -> bool:
    """Whether the two wheels lie in one folder. In two folders, the first on Python's path is imported whole."""
    cpu, gpu = (package_folder(name) for name in ("onnxruntime", "onnxruntime-gpu"))
    return cpu is None or gpu is None or cpu == gpu


def runtime_lines() -> str:
    """The commands that install a runtime, as part of a sentence."""
    return f"`{install_line('cpu')}`, or `{install_line('gpu')}` on an NVIDIA machine"


def examine() -> dict[str, Any]:
    """Facts about this machine and its packages, and the problem that ``check_runtime`` finds, or None.

    "gpu" is a table of the first GPU, or says why there is none. "broken" has the reason of each installed package that
    cannot be imported.
    """
    try:
        check_runtime()
        problem = None
    except MissingDependency as error:
        problem = str(error)
    return {
        "python": platform.python_version(),
        "cpu": cpu_name(),
        "instruction_sets": instruction_sets(),
        "fast_int8": has_fast_int8(),
        "threads": available_threads(),
        "gpu": gpu_facts(),
        "packages": {name: package_version(name) for name in ROLES},
        "broken": {name: why for name in ROLES if package_version(name) and (why := _why_broken(name))},
        "problem": problem,
    }


def gpu_facts() -> dict[str, str] | str:
    """Name, compute capability, CUDA version and driver of the first GPU, or why there is none."""
    from .cuda import find_device

    try:
        device = find_device()
    except (EngineError, MissingDependency) as error:
        return "none: " + str(error).partition(";")[0]
    return {**asdict(device), "driver": _driver_version()}


def _driver_version() -> str:
    """The version of NVIDIA's kernel driver, for example 580.159.03."""
    try:
        found = re.search(r"\b\d{3}\.[\d.]+", DRIVER_VERSION.read_text())
    except OSError:
        found = None
    return found[0] if found else "unknown"


def _why_broken(name: str) -> str | None:
    """Why an installed package cannot be imported; None if it can."""
    try:
        if name == "openvino":
            from .backends.openvino import import_openvino

            import_openvino()
        elif name.startswith("onnxruntime"):
            from .backends.onnxruntime import import_onnxruntime

            import_onnxruntime()
        else:
            importlib.import_module(MODULES.get(name, name))
    except Exception as error:  # a library may raise anything when one of its own libraries is missing
        return in_one_line(error)
    return None
