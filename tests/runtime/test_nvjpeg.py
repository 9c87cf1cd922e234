"""nvJPEG as a decoder: against a stand-in for its library that decodes with Pillow, and the library on the CPU."""

from __future__ import annotations

import io
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import FAKE_SPEC, draw, script
from numpy.typing import NDArray
from PIL import Image, ImageOps

from cgd_deploy.errors import EngineError, InputError, MissingDependency, install_line
from cgd_deploy.limits import set_limits
from cgd_deploy.pictures.images import ImageList
from cgd_deploy.pictures.preprocess import batches
from cgd_deploy.pictures.rgb import ORIENTATION
from cgd_deploy.runtime.cuda import nvjpeg as module
from cgd_deploy.runtime.cuda.driver import has_gpu
from cgd_deploy.runtime.cuda.nvjpeg import NvJpeg, nvjpeg_batches, read_jpeg
from cgd_deploy.runtime.engine import Engine, load
from cgd_deploy.search.index import read_index
from cgd_deploy.spec import ModelSpec

Pixels = NDArray[np.uint8]
RULES = ("pillow-bilinear", "pillow-bicubic-shorter-40")


class Library(ModuleType):
    """Stands in for ``nvidia.nvimgcodec``: decodes with Pillow, and then calls ``change`` on the pixels."""

    def __init__(self) -> None:
        super().__init__("nvidia.nvimgcodec")
        self.BackendKind = SimpleNamespace(CPU_ONLY="cpu", HW_GPU_ONLY="hw", GPU_ONLY="gpu", HYBRID_CPU_GPU="hybrid")
        self.Backend = lambda kind: kind
        self.DecodeParams = lambda apply_exif_orientation=True: SimpleNamespace(turns=apply_exif_orientation)
        self.settings: list[dict[str, Any]] = []
        self.calls: list[list[bytes]] = []
        self.closed = 0
        self.fails: Callable[[bytes], bool] = lambda data: False
        self.change: Callable[[Pixels], Pixels] = lambda pixels: pixels

    def Decoder(self, **settings: Any) -> Any:
        self.settings.append(settings)
        return _Decoder(self)


class _Decoder:
    def __init__(self, library: Library) -> None:
        self._library = library
        self._busy = threading.Lock()

    def decode(self, files: list[bytes], *, params: Any) -> list[Any]:
        assert self._busy.acquire(blocking=False), "two threads decode at a time"
        try:
            self._library.calls.append(files)
            return [self._image(data, params.turns) for data in files]
        finally:
            self._busy.release()

    def _image(self, data: bytes, turns: bool) -> Any:
        if self._library.fails(data):
            return None
        opened = Image.open(io.BytesIO(data))
        pixels = np.asarray((ImageOps.exif_transpose(opened) if turns else opened).convert("RGB"))
        return SimpleNamespace(cpu=lambda: self._library.change(pixels))

    def __exit__(self, *_: object) -> None:
        self._library.closed += 1


def offer(monkeypatch: pytest.MonkeyPatch, library: ModuleType | None) -> None:
    """Let ``from nvidia import nvimgcodec`` give ``library``; None: it is not installed."""
    nvidia = ModuleType("nvidia")
    monkeypatch.setitem(sys.modules, "nvidia", nvidia)
    monkeypatch.delitem(sys.modules, "nvidia.nvimgcodec", raising=False)
    if library:
        nvidia.nvimgcodec = library  # type: ignore[attr-defined]


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    library = Library()
    offer(monkeypatch, library)
    return library


@pytest.fixture
def on_cuda(monkeypatch: pytest.MonkeyPatch, fake_engine: Path) -> Any:
    """An engine that says it is on CUDA."""
    monkeypatch.setattr(Engine, "device", "cuda")
    with load(fake_engine, threads=2) as engine:
        yield engine


def jpeg(image: Image.Image, orientation: int = 1, **options: Any) -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    file = io.BytesIO()
    image.save(file, "JPEG", exif=exif, **options)
    return file.getvalue()


PICTURE = draw(1, 2)
PLAIN = {
    "420": jpeg(PICTURE),
    "444": jpeg(PICTURE, subsampling=0),
    "progressive": jpeg(PICTURE, progressive=True),
    "grey": jpeg(PICTURE.convert("L")),
    **{f"turned-{orientation}": jpeg(PICTURE, orientation) for orientation in range(2, 9)},
    "with a trailer": jpeg(PICTURE) + b"SEFT",
}


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def mpo() -> bytes:
    file = io.BytesIO()
    PICTURE.save(file, "MPO", save_all=True, append_images=[draw(2, 2)])
    return file.getvalue()


