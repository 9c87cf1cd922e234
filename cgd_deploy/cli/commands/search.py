"""``cgd-deploy search``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...errors import InputError, install_line
from ..options import EngineOption, Json, Pictures, Threads

if TYPE_CHECKING:
    from ...datasets.left_out import LeftOut
    from ...pictures.images import ImageList
    from ...runtime.engine import Engine
    from ...search.index import Index

Found = list[tuple[Path, list[tuple[str, float]]]]
"""Each query with the paths and cosines of its neighbours, nearest first."""


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    query: Pictures
    engine: EngineOption
    index: Annotated[Path, typer.Option(metavar="FILE", help="An index of cgd-deploy embed.")]
    k: Annotated[int, typer.Option("-k", min=1, metavar="N", help="Neighbours to show.")] = 8
    exact: Annotated[bool, typer.Option("--exact", help="Leave the graph of the index unused.")] = False
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page with the pictures.")] = None
    strict: Annotated[
        bool,
        typer.Option(
            "--strict",
            help="Stop at the first bad picture. Refuse an engine of another precision than the index, unless a "
            "measurement found that safe.",
        ),
    ] = False
    threads: Threads = None
    as_json: Json = False


def search(options: SearchOptions) -> None:
    """Find the nearest pictures of an index."""
    from ...hardware.packages import check_runtime

    check_runtime()
    from ...pictures.images import read_images
    from ...runtime.engine import load
    from ...search.index import read_index
    from ..results import search_lines
    from ..terminal import good_pictures, print_result, warn, warn_all

    index = read_index(options.index, options.exact)
    left_out: list[LeftOut] = []
    listed = read_images(options.query)
    warn_all(listed.notes)
    queries = good_pictures(listed, options.strict, left_out)
    with load(options.engine, threads=options.threads, warm_up=False) as engine:  # few queries need few batch sizes
        _check_precision(index, engine, options.strict)
        found = _neighbours(index, engine, queries, options.k)
    if index.slow:
        warn(f"{options.index} is searched slowly without usearch 2.25; run `{install_line('search')}`.")
    if (count := len(index)) < options.k:
        warn(f"{options.index} has fewer pictures than -k {options.k}: each query finds all {count}.")
    if options.html:
        _write_page(options.html, options.index, found)
    facts: list[dict[str, Any]] = [
        {"query": str(path), "neighbours": [{"path": p, "similarity": s} for p, s in strip]} for path, strip in found
    ]
    facts += [{"query": picture.path, "neighbours": [], "left_out": picture.reason} for picture in left_out]
    print_result(facts, search_lines(found), options.as_json)


def _check_precision(index: Index, engine: Engine, strict: bool) -> None:
    """Tell the user if index and engine have different precisions. Raises InputError if ``strict`` and not safe."""
    from ..terminal import errors

    if mixing := index.mixing(engine):
        if strict and not mixing.safe:
            raise InputError(f"{mixing.told}, or leave --strict out.")
        errors.print(f"{'note' if mixing.safe else 'warning'}: {mixing.told}.", style="yellow")


def _neighbours(index: Index, engine: Engine, queries: ImageList, k: int) -> Found:
    """At most ``k`` neighbours of each query."""
    import numpy as np

    descriptors = np.concatenate([part for _, part in engine.embed_list(queries)])
    found = index.find(engine, descriptors, min(k, len(index)))
    return [
        (path, [(name, round(similarity, 5)) for name, similarity in row])
        for path, row in zip(queries.paths, found, strict=True)
    ]


def _write_page(path: Path, index: Path, found: Found) -> None:
    from ...quality.report import Neighbour, QueryRow, write_search_page

    rows = [
        QueryRow(query, None, None, {"Neighbours": [Neighbour(Path(p), None, None, s) for p, s in strip]})
        for query, strip in found
    ]
    write_search_page(path, f"Neighbours in {index}", rows)
