"""checkpoint -> ONNX: the same descriptors, the contract of names and shapes, and GeM by plain loops."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from conftest import SPEC, listing, write_fake_engine
from onnx import TensorProto, helper

from cgd_deploy.errors import CgdError, ExportError, InputError, SpecError
from cgd_deploy.files import sha256_file
from cgd_deploy.hardware import cpu
from cgd_deploy.pictures.images import read_images
from cgd_deploy.runtime.descriptors import cosines
from cgd_deploy.spec import Precision
from cgd_export import onnx_from_checkpoint as module
from cgd_export.gem import DOMAIN, fold_gem, gem_function
from cgd_export.metadata import OPSET, get_metadata, load_onnx, save_onnx
from cgd_export.onnx_from_checkpoint import onnx_from_checkpoint
from cgd_export.parity import parity_of, run_onnx


@pytest.fixture(scope="module")
def model(model_onnx: Path) -> onnx.ModelProto:
    return load_onnx(model_onnx)


@pytest.mark.parametrize("count", [1, 2, 7])
def test_descriptors_are_torchs_at_any_batch_size(model, torch_descriptors, pixels, count):
    found = run_onnx(model, pixels[:count], count)
    assert found.shape == (count, 96) and found.dtype == np.float32
    assert cosines(found, torch_descriptors(pixels[:count])).min() >= 0.99999


def test_a_batch_gives_what_its_pictures_give_singly(model, pixels):
    assert np.abs(run_onnx(model, pixels[:7], 7) - run_onnx(model, pixels[:7], 1)).max() <= 1e-5


def test_descriptors_have_unit_length(model, pixels):
    assert np.abs(np.linalg.norm(run_onnx(model, pixels, 8), axis=1) - 1).max() <= 1e-5


def test_black_and_white_pictures_stay_finite(model):
    extremes = np.stack([np.full((64, 64, 3), value, np.uint8) for value in (0, 255)])
    assert np.isfinite(run_onnx(model, extremes, 2)).all()


def test_input_and_output_are_the_contracts(model):
    def described(values) -> list[tuple[str, int, list[int | str]]]:
        shapes = [[d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in values]
        return [(v.name, v.type.tensor_type.elem_type, shape) for v, shape in zip(values, shapes, strict=True)]

    assert described(model.graph.input) == [("images", TensorProto.UINT8, ["N", 64, 64, 3])]
    assert described(model.graph.output) == [("descriptors", TensorProto.FLOAT, ["N", 96])]


def test_only_plain_operators_are_left(model):
    assert {node.domain for node in model.graph.node} == {""}
    assert {opset.domain: opset.version for opset in model.opset_import} == {"": OPSET}
    assert not model.functions
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}


def test_the_auxiliary_head_is_not_in_the_file(model):
    # The classifier is 3 x 512; nothing else has an output of 3.
    shapes = [tuple(tensor.dims) for tensor in model.graph.initializer]
    assert (96 // 3, 512) in shapes or (512, 96 // 3) in shapes
    assert not [shape for shape in shapes if 3 in shape[:2] and 512 in shape]
    assert not [tensor.name for tensor in model.graph.initializer if "auxiliary" in tensor.name]
    weights = sum(math.prod(shape) for shape in shapes)
    assert weights == pytest.approx(11.2e6 + 96 * 512, rel=0.01)


def test_nothing_tells_where_it_was_exported(model_onnx):
    data = model_onnx.read_bytes()
    model = load_onnx(model_onnx)
    for trace in (b"site-packages", b"torchvision", b'File "', b"cgd_train", b"pkg.torch", b"model.py"):
        assert trace not in data, trace
    assert not model.doc_string and not model.graph.doc_string
    assert not [node.name for node in model.graph.node if node.doc_string or node.metadata_props]


def test_metadata_hold_the_spec_and_the_source(model, checkpoint):
    from cgd_train.checkpoint import load_checkpoint

    metadata = get_metadata(model)
    assert metadata.spec == load_checkpoint(checkpoint).spec
    assert metadata.precision is Precision.FP32
    assert metadata.source.checkpoint == str(checkpoint)
    assert metadata.source.sha256 == sha256_file(checkpoint)


def test_the_calibration_list_lies_beside_the_model(model_onnx, picture_list):
    images = read_images(model_onnx.with_name("model.calibration.tsv"))
    assert images.paths == [path.absolute() for path in picture_list.split_classes()[0].paths]
    assert set(images.classes) == {"kind-0", "kind-1", "kind-2"}


@pytest.fixture(scope="module")
def traced(checkpoint) -> onnx.ModelProto:
    """What torch makes of the checkpoint; tracing is the slow part of an export."""
    from cgd_train.checkpoint import load_checkpoint
    from cgd_train.model import DeployModel

    return module._trace(DeployModel(load_checkpoint(checkpoint).model))


@pytest.fixture
def quick_trace(monkeypatch, traced) -> None:
    def trace(_) -> onnx.ModelProto:
        model = onnx.ModelProto()
        model.CopyFrom(traced)
        return model

    monkeypatch.setattr(module, "_trace", trace)


@pytest.fixture
def kept(checkpoint, tmp_path, quick_trace) -> onnx.ModelProto:
    """The checkpoint exported with ``keep_gem``."""
    onnx_from_checkpoint(checkpoint, tmp_path / "kept.onnx", keep_gem=True)
    return load_onnx(tmp_path / "kept.onnx")


def test_keep_gem_keeps_one_function_and_one_node(kept):
    assert [(f.domain, f.name) for f in kept.functions] == [(DOMAIN, "GeM")]
    [node] = [node for node in kept.graph.node if node.domain == DOMAIN]
    assert helper.get_node_attr_value(node, "p") == 3.0
    assert helper.get_node_attr_value(node, "eps") == pytest.approx(1e-6)


def test_keep_gem_changes_no_descriptor(kept, model, pixels):
    assert np.abs(run_onnx(kept, pixels[:4], 4) - run_onnx(model, pixels[:4], 4)).max() <= 1e-5


def test_a_learned_p_is_exported_as_a_number(tmp_path):
    import torch

    from cgd_train.checkpoint import Checkpoint, save_checkpoint
    from cgd_train.model import CGD

    torch.manual_seed(0)
    model = CGD(replace(SPEC, input_size=(32, 32), descriptors="GS", dim=8), learn_p=True)
    torch.nn.init.constant_(model.pools[0].p, 2.5)
    checkpoint = save_checkpoint(Checkpoint(model.eval()), tmp_path / "learned.pt")
    parity = onnx_from_checkpoint(checkpoint, tmp_path / "model.onnx")
    assert parity.cosine_min >= 0.99999
    assert get_metadata(load_onnx(tmp_path / "model.onnx")).spec.gem_p == 2.5


def test_without_pictures_in_the_checkpoint_an_older_list_is_removed(checkpoint, tmp_path, quick_trace):
    from cgd_train.checkpoint import load_checkpoint, save_checkpoint

    without = save_checkpoint(replace(load_checkpoint(checkpoint), calibration=None), tmp_path / "ckpt.pt")
    (tmp_path / "model.calibration.tsv").write_text("of an earlier model")
    onnx_from_checkpoint(without, tmp_path / "model.onnx")
    assert listing(tmp_path).keys() == {"ckpt.pt", "model.onnx"}


def test_the_command_names_what_it_replaces_and_what_becomes_stale(cli, checkpoint, tmp_path, monkeypatch, quick_trace):
    from cgd_train.checkpoint import load_checkpoint, save_checkpoint

    monkeypatch.chdir(tmp_path)
    assert cli("export", checkpoint)[2] == ""
    source = {"onnx_sha256": sha256_file("artifacts/model.onnx")}
    write_fake_engine(Path("artifacts/model-int8.cgd"), source=source)
    assert cli("export", checkpoint)[2] == ""  # the same model again changes nothing
    save_checkpoint(replace(load_checkpoint(checkpoint), calibration=None), Path("ckpt.pt"))
    code, out, err = cli("export", "ckpt.pt", "--json")
    assert code == 0 and json.loads(out)["path"] == "artifacts/model.onnx"
    deleted = "ckpt.pt records no calibration pictures; pass --calib to build INT8 engines."
    stale = "made from another ONNX file than model.onnx beside it; build it again."
    assert err.splitlines() == [
        "warning: artifacts/model.onnx was replaced; the earlier file differed.",
        f"warning: artifacts/model.calibration.tsv was deleted: {deleted}",
        f"warning: artifacts/model-int8.cgd is stale: {stale}",
    ]


def test_threads_are_no_more_than_a_quota_grants(checkpoint, tmp_path, monkeypatch, quick_trace):
    calls = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    monkeypatch.setattr(torch, "set_num_threads", calls.append)
    monkeypatch.setattr(cpu, "cpu_quota", lambda: 1.5)
    onnx_from_checkpoint(checkpoint, tmp_path / "model.onnx")
    assert calls == [1]


def test_nothing_is_written_when_parity_is_missed(checkpoint, tmp_path, monkeypatch, quick_trace):
    monkeypatch.setattr(module, "run_onnx", lambda model, images, batch_size: np.eye(len(images), 96, dtype=np.float32))
    with pytest.raises(ExportError, match="differs from torch"):
        onnx_from_checkpoint(checkpoint, tmp_path / "new" / "model.onnx")
    assert listing(tmp_path) == {}


def test_nothing_is_left_where_the_output_cannot_be_written(checkpoint, tmp_path, quick_trace):
    (tmp_path / "model.onnx").mkdir()
    with pytest.raises(InputError, match="it is a folder"):
        onnx_from_checkpoint(checkpoint, tmp_path / "model.onnx")
    assert listing(tmp_path).keys() == {"model.onnx"}


def gem_graph(p: float, eps: float, shape: tuple[int, ...]) -> onnx.ModelProto:
    """One cgd::GeM node as torch leaves it, a feature map in and a vector out."""
    graph = helper.make_graph(
        [helper.make_node("GeM", ["x"], ["y"], domain=DOMAIN, p=float(p), eps=float(eps))],
        "gem",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *shape[1:]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", shape[1]])],
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def pooled(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    import onnxruntime

    onnx.checker.check_model(model, full_check=True)
    return onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0]


def loop_gem(x: np.ndarray, p: float, eps: float) -> np.ndarray:
    """(mean(max(x, eps)^p))^(1/p); p = 1 is the plain mean and p = inf the plain maximum."""
    found = np.zeros(x.shape[:2])
    for n in range(x.shape[0]):
        for c in range(x.shape[1]):
            values = [float(value) for row in x[n, c] for value in row]
            if p == 1:
                found[n, c] = sum(values) / len(values)
            elif math.isinf(p):
                found[n, c] = max(values)
            else:
                found[n, c] = (sum(max(value, eps) ** p for value in values) / len(values)) ** (1 / p)
    return found


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("p", [1, 2, 3, 2.5, 0.5, 8, 9, math.inf])
def test_gem_by_loops(p, keep):
    x = np.random.default_rng(0).normal(1, 2, (2, 3, 4, 5)).astype(np.float32)
    model = gem_graph(p, 1e-3, x.shape)
    fold_gem(model, keep)
    assert pooled(model, x) == pytest.approx(loop_gem(x, p, 1e-3), rel=1e-4)


@pytest.mark.parametrize(
    ("p", "operators"),
    [
        (1, ["GlobalAveragePool", "Flatten"]),
        (math.inf, ["GlobalMaxPool", "Flatten"]),
        (3, ["Clip", "Pow", "GlobalAveragePool", "Flatten", "Pow"]),
        (2.5, ["Clip", "Pow", "GlobalAveragePool", "Flatten", "Pow"]),
    ],
)
def test_gem_folds_into_the_cheapest_operators(p, operators):
    model = gem_graph(p, 1e-6, (1, 2, 3, 3))
    fold_gem(model)
    assert [node.op_type for node in model.graph.node] == operators
    assert not model.functions and {opset.domain for opset in model.opset_import} == {""}


@pytest.mark.parametrize(("p", "stays"), [(1, False), (math.inf, False), (3, True), (2.5, True)])
def test_only_a_true_gem_is_kept_as_a_function(p, stays):
    model = gem_graph(p, 1e-6, (1, 2, 3, 3))
    fold_gem(model, keep_gem=True)
    assert bool(model.functions) is stays


def test_the_function_holds_where_the_plain_power_leaves_fp16():
    # 100^3 is beyond 65504; dividing by the maximum first keeps every power at most 1.
    x = np.array([100.0, 50.0, 0.0, 25.0], np.float32).reshape(1, 1, 2, 2)
    names = [node.op_type for node in gem_function().node]
    assert names.index("Div") < names.index("Pow")
    model = gem_graph(3, 1e-6, x.shape)
    fold_gem(model, keep_gem=True)
    assert pooled(model, x) == pytest.approx(loop_gem(x, 3, 1e-6), rel=1e-5)


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("p", [2, 3, 2.5])
@pytest.mark.parametrize("eps", [1e-6, 0.0])
def test_gem_of_nothing_is_eps(p, keep, eps):
    model = gem_graph(p, eps, (1, 2, 3, 3))
    fold_gem(model, keep)
    assert pooled(model, np.zeros((1, 2, 3, 3), np.float32)) == pytest.approx(eps, abs=1e-8)


def test_parity_counts_shared_neighbours_from_twelve_pictures_on():
    descriptors = np.random.default_rng(0).normal(size=(12, 8)).astype(np.float32)
    descriptors /= np.linalg.norm(descriptors, axis=1, keepdims=True)
    same = parity_of(descriptors, descriptors)
    assert (same.overlap_at_10, same.pictures) == (1.0, 12)
    assert same.cosine_min == pytest.approx(1) and same.cosine_mean == pytest.approx(1)
    assert parity_of(descriptors[:11], descriptors[:11]).overlap_at_10 is None
    turned = descriptors.copy()
    turned[3] *= -1
    assert parity_of(turned, descriptors).cosine_min == pytest.approx(-1)
    assert parity_of(turned, descriptors).overlap_at_10 < 1


@pytest.mark.parametrize("kept_bytes", [0, 1, 1000, -1])
def test_a_truncated_model_is_refused(model_onnx, tmp_path, kept_bytes):
    path = tmp_path / "cut.onnx"
    path.write_bytes(model_onnx.read_bytes()[:kept_bytes])
    with pytest.raises(CgdError, match=r"cut\.onnx is not a whole ONNX model"):
        load_onnx(path)


def test_a_model_of_somebody_else_is_refused(tmp_path):
    foreign = gem_graph(1, 1e-6, (1, 2, 3, 3))
    fold_gem(foreign)
    save_onnx(foreign, tmp_path / "foreign.onnx")
    with pytest.raises(SpecError, match="no cgd-deploy spec"):
        get_metadata(load_onnx(tmp_path / "foreign.onnx"))


def test_damaged_metadata_are_refused(model):
    deep = "[" * 100_000
    sources = ("{", '{"a": 1}', '{"checkpoint": 1, "sha256": "a"}', deep)
    others = (("cgd.precision", "int3"), ("cgd.precision", "9" * 999), ("cgd.spec", "{}"), ("cgd.spec", deep))
    for key, value in (*others, *(("cgd.source", source) for source in sources)):
        damaged = onnx.ModelProto()
        damaged.metadata_props.extend(model.metadata_props)
        next(prop for prop in damaged.metadata_props if prop.key == key).value = value
        with pytest.raises(SpecError) as caught:
            get_metadata(damaged)
        assert len(str(caught.value)) < 1000
