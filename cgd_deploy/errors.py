"""Errors that users can cause and fix.

CgdError                 one sentence: what is wrong, what was expected, what to do next
├── InputError           an argument, list or picture cannot be used
├── SpecError            a model spec is missing, unknown or does not match
├── CheckpointError      a checkpoint cannot be read
├── ExportError          a model cannot be exported to ONNX or to an engine
├── EngineError          a .cgd file or ONNX model is damaged, too new, or made for another machine
├── MissingDependency    an optional package is not installed
├── Overloaded           the queue of an engine is full
│   └── DeadlineExceeded the timeout of a picture passed before it was computed
└── GateError            a measured limit was missed (exit status 3; every other error exits with 2)
"""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Collection
from importlib import metadata
from pathlib import Path


class CgdError(Exception):
    """Base class of every error that a user can cause and fix. The message is one sentence, printed as one line.

    Example:

        from cgd_deploy import CgdError, load

        try:
            load("missing.cgd")
        except CgdError as error:
            print(error)  # there is no engine at missing.cgd; make it with `cgd-deploy build-engine`.
    """

    exit_status = 2


class InputError(CgdError):
    """An argument, list or picture cannot be used.

    Example:

        from cgd_deploy import InputError, load, read_images

        with load("model.cgd") as engine:
            bad: list[tuple[int, InputError]] = []
            for indices, descriptors in engine.embed_list(
                read_images("photos"), on_error=lambda index, error: bad.append((index, error))
            ):
                print(indices)
    """


class SpecError(CgdError):
    """A model spec is missing, unknown or does not match."""


class CheckpointError(CgdError):
    """A checkpoint cannot be read."""


class ExportError(CgdError):
    """A model cannot be exported to ONNX or to an engine."""


class EngineError(CgdError):
    """A .cgd file or an ONNX model is damaged, too new, or made for another machine."""


class MissingDependency(CgdError):
    """An optional package is not installed; the message names the line that installs it."""


def not_installed(error: ModuleNotFoundError, extra: str) -> MissingDependency:
    """The error for a failed import of a package of ``extra``."""
    return MissingDependency(f"{error.name} is not installed; run `{install_line(extra)}`.")


def install_line(extra: str, package: str = "") -> str:
    """The shell command that installs the packages of ``extra`` whose names start with ``package``.

    The command names the packages, so it works however cgd-deploy itself was installed.
    """
    try:
        requirements = [line.partition(";") for line in metadata.requires("cgd-deploy") or ()]
    except metadata.PackageNotFoundError:  # a checkout that is on the path but not installed
        return shlex.join(["pip", "install", "-e", f"{Path(__file__).parents[1]}[{extra}]"])
    markers = (f'extra == "{extra}"', f"extra == '{extra}'")
    needed = [name.strip() for name, _, marker in requirements if marker.strip() in markers]
    return shlex.join(["pip", "install", *(name for name in needed if name.startswith(package))])


def closest_known(name: str, known: Collection[str]) -> str:
    """End an error about an unknown ``name``: "the closest known ones are a, b"; lists all if none is close."""
    close = difflib.get_close_matches(name, known, cutoff=0.4) or list(known)
    return f"the closest known ones are {', '.join(close)}"


def in_one_line(error: BaseException) -> str:
    """The text of a library's error in one line of at most 200 characters; the name of its type if it has no text."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def reason(error: CgdError, path: str) -> str:
    """The message about the picture at ``path`` without the path: "cannot be decoded (...); replace the file."."""
    return str(error).replace(path, "the picture", 1).removeprefix("the picture ")


class Overloaded(CgdError):
    """The queue of an engine is full. The caller may try again later, or drop the request.

    Example:

        from cgd_deploy import Overloaded, load

        with load("model.cgd") as engine:
            try:
                future = engine.submit("photos/a.jpg")
            except Overloaded:
                future = None  # answer "busy"
    """


class DeadlineExceeded(Overloaded):
    """The timeout of a picture passed before it was computed. The engine has dropped the picture.

    Example:

        from cgd_deploy import DeadlineExceeded, load

        with load("model.cgd") as engine:
            try:
                descriptor = engine.submit("photos/a.jpg", timeout_ms=10_000).result()
            except DeadlineExceeded:
                descriptor = None
    """


class GateError(CgdError):
    """A measured limit was missed."""

    exit_status = 3
