"""Writes an engine file as a model of a Triton Inference Server repository. Starts no server and runs no model."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from ..errors import EngineError, InputError
from ..files import sha256_file
from ..runtime.backends import BACKENDS, default_device
from ..runtime.enginefile import EngineFile, Manifest, read_engine
from ..runtime.tuning import tuning_path
from ..spec import Precision

NATIVE = {"onnxruntime": "model.onnx", "tensorrt": "model.plan"}
"""Backends that Triton also has, under the same name, and the name of their model file."""
PYTHON = "python"
VERSION = "1"
LONGEST_DELAY_MS = 60_000.0


@dataclass(frozen=True)
class TritonModel:
    """One model of a repository.

    name      the name that clients use
    backend   Triton's backend: "onnxruntime", "tensorrt" or "python"
    folder    the folder of config.pbtxt and of the version
    """

    name: str
    backend: str
    folder: Path


def export_triton(
    engine: Path, repository: Path, *, name: str | None = None, python: bool = False, max_delay_ms: float = 0.0
) -> TritonModel:
    """Write an engine as a new model of a repository, completely or not at all. No model is ever replaced.

    engine        a .cgd file
    name          None: the name of the file, with "_" for characters that Triton's URLs do not take
    python        run the .cgd file in Triton's Python backend, even if Triton has a backend for its payload
    max_delay_ms  how long Triton may hold a request back for a fuller batch, in milliseconds

    The model takes ``images`` uint8 RGB [N, H, W, 3] and gives ``descriptors`` float32 [N, dim], as the engine does.
    Raises EngineError for a file that cannot be read, InputError for a name, delay or engine that Triton cannot use.
    """
    file = read_engine(engine)
    if file.manifest.backend not in BACKENDS:
        raise EngineError(f"{engine} is for backend {file.manifest.backend!r}; this release has {', '.join(BACKENDS)}.")
    backend = PYTHON if python or not _runs_natively(file.manifest) else file.manifest.backend
    name = re.sub(r"[^A-Za-z0-9_.-]+", "_", file.path.stem).strip("_.-") if name is None else name
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise InputError(
            f"{name!r} cannot name a model in Triton; give --name letters, digits, '_', '-' and '.', a letter or digit "
            "first."
        )
    if not 0 <= max_delay_ms <= LONGEST_DELAY_MS:
        raise InputError(f"a delay of {max_delay_ms} ms cannot be used; expected 0 to {LONGEST_DELAY_MS:.0f}.")
    smallest = file.manifest.profile.get("min", 1)
    if backend == "tensorrt" and smallest > 1:
        raise InputError(
            f"{engine} takes no batch below {smallest}, but Triton sends single pictures; build it with --min-batch 1, "
            "or pass --python, which pads batches."
        )
    model = TritonModel(name, backend, Path(repository) / name)
    with _new_folder(model.folder) as folder:
        (folder / "config.pbtxt").write_text(_config(model, file, max_delay_ms), encoding="utf-8")
        _write_version(folder / VERSION, backend, file)
    return model


def _runs_natively(manifest: Manifest) -> bool:
    """Whether a Triton backend runs the payload as the engine does. Triton's ONNX backend has no setting for TF32."""
    return manifest.backend in NATIVE and (manifest.backend, manifest.precision) != ("onnxruntime", Precision.TF32)


def _config(model: TritonModel, file: EngineFile, max_delay_ms: float) -> str:
    manifest = file.manifest
    return _TEMPLATES.get_template("config.pbtxt").render(
        model=model,
        manifest=manifest,
        device=default_device(manifest.backend, manifest.precision),
        max_delay_us=round(1000 * max_delay_ms),
        parameters={
            "space_id": manifest.spec.space_id,
            "resize": manifest.spec.resize,
            "precision": manifest.precision.value,
            "engine_sha256": sha256_file(file.path),
            "built_by": f"{manifest.builder.get('name')} {manifest.builder.get('version')}",
        },
    )


def _write_version(folder: Path, backend: str, file: EngineFile) -> None:
    folder.mkdir()
    if backend == PYTHON:
        engine = folder / "engine.cgd"
        shutil.copyfile(file.path, engine)
        if not file.untuned and tuning_path(file.path).is_file():
            shutil.copyfile(tuning_path(file.path), tuning_path(engine))
        code = _TEMPLATES.get_template("triton_model.py").render()
        (folder / "model.py").write_text(code, encoding="utf-8")
    else:
        (folder / NATIVE[backend]).write_bytes(file.payload)


@contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder beside ``folder``; rename it to ``folder`` on success, remove it on any error."""
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    try:
        if folder.exists():
            raise InputError(f"{folder} exists already; remove it first, or give the new model another --name.")
        temporary.mkdir(parents=True)
        yield temporary
        temporary.rename(folder)
    except OSError as error:
        raise InputError(f"cannot write {folder}: {error.strerror or error}; choose another repository.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


_TEMPLATES = Environment(
    loader=PackageLoader("cgd_deploy.serving"),
    autoescape=False,  # none of it is HTML
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
_TEMPLATES.filters["quoted"] = json.dumps  # protobuf's text format escapes as JSON does
