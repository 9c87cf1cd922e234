"""Formats of pictures: by name, by suffix, by first bytes, and from plugins of Pillow."""

from __future__ import annotations

import io
import struct
import sys
from pathlib import Path
from types import ModuleType

import pytest
from conftest import FAKE_SPEC, draw
from PIL import Image

from cgd_deploy import InputError, MissingDependency, formats, limits, read_images, set_limits
from cgd_deploy.formats import is_picture, readable
from cgd_deploy.pictures.preprocess import preprocess

DEFAULT = limits.Limits().formats
WRITTEN = {
    ".jpg": "JPEG",
    ".jfif": "JPEG",
    ".jpe": "JPEG",
    ".mpo": "MPO",
    ".tif": "TIFF",
    ".pgm": "PPM",
    ".apng": "PNG",
    ".bmp": "BMP",
    ".jp2": "JPEG2000",
    ".avif": "AVIF",
}
Image.init()
needs_avif = pytest.mark.skipif("AVIF" not in Image.SAVE, reason="this Pillow has no AVIF")


def save(path: Path, kind: str = "JPEG") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    draw(0, 0).save(path, kind)
    return path


@pytest.mark.parametrize("suffix", [pytest.param(s, marks=needs_avif if s == ".avif" else ()) for s in WRITTEN])
def test_what_pillow_reads_is_read_from_a_folder(tmp_path, suffix):
    path = save(tmp_path / f"a{suffix.upper()}", WRITTEN[suffix])
    images = read_images(tmp_path)
    assert images.paths == [path] and images.notes == ()
    assert preprocess(path, FAKE_SPEC).shape == (32, 32, 3)


@pytest.mark.parametrize("name", ["a", "a.0001", "a.jpg_large", "a.heic", "a.txt", "a.dat"])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "PPM", "BMP", "WEBP"])
def test_other_suffixes_and_none_are_read_by_their_first_bytes(tmp_path, name, kind):
    path = save(tmp_path / name, kind)
    assert read_images(tmp_path).paths == [path]
    if not name.endswith(".txt"):  # which is read as a list where it is named
        assert read_images(path).paths == [path]


NO_PICTURES = {
    "notes.txt": b"P1 is our best camera\n",
    "brand": b"BMW and others",
    "page.html": b"<!doctype html>",
    "empty": b"",
    "phone.heic": b"\0\0\0\x20ftypmif1\0\0\0\0mif1heic" + bytes(40),
    "bitmap": b"BM",
    "a.jpg~": b"\xff\xd8\xff\xe0",
    "a.jpg.part": b"\xff\xd8\xff\xe0",
    "a.bak": b"\xff\xd8\xff\xe0",
    "raw.nef": b"II*\0\x08\0\0\0",
    "raw.dng": b"MM\0*\0\0\0\x08",
}


@pytest.mark.parametrize("name", NO_PICTURES)
def test_others_are_no_pictures(tmp_path, name):
    (tmp_path / name).write_bytes(NO_PICTURES[name])
    assert not is_picture(tmp_path / name, DEFAULT)


@pytest.mark.parametrize("name", ["DIB", "ICO", "PSD", "SGI", "PCX", "TGA", "XBM"])
@pytest.mark.parametrize("head", [b"", b"\0", b"\0\0\1"])
def test_a_file_too_short_for_its_first_bytes_is_no_picture(tmp_path, name, head):
    (tmp_path / "short").write_bytes(head)
    assert not is_picture(tmp_path / "short", (name,))


def test_tiff_without_a_suffix_is_a_picture(tmp_path):
    assert is_picture(save(tmp_path / "scan", "TIFF"), DEFAULT)


def test_a_format_is_called_by_name_or_suffix():
    set_limits(formats=("jpg", "TIF", ".png", "jp2", "mpo", "webp", "JPEG"))
    assert limits.limits().formats == ("JPEG", "TIFF", "PNG", "JPEG2000", "WEBP")
    for name in ("eggs", "", "pdf"):
        with pytest.raises(InputError, match=f"limit formats={name} is unknown to Pillow"):
            set_limits(formats=(name,))


def test_formats_that_are_not_allowed_are_not_read(tmp_path):
    for name, kind in (("a.jpg", "JPEG"), ("b.png", "PNG"), ("c", "PNG"), ("d.tga", "TGA")):
        save(tmp_path / name, kind)
    set_limits(formats=("JPEG",))
    assert read_images(tmp_path).notes == (f"{tmp_path}: 3 files were not read: 1 .png, 1 without a suffix, 1 .tga.",)
    set_limits(formats=("PNG", "TGA"))
    assert read_images(tmp_path).names == ("b.png", "c", "d.tga")


