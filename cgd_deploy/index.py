"""Descriptors on disk with where they came from: .npy (with a .npy.json beside it) or .parquet."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .engine import Engine
from .errors import InputError, MissingDependency
from .files import replacing, sha256_file, write_text
from .images import ImageList
from .retrieval import Descriptors, Indices, neighbours

SUFFIXES = (".npy", ".parquet")


@dataclass(frozen=True)
class Index:
    """Unit descriptors float32 [N, D] of ``paths``, made by an engine of model space ``space_id``."""

    descriptors: Descriptors
    paths: Sequence[str]
    space_id: str
    precision: str

    def search(self, engine: Engine, queries: Descriptors, k: int) -> tuple[Indices, Descriptors]:
        """The k nearest of each query [Q, D]: indices and cosine similarities [Q, k].

        Raises InputError if ``engine`` describes another space than the index or k is too large.
        """
        if engine.spec.space_id != self.space_id:
            raise InputError(
                f"the index describes space {self.space_id}, the engine {engine.spec.space_id}; "
                "make the index again with this model's engine."
            )
        return neighbours(queries, self.descriptors, k)


def check_index_path(path: str | Path) -> None:
    """Refuse an output that is neither .npy nor .parquet, or .parquet without pyarrow, before any work is done."""
    suffix = Path(path).suffix
    if suffix not in SUFFIXES:
        raise InputError(f"{path} ends in {suffix or 'nothing'}; expected one of {' '.join(SUFFIXES)}.")
    if suffix == ".parquet":
        _pyarrow()


def index_images(
    engine: Engine,
    images: ImageList,
    batch_size: int = 8,
    on_error: Callable[[int, InputError], None] | None = None,
    on_pictures: Callable[[int], None] | None = None,
) -> Index:
    """Embed a list; pictures that ``on_error`` is told of are left out, without it the first one raises InputError."""
    kept: list[int] = []
    parts: list[Descriptors] = []
    for indices, descriptors in engine.embed_list(images, batch_size, on_error):
        kept += indices
        parts.append(descriptors)
        if on_pictures:
            on_pictures(len(indices))
    if not kept:
        raise InputError(f"none of the {len(images)} pictures could be read; the index was not written.")
    paths = [str(images.path(index)) for index in kept]
    return Index(np.concatenate(parts), paths, engine.spec.space_id, engine.precision.value)


def write_index(index: Index, path: str | Path) -> Path:
    """Write atomically; a .npy gets its paths and space_id in a .npy.json."""
    check_index_path(path)
    path = Path(path)
    facts = {"space_id": index.space_id, "precision": index.precision}
    if path.suffix == ".parquet":
        pa = _pyarrow()
        flat = pa.array(index.descriptors.reshape(-1))
        column = pa.FixedSizeListArray.from_arrays(flat, index.descriptors.shape[1])
        table = pa.table({"path": list(index.paths), "descriptor": column})
        with replacing(path) as temporary:
            pa.parquet.write_table(table.replace_schema_metadata({"cgd": json.dumps(facts)}), temporary)
        return path
    with replacing(path) as temporary:
        with open(temporary, "wb") as file:
            np.save(file, index.descriptors, allow_pickle=False)
        facts["sha256"] = sha256_file(temporary)
        write_text(sidecar(path), json.dumps({**facts, "paths": list(index.paths)}, indent=0))
    return path


def read_index(path: str | Path) -> Index:
    """Raises InputError if the index is missing, damaged, or its .npy.json belongs to other descriptors."""
    check_index_path(path)
    path = Path(path)
    try:
        if path.suffix == ".parquet":
            table = _pyarrow().parquet.read_table(path)
            facts: dict[str, Any] = json.loads(table.schema.metadata[b"cgd"])
            column = table.column("descriptor").combine_chunks()
            descriptors = column.flatten().to_numpy().reshape(len(column), -1)
            return Index(descriptors, table.column("path").to_pylist(), facts["space_id"], facts["precision"])
        facts = json.loads(sidecar(path).read_text(encoding="utf-8"))
        if sha256_file(path) != facts["sha256"]:
            raise InputError(f"{path} and {sidecar(path)} belong to different runs; make the index again.")
        descriptors = np.load(path, allow_pickle=False)
        return Index(descriptors, facts["paths"], facts["space_id"], facts["precision"])
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise InputError(f"{path} is not an index of cgd-deploy embed ({error}); make it again.") from error


def sidecar(path: Path) -> Path:
    """index.npy -> index.npy.json, where the paths and the space_id are."""
    return path.with_name(f"{path.name}.json")


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise MissingDependency(
            "Parquet needs pyarrow; run `pip install 'cgd-deploy[parquet]'`, or write .npy."
        ) from error
    return pyarrow
