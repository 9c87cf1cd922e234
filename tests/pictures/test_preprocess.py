"""From any picture to the pixels that a model sees, and what is refused on the way."""

from __future__ import annotations

import gc
import io
import os
import struct
import threading

import numpy as np
import pytest
from PIL import Image

from cgd_deploy import limits
from cgd_deploy.errors import InputError
from cgd_deploy.pictures import preprocess as module
from cgd_deploy.pictures.images import ImageList
from cgd_deploy.pictures.preprocess import batches, decode, preprocess
from cgd_deploy.spec import ModelSpec

SPEC = ModelSpec(backbone="resnet18", descriptors="S", dim=8, input_size=(48, 32))


def picture(height: int = 40, width: int = 60, seed: int = 0) -> np.ndarray:
    """Smooth colour with an edge and a corner mark: uint8 [height, width, 3], no symmetry."""
    y, x = np.mgrid[0:height, 0:width]
    channels = [x * 255 / width, y * 255 / height, np.where(x > width // 3, 200, 30)]
    pixels = np.stack(channels, axis=2).astype(np.uint8)
    pixels[:8, :8] = np.random.default_rng(seed).integers(0, 256, 3)
    return pixels


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def loop_bilinear(pixels: np.ndarray, size: int, axis: int) -> np.ndarray:
    """Antialiased bilinear resize along one axis: a triangle as wide as the step, at least 2 pixels."""
    old = pixels.shape[axis]
    step = old / size
    reach = max(step, 1.0)
    rows = []
    for target in range(size):
        centre = (target + 0.5) * step
        total, weights = 0.0, 0.0
        for source in range(old):
            weight = max(0.0, 1 - abs(source + 0.5 - centre) / reach)
            total = total + weight * pixels.take(source, axis).astype(float)
            weights += weight
        rows.append(total / weights)
    return np.stack(rows, axis)


@pytest.mark.parametrize("shape", [(96, 97), (20, 24), (48, 100)])
def test_resize_is_pillows_antialiased_bilinear_by_plain_loops(shape):
    pixels = picture(*shape)
    expected = loop_bilinear(loop_bilinear(pixels, 32, 1), 48, 0)
    found = preprocess(pixels, SPEC)
    assert found.shape == (48, 32, 3) and found.dtype == np.uint8
    assert np.abs(found - expected).max() <= 1.01  # Pillow rounds to whole numbers after each axis


def test_a_picture_of_the_right_size_is_not_touched():
    pixels = picture(48, 32)
    assert np.array_equal(preprocess(pixels, SPEC), pixels)


def test_every_way_to_pass_a_picture_gives_the_same_pixels(tmp_path):
    pixels = picture()
    image = Image.fromarray(pixels)
    path = tmp_path / "p.png"
    image.save(path)
    for source in (path, str(path), path.read_bytes(), image, pixels, np.asfortranarray(pixels)):
        assert np.array_equal(preprocess(source, SPEC), preprocess(pixels, SPEC))


def test_a_given_pillow_image_stays_open_and_unchanged():
    image = Image.open(io.BytesIO(encoded(Image.fromarray(picture()).convert("L"))))
    decode(image)
    assert image.mode == "L" and image.getpixel((0, 0)) is not None


def test_grey_becomes_three_equal_channels():
    grey = picture()[..., 0]
    found = np.asarray(decode(encoded(Image.fromarray(grey))))
    assert np.array_equal(found, np.stack([grey] * 3, axis=2))


def test_sixteen_bit_grey_keeps_its_high_byte():
    grey = np.arange(40 * 60, dtype=np.uint16).reshape(40, 60) * 27
    found = np.asarray(decode(encoded(Image.fromarray(grey))))
    assert np.array_equal(found[..., 1], (grey // 256).astype(np.uint8))
    assert found.max() > 200


def test_palette_colours_are_looked_up():
    pixels = picture() // 128 * 255
    indexed = Image.fromarray(pixels).convert("P", palette=Image.Palette.ADAPTIVE)
    assert np.array_equal(np.asarray(decode(encoded(indexed))), pixels)


def test_cmyk_is_converted():
    pixels = picture()
    found = np.asarray(decode(encoded(Image.fromarray(pixels).convert("CMYK"), "JPEG", quality=100)))
    assert np.abs(found.astype(int) - pixels).mean() < 3


# The EXIF orientation says how to turn the stored picture upright.
STORED_FROM_UPRIGHT = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.transpose(1, 0, 2),
    6: lambda upright: upright.transpose(1, 0, 2)[::-1],
    7: lambda upright: upright.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda upright: upright.transpose(1, 0, 2)[:, ::-1],
}


@pytest.mark.parametrize(("orientation", "stored"), STORED_FROM_UPRIGHT.items())
def test_a_rotated_picture_is_seen_upright(orientation, stored):
    upright = picture()
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(np.ascontiguousarray(stored(upright))), exif=exif)
    assert np.array_equal(np.asarray(decode(data)), upright)


def test_a_box_is_cut_out_of_the_upright_picture():
    upright = picture()
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(Image.fromarray(np.ascontiguousarray(STORED_FROM_UPRIGHT[6](upright))), exif=exif)
    box = (5, 10, 45, 38)
    assert np.array_equal(np.asarray(decode(data, box)), upright[10:38, 5:45])
    assert np.array_equal(preprocess(data, SPEC, box), preprocess(upright[10:38, 5:45], SPEC))


def test_a_box_that_reaches_beyond_the_picture_ends_at_its_edge():
    data = picture()
    assert np.array_equal(np.asarray(decode(data, (20, 10, 99, 99))), np.asarray(decode(data))[10:, 20:])


@pytest.mark.parametrize("box", [(-1, 0, 20, 20), (55, 0, 99, 20), (60, 0, 99, 20), (30, 0, 20, 20), (0, 0, 7, 20)])
def test_a_box_that_cuts_nothing_useful_is_refused(box):
    with pytest.raises(InputError, match="box"):
        decode(picture(), box)


JPEG = encoded(Image.fromarray(picture(200, 300)), "JPEG")

UNUSABLE = {
    "empty": b"",
    "text": b"this is no picture",
    "truncated": JPEG[: len(JPEG) // 2],
    "header only": JPEG[:60],
    "corrupt": JPEG[:4] + bytes(200) + JPEG[204:],
    "1x1": encoded(Image.new("RGB", (1, 1))),
    "7 high": encoded(Image.new("RGB", (100, 7))),
    "odd dds": b"DDS " + bytes([124, 0, 0, 0]) + bytes(120),
}


@pytest.mark.parametrize("data", UNUSABLE.values(), ids=UNUSABLE)
@pytest.mark.parametrize("as_file", [True, False])
def test_unusable_data_is_refused_in_one_sentence(tmp_path, data, as_file):
    path = tmp_path / "bad.jpg"
    path.write_bytes(data)
    with pytest.raises(InputError) as caught:
        preprocess(path if as_file else data, SPEC)
    message = str(caught.value)
    assert (str(path) if as_file else "the picture") in message
    assert "\n" not in message and message.endswith(".")


@pytest.mark.parametrize(("name", "says"), [("absent.jpg", "does not exist"), (".", "is not a regular file")])
def test_a_path_without_a_file_is_refused(tmp_path, name, says):
    with pytest.raises(InputError, match=says):
        decode(tmp_path / name)


@pytest.mark.parametrize(
    "array", [np.zeros((40, 40), np.uint8), np.zeros((40, 40, 4), np.uint8), np.zeros((40, 40, 3), np.float32)]
)
def test_an_array_of_another_kind_is_refused(array):
    with pytest.raises(InputError, match=r"expected uint8 \[height, width, 3\]"):
        decode(array)


def test_something_else_is_refused():
    with pytest.raises(InputError, match="cannot be a float"):
        decode(1.5)  # type: ignore[arg-type]


def test_too_many_pixels_are_refused_before_they_are_decoded(monkeypatch):
    monkeypatch.setattr(limits, "_limits", limits.Limits(pixels=40 * 60 - 1))
    monkeypatch.setattr(Image.Image, "convert", lambda *_: pytest.fail("decoded"))
    with pytest.raises(InputError, match=r"\(60x40\) has 2,400 pixels and the limit pixels is 2,399"):
        decode(encoded(Image.fromarray(picture())))


def tiled(tile: int) -> bytes:
    """A TIFF file of 64x64 pixels in one LZW tile of ``tile`` x ``tile``, most of which is missing."""
    tags = {256: 64, 257: 64, 258: 8, 259: 5, 262: 1, 277: 1, 322: tile, 323: tile, 324: 8, 325: 100}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<I", 108) + bytes(100) + struct.pack("<H", len(tags)) + entries + bytes(4)


def test_a_tile_larger_than_its_picture_is_refused_before_it_has_memory():
    """libtiff fills a whole tile: these 238 bytes would take 0.3 GB."""
    with pytest.raises(InputError, match="a tile of the picture has 268,435,456 pixels and the limit pixels is"):
        decode(tiled(1 << 14))
    with pytest.raises(InputError, match="cannot be decoded"):
        decode(tiled(64))


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.jpg")
    with pytest.raises(InputError, match="is not a regular file"):
        decode(tmp_path / "a.jpg")


def test_a_reason_of_several_lines_becomes_one(monkeypatch):
    def broken(*_: object, **__: object) -> None:
        raise ValueError("one\ntwo" + 1000 * "!")

    monkeypatch.setattr(Image, "open", broken)
    with pytest.raises(InputError, match=r"cannot be decoded \(one two!{193}\); replace or remove the file\.$"):
        decode(b"")


@pytest.mark.parametrize("bad", [False, True])
def test_files_are_closed(tmp_path, bad):
    path = tmp_path / "moving.gif"
    frames = [Image.new("RGB", (1, 1) if bad else (20, 20), colour) for colour in ("red", "blue")]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    if bad:
        with pytest.raises(InputError):
            decode(path)
    else:
        decode(path)
    gc.collect()  # an unclosed file is a ResourceWarning, and warnings are errors


@pytest.fixture
def many(tmp_path) -> ImageList:
    """10 pictures of different colours; 3 and 7 are broken."""
    for i in range(10):
        Image.new("RGB", (20, 20), (i * 20, 0, 0)).save(tmp_path / f"{i}.png")
    for i in (3, 7):
        (tmp_path / f"{i}.png").write_bytes(b"no picture")
    return ImageList(tmp_path, tuple(f"{i}.png" for i in range(10)))


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_batches_keep_the_order_and_leave_out_what_is_bad(many, workers):
    bad: list[int] = []
    found = list(batches(many, SPEC, 3, workers, on_error=lambda index, error: bad.append(index)))
    assert [indices for indices, _ in found] == [[0, 1, 2], [4, 5, 6], [8, 9]]
    assert bad == [3, 7]
    for indices, pixels in found:
        assert pixels.shape == (len(indices), 48, 32, 3)
        assert pixels[:, 0, 0, 0].tolist() == [i * 20 for i in indices]


def test_batches_use_boxes(tmp_path):
    pixels = picture()
    Image.fromarray(pixels).save(tmp_path / "p.png")
    images = ImageList(tmp_path, ("p.png",), None, ((5, 10, 45, 38),))
    [(_, found)] = batches(images, SPEC, 2)
    assert np.array_equal(found[0], preprocess(pixels, SPEC, (5, 10, 45, 38)))


def test_without_on_error_the_first_bad_picture_stops(many):
    with pytest.raises(InputError, match=r"3\.png"):
        list(batches(many, SPEC, 3))


def test_no_batch_if_every_picture_is_bad(many):
    assert list(batches(many.subset([3, 7]), SPEC, 2, on_error=lambda *_: None)) == []


@pytest.mark.parametrize("stop", ["after one batch", "by an error", "at the end"])
def test_threads_end_with_the_batches(many, stop):
    before = threading.active_count()
    made = batches(many if stop == "by an error" else many.subset([0, 1, 2, 4, 5, 6]), SPEC, 2)
    if stop == "by an error":
        with pytest.raises(InputError):
            list(made)
    elif stop == "at the end":
        list(made)
    else:
        next(made)
        made.close()
    assert threading.active_count() == before


def test_only_a_few_pictures_are_decoded_ahead(many, monkeypatch):
    seen: list[object] = []
    monkeypatch.setattr(
        module, "preprocess", lambda path, *_, **__: seen.append(path) or np.zeros((48, 32, 3), np.uint8)
    )
    long = many.subset([0] * 1000)
    next(made := batches(long, SPEC, 4, workers=2))
    made.close()
    assert len(seen) <= 4 + 2 * 4 + 2


def photo(width: int, height: int) -> Image.Image:
    """Smooth shapes with a little noise, as a camera would give."""
    y, x = np.mgrid[0:height, 0:width] / 100.0
    waves = [np.sin(x * a + y * b) for a, b in ((1.1, 0.7), (0.3, 1.9), (2.3, 0.2))]
    noise = np.random.default_rng(0).normal(0, 3, (height, width, 3))
    return Image.fromarray((128 + 90 * np.stack(waves, axis=2) + noise).clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize(("side", "decoded"), [(255, 255), (256, 128), (600, 150)])
def test_a_fast_decode_leaves_twice_the_input_size(side, decoded):
    found = decode(encoded(photo(side + 40, side), "JPEG", quality=90), least=2 * 64)
    assert found.height == decoded


def test_a_fast_decode_keeps_pixels_within_a_level_on_average():
    data = encoded(photo(700, 520), "JPEG", quality=90)
    plain, fast = (preprocess(data, SPEC, fast_decode=fast).astype(int) for fast in (False, True))
    assert 0 < np.abs(plain - fast).mean() < 1


def test_a_fast_decode_leaves_boxes_other_formats_and_the_callers_image_alone():
    picture = photo(520, 520)
    jpeg = encoded(picture, "JPEG", quality=90)
    assert np.array_equal(decode(jpeg, (8, 8, 200, 200), least=64), decode(jpeg, (8, 8, 200, 200)))
    assert decode(encoded(picture), least=64).size == (520, 520)
    with Image.open(io.BytesIO(jpeg)) as opened:
        assert decode(opened, least=64).size == (520, 520)