def test_a_pillow_without_a_format_reads_the_others(tmp_path, monkeypatch):
    """Pillow before 11.3 has no AVIF, and would fail on each picture if it were asked for AVIF."""
    jpeg = save(tmp_path / "a.jpg")
    (tmp_path / "b.avif").write_bytes(b"\0\0\0\x20ftypavif" + bytes(40))
    Image.init()
    monkeypatch.delitem(Image.OPEN, "AVIF", raising=False)
    monkeypatch.delitem(Image.EXTENSION, ".avif", raising=False)
    assert readable(DEFAULT) == tuple(name for name in DEFAULT if name != "AVIF")
    for picture in (jpeg, jpeg.read_bytes()):
        assert preprocess(picture, FAKE_SPEC).shape == (32, 32, 3)
    assert read_images(tmp_path).notes == (f"{tmp_path}: 1 file was not read: 1 .avif.",)
    with pytest.raises(InputError, match=r"no picture in one of the formats BMP"):
        preprocess(tmp_path / "b.avif", FAKE_SPEC)
    set_limits(pixels=1000)  # says nothing about formats


@pytest.fixture
def plugin(monkeypatch) -> ModuleType:
    """A plugin for HEIF as pillow-heif is one: a module whose import registers the format."""
    Image.init()
    for table in ("OPEN", "EXTENSION", "ID"):
        monkeypatch.setattr(Image, table, getattr(Image, table).copy())

    class Module(ModuleType):
        pass

    package, module = Module("pillow_heif"), Module("pillow_heif.HeifImagePlugin")
    monkeypatch.setitem(sys.modules, "pillow_heif", package)
    monkeypatch.setitem(sys.modules, "pillow_heif.HeifImagePlugin", module)

    def load(name: str) -> ModuleType:
        Image.register_open("HEIF", _Heif, lambda prefix: prefix[4:12] == b"ftypheic")
        Image.register_extensions("HEIF", [".heic", ".heif"])
        return module

    monkeypatch.setattr(formats, "import_module", load)
    formats._load_plugin.cache_clear()
    yield module
    formats._load_plugin.cache_clear()


def _Heif(file: io.BytesIO, name: str) -> Image.Image:
    file.seek(16)
    return Image.open(io.BytesIO(file.read()))


def heic(path: Path) -> Path:
    save(path)
    path.write_bytes(struct.pack(">I", 16) + b"ftypheic\0\0\0\0" + path.read_bytes())
    return path


@pytest.mark.parametrize("name", ["HEIF", "heic", "hif"])
def test_a_plugin_is_loaded_when_its_format_is_asked_for(tmp_path, plugin, name):
    paths = [heic(tmp_path / "a.heic"), heic(tmp_path / "b.heif"), heic(tmp_path / "c")]
    set_limits(formats=("jpg", name))
    assert limits.limits().formats == ("JPEG", "HEIF")
    assert read_images(tmp_path).paths == paths


def test_without_its_plugin_a_format_names_the_package(monkeypatch):
    for module in ("pillow_heif", "pillow_jxl"):
        monkeypatch.setitem(sys.modules, module, None)
    formats._load_plugin.cache_clear()
    for name, package in (("heic", "pillow-heif"), ("HEIF", "pillow-heif"), ("jxl", "pillow-jxl-plugin")):
        with pytest.raises(MissingDependency, match=f"formats={name} needs {package}, .*run `pip install"):
            set_limits(formats=("JPEG", name))
    formats._load_plugin.cache_clear()


@pytest.mark.parametrize(("suffix", "name"), [(".heic", "HEIF"), (".heif", "HEIF"), (".jxl", "JXL")])
def test_a_folder_and_a_picture_say_which_limit_reads_a_format(tmp_path, suffix, name):
    save(tmp_path / "a.jpg")
    (tmp_path / f"b{suffix}").write_bytes(bytes(40))
    limit = f"`cgd-deploy --limit formats={','.join(DEFAULT)},{name}` reads {name}"
    assert read_images(tmp_path).notes == (f"{tmp_path}: 1 file was not read: 1 {suffix} ({limit}).",)
    with pytest.raises(InputError, match=r"is no picture in one of the formats (AVIF, )?BMP.*, and no list") as caught:
        read_images(tmp_path / f"b{suffix}")
    assert limit in str(caught.value)


@pytest.mark.parametrize("name", [pytest.param(n, marks=needs_avif if n == "AVIF" else ()) for n in DEFAULT])
def test_a_picture_beyond_the_limit_is_refused_before_it_is_decoded(tmp_path, monkeypatch, name):
    path = save(tmp_path / "a", name)
    with Image.open(path) as image:
        monkeypatch.setattr(type(image), "load", lambda *_: pytest.fail("it was decoded"))
    set_limits(pixels=1000)
    with pytest.raises(InputError, match=r"the limit pixels is 1,000"):
        preprocess(path, FAKE_SPEC)
