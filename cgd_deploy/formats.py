"""Picture formats: their names, suffixes and first bytes in Pillow, and plugins that add formats. Decodes nothing."""

from __future__ import annotations

import struct
from collections.abc import Collection, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from .errors import InputError, MissingDependency, install_line

PLUGINS = {
    "HEIF": ("pillow_heif.HeifImagePlugin", "pillow-heif"),
    "JXL": ("pillow_jxl", "pillow-jxl-plugin"),
}
"""By format: the module that registers the format with Pillow when imported, and the package of the module."""
SUFFIXES = {".heic": "HEIF", ".heif": "HEIF", ".hif": "HEIF", ".jxl": "JXL"}
"""Suffixes of the formats in ``PLUGINS``, whether or not the plugins are installed."""
HEAD = 64
"""Bytes at the start of a file that show its format."""
UNFINISHED = frozenset({".bak", ".crdownload", ".old", ".orig", ".part", ".partial", ".tmp"})
"""Suffixes of downloads and backups, which hold broken or duplicate pictures."""


def format_name(name: str) -> str:
    """Pillow's name of a format, from its name or a suffix: "jpg" gives "JPEG".

    Raises InputError for a format that neither Pillow nor a known plugin reads; MissingDependency if the plugin is not
    installed.
    """
    import PIL

    suffix, upper = f".{name.lower().lstrip('.')}", name.upper().lstrip(".")
    known = _openers()
    upper = SUFFIXES.get(suffix, upper)
    if upper in PLUGINS and upper not in known:
        _load_plugin(upper)
    upper = upper if upper in known else _by_suffix().get(suffix, upper)
    if upper in known:
        return upper
    if upper in PLUGINS:
        package = PLUGINS[upper][1]
        raise MissingDependency(
            f"limit formats={name} needs {package}, which is not installed; run `{install_line('formats', package)}`."
        )
    raise InputError(f"limit formats={name} is unknown to Pillow {PIL.__version__}; it has {', '.join(known)}.")


def readable(formats: Sequence[str]) -> tuple[str, ...]:
    """The members of ``formats`` that this Pillow opens, with the plugins that are installed."""
    known = _openers()
    return tuple(name for name in formats if name in known or (_load_plugin(name) and name in known))


def is_picture(path: Path, formats: Sequence[str]) -> bool:
    """Whether a file has one of ``formats``, by its suffix, else by its first bytes.

    Raises OSError for a file with another suffix that cannot be read.
    """
    formats, suffix = readable(formats), path.suffix.lower()
    if _by_suffix().get(suffix) in formats:
        return True
    if suffix in UNFINISHED or path.name.endswith("~"):
        return False
    with path.open("rb") as file:
        head = file.read(HEAD)
    return any(_starts(name, head, suffix) for name in formats)


def readable_with(suffixes: Collection[str]) -> list[str]:
    """The formats from plugins that files with these suffixes have."""
    return sorted({SUFFIXES[suffix] for suffix in suffixes if suffix in SUFFIXES})


def _starts(name: str, head: bytes, suffix: str) -> bool:
    """Pillow's test of the first bytes, with further checks for formats that Pillow tells by two or four bytes."""
    accept = _openers()[name][1]
    try:
        accepted = accept(head[:16]) if accept else False
    except (SyntaxError, IndexError, TypeError, struct.error):  # as Pillow itself, for short files
        return False
    if not accepted or isinstance(accepted, str):  # text: this Pillow was built without the format
        return False
    if name == "TIFF":  # camera raw files start like TIFF and hold a thumbnail
        return not suffix
    if name == "BMP":
        return head[6:10] == bytes(4)
    if name == "PPM":
        return head[2:3].isspace() and head[2:].lstrip()[:1] in b"#0123456789"
    return name != "AVIF" or b"avi" in head[8:]  # HEIF has the same container


def _openers() -> dict[str, tuple[Any, Any]]:
    from PIL import Image

    Image.init()
    return Image.OPEN


def _by_suffix() -> dict[str, str]:
    from PIL import Image

    return {**Image.EXTENSION, ".mpo": "JPEG"}  # Pillow's JPEG opener reads MPO


@cache
def _load_plugin(name: str) -> bool:
    if name not in PLUGINS:
        return False
    try:
        import_module(PLUGINS[name][0])
    except ImportError:
        return False
    return True
