"""The whole pipeline on made pictures, so that everything can be seen to work on a bare machine."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..cli.terminal import bench_tables, counting, errors, output, phases
from ..errors import GateError, not_installed
from ..files import replacing, write_text
from ..hardware.packages import check_runtime
from ..quality.bench import bench
from ..quality.report import write_bench_report
from ..spec import Precision

SPECIES = 132
TRAINING_SPECIES = 90
PICTURES = 12
SECONDS = 8.0
"""Of timing for each batch size."""


def run_demo(out: Path, seed: int = 0) -> None:
    """Write ckpt.pt, model.onnx, FP32 and INT8 engines, bench.json and report.html into ``out``, replacing older ones.

    Raises MissingDependency without torch, GateError if an engine loses more than the bench's limits.
    """
    check_runtime()
    try:
        from cgd_export.engine_from_onnx import calibration_list, engine_from_onnx
        from cgd_export.onnx_from_checkpoint import onnx_from_checkpoint
        from cgd_export.progress import Progress
        from cgd_train.config import TrainConfig
        from cgd_train.trainer import train

        from .made import make_pictures
    except ModuleNotFoundError as error:
        raise not_installed(error, "train") from error

    for made_before in ("pictures", "run"):
        shutil.rmtree(out / made_before, ignore_errors=True)
    with _step("pictures"), counting("Drawing", SPECIES * PICTURES) as advance:
        pictures = make_pictures(
            out / "pictures",
            classes=SPECIES,
            pictures_per_class=PICTURES,
            size=128,
            seed=seed,
            on_picture=lambda: advance(1),
        )
    recipe = TrainConfig(
        data=out / "pictures",
        out=out / "run",
        backbone="resnet18",
        descriptors="SG",
        dim=256,
        size=64,
        epochs=6,
        lr=4e-4,
        head_lr=1.0,
        classes_per_batch=8,
        pictures_per_class=2,
        freeze_bn=False,
        seed=seed,
    )
    learned = TRAINING_SPECIES * PICTURES
    with _step("training"):
        best = train(recipe, pictures.subset(range(learned)), pictures.subset(range(learned, len(pictures))))
        with replacing(out / "ckpt.pt") as temporary:
            shutil.copyfile(best, temporary)
    model = out / "model.onnx"
    with _step("export"), errors.status("Exporting"):
        onnx_from_checkpoint(out / "ckpt.pt", model)
    engines = []
    for precision in (Precision.FP32, Precision.INT8):
        engine = out / f"model-{precision.value}.cgd"
        with _step(f"{precision.value} engine"):
            calibration = calibration_list(model, None) if precision is Precision.INT8 else None
            with counting("Calibrating", len(calibration or ())) as advance:
                progress = Progress(on_pictures=advance)
                engine_from_onnx(model, engine, precision, calibration=calibration, progress=progress)
        engines.append(engine)
    with _step("bench"), phases() as on_progress:
        result, rows = bench(engines, seconds=SECONDS, on_progress=on_progress)
    write_text(out / "bench.json", json.dumps(result, indent=1) + "\n")
    write_bench_report(out / "report.html", result, rows)
    bench_tables(result)
    output.print(f"report: {out / 'report.html'}", soft_wrap=True)
    if failures := result["gate"]["failures"]:
        raise GateError("; ".join(failures))


@contextmanager
def _step(name: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    errors.print(f"{name}: {time.perf_counter() - started:.1f} s")
