"""Limits on the size of files from elsewhere. A larger file is refused before it is read or decoded.

All threads of the process share the limits.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from .errors import CgdError, InputError


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """The largest sizes that this process accepts, set by ``set_limits``.

    pixels           pixels of a picture; a picture at the limit takes 1.2 GB while it is decoded, 2 GB as WebP or
                     JPEG 2000
    picture_bytes    bytes of a picture's file
    formats          formats of pictures, by Pillow's names; Pillow tries only these
    list_bytes       bytes of a LIST.tsv or of a data set's list
    listed_anywhere  whether a LIST.tsv may name pictures outside its own folder, as lists written by export do
    engine_bytes     bytes of a .cgd file, which is read into memory
    manifest_bytes   bytes of a .cgd file's manifest, and of the tuning beside the file
    onnx_bytes       bytes of an ONNX file; protobuf allows 2 GiB

    Raises InputError for a value of another type or below 1.

    Example:

        from cgd_deploy import Limits

        print(Limits().pixels)  # the default, 100 million
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
    """The limits of this process."""
    return _limits


def set_limits(**changes: Any) -> Limits:
    """Change limits of this process, by their names in ``Limits``. Returns the limits before the change.

    A larger ``pixels`` also raises Pillow's own limit, PIL.Image.MAX_IMAGE_PIXELS. ``formats`` takes Pillow's names or
    suffixes such as "jpg" and "heic"; some formats need a plugin of Pillow.

    Raises InputError for an unknown limit, value or format; MissingDependency for a plugin that is not installed.

    Example:

        from cgd_deploy import set_limits

        before = set_limits(pixels=20_000_000, formats=("jpg", "png"))
        set_limits(pixels=before.pixels, formats=before.formats)
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
    """NAME=VALUE as an argument of ``set_limits``. VALUE is a whole number, yes or no, or formats between commas.

    ``set_limits`` then refuses other names and values.
    """
    name, _, value = text.partition("=")
    default = next((field.default for field in fields(Limits) if field.name == name), "")
    if isinstance(default, tuple):
        return {name: tuple(value.split(","))}
    if isinstance(default, bool):
        return {name: {"yes": True, "no": False}.get(value, value)}
    return {name: int(value) if value.isascii() and value.isdecimal() and len(value) < 20 else value}


def check_size(what: str, size: int, limit: str, error: type[CgdError] = InputError) -> None:
    """Raise ``error`` if ``what`` has more pixels or bytes than the limit named ``limit``."""
    if size > (most := getattr(_limits, limit)):
        raise error(
            f"{what} has {size:,} {limit.split('_')[-1]} and the limit {limit} is {most:,}; check where it comes from, "
            f"or allow it with `cgd-deploy --limit {limit}={size}`."
        )


def _fit_pillow(wanted: Limits) -> None:
    from PIL import Image

    if Image.MAX_IMAGE_PIXELS is not None:
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, wanted.pixels)
