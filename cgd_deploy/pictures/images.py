"""Reads folders, lists, glob patterns and pictures as image lists. Knows paths, classes and boxes; decodes nothing."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

from .. import formats
from ..errors import InputError
from ..files import sha256_bytes, write_text
from ..limits import limits
from . import folders, lists
from .folders import File, counted, some
from .lists import Box, Rows, list_text, read_list

KINDS = 5
"""The most kinds of files that a note names."""

OURS = (".cgd", ".tsv")
"""Suffixes of files that cgd-deploy writes beside pictures."""

Source: TypeAlias = str | Path


@dataclass(frozen=True)
class ImageList:
    """Pictures, with their classes and boxes where known. ``read_images`` makes one.

    root     folder that relative names start from
    names    paths as written in the list
    classes  a label for each picture, or None
    boxes    x1, y1, x2, y2 in pixels for each picture, or None
    notes    sentences about what the reader left out or chose; equality and checksums ignore them

    Example:

        from cgd_deploy import read_images

        images = read_images("photos")
        few = images.sample(2)
        print(len(images), few.paths, few.classes)
        few.write("few.tsv")
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
        """The path of a picture: below ``root``, or below images/ beside the list if it exists only there."""
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
        """Split by class: the first half for training, the second half for testing, classes in natural order.

        Raises InputError for a list without classes.
        """
        if self.classes is None:
            raise InputError(
                f"{self.root} has no classes; expected a folder for each class, or a LIST.tsv with a class column."
            )
        order = sorted(set(self.classes), key=lambda c: (not c.isdecimal(), int(c) if c.isdecimal() else 0, c))
        first = set(order[: len(order) // 2])
        return (
            self.subset(i for i, c in enumerate(self.classes) if c in first),
            self.subset(i for i, c in enumerate(self.classes) if c not in first),
        )

    def check_present(self, purpose: str, option: str) -> None:
        """Raise InputError if no picture exists. The message names ``option``, which takes other pictures."""
        if self.names and not any(path.is_file() for path in self.paths):
            raise InputError(
                f"all {len(self)} {purpose} pictures are gone, {self.path(0)} for one; "
                f"pass {option} FOLDER or LIST.tsv."
            )

    @property
    def sha256(self) -> str:
        """Checksum of names, classes and boxes. Pixels and the place of the folder do not count."""
        return sha256_bytes(self._tsv(self.names).encode(errors="surrogateescape"))

    @property
    def sizes(self) -> list[int]:
        """Bytes of each file, -1 for a missing file."""
        return [size for size, _ in map(_size_and_time, self.paths)]

    @property
    def files_sha256(self) -> str:
        """Checksum of each file's name, size and modification time. It changes with a picture, and reads no picture."""
        files = [(name, *_size_and_time(path)) for name, path in zip(self.names, self.paths, strict=True)]
        return sha256_bytes(json.dumps(files).encode())

    def write(self, path: str | Path) -> Path:
        """Write a LIST.tsv with absolute paths."""
        return write_text(path, self._tsv([str(p.absolute()) for p in self.paths]))

    def _tsv(self, names: Sequence[str]) -> str:
        corners = list(zip(*self.boxes, strict=True)) if self.boxes else []
        classes = self.classes or [""] * len(self)
        return list_text({"image": names, "class": classes, **dict(zip(lists.CORNERS, corners, strict=False))})

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


def read_images(source: Source | Sequence[Source]) -> ImageList:
    """Read a folder, a list, a glob pattern or a picture, or several of these in order.

    A folder is flat, or has a folder for each class; all folders below it are read, except leftovers of systems and
    tools. A list is a LIST.tsv, or a .csv or .txt file with a header. A picture is recognised by its suffix, else by
    its first bytes. A file with several names is read once. Several sources have classes only if each source has. The
    notes of the result say what was left out.

    Raises InputError for a source without usable pictures, and for several sources of which only some have boxes.

    Example:

        from cgd_deploy import read_images

        images = read_images(["photos", "photos/*.jpg"])
        print(images.notes)
    """
    if not isinstance(source, (str, Path)):
        return _joined(source)
    path = Path(source := expanded(source))
    if os.path.isdir(path):
        return _read_folder(path)
    if path.suffix.lower() in lists.SUFFIXES:
        return listed_images(path, read_list(path))
    return _read_picture(path) if os.path.isfile(path) else _read_pattern(str(source))


def listed_images(path: Path, rows: Rows) -> ImageList:
    """The pictures in the ``rows`` of the list at ``path``."""
    return ImageList(path.parent, rows.names, rows.classes, rows.boxes, _in_one_line(rows.notes))


def expanded(source: Source) -> Source:
    """``source``, with a leading ~ replaced by the home folder, unless a file or folder of that name exists here.

    Raises InputError for an unknown user.
    """
    first, *_ = (*Path(source).parts, "")
    if not first.startswith("~") or os.path.exists(first):
        return source
    try:
        return Path(source).expanduser()
    except RuntimeError as error:
        raise InputError(f"{source} names a home folder that is not known here; pass the whole path.") from error


def _size_and_time(path: Path) -> tuple[int, int]:
    """Bytes and modification time in nanoseconds; -1 and -1 for a missing file."""
    try:
        there = path.stat()
    except OSError:
        return -1, -1
    return there.st_size, there.st_mtime_ns


def _read_folder(folder: Path) -> ImageList:
    if (folder / "images.tsv").is_file():
        return read_images(folder / "images.tsv")
    found = folders.walk(folder)
    pictures, others = _told_apart(folder, found.files)
    notes = [*found.left_out(), *_not_read(others)]
    if not pictures:
        told = "; ".join([f"no pictures in one of the formats {_formats()}", *notes])
        raise InputError(f"{folder} holds {told}; pass a folder that does.")
    names = sorted(file.name for file in pictures)
    stray = [name for name in names if os.sep not in name]
    if 0 < len(stray) < len(names):
        notes.append(f"{counted(stray, 'picture')} found outside of class folders, so none has a class: {some(stray)}")
    classes = None if stray else tuple(name.split(os.sep)[0] for name in names)
    images = ImageList(folder, tuple(names), classes, notes=_notes(folder, notes))
    return _once(images, sorted(pictures), folder)


def _read_picture(path: Path) -> ImageList:
    try:
        known = formats.is_picture(path, limits().formats)
    except OSError as error:
        raise InputError(f"cannot read {path} ({error.strerror}); make it readable.") from error
    if not known:
        raise InputError(
            f"{path} is no picture in one of the formats {_formats()}{_allow([path.suffix.lower()])}, and no list "
            f"({', '.join(lists.SUFFIXES)}); pass a picture, a folder, a list or a glob pattern."
        )
    return ImageList(path.parent, (path.name,))


def _read_pattern(pattern: str) -> ImageList:
    files, left_out = folders.matching(pattern)
    pictures, others = _told_apart(Path(), files)
    notes = [*left_out, *_not_read(others)]
    if not pictures:
        told = "; ".join([f"no pictures at {pattern}", *notes])
        raise InputError(f"{told}: expected a folder, a LIST.tsv, a glob pattern such as 'photos/*.jpg' or a picture.")
    images = ImageList(Path(), tuple(file.name for file in pictures), notes=_notes(pattern, notes))
    return _once(images, pictures, pattern)


def _joined(sources: Sequence[Source]) -> ImageList:
    parts = [read_images(source) for source in sources]
    if len(parts) < 2:
        if not parts:
            raise InputError("there is nothing to read; pass pictures, folders, lists or glob patterns.")
        return parts[0]
    with_boxes = [bool(part.boxes) for part in parts]
    if any(with_boxes) and not all(with_boxes):
        raise InputError(
            f"{sources[with_boxes.index(True)]} has boxes and {sources[with_boxes.index(False)]} has none; "
            "read the two one after the other."
        )
    images = ImageList(
        Path(),
        tuple(str(path) for part in parts for path in part.paths),
        tuple(c for part in parts for c in part.classes or ()) if all(part.classes for part in parts) else None,
        tuple(box for part in parts for box in part.boxes or ()) or None,
        tuple(note for part in parts for note in part.notes),
    )
    # Two boxes of one file are two pictures.
    return images if images.boxes else _once(images, folders.reached(images.names), "the pictures")


def _once(images: ImageList, files: Sequence[File], source: Source) -> ImageList:
    """The list without further names of a file; ``files`` are the pictures of the list."""
    kept, again = folders.once(files)
    if not again:
        return images
    classes = images.classes or ("",) * len(images)
    torn = [(second, first) for second, first in again if classes[second] != classes[first]]
    second, first = (torn or again)[0]
    note = f"{counted(again, 'name')} not read again: {images.names[second]} is the same file as {images.names[first]}"
    if torn:
        note += f", which counts as {classes[first]} and not as {classes[second]}"
    return replace(images.subset(kept), notes=(*images.notes, *_notes(source, [note])))


def _told_apart(root: Path, files: Iterable[File]) -> tuple[list[File], list[File]]:
    """Pictures, and other files except our own."""
    pictures, others, allowed = [], [], limits().formats
    for file in files:
        try:
            known = formats.is_picture(root / file.name, allowed)
        except OSError:
            known = False
        if known:
            pictures.append(file)
        elif not file.name.lower().endswith(OURS):
            others.append(file)
    return pictures, others


def _not_read(others: Sequence[File]) -> list[str]:
    """A note that counts files that are not pictures, by kind."""
    if not others:
        return []
    kinds = Counter(Path(file.name).suffix.lower() for file in others)
    told = [f"{count} {kind[:20] or 'without a suffix'}" for kind, count in kinds.most_common(KINDS)]
    if more := len(others) - sum(count for _, count in kinds.most_common(KINDS)):
        told.append(f"{more} of other kinds")
    return [f"{counted(others, 'file')} not read: {', '.join(told)}{_allow(kinds)}"]


def _allow(suffixes: Collection[str]) -> str:
    """The option that lets a plugin of Pillow read files with these suffixes, if there is one."""
    more = formats.readable_with(suffixes)
    wanted = ",".join(dict.fromkeys([*limits().formats, *more]))
    return f" (`cgd-deploy --limit formats={wanted}` reads {' and '.join(more)})" if more else ""


def _formats() -> str:
    return ", ".join(formats.readable(limits().formats))


def _notes(source: Source, notes: Iterable[str]) -> tuple[str, ...]:
    return _in_one_line(f"{source}: {note}." for note in notes)


def _in_one_line(notes: Iterable[str]) -> tuple[str, ...]:
    return tuple(" ".join(note.split()) for note in notes)
