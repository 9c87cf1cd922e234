"""The guard: which layers it returns to float, on models whose truth is known and on one made hard to quantize."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from conftest import listing
from onnx import numpy_helper

from cgd_deploy.cli.results import trial_table
from cgd_deploy.datasets.evaluation import Evaluation
from cgd_deploy.errors import ExportError, GateError, InputError
from cgd_deploy.pictures.images import ImageList, read_images
from cgd_deploy.pictures.preprocess import preprocess
from cgd_deploy.quality.significance import Drop, paired_drop
from cgd_deploy.runtime.backends.fake import FakeBackend
from cgd_deploy.runtime.backends.onnxruntime import OnnxRuntimeBackend
from cgd_deploy.runtime.enginefile import read_engine
from cgd_deploy.spec import Precision
from cgd_export import engine_from_onnx as packing
from cgd_export.build_options import Int8Options
from cgd_export.engine_from_onnx import engine_from_onnx
from cgd_export.fp16 import halved
from cgd_export.int8 import trials as module
from cgd_export.int8.budget import Budget, Trial, check_disjoint, read_budget, statement
from cgd_export.int8.guard import MIN_INT8_SHARE, blocks, guarded
from cgd_export.int8.quantize import convolutions
from cgd_export.int8.recipe import DEFAULT, Recipe
from cgd_export.int8.trials import FROM_FP32, FROM_INT8, LEAST_COST, Models, Timer, Trials, timed
from cgd_export.metadata import get_metadata, load_onnx, save_onnx
from cgd_export.onnx_from_checkpoint import calibration_beside
from cgd_export.parity import run_onnx
from cgd_export.progress import Progress
from cgd_export.proof import convolution_work


@pytest.fixture(autouse=True)
def no_time(monkeypatch) -> None:
    """Commands find that all convolutions cost the same."""
    monkeypatch.setattr(packing, "timed", lambda contestants: dict.fromkeys(contestants, 1.0))


@pytest.fixture(scope="module")
def evaluation(unseen) -> Evaluation:
    return Evaluation(read_images(unseen))


@pytest.fixture(scope="module")
def model(model_onnx) -> onnx.ModelProto:
    """Its convolutions named by number: torch's releases name them each in their way, and names seed ``Hurt``."""
    model = load_onnx(model_onnx)
    for number, node in enumerate(convolutions(model)):
        node.name = f"conv-{number}"
    return model


@pytest.fixture(scope="module")
def names(model) -> list[str]:
    return [node.name for node in convolutions(model)]


PLAIN = Recipe()


class Hurt(FakeBackend):
    """Descriptors with noise for each convolution in INT8; remembers which pictures it saw, and what is in float."""

    def __init__(self, noises: dict[str, float], seen: list[str], floats: Collection[str] = ()) -> None:
        super().__init__(b'{"dim": 24}')
        self.floats = floats
        self._noises, self._seen = noises, seen

    def run(self, images: np.ndarray) -> np.ndarray:
        self._seen += [hashlib.sha256(image.tobytes()).hexdigest() for image in images]
        found = super().run(images)
        for name, size in self._noises.items():
            for row, image in zip(found, images, strict=True):
                seed = [int(image.sum(dtype=np.int64)), *name.encode()]
                row += size * np.random.default_rng(seed).normal(size=24) / np.sqrt(24)
        return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


