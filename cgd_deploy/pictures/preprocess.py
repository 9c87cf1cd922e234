"""Turns a picture into the pixels of a model's input, for training evaluation, calibration, runtime and tests alike.

Does not apply mean and standard deviation, which are in the graph.
"""

from __future__ import annotations

import io
import math
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.TiffTags import TAGS_V2_GROUPS

from ..errors import InputError, in_one_line
from ..files import check_file
from ..formats import readable
from ..hardware.cpu import available_threads
from ..limits import check_size, limits
from ..resize import ResizeRule, Size, centre
from ..spec import ModelSpec
from .images import Box, ImageList
from .png import without_metadata
from .rgb import upright_rgb

MIN_SIDE = 8
TILE = (322, 323)
"""TIFF's tags for width and height of a tile, which Pillow decodes at a time."""
FAST_DECODE_MARGIN = 2
"""A fast decode keeps both sides at least this many times as long as the resized picture, for antialiasing."""

Item = TypeVar("Item")
Result = TypeVar("Result")
Picture = str | Path | bytes | Image.Image | NDArray[Any]
Attempt = NDArray[np.uint8] | InputError
"""The pixels of a picture, uint8 [H, W, 3] at the spec's input size, or the reason why it cannot be used."""


def decode(source: Picture, box: Box | None = None, least: int | None = None) -> Image.Image:
    """Open a picture as upright RGB, cropped to ``box`` (x1, y1, x2, y2 in pixels of the upright picture).

    source   a path, encoded bytes, a Pillow image, or a uint8 array [H, W, 3] in RGB
    least    pixels; a JPEG file without box may be decoded at 1/2, 1/4 or 1/8 of its size, if both sides stay as long

    Transparent pixels become white. ``upright_rgb`` converts grey, CMYK and more than 8 bits.

    Raises InputError for a source that is not a picture, is smaller than 8x8 pixels, or exceeds ``limits()``.
    """
    name = _name(source)
    try:
        image = _decoded(source, name, least if box is None else None)
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"{name} does not exist; check the path.") from error
    except Exception as error:  # Pillow raises a dozen unrelated types for damaged files
        unknown = f"no picture in one of the formats {', '.join(readable(limits().formats))}"
        reason = unknown if isinstance(error, Image.UnidentifiedImageError) else in_one_line(error)
        raise InputError(f"{name} cannot be decoded ({reason}); replace or remove the file.") from error
    return crop(image, box, name)


def preprocess(
    source: Picture, spec: ModelSpec, box: Box | None = None, *, fast_decode: bool = False
) -> NDArray[np.uint8]:
    """Decode, crop to ``box``, and resize as the spec says: uint8 [H, W, 3] in RGB.

    source        as in ``decode``; an array of the spec's input size is returned unchanged, unless there is a box
    fast_decode   decode JPEG files of at least four times the resized size at a smaller size, from the first terms of
                  their cosine transform; a pixel then differs by about one level of 255 on average

    Raises InputError as ``decode`` does, and for a narrow picture whose resized form exceeds ``limits()``.
    """
    if box is None and is_ready(source, spec):
        return source
    rule = spec.rule
    resized = rule.shorter or max(spec.input_size)
    image = decode(source, box, FAST_DECODE_MARGIN * resized if fast_decode else None)
    return np.asarray(fit(image, rule, spec.input_size, _name(source)))


def crop(image: Image.Image, box: Box | None, name: str = "the picture") -> Image.Image:
    """Cut ``box`` (x1, y1, x2, y2 in pixels) out of the upright ``image``; None: all of it.

    Raises InputError that names the box if less than 8x8 pixels of it lie in the image.
    """
    if box is None:
        return image
    x1, y1 = box[:2]
    x2, y2 = min(box[2], image.width), min(box[3], image.height)  # some boxes of CUB200 and CARS196 exceed the picture
    if min(x1, y1) < 0 or min(x2 - x1, y2 - y1) < MIN_SIDE:
        raise InputError(f"box {box} does not cut at least {MIN_SIDE}x{MIN_SIDE} pixels out of {name} ({image.size}).")
    return image.crop((x1, y1, x2, y2))


def is_ready(source: Picture, spec: ModelSpec) -> TypeGuard[NDArray[np.uint8]]:
    """Whether ``preprocess`` returns ``source`` unchanged: uint8 [H, W, 3] of the spec's input size."""
    return isinstance(source, np.ndarray) and source.dtype == np.uint8 and source.shape == (*spec.input_size, 3)


def fit(image: Image.Image, rule: ResizeRule, size: Size, name: str = "the picture") -> Image.Image:
    """Resize ``image`` by ``rule`` and cut ``size`` (height, width) out of its centre.

    Raises InputError that starts with ``name`` if the resized image is larger than the limit of pixels.
    """
    height, width = rule.resized((image.height, image.width), size)
    if rule.shorter is not None:
        check_size(f"{name}, resized to {width}x{height},", width * height, "pixels")
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling[rule.filter.upper()])
    if size == (height, width):
        return image
    top, left = centre((height, width), size)
    return image.crop((left, top, left + size[1], top + size[0]))


