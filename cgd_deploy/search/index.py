"""Galleries on disk: descriptors, the paths of their pictures, and the space of the engine that made them.

An index is a .npy file with a .npy.json beside it, a .parquet file, or a folder of Parquet files, see ``shards``. A PCA
lies beside the file as .pca.npy. ``compact`` rounds and projects descriptors.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import InputError, in_one_line
from ..files import replacing, sha256_file, sync
from ..pictures.images import ImageList
from ..runtime.descriptors import Descriptors
from ..runtime.engine import Engine
from ..spec import Precision
from .compact import Compact, Stored, check_form, fit
from .parquet import import_pyarrow, load_table, save_table
from .paths import RELATIVE, index_names, paths_from_here
from .retrieval import Indices, neighbours
from .shards import load_shards

SUFFIXES = (".npy", ".parquet")


class Mixing(NamedTuple):
    """Whether an engine of one precision may search an index of another precision.

    safe   True if a measurement found it safe; False if it did not, or if nobody measured
    told   the measurement, or that there is none, and what to do: a sentence without its full stop
    """

    safe: bool
    told: str


@dataclass(frozen=True)
class Index:
    """A gallery to search: descriptors of pictures, and the paths of the pictures.

    stored      descriptors [N, W] in the form ``compact``: float32, float16, int8, or bits in uint8
    paths       N paths of the pictures, as they can be opened from the current folder
    space_id    space of the engine that made the index
    precision   precision of that engine
    statement   whether that engine may share a gallery with FP32, see ``Manifest``; None if nobody measured it

    Example:

        index = read_index("gallery.npy")
        with load("model-int8.cgd") as engine:
            indices, similarities = index.search(engine, engine.embed(["query.jpg"]), k=8)
        print([index.paths[i] for i in indices[0]])
    """

    stored: Stored
    paths: Sequence[str]
    space_id: str
    precision: str
    compact: Compact
    statement: str | None = None

    def __repr__(self) -> str:
        form = f"{self.compact.length} values as {self.compact.dtype}"
        return f"<Index: {len(self.paths)} pictures, {form}, space {self.space_id}>"

    @cached_property
    def descriptors(self) -> Descriptors:
        """Unit vectors float32 [N, L] to search in; L is the engine's dim, or the number of PCA components."""
        return self.compact.restore(self.stored)

    def search(self, engine: Engine, queries: Descriptors, k: int) -> tuple[Indices, Descriptors]:
        """The k nearest pictures of each query, best first.

        engine    the engine that embedded the queries
        queries   unit descriptors float32 [Q, dim]

        Returns indices into ``paths``, int64 [Q, k], and cosine similarities, float32 [Q, k]. Raises InputError if the
        engine describes another space than the index, or if k is above N.
        """
        self._check_space(engine)
        return neighbours(self.compact.project(queries), self.descriptors, k)

    def mixing(self, engine: Engine) -> Mixing | None:
        """Whether ``engine`` may search this index although their precisions differ; None if they do not.

        `build-engine --data` measures how an engine mixes with FP32. The engine keeps the result as a statement, and so
        does every index of that engine. Raises InputError if the engine describes another space than the index.
        """
        self._check_space(engine)
        indexed, asking = self.precision, engine.precision.value
        if indexed == asking:
            return None
        told = f"the index holds {indexed} descriptors and the engine makes {asking} ones"
        statement = {indexed: engine.manifest.statement, asking: self.statement}.get(Precision.FP32.value)
        again = "make the index again with this engine"
        if statement is None:
            return Mixing(False, f"{told}, and whether they may be mixed was not measured; {again}")
        safe = statement.startswith("safe")
        return Mixing(safe, f"{told}, measured as {statement}" + ("" if safe else f"; {again}"))

    def _check_space(self, engine: Engine) -> None:
        if engine.spec.space_id != self.space_id:
            raise InputError(
                f"the index describes space {self.space_id}, the engine {engine.spec.space_id}; "
                "make the index again with this model's engine."
            )


def check_index_path(path: str | Path) -> None:
    """Check the name of an index before any work is done.

    Raises InputError unless the name ends in .npy or .parquet, MissingDependency for .parquet without pyarrow.
    """
    suffix = Path(path).suffix
    if suffix not in SUFFIXES:
        raise InputError(f"{path} ends in {suffix or 'nothing'}; expected one of {' '.join(SUFFIXES)}.")
    if suffix == ".parquet":
        import_pyarrow()


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """How pictures are read for an index, see ``Engine.embed_list``."""

    batch_size: int | None = None
    fast_decode: bool = False
    decoder: str = "pillow"


