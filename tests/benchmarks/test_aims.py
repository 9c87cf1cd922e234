"""The aims of benchmarks/gpu.py against made numbers."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import script

aims = script("aims")


def row(precision: str, transfers: bool, speed: float, p50: float = 4.0, **changes: Any) -> dict[str, Any]:
    made = {"title": precision, "backend": "tensorrt", "precision": precision, "streams": 1, "batch": 128}
    return {**made, "transfers": transfers, "images_per_second": speed, "latency_ms": {"p50": p50}, **changes}


def result(*rows: dict[str, Any], gpu: str = "NVIDIA H200", model: str = aims.MODEL, trtexec: Any = ()) -> Any:
    return {"gpu": {"name": gpu}, "settings": {"model": model}, "rows": rows, "trtexec": list(trtexec)}


def outcome(found: Any) -> list[tuple[float | None, bool | None]]:
    return [(aim["reached"], aim["met"]) for aim in aims.judged(found)]


RUN = {"title": "int8", "batch": 128, "ours": 46_000.0, "trtexec": 50_000.0, "why": None}
GOOD = (
    row("int8", False, 46_000.0, p50=2.8),
    row("int8", True, 32_000.0, p50=6.8),  # 4 ms a batch in flight: 2.8 of 4 ms of copying are hidden
    row("int8", True, 44_000.0, streams=2),
    row("fp16", False, 24_000.0, p50=5.0),
    row("fp16", True, 25_000.0, p50=8.0),
    row("fp16", False, 99_999.0, backend="torch"),
)


def test_every_aim_is_judged() -> None:
    assert outcome(result(*GOOD, trtexec=[RUN])) == [
        (46_000.0, True),
        (0.957, True),
        (24_000.0, False),
        (0.92, True),
        (0.7, True),
    ]


def test_the_worst_engine_counts_beside_trtexec() -> None:
    slow = {**RUN, "ours": 40_000.0}
    assert outcome(result(*GOOD, trtexec=[RUN, slow]))[3] == (0.8, False)


def test_copying_that_is_not_hidden_is_seen() -> None:
    """A batch in flight takes as long as one alone: nothing overlaps, though it is 92 % of the speed without copies."""
    speed = 128 / 3.1 * 1000
    found = result(row("int8", False, 128 / 2.85 * 1000, p50=2.85), row("int8", True, speed, p50=3.1))
    assert outcome(found)[1] == (0.919, True) and outcome(found)[4] == (0.0, False)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"gpu": "NVIDIA L4"}, "wanted of an H100 or H200, and this is NVIDIA L4"),
        ({"model": "resnet18 SG 64x64"}, "wanted of resnet50 SG 224x224, and this is resnet18 SG 64x64"),
    ],
)
def test_another_gpu_or_model_is_not_judged_by_absolute_aims(changes: dict[str, str], why: str) -> None:
    found = aims.judged(result(*GOOD, trtexec=[RUN], **changes))
    assert [aim["met"] for aim in found] == [None, None, None, True, True]
    assert {aim["why"] for aim in found[:3]} == {why} and found[0]["reached"] == 46_000.0


def test_what_was_not_measured_says_so() -> None:
    reasons = [aim["why"] for aim in aims.judged(result())]
    assert reasons == [aims.NO_ENGINE] * 3 + ["no TensorRT engine was measured", "no engine was measured on one stream"]
    absent = {**RUN, "trtexec": None, "why": "trtexec is not here"}
    assert aims.judged(result(*GOOD, trtexec=[absent]))[3]["why"] == "trtexec is not here"


def test_lines_for_people() -> None:
    told = list(aims.lines(aims.judged(result(*GOOD))))
    assert told[0] == "INT8, engine only, images/s: 46,000.0, wanted at least 45,000: met"
    assert told[2] == "FP16, engine only, images/s: 24,000.0, wanted at least 25,000: missed"
    assert told[3] == (
        "engine only, as a share of trtexec: -, wanted at least 0.9: not judged: no TensorRT engine was measured"
    )
