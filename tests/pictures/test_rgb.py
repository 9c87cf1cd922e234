"""Upright 8-bit RGB: odd metadata, more than 8 bits, and transparency."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin
from test_png import chunk, png

from cgd_deploy.errors import InputError
from cgd_deploy.pictures.preprocess import decode

GREY = np.arange(20 * 30).reshape(20, 30) * 255 // 599  # 0 to 255
COLOUR = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
TURNED = {1: COLOUR, 3: COLOUR[::-1, ::-1], 6: np.rot90(COLOUR, -1)}


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def seen(data: bytes | Image.Image) -> np.ndarray:
    return np.asarray(decode(data))


def grey_of(data: bytes | Image.Image) -> np.ndarray:
    """The three channels of a grey picture, which are equal."""
    pixels = seen(data)
    assert (pixels == pixels[..., :1]).all()
    return pixels[..., 0]


# Orientation: formats that keep the pixels, and EXIF as files in the wild have it.


def in_format(kind: str, exif: bytes | Image.Exif) -> bytes:
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    return encoded(Image.fromarray(COLOUR), kind, exif=exif, **options)


def exif(entries: list[tuple[int, int, int, int]]) -> bytes:
    """A big-endian EXIF block of (tag, type, count, value or place)."""
    return (
        b"Exif\0\0MM\0*\0\0\0\x08"
        + struct.pack(">H", len(entries))
        + b"".join(struct.pack(">HHII", *entry) for entry in entries)
        + bytes(4)
    )


SHORT, LONG, RATIONAL, ASCII = 3, 4, 5, 2
ORIENTED = (0x0112, SHORT, 1, 6 << 16)

UNREADABLE = {
    "no header": b"Exif\0\0" + b"no exif at all",
    "a short header": b"Exif\0\0MM",
    "an empty block": b"Exif\0\0",
    "a place beyond the end": b"Exif\0\0MM\0*\0\0\xff\xff",
    "orientation 0": exif([(0x0112, SHORT, 1, 0)]),
    "orientation 9": exif([(0x0112, SHORT, 1, 9 << 16)]),
    "orientation as text": exif([(0x0112, ASCII, 2, 0x36000000)]),
    "orientation far away": exif([(0x0112, SHORT, 9, 0xFFFF)]),
}


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # Pillow's, about what is wrong with the file
@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
@pytest.mark.parametrize("block", UNREADABLE.values(), ids=UNREADABLE)
def test_a_picture_whose_orientation_cannot_be_read_is_upright(kind, block):
    assert np.array_equal(seen(in_format(kind, block)), COLOUR)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("block", UNREADABLE.values(), ids=UNREADABLE)
def test_a_jpeg_file_likewise(block):
    image = Image.fromarray(COLOUR)
    assert np.array_equal(seen(encoded(image, "JPEG", exif=block)), seen(encoded(image, "JPEG")))


ODD = {
    "a text tag that holds a number": [ORIENTED, (0x010F, SHORT, 1, 5 << 16)],
    "a number tag that holds a text": [(0x0100, ASCII, 4, 0x61626300), ORIENTED],
    "a rational of 0/0": [ORIENTED, (0x011A, RATIONAL, 1, 200)],
    "a rational without an end": [ORIENTED, (0x011A, RATIONAL, 1, 0xFFFF)],
    "an EXIF directory that is none": [ORIENTED, (0x8769, LONG, 1, 3)],
    "a GPS directory beyond the end": [ORIENTED, (0x8825, LONG, 1, 0xFFFFFFFF)],
    "a tag of an unknown type": [ORIENTED, (0x9999, 77, 1, 0)],
}


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
@pytest.mark.parametrize("entries", ODD.values(), ids=ODD)
def test_odd_tags_beside_the_orientation_do_not_matter(kind, entries):
    assert np.array_equal(seen(in_format(kind, exif(entries) + bytes(300))), TURNED[6])


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("entries", ODD.values(), ids=ODD)
def test_nor_in_a_jpeg_file(entries):
    data = encoded(Image.fromarray(COLOUR), "JPEG", exif=exif(entries) + bytes(300))
    assert decode(data).size == (20, 30)


@pytest.mark.parametrize("orientation", TURNED)
def test_tiff_files_are_turned_once(orientation):
    data = encoded(Image.fromarray(COLOUR), "TIFF", tiffinfo={0x0112: orientation})
    assert np.array_equal(seen(data), TURNED[orientation])


@pytest.mark.parametrize(("kind", "place"), [(9, -5), (9, -(1 << 31)), (4, 0xFFFFFFFF), (4, 3)])
@pytest.mark.parametrize("tag", [0x8769, 0x8825])
def test_a_tiff_file_with_a_misplaced_directory_decodes(tag, kind, place):
    data = tiff(GREY.astype(np.uint8), {tag: (kind, place)})
    assert np.array_equal(grey_of(data), GREY)


# More than 8 bits.


def tiff(pixels: np.ndarray, tags: dict[int, tuple[int, int]] | None = None, order: str = "<") -> bytes:
    """An uncompressed TIFF file of ``pixels`` [H, W] or [H, W, 3] with these further tags: (type, value)."""
    pixels = pixels.astype(pixels.dtype.newbyteorder(order))
    height, width = pixels.shape[:2]
    channels = pixels.shape[2] if pixels.ndim == 3 else 1
    content = pixels.tobytes()
    start = 8 + len(content)
    entries = {
        256: (4, width), 257: (4, height), 258: (3, 8 * pixels.itemsize), 259: (3, 1),
        262: (3, 2 if channels > 1 else 1), 273: (4, 8), 277: (3, channels), 278: (4, height),
        279: (4, len(content)), **(tags or {}),
    }  # fmt: skip
    codes = {3: "Hxx", 4: "I", 8: "hxx", 9: "i", 11: "f"}
    table = b""
    for tag, (kind, value) in sorted(entries.items()):
        table += struct.pack(f"{order}HHI{codes[kind]}", tag, kind, 1, value)
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", start)
    return head + content + struct.pack(f"{order}H", len(entries)) + table + bytes(4)


SIXTEEN = (GREY * 257).astype(np.uint16)
TWELVE = (GREY * 16 + GREY // 16).astype(np.uint16)
TEN = (GREY * 4 + GREY // 64).astype(np.uint16)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("declared", [{}, {281: (3, 65535)}, {341: (3, 65535)}, {281: (3, 40_000)}])
def test_sixteen_bits_keep_their_high_byte(order, declared):
    assert np.array_equal(grey_of(tiff(SIXTEEN, declared, order)), GREY)


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I;16L"])
def test_so_do_those_of_a_pillow_image(mode):
    image = Image.frombytes(mode, (30, 20), SIXTEEN.astype(">u2" if mode == "I;16B" else "<u2").tobytes())
    assert np.array_equal(grey_of(image), GREY)


@pytest.mark.parametrize(
    ("values", "declared"),
    [
        (TWELVE, {281: (3, 4095)}),
        (TWELVE, {341: (3, 4095)}),
        (TWELVE, {281: (3, 3871)}),  # the largest value that there is, of 12 bits
        (TWELVE, {281: (3, 65535), 341: (3, 4095)}),
        (TEN, {281: (3, 1023)}),
        (TEN, {341: (4, 1000)}),
        (GREY.astype(np.uint16), {281: (3, 255)}),
        (GREY.astype(np.uint32), {281: (3, 255)}),
        (TWELVE.astype(np.uint32), {341: (4, 4095)}),
        ((GREY * 0x01010101).astype(np.uint32), {341: (4, 0xFFFFFFFF)}),
    ],
)
def test_fewer_bits_are_scaled_as_the_file_declares(values, declared):
    assert np.array_equal(grey_of(tiff(values, declared)), GREY)


@pytest.mark.parametrize(("value", "declared", "expected"), [(100, 127, 100), (5000, 4095, 255), (1 << 31, 1023, 255)])
def test_a_declared_range_is_of_8_bits_at_least_and_values_end_at_it(value, declared, expected):
    pixels = np.full((20, 30), value, np.uint32)
    assert (grey_of(tiff(pixels, {281: (3, declared)})) == expected).all()


def test_twelve_packed_bits_are_scaled():
    a, b = TWELVE.reshape(-1, 2).T
    packed = np.stack([a >> 4, (a & 15) << 4 | b >> 8, b & 255], axis=1).astype(np.uint8)
    data = tiff(packed.reshape(20, 45), {256: (4, 30), 258: (3, 12)})
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode == "I;16"
    assert np.array_equal(grey_of(data), GREY)


@pytest.mark.parametrize("values", [TWELVE, TEN, GREY.astype(np.uint16), np.ones((20, 30), np.uint16)])
@pytest.mark.parametrize("encode", [tiff, lambda values: encoded(Image.fromarray(values)), Image.fromarray])
def test_sixteen_bits_that_hold_twelve_or_fewer_are_refused(values, encode):
    with pytest.raises(InputError, match=r"none of which uses the highest 4, .* convert it to 8 bits"):
        decode(encode(values))


@pytest.mark.parametrize("values", [0, 4096, 65535])
def test_black_and_dark_pictures_of_sixteen_bits_are_not(values):
    pixels = np.full((20, 30), values, np.uint16)
    assert (grey_of(tiff(pixels)) == values >> 8).all()


@pytest.mark.parametrize(
    ("maxval", "values"), [(65535, SIXTEEN), (4095, TWELVE), (1023, TEN), (300, GREY), (100, GREY // 3)]
)
def test_pgm_files_declare_their_largest_value(maxval, values):
    content = values.astype(">u2" if maxval > 255 else np.uint8).tobytes()
    found = grey_of(b"P5\n30 20\n%d\n" % maxval + content)
    assert np.abs(found.astype(float) - values / maxval * 255).max() <= 1


def test_a_dark_pgm_file_is_dark():
    assert (grey_of(b"P5\n30 20\n65535\n" + np.full(600, 1000, ">u2").tobytes()) == 3).all()


@pytest.mark.parametrize(
    ("values", "declared"),
    [
        (GREY / 255, {341: (11, 1.0)}),
        (GREY / 255, {340: (11, 0.0), 341: (11, 1.0)}),
        (GREY * 1.0, {341: (11, 255.0)}),
        (GREY / 127.5 - 1, {340: (11, -1.0), 341: (11, 1.0)}),
    ],
)
def test_floats_are_scaled_by_their_declared_range(values, declared):
    data = tiff(values.astype(np.float32), {339: (3, 3), **declared})
    assert np.array_equal(grey_of(data), GREY)


def test_values_beyond_the_declared_range_end_at_it():
    values = np.array([[-5.0, 0.0, 0.5, 1.0, 99.0]] * 10, np.float32).repeat(2, 1)
    assert grey_of(tiff(values, {339: (3, 3), 341: (11, 1.0)}))[0, ::2].tolist() == [0, 0, 128, 255, 255]


@pytest.mark.parametrize(
    ("values", "smallest", "largest"),
    [((GREY * 257 - 32768).astype(np.int16), -32768, 32767), ((GREY - 128).astype(np.int8), -128, 127)],
    ids=["16", "8"],
)
def test_signed_values_are_scaled_by_their_declared_range(values, smallest, largest):
    assert np.array_equal(grey_of(tiff(values, {339: (3, 2), 340: (8, smallest), 341: (8, largest)})), GREY)


UNDECLARED = {
    "floats from 0 to 1": tiff((GREY / 255).astype(np.float32), {339: (3, 3)}),
    "floats from 0 to 255": tiff(GREY.astype(np.float32), {339: (3, 3)}),
    "an empty range": tiff(GREY.astype(np.float32), {339: (3, 3), 340: (11, 1.0), 341: (11, 1.0)}),
    "an endless range": tiff(GREY.astype(np.float32), {339: (3, 3), 341: (11, np.inf)}),
    "a range of NaN": tiff(GREY.astype(np.float32), {339: (3, 3), 341: (11, np.nan)}),
    "signed 8 bits": tiff((GREY - 128).astype(np.int8), {339: (3, 2)}),
    "signed 16 bits": tiff(GREY.astype(np.int16), {339: (3, 2)}),
    "signed 32 bits": tiff(GREY.astype(np.int32), {339: (3, 2)}),
    "unsigned 32 bits": tiff(GREY.astype(np.uint32)),
    "a largest value of 0": tiff(GREY.astype(np.uint32), {281: (3, 0)}),
    "a PFM file": b"Pf\n30 20\n-1.0\n" + (GREY / 255).astype("<f4").tobytes(),
    "an image of mode F": Image.fromarray((GREY / 255).astype(np.float32)),
    "an image of mode I": Image.fromarray(GREY.astype(np.int32)),
}


@pytest.mark.parametrize("picture", UNDECLARED.values(), ids=UNDECLARED)
def test_values_without_a_declared_range_are_refused_in_one_sentence(picture):
    with pytest.raises(InputError, match=r"^the picture is grey of .* declares no range; convert .*SMaxSampleValue\.$"):
        decode(picture)


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_floats_that_are_no_numbers_are_refused(wrong):
    values = (GREY / 255).astype(np.float32)
    values[3, 4] = wrong
    with pytest.raises(InputError, match="holds NaN or infinity"):
        decode(tiff(values, {339: (3, 3), 341: (11, 1.0)}))


@pytest.mark.parametrize(
    "data",
    [
        tiff(255 - GREY.astype(np.uint8), {262: (3, 0)}),
        tiff(65535 - SIXTEEN, {262: (3, 0)}),
        tiff(4095 - TWELVE, {262: (3, 0), 281: (3, 4095)}),
        tiff((1 - GREY / 255).astype(np.float32), {262: (3, 0), 339: (3, 3), 341: (11, 1.0)}),
    ],
    ids=["8", "16", "12", "float"],
)
def test_zero_is_white_where_the_file_says_so(data):
    assert np.array_equal(grey_of(data), GREY)


@pytest.mark.parametrize("order", "<>")
def test_colour_of_sixteen_bits_keeps_its_high_byte(order):
    assert np.array_equal(seen(tiff(COLOUR.astype(np.uint16) * 257, order=order)), COLOUR)


TWELVE_BIT_COLOUR = COLOUR.astype(np.uint16) * 16
PNG_16 = struct.pack(">IIBBBBB", 30, 20, 16, 2, 0, 0, 0)


def png_16(pixels: np.ndarray) -> bytes:
    """A PNG file of uint16 [20, 30, 3], which Pillow cannot write."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    chunks = chunk(b"IHDR", PNG_16) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


