"""The C ABI: what is installed, that C and C++ programs build against it, and that they get Python's descriptors."""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from conftest import SPEC, listing, write_fake_engine
from damaged_engines import DAMAGED
from native_build import EXAMPLES, NEEDS_NATIVE, ROOT, STRICT, compiled, needs_pkg_config, run
from native_ctypes import BGR, Image, Options, at, changed, image

from cgd_deploy import Limits, load
from cgd_deploy.pictures.images import ImageList, read_images
from cgd_deploy.runtime.golden import golden_images
from cgd_deploy.search.compact import DTYPES
from cgd_deploy.search.index import index_images, read_index, sidecar, write_index
from cgd_deploy.search.retrieval import neighbours
from cgd_deploy.serving.native import install

pytestmark = NEEDS_NATIVE


def test_what_is_installed(prefix):
    assert sorted(listing(prefix)) == [
        "include",
        "include/cgd.h",
        "include/cgd.hpp",
        "lib",
        "lib/cmake",
        "lib/cmake/cgd",
        "lib/cmake/cgd/cgdConfig.cmake",
        "lib/cmake/cgd/cgdConfigVersion.cmake",
        "lib/libcgd.so",
        "lib/libcgd.so.0",
        "lib/pkgconfig",
        "lib/pkgconfig/cgd.pc",
    ]
    assert (prefix / "lib" / "libcgd.so").readlink() == Path("libcgd.so.0")


def test_only_the_functions_of_the_header_are_exported(prefix):
    header = (prefix / "include" / "cgd.h").read_text()
    declared = set(re.findall(r"^CGD_API .*?(cgd_\w+)\(", header, re.MULTILINE))
    lines = run("nm", "-D", "--defined-only", prefix / "lib" / "libcgd.so").splitlines()
    assert {line.split()[-1] for line in lines} == declared
    assert len(declared) == 28


def test_the_header_speaks_of_no_implementation():
    assert "python" not in (install.INCLUDE / "cgd.h").read_text().lower()


@pytest.mark.parametrize(
    ("compiler", "language", "standard", "header"),
    [("cc", "c", "c99", "cgd.h"), ("c++", "c++", "c++17", "cgd.h"), ("c++", "c++", "c++17", "cgd.hpp")],
)
def test_the_headers_compile_alone(compiler, language, standard, header):
    run(compiler, "-x", language, f"-std={standard}", *STRICT, "-fsyntax-only", install.INCLUDE / header)


@needs_pkg_config
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_c_example_gives_pythons_descriptors(prefix, engines, picture_list, precision):
    path = engines["openvino", precision]
    program = compiled(prefix, EXAMPLES / "embed.c", "-std=c99")
    pictures = picture_list.paths[:3]
    *lines, last = run(program, path, *pictures).splitlines()
    with load(path) as engine:
        expected = np.concatenate([engine.embed([picture]) for picture in pictures])
    found = np.array([line.rsplit(maxsplit=3)[1:] for line in lines], np.float32)
    assert np.array_equal(found, expected[:, :3])
    assert float(last.split()[1]) == pytest.approx(float(expected[0] @ expected[1]), abs=1e-5)


@needs_pkg_config
def test_the_c_example_tells_what_is_wrong(prefix, native_engine, tmp_path):
    program = compiled(prefix, EXAMPLES / "embed.c", "-std=c99")
    (tmp_path / "no.jpg").write_bytes(b"no picture")
    assert "no.jpg: the picture cannot be decoded" in run(program, native_engine, tmp_path / "no.jpg", status=1)
    assert "make it with" in run(program, tmp_path / "no.cgd", "a.jpg", status=1)


@pytest.fixture(scope="module")
def examples(prefix, tmp_path_factory) -> Path:
    """The folder of the programs in examples/native, built by CMake."""
    if not shutil.which("cmake"):
        pytest.skip("there is no CMake")
    folder = tmp_path_factory.mktemp("examples")
    run(
        "cmake",
        "-S",
        EXAMPLES,
        "-B",
        folder,
        f"-DCMAKE_PREFIX_PATH={prefix}",
        f"-DCMAKE_CXX_FLAGS={' '.join(STRICT)}",
    )
    run("cmake", "--build", folder, "--parallel", 2)
    return folder


def test_the_example_of_threads_tells_its_throughput(examples, native_engine):
    told = re.fullmatch(
        r'{"images": (\d+), "seconds": ([\d.]+), "images_per_second": ([\d.]+)}\n',
        run(examples / "throughput", native_engine, 8, 0.5),
    )
    assert told and int(told[1]) > 0
    assert float(told[3]) == pytest.approx(int(told[1]) / float(told[2]), rel=0.01)
    assert "make it with" in run(examples / "throughput", "no.cgd", 1, 1, status=1)


