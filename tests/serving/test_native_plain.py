"""What only the library without Python has: its links, its refusals, and comparisons with Python."""

from __future__ import annotations

import io
import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import draw, write_fake_engine
from native_build import EXAMPLES, NEEDS_NATIVE, compiled, needs_pkg_config, run, run_in
from native_ctypes import image
from PIL import Image

from cgd_deploy import load
from cgd_deploy.hardware.cpu import available_threads
from cgd_deploy.runtime.enginefile import read_engine
from cgd_deploy.runtime.tuning import Setting, choice, tuning_path, write_tuning
from cgd_deploy.search.index import index_images, read_index, write_index
from cgd_deploy.serving.native import build_plain
from cgd_deploy.spec import Precision

pytestmark = NEEDS_NATIVE


@pytest.fixture(scope="module")
def prefix(plain_prefix: Path) -> Path:
    return plain_prefix


def test_no_python_is_linked(prefix):
    linked = run("ldd", prefix / "lib" / "libcgd.so")
    assert "libopenvino.so" in linked and "not found" not in linked
    assert "libpython" not in linked


@needs_pkg_config
def test_a_program_in_another_folder_needs_no_environment(prefix, native_engine, pictures):
    """No LD_LIBRARY_PATH either: the library finds OpenVINO by its own RUNPATH."""
    program = compiled(prefix, EXAMPLES / "embed.c", "-std=c99")
    assert "0.jpg" in run_in({}, program, native_engine, pictures / "kind-0" / "0.jpg", folder=Path("/"))


def test_two_engines_in_one_process(library, engines, pictures):
    handles = {name: library.open(engines["openvino", name])[1] for name in ("fp32", "int8")}
    file = (pictures / "kind-0" / "0.jpg").read_bytes()
    for name, handle in handles.items():
        status, found = library.describe_files(handle, [file])
        with load(engines["openvino", name]) as engine:
            assert status == "CGD_OK" and np.array_equal(found, engine.embed([file]))
        library.engine_close(handle)


def odd_files(count: int) -> list[bytes]:
    """JPEG and PNG files of odd sizes, orientations and colour modes."""
    chance, files = random.Random(0), []
    for number in range(count):
        size = chance.randrange(8, 300), chance.randrange(8, 300)
        picture = draw(number % 6, number % 5).resize(size)
        kind = chance.choice(("JPEG", "JPEG", "PNG"))
        mode = chance.choice(("RGB", "L", "CMYK") if kind == "JPEG" else ("RGB", "L", "P", "RGBA", "1"))
        exif = Image.Exif()
        exif[0x0112] = chance.randrange(1, 9)
        options = {"quality": chance.randrange(20, 100), "progressive": chance.random() < 0.3} if kind == "JPEG" else {}
        picture.convert(mode).save(file := io.BytesIO(), kind, exif=exif, **options)
        files.append(file.getvalue())
    return files


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_descriptors_equal_pythons_alone_and_in_the_same_batches(library, engines, precision):
    files, path = odd_files(40), engines["openvino", precision]
    handle = library.open(path)[1]
    with load(path) as engine:
        for file in files:
            status, found = library.describe_files(handle, [file])
            assert status == "CGD_OK", library.error
            assert np.array_equal(found, engine.embed([file]))
        for start in range(0, 40, 8):
            batch = files[start : start + 8]
            assert np.array_equal(library.describe_files(handle, batch)[1], engine.embed(batch))
    library.engine_close(handle)


def test_streams_run_parts_of_a_batch(library, native_engine):
    if available_threads() < 2:
        pytest.skip("this process has one core")
    handle = library.open(native_engine, threads=2, streams=2)[1]
    pixels = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), np.uint8)
    with load(native_engine, threads=2, streams=2) as engine:
        found = library.describe(handle, [image(one) for one in pixels])[1]
        assert np.array_equal(found, engine.embed(pixels))
    library.engine_close(handle)
    assert library.open(native_engine, threads=1, streams=2)[0] == "CGD_BAD_INPUT" and "streams=2" in library.error


