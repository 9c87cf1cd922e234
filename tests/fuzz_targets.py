"""Readers of bytes from elsewhere, and the law for them all, a result or one sentence, for test_fuzz.py and fuzz.py."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from conftest import FAKE_SPEC, TUNING, draw, write_fake_engine

from cgd_deploy import CgdError, EngineError, load
from cgd_deploy.datasets.layouts import read_dataset, read_evaluation
from cgd_deploy.files import sha256_bytes
from cgd_deploy.pictures.images import read_images
from cgd_deploy.pictures.preprocess import preprocess
from cgd_deploy.runtime.enginefile import MANIFEST, read_engine
from cgd_deploy.runtime.tuning import setting_here, tuning_path, write_tuning
from cgd_deploy.search.index import index_images, read_index, sidecar, write_index
from cgd_deploy.spec import ModelSpec

LONGEST_SENTENCE = 1000


def image(data: bytes, folder: Path) -> None:
    pixels = preprocess(data, FAKE_SPEC)
    assert pixels.shape == (*FAKE_SPEC.input_size, 3) and pixels.dtype == np.uint8


def engine(data: bytes, folder: Path) -> None:
    path = folder / "fuzzed.cgd"
    path.write_bytes(data)
    images, descriptors = read_engine(path).golden
    assert len(images) == len(descriptors)


def manifest(data: bytes, folder: Path) -> None:
    """An engine whose manifest has been edited by somebody who knows of its checksum."""
    path = folder / "edited.cgd"
    with zipfile.ZipFile(write_fake_engine(folder / "whole.cgd")) as whole, zipfile.ZipFile(path, "w") as edited:
        for name in whole.namelist():
            edited.writestr(name, data if name == MANIFEST else whole.read(name))
        edited.comment = sha256_bytes(data).encode()
    assert isinstance(read_engine(path).manifest.spec, ModelSpec)


def tuning(data: bytes, folder: Path) -> None:
    """What lies beside an engine never keeps it from running."""
    path = folder / "tuned.cgd"
    if not path.exists():
        write_fake_engine(path)
    tuning_path(path).write_bytes(data)
    file = read_engine(path)
    setting_here(file.tunings, "throughput")
    if file.untuned:
        raise EngineError(file.untuned)


def spec(data: bytes, folder: Path) -> None:
    """As it stands in an ONNX file's metadata."""
    assert ModelSpec.from_json(data.decode(errors="surrogateescape")).dim > 0


def onnx(data: bytes, folder: Path) -> None:
    from cgd_export.metadata import get_metadata, load_onnx

    path = folder / "fuzzed.onnx"
    path.write_bytes(data)
    get_metadata(load_onnx(path))


def image_list(data: bytes, folder: Path) -> None:
    path = folder / "list.tsv"
    path.write_bytes(data)
    assert len(read_images(path)) > 0


def table(data: bytes, folder: Path) -> None:
    """A list as spreadsheets write it."""
    path = folder / "list.csv"
    path.write_bytes(data)
    assert len(read_evaluation(path).images) > 0


def cub(data: bytes, folder: Path) -> None:
    """CUB-200-2011's three lists, one after another."""
    (folder / "cub" / "images" / "a").mkdir(parents=True, exist_ok=True)
    names = ("images.txt", "image_class_labels.txt", "bounding_boxes.txt")
    for name, text in zip(names, (*data.split(b"----"), b"", b""), strict=False):
        (folder / "cub" / name).write_bytes(text)
    assert len(read_dataset(folder / "cub").training) > 0


def index(data: bytes, folder: Path) -> None:
    """What lies beside an index of 12 pictures."""
    path = folder / "index.npy"
    if not path.exists():
        path = _index(folder)
    sidecar(path).write_bytes(data)
    assert len(read_index(path).paths) == len(read_index(path).descriptors)


def weights(data: bytes, folder: Path) -> None:
    """A file of torch.save or safetensors with one weight."""
    import torch

    from cgd_train.layouts import find
    from cgd_train.weights import load_weights, tables

    path = folder / "weights.pth"
    path.write_bytes(data)
    assert len(find(tables(load_weights(path)[0]), {"conv1.weight": torch.zeros(2, 3)})) <= 1


TARGETS: dict[str, Callable[[bytes, Path], None]] = {
    function.__name__: function
    for function in (image, engine, manifest, tuning, spec, onnx, image_list, table, cub, index, weights)
}


def obeys(target: str, data: bytes, folder: Path) -> None:
    """Raises whatever a reader should not."""
    try:
        TARGETS[target](data, folder)
    except CgdError as error:
        sentence = str(error)
        assert sentence and "\n" not in sentence and len(sentence) < LONGEST_SENTENCE, sentence


def seeds(target: str, folder: Path) -> list[bytes]:
    """Whole files to begin with."""
    if target == "image":
        formats = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "MPO", "JPEG2000")
        return [_encoded(kind) for kind in formats]
    if target == "onnx":
        return [_onnx()]
    if target == "image_list":
        return [b"image\tclass\na.jpg\tx\nb.jpg\ty\n", b"image\tclass\tx1\ty1\tx2\ty2\na.jpg\tx\t0\t0\t40\t40\n"]
    if target == "table":
        boxes = b"file,width,class,xmin,ymin,xmax,ymax\na.jpg,9,x,0,0,40,40\n"
        return [b'path;label\r\n"a;b.jpg";x\r\n', boxes, b"path,split\na.jpg,train\nb.jpg,query\nc.jpg,gallery\n"]
    if target == "cub":
        return [b"1 a/1.jpg\n2 a/2.jpg\n----1 1\n2 150\n----1 0.0 1.0 30.0 40.0\n2 0.0 0.0 9.0 9.0\n"]
    if target == "index":
        return [sidecar(_index(folder)).read_bytes()]
    if target == "weights":
        return _weights(folder)
    if target == "spec":
        return [FAKE_SPEC.to_json().encode()]
    path = write_fake_engine(folder / "seed.cgd")
    if target == "engine":
        return [path.read_bytes()]
    if target == "tuning":
        return [write_tuning(path, read_engine(path).manifest_sha256, TUNING).read_bytes()]
    told = read_engine(path).manifest.to_dict()
    return [json.dumps(told).encode(), json.dumps({**told, "tuning": TUNING}).encode()]


def _encoded(kind: str) -> bytes:
    file = io.BytesIO()
    draw(0, 0).resize((40, 36)).save(file, kind)
    return file.getvalue()


def _onnx() -> bytes:
    from graphs import conv, relu, tiny

    from cgd_export.metadata import FEATURES

    model = tiny(conv("c", "x", "y"), relu("y", FEATURES), w=np.ones((3, 3, 1, 1)))
    model.graph.output[0].type.tensor_type.shape.dim.add(dim_param="N")
    return model.SerializeToString()


def _weights(folder: Path) -> list[bytes]:
    import torch
    from safetensors.torch import save

    state = {"model.conv1.weight": torch.zeros(2, 3)}
    torch.save({"state_dict": state, "args": folder}, folder / "zipped.pth")
    torch.save(state, folder / "legacy.pth", _use_new_zipfile_serialization=False)
    return [*((folder / name).read_bytes() for name in ("zipped.pth", "legacy.pth")), save(state)]


def _index(folder: Path) -> Path:
    pictures = folder / "pictures"
    pictures.mkdir(exist_ok=True)
    for number in range(12):
        draw(0, number).save(pictures / f"{number}.png")
    with load(write_fake_engine(folder / "index.cgd")) as engine:
        return write_index(index_images(engine, read_images(pictures)), folder / "index.npy")