def test_the_example_of_a_service_answers_pictures(examples, native_engine, pictures, expected):
    if not (examples / "service").exists():
        pytest.skip("cpp-httplib is not installed")
    files = [(pictures / "kind-0" / f"{number}.jpg").read_bytes() for number in range(4)]
    with subprocess.Popen([examples / "service", native_engine, "0"], stdout=subprocess.PIPE, text=True) as service:
        try:
            assert service.stdout
            url = service.stdout.readline().strip()
            with ThreadPoolExecutor(4) as pool:
                answers = list(pool.map(lambda file: httpx.post(url, content=file), files))
            refused = httpx.post(url, content=b"no picture")
            stats = httpx.get(url.replace("describe", "stats")).json()
        finally:
            service.terminate()
    assert service.returncode == 0
    found = [answer.raise_for_status().json()["descriptor"] for answer in answers]
    assert np.allclose(found, expected(files), atol=1e-5)
    assert refused.status_code == 400 and "cannot be decoded" in refused.json()["error"]
    assert (stats["described"], stats["bad_input"]) == (4, 1)
    assert "make it with" in run(examples / "service", "no.cgd", 0, status=1)


@needs_pkg_config
@pytest.mark.parametrize(
    ("page", "language", "compiler", "standard"),
    [
        ("docs/native.md", "c", "cc", "c99"),
        ("docs/native.md", "cpp", "c++", "c++17"),
        ("README.md", "cpp", "c++", "c++17"),
    ],
)
def test_the_programs_of_the_pages_run(prefix, native_engine, tmp_path, page, language, compiler, standard):
    text = (ROOT / page).read_text(encoding="utf-8")
    block = re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)[0]
    (tmp_path / f"main.{language}").write_text(block)
    (name,) = re.findall(r'"([^"]+\.cgd)"', block)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    engine = shutil.copy(native_engine, tmp_path / name)
    program = compiled(prefix, tmp_path / f"main.{language}", f"-std={standard}", compiler=compiler)
    with load(engine) as loaded:
        black = loaded.embed([np.zeros((480, 640, 3), np.uint8)])[0, 0]
        word = "CGD_OK" if language == "c" else loaded.spec.space_id
    assert run(program, folder=tmp_path) == f"{word} {black:.6f}\n"


@needs_pkg_config
@pytest.mark.parametrize(
    ("language", "compiler", "standard"), [("c", "cc", "c99"), ("cpp", "c++", "c++17")], ids=["c", "cpp"]
)
def test_the_programs_that_search_find_what_python_finds(
    prefix, native_engine, picture_list, tmp_path, language, compiler, standard
):
    text = (ROOT / "docs" / "native.md").read_text(encoding="utf-8")
    block = re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)[1]
    (tmp_path / f"main.{language}").write_text(block)
    program = compiled(prefix, tmp_path / f"main.{language}", f"-std={standard}", compiler=compiler)
    engine = shutil.copy(native_engine, tmp_path / "model-int8.cgd")
    query = picture_list.path(4)
    assert "index.npy" in run(program, query, folder=tmp_path, status=1)
    index = read_index(write_index_of(engine, picture_list, tmp_path / "index.npy"))
    with load(engine) as loaded:
        nearest, cosines = index.search(loaded, loaded.embed([query]), 3)
    expected = [f"{c:.4f} {index.paths[i]}" for i, c in zip(nearest[0], cosines[0], strict=True)]
    assert run(program, query, folder=tmp_path).splitlines() == expected


@needs_pkg_config
@pytest.mark.parametrize(
    ("language", "compiler", "standard", "printed"),
    [
        ("c", "cc", "c99", ["callback: CGD_OK", "shed: 0", "ticket: CGD_OK"]),
        ("cpp", "c++", "c++17", ["described: 2"]),
    ],
    ids=["c", "cpp"],
)
def test_the_programs_that_submit(prefix, native_engine, tmp_path, language, compiler, standard, printed):
    text = (ROOT / "docs" / "native.md").read_text(encoding="utf-8")
    block = re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)[2]
    (tmp_path / f"main.{language}").write_text(block)
    program = compiled(prefix, tmp_path / f"main.{language}", f"-std={standard}", compiler=compiler)
    shutil.copy(native_engine, tmp_path / "model-int8.cgd")
    assert sorted(run(program, folder=tmp_path).splitlines()) == printed


