"""``cgd::GeM`` as an ONNX function, and its folding into plain operators.

torch's exporter writes one node for each pooling branch, with p and eps as attributes. SPoC (p = 1) and MAC (p = inf)
always become GlobalAveragePool and GlobalMaxPool. Other GeM nodes become plain operators unless the caller keeps them.
"""

from __future__ import annotations

import math

import numpy as np
import onnx
from onnx import helper, numpy_helper

from .metadata import OPSET

DOMAIN = "cgd"
SMALLEST = 2.0**-14
"""The smallest normal FP16 number."""


def gem_function() -> onnx.FunctionProto:
    """The body of ``cgd::GeM(x; p, eps)``: [N, C, H, W] -> [N, C] as m * mean((x / m)^p)^(1/p), m = max(x, SMALLEST).

    Dividing by the maximum keeps x^p inside FP16, where 40.4^3 already overflows. SMALLEST stands in for the maximum of
    a channel that is zero everywhere, which is possible if eps is 0.
    """
    eps = helper.make_node("Constant", [], ["eps"])
    exponent = helper.make_node("Constant", [], ["p"])
    for node, name in ((eps, "eps"), (exponent, "p")):
        node.attribute.append(
            onnx.AttributeProto(name="value_float", ref_attr_name=name, type=onnx.AttributeProto.FLOAT)
        )
    nodes = [
        eps,
        exponent,
        helper.make_node("Constant", [], ["plane"], value_ints=[2, 3]),
        helper.make_node("Constant", [], ["smallest"], value_float=SMALLEST),
        helper.make_node("Clip", ["x", "eps"], ["positive"]),
        helper.make_node("ReduceMax", ["positive", "plane"], ["maximum"], keepdims=1),
        helper.make_node("Max", ["maximum", "smallest"], ["largest"]),
        helper.make_node("Div", ["positive", "largest"], ["ratio"]),
        helper.make_node("Pow", ["ratio", "p"], ["powers"]),
        helper.make_node("ReduceMean", ["powers", "plane"], ["mean"], keepdims=1),
        helper.make_node("Reciprocal", ["p"], ["root"]),
        helper.make_node("Pow", ["mean", "root"], ["relative"]),
        helper.make_node("Mul", ["relative", "largest"], ["pooled"]),
        helper.make_node("Squeeze", ["pooled", "plane"], ["y"]),
    ]
    opsets = [helper.make_opsetid("", OPSET)]
    return helper.make_function(DOMAIN, "GeM", ["x"], ["y"], nodes, opsets, attributes=["p", "eps"])


def fold_gem(model: onnx.ModelProto, keep_gem: bool = False) -> None:
    """Replace every ``cgd::GeM`` node in place; with ``keep_gem``, nodes whose p is neither 1 nor inf stay."""
    graph = model.graph
    nodes = []
    kept = False
    for node in graph.node:
        if node.domain != DOMAIN:
            nodes.append(node)
            continue
        p, eps = (helper.get_node_attr_value(node, name) for name in ("p", "eps"))
        if keep_gem and p != 1 and math.isfinite(p):
            nodes.append(node)
            kept = True
        else:
            nodes += _pooling(graph, node.input[0], node.output[0], p, eps)
    del graph.node[:]
    graph.node.extend(nodes)
    del model.functions[:]
    others = [opset for opset in model.opset_import if opset.domain != DOMAIN]
    del model.opset_import[:]
    model.opset_import.extend(others)
    if kept:
        model.functions.append(gem_function())
        model.opset_import.append(helper.make_opsetid(DOMAIN, 1))


def _pooling(graph: onnx.GraphProto, x: str, y: str, p: float, eps: float) -> list[onnx.NodeProto]:
    def constant(name: str, value: float) -> str:
        graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), f"{y}_{name}"))
        return f"{y}_{name}"

    def node(op: str, inputs: list[str], output: str) -> onnx.NodeProto:
        return helper.make_node(op, inputs, [output], name=f"{y}_{op}_{output}")

    if p == 1 or math.isinf(p):
        pool = "GlobalAveragePool" if p == 1 else "GlobalMaxPool"
        return [node(pool, [x], f"{y}_map"), node("Flatten", [f"{y}_map"], y)]
    return [
        node("Clip", [x, constant("eps", eps)], f"{y}_clipped"),
        node("Pow", [f"{y}_clipped", constant("p", p)], f"{y}_power"),
        node("GlobalAveragePool", [f"{y}_power"], f"{y}_map"),
        node("Flatten", [f"{y}_map"], f"{y}_mean"),
        node("Pow", [f"{y}_mean", constant("root", 1 / p)], y),
    ]
