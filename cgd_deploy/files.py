"""Writes files whole or not at all, reads them safely, and computes checksums."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .errors import CgdError, InputError
from .limits import check_size

ABANDONED = 3600.0
"""Seconds without a write after which a temporary file counts as left by a killed process."""

BLOCKS, BLOCK = 256, 4096
"""How many blocks of how many bytes ``sampled_sha256`` reads."""


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it over ``path`` on success, delete it on any error.

    The bytes are on the disk before the file gets its name, so a power cut leaves no empty file. Deletes temporary
    files that killed writers of ``path`` left, see ``ABANDONED``. Raises InputError if the file cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file():
            kind = "a folder" if path.is_dir() else "not a regular file"
            raise InputError(f"cannot write {path}: it is {kind}; give the name of a file.")
        _sweep(path)
        yield temporary
        sync(temporary)
        temporary.replace(path)
        with suppress(OSError):  # not every system can sync a folder
            sync(path.parent)
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise
        raise InputError(f"cannot write {path}: {error.strerror or error}; choose another output path.") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def sync(path: str | Path) -> None:
    """Wait until the bytes of a file, or the names in a folder, are on the disk. Raises OSError."""
    opened = os.open(path, os.O_RDONLY if Path(path).is_dir() else os.O_RDWR)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def write_text(path: str | Path, text: str) -> Path:
    """Write ``text`` as UTF-8 atomically and return the path. File names in another encoding keep their bytes."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape")
    return Path(path)


def check_file(path: str | Path, limit: str, error: type[CgdError] = InputError) -> None:
    """Raise ``error`` for a pipe, a device, or a file larger than ``limit`` allows; OSError without a file.

    limit   the name of a field of ``Limits``
    """
    there = os.stat(path)
    if not stat.S_ISREG(there.st_mode):
        raise error(f"{path} is not a regular file; give the name of a file.")
    check_size(str(path), there.st_size, limit, error)


def parse_json(text: bytes) -> Any:
    """The values in a JSON text. Raises ValueError for text that is not UTF-8 and for values outside JSON, as NaN."""
    return json.loads(text, parse_constant=_no_constant)


def sha256_bytes(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: str | Path) -> str:
    """SHA-256 of a file's bytes, as 64 hex digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sampled_sha256(path: str | Path) -> str:
    """SHA-256 of a file's size and of BLOCKS blocks spread evenly over it, the first and the last bytes included.

    It tells files of two runs apart without reading a large file whole. It does not find a damaged byte between blocks.
    """
    size = os.path.getsize(path)
    digest = hashlib.sha256(str(size).encode())
    with open(path, "rb") as file:
        for number in range(BLOCKS):
            file.seek(max(size - BLOCK, 0) * number // (BLOCKS - 1))
            digest.update(file.read(BLOCK))
    return digest.hexdigest()


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _sweep(path: Path) -> None:
    for part in path.parent.glob(f".{glob.escape(path.name)}.{'[0-9a-f]' * 8}.part"):
        with suppress(OSError):
            if time.time() - part.stat().st_mtime > ABANDONED:
                part.unlink()
