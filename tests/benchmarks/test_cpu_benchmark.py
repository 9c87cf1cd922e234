"""benchmarks/cpu.py: its arithmetic, its refusals, its chart, and a whole run on a tiny model with one rival."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from conftest import SPEC, script, write_fake_engine

import contest
from cgd_deploy.datasets.evaluation import Evaluation
from cgd_deploy.errors import CgdError, InputError
from cgd_deploy.pictures.images import ImageList
from cgd_deploy.runtime.backends.openvino import import_openvino
from cgd_deploy.spec import Precision
from cgd_train.checkpoint import load_checkpoint

pytest.importorskip("matplotlib")
SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "cpu.py"


@pytest.fixture(scope="module")
def cpu() -> ModuleType:
    return script("cpu")


@pytest.fixture
def run(cpu: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """The script with these arguments in this process: exit status, stdout, stderr."""
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)  # the other tests' threads stay as they are

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["cpu.py", *map(str, arguments)])
        code: Any = 0
        try:
            cpu.main()
        except SystemExit as exit_:
            code = exit_.code
        return code, *capsys.readouterr()

    return call


def a_source(cpu: ModuleType, **known: Any) -> Any:
    unknown = {"checkpoint": Path("c.pt"), "onnx": Path("m.onnx"), "evaluation": None}
    return cpu.Source(**{**unknown, "spec": SPEC, "threads": 1, "min_overlap": 0.95, **known})


def test_speeds(cpu: ModuleType) -> None:
    """Batch 4 in 0.5 s are 8 images/s; torch takes 2 s, so 4 times as fast; of 3 GFLOP each, 24 of 96 are a quarter."""
    samples = {4: {cpu.REFERENCE: [2.0, 1.0, 3.0], "fast": [0.5, 0.4, 0.6]}}
    int8, bf16 = (
        cpu.speeds(cpu.CpuContestant("fast", precision, None), samples, 3.0, {"int8": {"gops": 96.0}})["4"]
        for precision in ("int8", "bf16")
    )
    assert int8 == {
        "latency_ms": {"p50": 500.0, "p95": None, "p99": None},
        "images_per_second": 8.0,
        "speedup_vs_torch": 4.0,
        "share_of_peak": 0.25,
    }
    assert bf16 == {**int8, "share_of_peak": None}


@pytest.mark.parametrize("fast", [True, False])
def test_bf16_has_a_peak_where_it_is_fast(cpu: ModuleType, fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "has_fast_bf16", lambda: fast)
    monkeypatch.setattr(cpu, "MATMUL_SIZES", (32,))
    found = cpu.matmuls()
    assert {one.precision for one in found} == {"fp32", "int8"} | ({"bf16"} if fast else set())
    assert len({one.title for one in found}) == len(found)
    for one in found:
        assert one.call().shape == (32, 32)


def test_the_peak_is_the_best_of_all_sizes_and_runs(cpu: ModuleType) -> None:
    small, large = (cpu.Matmul("int8", size, "multiply", None) for size in (1000, 2000))
    single = cpu.Matmul("fp32", 1000, "other", None)
    samples = {
        1: {small.title: [0.02, 0.01, 0.5], large.title: [0.1], single.title: [1.0]},
        8: {small.title: [0.04], large.title: [0.08], single.title: [0.5]},
    }  # 2 x 1000^3 in 0.02 s; 2 x 2000^3 in 0.08 s is twice as fast; 2 x 1000^3 in 0.5 s
    assert cpu.peaks([small, large, single], samples) == {
        "int8": {"gops": 200.0, "by": "multiply, 2000 x 2000"},
        "fp32": {"gops": 4.0, "by": "other, 1000 x 1000"},
    }


def test_matmuls_are_what_they_say(cpu: ModuleType) -> None:
    results = {(one.precision, one.size): one.call() for one in cpu.matmuls()}
    assert {precision for precision, _ in results} == {"fp32", "int8"}
    for (precision, size), product in results.items():
        assert product.shape == (size, size)
        assert product.dtype == {"fp32": torch.float32, "int8": torch.int32}[precision]


def test_work_counts_every_convolution_and_head(cpu: ModuleType, checkpoint: Path, model_onnx: Path) -> None:
    model = load_checkpoint(checkpoint).model
    counted = 0

    def count(module: torch.nn.Module, _: Any, output: torch.Tensor) -> None:
        nonlocal counted
        if isinstance(module, torch.nn.Conv2d):
            counted += 2 * output.numel() * module.weight[0].numel()
        elif isinstance(module, torch.nn.Linear):
            counted += 2 * output.numel() * module.in_features

    for part in (*model.backbone.modules(), *model.heads):
        part.register_forward_hook(count)
    with torch.inference_mode():
        model(torch.zeros(1, 3, *SPEC.input_size))
    assert contest.gflop_per_image(model, model_onnx) == pytest.approx(counted / 1e9)


def test_a_rival_that_fails_is_named_and_the_others_stay(
    cpu: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(source: Any) -> Any:
        raise RuntimeError("no compiler\nat line 7")

    def only_single(source: Any) -> Any:
        def run(images: np.ndarray) -> np.ndarray:
            if len(images) > 1:
                raise ValueError("one at a time")
            return images

        return run

    made = {"broken fp32": broken, "single bf16": only_single, "good int8": lambda source: lambda images: images}
    monkeypatch.setattr(cpu, "RIVALS", {**made, "unwanted fp32": made["good int8"]})
    source = a_source(cpu)
    done: list[float] = []
    found, left_out = cpu.rivals(source, [1, 8], ["unwanted fp32"], lambda what, fraction: done.append(fraction))
    assert [(one.title, one.precision, one.ours) for one in found] == [("good int8", "int8", False)]
    assert left_out == {
        "broken fp32": "no compiler",
        "single bf16": "one at a time",
        "unwanted fp32": "--without excludes it",
    }
    assert done == [0.25, 0.5, 0.75, 1.0]
    told = capsys.readouterr().err
    assert all(f"left out: {title}: {reason}\n" in told for title, reason in left_out.items())


def test_without_nncf_the_reason_says_how_to_get_it(cpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "find_spec", lambda name: None)
    with pytest.raises(CgdError, match="pip install nncf"):
        cpu.by_nncf(a_source(cpu))


@pytest.mark.parametrize("fast", [True, False])
def test_nncf_with_accuracy_control_keeps_the_overlap_of_the_choosing_half(
    cpu: ModuleType, model_onnx: Path, picture_list: ImageList, fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for NNCF validates one picture, the FP32 model, and a model of random descriptors."""
    evaluation = Evaluation(picture_list)
    choosing, _ = evaluation.halves()
    asked: dict[str, Any] = {}

    def quantize(model: Any, calibration: list, pictures: list, validate: Any, **settings: Any) -> Any:
        asked.update(settings)
        assert settings["ignored_scope"] == cpu.head_names(model)
        compiled = import_openvino().Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        assert len(pictures) == len(picture_list) and {len(one) for one in pictures} == {1}
        assert validate(compiled, pictures[:1])[0] == 0.0
        kept, descriptors = validate(compiled, pictures)
        assert kept == 1.0
        found = np.concatenate([one for (one,) in descriptors])
        assert found == pytest.approx(np.concatenate([compiled(one)[0] for one in pictures]))
        wrong = np.random.default_rng(0).normal(size=found.shape).astype(np.float32)
        wrong /= np.linalg.norm(wrong, axis=1, keepdims=True)
        answers = iter(wrong)
        shared = [
            len({*np.argsort(-row)[1:11]} & {*np.argsort(-other)[1:11]}) / 10
            for row, other in zip((wrong @ wrong.T)[choosing], (found @ found.T)[choosing], strict=True)
        ]
        assert validate(lambda one: [next(answers)[None]], pictures)[0] == pytest.approx(np.mean(shared))
        return model

    class Data(list):
        get_length = list.__len__

    fake = SimpleNamespace(
        set_log_level=lambda level: None,
        Dataset=Data,
        IgnoredScope=lambda names: names,
        quantize_with_accuracy_control=quantize,
    )
    monkeypatch.setitem(sys.modules, "nncf", fake)
    monkeypatch.setattr(cpu, "find_spec", lambda name: fake)
    monkeypatch.setattr(cpu, "has_fast_bf16", lambda: fast)
    taken = []
    run = cpu.by_openvino
    monkeypatch.setattr(cpu, "by_openvino", lambda *a, precision="f32", **b: (taken.append(precision), run(*a, **b))[1])
    found = cpu.by_controlled_nncf(a_source(cpu, onnx=model_onnx, evaluation=evaluation, min_overlap=0.9))
    assert found(np.zeros((2, *SPEC.input_size, 3), np.uint8)).shape == (2, SPEC.dim)
    assert taken == ["f32", "bf16" if fast else "f32"]
    assert asked["max_drop"] == pytest.approx(0.1) and asked["subset_size"] == len(
        cpu.calibration_list(model_onnx, None)
    )


