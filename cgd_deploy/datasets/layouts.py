"""Data sets in the file layouts of their authors, with the split and the K of recall@K that the CGD paper uses.

Reads lists and opens no picture, so a missing picture is noticed only when something reads it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError, MissingDependency, in_one_line, install_line
from ..files import check_file
from ..pictures.images import ImageList, expanded, read_images
from ..pictures.lists import LARGEST_PIXEL, SUFFIXES, Box, leaves
from .evaluation import Evaluation
from .splits import REID_RECALL_AT, Parts, only_folder, read_listed, read_split

SOP_RECALL_AT = (1, 10, 100, 1000)
INSHOP_RECALL_AT = (1, 10, 20, 30, 40, 50)

MANY = 10
"""In a folder of more folders than this, we do not look for a data set inside each."""

INSHOP_LISTS = ("Eval/list_eval_partition.txt", "list_eval_partition.txt")
DEVKITS = ("devkit/", "", "car_devkit/devkit/")
CARS_TRAINING = tuple(f"{devkit}cars_train_annos.mat" for devkit in DEVKITS)
CARS_TESTING = tuple(f"{devkit}cars_test_annos_withlabels.mat" for devkit in DEVKITS)

Row = tuple[str, list[str]]  # "FILE line 7", for errors, and the fields there
Annotation = tuple[str, str, Box]  # name, class and box of a picture


@dataclass(frozen=True)
class Dataset:
    """Pictures to train on and pictures to test on.

    name      "cub200", "cars196", "sop", "inshop", "naver", "msmt17", "reid", "folder" or "list"
    training  every picture has a class
    testing   the test pictures, and how recall is measured on them
    notes     sentences about choices that the reader made for the user, e.g. that a list had no boxes

    Raises InputError if either part is empty.
    """

    name: str
    training: ImageList
    testing: Evaluation
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not (self.training and self.testing.images):
            raise InputError(
                f"{self.testing.images.root} gives {len(self.training)} pictures to train on and "
                f"{len(self.testing.images)} to test on; expected some of each, so at least two classes."
            )


def read_dataset(source: str | Path, boxes: bool = True) -> Dataset:
    """Read a folder in one of these layouts, or anything that ``read_images`` reads.

    boxes    False: ignore boxes and use whole pictures

    cub200   images.txt, image_class_labels.txt, images/ and, for boxes, bounding_boxes.txt; the first half of the
             classes trains, the second half tests (train_test_split.txt divides every class in two, so it is not used)
    cars196  cars_annos.mat and car_ims/; or cars_train_annos.mat and cars_test_annos_withlabels.mat, in devkit/ or not,
             and cars_train/ and cars_test/; halves of the classes as above
    sop      Ebay_train.txt and Ebay_test.txt, the split
    inshop   list_eval_partition.txt, in Eval/ or not, the split; img/, in Img/ or not
    naver    train.txt and test.txt, the split; for boxes, bbox.txt; each list numbers its classes anew
    msmt17   list_train.txt, list_query.txt and list_gallery.txt, the split, by MSMT17's own protocol; train/ and test/
    reid     bounding_box_train/, query/ and bounding_box_test/ as in Market-1501, or other folders that
             ``splits.read_split`` knows, with pictures named by identity and camera
    folder   train/, and test/ or val/, or query/ and gallery/, each with one folder per class, see
             ``splits.read_split``; or one folder per class, and halves as above
    list     a LIST.tsv, a CSV or text file with a header, or a folder with images.tsv, divided by its column split
             as by folders of these names, see ``splits.read_listed``; a list without that column, or a pattern: halves
             as above

    An images.tsv takes precedence over every layout. Among layouts, more specific names take precedence: CUB200 with
    naver's lists beside its own is "cub200", which has the same split. If all pictures of a folder lie in one inner
    folder, the inner folder is read. Pictures that lie one folder deeper than a list says are found there. The notes
    report both.

    Raises InputError with file and line for malformed or missing lists and for names that leave the folder, and
    MissingDependency for a .mat file without scipy. Missing pictures raise nothing.
    """
    found = _read(source, boxes)
    return _dataset(source, found) if isinstance(found, Parts) else _halves(source, found)


def _dataset(source: str | Path, parts: Parts) -> Dataset:
    training, testing = parts.trained(), parts.tested()
    _check_classes(source, training)
    notes = (*parts.notes, *training.notes, *testing.images.notes)
    return Dataset(parts.name, training, testing, tuple(dict.fromkeys(notes)))


def _check_classes(source: str | Path, images: ImageList) -> None:
    if images.classes is None:
        raise InputError(f"{source} has no classes; expected one folder per class, or a list with a class column.")


def _halves(source: str | Path, images: ImageList) -> Dataset:
    _check_classes(source, images)
    training, testing = images.split_classes()
    trained, tested = len(set(training.classes or ())), len(set(testing.classes or ()))
    is_folder = os.path.isdir(expanded(source))
    where = images.root if is_folder else source
    note = f"{where} has no split of its own: its first {trained} classes train, the other {tested} test."
    is_list = not is_folder or (images.root / "images.tsv").is_file()
    return Dataset("list" if is_list else "folder", training, Evaluation(testing), (note, *images.notes))


def read_evaluation(source: str | Path, boxes: bool = True) -> Evaluation:
    """The test part of a layout or list that ``read_dataset`` knows, otherwise all pictures of the source.

    The notes of the reader are in ``images.notes`` of the result.
    """
    found = _read(source, boxes)
    if isinstance(found, ImageList):
        return Evaluation(found)
    tested = found.tested()
    return replace(tested, images=_noted(tested.images, found.notes))


def read_training(source: str | Path, boxes: bool = True) -> ImageList:
    """The training part of a layout or list that ``read_dataset`` knows, otherwise all pictures of the source."""
    found = _read(source, boxes)
    return found if isinstance(found, ImageList) else _noted(found.trained(), found.notes)


def _read(source: str | Path, boxes: bool) -> Parts | ImageList:
    """The parts of a data set, or all pictures of a source without a known layout."""
    folder = Path(expanded(source))
    is_folder = os.path.isdir(folder)
    path = _first_file(folder, ("images.tsv",)) if is_folder else folder
    if path and path.suffix.lower() in SUFFIXES:
        return read_listed(path, boxes)
    if not is_folder:
        return _read_images(source, boxes)
    if parts := _read_layout(folder, boxes) or read_split(folder, boxes):
        return parts
    images = _read_images(folder, boxes)
    if inner := only_folder(images):
        note = f"{inner} is read, because all pictures of {folder} lie there."
        found = _read(inner, boxes)
        return _noted(found, (note,)) if isinstance(found, ImageList) else replace(found, notes=(note, *found.notes))
    _check_no_data_set_below(images)
    return images


def _noted(images: ImageList, notes: Sequence[str]) -> ImageList:
    return replace(images, notes=tuple(dict.fromkeys((*notes, *images.notes))))


def _read_images(source: str | Path, boxes: bool) -> ImageList:
    images = read_images(source)
    return images if boxes else replace(images, boxes=None)


def _check_no_data_set_below(images: ImageList) -> None:
    """Raise InputError if a class folder is itself a data set."""
    names = sorted(set(images.classes or ()))
    if len(names) <= MANY and (inner := next((name for name in names if _is_data_set(images.root / name)), None)):
        raise InputError(
            f"{images.root} has {len(names)} folders, of which {inner}/ is a data set with a split of its own; "
            f"pass {images.root / inner}, or list pictures and classes in a LIST.tsv."
        )


def _is_data_set(folder: Path) -> bool:
    try:
        return bool(_reader(folder) or read_split(folder))
    except InputError:
        return False


def _read_layout(folder: Path, boxes: bool) -> Parts | None:
    if (read := _reader(folder)) is None:
        return None
    parts = read(folder, boxes)
    testing = parts.tested()
    for images in (parts.trained(), testing.images):
        _check_names(images)
        _check_folders(images)
    training, notes = _one_deeper(parts.trained())
    tested, others = _one_deeper(testing.images)
    told = dict.fromkeys((*parts.notes, *notes, *others))
    return replace(parts, training=training, testing=replace(testing, images=tested), notes=tuple(told))


def _one_deeper(images: ImageList) -> tuple[ImageList, list[str]]:
    """Find pictures that an archive unpacked one folder deeper, as in cars_train/cars_train/; adds a note for each."""
    first = {name.split("/")[0]: name for name in reversed(images.names)}
    deeper = {top for top, name in first.items() if _lies_deeper(images.root, top, name)}
    names = tuple(f"{top}/{name}" if (top := name.split("/")[0]) in deeper else name for name in images.names)
    notes = [f"pictures of {images.root / top} are read from the folder {top} in it." for top in sorted(deeper)]
    return replace(images, names=names), notes


def _lies_deeper(root: Path, top: str, name: str) -> bool:
    return not any(os.path.exists(root / part / name) for part in ("", "images")) and os.path.exists(root / top / name)


def _check_names(images: ImageList) -> None:
    if outside := next(filter(leaves, images.names), None):
        raise InputError(
            f"{images.root} has a list that names {outside!r:.200}, outside of it; get the data set again."
        )


def _check_folders(images: ImageList) -> None:
    for name in sorted({name.split("/")[0] for name in images.names if "/" in name}):
        if not ((images.root / name).is_dir() or (images.root / "images" / name).is_dir()):
            raise InputError(f"{images.root} has no folder {name}, which its list names; unpack the pictures there.")


def _reader(folder: Path) -> Callable[[Path, bool], Parts] | None:
    def has(*names: str) -> bool:
        return _first_file(folder, names) is not None

    if has("list_query.txt") and has("list_gallery.txt"):
        return _read_msmt17
    if has("Ebay_train.txt", "Ebay_test.txt"):
        return _read_sop
    if has(*INSHOP_LISTS):
        return _read_inshop
    if has("cars_annos.mat"):
        return _read_cars
    if has(*CARS_TRAINING, *CARS_TESTING):
        return _read_cars_devkit
    if has("images.txt", "image_class_labels.txt"):
        return _read_cub
    if has("train.txt") and has("test.txt"):
        return _read_naver
    return None


def _read_cub(folder: Path, boxes: bool) -> Parts:
    paths = _by_id(folder / "images.txt", "id path")
    labels = _by_id(folder / "image_class_labels.txt", "id class")
    _check_ids(paths, labels, "image_class_labels.txt")
    _check_ids(labels, paths, "images.txt")
    pictures = {n: (where, [*label, f"images/{paths[n][1][-1]}"]) for n, (where, label) in labels.items()}
    table, notes = _box_table(folder / "bounding_boxes.txt", boxes, pictures)
    training, testing = _listed(folder, pictures, table).split_classes()
    return Parts("cub200", training, Evaluation(testing), notes)


def _read_cars(folder: Path, boxes: bool) -> Parts:
    return _cars196(folder, _annotations(folder / "cars_annos.mat", "relative_im_path"), boxes)


def _read_cars_devkit(folder: Path, boxes: bool) -> Parts:
    training, testing = _first_file(folder, CARS_TRAINING), _first_file(folder, CARS_TESTING)
    if training is None:
        raise InputError(f"{folder} has no {CARS_TRAINING[0]}; unpack the devkit of CARS196 there.")
    found = _annotations(training, "fname", "cars_train/")
    if testing is not None:
        return _cars196(folder, found + _annotations(testing, "fname", "cars_test/"), boxes)
    note = (
        f"{folder} has no cars_test_annos_withlabels.mat: the pictures of cars_test/ have no classes and are left out."
    )
    return _cars196(folder, found, boxes, (note,))


def _cars196(folder: Path, found: list[Annotation], boxes: bool, notes: tuple[str, ...] = ()) -> Parts:
    names, classes, cuts = zip(*found, strict=True)
    training, testing = ImageList(folder, names, classes, cuts if boxes else None).split_classes()
    return Parts("cars196", training, Evaluation(testing), notes)


def _read_sop(folder: Path, _boxes: bool) -> Parts:
    columns = "image_id class_id super_class_id path"
    training, testing = (
        _listed(folder, _by_id(folder / name, columns, above=1)) for name in ("Ebay_train.txt", "Ebay_test.txt")
    )
    return Parts("sop", training, Evaluation(testing, recall_at=SOP_RECALL_AT))


def _read_inshop(folder: Path, _boxes: bool) -> Parts:
    path = _first_file(folder, INSHOP_LISTS) or folder / INSHOP_LISTS[0]
    rows = _rows(path, "image_name item_id evaluation_status", above=2)
    where, count = _lines(path)[0]
    if count != [str(len(rows))]:
        raise InputError(
            f"{where} counts {' '.join(count)[:40]!r} pictures, but {len(rows)} follow; get the whole list."
        )
    for where, [_, _, status] in rows:
        if status not in ("train", "query", "gallery"):
            raise InputError(f"{where} has the status {status!r:.40}; expected train, query or gallery.")
    statuses = [fields[2] for _, fields in rows]
    if absent := {"train", "query", "gallery"}.difference(statuses):
        raise InputError(f"{path} has no picture of {' and '.join(sorted(absent))}; get the whole list.")
    root = next((root for root in (folder / "Img", folder) if (root / "img").is_dir()), folder / "Img")
    images = ImageList(root, tuple(fields[0] for _, fields in rows), tuple(fields[1] for _, fields in rows))
    tested = [i for i, status in enumerate(statuses) if status != "train"]
    in_gallery = tuple(statuses[i] == "gallery" for i in tested)
    training = images.subset(i for i, status in enumerate(statuses) if status == "train")
    return Parts("inshop", training, Evaluation(images.subset(tested), in_gallery, INSHOP_RECALL_AT))


def _read_naver(folder: Path, boxes: bool) -> Parts:
    training, testing = (_by_id(folder / n, "image_id class_id path", above=1) for n in ("train.txt", "test.txt"))
    table, notes = _box_table(folder / "bbox.txt", boxes, training | testing)
    if table and (twice := training.keys() & testing.keys()):
        where, _ = testing[min(twice)]
        raise InputError(f"{where} has an id of train.txt, so bbox.txt fits both; give every picture its own id.")
    return Parts("naver", _listed(folder, training, table), Evaluation(_listed(folder, testing, table)), notes)


def _read_msmt17(folder: Path, _boxes: bool) -> Parts:
    training, asked, searched = (
        _rows(folder / f"list_{part}.txt", "path id") for part in ("train", "query", "gallery")
    )
    tested = asked + searched
    in_gallery = tuple(number >= len(asked) for number in range(len(tested)))
    cameras = tuple(_camera_of_msmt17(where, path) for where, [path, _] in tested)
    testing = Evaluation(_identities(folder, "test", tested), in_gallery, REID_RECALL_AT, cameras)
    notes = (f"list_val.txt of {folder} is not used.",) if (folder / "list_val.txt").is_file() else ()
    return Parts("msmt17", _identities(folder, "train", training), testing, notes)


def _identities(folder: Path, below: str, rows: Sequence[Row]) -> ImageList:
    names = tuple(f"{below}/{path}" for _, [path, _] in rows)
    return ImageList(folder, names, tuple(str(_whole(where, identity)) for where, [_, identity] in rows))


def _camera_of_msmt17(where: str, path: str) -> str:
    """The camera is the third field of names such as 0000/0000_000_01_0303morning_0015_0.jpg."""
    fields = path.split("/")[-1].split("_")
    if len(fields) < 4:
        raise InputError(f"{where} has the path {path!r:.80}, which names no camera; get the list of MSMT17 again.")
    return str(_whole(where, fields[2]))


def _listed(folder: Path, pictures: Mapping[int, Row], boxes: Mapping[int, Box] | None = None) -> ImageList:
    """The pictures of rows by id; the second field is the class, the last field is the path."""
    return ImageList(
        folder,
        tuple(fields[-1] for _, fields in pictures.values()),
        tuple(str(_whole(where, fields[1])) for where, fields in pictures.values()),
        tuple(boxes[number] for number in pictures) if boxes else None,
    )


def _box_table(path: Path, wanted: bool, pictures: Mapping[int, Row]) -> tuple[dict[int, Box] | None, tuple[str, ...]]:
    """Boxes by picture id, and a note if the caller wants boxes but there are none."""
    if not wanted:
        return None, ()
    if not path.is_file():
        return None, (f"{path.parent} has no {path.name}: whole pictures are used.",)
    rows = _by_id(path, "id x y w h")
    _check_ids(pictures, rows, path.name)
    table = {}
    for number, (where, fields) in rows.items():
        x, y, width, height = (_number(where, field) for field in fields[1:])
        table[number] = _box(where, x, y, x + width - 1, y + height - 1)
    return table, ()


def _check_ids(rows: Mapping[int, Row], others: Mapping[int, Row], name: str) -> None:
    for number, (where, _) in rows.items():
        if number not in others:
            raise InputError(f"{where} has the id {number}, which {name} lacks; give every picture a line in both.")


def _box(where: str, x1: float, y1: float, x2: float, y2: float) -> Box:
    """Convert first and last pixels counted from 1, as in MATLAB, to x1 <= x < x2 counted from 0.

    Some boxes of CUB200 start at pixel 0, which is outside; they are clipped. Whether a box
    ends outside can only be checked on the picture.
    """
    left, top, right, bottom = max(round(x1) - 1, 0), max(round(y1) - 1, 0), round(x2), round(y2)
    if right <= left or bottom <= top:
        raise InputError(f"{where} has an empty box; correct it, or leave boxes out.")
    return left, top, right, bottom


def _by_id(path: Path, columns: str, above: int = 0) -> dict[int, Row]:
    """``_rows`` by the number in the first column, in list order."""
    found: dict[int, Row] = {}
    for where, fields in _rows(path, columns, above):
        number = _whole(where, fields[0])
        if number in found:
            raise InputError(f"{where} has the id {number} for the second time; give every picture its own id.")
        found[number] = where, fields
    return found


def _rows(path: Path, columns: str, above: int = 0) -> list[Row]:
    """The lines after the first ``above`` lines, split into one field for each column.

    The last of the first lines is the header. Raises InputError if the header or the number of fields differs.
    """
    lines = _lines(path)
    header, rows = lines[:above], lines[above:]
    names = columns.split()
    if above and (len(header) < above or header[-1][1] != names):
        where, fields = header[-1] if header else (str(path), [])
        raise InputError(f"{where} is {' '.join(fields)[:60]!r}; expected {columns!r} as line {above}.")
    if not rows:
        raise InputError(f"{path} lists no pictures; expected a line {columns!r} for each.")
    for where, fields in rows:
        if len(fields) != len(names):
            raise InputError(f"{where} has {len(fields)} fields; expected {len(names)}: {columns}.")
    return rows


def _first_file(folder: Path, names: Sequence[str]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _lines(path: Path) -> list[Row]:
    """The lines that are not blank. Names that are not UTF-8 keep their bytes, as names in a file system do."""
    try:
        check_file(path, "list_bytes")
        text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise InputError(
            f"cannot read {path} ({error.strerror}), which the lists beside it need; get the whole data set."
        ) from error
    return [(f"{path} line {n}", line.split()) for n, line in enumerate(text.split("\n"), 1) if line.strip()]


def _whole(where: str, text: str) -> int:
    try:
        if abs(number := int(text)) >> 63:
            raise ValueError("beyond 64 bits")
        return number
    except ValueError as error:
        raise InputError(f"{where} has {text[:40]!r} instead of a whole number; correct it.") from error


def _number(where: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not abs(number) <= LARGEST_PIXEL:
        raise InputError(f"{where} has {str(value)[:40]!r} instead of a number; correct it.")
    return number


def _annotations(path: Path, name: str, below: str = "") -> list[Annotation]:
    """Pictures in the MATLAB struct array ``annotations``, whose field ``name`` is a path below ``below``."""
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise MissingDependency(
            f"{path} is read with scipy, which is not installed; run `{install_line('train')}`."
        ) from error
    try:
        check_file(path, "list_bytes")
        content = loadmat(path, squeeze_me=True)
    except InputError:
        raise
    except Exception as error:  # for damaged files, scipy raises a dozen unrelated types
        reason = in_one_line(error)
        raise InputError(f"{path} is not a MATLAB file that scipy reads ({reason}); get it again.") from error
    annotations = np.atleast_1d(content.get("annotations", ()))
    fields = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", name)
    if absent := [field for field in fields if field not in (annotations.dtype.names or ())]:
        raise InputError(f"{path} has no annotations with {', '.join(absent)}; expected the struct array of CARS196.")
    if not len(annotations):
        raise InputError(f"{path} lists no pictures; get it again.")
    return [_annotation(f"{path} annotation {n}", [a[f] for f in fields], below) for n, a in enumerate(annotations, 1)]


def _annotation(where: str, values: list[Any], below: str) -> Annotation:
    *numbers, name = values
    if not (isinstance(name, str) and name):
        raise InputError(f"{where} names no picture; get the file again.")
    *corners, label = (_number(where, number) for number in numbers)
    return f"{below}{name}", str(round(label)), _box(where, *corners)