class Search:
    """Runs ``guarded`` on a model whose loss in INT8 is given, and keeps what it opened, measured and told.

    noises   of each convolution, from those that are float
    parts    of it, that a recipe leaves
    timer    see ``Models``; None: the cost is the work
    adds     see ``Models``
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        noises: Callable[[Collection[str]], dict[str, float]],
        parts: Callable[[Recipe], float] = lambda recipe: 1.0,
        timer: Timer | None = None,
        adds: tuple[str, ...] = (),
    ) -> None:
        self.model, self.noises, self.parts, self.timer, self.adds = model, noises, parts, timer, adds
        self.trials: list[Trial] = []
        self.steps: list[tuple[str, int, int]] = []
        self.seen: list[list[str]] = []

    def open(self, recipe: Recipe, floats: Collection[str]) -> Hurt:
        self.seen.append([])
        noises = {name: size * self.parts(recipe) for name, size in self.noises(floats).items()}
        return Hurt(noises, self.seen[-1], floats)

    def run(self, budget: Budget, keep_float: Collection[str] = (), recipe: Recipe | None = PLAIN) -> Trial:
        reference = lambda: FakeBackend(b'{"dim": 24}')  # noqa: E731
        progress = Progress(on_step=lambda *step: self.steps.append(step), on_trial=self.trials.append)
        search = recipe is None
        models = Models(fp32=reference, int8=self.open, timer=self.timer, adds=self.adds)
        return guarded(self.model, models, budget, keep_float, recipe or DEFAULT, search, progress)

    @property
    def full(self) -> list[Trial]:
        """The measurements on the half that chooses."""
        return [trial for trial in self.trials if trial.cross_overlap and not trial.held_out]


def losing(**sizes: float) -> Callable[[Collection[str]], dict[str, float]]:
    """Each convolution loses by itself, whatever the others are."""
    return lambda floats: {name: size for name, size in sizes.items() if name not in floats}


@pytest.fixture
def budget(evaluation) -> Budget:
    return Budget(evaluation=evaluation, min_overlap=0.97)


def test_a_resnets_blocks(model, names):
    found = blocks(model)
    assert [len(block) for block in found] == [1, 2, 2, 3, 2, 3, 2, 3, 2]  # a stem, and 3 blocks with a projection
    assert [name for block in found for name in block] == names


def test_a_convolution_outside_of_any_block_stands_alone_and_a_constant_makes_none():
    from onnx import TensorProto, helper

    from cgd_deploy.spec import ModelSpec
    from cgd_export.metadata import FEATURES, Metadata, set_metadata

    def conv(name: str, x: str, y: str) -> onnx.NodeProto:
        return helper.make_node("Conv", [x, "w"], [y], name=name)

    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["images"], ["float"], to=TensorProto.FLOAT, name="cast"),
            helper.make_node("Transpose", ["float"], ["x"], perm=[0, 3, 1, 2], name="move"),
            conv("a", "x", "y"),
            conv("b", "y", "z"),
            helper.make_node("Add", ["z", "bias"], ["shifted"], name="bias"),
            conv("c", "shifted", "branch"),
            helper.make_node("Add", ["branch", "shifted"], [FEATURES], name="residual"),
            helper.make_node("GlobalAveragePool", [FEATURES], ["descriptors"], name="pool"),
        ],
        "tiny",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", 32, 32, 3])],
        [helper.make_tensor_value_info("descriptors", TensorProto.FLOAT, None)],
        [
            numpy_helper.from_array(np.ones((3, 3, 1, 1), np.float32), "w"),
            numpy_helper.from_array(np.ones((1, 3, 1, 1), np.float32), "bias"),
        ],
    )
    tiny = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    spec = ModelSpec(backbone="resnet18", descriptors="S", dim=3, input_size=(32, 32))
    set_metadata(tiny, Metadata(spec=spec, precision=Precision.FP32))
    assert blocks(tiny) == [("a",), ("b",), ("c",)]


def test_plain_int8_that_holds_is_measured_once_and_left_alone(model, budget):
    search = Search(model, losing())
    trial = search.run(budget)
    assert search.trials == [*search.full, trial] and len(search.full) == len(search.seen) == 1
    assert (trial.keep_float, trial.int8_share, trial.overlap_at_10, trial.pictures) == ((), 1.0, 1.0, 42)
    assert trial.held_out and trial.compared == search.full[0].compared == 21
    assert {"Decoding", "Measuring FP32"} <= {phase for phase, _, _ in search.steps}
    assert all(1 <= step <= steps for _, step, steps in search.steps)


def test_the_layers_that_lose_neighbours_and_no_others_return_to_float(model, names, budget):
    search = Search(model, losing(**{names[2]: 0.5, names[9]: 0.5, names[4]: 0.001}))
    trial = search.run(budget)
    assert trial.keep_float == (names[2], names[9]) and budget.holds(trial)
    plain, *others = search.full
    assert plain.keep_float == () and not budget.holds(plain)
    assert len(others) <= 1 + 3 + 4  # bisection of at most 8 blocks, then of at most 16 convolutions
    ranked = [t for t in search.trials if not t.cross_overlap]
    assert [len(t.keep_float) for t in ranked[:10]] == [0, 1, 2, 2, 3, 2, 3, 2, 3, 2]  # plain, and each block alone
    together, *without = ranked[10:]
    assert [set(together.keep_float) - set(t.keep_float) for t in without] == [{name} for name in together.keep_float]
    assert all(t.recall_drop is None for t in ranked)


def test_two_layers_that_lose_until_both_are_float_are_found(model, names, budget):
    """As when one writes a tensor that the other reads: by itself neither gains anything."""
    search = Search(model, lambda floats: {} if {names[5], names[6]} <= set(floats) else {"tensor": 0.5})
    assert search.run(budget).keep_float == (names[5], names[6])


def test_of_two_equal_losses_the_cheaper_layer_is_returned(model, names, evaluation):
    work = convolution_work(model)
    cheap, dear = names[7], names[-1]
    assert work[cheap] < work[dear] / 3
    search = Search(model, losing(**{cheap: 0.35, dear: 0.35}))
    plain, one = (search.noises(floats) for floats in ((), (cheap,)))
    assert len(plain) == 2 and len(one) == 1
    probe = Search(model, losing(**{dear: 0.35}))
    probe.run(Budget(evaluation=evaluation, min_overlap=0.0))
    trial = search.run(Budget(evaluation=evaluation, min_overlap=probe.full[0].overlap_at_10))
    assert trial.keep_float == (cheap,)
    assert trial.int8_share == pytest.approx(1 - work[cheap] / sum(work.values()))


def clock(**costs: float) -> tuple[Timer, list[set[str]]]:
    """A timer on which INT8 takes a second, and each convolution in float so much more; and what it timed."""
    told: list[set[str]] = []

    def timer(contestants: Mapping[str, Any]) -> dict[str, float]:
        base, other = (set(contestants[name].func.__self__.floats) for name in ("base", "other"))
        assert all(len(call()) == 8 for call in contestants.values())  # a batch of the same pictures
        told.append(base ^ other)
        return {"base": 1 + sum(map(costs.get, base)), "other": 1 + sum(map(costs.get, other))}

    return timer, told


def test_of_two_equal_losses_the_layer_that_costs_less_time_is_returned(model, names, evaluation):
    """Its work is more than three times the other's: time decides."""
    little, much = names[7], names[-1]
    timer, timings = clock(**{**dict.fromkeys(names, 0.1), little: 0.5, much: 0.02})
    noises = losing(**{little: 0.35, much: 0.35})
    probe = Search(model, losing(**{little: 0.35}))
    probe.run(Budget(evaluation=evaluation, min_overlap=0.0))
    search = Search(model, noises, timer=timer)
    budget = Budget(evaluation=evaluation, min_overlap=probe.full[0].overlap_at_10)
    assert search.run(budget).keep_float == (much,)
    assert timings[:9] == [set(block) for block in blocks(model)]  # alone in float, against none
    assert timings[9:] == [{name} for name in names[-2:]]  # alone in INT8, against the block in float
    steps = [step for phase, *step in search.steps if phase == "Timing"]
    assert steps == [[n, 9] for n in range(1, 10)] + [[1, 2], [2, 2]]


