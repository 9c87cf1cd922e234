"""The kernels that a CPU runtime chose for a model: what really computes, where a graph only asks."""

from __future__ import annotations

import re
from tempfile import TemporaryDirectory

import onnx

from cgd_deploy.runtime.backends.onnxruntime import import_onnxruntime, session_options
from cgd_deploy.runtime.backends.openvino import OpenVinoBackend

Kernels = dict[str, str]
"""Node of an ONNX model -> name of the kernel or operator that computes it, alone or with other nodes."""


def kernels(backend: str, payload: bytes, bf16: bool = False) -> Kernels:
    """Compile a serialised ONNX model for this CPU, and tell its kernels.

    bf16   whether OpenVINO computes floats in BF16

    Raises EngineError if the model cannot be compiled, MissingDependency without the library.
    """
    if backend == "onnxruntime":
        return _of_onnxruntime(payload)
    with OpenVinoBackend(payload, bf16=bf16) as compiled:
        return compiled.kernels()


def _of_onnxruntime(payload: bytes) -> Kernels:
    """The operators of the graph that ONNX Runtime makes of the model, for example QLinearConv.

    ONNX Runtime renames some nodes, among them every float convolution; these are missing. It extends the names of
    integer convolutions.
    """
    ort = import_onnxruntime()
    options = session_options(ort, 1)
    with TemporaryDirectory() as folder:
        options.optimized_model_filepath = path = f"{folder}/optimized.onnx"
        ort.InferenceSession(payload, options, providers=["CPUExecutionProvider"])
        nodes = onnx.load(path).graph.node
    return {re.sub(r"_token_\d+$", "", node.name): node.op_type for node in nodes}
