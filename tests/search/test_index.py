"""Descriptors on disk: nothing lost, nothing mixed up."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import FAKE_SPEC, listing, write_fake_engine

from cgd_deploy.errors import InputError, MissingDependency
from cgd_deploy.pictures.images import ImageList
from cgd_deploy.runtime.engine import load
from cgd_deploy.search import index as module
from cgd_deploy.search.compact import DTYPES
from cgd_deploy.search.index import (
    Index,
    Reading,
    beside,
    check_index_path,
    index_images,
    read_index,
    sidecar,
    write_index,
)
from cgd_deploy.spec import Precision


@pytest.fixture
def engine(fake_engine):
    with load(fake_engine) as engine:
        yield engine


@pytest.fixture
def index(engine, picture_list) -> Index:
    return index_images(engine, picture_list)


def test_the_repr_says_what_is_in_it(index, engine, picture_list):
    assert repr(index) == "<Index: 30 pictures, 24 values as float32, space 0123456789abcdef>"
    compact = index_images(engine, picture_list, descriptor_dtype="int8", pca=4)
    assert repr(compact) == "<Index: 30 pictures, 4 values as int8, space 0123456789abcdef>"


SUFFIXES = ["npy", "parquet"]


@pytest.fixture(params=SUFFIXES)
def path(request, tmp_path) -> Path:
    if request.param == "parquet":
        pytest.importorskip("pyarrow")
    return tmp_path / f"index.{request.param}"


def test_an_index_holds_every_picture_in_order(index, engine, picture_list):
    assert index.paths == [str(p) for p in picture_list.paths]
    assert np.allclose(index.descriptors, engine.embed(picture_list.paths), atol=1e-6)
    assert (index.space_id, index.precision) == (FAKE_SPEC.space_id, "fp32")


def test_round_trip(index, path):
    again = read_index(write_index(index, path))
    assert again.descriptors.dtype == np.float32 and np.array_equal(again.descriptors, index.descriptors)
    assert list(again.paths) == list(index.paths)
    assert (again.space_id, again.precision) == (index.space_id, index.precision)


def test_an_npy_index_is_two_plain_files(index, tmp_path):
    write_index(index, tmp_path / "new" / "index.npy")
    assert listing(tmp_path / "new").keys() == {"index.npy", "index.npy.json"}
    assert np.array_equal(np.load(tmp_path / "new" / "index.npy"), index.descriptors)


def test_a_parquet_index_is_a_table_of_paths_and_descriptors(index, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    write_index(index, tmp_path / "index.parquet")
    table = parquet.read_table(tmp_path / "index.parquet")
    assert table.column_names == ["path", "descriptor", "content"]
    assert table.column("descriptor")[3].as_py() == index.descriptors[3].tolist()


def test_search_finds_each_picture_itself_first(index, engine):
    indices, similarities = index.search(engine, index.descriptors, 3)
    assert indices[:, 0].tolist() == list(range(30))
    assert similarities[:, 0] == pytest.approx(1, abs=1e-5)


def test_an_engine_of_another_space_is_refused(index, tmp_path):
    other = write_fake_engine(tmp_path / "other.cgd", replace(FAKE_SPEC, space_id="f" * 16))
    with load(other) as engine, pytest.raises(InputError, match=f"space {FAKE_SPEC.space_id}, the engine f{{16}}"):
        index.search(engine, index.descriptors, 1)


def built(path: Path, precision: str, statement: str | None) -> Path:
    retrieval = None if statement is None else {"statement": statement}
    return write_fake_engine(path, precision=Precision(precision), retrieval=retrieval)


SAFE = "safe to mix with an FP32 gallery: overlap@10 97.0 %"
UNSAFE = "not safe to mix with an FP32 gallery: overlap@10 80.0 %"


@pytest.mark.parametrize(
    ("indexed", "asking", "statement", "safe"),
    [
        ("fp32", "int8", SAFE, True),
        ("int8", "fp32", SAFE, True),
        ("fp32", "int8", UNSAFE, False),
        ("int8", "fp32", UNSAFE, False),
        ("fp32", "int8", None, False),
        ("int8", "fp32", None, False),
        ("int8", "fp16", SAFE, False),  # the statement is about FP32
        ("int8", "int8", UNSAFE, None),
        ("fp32", "fp32", None, None),
    ],
)
def test_mixing_precisions_is_known_by_either_side(picture_list, path, tmp_path, indexed, asking, statement, safe):
    engines = {
        precision: built(tmp_path / f"{precision}.cgd", precision, statement if precision == "int8" else None)
        for precision in (indexed, asking)
    }
    with load(engines[indexed]) as engine:
        write_index(index_images(engine, picture_list), path)
    with load(engines[asking]) as engine:
        mixing = read_index(path).mixing(engine)
    if safe is None:
        assert mixing is None
        return
    assert mixing.safe is safe
    assert mixing.told.startswith(f"the index holds {indexed} descriptors and the engine makes {asking} ones, ")
    known = statement is not None and "fp16" not in (indexed, asking)
    assert (f"measured as {statement}" if known else "was not measured") in mixing.told
    assert mixing.told.endswith("make the index again with this engine") is not safe


def test_the_statement_of_a_build_is_one_that_mixing_understands(index, tmp_path):
    pytest.importorskip("torch")
    from cgd_export.int8.budget import Trial, statement
    from cgd_export.int8.recipe import Recipe

    for overlap, safe in ((0.99, True), (0.5, False)):
        trial = Trial(
            recipe=Recipe(),
            keep_float=(),
            int8_share=1.0,
            pictures=20,
            compared=20,
            overlap_at_10=overlap,
            overlap_interval=(overlap, overlap),
            cross_overlap={"int8 searches fp32": overlap},
        )
        with load(built(tmp_path / "int8.cgd", "int8", statement(trial))) as engine:
            assert index.mixing(engine).safe is safe


def test_an_engine_of_another_space_is_not_said_to_mix(index, tmp_path):
    other = write_fake_engine(tmp_path / "other.cgd", replace(FAKE_SPEC, space_id="f" * 16), precision=Precision.INT8)
    with load(other) as engine, pytest.raises(InputError, match="make the index again with this model's engine"):
        index.mixing(engine)


@pytest.mark.parametrize("paths_are", ["relative", "absolute"])
def test_the_pictures_of_an_index_are_found_from_another_folder(engine, pictures, path, monkeypatch, paths_are):
    monkeypatch.chdir(pictures.parent)
    index = index_images(engine, ImageList(Path(pictures.name), ("kind-0/0.jpg", "kind-1/1.jpg")))
    write_index(index, path, paths_are)
    for folder in (path.parent, pictures / "kind-1"):
        monkeypatch.chdir(folder)
        found = [Path(name) for name in read_index(path).paths]
        assert [name.resolve() for name in found] == [pictures / "kind-0/0.jpg", pictures / "kind-1/1.jpg"]


def test_an_index_of_unknown_names_is_refused(index, tmp_path):
    path = write_index(index, tmp_path / "index.npy")
    sidecar(path).write_text(json.dumps({**json.loads(sidecar(path).read_text()), "paths_are": "near"}))
    refused(path, r"is not an index of cgd-deploy embed \(paths_are is 'near'\)")


def test_more_neighbours_than_there_are_pictures_are_refused(index, engine):
    with pytest.raises(InputError, match="31 neighbours"):
        index.search(engine, index.descriptors, 31)


def test_descriptors_and_paths_of_two_runs_are_refused(index, tmp_path):
    one, other = tmp_path / "one.npy", tmp_path / "other.npy"
    write_index(index, one)
    write_index(Index(-index.stored, index.paths, index.space_id, index.precision, index.compact), other)
    sidecar(one).write_bytes(sidecar(other).read_bytes())
    with pytest.raises(InputError, match="belong to different runs"):
        read_index(one)


def test_a_damaged_index_is_refused(index, path):
    write_index(index, path)
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(InputError, match=r"make (it|the index) again"):
        read_index(path)


def test_a_sidecar_nested_too_deep_is_refused(index, tmp_path):
    path = write_index(index, tmp_path / "index.npy")
    sidecar(path).write_text("[" * 100_000)
    with pytest.raises(InputError, match="is not an index"):
        read_index(path)


def test_a_missing_index_is_refused(path):
    with pytest.raises(InputError, match=path.name):
        read_index(path)


def test_a_foreign_table_is_refused(tmp_path):
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pa.table({"a": [1]}), tmp_path / "index.parquet")
    with pytest.raises(InputError, match="is not an index"):
        read_index(tmp_path / "index.parquet")


@pytest.mark.parametrize("name", ["index", "index.csv", "index.npz", "index.NPY"])
def test_another_suffix_is_refused(tmp_path, name):
    with pytest.raises(InputError, match=r"\.npy \.parquet"):
        check_index_path(tmp_path / name)


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingDependency, match="run `pip install 'pyarrow>="):
        check_index_path(tmp_path / "index.parquet")


@pytest.fixture
def some_bad(tmp_path, pictures) -> ImageList:
    """Three good pictures and two bad files."""
    folder = tmp_path / "some-bad"
    folder.mkdir()
    for number in (0, 2, 4):
        (folder / f"{number}.jpg").write_bytes((pictures / "kind-1" / f"{number}.jpg").read_bytes())
    for number in (1, 3):
        (folder / f"{number}.jpg").write_bytes(b"no picture")
    return ImageList(folder, tuple(f"{number}.jpg" for number in range(5)))


def test_bad_pictures_are_told_and_left_out(engine, some_bad):
    told, counted = [], []
    index = index_images(
        engine, some_bad, Reading(batch_size=2), lambda i, error: told.append((i, str(error))), counted.append
    )
    assert [Path(p).name for p in index.paths] == ["0.jpg", "2.jpg", "4.jpg"]
    assert index.descriptors.shape == (3, 24)
    assert [i for i, _ in told] == [1, 3] and "1.jpg" in told[0][1]
    assert sum(counted) == 3


def test_without_on_error_the_first_bad_picture_stops(engine, some_bad):
    with pytest.raises(InputError, match=r"1\.jpg"):
        index_images(engine, some_bad)


def test_only_bad_pictures_make_no_index(engine, some_bad):
    with pytest.raises(InputError, match="none of the 2 pictures"):
        index_images(engine, some_bad.subset([1, 3]), on_error=lambda *_: None)


FORMS = [(dtype, pca) for dtype in DTYPES for pca in (None, 5)]
form = pytest.mark.parametrize(("dtype", "pca"), FORMS)
COLUMNS = {"float32": "float", "float16": "halffloat", "int8": "int8", "binary": "uint8"}


@form
def test_a_compact_index_round_trips(engine, picture_list, path, dtype, pca):
    index = index_images(engine, picture_list, descriptor_dtype=dtype, pca=pca)
    again = read_index(write_index(index, path))
    assert again.stored.dtype == index.stored.dtype and np.array_equal(again.stored, index.stored)
    assert (again.compact.dtype, again.compact.pca, again.compact.dim) == (dtype, pca, 24)
    assert again.descriptors.dtype == np.float32 and again.descriptors.shape == (30, pca or 24)
    assert np.array_equal(again.descriptors, index.descriptors)
    assert again.stored.nbytes == 30 * again.compact.bytes_per_descriptor
    assert beside(path).is_file() is (pca is not None)


@form
def test_a_compact_index_is_searched_with_queries_that_stay_float(engine, picture_list, path, dtype, pca):
    write_index(index_images(engine, picture_list, descriptor_dtype=dtype, pca=pca), path)
    index, queries = read_index(path), engine.embed(picture_list.paths)
    indices, similarities = index.search(engine, queries, 4)
    projected = index.compact.project(queries)
    for query, row, similar in zip(projected, indices.tolist(), similarities, strict=True):
        cosines = [float(query @ other) for other in index.descriptors]
        assert similar == pytest.approx(sorted(cosines, reverse=True)[:4], abs=1e-6)
        assert similar == pytest.approx([cosines[i] for i in row], abs=1e-6)
    if dtype != "binary":
        assert indices[:, 0].tolist() == list(range(30))


def test_the_files_say_their_form_and_hold_its_dtype(engine, picture_list, tmp_path):
    path = tmp_path / "index.npy"
    write_index(index_images(engine, picture_list, descriptor_dtype="int8", pca=6), path)
    assert listing(tmp_path).keys() >= {"index.npy", "index.npy.json", "index.npy.pca.npy"}
    facts = json.loads(sidecar(path).read_text())
    assert (facts["descriptor_dtype"], facts["dim"], facts["pca"]) == ("int8", 24, 6)
    assert facts["pca_sha256"] == module.sha256_file(beside(path))
    assert np.load(path).dtype == np.int8 and np.load(path).shape == (30, 6)
    assert np.load(beside(path)).dtype == np.float32 and np.load(beside(path)).shape == (7, 24)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_parquet_column_has_the_type_of_the_form(engine, picture_list, tmp_path, dtype):
    parquet = pytest.importorskip("pyarrow.parquet")
    path = write_index(index_images(engine, picture_list, descriptor_dtype=dtype, pca=9), tmp_path / "index.parquet")
    schema = parquet.read_schema(path)
    width = 2 if dtype == "binary" else 9
    assert str(schema.field("descriptor").type.value_type) == COLUMNS[dtype]
    assert schema.field("descriptor").type.list_size == width
    facts = json.loads(schema.metadata[b"cgd"])
    assert (facts["descriptor_dtype"], facts["dim"], facts["pca"]) == (dtype, 24, 9)


def test_an_index_of_before_there_were_forms_is_read(index, tmp_path):
    path = write_index(index, tmp_path / "index.npy")
    facts = json.loads(sidecar(path).read_text())
    old = {name: facts[name] for name in ("space_id", "precision", "sha256", "paths")}
    sidecar(path).write_text(json.dumps(old))
    again = read_index(path)
    assert np.array_equal(again.descriptors, index.descriptors)
    assert (again.compact.dtype, again.compact.pca) == ("float32", None)
    assert list(again.paths) == old["paths"] and again.statement is None


def test_a_parquet_of_before_there_were_forms_is_read(index, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    path = write_index(index, tmp_path / "index.parquet")
    old = {"cgd": json.dumps({"space_id": index.space_id, "precision": "fp32"})}
    parquet.write_table(parquet.read_table(path).replace_schema_metadata(old), path)
    assert np.array_equal(read_index(path).descriptors, index.descriptors)


def refused(path: Path, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read_index(path)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")


def test_a_missing_projection_is_refused(engine, picture_list, path):
    write_index(index_images(engine, picture_list, pca=6), path)
    beside(path).unlink()
    refused(path, r"\.pca\.npy, the PCA of .*, is missing; .*make the index again")


def test_the_projection_of_another_index_is_refused(engine, picture_list, path):
    write_index(index_images(engine, picture_list, pca=6), path)
    other = write_index(index_images(engine, picture_list.subset(range(20)), pca=6), path.with_stem("other"))
    beside(path).write_bytes(beside(other).read_bytes())
    refused(path, r"\.pca\.npy and .* belong to different runs; make the index again")


@pytest.mark.parametrize(
    ("change", "message"),
    [({"descriptor_dtype": "float16"}, "are int8"), ({"dim": 23}, "23 values"), ({"descriptor_dtype": "x"}, "unknown")],
)
def test_a_form_that_the_array_does_not_have_is_refused(engine, picture_list, tmp_path, change, message):
    path = write_index(index_images(engine, picture_list, descriptor_dtype="int8"), tmp_path / "index.npy")
    sidecar(path).write_text(json.dumps({**json.loads(sidecar(path).read_text()), **change}))
    refused(path, message)


def test_an_index_without_pca_takes_the_old_projection_away(index, engine, picture_list, path):
    write_index(index_images(engine, picture_list, pca=6), path)
    write_index(index, path)
    assert not beside(path).exists()
    assert np.array_equal(read_index(path).descriptors, index.descriptors)


@pytest.mark.parametrize("renames", range(6))
def test_an_interrupted_write_leaves_the_old_index_or_the_new_one(engine, picture_list, path, monkeypatch, renames):
    """One rename fails. The files beside the index are renamed first, then the index, then these files again."""
    old = index_images(engine, picture_list, pca=6)
    write_index(old, path)
    new = index_images(engine, picture_list.subset(range(20)), descriptor_dtype="int8", pca=5)
    rename, done = Path.replace, []

    def failing(self: Path, target: Path) -> Path:
        if len(done) == renames:
            raise OSError(28, "No space left on device", str(target))
        done.append(target)
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", failing)
    files_beside = 1 if path.suffix == ".parquet" else 2
    if renames <= files_beside:
        with pytest.raises(InputError, match="No space left"):
            write_index(new, path)
    else:
        write_index(new, path)
    found = read_index(path)
    expected = old if renames <= files_beside else new
    assert np.array_equal(found.stored, expected.stored) and list(found.paths) == list(expected.paths)
    assert np.array_equal(found.compact.projection, expected.compact.projection)
    assert not [name for name in listing(path.parent) if name.endswith(".part")]

    monkeypatch.setattr(Path, "replace", rename)
    write_index(old, path)
    assert np.array_equal(read_index(path).stored, old.stored)
    assert not [name for name in listing(path.parent) if name.endswith(".new")]


def test_a_form_that_cannot_be_is_refused_before_any_picture_is_read(engine, picture_list, monkeypatch):
    monkeypatch.setattr(engine, "embed_list", lambda *_: pytest.fail("it embedded"))
    for options, message in (
        ({"pca": 25}, "pca=25 .* 30 x 24 values; pass 1 to 24"),
        ({"pca": 0}, "pca=0"),
        ({"descriptor_dtype": "int4"}, "'int4' is unknown"),
    ):
        with pytest.raises(InputError, match=message):
            index_images(engine, picture_list, **options)
    with pytest.raises(InputError, match="pass 1 to 3"):
        index_images(engine, picture_list.subset(range(4)), pca=4)


def test_pictures_that_were_left_out_do_not_count_for_pca(engine, some_bad):
    assert index_images(engine, some_bad, on_error=lambda *_: None, pca=2).descriptors.shape == (3, 2)
    with pytest.raises(InputError, match=r"pca=3 .* 3 x 24 values; pass 1 to 2"):
        index_images(engine, some_bad, on_error=lambda *_: None, pca=3)


def test_a_descriptor_that_is_not_finite_is_refused_with_its_picture(index, engine, picture_list, monkeypatch, path):
    real = engine.embed_list

    def broken(*arguments):
        for numbers, descriptors in real(*arguments):
            descriptors[[number == 7 for number in numbers], 3] = np.nan
            yield numbers, descriptors

    monkeypatch.setattr(engine, "embed_list", broken)
    with pytest.raises(InputError, match=f"the descriptor of {picture_list.path(7)} is not finite"):
        index_images(engine, picture_list, on_error=lambda *_: None)
    index.stored[9, 0] = np.inf
    with pytest.raises(InputError, match=f"the descriptor of {picture_list.path(9)} is not finite"):
        write_index(index, path)
    assert not path.exists()


def test_an_npy_index_is_mapped_into_memory_and_not_read_whole(index, tmp_path, monkeypatch):
    path = write_index(index, tmp_path / "index.npy")
    monkeypatch.setattr(module, "sha256_file", lambda _: pytest.fail("it read the whole file"))
    assert isinstance(read_index(path).stored, np.memmap)


def test_an_index_without_a_checksum_of_samples_is_checked_whole(index, tmp_path):
    path = write_index(index, tmp_path / "index.npy")
    facts = json.loads(sidecar(path).read_text())
    del facts["sampled_sha256"]
    sidecar(path).write_text(json.dumps(facts))
    assert np.array_equal(read_index(path).stored, index.stored)
    sidecar(path).write_text(json.dumps({**facts, "sha256": "0"}))
    refused(path, "belong to different runs")
