"""Speed on one NVIDIA GPU: batch x streams x precision, with and without transfers, against torch.

    cgd-deploy build-engine --fp16 --backend tensorrt -o fp16.cgd
    cgd-deploy build-engine --int8 --backend tensorrt -o int8.cgd
    cgd-deploy build-engine --fp32 --backend onnxruntime -o ort.cgd
    python benchmarks/gpu.py ckpt.pt fp16.cgd int8.cgd ort.cgd -o benchmarks/results/gpu.json

Contestants are torch eager and torch.compile, both in FP16 autocast, channels last, and each engine at each number of
streams (ONNX Runtime engines on CUDA). They take turns, so that a GPU growing warm slows all alike. Each is timed with
transfers (pixels in host memory to descriptors in host memory, torch through pinned memory too) and without (device to
device); latency is one batch alone, throughput many batches in flight. Written without a GPU at hand: what has run
where is told by the JSON files in benchmarks/results, not by this script.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cgd_deploy.backends import BACKENDS
from cgd_deploy.compatibility import check_compatibility
from cgd_deploy.cuda import CudaDriver, find_device
from cgd_deploy.enginefile import read_engine
from cgd_deploy.errors import CgdError, InputError
from cgd_deploy.files import sha256_file, write_text
from cgd_deploy.hardware import package_version
from cgd_deploy.streams import Streams
from cgd_deploy.timing import interleaved, percentiles_ms

REFERENCE = "torch eager"
PACKAGES = (
    "cgd-deploy", "numpy", "torch", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx", "cuda-bindings", "nvidia-cudnn-cu13"
)  # fmt: skip
DRIVER_VERSION = Path("/proc/driver/nvidia/version")

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Contestant:
    """Something to time. ``call`` makes, for a batch, how many of them, and whether with transfers, what is timed."""

    title: str
    backend: str
    precision: str
    streams: int
    call: Callable[[Pixels, int, bool], Callable[[], object]]


@dataclass(frozen=True)
class Case:
    """One timed call of a contestant: ``batches`` of ``batch`` images."""

    contestant: Contestant
    batch: int
    batches: int
    transfers: bool


def torch_contestants(checkpoint: Path, compiled: bool) -> list[Contestant]:
    """Eager, and compiled with CUDA graphs, of the checkpoint."""
    import torch

    from cgd_train.checkpoint import load_checkpoint
    from cgd_train.model import DeployModel

    torch.backends.cudnn.benchmark = True
    eager = DeployModel(load_checkpoint(checkpoint).model).cuda().eval().to(memory_format=torch.channels_last)

    def contestant(title: str, model: Callable[[Any], Any]) -> Contestant:
        def call(images: Pixels, batches: int, transfers: bool) -> Callable[[], object]:
            host = torch.from_numpy(images).pin_memory()
            device = host.cuda()
            pinned: list[Any] = []

            def run() -> None:
                with torch.inference_mode(), torch.autocast("cuda", torch.float16):
                    for i in range(batches):
                        found = model(host.to("cuda", non_blocking=True) if transfers else device)
                        if transfers:
                            if len(pinned) <= i:
                                pinned.append(torch.empty(found.shape, dtype=found.dtype, pin_memory=True))
                            pinned[i].copy_(found, non_blocking=True)
                torch.cuda.synchronize()

            return run

        return Contestant(title, "torch", "fp16", 1, call)

    found = [contestant(REFERENCE, eager)]
    if compiled:
        found.append(contestant("torch.compile", torch.compile(eager, mode="reduce-overhead", dynamic=False)))
    return found


def engine_contestant(stack: ExitStack, driver: CudaDriver, path: Path, streams: int, largest: int) -> Contestant:
    """A .cgd engine on CUDA with so many streams, its graphs captured; closed by the stack."""
    file = read_engine(path)
    manifest = file.manifest
    if manifest.profile["max"] < largest:
        raise InputError(
            f"{path} takes batches to {manifest.profile['max']}; build it with a larger one or pass --batch."
        )
    check_compatibility(path, manifest)
    make: Any = BACKENDS[manifest.backend]
    backend = stack.enter_context(make(file.payload, device="cuda", streams=streams, max_batch=largest))
    lanes: Streams = backend.streams
    lanes.warm_up()

    def call(images: Pixels, batches: int, transfers: bool) -> Callable[[], object]:
        if transfers:
            return lambda: deque(lanes.run_many(images for _ in range(batches)), maxlen=0)
        # As many streams of the caller's as lanes, each with its memory: one stream would put the lanes in a row.
        mine = [_on_device(stack, driver, images, lanes.layout.dim) for _ in range(streams)]

        def run() -> None:
            for i in range(batches):
                stream, source, target = mine[i % streams]
                lanes.run_on(stream, len(images), source, target)
            for stream, _, _ in mine:
                driver.finish(stream)

        return run

    title = f"{path.stem}, {streams} stream{'s' * (streams > 1)}"
    return Contestant(title, manifest.backend, manifest.precision.value, streams, call)


def _on_device(stack: ExitStack, driver: CudaDriver, images: Pixels, dim: int) -> tuple[int, int, int]:
    """A stream, the images on the device, and room for their descriptors."""
    stream, source, target = driver.stream(), driver.malloc(images.nbytes), driver.malloc(len(images) * dim * 4)
    for release, handle in ((driver.destroy_stream, stream), (driver.free, source), (driver.free, target)):
        stack.callback(release, handle)
    pinned = driver.pinned(images.nbytes)
    pinned[:] = images.reshape(-1)
    driver.upload(source, pinned, stream)
    driver.finish(stream)
    driver.free_pinned(pinned)
    return stream, source, target


def rows(samples: Mapping[Case, Sequence[float]]) -> list[dict[str, Any]]:
    """One row for each contestant, batch and transfers: latency of one batch, images a second, times torch eager's."""
    speed = {
        (case.contestant.title, case.batch, case.transfers): case.batch * case.batches / float(np.median(seconds))
        for case, seconds in samples.items()
        if case.batches > 1
    }
    found = []
    for case, seconds in samples.items():
        if case.batches > 1:
            continue
        one = case.contestant
        images_per_second = speed[one.title, case.batch, case.transfers]
        found.append(
            {
                "title": one.title,
                "backend": one.backend,
                "precision": one.precision,
                "streams": one.streams,
                "batch": case.batch,
                "transfers": case.transfers,
                "latency_ms": percentiles_ms(seconds),
                "images_per_second": round(images_per_second, 1),
                "speedup_vs_torch": round(images_per_second / speed[REFERENCE, case.batch, case.transfers], 3),
            }
        )
    return found


