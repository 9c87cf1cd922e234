"""Engine files that every reader must refuse: how a whole file is damaged, and words of the sentence that says so."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from cgd_deploy.runtime.enginefile import MANIFEST

Damage = Callable[[Path], object]
"""Damages the engine file at a path."""


def zipped(
    path: Path, members: Mapping[str, bytes], comment: bytes = b"", compression: int = zipfile.ZIP_STORED
) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
        archive.comment = comment
    return path


def unzipped(path: Path) -> tuple[dict[str, bytes], bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}, archive.comment


def with_manifest(path: Path, text: bytes) -> Path:
    """The engine with another manifest, whose checksum fits."""
    members, _ = unzipped(path)
    return zipped(path, members | {MANIFEST: text}, hashlib.sha256(text).hexdigest().encode())


def resealed(path: Path, **changes: object) -> Path:
    """The engine with changed fields of the manifest, whose checksum fits."""
    return with_manifest(path, json.dumps({**json.loads(unzipped(path)[0][MANIFEST]), **changes}).encode())


def with_spec(path: Path, **changes: object) -> Path:
    return resealed(path, spec={**json.loads(unzipped(path)[0][MANIFEST])["spec"], **changes})


def _written(data: bytes, path: Path) -> None:
    path.write_bytes(data)


def _truncated(kept: float, path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])


def _flipped(number: int, path: Path) -> None:
    """Change a bit in the middle of a member."""
    with zipfile.ZipFile(path) as archive:
        info = archive.infolist()[number]
    data = bytearray(path.read_bytes())
    data[info.header_offset + 30 + len(info.filename) + info.file_size // 2] ^= 1
    path.write_bytes(data)


def _replaced(member: str, new: bytes | None, path: Path) -> None:
    members, comment = unzipped(path)
    del members[member]
    zipped(path, members | ({member: new} if new else {}), comment)


def _edited(path: Path) -> None:
    members, comment = unzipped(path)
    zipped(path, members | {MANIFEST: members[MANIFEST].replace(b'"SG"', b'"GS"')}, comment)


def _compressed(path: Path) -> None:
    zipped(path, *unzipped(path), zipfile.ZIP_DEFLATED)


def _directory(offset: int, value: int, size: int, path: Path) -> None:
    """Change a number in the last entry of the zip's directory."""
    data = bytearray(path.read_bytes())
    entry = data.rindex(b"PK\x01\x02")
    data[entry + offset : entry + offset + size] = value.to_bytes(size, "little")
    path.write_bytes(data)


def _two_of_one_name(path: Path) -> None:
    members, comment = unzipped(path)
    zipped(path, {**members, "first.json": b"1", "other.json": b"1"}, comment)
    path.write_bytes(path.read_bytes().replace(b"other.json", b"first.json"))


def _payload_that_is_not_there(path: Path) -> None:
    sums = json.loads(unzipped(path)[0][MANIFEST])["sha256"]
    resealed(path, payload="absent", sha256={**sums, "absent": hashlib.sha256(b"").hexdigest()})


def _golden(changes: Mapping[str, bytes], path: Path) -> None:
    """Other golden arrays, whose checksums fit."""
    members, _ = unzipped(path)
    sums = json.loads(members[MANIFEST])["sha256"]
    for name, data in changes.items():
        members[name], sums[name] = data, hashlib.sha256(data).hexdigest()
    zipped(path, members)
    resealed(path, sha256=sums)