def test_an_engine_says_what_it_is(library, opened, native_engine):
    width, height = ctypes.c_uint32(), ctypes.c_uint32()
    library.engine_input_size(opened, ctypes.byref(width), ctypes.byref(height))
    with load(native_engine) as engine:
        assert (height.value, width.value) == engine.spec.input_size
        assert library.engine_dim(opened) == engine.spec.dim
        assert library.engine_space_id(opened).decode() == engine.spec.space_id
    cosine = ctypes.c_float()
    assert library.self_test(opened, ctypes.byref(cosine)) == 0 and cosine.value > 0.999
    assert re.fullmatch(r"\d+\.\d+\.\d+", library.version().decode())


def test_images_alone_and_together_with_strides_and_bgr(library, opened, expected):
    pixels = golden_images(SPEC, 3)
    padded = np.zeros((64, 80, 3), np.uint8)
    padded[:, :64] = pixels[1]
    bgr = np.ascontiguousarray(pixels[2][..., ::-1])
    images = [image(pixels[0]), image(padded[:, :64]), image(bgr, BGR)]
    assert [one.stride for one in images] == [192, 240, 192]
    for one, row in zip(images, pixels, strict=True):
        status, found = library.describe(opened, [one])
        assert status == "CGD_OK" and np.array_equal(found, expected(row[None]))
    status, found = library.describe(opened, images)
    assert status == "CGD_OK" and np.array_equal(found, expected(pixels))


def test_images_of_another_size_are_resized_as_in_python(library, opened, expected):
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    _, found = library.describe(opened, [image(pixels)])
    assert np.array_equal(found, expected([pixels]))


def test_encoded_files(library, opened, expected, pictures):
    files = [(pictures / "kind-1" / f"{i}.jpg").read_bytes() for i in range(2)]
    status, found = library.describe_files(opened, files)
    assert status == "CGD_OK" and np.array_equal(found, expected(files))


def test_nothing_is_embedded_without_images(library, opened):
    assert library.describe(opened, [])[0] == "CGD_OK"


def test_eight_threads_get_their_own(library, opened, expected):
    pixels = golden_images(SPEC, 40)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda row: library.describe(opened, [image(row)])[1][0], pixels))
    assert np.allclose(np.stack(found), expected(pixels), atol=1e-5)


@pytest.mark.parametrize("strided", [False, True])
def test_search(library, strided):
    random = np.random.default_rng(0)
    queries, gallery = (random.normal(size=(n, 8 if strided else 5)).astype(np.float32) for n in (4, 30))
    stride = queries.strides[0] if strided else 0
    indices, scores = np.zeros((4, 3), np.uint64), np.zeros((4, 3), np.float32)
    sizes = [ctypes.c_size_t(value) for value in (4, stride, 30, stride, 5, 3)]
    code = library.search(at(queries), *sizes[:2], at(gallery), *sizes[2:], at(indices), at(scores))
    assert library.status(code) == "CGD_OK", library.error
    nearest, products = neighbours(queries[:, :5], gallery[:, :5], 3)
    assert np.array_equal(indices, nearest) and np.allclose(scores, products, atol=1e-6)
    sizes[-1] = ctypes.c_size_t(31)
    code = library.search(at(queries), *sizes[:2], at(gallery), *sizes[2:], at(indices), at(scores))
    assert library.status(code) == "CGD_INVALID_ARGUMENT" and "k 31 of 30" in library.error


def test_every_failure_has_its_status_and_a_sentence(library, opened, tmp_path):
    pixels = np.zeros((64, 64, 3), np.uint8)

    def with_(**fields: object) -> list[Image]:
        return [changed(image(pixels), **fields)]

    (tmp_path / "damaged.cgd").write_bytes(b"PK\3\4 no more")
    missing = write_fake_engine(tmp_path / "missing.cgd", backend="tensorrt-rtx")
    failures = [
        (lambda: library.open(tmp_path / "no.cgd")[0], "CGD_BAD_ENGINE", "no.cgd"),
        (lambda: library.open(tmp_path / "damaged.cgd")[0], "CGD_BAD_ENGINE", "damaged.cgd"),
        (lambda: library.status(library.engine_open(None, None, None)), "CGD_INVALID_ARGUMENT", "NULL"),
        (lambda: library.describe(opened, with_(data=None))[0], "CGD_INVALID_ARGUMENT", "image 0 has no data"),
        (lambda: library.describe(opened, with_(format=9))[0], "CGD_INVALID_ARGUMENT", "format 9"),
        (lambda: library.describe(opened, with_(stride=191))[0], "CGD_INVALID_ARGUMENT", "at least 192"),
        (lambda: library.describe(opened, with_(width=4))[0], "CGD_BAD_INPUT", "4x64"),
        (lambda: library.describe(opened, with_(), dim=95)[0], "CGD_BUFFER_TOO_SMALL", "expected 96"),
        (lambda: library.describe(None, with_())[0], "CGD_INVALID_ARGUMENT", "NULL"),
    ]
    for fail, status, words in failures:
        assert fail() == status
        assert words in library.error and "\n" not in library.error
    assert library.open(missing)[0] in ("CGD_BAD_ENGINE", "CGD_MISSING_DEPENDENCY")
    assert library.describe(opened, with_())[0] == "CGD_OK" and library.error == ""


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_engine_is_refused(library, fake_engine, name):
    damage, words = DAMAGED[name]
    damage(fake_engine)
    assert library.open(fake_engine)[0] == "CGD_BAD_ENGINE"
    assert str(fake_engine) in library.error and words in library.error
    assert "\n" not in library.error and library.error.endswith(".")


