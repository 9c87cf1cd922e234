"""JPEG files, and the orientation of all files: the library without Python decodes them to the pixels of Python's."""

from __future__ import annotations

import struct

import pytest
from native_pictures import (
    IGNORED,
    JPEG,
    XMP,
    agree,
    chunk,
    encoded,
    exif,
    png,
    segment,
    smooth,
)
from PIL import Image

GREY, RGB, YCC, CMYK, YCCK = 1, 2, 3, 4, 5
"""libjpeg's numbers of the colours of a file."""

pytestmark = IGNORED


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("quality", [1, 30, 75, 95, 100])
def test_jpeg_files_of_pillow(native, quality, subsampling, progressive):
    for size in ((8, 8), (33, 47), (64, 48), (101, 9)):
        options = {"quality": quality, "subsampling": subsampling, "progressive": progressive}
        agree(native, encoded(smooth(*size), "JPEG", **options))


SAMPLINGS = ("11 11 11", "21 11 11", "12 11 11", "22 11 11", "41 11 11", "22 21 12", "22 12 12", "41 11 21", "14 11 11")


@pytest.mark.parametrize("options", [{}, {"progressive": 1}, {"arithmetic": 1}, {"restart": 3}])
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_jpeg_files_of_every_sampling(native, sampling, options):
    for size in ((35, 50), (64, 64)):
        agree(native, native.encode(smooth(*size), YCC, sampling, **options))


@pytest.mark.parametrize("options", [{}, {"progressive": 1}, {"arithmetic": 1, "progressive": 1}, {"restart": 1}])
@pytest.mark.parametrize(
    ("channels", "colours", "sampling"),
    [
        *((1, GREY, "11"), (1, GREY, "22"), (3, RGB, "11 11 11"), (4, CMYK, "11 11 11 11")),
        *((4, YCCK, "11 11 11 11"), (4, YCCK, "22 11 11 22")),
    ],
)
def test_jpeg_files_of_every_colour(native, channels, colours, sampling, options):
    agree(native, native.encode(smooth(45, 70, channels), colours, sampling, **options))


BEFORE = {
    "a short JFIF": segment(0xFFE0, b"JFIF\0"),
    "a short Adobe": segment(0xFFEE, b"Adobe\0"),
    "a whole Adobe": segment(0xFFEE, b"Adobe\0\x64\0\0\0\0\1"),
    "Adobe says RGB": segment(0xFFEE, b"Adobe\0\x64\0\0\0\0\0"),
    "a short colour profile": segment(0xFFE2, b"ICC_PROFILE\0"),
    "a broken colour profile": segment(0xFFE2, b"ICC_PROFILE\0\1\2abc"),
    "resources of Photoshop": segment(0xFFED, b"Photoshop 3.0\x008BIM\4\4\0\0\0\0\0\2ab"),
    "short resources of Photoshop": segment(0xFFED, b"Photoshop 3.0\x008BIM\4\4"),
    "a comment": segment(0xFFFE, b"hello"),
    "an empty segment": segment(0xFFE5, b""),
    "a negative segment": b"\xff\xe5\0\0",
    "fill bytes": b"\xff\xff\xff" + segment(0xFFE5, b"abc"),
    "junk": b"junk" + segment(0xFFE5, b"abc"),
    "a reserved marker": b"\xff\x02",
    "a temporary marker": b"\xff\x01",
    "a short table": segment(0xFFDB, b"\0abc"),
    "an MPF of nothing": segment(0xFFE2, b"MPF\0nothing"),
    "XMP": segment(0xFFE1, b'http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation="6"/>'),
    "XMP with an element": segment(0xFFE1, b"http://ns.adobe.com/xap/1.0/\0<tiff:Orientation>8<"),
    "two parts of EXIF": segment(0xFFE1, exif(6).tobytes()[:30])
    + segment(0xFFE1, b"Exif\0\0" + exif(6).tobytes()[30:]),
}


@pytest.mark.parametrize("content", BEFORE.values(), ids=BEFORE)
def test_segments_of_jpeg_files(native, content):
    agree(native, JPEG[:2] + content + JPEG[2:], whole=False)


