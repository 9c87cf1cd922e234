"""Galleries on disk: descriptors, the paths of their pictures, and the space of the engine that made them.

An index is a .npy file with a .npy.json beside it, a .parquet file, or a folder of Parquet files, see ``shards``. A PCA
lies beside the file as .pca.npy, a graph as .hnsw. ``compact`` rounds and projects descriptors.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError, in_one_line
from ..files import replacing, sampled_sha256, sha256_file, sync
from ..runtime.descriptors import Descriptors
from .compact import Compact, Stored, check_finite
from .contents import Contents, as_text, from_text
from .embedding import Reading, index_images
from .gallery import Index, Mixing
from .graph import Graph
from .moment import Moment
from .parquet import import_pyarrow, load_table, save_table
from .paths import RELATIVE, index_names, paths_from_here
from .shards import load_shards

__all__ = [
    "Index",
    "Mixing",
    "Reading",
    "beside",
    "check_index_path",
    "index_images",
    "read_index",
    "sidecar",
    "write_index",
]

SUFFIXES = (".npy", ".parquet")


def check_index_path(path: str | Path) -> None:
    """Check the name of an index before any work is done.

    Raises InputError unless the name ends in .npy or .parquet, MissingDependency for .parquet without pyarrow.
    """
    suffix = Path(path).suffix
    if suffix not in SUFFIXES:
        raise InputError(f"{path} ends in {suffix or 'nothing'}; expected one of {' '.join(SUFFIXES)}.")
    if suffix == ".parquet":
        import_pyarrow()


def write_index(index: Index, path: str | Path, paths_are: str | None = None, graph: Graph | None = None) -> Path:
    """Write an index with everything that was put and removed; returns its path.

    paths_are   "relative" to the index's folder, or "absolute", see ``paths``; None: as ``index.paths_are`` says
    graph       a graph of ``index.stored`` to write beside it; None: the graph of an older index is removed

    All files are complete before the first one gets its name. A full disk or a killed process leaves the index of
    before or the new index whole, see ``_its_own``. Raises InputError if the files cannot be written, or if a
    descriptor is not finite.
    """
    check_index_path(path)
    path, moment, projection = Path(path), index.moment, index.compact.projection
    index.paths_are = paths_are or index.paths_are
    facts = {
        "space_id": index.space_id,
        "precision": index.precision,
        "statement": index.statement,
        "paths_are": index.paths_are,
        **index.compact.facts,
    }
    written = []
    with ExitStack() as files:

        def begin(file: Path) -> Path:
            written.append(file)
            return files.enter_context(replacing(_new(file)))

        temporary = files.enter_context(replacing(path))  # gets its name last
        if projection is not None:
            _save(values := begin(beside(path)), projection.shape, [projection])
            facts["pca_sha256"] = sha256_file(values)
        if graph is not None:
            graph.write(drawn := begin(graph_file(path)))
            facts["graph"] = {"sampled_sha256": sampled_sha256(drawn), "recall_at_10": graph.recall_at_10}
        if path.suffix == ".parquet":
            stored = np.concatenate(list(_finite_blocks(moment)))
            save_table(temporary, stored, moment.paths, facts, moment.checksums)
        else:
            _save(temporary, (len(moment), moment.stored.shape[1]), _finite_blocks(moment))
            told = _sidecar_text(temporary, path, moment, facts)
            begin(sidecar(path)).write_text(told, encoding="utf-8")
        sync(temporary)  # the largest file: without this, the files beside it would get their names long before
    for file in (sidecar(path), beside(path), graph_file(path)):
        with suppress(OSError):
            if file in written:
                _new(file).replace(file)
            else:
                file.unlink()  # of an older index
    index.written(moment)
    return path


def read_index(path: str | Path, exact: bool = False) -> Index:
    """Read an index: a .npy file, a .parquet file, or the .parquet folder of ``embed --ray``.

    exact   leave a graph of the gallery unread, so that every search is exact

    Returns an Index whose paths can be opened from the current folder. The descriptors of a .npy file are mapped into
    memory, not read. An index without a ``descriptor_dtype`` field was written before that field existed; it is read
    as float32.

    Raises InputError if the index is missing or damaged, if a shard of a folder is missing, or if the files beside it
    belong to another run; MissingDependency for Parquet without pyarrow, and for a graph without usearch.

    Example:

        index = read_index("gallery.npy")
        print(len(index.paths), index.descriptors.shape)
    """
    check_index_path(path)
    path = Path(path)
    try:
        stored, paths, facts, contents = _loader(path)(path)
        dim = facts["dim"] if "dim" in facts else stored.shape[1]
        compact = Compact(facts.get("descriptor_dtype", "float32"), dim, _projection(path, facts))
        compact.check(stored)
        if len(paths) != len(stored):
            raise ValueError(f"{len(paths)} paths for {len(stored)} descriptors")
        statement = facts.get("statement")
        texts = (*paths, facts["space_id"], facts["precision"], *([] if statement is None else [statement]))
        if not all(isinstance(text, str) for text in texts):
            raise TypeError("a path or a name is not text")
        if contents is not None and len(contents) != len(stored):
            raise ValueError(f"{len(contents)} checksums for {len(stored)} descriptors")
        graph = None if exact else _graph(path, facts, compact, stored)
        index = Index(stored, paths, facts["space_id"], facts["precision"], compact, statement, contents, graph)
        index.paths_are = facts.get("paths_are") or RELATIVE
        return index
    except (OSError, KeyError, ValueError, TypeError, AttributeError, SyntaxError, RecursionError) as error:
        raise InputError(
            f"{path} is not an index of cgd-deploy embed ({in_one_line(error)}); make it again."
        ) from error


def sidecar(path: Path) -> Path:
    """index.npy -> index.npy.json, the file of the paths and of the space_id."""
    return path.with_name(f"{path.name}.json")


def beside(path: Path) -> Path:
    """index.npy -> index.npy.pca.npy, the file of its PCA."""
    return path.with_name(f"{path.name}.pca.npy")


def graph_file(path: Path) -> Path:
    """index.npy -> index.npy.hnsw, the file of its graph."""
    return path.with_name(f"{path.name}.hnsw")


def _save(path: Path, shape: tuple[int, int], blocks: Iterable[Stored]) -> None:
    """Write blocks of rows as one .npy file of this shape."""
    with open(path, "wb") as file:
        for number, block in enumerate(blocks):
            if number == 0:
                header = np.lib.format.header_data_from_array_1_0(block)
                np.lib.format.write_array_header_1_0(file, {**header, "fortran_order": False, "shape": shape})
            file.write(np.ascontiguousarray(block).data)  # np.save hides the reason when it cannot write


def _finite_blocks(moment: Moment) -> Iterator[Stored]:
    """The stored rows of a moment. Raises InputError with the path of the first that is not finite."""
    done = 0
    for block in moment.blocks():
        if block.dtype.kind == "f":
            check_finite(block, lambda row, done=done: moment.paths[done + row])  # type: ignore[misc]
        done += len(block)
        yield block


def _sidecar_text(file: Path, path: Path, moment: Moment, facts: dict[str, Any]) -> str:
    """The JSON beside an index at ``path``, whose descriptors are in ``file``."""
    contents = moment.checksums
    told = {
        **facts,
        "sha256": sha256_file(file),
        "sampled_sha256": sampled_sha256(file),
        **({} if contents is None else {"contents": as_text(contents)}),
        "paths": index_names(moment.paths, path.parent, facts["paths_are"]),
    }
    return json.dumps(told, indent=0)


Loaded = tuple[Stored, list[str], dict[str, Any], Contents | None]
"""Descriptors, paths, facts and checksums of pictures."""


def _loader(path: Path) -> Callable[[Path], Loaded]:
    if path.suffix == ".parquet":
        return load_shards if path.is_dir() else load_table
    return _load


def _load(path: Path) -> Loaded:
    for file in _names(sidecar(path)) or [sidecar(path)]:  # open() says why it is not there
        facts = json.loads(file.read_text(encoding="utf-8"))
        # Release 0.1.0 wrote no checksum of samples, so its files are read whole.
        name, checksum = ("sampled_sha256", sampled_sha256) if "sampled_sha256" in facts else ("sha256", sha256_file)
        if checksum(path) == facts[name]:
            break
    else:
        raise InputError(f"{path} and {sidecar(path)} belong to different runs; make the index again.")
    paths = paths_from_here(facts["paths"], path.parent, facts.get("paths_are"))
    contents = from_text(facts["contents"]) if "contents" in facts else None
    return np.load(path, mmap_mode="r", allow_pickle=False), paths, facts, contents


def _projection(path: Path, facts: dict[str, Any]) -> Descriptors | None:
    if facts.get("pca") is None:
        return None
    file = _its_own(path, beside(path), "PCA", sha256_file, facts["pca_sha256"])
    return np.load(file, allow_pickle=False)


def _graph(path: Path, facts: dict[str, Any], compact: Compact, stored: Stored) -> Graph | None:
    if (told := facts.get("graph")) is None:
        return None
    file = _its_own(path, graph_file(path), "graph", sampled_sha256, told["sampled_sha256"])
    return Graph.read(file, compact, stored, told["recall_at_10"])


def _its_own(path: Path, file: Path, kind: str, checksum: Callable[[Path], str], told: str) -> Path:
    """The file beside an index that has the checksum in the index. Raises InputError if there is none.

    A writer names the files beside an index .new, then gives the index its name, then renames these files. So a writer
    that is killed in between leaves two files, and the checksum tells which one is of the index that is there.
    """
    again = "make the index again" + (", or search with --exact" if kind == "graph" else "")
    if not (names := _names(file)):
        raise InputError(f"{file}, the {kind} of {path}, is missing; put it back, or {again}.")
    for name in names:
        if checksum(name) == told:
            return name
    raise InputError(f"{file} and {path} belong to different runs; {again}.")


def _names(file: Path) -> list[Path]:
    """The names under which a file beside an index is there."""
    return [name for name in (file, _new(file)) if name.is_file()]


def _new(file: Path) -> Path:
    """The name of a file beside an index until the index has its own name."""
    return file.with_name(f"{file.name}.new")
