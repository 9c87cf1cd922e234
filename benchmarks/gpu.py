"""Speed and retrieval on one NVIDIA GPU: batch x streams x precision, with and without transfers, against torch.

    python benchmarks/gpu.py ckpt.pt fp16.cgd int8.cgd -o benchmarks/results/gpu.json

Contestants are torch eager and torch.compile (with CUDA graphs), in FP16 and BF16 autocast and channels last; torch
eager in TF32, if an engine is TF32; and each engine at each number of streams, with CUDA graphs if its library allows
them. They take turns, so that a warming GPU slows all of them equally. Each is timed with transfers (pixels in host
memory to descriptors in host memory; torch uses pinned memory too) and without (on the device alone). Latency is
measured with one batch alone, throughput with many batches in flight.

The reference for recall and neighbours is torch in FP32 on the same GPU. The peak is the speed of torch's largest
matrix multiplications on it. The JSON files in benchmarks/results name the GPUs on which this has run.

Each engine also embeds single pictures with blocking waits for the GPU, the default, and with spinning waits: latency
against CPU time. TensorRT plans also run in trtexec, if it is on the PATH. ``aims`` holds the aims.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

import charts
import running
from aims import judged, lines
from cgd_deploy.cli.doctor import examine
from cgd_deploy.errors import InputError
from cgd_deploy.files import sha256_file
from cgd_deploy.hardware.packages import package_version
from cgd_deploy.hardware.timing import interleaved, percentiles_ms
from cgd_deploy.pictures.images import ImageList
from cgd_deploy.quality.comparison import retrieval_quality
from cgd_deploy.quality.contestants import QUALITY_BATCH, Contestant, OnProgress
from cgd_deploy.quality.reference import products
from cgd_deploy.runtime.backends import BACKENDS, model_settings
from cgd_deploy.runtime.compatibility import check_compatibility
from cgd_deploy.runtime.cuda.driver import CudaDriver, Driver, find_device
from cgd_deploy.runtime.cuda.streams import Streams
from cgd_deploy.runtime.descriptors import Descriptors
from cgd_deploy.runtime.enginefile import read_engine
from cgd_deploy.spec import ModelSpec, Precision
from contest import evaluation_of, gflop_per_image, retrieve

REFERENCE, BASELINE = "torch eager fp32", "torch eager fp16"
"""The contestants that retrieval and speed are compared with."""
PACKAGES = (
    "cgd-deploy", "numpy", "torch", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx-cu13-bindings", "cuda-bindings",
    "nvidia-cudnn-cu13",
)  # fmt: skip
MATMUL_SIDE = 8192
WAITING_SECONDS = 5.0
TRTEXEC_SECONDS = 3
TRTEXEC_TIMEOUT = 120
COLOURS = {"fp32": "#8a8a8a", "tf32": "#5e4fa2", "fp16": "#2c7fb8", "bf16": "#7fcdbb", "int8": "#d95f0e"}

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class GpuContestant(Contestant):
    """A model in torch or an engine on the GPU; ``run`` takes and gives host memory.

    call   (images, batches, with transfers) -> the function that is timed: it embeds ``images`` that many times
    """

    backend: str
    streams: int
    call: Callable[[Pixels, int, bool], Callable[[], object]]


@dataclass(frozen=True)
class Case:
    """One timed call of a contestant: ``batches`` of ``batch`` images."""

    contestant: GpuContestant
    batch: int
    batches: int
    transfers: bool


def by_torch(model: Any, title: str, precision: str) -> GpuContestant:
    """A torch model on the GPU."""
    import torch

    def arithmetic() -> AbstractContextManager[Any]:
        if precision in ("fp16", "bf16"):
            return torch.autocast("cuda", torch.float16 if precision == "fp16" else torch.bfloat16)
        return products(torch, "tf32" if precision == "tf32" else "ieee")

    def run(images: Pixels) -> Descriptors:
        with torch.inference_mode(), arithmetic():
            return model(torch.from_numpy(images).cuda()).float().cpu().numpy()

    def call(images: Pixels, batches: int, transfers: bool) -> Callable[[], object]:
        host = torch.from_numpy(images).pin_memory()
        device = host.cuda()
        pinned: list[Any] = []

        def timed() -> None:
            with torch.inference_mode(), arithmetic():
                for number in range(batches):
                    found = model(host.to("cuda", non_blocking=True) if transfers else device)
                    if transfers:
                        if len(pinned) <= number:
                            pinned.append(torch.empty(found.shape, dtype=found.dtype, pin_memory=True))
                        pinned[number].copy_(found, non_blocking=True)
            torch.cuda.synchronize()

        return timed

    return GpuContestant(title, precision, run, "torch", 1, call)


def torch_contestants(model: Any, compiled: bool, tf32: bool) -> list[GpuContestant]:
    """A DeployModel in torch eager, and compiled with CUDA graphs; ``tf32``: also eager in TF32."""
    import torch

    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.conv.fp32_precision = torch.backends.cuda.matmul.fp32_precision = "ieee"  # FP32 means FP32
    eager = model.cuda().eval().to(memory_format=torch.channels_last)
    precisions = ("fp32", *(["tf32"] if tf32 else []), "fp16", "bf16")
    found = [by_torch(eager, f"torch eager {precision}", precision) for precision in precisions]
    if compiled:
        fast = torch.compile(eager, mode="reduce-overhead", dynamic=False)
        found += [by_torch(fast, f"torch.compile {precision}", precision) for precision in ("fp16", "bf16")]
    return found


def open_lanes(stack: ExitStack, path: Path, streams: int, largest: int, driver: Driver | None = None) -> Streams:
    """The lanes of a .cgd engine for batches up to ``largest``, warmed up; the stack closes them."""
    file = read_engine(path)
    manifest = file.manifest
    if manifest.profile["max"] < largest:
        raise InputError(
            f"{path} takes batches up to {manifest.profile['max']}; build it with a larger --max-batch or pass --batch."
        )
    check_compatibility(path, manifest)
    make: Any = BACKENDS[manifest.backend]["cuda"]
    settings = model_settings(manifest, "cuda")
    backend = stack.enter_context(make(file.payload, streams=streams, max_batch=largest, driver=driver, **settings))
    lanes: Streams = backend.streams
    lanes.warm_up()
    return lanes


def by_engine(stack: ExitStack, path: Path, streams: int, largest: int) -> GpuContestant:
    """A .cgd engine on CUDA with ``streams`` lanes, its graphs captured; the stack closes it."""
    lanes = open_lanes(stack, path, streams, largest)
    manifest = read_engine(path).manifest

    def call(images: Pixels, batches: int, transfers: bool) -> Callable[[], object]:
        if transfers:
            return lambda: deque(lanes.run_many(images for _ in range(batches)), maxlen=0)
        return lambda: lanes.compute(len(images), batches)

    return GpuContestant(title_of(path, streams), manifest.precision.value, lanes.run, manifest.backend, streams, call)


def title_of(path: Path, streams: int) -> str:
    return f"{path.stem}, {streams} stream{'s' * (streams > 1)}"


def metered(call: Callable[[], object], spent: list[tuple[float, float]]) -> Callable[[], None]:
    """Wrap ``call``: each call adds its (wall, CPU of the process) seconds to ``spent``."""

    def run() -> None:
        wall, cpu = time.perf_counter(), time.process_time()
        call()
        spent.append((time.perf_counter() - wall, time.process_time() - cpu))

    return run


def waiting(path: Path, size: tuple[int, int], seconds: float, on_progress: OnProgress) -> list[dict[str, Any]]:
    """Latency of one picture, and CPU seconds per second, with blocking and with spinning events, in turns."""
    smallest = read_engine(path).manifest.profile["min"]
    picture = np.random.default_rng(0).integers(0, 256, (1, *size, 3), np.uint8)
    spent: dict[str, list[tuple[float, float]]] = {"blocking": [], "spinning": []}
    with ExitStack() as stack:
        calls = {}
        for kind, seen in spent.items():
            lanes = open_lanes(stack, path, 1, smallest, CudaDriver(spinning=kind == "spinning"))
            calls[kind] = metered(lambda lanes=lanes: lanes.run(picture), seen)
        taken = interleaved(calls, seconds, lambda done: on_progress(f"waiting for {path.stem}", done))
    return [
        {
            "engine": path.name,
            "events": kind,
            "latency_ms": percentiles_ms(taken[kind]),
            "cpu_seconds_a_second": round(sum(cpu for _, cpu in seen) / sum(wall for wall, _ in seen), 3),
        }
        for kind, seen in spent.items()
    ]


def beside_trtexec(
    engines: Sequence[Path], found: Sequence[Mapping[str, Any]], size: tuple[int, int]
) -> list[dict[str, Any]]:
    """Images a second of each TensorRT plan without transfers, at its fastest setting, in our runtime and in trtexec.

    found   the rows of the result

    Returns {"title", "batch", "ours", "trtexec", "why"} for each plan. If trtexec gives no number, "trtexec" is None
    and "why" is the reason.
    """
    runs = []
    for path in engines:
        titles = {title_of(path, row["streams"]) for row in found if row["backend"] == "tensorrt"}
        ours = [row for row in found if row["title"] in titles and not row["transfers"]]
        if ours:
            best = max(ours, key=lambda row: row["images_per_second"])
            theirs, why = trtexec(read_engine(path).payload, best["batch"], best["streams"], size)
            told = {"title": best["title"], "batch": best["batch"], "ours": best["images_per_second"]}
            runs.append({**told, "trtexec": theirs, "why": why})
    return runs


def trtexec(plan: bytes, batch: int, streams: int, size: tuple[int, int]) -> tuple[float | None, str | None]:
    """Images a second of a plan in trtexec, with CUDA graphs and without transfers; or None, and the reason."""
    if not (program := shutil.which("trtexec")):
        return None, "trtexec is not on the PATH"
    with TemporaryDirectory() as folder:
        (Path(folder) / "engine.plan").write_bytes(plan)
        shape = "x".join(map(str, (batch, *size, 3)))
        settings = {"loadEngine": f"{folder}/engine.plan", "shapes": f"images:{shape}", "infStreams": streams}
        options = [f"--{name}={value}" for name, value in {**settings, "duration": TRTEXEC_SECONDS}.items()]
        command = [program, *options, "--noDataTransfers", "--useCudaGraph"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=TRTEXEC_TIMEOUT)
        except subprocess.TimeoutExpired:
            return None, f"trtexec took more than {TRTEXEC_TIMEOUT} s"
    reached = re.search(r"Throughput: ([\d.]+) qps", done.stdout)
    if done.returncode or not reached:
        last = (done.stderr.strip() or done.stdout.strip() or "it prints nothing").splitlines()[-1]
        return None, f"trtexec failed: {last[:200]}"
    return round(batch * float(reached[1]), 1), None


def matmul_peaks() -> dict[str, float]:
    """Operations a second (2 x multiply-adds) of the largest matrix multiplications, by precision."""
    import torch

    shape = (MATMUL_SIDE, MATMUL_SIDE)
    whole = torch.randint(-8, 8, shape, device="cuda", dtype=torch.int8)
    half = whole.half()
    calls = {"fp16": lambda: half @ half, "int8": lambda: torch._int_mm(whole, whole.t())}
    peaks = {}
    for precision, call in calls.items():
        call()
        started, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        started.record()
        for _ in range(10):
            call()
        ended.record()
        torch.cuda.synchronize()
        peaks[precision] = 10 * 2 * MATMUL_SIDE**3 / (started.elapsed_time(ended) / 1000)
    return {**peaks, "bf16": peaks["fp16"]}


def rows(
    samples: Mapping[Case, Sequence[float]],
    quality: Mapping[str, Mapping[str, Any]],
    gflop: float,
    peaks: Mapping[str, float],
) -> list[dict[str, Any]]:
    """One row for each contestant, batch and choice of transfers: speed, share of the peak, and retrieval.

    quality   by title
    gflop     1e9 operations for one image
    peaks     operations a second by precision
    """
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
        peak = peaks.get(one.precision)
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
                "speedup_vs_torch": round(images_per_second / speed[BASELINE, case.batch, case.transfers], 3),
                "share_of_peak": round(images_per_second * gflop * 1e9 / peak, 4) if peak else None,
                **quality[one.title],
            }
        )
    return found


def chart(result: Mapping[str, Any], path: Path) -> None:
    """SVG: images a second of each contestant, one panel for each batch size; pale bars are without transfers."""
    found = result["rows"]
    sizes = sorted({row["batch"] for row in found})
    titles = list(dict.fromkeys(row["title"] for row in found))
    colours = [COLOURS[next(row["precision"] for row in found if row["title"] == title)] for title in titles]
    figure = charts.new_figure(3 + 3 * len(sizes), 1 + 0.4 * len(titles))
    panels = figure.subplots(1, len(sizes), sharey=True, squeeze=False)[0]
    for axes, size in zip(panels, sizes, strict=True):
        speed = {(row["title"], row["transfers"]): row["images_per_second"] for row in found if row["batch"] == size}
        for transfers, offset, alpha in ((False, -0.2, 0.45), (True, 0.2, 1.0)):
            values = [speed.get((title, transfers), 0.0) for title in titles]
            bars = axes.barh(np.arange(len(titles)) + offset, values, 0.36, color=colours, alpha=alpha)
            axes.bar_label(bars, [f"{value:,.0f}" for value in values], padding=3, fontsize=7)
        axes.set_title(f"batch {size}")
        axes.set_xlabel("images a second")
        axes.margins(x=0.2)
        charts.tidy(axes, "x")
    panels[0].set_yticks(range(len(titles)), titles)
    panels[0].invert_yaxis()
    figure.suptitle(f"{result['gpu']['name']}; pale: without transfers", fontsize=9)
    charts.save(figure, path)


def time_cases(
    contestants: Sequence[GpuContestant], options: argparse.Namespace, size: tuple[int, int], on_progress: OnProgress
) -> dict[Case, list[float]]:
    """Seconds of each call, in turns; ``size`` is the input's height and width."""
    samples: dict[Case, list[float]] = {}
    for batch in options.batch:
        images = np.random.default_rng(0).integers(0, 256, (batch, *size, 3), np.uint8)
        cases = {
            f"{one.title}/{batches}/{transfers}": Case(one, batch, batches, transfers)
            for one in contestants
            for batches in (1, options.batches)
            for transfers in (True, False)
        }
        calls = {name: case.contestant.call(images, case.batches, case.transfers) for name, case in cases.items()}
        for number, call in enumerate(calls.values(), start=1):  # the first call compiles, tunes and captures graphs
            call()
            on_progress(f"warming up batch {batch}", number / len(calls))
        for name, seconds in interleaved(
            calls, options.seconds, lambda done, batch=batch: on_progress(f"timing batch {batch}", done)
        ).items():
            samples[cases[name]] = seconds
    return samples