def chart(gpu: str, found: Sequence[Mapping[str, Any]]) -> str:
    """SVG: images a second as bars, with transfers dark and without light, grouped by batch."""
    height, left, width = 18, 260, 560
    most = max(row["images_per_second"] for row in found)
    lines, y = [f'<text x="8" y="18" font-weight="bold">Images a second on {escape(gpu)}</text>'], 30
    for batch in sorted({row["batch"] for row in found}):
        lines.append(f'<text x="8" y="{y + 16}" font-weight="bold">batch {batch}</text>')
        y += 24
        for row in (row for row in found if row["batch"] == batch):
            length = width * row["images_per_second"] / most
            colour, what = ("#1f5fa8", "with transfers") if row["transfers"] else ("#9cc3ec", "on the device")
            lines.append(
                f'<text x="{left - 6}" y="{y + 13}" text-anchor="end">{escape(row["title"])}, {what}</text>'
                f'<rect x="{left}" y="{y + 2}" width="{length:.1f}" height="{height - 4}" fill="{colour}"/>'
                f'<text x="{left + length + 4:.1f}" y="{y + 13}">{row["images_per_second"]:.0f}</text>'
            )
            y += height
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + width + 80}" height="{y + 10}" '
    return head + 'font-family="sans-serif" font-size="12">\n' + "\n".join(lines) + "\n</svg>\n"


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Everything but the writing. Raises EngineError without a GPU, before anything is loaded."""
    gpu = find_device()
    driver = CudaDriver()
    largest = max(arguments.batch)
    samples: dict[Case, list[float]] = {}
    with ExitStack() as stack:
        contestants = torch_contestants(arguments.checkpoint, not arguments.no_compile)
        for path in arguments.engines:
            for streams in arguments.streams:
                contestants.append(engine_contestant(stack, driver, path, streams, largest))
        height, width = read_engine(arguments.engines[0]).manifest.spec.input_size
        for batch in arguments.batch:
            images = np.random.default_rng(0).integers(0, 256, (batch, height, width, 3), np.uint8)
            cases = {
                f"{one.title}/{batches}/{transfers}": Case(one, batch, batches, transfers)
                for one in contestants
                for batches in (1, arguments.batches)
                for transfers in (True, False)
            }
            calls = {name: case.contestant.call(images, case.batches, case.transfers) for name, case in cases.items()}
            for call in calls.values():  # compiles, tunes and captures what is still left to
                call()
            print(f"batch {batch}: {len(calls)} measurements, {arguments.seconds:.0f} s", file=sys.stderr)
            for name, seconds in interleaved(calls, arguments.seconds).items():
                samples[cases[name]] = seconds
    return {
        "schema": 1,
        "gpu": {"name": gpu.name, "compute_capability": gpu.compute_capability, "cuda_of_driver": gpu.cuda},
        "driver": DRIVER_VERSION.read_text().splitlines()[0] if DRIVER_VERSION.is_file() else None,
        "versions": {"python": sys.version.split()[0], **{name: package_version(name) for name in PACKAGES}},
        "settings": {
            "checkpoint_sha256": sha256_file(arguments.checkpoint),
            "engines": {path.name: sha256_file(path) for path in arguments.engines},
            "input_size": [height, width],
            "batches_in_flight": arguments.batches,
            "seconds_a_batch_size": arguments.seconds,
            "torch": "FP16 autocast, channels last, cudnn.benchmark; torch.compile mode reduce-overhead",
        },
        "rows": rows(samples),
    }


def parse() -> argparse.Namespace:
    summary = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(description=summary, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="the trained model, for torch")
    parser.add_argument("engines", type=Path, nargs="+", help=".cgd files for CUDA")
    parser.add_argument("-o", "--output", type=Path, default=Path("gpu.json"), help="JSON; the chart goes beside it")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4, 16, 32], help="batch sizes")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 2, 4], help="lanes of each engine")
    parser.add_argument("--batches", type=int, default=24, help="batches in a throughput measurement, at least 2")
    parser.add_argument("--seconds", type=float, default=60.0, help="for each batch size")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    arguments = parser.parse_args()
    if arguments.batches < 2 or min(*arguments.batch, *arguments.streams) < 1:
        parser.error("--batches takes at least 2, --batch and --streams at least 1")
    return arguments


def main() -> None:
    arguments = parse()
    try:
        result = measure(arguments)
        write_text(arguments.output, json.dumps(result, indent=1) + "\n")
        write_text(arguments.output.with_suffix(".svg"), chart(result["gpu"]["name"], result["rows"]))
    except CgdError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_status)
    print(f"wrote {arguments.output} and its chart {arguments.output.with_suffix('.svg')}")


if __name__ == "__main__":
    main()
