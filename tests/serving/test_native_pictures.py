"""Resize, limits and refusals of the library without Python equal those of Python's library."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import PIL
import pytest
from native_pictures import (
    BAD_ENGINE,
    BAD_INPUT,
    IGNORED,
    INVALID_ARGUMENT,
    JPEG,
    Refused,
    agree,
    encoded,
    png,
    smooth,
)
from PIL import Image

from cgd_deploy.errors import InputError, SpecError
from cgd_deploy.limits import Limits, parse_limit, set_limits
from cgd_deploy.pictures.preprocess import decode, fit, preprocess
from cgd_deploy.resize import FILTERS, ResizeRule
from cgd_deploy.spec import ModelSpec

NEW_PILLOW = int(PIL.__version__.split(".")[0]) >= 13
"""Pillow 13 resamples the columns of some tall pictures before their rows, and so does the library."""

pytestmark = IGNORED

# Resize.


def sizes(count: int) -> Iterator[tuple[int, int, int, int]]:
    """Heights and widths before and after: a few of 8 to 3,000 pixels, small ones far more often."""
    random = np.random.default_rng(3)
    for _ in range(count):
        height, width = np.exp(random.uniform(np.log(8), np.log(3001), 2)).astype(int).tolist()
        yield max(height, 8), max(width, 8), *random.integers(8, 200, 2).tolist()


def fitted(pixels: np.ndarray, rule: str, size: tuple[int, int]) -> np.ndarray:
    return np.asarray(fit(Image.fromarray(pixels), ResizeRule.parse(rule), size))


@pytest.mark.skipif(not NEW_PILLOW, reason="this Pillow resamples tall pictures in another order")
@pytest.mark.parametrize("filter", FILTERS)
def test_stretched_pixels_are_pillows(native, filter):
    for height, width, *size in sizes(30):
        pixels = np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)
        rule = f"pillow-{filter}"
        assert np.array_equal(native.fit(pixels, rule, size), fitted(pixels, rule, tuple(size))), (height, width, size)


@pytest.mark.skipif(not NEW_PILLOW, reason="this Pillow resamples tall pictures in another order")
@pytest.mark.parametrize("filter", FILTERS)
def test_so_are_pixels_that_keep_the_aspect_ratio(native, filter):
    for height, width, *size in sizes(12):
        if max(height, width) > 20 * min(height, width):
            continue
        pixels, rule = smooth(height, width), f"pillow-{filter}-shorter-{max(size) + height % 3}"
        assert np.array_equal(native.fit(pixels, rule, size), fitted(pixels, rule, tuple(size))), (height, width, rule)


@pytest.mark.skipif(not NEW_PILLOW, reason="this Pillow resamples in another order")
@pytest.mark.parametrize("lost", [-1, 0, 1])
def test_the_order_of_the_passes_is_pillows(native, lost):
    """Columns come first if the height loses more than twice as many pixels as the width."""
    for width in range(30, 40):
        pixels = np.random.default_rng(width).integers(0, 256, (20 + 2 * (width - 25) + lost, width, 3), np.uint8)
        found = native.fit(pixels, "pillow-bicubic", (20, 25))
        assert np.array_equal(found, fitted(pixels, "pillow-bicubic", (20, 25)))
        image = Image.fromarray(pixels)
        across = image.resize((25, image.height), Image.Resampling.BICUBIC).resize((25, 20), Image.Resampling.BICUBIC)
        assert np.array_equal(found, np.asarray(across)) == (lost <= 0)


@pytest.mark.parametrize("size", [(48, 64), (48, 90), (70, 64)])
def test_a_side_that_stays_is_left_alone(native, size):
    pixels = smooth(48, 64)
    assert np.array_equal(native.fit(pixels, "pillow-lanczos", size), fitted(pixels, "pillow-lanczos", size))


@pytest.mark.parametrize(("height", "width"), [(67, 69), (69, 67), (67, 67), (66, 70), (71, 66)])
def test_the_centre_is_rounded_as_in_python(native, height, width):
    pixels, rule = smooth(height, width), f"pillow-box-shorter-{min(height, width)}"
    assert np.array_equal(native.fit(pixels, rule, (64, 64)), fitted(pixels, rule, (64, 64)))


def test_pixels_of_the_input_size_are_copied_and_files_are_not(native):
    pixels, rule = smooth(64, 64), "pillow-bilinear-shorter-96"
    spec = ModelSpec(backbone="resnet18", descriptors="S", dim=8, input_size=(64, 64), resize=rule)
    data = encoded(pixels, "PNG")
    assert np.array_equal(native.fit(pixels, rule, (64, 64)), preprocess(pixels, spec))
    assert np.array_equal(native.preprocess(data, rule, (64, 64)), preprocess(data, spec))
    assert not np.array_equal(native.preprocess(data, rule, (64, 64)), pixels)


@pytest.mark.parametrize("rule", ["pillow-bilinear", "pillow-bicubic-shorter-70"])
@pytest.mark.parametrize("size", [(40, 50), (48, 64)])
def test_strides_and_bgr(native, rule, size):
    wide = smooth(48, 80)
    for pixels in (wide[:, :64], wide[:, 7:71]):
        expected = pixels if size == (48, 64) else fitted(np.ascontiguousarray(pixels), rule, size)
        assert np.array_equal(native.fit(pixels, rule, size), expected)
        assert np.array_equal(native.fit(pixels, rule, size, bgr=True), expected[..., ::-1])


@pytest.mark.parametrize(
    "rule",
    [
        *("", "pillow", "bilinear", "pillow-nearest", "pillow-bilinear-", " pillow-box", "pillow-bilinear-shorter"),
        *(f"pillow-bilinear-shorter-{end}" for end in ("0", "012", "8193", "1234567", "5x", "-5", "")),
    ],
)
def test_rules_that_python_refuses_are_refused(native, rule):
    with pytest.raises(SpecError):
        ResizeRule.parse(rule)
    with pytest.raises(Refused) as caught:
        native.fit(smooth(20, 30), rule, (16, 16))
    assert caught.value.args[0] == BAD_ENGINE and "resize='" in caught.value.args[1]


@pytest.mark.parametrize(("height", "width"), [(7, 30), (30, 7)])
def test_pixels_of_short_sides_are_refused_with_pythons_sentence(native, height, width):
    pixels = smooth(height, width)
    with pytest.raises(InputError) as ours:
        decode(pixels)
    with pytest.raises(Refused) as theirs:
        native.fit(pixels, "pillow-box", (16, 16))
    assert theirs.value.args == (BAD_INPUT, str(ours.value))


def test_a_resized_picture_beyond_the_limit_is_refused(limited):
    pixels, rule = smooth(8, 2000), "pillow-bilinear-shorter-80"
    set_limits(pixels=1_000_000)
    limited.set_limit("pixels", "1000000")
    with pytest.raises(InputError) as ours:
        fitted(pixels, rule, (64, 64))
    with pytest.raises(Refused) as theirs:
        limited.fit(pixels, rule, (64, 64))
    assert theirs.value.args == (BAD_INPUT, str(ours.value))


# Other files, and limits.


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000", "AVIF"])
def test_other_formats_are_refused_by_their_names(native, kind):
    if kind not in Image.SAVE:
        Image.init()
    if kind not in Image.SAVE:
        pytest.skip(f"this Pillow does not write {kind}")
    with pytest.raises(Refused, match=rf"is a {kind} file, and this library reads JPEG and PNG;.*--embed-python"):
        native.decode(encoded(smooth(24, 40), kind))


@pytest.mark.parametrize(
    "data", [b"", b"\xff", b"\xff\xd8\xff", b"RIFF", b"hello, this is a text", b"\x89PNG\r\n\x1a\n"]
)
def test_what_is_no_picture_is_refused(native, data):
    assert not agree(native, data, whole=False)


@pytest.mark.parametrize("name", ["pixels", "picture_bytes"])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_pictures_beyond_a_limit_are_refused_with_pythons_sentence(limited, name, kind):
    data = encoded(smooth(300, 410), kind)
    set_limits(**{name: 1234})
    limited.set_limit(name, "1234")
    with pytest.raises(InputError) as ours:
        decode(data)
    with pytest.raises(Refused) as theirs:
        limited.decode(data)
    assert theirs.value.args == (BAD_INPUT, str(ours.value))


def test_formats_limit_what_is_read(limited):
    limited.set_limit("formats", "png,webp,PNG")
    set_limits(formats=("png", "webp"))
    assert not agree(limited, JPEG, whole=False) and agree(limited, png(8, 2))
    with pytest.raises(Refused, match=r"no picture in one of the formats PNG, WEBP\)"):
        limited.decode(JPEG)
    limited.set_limit("formats", "MPO,heic")
    assert limited.decode(JPEG).shape == (24, 40, 3)


VALUES = [
    ("pixels", "25000000"),
    ("pixels", "0"),
    ("pixels", "-5"),
    ("pixels", "many"),
    ("pixels", ""),
    ("pixels", "1.5"),
]
VALUES += [("pixels", "9" * 19), ("pixels", "9" * 20), ("pixel", "5"), ("", "5"), ("listed_anywhere", "yes")]
VALUES += [("listed_anywhere", "no"), ("listed_anywhere", "1"), ("formats", "JPEG"), ("formats", "jpg,.png,Webp,tif")]
VALUES += [("formats", ""), ("formats", "JPEG,"), ("formats", "nothing"), ("formats", "pdf"), ("engine_bytes", "007")]
VALUES += [("manifest_bytes", "1"), ("onnx_bytes", "2"), ("list_bytes", "3"), ("picture_bytes", "4 ")]


@pytest.mark.parametrize(("name", "value"), VALUES)
def test_limits_are_parsed_as_in_python(limited, name, value):
    default = Limits()
    try:
        set_limits(**parse_limit(f"{name}={value}"))
    except InputError as error:
        with pytest.raises(Refused) as caught:
            limited.set_limit(name, value)
        status, sentence = caught.value.args
        assert status == INVALID_ARGUMENT and sentence.startswith("limit ") and sentence.endswith(".")
        assert sentence.split()[:2] == str(error).split()[:2]
    else:
        limited.set_limit(name, value)
    finally:
        set_limits(**{field: getattr(default, field) for field in default.__dataclass_fields__})
        for field in ("engine_bytes", "manifest_bytes", "onnx_bytes", "list_bytes"):
            limited.set_limit(field, str(getattr(default, field)))


def test_every_format_of_pillow_is_a_known_name(limited):
    Image.init()
    for name in Image.OPEN:
        limited.set_limit("formats", name)
    for suffix, name in Image.EXTENSION.items():
        if name in Image.OPEN:
            limited.set_limit("formats", suffix)
