"""Measure which neighbours INT8 models find: on a sample to rank the models, on half of the queries to choose one, on
the other half to report it.

Compares neighbours with FP32's neighbours, never cosines or squared errors. Knows no layout and no runtime: the caller
opens models.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import onnx
from numpy.typing import NDArray

from cgd_deploy.datasets.evaluation import Evaluation
from cgd_deploy.errors import ExportError
from cgd_deploy.hardware.timing import interleaved
from cgd_deploy.pictures.images import ImageList
from cgd_deploy.pictures.preprocess import batches
from cgd_deploy.quality.significance import mean_interval, recall_drops
from cgd_deploy.runtime.backends import Backend
from cgd_deploy.runtime.descriptors import Descriptors
from cgd_deploy.search.retrieval import NEIGHBOURS, Indices, neighbours, overlap, overlaps
from cgd_deploy.spec import ModelSpec

from ..metadata import get_metadata
from ..progress import OnStep, Progress
from ..proof import convolution_work
from .budget import Found, Trial
from .recipe import Recipe

BATCH = 8
SAMPLE = 256
"""Pictures on which candidates are ranked; no held-out query is among them."""
HELD_BYTES = 512 << 20
"""Up to this size, decoded pictures stay in memory; beyond it, each measurement decodes them again."""
FROM_INT8, FROM_FP32 = "int8 queries, fp32 gallery", "fp32 queries, int8 gallery"

Names = frozenset[str]
"""Names of the convolutions and residual adds that stay float."""
Timer = Callable[[Mapping[str, Callable[[], object]]], Mapping[str, float]]
"""Runs contestants in turns; returns the seconds of a call, by contestant."""
LEAST_COST = 0.005
"""The part of a model's time below which a measured difference is noise."""