def test_residual_adds_return_to_float_together_where_they_gain_most_for_their_time(model, names, evaluation):
    adds = ("add-1", "add-0")
    timer, timings = clock(**dict.fromkeys(names, 0.1), **dict.fromkeys(adds, 0.005))
    search = Search(model, losing(**{adds[0]: 0.5, names[2]: 0.02}), timer=timer, adds=adds)
    search.run(Budget(evaluation=evaluation, min_overlap=0.0))
    plain = search.full[0].overlap_at_10
    trial = search.run(Budget(evaluation=evaluation, min_overlap=plain + 0.01))
    assert (trial.keep_float, trial.float_adds, trial.int8_share) == (("add-0", "add-1"), 2, 1.0)
    assert timings == [*(set(block) for block in blocks(model)), {*adds}, {*adds}]  # in float, then in INT8 again
    assert trial.to_dict()["float_adds"] == 2

    both = search.run(Budget(evaluation=evaluation, min_overlap=1.0))
    assert both.keep_float == (names[2], "add-0", "add-1") and both.float_adds == 2
    always = search.run(Budget(evaluation=evaluation, min_overlap=1.0), keep_float=["add-0"])
    assert always.keep_float == (names[2], "add-0", "add-1")


def test_a_refusal_counts_convolutions_and_adds(model, names, budget):
    adds = ("add-0", "add-1")
    timer, _ = clock(**dict.fromkeys([*names, *adds], 0.1))
    search = Search(model, lambda floats: {"anything": 0.9}, timer=timer, adds=adds)
    with pytest.raises(GateError, match=r"by mean with \d+ of 20 convolutions, 2 adds in float recall@1"):
        search.run(budget)


def test_a_cost_is_a_part_of_the_time_and_noise_has_the_least(model, names, evaluation):
    timer, _ = clock(**{name: 0.25 * (number % 2) - 0.001 for number, name in enumerate(names)})
    search = Search(model, losing(), timer=timer)
    models = Models(fp32=lambda: FakeBackend(b'{"dim": 24}'), int8=search.open, timer=timer)
    trials = Trials(model, models, evaluation, frozenset(names[:1]), Progress())
    base = 1 - 0.001  # names[0] is always in float
    found = trials.costs(PLAIN, (), [(names[1],), (names[2],)])
    assert found == pytest.approx([0.249 / base, LEAST_COST])
    dearer = base + 0.249
    assert trials.costs(PLAIN, (names[1],), [()]) == pytest.approx([0.249 / dearer])


def test_contestants_take_turns():
    calls: list[str] = []
    seconds = timed({name: partial(calls.append, name) for name in ("base", "other")})
    assert set(seconds) == {"base", "other"} and all(value >= 0 for value in seconds.values())
    assert "".join(name[0] for name in calls) == "bbbboooo" * 4


def parts_left(**parts: float) -> Callable[[Recipe], float]:
    """The product of the parts that a recipe's words leave of the loss."""

    def left(recipe: Recipe) -> float:
        words = [word.replace(" ", "_").replace("-", "_") for word in str(recipe).split(" + ")]
        return float(np.prod([parts.get(word, 1.0) for word in words]))

    return left


def recipes(trials: Collection[Trial]) -> list[str]:
    return [str(trial.recipe) for trial in trials]


METHODS = ["mean", "min-max", "percentile", "entropy", "mse"]


def test_if_plain_int8_misses_recipes_are_compared_and_the_best_one_is_the_answer(model, names, budget):
    left = parts_left(mse=0.01, entropy=0.8, equalized=2.0, bias_corrected=0.5)
    search = Search(model, losing(**{names[2]: 0.5}), left)
    trial = search.run(budget, recipe=None)
    assert str(trial.recipe) == "mse + bias corrected" and trial.keep_float == () and trial.int8_share == 1
    assert budget.holds(search.full[-1]) and search.trials[-1] == trial
    plain, *compared, last, _ = search.trials
    default, *corrected = [f"{method} + bias corrected" for method in METHODS]
    assert (recipes([plain, last]), plain.recipes) == ([default, "mse + bias corrected"], {})
    assert recipes(compared) == [default, "mean", *corrected, "mse + equalized + bias corrected"]
    assert trial.recipes == {str(each.recipe): each.overlap_at_10 for each in compared}
    assert all(not each.cross_overlap and each.keep_float == () for each in compared)
    steps = [(step, total) for phase, step, total in search.steps if phase == "Comparing recipes"]
    assert steps[-1] == (7, 7) and steps == sorted(steps)


