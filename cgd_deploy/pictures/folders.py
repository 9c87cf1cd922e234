"""Finds files below a folder or at a glob pattern. Follows no link in a circle; skips leftovers of systems and tools.

Knows no format.
"""

from __future__ import annotations

import glob
import os
import stat
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import NamedTuple, TypeAlias

from ..errors import InputError

LEFTOVERS = frozenset(
    {
        "#recycle",
        "#snapshot",
        "$recycle.bin",
        "@eadir",
        "@recycle",
        "__macosx",
        "__pycache__",
        "desktop.ini",
        "ehthumbs.db",
        "icon\r",
        "lost+found",
        "network trash folder",
        "recycler",
        "system volume information",
        "temporary items",
        "thumbs.db",
    }
)
"""Names in lower case. Names that start with a dot always count as leftovers."""

NAMED = 2
"""The most names that a note gives as examples."""

Identity: TypeAlias = tuple[int, int] | str


class File(NamedTuple):
    """A name of a file.

    name      the path, relative to the walked folder or as the caller gave it
    identity  equal for two names of the same file
    linked    whether the name is a symbolic link, or leads through one
    """

    name: str
    identity: Identity
    linked: bool


@dataclass
class Walk:
    """The files below a folder, with names relative to the folder.

    files     regular files
    again     further names of folders, each with the name by which the folder was read
    circular  links to a folder that contains the walked folder
    dangling  broken links
    closed    folders that cannot be read
    special   pipes, sockets and devices
    """

    files: list[File] = field(default_factory=list)
    again: dict[str, str] = field(default_factory=dict)
    circular: list[str] = field(default_factory=list)
    dangling: list[str] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)
    special: list[str] = field(default_factory=list)

    def left_out(self) -> list[str]:
        """Notes on everything that was not read, with the reason, without full stops."""
        told = [f"{counted(self.again, 'folder')} not read again: {self._second()}"] if self.again else []
        for names, thing, what in (
            (self.circular, "link", "not followed to a folder above"),
            (self.closed, "folder", "unreadable"),
            (self.special, "pipe", "not read"),
        ):
            told += [f"{counted(names, thing)} {what}: {some(names)}"] if names else []
        return told + broken(self.dangling)

    def _second(self) -> str:
        return some([f"{second} is the same as {first}" for second, first in self.again.items()])


def broken(dangling: Sequence[str]) -> list[str]:
    """A note on broken links, if there are any."""
    return [f"{counted(dangling, 'link')} broken: {some(dangling)}"] if dangling else []


def counted(things: Collection[object], thing: str) -> str:
    """The number of things with a verb: "1 file was", "2 files were"."""
    return f"{len(things)} {thing} was" if len(things) == 1 else f"{len(things)} {thing}s were"


def some(names: Sequence[str]) -> str:
    """The first names, and the number of further names."""
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


def is_leftover(name: str) -> bool:
    """Whether a system or tool left a file or folder of this name: "._a.jpg", "__MACOSX", "Thumbs.db"."""
    return name.startswith((".", "~$")) or name.lower() in LEFTOVERS


def walk(folder: Path) -> Walk:
    """Find all files below ``folder`` except leftovers. ``folder`` itself may have any name.

    Reads each folder once: by its own name if it lies below ``folder``, else by the first link that leads to it.
    Raises InputError if ``folder`` cannot be read.
    """
    found = Walk()
    above = {_identity(parent) for parent in folder.resolve().parents}
    read: dict[Identity, str] = {}
    folders, links = deque([""]), deque[str]()
    while folders or links:
        name = folders.popleft() if folders else links.popleft()
        identity = _identity(folder / name)
        if identity in above:
            found.circular.append(name)
        elif identity in read:
            found.again[name] = read[identity] or str(folder)
        else:
            read[identity] = name
            _read(folder, name, found, folders, links)
    return found


