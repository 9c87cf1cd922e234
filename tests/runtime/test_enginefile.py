"""The .cgd file: what is written is read, and whatever was changed is refused before a backend sees it."""

from __future__ import annotations

import hashlib
import json
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import FAKE_SPEC, listing, write_fake_engine
from damaged_engines import DAMAGED, unzipped, with_manifest

from cgd_deploy.errors import EngineError
from cgd_deploy.runtime import engine
from cgd_deploy.runtime.backends.fake import FakeBackend
from cgd_deploy.runtime.enginefile import MANIFEST, Manifest, read_engine, write_engine
from cgd_deploy.runtime.golden import golden_images
from cgd_deploy.spec import Precision


@pytest.fixture(autouse=True)
def no_backend(monkeypatch):
    """A backend that must not be made."""
    monkeypatch.setitem(engine.BACKENDS, "fake", {"cpu": lambda *_, **__: pytest.fail("a backend was made")})


def refused(path: Path, *says: str) -> None:
    with pytest.raises(EngineError) as caught:
        engine.load(path)
    message = str(caught.value)
    assert str(path) in message
    said = message.replace(str(path), "")
    assert all(words in said for words in says), message
    assert "\n" not in message and message.endswith(".")


def test_round_trip(tmp_path):
    manifest = Manifest(
        spec=replace(FAKE_SPEC, gem_p=2.5),
        backend="onnxruntime",
        precision=Precision.INT8,
        payload="deep/model.onnx",
        profile={"min": 1, "opt": 8, "max": 64},
        builder={"name": "onnxruntime", "version": "1.2", "cgd_deploy": "0.1"},
        gpu={"name": "GPU", "compute_capability": "9.0"},
        source={"onnx_sha256": "ab", "checkpoint": None},
        parity={"cosine_min": 0.99},
        proof={"int8_convolutions": 0.9},
        retrieval={"overlap_at_10": 0.98, "statement": "safe to mix"},
    )
    images = golden_images(FAKE_SPEC, 2)
    descriptors = np.eye(2, 24, dtype=np.float32)
    path = write_engine(tmp_path / "new" / "e.cgd", manifest, b"payload", images, descriptors)
    file = read_engine(path)
    assert replace(file.manifest, sha256={}) == manifest
    assert file.payload == b"payload"
    assert np.array_equal(file.golden[0], images) and np.array_equal(file.golden[1], descriptors)
    assert set(file.manifest.sha256) == {"deep/model.onnx", "golden/images.npy", "golden/descriptors.npy"}
    assert listing(tmp_path).keys() == {"new", "new/e.cgd"}


def test_members_are_stored_and_the_manifest_is_plain_json(fake_engine):
    with zipfile.ZipFile(fake_engine) as archive:
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
        manifest = json.loads(archive.read(MANIFEST))
    assert manifest["schema"] == 1
    assert manifest["spec"]["descriptors"] == "SG"
    assert manifest["sha256"]["model.json"] == hashlib.sha256(b'{"dim": 24}').hexdigest()


def test_no_part_of_a_file_is_left_when_writing_fails(tmp_path):
    manifest = Manifest(
        spec=FAKE_SPEC, backend="fake", precision=Precision.FP32, payload="m", profile={}, builder={"name": object()}
    )
    with pytest.raises(TypeError):
        write_engine(tmp_path / "e.cgd", manifest, b"", np.zeros(1, np.uint8), np.zeros(1, np.float32))
    assert listing(tmp_path) == {}


def test_missing(tmp_path):
    refused(tmp_path / "absent.cgd", "there is no engine", "cgd-deploy build-engine")
    refused(tmp_path, "there is no engine")


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_engine_is_refused(fake_engine, name):
    damage, words = DAMAGED[name]
    damage(fake_engine)
    refused(fake_engine, words)


def test_an_engine_of_before_retrieval_was_recorded_is_read(fake_engine):
    manifest = json.loads(unzipped(fake_engine)[0][MANIFEST])
    assert manifest.pop("retrieval") is None
    with_manifest(fake_engine, json.dumps(manifest).encode())
    assert read_engine(fake_engine).manifest.retrieval is None


def test_the_same_engine_written_later_is_the_same_file(tmp_path, monkeypatch):
    first = write_fake_engine(tmp_path / "first.cgd").read_bytes()
    monkeypatch.setattr("time.time", lambda: 2e9)
    assert write_fake_engine(tmp_path / "later.cgd").read_bytes() == first
    assert write_fake_engine(tmp_path / "other.cgd", noise=0.1).read_bytes() != first


def test_reprs_print_no_payload(fake_engine):
    file = read_engine(fake_engine)
    assert repr(file) == "<EngineFile fake.cgd: fake fp32, SG 24 values, 32x32, 0.0 MB>"
    assert repr(file.manifest) == "<Manifest: fake fp32, SG 24 values, 32x32>"


def test_a_backend_that_this_release_lacks(tmp_path):
    refused(write_fake_engine(tmp_path / "e.cgd", backend="abacus"), "backend 'abacus'", "onnxruntime")


def test_a_whole_file_does_reach_its_backend(fake_engine, monkeypatch):
    monkeypatch.setitem(engine.BACKENDS, "fake", {"cpu": FakeBackend})
    engine.load(fake_engine).close()
