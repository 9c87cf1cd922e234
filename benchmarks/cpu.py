"""Speed and retrieval of one model on a CPU, in each runtime at hand and in cgd-deploy's engines, in one run.

    python benchmarks/cpu.py ckpt.pt int8.cgd tuned.cgd -o benchmarks/results/cpu.json

All contestants use the same threads, take uint8 pictures, give float32 descriptors in NumPy, and take turns. The first
call of each turn does not count, because the threads of the last contestant still go to sleep. Matrix multiplications
take turns too: the fastest one is the peak, and each contestant reaches a share of it. A rival that this machine lacks
is left out by name.

Rivals have their default settings. Torch is channels last, which is faster, except for the reference. NNCF calibrates
on the same pictures as our engines. It runs three times: as it is, with the descriptor head in float, as in our
engines, and with accuracy control, which is the rival of ``build-engine --min-overlap``: it holds the same overlap@10
on the same half of the queries. Accuracy control validates the model after each layer that it returns to float, which
takes more than a quarter of an hour for a ResNet-50 and 1,568 pictures; ``--without`` leaves it out.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import charts
import running
from cgd_deploy.cli.terminal import errors, warn_of_load
from cgd_deploy.datasets.evaluation import Evaluation
from cgd_deploy.errors import EngineError, InputError, MissingDependency
from cgd_deploy.files import sha256_file
from cgd_deploy.hardware.cpu import available_threads, cpu_clock, has_fast_bf16
from cgd_deploy.hardware.packages import package_version
from cgd_deploy.hardware.timing import interleaved, load_between
from cgd_deploy.pictures.preprocess import batches
from cgd_deploy.quality.bench import environment
from cgd_deploy.quality.comparison import retrieval_quality
from cgd_deploy.quality.contestants import QUALITY_BATCH, Contestant, OnProgress, Run, speed
from cgd_deploy.runtime.backends.onnxruntime import OnnxRuntimeBackend
from cgd_deploy.runtime.backends.openvino import import_openvino
from cgd_deploy.runtime.descriptors import Descriptors
from cgd_deploy.runtime.engine import load
from cgd_deploy.runtime.golden import golden_images
from cgd_deploy.search.retrieval import NEIGHBOURS, overlap
from cgd_deploy.spec import ModelSpec
from cgd_export.engine_from_onnx import calibration_list
from cgd_export.metadata import FEATURES
from cgd_export.onnx_from_checkpoint import onnx_from_checkpoint
from cgd_train.checkpoint import load_checkpoint
from cgd_train.model import DeployModel
from contest import evaluation_of, gflop_per_image, retrieve

Samples = Mapping[int, Mapping[str, list[float]]]
"""Seconds of each timed call, by batch size and contestant."""

BATCHES = (1, 8, 32)
MATMUL_SIZES = (512, 1024, 2048)
COLOURS = {"fp32": "#8a8a8a", "bf16": "#2c7fb8", "int8": "#d95f0e"}


@dataclass(frozen=True)
class Source:
    """The model that every contestant runs, and what a rival needs to quantize it.

    onnx          its FP32 ONNX file, beside a calibration list
    evaluation    the test pictures
    min_overlap   least overlap@10 that accuracy control keeps, 0 to 1
    """

    checkpoint: Path
    onnx: Path
    spec: ModelSpec
    threads: int
    evaluation: Evaluation
    min_overlap: float


@dataclass(frozen=True)
class CpuContestant(Contestant):
    """A rival or an engine of ours.

    int8_share   share of the convolution work in INT8, by an engine's own proof
    """

    ours: bool = False
    int8_share: float | None = None


@dataclass(frozen=True)
class Matmul:
    """A square matrix multiplication, to find the peak of the machine."""

    precision: str
    size: int
    by: str
    call: Callable[[], object]

    @property
    def title(self) -> str:
        return f"{self.by}, {self.size} x {self.size}"

    @property
    def operations(self) -> int:
        return 2 * self.size**3


def by_torch(source: Source, *, channels_last: bool = True, bf16: bool = False, compiled: bool = False) -> Run:
    """The checkpoint in torch; BF16 means autocast, compiled means one graph without breaks for each batch size."""
    model: Any = DeployModel(load_checkpoint(source.checkpoint).model)
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    if compiled:
        model = torch.compile(
            model, dynamic=False, fullgraph=True
        )  # too many batch sizes raise an error, so nothing runs eagerly

    def run(images: NDArray[np.uint8]) -> Descriptors:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return model(torch.from_numpy(images)).float().numpy()

    return run


def by_onnxruntime(source: Source) -> Run:
    return OnnxRuntimeBackend(source.onnx.read_bytes(), threads=source.threads).run


def by_openvino(source: Source, *, precision: str = "f32", model: Any = None) -> Run:
    """The FP32 ONNX file, or a model made from it, with the settings of our engines except for the float precision."""
    settings = {
        "INFERENCE_NUM_THREADS": source.threads,
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": precision,
    }
    compiled = import_openvino().Core().compile_model(model or str(source.onnx), "CPU", settings)
    found = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    if found != precision:
        raise EngineError(f"OpenVINO was asked for {precision} and takes {found} on this CPU; leave it out.")
    request = compiled.create_infer_request()
    return lambda images: request.infer({0: images}, share_inputs=True)[0]


def by_nncf(source: Source, *, float_head: bool = False) -> Run:
    """INT8 by NNCF's post-training quantization with its defaults, on the pictures that our engines calibrate on."""
    nncf, model, calibration = nncf_inputs(source)
    ignored = nncf.IgnoredScope(names=head_names(model)) if float_head else None
    quantized = nncf.quantize(model, calibration, subset_size=calibration.get_length(), ignored_scope=ignored)
    return by_openvino(source, model=quantized)