def test_each_part_of_a_recipe_is_taken_only_if_it_gains(model, names, budget):
    losses = losing(**{names[2]: 0.5})
    found = {}
    for name, parts in {
        "mean + equalized + bias corrected": {"equalized": 0.1, "bias_corrected": 0.1},
        "min-max + equalized": {"min_max": 0.5, "equalized": 0.01, "bias_corrected": 2.0},
        "percentile": {"percentile": 0.01, "bias_corrected": 2.0},
    }.items():
        search = Search(model, losses, parts_left(**parts))
        found[name] = str(search.run(budget, recipe=None).recipe)
    assert list(found) == list(found.values())


def test_layers_return_to_float_from_the_best_recipe(model, names, budget):
    search = Search(model, losing(**{names[2]: 2.0, names[9]: 0.5}), parts_left(mse=0.8))
    trial = search.run(budget, recipe=None)
    assert (str(trial.recipe), trial.keep_float) == ("mse + bias corrected", (names[2], names[9]))
    plain, better, *_ = search.full
    assert recipes([plain, better]) == ["mean + bias corrected", "mse + bias corrected"]
    assert not budget.holds(plain) and not budget.holds(better)
    assert all(each.recipe == trial.recipe for each in search.trials if each.keep_float)
    assert trial.to_dict()["recipes"] == {name: round(value, 5) for name, value in trial.recipes.items()}
    assert len(trial.recipes) == 7
    alone = [each for each in search.trials if not each.cross_overlap and not each.keep_float]
    assert len(alone) == 7  # the best one is not measured again to rank blocks


def test_if_no_recipe_gains_plain_int8_is_measured_once(model, names, budget):
    search = Search(model, losing(**{names[2]: 0.5}))
    trial = search.run(budget, recipe=None)
    assert (trial.recipe, trial.keep_float) == (DEFAULT, (names[2],))
    assert [each.keep_float for each in search.full].count(()) == 1


def test_a_given_recipe_is_the_only_one(model, names, budget):
    recipe = Recipe.parse("entropy + equalized")
    search = Search(model, losing(**{names[2]: 0.5}), parts_left(mse=0.01))
    trial = search.run(budget, recipe=recipe)
    assert trial.keep_float == (names[2],) and {each.recipe for each in search.trials} == {recipe}


def test_recipes_are_compared_with_what_is_float_in_any_case(model, names, budget):
    search = Search(model, losing(**{names[2]: 0.5}), parts_left(mse=0.0))
    trial = search.run(budget, keep_float=names[:1], recipe=None)
    assert (str(trial.recipe), trial.keep_float) == ("mse + bias corrected", (names[0],)) and len(trial.recipes) == 7
    assert all(each.keep_float == (names[0],) for each in search.trials)


def test_the_table_names_a_recipe_where_it_changes_and_where_nothing_is_in_float():
    def row(recipe: str, *floats: str) -> dict[str, Any]:
        return replace(mixed(), recipe=Recipe.parse(recipe), keep_float=floats).to_dict()

    rows = [row("mean"), row("mse"), row("mse"), row("mse", "a"), row("mse", "b", "c"), row("entropy", "a")]
    table = trial_table(rows)
    assert [str(cell) for cell in table.columns[0].cells] == ["mean", "mse", "mse", "a", "b +1", "entropy, a"]


def test_a_recall_limit_alone_is_enough(model, names, evaluation):
    search = Search(model, losing(**{names[3]: 1.0}))
    trial = search.run(Budget(evaluation=evaluation, max_recall_drop_pp=0.5))
    assert search.full[0].recall_drop.drop > 0.5 and trial.recall_drop.drop <= 0.5
    assert trial.keep_float == (names[3],)


def test_what_is_float_in_any_case_stays_and_is_not_tried(model, names, budget):
    always = blocks(model)[1]
    search = Search(model, losing(**{names[9]: 0.5}))
    trial = search.run(budget, keep_float=always)
    assert set(trial.keep_float) == {*always, names[9]}
    assert all(set(always) <= set(t.keep_float) for t in search.trials)
    assert len([t for t in search.trials if not t.cross_overlap]) == 1 + 8 + len(blocks(model)[4])


def test_a_budget_that_half_the_work_in_float_misses_is_refused(model, names, budget):
    search = Search(model, losing(**dict.fromkeys(names, 0.5)))
    with pytest.raises(GateError) as caught:
        search.run(budget)
    plain, most = search.full
    assert f"overlap@10 of {plain.overlap_at_10:.3f}" in str(caught.value)
    assert f"overlap@10 is {most.overlap_at_10:.3f}" in str(caught.value) and "--fp32" in str(caught.value)
    assert all(trial.int8_share >= MIN_INT8_SHARE for trial in search.full)


