"""Compare two sets of descriptors by cosine and by neighbours; compute descriptors of a graph with ONNX Runtime."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from cgd_deploy.hardware.cpu import has_fast_int8
from cgd_deploy.runtime.backends import Backend
from cgd_deploy.runtime.backends.onnxruntime import OnnxRuntimeBackend
from cgd_deploy.runtime.descriptors import Descriptors, cosines
from cgd_deploy.search.retrieval import NEIGHBOURS, neighbours, overlap


@dataclass(frozen=True)
class Parity:
    """Smallest and mean cosine over pictures, and overlap@10 of nearest neighbours, None below 12 pictures."""

    cosine_min: float
    cosine_mean: float
    overlap_at_10: float | None
    pictures: int


def parity_of(descriptors: Descriptors, reference: Descriptors) -> Parity:
    """Compare float32 [N, D] unit descriptors of the same pictures row by row."""
    similar = cosines(descriptors, reference)
    shared = None
    if len(reference) >= NEIGHBOURS + 2:
        found, expected = (neighbours(d, d, NEIGHBOURS, skip_self=True)[0] for d in (descriptors, reference))
        shared = overlap(found, expected)
    return Parity(float(similar.min()), float(similar.mean()), shared, len(reference))


def run_onnx(model: onnx.ModelProto, images: NDArray[np.uint8], batch_size: int) -> Descriptors:
    """Descriptors float32 [N, D] of uint8 [N, H, W, 3] by ONNX Runtime on the CPU."""
    with open_onnx(model) as backend:
        return run_in_batches(backend, images, batch_size)


def open_onnx(model: onnx.ModelProto) -> OnnxRuntimeBackend:
    """Open a graph in ONNX Runtime. On a CPU where sums of INT8 products saturate, it computes them in float."""
    int8 = any(node.op_type == "QuantizeLinear" for node in model.graph.node)
    return OnnxRuntimeBackend(model.SerializeToString(), fused=has_fast_int8() or not int8)


def run_in_batches(backend: Backend, images: NDArray[np.uint8], batch_size: int) -> Descriptors:
    """Descriptors float32 [N, D] of uint8 [N, H, W, 3], N at least 1, ``batch_size`` at a time."""
    starts = range(0, len(images), batch_size)
    return np.concatenate([backend.run(images[start : start + batch_size]) for start in starts])