@pytest.mark.parametrize("data", [tiff(TWELVE_BIT_COLOUR), png_16(TWELVE_BIT_COLOUR), png_16(TWELVE_BIT_COLOUR // 4)])
def test_colour_of_fewer_bits_is_refused(data):
    with pytest.raises(InputError, match="none of which uses the highest 4"):
        decode(data)


def test_colour_of_fewer_declared_bits_is_refused():
    with pytest.raises(InputError, match=r"16-bit colour of 12 bits by its tag, .*; convert the picture to 8 bits\.$"):
        decode(tiff(TWELVE_BIT_COLOUR, {281: (3, 4095)}))
    assert np.array_equal(seen(png_16(COLOUR.astype(np.uint16) * 257)), COLOUR)


# Transparency.


def on_white(colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """``colours`` [H, W, 3] over white, by the definition."""
    share = alpha[..., None] / 255
    return colours * share + 255 * (1 - share)


RAMP = GREY.astype(np.uint8)
GREY_3 = np.repeat(RAMP[..., None], 3, 2)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "image"])
def test_colour_with_alpha_lies_on_white(kind):
    image = Image.fromarray(np.dstack([COLOUR, RAMP]))
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    found = seen(image if kind == "image" else encoded(image, kind, **options))
    assert np.abs(found - on_white(COLOUR, RAMP)).max() <= 0.51


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "image"])
def test_grey_with_alpha_lies_on_white(kind):
    image = Image.fromarray(np.dstack([RAMP.T.reshape(20, 30), RAMP]))
    found = seen(image if kind == "image" else encoded(image, kind))
    assert np.abs(found - on_white(np.repeat(RAMP.T.reshape(20, 30, 1), 3, 2), RAMP)).max() <= 0.51


