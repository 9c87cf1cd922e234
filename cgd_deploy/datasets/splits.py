"""Reads data sets that folders or the split column of a list divide: train, val and test; query and gallery.

Reads lists and names of folders and files, and opens no picture.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from functools import cache
from pathlib import Path, PurePath

from ..errors import InputError
from ..pictures.images import ImageList, listed_images, read_images
from ..pictures.lists import read_list
from ..search.retrieval import RECALL_AT
from .evaluation import Evaluation

REID_RECALL_AT = (1, 5, 10)
JUNK = "-1"
"""The identity of pictures that Market-1501 leaves out, because its detector cut them badly."""
NO_PART = frozenset({"gt_bbox", "gt_query"})
"""Folders of Market-1501 that are not part of its protocol."""


class Role(str, Enum):
    """The purpose of a folder, or of a line in a list."""

    TRAINING = "training"
    VALIDATION = "validation"
    TEST = "test"
    QUERY = "query"
    GALLERY = "gallery"


WORDS = {
    "train": Role.TRAINING,
    "training": Role.TRAINING,
    "trn": Role.TRAINING,
    "val": Role.VALIDATION,
    "valid": Role.VALIDATION,
    "validation": Role.VALIDATION,
    "dev": Role.VALIDATION,
    "eval": Role.VALIDATION,
    "evaluation": Role.VALIDATION,
    "test": Role.TEST,
    "testing": Role.TEST,
    "tst": Role.TEST,
    "query": Role.QUERY,
    "queries": Role.QUERY,
    "probe": Role.QUERY,
    "gallery": Role.GALLERY,
}
NAME = re.compile(
    rf"(?:(?:bounding_box|images?|imgs?|pictures|data|cars)_?)?({'|'.join(WORDS)})(?:_?(?:set|data|images?|imgs?|split|\d{{4}}))?"
)
"""A folder's name or a split in lower case, words joined by "_": "train", "bounding_box_train", "test_set"."""
SIGHTING = re.compile(r"(-?\d+)_c(\d+)")
"""The start of a re-identification picture's name: identity and camera, as in 0002_c1s1_000451_03.jpg."""


@dataclass(frozen=True)
class Parts:
    """The training and test parts of a data set; None for a missing part.

    name     see ``layouts.Dataset``
    notes    sentences about choices that the reader made for the user
    lacking  the error for the caller who needs the missing part
    """

    name: str
    training: ImageList | None
    testing: Evaluation | None
    notes: tuple[str, ...] = ()
    lacking: str = ""

    def trained(self) -> ImageList:
        """The training pictures; raises InputError if there are none."""
        if self.training is None:
            raise InputError(self.lacking)
        return self.training

    def tested(self) -> Evaluation:
        """The test pictures; raises InputError if there are none."""
        if self.testing is None:
            raise InputError(self.lacking)
        return self.testing


def read_split(folder: Path, boxes: bool = True) -> Parts | None:
    """The parts of a data set that folders divide; None if no names of folders show a split.

    Upper and lower case in folder names do not matter, see ``WORDS`` and ``NAME``. The test part is query/ against
    gallery/, or against test/ if there is no gallery/. Without query/ the test part is test/, or else val/. Pictures
    lie in one folder per class, or their names give identity and camera (Market-1501, DukeMTMC-reID, VeRi-776).

    Raises InputError for two folders of one part, for folders with pictures beside the parts, and for parts without
    classes.
    """
    found = _roles(folder)
    names = [path.name for paths in found.values() for path in paths]
    if not _divides(found):
        return _lone_part(folder, found, boxes)
    for role, paths in found.items():
        if len(paths) > 1:
            raise InputError(
                f"{folder} has {_folders(names)}, and several of them are for {role.value}; keep one of these."
            )
    if beside := _beside(folder, names):
        raise InputError(
            f"{folder} has {_folders(beside)} beside {_folders(names)}, and no split has such a part; move the "
            "pictures elsewhere, or list pictures and classes in a LIST.tsv."
        )
    return _folder_parts(folder, {role: paths[0] for role, paths in found.items()}, boxes)


