"""Files of weights: what they hold is read without running any of it, and each kind that is no such file is named."""

from __future__ import annotations

import argparse
import gzip
import pickle
import struct
import zipfile
from collections import OrderedDict, defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save, save_file
from torch import nn

from cgd_deploy.errors import CheckpointError
from cgd_train.weights import load_tensors, load_weights, tables

WEIGHT = torch.arange(6.0).reshape(2, 3)


def saved(data: object, folder: Path, **options: object) -> Path:
    torch.save(data, folder / "weights.pth", **options)
    return folder / "weights.pth"


def written(content: bytes, folder: Path, name: str = "weights.pth") -> Path:
    (folder / name).write_bytes(content)
    return folder / name


def refused(path: Path, *said: str) -> None:
    """By both readers, in one sentence, and never with advice to pass a file of the suffix it has."""
    for read in (load_tensors, load_weights):
        with pytest.raises(CheckpointError) as caught:
            read(path)
        sentence = str(caught.value)
        assert sentence.startswith(str(path)) and sentence.endswith(".") and "\n" not in sentence
        assert all(words in sentence for words in said), sentence
        assert ".pth file" not in sentence


PLACES = {
    "": lambda state: state,
    "state_dict.": lambda state: {"state_dict": state, "epoch": 3},
    "ema.model.": lambda state: {"ema": {"model": OrderedDict(state)}, "scaler": None},
    "3.": lambda state: {3: state},
    "nets.": lambda state: {"nets": defaultdict(list, state)},
}


@pytest.mark.parametrize("place", PLACES)
def test_tables_have_their_place(place, tmp_path):
    data, _ = load_weights(saved(PLACES[place]({"a.weight": WEIGHT}), tmp_path))
    [table] = tables(data)
    assert table.place == place and table.tensors.keys() == {"a.weight"}
    assert torch.equal(table.tensors["a.weight"], WEIGHT)


@pytest.mark.parametrize("wrapped", ["module.a.weight", "a._orig_mod.weight", "_orig_mod.module.a.module.weight"])
def test_wrappers_come_off_anywhere(wrapped):
    assert tables({wrapped: WEIGHT})[0].tensors.keys() == {"a.weight"}


def test_wrappers_stay_where_names_would_become_equal():
    names = {"a.weight", "module.a.weight", "b.module.weight", "b._orig_mod.weight"}
    found = tables(dict.fromkeys(names, WEIGHT))[0].tensors
    assert len(found) == 4 and {"a.weight", "module.a.weight", "b.weight"} < found.keys()


def test_a_table_that_holds_itself_and_one_that_is_there_twice():
    state: dict[str, object] = {"a": WEIGHT}
    state["self"], state["again"] = state, {"b": WEIGHT}
    state["more"] = state["again"]
    assert [table.place for table in tables(state)] == ["", "again."]


class Custom(nn.Module):
    """No reader of the file has this class."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
        self.register_buffer("kept", WEIGHT)
        self.register_buffer("passing", WEIGHT, persistent=False)


@pytest.mark.parametrize("wrap", [lambda m: m, nn.DataParallel, lambda m: {"epoch": 1, "model": m}])
def test_a_module_that_was_saved_whole_is_its_state_dict(wrap, tmp_path):
    model = Custom()
    data, unread = load_weights(saved(wrap(model), tmp_path))
    [table] = tables(data)
    expected = model.state_dict()
    assert table.tensors.keys() == expected.keys()
    assert all(torch.equal(table.tensors[name], expected[name]) for name in expected)
    assert f"{__name__}.Custom" in unread


class Runs:
    """Pickled, it is a call of ``open`` that makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return open, (str(self.path), "w")


@pytest.mark.parametrize("zipped", [True, False])
def test_nothing_of_a_file_is_run(zipped, tmp_path):
    state = {"state_dict": {"a": WEIGHT}, "trap": Runs(tmp_path / "made")}
    path = saved(state, tmp_path, _use_new_zipfile_serialization=zipped)
    if zipped:
        data, unread = load_weights(path)
        assert unread == ["io.open"] and torch.equal(data["state_dict"]["a"], WEIGHT)
    else:
        refused(path, "not loaded, for safety: it holds objects of io.open", "torch.save(model.state_dict(), ")
    with pytest.raises(
        CheckpointError, match=r"for safety: it holds objects of io\.open; .*`torch\.save\(model\.state"
    ):
        load_tensors(path)
    assert not (tmp_path / "made").exists()


def test_modules_that_torch_blocks_stay_blocked(tmp_path):
    class System:
        def __reduce__(self) -> tuple[object, ...]:
            import os

            return os.mkdir, (str(tmp_path / "made"),)

    refused(saved({"a": WEIGHT, "trap": System()}, tmp_path), "for safety: it holds objects of posix.mkdir")
    assert not (tmp_path / "made").exists()


