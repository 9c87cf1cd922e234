"""Image lists: a folder, a LIST.tsv, a glob or one picture. Knows paths, classes and boxes, and opens no picture."""

from __future__ import annotations

import csv
import glob
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .errors import InputError, in_one_line
from .files import check_file, sha256_bytes, write_text
from .limits import limits

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm"})

LARGEST_PIXEL = 1 << 31

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class ImageList:
    """Pictures with, where known, their classes and boxes.

    root     folder that relative names start from
    names    paths as written in the list
    classes  one label a picture, or None
    boxes    x1, y1, x2, y2 in pixels a picture, or None
    notes    a sentence each on what the reader left out or chose; no part of what the list is
    """

    root: Path
    names: tuple[str, ...]
    classes: tuple[str, ...] | None = None
    boxes: tuple[Box, ...] | None = None
    notes: tuple[str, ...] = field(default=(), compare=False)

    def __repr__(self) -> str:
        classes = f" of {len(set(self.classes))} classes" if self.classes else ""
        return f"<ImageList {self.root}: {len(self)} pictures{classes}{', with boxes' if self.boxes else ''}>"

    def __len__(self) -> int:
        return len(self.names)

    def path(self, index: int) -> Path:
        """Where the picture lies: below root, or below images/ beside the list."""
        path = self.root / self.names[index]
        beside = self.root / "images" / self.names[index]
        return beside if not path.exists() and beside.exists() else path

    @property
    def paths(self) -> list[Path]:
        """``path`` of every picture."""
        return [self.path(index) for index in range(len(self))]

    def box(self, index: int) -> Box | None:
        """The picture's box, or None if the list has no boxes."""
        return self.boxes[index] if self.boxes else None

    def subset(self, indices: Iterable[int]) -> ImageList:
        """The pictures at ``indices``, in that order."""
        chosen = list(indices)
        return replace(
            self,
            names=tuple(self.names[i] for i in chosen),
            classes=tuple(self.classes[i] for i in chosen) if self.classes else None,
            boxes=tuple(self.boxes[i] for i in chosen) if self.boxes else None,
        )

    def sample(self, count: int) -> ImageList:
        """``count`` pictures spread evenly over the list (all of them if it is shorter)."""
        if count >= len(self):
            return self
        return self.subset(round(i * (len(self) - 1) / max(count - 1, 1)) for i in range(count))

    def split_classes(self) -> tuple[ImageList, ImageList]:
        """First half of the classes for training, second half for testing, classes in natural order."""
        if self.classes is None:
            raise InputError(
                f"{self.root} has no classes; expected a folder a class or a LIST.tsv with a class column."
            )
        order = sorted(set(self.classes), key=lambda c: (not c.isdecimal(), int(c) if c.isdecimal() else 0, c))
        first = set(order[: len(order) // 2])
        return (
            self.subset(i for i, c in enumerate(self.classes) if c in first),
            self.subset(i for i, c in enumerate(self.classes) if c not in first),
        )

    def check_present(self, purpose: str, option: str) -> None:
        """Raise InputError that names the option for other pictures if every file is gone."""
        if self.names and not any(path.is_file() for path in self.paths):
            raise InputError(
                f"all {len(self)} {purpose} pictures are gone, {self.path(0)} for one; "
                f"pass {option} FOLDER or LIST.tsv."
            )

    @property
    def sha256(self) -> str:
        """Of names, classes and boxes, not of the pixels or of where the folder lies."""
        return sha256_bytes(self._tsv(self.names).encode(errors="surrogateescape"))

    @property
    def sizes(self) -> list[int]:
        """Bytes of each file, -1 for a file that is not there."""
        return [size for size, _ in map(_size_and_time, self.paths)]

    @property
    def files_sha256(self) -> str:
        """Of each file's name, size and modification time: changes when a picture is replaced, and reads none."""
        files = [(name, *_size_and_time(path)) for name, path in zip(self.names, self.paths, strict=True)]
        return sha256_bytes(json.dumps(files).encode())

    def write(self, path: str | Path) -> Path:
        """Write a LIST.tsv with absolute paths."""
        return write_text(path, self._tsv([str(p.absolute()) for p in self.paths]))

    def _tsv(self, names: Sequence[str]) -> str:
        columns: list[Sequence[Any]] = [names, self.classes or [""] * len(self)]
        header = ["image", "class"]
        if self.boxes:
            header += ["x1", "y1", "x2", "y2"]
            columns += list(zip(*self.boxes, strict=True))
        out = io.StringIO()
        writer = csv.writer(out, delimiter="\t", lineterminator="\n")
        writer.writerow(header)
        writer.writerows(zip(*columns, strict=True))
        return out.getvalue()

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and strings, with an absolute root, for a checkpoint."""
        return {
            "root": str(self.root.absolute()),
            "names": list(self.names),
            "classes": list(self.classes) if self.classes else None,
            "boxes": [list(box) for box in self.boxes] if self.boxes else None,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ImageList:
        """The inverse of ``to_dict``."""
        boxes = data.get("boxes")
        return cls(
            Path(data["root"]),
            tuple(data["names"]),
            tuple(data["classes"]) if data.get("classes") else None,
            tuple((b[0], b[1], b[2], b[3]) for b in boxes) if boxes else None,
        )


def read_images(source: str | Path) -> ImageList:
    """Read a folder (a folder a class, or flat), a LIST.tsv, a glob pattern or a single picture.

    Raises InputError where nothing usable is there.
    """
    path = Path(source)
    if path.is_dir():
        return _read_folder(path)
    if path.suffix.lower() == ".tsv":
        return _read_tsv(path)
    if path.is_file():
        return ImageList(path.parent, (path.name,))
    found = sorted(name for name in glob.glob(str(source), recursive=True) if Path(name).suffix.lower() in SUFFIXES)
    if not found:
        raise InputError(f"no pictures at {source}: expected a folder, a LIST.tsv, a glob pattern or a picture.")
    return ImageList(Path(), tuple(found))


def leaves(name: str) -> bool:
    """Whether a name in a list, taken as a path, leaves the list's folder; symbolic links are not looked at."""
    path = Path(name)
    return path.is_absolute() or ".." in path.parts


def _size_and_time(path: Path) -> tuple[int, int]:
    """Bytes, and nanoseconds when they were last written; -1 and -1 for a file that is not there."""
    try:
        there = path.stat()
    except OSError:
        return -1, -1
    return there.st_size, there.st_mtime_ns


def _read_folder(folder: Path) -> ImageList:
    if (folder / "images.tsv").is_file():
        return _read_tsv(folder / "images.tsv")
    names = sorted(
        str(p.relative_to(folder)) for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file()
    )
    if not names:
        raise InputError(f"{folder} holds no pictures ({', '.join(sorted(SUFFIXES))}); pass a folder that does.")
    in_class_folders = all(len(Path(name).parts) > 1 for name in names)
    return ImageList(folder, tuple(names), tuple(Path(name).parts[0] for name in names) if in_class_folders else None)


def _read_tsv(path: Path) -> ImageList:
    try:
        check_file(path, "list_bytes")
        text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")
        reader = csv.reader(io.StringIO(text), delimiter="\t")
        header = next(reader, [])
        lines = [(reader.line_num, row) for row in reader if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"cannot read the list {path}: {error}; expected a UTF-8 text file.") from error
    with_boxes = header == ["image", "class", "x1", "y1", "x2", "y2"]
    if not with_boxes and header != ["image", "class"]:
        raise InputError(
            f"{path} starts with {' '.join(header)[:60]!r}; "
            "expected a UTF-8 text file with the header image<TAB>class[<TAB>x1<TAB>y1<TAB>x2<TAB>y2]."
        )
    if not lines:
        raise InputError(f"{path} lists no pictures; expected a line a picture under the header.")
    for number, row in lines:
        if len(row) != len(header):
            raise InputError(f"{path} line {number} has {len(row)} fields; expected {len(header)} as in the header.")
        if not row[0]:
            raise InputError(f"{path} line {number} names no picture; put its path in the first field.")
        if leaves(row[0]) and not limits().listed_anywhere:
            raise InputError(
                f"{path} line {number} names {row[0]!r:.200}, outside of the list's folder; move it there, or allow it "
                "with `cgd-deploy --limit listed_anywhere=yes`."
            )
    rows = [row for _, row in lines]
    try:
        boxes = tuple((_pixel(r[2]), _pixel(r[3]), _pixel(r[4]), _pixel(r[5])) for r in rows) if with_boxes else None
    except ValueError as error:
        raise InputError(
            f"{path} has a box that is not four whole numbers ({in_one_line(error)}); give pixels x1 y1 x2 y2."
        ) from error
    unlabelled = [number for number, row in lines if not row[1]]
    if unlabelled and len(unlabelled) < len(lines):
        raise InputError(f"{path} line {unlabelled[0]} has no class; label every picture or none.")
    classes = None if unlabelled else tuple(row[1] for row in rows)
    return ImageList(path.parent, tuple(row[0] for row in rows), classes, boxes)


def _pixel(text: str) -> int:
    if abs(number := int(text)) > LARGEST_PIXEL:
        raise ValueError(f"{text[:40]} lies beyond {LARGEST_PIXEL}")
    return number