def read_listed(path: Path, boxes: bool = True) -> Parts | ImageList:
    """The parts of a list with a split column; all pictures of a list without one.

    The values are the words of ``read_split``, and the parts are chosen in the same way. Several words for one part
    may stand in one list. Pictures may lack classes.

    Raises InputError with file and line for other values, and for queries without a gallery or the reverse.
    """
    rows = read_list(path, with_split=True)
    images = listed_images(path, rows)
    if not boxes:
        images = replace(images, boxes=None)
    if rows.split is None:
        return images
    given = [_row_role(path, line, word) for line, word in rows.split]
    part, kept = _sighted(path, images)
    roles = [given[n] for n in kept]
    first = {role: rows.split[kept[roles.index(role)]] for role in Role if role in roles}
    asked, searched = _tested(first)
    if searched is None:
        if asked:
            raise InputError(_lacking(path, first[asked], "gallery"))
        if Role.GALLERY in first:
            raise InputError(_lacking(path, first[Role.GALLERY], "query"))
        return Parts("list", part.images, None, lacking=_lacking(path, first[Role.TRAINING], "test or val"))
    training = part.subset(n for n, role in enumerate(roles) if role is Role.TRAINING).images
    tested = [n for n, role in enumerate(roles) if role in (asked, searched)]
    testing = part.subset(tested).evaluation(tuple(roles[n] is searched for n in tested) if asked else None)
    names = {role: f"the {role.value} split" for role in first}
    return _parts("list", path, names, training or None, testing, _lacking(path, first[searched], "train"))


def only_folder(images: ImageList) -> Path | None:
    """The one inner folder that holds all pictures of a folder; None if there is no such folder, or for a list."""
    labels = set(images.classes or ())
    inner = images.root / labels.pop() if len(labels) == 1 else None
    return inner if inner and inner.is_dir() and not (images.root / "images.tsv").is_file() else None


@dataclass(frozen=True)
class _Part:
    """Pictures, and their cameras if the names give them."""

    images: ImageList
    cameras: tuple[str, ...] | None

    def subset(self, indices: Iterable[int]) -> _Part:
        chosen = list(indices)
        cameras = tuple(self.cameras[n] for n in chosen) if self.cameras else None
        return _Part(self.images.subset(chosen), cameras)

    def evaluation(self, in_gallery: tuple[bool, ...] | None = None) -> Evaluation:
        return Evaluation(self.images, in_gallery, REID_RECALL_AT if self.cameras else RECALL_AT, self.cameras)


def _roles(folder: Path) -> dict[Role, list[Path]]:
    """The folders that have a role, in the order of ``Role``."""
    try:
        with os.scandir(folder) as entries:
            named = sorted((entry.name, _role(entry.name)) for entry in entries if entry.is_dir())
    except OSError:
        return {}  # read_images reports the error
    roles = {role: [folder / name for name, other in named if other is role] for role in Role}
    return {role: paths for role, paths in roles.items() if paths}


@cache
def _role(name: str) -> Role | None:
    match = NAME.fullmatch(re.sub(r"[-. ]", "_", name.casefold()))
    return WORDS[match[1]] if match else None


def _row_role(path: Path, line: int, word: str) -> Role:
    if role := _role(word.strip()):
        return role
    has = f"the split {word!r:.40}" if word.strip() else "no split"
    raise InputError(
        f"{path} line {line} has {has}; expected train, val, test, query or gallery, so correct it, or rename the "
        "column if it means something else."
    )


def _lacking(path: Path, first: tuple[int, str], wanted: str) -> str:
    """The error about a part that a list lacks; ``first`` is the first line of a part that the list has."""
    line, word = first
    return (
        f"{path} line {line} has the split {word.strip()}, but no line has the split {wanted}; add such lines, or "
        "remove the split column to use all lines."
    )


