"""What is installed here, what it allows, and what is wrong with it."""

from __future__ import annotations

import platform
from typing import Any

from .errors import MissingDependency, install_line
from .hardware import available_threads, cpu_name, has_fast_int8, instruction_sets, package_version

ROLES = {
    "onnxruntime": "FP32 and INT8 engines on the CPU",
    "openvino": "FP32 and INT8 engines on x86 CPUs, the fastest there",
    "onnxruntime-gpu": "engines on CUDA",
    "tensorrt": "TensorRT engines on NVIDIA GPUs",
    "tensorrt-rtx-cu13-bindings": "TensorRT-RTX engines, built ahead of time without a GPU",
    "cuda-python": "streams and CUDA graphs",
    "torch": "training, export, the reference of bench",
    "torchvision": "backbones",
    "onnxscript": "export",
    "pyarrow": "Parquet output of embed",
}
RUNTIMES = ("onnxruntime", "onnxruntime-gpu", "openvino")


def check_runtime() -> None:
    """Raise MissingDependency if nothing here can run an engine, or if two wheels have overwritten each other."""
    installed = [name for name in RUNTIMES if package_version(name)]
    if not installed:
        raise MissingDependency(f"no runtime is installed; run {runtime_lines()}.")
    if "onnxruntime" in installed and "onnxruntime-gpu" in installed:
        raise MissingDependency(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files; run "
            f"`pip uninstall -y onnxruntime onnxruntime-gpu`, then {runtime_lines()}."
        )


def runtime_lines() -> str:
    """The commands that install a runtime, as part of a sentence."""
    return f"`{install_line('cpu')}`, or `{install_line('gpu')}` on an NVIDIA machine"


def examine() -> dict[str, Any]:
    """Facts about this machine and its packages, and the problem that ``check_runtime`` finds, or None."""
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
        "packages": {name: package_version(name) for name in ROLES},
        "problem": problem,
    }