def by_controlled_nncf(source: Source) -> Run:
    """INT8 by NNCF, which returns layers to float until the choosing half of the queries keeps ``min_overlap``.

    The head is float. NNCF ranks the layers by the change of the descriptors, as it does by default for such a metric.
    Float is BF16 where the CPU computes it fast, as in our engines.
    """
    nncf, model, calibration = nncf_inputs(source)
    pictures = [pixels for _, pixels in batches(source.evaluation.images, source.spec, batch_size=1)]
    reference = np.concatenate([*map(by_openvino(source), pictures)])
    quantized = nncf.quantize_with_accuracy_control(
        model,
        calibration,
        nncf.Dataset(pictures),
        overlap_validation(source.evaluation, reference),
        max_drop=1 - source.min_overlap,
        subset_size=calibration.get_length(),
        ignored_scope=nncf.IgnoredScope(names=head_names(model)),
    )
    return by_openvino(source, precision="bf16" if has_fast_bf16() else "f32", model=quantized)


def nncf_inputs(source: Source) -> tuple[Any, Any, Any]:
    """NNCF, the FP32 model in OpenVINO, and the calibration pictures as a data set of NNCF.

    Raises MissingDependency without NNCF.
    """
    if not find_spec("nncf"):
        raise MissingDependency("NNCF is not installed; run `pip install nncf`.")
    import nncf

    nncf.set_log_level(logging.ERROR)
    pictures = [pixels for _, pixels in batches(calibration_list(source.onnx, None), source.spec, batch_size=1)]
    return nncf, import_openvino().Core().read_model(str(source.onnx)), nncf.Dataset(pictures)


def overlap_validation(evaluation: Evaluation, reference: Descriptors) -> Callable[[Any, Iterable[Any]], Any]:
    """A validation function of NNCF: overlap@10 with ``reference`` of the choosing half, and all descriptors.

    reference   FP32 descriptors of all pictures, float32 [N, D]
    """
    rows = evaluation.halves()[0]
    expected = evaluation.neighbours(reference, NEIGHBOURS)[0][rows]

    def validate(model: Any, pictures: Iterable[NDArray[np.uint8]]) -> tuple[float, list[list[Descriptors]]]:
        found = [model(pixels)[0] for pixels in pictures]
        kept = 0.0
        if len(found) == len(reference):  # NNCF first tries the function on one picture
            kept = overlap(evaluation.neighbours(np.concatenate(found), NEIGHBOURS)[0][rows], expected)
        return kept, [[one] for one in found]

    return validate


