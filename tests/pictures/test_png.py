"""PNG files whose metadata Pillow refuses: they decode to the same pixels as without it."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile, PngImagePlugin

from cgd_deploy.errors import InputError
from cgd_deploy.pictures.png import without_metadata
from cgd_deploy.pictures.preprocess import decode

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
LONG = bytes(2 << 20)


def chunk(name: bytes, content: bytes, checksum: int = 0) -> bytes:
    """``checksum`` is added to the right one."""
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content) + checksum)


def png(*chunks: bytes, after: bytes = b"", pixels: np.ndarray = PIXELS) -> bytes:
    """``pixels`` with ``chunks`` before the pixels and ``after`` behind them."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    data = out.getvalue()
    start, end = data.index(b"IDAT") - 4, data.index(b"IEND") - 4
    return data[:start] + b"".join(chunks) + data[start:end] + after + data[end:]


def exif(orientation: int) -> bytes:
    block = Image.Exif()
    block[0x0112] = orientation
    return block.tobytes().removeprefix(b"Exif\0\0")


LONG_TEXT = chunk(b"zTXt", b"history\0\0" + zlib.compress(LONG))
XMP = b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="3"/>'
RAW_PROFILE = b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n1\n" + exif(3).hex().encode())

REFUSED = {
    "long text": LONG_TEXT,
    "long international text": chunk(b"iTXt", b"history\0\1\0\0\0" + zlib.compress(LONG)),
    "long colour profile": chunk(b"iCCP", b"profile\0\0" + zlib.compress(LONG)),
    "colour profile of an unknown method": chunk(b"iCCP", b"profile\0\7" + b"abc"),
    "colour profile without an end": chunk(b"iCCP", b"profile\0"),
    "text of an unknown method": chunk(b"zTXt", b"history\0\7abc"),
    "many long texts": 70 * chunk(b"tEXt", b"a\0" + b"b" * (1 << 20)),
    "a text with a wrong checksum": chunk(b"tEXt", b"a\0b", checksum=1),
    "EXIF with a wrong checksum": chunk(b"eXIf", exif(3), checksum=1),
    "short gamma": chunk(b"gAMA", b"ab"),
    "short resolution": chunk(b"pHYs", b"ab"),
    "short chromaticity": chunk(b"cHRM", b"ab"),
    "short animation": chunk(b"acTL", b"ab"),
    "an animation out of order": chunk(b"acTL", struct.pack(">II", 2, 0))
    + chunk(b"fcTL", struct.pack(">7I", *[9] * 7)),
}


@pytest.mark.parametrize("refused", REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("as_file", [True, False])
def test_metadata_that_pillow_refuses_does_not_refuse_the_picture(tmp_path, refused, as_file):
    data = png(refused)
    with pytest.raises(Exception, match=r".") as caught:
        Image.open(io.BytesIO(data)).load()
    assert not isinstance(caught.value, Warning)
    (tmp_path / "a.png").write_bytes(data)
    assert np.array_equal(np.asarray(decode(tmp_path / "a.png" if as_file else data)), PIXELS)


@pytest.mark.parametrize("name", ["long text", "long international text", "text of an unknown method"])
def test_nor_does_metadata_behind_the_pixels(name):
    assert np.array_equal(np.asarray(decode(png(after=REFUSED[name]))), PIXELS)


@pytest.mark.parametrize(
    "says_orientation", [chunk(b"eXIf", exif(3)), chunk(b"iTXt", XMP), chunk(b"zTXt", RAW_PROFILE)]
)
@pytest.mark.parametrize("behind", [True, False])
def test_such_a_picture_is_upright(says_orientation, behind):
    upright = PIXELS[::-1, ::-1]
    data = png(LONG_TEXT, after=says_orientation) if behind else png(says_orientation, LONG_TEXT)
    assert np.array_equal(np.asarray(decode(data)), upright)
    plain = png(after=says_orientation) if behind else png(says_orientation)
    assert np.array_equal(np.asarray(decode(plain)), upright)


def test_what_is_transparent_stays_so():
    data = png(chunk(b"tRNS", struct.pack(">3H", *PIXELS[0, 0])), LONG_TEXT)
    expected = PIXELS.copy()
    expected[0, 0] = 255
    assert np.array_equal(np.asarray(decode(data)), expected)


def test_the_limits_of_pillow_stay():
    before = (PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY, ImageFile.LOAD_TRUNCATED_IMAGES)
    decode(png(*REFUSED.values()))
    after = (PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY, ImageFile.LOAD_TRUNCATED_IMAGES)
    assert after == before and not ImageFile.LOAD_TRUNCATED_IMAGES


DAMAGED = {
    "truncated": png(LONG_TEXT)[:-900],
    "a wrong header": png(LONG_TEXT).replace(b"IHDR", b"IHDX"),
    "wrong pixels": png(LONG_TEXT).replace(b"IDAT", b"IDAX"),
    "a short colour key": png(chunk(b"tRNS", b"a")),
    "a signature alone": png()[:8],
    "half a chunk": png()[:12],
    "a chunk longer than the file": png()[:8] + struct.pack(">I4s", 0xFFFFFFFF, b"IHDR"),
}


@pytest.mark.parametrize("data", DAMAGED.values(), ids=DAMAGED)
def test_damaged_pixels_are_refused_with_the_first_reason(data):
    with pytest.raises(InputError, match=r"cannot be decoded .*; replace or remove the file\.$"):
        decode(data)


def test_a_reason_of_ours_is_told_also_for_such_a_picture():
    with pytest.raises(InputError, match="none of which uses the highest 4"):
        decode(png(LONG_TEXT, pixels=np.full((20, 30), 1000, np.uint16)))


def test_other_files_are_left_alone():
    assert list(without_metadata(io.BytesIO(b"GIF89a"))) == []
    assert list(without_metadata(io.BytesIO(b""))) == []
    whole = png()
    assert [file.read() for file in without_metadata(io.BytesIO(whole))] == [whole, whole]
