"""How much INT8 may lose, how much a model lost, and whether its descriptors may share a gallery with FP32."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cgd_deploy.datasets.evaluation import Evaluation
from cgd_deploy.datasets.layouts import read_evaluation
from cgd_deploy.errors import InputError
from cgd_deploy.files import sha256_file
from cgd_deploy.pictures.images import ImageList
from cgd_deploy.quality.formatting import change, change_interval
from cgd_deploy.quality.significance import Drop
from cgd_deploy.search.retrieval import NEIGHBOURS

from .recipe import Recipe

OPTIONS = {"calibration": "--calib", "distillation": "--distill"}
SAFE_DROP_PP, SAFE_HIGH_PP, SAFE_OVERLAP = 0.3, 1.0, 0.95


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a model retrieves, compared with FP32.

    pictures           number of pictures described, queries and gallery
    compared           number of queries whose neighbours are compared
    held_out           whether no model was chosen on these queries
    overlap_at_10      fraction of FP32's ten nearest neighbours that the model finds too
    overlap_interval   ends of its 95 % interval, by the bootstrap over queries
    recall             recall@1; None without classes, and for a measurement on the sample
    recall_drop        drop of recall@1
    cross_recall_drop  drop of recall@1 when queries of one model search the gallery of the other, by direction
    cross_overlap      overlap@10 of the same two searches
    """

    pictures: int
    compared: int
    held_out: bool = False
    overlap_at_10: float
    overlap_interval: tuple[float, float]
    recall: float | None = None
    recall_drop: Drop | None = None
    cross_recall_drop: dict[str, Drop] = field(default_factory=dict)
    cross_overlap: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain dicts, lists and numbers; recall and drops are by K, as in the bench's JSON."""
        return {
            "pictures": self.pictures,
            "compared": self.compared,
            "held_out": self.held_out,
            "overlap_at_10": round(self.overlap_at_10, 5),
            "overlap_at_10_interval": list(self.overlap_interval),
            "cross_overlap_at_10": {name: round(value, 5) for name, value in self.cross_overlap.items()},
            "recall": {} if self.recall is None else {"1": round(self.recall, 5)},
            "recall_drop_pp": {"1": self.recall_drop._asdict()} if self.recall_drop else {},
            "cross_recall_drop_pp": {name: {"1": drop._asdict()} for name, drop in self.cross_recall_drop.items()},
        }