def head_names(model: Any) -> list[str]:
    """The operations of the descriptor head: all operations after the backbone's last feature map."""
    operations = [one for one in model.get_ordered_ops() if one.get_type_name() not in ("Constant", "Result")]
    last = next(place for place, one in enumerate(operations) if FEATURES in one.output(0).get_names())
    return [one.get_friendly_name() for one in operations[last + 1 :]]


REFERENCE = "torch eager fp32"
RIVALS: dict[str, Callable[[Source], Run]] = {
    "torch eager fp32, channels last": by_torch,
    "torch eager bf16": partial(by_torch, bf16=True),
    "torch.compile fp32": partial(by_torch, compiled=True),
    "torch.compile bf16": partial(by_torch, compiled=True, bf16=True),
    "ONNX Runtime fp32": by_onnxruntime,
    "OpenVINO fp32": by_openvino,
    "OpenVINO bf16": partial(by_openvino, precision="bf16"),
    "OpenVINO int8 by NNCF": by_nncf,
    "OpenVINO int8 by NNCF, float head": partial(by_nncf, float_head=True),
    "OpenVINO int8 by NNCF, accuracy control": by_controlled_nncf,
}
"""Makes each rival, by its title, which names its precision."""


def rivals(
    source: Source, sizes: Sequence[int], without: Sequence[str], on_progress: OnProgress
) -> tuple[list[CpuContestant], dict[str, str]]:
    """The rivals that run every batch size here, and for each other rival the reason, by title."""
    found, left_out = [], {}
    for number, (title, make) in enumerate(RIVALS.items(), 1):
        try:
            if title in without:
                raise InputError("--without excludes it")
            run = make(source)
            for size in sizes:  # lets torch.compile compile before timing
                run(golden_images(source.spec, size))
        except Exception as error:  # any error of one rival must not stop the others
            left_out[title] = next(iter(str(error).splitlines()), type(error).__name__)[:200]
            errors.print(f"left out: {title}: {left_out[title]}")
        else:
            found.append(CpuContestant(title, next(p for p in COLOURS if p in title), run))
        on_progress("preparing", number / len(RIVALS))
    return found, left_out


def our_engines(stack: ExitStack, source: Source, paths: Sequence[Path]) -> list[CpuContestant]:
    """Engines of this model, closed by the stack; raises InputError for an engine of another model."""
    found = []
    for path in paths:
        engine = stack.enter_context(load(path, threads=source.threads))
        if engine.spec.space_id != source.spec.space_id:
            raise InputError(
                f"{path} describes space {engine.spec.space_id}, {source.checkpoint} describes "
                f"{source.spec.space_id}; pass engines made from that checkpoint."
            )
        share = (engine.manifest.proof or {}).get("flops_share", {}).get("int8", 0.0)
        found.append(CpuContestant(f"cgd-deploy {path.stem}", engine.precision.value, engine.embed, True, share))
    return found


def matmuls() -> list[Matmul]:
    """FP32, INT8 (int8 x int8 -> int32), and BF16 where it is fast, by oneDNN or MKL through torch.

    They are large enough to reach the peak.
    """
    found = []
    for size in MATMUL_SIZES:
        values, codes = torch.rand(size, size), torch.randint(-127, 128, (size, size), dtype=torch.int8)
        found.append(Matmul("fp32", size, "torch.matmul", partial(torch.matmul, values, values)))
        if has_fast_bf16():
            halves = values.bfloat16()
            found.append(Matmul("bf16", size, "torch.matmul in BF16", partial(torch.matmul, halves, halves)))
        found.append(Matmul("int8", size, "torch._int_mm", partial(torch._int_mm, codes, codes)))
    return found


