"""torch gives ONNX Runtime's numbers for whole models of every family and for operators one by one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import SPEC
from onnx import TensorProto, helper, numpy_helper

from cgd_deploy.errors import ExportError
from cgd_deploy.runtime.golden import golden_images
from cgd_deploy.spec import ModelSpec
from cgd_export.gem import DOMAIN, gem_function
from cgd_export.int8.graph import OPERATORS, Graph
from cgd_export.metadata import FEATURES, load_onnx
from cgd_export.onnx_from_checkpoint import onnx_from_checkpoint
from cgd_export.parity import run_onnx
from cgd_train.checkpoint import Checkpoint, save_checkpoint
from cgd_train.model import CGD, DeployModel


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    """Two threads wait for each other on a busy machine; these inputs are small."""
    torch.set_num_threads(1)


def described(model: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    graph = Graph(model)
    with torch.inference_mode():
        return graph.run(torch.from_numpy(images), graph.initializers).numpy()


def test_the_session_s_model(model_onnx: Path, pixels: np.ndarray) -> None:
    model = load_onnx(model_onnx)
    assert np.abs(described(model, pixels) - run_onnx(model, pixels, 8)).max() <= 1e-5


def exported(spec: ModelSpec, folder: Path) -> onnx.ModelProto:
    """An untrained model whose BatchNorm has seen the golden pictures and whose residual branches all count."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = CGD(spec)
        for name, parameter in model.named_parameters():
            if name.endswith("layer_scale"):
                torch.nn.init.constant_(parameter, 0.3)
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.train().momentum = 1.0
        model(DeployModel(model).normalized(torch.from_numpy(golden_images(spec, 8))))
    path = save_checkpoint(Checkpoint(model.eval()), folder / "ckpt.pt")
    onnx_from_checkpoint(path, folder / "model.onnx")
    return load_onnx(folder / "model.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["mobilenet_v3_small", "convnext_tiny"])
def test_families(backbone: str, tmp_path: Path) -> None:
    """With the session's ResNet they hold every operator that the other families' exports hold, but for Sigmoid."""
    spec = replace(SPEC, backbone=backbone, dim=24)
    model, images = exported(spec, tmp_path), golden_images(spec, 3)
    assert np.abs(described(model, images) - run_onnx(model, images, 3)).max() <= 1e-5


def one_operator(operator: str, *constants: np.ndarray, **attributes: Any) -> onnx.ModelProto:
    """images -> float [N, 3, H, W] -> the operator -> descriptors."""
    names = [f"constant{i}" for i in range(len(constants))]
    nodes = [
        helper.make_node("Cast", ["images"], ["float"], to=TensorProto.FLOAT, name="cast"),
        helper.make_node("Transpose", ["float"], ["x"], perm=[0, 3, 1, 2], name="move"),
        helper.make_node(operator, ["x", *names], ["descriptors"], name="it", **attributes),
    ]
    graph = helper.make_graph(
        nodes,
        "one",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", 11, 9, 3])],
        [helper.make_tensor_value_info("descriptors", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for array, name in zip(constants, names, strict=True)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


RANDOM = np.random.default_rng(0)


def kernel(*shape: int) -> np.ndarray:
    return RANDOM.normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(
    ("operator", "constants", "attributes"),
    [
        ("Conv", [kernel(4, 3, 3, 2)], {"pads": [2, 0, 1, 1], "strides": [2, 1]}),
        ("Conv", [kernel(6, 1, 3, 3), kernel(6)], {"group": 3, "pads": [1, 2, 1, 2], "dilations": [2, 1]}),
        ("MaxPool", [], {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 1, 0, 0]}),
        ("MaxPool", [], {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}),
        ("MatMul", [kernel(9, 5)], {}),
        ("Flatten", [], {"axis": 1}),
        ("ReduceMean", [np.array([1, 3])], {"keepdims": 0}),
        ("ReduceL2", [np.array([1])], {"keepdims": 1}),
        ("LayerNormalization", [kernel(9), kernel(9)], {"axis": -1, "epsilon": 1e-3}),
        ("Clip", [np.float32(7), np.float32(99)], {}),
        ("Pow", [np.float32(1.5)], {}),
        ("Concat", [kernel(2, 4, 11, 9)], {"axis": 1}),
        ("Gelu", [], {"approximate": "tanh"}),
        ("Sigmoid", [], {}),
        ("HardSigmoid", [], {"alpha": 0.01, "beta": -0.3}),
    ],
)
def test_operators_with_uneven_attributes(operator: str, constants: list, attributes: dict) -> None:
    model = one_operator(operator, *constants, **attributes)
    images = np.random.default_rng(1).integers(0, 256, (2, 11, 9, 3), np.uint8)
    expected = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"images": images})[0]
    found = described(model, images)
    assert found.shape == expected.shape
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-5 * float(np.abs(expected).max()))


def test_a_gem_that_export_kept() -> None:
    model = one_operator("GeM", domain=DOMAIN, p=2.5, eps=9.0)
    model.functions.append(gem_function())
    model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    images = np.random.default_rng(1).integers(0, 256, (2, 11, 9, 3), np.uint8)
    expected = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"images": images})[0]
    assert described(model, images) == pytest.approx(expected, rel=1e-5)


def test_unknown_operators_are_named() -> None:
    with pytest.raises(ExportError, match=r"^distillation cannot run the operators Erf of this model; export .*\.$"):
        Graph(one_operator("Erf"))
    assert "Erf" not in OPERATORS


def test_a_cast_to_anything_but_fp32_is_refused() -> None:
    with pytest.raises(ExportError, match="not to FP32"):
        described(one_operator("Cast", to=TensorProto.FLOAT16), np.zeros((1, 11, 9, 3), np.uint8))


def test_read_sees_every_tensor_where_it_is_read_and_can_replace_it(model_onnx: Path, pixels: np.ndarray) -> None:
    model = load_onnx(model_onnx)
    graph, seen = Graph(model), []

    def read(node: onnx.NodeProto, position: int, x: torch.Tensor) -> torch.Tensor:
        seen.append((node.name, position))
        return torch.ones_like(x) if node.input[position] == FEATURES else x

    with torch.inference_mode():
        found = graph.run(torch.from_numpy(pixels[:2]), graph.initializers, read).numpy()
    expected = [(node.name, i) for node in model.graph.node for i, name in enumerate(node.input) if name]
    assert seen == expected
    assert np.array_equal(found[0], found[1])  # of two pictures, whose features were replaced


def test_gradients_reach_every_weight_of_the_backbone(model_onnx: Path, pixels: np.ndarray) -> None:
    graph = Graph(load_onnx(model_onnx))
    weights = {n: x.requires_grad_() for n, x in graph.initializers.items() if x.is_floating_point() and x.ndim == 4}
    graph.run(torch.from_numpy(pixels[:2]), graph.initializers)[:, 0].sum().backward()
    moved = [name for name, x in weights.items() if x.grad is not None and bool(x.grad.any())]
    assert len(moved) >= 20
