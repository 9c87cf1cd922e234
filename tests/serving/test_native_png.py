"""PNG files, and damaged files: the library without Python decodes them to the pixels of Python's, or refuses them."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

import numpy as np
import pytest
from native_pictures import (
    CHANNELS,
    IGNORED,
    JPEG,
    PALETTE,
    TIFF,
    XMP,
    Refused,
    agree,
    alphas,
    chunk,
    encoded,
    exif,
    png,
    png_rows,
    smooth,
)
from PIL import Image

pytestmark = IGNORED

DEPTHS = [*((bits, 0) for bits in (1, 2, 4, 8, 16)), *((bits, 3) for bits in (1, 2, 4, 8))]
DEPTHS += [(8, 2), (16, 2), (8, 4), (16, 4), (8, 6), (16, 6)]


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(("bits", "colour"), DEPTHS)
def test_png_files_of_every_kind(native, bits, colour, interlaced):
    for parts in (1, 2, 7):
        assert agree(native, png(bits, colour, before=PALETTE, interlaced=interlaced, parts=parts))


TRANSPARENT = [
    *((bits, 0, chunk(b"tRNS", struct.pack(">H", key))) for bits in (1, 2, 4) for key in (0, 1, 2, 7, 300)),
    *((8, 0, chunk(b"tRNS", struct.pack(">H", key))) for key in (0, 100, 300, 65535)),
    *((16, 0, chunk(b"tRNS", struct.pack(">H", key))) for key in (0, 1000)),
    (8, 2, chunk(b"tRNS", struct.pack(">3H", 1, 2, 3))),
    (16, 2, chunk(b"tRNS", struct.pack(">3H", 300, 512, 65535))),
    (8, 2, chunk(b"tRNS", b"\0\1\0\2\0")),
    (8, 0, chunk(b"tRNS", b"\0")),
    (8, 6, chunk(b"tRNS", b"\0")),
    (8, 3, alphas()),
    (8, 3, alphas(0)),
    (8, 3, alphas(255, 0, 255)),
    (8, 3, alphas(255, 0, 10)),
    (8, 3, alphas(*range(256))),
    (8, 3, alphas(*range(200))),
    (8, 3, alphas(*[255] * 255, 0)),
    (8, 3, alphas(*[255] * 256, 0)),
    (8, 3, alphas(*range(256), 1)),
    (2, 3, alphas(0, 128)),
]


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(("bits", "colour", "content"), TRANSPARENT)
def test_transparency_of_png_files(native, bits, colour, content, late):
    data = png(bits, colour, before=PALETTE + (b"" if late else content), after=content if late else b"")
    agree(native, data, whole=False)


@pytest.mark.parametrize("key", [(300, 512, 65535), (1, 2, 3), (40000, 40000, 40001)])
@pytest.mark.parametrize("bits", [8, 16])
def test_pixels_of_a_transparent_colour_are_white(native, bits, key):
    stored = bytes(value & 255 for value in key) if bits == 8 else struct.pack(">3H", *key)
    row = b"\0" + (stored + b"\xf0" * len(stored)) * 15
    whole = png(bits, 2, before=chunk(b"tRNS", struct.pack(">3H", *key)))
    data = whole[: whole.index(b"IDAT") - 4] + chunk(b"IDAT", zlib.compress(row * 21)) + whole[-12:]
    assert (
        agree(native, data)
        and (native.decode(data)[:, ::2] == 255).all()
        and (native.decode(data)[:, 1::2] == 240).all()
    )


@pytest.mark.parametrize("colours", [None, 0, 1, 100, 256, 257])
@pytest.mark.parametrize("transparency", [b"", alphas(3, 0)])
def test_palettes_of_every_length(native, colours, transparency):
    palette = (
        b"" if colours is None else chunk(b"PLTE", bytes(3 * colours) if colours < 9 else bytes(range(3)) * colours)
    )
    agree(native, png(8, 3, before=palette + transparency), whole=False)


@pytest.mark.parametrize("value", [0, 4095, 4096, 65535])
@pytest.mark.parametrize("colour", [0, 2, 4, 6])
def test_sixteen_bits_that_use_twelve(native, value, colour):
    row = b"\0" + struct.pack(">H", value) * (30 * CHANNELS[colour])
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 30, 20, 16, colour, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(row * 20)) + chunk(b"IEND", b"")
    read = agree(native, data, whole=False)
    assert read == (value == 0 or value >= 4096)
    if not read:
        with pytest.raises(Refused, match="none of which uses the highest 4"):
            native.decode(data)


PROFILE = b"Raw profile type exif\0"
HEX = b"\nexif\n  90\n" + TIFF.hex().encode()
LONG = bytes(2 << 20)
FRAME = struct.pack(">IIIIIHHBB", 0, 30, 21, 0, 0, 1, 1, 0, 0)
SMALL_FRAME = struct.pack(">IIIIIHHBB", 0, 30, 20, 0, 1, 1, 1, 0, 0)
CHUNKS = {
    "XMP": chunk(b"iTXt", XMP),
    "packed XMP": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(XMP[22:])),
    "XMP in Latin 1": chunk(b"iTXt", XMP + b"\xe9"),
    "XMP of another packing": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\7\0\0" + zlib.compress(XMP[22:])),
    "XMP as text": chunk(b"tEXt", b"XML:com.adobe.xmp\0" + XMP[22:]),
    "a profile": chunk(b"tEXt", PROFILE + HEX),
    "a packed profile": chunk(b"zTXt", PROFILE + b"\0" + zlib.compress(HEX)),
    "a profile of odd digits": chunk(b"tEXt", PROFILE + HEX + b"1"),
    "a profile with a space": chunk(b"tEXt", PROFILE + HEX + b" \t00"),
    "a profile of letters": chunk(b"tEXt", PROFILE + b"\nexif\n1\nxyz"),
    "EXIF as text": chunk(b"tEXt", b"exif\0" + TIFF),
    "EXIF as packed text": chunk(b"zTXt", b"exif\0\0" + zlib.compress(TIFF)),
    "a wrong checksum": chunk(b"eXIf", TIFF, checksum=1),
    "a short gamma": chunk(b"gAMA", b"ab") + chunk(b"eXIf", TIFF),
    "a short gamma and EXIF as text": chunk(b"gAMA", b"ab") + chunk(b"tEXt", b"exif\0" + TIFF),
    "a short resolution": chunk(b"pHYs", b"ab"),
    "a long text": chunk(b"zTXt", b"a\0\0" + zlib.compress(LONG)) + chunk(b"tEXt", b"exif\0" + TIFF),
    "a text of 1 MiB": chunk(b"zTXt", b"a\0\0" + zlib.compress(LONG[: 1 << 20])) + chunk(b"tEXt", b"exif\0" + TIFF),
    "a damaged text": chunk(b"zTXt", b"a\0\0abc") + chunk(b"tEXt", b"exif\0" + TIFF),
    "a long profile": chunk(b"iCCP", b"a\0\0" + zlib.compress(LONG)) + chunk(b"tEXt", b"exif\0" + TIFF),
    "an odd colour profile": chunk(b"iCCP", b"a\0\7") + chunk(b"tEXt", b"exif\0" + TIFF),
    "an unknown chunk": chunk(b"abcd", b"x"),
    "a chunk without a name": chunk(b"ab d", b"x"),
    "a chunk beyond the end": struct.pack(">I", 0xFFFFFFFF) + b"abcd",
    "an animation": chunk(b"acTL", struct.pack(">II", 2, 0)) + chunk(b"fcTL", FRAME),
    "a smaller frame": chunk(b"acTL", struct.pack(">II", 1, 0)) + chunk(b"fcTL", FRAME[:12] + b"\0\0\0\1" + FRAME[16:]),
    "a frame of fewer rows": chunk(b"fcTL", SMALL_FRAME),
    "a frame out of order": chunk(b"fcTL", b"\0\0\0\5" + FRAME[4:]),
    "two frames out of order": chunk(b"fcTL", FRAME)
    + chunk(b"fcTL", b"\0\0\0\5" + FRAME[4:])
    + chunk(b"tEXt", b"exif\0" + TIFF),
    "two frames": chunk(b"fcTL", FRAME) + chunk(b"fcTL", b"\0\0\0\1" + FRAME[4:]) + chunk(b"tEXt", b"exif\0" + TIFF),
    "a header once more": chunk(b"IHDR", struct.pack(">IIBBBBB", 30, 21, 8, 2, 0, 0, 0)),
}


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("content", CHUNKS.values(), ids=CHUNKS)
def test_other_chunks_of_png_files(native, content, interlaced):
    agree(native, png(8, 2, before=content, interlaced=interlaced), whole=False)
    agree(native, png(8, 6, after=content, interlaced=interlaced), whole=False)


@pytest.mark.parametrize("interlaced", [False, True])
def test_a_frame_of_an_animation_lies_where_pillow_puts_it(native, interlaced):
    whole, packed = png(8, 2, interlaced=interlaced), zlib.compress(png_rows(8, 2, 10, 16, interlaced))
    frame = chunk(b"fcTL", struct.pack(">IIIIIHHBB", 0, 16, 10, 5, 6, 1, 1, 0, 0))
    assert agree(native, whole[:33] + frame + chunk(b"IDAT", packed) + whole[-12:])


HEADS = {
    "another method": (30, 21, 8, 2, 1, 0, 0),
    "another filter": (30, 21, 8, 2, 0, 1, 0),
    "another interlace": (30, 21, 8, 2, 0, 0, 7),
    "an unknown depth": (30, 21, 3, 2, 0, 0, 0),
    "a palette of 16 bits": (30, 21, 16, 3, 0, 0, 0),
    "no rows": (30, 0, 8, 2, 0, 0, 0),
    "too small": (7, 21, 8, 2, 0, 0, 0),
    "too large": (100_000, 100_000, 8, 2, 0, 0, 0),
    "fewer rows than pixels": (30, 19, 8, 2, 0, 0, 0),
    "more rows than pixels": (30, 22, 8, 2, 0, 0, 0),
}


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_headers_of_png_files(native, head):
    data = png(8, 2)
    agree(native, data[:8] + chunk(b"IHDR", struct.pack(">IIBBBBB", *head)) + data[33:], whole=False)


def test_png_files_that_end_early(native):
    data = png(8, 2, parts=3)
    read = {
        end: agree(native, data[:end], whole=False)
        for end in (*range(1, len(data), 97), *range(len(data) - 20, len(data)))
    }
    assert read[len(data) - 12] and not read[1]


def test_png_files_with_other_checksums_and_filters(native):
    data = png(8, 2)
    end = data.index(b"IEND") - 8
    assert agree(native, data[:end] + b"abcd" + data[end + 4 :])  # Pillow does not check the pixels' checksum
    agree(native, data[: end - 4] + b"abcd" + data[end:], whole=False)
    rows = png_rows(8, 2, 21, 30, False)
    for packed in (zlib.compress(b"\7" + rows[1:]), zlib.compress(rows[: 91 * 12]), zlib.compress(rows[: 91 * 12 + 5])):
        start = data.index(b"IDAT") - 4
        agree(native, data[:start] + chunk(b"IDAT", packed) + data[end + 4 :], whole=False)


def test_the_first_picture_of_animated_png_files(native):
    image = Image.fromarray(smooth(21, 30, 4))
    second = image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    for default in (True, False):
        options = {"save_all": True, "append_images": [second], "default_image": default}
        assert agree(native, encoded(image, "PNG", **options))


# Damaged files.


def damaged(data: bytes, count: int) -> Iterator[bytes]:
    random = np.random.default_rng(len(data))
    for number in range(count):
        found = bytearray(data)
        for _ in range(random.integers(1, 4)):
            place = int(random.integers(2, len(found)))
            size = int(random.choice((0, 1, 1, 2, 4)))
            found[place : place + size] = random.bytes(int(random.integers(0, 4)) if number % 3 == 0 else size)
        yield bytes(found)


SEEDS = {
    "JPEG": JPEG,
    "CMYK": encoded(Image.frombytes("CMYK", (40, 24), smooth(24, 40, 4).tobytes()), "JPEG", exif=exif(6)),
    "RGB": png(8, 2, before=chunk(b"eXIf", TIFF), after=chunk(b"iTXt", XMP)),
    "palette": png(4, 3, before=PALETTE + alphas(0, 9), interlaced=True),
}


def summed(data: bytes) -> bytes:
    """A PNG file with right checksums, so that damage lies behind the checks of its chunks."""
    found, place = data[:8], 8
    while place + 12 <= len(data):
        length = struct.unpack(">I", data[place : place + 4])[0]
        found += data[place : place + 4] + (content := data[place + 4 : place + 8 + length])
        found += struct.pack(">I", zlib.crc32(content))
        place += 12 + length
    return found


@pytest.mark.parametrize("seed", SEEDS.values(), ids=SEEDS)
def test_damaged_files_are_read_or_refused_as_in_python(native, seed):
    read = [agree(native, data, whole=False) for data in damaged(seed, 120)]
    if seed.startswith(b"\x89PNG"):
        read += [agree(native, summed(data), whole=False) for data in damaged(seed, 120)]
    assert any(read) and not all(read)
