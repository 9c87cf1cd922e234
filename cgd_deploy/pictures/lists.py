"""Reads and writes lists of pictures: LIST.tsv, and CSV or text files with a header. Opens no picture."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import repeat
from pathlib import Path
from typing import Any

from ..errors import InputError, in_one_line
from ..files import check_file
from ..limits import limits
from .folders import counted, some

SUFFIXES = (".tsv", ".csv", ".txt")
LARGEST_PIXEL = 1 << 31

CORNERS = ("x1", "y1", "x2", "y2")
SPELLINGS = {
    "image": "image img picture file filename path filepath imagefile imagename imagepath imgname imgpath",
    "class": "class classid classname label labelid target category identity",
    "x1": "x1 xmin",
    "y1": "y1 ymin",
    "x2": "x2 xmax",
    "y2": "y2 ymax",
    "split": "split",
}
"""Names of our columns in headers of other programs, without capitals, spaces and punctuation."""
COLUMNS = {spelling: column for column, spellings in SPELLINGS.items() for spelling in spellings.split()}

DELIMITERS = "\t,;"
HEADER = "image<TAB>class[<TAB>x1<TAB>y1<TAB>x2<TAB>y2]"

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Rows:
    """The contents of a list: names of pictures, and, where known, their classes and boxes; see ``ImageList``.

    split   line number and field of the split column for each picture, or None
    """

    names: tuple[str, ...]
    classes: tuple[str, ...] | None
    boxes: tuple[Box, ...] | None
    split: tuple[tuple[int, str], ...] | None = None
    notes: tuple[str, ...] = ()


def read_list(path: Path, with_split: bool = False) -> Rows:
    """Read a list. Its first line names the columns: the picture, and optionally a class and a box.

    with_split   read the column split too; otherwise it is an unused column

    Tabs, commas or semicolons separate the columns. Other columns are ignored, and the notes name them.

    Raises InputError with file and line for a malformed list, and for names outside the list's folder if
    ``limits().listed_anywhere`` is off.
    """
    text = _text(path)
    header, lines = _table(path, text)
    columns = _columns(path, header, with_split)
    if not lines:
        raise InputError(f"{path} lists no pictures; expected a line for each picture under the header.")
    for number, row in lines:
        _check_row(f"{path} line {number}", row, header, columns["image"])
    rows = [row for _, row in lines]
    names = tuple(row[columns["image"]] for row in rows)
    classes = _classes(path, lines, columns["class"]) if "class" in columns else None
    boxes = _boxes(path, rows, [columns[corner] for corner in CORNERS]) if "x1" in columns else None
    split = tuple((number, row[columns["split"]]) for number, row in lines) if "split" in columns else None
    unused = [name for place, name in enumerate(header) if place not in columns.values() and name]
    found = Rows(names, classes, boxes, split)
    return replace(found, notes=_notes(path, unused, found))


def leaves(name: str) -> bool:
    """Whether a name in a list is a path outside the list's folder. Does not resolve symbolic links."""
    path = Path(name)
    return path.is_absolute() or ".." in path.parts


def list_text(columns: Mapping[str, Sequence[Any]]) -> str:
    """The text of a LIST.tsv with these columns, by name."""
    rows = [list(columns), *zip(*columns.values(), strict=True)]
    awkward = any("\r" in str(field) for row in rows for field in row)  # only some versions of csv quote it
    out = io.StringIO()
    writer = csv.writer(
        out, delimiter="\t", lineterminator="\n", quoting=csv.QUOTE_ALL if awkward else csv.QUOTE_MINIMAL
    )
    writer.writerows(rows)
    return out.getvalue()


def _text(path: Path) -> str:
    try:
        check_file(path, "list_bytes")
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read the list {path}: {in_one_line(error)}; expected a UTF-8 text file.") from error
    if b"\0" in data:  # as in UTF-16
        raise InputError(f"cannot read the list {path}: it holds NUL bytes; expected a UTF-8 text file, so save it so.")
    return data.decode("utf-8-sig", errors="surrogateescape")


