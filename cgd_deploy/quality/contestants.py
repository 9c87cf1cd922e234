"""What a bench compares: things that embed, what each retrieves and how fast each is. Knows no engine and no file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..datasets.evaluation import Evaluation
from ..hardware.timing import percentiles_ms
from ..pictures.preprocess import batches
from ..runtime.descriptors import Descriptors
from ..search.retrieval import NEIGHBOURS, Retrieved
from ..spec import ModelSpec

QUALITY_BATCH = 8
"""Batch size of ``retrieve``."""

Run = Callable[[NDArray[np.uint8]], Descriptors]
"""Pictures uint8 [N, H, W, 3] -> descriptors float32 [N, D]."""
OnProgress = Callable[[str, float], None]
"""Called with the name of a step and the fraction of the step that is done."""


@dataclass(frozen=True)
class Contestant:
    """Something that embeds pictures. Titles differ within one comparison."""

    title: str
    precision: str
    run: Run


def retrieve(
    contestants: Sequence[Contestant], evaluation: Evaluation, spec: ModelSpec, on_progress: OnProgress
) -> dict[str, Retrieved]:
    """The neighbours that each contestant finds for each query, by title; every picture is decoded once."""
    parts: dict[str, list[Descriptors]] = {contestant.title: [] for contestant in contestants}
    seen = 0
    for indices, pixels in batches(evaluation.images, spec, QUALITY_BATCH):
        for contestant in contestants:
            parts[contestant.title].append(contestant.run(pixels))
        seen += len(indices)
        on_progress("embedding", seen / len(evaluation.images))
    depth = min(max(NEIGHBOURS, *evaluation.recall_at), evaluation.offered)
    embedded = {title: np.concatenate(part) for title, part in parts.items()}
    return {title: Retrieved(found, *evaluation.neighbours(found, depth)) for title, found in embedded.items()}


def speed(taken: Mapping[str, Sequence[float]], title: str, baseline: str | None, batch: int) -> dict[str, Any]:
    """The JSON of one contestant's speed at one batch size.

    taken      seconds of each timed call, by title
    baseline   title of the torch run that speed-ups refer to; None gives no speed-up
    """
    median = float(np.median(taken[title]))
    return {
        "latency_ms": percentiles_ms(taken[title]),
        "images_per_second": round(batch / median, 3),
        "speedup_vs_torch": None if baseline is None else round(float(np.median(taken[baseline])) / median, 4),
    }
