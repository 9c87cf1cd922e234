"""The whole pipeline on made pictures. It shows on a bare machine that everything works."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..cli.results import print_bench
from ..cli.terminal import counting, errors, output, phases
from ..errors import GateError, not_installed
from ..files import replacing, write_text
from ..hardware.packages import check_runtime
from ..pictures.images import ImageList
from ..quality.bench import BenchOptions, bench
from ..quality.report import write_bench_report
from ..spec import Precision

if TYPE_CHECKING:
    from cgd_train.config import TrainConfig

SPECIES = 132
TRAINING_SPECIES = 90
PICTURES = 12
SECONDS = 8.0
"""Timing of each batch size."""


def run_demo(out: Path, seed: int = 0) -> None:
    """Write ckpt.pt, model.onnx, FP32 and INT8 engines, bench.json and report.html into ``out``, replacing older ones.

    Raises MissingDependency without torch, and GateError if an engine loses more than the limits of ``bench``.
    """
    check_runtime()
    try:
        import cgd_train.trainer  # noqa: F401 - fails without torch
    except ModuleNotFoundError as error:
        raise not_installed(error, "train") from error

    for folder in ("pictures", "run"):
        shutil.rmtree(out / folder, ignore_errors=True)
    with _timed("pictures"):
        pictures = _draw(out / "pictures", seed)
    with _timed("training"):
        _train(out, pictures, seed)
    with _timed("export"), errors.status("Exporting"):
        _export(out)
    engines = []
    for precision in (Precision.FP32, Precision.INT8):
        with _timed(f"{precision.value} engine"):
            engines.append(_build(out, precision))
    _bench(out, engines)


def _draw(folder: Path, seed: int) -> ImageList:
    from .made import make_pictures

    with counting("Drawing", SPECIES * PICTURES) as advance:
        return make_pictures(
            folder,
            classes=SPECIES,
            pictures_per_class=PICTURES,
            size=128,
            seed=seed,
            on_picture=lambda: advance(1),
        )


def _train(out: Path, pictures: ImageList, seed: int) -> None:
    """Train on the first TRAINING_SPECIES species, test on the others, and write ckpt.pt."""
    from cgd_train.trainer import train

    learned = TRAINING_SPECIES * PICTURES
    training, testing = pictures.subset(range(learned)), pictures.subset(range(learned, len(pictures)))
    best = train(_recipe(out, seed), training, testing)
    with replacing(out / "ckpt.pt") as temporary:
        shutil.copyfile(best, temporary)


def _recipe(out: Path, seed: int) -> TrainConfig:
    """A small training: ResNet-18 on 64 x 64 pixels."""
    from cgd_train.config import TrainConfig

    return TrainConfig(
        data=out / "pictures",
        out=out / "run",
        backbone="resnet18",
        descriptors="SG",
        dim=256,
        size=64,
        epochs=6,
        lr=4e-4,
        auxiliary_lr=1.0,
        schedule="step",
        classes_per_batch=8,
        pictures_per_class=2,
        freeze_bn=False,
        seed=seed,
    )


def _export(out: Path) -> None:
    from cgd_export.onnx_from_checkpoint import onnx_from_checkpoint

    onnx_from_checkpoint(out / "ckpt.pt", out / "model.onnx")


def _build(out: Path, precision: Precision) -> Path:
    """Write the engine and return its path."""
    from cgd_export.engine_from_onnx import calibration_list, engine_from_onnx
    from cgd_export.progress import Progress

    model, engine = out / "model.onnx", out / f"model-{precision.value}.cgd"
    calibration = calibration_list(model, None) if precision is Precision.INT8 else None
    with counting("Calibrating", len(calibration or ())) as advance:
        progress = Progress(on_pictures=advance)
        engine_from_onnx(model, engine, precision, calibration=calibration, progress=progress)
    return engine


def _bench(out: Path, engines: list[Path]) -> None:
    """Measure the engines, and write and print the result. Raises GateError if the gate fails."""
    with _timed("bench"), phases() as on_progress:
        result, rows = bench(engines, BenchOptions(seconds=SECONDS), on_progress)
    write_text(out / "bench.json", json.dumps(result, indent=1) + "\n")
    write_bench_report(out / "report.html", result, rows)
    print_bench(result)
    output.print(f"report: {out / 'report.html'}", soft_wrap=True)
    if failures := result["gate"]["failures"]:
        raise GateError("; ".join(failures))


@contextmanager
def _timed(step: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    errors.print(f"{step}: {time.perf_counter() - started:.1f} s")