def test_candidates_are_ranked_on_a_sample_that_is_always_the_same(model, names, budget, monkeypatch):
    monkeypatch.setattr(module, "SAMPLE", 16)
    search = Search(model, losing(**{names[9]: 0.5}))
    assert search.run(budget).keep_float == (names[9],)
    sampled = [pictures for pictures in search.seen if len(pictures) == 16]
    assert len(sampled) == 1 + 9 + 2 and all(pictures == sampled[0] for pictures in sampled)
    choosing, held_out = budget.evaluation.halves()
    assert sampled[0][0] == search.seen[0][choosing[0]] and sampled[0][-1] == search.seen[0][choosing[-1]]
    assert not {search.seen[0][row] for row in held_out} & set(sampled[0])
    assert {len(pictures) for pictures in search.seen} == {16, 42}
    assert {trial.pictures for trial in search.trials if not trial.cross_overlap} == {16}


def test_pictures_that_do_not_fit_in_memory_are_decoded_again(model, names, budget, monkeypatch):
    noises = losing(**{names[9]: 0.5})
    held = Search(model, noises)
    held.run(budget)
    monkeypatch.setattr(module, "HELD_BYTES", 0)
    again = Search(model, noises)
    again.run(budget)
    assert again.trials == held.trials and again.seen == held.seen


@pytest.mark.parametrize("roles", [False, True])
def test_a_trial_by_loops(model, names, evaluation, roles):
    in_gallery = tuple(i % 3 > 0 for i in range(42)) if roles else None
    evaluation = Evaluation(evaluation.images, in_gallery)
    trial = Search(model, losing(**{names[0]: 1.0})).run(Budget(evaluation=evaluation, min_overlap=0.0))
    pixels = np.stack([preprocess(path, get_metadata(model).spec) for path in evaluation.images.paths])
    fp32, int8 = FakeBackend(b'{"dim": 24}').run(pixels), Hurt({names[0]: 1.0}, []).run(pixels)
    classes = evaluation.images.classes
    queries = [i for i in range(42) if not (roles and in_gallery[i])]
    queries = [queries[row] for row in evaluation.halves()[1]]

    def found(asked: np.ndarray, searched: np.ndarray) -> list[list[int]]:
        lists = []
        for q in queries:
            others = [g for g in range(42) if (in_gallery[g] if roles else g != q)]
            lists.append(sorted(others, key=lambda g: -float(asked[q] @ searched[g]))[:10])
        return lists

    def compared(lists: list[list[int]]) -> tuple[float, Drop]:
        before, after = (
            np.array([classes[row[0]] == classes[q] for q, row in zip(queries, rows, strict=True)])
            for rows in (expected, lists)
        )
        shared = [len(set(a) & set(b)) / 10 for a, b in zip(lists, expected, strict=True)]
        return sum(shared) / len(shared), paired_drop(before, after)

    expected = found(fp32, fp32)
    assert (trial.overlap_at_10, trial.recall_drop) == (
        pytest.approx(compared(found(int8, int8))[0]),
        trial.recall_drop,
    )
    assert trial.recall_drop == compared(found(int8, int8))[1] and trial.recall_drop.drop > 0
    for name, lists in ((FROM_INT8, found(int8, fp32)), (FROM_FP32, found(fp32, int8))):
        assert trial.cross_overlap[name] == pytest.approx(compared(lists)[0])
        assert trial.cross_recall_drop[name] == compared(lists)[1]


def test_descriptors_that_are_not_numbers_are_refused(model, budget):
    with pytest.raises(ExportError, match="not numbers"):
        Search(model, lambda floats: {"x": float("nan")}).run(budget)


def mixed(drop: Drop | None = None, other: Drop | None = None, overlap: float = 0.9) -> Trial:
    return Trial(
        recipe=PLAIN,
        keep_float=(),
        int8_share=1.0,
        pictures=100,
        compared=100,
        overlap_at_10=0.5,
        overlap_interval=(0.4, 0.6),
        cross_recall_drop={FROM_INT8: drop, FROM_FP32: other or drop} if drop else {},
        cross_overlap={FROM_INT8: 1.0, FROM_FP32: overlap},
    )


@pytest.mark.parametrize(
    ("trial", "told"),
    [
        (
            mixed(Drop(0.03, -0.05, 0.1), Drop(-0.2, -0.3, 0.0), 0.9893),
            "safe to mix with an FP32 gallery: recall@1 -0.03 pp (95 %: -0.10 to +0.05), overlap@10 98.9 %",
        ),
        (mixed(Drop(0.3, -0.4, 1.0)), "safe to mix with an FP32 gallery: recall@1 -0.30 pp (95 %: -1.00 to +0.40)"),
        (mixed(Drop(0.31, 0.2, 0.4)), "not safe to mix with an FP32 gallery: recall@1 -0.31 pp"),
        (mixed(Drop(0.0, -1.1, 1.1)), "not safe to mix with an FP32 gallery: recall@1 +0.00 pp (95 %: -1.10 to +1.10)"),
        (mixed(Drop(0.0, 0.0, 0.0), Drop(0.5, 0.1, 0.9)), "not safe to mix with an FP32 gallery: recall@1 -0.50 pp"),
        (mixed(overlap=0.95), "safe to mix with an FP32 gallery: overlap@10 95.0 %"),
        (mixed(overlap=0.94), "not safe to mix with an FP32 gallery: overlap@10 94.0 %"),
    ],
)
def test_the_statement_on_mixed_galleries(trial, told):
    assert statement(trial).startswith(told)


