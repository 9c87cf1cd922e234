"""Parquet tables of paths and descriptors, with facts as JSON in the footer. Knows no engine.

Callers give and get paths that can be opened from the current folder. The fact ``paths_are`` says how they are stored.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError, MissingDependency, install_line
from .compact import Stored
from .contents import SIZE, Contents, as_array
from .paths import index_names, paths_from_here


def save_table(
    path: Path, stored: Stored, paths: Sequence[str], facts: dict[str, Any], contents: Contents | None = None
) -> None:
    """Write descriptors [N, W], N paths and N checksums of pictures; each page has a checksum of its own.

    Raises InputError if a path is not UTF-8.
    """
    pa = import_pyarrow()
    column = pa.FixedSizeListArray.from_arrays(pa.array(stored.reshape(-1)), stored.shape[1])
    try:
        names = pa.array(index_names(paths, path.parent, facts["paths_are"]), pa.string())
    except UnicodeEncodeError as error:
        raise InputError(f"the path {error.object!r} is not UTF-8; rename the file, or write .npy.") from error
    columns = {"path": names, "descriptor": column}
    if contents is not None:
        columns["content"] = pa.array([row.tobytes() for row in contents], pa.binary(SIZE))
    table = pa.table(columns).replace_schema_metadata({"cgd": json.dumps(facts)})
    with open(path, "wb") as file:
        pa.parquet.write_table(table, file, write_page_checksum=True)


def load_table(path: Path) -> tuple[Stored, list[str], dict[str, Any], Contents | None]:
    """Read descriptors [N, W], paths, facts and checksums of pictures; None if the table has none.

    Raises OSError, KeyError or ValueError for a file that is damaged or was not written by ``save_table``.
    """
    table = import_pyarrow().parquet.read_table(path, page_checksum_verification=True)
    facts = json.loads(table.schema.metadata[b"cgd"])
    column = table.column("descriptor").combine_chunks()
    width = table.schema.field("descriptor").type.list_size
    paths = paths_from_here(table.column("path").to_pylist(), path.parent, facts.get("paths_are"))
    contents = as_array(table.column("content").to_pylist()) if "content" in table.column_names else None
    return column.flatten().to_numpy().reshape(len(column), width), paths, facts, contents


def table_facts(path: Path) -> tuple[int, dict[str, Any]]:
    """Read N and the facts from the footer. Raises as ``load_table`` does."""
    footer = import_pyarrow().parquet.read_metadata(path)
    return footer.num_rows, json.loads(footer.metadata[b"cgd"])


def import_pyarrow() -> Any:
    """Import pyarrow and pyarrow.parquet; raises MissingDependency without pyarrow."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise MissingDependency(f"Parquet needs pyarrow; run `{install_line('parquet')}`, or write .npy.") from error
    return pyarrow
