"""Distillation: rounding and its gradients by loops, what trains, and that the export is what trained."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from graphs import activation_ranges, ranged_tensors
from onnx import helper, numpy_helper
from PIL import Image, ImageOps

from cgd_deploy.errors import ExportError, InputError
from cgd_deploy.hardware import cpu
from cgd_deploy.pictures.images import ImageList
from cgd_deploy.runtime.backends.openvino import OpenVinoBackend
from cgd_deploy.runtime.descriptors import cosines
from cgd_export.int8 import distill
from cgd_export.int8.distill import FakeQuantize, FakeQuantized, Schedule, distance, distilled, rounded_weight
from cgd_export.int8.quantize import (
    FULL_RANGE,
    REDUCED_RANGE,
    Layout,
    Rounding,
    backbone,
    convolutions,
    int8_edges,
    quantized,
)
from cgd_export.metadata import get_metadata, load_onnx
from cgd_export.parity import run_onnx

LAYOUTS = list(Layout)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    """Two threads wait for each other on a busy machine; these inputs are small."""
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def model(model_onnx: Path) -> onnx.ModelProto:
    return load_onnx(model_onnx)


@pytest.fixture(scope="module")
def images(picture_list: ImageList) -> ImageList:
    return picture_list.sample(8)


@pytest.fixture(scope="module")
def seen(picture_list: ImageList, pixels: np.ndarray, images: ImageList) -> np.ndarray:
    """The pixels of ``images``."""
    return pixels[[picture_list.names.index(name) for name in images.names]]


@pytest.fixture(scope="module")
def ranges(model: onnx.ModelProto, images: ImageList) -> dict[str, float]:
    return activation_ranges(model, ranged_tensors(model), images, get_metadata(model).spec)


STEPS, BATCH = 12, 4


@pytest.fixture(scope="module")
def tuned(model: onnx.ModelProto, ranges: dict[str, float], images: ImageList) -> tuple[onnx.ModelProto, dict]:
    return distilled(model, ranges, images, Rounding(), schedule=Schedule(steps=STEPS, batch_size=BATCH))


def arrays(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


SCALE = 0.25
SIGNED = [0.0, 0.1, 0.125, 0.375, -0.375, 0.4, 31.7, 31.75, 31.9, 40.0, -31.9, -32.0, -32.1, -50.0]
UNSIGNED = [0.0, -0.1, -0.2, -9.0, 0.1, 0.125, 0.375, 0.4, 63.7, 63.75, 63.9, 70.0]
"""Codes of 0.25: ties at half a code, the limits 127 and -128 or 255 and 0, and what lies beyond them."""
CODES = [(SIGNED, -128, 127), (UNSIGNED, 0, 255)]


@pytest.mark.parametrize(("values", "low", "high"), CODES)
def test_activations_round_by_loops(values: list[float], low: int, high: int) -> None:
    found = FakeQuantize.apply(torch.tensor(values), torch.tensor(SCALE), low, high)
    for value, rounded in zip(values, found.tolist(), strict=True):
        assert rounded == SCALE * max(low, min(high, round(value / SCALE)))


@pytest.mark.parametrize(("values", "low", "high"), CODES)
def test_gradients_of_rounded_activations_by_loops(values: list[float], low: int, high: int) -> None:
    x, scale = torch.tensor(values, requires_grad=True), torch.tensor(SCALE, requires_grad=True)
    above = torch.linspace(-1, 2, len(values))
    (above * FakeQuantize.apply(x, scale, low, high)).sum().backward()
    of_scale = 0.0
    for i, value in enumerate(values):
        ratio = float(np.float32(value)) / SCALE
        clipped = ratio < low or ratio > high
        assert x.grad[i].item() == (0 if clipped else above[i].item())
        slope = max(low, min(high, ratio)) if clipped else round(ratio) - ratio
        of_scale += above[i].item() * slope
    assert scale.grad.item() == pytest.approx(of_scale, rel=1e-5)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("most", [FULL_RANGE, REDUCED_RANGE])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_round_as_their_export_does(layout: Layout, axis: int, most: int) -> None:
    """Some weights are so small that their scales have few bits in FP16."""
    random = np.random.default_rng(0)
    weight = torch.tensor(random.normal(size=(5, 4)) * 10.0 ** -np.arange(4), dtype=torch.float32)
    stored = np.float16 if layout is Layout.SYMMETRIC else np.float32
    weight.select(axis, 1).zero_()
    weight.requires_grad_()
    found = rounded_weight(weight, axis, Rounding(layout, (), most))
    for channel in range(weight.shape[axis]):
        row = weight.detach().select(axis, channel).numpy()
        scale = np.float32(stored(max(np.abs(row).max() / np.float32(most), 2.0**-24)))
        expected = [max(-most, min(most, round(float(value / scale)))) * scale for value in row]
        assert found.detach().select(axis, channel).numpy() == pytest.approx(expected, rel=1e-6)
    above = torch.arange(20.0).view(5, 4)
    (above * found).sum().backward()
    assert torch.equal(weight.grad, above)


def test_distance_by_loops() -> None:
    random = np.random.default_rng(0)
    found, target = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in random.normal(size=(2, 3, 7)))
    expected = sum(1 - sum(a * b for a, b in zip(*rows, strict=True)) for rows in zip(found, target, strict=True)) / 3
    assert distance(torch.tensor(found), torch.tensor(target)).item() == pytest.approx(expected)


def int8_cosine(model: onnx.ModelProto, ranges: dict, layout: Layout, pixels: np.ndarray, target: np.ndarray) -> float:
    return float(cosines(run_onnx(quantized(model, ranges, layout), pixels, 8), target).mean())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_few_steps_bring_the_descriptors_back(model, ranges, tuned, seen, layout) -> None:
    target = run_onnx(model, seen, 8)
    before, after = int8_cosine(model, ranges, layout, seen, target), int8_cosine(*tuned, layout, seen, target)
    assert 1 - after < 0.7 * (1 - before)


@pytest.mark.parametrize(
    ("layout", "most"), [*((layout, FULL_RANGE) for layout in LAYOUTS), (Layout.MIXED, REDUCED_RANGE)]
)
def test_what_trained_is_what_is_exported(model, ranges, seen, layout, most) -> None:
    kept = [convolutions(model)[i].name for i in (0, 5)]
    student = FakeQuantized(model, ranges, Rounding(layout, kept, most))
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for offset in student.offsets.values():
            offset += 3 * torch.randn(offset.shape, generator=random)
        for scale in student.log_scales.values():
            scale += 0.2 * torch.randn((), generator=random)
        expected = student.describe(torch.from_numpy(seen)).numpy()
    assert cosines(expected, run_onnx(model, seen, 8)).max() < 0.99  # far from where it began
    exported = quantized(student.written(model), {**ranges, **student.ranges()}, layout, kept, most)
    assert cosines(run_onnx(exported, seen, 8), expected).min() > 0.999
    if layout is Layout.MIXED:
        with OpenVinoBackend(exported.SerializeToString(), threads=1) as backend:
            assert cosines(backend.run(seen), expected).min() > 0.999


@pytest.mark.parametrize("layout", LAYOUTS)
def test_scales_survive_their_way_through_the_ranges(model, ranges, layout) -> None:
    student = FakeQuantized(model, ranges, Rounding(layout, ()))
    values = arrays(quantized(student.written(model), {**ranges, **student.ranges()}, layout))
    for edge in int8_edges(model, layout):
        assert values[f"{edge.tensor}_scale"] == student.log_scales[edge.ranged].detach().exp().half().float().item()


def test_what_is_never_negative_trains_with_twice_the_codes(model, ranges) -> None:
    first, *others = FakeQuantized(model, ranges, Rounding(Layout.SYMMETRIC, ())).log_scales.items()
    unsigned = FakeQuantized(model, ranges, Rounding(Layout.MIXED, ())).log_scales
    assert unsigned[first[0]].item() == first[1].item()  # pixels
    relus = {node.output[0] for node in backbone(model) if node.op_type in ("Relu", "MaxPool")}
    shrunk = [
        name for name, value in others if value.item() - unsigned[name].item() == pytest.approx(math.log(255 / 127))
    ]
    assert set(shrunk) == relus & unsigned.keys() and len(shrunk) == 16


def test_only_the_backbone_changes(model, tuned) -> None:
    before, after = arrays(model), arrays(tuned[0])
    assert list(before) == list(after)
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    trained = {name for node in convolutions(model) for name in node.input[1:]}
    assert len(trained) == 40 and trained == changed
    for name in before.keys() - changed:
        assert before[name].tobytes() == after[name].tobytes()
    assert [node.SerializeToString() for node in tuned[0].graph.node] == [
        node.SerializeToString() for node in model.graph.node
    ]
    assert get_metadata(tuned[0]) == get_metadata(model)


def test_ranges_of_the_layout_train_and_others_stay(ranges, tuned, model) -> None:
    assert tuned[1].keys() == ranges.keys()
    rounded = set(FakeQuantized(model, ranges, Rounding(Layout.SYMMETRIC, ())).log_scales)
    for name, value in tuned[1].items():
        assert value == ranges[name] if name not in rounded else 0.9 < value / ranges[name] < 1.1
    assert any(tuned[1][name] != pytest.approx(ranges[name], rel=2e-3) for name in rounded)


def test_nothing_rounds_the_inputs_of_what_stays_float(model, ranges) -> None:
    names = [node.name for node in convolutions(model)]
    student = FakeQuantized(model, ranges, Rounding(Layout.SYMMETRIC, names))
    assert not student.log_scales and len(student.offsets) == 40


def test_mean_and_deviation_of_the_pixels_do_not_train(model, ranges) -> None:
    first = convolutions(model)[0]
    names = [node.name for node in backbone(model)]
    before = {name for node in backbone(model)[: names.index(first.name)] for name in node.input}
    assert before.intersection(arrays(model))
    assert before.isdisjoint(FakeQuantized(model, ranges, Rounding(Layout.SYMMETRIC, ())).offsets)


class Stopped(Exception):
    pass


def stop_at(step: int):
    def on_step(phase: str, done: int, total: int) -> None:
        if (phase, done) == ("Distilling", step):
            raise Stopped

    return on_step


def test_stopped_and_resumed_is_as_if_never_stopped(model, ranges, images, tuned, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(distill, "SAVE_EVERY", 4)
    state = tmp_path / "state.pt"
    options = {"schedule": Schedule(steps=STEPS, batch_size=BATCH), "state": state}
    with pytest.raises(Stopped):
        distilled(model, ranges, images, Rounding(), **options, on_step=stop_at(7))
    calls: list[tuple[str, int, int]] = []
    found = distilled(model, ranges, images, Rounding(), **options, on_step=lambda *call: calls.append(call))
    assert [call[1:] for call in calls if call[0] == "Distilling"] == [(i, STEPS) for i in range(5, STEPS + 1)]
    assert [call[1:] for call in calls if call[0] == "Describing"] == [(4, 8), (8, 8)]
    assert found[0].SerializeToString() == tuned[0].SerializeToString() and found[1] == tuned[1]
    assert not state.exists()


def test_a_state_of_anything_else_is_refused(model, ranges, images, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(distill, "SAVE_EVERY", 1)
    state = tmp_path / "state.pt"
    schedule = Schedule(steps=2, batch_size=1)

    def attempt(model=model, ranges=ranges, images=images, rounding=Rounding(), schedule=schedule, **options):  # noqa: B008
        distilled(model, ranges, images, rounding, schedule=schedule, state=state, **options)

    with pytest.raises(Stopped):
        attempt(on_step=stop_at(1))
    before = state.read_bytes()
    other = onnx.ModelProto()
    other.CopyFrom(model)
    other.graph.node[-1].name += "x"
    wider = {name: 2 * value for name, value in ranges.items()}
    kept = [convolutions(model)[0].name]
    for index, name in enumerate(images.names):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        ImageOps.mirror(Image.open(images.path(index))).save(tmp_path / name)
    changed_in_place = replace(images, root=tmp_path)
    for changed in (
        {"model": other},
        {"ranges": wider},
        {"images": images.subset([0, 1])},
        {"images": changed_in_place},
        {"schedule": replace(schedule, steps=3)},
        {"schedule": replace(schedule, seed=1)},
        {"rounding": Rounding(keep_float=kept)},
        {"rounding": Rounding(Layout.UINT8)},
        {"rounding": Rounding(weight_range=REDUCED_RANGE)},
    ):
        with pytest.raises(InputError, match=r"state\.pt holds an unfinished distillation of another"):
            attempt(**changed)
    assert state.read_bytes() == before
    state.write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"state\.pt holds an unfinished distillation of another"):
        attempt()


def test_threads_are_no_more_than_a_quota_grants(model, ranges, images, monkeypatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    monkeypatch.setattr(torch, "set_num_threads", calls.append)
    monkeypatch.setattr(cpu, "cpu_quota", lambda: 1.5)
    distilled(model, ranges, images, Rounding(), schedule=Schedule(steps=1, batch_size=2))
    assert calls == [1]


def test_another_seed_is_another_order() -> None:
    first, other = distill._order(5, 12, seed=0), distill._order(5, 12, seed=1)
    assert sorted(first[:5]) == sorted(first[5:10]) == sorted(other[:5]) == list(range(5))
    assert len(first) == 12 and list(first) != list(other) and list(first[:5]) != list(first[5:10])


@pytest.mark.parametrize("options", [{"steps": 0}, {"batch_size": 0}, {"images": ImageList(Path(), ())}])
def test_nothing_to_distill_on_is_refused(model, ranges, images, options) -> None:
    with pytest.raises(InputError, match="leave nothing to distill on"):
        distilled(model, ranges, options.pop("images", images), Rounding(), schedule=Schedule(**options))


def test_a_model_that_torch_runs_otherwise_is_refused(model, ranges, images) -> None:
    other = onnx.ModelProto()
    other.CopyFrom(model)
    pool = next(node for node in other.graph.node if node.op_type == "MaxPool")
    del pool.attribute[:]  # auto_pad is nothing that export writes
    for name, value in {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"}.items():
        pool.attribute.append(helper.make_attribute(name, value))
    with pytest.raises(ExportError, match="torch runs this model differently"):
        distilled(other, ranges, images, Rounding(), schedule=Schedule(steps=1))


def test_a_loss_that_is_no_number_is_refused(model, ranges, images) -> None:
    with pytest.raises(ExportError, match="not numbers in step 1"):
        distilled(model, dict.fromkeys(ranges, math.inf), images, Rounding(), schedule=Schedule(steps=1))