@pytest.mark.parametrize("mode", ["RGBa", "La"])
def test_premultiplied_alpha_lies_on_white(mode):
    image = Image.fromarray(np.dstack([COLOUR, RAMP])).convert("RGBA" if mode == "RGBa" else "LA")
    expected = seen(image).astype(int)
    assert np.abs(seen(image.convert(mode)) - expected).max() <= 2


PALETTE = Image.fromarray(COLOUR).convert("P")


@pytest.mark.parametrize("kind", ["PNG", "GIF", "image"])
def test_one_transparent_colour_of_a_palette_is_white(kind):
    image = PALETTE.copy()
    key = image.getpixel((0, 0))
    image.info["transparency"] = key
    pixels = np.asarray(PALETTE.convert("RGB")).copy()
    pixels[np.asarray(PALETTE) == key] = 255
    assert np.array_equal(seen(image if kind == "image" else encoded(image, kind, transparency=key)), pixels)


@pytest.mark.parametrize("kind", ["PNG", "image", "PA"])
def test_a_palette_with_alpha_lies_on_white(kind):
    alphas = np.arange(256, dtype=np.uint8)
    image = PALETTE.copy()
    image.info["transparency"] = alphas.tobytes()
    expected = on_white(np.asarray(PALETTE.convert("RGB")), alphas[np.asarray(PALETTE)])
    if kind == "PA":
        image = image.convert("PA")
    assert (
        np.abs(seen(encoded(image, transparency=alphas.tobytes()) if kind == "PNG" else image) - expected).max() <= 0.51
    )


