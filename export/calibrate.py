"""Activation ranges for INT8, measured on real pictures with the FP32 graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper

from cgd_deploy.backends.onnxruntime import import_onnxruntime
from cgd_deploy.hardware import available_threads
from cgd_deploy.images import ImageList
from cgd_deploy.preprocess import batches
from cgd_deploy.spec import ModelSpec

from .metadata import INPUT

Ranges = dict[str, float]
"""Largest magnitude that each activation tensor's INT8 codes cover."""

BATCH = 4


def activation_ranges(
    model: onnx.ModelProto,
    tensors: Sequence[str],
    images: ImageList,
    spec: ModelSpec,
    on_pictures: Callable[[int], None] | None = None,
) -> Ranges:
    """The mean over pictures of each tensor's largest magnitude.

    The mean, because one picture's outlier would stretch the scale of all: on ResNet-50 SG and 480 CARS196 pictures it
    keeps 0.872 of the ten nearest neighbours, the overall maximum 0.837, the 99.999 and 99.99 percentiles 0.871 and
    0.859, the least squared error 0.872. It does not depend on how pictures are batched.

    on_pictures   called with the number of pictures just measured
    Raises InputError if a picture cannot be decoded, MissingDependency without ONNX Runtime.
    """
    ort = import_onnxruntime()
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    declared = {output.name for output in probe.graph.output}
    probe.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in tensors if name not in declared
    )
    options = ort.SessionOptions()
    options.intra_op_num_threads = available_threads()
    session = ort.InferenceSession(probe.SerializeToString(), options, providers=["CPUExecutionProvider"])
    totals = np.zeros(len(tensors))
    for indices, pixels in batches(images, spec, BATCH):
        values = session.run(list(tensors), {INPUT: pixels})
        totals += [float(np.abs(value).max(axis=tuple(range(1, value.ndim))).sum()) for value in values]
        if on_pictures:
            on_pictures(len(indices))
    return dict(zip(tensors, (totals / len(images)).tolist(), strict=True))