def without_adobe(rgb: bytes) -> bytes:
    """A file in RGB that says so by the numbers of its components alone."""
    start = rgb.index(b"\xff\xee")
    return rgb[:start] + rgb[start + 2 + int.from_bytes(rgb[start + 2 : start + 4], "big") :]


def renumbered(rgb: bytes) -> bytes:
    """A file in RGB that says so by Adobe's marker alone: its components are numbered as those of YCbCr are."""
    data = bytearray(rgb)
    for marker, first, step in ((b"\xff\xc0", 10, 3), (b"\xff\xda", 5, 2)):
        start = rgb.index(marker) + first
        data[start : start + 3 * step : step] = b"\1\2\3"
    return bytes(data)


RGB = jpeg(PICTURE, keep_rgb=True)
OTHERS = {
    "cmyk": jpeg(PICTURE.convert("CMYK")),
    "rgb": RGB,
    "rgb by its numbers": without_adobe(RGB),
    "rgb by Adobe's marker": renumbered(RGB),
    "png": png(PICTURE),
    "mpo": mpo(),
}
DAMAGED = {
    "half": PLAIN["420"][: len(PLAIN["420"]) // 2],
    "header": PLAIN["420"][:100],
    "text": b"no picture",
    "empty": b"",
    "small": jpeg(PICTURE.resize((7, 40))),
}


def listed(folder: Path, files: dict[str, bytes], boxes: Sequence[Any] | None = None) -> ImageList:
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return ImageList(folder, tuple(files), boxes=tuple(boxes) if boxes else None)


def by_pillow(images: ImageList, spec: ModelSpec = FAKE_SPEC) -> Pixels:
    [(_, pixels)] = batches(images, spec, len(images), 1)
    return pixels


def by_nvjpeg(images: ImageList, spec: ModelSpec = FAKE_SPEC, **options: Any) -> Pixels:
    """All in one batch, in list order."""
    [(indices, pixels)] = nvjpeg_batches(images, spec, len(images), 2, **options)
    assert indices == list(range(len(images)))
    return pixels


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("boxes", [False, True], ids=["whole", "boxes"])
def test_only_the_decoder_differs_from_pillow(library, tmp_path, rule, boxes):
    """Turned, cropped and resized in the same way; so a library that decodes as Pillow does gives the same pixels."""
    images = listed(tmp_path, PLAIN, [(3, 5, 60, 50 + i) for i in range(len(PLAIN))] if boxes else None)
    spec = replace(FAKE_SPEC, resize=rule)
    np.testing.assert_array_equal(by_nvjpeg(images, spec), by_pillow(images, spec))
    assert [data for call in library.calls for data in call][1:] == list(PLAIN.values())


def test_pixels_of_jpeg_files_are_those_of_nvjpeg_and_others_those_of_pillow(library, tmp_path):
    library.change = lambda pixels: 255 - pixels
    images = listed(tmp_path, {**PLAIN, **OTHERS})
    told: list[str] = []
    found, expected = by_nvjpeg(images, on_note=told.append), by_pillow(images)
    jpegs = len(PLAIN)
    np.testing.assert_array_equal(found[jpegs:], expected[jpegs:])
    assert np.abs(255 - found[:jpegs].astype(int) - expected[:jpegs]).max() <= 1  # the resize rounds
    assert told == [f"Pillow decoded 6 of {len(images)} pictures: 6 in other formats than JPEG in YCbCr or grey."]


@pytest.mark.parametrize("name", PLAIN)
def test_nvjpeg_takes(tmp_path, name):
    (tmp_path / name).write_bytes(PLAIN[name])
    file = read_jpeg(tmp_path / name)
    assert file and file.data == PLAIN[name] and file.pixels == PICTURE.width * PICTURE.height


@pytest.mark.parametrize("name", [*OTHERS, *DAMAGED])
def test_nvjpeg_does_not_take(tmp_path, name):
    (tmp_path / name).write_bytes({**OTHERS, **DAMAGED}[name])
    assert read_jpeg(tmp_path / name) is None


def test_a_thumbnail_does_not_hide_that_the_end_is_missing(tmp_path):
    """The end of the thumbnail lies in the header, and does not count."""
    whole = jpeg(PICTURE)
    inner = jpeg(PICTURE.resize((16, 16)))
    segment = b"\xff\xe2" + (len(inner) + 2).to_bytes(2, "big") + inner
    for data, taken in ((whole, True), (whole[:-2], False)):
        (tmp_path / "a.jpg").write_bytes(data[:2] + segment + data[2:])
        assert (read_jpeg(tmp_path / "a.jpg") is not None) is taken


def test_limits_hold_before_nvjpeg_sees_a_file(library, tmp_path):
    images = listed(tmp_path, {"a.jpg": PLAIN["420"]})
    for change in ({"pixels": 1000}, {"picture_bytes": 1000}, {"formats": ("png",)}):
        before = set_limits(**change)
        with pytest.raises(InputError) as by_gpu:
            list(nvjpeg_batches(images, FAKE_SPEC, 4, 1))
        with pytest.raises(InputError) as by_cpu:
            list(batches(images, FAKE_SPEC, 4, 1))
        assert str(by_gpu.value) == str(by_cpu.value)
        set_limits(pixels=before.pixels, picture_bytes=before.picture_bytes, formats=before.formats)
    assert [len(call) for call in library.calls] == [1] * 3  # each decoder's trial alone


@pytest.mark.parametrize("name", [*DAMAGED, "absent", "box"])
def test_a_bad_picture_gives_the_sentence_that_pillow_gives(library, tmp_path, name):
    good = {"a.jpg": PLAIN["420"], "b.jpg": PLAIN["grey"]}
    bad = {} if name == "absent" else {"bad": DAMAGED.get(name, PLAIN["444"])}
    images = replace(listed(tmp_path, {**good, **bad}), names=("a.jpg", "bad", "b.jpg"))
    if name == "box":
        images = replace(images, boxes=((0, 0, 30, 30), (0, 0, 7, 30), (0, 0, 30, 30)))
    told: dict[str, list[Any]] = {}
    for maker in (batches, nvjpeg_batches):
        errors: list[Any] = []
        [(indices, _)] = maker(images, FAKE_SPEC, 4, 2, lambda *error, errors=errors: errors.append(error))
        assert indices == [0, 2]
        told[maker.__name__] = [(index, str(error)) for index, error in errors]
        with pytest.raises(InputError) as raised:
            list(maker(images, FAKE_SPEC, 4, 2))
        assert (1, str(raised.value)) == told[maker.__name__][0]
    assert told["batches"] == told["nvjpeg_batches"]


def test_pillow_decodes_what_fails_in_nvjpeg_and_it_is_told(library, tmp_path):
    images = listed(tmp_path, {**PLAIN, "a.png": OTHERS["png"]})
    library.fails = lambda data: data in (PLAIN["444"], PLAIN["grey"])
    with pytest.warns(UserWarning, match="Pillow decoded 3 of .*: 1 in other formats .* and 2 at which nvJPEG failed"):
        found = by_nvjpeg(images)
    np.testing.assert_array_equal(found, by_pillow(images))


def test_nothing_is_told_if_nvjpeg_decoded_all(library, tmp_path):
    by_nvjpeg(listed(tmp_path, PLAIN), on_note=lambda note: pytest.fail(note))


def test_groups_end_at_a_number_of_pictures_or_of_pixels(library, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "GROUP", 4)
    side = 100
    monkeypatch.setattr(module, "GROUP_PIXELS", 2 * side * side)
    small, large = (jpeg(PICTURE.resize((size, size))) for size in (10, side))
    files = {str(i): data for i, data in enumerate([small] * 5 + [large] * 3 + [small])}
    by_nvjpeg(listed(tmp_path, files))
    assert [len(call) for call in library.calls] == [1, 4, 3, 2]  # the first is the decoder's trial


def test_one_thread_at_a_time_calls_the_decoder(library, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "GROUP", 1)
    library.fails = lambda data: bool(time.sleep(0.005))  # the stand-in raises if another call begins meanwhile
    by_nvjpeg(listed(tmp_path, PLAIN))
    assert len(library.calls) == 1 + len(PLAIN)


def test_the_library_may_use_no_decoder_on_the_cpu(library):
    with NvJpeg(3):
        pass
    [settings] = library.settings
    assert settings == {
        "backends": ["hw", "gpu", "hybrid"],
        "device_id": 0,
        "max_num_cpu_threads": 3,
        "options": ":fancy_upsampling=1",
    }
    assert library.closed == 1


def test_a_decoder_that_cannot_be_made_is_one_sentence(library, monkeypatch):
    def refuse(**_: Any) -> None:
        raise RuntimeError("Internal error - \n Could not create decoder. Code: 8")

    monkeypatch.setattr(library, "Decoder", refuse)
    with pytest.raises(EngineError, match=r"does not decode on this machine \(Internal error - Could not .*pillow\.$"):
        NvJpeg(1)


def test_a_decoder_that_gives_nothing_is_refused_and_freed(library):
    """As nvImageCodec does where its library nvJPEG is missing: then every file would be Pillow's."""
    library.fails = lambda data: True
    with pytest.raises(EngineError, match="it gives no pixels for a small JPEG"):
        NvJpeg(1)
    assert library.closed == 1


def test_without_the_package_the_line_that_installs_it_is_told(monkeypatch, on_cuda, picture_list):
    offer(monkeypatch, None)
    with pytest.raises(MissingDependency) as error:
        list(on_cuda.embed_list(picture_list, decoder="nvjpeg"))
    assert str(error.value) == f"nvImageCodec is not installed; run `{install_line('nvjpeg')}`."


def test_the_library_is_asked_to_be_quiet_unless_the_user_has_asked(monkeypatch):
    monkeypatch.delenv(module.VERBOSITY, raising=False)
    with module._quiet():
        assert os.environ[module.VERBOSITY] == "0"
    assert module.VERBOSITY not in os.environ
    monkeypatch.setenv(module.VERBOSITY, "3")
    with module._quiet():
        assert os.environ[module.VERBOSITY] == "3"
    assert os.environ[module.VERBOSITY] == "3"


def test_bulk_embedding_takes_the_decoder(library, on_cuda, picture_list):
    library.change = lambda pixels: 255 - pixels
    expected = np.concatenate([part for _, part in on_cuda.embed_list(picture_list)])
    found = list(on_cuda.embed_list(picture_list, decoder="nvjpeg"))
    assert [index for indices, _ in found for index in indices] == list(range(len(picture_list)))
    assert not np.allclose(np.concatenate([part for _, part in found]), expected, atol=0.01)
    library.change = lambda pixels: pixels
    found = list(on_cuda.embed_list(picture_list, decoder="nvjpeg"))
    np.testing.assert_array_equal(np.concatenate([part for _, part in found]), expected)


def test_a_closed_iteration_frees_the_decoder_and_ends_its_threads(library, on_cuda, picture_list):
    before = threading.active_count()
    iteration = on_cuda.embed_list(picture_list, 2, decoder="nvjpeg", on_note=lambda note: pytest.fail(note))
    next(iteration)
    assert library.closed == 0
    iteration.close()
    assert library.closed == 1 and threading.active_count() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decoder": "nvjpeg"}, "this engine runs on the CPU; decode with pillow"),
        ({"decoder": "turbo"}, "decoder='turbo' is unknown; expected one of pillow, nvjpeg"),
        ({"decoder": "nvjpeg", "fast_decode": True}, "only pillow has a fast decode, and the decoder is nvjpeg"),
    ],
    ids=["cpu", "unknown", "fast"],
)
def test_what_does_not_fit_together_is_refused_before_anything_is_decoded(
    library, fake_engine, picture_list, options, message
):
    with load(fake_engine) as engine, pytest.raises(InputError, match=message):
        next(engine.embed_list(picture_list, **options))
    assert library.settings == []


