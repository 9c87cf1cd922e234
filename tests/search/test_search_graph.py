"""A graph of a gallery: most neighbours are found, and a graph of another gallery is refused."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from cgd_deploy.errors import InputError, MissingDependency
from cgd_deploy.runtime.engine import load
from cgd_deploy.search import graph as module
from cgd_deploy.search.compact import DTYPES, Compact
from cgd_deploy.search.exact import Rows, has_usearch, nearest
from cgd_deploy.search.graph import Graph
from cgd_deploy.search.index import graph_file, index_images, read_index, sidecar, write_index

if not has_usearch():
    pytest.skip("no usearch before 2.26 is installed", allow_module_level=True)

DIM = 64


@pytest.fixture
def engine(fake_engine):
    with load(fake_engine) as engine:
        yield engine


@pytest.fixture(scope="module")
def descriptors() -> np.ndarray:
    """1,500 rows in clusters of 15."""
    random = np.random.default_rng(0)
    rows = np.repeat(random.normal(size=(100, DIM)), 15, axis=0) + random.normal(0, 0.3, (1500, DIM))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_graph_finds_most_of_what_an_exact_search_finds(descriptors, dtype):
    compact = Compact(dtype, DIM)
    stored = compact.store(descriptors)
    counted = []
    graph = Graph.build(compact, stored, counted.append)
    assert sum(counted) == 1500
    rows = Rows(compact, stored, np.zeros(1500, bool))
    expected, found = nearest(rows, descriptors[:200], 10), graph.nearest(rows, descriptors[:200], 10)
    recall = np.mean([len(np.intersect1d(a, b)) / 10 for a, b in zip(expected[0], found[0], strict=True)])
    assert recall > 0.95 and abs(graph.recall_at_10 - recall) < 0.05
    restored = compact.restore(stored)
    for query, indices, similarities in zip(descriptors, *found, strict=False):
        assert similarities == pytest.approx([float(query @ restored[i]) for i in indices], abs=1e-6)
        assert sorted(similarities, reverse=True) == similarities.tolist()
    one = graph.nearest(rows, descriptors[:1], 3)
    assert one[0].shape == (1, 3) and one[0][0, 0] == 0
    assert graph.nearest(rows, descriptors[:0], 3)[0].shape == (0, 3)


def test_a_graph_finds_neighbours_of_descriptors_that_are_nearly_parallel(descriptors):
    """Fails if the bits do not say on which side of the mean a value is: then all rows would have the same bits."""
    nearly = descriptors + 30 * np.ones(DIM, np.float32) / np.sqrt(DIM)
    nearly = (nearly / np.linalg.norm(nearly, axis=1, keepdims=True)).astype(np.float32)
    assert (nearly @ nearly.T).min() > 0.99
    assert Graph.build(Compact("float32", DIM), nearly).recall_at_10 > 0.95


def test_the_file_of_a_graph_holds_bits_and_no_copy_of_the_rows(descriptors, tmp_path):
    wide = np.tile(descriptors, 16) / np.float32(4)
    Graph.build(Compact("float32", 16 * DIM), wide).write(tmp_path / "graph")
    assert (tmp_path / "graph").stat().st_size < wide.nbytes / 8


def test_recall_counts_neighbours_that_are_missing(descriptors, monkeypatch):
    """A graph that proposes 5 of 10 neighbours beside the row itself."""
    compact = Compact("float32", DIM)
    graph = Graph.build(compact, descriptors)
    real = Graph.nearest
    monkeypatch.setattr(Graph, "nearest", lambda self, *rest: (real(self, *rest)[0][:, :6], None))
    assert graph._recall(compact, descriptors) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_graph_of_few_rows(descriptors, count):
    compact = Compact("int8", DIM)
    stored = compact.store(descriptors[:count])
    graph = Graph.build(compact, stored)
    assert graph.recall_at_10 == (None if count == 1 else 1.0)
    found, _ = graph.nearest(Rows(compact, stored, np.zeros(count, bool)), descriptors[:2], count)
    assert sorted(found[0].tolist()) == list(range(count))


def test_removed_rows_are_not_found_and_others_take_their_places(descriptors):
    compact = Compact("int8", DIM)
    stored = compact.store(descriptors)
    graph, removed = Graph.build(compact, stored), np.zeros(1500, bool)
    removed[:1400] = True  # more than the graph proposes
    rows = Rows(compact, stored, removed)
    found = graph.nearest(rows, descriptors[:4], 10)
    assert (found[0] >= 1400).all() and np.array_equal(found[0], nearest(rows, descriptors[:4], 10)[0])


@pytest.fixture(params=["npy", "parquet"])
def path(request, tmp_path):
    if request.param == "parquet":
        pytest.importorskip("pyarrow")
    return tmp_path / f"index.{request.param}"


@pytest.fixture
def index(engine, picture_list):
    return index_images(engine, picture_list, descriptor_dtype="int8")


def test_an_index_is_read_with_its_graph(index, engine, path, monkeypatch):
    write_index(index, path, graph=Graph.build(index.compact, index.stored))
    queries = index.descriptors
    again = read_index(path)
    assert again.moment.graph.recall_at_10 == 1.0
    asked = []
    real = Graph.nearest
    monkeypatch.setattr(Graph, "nearest", lambda self, *rest: asked.append(1) or real(self, *rest))
    expected = index.search(engine, queries, 5)
    assert np.array_equal(again.search(engine, queries, 5)[0], expected[0]) and asked == [1]
    assert np.array_equal(read_index(path, exact=True).search(engine, queries, 5)[0], expected[0]) and asked == [1]
    again.put("new.jpg", queries[3])
    again.remove(again.paths[0])
    found = again.find(engine, queries[3:4], 29)[0]
    assert asked == [1, 1] and len(found) == 29 and {found[0][0], found[1][0]} == {"new.jpg", index.paths[3]}


def test_a_later_index_takes_an_older_graph_away(index, path):
    write_index(index, path, graph=Graph.build(index.compact, index.stored))
    assert graph_file(path).is_file()
    write_index(index, path)
    assert not graph_file(path).exists() and read_index(path).moment.graph is None


def test_a_graph_of_another_index_is_refused(index, engine, picture_list, path):
    write_index(index, path, graph=Graph.build(index.compact, index.stored))
    other = index_images(engine, picture_list.subset(range(29, -1, -1)), descriptor_dtype="int8")
    Graph.build(other.compact, other.stored).write(graph_file(path))
    with pytest.raises(InputError, match=r"\.hnsw and .* belong to different runs; .*--exact"):
        read_index(path)
    assert len(read_index(path, exact=True)) == 30
    graph_file(path).unlink()
    with pytest.raises(InputError, match=r"\.hnsw, the graph of .*, is missing; put it back, or .*--exact"):
        read_index(path)


def test_a_graph_that_usearch_cannot_read_is_refused(tmp_path, index):
    path = tmp_path / "index.hnsw"
    path.write_bytes(b"no graph at all" * 100)
    with pytest.raises(InputError, match="make the index again with --ann"):
        Graph.read(path, index.compact, index.stored, 1.0)
    Graph.build(index.compact, index.stored).write(path)
    with pytest.raises(InputError, match="is no graph of 29 pictures"):
        Graph.read(path, index.compact, index.stored[1:], 1.0)
    with pytest.raises(InputError, match="is no graph of 30 pictures"):
        Graph.read(path, Compact("int8", DIM), index.stored, 1.0)


def test_without_usearch_the_error_says_what_to_install(index, path, monkeypatch):
    write_index(index, path, graph=Graph.build(index.compact, index.stored))
    monkeypatch.setattr(module, "has_usearch", lambda: False)
    with pytest.raises(MissingDependency, match=r"needs usearch .*; run `pip install 'usearch.*--exact"):
        read_index(path)
    assert len(read_index(path, exact=True)) == 30


def test_the_command_builds_a_graph_and_tells_its_recall(cli, fake_engine, pictures, tmp_path):
    out = tmp_path / "index.npy"
    code, told, _ = cli("embed", pictures, "-e", fake_engine, "-o", out, "--ann", "--json")
    assert code == 0 and json.loads(told)["graph_recall_at_10"] == 1.0
    facts = json.loads(sidecar(out).read_text())["graph"]
    assert facts["recall_at_10"] == 1.0 and facts["sampled_sha256"] == module_checksum(out)
    code, text, _ = cli("embed", pictures, "-e", fake_engine, "-o", out, "--ann", "--update")
    assert code == 0 and text.endswith("30 kept, graph recall at 10 1.0\n")
    query = next(pictures.rglob("*.jpg"))
    answers = []
    for options in ([], ["--exact"]):
        code, told, _ = cli("search", query, "-e", fake_engine, "--index", out, "--json", *options)
        assert code == 0
        answers.append(json.loads(told))
    assert answers[0] == answers[1]
    graph_file(out).unlink()
    assert cli("search", query, "-e", fake_engine, "--index", out)[0] == 2
    assert cli("search", query, "-e", fake_engine, "--index", out, "--exact")[0] == 0


def module_checksum(out):
    from cgd_deploy.files import sampled_sha256

    return sampled_sha256(graph_file(out))


def test_a_graph_cannot_be_asked_for_without_usearch(cli, fake_engine, pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "has_usearch", lambda: False)
    code, _, err = cli("embed", pictures, "-e", fake_engine, "-o", tmp_path / "index.npy", "--ann")
    assert code == 2 and "needs usearch" in err and not (tmp_path / "index.npy").exists()


@pytest.mark.parametrize("other", ["onnxruntime", "torch"])
def test_other_libraries_work_after_usearch(other):
    """From 2.26.2 on, usearch breaks the C++ library of what is imported later."""
    pytest.importorskip(other)
    check = {"onnxruntime": "", "torch": "assert str(torch.ops.aten.sub.Tensor._schema).endswith('alpha=1) -> Tensor')"}
    code = f"import usearch.index, {other}; {check[other]}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