def test_a_full_queue_is_overloaded(library, native_engine):
    options = library.options()
    assert (options.size, options.max_queue, options.max_delay_ms) == (ctypes.sizeof(Options), 256, 2.0)
    status, engine = library.open(native_engine, max_queue=1, max_delay_ms=300.0)
    assert status == "CGD_OK"
    pixels = golden_images(SPEC, 4)
    with ThreadPoolExecutor(4) as pool:
        statuses = sorted(pool.map(lambda row: library.describe(engine, [image(row)])[0], pixels))
    library.engine_close(engine)
    assert statuses == ["CGD_OK", "CGD_OVERLOADED", "CGD_OVERLOADED", "CGD_OVERLOADED"]
    assert library.open(native_engine, device=b"tpu")[0] == "CGD_BAD_ENGINE" and "'tpu'" in library.error


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_queue": 0}, "max_queue=0"),
        ({"max_delay_ms": -1.0}, "max_delay_ms=-1"),
        ({"max_delay_ms": float("nan")}, "max_delay_ms=nan"),
        ({"threads": 1, "streams": 2}, "streams=2"),
    ],
)
def test_options_that_cannot_be_are_refused(library, native_engine, options, words):
    assert library.open(native_engine, **options)[0] == "CGD_BAD_INPUT" and words in library.error


def test_a_delay_of_any_length_is_taken(library, native_engine):
    status, engine = library.open(native_engine, max_delay_ms=1e300)
    assert (status, library.error) == ("CGD_OK", "")
    library.engine_close(engine)


@pytest.mark.parametrize(
    ("size", "expected"), [(0, "CGD_INVALID_ARGUMENT"), (5000, "CGD_INVALID_ARGUMENT"), (8, "CGD_OK")]
)
def test_options_of_another_header(library, native_engine, size, expected):
    """An older header ends before ``device``, so what lies there is not read."""
    status, engine = library.open(native_engine, size=size, device=b"tpu")
    assert status == expected and ("sizeof" in library.error) == (expected != "CGD_OK")
    library.engine_close(engine)


def test_the_last_error_is_the_threads_own(library, tmp_path):
    library.open(tmp_path / "here.cgd")
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: library.error).result() == ""
        pool.submit(library.open, tmp_path / "there.cgd").result()
        assert "there.cgd" in pool.submit(lambda: library.error).result()
    assert "here.cgd" in library.error


def write_index_of(engine: Path, pictures: ImageList, path: Path, **form: Any) -> Path:
    with load(engine) as loaded:
        return write_index(index_images(loaded, pictures, **form), path)


@pytest.mark.parametrize("form", [{}, {"pca": 5}, *({"descriptor_dtype": dtype} for dtype in DTYPES[1:])], ids=str)
def test_an_index_finds_what_it_finds_in_python(library, opened, native_engine, picture_list, tmp_path, form):
    path = write_index_of(native_engine, picture_list, tmp_path / "index.npy", **form)
    status, index = library.open_index(path)
    assert (status, library.error) == ("CGD_OK", "")
    expected = read_index(path)
    assert library.index_size(index) == len(picture_list)
    assert library.index_dim(index) == library.engine_dim(opened) == 96
    assert library.index_space_id(index) == library.engine_space_id(opened)
    found = [library.index_path(index, ctypes.c_size_t(i)) for i in range(len(picture_list) + 1)]
    assert found == [*map(os.fsencode, expected.paths), None]
    with load(native_engine) as engine:
        queries = engine.embed(golden_images(SPEC, 4))
        nearest, cosines = expected.search(engine, queries, 7)
    status, indices, scores = library.search_index(index, opened, queries, 7)
    assert status == "CGD_OK" and np.array_equal(indices, nearest) and np.allclose(scores, cosines, atol=1e-6)
    assert library.search_index(index, opened, queries[:0], 7)[0] == "CGD_OK"
    library.index_close(index)
    library.index_close(None)