def _tested(found: Collection[Role]) -> tuple[Role | None, Role | None]:
    """The roles of the queries and of the gallery; (None, role) if the pictures of one role search each other.

    The second is None if there is no test part, or no gallery for the queries.
    """
    asked = Role.QUERY if Role.QUERY in found else None
    wanted = (Role.GALLERY, Role.TEST) if asked else (Role.TEST, Role.VALIDATION)
    return asked, next((role for role in wanted if role in found), None)


def _divides(found: Mapping[Role, object]) -> bool:
    pairs = (
        (Role.TRAINING, Role.TEST),
        (Role.TRAINING, Role.VALIDATION),
        (Role.TRAINING, Role.QUERY),
        (Role.VALIDATION, Role.TEST),
        (Role.QUERY, Role.GALLERY),
        (Role.QUERY, Role.TEST),
    )
    return any(one in found and other in found for one, other in pairs)


def _lone_part(folder: Path, found: Mapping[Role, list[Path]], boxes: bool) -> Parts | None:
    """train/, val/ or test/ alone, if it holds class folders; if it holds pictures, it may be a class itself."""
    paths = [path for role, paths in found.items() if role not in (Role.QUERY, Role.GALLERY) for path in paths]
    if len(paths) != 1 or not _has_class_folders(paths[0]):
        return None
    if beside := _beside(folder, [paths[0].name]):
        raise InputError(
            f"{folder} has {paths[0].name}/ with class folders in it beside {_folders(beside)}, so it may be a class "
            "or a part of a split; move the others elsewhere, or list pictures and classes in a LIST.tsv."
        )
    part = _read_part(paths[0], boxes)
    if Role.TRAINING not in found:
        return Parts("folder", None, _everybody(part), lacking=_without_training(folder))
    root = part.images.root
    lacking = f"{folder} has {root.name}/ but no test part; add a folder test/ or val/, or pass {root}."
    return Parts("folder", part.images, None, lacking=lacking)


def _has_class_folders(path: Path) -> bool:
    try:
        return read_images(path).classes is not None
    except InputError:
        return False


def _beside(folder: Path, parts: Iterable[str]) -> list[str]:
    """Folders that hold pictures and are not a part."""
    try:
        names = read_images(folder).names
    except InputError:  # a list in one of the parts names pictures elsewhere
        return []
    found = {PurePath(name).parts[0] for name in names if len(PurePath(name).parts) > 1}
    return sorted(found.difference(parts, NO_PART))


def _folder_parts(folder: Path, paths: Mapping[Role, Path], boxes: bool) -> Parts:
    asked, searched = _tested(paths)
    if searched is None:
        raise InputError(f"{folder} has {paths[Role.QUERY].name}/ but no gallery; add a folder gallery/.")
    training = _read_part(paths[Role.TRAINING], boxes).images if Role.TRAINING in paths else None
    if training and training.classes is None:
        raise _without_classes(training)
    tested = _read_part(paths[searched], boxes)
    testing = _against(folder, _read_part(paths[asked], boxes), tested) if asked else _everybody(tested)
    names = {role: f"{path.name}/" for role, path in paths.items()}
    return _parts("folder", folder, names, training, testing, _without_training(folder))


def _parts(
    name: str,
    source: Path,
    names: Mapping[Role, str],
    training: ImageList | None,
    testing: Evaluation,
    lacking: str,
) -> Parts:
    """``Parts`` with notes on the choice of the test part.

    names   the parts of ``source``, as the notes call them
    """
    asked, searched = _tested(names)
    used = [names[role] for role in (asked, searched) if role]
    unused = [name for role, name in names.items() if role is not Role.TRAINING and name not in used]
    notes = []
    if unused:
        is_, test = "is" if len(unused) == 1 else "are", "tests" if len(used) == 1 else "test"
        notes.append(f"{_listed(unused)} of {source} {is_} not used: {_listed(used)} {test}.")
    elif searched is Role.VALIDATION:
        notes.append(f"{source} has no test part: {names[searched]} tests.")
    if training and (shared := set(training.classes or ()).intersection(testing.images.classes or ())):
        notes.append(
            f"{names[Role.TRAINING]} and {used[-1]} of {source} share {len(shared)} classes: recall is not only "
            "about classes that are new to the model."
        )
    if testing.cameras:
        notes.append(
            f"names in {source} give identity and camera: a query does not search pictures of its own identity from "
            "its own camera."
        )
    return Parts("reid" if testing.cameras else name, training, testing, tuple(notes), lacking)