@pytest.mark.parametrize(
    ("pixels", "key"),
    [
        (COLOUR, tuple(COLOUR[0, 0].tolist())),
        (RAMP, 100),
        (SIXTEEN, int(SIXTEEN[10, 10])),
        (COLOUR[..., 0] > 127, 0),
    ],
    ids=["RGB", "L", "I;16", "1"],
)
def test_a_transparent_colour_is_white(pixels, key):
    plain = seen(encoded(Image.fromarray(pixels)))
    is_key = (pixels == np.array(key)).reshape(20, 30, -1).all(2)
    expected = np.where(is_key[..., None], 255, plain)
    assert is_key.any() and not np.array_equal(expected, plain)
    assert np.array_equal(seen(encoded(Image.fromarray(pixels), transparency=key)), expected)


def packed_png(bits: int, key: int) -> tuple[bytes, np.ndarray]:
    """A grey PNG file of 2 or 4 bits a pixel whose value ``key`` is transparent, and what is to be seen."""
    values = np.arange(20 * 32).reshape(20, 32) % (1 << bits)
    places = values.reshape(20, -1, 8 // bits) << np.arange(8 - bits, -1, -bits)
    rows = b"".join(b"\0" + bytes(row.tolist()) for row in places.sum(2))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 32, 20, bits, 0, 0, 0, 0))
    chunks = header + chunk(b"tRNS", struct.pack(">H", key)) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks, np.where(values == key, 255, values * 255 // ((1 << bits) - 1))


@pytest.mark.parametrize(("bits", "key"), [(2, 1), (2, 0), (4, 3), (4, 14)])
def test_a_transparent_grey_of_few_bits_is_white(bits, key):
    data, expected = packed_png(bits, key)
    assert np.array_equal(grey_of(data), expected)


def test_a_transparent_colour_of_sixteen_bits_is_white():
    pixels = COLOUR.astype(np.uint16) * 257
    key = pixels[0, 0] + np.array([3, 2, 1], np.uint16)  # another low byte
    pixels[0, 0] = key
    whole = png_16(pixels)
    expected = COLOUR.copy()
    expected[0, 0] = 255
    place = whole.index(b"IDAT") - 4
    data = whole[:place] + chunk(b"tRNS", struct.pack(">3H", *key)) + whole[place:]
    assert np.array_equal(seen(data), expected)


OPAQUE = {
    "RGBA": np.dstack([COLOUR, np.full_like(RAMP, 255)]),
    "LA": np.dstack([RAMP, np.full_like(RAMP, 255)]),
}


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "image"])
@pytest.mark.parametrize("mode", OPAQUE)
def test_opaque_pixels_are_as_they_are_stored(mode, kind):
    image = Image.fromarray(OPAQUE[mode])
    expected = COLOUR if mode == "RGBA" else GREY_3
    assert np.array_equal(seen(image if kind == "image" else encoded(image, kind)), expected)


