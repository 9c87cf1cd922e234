"""A gallery that changes: put and remove, also while other threads search."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from cgd_deploy.errors import InputError
from cgd_deploy.runtime.engine import load
from cgd_deploy.search import exact
from cgd_deploy.search.compact import DTYPES
from cgd_deploy.search.gallery import Index
from cgd_deploy.search.index import index_images, read_index, write_index


@pytest.fixture
def engine(fake_engine):
    with load(fake_engine) as engine:
        yield engine


@pytest.fixture
def index(engine, picture_list) -> Index:
    return index_images(engine, picture_list.subset(range(20)))


@pytest.fixture
def descriptors(engine, picture_list) -> np.ndarray:
    return engine.embed(picture_list.paths)


@pytest.fixture(params=["npy", "parquet"])
def path(request, tmp_path):
    if request.param == "parquet":
        pytest.importorskip("pyarrow")
    return tmp_path / f"index.{request.param}"


def test_what_is_put_is_found_and_counts(index, engine, descriptors):
    assert not index.changed
    index.put("new.jpg", descriptors[25])
    assert index.changed and len(index) == len(index.paths) == 21 and index.paths[20] == "new.jpg"
    indices, similarities = index.search(engine, descriptors[25:26], 3)
    assert indices[0, 0] == 20 and similarities[0, 0] == pytest.approx(1, abs=1e-5)
    assert index.find(engine, descriptors[25:26], 1)[0][0][0] == "new.jpg"
    assert np.allclose(index.descriptors[20], descriptors[25], atol=1e-6)


def test_what_is_removed_is_not_found(index, engine, descriptors):
    gone = index.paths[7]
    index.remove(gone)
    assert len(index) == 19 and gone not in index.paths and index.stored.shape == (19, 24)
    found = index.find(engine, descriptors[7:8], 19)[0]
    assert gone not in [name for name, _ in found] and len(found) == 19
    with pytest.raises(InputError, match="20 neighbours were asked of a gallery that offers 19"):
        index.search(engine, descriptors[7:8], 20)
    assert index.find(engine, descriptors[7:8], 20) == [found]


@pytest.mark.parametrize("dtype", DTYPES)
def test_indices_lead_to_paths_after_any_change(engine, picture_list, descriptors, dtype):
    index = index_images(engine, picture_list.subset(range(20)), descriptor_dtype=dtype)
    for number in (0, 3, 19):
        index.remove(index.paths[index.paths.index(str(picture_list.path(number)))])
    for number in range(20, 30):
        index.put(picture_list.path(number), descriptors[number])
    index.remove(picture_list.path(25))
    left = [number for number in range(30) if number not in (0, 3, 19, 25)]
    assert index.paths == [str(picture_list.path(number)) for number in left]
    indices, similarities = index.search(engine, descriptors[left], 5)
    found = index.find(engine, descriptors[left], 5)
    whole = index.compact.restore(index.compact.store(descriptors[left]))
    for query, row, scores, named in zip(descriptors[left], indices, similarities, found, strict=True):
        cosines = [float(query @ other) for other in whole]
        assert scores == pytest.approx(sorted(cosines, reverse=True)[:5], abs=1e-6)
        assert [cosines[i] for i in row] == pytest.approx(scores.tolist(), abs=1e-6)
        assert named == [(index.paths[i], score) for i, score in zip(row, scores.tolist(), strict=True)]


def test_to_put_a_path_again_replaces_all_of_its_rows(engine, picture_list, descriptors):
    twice = index_images(engine, picture_list.subset([0, 1, 0]))
    name = str(picture_list.path(0))
    twice.put(name, descriptors[9])
    assert list(twice.paths) == [str(picture_list.path(1)), name]
    twice.put(name, descriptors[8])
    assert len(twice) == 2 and np.allclose(twice.descriptors[1], descriptors[8], atol=1e-6)
    twice.remove(name)
    assert list(twice.paths) == [str(picture_list.path(1))]


def test_an_unknown_path_cannot_be_removed(index):
    index.remove(index.paths[0])
    for name in ("absent.jpg", index.moment.names[0]):
        with pytest.raises(InputError, match="is not in the index; pass one of its paths"):
            index.remove(name)
    assert len(index) == 19


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_descriptors_that_are_not_finite_are_refused(index, engine, descriptors, value):
    bad = descriptors[:3].copy()
    bad[1, 4] = value
    with pytest.raises(InputError, match=r"the descriptor of bad\.jpg is not finite; test its engine"):
        index.put("bad.jpg", bad[1])
    with pytest.raises(InputError, match="the descriptor of query 1 is not finite"):
        index.search(engine, bad, 2)
    assert len(index) == 20 and not index.changed


@pytest.mark.parametrize("shape", [(23,), (1, 24), ()])
def test_a_descriptor_of_another_shape_is_refused(index, shape):
    with pytest.raises(InputError, match=r"new\.jpg has shape .*, the index takes \[24\]"):
        index.put("new.jpg", np.zeros(shape, np.float32))


@pytest.mark.parametrize(("dtype", "pca"), [("float32", None), ("int8", 6), ("binary", None)])
def test_a_changed_index_is_written_whole(engine, picture_list, descriptors, path, dtype, pca):
    write_index(index_images(engine, picture_list.subset(range(20)), descriptor_dtype=dtype, pca=pca), path)
    index = read_index(path)
    index.remove(index.paths[2])
    index.put(picture_list.path(28), descriptors[28])
    write_index(index, path)  # over the file that is mapped into memory
    assert not index.changed
    again = read_index(path)
    assert len(again) == 20 and list(again.paths) == list(index.paths)
    assert np.array_equal(again.stored, index.stored)
    assert np.array_equal(again.compact.store(descriptors[28:29])[0], again.stored[19])
    index.remove(index.paths[0])
    assert index.changed


def test_a_gallery_may_become_empty_and_full_again(index, engine, descriptors, path):
    for name in list(index.paths):
        index.remove(name)
    write_index(index, path)
    again = read_index(path)
    assert len(again) == 0 and again.stored.shape == (0, 24)
    with pytest.raises(InputError, match="offers 0"):
        again.search(engine, descriptors[:1], 1)
    again.put("a.jpg", descriptors[0])
    assert again.find(engine, descriptors[:1], 1)[0][0][0] == "a.jpg"


def test_many_changes_cost_no_copy_of_the_gallery(index, descriptors):
    stored = index.moment.stored
    for number in range(300):
        index.put(f"{number}.jpg", descriptors[number % 30])
    assert index.moment.stored is stored and len(index._room) < 1000
    assert len(index) == 320 and index.paths[-1] == "299.jpg"


def test_a_moment_stays_as_it_is(index, engine, descriptors):
    before = index.moment
    paths, found = list(before.paths), before.nearest(descriptors[:3], 4)
    index.put("new.jpg", descriptors[0])
    index.remove(paths[1])
    assert list(before.paths) == paths and len(before) == 20
    assert np.array_equal(before.nearest(descriptors[:3], 4)[0], found[0])


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_threads_search_while_another_one_changes(engine, picture_list, descriptors, dtype):
    """Every path that is found belongs to the descriptor that it was put with."""
    index = index_images(engine, picture_list.subset(range(20)), descriptor_dtype=dtype)
    made = {str(picture_list.path(number)): number for number in range(20)}
    made |= {f"{round_}-{number}.jpg": number for round_ in range(20) for number in range(20, 30)}
    problems, done = [], threading.Event()

    def search() -> None:
        while not done.is_set():
            for row in index.find(engine, descriptors, 5):
                problems.extend(name for name, _ in row if name not in made)
            for query, row in zip(descriptors, index.find(engine, descriptors, 3), strict=True):
                problems.extend(
                    name for name, score in row if abs(float(query @ descriptors[made[name]]) - score) > 0.01
                )

    threads = [threading.Thread(target=search) for _ in range(3)]
    for thread in threads:
        thread.start()
    for round_ in range(20):
        for number in range(20, 30):
            index.put(f"{round_}-{number}.jpg", descriptors[number])
            if round_:
                index.remove(f"{round_ - 1}-{number}.jpg")
    done.set()
    for thread in threads:
        thread.join()
    assert problems == [] and len(index) == 30


def test_an_index_says_whether_usearch_would_make_it_faster(engine, picture_list, monkeypatch):
    for installed, dtype, slow in ((False, "int8", True), (True, "int8", False), (False, "binary", False)):
        monkeypatch.setattr("cgd_deploy.search.gallery.has_usearch", lambda installed=installed: installed)
        assert index_images(engine, picture_list, descriptor_dtype=dtype).slow is slow
    assert exact.has_usearch() in (True, False)
