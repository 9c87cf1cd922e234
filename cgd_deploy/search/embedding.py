"""Pictures become descriptors, and descriptors become an index. Writes no file."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..errors import InputError
from ..pictures.images import ImageList
from ..runtime.descriptors import Descriptors
from ..runtime.engine import Engine
from .compact import check_finite, check_form, fit
from .contents import as_array, content_of
from .gallery import Index


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """How pictures are read for an index, see ``Engine.embed_list``."""

    batch_size: int | None = None
    fast_decode: bool = False
    decoder: str = "pillow"


def index_images(
    engine: Engine,
    images: ImageList,
    reading: Reading | None = None,
    on_error: Callable[[int, InputError], None] | None = None,
    on_pictures: Callable[[int], None] | None = None,
    on_note: Callable[[str], None] | None = None,
    *,
    descriptor_dtype: str = "float32",
    pca: int | None = None,
) -> Index:
    """Embed a list of pictures into an index.

    on_error      called with the number of each bad picture, which is left out; None: the first bad picture raises
    on_pictures   called with how many pictures were embedded since the last call
    on_note       called with sentences about how pictures are decoded
    descriptor_dtype, pca   how the index keeps descriptors, see ``compact.fit``

    Raises InputError if no picture can be read, or if the gallery cannot have that form.
    """
    check_form(descriptor_dtype, pca, engine.spec.dim, len(images))
    began = time.time()
    kept, descriptors = embed_images(engine, images, reading or Reading(), on_error, on_pictures, on_note)
    if not kept:
        raise InputError(f"none of the {len(images)} pictures could be read; the index was not written.")
    paths = [str(images.path(number)) for number in kept]
    contents = as_array([content_of(images.path(number), images.box(number), began) for number in kept])
    compact = fit(descriptors, descriptor_dtype, pca)
    stored, manifest = compact.store(descriptors), engine.manifest
    return Index(stored, paths, engine.spec.space_id, engine.precision.value, compact, manifest.statement, contents)


def embed_images(
    engine: Engine,
    images: ImageList,
    reading: Reading,
    on_error: Callable[[int, InputError], None] | None = None,
    on_pictures: Callable[[int], None] | None = None,
    on_note: Callable[[str], None] | None = None,
) -> tuple[list[int], Descriptors]:
    """The numbers of the n pictures that could be read, and their descriptors float32 [n, dim].

    Takes arguments as ``index_images`` does. Raises InputError if a descriptor is not finite.
    """
    kept: list[int] = []
    parts = [np.empty((0, engine.spec.dim), np.float32)]
    for numbers, descriptors in engine.embed_list(
        images, reading.batch_size, on_error, reading.fast_decode, reading.decoder, on_note
    ):
        check_finite(descriptors, lambda row, numbers=numbers: str(images.path(numbers[row])))  # type: ignore[misc]
        kept += numbers
        parts.append(descriptors)
        if on_pictures:
            on_pictures(len(numbers))
    return kept, np.concatenate(parts)
