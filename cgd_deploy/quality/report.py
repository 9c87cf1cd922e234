"""Self-contained HTML pages: the report of a bench, and the pictures that a search found. Measures nothing."""

from __future__ import annotations

import base64
import io
import os
import re
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from ..datasets.evaluation import left_out_queries
from ..errors import InputError
from ..files import write_text
from ..hardware.timing import load_warning
from ..pictures.folders import counted, some
from ..pictures.images import Box
from ..pictures.preprocess import decode
from .formatting import change, change_interval, layers_in_float, percent

THUMBNAIL = 112
CAPTION = 26
"""Most characters of a picture's name, and of its folder's: three lines below one of ten neighbours."""
UNKNOWN = "n/a"
QUALITY = (
    "bytes",
    "recall",
    "recall_drop_pp",
    "recall_drop_interval_pp",
    "cross_recall_drop_pp",
    "overlap_at_10",
    "cosine",
    "rank_flips",
)


@dataclass(frozen=True)
class Neighbour:
    """One picture that was found.

    box      the part of the picture that was embedded, None for the whole picture
    correct  whether it has the query's class; None if classes are unknown
    changed  whether the reference did not find it for this query
    """

    path: Path
    box: Box | None
    label: str | None
    similarity: float
    correct: bool | None = None
    changed: bool = False


@dataclass(frozen=True)
class QueryRow:
    """A query and its neighbours, best first, under each column title ("torch fp32", "onnxruntime int8")."""

    query: Path
    box: Box | None
    label: str | None
    results: dict[str, list[Neighbour]]


def write_bench_report(path: str | Path, result: dict[str, Any], rows: Sequence[QueryRow] = ()) -> Path:
    """Write the result of ``bench`` as one HTML page, with a grid of the queries ``rows``; returns its path."""
    engines = _by_engine(result["engines"])
    timed = [*result["reference"]["runs"], *result["engines"]]
    return write_page(
        path,
        "bench.html",
        rows,
        result=result,
        headline=headline(result),
        warnings=warnings(result),
        notes=notes(result),
        engines=engines,
        slowest=max((ms for run in timed for ms in run["latency_ms"].values() if ms is not None), default=None),
        quality=[(runs[0], distinct) for runs in engines for distinct in _distinct_quality(runs)],
        compact=[runs[0] for runs in engines if runs[0]["compact"]],
        ks=_sorted_ks(result["reference"]["recall"], *(run["recall"] for run in result["engines"])),
    )


def write_search_page(path: str | Path, title: str, rows: Sequence[QueryRow], heading: str = "Query") -> Path:
    """Write queries and their neighbours, with similarities, as one HTML page; returns its path.

    heading   what the page writes above each query
    """
    return write_page(path, "search.html", rows, title=title, heading=heading)


def headline(result: dict[str, Any]) -> str:
    """One sentence on the fastest engine of a bench: its speed, and its change of recall or of neighbours."""
    if not result["engines"]:
        return "No engine was measured."
    run = max(result["engines"], key=lambda run: run["images_per_second"])
    speed = f"{Path(run['path']).name} ({_name(run)}, batch {run['batch']}) embeds {_number(run['images_per_second'])}"
    speed += " images/s"
    if run["speedup_vs_torch"] is not None:
        speed += f", {run['speedup_vs_torch']:.2f} times the speed of {_name(result['reference'])}"
    if result["environment"]["load"]["busy"]:
        speed += ", measured on a busy machine"
    shared = _sorted_ks(run["recall_drop_pp"])
    if shared:
        k = shared[0]
        before, after = result["reference"]["recall"][k], run["recall"][k]
        lost = f"recall@{k} {_difference(run['recall_drop_pp'][k])} ({_percent(before)} to {_percent(after)})"
    else:
        lost = f"{_percent(run['overlap_at_10'])} of its ten nearest neighbours are the reference's"
    return f"{speed}; {lost}."


def warnings(result: dict[str, Any]) -> list[str]:
    """Sentences on why a bench may mislead: notes on the pictures, pictures left out, load, and stale engines."""
    found = [*result.get("notes", ()), load_warning(result["environment"]["load"])]
    engines = {run["path"]: run["stale"] for run in result["engines"]}
    found += [f"{Path(path).name} was {reason}." for path, reason in engines.items() if reason]
    if left_out := result.get("left_out"):
        paths = some([picture["path"] for picture in left_out])
        found.append(f"{counted(left_out, 'test picture')} left out as unreadable: {paths}.")
    return [warning for warning in found if warning]


def notes(result: dict[str, Any]) -> list[str]:
    """Sentences on the queries that recall leaves out. Older releases counted all queries; their results have none."""
    note = left_out_queries(result["queries"]) if "queries" in result else None
    return [note] if note else []


def form_name(form: dict[str, Any]) -> str:
    """The form of one entry of a run's "compact" as text: "int8", or "int8, PCA 256"."""
    return form["descriptor_dtype"] + (f", PCA {form['pca']}" if form["pca"] is not None else "")


