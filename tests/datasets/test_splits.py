"""Splits that folders or a list tell: their spellings, what lies beside them, re-identification by its protocol."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from cgd_deploy.datasets.evaluation import Evaluation
from cgd_deploy.datasets.layouts import read_dataset, read_evaluation, read_training
from cgd_deploy.errors import InputError
from cgd_deploy.pictures.images import ImageList, read_images


def touch(folder: Path, *names: str) -> Path:
    """Files that are pictures by their names; nothing here opens them."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"\xff\xd8\xff")
    return folder


def two_parts(folder: Path, training: str, testing: str) -> Path:
    return touch(
        folder,
        f"{training}/a/1.jpg",
        f"{training}/b/1.jpg",
        f"{testing}/c/1.jpg",
        f"{testing}/c/2.jpg",
        f"{testing}/d/1.jpg",
    )


def refused(message: str, *functions: Callable[[Path], object], folder: Path) -> None:
    for function in functions or (read_dataset, read_evaluation, read_training):
        with pytest.raises(InputError, match=message) as caught:
            function(folder)
        assert "\n" not in str(caught.value) and str(caught.value).endswith(".")


@pytest.mark.parametrize(
    ("training", "testing"),
    [
        ("train", "test"),
        ("train", "val"),
        ("Train", "Val"),
        ("TRAIN", "TEST"),
        ("training", "validation"),
        ("Training", "Testing"),
        ("train", "valid"),
        ("trn", "tst"),
        ("train", "dev"),
        ("train", "eval"),
        ("train_set", "test_set"),
        ("train-images", "test images"),
        ("cars_train", "cars_test"),
        ("images_train", "images_test"),
        ("train2017", "val2017"),
    ],
)
def test_a_split_in_many_spellings(tmp_path, training, testing):
    dataset = read_dataset(two_parts(tmp_path, training, testing))
    assert dataset.name == "folder"
    assert dataset.training == ImageList(tmp_path / training, ("a/1.jpg", "b/1.jpg"), ("a", "b"))
    images = ImageList(tmp_path / testing, ("c/1.jpg", "c/2.jpg", "d/1.jpg"), ("c", "c", "d"))
    assert dataset.testing == Evaluation(images)
    assert read_evaluation(tmp_path) == dataset.testing
    assert read_training(tmp_path) == dataset.training


@pytest.mark.parametrize("validation", ["val", "Validation", "dev"])
def test_of_test_and_validation_test_is_read_and_a_note_says_so(tmp_path, validation):
    touch(two_parts(tmp_path, "train", "test"), f"{validation}/e/1.jpg")
    told = f"{validation}/ of {tmp_path} is not used: test/ tests."
    assert read_dataset(tmp_path).notes == (told,)
    assert read_evaluation(tmp_path).images.notes == (told,)
    assert read_evaluation(tmp_path).images.classes == ("c", "c", "d")
    assert read_training(tmp_path).classes == ("a", "b")


@pytest.mark.parametrize("validation", ["val", "valid"])
def test_validation_tests_where_there_is_no_test_part_and_a_note_says_so(tmp_path, validation):
    two_parts(tmp_path, "train", validation)
    told = f"{tmp_path} has no test part: {validation}/ tests."
    assert read_dataset(tmp_path).notes == read_evaluation(tmp_path).images.notes == (told,)


def test_notes_are_no_part_of_a_list(tmp_path):
    two_parts(tmp_path, "train", "val")
    images = read_evaluation(tmp_path).images
    assert images.notes and "notes" not in images.to_dict()
    assert images == ImageList.from_dict(images.to_dict()) and images.subset([0]).notes == images.notes


