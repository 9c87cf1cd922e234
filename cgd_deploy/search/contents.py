"""Checksums of pictures: what their files hold, and the box. They tell which pictures of an index have changed."""

from __future__ import annotations

import hashlib
import os
from math import inf
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..pictures.lists import Box

SIZE = 16
"""Bytes of a checksum: the start of a SHA-256."""
UNKNOWN = bytes(SIZE)
"""The checksum of a picture that nobody could read; it equals the checksum of no picture."""

Contents = NDArray[np.uint8]
"""A checksum of each picture, uint8 [N, SIZE]."""


def content_of(path: Path, box: Box | None, before: float = inf) -> bytes:
    """The checksum of a picture's file and box.

    UNKNOWN if the file cannot be read, or if it changed after ``before``, in seconds since 1970: the descriptor may
    then be of an older picture.
    """
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_ctime >= before:
                return UNKNOWN
            digest = hashlib.sha256(repr(box).encode())
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError:
        return UNKNOWN
    return digest.digest()[:SIZE]


def as_array(contents: list[bytes]) -> Contents:
    """Checksums as an array, uint8 [N, SIZE]."""
    return np.frombuffer(b"".join(contents), np.uint8).reshape(-1, SIZE)


def as_text(contents: Contents) -> str:
    """Checksums as hex digits, one after the other, for JSON."""
    return contents.tobytes().hex()


def from_text(text: str) -> Contents:
    """The inverse of ``as_text``. Raises ValueError for other text."""
    return np.frombuffer(bytes.fromhex(text), np.uint8).reshape(-1, SIZE)