def _read_part(folder: Path, boxes: bool) -> _Part:
    images = read_images(folder)
    if (inner := only_folder(images)) and _role(inner.name) is _role(folder.name):
        folder, images = inner, read_images(inner)  # an archive was unpacked into a folder of the same name
    if not boxes:
        images = replace(images, boxes=None)
    return _sighted(folder, images)[0]


def _sighted(source: Path, images: ImageList) -> tuple[_Part, list[int]]:
    """The pictures by identity and camera if their names give both, and the numbers of the pictures that count."""
    sightings = [SIGHTING.match(PurePath(name).name) for name in images.names]
    identities = tuple(match[1] if match else "" for match in sightings)
    if images.classes is None and any(sightings) and not all(sightings):
        raise InputError(
            f"{images.path(sightings.index(None))} does not start with identity and camera as other names do; "
            "expected a name such as 0002_c1s1_000451_03.jpg."
        )
    if not all(sightings) or images.classes not in (None, identities):
        return _Part(images, None), list(range(len(images)))
    kept = [number for number, identity in enumerate(identities) if identity != JUNK]
    if not kept:
        raise InputError(f"{source} has only pictures of identity {JUNK}, which do not count; get the whole data set.")
    cameras = tuple(str(int(match[2])) for match in sightings if match)
    return _Part(replace(images, classes=identities), cameras).subset(kept), kept


def _everybody(part: _Part) -> Evaluation:
    """Every picture of a part searches all others."""
    if part.images.classes is None:
        raise _without_classes(part.images)
    return part.evaluation()


def _against(folder: Path, asked: _Part, searched: _Part) -> Evaluation:
    """The queries of one folder search the gallery of another folder."""
    for one, other in ((asked, searched), (searched, asked)):
        if one.images.classes is None and other.images.classes is not None:
            raise _without_classes(one.images)
        if one.images.boxes is None and other.images.boxes is not None:
            raise InputError(
                f"{other.images.root} has boxes and {one.images.root} has none; give boxes for both or for neither."
            )
    parts = [asked.images, searched.images]
    images = ImageList(
        folder,
        tuple(_below(folder, path) for part in parts for path in part.paths),
        None if asked.images.classes is None else tuple(label for part in parts for label in part.classes or ()),
        None if asked.images.boxes is None else tuple(box for part in parts for box in part.boxes or ()),
        tuple(note for part in parts for note in part.notes),
    )
    in_gallery = tuple(part is searched.images for part in parts for _ in range(len(part)))
    cameras = asked.cameras + searched.cameras if asked.cameras and searched.cameras else None
    return _Part(images, cameras).evaluation(in_gallery)


def _below(folder: Path, path: Path) -> str:
    return str(path.relative_to(folder) if path.is_relative_to(folder) else path.absolute())


def _without_classes(images: ImageList) -> InputError:
    return InputError(f"{images.root} has pictures outside class folders; expected one folder per class.")


def _without_training(folder: Path) -> str:
    return f"{folder} has a test part but no training part; add a folder train/."


def _folders(names: Iterable[str]) -> str:
    """Names of folders as text, at most ten: "train/, val/ and test/"."""
    return _listed([f"{name}/" for name in names])


def _listed(names: list[str]) -> str:
    shown = names if len(names) <= 10 else [*names[:10], f"{len(names) - 10} more"]
    return " and ".join([", ".join(shown[:-1]), shown[-1]]) if len(shown) > 1 else shown[0]
