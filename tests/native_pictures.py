"""The C++ library's pictures through ctypes, files to decode, and the comparison with Python's library."""

from __future__ import annotations

import ctypes
import io
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from native_ctypes import BGR, RGB, image
from PIL import Image

from cgd_deploy.errors import InputError
from cgd_deploy.limits import Limits, set_limits
from cgd_deploy.pictures.preprocess import decode

ROOT = Path(__file__).resolve().parent.parent
NATIVE = ROOT / "cgd_deploy" / "serving" / "native"
SOURCES = ("limits", "formats", "resize", "resample", "exif", "decode", "jpeg", "jpeg_header", "inflate")
SOURCES += ("png", "png_chunks", "png_rows", "png_colour")
FLAGS = ("-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-pedantic", "-fPIC", "-fvisibility=hidden")
INVALID_ARGUMENT, BAD_INPUT, BAD_ENGINE = 1, 3, 4
IGNORED = pytest.mark.filterwarnings("ignore::UserWarning:PIL", "ignore::PIL.Image.DecompressionBombWarning")
"""Pillow's warnings about damaged files."""


class Encoding(ctypes.Structure):
    """pictures_encoding."""

    _fields_ = (
        ("channels", ctypes.c_int),
        ("colours", ctypes.c_int),
        ("sampling", ctypes.c_int * 8),
        ("quality", ctypes.c_int),
        ("progressive", ctypes.c_int),
        ("arithmetic", ctypes.c_int),
        ("restart", ctypes.c_int),
    )


class Refused(Exception):
    """A status of the library and its sentence."""


class Native:
    """The C++ library through ctypes."""

    def __init__(self, path: Path) -> None:
        self._library = ctypes.CDLL(str(path))
        self._library.pictures_error.restype = ctypes.c_char_p
        self._library.pictures_encode.restype = ctypes.c_size_t

    def decode(self, data: bytes) -> np.ndarray:
        width, height, pixels = ctypes.c_uint32(), ctypes.c_uint32(), ctypes.POINTER(ctypes.c_uint8)()
        places = map(ctypes.byref, (width, height, pixels))
        self._check(self._library.pictures_decode(data, ctypes.c_size_t(len(data)), *places))
        found = np.ctypeslib.as_array(pixels, (height.value, width.value, 3)).copy()
        self._library.pictures_free(pixels)
        return found

    def fit(self, pixels: np.ndarray, rule: str, size: tuple[int, int], bgr: bool = False) -> np.ndarray:
        out = np.empty((*size, 3), np.uint8)
        view = image(pixels, BGR if bgr else RGB)
        self._check(
            self._library.pictures_fit(ctypes.byref(view), rule.encode(), *size, ctypes.c_void_p(out.ctypes.data))
        )
        return out

    def preprocess(self, data: bytes, rule: str, size: tuple[int, int]) -> np.ndarray:
        out = np.empty((*size, 3), np.uint8)
        arguments = (data, ctypes.c_size_t(len(data)), rule.encode(), *size, ctypes.c_void_p(out.ctypes.data))
        self._check(self._library.pictures_fit_file(*arguments))
        return out

    def set_limit(self, name: str, value: str) -> None:
        self._check(self._library.pictures_set_limit(name.encode(), value.encode()))

    def encode(self, pixels: np.ndarray, colours: int, sampling: str, **options: int) -> bytes:
        """A JPEG file; sampling "21 11 11" has the factors 2x1 for the first component."""
        height, width, channels = pixels.shape
        factors = (ctypes.c_int * 8)(*map(int, sampling.replace(" ", "").ljust(8, "1")))
        how, file = Encoding(channels, colours, factors, **{"quality": 80, **options}), ctypes.POINTER(ctypes.c_uint8)()
        data = np.ascontiguousarray(pixels)
        size = self._library.pictures_encode(
            ctypes.c_void_p(data.ctypes.data), width, height, ctypes.byref(how), ctypes.byref(file)
        )
        encoded = ctypes.string_at(file, size)
        self._library.pictures_free(file)
        return encoded

    def _check(self, status: int) -> None:
        if status != 0:
            raise Refused(status, self._library.pictures_error().decode())