def time(
    contestants: Sequence[CpuContestant],
    multiplied: Sequence[Matmul],
    spec: ModelSpec,
    options: argparse.Namespace,
    on_progress: OnProgress,
) -> Samples:
    """Time contestants and multiplications, in turns, for each batch size."""
    samples = {}
    for size in options.batch:
        pixels = golden_images(spec, size)
        calls: dict[str, Callable[[], object]] = {one.title: partial(one.run, pixels) for one in contestants}
        calls.update((one.title, one.call) for one in multiplied)
        told = partial(on_progress, f"timing batch {size}")
        samples[size] = interleaved(calls, options.seconds, told)
    return samples


def peaks(multiplied: Sequence[Matmul], samples: Samples) -> dict[str, dict[str, Any]]:
    """By precision, the most operations a second (in 1e9) of a matrix multiplication, and the title of that one."""
    found: dict[str, dict[str, Any]] = {}
    for one in multiplied:
        for taken in samples.values():
            reached = round(one.operations / float(np.median(taken[one.title])) / 1e9, 1)
            if one.precision not in found or reached > found[one.precision]["gops"]:
                found[one.precision] = {"gops": reached, "by": one.title}
    return found


def speeds(contestant: CpuContestant, samples: Samples, gflop: float, peak: Mapping[str, Any]) -> dict[str, Any]:
    """By batch size: latency of a call, images a second, times torch eager's, share of the precision's peak.

    gflop   2 x multiply-adds for one picture, in 1e9
    peak    from ``peaks``; a precision that it lacks has no share
    """
    found = {}
    for size, taken in samples.items():
        gflops = size * gflop / float(np.median(taken[contestant.title]))
        share = round(gflops / peak[contestant.precision]["gops"], 4) if contestant.precision in peak else None
        found[str(size)] = {**speed(taken, contestant.title, REFERENCE, size), "share_of_peak": share}
    return found


def measure(options: argparse.Namespace, on_progress: OnProgress) -> dict[str, Any]:
    """Everything but the writing. Raises CgdError; rivals that fail are in the result's "left_out"."""
    loaded = load_checkpoint(options.checkpoint)
    evaluation = evaluation_of(loaded.evaluation, options.data, options.pictures)
    torch.set_num_threads(options.threads)
    with ExitStack() as stack:
        onnx = Path(stack.enter_context(TemporaryDirectory())) / "model.onnx"
        source = Source(options.checkpoint, onnx, loaded.spec, options.threads, evaluation, options.min_overlap)
        ours = our_engines(stack, source, options.engines)
        onnx_from_checkpoint(options.checkpoint, onnx)
        gflop = gflop_per_image(loaded.model, onnx)
        reference = CpuContestant(REFERENCE, "fp32", by_torch(source, channels_last=False))
        others, left_out = rivals(source, sorted({*options.batch, QUALITY_BATCH}), options.without, on_progress)
        contestants = [reference, *others, *ours]
        found = retrieve(contestants, evaluation, source.spec, on_progress)
        multiplied = matmuls()
        started = cpu_clock()
        samples = time(contestants, multiplied, source.spec, options, on_progress)
        machine_load = load_between(started, cpu_clock(), options.threads)
    warn_of_load(machine_load)
    peak = peaks(multiplied, samples)
    around = environment(evaluation.images, options.threads, samples, machine_load)
    if version := package_version("nncf"):
        around["packages"]["nncf"] = version
    return {
        "schema": 1,
        "environment": around,
        "model": {
            "backbone": source.spec.backbone,
            "descriptors": source.spec.descriptors,
            "dim": source.spec.dim,
            "input_size": list(source.spec.input_size),
            "gflop": round(gflop, 4),
            "checkpoint_sha256": sha256_file(options.checkpoint),
            "engines_sha256": {path.name: sha256_file(path) for path in options.engines},
        },
        "min_overlap": options.min_overlap,
        "peak": peak,
        "left_out": left_out,
        "contestants": [
            {
                "title": one.title,
                "precision": one.precision,
                "ours": one.ours,
                "int8_share": one.int8_share,
                "speed": speeds(one, samples, gflop, peak),
                **retrieval_quality(found[one.title], found[REFERENCE], evaluation),
            }
            for one in contestants
        ],
    }


