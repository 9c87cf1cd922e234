"""Bias correction: subtract the mean output error of rounded weights from the bias. Knows no layout and no recipe."""

from __future__ import annotations

from collections.abc import Set

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from .calibrate import Channels
from .quantize import by_group, convolutions

BIAS = 2
"""The input of a Conv that holds its bias."""


def bias_corrected(int8: onnx.ModelProto, model: onnx.ModelProto, means: Channels) -> onnx.ModelProto:
    """A copy of ``int8`` whose convolutions have, in each channel, the mean output that their FP32 weights would give.

    model   the FP32 model from which ``quantized`` made ``int8``
    means   mean of each channel of each convolution's input, see ``Activations.means``

    Subtracts E[(W_q - W) x] from the bias of every rounded weight W_q (Nagel et al. 2019, Data-free quantization
    through weight equalization and bias correction, section 4.2). x counts as its mean at every place of the kernel,
    in the padding too. A MatMul stays as it is unless the addition of a bias is the only reader of its product.
    """
    result = onnx.ModelProto()
    result.CopyFrom(int8)
    exact, values = _arrays(model), _arrays(int8)
    after = {node.name: node for node in result.graph.node}
    made = {name: node for node in result.graph.node for name in node.output}
    for convolution in convolutions(model):
        decode = made.get(after[convolution.name].input[1])
        added = _bias(model, convolution, exact.keys())
        if decode is None or added is None:
            continue
        error = _decoded(decode, values) - exact[convolution.input[1]]
        adds, position = added
        bias = exact[adds.input[position]] if position < len(adds.input) else np.float32(0)
        corrected = numpy_helper.from_array(
            (bias - _mean_output(convolution, error, means[convolution.input[0]])).astype(np.float32),
            f"{convolution.name}_corrected_bias",
        )
        result.graph.initializer.append(corrected)
        inputs = after[adds.name].input
        inputs[position:] = [corrected.name, *inputs[position + 1 :]]
    used = {name for node in result.graph.node for name in node.input}
    kept = [tensor for tensor in result.graph.initializer if tensor.name in used]
    del result.graph.initializer[:]
    result.graph.initializer.extend(kept)
    return result


def _arrays(model: onnx.ModelProto) -> dict[str, NDArray[np.float32]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def _bias(
    model: onnx.ModelProto, convolution: onnx.NodeProto, constants: Set[str]
) -> tuple[onnx.NodeProto, int] | None:
    """The node that adds the bias of ``convolution``, and which of its inputs is the bias; a Conv may have none yet."""
    if convolution.op_type == "Conv":
        return (convolution, BIAS) if constants >= set(convolution.input[BIAS:]) else None
    readers = [node for node in model.graph.node if convolution.output[0] in node.input]
    if len(readers) != 1 or readers[0].op_type != "Add":
        return None
    return next(((readers[0], i) for i, name in enumerate(readers[0].input) if name in constants), None)


def _decoded(decode: onnx.NodeProto, values: dict[str, NDArray[np.float32]]) -> NDArray[np.float32]:
    """The weight that a DequantizeLinear decodes; each channel has its own scale."""
    codes, scale = (values[name] for name in decode.input[:2])
    axis = helper.get_node_attr_value(decode, "axis")
    return codes * np.expand_dims(scale, [i for i in range(codes.ndim) if i != axis])


def _mean_output(
    convolution: onnx.NodeProto, weight: NDArray[np.float32], means: NDArray[np.floating]
) -> NDArray[np.floating]:
    """The output [output channels] of ``weight`` for an input that is ``means`` [C] everywhere."""
    if convolution.op_type == "MatMul":
        return means @ weight
    kernels = by_group(convolution, weight).sum(axis=3, dtype=np.float64)
    return np.einsum("goi,gi->go", kernels, means.reshape(len(kernels), -1)).ravel()
