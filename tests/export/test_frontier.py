"""The frontier: what each engine costs and keeps, by loops, and the engines that are picked from it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import listing

from cgd_deploy import load
from cgd_deploy.datasets.evaluation import Evaluation
from cgd_deploy.errors import InputError
from cgd_deploy.pictures.images import read_images
from cgd_deploy.pictures.preprocess import preprocess
from cgd_deploy.runtime.enginefile import read_engine
from cgd_deploy.spec import Precision
from cgd_export import engine_from_onnx as packing
from cgd_export import frontier as module
from cgd_export.build_options import Int8Options
from cgd_export.engine_from_onnx import calibration_list, engine_from_onnx
from cgd_export.frontier import frontier
from cgd_export.int8.budget import Budget
from cgd_export.onnx_from_checkpoint import calibration_beside


@pytest.fixture(autouse=True)
def made_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call of the first engine takes a second, of the second engine two, and so on; for the search all are equal."""
    monkeypatch.setattr(packing, "timed", lambda calls: dict.fromkeys(calls, 1.0))
    monkeypatch.setattr(module, "timed", lambda calls: {name: number for number, name in enumerate(calls, 1)})


@pytest.fixture
def model(model_onnx: Path, tmp_path: Path) -> Path:
    shutil.copy(calibration_beside(model_onnx), tmp_path / calibration_beside(model_onnx).name)
    return Path(shutil.copy(model_onnx, tmp_path))


@pytest.fixture
def measured(cli: Callable[..., Any], model: Path, unseen: Path, bf16_cpu: None) -> dict[str, Any]:
    code, out, err = cli(
        "build-engine", model, "--int8", "--frontier", "--backend", "openvino", "--data", unseen, "--json"
    )
    assert code == 0 and all(line.startswith("warning: ") for line in err.splitlines())
    result = json.loads(out)
    assert json.loads(model.with_suffix(".frontier.json").read_text()) == result
    assert isinstance(result, dict)
    return result


