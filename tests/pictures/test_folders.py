"""Folders and patterns: what systems leave behind, links, second names of one file, and what is told of them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cgd_deploy.datasets.layouts import read_dataset
from cgd_deploy.errors import InputError
from cgd_deploy.pictures.folders import is_leftover
from cgd_deploy.pictures.images import read_images


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def link(path: Path, target: str | Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)
    return path


LEFT_BEHIND = [
    ".DS_Store",
    ".hidden.jpg",
    "._a.jpg",
    "a/._1.jpg",
    ".ipynb_checkpoints/1-checkpoint.jpg",
    "a/.ipynb_checkpoints/1.jpg",
    "__MACOSX/a/._1.jpg",
    "__MACOSX/a/1.jpg",
    "@eaDir/1.jpg/SYNOPHOTO_THUMB_M.jpg",
    "a/@eaDir/1.jpg",
    "#recycle/1.jpg",
    "$RECYCLE.BIN/1.jpg",
    "System Volume Information/1.jpg",
    "lost+found/1.jpg",
    "__pycache__/1.jpg",
    ".Trash-1000/files/1.jpg",
    ".git/1.jpg",
    "Thumbs.db",
    "a/THUMBS.DB",
    "desktop.ini",
    "~$list.docx",
]


@pytest.mark.parametrize("name", LEFT_BEHIND)
def test_what_systems_and_tools_leave_behind_is_skipped_without_a_word(tmp_path, name):
    for kept in ("a/1.jpg", "b/1.jpg"):
        touch(tmp_path / kept)
    clean = read_images(tmp_path)
    touch(tmp_path / name)
    assert read_images(tmp_path) == clean and read_images(tmp_path).notes == ()
    assert read_dataset(tmp_path).training.classes == ("a",)
    assert read_images(f"{tmp_path}/*/*.jpg").paths == read_images(f"{tmp_path}/**/*.jpg").paths == clean.paths


def test_names_that_only_look_like_it_are_read(tmp_path):
    for name in ("__MACOSX 2/1.jpg", "thumbs/1.jpg", "recycle/1.jpg", "a.hidden/1.jpg"):
        assert not any(map(is_leftover, Path(name).parts))
        touch(tmp_path / name)
    assert len(read_images(tmp_path)) == 4


@pytest.mark.parametrize("root", [".cache/pictures", "__MACOSX", ".hidden"])
def test_a_folder_that_is_asked_for_is_read_whatever_its_name(tmp_path, root):
    for name in ("a/1.jpg", "b/1.jpg"):
        touch(tmp_path / root / name)
    assert read_images(tmp_path / root).classes == ("a", "b")
    assert len(read_images(f"{tmp_path}/{root}/*/*.jpg")) == 2
    assert len(read_images(f"{tmp_path}/{root}/**/*.jpg")) == 2


@pytest.mark.parametrize("name", [".thumbnails", "__pycache__", "@eaDir"])
def test_a_pattern_that_names_a_leftover_finds_it(tmp_path, name):
    paths = [touch(tmp_path / folder / name / "1.jpg") for folder in ("a", "b")]
    assert read_images(f"{tmp_path}/*/{name}/*.jpg").paths == paths


def test_a_data_set_with_leftovers_beside_its_two_folders_keeps_its_split(tmp_path):
    for name in ("train/a/1.jpg", "test/b/1.jpg", "__MACOSX/a/1.jpg", "@eaDir/1.jpg", ".ipynb_checkpoints/1.jpg"):
        touch(tmp_path / name)
    dataset = read_dataset(tmp_path)
    assert (dataset.training.classes, dataset.testing.images.classes) == (("a",), ("b",))


def test_class_folders_that_are_links_are_read(tmp_path):
    for name in ("store/1/1.jpg", "store/2/deep/1.jpg", "elsewhere.jpg"):
        touch(tmp_path / name)
    link(tmp_path / "set" / "a", "../store/1")
    link(tmp_path / "set" / "b", tmp_path / "store" / "2")
    link(tmp_path / "set" / "c" / "1.jpg", "../../elsewhere.jpg")
    images = read_images(tmp_path / "set")
    assert images.names == ("a/1.jpg", "b/deep/1.jpg", "c/1.jpg")
    assert images.classes == ("a", "b", "c") and images.notes == ()
    assert all(path.is_file() for path in images.paths)
    assert read_images(link(tmp_path / "door", "set")).names == images.names
    assert len(read_images(f"{tmp_path}/set/**/*.jpg")) == 3


def test_a_folder_with_two_names_is_read_once_by_its_own(tmp_path):
    """Whichever name sorts first."""
    touch(tmp_path / "2024-05" / "1.jpg")
    link(tmp_path / "latest", "2024-05")
    link(tmp_path / "0-newest", "2024-05")
    images = read_images(tmp_path)
    assert images.names == ("2024-05/1.jpg",)
    (note,) = images.notes
    assert "2 folders were not read again: 0-newest is the same as 2024-05, latest is the same as 2024-05" in note


def test_two_links_to_one_folder_are_told(tmp_path):
    touch(tmp_path / "store" / "1.jpg")
    for name in ("cat", "dog"):
        link(tmp_path / "set" / name, "../store")
    images = read_images(tmp_path / "set")
    assert images.classes == ("cat",) and "dog is the same as cat" in images.notes[0]


LOOPS = {
    "to itself": ({"a/self": "self"}, "1 link was broken: a/self"),
    "to the folder": ({"a/loop": ".."}, "1 folder was not read again: a/loop is the same as"),
    "to its own folder": ({"a/loop": "."}, "a/loop is the same as a"),
    "above the folder": ({"up": "../.."}, "1 link was not followed to a folder above: up"),
    "to one another": ({"a/x": "../b", "b/y": "../a"}, "a/x is the same as b, b/y is the same as a"),
    "outside": ({"out": "../x", "../x/out": "../y", "../y/out": "../x"}, "out/out/out is the same as out"),
}


@pytest.mark.parametrize(("links", "told"), LOOPS.values(), ids=LOOPS)
def test_loops_end(tmp_path, links, told):
    folder = tmp_path / "above" / "set"
    for name in ("a/1.jpg", "b/1.jpg"):
        touch(folder / name)
    for name, target in links.items():
        link(Path(os.path.normpath(folder / name)), target)
    for images in (read_images(folder), read_images(f"{folder}/**/*.jpg")):
        assert images.paths == [folder / "a" / "1.jpg", folder / "b" / "1.jpg"]
        assert told in "".join(images.notes)


def test_links_to_nothing_are_named(tmp_path):
    touch(tmp_path / "a" / "1.jpg")
    for name in ("a/gone.jpg", "b", "c/also gone"):
        link(tmp_path / name, "nowhere")
    assert read_images(tmp_path).notes == (f"{tmp_path}: 3 links were broken: b, a/gone.jpg and 1 more.",)
    assert read_images(f"{tmp_path}/a/*.jpg").notes == (
        f"{tmp_path}/a/*.jpg: 1 link was broken: {tmp_path}/a/gone.jpg.",
    )
    with pytest.raises(InputError, match=r"holds no pictures .*1 link was broken: gone\.jpg"):
        read_images(link(tmp_path / "only" / "gone.jpg", "nowhere").parent)


def test_one_file_with_two_names_is_read_once_and_its_own_name_counts(tmp_path):
    touch(tmp_path / "set" / "b" / "1.jpg")
    link(tmp_path / "set" / "a" / "1.jpg", "../b/1.jpg")
    touch(tmp_path / "set" / "a" / "2.jpg")
    os.link(tmp_path / "set" / "a" / "2.jpg", tmp_path / "set" / "a" / "3.jpg")
    images = read_images(tmp_path / "set")
    assert (images.names, images.classes) == (("a/2.jpg", "b/1.jpg"), ("a", "b"))
    (note,) = images.notes
    assert note == (
        f"{tmp_path}/set: 2 names were not read again: a/1.jpg is the same file as b/1.jpg, "
        "which counts as b and not as a."
    )
    assert len(read_images(f"{tmp_path}/set/*/*.jpg")) == len(read_images([tmp_path / "set", tmp_path / "set"])) == 2


def test_pipes_and_closed_folders_are_told(tmp_path, monkeypatch):
    touch(tmp_path / "a" / "1.jpg")
    touch(tmp_path / "closed" / "1.jpg")
    os.mkfifo(tmp_path / "a" / "2.jpg")
    scandir = os.scandir

    def deny(path: Path) -> object:
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", deny)
    images = read_images(tmp_path)
    assert images.names == ("a/1.jpg",)
    assert images.notes == (
        f"{tmp_path}: 1 folder was unreadable: closed.",
        f"{tmp_path}: 1 pipe was not read: a/2.jpg.",
    )
    with pytest.raises(InputError, match=r"cannot read the folder .*closed \(Permission denied\)"):
        read_images(tmp_path / "closed")


@pytest.mark.parametrize("folder", ["[2024] cars", "what?", "a*b", "[!x]", "deep/[1]/[2]"])
def test_a_pattern_in_a_folder_whose_name_looks_like_one(tmp_path, folder):
    paths = [touch(tmp_path / folder / name) for name in ("1.jpg", "2.jpg")]
    touch(tmp_path / "2" / "1.jpg")
    assert read_images(f"{tmp_path}/{folder}/*.jpg").paths == paths
    assert read_images(f"{tmp_path}/{folder}/**/*.jpg").paths == paths
    assert read_images(f"{tmp_path}/{folder}/[2-9].jpg").paths == paths[1:]


def test_patterns_from_here_keep_their_spelling(tmp_path, monkeypatch):
    for name in ("a/1.jpg", "2.jpg"):
        touch(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert read_images("*.jpg").names == ("2.jpg",)
    assert read_images("./*.jpg").names == ("./2.jpg",)
    assert read_images("**/*.jpg").names == ("2.jpg", "a/1.jpg")
    assert read_images("a/../*.jpg").names == ("a/../2.jpg",)
    assert f"../{tmp_path.name}/a/1.jpg" in read_images("../*/a/*.jpg").names
    assert read_images("**").names == ("2.jpg", "a/1.jpg")


@pytest.mark.parametrize("pattern", ["*", "k*", "k*/", "k[12]"])
def test_a_pattern_that_leads_to_folders_says_how_to_go_on(tmp_path, pattern):
    for name in ("k1/1.jpg", "k2/1.jpg"):
        touch(tmp_path / name)
    with pytest.raises(InputError, match=r"leads to folders only, so end it in /\*: expected a folder"):
        read_images(f"{tmp_path}/{pattern}")


@pytest.mark.parametrize("name", ["a[1].jpg", "*.jpg", "ünï.jpg", "new\nline.jpg", "ta\tb.jpg", "~.jpg"])
def test_a_picture_with_an_odd_name_is_found_by_it_and_beside_others(tmp_path, name):
    path = touch(tmp_path / name)
    assert read_images(path).paths == read_images(tmp_path).paths == read_images(f"{tmp_path}/*").paths == [path]


def test_home_is_found(tmp_path, monkeypatch):
    touch(tmp_path / "home" / "pictures" / "a" / "1.jpg")
    touch(tmp_path / "home" / "pictures" / "b" / "1.jpg")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    expected = read_images(tmp_path / "home" / "pictures")
    for images in (read_images("~/pictures"), read_images("~/pictures/*/*.jpg"), read_images(["~/pictures/"])):
        assert images.paths == expected.paths
    assert read_dataset("~/pictures").name == "folder"
    assert read_images(touch(tmp_path / "~" / "1.jpg").parent.relative_to(tmp_path)).names == ("1.jpg",)
    with pytest.raises(InputError, match="names a home folder that is not known here"):
        read_images("~nobody-of-this-name/pictures")


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "a.jpg/", "a.jpg/b.jpg"])
def test_a_name_that_cannot_be_is_refused(tmp_path, name):
    touch(tmp_path / "a.jpg" / "x.txt")
    with pytest.raises(InputError):
        read_images(f"{tmp_path}/{name}")
    with pytest.raises(InputError):
        read_dataset(f"{tmp_path}/{name}")
