"""Whatever a user gets wrong: one sentence on stderr, status 2, and not a file more or less than before."""

from __future__ import annotations

import io
import os
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import FAKE_SPEC, draw, listing, write_fake_engine
from PIL import Image

from cgd_deploy.search.index import read_index


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


JPEG = encoded(draw(0, 0), "JPEG")


@pytest.fixture
def desk(tmp_path_factory, monkeypatch, pictures) -> Path:
    """A working folder with one good file of each kind (but for what needs torch) and many bad ones."""
    folder = tmp_path_factory.mktemp("desk")
    monkeypatch.chdir(folder)
    write_fake_engine(Path("good.cgd"))
    write_fake_engine(Path("other.cgd"), replace(FAKE_SPEC, space_id="f" * 16))
    good = Path("good.cgd").read_bytes()
    Path("cut.cgd").write_bytes(good[: len(good) // 2])
    with zipfile.ZipFile("good.cgd") as old, zipfile.ZipFile("edited.cgd", "w") as new:
        new.comment = old.comment
        for name in old.namelist():
            new.writestr(name, old.read(name).replace(b"fp32", b"int8"))
    Path("good.jpg").write_bytes(JPEG)
    Path("cut.jpg").write_bytes(JPEG[: len(JPEG) // 2])
    Path("dot.png").write_bytes(encoded(Image.new("RGB", (1, 1)), "PNG"))
    for name in ("text.pt", "text.onnx", "text.cgd", "text.jpg", "text.npy", "text.parquet", "text.tsv"):
        Path(name).write_text("these are only words\n")
    Path("file").write_bytes(b"")
    Path("empty").mkdir()
    Path("folder.npy").mkdir()
    Path("folder.onnx").mkdir()
    Path("list.tsv").write_text("image\tclass\ngood.jpg\tx\nabsent.jpg\ty\n")
    Path("gone.tsv").write_text("image\tclass\nabsent.jpg\ty\n")
    Path("train.tsv").write_text("image\tclass\n" + "".join(f"good.jpg\t{kind}\n" for kind in "aabbccdd"))
    np.save("index.npy", np.zeros((1, 24), np.float32))
    return folder


@pytest.fixture
def refused(cli, desk):
    """Run the command in ``desk`` and check that it is refused with these words."""

    def run(command: str, *says: str) -> None:
        before = listing(desk)
        code, _, err = cli(*command.split())
        assert code == 2, err
        assert err.startswith("cgd-deploy: ") and err.endswith(".\n") and err.count("\n") == 1, err
        for words in says:
            assert words in err
        assert listing(desk) == before

    return run


TRAIN = "train --data train.tsv --classes-per-batch 2 --pictures-per-class 2"

BAD = [
    # engines
    ("inspect absent.cgd", "there is no engine at absent.cgd"),
    ("inspect empty", "there is no engine at empty"),
    ("inspect text.cgd", "text.cgd is not a whole .cgd file"),
    ("inspect cut.cgd --self-test", "cut.cgd is not a whole .cgd file"),
    ("inspect edited.cgd", "edited.cgd was edited"),
    ("embed good.jpg -e edited.cgd -o o.npy", "edited.cgd was edited"),
    ("embed good.jpg -e absent.cgd -o o.npy", "absent.cgd"),
    ("embed good.jpg -e cut.cgd -o o.npy", "cut.cgd is not a whole .cgd file"),
    ("bench text.cgd", "text.cgd"),
    ("bench good.cgd absent.cgd", "absent.cgd"),
    ("bench", "there are no engines in artifacts/"),
    ("bench good.cgd", "--reference"),
    # pictures
    ("embed absent.jpg -e good.cgd -o o.npy", "no pictures at absent.jpg"),
    ("embed empty -e good.cgd -o o.npy", "empty holds no pictures"),
    ("embed empty/*.jpg -e good.cgd -o o.npy", "no pictures at empty/*.jpg"),
    ("embed cut.jpg -e good.cgd -o o.npy", "cut.jpg cannot be decoded"),
    ("embed text.jpg -e good.cgd -o o.npy", "text.jpg cannot be decoded"),
    ("embed dot.png -e good.cgd -o o.npy", "dot.png is 1x1 pixels"),
    ("embed text.tsv -e good.cgd -o o.npy", "text.tsv starts with"),
    ("embed absent.tsv -e good.cgd -o o.npy", "absent.tsv"),
    ("embed list.tsv -e good.cgd -o o.npy --strict", "absent.jpg does not exist"),
    ("bench good.cgd --reference good.cgd --data empty", "empty holds no pictures"),
    ("bench good.cgd --reference good.cgd --data good.jpg", "got 1 pictures"),
    ("bench good.cgd --reference other.cgd --data good.jpg", "one model at a time"),
    # outputs
    ("embed good.jpg -e good.cgd -o o.csv", "o.csv ends in .csv"),
    ("embed good.jpg -e good.cgd -o folder.npy", "folder.npy: it is a folder"),
    ("embed good.jpg -e good.cgd -o file/o.npy", "cannot write file/o.npy"),
    # indices
    ("search good.jpg -e good.cgd --index absent.npy", "absent.npy"),
    ("search good.jpg -e good.cgd --index text.npy", "text.npy"),
    ("search good.jpg -e good.cgd --index text.parquet", "text.parquet is not an index"),
    ("search good.jpg -e good.cgd --index index.npy", "index.npy is not an index"),
    # checkpoints
    ("export absent.pt", "there is no checkpoint at absent.pt"),
    ("export text.pt", "text.pt is not a file of weights"),
    ("export empty", "no checkpoint at empty"),
    ("bench good.cgd --reference text.pt --data good.jpg", "text.pt is not a file of weights"),
    # ONNX models
    ("build-engine --fp32", "there is no ONNX model at artifacts/model.onnx", "cgd-deploy export"),
    ("build-engine --int8", "there is no ONNX model at artifacts/model.onnx", "cgd-deploy export"),
    ("build-engine absent.onnx --int8 --calib good.jpg", "there is no ONNX model at absent.onnx"),
    ("build-engine folder.onnx --fp32", "there is no ONNX model at folder.onnx"),
    ("build-engine text.onnx --fp32", "text.onnx is not a whole ONNX model"),
    ("build-engine text.onnx --int8 --calib good.jpg", "text.onnx is not a whole ONNX model"),
    ("build-engine text.onnx --fp32 --backend abacus", "'abacus'"),
    # training
    ("train --data empty", "empty holds no pictures"),
    ("train --data absent", "no pictures at absent"),
    ("train --data text.tsv", "text.tsv starts with"),
    ("train --data list.tsv --descriptors XY", "descriptors='XY'"),
    (f"{TRAIN} --backbone resnet19", "resnet19"),
    (f"{TRAIN} --weights absent.pth", "absent.pth"),
    (
        "train --data train.tsv --classes-per-batch 2 --pictures-per-class 2 --weights text.pt",
        "text.pt is not a file of weights",
    ),
    (f"{TRAIN} --resume", "resume"),
    ("train --data list.tsv --epochs -1", "epochs=-1"),
]


@pytest.mark.parametrize(("command", "says"), [(command, says) for command, *says in BAD], ids=[c for c, *_ in BAD])
def test_it_is_refused(refused, command, says):
    refused(command, *says)


def test_a_checkpoint_without_a_spec_is_refused(refused, desk):
    import torch

    torch.save({"layer.weight": torch.zeros(3)}, desk / "plain.pt")
    refused("export plain.pt", "plain.pt has no model spec")


def test_a_truncated_checkpoint_is_refused(refused, desk, checkpoint):
    data = checkpoint.read_bytes()
    (desk / "cut.pt").write_bytes(data[: len(data) // 2])
    refused("export cut.pt", "cut.pt is damaged or cut short")


def test_a_truncated_model_is_refused(refused, desk, model_onnx):
    (desk / "cut.onnx").write_bytes(model_onnx.read_bytes()[:-1000])
    refused("build-engine cut.onnx --fp32", "cut.onnx is not a whole ONNX model")


@pytest.mark.parametrize(
    ("calib", "says"),
    [
        ("empty", "empty holds no pictures"),
        ("absent", "no pictures at absent"),
        ("cut.jpg", "cut.jpg cannot be decoded"),
        ("dot.png", "dot.png is 1x1 pixels"),
        ("gone.tsv", "all 1 calibration pictures are gone"),
    ],
)
def test_bad_calibration_pictures_are_refused(refused, desk, model_onnx, calib, says):
    shutil.copy(model_onnx, desk / "model.onnx")
    refused(f"build-engine model.onnx --int8 --calib {calib}", says)


def test_an_int8_model_is_not_quantized_again(refused, desk, engines):
    with zipfile.ZipFile(engines["openvino", "int8"]) as archive:
        (desk / "int8.onnx").write_bytes(archive.read("model.onnx"))
    refused("build-engine int8.onnx --fp32", "already int8")


@pytest.fixture
def index(cli, desk) -> str:
    assert cli("embed", "good.jpg", "-e", "good.cgd", "-o", "real.npy")[0] == 0
    return "real.npy"


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("search cut.jpg -e good.cgd", "cut.jpg cannot be decoded"),
        ("search empty -e good.cgd", "empty holds no pictures"),
        ("search good.jpg -e other.cgd -k 1", "the index describes space"),
        ("search good.jpg -e good.cgd -k 1 --html folder.npy", "it is a folder"),
    ],
)
def test_a_bad_search_is_refused(refused, index, command, says):
    refused(f"{command} --index {index}", says)


@pytest.mark.skipif(os.getuid() == 0 if hasattr(os, "getuid") else True, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_is_refused(refused, desk):
    (desk / "empty").chmod(0o500)
    refused("embed good.jpg -e good.cgd -o empty/o.npy", "cannot write empty/o.npy")


def rotated() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


PICTURE = draw(1, 1)
UNUSUAL = {
    "grey.jpg": encoded(PICTURE.convert("L"), "JPEG"),
    "cmyk.jpg": encoded(PICTURE.convert("CMYK"), "JPEG"),
    "sixteen.png": encoded(Image.fromarray(np.asarray(PICTURE.convert("L")).astype(np.uint16) << 8), "PNG"),
    "rgba.png": encoded(PICTURE.convert("RGBA"), "PNG"),
    "palette.gif": encoded(PICTURE.convert("P"), "GIF"),
    "rotated.jpg": encoded(PICTURE, "JPEG", exif=rotated()),
}


@pytest.mark.parametrize(("name", "data"), UNUSUAL.items(), ids=UNUSUAL)
def test_an_unusual_picture_works(cli, desk, name, data):
    Path(name).write_bytes(data)
    code, _, err = cli("embed", name, "-e", "good.cgd", "-o", "o.npy", "--strict")
    assert (code, err) == (0, "")
    assert np.isfinite(read_index("o.npy").descriptors).all()
