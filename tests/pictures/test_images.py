"""Image lists: every way to name pictures, and every list that is refused."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path

import pytest
from conftest import draw
from PIL import Image

from cgd_deploy.errors import InputError
from cgd_deploy.pictures.images import ImageList, read_images


def touch(path: Path) -> Path:
    """A file that looks like a picture by its name; lists never open one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def write_list(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "list.tsv"
    path.write_bytes(text.encode())
    return path


def test_a_folder_a_class(tmp_path):
    for name in ("b/2.png", "a/1.JPG", "a/0.jpeg", "a/notes.txt"):
        touch(tmp_path / name)
    images = read_images(tmp_path)
    assert images.names == ("a/0.jpeg", "a/1.JPG", "b/2.png")
    assert images.classes == ("a", "a", "b")
    assert images.boxes is None
    assert images.paths[2] == tmp_path / "b" / "2.png"


def test_the_repr_counts_instead_of_listing():
    names, boxes = ("a.jpg", "b.jpg"), ((0, 0, 1, 1),) * 2
    assert repr(ImageList(Path("birds"), names)) == "<ImageList birds: 2 pictures>"
    assert repr(ImageList(Path("birds"), names, ("x", "x"), boxes)) == (
        "<ImageList birds: 2 pictures of 1 classes, with boxes>"
    )


def test_a_flat_folder_has_no_classes(tmp_path):
    touch(tmp_path / "2.png")
    touch(tmp_path / "1.png")
    images = read_images(tmp_path)
    assert images.names == ("1.png", "2.png")
    assert images.classes is None


def test_a_folder_with_pictures_at_both_levels_has_no_classes(tmp_path):
    touch(tmp_path / "1.png")
    touch(tmp_path / "a" / "2.png")
    assert read_images(tmp_path).classes is None


def test_a_folder_with_images_tsv_is_read_by_it(tmp_path):
    touch(tmp_path / "a" / "1.png")
    (tmp_path / "images.tsv").write_text("image\tclass\na/1.png\tbeetle\n")
    assert read_images(tmp_path).classes == ("beetle",)


def test_a_list_with_boxes(tmp_path):
    images = read_images(write_list(tmp_path, "image\tclass\tx1\ty1\tx2\ty2\nx.jpg\tcat\t1\t2\t30\t40\n"))
    assert images == ImageList(tmp_path, ("x.jpg",), ("cat",), ((1, 2, 30, 40),))
    assert images.box(0) == (1, 2, 30, 40)


@pytest.mark.parametrize("text", ["image\tclass\nx.jpg\t7\n", "\ufeffimage\tclass\r\nx.jpg\t7\r\n\r\n"])
def test_a_list_without_boxes_by_any_editor(tmp_path, text):
    images = read_images(write_list(tmp_path, text))
    assert images.names == ("x.jpg",)
    assert images.classes == ("7",)
    assert images.box(0) is None


def test_a_list_without_classes(tmp_path):
    assert read_images(write_list(tmp_path, "image\tclass\nx.jpg\t\ny.jpg\t\n")).classes is None


def test_pictures_lie_beside_the_list_or_in_images(tmp_path):
    touch(tmp_path / "near.jpg")
    touch(tmp_path / "images" / "near.jpg")
    touch(tmp_path / "images" / "far.jpg")
    images = read_images(write_list(tmp_path, "image\tclass\nnear.jpg\ta\nfar.jpg\ta\nnowhere.jpg\ta\n"))
    assert images.paths == [tmp_path / "near.jpg", tmp_path / "images" / "far.jpg", tmp_path / "nowhere.jpg"]


def test_a_glob_pattern(tmp_path):
    for name in ("b.png", "a.png", "c.txt", "deep/d.png"):
        touch(tmp_path / name)
    assert read_images(f"{tmp_path}/*").paths == [tmp_path / "a.png", tmp_path / "b.png"]
    assert len(read_images(f"{tmp_path}/**/*.png")) == 3


def test_a_single_picture_whatever_its_suffix(tmp_path):
    draw(0, 0).save(tmp_path / "query.dat", "PNG")
    assert read_images(tmp_path / "query.dat").paths == [tmp_path / "query.dat"]


MALFORMED = {
    "empty file": ("", "starts with ''"),
    "no header": ("x.jpg\tcat\n", "starts with 'x.jpg cat'"),
    "no column for the picture": ("image_id\tlabel\n7\tcat\n", "starts with 'image_id label'"),
    "three box columns": ("image\tclass\tx1\ty1\tx2\nx.jpg\tcat\t1\t2\t3\n", "with the header"),
    "header only": ("image\tclass\n", "lists no pictures"),
    "too few fields": ("image\tclass\nx.jpg\tcat\ny.jpg\n", "line 3 has 1 fields; expected 2"),
    "too many fields": ("image\tclass\nx.jpg\tcat\t1\n", "line 2 has 3 fields"),
    "line after a blank one": ("image\tclass\n\nx.jpg\n", "line 3 has 1 fields"),
    "no name": ("image\tclass\n\tcat\n", "line 2 names no picture"),
    "some classes": ("image\tclass\nx.jpg\tcat\n\ny.jpg\t\n", "line 4 has no class"),
    "box of words": ("image\tclass\tx1\ty1\tx2\ty2\nx.jpg\tcat\t1\t2\t3\tfour\n", "four whole numbers"),
    "box of fractions": ("image\tclass\tx1\ty1\tx2\ty2\nx.jpg\tcat\t1\t2\t3\t4.5\n", "four whole numbers"),
    "box beyond everything": (
        "image\tclass\tx1\ty1\tx2\ty2\nx.jpg\tcat\t1\t2\t3\t99999999999\n",
        "lies beyond 2147483648",
    ),
    "box of many digits": (
        "image\tclass\tx1\ty1\tx2\ty2\nx.jpg\tcat\t1\t2\t3\t" + "9" * 9999 + "\n",
        "four whole numbers",
    ),
    "box of a long word": (
        "image\tclass\tx1\ty1\tx2\ty2\nx.jpg\tcat\t1\t2\t3\t" + "x" * 9999 + "\n",
        "four whole numbers",
    ),
    "open quote": ('image\tclass\n"x.jpg\tcat\n' + "y.jpg\tcat\n" * 20_000, "field larger than"),
}


@pytest.mark.parametrize(("text", "says"), MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_list_is_refused(tmp_path, text, says):
    with pytest.raises(InputError) as caught:
        read_images(write_list(tmp_path, text))
    message = str(caught.value)
    assert says in message and str(tmp_path / "list.tsv") in message
    assert "\n" not in message and message.endswith(".") and len(message) < 1000


def test_a_list_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "list.tsv").write_bytes("image\tclass\nä.jpg\tb\n".encode("utf-16"))
    with pytest.raises(InputError, match="expected a UTF-8 text file"):
        read_images(tmp_path / "list.tsv")


@pytest.mark.parametrize("source", ["absent", "absent.tsv", "absent.jpg", "*.absent"])
def test_nothing_there_is_refused(tmp_path, source):
    with pytest.raises(InputError, match=r"absent"):
        read_images(tmp_path / source)


def test_an_empty_folder_is_refused(tmp_path):
    touch(tmp_path / "notes.txt")
    with pytest.raises(InputError, match=str(tmp_path)):
        read_images(tmp_path)


def test_classes_are_split_in_natural_order():
    classes = ("10", "9", "2", "100", "2", "b", "a", "\N{SUPERSCRIPT TWO}")
    images = ImageList(Path(), tuple(f"{i}.jpg" for i in range(len(classes))), classes)
    training, testing = images.split_classes()
    assert training.classes == ("10", "9", "2", "2")
    assert testing.classes == ("100", "b", "a", "\N{SUPERSCRIPT TWO}")
    assert training.names == ("0.jpg", "1.jpg", "2.jpg", "4.jpg")


def test_pictures_without_classes_cannot_be_split(tmp_path):
    with pytest.raises(InputError, match="no classes"):
        ImageList(tmp_path, ("a.jpg",)).split_classes()


def test_the_middle_class_of_an_odd_number_is_tested_on():
    training, testing = ImageList(Path(), ("1", "2", "3"), ("a", "b", "c")).split_classes()
    assert (training.classes, testing.classes) == (("a",), ("b", "c"))


def test_sha256_is_of_the_list_not_of_its_folder(tmp_path):
    base = ImageList(tmp_path / "one", ("a.jpg", "b.jpg"), ("x", "y"), ((0, 0, 9, 9), (0, 0, 8, 8)))
    assert base.sha256 == ImageList(Path("other"), base.names, base.classes, base.boxes).sha256
    changed = [
        ImageList(base.root, ("a.jpg", "c.jpg"), base.classes, base.boxes),
        ImageList(base.root, base.names, ("x", "z"), base.boxes),
        ImageList(base.root, base.names, None, base.boxes),
        ImageList(base.root, base.names, base.classes, ((0, 0, 9, 9), (0, 0, 8, 9))),
        ImageList(base.root, base.names, base.classes, None),
        base.subset([1, 0]),
    ]
    assert len({base.sha256, *(images.sha256 for images in changed)}) == len(changed) + 1


def test_a_name_that_is_no_text_has_a_sha256():
    assert len(ImageList(Path(), (os.fsdecode(b"\xff.jpg"),)).sha256) == 64


@pytest.mark.parametrize("boxes", [None, ((0, 0, 9, 9), (1, 2, 30, 40))])
@pytest.mark.parametrize("classes", [None, ("one class", "tab\tin class")])
def test_written_and_read_again(tmp_path, classes, boxes):
    names = ('quote".jpg', "deep/ünï.jpg")
    for name in names:
        touch(tmp_path / "pictures" / name)
    images = ImageList(tmp_path / "pictures", names, classes, boxes)
    again = read_images(images.write(tmp_path / "elsewhere" / "list.tsv"))
    assert again.paths == images.paths
    assert (again.classes, again.boxes) == (classes, boxes)
    assert ImageList.from_dict(images.to_dict()) == images


def test_a_name_in_another_encoding_is_written_and_read_again(tmp_path):
    images = ImageList(tmp_path, (os.fsdecode(b"\xe9.jpg"),), (os.fsdecode(b"\xe8"),))
    again = read_images(images.write(tmp_path / "list.tsv"))
    assert again.paths == images.paths and again.classes == images.classes
    assert b"/\xe9.jpg\t\xe8\n" in (tmp_path / "list.tsv").read_bytes()


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "list.tsv")
    with pytest.raises(InputError, match="is not a regular file"):
        read_images(tmp_path / "list.tsv")


@pytest.mark.parametrize("count", [1, 2, 7, 10, 99])
def test_a_sample_is_spread_evenly(count):
    images = ImageList(Path(), tuple(map(str, range(10))))
    places = [int(name) for name in images.sample(count).names]
    assert len(places) == len(set(places)) == min(count, 10)
    assert places == sorted(places)
    if count > 1:
        assert (places[0], places[-1]) == (0, 9)
        steps = [b - a for a, b in pairwise(places)]
        assert max(steps) - min(steps) <= 1


def test_reading_opens_no_picture(tmp_path, monkeypatch):
    touch(tmp_path / "broken.jpg")
    monkeypatch.setattr(Image, "open", lambda *_: pytest.fail("a picture was opened"))
    assert len(read_images(tmp_path)) == 1
