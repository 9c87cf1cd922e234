"""Proof of precision on graphs, networks and engines, and that a graph which lost its Q/DQ nodes is caught."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from conftest import SPEC, listing
from graphs import ranged_tensors
from onnx import TensorProto, helper, numpy_helper

from cgd_deploy.errors import GateError, MissingDependency
from cgd_deploy.runtime.backends.onnxruntime import session_options
from cgd_deploy.runtime.backends.tensorrt import import_tensorrt
from cgd_deploy.runtime.enginefile import read_engine
from cgd_deploy.spec import Precision
from cgd_export.fp16 import halved
from cgd_export.int8 import recipe
from cgd_export.int8.quantize import Layout, convolutions, quantized, residual_adds
from cgd_export.kernels import kernels
from cgd_export.metadata import FEATURES, Metadata, load_onnx, set_metadata
from cgd_export.proof import (
    COMPILED,
    compiled_precisions,
    convolution_work,
    engine_precisions,
    graph_precisions,
    network_precisions,
    prove,
)
from cgd_export.typed import LAYOUTS


@pytest.fixture(scope="module")
def model(model_onnx: Path) -> onnx.ModelProto:
    return load_onnx(model_onnx)


@pytest.fixture(scope="module")
def int8(model: onnx.ModelProto) -> onnx.ModelProto:
    return quantized(model, dict.fromkeys(ranged_tensors(model), 4.0), Layout.SYMMETRIC)


def stripped(model: onnx.ModelProto, activations_only: bool = False) -> onnx.ModelProto:
    """``model`` without its Q/DQ nodes: activations as they come, weights decoded here."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in bare.graph.initializer}
    same: dict[str, str] = {}
    nodes = []
    for node in bare.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in constants:
            if activations_only:
                nodes.append(node)
                continue
            codes, scale = constants[node.input[0]], constants[node.input[1]]
            weight = (codes * scale[:, None, None, None]).astype(scale.dtype)
            bare.graph.initializer.append(numpy_helper.from_array(weight, node.output[0]))
        elif node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            same[node.output[0]] = same.get(node.input[0], node.input[0])
        else:
            for position, name in enumerate(node.input):
                node.input[position] = same.get(name, name)
            nodes.append(node)
    del bare.graph.node[:]
    bare.graph.node.extend(nodes)
    onnx.checker.check_model(bare, full_check=True)
    return bare


def network_of(model: onnx.ModelProto) -> dict[str, Precision]:
    try:
        trt = import_tensorrt("tensorrt-rtx")
    except MissingDependency as error:
        pytest.skip(str(error))
    log = trt.Logger(trt.Logger.ERROR)
    network = trt.Builder(log).create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    assert parser.parse(model.SerializeToString())
    return network_precisions(trt, network, {node.name for node in convolutions(model)})


def test_work_of_a_convolution(model: onnx.ModelProto) -> None:
    """ResNet-18 at 64 x 64: the stem makes 32 x 32 x 64 values of 7 x 7 x 3 multiply-adds each."""
    work = convolution_work(model)
    assert len(work) == 20
    assert next(iter(work.values())) == 2 * 32 * 32 * 64 * 7 * 7 * 3


