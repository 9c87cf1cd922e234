"""Finds the model that an engine was made from, and the files that a command replaced."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import EngineError, InputError
from ..files import sha256_file
from ..pictures.folders import is_leftover
from .enginefile import Manifest, read_engine


def stale(path: str | Path, manifest: Manifest) -> str | None:
    """Why an engine is stale: no ONNX file in its folder is its model. None if one is, or if the folder has none."""
    return _stale(manifest, _models(Path(path).parent))


def stale_engines(folder: str | Path) -> dict[Path, str]:
    """The stale engines of a folder and the reason of each. Damaged engines are left out."""
    found, models = {}, _models(Path(folder))
    for path in _files(Path(folder), "*.cgd"):
        with suppress(EngineError):
            if reason := _stale(read_engine(path).manifest, models):
                found[path] = reason
    return found


def engines_of_one_model(folder: Path) -> tuple[list[Path], dict[Path, str]]:
    """The engines of a folder that come from one checkpoint, and the stale engines with the reason of each.

    Raises EngineError for a damaged engine; InputError if no engine is left, or the engines come from several models.
    """
    manifests = {path: read_engine(path).manifest for path in _files(folder, "*.cgd")}
    if not manifests:
        raise InputError(f"there are no engines in {folder}/; make one with `cgd-deploy build-engine --int8`.")
    models = _models(folder)
    left_out = {path: reason for path, manifest in manifests.items() if (reason := _stale(manifest, models))}
    checkpoints: dict[str | None, list[str]] = {}
    for path, manifest in manifests.items():
        if path not in left_out:
            checkpoints.setdefault(manifest.source.get("checkpoint_sha256"), []).append(path.name)
    if not checkpoints:
        told = "; ".join(f"{path.name} was {reason}" for path, reason in left_out.items())
        raise InputError(f"every engine in {folder}/ is stale ({told}); build them again, or name those to measure.")
    if len(checkpoints) > 1:
        told = " | ".join(", ".join(names) for names in checkpoints.values())
        raise InputError(f"{folder}/ has engines of {len(checkpoints)} models ({told}); name the engines of one model.")
    return [path for path in manifests if path not in left_out], left_out


def contents(*paths: Path) -> dict[Path, Any]:
    """The contents of files, for ``changes`` to compare with their later contents."""
    return {path: _content(path) for path in paths}


def changes(before: Mapping[Path, Any]) -> list[str]:
    """A sentence for each file that has other contents now than when ``contents`` was called."""
    return [
        f"{path} was replaced; the earlier file differed."
        for path, content in before.items()
        if content is not None and path.is_file() and content != _content(path)
    ]


def _files(folder: Path, pattern: str) -> list[Path]:
    return sorted(path for path in folder.glob(pattern) if path.is_file() and not is_leftover(path.name))


def _models(folder: Path) -> dict[str, str]:
    """The sha256 of each ONNX file of a folder, by name. ONNX files are large, so each is read once for all engines."""
    return {model.name: _sha256(model) for model in _files(folder, "*.onnx")}


def _stale(manifest: Manifest, models: Mapping[str, str]) -> str | None:
    source = manifest.source.get("onnx_sha256")
    if not source or not models or source in models.values():
        return None
    return f"made from another ONNX file than {' or '.join(models)} beside it"


def _content(path: Path) -> Any:
    """A value that changes with a file: of an engine the manifest without the tuning, of another file the sha256.

    The bytes of an engine file say less: release 0.1.0 also wrote the time and the tuning into them.
    """
    with suppress(EngineError):
        return replace(read_engine(path).manifest, tuning=None)
    return _sha256(path) if path.is_file() else None


def _sha256(path: Path) -> str:
    try:
        return sha256_file(path)
    except OSError as error:
        raise InputError(f"cannot read {path} ({error.strerror}); make it readable, or move it away.") from error