def index_images(
    engine: Engine,
    images: ImageList,
    reading: Reading | None = None,
    on_error: Callable[[int, InputError], None] | None = None,
    on_pictures: Callable[[int], None] | None = None,
    on_note: Callable[[str], None] | None = None,
    *,
    descriptor_dtype: str = "float32",
    pca: int | None = None,
) -> Index:
    """Embed a list of pictures into an index.

    on_error      called with the number of each bad picture, which is left out; None: the first bad picture raises
    on_pictures   called with how many pictures were embedded since the last call
    on_note       called with sentences about how pictures are decoded
    descriptor_dtype, pca   how the index keeps descriptors, see ``compact.fit``

    Raises InputError if no picture can be read, or if the gallery cannot have that form.
    """
    check_form(descriptor_dtype, pca, engine.spec.dim, len(images))
    read = reading or Reading()
    kept: list[int] = []
    parts: list[Descriptors] = []
    for indices, descriptors in engine.embed_list(
        images, read.batch_size, on_error, read.fast_decode, read.decoder, on_note
    ):
        kept += indices
        parts.append(descriptors)
        if on_pictures:
            on_pictures(len(indices))
    if not kept:
        raise InputError(f"none of the {len(images)} pictures could be read; the index was not written.")
    paths = [str(images.path(index)) for index in kept]
    descriptors = np.concatenate(parts)
    compact = fit(descriptors, descriptor_dtype, pca)
    stored, manifest = compact.store(descriptors), engine.manifest
    return Index(stored, paths, engine.spec.space_id, engine.precision.value, compact, manifest.statement)


def write_index(index: Index, path: str | Path, paths_are: str = RELATIVE) -> Path:
    """Write an index; returns its path.

    paths_are   "relative" to the index's folder, or "absolute", see ``paths``

    All files are complete before the first one gets its name, so a full disk leaves an older index as it was. The
    file of descriptors gets its name last. If a killed process leaves files of two runs, their checksums show it.
    Raises InputError if the files cannot be written.
    """
    check_index_path(path)
    path = Path(path)
    compact = index.compact
    facts = {
        "space_id": index.space_id,
        "precision": index.precision,
        "statement": index.statement,
        "paths_are": paths_are,
        **compact.facts,
    }
    with ExitStack() as files:
        temporary = files.enter_context(replacing(path))
        if compact.projection is not None:
            projection = files.enter_context(replacing(beside(path)))
            _save(projection, compact.projection)
            facts["pca_sha256"] = sha256_file(projection)
        if path.suffix == ".parquet":
            save_table(temporary, index.stored, index.paths, facts)
        else:
            _save(temporary, index.stored)
            facts["sha256"] = sha256_file(temporary)
            names = index_names(index.paths, path.parent, paths_are)
            told = json.dumps({**facts, "paths": names}, indent=0)
            files.enter_context(replacing(sidecar(path))).write_text(told, encoding="utf-8")
        sync(temporary)  # the largest file: without this, the files beside it would get their names long before
    if compact.projection is None:
        with suppress(OSError):
            beside(path).unlink()  # the PCA of an older index
    return path


def read_index(path: str | Path) -> Index:
    """Read an index: a .npy file, a .parquet file, or the .parquet folder of ``embed --ray``.

    Returns an Index whose paths can be opened from the current folder. An index without a ``descriptor_dtype`` field
    was written before that field existed; it is read as float32.

    Raises InputError if the index is missing or damaged, if a shard of a folder is missing, or if the files beside it
    belong to another run; MissingDependency for Parquet without pyarrow.

    Example:

        index = read_index("gallery.npy")
        print(len(index.paths), index.descriptors.shape)
    """
    check_index_path(path)
    path = Path(path)
    try:
        stored, paths, facts = _loader(path)(path)
        dim = facts["dim"] if "dim" in facts else stored.shape[1]
        compact = Compact(facts.get("descriptor_dtype", "float32"), dim, _projection(path, facts))
        compact.check(stored)
        if len(paths) != len(stored):
            raise ValueError(f"{len(paths)} paths for {len(stored)} descriptors")
        statement = facts.get("statement")
        texts = (*paths, facts["space_id"], facts["precision"], *([] if statement is None else [statement]))
        if not all(isinstance(text, str) for text in texts):
            raise TypeError("a path or a name is not text")
        return Index(stored, paths, facts["space_id"], facts["precision"], compact, statement)
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


def _save(path: Path, array: Stored) -> None:
    array = np.ascontiguousarray(array)
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        file.write(array.data)  # np.save hides the reason when it cannot write


def _loader(path: Path) -> Callable[[Path], tuple[Stored, list[str], dict[str, Any]]]:
    if path.suffix == ".parquet":
        return load_shards if path.is_dir() else load_table
    return _load


def _load(path: Path) -> tuple[Stored, list[str], dict[str, Any]]:
    facts = json.loads(sidecar(path).read_text(encoding="utf-8"))
    if sha256_file(path) != facts["sha256"]:
        raise InputError(f"{path} and {sidecar(path)} belong to different runs; make the index again.")
    paths = paths_from_here(facts["paths"], path.parent, facts.get("paths_are"))
    return np.load(path, allow_pickle=False), paths, facts


def _projection(path: Path, facts: dict[str, Any]) -> Descriptors | None:
    if facts.get("pca") is None:
        return None
    if not beside(path).is_file():
        raise InputError(f"{beside(path)}, the PCA of {path}, is missing; put it back, or make the index again.")
    if sha256_file(beside(path)) != facts["pca_sha256"]:
        raise InputError(f"{beside(path)} and {path} belong to different runs; make the index again.")
    return np.load(beside(path), allow_pickle=False)