@pytest.mark.parametrize("read", [graph_precisions, network_of])
def test_a_product_with_a_matrix_is_a_convolution(read: Callable[[onnx.ModelProto], dict[str, Precision]]) -> None:
    """8 x 8 maps of 3 channels, of which a product makes 5 as ConvNeXt does it, with the channels last."""
    random = np.random.default_rng(0)
    nodes = [
        helper.make_node("Cast", ["images"], ["float"], name="cast", to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["x"], name="first", perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["x", "kernel"], ["y"], name="convolution", group=3),
        helper.make_node("Transpose", ["y"], ["last"], name="last", perm=[0, 2, 3, 1]),
        helper.make_node("MatMul", ["last", "matrix"], ["product"], name="product"),
        helper.make_node("Add", ["product", "bias"], ["moved"], name="add"),
        helper.make_node("Transpose", ["moved"], [FEATURES], name="back", perm=[0, 3, 1, 2]),
        helper.make_node("GlobalAveragePool", [FEATURES], ["descriptors"], name="pool"),
    ]
    shapes = {"kernel": (3, 1, 1, 1), "matrix": (3, 5), "bias": (5,)}
    weights = {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    graph = helper.make_graph(
        nodes,
        "product",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", 8, 8, 3])],
        [helper.make_tensor_value_info("descriptors", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    set_metadata(model, Metadata(spec=SPEC, precision=Precision.FP32))
    assert convolution_work(model) == {"convolution": 2 * 8 * 8 * 3, "product": 2 * 8 * 8 * 5 * 3}
    int8 = quantized(model, dict.fromkeys(ranged_tensors(model), 4.0), Layout.SYMMETRIC)
    for typed, precision in ((model, Precision.FP32), (halved(model), Precision.FP16), (halved(int8), Precision.INT8)):
        assert read(typed) == {"convolution": precision, "product": precision}
        assert convolution_work(typed) == convolution_work(model)


@pytest.mark.parametrize("read", [graph_precisions, network_of])
@pytest.mark.parametrize("precision", Precision)
def test_what_was_asked_is_found(
    model: onnx.ModelProto,
    int8: onnx.ModelProto,
    precision: Precision,
    read: Callable[[onnx.ModelProto], dict[str, Precision]],
) -> None:
    """TF32 and BF16 are settings of a library: their types are those of FP32."""
    shown = Precision.FP32 if precision in (Precision.TF32, Precision.BF16) else precision
    typed = {Precision.FP32: model, Precision.FP16: halved(model), Precision.INT8: halved(int8)}[shown]
    proof = prove("network", read(typed), typed, precision)
    assert proof["asked"] == precision.value
    assert proof["layers"] == {shown.value: 20} and proof["flops_share"] == {shown.value: 1.0}
    for other in (one for one in Precision if one.in_graph is not shown):
        with pytest.raises(GateError, match=f"{other.value} was asked, but the network has 100 % {shown.value}"):
            prove("network", read(typed), typed, other)


@pytest.mark.parametrize("layout", Layout)
def test_every_layout_is_int8(model: onnx.ModelProto, layout: Layout) -> None:
    typed = quantized(model, dict.fromkeys(ranged_tensors(model), 4.0), layout)
    assert set(graph_precisions(typed).values()) == {Precision.INT8}


@pytest.mark.parametrize("read", [graph_precisions, network_of])
@pytest.mark.parametrize("activations_only", [True, False])
@pytest.mark.parametrize("half", [True, False])
def test_lost_codes_are_found_out(
    int8: onnx.ModelProto,
    read: Callable[[onnx.ModelProto], dict[str, Precision]],
    activations_only: bool,
    half: bool,
) -> None:
    bare = stripped(int8, activations_only)
    bare = halved(bare) if half else bare
    with pytest.raises(GateError, match=r"int8 was asked, but the graph has 100 % fp(16|32) of the convolution work"):
        prove("graph", read(bare), bare, Precision.INT8)


def test_convolutions_left_out_on_purpose(model: onnx.ModelProto) -> None:
    first = [node.name for node in convolutions(model)[:2]]
    mixed = quantized(model, dict.fromkeys(ranged_tensors(model), 4.0), Layout.SYMMETRIC, keep_float=first)
    for typed, kept in ((mixed, "fp32"), (halved(mixed), "fp16")):
        found = graph_precisions(typed)
        assert network_of(typed) == found
        proof = prove("graph", found, typed, Precision.INT8, keep_float=first)
        assert proof["layers"] == {kept: 2, "int8": 18} and proof["kept_float"] == sorted(first)
        assert sum(proof["flops_share"].values()) == pytest.approx(1)
        with pytest.raises(GateError, match="where 95% was expected"):
            prove("graph", found, typed, Precision.INT8)


def test_no_convolution_is_no_proof(model: onnx.ModelProto) -> None:
    with pytest.raises(GateError, match="the engine has no convolution at all"):
        prove("engine", {}, model, Precision.FP32)


def layer(name: str, inputs: list[str], weight: str | None = None, **more: Any) -> dict[str, Any]:
    tensors = [{"Name": f"t{i}", "Format/Datatype": text} for i, text in enumerate(inputs)]
    weights = {"Weights": {"Type": weight, "Count": 9}} if weight else {}
    return {"Name": name, "LayerType": "CaskConvolution", "Inputs": tensors, **weights, **more}


def test_engine_layers() -> None:
    """Layers as the inspectors of TensorRT 10 and 11 describe them: fused, renamed, with reformats around."""
    channels = "Thirty-two wide channel vectorized row major Int8 format"
    layers = [
        layer(
            "Reformatting CopyNode for Input Tensor 0 to conv_2 + relu", ["Row major Int8 format"], LayerType="Reformat"
        ),
        layer("conv_1 + relu", ["Channel major FP16 format where channel % 8 == 0"], "Half"),
        layer("conv_12 + add_3 + relu_4", [channels, "Channel major FP16 format"], "Int8"),
        layer("__myl_ConvRelu_myl0_3", ["Int8", "Half"], Metadata="[ONNX Layer: conv_5]\x1e[ONNX Layer: relu_5]"),
        layer("sibling_7 || conv_7", ["Row major linear FP32"], "Float"),
    ]
    names = {"conv_1", "conv_12", "conv_5", "conv_7", "conv_2"}
    assert engine_precisions(layers, names) == {
        "conv_1": Precision.FP16,
        "conv_12": Precision.INT8,
        "conv_5": Precision.INT8,
        "conv_7": Precision.FP32,
    }


@pytest.mark.parametrize(
    ("inputs", "weight", "precision"),
    [
        (["UInt8"], "Float", Precision.FP32),
        (["Row major linear UINT8 format"], "Half", Precision.FP16),
        (["uint8", "Half"], None, Precision.FP16),
        (["UInt8", "Float"], None, Precision.FP32),
        (["UInt8", "Int8"], None, Precision.INT8),
    ],
)
def test_unsigned_bytes_are_not_int8(inputs: list[str], weight: str | None, precision: Precision) -> None:
    """The first convolution may be fused with the pixels, which are unsigned bytes in every engine."""
    assert engine_precisions([layer("conv_1", inputs, weight)], {"conv_1"}) == {"conv_1": precision}


@pytest.mark.parametrize("datatype", ["UInt8", "Int8", "Row major Int8 format"])
def test_pixels_prove_no_precision(datatype: str) -> None:
    pixels = {"Name": "images", "Format/Datatype": datatype}
    fused = {**layer("conv_1", []), "Inputs": [pixels]}
    assert engine_precisions([fused], {"conv_1"}) == {}
    fused["Inputs"].append({"Name": "scale", "Format/Datatype": "Float"})
    assert engine_precisions([fused], {"conv_1"}) == {"conv_1": Precision.FP32}


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime", "tensorrt-rtx"])
def test_lost_codes_exit_with_3(
    backend: str, model_onnx: Path, tmp_path: Path, cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    if backend == "tensorrt-rtx":
        network_of(load_onnx(model_onnx))  # skips without the library
    monkeypatch.setattr(recipe, "quantized", lambda *arguments: stripped(quantized(*arguments)))
    output = tmp_path / "engine.cgd"
    status, _, told = cli("build-engine", model_onnx, "--int8", "--backend", backend, "-o", output)
    assert status == 3
    assert told.strip().count("\n") == 0 and "int8 was asked, but the graph has 100 % fp" in told
    assert listing(tmp_path) == {}


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_what_runs_is_what_the_graph_asks_for(model: onnx.ModelProto, backend: str) -> None:
    pytest.importorskip(backend)
    names = [node.name for node in convolutions(model)]
    assert set(compiled_precisions(kernels(backend, model.SerializeToString()), names).values()) == {Precision.FP32}
    ranges = dict.fromkeys(ranged_tensors(model), 4.0)
    for floats in (names[:1], names[1:2], [names[3], names[8]], names[5:15], names[-1:], names[:-1]):
        mixed = quantized(model, ranges, LAYOUTS[backend], keep_float=floats)
        found = compiled_precisions(kernels(backend, mixed.SerializeToString()), names)
        assert (
            found
            == graph_precisions(mixed)
            == {name: Precision.FP32 if name in floats else Precision.INT8 for name in names}
        )


def test_openvino_adds_in_float_between_integer_convolutions(model: onnx.ModelProto) -> None:
    pytest.importorskip("openvino")
    names = [node.name for node in convolutions(model)]
    floats = [*residual_adds(model), names[4]]
    mixed = quantized(model, dict.fromkeys(ranged_tensors(model), 4.0), LAYOUTS["openvino"], keep_float=floats)
    found = compiled_precisions(kernels("openvino", mixed.SerializeToString()), names)
    proof = prove(COMPILED, found, mixed, Precision.INT8, floats)
    assert (proof["layers"], proof["kept_float"]) == ({"int8": 19, "fp32": 1}, [names[4]])


def test_a_compiled_model_proves_bf16_by_its_kernels(model: onnx.ModelProto, bf16_cpu: None) -> None:
    names = [node.name for node in convolutions(model)]
    found = compiled_precisions(kernels("openvino", model.SerializeToString(), bf16=True), names)
    proof = prove(COMPILED, found, model, Precision.BF16)
    assert (proof["asked"], proof["layers"], proof["flops_share"]) == ("bf16", {"bf16": 20}, {"bf16": 1.0})
    with pytest.raises(GateError, match="fp32 was asked, but the compiled model has 100 % bf16"):
        prove(COMPILED, found, model, Precision.FP32)
    without = compiled_precisions(kernels("openvino", model.SerializeToString()), names)
    with pytest.raises(GateError, match="bf16 was asked, but the compiled model has 100 % fp32"):
        prove(COMPILED, without, model, Precision.BF16)


@pytest.mark.parametrize(
    ("kernel", "precision"),
    [
        ("brgconv_avx512_amx_bf16", Precision.BF16),
        ("brgconv_avx512_1x1_bf16", Precision.BF16),
        ("jit_avx512_f32", Precision.FP32),
        ("brgconv_avx512_amx_I8", Precision.INT8),
        ("brgconv_avx512_f16", Precision.FP32),
    ],
)
def test_the_last_word_of_a_kernels_name_is_its_precision(kernel: str, precision: Precision) -> None:
    assert compiled_precisions({"a": kernel}, ["a", "b"]) == {"a": precision, "b": Precision.FP32}


def test_int8_layers_that_the_runtime_computes_in_float_are_found_out(
    model_onnx: Path, tmp_path: Path, cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The graph says INT8, and ONNX Runtime fuses nothing."""
    monkeypatch.setattr("cgd_export.kernels.session_options", without_fusion)
    status, _, told = cli("build-engine", model_onnx, "--int8", "--backend", "onnxruntime", "-o", tmp_path / "a.cgd")
    assert status == 3 and "int8 was asked, but the compiled model has 100 % fp32 of the convolution work" in told
    assert listing(tmp_path) == {}


def without_fusion(ort: Any, threads: int) -> Any:
    options = session_options(ort, threads)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return options


def test_proof_of_a_cpu_engine(engines: dict[tuple[str, str], Path]) -> None:
    for (_, precision), path in engines.items():
        proof = read_engine(path).manifest.proof
        assert proof and proof["from"] == "compiled model" and proof["asked"] == precision
        assert proof["convolutions"] == 20 and proof["flops_share"] == {precision: 1.0}