def timed(contestants: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """The median seconds of a call by contestant; they take turns, with at least 12 calls each."""
    return {name: float(np.median(taken)) for name, taken in interleaved(contestants, seconds=0).items()}


@dataclass(frozen=True, kw_only=True)
class Models:
    """Opens the models that trials measure.

    fp32    opens the FP32 model
    int8    opens the INT8 model of a recipe with the named nodes in float, as the engine will run it
    timer   finds what layers cost in float; None if opened models do not run at the speed of the engine
    adds    names of the residual adds that may be float too, at a cost that ``timer`` finds
    """

    fp32: Callable[[], Backend]
    int8: Callable[[Recipe, Names], Backend]
    timer: Timer | None = timed
    adds: tuple[str, ...] = ()


@dataclass(frozen=True)
class Work:
    """The convolution work of a model: floating-point operations by node name, in graph order."""

    operations: dict[str, int]

    def part(self, names: Collection[str]) -> float:
        """The part of the work that the named nodes do, 0 to 1; an add does none."""
        return sum(self.operations.get(name, 0) for name in names) / sum(self.operations.values())

    def in_order(self, names: Collection[str]) -> tuple[str, ...]:
        """The convolutions of ``names`` in graph order, then the others by name."""
        return (*(name for name in self.operations if name in names), *sorted(set(names) - self.operations.keys()))


class Trials:
    """INT8 models of one FP32 model, each opened and measured once.

    evaluation   the test pictures and who searches whom
    always       convolutions and residual adds that are float in every model

    Raises ExportError for descriptors that are not numbers, InputError for pictures that cannot be read.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        models: Models,
        evaluation: Evaluation,
        always: Names,
        progress: Progress,
    ) -> None:
        self.always, self.adds, self.progress = always, models.adds, progress
        self.work = Work(convolution_work(model))
        self._models, self._evaluation = models, evaluation
        images = evaluation.images
        self._pictures = _Pictures.decoded(images, get_metadata(model).spec, progress.on_step)
        self._reference = self._descriptors(models.fp32(), self._pictures, "Measuring FP32")
        self._expected = evaluation.neighbours(self._reference, NEIGHBOURS)[0]
        self._choosing, self._held_out = evaluation.halves()
        free = np.setdiff1d(np.arange(len(images)), evaluation.queries[self._held_out])
        chosen = free[np.linspace(0, len(free) - 1, min(SAMPLE, len(free))).round().astype(int)]
        self._sample = self._pictures.subset(chosen)
        self._sample_expected = _all_neighbours(self._reference[chosen])
        self._sampled: dict[tuple[Recipe, Names], float] = {}
        self._measured: dict[tuple[Recipe, Names], tuple[Trial, Trial]] = {}

    @property
    def recipes(self) -> dict[str, float]:
        """Overlap@10 on the sample of each recipe, with only ``always`` in float."""
        return {str(recipe): found for (recipe, floats), found in self._sampled.items() if floats == self.always}

    @property
    def last(self) -> Trial:
        """The latest measurement on the choosing half."""
        return list(self._measured.values())[-1][0]

    def measure(self, recipe: Recipe, order: Sequence[tuple[str, ...]] = ()) -> Trial:
        """Measure on the choosing half the model that has ``always`` and the nodes of ``order`` in float."""
        key = recipe, self.always.union(*order)
        if key not in self._measured:
            found = self.compared(self._models.int8(*key), f"Measuring INT8 with {len(key[1])} in float")
            choosing, held_out = (self.trial(*key, half) for half in found)
            self._measured[key] = choosing, held_out
            self.progress.on_trial(choosing)
        return self._measured[key][0]

    def held_out(self, chosen: Trial) -> Trial:
        """What the model of ``chosen``, which ``measure`` returned, retrieves for the held-out half of the queries."""
        found = self._measured[chosen.recipe, frozenset(chosen.keep_float)][1]
        self.progress.on_trial(found)
        return found

    def overlap(self, recipe: Recipe, names: Collection[str] = ()) -> float:
        """Overlap@10 on the sample, where every picture searches all others, with ``names`` in float too."""
        key = recipe, self.always.union(names)
        if key not in self._sampled:
            descriptors = self._descriptors(self._models.int8(*key), self._sample)
            shared = overlaps(_all_neighbours(descriptors), self._sample_expected)
            self._sampled[key] = float(shared.mean())
            found = Found(
                pictures=len(descriptors),
                compared=len(descriptors),
                overlap_at_10=self._sampled[key],
                overlap_interval=mean_interval(shared),
            )
            self.progress.on_trial(replace(self.trial(*key, found), recipes={}))
        return self._sampled[key]

    def overlaps(self, recipe: Recipe, candidates: Sequence[tuple[str, ...]], phase: str) -> list[float]:
        """``overlap`` with each candidate in float."""
        found = []
        for step, names in enumerate(candidates):
            found.append(self.overlap(recipe, names))
            self.progress.on_step(phase, step + 1, len(candidates))
        return found

    def costs(self, recipe: Recipe, base: Collection[str], others: Sequence[tuple[str, ...]]) -> list[float]:
        """By how much the time differs with each of ``others`` instead of ``base`` in float, as a part of the time.

        Base and other run the same batch in turns, on this machine. A difference below LEAST_COST, which is noise,
        counts as LEAST_COST. Without a timer, the cost is the part of the convolution work.
        """
        if self._models.timer is None:
            return [abs(self.work.part(names) - self.work.part(base)) for names in others]
        pixels = next(self._sample.batches())
        found = []
        with self._models.int8(recipe, self.always.union(base)) as first:
            for step, names in enumerate(others):
                with self._models.int8(recipe, self.always.union(names)) as second:
                    calls = {"base": partial(first.run, pixels), "other": partial(second.run, pixels)}
                    seconds = self._models.timer(calls)
                slower = seconds["other"] / seconds["base"] - 1
                found.append(max(slower if len(names) > len(base) else -slower, LEAST_COST))
                self.progress.on_step("Timing", step + 1, len(others))
        return found

    def compared(self, backend: Backend, phase: str) -> tuple[Found, Found]:
        """What a model retrieves for the choosing and for the held-out half of the queries. Closes the backend."""
        descriptors = self._descriptors(backend, self._pictures, phase)
        held_out = replace(self._compared(descriptors, self._held_out), held_out=True)
        return self._compared(descriptors, self._choosing), held_out

    def trial(self, recipe: Recipe, floats: Collection[str], found: Found) -> Trial:
        """The trial of the model with ``floats`` in float, which retrieves ``found``."""
        return Trial(
            **{name: getattr(found, name) for name in Found.__dataclass_fields__},
            recipe=recipe,
            keep_float=self.work.in_order(floats),
            float_adds=len(set(floats) - self.work.operations.keys()),
            int8_share=1 - self.work.part(floats),
            recipes=self.recipes,
        )

    def _compared(self, descriptors: Descriptors, rows: Indices) -> Found:
        """Compare the neighbours of the queries in ``rows``."""
        evaluation, reference, expected = self._evaluation, self._reference, self._expected
        alone = evaluation.neighbours(descriptors, NEIGHBOURS)[0]
        mixed = {
            FROM_INT8: evaluation.neighbours(descriptors, NEIGHBOURS, gallery=reference)[0],
            FROM_FP32: evaluation.neighbours(reference, NEIGHBOURS, gallery=descriptors)[0],
        }
        drops = {name: recall_drops(evaluation, expected, found, (1,), rows) for name, found in mixed.items()}
        shared = overlaps(alone[rows], expected[rows])
        drop = recall_drops(evaluation, expected, alone, (1,), rows).get("1")
        return Found(
            pictures=len(descriptors),
            compared=len(rows),
            overlap_at_10=float(shared.mean()),
            overlap_interval=mean_interval(shared),
            recall=float((evaluation.first_correct(alone, rows) < 1).mean()) if drop else None,
            recall_drop=drop,
            cross_recall_drop={name: drop["1"] for name, drop in drops.items() if drop},
            cross_overlap={name: overlap(found[rows], expected[rows]) for name, found in mixed.items()},
        )

    def _descriptors(self, backend: Backend, pictures: _Pictures, phase: str | None = None) -> Descriptors:
        parts, done = [], 0
        with backend:
            for pixels in pictures.batches():
                parts.append(backend.run(pixels))
                done += len(pixels)
                if phase:
                    self.progress.on_step(phase, done, len(pictures))
        descriptors = np.concatenate(parts)
        if not np.isfinite(descriptors).all():
            raise ExportError("INT8 gives descriptors that are not numbers; build with --fp32.")
        return descriptors


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
    """The NEIGHBOURS nearest of each picture among all the others, int64 [N, K]; of few pictures, the nearer half."""
    k = min(NEIGHBOURS, max(1, (len(descriptors) - 1) // 2))
    return neighbours(descriptors, descriptors, k, skip_self=True)[0]