def test_the_command_tells_the_note_as_a_warning(library, on_cuda, fake_engine, cli, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    listed(folder, {"a.jpg": PLAIN["420"], "b.jpg": OTHERS["cmyk"]})
    out = tmp_path / "index.npy"
    code, _, err = cli("embed", folder, "-e", fake_engine, "-o", out, "--decoder", "nvjpeg")
    assert code == 0 and len(read_index(out).paths) == 2
    assert err == "warning: Pillow decoded 1 of 2 pictures: 1 in other formats than JPEG in YCbCr or grey.\n"
    assert [len(call) for call in library.calls] == [1, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--decoder", "turbo"], "decoder='turbo' is unknown"),
        (["--decoder", "nvjpeg", "--fast-decode"], "only pillow has a fast decode"),
        (["--decoder", "nvjpeg"], "this engine runs on the CPU"),
        (["--decoder", "nvjpeg", "--ray"], "--decoder nvjpeg is not for --ray"),
    ],
    ids=["unknown", "fast", "cpu", "ray"],
)
def test_the_command_refuses_in_one_line(library, fake_engine, pictures, cli, tmp_path, options, message):
    code, _, err = cli("embed", pictures, "-e", fake_engine, "-o", tmp_path / "o.parquet", *options)
    assert code == 2 and message in err and err.count("\n") == 1


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    """benchmarks/decoders.py where there is a GPU; the pictures that it makes are few and small."""
    benchmark = script("decoders")
    monkeypatch.setattr(benchmark, "find_device", lambda: None)
    monkeypatch.setattr(benchmark, "MADE", 3)
    monkeypatch.setattr(benchmark, "MADE_SIZE", (48, 64))
    return benchmark


