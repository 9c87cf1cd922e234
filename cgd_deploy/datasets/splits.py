"""Reads data sets that are split into folders: train/, val/ and test/; query/ and gallery/; re-identification sets.

Knows names of folders and files, and opens no picture.
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
"""The identity of pictures that Market-1501 leaves out: its detector cut them badly."""
NO_PART = frozenset({"gt_bbox", "gt_query"})
"""Folders of Market-1501 that its protocol does not use."""


class Role(str, Enum):
    """What a folder is for."""

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
"""How names of re-identification's pictures start: identity and camera, as in 0002_c1s1_000451_03.jpg."""

Folders = Mapping[Role, Path]


@dataclass(frozen=True)
class Parts:
    """What a data set trains and tests on; None for a part that is not there.

    name    see ``datasets.Dataset``
    folder  of the data set
    notes   sentences about what the reader chose for the user
    """

    name: str
    folder: Path
    training: ImageList | None
    testing: Evaluation | None
    notes: tuple[str, ...] = ()

    def trained(self) -> ImageList:
        """The training pictures; raises InputError if there are none."""
        if self.training is None:
            raise InputError(f"{self.folder} has a part to test on and none to train on; add a folder train/.")
        return self.training

    def tested(self) -> Evaluation:
        """The test pictures; raises InputError if there are none."""
        if self.testing is None:
            root = self.trained().root
            raise InputError(
                f"{self.folder} has {root.name}/ and no part to test on; add a folder test/ or val/, or pass {root}."
            )
        return self.testing


def read_split(folder: Path, boxes: bool = True) -> Parts | None:
    """The parts of a data set that folders divide; None if no folder tells a split.

    Names of the folders are read in any case, see ``WORDS`` and ``NAME``. The test part is query/ against gallery/, or
    against test/ where there is no gallery/; without query/ it is test/, or else val/. Pictures lie in a folder a
    class, or in none and are named by identity and camera (Market-1501, DukeMTMC-reID, VeRi-776).

    Raises InputError for two folders of one part, for folders with pictures beside the parts, and for parts that lack
    classes.
    """
    found = _roles(folder)
    names = [path.name for paths in found.values() for path in paths]
    if not _divides(found):
        return _lone_part(folder, found, boxes)
    for role, paths in found.items():
        if len(paths) > 1:
            raise InputError(
                f"{folder} has {_listed(names)}, of which several are for {role.value}; keep one of these."
            )
    if beside := _beside(folder, names):
        raise InputError(
            f"{folder} has {_listed(beside)} beside {_listed(names)}, and no split has such a part; move the pictures "
            "elsewhere, or name classes and pictures in a LIST.tsv."
        )
    return _parts(folder, {role: paths[0] for role, paths in found.items()}, boxes)


def only_folder(images: ImageList) -> Path | None:
    """The one folder in which all pictures of a folder lie; None for several, for pictures beside it and for a list."""
    labels = set(images.classes or ())
    inner = images.root / labels.pop() if len(labels) == 1 else None
    return inner if inner and inner.is_dir() and not (images.root / "images.tsv").is_file() else None


@dataclass(frozen=True)
class _Part:
    """Pictures of one folder, and their cameras if their names tell."""

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
        return {}  # whoever reads pictures there says why
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
    """train/, val/ or test/ alone, if class folders lie in it: with pictures in it, it may be a class itself."""
    paths = [path for role, paths in found.items() if role not in (Role.QUERY, Role.GALLERY) for path in paths]
    if len(paths) != 1 or not _has_class_folders(paths[0]):
        return None
    if beside := _beside(folder, [paths[0].name]):
        raise InputError(
            f"{folder} has {paths[0].name}/ with class folders in it beside {_listed(beside)}, so it may be a class or "
            "a part of a split; move the others elsewhere, or name classes and pictures in a LIST.tsv."
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
    """Folders with pictures that are no part."""
    try:
        names = read_images(folder).names
    except InputError:  # the parts hold lists that lead elsewhere
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
            "of classes that are new to the model."
        )
    if testing.cameras:
        notes.append(
            f"names in {folder} tell identity and camera: a query does not search what its own camera took of its own "
            "identity."
        )
    name = "reid" if testing.cameras else "folder"
    return Parts(name, folder, training.images if training else None, testing, tuple(notes))


def _searched(folder: Path, roles: Folders) -> Path:
    """The folder of the gallery, or of the test pictures that search each other."""
    wanted = (Role.GALLERY, Role.TEST) if Role.QUERY in roles else (Role.TEST, Role.VALIDATION)
    if not (found := [roles[role] for role in wanted if role in roles]):
        raise InputError(f"{folder} has {roles[Role.QUERY].name}/ and no gallery to search in; add a folder gallery/.")
    return found[0]


def _unused(folder: Path, roles: Folders, tested: Sequence[Path]) -> list[str]:
    """A note if the test part was chosen of several folders."""
    used = _listed(path.name for path in tested)
    unused = [path.name for role, path in roles.items() if role is not Role.TRAINING and path not in tested]
    if unused:
        return [f"{_listed(unused)} of {folder} {'is' if len(unused) == 1 else 'are'} not used: {used} test."]
    validates = Role.VALIDATION in roles and roles[Role.VALIDATION] in tested
    return [f"{folder} has no test/: {used} tests."] if validates else []


def _read_part(folder: Path, boxes: bool) -> _Part:
    images = read_images(folder)
    if (inner := only_folder(images)) and _role(inner.name) is _role(folder.name):
        folder, images = inner, read_images(inner)  # an archive was unpacked into a folder of its own name
    if not boxes:
        images = replace(images, boxes=None)
    sightings = [SIGHTING.match(PurePath(name).name) for name in images.names]
    identities = tuple(match[1] if match else "" for match in sightings)
    if images.classes is None and any(sightings) and not all(sightings):
        raise InputError(
            f"{images.path(sightings.index(None))} is not named by identity and camera as its neighbours are; "
            "expected a name such as 0002_c1s1_000451_03.jpg."
        )
    if not all(sightings) or images.classes not in (None, identities):
        return _Part(folder, images, None)
    kept = [number for number, identity in enumerate(identities) if identity != JUNK]
    if not kept:
        raise InputError(f"{folder} has only pictures of identity {JUNK}, which count nowhere; get the whole data set.")
    cameras = tuple(str(int(match[2])) for match in sightings if match and match[1] != JUNK)
    return _Part(folder, replace(images, classes=identities).subset(kept), cameras)


def _everybody(part: _Part) -> Evaluation:
    """Every picture of a part searches all the others."""
    if part.images.classes is None:
        raise _without_classes(part)
    return Evaluation(part.images, None, REID_RECALL_AT if part.cameras else RECALL_AT, part.cameras)


def _against(folder: Path, asked: _Part, searched: _Part) -> Evaluation:
    """Queries search a gallery, which two folders hold."""
    for one, other in ((asked, searched), (searched, asked)):
        if one.images.classes is None and other.images.classes is not None:
            raise _without_classes(one)
        if one.images.boxes is None and other.images.boxes is not None:
            raise InputError(f"{other.folder} has boxes and {one.folder} has none; give boxes of both or of none.")
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
    return InputError(f"{part.folder} has pictures outside of class folders; expected a folder a class.")


def _listed(names: Iterable[str]) -> str:
    """Names of folders, of many the first ten: "train/, val/ and test/"."""
    every = [f"{name}/" for name in names]
    shown = every if len(every) <= 10 else [*every[:10], f"{len(every) - 10} more"]
    return " and ".join([", ".join(shown[:-1]), shown[-1]]) if len(shown) > 1 else shown[0]