def matching(pattern: str) -> tuple[list[File], list[str]]:
    """The files at a glob pattern, sorted by name, and notes on what was left out.

    Skips leftovers that the pattern does not name. The longest start of the pattern that is a folder is not a pattern:
    "[2024] cars/*.jpg" finds files in the folder "[2024] cars".
    """
    folder, wanted = _literal(pattern)
    if "**" in wanted:  # glob would follow links in circles
        found = walk(Path(folder))
        files = [file for file in found.files if _matches(file.name.split(os.sep), wanted)]
        return sorted(file._replace(name=os.path.join(folder, file.name)) for file in files), found.left_out()
    names = sorted(glob.glob(os.path.join(glob.escape(folder), *wanted)))
    names = [name for name in names if not any(is_leftover(p) and p not in wanted for p in _below(folder, name))]
    left_out = broken([name for name in names if not os.path.exists(name)])
    if names and all(map(os.path.isdir, names)):
        left_out.append("it leads to folders only, so end it in /*")
    return reached(name for name in names if os.path.isfile(name)), left_out


def once(files: Sequence[File]) -> tuple[list[int], list[tuple[int, int]]]:
    """Indices of one name for each file; and for each further name, its index and the index of the kept name.

    Keeps the first name without a link.
    """
    first: dict[Identity, int] = {}
    for place in sorted(range(len(files)), key=lambda place: files[place].linked):
        first.setdefault(files[place].identity, place)
    places = [first[file.identity] for file in files]
    kept = [place for place, kept in enumerate(places) if place == kept]
    return kept, [(place, kept) for place, kept in enumerate(places) if place != kept]


def reached(paths: Iterable[str]) -> list[File]:
    """A File for each path. A path that leads nowhere equals no other path."""
    through_link = cache(lambda folder: os.path.realpath(folder) != os.path.abspath(folder))  # is slow
    return [
        File(path, _identity(Path(path)), os.path.islink(path) or through_link(os.path.dirname(path) or "."))
        for path in paths
    ]


def _literal(pattern: str) -> tuple[str, list[str]]:
    """The longest folder that a pattern starts with, and the parts behind it."""
    parts = pattern.split(os.sep)
    for count in range(len(parts) - 1, 0, -1):
        if os.path.isdir(folder := os.sep.join(parts[:count]) or os.sep):
            return folder, parts[count:]
    return "", parts


def _matches(parts: list[str], wanted: list[str]) -> bool:
    if not wanted:
        return not parts
    if wanted[0] == "**":
        return any(_matches(parts[count:], wanted[1:]) for count in range(len(parts) + 1))
    return bool(parts) and fnmatchcase(parts[0], wanted[0]) and _matches(parts[1:], wanted[1:])


def _below(folder: str, name: str) -> tuple[str, ...]:
    return Path(os.path.relpath(name, folder or ".")).parts


def _read(folder: Path, name: str, found: Walk, folders: deque[str], links: deque[str]) -> None:
    try:
        entries = sorted(_entries(folder / name), key=lambda entry: entry.name)
    except OSError as error:
        if not name:
            raise InputError(f"cannot read the folder {folder} ({error.strerror}); make it readable.") from error
        found.closed.append(name)
        return
    for entry in entries:
        below = os.path.join(name, entry.name)
        try:
            there = entry.stat()
        except OSError:
            found.dangling.append(below)
            continue
        if stat.S_ISDIR(there.st_mode):
            (links if entry.is_symlink() else folders).append(below)
        elif stat.S_ISREG(there.st_mode):
            found.files.append(File(below, _identity(folder / below, there), entry.is_symlink()))
        else:
            found.special.append(below)


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        yield from (entry for entry in entries if not is_leftover(entry.name))


def _identity(path: Path, there: os.stat_result | None = None) -> Identity:
    """Device and file number; the resolved path for a missing file and a file without a number."""
    with suppress(OSError):
        there = there or path.stat()
    return (there.st_dev, there.st_ino) if there and there.st_ino else os.path.realpath(path)
