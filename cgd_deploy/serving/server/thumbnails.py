"""Small JPEG files of pictures, for a page."""

from __future__ import annotations

import io

from PIL import Image

from ...pictures.preprocess import decode

SIDE = 320


def thumbnail(path: str) -> bytes:
    """The picture at ``path``, at most ``SIDE`` pixels wide and high, as JPEG. Raises InputError as ``decode`` does."""
    image = decode(path, least=SIDE)
    image.thumbnail((SIDE, SIDE), Image.Resampling.BILINEAR)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=85)
    return file.getvalue()