def settings_of(options: argparse.Namespace, spec: ModelSpec, gflop: float, pictures: ImageList) -> dict[str, Any]:
    """The model, the pictures and the options of the run, for the JSON."""
    return {
        "checkpoint_sha256": sha256_file(options.checkpoint),
        "engines": {path.name: sha256_file(path) for path in options.engines},
        "model": f"{spec.backbone} {spec.descriptors} {spec.size_text}",
        "input": spec.input_text,
        "gflop": round(gflop, 4),
        "pictures": len(pictures),
        "pictures_sha256": pictures.sha256,
        "batches_in_flight": options.batches,
        "seconds_a_batch_size": options.seconds,
    }


def enter(stack: ExitStack, options: argparse.Namespace, model: Any) -> list[GpuContestant]:
    """All contestants: a DeployModel in torch, and each engine at each number of streams; closed by the stack."""
    tf32 = any(read_engine(path).manifest.precision is Precision.TF32 for path in options.engines)
    largest = max(*options.batch, QUALITY_BATCH)
    engines = [by_engine(stack, path, streams, largest) for path in options.engines for streams in options.streams]
    return [*torch_contestants(model, not options.no_compile, tf32), *engines]


def measure(options: argparse.Namespace, on_progress: OnProgress) -> dict[str, Any]:
    """Everything but the writing. Raises EngineError without a GPU, before anything is loaded."""
    find_device()
    from cgd_export.onnx_from_checkpoint import onnx_from_checkpoint
    from cgd_train.checkpoint import load_checkpoint
    from cgd_train.model import DeployModel

    loaded = load_checkpoint(options.checkpoint)
    evaluation = evaluation_of(loaded.evaluation, options.data, options.pictures)
    with ExitStack() as stack:
        onnx = Path(stack.enter_context(TemporaryDirectory())) / "model.onnx"
        onnx_from_checkpoint(options.checkpoint, onnx)
        gflop = gflop_per_image(loaded.model, onnx)
        contestants = enter(stack, options, DeployModel(loaded.model))
        found = retrieve(contestants, evaluation, loaded.spec, on_progress)
        quality = {title: retrieval_quality(one, found[REFERENCE], evaluation) for title, one in found.items()}
        peaks = matmul_peaks()
        samples = time_cases(contestants, options, loaded.spec.input_size, on_progress)
    size, seconds = loaded.spec.input_size, min(options.seconds, WAITING_SECONDS)
    found_rows = rows(samples, quality, gflop, peaks)
    result = {
        "schema": 2,
        "gpu": examine()["gpu"],
        "versions": {"python": sys.version.split()[0], **{name: package_version(name) for name in PACKAGES}},
        "settings": settings_of(options, loaded.spec, gflop, evaluation.images),
        "peak_tops": {precision: round(peak / 1e12, 1) for precision, peak in peaks.items()},
        "rows": found_rows,
        "waiting": [one for path in options.engines for one in waiting(path, size, seconds, on_progress)],
        "trtexec": beside_trtexec(options.engines, found_rows, size),
    }
    return {**result, "aims": judged(result)}


def parse() -> argparse.Namespace:
    parser = running.parser(__doc__, "gpu.json")
    parser.formatter_class = argparse.ArgumentDefaultsHelpFormatter
    parser.add_argument("checkpoint", type=Path, help="the trained model, for torch")
    parser.add_argument("engines", type=Path, nargs="+", help=".cgd files for CUDA")
    parser.add_argument("--data", help="test pictures; by default, the checkpoint's test pictures")
    parser.add_argument("--pictures", type=int, default=1000, help="of the test pictures, how many; 0 for all")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32, 128], help="batch sizes")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 2, 4], help="lanes of each engine")
    parser.add_argument("--batches", type=int, default=24, help="batches in a throughput measurement, at least 2")
    parser.add_argument("--seconds", type=float, default=60.0, help="for each batch size")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    options = parser.parse_args()
    if options.batches < 2 or min(*options.batch, *options.streams) < 1:
        parser.error("--batches takes at least 2, --batch and --streams at least 1")
    return options


def main() -> None:
    result = running.run(measure, parse(), chart)
    print(*lines(result["aims"]), sep="\n")


if __name__ == "__main__":
    main()
