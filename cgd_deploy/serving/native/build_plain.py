"""Builds libcgd.so that needs no Python: C++ on OpenVINO, by CMake."""

from __future__ import annotations

import os
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

from ...errors import MissingDependency
from ...hardware.cpu import available_threads

HERE = Path(__file__).parent
NEEDED = (
    "install CMake, a C++17 compiler, OpenVINO (`pip install openvino`), and the headers of libjpeg-turbo, zlib and "
    "nlohmann-json (Debian: libjpeg-dev zlib1g-dev nlohmann-json3-dev), or build the library that runs Python with "
    "--embed-python"
)


def build_plain(folder: Path, name: str) -> Path:
    """Build the library as ``name`` in ``folder`` and return its path.

    It links the OpenVINO of this Python's packages, or else the one that CMake finds. Raises MissingDependency without
    CMake, a compiler, OpenVINO or the other libraries.
    """
    if not shutil.which("cmake"):
        raise MissingDependency(f"libcgd.so cannot be built, because there is no CMake; {NEEDED}.")
    _run("cmake", "-S", HERE, "-B", folder, *openvino_for_cmake())
    _run("cmake", "--build", folder, "--parallel", available_threads())
    return (folder / name).resolve()


def openvino_for_cmake() -> list[str]:
    """CMake's option that names the OpenVINO of this Python's packages, if it is one of them.

    Importing OpenVINO would take a second.
    """
    found = find_spec("openvino")
    folders = [Path(folder, "cmake") for folder in (found.submodule_search_locations or [])] if found else []
    return [f"-DOpenVINO_DIR={folder}" for folder in folders if folder.is_dir()]


def _run(*command: object) -> None:
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        errors="replace",
        env={**os.environ, "LC_ALL": "C"},
    )
    if done.returncode:
        raise MissingDependency(f"libcgd.so could not be built ({_reason(done.stderr + done.stdout)}); {NEEDED}.")


def _reason(output: str) -> str:
    """The first error and the two lines after it, joined and cut."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    first = next((number for number, line in enumerate(lines) if "error" in line.lower()), 0)
    return " ".join(" ".join(lines[first : first + 3]).split())[:300]