@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_files_that_end_early(native, progressive):
    data = encoded(smooth(40, 60), "JPEG", progressive=progressive)
    for end in (*range(2, len(data), 61), len(data) - 2, len(data) - 1):
        assert not agree(native, data[:end], whole=False)


def test_the_first_picture_of_mpo_files(native):
    image = Image.fromarray(smooth(40, 50))
    second = image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    assert agree(native, encoded(image, "MPO", save_all=True, append_images=[second], exif=exif(6)))


def entries(*tags: tuple[int, int, int, int], order: str = ">") -> bytes:
    head = {">": b"MM\0*", "<": b"II*\0"}[order] + struct.pack(f"{order}IH", 8, len(tags))
    return b"Exif\0\0" + head + b"".join(struct.pack(f"{order}HHII", *tag) for tag in tags) + bytes(40)


SIX = (0x0112, 3, 1, 6 << 16)
BLOCKS = {
    "little-endian": entries((0x0112, 3, 1, 6), order="<"),
    "big-endian": entries(SIX),
    "twice the prefix": b"Exif\0\0" + entries(SIX),
    "0": entries((0x0112, 3, 1, 0)),
    "9": entries((0x0112, 3, 1, 9 << 16)),
    "a long": entries((0x0112, 4, 1, 6)),
    "a signed long": entries((0x0112, 9, 1, 6)),
    "minus six": entries((0x0112, 9, 1, 0xFFFFFFFA)),
    "a byte": entries((0x0112, 1, 1, 6 << 24)),
    "a signed byte": entries((0x0112, 6, 1, 6 << 24)),
    "a text": entries((0x0112, 2, 2, 0x36000000)),
    "a float": entries((0x0112, 11, 1, 0x40C00000)),
    "half": entries((0x0112, 11, 1, 0x40D00000)),
    "a fraction": entries((0x0112, 5, 1, 26)) + struct.pack(">II", 12, 2),
    "a fraction of nothing": entries((0x0112, 5, 1, 26)),
    "two shorts": entries((0x0112, 3, 2, 6 << 16 | 8)),
    "none": entries((0x0112, 3, 0, 6 << 16), SIX),
    "an unknown type": entries((0x0112, 77, 1, 6 << 16), (0x0112, 3, 1, 8 << 16)),
    "the first of two": entries(SIX, (0x0112, 3, 1, 8 << 16)),
    "behind a tag beyond the end": entries((0x010F, 2, 9, 0xFFFF), SIX),
    "partly beyond the end": entries((0x0112, 3, 9, 62)) + b"\0\6\0\6",
    "behind the second tag of a name": entries((0x010F, 2, 6, 8), (0x010F, 2, 9, 0xFFFF), SIX),
    "behind a long tag": entries((0x010F, 2, 999, 8), SIX),
    "before a tag beyond the end": entries(SIX, (0x0131, 2, 9, 0xFFFF)),
    "far away": entries((0x0112, 3, 9, 0xFFFF)),
    "no directory": b"Exif\0\0MM\0*\xff\xff\xff\xff",
    "a cut directory": entries(SIX)[:20],
    "little-endian BigTIFF": b"Exif\0\0II+\0\x08\0\0\0" + struct.pack("<Q", 16) + bytes(40),
    "BigTIFF": b"Exif\0\0MM\0+\0\x08\0\0" + struct.pack(">Q", 16) + bytes(40),
    "no header": b"Exif\0\0nothing",
    "nothing": b"Exif\0\0",
}


@pytest.mark.parametrize("turn", range(1, 9))
def test_every_orientation(native, turn):
    for size in ((24, 40), (41, 25)):
        agree(native, encoded(smooth(*size), "JPEG", exif=exif(turn)))
        agree(native, encoded(smooth(*size), "PNG", exif=exif(turn)))


@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
def test_odd_exif_in_jpeg_and_png_files(native, block):
    xmp = segment(0xFFE1, b'http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation="3"/>')
    agree(native, JPEG[:2] + segment(0xFFE1, block) + JPEG[2:])
    agree(native, JPEG[:2] + segment(0xFFE1, block) + xmp + JPEG[2:])
    agree(native, png(8, 2, before=chunk(b"eXIf", block.removeprefix(b"Exif\0\0"))))
    agree(native, png(8, 2, before=chunk(b"eXIf", block) + chunk(b"iTXt", XMP)))
