"""Golden pictures for self-tests. A seed makes them, so they show nobody and every machine can make them again."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..spec import ModelSpec


def golden_images(spec: ModelSpec, count: int = 4, seed: int = 0) -> NDArray[np.uint8]:
    """Seeded coloured clouds with fine grain: uint8 [count, H, W, 3]."""
    random = np.random.default_rng(seed)
    height, width = spec.input_size
    pictures = []
    for _ in range(count):
        coarse = Image.fromarray(random.integers(0, 256, (7, 7, 3), np.uint8)).resize(
            (width, height), Image.Resampling.BICUBIC
        )
        grain = random.normal(0, 12, (height, width, 1))
        pictures.append(np.clip(np.asarray(coarse) + grain, 0, 255).astype(np.uint8))
    return np.stack(pictures)
