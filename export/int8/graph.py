"""Run our FP32 ONNX models in torch, so that gradients reach their weights.

Knows only the operators of our exports, and neither quantization nor training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor
from torch.nn import functional

from cgd_deploy.errors import ExportError
from cgd_deploy.runtime.backends.base import DESCRIPTORS, IMAGES

Read = Callable[[onnx.NodeProto, int, Tensor], Tensor]
"""(node, position of an input, its tensor) -> the tensor that the node reads there instead."""


class Graph:
    """A model that torch can run, node by node.

    initializers   the model's constants and weights by name

    Raises ExportError for an operator that is not among OPERATORS.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        if unknown := sorted({node.op_type for node in model.graph.node} - set(OPERATORS)):
            raise ExportError(
                f"distillation cannot run the operators {', '.join(unknown)} of this model; "
                "export the checkpoint with cgd-deploy."
            )
        self.initializers = {
            tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy()) for tensor in model.graph.initializer
        }
        self._nodes = [(node, _attributes(node)) for node in model.graph.node]
        last = {name: number for number, node in enumerate(model.graph.node) for name in node.input}
        self._read_last = [[name for name in last if last[name] == number] for number in range(len(self._nodes))]

    def run(self, pixels: Tensor, initializers: Mapping[str, Tensor], read: Read | None = None) -> Tensor:
        """uint8 [N, H, W, 3] -> descriptors float32 [N, D], differentiable in ``initializers``."""
        values = {**initializers, IMAGES: pixels}
        for (node, attributes), done in zip(self._nodes, self._read_last, strict=True):
            inputs = [values[name] if name else None for name in node.input]
            if read:
                inputs = [x if x is None else read(node, position, x) for position, x in enumerate(inputs)]
            values[node.output[0]] = OPERATORS[node.op_type](*inputs, **attributes)
            for name in done:
                values.pop(name, None)
        return values[DESCRIPTORS]


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def _cast(x: Tensor, to: int) -> Tensor:
    if to != TensorProto.FLOAT:
        raise ExportError("a Cast of this model is not to FP32; pass the FP32 model that cgd-deploy export wrote.")
    return x.float()


def _conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    strides: Sequence[int] = (1, 1),
    pads: Sequence[int] = (0, 0, 0, 0),
    dilations: Sequence[int] = (1, 1),
    group: int = 1,
    **_: Any,
) -> Tensor:
    x, padding = _padded(x, pads, 0.0)
    return functional.conv2d(x, weight, bias, tuple(strides), padding, tuple(dilations), group)


def _max_pool(
    x: Tensor,
    *,
    kernel_shape: Sequence[int],
    strides: Sequence[int] = (1, 1),
    pads: Sequence[int] = (0, 0, 0, 0),
    dilations: Sequence[int] = (1, 1),
    ceil_mode: int = 0,
    **_: Any,
) -> Tensor:
    x, padding = _padded(x, pads, -torch.inf)
    return functional.max_pool2d(
        x, tuple(kernel_shape), tuple(strides), padding, tuple(dilations), ceil_mode=bool(ceil_mode)
    )


def _padded(x: Tensor, pads: Sequence[int], value: float) -> tuple[Tensor, tuple[int, int]]:
    """ONNX's (top, left, bottom, right) as torch's (vertical, horizontal); pads ``x`` here if a pair differs."""
    top, left, bottom, right = pads
    if (top, left) == (bottom, right):
        return x, (top, left)
    return functional.pad(x, (left, right, top, bottom), value=value), (0, 0)


def _gemm(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Tensor:
    product = alpha * ((a.T if transA else a) @ (b.T if transB else b))
    return product if c is None else product + beta * c


def _layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, axis: int = -1, epsilon: float = 1e-5, **_: Any
) -> Tensor:
    return functional.layer_norm(x, x.shape[axis:], weight, bias, epsilon)


def _gelu(x: Tensor, approximate: bytes = b"none") -> Tensor:
    return functional.gelu(x, approximate=approximate.decode())


def _mean(x: Tensor, axes: Tensor, keepdims: int = 1, **_: Any) -> Tensor:
    return x.mean(axes.tolist(), keepdim=bool(keepdims))


def _length(x: Tensor, axes: Tensor, keepdims: int = 1, **_: Any) -> Tensor:
    return torch.linalg.vector_norm(x, dim=axes.tolist(), keepdim=bool(keepdims))


def _clip(x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    return x if low is None and high is None else x.clamp(low, high)


def _gem(x: Tensor, p: float, eps: float) -> Tensor:
    """``cgd::GeM``, see ``gem.gem_function``."""
    return x.clamp(min=eps).pow(p).mean((2, 3)).pow(1 / p)


OPERATORS: dict[str, Callable[..., Tensor]] = {
    "Add": torch.add,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": lambda *parts, axis: torch.cat(parts, axis),
    "Conv": _conv,
    "Div": torch.div,
    "Flatten": lambda x, axis=1: x.flatten(axis),
    "GeM": _gem,
    "Gelu": _gelu,
    "Gemm": _gemm,
    "GlobalAveragePool": lambda x: x.mean((2, 3), keepdim=True),
    "GlobalMaxPool": lambda x: x.amax((2, 3), keepdim=True),
    "HardSigmoid": lambda x, alpha=0.2, beta=0.5: (alpha * x + beta).clamp(0, 1),
    "HardSwish": functional.hardswish,
    "LayerNormalization": _layer_norm,
    "MatMul": torch.matmul,
    "MaxPool": _max_pool,
    "Mul": torch.mul,
    "Pow": torch.pow,
    "ReduceL2": _length,
    "ReduceMean": _mean,
    "Relu": torch.relu,
    "Sigmoid": torch.sigmoid,
    "Sub": torch.sub,
    "Transpose": lambda x, perm: x.permute(tuple(perm)),
}
"""Operator -> its inputs in order, then its attributes by name."""