def batches(
    images: ImageList,
    spec: ModelSpec,
    batch_size: int,
    workers: int | None = None,
    on_error: Callable[[int, InputError], None] | None = None,
    fast_decode: bool = False,
) -> Generator[tuple[list[int], NDArray[np.uint8]], None, None]:
    """Yield (indices, uint8 [n, H, W, 3]) in list order, decoding ahead in ``workers`` threads.

    workers    threads, each of which holds one whole picture while it decodes; None: one for each core this process
               may use
    on_error   called with the index and the InputError of each picture that cannot be used; the picture is left out.
               None: the InputError is raised
    """

    def attempt(index: int) -> Attempt:
        try:
            return preprocess(images.path(index), spec, images.box(index), fast_decode=fast_decode)
        except InputError as error:
            return error

    workers = available_threads() if workers is None else workers
    attempts = ahead(attempt, range(len(images)), workers, depth=2 * batch_size + workers)
    return gathered(attempts, batch_size, on_error)


def gathered(
    attempts: Generator[Attempt, None, None],
    batch_size: int,
    on_error: Callable[[int, InputError], None] | None = None,
) -> Generator[tuple[list[int], NDArray[np.uint8]], None, None]:
    """Gather the pictures that ``attempts`` yields in list order into batches, see ``batches``. Closes ``attempts``."""
    indices: list[int] = []
    pixels: list[NDArray[np.uint8]] = []
    with closing(attempts):
        for index, picture in enumerate(attempts):
            if isinstance(picture, InputError):
                if on_error is None:
                    raise picture
                on_error(index, picture)
                continue
            indices.append(index)
            pixels.append(picture)
            if len(indices) == batch_size:
                yield indices, np.stack(pixels)
                indices, pixels = [], []
        if indices:
            yield indices, np.stack(pixels)


def ahead(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int, depth: int
) -> Generator[Result, None, None]:
    """``map(function, items)`` in order, in ``workers`` threads, with at most ``depth`` results not yet yielded."""
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(max(workers, 1)) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) >= depth:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def check_sides(image: Image.Image, name: str) -> None:
    """Raise InputError, with ``name`` for the picture, if it is too small or has more pixels than the limit."""
    width, height = image.size
    if min(width, height) < MIN_SIDE:
        raise InputError(f"{name} is {width}x{height} pixels; expected {MIN_SIDE}x{MIN_SIDE} or more.")
    check_size(f"{name} ({width}x{height})", width * height, "pixels")
    tags = getattr(image, "tag_v2", {})
    check_size(f"a tile of {name}", math.prod(int(tags.get(tag, 1)) for tag in TILE), "pixels")


def _name(source: Picture) -> str:
    return str(source) if isinstance(source, (str, Path)) else "the picture"


def _decoded(source: Picture, name: str, least: int | None) -> Image.Image:
    """The upright picture in RGB. Errors of Pillow pass through."""
    if isinstance(source, (str, Path)):
        check_file(source, "picture_bytes")
        with open(source, "rb") as file:
            return _from_file(source, file, name, least)
    if isinstance(source, bytes):
        check_size(name, len(source), "picture_bytes")
        return _from_file(io.BytesIO(source), io.BytesIO(source), name, least)
    image = source if isinstance(source, Image.Image) else _from_array(source, name)
    check_sides(image, name)
    return upright_rgb(image, name)


def _from_file(source: str | Path | BinaryIO, file: BinaryIO, name: str, least: int | None) -> Image.Image:
    """Read ``source``. If Pillow refuses a PNG, read it again from ``file``, the same bytes, without its metadata."""
    errors: list[Exception] = []
    for reading in chain([source], without_metadata(file)):
        try:
            with Image.open(reading, formats=readable(limits().formats)) as opened:
                check_sides(opened, name)
                if least:
                    opened.draft(None, (least, least))
                _drop_directories(opened)
                return upright_rgb(opened, name)
        except InputError:
            raise
        except Exception as error:
            errors.append(error)
    raise errors[0]


def _from_array(source: object, name: str) -> Image.Image:
    if not isinstance(source, np.ndarray):
        kind = type(source).__name__
        raise InputError(f"a picture cannot be a {kind}; pass a path, bytes, a Pillow image or an array.")
    if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3:
        raise InputError(f"{name} is {source.dtype} {list(source.shape)}; expected uint8 [height, width, 3] in RGB.")
    return Image.fromarray(source)


def _drop_directories(image: Image.Image) -> None:
    """Make Pillow skip the EXIF and GPS directories of a TIFF file, which it reads with the pixels and may fail at."""
    if image.format == "TIFF":
        exif = image.getexif()
        for tag in [tag for tag in exif if tag in TAGS_V2_GROUPS]:
            del exif[tag]