def test_the_benchmark_tells_levels_and_speeds(library, benchmark, monkeypatch, tmp_path, capsys):
    library.change = lambda pixels: np.where(pixels < 253, pixels + 2, pixels).astype(np.uint8)
    monkeypatch.setattr(sys, "argv", ["decoders.py", "--seconds", "0", "-o", str(tmp_path / "decoders.json")])
    benchmark.main()
    result = json.loads((tmp_path / "decoders.json").read_text())
    assert result["levels"]["pictures"] == result["pictures"] == 3
    assert result["levels"]["max"] == 2 and 1.5 < result["levels"]["mean"] <= 2
    speeds = result["images_per_second"]
    assert result["nvjpeg_over_pillow"] == pytest.approx(speeds["nvjpeg"] / speeds["pillow"], rel=0.01)
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["levels"] == result["levels"]


def test_the_benchmark_needs_jpeg_files(library, benchmark, tmp_path):
    images = listed(tmp_path, {"a.png": OTHERS["png"]})
    with pytest.raises(InputError, match="nvJPEG decodes none of the 1 pictures"):
        benchmark.compare(images, 0.0, lambda what, done: None)


@pytest.mark.skipif(has_gpu(), reason="this machine has a GPU, on which it takes a minute")
def test_the_benchmark_says_that_it_lacks_a_gpu(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "argv", ["decoders.py", "-o", str(tmp_path / "decoders.json")])
    benchmark = script("decoders")
    monkeypatch.setattr(benchmark, "MADE", 1)
    with pytest.raises(SystemExit, match=r"^2$"):
        benchmark.main()
    assert "this machine has no NVIDIA driver" in capsys.readouterr().err
    assert not (tmp_path / "decoders.json").exists()


