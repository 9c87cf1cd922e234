"""Recall-guarded quantization: find the recipe, and the layers to keep float, that hold a budget.

Ranks candidates by the neighbours that they lose, see ``trials``.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import onnx

from cgd_deploy.errors import GateError
from cgd_deploy.quality.formatting import layers_in_float

from ..progress import QUIET, Progress
from .budget import Budget, Trial
from .calibrate import Calibration
from .quantize import backbone, convolutions
from .recipe import DEFAULT, Recipe
from .trials import Models, Names, Trials

MIN_INT8_SHARE = 0.5
"""The least part of the convolution work in INT8. With less, INT8 is hardly faster than FP32, which loses nothing."""

Part = tuple[str, ...]
"""Names of nodes that return to float together: the convolutions of a residual block, or all residual adds."""


def guarded(
    model: onnx.ModelProto,
    models: Models,
    budget: Budget,
    keep_float: Collection[str] = (),
    recipe: Recipe = DEFAULT,
    search: bool = True,
    progress: Progress = QUIET,
) -> Trial:
    """The INT8 model that holds the budget at the least cost that this search finds.

    model        FP32; read for its spec and its convolutions
    models       opens the FP32 model and INT8 models, as the engine will run them
    keep_float   convolutions and residual adds that are float in any case
    recipe       of plain INT8
    search       whether to look for a better recipe if plain INT8 misses the budget
    progress     hears of each phase and of every measurement

    Half of the queries choose the model (steps 1 to 4). The result is its trial on the other half.

    1. Measure plain INT8. If it holds the budget, it is the answer.
    2. Compare recipes by overlap@10 on a sample: first with and without bias correction, then every calibration, then
       equalization. Bias correction comes first: the mean error of rounded weights hides which calibration is best.
    3. Return each residual block to float alone, and all residual adds together where the runtime is fast at it. Rank
       these parts by overlap@10 gained per cost, see ``Trials.costs``. Bisection finds the fewest parts of that ranking
       that hold the budget. A part is a whole block because a tensor needs no codes only when both its writer and its
       reader are float: in the UINT8 layout, one of them alone gains nothing. There are also three times fewer blocks
       than convolutions.
    4. Return each convolution of those parts to INT8 alone, and the adds together; rank them by overlap@10 lost per
       cost, and bisect again. This ranking measures one convolution at a time, so it can return convolutions that the
       blocks took needlessly.

    Raises GateError if the budget is missed with half of the work in float, or if the held-out queries contradict it,
    ExportError for descriptors that are not numbers, InputError for pictures that cannot be read.
    """
    trials = Trials(model, models, budget.evaluation, frozenset(keep_float), progress)
    chosen = _chosen(model, trials, budget, recipe, search)
    told = trials.held_out(chosen)
    if budget.contradicted_by(told):
        raise GateError(_contradicted(budget, told))
    return replace(told, recipes=chosen.recipes)


def _chosen(model: onnx.ModelProto, trials: Trials, budget: Budget, recipe: Recipe, search: bool) -> Trial:
    """The model that holds the budget on the choosing half of the queries. Raises GateError if none does."""
    plain = trials.measure(recipe)
    if budget.holds(plain):
        return plain
    if search:
        recipe = _best_recipe(trials, recipe)
        if budget.holds(better := trials.measure(recipe)):
            return better
    best = _shortest(trials, budget, recipe, ranked_parts(model, trials, recipe))
    if best is None:
        raise GateError(_missed(budget, plain, trials))
    return _shortest(trials, budget, recipe, _ranked_again(trials, best)) or best


def blocks(model: onnx.ModelProto) -> list[Part]:
    """The backbone's convolutions by residual block, in graph order; a convolution outside of any block stands alone.

    A block holds the convolutions that exactly one input of its residual add depends on: the branch, and the
    projection if there is one.
    """
    order = [node.name for node in convolutions(model)]
    above: dict[str, Names] = {}  # tensor -> the convolutions it depends on
    left = dict.fromkeys(order)
    found = []
    for node in backbone(model):
        depends = Names().union(*(above.get(name, ()) for name in node.input))
        if node.name in order:
            depends |= {node.name}
        above.update(dict.fromkeys(node.output, depends))
        if node.op_type == "Add" and all(above.get(name) for name in node.input):  # not the addition of a constant
            either, other = (above[name] for name in node.input)
            block = tuple(name for name in left if name in either ^ other)
            found.append(block)
            left = {name: None for name in left if name not in block}
    found += [(name,) for name in left]
    return sorted((block for block in found if block), key=lambda block: order.index(block[0]))


def _best_recipe(trials: Trials, plain: Recipe) -> Recipe:
    best = _best(trials, [plain, replace(plain, bias_corrected=False)])
    best = _best(trials, [replace(best, calibration=method) for method in Calibration])
    return _best(trials, [best, replace(best, equalized=True)])


def _best(trials: Trials, recipes: Sequence[Recipe]) -> Recipe:
    """The recipe with the largest overlap@10 on the sample, the first of equals."""
    found = []
    for recipe in recipes:
        found.append(trials.overlap(recipe))
        trials.progress.on_step("Comparing recipes", len(trials.recipes), len(Calibration) + 2)
    return recipes[found.index(max(found))]


def ranked_parts(model: onnx.ModelProto, trials: Trials, recipe: Recipe) -> list[Part]:
    """The parts of the model by overlap@10 gained per cost, without those that leave less than MIN_INT8_SHARE in INT8.

    Parts are the residual blocks, and all residual adds if ``trials.adds`` names them, without ``trials.always``.
    """
    candidates = [free for part in (*blocks(model), trials.adds) if (free := _without(trials.always, part))]
    gains = dict(zip(candidates, _gains(trials, recipe, (), candidates, "Ranking layers"), strict=True))
    taken: list[Part] = []
    for part in sorted(candidates, key=lambda part: -gains[part]):
        if 1 - trials.work.part(trials.always.union(*taken, part)) >= MIN_INT8_SHARE:
            taken.append(part)
    return taken


def _ranked_again(trials: Trials, trial: Trial) -> list[Part]:
    """The convolutions that ``trial`` returned to float, each alone, and its adds, by overlap@10 lost per cost."""
    floats = _without(trials.always, trial.keep_float)
    parts: list[Part] = [(name,) for name in _without(trials.adds, floats)]
    if adds := tuple(name for name in floats if name in trials.adds):
        parts.append(adds)
    others = [_without(part, floats) for part in parts]
    gains = dict(zip(parts, _gains(trials, trial.recipe, floats, others, "Ranking again"), strict=True))
    return sorted(parts, key=lambda part: gains[part])


def _gains(trials: Trials, recipe: Recipe, base: Part, others: Sequence[Part], phase: str) -> list[float]:
    """Overlap@10 that each of ``others`` in float gains over ``base`` in float, per cost; below zero is a loss."""
    before, *after = trials.overlaps(recipe, [base, *others], phase)
    costs = trials.costs(recipe, base, others)
    return [(now - before) / cost for now, cost in zip(after, costs, strict=True)]


def _without(left_out: Collection[str], names: Collection[str]) -> Part:
    return tuple(name for name in names if name not in left_out)


def _shortest(trials: Trials, budget: Budget, recipe: Recipe, order: Sequence[Part]) -> Trial | None:
    """The model with the fewest first parts of ``order`` in float that holds the budget; None if all of them miss it.

    The caller knows that the model without any misses it.
    """
    if not order or not budget.holds(trials.measure(recipe, order)):
        return None
    misses, holds = 0, len(order)
    while holds - misses > 1:
        middle = (misses + holds) // 2
        if budget.holds(trials.measure(recipe, order[:middle])):
            holds = middle
        else:
            misses = middle
    return trials.measure(recipe, order[:holds])


def _contradicted(budget: Budget, told: Trial) -> str:
    found = [f"an overlap@10 of {told.overlap_at_10:.3f}"]
    if told.recall_drop:
        found.append(f"a recall@1 drop of {told.recall_drop.drop:.2f} pp")
    return (
        f"the INT8 engine by {told.recipe} with {layers_in_float(told.to_dict())} in float has {budget} for the "
        f"queries that chose it, but {' and '.join(found)} for the {told.compared} others; allow more, or pass more "
        "test pictures with --data."
    )


def _missed(budget: Budget, plain: Trial, trials: Trials) -> str:
    last = trials.last
    drop = "" if last.recall_drop is None else f"recall@1 drops {last.recall_drop.drop:.2f} pp and "
    floats = layers_in_float(last.to_dict(), len(trials.work.operations))
    return (
        f"no INT8 engine with {MIN_INT8_SHARE:.0%} of the convolution work in INT8 has {budget}: plain INT8 "
        f"has an overlap@10 of {plain.overlap_at_10:.3f}, and by {last.recipe} with {floats} in float "
        f"{drop}overlap@10 is {last.overlap_at_10:.3f}; allow more, calibrate on other pictures with --calib, or build "
        "with --fp32."
    )
