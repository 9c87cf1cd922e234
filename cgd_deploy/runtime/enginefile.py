"""The .cgd file: one stored zip of manifest.json, a payload for one backend, and golden pictures with descriptors.

Checks everything before a backend sees a byte. Knows nothing of how a payload is made or run. Equal contents give equal
files, whenever they are written, so the checksum of a file identifies the engine.
"""

from __future__ import annotations

import io
import json
import logging
import math
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import EngineError, SpecError, in_one_line
from ..files import check_file, parse_json, replacing, sha256_bytes
from ..limits import check_size
from ..spec import ModelSpec, Precision
from .tuning import check_counts, check_tuning, read_tunings

log = logging.getLogger(__name__)

SCHEMA = 1
MANIFEST = "manifest.json"
GOLDEN_IMAGES = "golden/images.npy"
GOLDEN_DESCRIPTORS = "golden/descriptors.npy"
PLAIN = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)*")
"""Names of members, without a root, ".." or a drive: programs that unpack the file write nothing outside its folder."""
REBUILD = "build it again with `cgd-deploy build-engine`"


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The facts that an engine file records about its engine.

    spec       the model
    backend    name of the library that runs the payload
    precision  precision of the backbone's convolutions
    payload    name of the member that holds the model
    profile    smallest, best and largest batch: {"min", "opt", "max"}
    builder    the program that made the payload: {"name", "version", "cgd_deploy"}
    gpu        {"name", "compute_capability"} if the payload runs on one kind of GPU only, else None
    source     sha256 of the ONNX file, the checkpoint, the calibration list and the list of test pictures, and the path
               of the checkpoint
    parity     agreement with the FP32 graph, measured when the engine was built
    proof      share of the convolution work that has the asked precision, and the source of that number
    retrieval  recall on test pictures, alone and mixed with FP32 descriptors, and whether the two may share a gallery;
               None if it was not measured
    float_precision   arithmetic of all that an INT8 engine leaves in float: FP32, BF16 or FP16; None for other engines,
               and for INT8 engines of release 0.1.0
    tuning     fastest setting on the machine where release 0.1.0 tuned the engine. Later releases write None, and keep
               tunings in a file beside the engine, see ``tuning``
    sha256     checksum of every other member, filled in by ``write_engine``
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
    float_precision: Precision | None = None
    tuning: Mapping[str, Any] | None = None
    sha256: Mapping[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"<Manifest: {self.backend} {self.precision.value}, {self.spec.summary}>"

    @property
    def statement(self) -> str | None:
        """Whether the engine's and FP32 descriptors may share a gallery: "safe ...", "not safe ..."; None: unknown."""
        return (self.retrieval or {}).get("statement")

    @property
    def needs_bf16(self) -> bool:
        """Whether the engine computes in BF16, all of it or what INT8 leaves in float."""
        return Precision.BF16 in (self.precision, self.float_precision)

    def to_dict(self) -> dict[str, Any]:
        """The manifest as plain tables, lists, texts and numbers, as in manifest.json."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        texts = {name: value.value for name, value in fields.items() if isinstance(value, Precision)}
        return {"schema": SCHEMA, **fields, **texts, "spec": self.spec.to_dict()}

    @classmethod
    def from_dict(cls, data: dict[str, Any], path: Path) -> Manifest:
        """The inverse of ``to_dict``. Raises EngineError for another schema, or missing, unknown or wrong fields."""
        schema = data.pop("schema", None)
        if schema != SCHEMA:
            raise EngineError(
                f"{path} has schema {schema!r:.60}, this release reads {SCHEMA}; upgrade cgd-deploy or {REBUILD}."
            )
        try:
            spec = ModelSpec.from_dict(data.pop("spec"))
            floats = data.pop("float_precision", None)
            manifest = cls(
                spec=spec,
                precision=Precision(data.pop("precision")),
                float_precision=None if floats is None else Precision(floats),
                **data,
            )
            manifest._check()
            return manifest
        except (KeyError, TypeError, ValueError, SpecError) as error:
            raise EngineError(f"{path} has a damaged manifest ({in_one_line(error)}); {REBUILD}.") from error

    def _check(self) -> None:
        tables = (self.profile, self.builder, self.source, self.sha256)
        optional = (self.gpu, self.parity, self.proof, self.retrieval)
        if not all(isinstance(table, Mapping) for table in (*tables, *(o for o in optional if o is not None))):
            raise TypeError("a field is not a table")
        texts = (self.backend, self.payload, *self.sha256, *self.sha256.values())
        texts += tuple(text for text in (*self.source.values(), self.statement) if text is not None)
        if not all(isinstance(text, str) for text in texts):
            raise TypeError("a field is not text")
        check_counts(self.profile, "min", "opt", "max")
        if self.tuning is not None:
            check_tuning(self.tuning)


@dataclass(frozen=True)
class EngineFile:
    """A .cgd file with verified checksums, and the tunings in the file beside it.

    manifest_sha256   checksum of manifest.json, which holds the checksum of every other member
    tunings           fastest settings by machine: from the file beside the engine, then from the manifest
    untuned           why the file beside the engine cannot be used, or None
    """

    path: Path
    manifest: Manifest
    members: Mapping[str, bytes]
    manifest_sha256: str
    tunings: Sequence[Mapping[str, Any]] = ()
    untuned: str | None = None

    def __repr__(self) -> str:
        manifest, size = self.manifest, sum(map(len, self.members.values()))
        made = f"{manifest.backend} {manifest.precision.value}, {manifest.spec.summary}"
        return f"<EngineFile {self.path.name}: {made}, {size / 1e6:.1f} MB>"

    @property
    def payload(self) -> bytes:
        """The model, in the form that the backend loads."""
        return self.members[self.manifest.payload]

    @property
    def golden(self) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Pictures uint8 [n, H, W, 3], and their descriptors float32 [n, D] from the engine when it was built."""
        images, descriptors = (_array(self.members[name]) for name in (GOLDEN_IMAGES, GOLDEN_DESCRIPTORS))
        return images, descriptors


def write_engine(
    path: str | Path,
    manifest: Manifest,
    payload: bytes,
    golden_images: NDArray[np.uint8],
    golden_descriptors: NDArray[np.float32],
) -> Path:
    """Write an engine file atomically; the same arguments give the same bytes."""
    members = {
        manifest.payload: payload,
        GOLDEN_IMAGES: _npy(golden_images),
        GOLDEN_DESCRIPTORS: _npy(golden_descriptors),
    }
    checked = replace(manifest, sha256={name: sha256_bytes(data) for name, data in members.items()})
    text = json.dumps(checked.to_dict(), indent=1).encode()
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for name, data in {MANIFEST: text, **members}.items():
            archive.writestr(zipfile.ZipInfo(name), data)  # a ZipInfo of our own has no time of writing
        archive.comment = sha256_bytes(text).encode()
    return Path(path)


def read_engine(path: str | Path) -> EngineFile:
    """Read an engine file and verify every checksum, the manifest's first.

    Raises EngineError if the file is missing, truncated, edited, of another schema, or larger than ``limits()``. A
    tuning file that cannot be used is no error: ``untuned`` gives the reason, and the engine runs without a tuning.
    """
    path, started = Path(path), perf_counter()
    if not path.is_file():
        raise EngineError(f"there is no engine at {path}; make it with `cgd-deploy build-engine`.")
    check_file(path, "engine_bytes", EngineError)
    try:
        with zipfile.ZipFile(path) as archive:
            _check_members(archive, path)
            text = archive.read(MANIFEST)
            if sha256_bytes(text) != archive.comment.decode(errors="replace"):
                raise EngineError(f"the manifest of {path} was edited after the engine was built; {REBUILD}.")
            manifest = Manifest.from_dict(_table(text, path), path)
            members = {name: archive.read(name) for name in archive.namelist() if name != MANIFEST}
    except EngineError:
        raise
    except Exception as error:  # zipfile raises a dozen unrelated types for damaged files
        raise EngineError(
            f"{path} is not a whole .cgd file ({in_one_line(error)}); copy it again or {REBUILD}."
        ) from error
    for name in sorted({manifest.payload, GOLDEN_IMAGES, GOLDEN_DESCRIPTORS, *manifest.sha256, *members}):
        if name not in members or sha256_bytes(members[name]) != manifest.sha256.get(name):
            raise EngineError(
                f"{name[:60]!r} in {path} does not have the checksum of its manifest; copy it again or {REBUILD}."
            )
    file = _with_tunings(EngineFile(path, manifest, members, sha256_bytes(text)))
    _check_golden(file)
    log.debug("%s: reading and checking took %.0f ms", path, 1000 * (perf_counter() - started))
    return file


def _with_tunings(file: EngineFile) -> EngineFile:
    own = [file.manifest.tuning] if file.manifest.tuning else []
    try:
        return replace(file, tunings=[*read_tunings(file.path, file.manifest_sha256), *own])
    except EngineError as error:
        return replace(file, tunings=own, untuned=str(error))


def _check_members(archive: zipfile.ZipFile, path: Path) -> None:
    """Check the zip's directory: no member is compressed, has the name of another, or is larger than the file."""
    infos = archive.infolist()
    names = [info.filename for info in infos]
    if any(info.compress_type != zipfile.ZIP_STORED for info in infos):
        raise EngineError(f"{path} has compressed members, a .cgd file has none; {REBUILD}.")
    if sum(info.file_size for info in infos) > path.stat().st_size:
        raise EngineError(f"{path} claims more data than it holds; {REBUILD}.")
    if len(set(names)) < len(names):
        raise EngineError(f"{path} has two members of one name; {REBUILD}.")
    if odd := next((name for name in names if not PLAIN.fullmatch(name)), None):
        raise EngineError(f"{path} has a member named {odd[:60]!r}, which is not a plain name; {REBUILD}.")
    check_size(f"the manifest of {path}", archive.getinfo(MANIFEST).file_size, "manifest_bytes", EngineError)


def _table(text: bytes, path: Path) -> dict[str, Any]:
    data = parse_json(text)
    if not isinstance(data, dict):
        raise EngineError(f"{path} has a manifest that is not a table; {REBUILD}.")
    return data


def _check_golden(file: EngineFile) -> None:
    """Raise EngineError unless the golden arrays have the sizes in the spec: the file then has bytes of these sizes."""
    spec = file.manifest.spec
    try:
        images, descriptors = file.golden
        if not (images.shape[1:] == (*spec.input_size, 3) and descriptors.shape == (len(images), spec.dim)):
            raise ValueError(f"{list(images.shape)} and {list(descriptors.shape)}")
        if not len(images) or images.dtype != np.uint8 or descriptors.dtype != np.float32:
            raise ValueError(f"{len(images)} of {images.dtype} and {descriptors.dtype}")
    except ValueError as error:
        raise EngineError(
            f"{file.path} has golden pictures and descriptors that do not fit its spec ({error}); {REBUILD}."
        ) from error


def _npy(array: NDArray[Any]) -> bytes:
    out = io.BytesIO()
    np.save(out, array, allow_pickle=False)
    return out.getvalue()


def _array(data: bytes) -> NDArray[Any]:
    """The inverse of ``_npy``. Raises ValueError unless the data has the header's shape, which NumPy would allocate."""
    file = io.BytesIO(data)
    try:
        np.lib.format.read_magic(file)
        shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
    except Exception as error:  # NumPy parses the header as Python, with errors of the parser
        raise ValueError("without the header of a .npy file") from error
    start = file.tell()
    if fortran_order or math.prod(shape) * dtype.itemsize != len(data) - start:
        raise ValueError(f"{len(data) - start} bytes for {dtype} {list(shape)}")
    return np.frombuffer(data, dtype, offset=start).reshape(shape).copy()
