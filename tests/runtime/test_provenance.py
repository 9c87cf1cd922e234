"""Which model an engine is of, and which files changed."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from conftest import TUNING, write_fake_engine

from cgd_deploy.errors import EngineError, InputError
from cgd_deploy.files import sha256_bytes
from cgd_deploy.runtime.enginefile import MANIFEST, read_engine
from cgd_deploy.runtime.provenance import changes, contents, engines_of_one_model, stale, stale_engines


def engine(path: Path, onnx: bytes | None = b"new", checkpoint: bytes = b"weights") -> Path:
    """An engine that says it was made from an ONNX file of these bytes."""
    source = {"onnx_sha256": sha256_bytes(onnx) if onnx else None, "checkpoint_sha256": sha256_bytes(checkpoint)}
    return write_fake_engine(path, source=source)


@pytest.mark.parametrize(
    ("onnx", "beside", "reason"),
    [
        (b"new", {"model.onnx": b"new"}, None),
        (b"old", {"model.onnx": b"new"}, "made from another ONNX file than model.onnx beside it"),
        (b"old", {"model.onnx": b"new", "mine.onnx": b"old"}, None),
        (b"old", {"b.onnx": b"1", "a.onnx": b"2"}, "made from another ONNX file than a.onnx or b.onnx beside it"),
        (b"old", {}, None),
        (b"old", {"model.onnx": None}, None),  # a folder of that name
        (None, {"model.onnx": b"new"}, None),
    ],
)
def test_an_engine_is_stale_if_no_onnx_file_beside_it_is_its_source(tmp_path, onnx, beside, reason):
    path = engine(tmp_path / "e.cgd", onnx)
    for name, data in beside.items():
        (tmp_path / name).mkdir() if data is None else (tmp_path / name).write_bytes(data)
    assert stale(path, read_engine(path).manifest) == reason
    assert stale_engines(tmp_path) == ({path: reason} if reason else {})


def test_a_damaged_engine_is_not_among_the_stale_ones(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"new")
    (tmp_path / "broken.cgd").write_bytes(b"no engine")
    assert stale_engines(tmp_path) == {}
    with pytest.raises(EngineError, match=r"broken\.cgd"):
        engines_of_one_model(tmp_path)


def test_stale_engines_are_left_out_with_the_reason(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"new")
    old, new = engine(tmp_path / "a.cgd", b"old", b"earlier"), engine(tmp_path / "b.cgd")
    assert engines_of_one_model(tmp_path) == (
        [new],
        {old: "made from another ONNX file than model.onnx beside it"},
    )


def refused(message: str, folder: Path) -> None:
    with pytest.raises(InputError, match=message) as caught:
        engines_of_one_model(folder)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")


def test_a_folder_with_nothing_to_compare_is_refused(tmp_path):
    refused("there are no engines in", tmp_path)
    engine(tmp_path / "a.cgd", b"old")
    (tmp_path / "model.onnx").write_bytes(b"new")
    refused(r"every engine in .* is stale \(a\.cgd was made from another .*build them again", tmp_path)


def test_engines_of_several_models_are_refused_by_name(tmp_path):
    for name, checkpoint in {"a": b"1", "b": b"2", "c": b"1"}.items():
        engine(tmp_path / f"{name}.cgd", checkpoint=checkpoint)
    refused(r"engines of 2 models \(a\.cgd, c\.cgd \| b\.cgd\); name the engines of one model", tmp_path)


def test_changes_name_what_was_replaced(tmp_path):
    same, other, gone, new = (tmp_path / name for name in ("same", "other", "gone", "new"))
    for path in (same, other, gone):
        path.write_text("before")
    before = contents(same, other, gone, new)
    other.write_text("after")
    same.write_text("before")
    new.write_text("first")
    gone.unlink()
    assert changes(before) == [f"{other} was replaced; the earlier file differed."]


def tuned_by_an_earlier_release(path: Path) -> None:
    """Its tuning in the manifest, and the time of writing beside every member."""
    members = read_engine(path).members
    write_fake_engine(path, source=read_engine(path).manifest.source, tuning=TUNING)
    with zipfile.ZipFile(path) as archive:
        text, comment = archive.read(MANIFEST), archive.comment
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in {MANIFEST: text, **members}.items():
            archive.writestr(zipfile.ZipInfo(name, (2025, 1, 1, 12, 0, 0)), data)
        archive.comment = comment


def test_an_engine_written_again_changes_only_with_its_manifest(tmp_path, monkeypatch):
    path = engine(tmp_path / "e.cgd")
    before, written = contents(path), path.read_bytes()
    monkeypatch.setattr("time.time", lambda: 2e9)
    engine(path)
    assert path.read_bytes() == written and changes(before) == []
    tuned_by_an_earlier_release(path)
    assert path.read_bytes() != written and changes(before) == []
    engine(path, b"other")
    assert changes(before) == [f"{path} was replaced; the earlier file differed."]


def test_a_file_that_cannot_be_read_is_told_in_one_sentence(tmp_path, monkeypatch):
    path = engine(tmp_path / "e.cgd")
    (tmp_path / "model.onnx").write_bytes(b"new")

    def fail(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("cgd_deploy.runtime.provenance.sha256_file", fail)
    with pytest.raises(InputError, match=r"cannot read .*model\.onnx \(Permission denied\); make it readable"):
        stale(path, read_engine(path).manifest)