@pytest.fixture
def real(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The library itself; every decoder that is asked for is its libjpeg-turbo, which needs no GPU."""
    pytest.importorskip("nvidia.nvimgcodec", reason="nvImageCodec is not installed; the extra nvjpeg has it")
    codec = module.import_nvimgcodec()
    on_cpu = {
        "backends": [codec.Backend(codec.BackendKind.CPU_ONLY)],
        "device_id": codec.NVIMGCODEC_DEVICE_CPU_ONLY,
    }
    monkeypatch.setattr(codec, "Decoder", lambda make=codec.Decoder, **settings: make(**{**settings, **on_cpu}))
    return codec


@pytest.mark.parametrize("rule", RULES)
def test_the_library_on_the_cpu_gives_pillows_pixels(real, tmp_path, rule):
    images = listed(tmp_path, PLAIN)
    spec = replace(FAKE_SPEC, resize=rule)
    found = by_nvjpeg(images, spec, on_note=lambda note: pytest.fail(note))
    assert np.abs(found.astype(int) - by_pillow(images, spec)).max() <= 1


def test_the_library_gives_arrays_that_outlive_it_and_nothing_for_damaged_files(real):
    with NvJpeg(1) as decoder:
        found = decoder.decode([PLAIN["420"], DAMAGED["half"], DAMAGED["text"], b"", PLAIN["grey"]])
        assert decoder.decode([]) == []
    assert [image is not None for image in found] == [True, False, False, False, True]
    for image in (found[0], found[4]):
        assert image is not None and image.dtype == np.uint8 and image.shape == (PICTURE.height, PICTURE.width, 3)
    assert np.abs(np.asarray(found[0], int) - np.asarray(Image.open(io.BytesIO(PLAIN["420"])))).max() <= 1