OBJECTS = {
    "argparse.Namespace": argparse.Namespace(lr=0.1, nested=argparse.Namespace(a=[1])),
    "numpy.dtype": np.float32(0.5),
    "numpy.ndarray": np.arange(3),
    "pathlib.PosixPath": Path("x"),
    "builtins.range": range(3),
}


@pytest.mark.parametrize("name", OBJECTS)
def test_objects_beside_the_weights_are_no_obstacle(name, tmp_path):
    data, unread = load_weights(saved({"a": WEIGHT, "extra": OBJECTS[name]}, tmp_path))
    assert name in unread and torch.equal(data["a"], WEIGHT)


class Attributes(dict):
    """A dict with another name, as several packages have them for settings."""


def test_what_cannot_be_skipped_is_named_with_the_way_out(tmp_path):
    path = saved({"a": WEIGHT, "settings": Attributes(lr=1)}, tmp_path)
    trusted = set(torch.serialization.get_safe_globals())
    refused(path, f"for safety: it holds objects of {__name__}.Attributes;", "`torch.save(model.state_dict(), ")
    assert set(torch.serialization.get_safe_globals()) == trusted


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a Git LFS pointer"),
        (b"\n<!DOCTYPE html><html>", "is a web page"),
        (b"<HTML><head>", "is a web page"),
        (b"<?xml version='1.0'?><Error>", "is an XML text"),
        (gzip.compress(b"x", mtime=0), "is compressed; unpack it"),
        (b"\x89HDF\r\n\x1a\n", "is an HDF5 file"),
        (b"weights", "is not a file of weights"),
        (b"{}", "is not a file of weights"),
        (b"PK\x03\x04 and no more", "is damaged or cut short"),
        (pickle.dumps({"a": 1}, protocol=4), "is damaged or was saved in another way"),
        (pickle.dumps({"a": 1}, protocol=2), "is damaged or was saved in another way"),
    ],
)
def test_other_files_are_told_apart(content, told, tmp_path):
    refused(written(content, tmp_path), told)


def test_a_truncated_file_of_each_format(tmp_path):
    whole = saved({"a": WEIGHT}, tmp_path).read_bytes()
    for size in (100, len(whole) - 10):
        refused(written(whole[:size], tmp_path), "is damaged or cut short; copy or download it again")
    legacy = saved({"a": WEIGHT}, tmp_path, _use_new_zipfile_serialization=False).read_bytes()
    refused(written(legacy[: len(legacy) // 2], tmp_path), "is damaged or was saved in another way")


@pytest.mark.filterwarnings("ignore")  # torch.jit is old
def test_archives_that_are_no_weights(tmp_path):
    torch.jit.save(torch.jit.script(nn.Linear(3, 2)), tmp_path / "model.pt")
    refused(tmp_path / "model.pt", "is a TorchScript program", "torch.jit.load")
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        archive.writestr("manifest.json", "{}")
    refused(tmp_path / "data.zip", "is an archive of other files")


def test_a_folder_and_a_missing_file(tmp_path):
    for read in (load_tensors, load_weights):
        with pytest.raises(CheckpointError, match=r"there is no checkpoint at .*, which is a folder; pass the file of"):
            read(tmp_path)
        with pytest.raises(CheckpointError, match=r"there is no checkpoint at .*absent\.safetensors; check the path\."):
            read(tmp_path / "absent.safetensors")


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="a file that cannot be read is Linux's")
def test_a_file_that_cannot_be_read():
    refused(Path("/proc/self/mem"), "cannot be read (")


def test_safetensors_are_known_by_their_content(tmp_path):
    for name in ("model.safetensors", "pytorch_model.bin"):
        save_file({"a": WEIGHT.bfloat16()}, tmp_path / name)
        data, unread = load_weights(tmp_path / name)
        assert not unread and torch.equal(data["a"], WEIGHT.bfloat16())
    torch.save({"a": WEIGHT}, tmp_path / "model.safetensors")
    assert torch.equal(load_weights(tmp_path / "model.safetensors")[0]["a"], WEIGHT)


WHOLE = save({"a": WEIGHT})


@pytest.mark.parametrize("content", [WHOLE[:-4], WHOLE[:20], struct.pack("<Q", 12) + b'{"a": [1, 2]}', WHOLE[:9]])
def test_damaged_safetensors(content, tmp_path):
    path = written(content, tmp_path, "model.safetensors")
    with pytest.raises(CheckpointError, match=r"is not a complete .safetensors file .*; copy or download it again"):
        load_weights(path)


def test_a_pointer_in_the_place_of_safetensors(tmp_path):
    path = written(b"version https://git-lfs.github.com/spec/v1\n", tmp_path, "model.safetensors")
    refused(path, "is a Git LFS pointer")