def held(limit: str, low: float, mean: float, high: float, confident: bool) -> tuple[bool, bool]:
    """Whether a budget holds, and whether it is contradicted, by a trial with these values."""
    budget = object.__new__(Budget)  # without test pictures
    limits = {"max_recall_drop_pp": None, "min_overlap": None, "confident": confident}
    for name, value in {**limits, limit: 0.5}.items():
        object.__setattr__(budget, name, value)
    trial = mixed()
    if limit == "min_overlap":
        trial = replace(trial, overlap_at_10=mean, overlap_interval=(low, high))
    else:
        trial = replace(trial, recall_drop=Drop(mean, low, high))
    return budget.holds(trial), budget.contradicted_by(trial)


@pytest.mark.parametrize(
    ("low", "mean", "high", "surely", "expected"),
    [
        (0.6, 0.7, 0.8, (True, False), (True, False)),
        (0.4, 0.6, 0.8, (False, False), (True, False)),
        (0.3, 0.4, 0.6, (False, True), (False, False)),
        (0.2, 0.3, 0.4, (False, True), (False, True)),
    ],
)
def test_limits_and_intervals(low, mean, high, surely, expected):
    """With --confident the worse end must hold where the model is chosen, and the mean where it is held out."""
    assert held("min_overlap", low, mean, high, True) == surely
    assert held("min_overlap", low, mean, high, False) == expected
    assert held("max_recall_drop_pp", 1 - high, 1 - mean, 1 - low, True) == surely
    assert held("max_recall_drop_pp", 1 - high, 1 - mean, 1 - low, False) == expected


def test_confidence_costs_more_layers_in_float(model, names, evaluation):
    sizes = {names[2]: 0.5, names[9]: 0.12}
    found = {}
    for confident in (False, True):
        probe = Search(model, losing(**{names[9]: 0.12}))
        probe.run(Budget(evaluation=evaluation, min_overlap=0.0))
        limit = probe.full[0].overlap_at_10
        assert probe.full[0].overlap_interval[0] < limit
        search = Search(model, losing(**sizes))
        found[confident] = search.run(Budget(evaluation=evaluation, min_overlap=limit, confident=confident)).keep_float
    assert found == {False: (names[2],), True: (names[2], names[9])}


def test_held_out_queries_may_contradict(model, names, evaluation):
    """A model whose INT8 hurts only the pictures that no layer was chosen on."""
    rows = evaluation.halves()[1]
    spec = get_metadata(model).spec
    hurt = {preprocess(evaluation.images.path(row), spec).tobytes() for row in rows}

    class Treacherous(Hurt):
        def run(self, images: np.ndarray) -> np.ndarray:
            found, clean = super().run(images), FakeBackend.run(self, images)
            return np.stack([f if i.tobytes() in hurt else c for f, c, i in zip(found, clean, images, strict=True)])

    search = Search(model, losing(**{names[2]: 3.0}))
    search.open = lambda recipe, floats: Treacherous({names[2]: 3.0}, [], floats)  # type: ignore[method-assign]
    limit = 0.7  # the gallery is hurt for both halves
    with pytest.raises(GateError, match=r"for the queries that chose it, but an overlap@10 of .* for the 21 others"):
        search.run(Budget(evaluation=evaluation, min_overlap=limit))
    choosing, told = search.trials
    assert choosing.overlap_at_10 >= limit > told.overlap_interval[1] and told.held_out


def flat(folder: Path, source: Path) -> Path:
    """The pictures of ``source`` without classes."""
    folder.mkdir()
    for number, path in enumerate(sorted(source.rglob("*.jpg"))):
        shutil.copy(path, folder / f"{number:03}.jpg")
    return folder


def refused(message: str, function: Callable[..., object], *arguments: Any, **options: Any) -> None:
    with pytest.raises(InputError, match=message) as caught:
        function(*arguments, **options)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")


def test_limits_and_test_pictures_go_together(unseen, tmp_path):
    assert read_budget(None) is None
    refused("pass --max-recall-drop 0.1, --min-overlap 0.98 or both", read_budget, unseen)
    refused("pass --data", read_budget, None, 0.1)
    refused("pass --data", read_budget, None, None, 0.9)
    refused("pass --min-overlap", read_budget, flat(tmp_path / "flat", unseen), 0.1)
    assert read_budget(tmp_path / "flat", None, 0.9).min_overlap == 0.9
    for value in (-0.1, 101.0, float("nan")):
        refused("0 to 100", read_budget, unseen, value)
    for value in (-0.1, 1.1, float("nan")):
        refused("0 to 1", read_budget, unseen, None, value)
    refused("pass --data", read_budget, None, None, None, True)
    refused("got 7 pictures; pass at least 12", read_budget, unseen / "kind-0", None, 0.9)
    gone = Evaluation(ImageList(tmp_path / "gone", tuple(f"{n}.jpg" for n in range(20))))
    refused("all 20 test pictures are gone, .*--data", Budget, evaluation=gone, min_overlap=0.9)


