"""Decode pictures for training and evaluation, in threads. Knows no tensors; the model applies mean and std.

Decoding and resizing release Python's lock, so threads decode in parallel, and they share one cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from cgd_deploy.pictures.images import ImageList
from cgd_deploy.pictures.preprocess import ahead, batches, decode, fit
from cgd_deploy.spec import ModelSpec

Pixels = NDArray[np.uint8]

CACHE_BYTES = 512 << 20
LARGER = 252 / 224
"""Pictures are resized to the input size times this factor before the random crop, as in the paper."""


class TrainingPictures:
    """The training pictures, resized a little larger than the model's input and cropped at random.

    images       the list
    spec         gives the input size and the resize rule; pictures become 252 / 224 of the input size, and the rule's
                 shorter side grows to that where it is smaller
    cache_bytes  resized pictures stay in memory if all of them fit in this many bytes
    """

    def __init__(self, images: ImageList, spec: ModelSpec, cache_bytes: int = CACHE_BYTES) -> None:
        self.images = images
        self.size = spec.input_size
        self.larger = (round(self.size[0] * LARGER), round(self.size[1] * LARGER))
        rule = spec.rule
        self.rule = rule if rule.shorter is None else replace(rule, shorter=max(rule.shorter, *self.larger))
        shape = (len(images), *self.larger, 3)
        self._cache = np.empty(shape, np.uint8) if np.prod(shape, dtype=np.int64) <= cache_bytes else None
        self._cached = np.zeros(len(images), bool)

    def crop(self, index: int, random: np.random.Generator) -> Pixels:
        """A random crop of picture ``index``, flipped left to right with probability 1/2: uint8 [H, W, 3].

        Raises InputError if the picture cannot be decoded.
        """
        pixels = self._resized(index)
        height, width = self.size
        top = random.integers(0, self.larger[0] - height + 1)
        left = random.integers(0, self.larger[1] - width + 1)
        crop = pixels[top : top + height, left : left + width]
        return crop[:, ::-1] if random.random() < 0.5 else crop

    def _resized(self, index: int) -> Pixels:
        if self._cache is not None and self._cached[index]:
            return self._cache[index]
        path = self.images.path(index)
        pixels = np.asarray(fit(decode(path, self.images.box(index)), self.rule, self.larger, str(path)))
        if self._cache is not None:
            self._cache[index] = pixels
            self._cached[index] = True
        return pixels


def training_batches(
    pictures: TrainingPictures,
    indices: Sequence[Sequence[int]],
    *,
    seed: int,
    epoch: int,
    workers: int,
    places: slice = slice(None),
) -> Iterator[Pixels]:
    """Yield uint8 [n, H, W, 3] for the ``places`` of each list in ``indices``; ``workers`` threads decode ahead.

    A crop depends only on (seed, epoch, batch, place in the batch). So resuming and the number of workers change no
    crop, and a picture that is twice in a batch gets two crops.
    """

    def batch(number: int) -> Pixels:
        chosen = list(enumerate(indices[number]))[places]
        return np.stack([pictures.crop(i, np.random.default_rng((seed, epoch, number, n))) for n, i in chosen])

    return ahead(batch, range(len(indices)), workers, depth=workers + 1)


class EvaluationPictures:
    """The test pictures as the deployed model sees them; iterating yields uint8 [n, H, W, 3] in list order.

    The pixels stay in memory after the first pass if all of them fit in ``cache_bytes``.
    """

    def __init__(
        self, images: ImageList, spec: ModelSpec, batch_size: int, workers: int, cache_bytes: int = CACHE_BYTES
    ) -> None:
        self._made = (images, spec, batch_size, workers)
        self._keep = len(images) * spec.input_size[0] * spec.input_size[1] * 3 <= cache_bytes
        self._kept: list[Pixels] = []

    def __len__(self) -> int:
        """Number of batches."""
        images, _, batch_size, _ = self._made
        return -(-len(images) // batch_size)

    def __iter__(self) -> Iterator[Pixels]:
        if self._kept:
            yield from self._kept
            return
        made = []
        for _, pixels in batches(*self._made):
            if self._keep:
                made.append(pixels)
            yield pixels
        self._kept = made
