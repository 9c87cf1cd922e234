"""``cgd-deploy duplicates``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from ..options import Json


@dataclass(frozen=True, kw_only=True)
class DuplicatesOptions:
    index: Annotated[Path, typer.Argument(metavar="INDEX", help="An index of cgd-deploy embed.")]
    min_similarity: Annotated[
        float,
        typer.Option(metavar="COSINE", help="Smallest cosine of two near-duplicates, above 0 and at most 1."),
    ] = 0.95
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page with the pictures.")] = None
    as_json: Json = False


def duplicates(options: DuplicatesOptions) -> None:
    """Find groups of near-duplicate pictures in an index."""
    from ...search.duplicates import check_min_similarity, find_duplicates
    from ...search.index import read_index
    from ..results import duplicates_lines
    from ..terminal import phases, print_result

    check_min_similarity(options.min_similarity)
    index = read_index(options.index)
    with phases() as on_progress:
        found = find_duplicates(index, options.min_similarity, on_progress)
    groups = [
        [(index.paths[row], round(s, 5)) for row, s in zip(group.rows, group.similarities, strict=True)]
        for group in found
    ]
    if options.html:
        _write_page(options.html, options.index, groups)
    facts = [{"pictures": [{"path": path, "similarity": s} for path, s in group]} for group in groups]
    print_result(facts, duplicates_lines(groups, len(index.paths)), options.as_json)


def _write_page(path: Path, index: Path, groups: list[list[tuple[str, float]]]) -> None:
    from ...quality.report import Neighbour, QueryRow, write_search_page

    rows = [
        QueryRow(Path(first), None, None, {"Near-duplicates": [Neighbour(Path(p), None, None, s) for p, s in others]})
        for (first, _), *others in groups
    ]
    write_search_page(path, f"Near-duplicates in {index}", rows, heading="Picture")
