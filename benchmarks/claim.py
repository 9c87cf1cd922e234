"""What the ablation's entries say about the paper's claim: intervals, differences, and the answer in words.

Knows no training: every function takes the JSON of ``ablation.py``, so ``table.py`` needs no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cgd_deploy.quality.significance import PERCENTILES, RESAMPLES

SINGLES = ("S", "M", "G")
COMBINED = ("SG", "GM", "SMG")
ENSEMBLE = "S+M+G"
MODELS = (*SINGLES, *COMBINED, ENSEMBLE)

FLAT = 0.05
"""Points; a smaller difference is shown as 0.0."""


def packed(found: NDArray[np.bool_]) -> str:
    """Whether each query found its class first, bool [Q], as hex digits of eight queries each two."""
    return np.packbits(found).tobytes().hex()


def unpacked(digits: str, count: int) -> NDArray[np.bool_]:
    """The inverse of ``packed`` for ``count`` queries."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(digits), np.uint8), count=count).astype(bool)


def resampled(found: Mapping[str, NDArray[np.bool_]]) -> dict[str, NDArray[np.float64]]:
    """Bootstrap samples of each model's recall@1 in percent, float64 [RESAMPLES].

    found   by model, bool [trainings, Q]: whether each query found its class first

    A sample draws Q queries with replacement, the same queries for every model, so differences of two models are
    paired. Of the n trainings of a model it draws n - 1 with replacement, but at least one: drawing n would show only
    (n - 1) / n of the variance between trainings (Rao and Wu 1988).
    """
    random = np.random.default_rng(0)
    table = np.concatenate(list(found.values())).T.astype(np.float64)  # (Q, all trainings)
    total = len(table)
    drawn = (np.bincount(random.integers(0, total, total), minlength=total) for _ in range(RESAMPLES))
    recalls = np.stack([100 * (counts @ table) / total for counts in drawn])
    samples, start = {}, 0
    for name, rows in found.items():
        seeds = random.integers(start, start + len(rows), (RESAMPLES, max(1, len(rows) - 1)))
        samples[name] = np.take_along_axis(recalls, seeds, axis=1).mean(axis=1)
        start += len(rows)
    return samples


def compared(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Each model's means over its seeds, with 95 % intervals of its recall@1 and of its differences to others.

    Returns {"single": the best single descriptor, "combination": the best combination, "models": by name}. A model has
    "over_single" and "over_ensemble": the points of recall@1 that it is above the best single descriptor and above the
    ensemble, with the ends of the paired interval. What no entry tells is None.
    """
    of = {name: [one for one in entries if one["name"] == name] for name in MODELS}
    of = {name: ones for name, ones in of.items() if ones}
    if not of:
        return {"single": None, "combination": None, "models": {}}
    found = {name: np.stack([_found(one) for one in ones]) for name, ones in of.items()}
    samples = resampled(found)
    means = {name: 100 * float(rows.mean()) for name, rows in found.items()}
    single, combination = (
        max((name for name in names if name in of), key=means.__getitem__, default=None)
        for names in (SINGLES, COMBINED)
    )

    def above(name: str, other: str | None) -> list[float] | None:
        if other not in of or name == other:
            return None
        return _rounded(means[name] - means[other], *np.percentile(samples[name] - samples[other], PERCENTILES))

    models = {
        name: {
            "seeds": [one["seed"] for one in ones],
            "recall_at_1": _rounded(means[name], *np.percentile(samples[name], PERCENTILES)),
            "each": _rounded(*(100 * found[name].mean(axis=1))),
            "map_at_r": float(np.mean([one["map_at_r"] for one in ones])),
            "mean_cosine": float(np.mean([one["mean_cosine"] for one in ones])),
            "over_single": above(name, single),
            "over_ensemble": above(name, ENSEMBLE),
        }
        for name, ones in of.items()
    }
    return {"single": single, "combination": combination, "models": models}


def missing(result: Mapping[str, Any]) -> list[str]:
    """The trainings that were asked for and are not there yet, for example "SG (seed 1)"."""
    there = {(one["name"], one["seed"]) for one in result["entries"]}
    wanted = [(name, seed) for seed in range(result["wanted"]["seeds"]) for name in result["wanted"]["names"]]
    return [f"{name} (seed {seed})" for name, seed in wanted if (name, seed) not in there]


def answer(result: Mapping[str, Any]) -> str:
    """Does a combination of descriptors pay? The best combination against the best single one and the ensemble."""
    known = result["compared"]
    single, combination = known["single"], known["combination"]
    if not (single and combination):
        return "There is no answer yet: it needs a model of a single descriptor and a model of a combination."
    model = known["models"][combination]
    told = [_against_single(combination, single, model["over_single"])]
    if model["over_ensemble"]:
        told.append(_against_ensemble(combination, model["over_ensemble"]))
    else:
        told.append("The ensemble is not measured yet.")
    if cost := _cost(result, combination, single):
        told.append(cost)
    if missing(result):
        told.append("Some trainings are missing, so this answer may change.")
    return " ".join(told)


def _against_single(combination: str, single: str, gain: Sequence[float]) -> str:
    points, low, high = gain
    told = f"{combination}, the best combination, has {_points(points)} {single}, the best single descriptor"
    if low > 0:
        return f"A combination pays: {told} {_between(low, high)}."
    if high < 0:
        return f"A combination does not pay: {told} {_between(low, high)}."
    return f"We found no difference between a combination and a single descriptor: {told} {_between(low, high)}."


def _against_ensemble(combination: str, gain: Sequence[float]) -> str:
    points, low, high = gain
    ensemble = "the ensemble of three models, which together have as many values"
    if low > 0:
        return f"{combination} beats {ensemble}: it is {points:.1f} points better {_between(low, high)}."
    if high < 0:
        return f"{combination} does not reach {ensemble}: it is {-points:.1f} points worse {_between(low, high)}."
    return f"We found no difference between {combination} and {ensemble}: {points:+.1f} points {_between(low, high)}."


def _cost(result: Mapping[str, Any], combination: str, single: str) -> str | None:
    """A sentence on the time of one picture; None if the models were not all timed."""
    timed = result["latency"]["models"] if result.get("latency") else {}
    if combination not in timed or single not in timed:
        return None
    milliseconds = {name: one["milliseconds"]["1"]["p50"] for name, one in timed.items()}
    told = f"For one picture, {combination} takes {milliseconds[combination] / milliseconds[single]:.2f} times as long"
    told += f" as {single}"
    if ENSEMBLE in timed:
        told += f", and the ensemble takes {milliseconds[ENSEMBLE] / milliseconds[single]:.2f} times as long"
    return f"{told}."


def _points(gain: float) -> str:
    if abs(gain) < FLAT:
        return "the same recall@1 as"
    return f"{abs(gain):.1f} points {'less' if gain < 0 else 'more'} recall@1 than"


def _between(low: float, high: float) -> str:
    return f"(95 %: {low:+.1f} to {high:+.1f})"


def _found(entry: Mapping[str, Any]) -> NDArray[np.bool_]:
    asked = entry["queries"]
    return unpacked(entry["found"], asked["asked"] - (asked["unanswerable"] or 0))


def _rounded(*values: float) -> list[float]:
    return [round(float(value), 4) for value in values]