def test_an_index_keeps_the_bytes_of_its_paths(library, native_engine, pictures, tmp_path):
    name = os.fsdecode(b"p\xf6.jpg")
    shutil.copy(pictures / "kind-0" / "0.jpg", tmp_path / name)
    path = write_index_of(native_engine, read_images(tmp_path), tmp_path / "index.npy")
    status, index = library.open_index(path)
    assert (status, library.error) == ("CGD_OK", "")
    assert library.index_path(index, ctypes.c_size_t(0)).endswith(b"/p\xf6.jpg")
    library.index_close(index)


def test_every_failure_of_an_index_has_a_status_and_a_sentence(library, opened, native_engine, picture_list, tmp_path):
    path = write_index_of(native_engine, picture_list, tmp_path / "index.npy")
    _, index = library.open_index(path)
    queries = np.zeros((1, 96), np.float32)

    def told(**changes: object) -> str:
        facts = json.loads(sidecar(path).read_text())
        (tmp_path / "changed.npy").write_bytes(path.read_bytes())
        sidecar(tmp_path / "changed.npy").write_text(json.dumps({**facts, **changes}))
        return library.open_index(tmp_path / "changed.npy")[0]

    paths = list(read_index(path).paths)
    assert told(space_id="another") == "CGD_OK"
    other = library.open_index(tmp_path / "changed.npy")[1]
    failures = [
        (lambda: library.open_index(tmp_path / "no.npy")[0], "CGD_BAD_INDEX", "no.npy"),
        (lambda: library.open_index(tmp_path / "no.txt")[0], "CGD_BAD_INDEX", "expected"),
        (lambda: library.status(library.index_open(None, None)), "CGD_INVALID_ARGUMENT", "NULL"),
        (lambda: told(sampled_sha256="0"), "CGD_BAD_INDEX", "different runs"),
        (lambda: told(paths=["a\0b", *paths[1:]]), "CGD_BAD_INDEX", "again"),
        (lambda: told(space_id="\ud800"), "CGD_BAD_INDEX", "again"),
        (lambda: library.search_index(other, opened, queries, 1)[0], "CGD_BAD_INDEX", "another"),
        (lambda: library.search_index(index, opened, queries, 0)[0], "CGD_INVALID_ARGUMENT", "k is 0"),
        (lambda: library.search_index(index, opened, queries, 31)[0], "CGD_INVALID_ARGUMENT", "expected 1 to 30"),
        (lambda: library.search_index(index, None, queries, 1)[0], "CGD_INVALID_ARGUMENT", "NULL"),
        (lambda: library.search_index(None, opened, queries, 1)[0], "CGD_INVALID_ARGUMENT", "NULL"),
    ]
    for fail, status, words in failures:
        assert fail() == status
        assert words in library.error and "\n" not in library.error
    assert told(space_id="long" * 100) == "CGD_OK"
    assert told(graph={"sampled_sha256": "0", "recall_at_10": 1.0}) == "CGD_OK"  # C searches without the graph
    for handle in (index, other):
        library.index_close(handle)
    assert library.index_size(None) == library.index_dim(None) == 0 and library.index_space_id(None) == b""


def test_limits(library, opened, pictures):
    file = (pictures / "kind-0" / "0.jpg").read_bytes()

    def embed() -> str:
        return library.describe_files(opened, [file])[0]

    for name, least, usual in (("pixels", b"10", b"100000000"), ("formats", b"png,bmp", b"jpeg,png")):
        assert library.set_limit(name.encode(), least) == 0 and embed() == "CGD_BAD_INPUT"
        assert name.rstrip("s") in library.error
        assert library.set_limit(name.encode(), usual) == 0 and embed() == "CGD_OK"
    library.set_limit(b"formats", ",".join(Limits().formats).encode())  # for other tests in this process
    for name, value, words in ((b"pixel", b"1", "'pixel' is unknown"), (b"pixels", b"-1", "pixels='-1'")):
        assert library.status(library.set_limit(name, value)) == "CGD_INVALID_ARGUMENT" and words in library.error
    assert library.status(library.set_limit(b"pixels", None)) == "CGD_INVALID_ARGUMENT"


def test_closing_nothing_does_nothing(library):
    library.engine_close(None)
