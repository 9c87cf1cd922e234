"""What can go wrong, for users.

CgdError                 one sentence: what was wrong, what was expected, what to do next
├── InputError           an argument, list or picture cannot be used
├── SpecError            a model spec is missing, unknown or does not match
├── CheckpointError      a checkpoint cannot be read
├── ExportError          a model cannot be lowered to ONNX or to an engine
├── EngineError          a .cgd file or ONNX model is damaged, too new, or made for another machine
├── MissingDependency    an optional package is not installed
├── Overloaded           too many pictures wait already
│   └── DeadlineExceeded the picture's timeout was over before it was computed
└── GateError            a measured limit was missed (exit status 3; every other error exits with 2)
"""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Collection
from importlib import metadata
from pathlib import Path


class CgdError(Exception):
    """Base of every error that a user can cause or mend; the command line prints it as one line."""

    exit_status = 2


class InputError(CgdError):
    """An argument, list or picture cannot be used."""


class SpecError(CgdError):
    """A model spec is missing, unknown or does not match."""


class CheckpointError(CgdError):
    """A checkpoint cannot be read."""


class ExportError(CgdError):
    """A model cannot be lowered to ONNX or to an engine."""


class EngineError(CgdError):
    """A .cgd file or an ONNX model is damaged, too new, or made for another machine."""


class MissingDependency(CgdError):
    """An optional package is not installed; the message names the line that installs it."""


def not_installed(error: ModuleNotFoundError, extra: str) -> MissingDependency:
    """The error for an import that failed because the packages of ``extra`` are missing."""
    return MissingDependency(f"{error.name} is not installed; run `{install_line(extra)}`.")


def install_line(extra: str, package: str = "") -> str:
    """The shell command that installs the packages of ``extra``, or only ``package`` of them.

    The command names those packages, so it works wherever cgd-deploy itself was installed from.
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
    """A library's error as a part of our sentence: 200 characters at most, or its type's name if it says nothing."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def reason(error: CgdError, path: str) -> str:
    """The sentence about the picture at ``path`` without its path: "cannot be decoded (...); replace the file."."""
    return str(error).replace(path, "the picture", 1).removeprefix("the picture ")


class Overloaded(CgdError):
    """Too many pictures wait for an engine already; the caller may try again, or shed the request."""


class DeadlineExceeded(Overloaded):
    """A picture's timeout was over before it was computed; nothing computes it any more."""


class GateError(CgdError):
    """A measured limit was missed."""

    exit_status = 3
