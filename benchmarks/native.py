"""One engine from C: the library without Python, the library with Python, and OpenVINO's minimal program.

    python benchmarks/native.py model-int8.cgd

Every round runs all programs in turn, each in a new process. The figures are medians over the rounds. The limit is
OpenVINO's minimal program with the model of the engine: its start, its memory, and its time for a batch of 8. "beyond"
is the time of one call after another at batch 1, less the inference that the library measured itself. "share" compares
full batches that take turns in one process: OpenVINO's time, divided by the library's, to which 8 threads each send one
picture.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import running
from cgd_deploy.errors import InputError
from cgd_deploy.hardware.cpu import available_threads, cpu_name
from cgd_deploy.hardware.packages import package_version
from cgd_deploy.quality.contestants import OnProgress
from cgd_deploy.runtime.enginefile import EngineFile, read_engine
from cgd_deploy.serving.native.build_plain import openvino_for_cmake
from cgd_deploy.serving.native.install import install_native

PROGRAMS = Path(__file__).parent / "programs"
STARTS = 3
"""Starts of a program in a round; the fastest counts."""
LIBRARIES = {"without Python": False, "with Python": True}


def measure(options: argparse.Namespace, on_progress: OnProgress) -> running.Result:
    """Build the libraries and programs, and run them in turn. Returns the content of the JSON file."""
    engine = read_engine(options.engine)
    if engine.manifest.backend != "openvino":
        raise InputError(f"{options.engine} is for {engine.manifest.backend}; pass an engine of OpenVINO.")
    with TemporaryDirectory() as folder:
        on_progress("building", 0.0)
        built = {name: build(Path(folder) / name.replace(" ", "-"), embed) for name, embed in LIBRARIES.items()}
        model = Path(folder) / "model.onnx"
        model.write_bytes(engine.payload)
        on_progress("building", 1.0)
        rounds = []
        for number in range(options.rounds):
            rounds.append(one_round(built, engine, model, options.seconds))
            on_progress("measuring", (number + 1) / options.rounds)
    return {
        "environment": {
            "cpu": cpu_name(),
            "threads": available_threads(),
            "openvino": package_version("openvino"),
            "model": engine.manifest.spec.summary,
            "precision": engine.manifest.precision.value,
        },
        "rounds": rounds,
        "medians": medians(rounds),
    }


def build(prefix: Path, embed_python: bool) -> Path:
    """Install a library below ``prefix`` and build the programs with it; returns the folder of the programs."""
    install_native(prefix, embed_python)
    folder = prefix / "build"
    for command in (
        ["cmake", "-S", PROGRAMS, "-B", folder, f"-DCMAKE_PREFIX_PATH={prefix}", *openvino_for_cmake()],
        ["cmake", "--build", folder],
    ):
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
        if done.returncode:
            raise InputError(f"the programs of the benchmark cannot be built: {done.stderr.strip()[-300:]}")
    return folder


def one_round(built: dict[str, Path], engine: EngineFile, model: Path, seconds: float) -> dict[str, dict[str, Any]]:
    """The figures of the limit and of each library, by name."""
    spec = engine.manifest.spec
    sizes = (available_threads(), spec.input_size[0], spec.dim)
    limit = next(iter(built.values())) / "bare"
    figures = {name: told(programs / "calls", engine.path, seconds) for name, programs in built.items()}
    for name, programs in built.items():
        figures[name].update(told(programs / "pairs", model, engine.path, seconds, *sizes))
    starts = [
        [told(limit, model, *sizes), *(told(programs / "calls", engine.path, 0) for programs in built.values())]
        for _ in range(STARTS)
    ]
    figures = {"OpenVINO alone": starts[0][0], **figures}
    for number, found in enumerate(figures.values()):
        found["start"] = min(start[number]["start"] for start in starts)
    return figures


def told(program: Path, *arguments: object) -> dict[str, Any]:
    """The JSON that a program prints. Raises InputError if the program fails."""
    done = subprocess.run([str(program), *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        raise InputError(f"{program.name} failed: {done.stderr.strip()[-300:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def medians(rounds: list[dict[str, dict[str, Any]]]) -> dict[str, dict[str, float]]:
    """The median of each figure over the rounds, by library."""
    return {
        name: {figure: round(median(one[name][figure] for one in rounds), 4) for figure in figures}
        for name, figures in rounds[0].items()
    }


def main() -> None:
    parser = running.parser(__doc__, Path(__file__).parent / "results" / "native.json")
    parser.add_argument("engine", type=Path, help="an engine of OpenVINO with square pictures")
    parser.add_argument("--rounds", type=int, default=7, help="[default: 7]")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each loop [default: 5]")
    running.show(running.run(measure, parser.parse_args()), "medians")


if __name__ == "__main__":
    main()