@pytest.fixture(scope="session")
def native(tmp_path_factory: pytest.TempPathFactory) -> Native:
    if not shutil.which("c++") or sys.platform == "win32":
        pytest.skip("there is no C++ compiler")
    for header in ("jpeglib.h", "zlib.h"):
        lines = f"#include <cstdio>\n#include <{header}>\n"
        if subprocess.run(["c++", "-E", "-x", "c++", "-"], input=lines.encode(), capture_output=True).returncode:
            pytest.skip(f"{header} is not installed")
    library = tmp_path_factory.mktemp("native-pictures") / "libpictures.so"
    files = [*(NATIVE / "cpp" / f"{name}.cpp" for name in SOURCES), ROOT / "tests" / "data" / "native_pictures.cpp"]
    folders = ("-I", NATIVE / "include", "-I", NATIVE / "cpp")
    command = ["c++", *FLAGS, "-shared", *folders, *files, "-ljpeg", "-lz", "-o", library]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return Native(library)


@pytest.fixture
def limited(native: Native) -> Iterator[Native]:
    """Both libraries with their default limits again after the test."""
    yield native
    default = Limits()
    set_limits(pixels=default.pixels, picture_bytes=default.picture_bytes, formats=default.formats)
    for name in ("pixels", "picture_bytes"):
        native.set_limit(name, str(getattr(default, name)))
    native.set_limit("formats", ",".join(default.formats))


def smooth(height: int, width: int, channels: int = 3) -> np.ndarray:
    """Waves and noise: uint8 [height, width, channels]."""
    y, x = np.mgrid[0:height, 0:width] / 9.0
    waves = np.stack([np.sin((1 + i) * x + (2 - i) * y) for i in range(channels)], 2)
    noise = np.random.default_rng((height, width)).normal(0, 12, waves.shape)
    return (128 + 95 * waves + noise).clip(0, 255).astype(np.uint8)


def encoded(image: Image.Image | np.ndarray, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, kind, **options)
    return file.getvalue()


def exif(orientation: int) -> Image.Exif:
    block = Image.Exif()
    block[0x010F], block[0x0112] = "a camera of some length", orientation
    return block


def agree(native: Native, data: bytes, whole: bool = True) -> bool:
    """Whether both libraries read a file, to the same pixels. ``whole`` files must be read."""
    try:
        expected = np.asarray(decode(data))
    except InputError as error:
        assert not whole, error
        with pytest.raises(Refused) as caught:
            native.decode(data)
        status, sentence = caught.value.args
        assert status == BAD_INPUT and sentence.startswith("the picture") and sentence.endswith("."), sentence
        assert "\n" not in sentence and sentence.count("cannot be decoded") <= 1
        return False
    assert np.array_equal(native.decode(data), expected)
    return True


def segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">HH", marker, len(content) + 2) + content


def chunk(name: bytes, content: bytes, checksum: int = 0) -> bytes:
    """``checksum`` is added to the right one."""
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content) + checksum)


CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def png_rows(bits: int, colour: int, height: int, width: int, interlaced: bool) -> bytes:
    """Random rows with every filter."""
    random, rows = np.random.default_rng((bits, colour, height)), []
    for left, top, across, down in PASSES if interlaced else ((0, 0, 1, 1),):
        columns, lines = len(range(left, width, across)), len(range(top, height, down))
        size = (columns * bits * CHANNELS[colour] + 7) // 8
        rows += [bytes([random.integers(5)]) + random.bytes(size) for _ in range(lines) if columns]
    return b"".join(rows)


def png(
    bits: int, colour: int, before: bytes = b"", after: bytes = b"", interlaced: bool = False, parts: int = 1
) -> bytes:
    """A file of 21 rows of 30 pixels: ``before`` lies before the pixels, in ``parts`` chunks, and ``after`` behind."""
    packed = zlib.compress(png_rows(bits, colour, 21, 30, interlaced))
    step = -(-len(packed) // parts)
    data = b"".join(chunk(b"IDAT", packed[at : at + step]) for at in range(0, len(packed), step))
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 30, 21, bits, colour, 0, 0, interlaced))
    return b"\x89PNG\r\n\x1a\n" + head + before + data + after + chunk(b"IEND", b"")


JPEG = encoded(smooth(24, 40), "JPEG")
PALETTE = chunk(b"PLTE", bytes(range(256)) * 3)
XMP = b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="6"/>'
TIFF = exif(6).tobytes().removeprefix(b"Exif\0\0")


def alphas(*values: int) -> bytes:
    return chunk(b"tRNS", bytes(values))
