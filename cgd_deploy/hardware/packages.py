"""Which packages are installed, and whether they can run an engine. Imports none of them."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

from ..errors import MissingDependency, install_line

RUNTIMES = ("onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "tensorrt-rtx", "tensorrt-rtx-cu13-bindings")


def package_version(name: str) -> str | None:
    """The installed version of a distribution, None if it is not installed. Imports nothing."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def package_folder(name: str) -> Path | None:
    """The folder that holds an installed distribution's files, None if it is not installed. Imports nothing."""
    try:
        return Path(str(metadata.distribution(name).locate_file(""))).resolve()
    except metadata.PackageNotFoundError:
        return None


def check_runtime() -> None:
    """Raise MissingDependency if no package can run an engine, or if two packages have overwritten each other."""
    installed = [name for name in RUNTIMES if package_version(name)]
    if not installed:
        raise MissingDependency(f"no runtime is installed; run {runtime_lines()}.")
    if "onnxruntime" in installed and "onnxruntime-gpu" in installed and _share_a_folder():
        raise MissingDependency(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files; run "
            f"`pip uninstall -y onnxruntime onnxruntime-gpu`, then {runtime_lines()}."
        )


def runtime_lines() -> str:
    """The commands that install a runtime, as part of a sentence."""
    return f"`{install_line('cpu')}`, or `{install_line('gpu')}` on an NVIDIA machine"


def _share_a_folder() -> bool:
    """Whether both packages of ONNX Runtime are in one folder. From two folders, Python imports one of them whole."""
    cpu, gpu = (package_folder(name) for name in ("onnxruntime", "onnxruntime-gpu"))
    return cpu is None or gpu is None or cpu == gpu
