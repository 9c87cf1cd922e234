"""Recall-guarded quantization: by which recipe, and with which convolutions float, INT8 finds the neighbours of FP32.

Ranks by what retrieval loses, never by cosine or squared error. Knows no layout and no runtime: its caller opens
models.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
from numpy.typing import NDArray

from cgd_deploy.errors import ExportError, GateError
from cgd_deploy.pictures.images import ImageList
from cgd_deploy.pictures.preprocess import batches
from cgd_deploy.quality.significance import recall_drops
from cgd_deploy.runtime.backends import Backend
from cgd_deploy.runtime.descriptors import Descriptors
from cgd_deploy.search.retrieval import Indices, neighbours, overlap
from cgd_deploy.spec import ModelSpec

from ..metadata import get_metadata
from ..proof import convolution_work
from ..tensorrt import OnStep
from .budget import NEIGHBOURS, Budget, Trial
from .calibrate import Calibration
from .quantize import backbone, convolutions
from .recipe import DEFAULT, Recipe

BATCH = 8
SAMPLE = 256
"""Pictures that candidates are ranked on; what they lead to is measured on all."""
HELD_BYTES = 512 << 20
"""Decoded pictures are kept where they fit, else decoded anew for each measurement."""
MIN_INT8_SHARE = 0.5
"""Of the convolution work: with less in INT8, little is won over an FP32 engine, which loses nothing."""
FROM_INT8, FROM_FP32 = "int8 queries, fp32 gallery", "fp32 queries, int8 gallery"

Float = frozenset[str]
"""Names of convolutions that stay float."""


def guarded(
    model: onnx.ModelProto,
    open_fp32: Callable[[], Backend],
    open_int8: Callable[[Recipe, Float], Backend],
    budget: Budget,
    keep_float: Collection[str] = (),
    recipe: Recipe = DEFAULT,
    search: bool = True,
    on_step: OnStep | None = None,
    on_trial: Callable[[Trial], None] | None = None,
) -> Trial:
    """The INT8 model that holds the budget with the least work in float that this search finds.

    model        FP32; read for its spec and its convolutions
    open_int8    opens the INT8 model of a recipe that leaves the named convolutions float, as the engine will run it
    keep_float   convolutions that are float in any case
    recipe       of plain INT8
    search       whether to look for a better recipe if plain INT8 misses the budget
    on_step      hears of each phase, its step and its number of steps
    on_trial     hears of everything that was measured

    Plain INT8 comes first. If it misses, recipes are compared by overlap@10 on a sample: plain without corrected
    biases, the better of these two with every calibration, and the best of them equalized. Biases come first because
    what rounding the weights moves on average, left in, hides which calibration is best.

    If the best recipe misses too, each residual block is returned to float alone and what overlap@10 gains by it is
    measured on the sample; of the blocks by gain per convolution work, the shortest beginning that holds on all
    pictures is found by bisection. Blocks and not single convolutions, because a tensor is free of codes only when
    what writes it and what reads it are float: in the UINT8 layout one of the two gains nothing by itself. They are
    also three times fewer. Then the convolutions of those blocks are ranked by what overlap@10 loses when each is
    INT8 again alone, and again the shortest beginning is taken: no other loss hides this one, so it also puts right
    what the first ranking took too much of.

    Raises GateError if the budget is missed with half of the work in float, ExportError for descriptors that are not
    numbers, InputError for pictures that cannot be read.
    """
    return _Search(
        model, open_fp32, open_int8, budget, frozenset(keep_float), recipe, on_step or _unheard, on_trial or _unheard
    ).run(search)


def blocks(model: onnx.ModelProto) -> list[tuple[str, ...]]:
    """The backbone's convolutions by residual block, in graph order; one outside of any block stands alone.

    A block is what only one input of its addition depends on: the branch, and the projection where there is one.
    """
    order = [node.name for node in convolutions(model)]
    above: dict[str, Float] = {}  # tensor -> the convolutions it depends on
    left = dict.fromkeys(order)
    found = []
    for node in backbone(model):
        depends = Float().union(*(above.get(name, ()) for name in node.input))
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


class _Search:
    """The state of one search: pictures, FP32's descriptors, the recipe so far, and everything that was measured."""

    def __init__(
        self,
        model: onnx.ModelProto,
        open_fp32: Callable[[], Backend],
        open_int8: Callable[[Recipe, Float], Backend],
        budget: Budget,
        keep_float: Float,
        recipe: Recipe,
        on_step: OnStep,
        on_trial: Callable[[Trial], None],
    ) -> None:
        self._open_int8, self._budget, self._always = open_int8, budget, keep_float
        self._recipe = recipe
        self._on_step, self._on_trial = on_step, on_trial
        self._work = convolution_work(model)
        self._blocks = [tuple(name for name in block if name not in keep_float) for block in blocks(model)]
        images = budget.evaluation.images
        self._pictures = _Pictures.decoded(images, get_metadata(model).spec, on_step)
        self._reference = self._descriptors(open_fp32(), self._pictures, "Measuring FP32")
        self._expected = budget.evaluation.neighbours(self._reference, NEIGHBOURS)[0]
        chosen = np.linspace(0, len(images) - 1, min(SAMPLE, len(images))).round().astype(int)
        self._sample = self._pictures.subset(chosen)
        self._sample_expected = _all_neighbours(self._reference[chosen])
        self._sampled: dict[tuple[Recipe, Float], float] = {}
        self._measured: dict[tuple[Recipe, Float], Trial] = {}

    def run(self, search: bool) -> Trial:
        plain = self._measure(())
        if self._budget.holds(plain):
            return plain
        if search:
            self._recipe = self._best_recipe()
            if self._budget.holds(better := self._measure(())):
                return better
        best = self._shortest(self._ranked_blocks())
        if best is None:
            raise GateError(self._missed(plain))
        return self._shortest(self._ranked_convolutions(best)) or best

    def _best_recipe(self) -> Recipe:
        best = self._best([self._recipe, replace(self._recipe, bias_corrected=False)])
        best = self._best([replace(best, calibration=method) for method in Calibration])
        return self._best([best, replace(best, equalized=True)])

    def _best(self, recipes: Sequence[Recipe]) -> Recipe:
        """By overlap@10 on the sample; of equals the first."""
        found = []
        for recipe in recipes:
            found.append(self._overlap(recipe, self._always))
            self._on_step("Comparing recipes", len(self._sampled), len(Calibration) + 2)
        return recipes[found.index(max(found))]

    def _ranked_blocks(self) -> list[tuple[str, ...]]:
        """By gain per work, and only as many as leave the least share of INT8."""
        candidates = [block for block in self._blocks if block]
        before, *after = self._overlaps([(), *candidates], "Ranking blocks")
        value = {block: (now - before) / self._cost(block) for block, now in zip(candidates, after, strict=True)}
        taken: list[tuple[str, ...]] = []
        for block in sorted(candidates, key=lambda block: -value[block]):
            if self._share(self._floats([*taken, block])) >= MIN_INT8_SHARE:
                taken.append(block)
        return taken

    def _ranked_convolutions(self, trial: Trial) -> list[tuple[str, ...]]:
        """Those that ``trial`` returned to float, by loss per work."""
        floats = [name for name in trial.keep_float if name not in self._always]
        others = [tuple(other for other in floats if other != name) for name in floats]
        before, *after = self._overlaps([tuple(floats), *others], "Ranking convolutions")
        value = {name: (before - now) / self._cost([name]) for name, now in zip(floats, after, strict=True)}
        return [(name,) for name in sorted(floats, key=lambda name: -value[name])]

    def _shortest(self, order: Sequence[tuple[str, ...]]) -> Trial | None:
        """The shortest beginning of ``order`` that holds the budget, by bisection; None if all of it misses.

        The empty one is known to miss.
        """
        if not order or not self._budget.holds(self._measure(order)):
            return None
        misses, holds = 0, len(order)
        while holds - misses > 1:
            middle = (misses + holds) // 2
            if self._budget.holds(self._measure(order[:middle])):
                holds = middle
            else:
                misses = middle
        return self._measure(order[:holds])

    def _measure(self, order: Sequence[tuple[str, ...]]) -> Trial:
        """On all pictures, once for each set of convolutions."""
        floats = self._floats(order)
        key = self._recipe, floats
        if key not in self._measured:
            told = f"Measuring INT8 with {len(floats)} in float"
            found = self._descriptors(self._open_int8(*key), self._pictures, told)
            self._measured[key] = self._compared(floats, found)
            self._on_trial(self._measured[key])
        return self._measured[key]

    def _compared(self, floats: Float, descriptors: Descriptors) -> Trial:
        evaluation, reference = self._budget.evaluation, self._reference
        alone = evaluation.neighbours(descriptors, NEIGHBOURS)[0]
        mixed = {
            FROM_INT8: evaluation.neighbours(descriptors, NEIGHBOURS, gallery=reference)[0],
            FROM_FP32: evaluation.neighbours(reference, NEIGHBOURS, gallery=descriptors)[0],
        }
        drops = {name: recall_drops(evaluation, self._expected, found, ks=(1,)) for name, found in mixed.items()}
        return Trial(
            recipe=self._recipe,
            keep_float=self._in_order(floats),
            int8_share=self._share(floats),
            pictures=len(descriptors),
            overlap_at_10=overlap(alone, self._expected),
            recall_drop=recall_drops(evaluation, self._expected, alone, ks=(1,)).get("1"),
            cross_recall_drop={name: drop["1"] for name, drop in drops.items() if drop},
            cross_overlap={name: overlap(found, self._expected) for name, found in mixed.items()},
            recipes={str(recipe): found for (recipe, named), found in self._sampled.items() if named == self._always},
        )

    def _overlaps(self, candidates: Sequence[tuple[str, ...]], phase: str) -> list[float]:
        """overlap@10 on the sample with each candidate in float."""
        found = []
        for step, names in enumerate(candidates):
            found.append(self._overlap(self._recipe, self._floats([names])))
            self._on_step(phase, step + 1, len(candidates))
        return found

    def _overlap(self, recipe: Recipe, floats: Float) -> float:
        """overlap@10 on the sample, in which every picture searches all others, measured once."""
        key = recipe, floats
        if key not in self._sampled:
            descriptors = self._descriptors(self._open_int8(*key), self._sample)
            self._sampled[key] = overlap(_all_neighbours(descriptors), self._sample_expected)
            self._on_trial(
                Trial(
                    recipe=recipe,
                    keep_float=self._in_order(floats),
                    int8_share=self._share(floats),
                    pictures=len(descriptors),
                    overlap_at_10=self._sampled[key],
                )
            )
        return self._sampled[key]

    def _descriptors(self, backend: Backend, pictures: _Pictures, phase: str | None = None) -> Descriptors:
        parts, done = [], 0
        with backend:
            for pixels in pictures.batches():
                parts.append(backend.run(pixels))
                done += len(pixels)
                if phase:
                    self._on_step(phase, done, len(pictures))
        descriptors = np.concatenate(parts)
        if not np.isfinite(descriptors).all():
            raise ExportError("INT8 gives descriptors that are not numbers; build with --fp32.")
        return descriptors

    def _floats(self, order: Sequence[tuple[str, ...]]) -> Float:
        return self._always.union(*order)

    def _in_order(self, floats: Float) -> tuple[str, ...]:
        return tuple(name for name in self._work if name in floats)

    def _cost(self, names: Collection[str]) -> float:
        return sum(self._work[name] for name in names) / sum(self._work.values())

    def _share(self, floats: Float) -> float:
        return 1 - self._cost(floats)

    def _missed(self, plain: Trial) -> str:
        *_, last = self._measured.values()
        drop = "" if last.recall_drop is None else f"recall@1 drops {last.recall_drop.drop:.2f} pp and "
        return (
            f"no INT8 engine with {MIN_INT8_SHARE:.0%} of the convolution work in INT8 has {self._budget}: plain INT8 "
            f"has an overlap@10 of {plain.overlap_at_10:.3f}, and by {last.recipe} with {len(last.keep_float)} of "
            f"{len(self._work)} convolutions in float {drop}overlap@10 is {last.overlap_at_10:.3f}; allow more, "
            "calibrate on other pictures with --calib, or build with --fp32."
        )


