"""Exact and approximate search of made galleries, against FAISS: memory, time for a query, and recall@10.

    python benchmarks/search.py --sizes 10000 100000 1000000 -o benchmarks/results/search.json

A process of its own searches for each row, so that its memory holds one gallery. Descriptors are cluster centres with
noise, MEMBERS or more of each cluster; queries are further members. Recall is against exact search in float32. FAISS is
in the package faiss-cpu. Rows of an earlier run with the same data on the same CPU stay in the JSON file unless they
are measured again.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import psutil

import running
from cgd_deploy.cli.terminal import warn_of_load
from cgd_deploy.errors import InputError
from cgd_deploy.hardware.cpu import available_threads, cpu_clock, cpu_name
from cgd_deploy.hardware.packages import package_version
from cgd_deploy.hardware.timing import load_between
from cgd_deploy.quality.contestants import OnProgress
from cgd_deploy.runtime.descriptors import Descriptors
from cgd_deploy.search.compact import DTYPES, Compact
from cgd_deploy.search.exact import Rows, merged, nearest, nothing
from cgd_deploy.search.graph import Graph
from cgd_deploy.search.index import Index, read_index, write_index
from cgd_deploy.search.retrieval import NEIGHBOURS, Indices

BLOCK = 8192
QUERIES, BATCH = 256, 32
MEMBERS = NEIGHBOURS
"""Rows of each cluster at least. With fewer, members of other clusters would be among the ten nearest by chance."""
FAISS = {
    "faiss flat": "IndexFlatIP",
    "faiss sq8": "IndexScalarQuantizer, QT_8bit",
    "faiss hnsw": "IndexHNSWFlat, 32 links, ef 128 to build and 256 to search",
}
OURS = [f"cgd-deploy {dtype}{kind}" for dtype in DTYPES for kind in ("", " graph")]
CONTESTANTS = (*OURS, *FAISS)
Search = Callable[[Descriptors], Indices]
"""Queries float32 [Q, dim] -> numbers of the NEIGHBOURS nearest rows, int64 [Q, NEIGHBOURS]."""


def made(options: argparse.Namespace, size: int) -> Iterator[Descriptors]:
    """The gallery of ``size`` unit descriptors, BLOCK at a time, one of each cluster in turn."""
    return _members(options, size, size, seed=0)


def made_queries(options: argparse.Namespace, size: int) -> Descriptors:
    """QUERIES more members of the clusters."""
    return next(_members(options, size, QUERIES, seed=1))


def _members(options: argparse.Namespace, size: int, count: int, seed: int) -> Iterator[Descriptors]:
    clusters = max(1, min(options.clusters, size // MEMBERS))
    centres = np.random.default_rng(0).standard_normal((clusters, options.dim), dtype=np.float32)
    for start in range(0, count, BLOCK):
        random = np.random.default_rng((1, seed, start))
        rows = min(BLOCK, count - start)
        values = centres[(start + np.arange(rows)) % clusters]
        values += options.noise * random.standard_normal(values.shape, dtype=np.float32)
        yield values / np.linalg.norm(values, axis=1, keepdims=True)


def truth(options: argparse.Namespace, size: int) -> Indices:
    """The NEIGHBOURS nearest rows of each query in float32, exactly."""
    queries, start = made_queries(options, size), 0
    best = nothing(len(queries), NEIGHBOURS)
    for block in made(options, size):
        rows = Rows(Compact("float32", options.dim), block, np.zeros(len(block), np.bool_))
        indices, similarities = nearest(rows, queries, min(NEIGHBOURS, len(block)))
        best = merged(best, (indices + start, similarities), NEIGHBOURS)
        start += len(block)
    return best[0]


def ours(options: argparse.Namespace, name: str, size: int) -> tuple[Search, dict[str, float]]:
    """An index that another process wrote and this one opens, because the memory to build it must not count here."""
    built = json.loads(_run_row(options, name, size, "--write"))
    began = time.perf_counter()
    index = read_index(options.folder / f"{name}-{size}.npy")
    opened = time.perf_counter() - began
    return lambda queries: index.moment.nearest(queries, NEIGHBOURS)[0], {**built, "open_seconds": round(opened, 2)}


def write(options: argparse.Namespace, name: str, size: int) -> dict[str, float]:
    """Write the index of a contestant of ours, with its graph if it has one; returns what the graph cost."""
    compact = Compact(name.split()[1], options.dim)
    values = np.dtype(compact.store(made_queries(options, size)[:1]).dtype)
    width = compact.bytes_per_descriptor // values.itemsize
    stored = np.memmap(options.folder / "stored.bin", values, "w+", shape=(size, width))
    for start, block in zip(range(0, size, BLOCK), made(options, size), strict=True):
        stored[start : start + BLOCK] = compact.store(block)
    index = Index(stored, [f"pictures/{number:08d}.jpg" for number in range(size)], "made", "fp32", compact)
    graph, facts, began = None, {}, time.perf_counter()
    if name.endswith("graph"):
        graph = Graph.build(compact, stored)
        peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        facts = {"build_seconds": round(time.perf_counter() - began, 2), "build_peak_bytes": peak}
    write_index(index, options.folder / f"{name}-{size}.npy", graph=graph)
    return facts


def faiss_search(options: argparse.Namespace, name: str, size: int) -> tuple[Search, dict[str, float]]:
    """An index of FAISS in memory, and the seconds to build it."""
    import faiss

    faiss.omp_set_num_threads(available_threads())
    product = faiss.METRIC_INNER_PRODUCT
    if name == "faiss sq8":
        index = faiss.IndexScalarQuantizer(options.dim, faiss.ScalarQuantizer.QT_8bit, product)
        index.train(next(made(options, min(size, BLOCK))))
    elif name == "faiss hnsw":
        index = faiss.IndexHNSWFlat(options.dim, 32, product)
        index.hnsw.efConstruction, index.hnsw.efSearch = 128, 256
    else:
        index = faiss.IndexFlatIP(options.dim)
    began = time.perf_counter()
    for block in made(options, size):
        index.add(block)
    built = time.perf_counter() - began
    return lambda queries: index.search(queries, NEIGHBOURS)[1], {"build_seconds": round(built, 2)}


def row(options: argparse.Namespace, name: str, size: int) -> dict[str, Any]:
    """Open or build the gallery in this process, and search it by one query and by BATCH queries at a time."""
    queries = made_queries(options, size)
    memory = psutil.Process().memory_info
    before = memory().rss
    search, facts = (faiss_search if name in FAISS else ours)(options, name, size)
    found = np.concatenate([search(queries[start : start + BATCH]) for start in range(0, QUERIES, BATCH)])
    began = cpu_clock()
    milliseconds = {str(batch): _milliseconds(search, queries, batch, options.seconds / 2) for batch in (1, BATCH)}
    return {
        "name": name,
        "rows": size,
        **facts,
        "milliseconds": milliseconds,
        "load": load_between(began, cpu_clock(), available_threads()),
        "resident_bytes": memory().rss - before,
        "found": found.tolist(),
    }


def measure(options: argparse.Namespace, on_progress: OnProgress) -> dict[str, Any]:
    """Every contestant at every size; raises InputError for an unknown contestant."""
    if unknown := set(options.contestants) - set(CONTESTANTS):
        raise InputError(f"{min(unknown)!r} is no contestant; expected some of {', '.join(CONTESTANTS)}.")
    rows: list[dict[str, Any]] = []
    with TemporaryDirectory(dir=options.folder) as folder:
        options.folder = Path(folder)
        for size in options.sizes:
            expected = truth(options, size)
            for number, name in enumerate(options.contestants):
                on_progress(f"{size} rows", number / len(options.contestants))
                one = json.loads(_run_row(options, name, size))
                hits = [np.isin(a, b).mean() for a, b in zip(expected, one.pop("found"), strict=True)]
                rows.append({**one, "recall_at_10": round(float(np.mean(hits)), 4)})
                for file in options.folder.iterdir():
                    file.unlink()
    result = {
        "schema": 1,
        "cpu": cpu_name(),
        "threads": available_threads(),
        "versions": {name: package_version(name) for name in ("cgd-deploy", "numpy", "usearch", "faiss-cpu")},
        "data": {key: getattr(options, key) for key in ("dim", "clusters", "noise")}
        | {"members": MEMBERS, "queries": QUERIES},
        "faiss": FAISS,
    }
    again = {(one["name"], one["rows"]) for one in rows}
    kept = [one for one in _earlier(options.output, result) if (one["name"], one["rows"]) not in again]
    order = {name: number for number, name in enumerate(CONTESTANTS)}
    return {**result, "rows": sorted(kept + rows, key=lambda one: (one["rows"], order[one["name"]]))}


def _earlier(path: Path, result: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of an earlier run, if it had the same data, versions and CPU."""
    if not path.is_file():
        return []
    earlier = json.loads(path.read_text(encoding="utf-8"))
    same = all(earlier[name] == result[name] for name in ("schema", "cpu", "threads", "versions", "data", "faiss"))
    return earlier["rows"] if same else []


