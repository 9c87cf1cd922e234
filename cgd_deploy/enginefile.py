"""The .cgd file: one stored zip of manifest.json, a payload for one backend, and golden pictures with descriptors.

Everything is checked here, before a backend sees a byte. Knows nothing of how a payload is made or run.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import EngineError, SpecError
from .files import replacing, sha256_bytes
from .spec import ModelSpec, Precision

SCHEMA = 1
MANIFEST = "manifest.json"
GOLDEN_IMAGES = "golden/images.npy"
GOLDEN_DESCRIPTORS = "golden/descriptors.npy"
LARGEST = 8 << 30
REBUILD = "build it again with `cgd-deploy build-engine`"


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What an engine file says of itself.

    spec       the model
    backend    name of the runtime that the payload is for
    precision  of the backbone's convolutions
    payload    member that holds the model
    profile    smallest, best and largest batch: {"min", "opt", "max"}
    builder    what made the payload: {"name", "version", "cgd_deploy"}
    gpu        {"name", "compute_capability"} where the payload is tied to one, else None
    source     sha256 of the ONNX file, the checkpoint, the calibration list and the list of test pictures, and where
               the checkpoint was
    parity     measured against the FP32 graph when the engine was built
    proof      how much of the convolution work has the asked precision, and how that is known
    retrieval  what test pictures find with it, what its descriptors and FP32's find together, and whether they may
               share a gallery; None where that was not measured
    tuning     what runs fastest on which machine, see ``tuning``; None where that was not measured
    sha256     of every other member; filled in when written
    """

    spec: ModelSpec
    backend: str
    precision: Precision
    payload: str
    profile: Mapping[str, int]
    builder: Mapping[str, str]
    gpu: Mapping[str, str] | None = None
    source: Mapping[str, Any] = field(default_factory=dict)
    parity: Mapping[str, Any] | None = None
    proof: Mapping[str, Any] | None = None
    retrieval: Mapping[str, Any] | None = None
    tuning: Mapping[str, Any] | None = None
    sha256: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {"schema": SCHEMA, **fields, "spec": self.spec.to_dict(), "precision": self.precision.value}

    @classmethod
    def from_dict(cls, data: dict[str, Any], path: Path) -> Manifest:
        """Raises EngineError for a manifest of another schema or with fields missing or unknown."""
        schema = data.pop("schema", None)
        if schema != SCHEMA:
            raise EngineError(
                f"{path} has schema {schema}, this release reads {SCHEMA}; upgrade cgd-deploy or {REBUILD}."
            )
        try:
            spec = ModelSpec.from_dict(data.pop("spec"))
            manifest = cls(spec=spec, precision=Precision(data.pop("precision")), **data)
            tables = (manifest.profile, manifest.builder, manifest.source, manifest.sha256)
            optional = (manifest.gpu or {}, manifest.retrieval or {}, manifest.tuning or {})
            if not isinstance(manifest.payload, str) or not all(isinstance(t, Mapping) for t in (*tables, *optional)):
                raise TypeError("a field of the wrong type")
            if not manifest.profile["max"] >= 1:
                raise ValueError("a largest batch below 1")
            return manifest
        except (KeyError, TypeError, ValueError, SpecError) as error:
            raise EngineError(f"{path} has a damaged manifest ({error}); {REBUILD}.") from error


@dataclass(frozen=True)
class EngineFile:
    """A .cgd file whose checksums have been verified."""

    path: Path
    manifest: Manifest
    members: Mapping[str, bytes]

    @property
    def payload(self) -> bytes:
        return self.members[self.manifest.payload]

    @property
    def golden(self) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Pictures uint8 [n, H, W, 3] and the descriptors float32 [n, D] that the engine gave when it was built."""
        images, descriptors = (
            np.load(io.BytesIO(self.members[name]), allow_pickle=False) for name in (GOLDEN_IMAGES, GOLDEN_DESCRIPTORS)
        )
        return images, descriptors


def write_engine(
    path: str | Path,
    manifest: Manifest,
    payload: bytes,
    golden_images: NDArray[np.uint8],
    golden_descriptors: NDArray[np.float32],
) -> Path:
    """Write an engine file atomically."""
    members = {
        manifest.payload: payload,
        GOLDEN_IMAGES: _npy(golden_images),
        GOLDEN_DESCRIPTORS: _npy(golden_descriptors),
    }
    checked = replace(manifest, sha256={name: sha256_bytes(data) for name, data in members.items()})
    text = json.dumps(checked.to_dict(), indent=1).encode()
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(MANIFEST, text)
        for name, data in members.items():
            archive.writestr(name, data)
        archive.comment = sha256_bytes(text).encode()
    return Path(path)


def read_engine(path: str | Path) -> EngineFile:
    """Open an engine file and verify every checksum.

    Raises EngineError if it is missing, truncated, edited, or of another schema.
    """
    path = Path(path)
    if not path.is_file():
        raise EngineError(f"there is no engine at {path}; make it with `cgd-deploy build-engine`.")
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
            if any(info.compress_type != zipfile.ZIP_STORED for info in infos):
                raise EngineError(f"{path} has compressed members, a .cgd file has none; {REBUILD}.")
            if sum(info.file_size for info in infos) > min(LARGEST, path.stat().st_size):
                raise EngineError(f"{path} claims more data than it holds; {REBUILD}.")
            members = {info.filename: archive.read(info) for info in infos}
            comment = archive.comment.decode(errors="replace")
        text = members.pop(MANIFEST)
        data = json.loads(text)
    except (zipfile.BadZipFile, KeyError, ValueError, OSError, NotImplementedError, RuntimeError, EOFError) as error:
        raise EngineError(f"{path} is not a whole .cgd file ({error}); copy it again or {REBUILD}.") from error
    if not isinstance(data, dict):
        raise EngineError(f"{path} has a manifest that is not a table; {REBUILD}.")
    if sha256_bytes(text) != comment:
        raise EngineError(f"the manifest of {path} was edited after the engine was built; {REBUILD}.")
    manifest = Manifest.from_dict(data, path)
    for name in {manifest.payload, GOLDEN_IMAGES, GOLDEN_DESCRIPTORS, *manifest.sha256}:
        if sha256_bytes(members.get(name, b"")) != manifest.sha256.get(name):
            raise EngineError(
                f"{name} in {path} does not have the checksum of its manifest; copy it again or {REBUILD}."
            )
    return EngineFile(path, manifest, members)


def _npy(array: NDArray[Any]) -> bytes:
    out = io.BytesIO()
    np.save(out, array, allow_pickle=False)
    return out.getvalue()