@dataclass(frozen=True, kw_only=True)
class Trial(Found):
    """What an INT8 model retrieves.

    recipe       recipe of the model
    keep_float   names of the convolutions that stay float, then of the residual adds
    float_adds   number of these adds
    int8_share   part of the convolution work that is INT8, 0 to 1
    recipes      overlap@10 on the sample of each recipe compared so far
    """

    recipe: Recipe
    keep_float: tuple[str, ...]
    float_adds: int = 0
    int8_share: float
    recipes: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return {
            **super().to_dict(),
            "recipe": str(self.recipe),
            "keep_float": list(self.keep_float),
            "float_adds": self.float_adds,
            "int8_share": round(self.int8_share, 5),
            "recipes": {name: round(value, 5) for name, value in self.recipes.items()},
        }


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How much INT8 may lose on test pictures; at least one limit is given.

    evaluation           the test pictures, and who searches whom
    max_recall_drop_pp   largest drop of recall@1, in percentage points
    min_overlap          smallest overlap@10 with FP32, 0 to 1
    confident            whether the limits count for the worse end of the 95 % interval; otherwise for the mean

    Half of the queries choose a model, the other half are held out for the report, see ``Evaluation.halves``.
    Raises InputError for limits that are missing, out of range or without classes, and for too few pictures.
    """

    evaluation: Evaluation
    max_recall_drop_pp: float | None = None
    min_overlap: float | None = None
    confident: bool = False

    def __post_init__(self) -> None:
        images, drop, least = self.evaluation.images, self.max_recall_drop_pp, self.min_overlap
        if drop is None and least is None:
            raise InputError(
                "test pictures need a limit to guard INT8; pass --max-recall-drop 0.1, --min-overlap 0.98 or both."
            )
        if drop is not None and not 0 <= drop <= 100:
            raise InputError(f"a largest recall drop of {drop} cannot be used; expected 0 to 100 percentage points.")
        if least is not None and not 0 <= least <= 1:
            raise InputError(f"a smallest overlap of {least} cannot be used; expected 0 to 1.")
        if drop is not None and images.classes is None:
            raise InputError(f"{images.root} has no classes, so recall cannot be measured; pass --min-overlap instead.")
        if drop is not None:
            self.evaluation.check_recall()
        self.evaluation.check_neighbours(NEIGHBOURS, "the guard")
        self._check_halves()
        images.check_present("test", "--data")

    def _check_halves(self) -> None:
        """Raise InputError unless both halves of the queries can measure what the limits need."""
        counted = np.ones(len(self.evaluation.queries), bool)
        if self.max_recall_drop_pp is not None:
            counted = self.evaluation.relevant > 0
        if not all(counted[rows].any() for rows in self.evaluation.halves()):
            raise InputError(
                f"the guard chooses on half of the queries in {self.evaluation.images.root} and reports on the other "
                "half, and all that can be answered are in one half; pass more test pictures, of several classes."
            )

    def holds(self, trial: Trial) -> bool:
        """Whether ``trial`` keeps the limits: its means, or with ``confident`` the worse ends of its intervals."""
        return self._keeps(trial, "worse" if self.confident else "mean")

    def contradicted_by(self, trial: Trial) -> bool:
        """Whether the held-out ``trial`` misses a limit by more than chance: even with the better ends of its
        intervals. With ``confident``, its means must keep the limits.

        The chosen model often holds a limit by a hair, so half of the time another half of the queries misses it.
        """
        return not self._keeps(trial, "mean" if self.confident else "better")

    def _keeps(self, trial: Trial, end: str) -> bool:
        low, high = trial.overlap_interval
        overlap = {"worse": low, "mean": trial.overlap_at_10, "better": high}[end]
        if self.min_overlap is not None and overlap < self.min_overlap:
            return False
        if self.max_recall_drop_pp is None:
            return True
        drop = trial.recall_drop
        return drop is not None and (
            {"worse": drop.high, "mean": drop.drop, "better": drop.low}[end] <= self.max_recall_drop_pp
        )

    @property
    def limits(self) -> dict[str, Any]:
        """The limits as the manifest records them."""
        return {
            "max_recall_drop_pp": self.max_recall_drop_pp,
            "min_overlap_at_10": self.min_overlap,
            "confident": self.confident,
        }

    def __str__(self) -> str:
        drop = [] if self.max_recall_drop_pp is None else [f"a recall@1 drop of at most {self.max_recall_drop_pp} pp"]
        least = [] if self.min_overlap is None else [f"an overlap@10 of at least {self.min_overlap}"]
        return " and ".join(drop + least) + (" at the worse end of the 95 % interval" if self.confident else "")


def read_budget(
    data: str | Path | None,
    max_recall_drop_pp: float | None = None,
    min_overlap: float | None = None,
    confident: bool = False,
) -> Budget | None:
    """The budget on the test pictures of ``data``, see ``read_evaluation``; None if nothing is given.

    Raises InputError for limits without ``data``, and what ``Budget`` and ``read_evaluation`` raise.
    """
    if data is None:
        if max_recall_drop_pp is None and min_overlap is None and not confident:
            return None
        raise InputError("limits are measured on test pictures; pass --data FOLDER or LIST.tsv with them.")
    evaluation = read_evaluation(data)
    return Budget(
        evaluation=evaluation, max_recall_drop_pp=max_recall_drop_pp, min_overlap=min_overlap, confident=confident
    )


def check_disjoint(images: ImageList, testing: ImageList, purpose: str = "calibration") -> None:
    """Raise InputError if both lists hold the same picture: the same resolved path, or the same bytes."""
    images.check_present(purpose, OPTIONS[purpose])
    tested = {path.resolve() for path in testing.paths}
    sizes = set(images.sizes)
    # Only files of one size can have the same bytes, so a large test set is mostly not read.
    digests = {
        sha256_file(path)
        for path, size in zip(testing.paths, testing.sizes, strict=True)
        if size in sizes and path.is_file()
    }
    present = [path for path in images.paths if path.is_file()]
    shared = [path for path in present if path.resolve() in tested or sha256_file(path) in digests]
    if shared:
        raise InputError(
            f"{len(shared)} of {len(images)} {purpose} pictures are among the test pictures, {shared[0]} for "
            f"one; pass others with {OPTIONS[purpose]} or --data."
        )


def statement(trial: Found) -> str:
    """One line: whether INT8 and FP32 descriptors may share a gallery, and the numbers that decide it.

    They may if recall@1 of both mixed searches drops by at most 0.3 percentage points, and by at most 1 at the worse
    end of the 95 % interval. Without classes, they may if overlap@10 of both searches is at least 0.95. The line gives
    the numbers of the worse search.
    """
    shared = min(trial.cross_overlap.values())
    told = f"overlap@10 {100 * shared:.1f} %"
    safe = shared >= SAFE_OVERLAP
    if trial.cross_recall_drop:
        drops = trial.cross_recall_drop.values()
        safe = all(drop.drop <= SAFE_DROP_PP and drop.high <= SAFE_HIGH_PP for drop in drops)
        worst = max(drops)
        told = f"recall@1 {change(worst.drop)} pp (95 %: {change_interval((worst.low, worst.high), ' to ')}), {told}"
    return f"{'safe' if safe else 'not safe'} to mix with an FP32 gallery: {told}"


def retrieval_facts(found: Found, evaluation: Evaluation, limits: dict[str, Any]) -> dict[str, Any]:
    """The manifest's "retrieval": what held-out queries find, the list of pictures, and whether galleries may be mixed.

    limits   that chose the model, see ``Budget.limits``; none for a model that no limit chose
    """
    unanswerable = None
    if evaluation.images.classes is not None:
        unanswerable = int((evaluation.relevant[evaluation.halves()[1]] == 0).sum())
    return {
        **found.to_dict(),
        "pictures_sha256": evaluation.images.sha256,
        "queries": {"asked": found.compared, "unanswerable": unanswerable},
        "limits": limits,
        "statement": statement(found),
    }
