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


def zipped(path: Path, members: dict[str, bytes], comment: bytes = b"", compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
        archive.comment = comment
    return path


def unzipped(path: Path) -> tuple[dict[str, bytes], bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}, archive.comment


def resealed(path: Path, **changes: object) -> Path:
    """The engine with a changed manifest and the manifest's checksum made to fit."""
    members, _ = unzipped(path)
    members[MANIFEST] = json.dumps({**json.loads(members[MANIFEST]), **changes}).encode()
    return zipped(path, members, hashlib.sha256(members[MANIFEST]).hexdigest().encode())


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


@pytest.mark.parametrize("data", [b"", b"a text file\n" * 40, b"PK\x03\x04" + bytes(100), b"PK\x05\x06" + bytes(18)])
def test_not_an_engine(tmp_path, data):
    path = tmp_path / "e.cgd"
    path.write_bytes(data)
    refused(path, "is not a whole .cgd file")


@pytest.mark.parametrize("kept", [0.0, 0.01, 0.3, 0.9, 0.99, 0.9999])
def test_truncated(fake_engine, kept):
    data = fake_engine.read_bytes()
    fake_engine.write_bytes(data[: int(len(data) * kept)])
    refused(fake_engine, "build it again")


def test_every_member_is_guarded_against_a_flipped_byte(fake_engine):
    data = fake_engine.read_bytes()
    with zipfile.ZipFile(fake_engine) as archive:
        infos = archive.infolist()
    assert len(infos) == 4
    for info in infos:
        flipped = bytearray(data)
        content = info.header_offset + 30 + len(info.filename)
        flipped[content + info.file_size // 2] ^= 1
        fake_engine.write_bytes(flipped)
        refused(fake_engine)


@pytest.mark.parametrize("member", ["model.json", "golden/images.npy", "golden/descriptors.npy"])
@pytest.mark.parametrize("new", [None, b"something else"])
def test_a_member_replaced_or_removed_and_zipped_again(fake_engine, member, new):
    members, comment = unzipped(fake_engine)
    del members[member]
    zipped(fake_engine, members | ({member: new} if new else {}), comment)
    refused(fake_engine, member, "checksum")


def test_an_edited_manifest_zipped_again(fake_engine):
    members, comment = unzipped(fake_engine)
    members[MANIFEST] = members[MANIFEST].replace(b'"SG"', b'"GS"')
    zipped(fake_engine, members, comment)
    refused(fake_engine, "manifest", "edited")


def test_without_a_manifest(fake_engine):
    members, comment = unzipped(fake_engine)
    del members[MANIFEST]
    refused(zipped(fake_engine, members, comment), "is not a whole .cgd file")


def test_compressed_members(fake_engine):
    refused(zipped(fake_engine, *unzipped(fake_engine), zipfile.ZIP_DEFLATED), "compressed")


def test_a_file_that_claims_to_hold_more_than_it_does(fake_engine):
    data = bytearray(fake_engine.read_bytes())
    entry = data.rindex(b"PK\x01\x02")
    data[entry + 24 : entry + 28] = (1 << 30).to_bytes(4, "little")  # file size in the directory
    fake_engine.write_bytes(data)
    refused(fake_engine)


def test_an_engine_of_before_retrieval_was_recorded_is_read(fake_engine):
    members, _ = unzipped(fake_engine)
    manifest = json.loads(members[MANIFEST])
    assert manifest.pop("retrieval") is None
    members[MANIFEST] = json.dumps(manifest).encode()
    zipped(fake_engine, members, hashlib.sha256(members[MANIFEST]).hexdigest().encode())
    assert read_engine(fake_engine).manifest.retrieval is None


def test_a_newer_schema(fake_engine):
    refused(resealed(fake_engine, schema=2), "schema 2", "reads 1", "upgrade")


BAD_MANIFESTS = {
    "unknown field": {"weather": "fine"},
    "unknown precision": {"precision": "int2"},
    "no table of checksums": {"sha256": "abc"},
    "payload without a name": {"payload": ["model.json"]},
    "profile without a largest batch": {"profile": {"min": 1, "opt": 4}},
    "profile of fractions": {"profile": {"min": 1, "opt": 4, "max": 8.0}},
    "profile without end": {"profile": {"min": 1, "opt": 4, "max": 10**9}},
    "profile of nothing": {"profile": {"min": 0, "opt": 4, "max": 8}},
    "backend that is no text": {"backend": ["fake"]},
    "source that is no text": {"source": {"checkpoint": 3}},
    "checksum that is no text": {"sha256": {"model.json": 3}},
    "parity that is no table": {"parity": [0.99]},
    "tuning without settings": {"tuning": {"machine": {}}},
    "tuning of words": {"tuning": {"machine": {}, "latency": {"threads": "1"}, "throughput": {}}},
    "tuning of more than settings": {
        "tuning": {
            "machine": {},
            **{name: {"threads": 1, "streams": 1, "batch": 1, "x": 1} for name in ("latency", "throughput")},
        }
    },
    "tuning of lists": {"tuning": {"machine": {}, "latency": [], "throughput": []}},
    "tuning of no machine": {
        "tuning": {name: {"threads": 1, "streams": 1, "batch": 1} for name in ("latency", "throughput")}
    },
    "builder that is no table": {"builder": None},
    "retrieval that is no table": {"retrieval": "safe to mix"},
    "spec of another release": {"spec": {"backbone": "resnet18"}},
}


@pytest.mark.parametrize("changes", BAD_MANIFESTS.values(), ids=BAD_MANIFESTS)
def test_a_manifest_that_does_not_hold_what_it_must(fake_engine, changes):
    refused(resealed(fake_engine, **changes), "damaged manifest")


@pytest.mark.parametrize("text", [b"[" * 100_000, b'{"schema": ' + b"1" * 5000 + b"}", b'{"schema": NaN}', b"\xff"])
def test_a_manifest_that_is_no_json_of_ours(fake_engine, text):
    members, _ = unzipped(fake_engine)
    zipped(fake_engine, members | {MANIFEST: text}, hashlib.sha256(text).hexdigest().encode())
    refused(fake_engine, "is not a whole .cgd file")


def test_a_payload_that_is_not_there_is_not_taken_for_an_empty_one(fake_engine):
    sums = json.loads(unzipped(fake_engine)[0][MANIFEST])["sha256"]
    refused(
        resealed(fake_engine, payload="absent", sha256={**sums, "absent": hashlib.sha256(b"").hexdigest()}), "absent"
    )


@pytest.mark.parametrize("text", [b"[]", b"3", b"null"])
def test_a_manifest_that_is_no_table(fake_engine, text):
    members, _ = unzipped(fake_engine)
    zipped(fake_engine, members | {MANIFEST: text}, hashlib.sha256(text).hexdigest().encode())
    refused(fake_engine, "not a table")


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
