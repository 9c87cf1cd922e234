"""Rounds the weights of the first convolution so that their errors cancel. Knows no layout and no recipe.

The first convolution reads pixels. Neighbouring pixels are almost equal, so the errors of neighbouring weights add up
unless one error makes up for another. Rounding only this convolution's weights to the nearest code costs 0.011 of the
ten nearest neighbours of a ResNet-50 on CARS196; all other weights together cost 0.004.
"""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from .patches import Window
from .quantize import convolutions

DAMPING = 1e-3
"""Part of the mean variance that is added to every variance, so that the moments can be inverted."""


def first_window(model: onnx.ModelProto) -> Window | None:
    """What the first convolution of ``model`` reads, or None if it is no Conv with one group and no dilation."""
    node = convolutions(model)[0]
    facts = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    if node.op_type != "Conv" or facts.get("group", 1) != 1 or set(facts.get("dilations", [1])) != {1}:
        return None
    weight = next((tensor for tensor in model.graph.initializer if tensor.name == node.input[1]), None)
    if weight is None or len(weight.dims) != 4:
        return None
    return Window(
        node.input[0], tuple(weight.dims[2:]), tuple(facts.get("strides", (1, 1))), tuple(facts.get("pads", (0,) * 4))
    )


def compensated(
    int8: onnx.ModelProto, model: onnx.ModelProto, moment: NDArray[np.float64], weight_range: int
) -> onnx.ModelProto:
    """A copy of ``int8`` whose first convolution has the codes of ``compensating_codes``, if it is rounded at all.

    model          the FP32 model from which ``quantized`` made ``int8``
    moment         of the patches of ``first_window``, [K, K]
    weight_range   the largest magnitude of a code
    """
    result = onnx.ModelProto()
    result.CopyFrom(int8)
    tensors = {tensor.name: tensor for tensor in result.graph.initializer}
    first = convolutions(model)[0]
    reads = next(node for node in result.graph.node if node.name == first.name).input[1]
    decode = next((node for node in result.graph.node if reads in node.output), None)
    if decode is None:
        return result
    exact = next(tensor for tensor in model.graph.initializer if tensor.name == first.input[1])
    weight, (codes, scale) = numpy_helper.to_array(exact), (tensors[name] for name in decode.input[:2])
    rows = weight.reshape(len(weight), -1).astype(np.float64)
    found = compensating_codes(rows, numpy_helper.to_array(scale).astype(np.float64), moment, weight_range)
    codes.CopyFrom(numpy_helper.from_array(found.reshape(weight.shape), codes.name))
    return result


def compensating_codes(
    weight: NDArray[np.float64], scale: NDArray[np.float64], moment: NDArray[np.float64], largest: int
) -> NDArray[np.int8]:
    """Codes q [O, K] for which the mean of ((scale q - weight) x)^2 over patches x is small.

    weight    [O, K]
    scale     of each row, [O]
    moment    E[x x^T], or the covariance if the mean error is corrected elsewhere; [K, K]
    largest   magnitude of a code

    Rounds one column after another, and changes the later columns so that they make up for its error (Frantar et al.
    2023, GPTQ, section 3.3). Rounds to the nearest codes if the moments are not finite.
    """
    if not np.isfinite(moment).all():
        moment = np.zeros_like(moment)
    damping = max(DAMPING * float(np.diag(moment).mean()), np.finfo(np.float32).tiny)
    inverse = np.linalg.cholesky(np.linalg.inv(moment + damping * np.eye(len(moment)))).T
    left, codes = weight.copy(), np.zeros(weight.shape, np.int8)
    for column in range(weight.shape[1]):
        codes[:, column] = np.clip(np.round(left[:, column] / scale), -largest, largest)
        error = left[:, column] - codes[:, column] * scale
        left[:, column:] -= np.outer(error / inverse[column, column], inverse[column, column:])
    return codes
