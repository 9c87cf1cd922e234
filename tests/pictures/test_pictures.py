"""Pictures as people name them to commands, and that every command tells what it did not read, once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from conftest import draw, write_fake_engine

from cgd_deploy.cli import terminal
from cgd_deploy.errors import InputError
from cgd_deploy.pictures.images import ImageList, read_images
from cgd_deploy.search.index import read_index

TOLD = "warning: {}: 3 files were not read: 2 .txt, 1 .mov.\n"


@pytest.fixture
def desk(tmp_path, monkeypatch, pictures) -> Path:
    """An engine, a list, and a folder of classes with some other files."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(terminal.errors, "quiet", False)  # as before, after --quiet
    write_fake_engine(tmp_path / "fake.cgd")
    shutil.copytree(pictures, tmp_path / "set")
    for name in ("set/notes.txt", "set/kind-0/notes.txt", "set/kind-0/0.mov"):
        (tmp_path / name).write_text("no picture")
    return tmp_path


def test_embed_tells_what_it_did_not_read(cli, desk):
    code, _, err = cli("embed", "set", "-e", "fake.cgd", "-o", "index.npy")
    assert (code, err) == (0, TOLD.format("set"))
    assert cli("--quiet", "embed", "set", "-e", "fake.cgd", "-o", "index.npy")[2] == ""


def test_search_tells_what_it_did_not_read(cli, desk):
    cli("embed", "set/kind-1", "-e", "fake.cgd", "-o", "index.npy")
    code, _, err = cli("search", "set", "-e", "fake.cgd", "--index", "index.npy", "-k", "2")
    assert (code, err) == (0, TOLD.format("set"))


def test_bench_tells_what_it_did_not_read(cli, desk):
    line = ("bench", "fake.cgd", "--reference", "fake.cgd", "--data", "set", "--seconds", "0", "--html", "report.html")
    code, out, err = cli(*line)
    assert code == 0 and " ".join(out.split()).count(TOLD.format("set").strip()) == 1, (out, err)
    code, out, _ = cli(*line, "--json")
    assert json.loads(out)["notes"] == [TOLD.format("set").strip().removeprefix("warning: ")]
    assert "3 files were not read" in Path("report.html").read_text()


def test_build_engine_tells_what_it_did_not_read_of_every_folder(cli, desk, monkeypatch):
    from cgd_export import engine_from_onnx

    def stop(*_: object, **__: object) -> None:
        raise InputError("far enough.")

    monkeypatch.setattr(engine_from_onnx, "engine_from_onnx", stop)
    Path("model.onnx").touch()
    shutil.copytree("set", "other")
    line = ["build-engine", "model.onnx", "--int8", "--min-overlap", "0.5", "--backend", "onnxruntime"]
    for options, folders in (
        (["--calib", "other", "--data", "set"], ["other", "set"]),
        (["--calib", "set", "--data", "set", "--distill", "other"], ["set", "other"]),
    ):
        code, _, err = cli(*line, *options)
        warnings = [line for line in err.splitlines(keepends=True) if "not read" in line]
        assert code == 2 and warnings == [TOLD.format(folder) for folder in folders], err


def test_train_tells_what_it_did_not_read(cli, desk):
    code, _, err = cli(
        *("train", "--data", "set", "--backbone", "resnet18", "--dim", "32", "--size", "32", "--epochs", "0"),
        *("--classes-per-batch", "2", "--pictures-per-class", "2"),
    )
    assert code == 0 and err.count("set: 3 files were not read: 2 .txt, 1 .mov.") == 1, err


def test_import_tells_what_it_did_not_read(cli, desk):
    import torch
    from torchvision.models import resnet18

    torch.save(resnet18().state_dict(), "weights.pth")
    code, _, err = cli("import", "weights.pth", "--backbone", "resnet18", "--descriptors", "S", "--data", "set")
    assert code == 0 and err.count(TOLD.format("set")) == 1, err


def test_what_was_not_read_is_no_part_of_a_list(desk):
    """Neither of its checksum, which an index and a run are resumed by, nor of a checkpoint."""
    told = read_images("set")
    for name in ("set/notes.txt", "set/kind-0/notes.txt", "set/kind-0/0.mov"):
        Path(name).unlink()
    silent = read_images("set")
    assert told.notes and not silent.notes
    assert told == silent and told.sha256 == silent.sha256 and told.to_dict() == silent.to_dict()
    assert ImageList.from_dict(told.to_dict()).notes == ()
    assert told.sample(3).notes == told.subset([0]).notes == told.notes