def test_every_opaque_value_is_as_it_is_stored():
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    pixels = np.dstack([values, values.T, 255 - values, np.full_like(values, 255)])
    assert np.array_equal(seen(Image.fromarray(pixels)), pixels[..., :3])


def test_two_pictures_that_look_the_same_are_the_same():
    """Programs leave anything under transparent pixels: black, white, or what was there before."""
    shape = (COLOUR[..., 0] > 127).astype(np.uint8) * 255
    one, other = (np.dstack([np.where(shape[..., None] > 0, COLOUR, under), shape]) for under in (0, 200))
    assert np.array_equal(seen(encoded(Image.fromarray(one))), seen(encoded(Image.fromarray(other))))


@pytest.mark.parametrize(("alpha", "expected"), [(0, COLOUR), (255, COLOUR)])
def test_a_bmp_file_without_alpha_in_its_fourth_byte_is_opaque(alpha, expected):
    content = np.dstack([COLOUR[::-1, :, ::-1], np.full_like(RAMP, alpha)]).tobytes()
    masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    header = struct.pack("<IiiHHIIiiII", 124, 30, 20, 1, 32, 3, len(content), 0, 0, 0, 0) + masks + bytes(68)
    data = b"BM" + struct.pack("<IHHI", 14 + len(header) + len(content), 0, 0, 14 + len(header)) + header + content
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode == "RGBA"
    assert np.array_equal(seen(data), expected)


def test_a_given_image_keeps_its_transparency():
    image = Image.open(io.BytesIO(packed_png(4, 3)[0]))
    decode(image)
    assert image.info["transparency"] == 3 and image.mode == "L"


def test_a_tiff_file_that_needs_libtiff_decodes_with_its_directories():
    block = Image.Exif()
    block.get_ifd(0x8769)[0x829A] = TiffImagePlugin.IFDRational(0, 0)
    data = encoded(Image.fromarray(COLOUR), "TIFF", exif=block, compression="tiff_lzw")
    assert np.array_equal(seen(data), COLOUR)


def test_the_orientation_of_a_png_file_is_read_behind_its_pixels():
    block = Image.Exif()
    block[0x0112] = 3
    content = block.tobytes().removeprefix(b"Exif\0\0")
    assert np.array_equal(seen(png(after=chunk(b"eXIf", content), pixels=COLOUR)), TURNED[3])
