"""Examines this machine: its processor and GPU, the installed packages, and what is wrong with them."""

from __future__ import annotations

import importlib
import platform
from typing import Any

from ..errors import MissingDependency, in_one_line
from ..hardware.cpu import available_threads, cpu_name, has_fast_int8, instruction_sets
from ..hardware.packages import check_runtime, package_version
from ..runtime.cuda.facts import gpu_facts

ROLES = {
    "onnxruntime": "FP32 and INT8 engines on the CPU",
    "openvino": "FP32 and INT8 engines on x86 CPUs, the fastest there",
    "onnxruntime-gpu": "engines on CUDA",
    "tensorrt": "TensorRT engines on NVIDIA GPUs",
    "tensorrt-rtx": "TensorRT-RTX engines, built ahead of time without a GPU",
    "tensorrt-rtx-cu13-bindings": "the part of tensorrt-rtx that Python imports",
    "cuda-python": "streams and CUDA graphs",
    "nvidia-nvimgcodec-cu13": "embed --decoder nvjpeg, which decodes JPEG files on the GPU",
    "torch": "training, export, the reference of bench",
    "torchvision": "backbones",
    "onnxscript": "export",
    "pyarrow": "Parquet output of embed",
    "usearch": "fast search of compact galleries, and embed --ann",
}
MODULES = {
    "onnxruntime-gpu": "onnxruntime",
    "tensorrt-rtx": "tensorrt_rtx",
    "tensorrt-rtx-cu13-bindings": "tensorrt_rtx_bindings",
    "cuda-python": "cuda.bindings.runtime",
}
"""Module of a package, if it differs from the name of the package."""


def examine() -> dict[str, Any]:
    """Return facts about this machine and its packages.

    gpu        a table of facts about the first GPU, or a sentence that says why there is none
    packages   the version of each package, or None
    broken     for each installed package that cannot be imported, the reason
    problem    the sentence of ``check_runtime``, or None
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


def _why_broken(name: str) -> str | None:
    """The reason why a package cannot be imported, or None."""
    try:
        if name == "openvino":
            from ..runtime.backends.openvino import import_openvino

            import_openvino()
        elif name.startswith("onnxruntime"):
            from ..runtime.backends.onnxruntime import import_onnxruntime

            import_onnxruntime()
        elif name.startswith("nvidia-nvimgcodec"):
            from ..runtime.cuda.nvjpeg import import_nvimgcodec

            import_nvimgcodec()
        else:
            importlib.import_module(MODULES.get(name, name))
    except Exception as error:  # a package may raise anything if a shared library is missing
        return in_one_line(error)
    return None
