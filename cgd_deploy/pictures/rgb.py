"""Turns a decoded Pillow image into upright 8-bit RGB: scales deeper grey, and lays transparent pixels on white.

The file declares the scale. If the scale depended on the pixels, descriptors would too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import InputError

ORIENTATION = 0x0112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The turn that makes a picture upright, by EXIF orientation."""

KEY_FACTORS = {"L;2": 85, "L;4": 17, "RGB;16B": 1 / 256}
"""Factors for the transparent colour of PNG files, by raw mode: Pillow scales the pixels to 8 bits, not this colour."""

BITS, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339
SMALLEST, LARGEST = (340, 280), (341, 281)
"""TIFF's tags for the range of the values, the better one first."""
UNSIGNED = 1
WHITE_IS_ZERO = 0
SCALED_TO_16_BITS = ("PNG", "PPM")
"""Formats whose grey of more than 8 bits Pillow scales to 0 to 65535; some releases of Pillow give mode I."""
UNUSED_BITS = 4
"""A picture that leaves this many of its 16 bits unused has 12 bits or fewer, and its high bytes are almost black."""


def upright_rgb(image: Image.Image, name: str) -> Image.Image:
    """A copy of ``image`` in mode RGB, turned as its EXIF says, with white behind transparent pixels.

    Pixels of 16 bits keep their high byte. Other grey of more than 8 bits is scaled by the range that its file
    declares. Unreadable metadata is ignored.

    Raises InputError for values whose range the file does not declare.
    """
    stored_as = _raw_mode(image)
    image.load()
    turn = upright_turn(image)
    if image.mode[0] in "IF" or (image.mode == "L" and _is_signed(image)):
        image = _grey(image, name)
    elif ";16" in stored_as:
        _check_colour(image, name)
    image = _on_white(image, stored_as) if image.has_transparency_data else image.convert("RGB")
    return image if turn is None else image.transpose(turn)


def _raw_mode(image: Image.Image) -> str:
    """Pillow's name for the way a file stores its pixels; "" for a loaded image."""
    tiles = getattr(image, "tile", ())
    arguments = tiles[0][3] if tiles else ""
    return str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments)


def upright_turn(image: Image.Image) -> Image.Transpose | None:
    """The turn that makes ``image`` upright, by its EXIF orientation; None for an upright image and damaged EXIF."""
    try:
        return TURNS.get(image.getexif().get(ORIENTATION, 1))
    except Exception:  # Pillow raises a dozen unrelated types for damaged EXIF
        return None


def _on_white(image: Image.Image, stored_as: str) -> Image.Image:
    key, is_bmp = image.info.get("transparency"), image.format == "BMP"
    if key is not None and stored_as in KEY_FACTORS:
        image, factor = image.copy(), KEY_FACTORS[stored_as]
        image.info["transparency"] = tuple(int(k * factor) for k in key) if isinstance(key, tuple) else key * factor
    if image.mode == "La":
        image = image.convert("LA")
    if image.mode != "RGBA":
        image = image.convert("RGBA")
    if is_bmp and image.getchannel("A").getextrema() == (0, 0):
        return image.convert("RGB")  # many programs write 0 there, and viewers ignore it
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=image)
    return white


def _grey(image: Image.Image, name: str) -> Image.Image:
    """Grey of more than 8 bits, or of signed values, in mode L, or in mode LA if one of its values is transparent."""
    values, tags = np.asarray(image), getattr(image, "tag_v2", {})
    if values.dtype == np.uint8:
        values = values.view(np.int8)  # Pillow keeps the bytes of signed values
    grey = _scaled(values, tags, name) if image.mode == "F" or _is_signed(image) else _high_byte(values, image, name)
    if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:
        grey = 255 - grey  # Pillow inverts up to 8 bits only
    scaled = Image.fromarray(grey)
    if isinstance(key := image.info.get("transparency"), int):
        scaled.putalpha(Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8)))
    return scaled