def chart(result: Mapping[str, Any], path: Path) -> None:
    """SVG: bars of the speed-up over torch eager at the first two batch sizes, and beside them overlap@10."""
    contestants = result["contestants"]
    sizes = list(contestants[0]["speed"])[:2]
    places = np.arange(len(contestants))
    colours = [COLOURS[one["precision"]] for one in contestants]
    figure = charts.new_figure(9, 1 + 0.4 * len(contestants))
    fast, same = figure.subplots(1, 2, sharey=True, width_ratios=(3, 1))
    height = 0.8 / len(sizes)
    for number, size in enumerate(sizes):
        speedups = [one["speed"][size]["speedup_vs_torch"] for one in contestants]
        at = places + (number - (len(sizes) - 1) / 2) * height
        bars = fast.barh(at, speedups, height * 0.9, color=colours, alpha=1 - 0.45 * number)
        first, *others = [f"{speedup:.2f}" for speedup in speedups]
        fast.bar_label(bars, [f"{first}  batch {size}", *others], padding=3, fontsize=7)
    overlaps = [one["overlap_at_10"] for one in contestants]
    same.scatter(overlaps, places, color=colours, s=36, zorder=3)
    for place, kept in zip(places, overlaps, strict=True):
        same.annotate(
            f"{kept:.3f}", (kept, place), (-6, 0), textcoords="offset points", ha="right", va="center", size=7
        )
    fast.set_yticks(places, [one["title"] for one in contestants])
    for label, one in zip(fast.get_yticklabels(), contestants, strict=True):
        label.set_fontweight("bold" if one["ours"] else "normal")
    fast.invert_yaxis()
    fast.margins(x=0.08, y=0.01)
    fast.set_xlabel(f"images a second, in times those of {REFERENCE}")
    least = min(0.8, *overlaps)
    same.set_xlim(right=1.02, left=least - 0.4 * (1.02 - least))  # room for the label
    same.set_xlabel("overlap@10")
    same.tick_params(left=False)
    charts.tidy(fast, "x")
    charts.tidy(same, "x")
    charts.save(figure, path)


def parse() -> argparse.Namespace:
    parser = running.parser(__doc__, "cpu.json")
    parser.add_argument("checkpoint", type=Path, help="the trained model; torch eager FP32 is the reference")
    parser.add_argument("engines", type=Path, nargs="*", help=".cgd files made from it")
    parser.add_argument("--data", help="test pictures: a data set or LIST.tsv [default: the checkpoint's]")
    parser.add_argument("--pictures", type=int, help="test on so many of them, spread evenly [default: all]")
    parser.add_argument(
        "--min-overlap", type=float, default=0.95, help="overlap@10 that NNCF's accuracy control keeps [default: 0.95]"
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="of timing for each batch size [default: 60]")
    parser.add_argument("--batch", type=int, action="append", help="batch size, may be repeated [default: 1, 8, 32]")
    parser.add_argument("--threads", type=int, default=available_threads(), help="[default: every core it may use]")
    parser.add_argument(
        "--without", action="append", default=[], choices=RIVALS, metavar="TITLE", help=" | ".join(RIVALS)
    )
    options = parser.parse_args()
    options.batch = list(dict.fromkeys(options.batch or BATCHES))
    pictures = 1 if options.pictures is None else options.pictures
    if min(*options.batch, options.threads, pictures) < 1 or options.seconds < 0:
        parser.error("--batch, --threads and --pictures take 1 or more, --seconds 0 or more")
    if not 0 <= options.min_overlap <= 1:
        parser.error("--min-overlap takes 0 to 1")
    if len({path.stem for path in options.engines}) < len(options.engines):
        parser.error("engines are called by their file names, and two of these have the same")
    return options


def main() -> None:
    running.run(measure, parse(), chart)


if __name__ == "__main__":
    main()
