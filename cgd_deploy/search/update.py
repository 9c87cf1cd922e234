"""Brings an index up to date with a list of pictures, and embeds only what is new or has changed."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from ..errors import InputError
from ..pictures.images import ImageList
from ..runtime.engine import Engine
from .contents import UNKNOWN, content_of
from .embedding import Reading, embed_images
from .gallery import Index

Picture = tuple[str, bytes]
"""The absolute path and the checksum of a picture."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Updated:
    """How many rows an update added, embedded again, removed, and kept as they were."""

    added: int
    changed: int
    removed: int
    kept: int


def why_again(index: Index, engine: Engine, descriptor_dtype: str, pca: int | None) -> str | None:
    """Why ``update_index`` cannot keep a row of this index in the form that is wanted, as a clause; None if it can."""
    compact = index.compact
    if index.moment.contents is None:
        return "it has no checksums of its pictures"
    if index.space_id != engine.spec.space_id:
        return f"it describes space {index.space_id} and the engine describes {engine.spec.space_id}"
    if index.precision != engine.precision.value:
        return f"it holds {index.precision} descriptors and the engine makes {engine.precision.value} ones"
    if (compact.dtype, compact.pca) != (descriptor_dtype, pca):
        return f"it keeps {_form(compact.dtype, compact.pca)} and not {_form(descriptor_dtype, pca)}"
    return None


def update_index(
    index: Index,
    engine: Engine,
    images: ImageList,
    reading: Reading | None = None,
    on_error: Callable[[int, InputError], None] | None = None,
    on_pictures: Callable[[int], None] | None = None,
    on_note: Callable[[str], None] | None = None,
) -> Updated:
    """Make ``index`` hold the pictures of a list and no others, see ``write_index`` to keep that.

    A picture whose file and box have the checksum in the index keeps its row, and nobody decodes it. Other pictures are
    embedded, and their rows come last. A PCA stays as it is. Takes further arguments as ``index_images`` does;
    ``on_pictures`` also counts pictures that are kept.

    Raises InputError if ``why_again`` gives a reason, and if no picture of the list can be read.
    """
    if again := why_again(index, engine, index.compact.dtype, index.compact.pca):
        raise InputError(f"the index cannot be updated: {again}; make it again with `index_images`.")
    wanted = [(os.path.abspath(path), content_of(path, images.box(number))) for number, path in enumerate(images.paths)]
    gone = _rows(index)
    new = [number for number, picture in enumerate(wanted) if not _take(gone, picture)]
    kept = len(images) - len(new)
    if on_pictures:
        on_pictures(kept)
    bad = None if on_error is None else lambda number, error: on_error(new[number], error)
    read, descriptors = embed_images(engine, images.subset(new), reading or Reading(), bad, on_pictures, on_note)
    embedded = [new[number] for number in read]
    if not kept and not embedded:
        raise InputError(f"none of the {len(images)} pictures could be read; the index was not changed.")
    named = [(str(images.path(number)), wanted[number][1]) for number in embedded]
    index.update([row for rows in gone.values() for row in rows], index.compact.store(descriptors), named)

    lost = Counter(path for (path, _), rows in gone.items() for _ in rows)
    changed = (lost & Counter(wanted[number][0] for number in embedded)).total()
    return Updated(added=len(embedded) - changed, changed=changed, removed=lost.total() - changed, kept=kept)


def _rows(index: Index) -> dict[Picture, list[int]]:
    """The numbers of an index's rows, by picture."""
    rows: dict[Picture, list[int]] = {}
    for number, path, content in index.moment.pictures():
        rows.setdefault((os.path.abspath(path), content), []).append(number)
    return rows


def _take(rows: dict[Picture, list[int]], picture: Picture) -> bool:
    """Take a row of this picture out of ``rows``; False if there is none."""
    if picture[1] == UNKNOWN or not rows.get(picture):
        return False
    rows[picture].pop()
    return True


def _form(dtype: str, pca: int | None) -> str:
    return dtype if pca is None else f"{dtype} with PCA {pca}"