def write_page(path: str | Path, template: str, rows: Sequence[QueryRow], **context: Any) -> Path:
    """Write one of the templates as one HTML page; returns its path."""
    found = [neighbour for row in rows for strip in row.results.values() for neighbour in strip]
    page = _TEMPLATES.get_template(template).render(
        rows=rows,
        album=_album([(row.query, row.box) for row in rows] + [(n.path, n.box) for n in found]),
        captions=_captions({row.query for row in rows}, {n.path for n in found}),
        with_classes=any(n.correct is not None for n in found),
        with_changes=any(n.changed for n in found),
        **context,
    )
    return write_text(path, page.encode("utf-8", "replace").decode())  # a file name may hold bytes that are not text


@dataclass(frozen=True)
class _Thumbnail:
    id: str
    width: int
    height: int
    uri: str


def _album(pictures: list[tuple[Path, Box | None]]) -> dict[tuple[Path, Box | None], _Thumbnail | None]:
    """A thumbnail of each picture, made once; None if a picture cannot be opened."""
    return {picture: _thumbnail(f"t{i}", *picture) for i, picture in enumerate(dict.fromkeys(pictures))}


def _thumbnail(name: str, path: Path, box: Box | None) -> _Thumbnail | None:
    try:
        image = decode(path, box)
    except InputError:
        return None
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    jpeg = io.BytesIO()
    image.save(jpeg, "JPEG", quality=82)
    uri = f"data:image/jpeg;base64,{base64.b64encode(jpeg.getvalue()).decode()}"
    return _Thumbnail(name, image.width, image.height, uri)


def _captions(queries: Collection[Path], found: Collection[Path]) -> dict[Path, tuple[str, str]]:
    """The folder and the name of each picture; the folder is empty if names alone are unique.

    If neighbours lie in several folders, all show their folders: a folder is often a class.
    """
    whole = {path: Path(os.path.abspath(path)).parts for path in {*queries, *found}}
    shown = 2 if len({whole[path][:-1] for path in found}) > 1 else 1
    while len({parts[-shown:] for parts in whole.values()}) < len(set(whole.values())):
        shown += 1
    folders = {path: "/".join(parts[-shown:-1]) for path, parts in whole.items()}
    folder, name = _shortened(set(folders.values())), _shortened({path.name for path in whole})
    return {path: (folder[folders[path]], name[path.name]) for path in whole}


def _shortened(texts: Collection[str]) -> dict[str, str]:
    """Cut the middle out of long texts, unless two of them would become equal."""
    short = {text: _without_middle(text) for text in texts}
    return short if len(set(short.values())) == len(short) else {text: text for text in texts}


def _without_middle(text: str) -> str:
    """At most CAPTION characters. Two thirds of them come from the end of ``text``, where names mostly differ."""
    if len(text) <= CAPTION:
        return text
    start = CAPTION // 3
    return f"{text[:start]}\N{HORIZONTAL ELLIPSIS}{text[start + 1 - CAPTION :]}"


def _by_engine(runs: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    engines = defaultdict(list)
    for run in runs:
        engines[run["path"], run["backend"], run["precision"]].append(run)
    return list(engines.values())


def _distinct_quality(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One run for each distinct set of retrieval measures; batch and threads rarely change the measures."""
    return [run for i, run in enumerate(runs) if all(any(run[q] != r[q] for q in QUALITY) for r in runs[:i])]


def _sorted_ks(*tables: dict[str, float]) -> list[str]:
    return sorted({k for table in tables for k in table}, key=int)


def _name(run: dict[str, Any]) -> str:
    return f"{run['backend']} {run['precision']}"


def _setting(run: dict[str, Any]) -> str:
    counts = [("thread", run.get("threads")), ("stream", run.get("streams"))]
    return ", ".join(f"{n} {noun}{'s' * (n != 1)}" for noun, n in counts if n)


def _number(value: float) -> str:
    """About three significant digits, thousands grouped."""
    return f"{value:,.{0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2}f}"


def _percent(fraction: float | None) -> str:
    return percent(fraction, UNKNOWN)


def _difference(drop: float | None) -> str:
    """A drop of 0.25 percentage points is a change of -0.25 pp, with a real minus sign."""
    return UNKNOWN if drop is None else f"{_typographic(change(drop))} pp"


def _interval(drop: Sequence[float]) -> str:
    return f"{_typographic(change_interval(drop, ' to '))} pp"


def _typographic(text: str) -> str:
    return re.sub(r"[-+]0\.00", "\N{PLUS-MINUS SIGN}0.00", text).replace("-", "\N{MINUS SIGN}")


def _size(count: int) -> str:
    return f"{count / 1e6:,.1f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_plain(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_plain, value))
    return UNKNOWN if value is None else str(value)


_TEMPLATES = Environment(
    loader=PackageLoader("cgd_deploy.quality"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_TEMPLATES.filters |= {
    "basename": lambda path: Path(path).name,
    "count": lambda count: UNKNOWN if count is None else f"{count:,}",
    "difference": _difference,
    "form_name": form_name,
    "interval": _interval,
    "layers_in_float": layers_in_float,
    "name": _name,
    "number": _number,
    "percent": _percent,
    "plain": _plain,
    "setting": _setting,
    "size": _size,
}
