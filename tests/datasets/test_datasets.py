"""Data sets in their authors' layouts: what is read from tiny ones, and every one that is refused."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from cgd_deploy import limits
from cgd_deploy.datasets.evaluation import Evaluation
from cgd_deploy.datasets.layouts import Dataset, read_dataset, read_evaluation, read_training
from cgd_deploy.errors import InputError, install_line
from cgd_deploy.pictures.images import ImageList
from cgd_deploy.pictures.preprocess import decode

PIXELS = np.random.default_rng(5).integers(0, 256, (24, 40, 3), np.uint8)
PNG = io.BytesIO()
Image.fromarray(PIXELS).save(PNG, "PNG")


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
    return path


def pictures(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(PNG.getvalue())


def struct(rows: list[tuple[Any, ...]], fields: str) -> np.ndarray:
    """The 1 x N struct array that MATLAB would save."""
    made = np.empty((1, len(rows)), [(field, object) for field in fields.split()])
    made[0] = rows
    return made


def cub(folder: Path) -> Path:
    """Classes 2, 9 | 10, 11: in number order, not in that of the text."""
    names = ("9.B/a.jpg", "10.C/a.jpg", "2.A/a.jpg", "11.D/a.jpg", "2.A/b.jpg")
    write(folder / "images.txt", "".join(f"{i} {name}\n" for i, name in enumerate(names, 1)))
    write(folder / "image_class_labels.txt", "1 9\n2 10\n3 2\n4 11\n5 2\n")
    write(
        folder / "bounding_boxes.txt",
        "1 3.0 2.0 30.0 20.0\n2 1.0 1.0 40.0 24.0\n3 0.0 0.0 12.0 13.0\n4 5.0 6.0 10.0 11.0\n5 1.4 1.6 9.0 9.0\n",
    )
    write(folder / "train_test_split.txt", "1 0\n2 1\n3 0\n4 1\n5 0\n")
    pictures(folder, *(f"images/{name}" for name in names))
    return folder


CARS = "relative_im_path bbox_x1 bbox_y1 bbox_x2 bbox_y2 class test"
CARS_ROWS = [
    ("car_ims/000001.jpg", 3, 2, 32, 21, 1, 0),
    ("car_ims/000002.jpg", 1, 1, 40, 24, 9, 1),
    ("car_ims/000003.jpg", 2, 4, 20, 22, 10, 0),
    ("car_ims/000004.jpg", 5, 6, 39, 23, 196, 1),
]


def cars(folder: Path, rows: list[tuple[Any, ...]] = CARS_ROWS) -> Path:
    pictures(folder, *(str(row[0]) for row in CARS_ROWS))
    savemat(folder / "cars_annos.mat", {"annotations": struct(rows, CARS), "class_names": ["a", "b"]})
    return folder


DEVKIT = "bbox_x1 bbox_y1 bbox_x2 bbox_y2 class fname"
DEVKIT_TRAINING = [(3, 2, 32, 21, 3, "00001.jpg"), (1, 1, 40, 24, 1, "00002.jpg"), (1, 1, 40, 24, 2, "00003.jpg")]
DEVKIT_TESTING = [(5, 6, 39, 23, 1, "00001.jpg"), (1, 1, 9, 9, 12, "00002.jpg")]


def devkit(folder: Path, training: str = "devkit/", testing: str | None = "devkit/") -> Path:
    pictures(folder, *(f"cars_train/0000{i}.jpg" for i in (1, 2, 3)), *(f"cars_test/0000{i}.jpg" for i in (1, 2)))
    (folder / "devkit").mkdir()
    savemat(folder / f"{training}cars_train_annos.mat", {"annotations": struct(DEVKIT_TRAINING, DEVKIT)})
    unlabelled = struct([(*row[:4], row[5]) for row in DEVKIT_TESTING], DEVKIT.replace(" class", ""))
    savemat(folder / "devkit" / "cars_test_annos.mat", {"annotations": unlabelled})
    if testing is not None:
        annotations = struct(DEVKIT_TESTING, DEVKIT)
        savemat(folder / f"{testing}cars_test_annos_withlabels.mat", {"annotations": annotations})
    return folder


SOP_HEADER = "image_id class_id super_class_id path\n"


def sop(folder: Path) -> Path:
    names = ("bicycle_final/1_0.JPG", "chair_final/2_0.JPG"), ("bicycle_final/3_0.JPG", "sofa_final/4_1.JPG")
    write(folder / "Ebay_train.txt", f"{SOP_HEADER}1 1 1 {names[0][0]}\n2 2 3 {names[0][1]}\n")
    write(folder / "Ebay_test.txt", f"{SOP_HEADER}3 11319 1 {names[1][0]}\n4 11320 12 {names[1][1]}\n")
    pictures(folder, *names[0], *names[1])
    return folder


INSHOP_HEADER = "image_name item_id evaluation_status\n"
INSHOP_ROWS = (
    "img/WOMEN/Tees/id_00000001/02_1_front.jpg               id_00000001 train  \n"
    "img/WOMEN/Tees/id_00000007/02_1_front.jpg               id_00000007 query  \n"
    "img/MEN/Denim/id_00000001/02_2_side.jpg                 id_00000001 train\n"
    "img/WOMEN/Tees/id_00000007/02_3_back.jpg                id_00000007 gallery\n"
    "img/MEN/Denim/id_00000080/01_1_front.jpg                id_00000080 gallery\n"
)


def inshop(folder: Path, lists: str = "Eval", below: str = "Img") -> Path:
    write(folder / lists / "list_eval_partition.txt", "5\n" + INSHOP_HEADER + INSHOP_ROWS)
    pictures(folder / below, *(line.split()[0] for line in INSHOP_ROWS.splitlines()))
    return folder


NAVER_HEADER = "image_id class_id path\n"


def naver(folder: Path) -> Path:
    write(folder / "train.txt", NAVER_HEADER + "1 0 images/A/a.jpg\n2 0 images/A/b.jpg\n3 1 images/B/a.jpg\n")
    write(folder / "test.txt", NAVER_HEADER + "4 0 images/C/a.jpg\n5 1 images/D/a.jpg\n")
    write(
        folder / "bbox.txt",
        "5 5.0 6.0 10.0 11.0\n1 3.0 2.0 30.0 20.0\n2 1.0 1.0 40.0 24.0\n3 1 1 9 9\n4 2 2 9 9\n99 1 1 9 9\n",
    )
    pictures(folder, *(f"images/{name}.jpg" for name in ("A/a", "A/b", "B/a", "C/a", "D/a")))
    return folder


def split_folder(folder: Path) -> Path:
    pictures(folder, "train/a/1.jpg", "train/b/1.jpg", "test/c/1.jpg", "test/c/2.jpg", "test/d/1.jpg")
    return folder


def msmt17(folder: Path) -> Path:
    lists = {
        "train": ("0000/0000_000_01_0303morning_0015_0.jpg 0", "0001/0001_000_12_0303noon_0015_1.jpg 1"),
        "query": ("0000/0000_000_02_0113noon_0015_0.jpg 0", "0001/0001_003_05_0113noon_0015_0.jpg 1"),
        "gallery": ("0000/0000_001_02_0113noon_0016_0.jpg 0", "0000/0000_002_14_0113noon_0016_0.jpg 0"),
    }
    for part, lines in lists.items():
        write(folder / f"list_{part}.txt", "\n".join(lines))
        pictures(folder / ("train" if part == "train" else "test"), *(line.split()[0] for line in lines))
    return folder


LAYOUTS = {
    "cub200": cub,
    "cars196": cars,
    "cars196 devkit": devkit,
    "sop": sop,
    "inshop": inshop,
    "naver": naver,
    "msmt17": msmt17,
    "folder": split_folder,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_recognised_and_its_pictures_are_there(tmp_path, layout):
    dataset = read_dataset(str(LAYOUTS[layout](tmp_path)))
    assert dataset.name == layout.split()[0]
    assert dataset.notes == ()
    for images in (dataset.training, dataset.testing.images):
        assert images and all(path.is_file() for path in images.paths)
        assert images.classes and all(isinstance(label, str) for label in images.classes)
    assert read_evaluation(tmp_path) == dataset.testing
    assert read_training(tmp_path) == dataset.training


@pytest.mark.parametrize("layout", LAYOUTS)
def test_boxes_can_be_left_out(tmp_path, layout):
    for broken in ("bounding_boxes.txt", "bbox.txt"):
        write(LAYOUTS[layout](tmp_path / broken) / broken, "broken\n")
        dataset = read_dataset(tmp_path / broken, boxes=False)
        assert dataset.training.boxes is dataset.testing.images.boxes is None
        assert dataset.notes == ()
        assert read_evaluation(tmp_path / broken, boxes=False) == dataset.testing
        assert read_training(tmp_path / broken, boxes=False) == dataset.training


@pytest.mark.parametrize("layout", ["cub200", "cars196", "cars196 devkit", "naver"])
def test_a_box_cuts_the_same_pixels_by_hand(tmp_path, layout):
    """x from 3 to 32 and y from 2 to 21, counted from 1, are columns 2 to 31 and rows 1 to 20 counted from 0."""
    dataset = read_dataset(LAYOUTS[layout](tmp_path))
    lists = (dataset.training, dataset.testing.images)
    boxed = [(images.path(i), images.box(i)) for images in lists for i in range(len(images))]
    path, box = next((path, box) for path, box in boxed if box == (2, 1, 32, 21))
    assert np.array_equal(np.asarray(decode(path, box)), PIXELS[1:21, 2:32])
    assert all(decode(path, box).size for path, box in boxed), "every box lies in its picture"


def test_cub200(tmp_path):
    dataset = read_dataset(cub(tmp_path))
    assert dataset.training == ImageList(
        tmp_path,
        ("images/9.B/a.jpg", "images/2.A/a.jpg", "images/2.A/b.jpg"),
        ("9", "2", "2"),
        ((2, 1, 32, 21), (0, 0, 11, 12), (0, 1, 9, 10)),
    )
    assert dataset.testing == Evaluation(
        ImageList(tmp_path, ("images/10.C/a.jpg", "images/11.D/a.jpg"), ("10", "11"), ((0, 0, 40, 24), (4, 5, 14, 16)))
    )
    assert dataset.testing.recall_at == (1, 2, 4, 8)


@pytest.mark.parametrize(("make", "lists"), [(cub, "bounding_boxes.txt"), (naver, "bbox.txt")])
def test_a_layout_without_its_boxes_is_whole_pictures_and_says_so(tmp_path, make, lists):
    (make(tmp_path) / lists).unlink()
    dataset = read_dataset(tmp_path)
    assert dataset.training.boxes is dataset.testing.images.boxes is None
    assert dataset.notes == (f"{tmp_path} has no {lists}: whole pictures are used.",)


def test_cars196(tmp_path):
    dataset = read_dataset(cars(tmp_path))
    assert dataset.training == ImageList(
        tmp_path, ("car_ims/000001.jpg", "car_ims/000002.jpg"), ("1", "9"), ((2, 1, 32, 21), (0, 0, 40, 24))
    )
    assert dataset.testing == Evaluation(
        ImageList(
            tmp_path, ("car_ims/000003.jpg", "car_ims/000004.jpg"), ("10", "196"), ((1, 3, 20, 22), (4, 5, 39, 23))
        )
    )


@pytest.mark.parametrize(("training", "testing"), [("devkit/", "devkit/"), ("devkit/", ""), ("", "")])
def test_the_devkit_of_cars196_splits_the_classes_of_both_halves(tmp_path, training, testing):
    dataset = read_dataset(devkit(tmp_path, training, testing))
    assert dataset.training.names == ("cars_train/00002.jpg", "cars_train/00003.jpg", "cars_test/00001.jpg")
    assert dataset.training.classes == ("1", "2", "1")
    assert dataset.training.boxes == ((0, 0, 40, 24), (0, 0, 40, 24), (4, 5, 39, 23))
    assert dataset.testing.images.names == ("cars_train/00001.jpg", "cars_test/00002.jpg")
    assert dataset.testing.images.classes == ("3", "12")


def test_the_half_of_cars196_without_classes_is_left_out_and_said_so(tmp_path):
    dataset = read_dataset(devkit(tmp_path, testing=None))
    assert dataset.training.names == ("cars_train/00002.jpg",)
    assert dataset.testing.images.names == ("cars_train/00001.jpg", "cars_train/00003.jpg")
    (note,) = dataset.notes
    assert "cars_test_annos_withlabels.mat" in note and note.endswith(".")


def test_numbers_of_a_mat_file_may_be_doubles(tmp_path):
    rows = [(name, *map(float, numbers)) for name, *numbers in CARS_ROWS]
    assert read_dataset(cars(tmp_path / "doubles", rows)).training.classes == ("1", "9")
    assert read_dataset(tmp_path / "doubles").training.boxes == read_dataset(cars(tmp_path / "ints")).training.boxes


def test_stanford_online_products(tmp_path):
    dataset = read_dataset(sop(tmp_path))
    assert dataset.training == ImageList(tmp_path, ("bicycle_final/1_0.JPG", "chair_final/2_0.JPG"), ("1", "2"))
    assert dataset.testing == Evaluation(
        ImageList(tmp_path, ("bicycle_final/3_0.JPG", "sofa_final/4_1.JPG"), ("11319", "11320")),
        recall_at=(1, 10, 100, 1000),
    )


@pytest.mark.parametrize(("lists", "below"), [("Eval", "Img"), ("", "Img"), ("Eval", ""), ("", "")])
def test_inshop(tmp_path, lists, below):
    dataset = read_dataset(inshop(tmp_path, lists, below))
    women, men = "img/WOMEN/Tees/id_00000007", "img/MEN/Denim"
    assert dataset.training == ImageList(
        tmp_path / below,
        ("img/WOMEN/Tees/id_00000001/02_1_front.jpg", f"{men}/id_00000001/02_2_side.jpg"),
        ("id_00000001", "id_00000001"),
    )
    assert dataset.testing == Evaluation(
        ImageList(
            tmp_path / below,
            (f"{women}/02_1_front.jpg", f"{women}/02_3_back.jpg", f"{men}/id_00000080/01_1_front.jpg"),
            ("id_00000007", "id_00000007", "id_00000080"),
        ),
        in_gallery=(False, True, True),
        recall_at=(1, 10, 20, 30, 40, 50),
    )


def test_naver(tmp_path):
    dataset = read_dataset(naver(tmp_path))
    assert dataset.training == ImageList(
        tmp_path,
        ("images/A/a.jpg", "images/A/b.jpg", "images/B/a.jpg"),
        ("0", "0", "1"),
        ((2, 1, 32, 21), (0, 0, 40, 24), (0, 0, 9, 9)),
    )
    assert dataset.testing == Evaluation(
        ImageList(tmp_path, ("images/C/a.jpg", "images/D/a.jpg"), ("0", "1"), ((1, 1, 10, 10), (4, 5, 14, 16)))
    )


def test_msmt17(tmp_path):
    dataset = read_dataset(msmt17(tmp_path))
    names = ("train/0000/0000_000_01_0303morning_0015_0.jpg", "train/0001/0001_000_12_0303noon_0015_1.jpg")
    assert dataset.training == ImageList(tmp_path, names, ("0", "1"))
    testing = dataset.testing
    assert testing.images.classes == ("0", "1", "0", "0") and testing.images.names[0].startswith(
        "test/0000/0000_000_02_"
    )
    assert (testing.in_gallery, testing.cameras) == ((False, False, True, True), ("2", "5", "2", "14"))
    assert testing.recall_at == (1, 5, 10)
    assert testing.asked == {"asked": 2, "unanswerable": 1} and testing.relevant.tolist() == [1, 0]
    write(tmp_path / "list_val.txt", "0000/0000_000_03_0303morning_0015_0.jpg 0")
    assert read_dataset(tmp_path).notes == (f"list_val.txt of {tmp_path} is not used.",)


def test_lists_of_naver_that_both_number_from_one_need_no_boxes(tmp_path):
    write(naver(tmp_path) / "test.txt", NAVER_HEADER + "1 0 images/C/a.jpg\n")
    assert read_dataset(tmp_path, boxes=False).testing.images.names == ("images/C/a.jpg",)
    with pytest.raises(InputError, match=r"test\.txt line 2 has an id of train\.txt"):
        read_dataset(tmp_path)


def test_a_folder_with_its_own_split(tmp_path):
    (split_folder(tmp_path) / ".cache").mkdir()
    dataset = read_dataset(tmp_path)
    assert dataset.training == ImageList(tmp_path / "train", ("a/1.jpg", "b/1.jpg"), ("a", "b"))
    assert dataset.testing == Evaluation(
        ImageList(tmp_path / "test", ("c/1.jpg", "c/2.jpg", "d/1.jpg"), ("c", "c", "d"))
    )


def test_a_split_of_the_same_classes_says_so(tmp_path):
    pictures(split_folder(tmp_path), "train/c/1.jpg")
    (note,) = read_dataset(tmp_path).notes
    assert "share 1 classes" in note and note.endswith(".")


def test_a_folder_without_a_split_is_halved(tmp_path):
    pictures(tmp_path, "b/1.jpg", "a/1.jpg", "c/1.jpg")
    dataset = read_dataset(tmp_path)
    assert dataset == Dataset(
        "folder",
        ImageList(tmp_path, ("a/1.jpg",), ("a",)),
        Evaluation(ImageList(tmp_path, ("b/1.jpg", "c/1.jpg"), ("b", "c"))),
        (f"{tmp_path} has no split of its own: its first 1 classes train, the other 2 test.",),
    )
    assert read_training(tmp_path) == read_evaluation(tmp_path).images
    assert read_training(tmp_path).classes == ("a", "b", "c")


def test_a_list_is_halved_with_or_without_boxes(tmp_path):
    source = write(tmp_path / "list.tsv", "image\tclass\tx1\ty1\tx2\ty2\na.jpg\t2\t0\t0\t9\t9\nb.jpg\t10\t0\t0\t8\t8\n")
    dataset = read_dataset(source)
    assert dataset.name == "list"
    assert (dataset.training.names, dataset.testing.images.names) == (("a.jpg",), ("b.jpg",))
    assert read_training(source).boxes == ((0, 0, 9, 9), (0, 0, 8, 8)) == read_evaluation(source).images.boxes
    assert read_dataset(source, boxes=False).training.boxes is None
    assert read_training(source, boxes=False).boxes is read_evaluation(source, boxes=False).images.boxes is None


def test_pictures_without_classes_can_be_calibrated_on_but_not_divided(tmp_path):
    pictures(tmp_path, "a.jpg", "b.jpg")
    assert len(read_training(tmp_path)) == len(read_evaluation(f"{tmp_path}/*.jpg").images) == 2
    with pytest.raises(InputError, match="no classes"):
        read_dataset(tmp_path)


def test_images_tsv_goes_before_every_layout(tmp_path):
    write(naver(cub(tmp_path)) / "images.tsv", "image\tclass\n2.A/a.jpg\tx\n9.B/a.jpg\ty\n")
    dataset = read_dataset(tmp_path)
    assert (dataset.name, dataset.training.classes) == ("list", ("x",))


def test_cub200_with_lists_of_naver_is_cub200(tmp_path):
    assert read_dataset(naver(cub(tmp_path))).name == "cub200"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_in_a_folder_of_its_own_is_read_and_the_notes_say_so(tmp_path, layout):
    expected = read_dataset(LAYOUTS[layout](tmp_path / "unpacked"))
    write(tmp_path / "attributes.txt", "1 has_bill_shape\n")  # lies beside the folder of CUB200's archive
    dataset = read_dataset(tmp_path)
    assert (dataset.name, dataset.training, dataset.testing) == (expected.name, expected.training, expected.testing)
    told = f"{tmp_path / 'unpacked'} is read, because all pictures of {tmp_path} lie there."
    assert dataset.notes == read_evaluation(tmp_path).images.notes == read_training(tmp_path).notes == (told,)


@pytest.mark.parametrize(
    ("make", "folders"),
    [
        (devkit, ["cars_train", "cars_test"]),
        (devkit, ["cars_train"]),
        (cars, ["car_ims"]),
        (sop, ["bicycle_final", "chair_final", "sofa_final"]),
        (inshop, ["Img/img"]),
    ],
)
def test_pictures_in_a_folder_of_its_own_name_are_found_and_the_notes_say_so(tmp_path, make, folders):
    expected = read_dataset(make(tmp_path))
    boxes = expected.training.boxes
    for folder in folders:
        (tmp_path / folder).rename(tmp_path / "away")
        (tmp_path / folder).mkdir()
        (tmp_path / "away").rename(tmp_path / folder / Path(folder).name)
    dataset = read_dataset(tmp_path)
    for images in (dataset.training, dataset.testing.images):
        assert all(path.is_file() for path in images.paths)
    assert dataset.training.classes == expected.training.classes and dataset.training.boxes == boxes
    notes = [f"pictures of {tmp_path / name} are read from the folder {Path(name).name} in it." for name in folders]
    assert sorted(dataset.notes) == sorted(notes)
    assert set(notes) == {*read_training(tmp_path).notes, *read_evaluation(tmp_path).images.notes}


def test_the_devkit_as_kaggle_packs_it(tmp_path):
    expected = read_dataset(devkit(tmp_path))
    (tmp_path / "devkit").rename(tmp_path / "inner")
    (tmp_path / "car_devkit").mkdir()
    (tmp_path / "inner").rename(tmp_path / "car_devkit" / "devkit")
    assert read_dataset(tmp_path) == expected


@pytest.mark.parametrize("layout", ["cub200", "sop", "inshop"])
def test_a_layout_beside_other_pictures_is_named(tmp_path, layout):
    LAYOUTS[layout](tmp_path / "data")
    pictures(tmp_path, "segmentations/a.png")
    for function in (read_dataset, read_evaluation, read_training):
        with pytest.raises(InputError, match="has 2 folders, of which data/ is a data set with a split of its own"):
            function(tmp_path)


@pytest.mark.parametrize("layout", ["cub200", "sop", "inshop", "naver"])
def test_lists_by_any_editor(tmp_path, layout):
    expected = read_dataset(LAYOUTS[layout](tmp_path))
    for path in tmp_path.rglob("*.txt"):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n") + b"\r\n \r\n")
    assert read_dataset(tmp_path) == expected


def test_a_name_in_another_encoding_keeps_its_bytes(tmp_path):
    lists = sop(tmp_path) / "Ebay_test.txt"
    lists.write_bytes(lists.read_bytes().replace(b"4_1", b"caf\xe9"))
    try:
        (tmp_path / "sofa_final" / "4_1.JPG").rename(tmp_path / "sofa_final" / "caf\udce9.JPG")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    assert read_dataset(tmp_path).testing.images.path(1).is_file()


def edited(make: Callable[[Path], Path], name: str, old: str, new: str) -> Callable[[Path], Path]:
    """The layout with the first ``old`` in file ``name`` replaced."""

    def made(folder: Path) -> Path:
        text = (make(folder) / name).read_text()
        assert old in text
        write(folder / name, text.replace(old, new, 1))
        return folder

    return made


def without(make: Callable[[Path], Path], name: str) -> Callable[[Path], Path]:
    """The layout with a file or a folder moved away."""

    def made(folder: Path) -> Path:
        (make(folder) / name).rename(folder.with_name("away"))
        return folder

    return made


def with_cars(rows: list[tuple[Any, ...]]) -> Callable[[Path], Path]:
    return lambda folder: cars(folder, rows)


def with_mat(content: dict[str, Any]) -> Callable[[Path], Path]:
    def made(folder: Path) -> Path:
        savemat(cars(folder) / "cars_annos.mat", content)
        return folder

    return made


def with_bytes(data: bytes) -> Callable[[Path], Path]:
    def made(folder: Path) -> Path:
        (cars(folder) / "cars_annos.mat").write_bytes(data)
        return folder

    return made


def pictures_at_the_top(folder: Path) -> Path:
    pictures(split_folder(folder), "test/1.jpg")
    return folder


EVAL = "Eval/list_eval_partition.txt"
LABELS = "image_class_labels.txt"
BOXES = "bounding_boxes.txt"
ONE_CLASS = [(*row[:5], 1, 0) for row in CARS_ROWS]
MALFORMED = {
    "cub, no labels": (without(cub, LABELS), "labels.txt (No such file or directory)"),
    "cub, no paths": (without(cub, "images.txt"), "images.txt (No such file or directory)"),
    "cub, no pictures": (without(cub, "images"), "has no folder images"),
    "cub, path left out": (
        edited(cub, "images.txt", "2 10.C/a.jpg", "2"),
        "images.txt line 2 has 1 fields; expected 2",
    ),
    "cub, path that leaves": (
        edited(cub, "images.txt", "10.C/a", "../../a"),
        "names 'images/../../a.jpg', outside of it",
    ),
    "cub, id of many digits": (edited(cub, "images.txt", "4 ", "9" * 30 + " "), "images.txt line 4 has '999"),
    "cub, huge box": (edited(cub, BOXES, "40.0", "1e300"), "bounding_boxes.txt line 2 has '1e300'"),
    "cub, three fields": (edited(cub, LABELS, "2 10", "2 10 1"), "labels.txt line 2 has 3 fields; expected 2"),
    "cub, id of words": (edited(cub, "images.txt", "4 ", "four "), "images.txt line 4 has 'four'"),
    "cub, class of words": (edited(cub, LABELS, "2 10", "2 ten"), "labels.txt line 2 has 'ten'"),
    "cub, class of fractions": (edited(cub, LABELS, "2 10", "2 1.5"), "labels.txt line 2 has '1.5'"),
    "cub, id twice": (edited(cub, "images.txt", "4 ", "3 "), "images.txt line 4 has the id 3 for the second time"),
    "cub, id without a label": (edited(cub, LABELS, "4 11\n", ""), "images.txt line 4 has the id 4, which image_class"),
    "cub, id without a path": (
        edited(cub, "images.txt", "4 11.D/a.jpg\n", ""),
        "line 4 has the id 4, which images.txt",
    ),
    "cub, id without a box": (edited(cub, BOXES, "4 5.0", "44 5.0"), "line 4 has the id 4, which bounding_boxes.txt"),
    "cub, box of words": (edited(cub, BOXES, "40.0", "wide"), "bounding_boxes.txt line 2 has 'wide'"),
    "cub, endless box": (edited(cub, BOXES, "40.0", "inf"), "bounding_boxes.txt line 2 has 'inf'"),
    "cub, empty box": (edited(cub, BOXES, "40.0", "0.0"), "bounding_boxes.txt line 2 has an empty box"),
    "cub, box of four fields": (edited(cub, BOXES, " 40.0", ""), "bounding_boxes.txt line 2 has 4 fields; expected 5"),
    "cub, one class": (edited(cub, LABELS, "1 9\n2 10\n3 2\n4 11\n", "1 2\n2 2\n3 2\n4 2\n"), "0 pictures to train on"),
    "cub, empty": (edited(cub, LABELS, "1 9\n2 10\n3 2\n4 11\n5 2\n", "\n"), "labels.txt lists no pictures"),
    "cars, no pictures": (without(cars, "car_ims"), "has no folder car_ims"),
    "cars, path that leaves": (with_cars([("/a.jpg", *row[1:]) for row in CARS_ROWS]), "names '/a.jpg', outside of it"),
    "cars, one class": (with_cars(ONE_CLASS), "0 pictures to train on and 4 to test on"),
    "cars, no name": (with_cars([*CARS_ROWS, ("", 1, 1, 9, 9, 1, 0)]), "cars_annos.mat annotation 5 names no picture"),
    "cars, box of words": (with_cars([("a", 1, 1, "x", 9, 1, 0)]), "cars_annos.mat annotation 1 has 'x'"),
    "cars, box of two": (with_cars([("a", 1, 1, [1, 2], 9, 1, 0)]), "cars_annos.mat annotation 1 has '[1 2]'"),
    "cars, empty box": (with_cars([("a", 9, 1, 8, 9, 1, 0)]), "cars_annos.mat annotation 1 has an empty box"),
    "cars, nan class": (with_cars([("a", 1, 1, 8, 9, np.nan, 0)]), "cars_annos.mat annotation 1 has 'nan'"),
    "cars, no class": (
        with_mat({"annotations": struct([row[:5] for row in CARS_ROWS], CARS.replace(" class test", ""))}),
        "cars_annos.mat has no annotations with class;",
    ),
    "cars, no annotations": (with_mat({"annotation": [1]}), "cars_annos.mat has no annotations with bbox_x1"),
    "cars, no struct": (with_mat({"annotations": [1, 2]}), "cars_annos.mat has no annotations with bbox_x1"),
    "cars, empty": (with_mat({"annotations": struct([], CARS)}), "cars_annos.mat lists no pictures"),
    "cars, text": (with_bytes(b"car_ims/000001.jpg 1\n" * 20), "cars_annos.mat is not a MATLAB file"),
    "cars, empty file": (with_bytes(b""), "cars_annos.mat is not a MATLAB file"),
    "cars, MATLAB 7.3": (
        with_bytes(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(400)),
        "cars_annos.mat is not a MATLAB file",
    ),
    "devkit, no training": (without(devkit, "devkit/cars_train_annos.mat"), "has no devkit/cars_train_annos.mat"),
    "devkit, no test pictures": (without(devkit, "cars_test"), "has no folder cars_test"),
    "sop, no test": (without(sop, "Ebay_test.txt"), "Ebay_test.txt (No such file or directory)"),
    "sop, no training": (without(sop, "Ebay_train.txt"), "Ebay_train.txt (No such file or directory)"),
    "sop, no pictures": (without(sop, "sofa_final"), "has no folder sofa_final"),
    "sop, path that leaves": (
        edited(sop, "Ebay_test.txt", "sofa_final", "../a"),
        "names '../a/4_1.JPG', outside of it",
    ),
    "sop, no header": (edited(sop, "Ebay_train.txt", SOP_HEADER, ""), "Ebay_train.txt line 1 is '1 1 1 bicycle"),
    "sop, three fields": (edited(sop, "Ebay_test.txt", " 12 ", " "), "Ebay_test.txt line 3 has 3 fields; expected 4"),
    "sop, class of words": (edited(sop, "Ebay_test.txt", "11320", "sofa"), "Ebay_test.txt line 3 has 'sofa'"),
    "sop, id twice": (edited(sop, "Ebay_test.txt", "4 11320", "3 11320"), "Ebay_test.txt line 3 has the id 3"),
    "inshop, no pictures": (without(inshop, "Img"), "has no folder img"),
    "inshop, no count": (edited(inshop, EVAL, "5\n", ""), "partition.txt line 2 is 'img/WOMEN"),
    "inshop, wrong count": (
        edited(inshop, EVAL, "5\n", "6\n"),
        "partition.txt line 1 counts '6' pictures, but 5 follow",
    ),
    "inshop, count of words": (edited(inshop, EVAL, "5\n", "five of them\n"), "line 1 counts 'five of them'"),
    "inshop, no header": (edited(inshop, EVAL, INSHOP_HEADER, ""), "partition.txt line 2 is 'img/WOMEN"),
    "inshop, count only": (edited(inshop, EVAL, INSHOP_HEADER + INSHOP_ROWS, ""), "partition.txt line 1 is '5'"),
    "inshop, unknown status": (edited(inshop, EVAL, "query", "val"), "partition.txt line 4 has the status 'val'"),
    "inshop, no query": (edited(inshop, EVAL, "query", "gallery"), "has no picture of query"),
    "inshop, item left out": (
        edited(inshop, EVAL, "id_00000080 gallery", "gallery"),
        "partition.txt line 7 has 2 fields",
    ),
    "naver, no header": (edited(naver, "train.txt", NAVER_HEADER, ""), "train.txt line 1 is '1 0 images/A/a.jpg'"),
    "naver, empty": (edited(naver, "test.txt", "4 0 images/C/a.jpg\n5 1 images/D/a.jpg\n", ""), "lists no pictures"),
    "naver, no text": (
        edited(naver, "test.txt", NAVER_HEADER + "4 0 images/C/a.jpg\n5 1 images/D/a.jpg\n", ""),
        "is ''",
    ),
    "naver, no pictures": (without(naver, "images"), "has no folder images"),
    "naver, two fields": (edited(naver, "test.txt", "5 1 ", "5 "), "test.txt line 3 has 2 fields; expected 3"),
    "naver, class of words": (edited(naver, "test.txt", "5 1 ", "5 d "), "test.txt line 3 has 'd'"),
    "naver, id without a box": (
        edited(naver, "bbox.txt", "5 5.0", "6 5.0"),
        "line 3 has the id 5, which bbox.txt lacks",
    ),
    "msmt17, no training": (without(msmt17, "list_train.txt"), "list_train.txt (No such file or directory)"),
    "msmt17, no pictures": (without(msmt17, "test"), "has no folder test"),
    "msmt17, path that leaves": (edited(msmt17, "list_query.txt", "0001/", "../../"), "names 'test/../../0001_003"),
    "msmt17, no identity": (edited(msmt17, "list_query.txt", "0.jpg 0", "0.jpg"), "list_query.txt line 1 has 1 fields"),
    "msmt17, identity of words": (edited(msmt17, "list_gallery.txt", "0.jpg 0", "0.jpg a"), "line 1 has 'a' instead"),
    "msmt17, no camera": (
        edited(msmt17, "list_query.txt", "0000_000_02_0113noon_0015_0", "a"),
        "'0000/a.jpg', which names no camera",
    ),
    "msmt17, camera of words": (edited(msmt17, "list_query.txt", "_02_", "_b_"), "list_query.txt line 1 has 'b'"),
    "folder, pictures beside classes": (pictures_at_the_top, "test has pictures outside class folders"),
}


@pytest.mark.parametrize(("make", "says"), MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_data_set_is_refused(tmp_path, make, says):
    folder = make(tmp_path / "data")
    with pytest.raises(InputError) as caught:
        read_dataset(folder)
    message = str(caught.value)
    assert says in message and str(folder) in message
    assert "\n" not in message and message.endswith(".") and len(message) - len(str(folder)) < 300


def test_an_empty_half_of_a_folder_is_refused(tmp_path):
    pictures(tmp_path, "train/a/1.jpg")
    write(tmp_path / "test" / "c" / "notes.txt", "")
    with pytest.raises(InputError, match="test holds no pictures"):
        read_dataset(tmp_path)


def test_lists_in_utf_16_are_refused(tmp_path):
    path = cub(tmp_path) / "images.txt"
    path.write_bytes(path.read_text().encode("utf-16"))
    with pytest.raises(InputError, match=r"images\.txt line \d has"):
        read_dataset(tmp_path)


def test_reading_opens_no_picture(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "open", lambda *_: pytest.fail("a picture was opened"))
    for name, make in LAYOUTS.items():
        read_dataset(make(tmp_path / name))


@pytest.mark.parametrize("name", LAYOUTS)
def test_lists_have_a_size(tmp_path, monkeypatch, name):
    folder = LAYOUTS[name](tmp_path / name)
    monkeypatch.setattr(limits, "_limits", limits.Limits(list_bytes=10))
    if name.endswith("folder"):
        assert read_dataset(folder).training
    else:
        with pytest.raises(InputError, match="the limit list_bytes is 10"):
            read_dataset(folder)


def test_a_list_in_a_split_folder_may_lead_elsewhere(tmp_path):
    for part, number in (("train", 1), ("test", 2)):
        picture = tmp_path / "elsewhere" / f"{part}.png"
        pictures(tmp_path, f"elsewhere/{part}.png")
        write(tmp_path / "both" / part / "images.tsv", f"image\tclass\n{picture}\t{number}\n")
    assert read_dataset(tmp_path / "both").training.paths == [tmp_path / "elsewhere" / "train.png"]


def test_only_mat_files_need_scipy(tmp_path):
    code = """
import sys
sys.modules["scipy"] = None
from cgd_deploy.datasets.layouts import read_dataset
from cgd_deploy.errors import MissingDependency
print(read_dataset(sys.argv[1]).name)
try:
    read_dataset(sys.argv[2])
except MissingDependency as error:
    print(error)
"""
    command = [sys.executable, "-c", code, cub(tmp_path / "cub"), cars(tmp_path / "cars")]
    name, said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert name == "cub200"
    assert "cars_annos.mat" in said and said.endswith(f"run `{install_line('train')}`.")