def test_a_picture_in_both_lists_is_refused_by_its_path_or_its_bytes(pictures, unseen, tmp_path):
    testing, calibration = read_images(unseen), read_images(pictures)
    check_disjoint(calibration, testing)
    linked, copied = tmp_path / "linked", tmp_path / "copied"
    shutil.copytree(pictures / "kind-0", copied)
    shutil.copy(unseen / "kind-2" / "3.jpg", copied / "other name.jpg")
    refused("1 of 6 calibration pictures .*other name.jpg for one", check_disjoint, read_images(copied), testing)
    linked.symlink_to(unseen / "kind-1")
    refused("7 of 7 calibration pictures .*0.jpg", check_disjoint, read_images(linked), testing)
    gone = ImageList(tmp_path, ("gone.jpg",))
    refused("all 1 calibration pictures are gone", check_disjoint, gone, testing)


def test_limits_guard_int8_alone(model_onnx, evaluation, tmp_path):
    budget = Budget(evaluation=evaluation, min_overlap=0.5)
    refused("--int8", engine_from_onnx, model_onnx, tmp_path / "e.cgd", Precision.FP32, int8=Int8Options(budget=budget))


def hardened(model: onnx.ModelProto, writes: str, reads: str) -> onnx.ModelProto:
    """The same function, with one channel between two convolutions 100 times as large as it was."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    inputs = {node.name: node.input for node in convolutions(result)}
    tensors = {tensor.name: tensor for tensor in result.graph.initializer}

    def scale(name: str, rows: Any, factor: float) -> None:
        values = numpy_helper.to_array(tensors[name]).copy()
        values[rows] *= factor
        tensors[name].CopyFrom(numpy_helper.from_array(values, name))

    scale(inputs[writes][1], 0, 100)
    scale(inputs[writes][2], 0, 100)
    scale(inputs[reads][1], (slice(None), 0), 0.01)
    return result


@pytest.fixture(scope="module")
def hard(model, names, model_onnx, tmp_path_factory) -> Path:
    """``model_onnx`` made hard to quantize in its first block; its calibration list too."""
    path = tmp_path_factory.mktemp("hard") / "model.onnx"
    save_onnx(hardened(model, names[1], names[2]), path)
    shutil.copy(calibration_beside(model_onnx), calibration_beside(path))
    return path


def test_the_hard_model_is_the_same_function(model, hard, pixels):
    assert run_onnx(load_onnx(hard), pixels[:4], 4) == pytest.approx(run_onnx(model, pixels[:4], 4), abs=1e-4)


def test_a_model_made_hard_to_quantize_passes_with_the_guard(cli, hard, unseen, names, tmp_path):
    least = 0.75  # plain INT8 keeps 0.64, and 0.88 of the model as it was
    engine = tmp_path / "e.cgd"
    options = ["--int8", "--backend", "onnxruntime", "--data", unseen, "--min-overlap", least, "-o", engine]
    status, out, err = cli("build-engine", hard, *options, "--calibration", "mean", "--json")
    assert (status, err) == (0, "")
    told = json.loads(out)
    assert told["trials"][0]["keep_float"] == [] and told["trials"][0]["overlap_at_10"] < least

    manifest = read_engine(engine).manifest
    found = manifest.retrieval
    assert found == told["retrieval"]
    assert found["overlap_at_10"] >= least and found["measured_on"] == "engine"
    assert names[2] in found["keep_float"] and len(found["keep_float"]) <= 0.2 * len(names)
    assert manifest.proof["kept_float"] == sorted(found["keep_float"])
    assert (
        manifest.proof["flops_share"]["int8"] == pytest.approx(found["int8_share"], abs=1e-4)
        and found["int8_share"] > 0.8
    )
    testing = read_images(unseen)
    assert found["pictures"] == 42 and found["compared"] == 21 and found["held_out"] is True
    assert found["limits"] == {"max_recall_drop_pp": None, "min_overlap_at_10": least, "confident": False}
    assert found["pictures_sha256"] == manifest.source["evaluation_sha256"] == testing.sha256
    assert manifest.source["calibration_sha256"] == read_images(calibration_beside(hard)).sha256
    assert set(found["recall_drop_pp"]["1"]) == {"drop", "low", "high"}
    assert set(found["cross_recall_drop_pp"]) == {FROM_INT8, FROM_FP32}
    assert "safe to mix with an FP32 gallery: recall@1" in found["statement"]
    assert found["statement"] in cli("inspect", engine)[1]


def test_a_recipe_puts_right_what_was_made_hard_and_everything_stays_int8(cli, hard, unseen, tmp_path):
    least = 0.75
    engine = tmp_path / "e.cgd"
    options = ["--int8", "--backend", "onnxruntime", "--data", unseen, "--min-overlap", least, "-o", engine]
    status, out, err = cli("build-engine", hard, *options, "--json")
    assert (status, err) == (0, "")
    manifest, told = read_engine(engine).manifest, json.loads(out)
    found = manifest.retrieval
    assert found == told["retrieval"] and found["overlap_at_10"] >= least
    assert (found["keep_float"], found["int8_share"], manifest.proof["kept_float"]) == ([], 1.0, [])
    assert "equalized" in found["recipe"] and manifest.source["calibration"] == found["recipe"]
    assert {"mean", "mean + bias corrected"} < set(found["recipes"]) and len(found["recipes"]) == 7
    assert found["recipes"][found["recipe"]] == max(found["recipes"].values()) > found["recipes"]["mean"] + 0.1
    chosen = [found["recipe"]] * 2  # on the half that chooses, and held out
    assert [trial["recipe"] for trial in told["trials"]] == [str(DEFAULT), *found["recipes"], *chosen]

    again = tmp_path / "again.cgd"  # what was told can be asked for
    options = ["--int8", "--backend", "onnxruntime", "--calibration", found["recipe"], "-o", again]
    assert cli("build-engine", hard, *options)[0] == 0
    assert read_engine(again).manifest.sha256 == manifest.sha256


def test_a_budget_that_cannot_be_held_exits_with_3_and_the_table(cli, hard, unseen, tmp_path):
    where = ["--backend", "onnxruntime", "-o", tmp_path / "e.cgd"]
    limits = ["--data", unseen, "--max-recall-drop", 5, "--min-overlap", 1, "--calibration", "mean"]
    status, out, err = cli("build-engine", hard, "--int8", *where, *limits)
    assert (status, out, listing(tmp_path)) == (3, "", {})
    *table, sentence = err.splitlines()
    assert table[0].startswith("recipe, in float") and table[1].startswith("mean")
    assert len(table) == 1 + 1 + 10 + 1  # header, plain, plain and each block on the sample, the most in float
    assert sentence.startswith(
        "cgd-deploy: no INT8 engine with 50% of the convolution work in INT8 has a recall@1 drop"
    )


def test_without_classes_overlap_alone_is_measured_and_the_summary_says_so(cli, model_onnx, unseen, tmp_path):
    data = flat(tmp_path / "flat", unseen)
    options = ["--int8", "--backend", "openvino", "-o", tmp_path / "e.cgd", "--data", data, "--min-overlap", 0.1]
    status, out, err = cli("build-engine", model_onnx, *options)
    assert (status, err) == (0, "")
    found = read_engine(tmp_path / "e.cgd").manifest.retrieval
    assert found["recall_drop_pp"] == found["cross_recall_drop_pp"] == {} and found["keep_float"] == []
    low, high = found["overlap_at_10_interval"]
    assert low < found["overlap_at_10"] < high
    told = (
        f"overlap@10 {found['overlap_at_10']:.3f} (95 %: {low:.3f} to {high:.3f}), calibrated by mean + bias corrected"
    )
    assert f"on 21 held-out queries: {told}, 0 of 20 convolutions in fp32" in out
    assert out.endswith(f"  {found['statement']}\n")


def lonely(folder: Path, source: Path, classes: int) -> Path:
    """The pictures of ``source`` in their first classes, and each other picture in a class of its own."""
    for number, path in enumerate(sorted(source.rglob("*.jpg"))):
        label = path.parent.name if number < 7 * classes else f"alone-{number}"
        (folder / label).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder / label / path.name)
    return folder


def test_the_limit_on_recall_counts_the_queries_that_can_be_answered(cli, model_onnx, unseen, tmp_path):
    data = lonely(tmp_path / "data", unseen, classes=2)
    options = ["--int8", "--backend", "onnxruntime", "-o", tmp_path / "e.cgd", "--data", data]
    status, out, _ = cli("build-engine", model_onnx, *options, "--max-recall-drop", 50)
    assert status == 0
    assert "\n  recall leaves out 14 of 21 queries: there is no picture of their class to find.\n" in out
    found = read_engine(tmp_path / "e.cgd").manifest.retrieval
    assert found["queries"] == {"asked": 21, "unanswerable": 14} and found["pictures"] == 42
    one = 100 / 7  # a query, in percentage points
    drop = found["recall_drop_pp"]["1"]["drop"] / one
    assert drop == pytest.approx(round(drop), abs=1e-3)


def test_a_limit_on_recall_needs_a_query_that_can_be_answered(unseen, tmp_path):
    data = lonely(tmp_path / "data", unseen, classes=0)
    refused("none of the 42 queries in .* has a picture of its class to find", read_budget, data, 0.1)
    assert read_budget(data, None, 0.9).evaluation.asked["unanswerable"] == 42


def test_both_halves_need_a_query_that_can_be_answered(unseen, tmp_path):
    data = lonely(tmp_path / "data", unseen, classes=1)
    refused("all that can be answered are in one half; pass more", read_budget, data, 0.1)
    assert read_budget(data, None, 0.9).min_overlap == 0.9


def test_calibration_pictures_among_the_test_pictures_are_refused(cli, model_onnx, pictures, tmp_path):
    options = ["--int8", "-o", tmp_path / "e.cgd", "--data", pictures, "--min-overlap", 0.9]
    status, _, err = cli("build-engine", model_onnx, *options)
    assert status == 2 and err.count("\n") == 1
    assert "15 of 15 calibration pictures are among the test pictures" in err
    assert listing(tmp_path) == {}


def test_a_plan_that_is_yet_to_be_built_is_measured_by_its_graph(model, model_onnx):
    backend = packing.opened("tensorrt", halved(model), Precision.FP16)
    with backend:
        assert isinstance(backend, OnnxRuntimeBackend)
    with packing.opened("openvino", model, Precision.FP32) as other:
        assert not isinstance(other, OnnxRuntimeBackend)
