"""ONNX -> .cgd engine: type the graph for a backend, prove it on pictures, pack it."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx

from cgd_deploy.backends import BACKENDS
from cgd_deploy.enginefile import Manifest, write_engine
from cgd_deploy.errors import ExportError, InputError
from cgd_deploy.files import sha256_file
from cgd_deploy.golden import golden_images
from cgd_deploy.hardware import package_version
from cgd_deploy.images import ImageList, read_images
from cgd_deploy.preprocess import batches
from cgd_deploy.spec import Precision

from .calibrate import activation_ranges
from .metadata import get_metadata, load_onnx
from .onnx_from_checkpoint import list_beside
from .parity import parity_of, run_onnx
from .quantize import Layout, quantized, ranged_tensors

CALIBRATION_PICTURES = 64
PROFILE = {"min": 1, "opt": 8, "max": 64}
LAYOUTS = {"onnxruntime": Layout.UINT8, "openvino": Layout.SYMMETRIC}
PACKAGES = {"onnxruntime": "onnxruntime", "openvino": "openvino"}


def choose_backend(name: str = "auto") -> str:
    """``name`` itself, or for "auto" the fastest installed on this CPU: OpenVINO on x86, else ONNX Runtime."""
    if name == "auto":
        x86 = platform.machine().lower() in ("x86_64", "amd64")
        return "openvino" if x86 and package_version("openvino") else "onnxruntime"
    if name not in LAYOUTS:
        raise InputError(f"backend {name!r} is unknown; expected auto, {' or '.join(LAYOUTS)}.")
    return name


def calibration_list(model: str | Path, given: str | Path | None) -> ImageList:
    """The pictures to calibrate on: ``given``, or the list that export left beside the model; at most 64, evenly spread.

    Raises InputError if there is none or its files are gone.
    """
    recorded = list_beside(model, "calibration")
    if given is None and not recorded.is_file():
        raise InputError(
            f"INT8 needs pictures to calibrate on and {recorded} does not exist; pass --calib FOLDER or LIST.tsv."
        )
    images = read_images(given or recorded).sample(CALIBRATION_PICTURES)
    if gone := [path for path in images.paths if not path.is_file()]:
        raise InputError(
            f"{len(gone)} of {len(images)} calibration pictures are gone, {gone[0]} for one; pass --calib FOLDER or LIST.tsv."
        )
    return images


def engine_from_onnx(
    model_path: str | Path,
    output: str | Path,
    precision: Precision,
    *,
    backend: str = "auto",
    calibration: ImageList | None = None,
    on_pictures: Callable[[int], None] | None = None,
) -> Manifest:
    """Build an engine and write it to ``output``; returns its manifest, parity with the FP32 graph included.

    model_path    an FP32 model from ``onnx_from_checkpoint``
    calibration   pictures for INT8, see ``calibration_list``
    on_pictures   called with the number of calibration pictures just measured

    Raises EngineError, SpecError or ExportError for a model that cannot be used, InputError for pictures that cannot.
    """
    backend = choose_backend(backend)
    model = load_onnx(model_path)
    metadata = get_metadata(model, str(model_path))
    if metadata.precision is not Precision.FP32:
        raise ExportError(f"{model_path} is already {metadata.precision.value}; pass the FP32 model that export wrote.")
    spec = metadata.spec
    golden = pictures = golden_images(spec)
    typed = model
    if precision is Precision.FP16:
        raise ExportError(f"{backend} computes FP16 slower than FP32 on a CPU; use --int8 or --fp32.")
    if precision is Precision.INT8:
        if not calibration:
            raise InputError("INT8 needs pictures to calibrate on; pass --calib FOLDER or LIST.tsv.")
        ranges = activation_ranges(model, ranged_tensors(model), calibration, spec, on_pictures)
        typed = quantized(model, ranges, LAYOUTS[backend])
        onnx.checker.check_model(typed, full_check=True)
        pictures = np.concatenate([pixels for _, pixels in batches(calibration, spec, PROFILE["opt"])])

    payload = typed.SerializeToString()
    with BACKENDS[backend](payload) as runner:
        starts = range(0, len(pictures), PROFILE["opt"])
        descriptors = np.concatenate([runner.run(pictures[start : start + PROFILE["opt"]]) for start in starts])
        golden_descriptors = runner.run(golden)
    parity = parity_of(descriptors, run_onnx(model, pictures, PROFILE["opt"]))
    manifest = Manifest(
        spec=spec,
        backend=backend,
        precision=precision,
        payload="model.onnx",
        profile=PROFILE,
        builder={
            "name": backend,
            "version": package_version(PACKAGES[backend]) or "unknown",
            "cgd_deploy": package_version("cgd-deploy") or "unknown",
        },
        source={
            "onnx_sha256": sha256_file(model_path),
            "checkpoint": metadata.source.checkpoint if metadata.source else None,
            "checkpoint_sha256": metadata.source.sha256 if metadata.source else None,
            "calibration_sha256": calibration.sha256 if calibration else None,
        },
        parity=asdict(parity),
    )
    write_engine(output, manifest, payload, golden, golden_descriptors)
    return manifest
