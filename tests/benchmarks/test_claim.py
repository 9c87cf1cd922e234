"""benchmarks/claim.py: intervals, and the answer for every way the ablation may come out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import claim
from cgd_deploy.quality.significance import paired_drop


def hits(share: float, count: int = 400, offset: int = 0) -> np.ndarray:
    """bool [count]: ``share`` of the queries hit, from ``offset`` on."""
    return np.roll(np.arange(count) < share * count, offset)


def entry(name: str, found: np.ndarray, seed: int = 0) -> dict[str, Any]:
    queries = {"asked": len(found) + 3, "unanswerable": 3}
    digits = claim.packed(found)
    return {"name": name, "seed": seed, "found": digits, "queries": queries, "map_at_r": 0.2, "mean_cosine": 0.1}


@pytest.mark.parametrize("count", (8, 13))
def test_packed_queries_come_back(count: int) -> None:
    found = np.random.default_rng(0).random(count) < 0.5
    assert claim.unpacked(claim.packed(found), count).tolist() == found.tolist()
    assert len(claim.packed(found)) == 2 * -(-count // 8)


def test_the_interval_of_a_difference_is_the_paired_one() -> None:
    before, after = hits(0.6), hits(0.65)  # after finds all that before finds
    samples = claim.resampled({"S": before[None], "SG": after[None]})
    low, high = np.percentile(samples["SG"] - samples["S"], claim.PERCENTILES)
    drop = paired_drop(before, after)
    assert (low, high) == pytest.approx((-drop.high, -drop.low), abs=0.26)  # one query of 400
    low, high = np.percentile(samples["SG"], claim.PERCENTILES)
    assert (low, high) == pytest.approx((65 - 4.67, 65 + 4.67), abs=0.5)  # 1.96 sqrt(p (1 - p) / Q)


@pytest.mark.parametrize("shares", ((0.2, 0.8), (0.4, 0.5, 0.6)))
def test_the_interval_holds_the_variance_between_seeds(shares: tuple[float, ...], monkeypatch: Any) -> None:
    monkeypatch.setattr(claim, "RESAMPLES", 2000)
    samples = claim.resampled({"S": np.stack([hits(0.5)] * 2), "M": np.stack([hits(share) for share in shares])})
    queries = 100 * np.sqrt(0.25 / 400)
    assert samples["S"].std() == pytest.approx(queries, rel=0.1)
    between = 100 * np.std(shares, ddof=1) / np.sqrt(len(shares))
    assert samples["M"].std() == pytest.approx(np.hypot(between, queries), rel=0.1)


def test_models_are_compared_with_the_best_single_descriptor_and_the_ensemble() -> None:
    made = {"S": 0.5, "G": 0.6, "SG": 0.7, "GM": 0.65, claim.ENSEMBLE: 0.8}
    found = claim.compared([entry(name, hits(share), seed) for name, share in made.items() for seed in (0, 1)])
    assert (found["single"], found["combination"]) == ("G", "SG")
    model = found["models"]["SG"]
    assert model["each"] == [70.0, 70.0] and model["recall_at_1"][0] == 70.0
    assert model["over_single"][0] == 10.0 and model["over_ensemble"][0] == -10.0
    assert model["over_single"][1] > 0 > model["over_ensemble"][2]
    assert found["models"]["G"]["over_single"] is None
    assert found["models"][claim.ENSEMBLE]["over_ensemble"] is None


def test_nothing_is_compared_with_what_is_not_there() -> None:
    assert claim.compared([]) == {"single": None, "combination": None, "models": {}}
    part = entry("S of S+M+G", hits(0.9))  # a part of the ensemble is no model of the comparison
    found = claim.compared([part, entry("SG", hits(0.5))])
    assert list(found["models"]) == ["SG"] and found["single"] is None
    assert found["models"]["SG"]["over_single"] is None and found["models"]["SG"]["over_ensemble"] is None


def result(over_single: list[float], over_ensemble: list[float] | None, **more: Any) -> dict[str, Any]:
    models = {"SG": {"over_single": over_single, "over_ensemble": over_ensemble}, "G": {}}
    compared = {"single": "G", "combination": "SG", "models": models}
    wanted = {"names": ["SG"], "seeds": 1}
    return {"compared": compared, "latency": None, "wanted": wanted, "entries": [{"name": "SG", "seed": 0}], **more}


@pytest.mark.parametrize(
    "gain, told",
    (
        (
            [2.13, 0.5, 3.7],
            "A combination pays: SG, the best combination, has 2.1 points more recall@1 than G, the best single "
            "descriptor (95 %: +0.5 to +3.7).",
        ),
        (
            [-0.3, -1.6, 1.0],
            "We found no difference between a combination and a single descriptor: SG, the best combination, has 0.3 "
            "points less recall@1 than G, the best single descriptor (95 %: -1.6 to +1.0).",
        ),
        (
            [0.3, -1.0, 1.6],
            "We found no difference between a combination and a single descriptor: SG, the best combination, has 0.3 "
            "points more recall@1 than G, the best single descriptor (95 %: -1.0 to +1.6).",
        ),
        (
            [0.0, -1.0, 1.0],
            "We found no difference between a combination and a single descriptor: SG, the best combination, has the "
            "same recall@1 as G, the best single descriptor (95 %: -1.0 to +1.0).",
        ),
        (
            [-2.0, -3.0, -1.0],
            "A combination does not pay: SG, the best combination, has 2.0 points less recall@1 than G, the best "
            "single descriptor (95 %: -3.0 to -1.0).",
        ),
    ),
)
def test_the_answer_compares_the_best_of_both_kinds(gain: list[float], told: str) -> None:
    assert claim.answer(result(gain, None)) == f"{told} The ensemble is not measured yet."


@pytest.mark.parametrize(
    "gain, told",
    (
        (
            [1.0, 0.2, 1.8],
            "SG beats the ensemble of three models, which together have as many values: it is 1.0 points",
        ),
        ([-2.0, -3.0, -1.0], "SG does not reach the ensemble of three models, which together have as many values: it"),
        ([0.2, -0.6, 1.0], "We found no difference between SG and the ensemble of three models, which together have"),
        ([-0.2, -1.0, 0.6], "We found no difference between SG and the ensemble of three models, which together have"),
    ),
)
def test_the_answer_compares_with_the_ensemble(gain: list[float], told: str) -> None:
    found = claim.answer(result([2.0, 1.0, 3.0], gain))
    assert f" {told}" in found and f"(95 %: {gain[1]:+.1f} to {gain[2]:+.1f})." in found


def test_the_answer_tells_what_it_costs_and_what_is_missing() -> None:
    timed = {name: {"milliseconds": {"1": {"p50": ms}}} for name, ms in (("G", 10.0), ("SG", 10.2), ("S+M+G", 31.0))}
    more = {"latency": {"models": timed}, "wanted": {"names": ["SG", "GM"], "seeds": 1}}
    found = claim.answer(result([2.0, 1.0, 3.0], [0.0, -1.0, 1.0], **more))
    cost = "For one picture, SG takes 1.02 times as long as G, and the ensemble takes 3.10 times as long."
    assert found.endswith(f" {cost} Some trainings are missing, so this answer may change.")
    del timed["S+M+G"]
    assert "SG takes 1.02 times as long as G." in claim.answer(result([2.0, 1.0, 3.0], None, **more))


def test_without_both_kinds_there_is_no_answer() -> None:
    nothing = {"single": "G", "combination": None, "models": {"G": {}}}
    assert claim.answer({"compared": nothing}).startswith("There is no answer yet: it needs")


def test_what_is_missing_is_named_by_model_and_seed() -> None:
    made = [{"name": "S", "seed": 0}, {"name": "S", "seed": 1}, {"name": "SG", "seed": 0}]
    assert claim.missing({"entries": made, "wanted": {"names": ["S", "SG"], "seeds": 2}}) == ["SG (seed 1)"]