def test_pictures_beside_class_folders_are_told(tmp_path):
    for name in ("a/1.jpg", "b/1.jpg", "logo.jpg", "title.jpg", "x.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    images = read_images(tmp_path)
    assert images.classes is None
    assert images.notes == (
        f"{tmp_path}: 3 pictures were found outside of class folders, so none has a class: "
        "logo.jpg, title.jpg and 1 more.",
    )


def test_kinds_are_counted_and_the_rarest_are_summed_up(tmp_path):
    (tmp_path / "a.jpg").touch()
    for number in range(9):
        for suffix in (".A", ".b", ".c", ".d", ".e", ".f", "")[: number + 1]:
            (tmp_path / f"{number}{suffix}").touch()
    (note,) = read_images(tmp_path).notes
    assert note == f"{tmp_path}: 42 files were not read: 9 .a, 8 .b, 7 .c, 6 .d, 5 .e, 7 of other kinds."


def test_lists_and_engines_of_ours_are_not_counted(tmp_path):
    for name in ("a/1.jpg", "list.tsv", "a/images.tsv", "fake.cgd"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert read_images(tmp_path).notes == ()


@pytest.mark.parametrize("command", ["embed", "search"])
def test_several_pictures_as_a_shell_expands_them(cli, desk, command):
    cli("embed", "set", "-e", "fake.cgd", "-o", "index.npy")
    expected = read_images("set/kind-1/*.jpg").paths
    options = ["-o", "some.npy"] if command == "embed" else ["--index", "index.npy", "--json"]
    code, out, err = cli(command, *expected, "-e", "fake.cgd", *options)
    assert (code, err) == (0, "")
    if command == "embed":
        assert [str(path) for path in expected] == read_index("some.npy").paths
    else:
        assert [found["neighbours"][0]["path"] for found in json.loads(out)] == [str(path) for path in expected]


def test_sources_of_all_kinds_are_joined_in_order(cli, desk):
    draw(7, 0).save("q.jpg")
    Path("list.csv").write_text("path\nset/kind-2/1.jpg\n")
    sources = ["q.jpg", "set/kind-1", "list.csv", "set/kind-0/[01].jpg"]
    images = read_images(sources)
    joined = [path for source in sources for path in read_images(source).paths]
    assert images.paths == joined and images.classes is None and images.boxes is None
    assert cli("embed", *sources, "-e", "fake.cgd", "-o", "deep/index.npy")[0] == 0
    index = read_index("deep/index.npy")
    assert index.paths == [str(path) for path in joined]


def test_classes_and_boxes_are_joined_where_all_have_them(desk):
    for name, text in {
        "boxes": "image,class,x1,y1,x2,y2\nset/kind-0/0.jpg,a,0,0,40,40\nset/kind-0/0.jpg,b,9,9,50,50\n",
        "more": "image,class,x1,y1,x2,y2\nset/kind-0/0.jpg,c,0,0,40,40\n",
        "classes": "image,class\nset/kind-1/0.jpg,d\n",
    }.items():
        Path(f"{name}.csv").write_text(text)
    both = read_images(["boxes.csv", "more.csv"])
    assert both.classes == ("a", "b", "c") and both.boxes == ((0, 0, 40, 40), (9, 9, 50, 50), (0, 0, 40, 40))
    assert read_images(["classes.csv", "set/kind-2"]).classes is None
    Path("set/notes.txt").unlink()
    assert read_images(["classes.csv", "set"]).classes[:2] == ("d", "kind-0")
    with pytest.raises(InputError, match=r"boxes\.csv has boxes and set has none; read the two one after the other"):
        read_images(["boxes.csv", "set"])


def test_a_picture_that_is_given_twice_is_read_once_and_told(cli, desk):
    Path("link.jpg").symlink_to("set/kind-0/1.jpg")
    code, _, err = cli("embed", "link.jpg", "set/kind-0/1.jpg", "set/kind-0/1.jpg", "-e", "fake.cgd", "-o", "index.npy")
    assert (code, read_index("index.npy").paths) == (0, ["set/kind-0/1.jpg"])
    assert err == "warning: the pictures: 2 names were not read again: link.jpg is the same file as set/kind-0/1.jpg.\n"


def test_one_source_in_a_sequence_is_the_source(desk):
    assert read_images(["set"]) == read_images("set") == read_images((Path("set"),))
    with pytest.raises(InputError, match="there is nothing to read"):
        read_images([])
    with pytest.raises(InputError, match="no pictures at nowhere"):
        read_images(["set", "nowhere"])


@pytest.mark.parametrize("name", ["list.json", "old.zip", "index.npy", "fake.cgd", "ckpt.pt"])
def test_files_that_are_no_pictures_are_refused_by_every_command(cli, desk, name):
    if not Path(name).exists():
        Path(name).write_bytes(b"anything")
    for line in (
        ["embed", name, "-e", "fake.cgd", "-o", "o.npy"],
        ["bench", "fake.cgd", "--reference", "fake.cgd", "--data", name],
        ["train", "--data", name],
    ):
        code, _, err = cli(*line)
        assert code == 2 and err.count("\n") == 1 and f"{name} is no picture in one of the formats" in err


def test_engines_beside_leftovers_are_found(desk):
    """A file system of another computer leaves ._NAME beside each file."""
    from cgd_deploy.runtime.provenance import engines_of_one_model, stale_engines

    for name in ("._fake.cgd", "._model.onnx"):
        Path(name).write_bytes(b"\0\5\26\7")
    assert engines_of_one_model(Path()) == ([Path("fake.cgd")], {})
    assert stale_engines(Path()) == {}
