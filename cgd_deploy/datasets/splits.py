"""Reads data sets that folders divide: train/, val/ and test/; query/ and gallery/; re-identification sets.

Reads names of folders and files, and opens no picture.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path, PurePath

from ..errors import InputError
from ..pictures.images import ImageList, read_images
from ..search.retrieval import RECALL_AT
from .evaluation import Evaluation

REID_RECALL_AT = (1, 5, 10)
JUNK = "-1"
"""The identity of pictures that Market-1501 leaves out, because its detector cut them badly."""
NO_PART = frozenset({"gt_bbox", "gt_query"})
"""Folders of Market-1501 that are not part of its protocol."""


class Role(str, Enum):
    """The purpose of a folder."""

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
"""A folder's name in lower case, words joined by "_": "train", "bounding_box_train", "image_query", "test_set"."""
SIGHTING = re.compile(r"(-?\d+)_c(\d+)")
"""The start of a re-identification picture's name: identity and camera, as in 0002_c1s1_000451_03.jpg."""

Folders = Mapping[Role, Path]


@dataclass(frozen=True)
class Parts:
    """The training and test parts of a data set; None for a missing part.

    name    see ``layouts.Dataset``
    folder  folder of the data set
    notes   sentences about choices that the reader made for the user
    """

    name: str
    folder: Path
    training: ImageList | None
    testing: Evaluation | None
    notes: tuple[str, ...] = ()

    def trained(self) -> ImageList:
        """The training pictures; raises InputError if there are none."""
        if self.training is None:
            raise InputError(f"{self.folder} has a test part but no training part; add a folder train/.")
        return self.training

    def tested(self) -> Evaluation:
        """The test pictures; raises InputError if there are none."""
        if self.testing is None:
            root = self.trained().root
            raise InputError(
                f"{self.folder} has {root.name}/ but no test part; add a folder test/ or val/, or pass {root}."
            )
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
                f"{folder} has {_listed(names)}, and several of them are for {role.value}; keep one of these."
            )
    if beside := _beside(folder, names):
        raise InputError(
            f"{folder} has {_listed(beside)} beside {_listed(names)}, and no split has such a part; move the pictures "
            "elsewhere, or list pictures and classes in a LIST.tsv."
        )
    return _parts(folder, {role: paths[0] for role, paths in found.items()}, boxes)


def only_folder(images: ImageList) -> Path | None:
    """The one inner folder that holds all pictures of a folder; None if there is no such folder, or for a list."""
    labels = set(images.classes or ())
    inner = images.root / labels.pop() if len(labels) == 1 else None
    return inner if inner and inner.is_dir() and not (images.root / "images.tsv").is_file() else None


@dataclass(frozen=True)
class _Part:
    """Pictures of one folder, and their cameras if the names give them."""

    folder: Path
    images: ImageList
    cameras: tuple[str, ...] | None

    @property
    def classes(self) -> set[str]:
        return set(self.images.classes or ())


def _roles(folder: Path) -> dict[Role, list[Path]]:
    """The folders that have a role, in the order of ``Role``."""
    try:
        with os.scandir(folder) as entries:
            named = sorted((entry.name, _role(entry.name)) for entry in entries if entry.is_dir())
    except OSError:
        return {}  # read_images reports the error
    roles = {role: [folder / name for name, other in named if other is role] for role in Role}
    return {role: paths for role, paths in roles.items() if paths}


def _role(name: str) -> Role | None:
    match = NAME.fullmatch(re.sub(r"[-. ]", "_", name.casefold()))
    return WORDS[match[1]] if match else None


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
            f"{folder} has {paths[0].name}/ with class folders in it beside {_listed(beside)}, so it may be a class or "
            "a part of a split; move the others elsewhere, or list pictures and classes in a LIST.tsv."
        )
    part = _read_part(paths[0], boxes)
    is_training = Role.TRAINING in found
    return Parts("folder", folder, part.images if is_training else None, None if is_training else _everybody(part))


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


def _parts(folder: Path, roles: Folders, boxes: bool) -> Parts:
    training = _read_part(roles[Role.TRAINING], boxes) if Role.TRAINING in roles else None
    if training and training.images.classes is None:
        raise _without_classes(training)
    asked, searched = roles.get(Role.QUERY), _searched(folder, roles)
    tested = _read_part(searched, boxes)
    testing = _against(folder, _read_part(asked, boxes), tested) if asked else _everybody(tested)
    notes = _unused(folder, roles, [asked, searched] if asked else [searched])
    if training and (shared := training.classes.intersection(testing.images.classes or ())):
        notes.append(
            f"{training.folder.name}/ and {searched.name}/ of {folder} share {len(shared)} classes: recall is not only "
            "about classes that are new to the model."
        )
    if testing.cameras:
        notes.append(
            f"names in {folder} give identity and camera: a query does not search pictures of its own identity from "
            "its own camera."
        )
    name = "reid" if testing.cameras else "folder"
    return Parts(name, folder, training.images if training else None, testing, tuple(notes))