def test_files_and_folders_without_pictures_beside_a_split_are_left_alone(tmp_path):
    two_parts(tmp_path, "train", "test")
    for name in ("readme.txt", "labels/train/1.txt", ".cache/a/1.txt", "devkit/x.m"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    assert read_dataset(tmp_path).notes == ()
    touch(tmp_path, "preview.jpg")
    assert read_dataset(tmp_path).training.classes == ("a", "b")


@pytest.mark.parametrize("extra", ["extra/e/1.jpg", "unlabeled/1.jpg", "augmented/train/a/1.jpg"])
@pytest.mark.parametrize("parts", [("train", "val"), ("train", "test"), ("val", "test"), ("query", "gallery")])
def test_folders_with_pictures_beside_a_split_are_named_and_no_classes(tmp_path, parts, extra):
    touch(two_parts(tmp_path, *parts), extra)
    names = {*parts}
    refused(f"has {extra.split('/')[0]}/ beside .*/ and .*/, and no split has such a part", folder=tmp_path)
    with pytest.raises(InputError) as caught:
        read_dataset(tmp_path)
    assert all(f"{name}/" in str(caught.value) for name in names)


@pytest.mark.parametrize("twice", [("train", "training"), ("Train", "TRAIN"), ("train", "trn")])
def test_two_folders_of_one_part_are_named(tmp_path, twice):
    touch(two_parts(tmp_path, twice[0], "test"), f"{twice[1]}/a/1.jpg")
    if len({path.name for path in tmp_path.iterdir()}) < 3:
        pytest.skip("this file system knows no case")
    refused("has .*, and several of them are for training; keep one of these", folder=tmp_path)


@pytest.mark.parametrize("lone", ["train", "Training"])
def test_a_training_part_alone_trains_and_cannot_test(tmp_path, lone):
    touch(tmp_path, f"{lone}/a/1.jpg", f"{lone}/b/1.jpg")
    assert read_training(tmp_path) == ImageList(tmp_path / lone, ("a/1.jpg", "b/1.jpg"), ("a", "b"))
    told = f"has {lone}/ but no test part; add a folder test/ or val/, or pass {tmp_path / lone}"
    refused(told, read_dataset, read_evaluation, folder=tmp_path)
    assert read_dataset(tmp_path / lone).testing.images.classes == ("b",)


@pytest.mark.parametrize("lone", ["test", "val"])
def test_a_test_part_alone_tests_and_cannot_train(tmp_path, lone):
    touch(tmp_path, f"{lone}/a/1.jpg", f"{lone}/b/1.jpg")
    assert read_evaluation(tmp_path).images.classes == ("a", "b")
    refused("has a test part but no training part; add a folder train/", read_dataset, read_training, folder=tmp_path)


@pytest.mark.parametrize(
    "classes", [("train", "car", "bus"), ("test", "sample"), ("gallery", "museum", "training"), ("dev", "ops")]
)
def test_a_class_that_is_called_like_a_part_stays_a_class(tmp_path, classes):
    touch(tmp_path, *(f"{label}/{n}.jpg" for label in classes for n in (1, 2)))
    assert set(read_evaluation(tmp_path).images.classes) == set(classes)
    assert len(read_training(tmp_path)) == 2 * len(classes)


@pytest.mark.parametrize("others", [("car/1.jpg", "bus/1.jpg"), ("extra/a/1.jpg",)])
def test_a_part_with_class_folders_beside_others_may_be_either_and_is_refused(tmp_path, others):
    touch(tmp_path, "train/steam/1.jpg", "train/diesel/1.jpg", *others)
    refused("has train/ with class folders in it beside .*, so it may be a class or a part of a split", folder=tmp_path)


@pytest.mark.parametrize(
    "names", [("train/1.jpg", "val/c/1.jpg"), ("train/a/1.jpg", "val/1.jpg"), ("train/1.jpg", "val/2.jpg")]
)
def test_parts_need_class_folders(tmp_path, names):
    refused("has pictures outside class folders; expected one folder per class", folder=touch(tmp_path, *names))


def test_queries_search_a_gallery_of_class_folders(tmp_path):
    touch(tmp_path, "query/a/1.jpg", "query/b/1.jpg", "gallery/a/2.jpg", "gallery/c/1.jpg")
    evaluation = read_evaluation(tmp_path)
    names = ("query/a/1.jpg", "query/b/1.jpg", "gallery/a/2.jpg", "gallery/c/1.jpg")
    images = ImageList(tmp_path, names, ("a", "b", "a", "c"))
    assert evaluation == Evaluation(images, (False, False, True, True))
    assert all(path.is_file() for path in evaluation.images.paths)
    refused("no training part", read_dataset, read_training, folder=tmp_path)
    touch(tmp_path, "train/x/1.jpg", "train/y/1.jpg", "val/x/1.jpg")
    dataset = read_dataset(tmp_path)
    assert dataset.training.classes == ("x", "y") and dataset.testing == evaluation
    assert dataset.notes == (f"val/ of {tmp_path} is not used: query/ and gallery/ test.",)


def test_queries_and_a_gallery_may_have_no_classes(tmp_path):
    touch(tmp_path, "query/1.jpg", "gallery/1.jpg", "gallery/2.jpg")
    assert read_evaluation(tmp_path) == Evaluation(
        ImageList(tmp_path, ("query/1.jpg", "gallery/1.jpg", "gallery/2.jpg")), (False, True, True)
    )
    touch(tmp_path / "mixed", "query/1.jpg", "gallery/a/1.jpg")
    refused("query has pictures outside class folders", read_evaluation, folder=tmp_path / "mixed")


@pytest.mark.parametrize("query", ["query", "Probe"])
def test_queries_need_a_gallery(tmp_path, query):
    touch(tmp_path, "train/a/1.jpg", f"{query}/a/1.jpg")
    refused(f"has {query}/ but no gallery; add a folder gallery/", folder=tmp_path)


def test_lists_of_queries_and_gallery_keep_boxes_and_places(tmp_path):
    touch(tmp_path, "elsewhere/1.jpg", "both/gallery/images/2.jpg")
    header = "image\tclass\tx1\ty1\tx2\ty2\n"
    (tmp_path / "both/query").mkdir()
    (tmp_path / "both/query/images.tsv").write_text(f"{header}{tmp_path}/elsewhere/1.jpg\ta\t0\t0\t9\t9\n")
    (tmp_path / "both/gallery/images.tsv").write_text(f"{header}2.jpg\ta\t1\t1\t8\t8\n")
    images = read_evaluation(tmp_path / "both").images
    assert images.boxes == ((0, 0, 9, 9), (1, 1, 8, 8)) and all(path.is_file() for path in images.paths)
    assert read_evaluation(tmp_path / "both", boxes=False).images.boxes is None


MARKET = {
    "bounding_box_train": (
        "0007_c1s1_000151_01.jpg",
        "0007_c2s3_070952_01.jpg",
        "0010_c6s4_002427_07.jpg",
        "-1_c1s1_000151_01.jpg",
    ),
    "query": (
        "0001_c1s1_001051_00.jpg",
        "0001_c2s1_000301_00.jpg",
        "0003_c1s6_015971_00.jpg",
        "0004_c3s6_015996_00.jpg",
    ),
    "bounding_box_test": (
        "-1_c1s1_000401_03.jpg",
        "-1_c2s1_000401_03.jpg",
        "0000_c1s1_000151_01.jpg",
        "0000_c3s1_000376_03.jpg",
        "0001_c1s1_001051_03.jpg",
        "0001_c2s1_000301_01.jpg",
        "0001_c2s1_000301_02.jpg",
        "0003_c1s6_015971_02.jpg",
        "0004_c3s6_015996_02.jpg",
        "0004_c4s6_016021_04.jpg",
    ),
}
DUKE = {
    "bounding_box_train": ("0001_c2_f0046182.jpg", "0001_c5_f0051341.jpg", "0002_c1_f0044158.jpg"),
    "query": ("0005_c2_f0046985.jpg", "0005_c5_f0051781.jpg"),
    "bounding_box_test": ("0005_c2_f0047105.jpg", "0005_c5_f0051901.jpg", "0006_c1_f0044000.jpg"),
}
VERI = {
    "image_train": ("0001_c001_00016450_0.jpg", "0003_c012_00016460_0.jpg"),
    "image_query": ("0002_c002_00030600_0.jpg",),
    "image_test": ("0002_c002_00030600_0.jpg", "0002_c014_00030620_1.jpg", "0005_c014_00030625_1.jpg"),
}


def reid(folder: Path, layout: dict[str, tuple[str, ...]], in_folders: bool = False) -> Path:
    for part, names in layout.items():
        touch(folder / part, *(f"{name.split('_')[0]}/{name}" if in_folders else name for name in names))
    return folder


@pytest.mark.parametrize("in_folders", [False, True])
@pytest.mark.parametrize("layout", [MARKET, DUKE, VERI])
def test_re_identification_trains_and_searches_by_names(tmp_path, layout, in_folders):
    dataset = read_dataset(reid(tmp_path, layout, in_folders))
    training, query, gallery = layout.values()
    assert dataset.name == "reid"
    assert dataset.training.root == tmp_path / next(iter(layout))
    sound = [name for name in sorted(training) if not name.startswith("-1")]
    assert [Path(name).name for name in dataset.training.names] == sound
    assert list(dataset.training.classes) == [name.split("_")[0] for name in sound]
    testing = dataset.testing
    kept = [*sorted(query), *(name for name in sorted(gallery) if not name.startswith("-1"))]
    assert [path.name for path in testing.images.paths] == kept and all(path.is_file() for path in testing.images.paths)
    assert list(testing.images.classes) == [name.split("_")[0] for name in kept]
    assert list(testing.cameras) == [str(int(name.split("_c")[1].split("s")[0].split("_")[0])) for name in kept]
    assert testing.in_gallery == tuple(number >= len(query) for number in range(len(kept)))
    assert testing.recall_at == (1, 5, 10)
    assert read_evaluation(tmp_path) == testing and read_training(tmp_path) == dataset.training
    (note,) = dataset.notes
    assert note.startswith(f"names in {tmp_path} give identity and camera: ")


def test_recall_is_the_one_of_market_1501_by_loops(tmp_path):
    """Junk counts nowhere, 0000 is a wrong answer, and a query's own camera is no witness of its identity."""
    reid(tmp_path, MARKET)
    evaluation = read_evaluation(tmp_path)
    random = np.random.default_rng(0)
    files = [*(("query", name) for name in MARKET["query"]), *(("gallery", n) for n in MARKET["bounding_box_test"])]
    vectors = {file: random.normal(size=6) for file in files}
    rows = np.stack(
        [vectors["query" if "query" in name else "gallery", Path(name).name] for name in evaluation.images.names]
    )
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    measured = evaluation.measure(rows)

    ranks, unanswerable, orders = [], 0, []
    for asked in sorted(MARKET["query"]):
        identity, camera = asked.split("_")[0], asked.split("_")[1][1]
        counted = []
        for name in MARKET["bounding_box_test"]:
            other, taken_by = name.split("_")[0], name.split("_")[1][1]
            if other != "-1" and not (other == identity and taken_by == camera):
                similarity = vectors["query", asked] @ vectors["gallery", name]
                counted.append((-similarity / np.linalg.norm(vectors["gallery", name]), name))
        order = [name for _, name in sorted(counted)]
        orders.append(order)
        right = [place for place, name in enumerate(order) if name.split("_")[0] == identity]
        unanswerable += not right
        ranks += right[:1]
    assert measured["queries"] == {"asked": 4, "unanswerable": unanswerable} and unanswerable == 1  # 0003: one camera
    for k in (1, 5, 10):
        assert measured["recall"][str(k)] == pytest.approx(sum(rank < k for rank in ranks) / len(ranks))
    assert 0 < measured["recall"]["1"] < measured["recall"]["10"] == 1
    found, _ = evaluation.neighbours(rows, evaluation.offered)
    names = [[Path(evaluation.images.names[n]).name for n in row] for row in found]
    assert names == [order[: evaluation.offered] for order in orders]
    assert any("0000_" in name for row in names for name in row) and not any("-1_" in n for row in names for n in row)


def test_what_market_1501_ships_beside_its_parts_is_not_used(tmp_path):
    expected = read_dataset(reid(tmp_path, MARKET))
    touch(tmp_path, "gt_bbox/0001_c1s1_001051_00.jpg", "gt_query/0001_c1s1_001051_00_good.mat")
    for name in ("readme.txt", "query/Thumbs.db", "bounding_box_test/Thumbs.db"):
        (tmp_path / name).write_text("")
    assert read_dataset(tmp_path) == expected


def test_a_test_part_without_queries_searches_itself_by_its_cameras(tmp_path):
    reid(tmp_path, {part: names for part, names in DUKE.items() if part != "query"})
    testing = read_dataset(tmp_path).testing
    assert (testing.in_gallery, testing.cameras, testing.recall_at) == (None, ("2", "5", "1"), (1, 5, 10))
    assert testing.asked == {"asked": 3, "unanswerable": 1}


def test_one_stray_picture_among_names_of_cameras_is_named(tmp_path):
    touch(reid(tmp_path, DUKE), "query/preview.jpg")
    refused("preview.jpg does not start with identity and camera as other names do", folder=tmp_path)


def test_a_part_of_junk_alone_is_refused(tmp_path):
    reid(tmp_path, {**MARKET, "bounding_box_test": ("-1_c1s1_000401_03.jpg",)})
    refused("has only pictures of identity -1", folder=tmp_path)


def test_folders_of_classes_are_not_overruled_by_names(tmp_path):
    two_parts(tmp_path, "train", "test")
    touch(tmp_path, "query/red/0001_c1_1.jpg", "query/red/0002_c1_1.jpg")
    evaluation = read_evaluation(tmp_path)
    assert evaluation.cameras is None and evaluation.images.classes[:2] == ("red", "red")


@pytest.mark.parametrize("wrapper", ["data", "archive/data"])
@pytest.mark.parametrize(("training", "testing"), [("train", "test"), ("Train", "Val")])
def test_a_split_that_lies_deeper_is_read_and_the_notes_say_so(tmp_path, wrapper, training, testing):
    expected = read_dataset(two_parts(tmp_path / wrapper, training, testing))
    (tmp_path / "archive.zip").write_bytes(b"")
    for source in (tmp_path, (tmp_path / wrapper).parent):
        dataset = read_dataset(source)
        assert (dataset.training, dataset.testing) == (expected.training, expected.testing)
        assert (
            f"{tmp_path / wrapper} is read, because all pictures of {(tmp_path / wrapper).parent} lie there."
            in dataset.notes
        )
        assert read_evaluation(source).images.notes == read_training(source).notes == dataset.notes


def test_class_folders_that_lie_deeper_are_the_classes(tmp_path):
    touch(tmp_path, "pictures/a/1.jpg", "pictures/b/1.jpg", "pictures/c/1.jpg")
    dataset, inner = read_dataset(tmp_path), tmp_path / "pictures"
    assert dataset.training == ImageList(inner, ("a/1.jpg",), ("a",))
    assert dataset.testing.images.classes == ("b", "c")
    assert dataset.notes == (
        f"{inner} has no split of its own: its first 1 classes train, the other 2 test.",
        f"{inner} is read, because all pictures of {tmp_path} lie there.",
    )


def test_one_folder_is_no_class(tmp_path):
    touch(tmp_path, "pictures/1.jpg", "pictures/2.jpg")
    evaluation = read_evaluation(tmp_path)
    assert evaluation.images.classes is None and evaluation.images.notes
    refused("has no classes", read_dataset, folder=tmp_path)


@pytest.mark.parametrize("part", ["train", "cars_train"])
def test_a_part_in_a_folder_of_its_own_name_is_found(tmp_path, part):
    testing = part.replace("train", "test")
    dataset = read_dataset(two_parts(tmp_path, f"{part}/{part}", f"{testing}/{testing}"))
    assert dataset.training.root == tmp_path / part / part and dataset.training.classes == ("a", "b")
    assert dataset.testing.images.classes == ("c", "c", "d")


@pytest.mark.parametrize("layout", [MARKET, VERI])
def test_an_archive_of_re_identification_in_a_folder_of_its_name_is_found(tmp_path, layout):
    reid(tmp_path / "Market-1501-v15.09.15", layout)
    assert read_dataset(tmp_path).name == "reid"


@pytest.mark.parametrize("other", ["masks/1.png", "market/query/0001_c1s1_1.jpg"])
def test_a_data_set_beside_other_folders_is_named(tmp_path, other):
    touch(two_parts(tmp_path / "data", "train", "test"), "train/a/2.jpg")
    touch(tmp_path, other)
    refused(f"has 2 folders, of which data/ is a data set .*; pass {tmp_path / 'data'}", folder=tmp_path)


def test_classes_that_are_each_divided_stay_classes(tmp_path):
    touch(tmp_path, *(f"{label}/{part}/1.jpg" for label in ("car", "bus") for part in ("train", "test")))
    assert set(read_evaluation(tmp_path).images.classes) == {"car", "bus"}


def listed(folder: Path, *rows: str, header: str = "image,class,split", name: str = "list.csv") -> Path:
    (folder / name).write_text("\n".join([header, *rows]) + "\n")
    return folder / name


TRAINED = ("1.jpg,a,train", "2.jpg,b,train")
"""Lines 2 and 3 of a list."""


@pytest.mark.parametrize(
    ("training", "testing"),
    [
        ("train", "test"),
        ("Training", "TEST"),
        ("train", "val"),
        ("trn", "Validation"),
        (" train ", "dev"),
        ("TRAIN", "eval"),
    ],
)
@pytest.mark.parametrize("header", ["image,class,split", "path,label,Split", "file,class_id,SPLIT"])
def test_a_list_with_a_split_column_in_many_spellings(tmp_path, training, testing, header):
    rows = ("1.jpg,a,{0}", "2.jpg,c,{1}", "3.jpg,b,{0}", "4.jpg,c,{1}")
    path = listed(tmp_path, *(row.format(training, testing) for row in rows), header=header)
    dataset = read_dataset(path)
    assert dataset.name == "list"
    assert dataset.training == ImageList(tmp_path, ("1.jpg", "3.jpg"), ("a", "b"))
    assert dataset.testing == Evaluation(ImageList(tmp_path, ("2.jpg", "4.jpg"), ("c", "c")))
    assert read_evaluation(path) == dataset.testing and read_training(path) == dataset.training
    told = () if testing.lower() == "test" else (f"{path} has no test part: the validation split tests.",)
    assert dataset.notes == read_evaluation(path).images.notes == told


def test_several_words_for_one_part_may_stand_in_one_list(tmp_path):
    path = listed(tmp_path, *TRAINED, "3.jpg,c,training", "4.jpg,d,test", "5.jpg,d,Testing")
    assert read_training(path).classes == ("a", "b", "c") and read_evaluation(path).images.classes == ("d", "d")


PARTS = ("train", "val", "test", "query", "gallery")
CLEAR = [
    parts
    for count in range(1, len(PARTS) + 1)
    for parts in combinations(PARTS, count)
    if parts not in (("val",), ("query",), ("gallery",), ("val", "gallery"), ("test", "gallery"))
]
"""Sets of parts; the others may be classes if they are folders."""


@pytest.mark.parametrize("parts", CLEAR)
def test_a_list_has_the_parts_that_folders_of_the_same_names_have(tmp_path, parts):
    """The same training part, queries and gallery, as many notes, and the same sets are refused."""
    folder = touch(tmp_path / "folders", *(f"{part}/{part}{n}/1.jpg" for part in parts for n in (1, 2)))
    path = listed(tmp_path, *(f"{part}{n}.jpg,{part}{n},{part}" for n in (1, 2) for part in reversed(parts)))

    def seen(source: Path, read: Callable[[Path], Evaluation | ImageList]) -> object:
        try:
            found = read(source)
        except InputError:
            return "refused"
        if isinstance(found, ImageList):
            return sorted(found.classes), len(found.notes)
        halves = (found.queries, found.gallery)
        return *(sorted(found.images.classes[n] for n in half) for half in halves), len(found.images.notes)

    for read in (read_training, read_evaluation):
        assert seen(path, read) == seen(folder, read)


def test_the_notes_on_a_list_say_what_is_not_used_and_which_classes_are_shared(tmp_path):
    rows = (*TRAINED, "3.jpg,a,val", "4.jpg,a,test", "5.jpg,c,test")
    path = listed(tmp_path, *rows)
    unused, shared = read_dataset(path).notes
    assert unused == f"the validation split of {path} is not used: the test split tests."
    assert shared.startswith(f"the training split and the test split of {path} share 1 classes: recall is not only")
    listed(tmp_path, *rows, "6.jpg,d,query", "7.jpg,d,gallery")
    assert read_dataset(path).notes == (
        f"the validation split and the test split of {path} are not used: the query split and the gallery split test.",
    )


def test_queries_of_a_list_search_its_gallery_in_the_order_of_the_list(tmp_path):
    path = listed(tmp_path, "1.jpg,c,gallery", "2.jpg,c,probe", *TRAINED, "5.jpg,d,gallery")
    images = ImageList(tmp_path, ("1.jpg", "2.jpg", "5.jpg"), ("c", "c", "d"))
    assert read_dataset(path).testing == Evaluation(images, (True, False, True))
    path = listed(tmp_path, "1.jpg,c,test", "2.jpg,c,query", "3.jpg,c,val")
    assert read_evaluation(path) == Evaluation(ImageList(tmp_path, ("1.jpg", "2.jpg"), ("c", "c")), (True, False))


def test_a_folder_with_such_a_list_is_read_and_its_boxes_are_kept(tmp_path):
    header, box = "image\tclass\tsplit\tx1\ty1\tx2\ty2", "\t0\t1\t8\t9"
    listed(tmp_path, f"a.jpg\ta\ttrain{box}", f"b.jpg\tb\ttest{box}", header=header, name="images.tsv")
    dataset = read_dataset(tmp_path)
    assert (dataset.name, dataset.training.names, dataset.testing.images.names) == ("list", ("a.jpg",), ("b.jpg",))
    assert dataset.training.boxes == dataset.testing.images.boxes == ((0, 1, 8, 9),)
    assert read_dataset(tmp_path, boxes=False).training.boxes is None
    assert read_images(tmp_path).names == ("a.jpg", "b.jpg")


def test_a_list_without_classes_tests_and_calibrates_but_does_not_train(tmp_path):
    path = listed(tmp_path, "1.jpg,train", "2.jpg,test", "3.jpg,test", header="image,split")
    assert read_training(path) == ImageList(tmp_path, ("1.jpg",))
    assert read_evaluation(path) == Evaluation(ImageList(tmp_path, ("2.jpg", "3.jpg")))
    refused(r"list\.csv has no classes; expected .* a list with a class column", read_dataset, folder=path)


@pytest.mark.parametrize("labelled", [False, True])
def test_a_list_of_market_1501_is_read_like_its_folders(tmp_path, labelled):
    expected = read_dataset(reid(tmp_path / "folders", MARKET))
    files = [(folder, name) for folder, names in MARKET.items() for name in sorted(names)]
    roles = {"bounding_box_train": "train", "query": "query", "bounding_box_test": "gallery"}
    rows = [f"{folder}/{name},{name.split('_')[0]},{roles[folder]}" for folder, name in files]
    path = listed(tmp_path / "folders", *rows, header=f"image,{'class' if labelled else 'number'},split")
    found = read_dataset(path)
    assert found.name == "reid" and found.testing == expected.testing
    assert found.training.paths == expected.training.paths and found.training.classes == expected.training.classes
    assert f"names in {path} give identity and camera: " in found.notes[0]


@pytest.mark.parametrize(
    ("word", "has"),
    [("", "no split"), ("  ", "no split"), ("1", "the split '1'"), ("train/val", "the split 'train/val'")],
)
def test_a_line_of_no_known_part_is_refused(tmp_path, word, has):
    path = listed(tmp_path, *TRAINED, f"3.jpg,c,{word}", "4.jpg,c,test")
    refused(
        f"list.csv line 4 has {has}; expected train, val, test, query or gallery, so correct it, or rename the column",
        folder=path,
    )
    assert len(read_images(path)) == 4


@pytest.mark.parametrize(
    ("rows", "functions", "has"),
    [
        (("1.jpg,c,Test", "2.jpg,d,test"), (read_dataset, read_training), "line 2 has the split Test, .* split train;"),
        (("1.jpg,c,val",), (read_dataset, read_training), "line 2 has the split val, but no line has the split train;"),
        (
            TRAINED,
            (read_dataset, read_evaluation),
            "line 2 has the split train, but no line has the split test or val;",
        ),
        ((*TRAINED, "3.jpg,c,query"), (), "line 4 has the split query, but no line has the split gallery;"),
        ((*TRAINED, "3.jpg,c,gallery"), (), "line 4 has the split gallery, but no line has the split query;"),
    ],
)
def test_a_part_that_a_list_lacks_is_named_with_a_line(tmp_path, rows, functions, has):
    message = f"list.csv {has}.* add such lines, or remove the split column to use all lines"
    refused(message, *functions, folder=listed(tmp_path, *rows))


def test_a_list_may_have_one_part(tmp_path):
    assert read_training(listed(tmp_path, *TRAINED)).classes == ("a", "b")
    for part in ("test", "val"):
        assert read_evaluation(listed(tmp_path, f"1.jpg,c,{part}", f"2.jpg,c,{part}")).images.classes == ("c", "c")
    for part, other in (("query", "gallery"), ("gallery", "query")):
        path = listed(tmp_path, f"1.jpg,c,{part}")
        refused(f"line 2 has the split {part}, but no line has the split {other};", folder=path)