def row_of(measured: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    return next(row for row in measured["rows"] if row["name"] == name)


def held_out_overlap(engine: Path, reference: Path, data: Path) -> float:
    """Overlap@10 of two engines' neighbours for the held-out queries, by loops."""
    evaluation = Evaluation(read_images(data))
    found = []
    for path in (engine, reference):
        with load(path) as loaded:
            pixels = np.stack([preprocess(picture, loaded.spec) for picture in evaluation.images.paths])
            found.append(loaded.embed(pixels))
    shared = []
    for query in evaluation.halves()[1]:
        lists = []
        for rows in found:
            others = [other for other in range(len(rows)) if other != query]
            lists.append(sorted(others, key=lambda other: -float(rows[query] @ rows[other]))[:10])
        shared.append(len(set(lists[0]) & set(lists[1])) / 10)
    return sum(shared) / len(shared)


def test_a_frontier_and_the_engines_picked_from_it(
    cli: Callable[..., Any], model: Path, measured: dict[str, Any], unseen: Path, tmp_path: Path
) -> None:
    names = [row["name"] for row in measured["rows"]]
    assert (
        names[:4] == ["bf16", "fp32", "int8", "int8-1"]
        and names[4:] == ["int8-2", "int8-4", "int8-8"][: len(names) - 4]
    )
    for number, row in enumerate(measured["rows"], 1):
        assert row["ms"] == {"1": 1000.0 * number, "8": 125.0 * number}
        found = row["retrieval"]
        assert found["held_out"] is True and found["compared"] == 21 and found["pictures"] == 42
        low, high = found["overlap_at_10_interval"]
        assert low <= found["overlap_at_10"] <= high
    kept = [row["retrieval"]["overlap_at_10"] for row in measured["rows"]]
    assert [row["best"] for row in measured["rows"]] == [
        all(kept[n] > before for before in kept[:n]) for n in range(len(kept))
    ]
    mixture = row_of(measured, "int8-2")
    adds, floats = mixture["retrieval"]["float_adds"], mixture["retrieval"]["keep_float"]
    assert mixture["float_precision"] == "bf16" and adds in (0, 8) and 1 <= len(floats) - adds <= 6
    assert row_of(measured, "int8")["float_precision"] == "fp32"

    for name, precision in (("fp32", "fp32"), ("bf16", "bf16"), ("int8-2", "int8")):
        code, out, err = cli("build-engine", model, "--pick", name)
        assert (code, err) == (0, "") and f"model-{name}.cgd: openvino {precision}, " in out
        manifest = read_engine(model.with_name(f"model-{name}.cgd")).manifest
        shown = held_out_overlap(model.with_name(f"model-{name}.cgd"), model.with_name("model-fp32.cgd"), unseen)
        assert shown == pytest.approx(
            row_of(measured, name)["retrieval"]["overlap_at_10"], abs=0.011
        )  # a neighbour or two
    assert manifest.retrieval == mixture["retrieval"]
    assert manifest.float_precision is Precision.BF16
    assert manifest.proof and manifest.proof["kept_float"] == sorted(floats[: len(floats) - adds])
    assert f"on 21 held-out queries: overlap@10 {mixture['retrieval']['overlap_at_10']:.3f} (95 %: " in out


def test_the_command_prints_a_table_and_writes_a_picture(
    cli: Callable[..., Any], model: Path, unseen: Path, no_bf16_cpu: None
) -> None:
    options = ["--int8", "--frontier", "--backend", "onnxruntime", "--data", unseen]
    code, out, _ = cli("build-engine", model, *options)
    head, *rows, last = out.splitlines()
    assert code == 0 and head.split()[:4] == ["engine", "ms,", "batch", "1"] and "overlap@10" in head
    assert [line.split()[0] for line in rows[:2]] == ["fp32", "int8"] and "±" in rows[1] and "--pick NAME" in last
    page = model.with_suffix(".frontier.html").read_text()
    assert page.count("<circle") == len(rows) and ">int8-1</text>" in page
    assert sorted(listing(model.parent)) == [
        "model.calibration.tsv",
        "model.frontier.html",
        "model.frontier.json",
        "model.onnx",
    ]


def test_a_distilled_engine_is_measured_and_picked_with_its_pictures(
    cli: Callable[..., Any], model: Path, unseen: Path, pictures: Path
) -> None:
    distill = ["--distill", pictures / "kind-0", "--distill-steps", 1]
    options = ["--int8", "--frontier", "--backend", "onnxruntime", "--data", unseen, *distill]
    assert cli("build-engine", model, *options)[0] == 0
    rows = json.loads(model.with_suffix(".frontier.json").read_text())["rows"]
    assert rows[-1]["name"] == "distilled" and rows[-1]["retrieval"]["recipe"] == "mean"
    assert rows[1]["retrieval"]["recipe"] == "mean + bias corrected"

    pick = ["build-engine", model, "--pick"]
    assert "repeat the --distill that it was measured with" in cli(*pick, "distilled")[2]
    assert "int8 is not a distilled engine; leave --distill out" in cli(*pick, "int8", *distill)[2]
    other = ["--distill", pictures, "--distill-steps", 1]
    assert "another list of pictures for --distill" in cli(*pick, "distilled", *other)[2]
    assert cli(*pick, "distilled", *distill)[0] == 0
    manifest = read_engine(model.with_name("model-distilled.cgd")).manifest
    assert manifest.retrieval == rows[-1]["retrieval"] and manifest.source["distillation_sha256"]


def test_what_cannot_be_measured_or_picked(cli: Callable[..., Any], model: Path, unseen: Path, pictures: Path) -> None:
    def refused(told: str, *options: object) -> None:
        code, out, err = cli("build-engine", model, *options)
        assert (code, out) == (2, "") and told in err and err.count("\n") == 1, err

    refused("pass --int8 and --data PICTURES", "--int8", "--frontier")
    refused("pass --int8 and --data PICTURES", "--fp32", "--frontier", "--data", unseen)
    refused("leave --pick and the limits out", "--int8", "--frontier", "--data", unseen, "--min-overlap", 0.9)
    refused("pass --backend openvino or", "--int8", "--frontier", "--data", unseen, "--backend", "tensorrt-rtx")
    refused("there is no ", "--pick", "int8")
    rows = [
        {"name": "fp32", "precision": "fp32", "float_precision": None},
        {"name": "int8", "precision": "int8", "float_precision": "fp32", "retrieval": {"recipe": "mean"}},
    ]
    calibration = calibration_list(model, None).sha256
    file = model.with_suffix(".frontier.json")
    for onnx_sha256, calibrated, told in (
        ("other", calibration, "measured with another model"),
        (module.sha256_file(model), "other", "measured with another list of calibration pictures"),
    ):
        found = {"backend": "onnxruntime", "onnx_sha256": onnx_sha256, "calibration_sha256": calibrated}
        file.write_text(json.dumps({**found, "rows": rows}))
        refused(told, "--pick", "int8")
    refused("int8 was measured with onnxruntime; leave --backend out", "--pick", "int8", "--backend", "openvino")
    refused("the frontier has no row 'int8-9'; expected fp32, int8.", "--pick", "int8-9")
    refused("fp32 is a fp32 engine; leave the other precision out", "--pick", "fp32", "--int8")
    for text in ("[1]", "{", '{"rows": 1}'):
        file.write_text(text)
        refused("is not a frontier of this release", "--pick", "int8")
    file.write_text('{"rows": []}')
    refused("has no rows", "--pick", "int8")
    refused("leave --data and the options of INT8 out", "--pick", "int8", "--data", unseen)


def test_the_function_needs_test_pictures_and_keeps_them_apart(model: Path, unseen: Path) -> None:
    calibration = calibration_list(model, None)
    with pytest.raises(InputError, match="pass --data"):
        frontier(model, "onnxruntime", calibration, Int8Options())
    budget = Budget(evaluation=Evaluation(read_images(unseen)), min_overlap=0.0)
    with pytest.raises(InputError, match="calibration pictures are among the test pictures"):
        frontier(model, "onnxruntime", read_images(unseen), Int8Options(budget=budget))


def test_facts_that_were_measured_before_go_into_the_manifest(model: Path, tmp_path: Path) -> None:
    facts = {"statement": "safe to mix", "overlap_at_10": 0.5}
    manifest = engine_from_onnx(
        model,
        tmp_path / "e.cgd",
        Precision.INT8,
        backend="onnxruntime",
        calibration=calibration_list(model, None),
        int8=Int8Options(retrieval=facts),
    )
    assert read_engine(tmp_path / "e.cgd").manifest.retrieval == manifest.retrieval == facts
