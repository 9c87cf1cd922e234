"""Descriptors on disk: nothing lost, nothing mixed up."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import FAKE_SPEC, listing, write_fake_engine

from cgd_deploy.engine import load
from cgd_deploy.errors import InputError, MissingDependency
from cgd_deploy.images import ImageList
from cgd_deploy.index import Index, check_index_path, index_images, read_index, sidecar, write_index


@pytest.fixture
def engine(fake_engine):
    with load(fake_engine) as engine:
        yield engine


@pytest.fixture
def index(engine, picture_list) -> Index:
    return index_images(engine, picture_list)


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
    assert table.column_names == ["path", "descriptor"]
    assert table.column("descriptor")[3].as_py() == index.descriptors[3].tolist()


def test_search_finds_each_picture_itself_first(index, engine):
    indices, similarities = index.search(engine, index.descriptors, 3)
    assert indices[:, 0].tolist() == list(range(30))
    assert similarities[:, 0] == pytest.approx(1, abs=1e-5)


def test_an_engine_of_another_space_is_refused(index, tmp_path):
    other = write_fake_engine(tmp_path / "other.cgd", replace(FAKE_SPEC, space_id="f" * 16))
    with load(other) as engine, pytest.raises(InputError, match=f"space {FAKE_SPEC.space_id}, the engine f{{16}}"):
        index.search(engine, index.descriptors, 1)


def test_more_neighbours_than_there_are_pictures_are_refused(index, engine):
    with pytest.raises(InputError, match="31 neighbours"):
        index.search(engine, index.descriptors, 31)


def test_descriptors_and_paths_of_two_runs_are_refused(index, tmp_path):
    one, other = tmp_path / "one.npy", tmp_path / "other.npy"
    write_index(index, one)
    write_index(replace(index, descriptors=-index.descriptors), other)
    sidecar(one).write_bytes(sidecar(other).read_bytes())
    with pytest.raises(InputError, match="belong to different runs"):
        read_index(one)


def test_a_damaged_index_is_refused(index, path):
    write_index(index, path)
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(InputError, match=r"make (it|the index) again"):
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
    with pytest.raises(MissingDependency, match=r"cgd-deploy\[parquet\]"):
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
    index = index_images(engine, some_bad, 2, lambda i, error: told.append((i, str(error))), counted.append)
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