def test_the_head_is_what_comes_after_the_backbone(cpu: ModuleType, model_onnx: Path) -> None:
    model = import_openvino().Core().read_model(str(model_onnx))
    names = set(cpu.head_names(model))
    kinds = {True: Counter(), False: Counter()}
    for one in model.get_ordered_ops():
        kinds[one.get_friendly_name() in names][one.get_type_name()] += 1
    assert kinds[True]["MatMul"] == len(SPEC.descriptors) and not kinds[False]["MatMul"]
    assert kinds[False]["Convolution"] == 20 and not kinds[True]["Convolution"], "those of a ResNet-18"


def test_openvino_that_takes_another_arithmetic_is_refused(
    cpu: ModuleType, monkeypatch: pytest.MonkeyPatch, model_onnx: Path
) -> None:
    class Compiled:
        def get_property(self, name: str) -> Any:
            return import_openvino().Type.f32

    monkeypatch.setattr(import_openvino().Core, "compile_model", lambda *_: Compiled())
    with pytest.raises(CgdError, match="asked for bf16 and takes f32"):
        cpu.by_openvino(a_source(cpu, onnx=model_onnx), precision="bf16")


def test_every_rival_names_its_precision(cpu: ModuleType) -> None:
    assert all(sum(precision in title for precision in cpu.COLOURS) == 1 for title in [cpu.REFERENCE, *cpu.RIVALS])