@dataclass(frozen=True)
class _Pictures:
    """Pictures of a list as a model sees them; ``held`` uint8 [N, H, W, 3], or None to decode them each time."""

    images: ImageList
    spec: ModelSpec
    held: NDArray[np.uint8] | None = None

    @classmethod
    def decoded(cls, images: ImageList, spec: ModelSpec, on_step: OnStep) -> _Pictures:
        shape = (len(images), *spec.input_size, 3)
        if np.prod(shape, dtype=np.int64) > HELD_BYTES:
            return cls(images, spec)
        held = np.empty(shape, np.uint8)
        for indices, pixels in batches(images, spec, BATCH):
            held[indices] = pixels
            on_step("Decoding", indices[-1] + 1, len(images))
        return cls(images, spec, held)

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, chosen: NDArray[np.intp]) -> _Pictures:
        held = None if self.held is None else self.held[chosen]
        return _Pictures(self.images.subset(chosen.tolist()), self.spec, held)

    def batches(self) -> Iterator[NDArray[np.uint8]]:
        if self.held is None:
            yield from (pixels for _, pixels in batches(self.images, self.spec, BATCH))
        else:
            yield from (self.held[start : start + BATCH] for start in range(0, len(self), BATCH))


def _all_neighbours(descriptors: Descriptors) -> Indices:
    """Of each picture among all the others: int64 [N, NEIGHBOURS]."""
    return neighbours(descriptors, descriptors, NEIGHBOURS, skip_self=True)[0]


def _unheard(*_: object) -> None:
    pass
