"""The aims of the GPU benchmark, and whether a result meets them. Reads the JSON of gpu.py and runs nothing.

Three times of one engine on one lane show whether the copy of batch i+1 overlaps the compute of batch i: a = a batch
alone with transfers, b = a batch alone without transfers, c = a batch among many in flight with transfers. Copying
takes a - b, and a - c of it is hidden. A ratio of throughputs would not show this: at 45,000 images/s and 50 GB/s, a
copy that overlaps nothing adds only 14 % to the time of the compute.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Result = Mapping[str, Any]
GPUS = ("H100", "H200")
MODEL = "resnet50 SG 224x224"
NO_ENGINE = "no such engine was measured"


@dataclass(frozen=True)
class Aim:
    """One aim: the number ``reached`` must be at least ``wanted``.

    reached   takes the JSON; returns the number, or the reason why there is none
    absolute  whether the aim only holds for ``MODEL`` on ``GPUS``
    """

    name: str
    wanted: float
    reached: Callable[[Result], float | str]
    absolute: bool = False


def judged(result: Result) -> list[dict[str, Any]]:
    """Each aim as {"name", "wanted", "reached", "met", "why"}. If no judgement is possible, met is None."""
    return [_judged(aim, result) for aim in AIMS]


def lines(aims: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A line of text for each aim: the number reached, the number wanted, and the outcome."""
    words = {True: "met", False: "missed"}
    for aim in aims:
        reached = "-" if aim["reached"] is None else f"{aim['reached']:,}"
        outcome = f"not judged: {aim['why']}" if aim["met"] is None else words[aim["met"]]
        yield f"{aim['name']}: {reached}, wanted at least {aim['wanted']:,}: {outcome}"


def _judged(aim: Aim, result: Result) -> dict[str, Any]:
    found = aim.reached(result)
    reached, why = (None, found) if isinstance(found, str) else (round(found, 3), None)
    gpu, model = result["gpu"]["name"], result["settings"]["model"]
    if aim.absolute and not any(name in gpu for name in GPUS):
        why = f"wanted of an {' or '.join(GPUS)}, and this is {gpu}"
    elif aim.absolute and model != MODEL:
        why = f"wanted of {MODEL}, and this is {model}"
    met = None if why or reached is None else reached >= aim.wanted
    return {"name": aim.name, "wanted": aim.wanted, "reached": reached, "met": met, "why": why}


def _fastest(result: Result, precision: str, transfers: bool) -> float | str:
    speeds = [
        row["images_per_second"]
        for row in result["rows"]
        if row["backend"] != "torch" and (row["precision"], row["transfers"]) == (precision, transfers)
    ]
    return max(speeds, default=NO_ENGINE)


def _from_host_memory(result: Result) -> float | str:
    whole, alone = (_fastest(result, "int8", transfers) for transfers in (True, False))
    return NO_ENGINE if isinstance(whole, str) or isinstance(alone, str) else whole / alone


def _beside_trtexec(result: Result) -> float | str:
    runs = result["trtexec"]
    shares = [run["ours"] / run["trtexec"] for run in runs if run["trtexec"]]
    reasons = [run["why"] for run in runs if run["why"]]
    return min(shares, default=(reasons or ["no TensorRT engine was measured"])[0])


def _copying_hidden(result: Result) -> float | str:
    one_lane = [row for row in result["rows"] if row["backend"] != "torch" and row["streams"] == 1]
    largest = max((row["batch"] for row in one_lane), default=0)
    pairs: dict[str, dict[bool, Mapping[str, Any]]] = {}
    for row in one_lane:
        if row["batch"] == largest:
            pairs.setdefault(row["title"], {})[row["transfers"]] = row
    shares = []
    for pair in pairs.values():
        alone, computing = (pair[transfers]["latency_ms"]["p50"] for transfers in (True, False))
        in_flight = 1000 * largest / pair[True]["images_per_second"]
        if alone > computing:
            shares.append((alone - in_flight) / (alone - computing))
    return min(shares, default="no engine was measured on one stream")


AIMS = (
    Aim("INT8, engine only, images/s", 45_000, lambda result: _fastest(result, "int8", False), absolute=True),
    Aim("INT8, from host memory, as a share of engine only", 0.8, _from_host_memory, absolute=True),
    Aim("FP16, engine only, images/s", 25_000, lambda result: _fastest(result, "fp16", False), absolute=True),
    Aim("engine only, as a share of trtexec", 0.9, _beside_trtexec),
    Aim("copying hidden behind compute, as a share of it", 0.5, _copying_hidden),
)