def _table(path: Path, text: str) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The header, and the non-empty rows with their line numbers."""
    try:
        delimiter = max(DELIMITERS, key=lambda d: len(_known(next(_reader(text, d), []))))
        reader = _reader(text, delimiter)
        return next(reader, []), [(reader.line_num, row) for row in reader if row]
    except csv.Error as error:
        raise InputError(f"cannot read the list {path}: {error}; expected a UTF-8 text file.") from error


def _reader(text: str, delimiter: str) -> Any:
    return csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=delimiter != "\t")


def _known(header: Sequence[str]) -> list[tuple[str, int]]:
    """(column, place) of each field of the header that names one of our columns."""
    plain = (re.sub(r"[\W_]+", "", name).lower() for name in header)
    return [(COLUMNS[name], place) for place, name in enumerate(plain) if name in COLUMNS]


def _columns(path: Path, header: list[str], with_split: bool) -> dict[str, int]:
    known = [(column, place) for column, place in _known(header) if with_split or column != "split"]
    columns = dict(known)
    if "image" not in columns or 0 < len(columns.keys() & set(CORNERS)) < len(CORNERS):
        raise InputError(
            f"{path} starts with {' '.join(header)[:60]!r}; expected a UTF-8 text file with the header {HEADER}; "
            "commas are allowed, and so is image alone, for example the line image,class above the line cats/1.jpg,cat."
        )
    for column in columns:
        if len(places := [place for name, place in known if name == column]) > 1:
            names = " and ".join(repr(header[place][:40]) for place in places)
            raise InputError(f"{path} has several columns for the {column}, {names}; keep one of them.")
    return columns


def _check_row(where: str, row: list[str], header: list[str], image: int) -> None:
    if len(row) != len(header):
        raise InputError(f"{where} has {len(row)} fields; expected {len(header)} as in the header.")
    if not row[image]:
        raise InputError(f"{where} names no picture; put its path in the field {header[image]}.")
    if leaves(row[image]) and not limits().listed_anywhere:
        raise InputError(
            f"{where} names {row[image]!r:.200}, outside of the list's folder; move it there, or allow it "
            "with `cgd-deploy --limit listed_anywhere=yes`."
        )


def _classes(path: Path, lines: list[tuple[int, list[str]]], place: int) -> tuple[str, ...] | None:
    unlabelled = [number for number, row in lines if not row[place]]
    if unlabelled and len(unlabelled) < len(lines):
        raise InputError(f"{path} line {unlabelled[0]} has no class; label every picture or none.")
    return None if unlabelled else tuple(row[place] for _, row in lines)


def _boxes(path: Path, rows: list[list[str]], places: list[int]) -> tuple[Box, ...]:
    left, top, right, bottom = places
    try:
        return tuple((_pixel(r[left]), _pixel(r[top]), _pixel(r[right]), _pixel(r[bottom])) for r in rows)
    except ValueError as error:
        raise InputError(
            f"{path} has a box that is not four whole numbers ({in_one_line(error)}); give pixels x1 y1 x2 y2."
        ) from error


def _pixel(text: str) -> int:
    if abs(number := int(text)) > LARGEST_PIXEL:
        raise ValueError(f"{text[:40]} lies beyond {LARGEST_PIXEL}")
    return number


def _notes(path: Path, unused: list[str], rows: Rows) -> tuple[str, ...]:
    notes = [f"{path}: {counted(unused, 'column')} not used: {some(unused)}."] if unused else []
    first: dict[tuple[str, Box | None], int] = {}
    keys = zip(rows.names, rows.boxes or repeat(None), strict=False)
    again = [(place, kept) for place, key in enumerate(keys) if (kept := first.setdefault(key, place)) != place]
    if again:
        classes = rows.classes or ("",) * len(rows.names)
        torn = [pair for pair in again if classes[pair[0]] != classes[pair[1]]]
        place, kept = (torn or again)[0]
        two = f" as {classes[kept]} and as {classes[place]}" if torn else ""
        notes.append(f"{path}: {counted(again, 'picture')} listed more than once: {rows.names[place]:.200}{two}.")
    return tuple(notes)