BAD_FIELDS: dict[str, dict[str, Any]] = {
    "unknown field": {"weather": "fine"},
    "unknown precision": {"precision": "int2"},
    "unknown precision of floats": {"float_precision": "int2"},
    "precision that is no text": {"precision": ["int8"]},
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
    "statement that is no text": {"retrieval": {"statement": 3}},
    "spec of another release": {"spec": {"backbone": "resnet18"}},
    "spec that is no table": {"spec": [1]},
}
BAD_SPECS: dict[str, dict[str, Any]] = {
    "descriptors twice": {"descriptors": "SS"},
    "descriptors that nobody knows": {"descriptors": "X"},
    "dim of a fraction": {"dim": 24.5},
    "dim that the descriptors cannot share": {"dim": 25},
    "dim without end": {"dim": 1 << 20},
    "backbone without end": {"backbone": "x" * 61},
    "gem_p of zero": {"gem_p": 0},
    "gem_eps of one": {"gem_eps": 1},
    "input of no size": {"input_size": [0, 32]},
    "input of one side": {"input_size": [32]},
    "another order of colours": {"color": "BGR"},
    "mean of two": {"mean": [0.5, 0.5]},
    "std of zero": {"std": [0, 1, 1]},
    "resize that nobody knows": {"resize": "nearest"},
    "resize to less than the input": {"resize": "pillow-bilinear-shorter-31"},
    "unknown field of the spec": {"weather": "fine"},
}
NO_JSON = {
    "too many lists": b"[" * 100_000,
    "too many digits": b'{"schema": ' + b"1" * 5000 + b"}",
    "NaN": b'{"schema": NaN}',
    "no UTF-8": b"\xff",
}
GOLDEN = ("golden/images.npy", "golden/descriptors.npy")

DAMAGED: dict[str, tuple[Damage, str]] = {
    **{
        f"not an engine {number}": (partial(_written, data), "is not a whole .cgd file")
        for number, data in enumerate(
            [b"", b"a text file\n" * 40, b"PK\x03\x04" + bytes(100), b"PK\x05\x06" + bytes(18)]
        )
    },
    **{
        f"truncated to {kept}": (partial(_truncated, kept), "build it again")
        for kept in (0.0, 0.01, 0.3, 0.9, 0.99, 0.9999)
    },
    **{f"bit of member {number}": (partial(_flipped, number), "") for number in range(4)},
    **{
        f"{member} {'replaced' if new else 'removed'}": (partial(_replaced, member, new), "checksum")
        for member in ("model.json", *GOLDEN)
        for new in (None, b"something else")
    },
    "edited manifest": (_edited, "edited"),
    "no manifest": (partial(_replaced, MANIFEST, None), "is not a whole .cgd file"),
    "compressed members": (_compressed, "compressed"),
    "claims a gigabyte": (partial(_directory, 24, 1 << 30, 4), ""),
    "encrypted member": (partial(_directory, 8, 1, 2), "is not a whole .cgd file"),
    "member elsewhere": (partial(_directory, 42, 5, 4), "is not a whole .cgd file"),
    "two members of one name": (_two_of_one_name, ""),
    "member outside its folder": (lambda path: zipped(path, {"../outside": b"", MANIFEST: b"{}"}), "plain name"),
    "newer schema": (partial(resealed, schema=2), "schema 2"),
    "no schema": (partial(resealed, schema=None), "reads 1"),
    **{name: (partial(resealed, **changes), "damaged manifest") for name, changes in BAD_FIELDS.items()},
    **{name: (partial(with_spec, **changes), "damaged manifest") for name, changes in BAD_SPECS.items()},
    **{name: (partial(with_manifest, text=text), "is not a whole .cgd file") for name, text in NO_JSON.items()},
    **{f"manifest {text!r}": (partial(with_manifest, text=text), "not a table") for text in (b"[]", b"3", b"null")},
    "payload that is not there": (_payload_that_is_not_there, "absent"),
    "golden arrays of no array": (partial(_golden, dict.fromkeys(GOLDEN, b"no array")), "do not fit its spec"),
    "golden header without end": (
        partial(_golden, {GOLDEN[0]: b"\x93NUMPY\x01\x00\xff\xff" + b" " * 100}),
        "do not fit its spec",
    ),
    "golden array of too many values": (
        partial(
            _golden,
            {
                GOLDEN[0]: b"\x93NUMPY\x01\x00\x76\x00"
                + b"{'descr': '|u1', 'fortran_order': False, 'shape': (9999999999, 999999999, 32, 3), }".ljust(117)
                + b"\n"
            },
        ),
        "do not fit its spec",
    ),
}
"""By name: the damage, and words of the refusal, which also names the path."""