def _is_signed(image: Image.Image) -> bool:
    return _numbers(getattr(image, "tag_v2", {}), SAMPLE_FORMAT)[:1] not in ([], [UNSIGNED])


def _scaled(values: NDArray[Any], tags: Mapping[int, Any], name: str) -> NDArray[np.uint8]:
    """Scale float or signed values [H, W] from the range that the tags declare to 0..255."""
    largest, smallest = _numbers(tags, *LARGEST), _numbers(tags, *SMALLEST) or [0.0]
    if not largest or not -math.inf < smallest[0] < largest[0] < math.inf:
        raise InputError(
            f"{name} is grey of {'floats' if values.dtype.kind == 'f' else 'signed integers'} and declares no range; "
            "convert the picture to 8 bits, or to TIFF with the tags SMinSampleValue and SMaxSampleValue."
        )
    if not np.isfinite(values).all():
        raise InputError(f"{name} holds NaN or infinity; convert the picture to 8 bits.")
    span = (smallest[0], largest[0])
    return np.stack([np.rint(np.interp(row, span, (0, 255))).astype(np.uint8) for row in values])


def _high_byte(values: NDArray[Any], image: Image.Image, name: str) -> NDArray[np.uint8]:
    """The highest eight bits of unsigned values [H, W]."""
    tags = getattr(image, "tag_v2", {})
    has_16_bits = image.mode.startswith("I;16") or image.format in SCALED_TO_16_BITS
    stored = int(_numbers(tags, BITS)[0]) if tags else 16 if has_16_bits else 32
    declared = _declared_bits(tags)
    if declared is None and stored > 16:
        raise InputError(
            f"{name} is grey of 32-bit integers and declares no range; convert the picture to 8 bits, or to "
            "TIFF with the tag SMaxSampleValue."
        )
    if declared is None and stored == 16 and image.format != "PPM":  # PPM declares its largest value
        _check_brightness(int(values.max()), 16, name)
    if values.dtype == np.int32:
        values = values.view(np.uint32)
    return np.minimum(values >> (min(stored, declared or stored) - 8), 255).astype(np.uint8)


def _check_colour(image: Image.Image, name: str) -> None:
    """Raise InputError for 16-bit colour that uses fewer bits, because Pillow keeps only the high byte."""
    bits = _declared_bits(getattr(image, "tag_v2", {}))
    if bits is not None and bits < 16:
        raise InputError(
            f"{name} is 16-bit colour of {bits} bits by its tag, which Pillow does not scale; convert the picture to "
            "8 bits."
        )
    if bits is None and image.mode in ("RGB", "RGBA"):
        _check_brightness(int(np.max(image.getextrema()[:3])), 8, name)


def _check_brightness(largest: int, bits: int, name: str) -> None:
    """Raise InputError if no value uses the four highest of 16 bits. ``largest`` is given by its ``bits`` high bits."""
    if 0 < largest < 1 << (bits - UNUSED_BITS):
        raise InputError(
            f"{name} has values of 16 bits, none of which uses the highest {UNUSED_BITS}, as in pictures of "
            f"{16 - UNUSED_BITS} bits or fewer; convert it to 8 bits, or to TIFF with the tag SMaxSampleValue."
        )


def _declared_bits(tags: Mapping[int, Any]) -> int | None:
    """Bits of the largest value that a TIFF file declares, or None.

    Some programs declare the largest pixel in the file, so the range is rounded up to whole bits.
    """
    largest = _numbers(tags, *LARGEST)
    return max(8, int(largest[0]).bit_length()) if largest and 0 < largest[0] < 1 << 32 else None


def _numbers(tags: Mapping[int, Any], *names: int) -> list[float]:
    """The values of the first of these tags that holds numbers; an empty list if none does."""
    for name in names:
        with suppress(Exception):  # Pillow raises many types for a damaged tag
            value = tags[name]
            return [float(number) for number in (value if isinstance(value, tuple) else (value,))]
    return []
