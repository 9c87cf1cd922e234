"""Removes the metadata of PNG files whose metadata Pillow refuses. Decodes nothing.

Raising Pillow's limits on text would change them for the whole process, and let small files take much memory.
"""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Iterator
from typing import BinaryIO

SIGNATURE = b"\x89PNG\r\n\x1a\n"
PIXELS = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"})
TEXTS = frozenset({b"tEXt", b"zTXt", b"iTXt"})
ORIENTED_TEXTS = (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")
"""Keywords of texts that may hold the orientation of a picture."""


def without_metadata(file: BinaryIO) -> Iterator[BinaryIO]:
    """Yield the PNG ``file`` with its pixels and its orientation, then with its pixels alone; nothing for other files.

    Keeps the first frame of an animation. Holds the kept chunks in memory.
    """
    for oriented in (True, False):
        file.seek(0)
        if file.read(len(SIGNATURE)) != SIGNATURE:
            return
        yield io.BytesIO(SIGNATURE + b"".join(_chunks(file, oriented)))


def _chunks(file: BinaryIO, oriented: bool) -> Iterator[bytes]:
    """The chunks to keep, whole: length, name, content and checksum."""
    while len(head := file.read(8)) == 8:
        length, name = struct.unpack(">I4s", head)
        start = file.tell()
        if name in PIXELS or (oriented and _says_orientation(file, name)):
            file.seek(start)
            yield head + file.read(length + 4)
        else:
            file.seek(start + length + 4, os.SEEK_SET)
        if name == b"IEND":
            return


def _says_orientation(file: BinaryIO, name: bytes) -> bool:
    if name in TEXTS:
        return file.read(max(map(len, ORIENTED_TEXTS))).startswith(ORIENTED_TEXTS)
    return name == b"eXIf"