def _searched(folder: Path, roles: Folders) -> Path:
    """The folder of the gallery, or the folder of test pictures that search each other."""
    wanted = (Role.GALLERY, Role.TEST) if Role.QUERY in roles else (Role.TEST, Role.VALIDATION)
    if not (found := [roles[role] for role in wanted if role in roles]):
        raise InputError(f"{folder} has {roles[Role.QUERY].name}/ but no gallery; add a folder gallery/.")
    return found[0]


def _unused(folder: Path, roles: Folders, tested: Sequence[Path]) -> list[str]:
    """A note if the reader chose the test part among several folders."""
    used = _listed(path.name for path in tested)
    unused = [path.name for role, path in roles.items() if role is not Role.TRAINING and path not in tested]
    if unused:
        return [f"{_listed(unused)} of {folder} {'is' if len(unused) == 1 else 'are'} not used: {used} test."]
    validates = Role.VALIDATION in roles and roles[Role.VALIDATION] in tested
    return [f"{folder} has no test/: {used} tests."] if validates else []


def _read_part(folder: Path, boxes: bool) -> _Part:
    images = read_images(folder)
    if (inner := only_folder(images)) and _role(inner.name) is _role(folder.name):
        folder, images = inner, read_images(inner)  # an archive was unpacked into a folder of the same name
    if not boxes:
        images = replace(images, boxes=None)
    sightings = [SIGHTING.match(PurePath(name).name) for name in images.names]
    identities = tuple(match[1] if match else "" for match in sightings)
    if images.classes is None and any(sightings) and not all(sightings):
        raise InputError(
            f"{images.path(sightings.index(None))} does not start with identity and camera as other names do; "
            "expected a name such as 0002_c1s1_000451_03.jpg."
        )
    if not all(sightings) or images.classes not in (None, identities):
        return _Part(folder, images, None)
    kept = [number for number, identity in enumerate(identities) if identity != JUNK]
    if not kept:
        raise InputError(f"{folder} has only pictures of identity {JUNK}, which do not count; get the whole data set.")
    cameras = tuple(str(int(match[2])) for match in sightings if match and match[1] != JUNK)
    return _Part(folder, replace(images, classes=identities).subset(kept), cameras)


def _everybody(part: _Part) -> Evaluation:
    """Every picture of a part searches all others."""
    if part.images.classes is None:
        raise _without_classes(part)
    return Evaluation(part.images, None, REID_RECALL_AT if part.cameras else RECALL_AT, part.cameras)


def _against(folder: Path, asked: _Part, searched: _Part) -> Evaluation:
    """The queries of one folder search the gallery of another folder."""
    for one, other in ((asked, searched), (searched, asked)):
        if one.images.classes is None and other.images.classes is not None:
            raise _without_classes(one)
        if one.images.boxes is None and other.images.boxes is not None:
            raise InputError(f"{other.folder} has boxes and {one.folder} has none; give boxes for both or for neither.")
    parts = [asked.images, searched.images]
    images = ImageList(
        folder,
        tuple(_below(folder, path) for part in parts for path in part.paths),
        None if asked.images.classes is None else tuple(label for part in parts for label in part.classes or ()),
        None if asked.images.boxes is None else tuple(box for part in parts for box in part.boxes or ()),
        tuple(note for part in parts for note in part.notes),
    )
    in_gallery = tuple(part is searched.images for part in parts for _ in range(len(part)))
    if asked.cameras is None or searched.cameras is None:
        return Evaluation(images, in_gallery)
    return Evaluation(images, in_gallery, REID_RECALL_AT, asked.cameras + searched.cameras)


def _below(folder: Path, path: Path) -> str:
    return str(path.relative_to(folder) if path.is_relative_to(folder) else path.absolute())


def _without_classes(part: _Part) -> InputError:
    return InputError(f"{part.folder} has pictures outside class folders; expected one folder per class.")


def _listed(names: Iterable[str]) -> str:
    """Names of folders as text, at most ten: "train/, val/ and test/"."""
    every = [f"{name}/" for name in names]
    shown = every if len(every) <= 10 else [*every[:10], f"{len(every) - 10} more"]
    return " and ".join([", ".join(shown[:-1]), shown[-1]]) if len(shown) > 1 else shown[0]