def test_descriptors_are_made_unit_and_the_last_batch_is_whole(
    cpu: ModuleType, checkpoint: Path, picture_list: ImageList
) -> None:
    sizes = set()

    def twice_too_long(images: np.ndarray) -> np.ndarray:
        sizes.add(len(images))
        return 2 * cpu_model(images)

    cpu_model = cpu.by_torch(a_source(cpu, checkpoint=checkpoint), channels_last=False)
    evaluation = Evaluation(picture_list)
    contestants = [cpu.CpuContestant("plain", "fp32", cpu_model), cpu.CpuContestant("long", "fp32", twice_too_long)]
    found = contest.retrieve(contestants, evaluation, SPEC, lambda what, done: None)
    assert len(picture_list) % cpu.QUALITY_BATCH and sizes == {cpu.QUALITY_BATCH}
    assert found["long"].descriptors.shape == (len(picture_list), SPEC.dim)
    assert found["long"].descriptors == pytest.approx(found["plain"].descriptors, abs=1e-6)
    assert (found["long"].indices == found["plain"].indices).all()


def test_sampled_pictures_keep_their_roles_and_classes(cpu: ModuleType, picture_list: ImageList) -> None:
    roles = tuple(index % 2 == 1 for index in range(len(picture_list)))
    sampled = contest.evaluation_of(Evaluation(picture_list, roles), None, 25)
    assert len(sampled.images) == 25
    for name, kind, role in zip(sampled.images.names, sampled.images.classes, sampled.in_gallery, strict=True):
        index = picture_list.names.index(name)
        assert (kind, role) == (picture_list.classes[index], roles[index])


