"""What is refused by its size, before it is read, and how to allow more."""

from __future__ import annotations

import io
import re
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import FAKE_SPEC, draw
from PIL import Image

from cgd_deploy import EngineError, InputError, Limits, read_images, set_limits
from cgd_deploy.files import sha256_bytes
from cgd_deploy.pictures.preprocess import preprocess
from cgd_deploy.runtime.enginefile import GOLDEN_IMAGES, MANIFEST, read_engine

ROOT = Path(__file__).resolve().parent.parent


def png(width: int, height: int) -> bytes:
    """A header that claims so many pixels, and a few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def encoded(size: tuple[int, int], kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    draw(0, 0).resize(size).save(file, kind)
    return file.getvalue()


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("size", [(60_000, 60_000), (10_001, 10_000), (2**31 - 1, 1000)])
def test_a_decompression_bomb_is_refused_by_its_header(size):
    with pytest.raises(InputError, match=r"pixels|decompression bomb"):
        preprocess(png(*size), FAKE_SPEC)


def test_pixels_and_bytes_of_a_picture_can_be_limited_and_allowed(tmp_path):
    data = encoded((50, 40))
    set_limits(pixels=1999)
    with pytest.raises(InputError, match=r"has 2,000 pixels and the limit pixels is 1,999; .*--limit pixels=2000"):
        preprocess(data, FAKE_SPEC)
    set_limits(pixels=2000, picture_bytes=len(data) - 1)
    with pytest.raises(InputError, match="the limit picture_bytes is"):
        preprocess(data, FAKE_SPEC)
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(InputError, match="the limit picture_bytes is"):
        preprocess(tmp_path / "a.png", FAKE_SPEC)
    set_limits(picture_bytes=len(data))
    assert preprocess(data, FAKE_SPEC).shape == preprocess(tmp_path / "a.png", FAKE_SPEC).shape == (32, 32, 3)


def test_more_pixels_than_pillow_allows_are_allowed_by_both():
    """Pillow warns from its limit on, and refuses twice as many."""
    set_limits(pixels=100)
    assert Image.MAX_IMAGE_PIXELS == 89_478_485
    set_limits(pixels=200_000_000)
    assert Image.MAX_IMAGE_PIXELS == 200_000_000


def test_formats_are_listed_and_no_other_is_opened(tmp_path):
    """EPS would start Ghostscript."""
    assert "EPS" not in Limits().formats
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n%%EndComments\nshowpage\n"
    with pytest.raises(InputError, match=r"no picture in one of the formats (AVIF, )?BMP, GIF, JPEG"):
        preprocess(eps, FAKE_SPEC)
    set_limits(formats=("PNG",))
    preprocess(encoded((40, 40)), FAKE_SPEC)
    with pytest.raises(InputError, match="formats PNG"):
        preprocess(encoded((40, 40), "JPEG"), FAKE_SPEC)


def test_lists_have_a_size_and_may_be_kept_in_their_folder(tmp_path):
    path = tmp_path / "list.tsv"
    path.write_text("image\tclass\n../a.jpg\tx\n")
    assert len(read_images(path)) == 1
    set_limits(listed_anywhere=False)
    with pytest.raises(InputError, match=r"'\.\./a\.jpg'"):
        read_images(path)
    set_limits(list_bytes=10)
    with pytest.raises(InputError, match="list_bytes is 10"):
        read_images(path)


def test_an_engine_and_its_manifest_have_a_size(fake_engine):
    size = fake_engine.stat().st_size
    set_limits(engine_bytes=size - 1)
    with pytest.raises(EngineError, match=f"--limit engine_bytes={size}"):
        read_engine(fake_engine)
    set_limits(engine_bytes=size, manifest_bytes=100)
    with pytest.raises(EngineError, match="manifest_bytes is 100"):
        read_engine(fake_engine)


def rebuilt(path: Path, change: dict[str, bytes], *more: tuple[str, bytes], kind: int = zipfile.ZIP_STORED) -> Path:
    """The engine with other or more members, and the right checksum of its manifest."""
    with zipfile.ZipFile(path) as whole:
        members = {name: whole.read(name) for name in whole.namelist()}
    for name, data in change.items():
        manifest = members[MANIFEST].decode()
        members[MANIFEST] = manifest.replace(sha256_bytes(members[name]), sha256_bytes(data)).encode()
        members[name] = data
    with zipfile.ZipFile(path.with_name("other.cgd"), "w", kind) as archive:
        for name, data in (*members.items(), *more):
            archive.writestr(name, data)
        archive.comment = sha256_bytes(members[MANIFEST]).encode()
    return path.with_name("other.cgd")


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([("../../evil", b"x")], r"a member named '\.\./\.\./evil', which is not a plain name"),
        ([("/etc/evil", b"x")], "not a plain name"),
        ([(GOLDEN_IMAGES, b"x")], "two members of one name"),
        ([("extra.bin", b"x")], "'extra.bin' .* does not have the checksum"),
    ],
)
def test_members_that_an_engine_does_not_have_are_refused(fake_engine, more, message):
    assert read_engine(rebuilt(fake_engine, {})).payload  # as it was
    with pytest.raises(EngineError, match=message):
        read_engine(rebuilt(fake_engine, {}, *more))


def test_a_zip_bomb_is_refused(fake_engine):
    with pytest.raises(EngineError, match="compressed members"):
        read_engine(rebuilt(fake_engine, {}, ("bomb", bytes(1 << 20)), kind=zipfile.ZIP_DEFLATED))


@pytest.mark.parametrize(
    ("descr", "fortran_order", "shape"),
    [
        *(
            ("|u1", False, s)
            for s in ("(3, 32, 32, 300000000000)", "(3, 32, 32, 4)", "(-1, 32, 32, 3)", "(-1,)", "(((1,)")
        ),
        ("|u1", True, "(3, 32, 32, 3)"),
        ("|O", False, "(9, 32, 4)"),
        ("<f8", False, "(9, 32, 4)"),
    ],
)
def test_an_array_that_claims_to_be_another_is_refused_before_it_has_memory(fake_engine, descr, fortran_order, shape):
    header = f"{{'descr': '{descr}', 'fortran_order': {fortran_order}, 'shape': {shape}, }}".ljust(117) + "\n"
    data = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + bytes(3 * 32 * 32 * 3)
    with pytest.raises(EngineError, match="golden pictures"):
        read_engine(rebuilt(fake_engine, {GOLDEN_IMAGES: data}))


def test_golden_pictures_of_another_size_are_refused(fake_engine):
    file = io.BytesIO()
    np.save(file, np.zeros((3, 16, 16, 3), np.uint8))
    with pytest.raises(EngineError, match="do not fit its spec"):
        read_engine(rebuilt(fake_engine, {GOLDEN_IMAGES: file.getvalue()}))


def test_an_onnx_file_with_weights_elsewhere_is_refused(model_onnx, tmp_path):
    from cgd_export.metadata import load_onnx

    model = load_onnx(model_onnx)
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")
    (tmp_path / "away.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(EngineError, match="keeps weights in other files"):
        load_onnx(tmp_path / "away.onnx")
    deep = onnx.helper.make_node("Constant", [], ["unused"], value=tensor)
    model.graph.initializer.remove(tensor)
    model.functions.append(onnx.helper.make_function("d", "f", [], ["unused"], [deep], model.opset_import))
    (tmp_path / "deep.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(EngineError, match="keeps weights in other files"):
        load_onnx(tmp_path / "deep.onnx")
    set_limits(onnx_bytes=1000)
    with pytest.raises(EngineError, match="onnx_bytes is 1,000"):
        load_onnx(model_onnx)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("pixels=100", "the limit pixels is 100"),
        ("formats=png", "no picture in one of the formats PNG"),
        ("pixels=many", "limit pixels='many' cannot be used; expected one like 100000000."),
        ("pixels=0", "cannot be used"),
        ("colour=1", "limit 'colour' is unknown; expected one of pixels"),
        ("formats=XYZ", "limit formats=XYZ is unknown to Pillow"),
        ("listed_anywhere=maybe", "listed_anywhere='maybe' cannot be used"),
    ],
)
def test_the_command_line_sets_limits(cli, fake_engine, pictures, tmp_path, option, message):
    picture = pictures / "kind-0" / "0.jpg"
    code, _, err = cli("--limit", option, "embed", picture, "-e", fake_engine, "-o", tmp_path / "o.npy")
    assert code == 2 and message in err and err.count("\n") == 1


def test_the_page_names_every_limit():
    page = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE) == list(Limits.__dataclass_fields__)


def test_nothing_is_unpickled_or_evaluated():
    for folder in ("cgd_deploy", "train", "export"):
        for path in (ROOT / folder).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            found = re.search(r"\bpickle\.|weights_only=False|allow_pickle=True|(?<![\w.])(?:eval|exec)\(", text)
            assert not found, f"{path}: {found and found[0]}"
            loads = re.findall(r"torch\.load\([^)]*\)", text)
            assert all("weights_only=True" in load for load in loads), path
