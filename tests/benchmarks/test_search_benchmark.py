"""benchmarks/search.py on small galleries: each contestant in a process of its own, and recall worked out by hand."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
from conftest import script

from cgd_deploy.search.exact import has_usearch


@pytest.fixture
def options(tmp_path: Path) -> Namespace:
    return Namespace(dim=32, clusters=20, noise=0.5, seconds=0.0, folder=tmp_path)


def run(monkeypatch: pytest.MonkeyPatch, out: Path, *contestants: str) -> dict:
    settings = ["--sizes", "3000", "--dim", "32", "--clusters", "100", "--seconds", "0", "--folder", str(out.parent)]
    monkeypatch.setattr(sys, "argv", ["search.py", "-o", str(out), *settings, "--contestants", *contestants])
    script("search").main()
    return json.loads(out.read_text())


def test_truth_is_what_loops_find(options):
    module = script("search")
    rows, queries = np.concatenate(list(module.made(options, 400))), module.made_queries(options, 400)
    assert rows.dtype == np.float32 and np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    assert np.array_equal(rows, np.concatenate(list(module.made(options, 400))))
    for query, found in zip(queries[:20], module.truth(options, 400), strict=False):
        assert found.tolist() == sorted(range(400), key=lambda number: -float(query @ rows[number]))[:10]


def test_the_ten_nearest_of_a_query_are_the_members_of_its_cluster(options):
    """With fewer members, strangers would be among them by chance, and no search could be right about them."""
    module = script("search")
    options.dim, options.clusters = 256, 20_000
    rows, queries = np.concatenate(list(module.made(options, 400))), module.made_queries(options, 400)
    for number, found in enumerate(module.truth(options, 400)):
        assert {row % 40 for row in found.tolist()} == {number % 40}
    assert (queries[0] @ rows[::40].T).min() > 0.5


def test_truth_of_several_blocks(options, monkeypatch):
    module = script("search")
    monkeypatch.setattr(module, "BLOCK", 64)
    monkeypatch.setattr(module, "QUERIES", 16)
    rows = np.concatenate(list(module.made(options, 200)))
    expected = np.argsort(-(module.made_queries(options, 200) @ rows.T), axis=1, kind="stable")[:, :10]
    assert np.array_equal(module.truth(options, 200), expected)


@pytest.mark.slow
def test_our_rows(monkeypatch, tmp_path):
    if not has_usearch():
        pytest.skip("no usearch before 2.26 is installed")
    contestants = ("cgd-deploy float32", "cgd-deploy int8", "cgd-deploy int8 graph")
    result = run(monkeypatch, tmp_path / "search.json", *contestants)
    rows = {one["name"]: one for one in result["rows"]}
    assert tuple(rows) == contestants and result["data"]["dim"] == 32
    assert rows["cgd-deploy float32"]["recall_at_10"] == 1 and rows["cgd-deploy int8"]["recall_at_10"] > 0.9
    for one in rows.values():
        assert one["rows"] == 3000 and set(one["milliseconds"]) == {"1", "32"} and one["open_seconds"] < 60
        assert ("build_peak_bytes" in one) == one["name"].endswith("graph")
    assert [path.name for path in tmp_path.iterdir()] == ["search.json"]


@pytest.mark.slow
def test_rows_of_faiss(monkeypatch, tmp_path):
    pytest.importorskip("faiss", reason="faiss-cpu is not installed")
    result = run(monkeypatch, tmp_path / "search.json", "faiss flat", "faiss sq8", "faiss hnsw")
    recalls = {one["name"]: one["recall_at_10"] for one in result["rows"]}
    assert recalls["faiss flat"] == 1 and min(recalls.values()) > 0.8


def test_rows_of_an_earlier_run_stay(monkeypatch, tmp_path):
    out = tmp_path / "search.json"
    first = run(monkeypatch, out, "cgd-deploy float32")
    out.write_text(json.dumps({**first, "rows": [{**first["rows"][0], "rows": 7}, first["rows"][0]]}))
    again = run(monkeypatch, out, "cgd-deploy float32")
    assert [one["rows"] for one in again["rows"]] == [7, 3000]
    out.write_text(json.dumps({**again, "cpu": "another"}))
    assert [one["rows"] for one in run(monkeypatch, out, "cgd-deploy float32")["rows"]] == [3000]


def test_an_unknown_contestant_is_refused(monkeypatch, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, tmp_path / "search.json", "annoy")
    assert ended.value.code == 2 and capsys.readouterr().err.startswith(
        "'annoy' is no contestant; expected some of cgd"
    )