def test_pictures_that_measure_nothing_are_refused(cpu: ModuleType, picture_list: ImageList) -> None:
    unlabelled = Evaluation(ImageList(picture_list.root, picture_list.names))
    for evaluation, count, reason in (
        (None, None, "no test pictures"),
        (unlabelled, None, "no classes"),
        (Evaluation(picture_list), 8, "7 can be found"),
    ):
        with pytest.raises(InputError, match=reason):
            contest.evaluation_of(evaluation, None, count)


@pytest.mark.parametrize(
    "wrong",
    [
        ["--batch", "0"],
        ["--seconds", "-1"],
        ["--pictures", "0"],
        ["--threads", "0"],
        ["--min-overlap", "2"],
        ["--without", "me"],
        ["x/a.cgd"],
    ],
)
def test_refuses_settings_that_make_no_sense(run: Callable[..., Any], wrong: list[str]) -> None:
    status, printed, told = run("ckpt.pt", "a.cgd", *wrong)
    assert (status, printed) == (2, "") and told.startswith("usage:")


def test_refuses_an_engine_of_another_model(run: Callable[..., Any], checkpoint: Path, tmp_path: Path) -> None:
    engine = write_fake_engine(tmp_path / "other.cgd")
    status, printed, told = run(checkpoint, engine, "-o", tmp_path / "cpu.json")
    assert (status, printed, len(told.splitlines())) == (2, "", 1)
    assert "describes space" in told and [path.name for path in tmp_path.iterdir()] == ["other.cgd"]


def test_one_command_measures_a_rival_and_an_engine(
    cpu: ModuleType,
    run: Callable[..., Any],
    checkpoint: Path,
    engines: dict[tuple[str, str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cpu, "MATMUL_SIZES", (128,))
    kept = "ONNX Runtime fp32"
    without = [part for title in cpu.RIVALS if title != kept for part in ("--without", title)]
    output, engine = tmp_path / "cpu.json", engines["openvino", "int8"]
    settings = ["--seconds", "0", "--batch", "1", "--batch", "2", "--pictures", "13", *without]
    status, printed, _ = run(checkpoint, engine, *settings, "-o", output)
    assert (status, printed) == (0, f"wrote {output} and its chart {tmp_path / 'cpu.svg'}\n")

    result = json.loads(output.read_text())
    assert set(result["left_out"]) == {*cpu.RIVALS} - {kept}
    assert result["environment"]["pictures"] == 13
    assert set(result["environment"]["load"]) == {"busy", "cores", "others", "steal"}
    reference, rival, ours = result["contestants"]
    assert [one["title"] for one in (reference, rival, ours)] == [cpu.REFERENCE, kept, f"cgd-deploy {engine.stem}"]
    assert [one["ours"] for one in (reference, rival, ours)] == [False, False, True]
    assert ours["precision"] == Precision.INT8.value
    for one in (reference, rival, ours):
        for size, speed in one["speed"].items():
            base = reference["speed"][size]["latency_ms"]["p50"]
            assert speed["speedup_vs_torch"] == pytest.approx(base / speed["latency_ms"]["p50"], rel=1e-2)
            reached = result["model"]["gflop"] * speed["images_per_second"]
            expected = reached / result["peak"][one["precision"]]["gops"]  # GFLOP an image, images a second
            assert speed["share_of_peak"] == pytest.approx(expected, rel=1e-2, abs=1e-4)
        assert list(one["speed"]) == ["1", "2"]
    assert reference["overlap_at_10"] == 1.0 and rival["overlap_at_10"] > 0.97
    assert rival["cosine"]["mean"] > ours["cosine"]["mean"] > 0.9
    assert str(tmp_path) not in output.read_text() and str(checkpoint.parent) not in output.read_text()
    drawn = (tmp_path / "cpu.svg").read_text()
    assert ElementTree.fromstring(drawn).tag.endswith("svg")
    assert all(f"<!-- {one['title']} -->" in drawn for one in (reference, rival, ours))
    cpu.chart(result, tmp_path / "again.svg")
    assert (tmp_path / "again.svg").read_text() == drawn