def _milliseconds(search: Search, queries: Descriptors, batch: int, seconds: float) -> float:
    """The median time for a query, in batches of ``batch``, over at least 5 batches."""
    taken: list[float] = []
    while len(taken) < 5 or sum(taken) < seconds:
        start = len(taken) * batch % (QUERIES - batch + 1)
        began = time.perf_counter()
        search(queries[start : start + batch])
        taken.append(time.perf_counter() - began)
    return round(float(np.median(taken)) / batch * 1e3, 3)


def _run_row(options: argparse.Namespace, name: str, size: int, *more: str) -> str:
    """What another process prints for a row."""
    facts = {key: getattr(options, key) for key in ("dim", "clusters", "noise", "seconds", "folder")}
    settings = [word for key, value in facts.items() for word in (f"--{key}", str(value))]
    command = [sys.executable, __file__, "--contestants", name, "--sizes", str(size), *settings, "--row", *more]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise InputError(f"{name} with {size} rows ended with status {done.returncode}; see its message above.")
    return done.stdout


def main() -> None:
    parser = running.parser(__doc__, "search.json")
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000], help="rows of the galleries")
    parser.add_argument("--contestants", nargs="+", default=list(CONTESTANTS), metavar="NAME", help="some of them")
    parser.add_argument("--dim", type=int, default=1536)
    parser.add_argument("--clusters", type=int, default=20_000, help="at most; a small gallery has fewer")
    parser.add_argument("--noise", type=float, default=0.7, help="standard deviation of the noise; the centres have 1")
    parser.add_argument("--seconds", type=float, default=10.0, help="of timing for each row [default: 10]")
    parser.add_argument("--folder", type=Path, help="for the galleries, while they are measured")
    parser.add_argument("--row", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--write", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write:
        print(json.dumps(write(options, options.contestants[0], options.sizes[0])))
    elif options.row:
        print(json.dumps(row(options, options.contestants[0], options.sizes[0])))
    else:
        result = running.run(measure, options)
        for one in result["rows"]:
            print(json.dumps(one))
            warn_of_load(one["load"])


if __name__ == "__main__":
    main()
