"""How an index names its pictures, so that they are found from any folder. Opens no file.

Relative names start from the index's own folder, as in a LIST.tsv. They are the default: they stay right when index and
pictures move together, and they reveal nothing about the machine. Absolute names stay right when only the index moves.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from ..errors import InputError

RELATIVE, ABSOLUTE = RULES = "relative", "absolute"


def check_paths_are(paths_are: str) -> None:
    """Raise InputError unless ``paths_are`` is "relative" or "absolute"."""
    if paths_are not in RULES:
        raise InputError(f"paths={paths_are!r} is unknown; expected one of {', '.join(RULES)}.")


def index_names(paths: Iterable[str], folder: Path, paths_are: str) -> list[str]:
    """The names that an index in ``folder`` stores; ``paths`` can be opened from the current folder."""
    check_paths_are(paths_are)
    return [os.path.abspath(path) if paths_are == ABSOLUTE else os.path.relpath(path, folder) for path in paths]


def paths_from_here(names: list[str], folder: Path, paths_are: str | None) -> list[str]:
    """The inverse of ``index_names``: relative paths inside the current folder, absolute paths outside.

    Release 0.1.0 stored paths as the user gave them, without ``paths_are``; they come back unchanged. Raises ValueError
    for an unknown value of ``paths_are``.
    """
    if paths_are is None:
        return names
    if paths_are not in RULES:
        raise ValueError(f"paths_are is {paths_are!r:.60}")

    @cache  # a gallery of a million pictures has few folders
    def prefix(name: str) -> str:
        path = os.path.normpath(os.path.join(folder, name))
        path = os.path.abspath(path) if path.startswith(os.pardir) else path
        return "" if path == os.curdir else os.path.join(path, "")

    return [prefix(name) + picture for name, picture in map(os.path.split, names)]