REFUSED = {
    "another backend": ({"backend": "onnxruntime"}, {}, "--embed-python"),
    "another device": ({"backend": "openvino"}, {"device": b"cuda"}, "not on 'cuda'"),
    "TF32": ({"backend": "openvino", "precision": Precision.TF32}, {}, "tf32"),
    "BF16 without the instructions": ({"backend": "openvino", "precision": Precision.BF16}, {}, "computes in BF16"),
    "floats in BF16 without them": (
        {"backend": "openvino", "precision": Precision.INT8, "float_precision": Precision.BF16},
        {},
        "--int8-float fp32",
    ),
    "a payload that is no model": ({"backend": "openvino"}, {}, "OpenVINO cannot load the model"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_engines_of_other_libraries_are_refused(library, tmp_path, monkeypatch, name):
    fields, options, words = REFUSED[name]
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "avx2")  # no BF16
    path = write_fake_engine(tmp_path / "e.cgd", **fields)
    assert library.open(path, **options)[0] == "CGD_BAD_ENGINE"
    assert words in library.error and "\n" not in library.error and library.error.endswith(".")


@pytest.mark.parametrize("format", ["WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_other_formats_are_refused(library, opened, format):
    draw(0, 0).save(file := io.BytesIO(), format)
    assert library.describe_files(opened, [file.getvalue()])[0] == "CGD_BAD_INPUT"
    assert "JPEG and PNG" in library.error and "--embed-python" in library.error


def test_an_index_of_parquet_is_refused(library, tmp_path):
    (tmp_path / "index.parquet").write_bytes(b"PAR1")
    assert library.open_index(tmp_path / "index.parquet")[0] == "CGD_BAD_INDEX" and "--embed-python" in library.error


@pytest.mark.parametrize("dtype", ["float16", "int8", "binary"])
def test_a_large_gallery_is_searched_in_parts(library, opened, native_engine, picture_list, tmp_path, dtype):
    """With more rows than one thread searches, and rows that are equal."""
    with load(native_engine) as engine:
        index = index_images(engine, picture_list, descriptor_dtype=dtype)
        rows = np.random.default_rng(0).normal(size=(5000, 96)).astype(np.float32)
        rows[2500:] = rows[:2500]
        index.update(
            [], index.compact.store(rows / np.linalg.norm(rows, axis=1, keepdims=True)), [("p", bytes(16))] * 5000
        )
        path = write_index(index, tmp_path / "index.npy")
        queries = engine.embed(np.random.default_rng(1).integers(0, 256, (3, 64, 64, 3), np.uint8))
    restored = read_index(path).descriptors
    handle = library.open_index(path)[1]
    status, indices, scores = library.search_index(handle, opened, queries, 50)
    assert status == "CGD_OK", library.error
    for query, found, similar in zip(queries, indices.astype(int), scores, strict=True):
        products = restored.astype(np.float64) @ query
        assert np.allclose(similar, products[found], atol=1e-6)
        assert similar.min() >= np.sort(products)[-50] - 1e-6
        equal = [(a, b) for a, b, s, t in zip(found, found[1:], similar, similar[1:], strict=False) if s == t]
        assert all(a < b for a, b in equal) and (dtype == "binary" or len(equal) > 5)
    library.index_close(handle)


def test_the_tuning_of_this_machine_is_used(library, native_engine, tmp_path):
    path = tmp_path / "e.cgd"
    path.write_bytes(native_engine.read_bytes())
    speeds = {Setting(1, 1, batch): speed for batch, speed in ((1, 10.0), (4, 20.0))}
    lines: list[str] = []
    keep = library.log_to(lambda level, line: lines.append(line))
    write_tuning(path, read_engine(path).manifest_sha256, choice(speeds))
    library.engine_close(library.open(path)[1])
    assert "threads=1 " in lines[-2]
    facts = json.loads(tuning_path(path).read_text())
    tuning_path(path).write_text(json.dumps({**facts, "manifest_sha256": "0"}))
    library.engine_close(library.open(path)[1])
    assert "another engine" in lines[-3] and f"threads={available_threads()} " in lines[-2]
    library.log_to(None)
    del keep


def test_what_the_build_lacks_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "/bin/false")
    command = [sys.executable, "-m", "cgd_deploy", "install-native", "--prefix", str(tmp_path / "p")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "--embed-python" in done.stderr
    assert not (tmp_path / "p").exists()


def test_without_cmake_the_build_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(build_plain.MissingDependency, match="there is no CMake"):
        build_plain.build_plain(tmp_path, "libcgd.so.0")
