"""How large what comes from elsewhere may be: it is refused by its size, before it is read, decoded or given memory.

The limits are of the process, as threads that decode share them.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from .errors import CgdError, InputError


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What is refused beyond.

    pixels           of a picture; one at the limit takes 1.2 GB while it is decoded, 2 GB as WebP or JPEG 2000
    picture_bytes    of a picture's file
    formats          of pictures, by Pillow's names; Pillow only tries these
    list_bytes       of a LIST.tsv or a data set's list
    listed_anywhere  whether a LIST.tsv may name pictures outside of its own folder, as the lists that export writes do
    engine_bytes     of a .cgd file, which is read into memory
    manifest_bytes   of its manifest, and of the tuning beside it
    onnx_bytes       of an ONNX file; protobuf itself ends at 2 GiB

    Raises InputError that names the field and its value.
    """

    pixels: int = 100_000_000
    picture_bytes: int = 1 << 30
    formats: tuple[str, ...] = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
    list_bytes: int = 256 << 20
    listed_anywhere: bool = True
    engine_bytes: int = 8 << 30
    manifest_bytes: int = 4 << 20
    onnx_bytes: int = (2 << 30) - 1

    def __post_init__(self) -> None:
        for field in fields(self):
            value, default = getattr(self, field.name), field.default
            if type(value) is not type(default) or (type(value) is int and value < 1) or value == ():
                raise InputError(f"limit {field.name}={value!r} cannot be used; expected one like {default!r}.")


_limits = Limits()


def limits() -> Limits:
    """Those of this process."""
    return _limits


def set_limits(**changes: Any) -> Limits:
    """Change limits of this process, by their names in ``Limits``; returns those that held before.

    Where more ``pixels`` are allowed than Pillow's own PIL.Image.MAX_IMAGE_PIXELS, that is raised as well. Formats may
    be called by a suffix, as "jpg" or "heic", and may need a plugin of Pillow.
    Raises InputError for an unknown limit, value or format, MissingDependency for a plugin that is not installed.
    """
    global _limits
    if unknown := sorted(set(changes) - {field.name for field in fields(Limits)}):
        known = ", ".join(field.name for field in fields(Limits))
        raise InputError(f"limit {unknown[0]!r} is unknown; expected one of {known}.")
    before, after = _limits, replace(_limits, **changes)
    if after.formats != before.formats:
        from .formats import format_name

        after = replace(after, formats=tuple(dict.fromkeys(map(format_name, after.formats))))
    if "pixels" in changes:
        _fit_pillow(after)
    _limits = after
    return before


def parse_limit(text: str) -> dict[str, Any]:
    """NAME=VALUE as a change for ``set_limits``: a whole number, yes or no, or formats with commas between.

    Raises InputError for anything else.
    """
    name, _, value = text.partition("=")
    default = next((field.default for field in fields(Limits) if field.name == name), "")
    if isinstance(default, tuple):
        return {name: tuple(value.split(","))}
    if isinstance(default, bool):
        return {name: {"yes": True, "no": False}.get(value, value)}
    return {name: int(value) if value.isascii() and value.isdecimal() and len(value) < 20 else value}


def check_size(what: str, size: int, limit: str, error: type[CgdError] = InputError) -> None:
    """Raise ``error`` if ``what`` has more pixels or bytes than the limit of that name."""
    if size > (most := getattr(_limits, limit)):
        raise error(
            f"{what} has {size:,} {limit.split('_')[-1]} and the limit {limit} is {most:,}; check where it comes from, "
            f"or allow it with `cgd-deploy --limit {limit}={size}`."
        )


def _fit_pillow(wanted: Limits) -> None:
    from PIL import Image

    if Image.MAX_IMAGE_PIXELS is not None:
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, wanted.pixels)
