"""Read weights from files of any trainer, as tables of names and tensors. Runs no code in a file; knows no network."""

from __future__ import annotations

import re
import warnings
import zipfile
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from cgd_deploy.errors import CheckpointError, MissingDependency, in_one_line, install_line
from cgd_deploy.pictures.folders import some

WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Segments that DataParallel, torch.compile, FSDP and activation checkpointing put anywhere into a name."""
LARGEST_HEADER = 100_000_000
"""The limit of safetensors on the JSON at the start of a file, in bytes."""
STARTS = {
    b"version https://git-lfs": "is a Git LFS pointer and not the file itself; run `git lfs pull`",
    b"<!doctype html": "is a web page and not the file itself; download the file again",
    b"<html": "is a web page and not the file itself; download the file again",
    b"<?xml": "is an XML text and not the file itself; download the file again",
    b"\x1f\x8b": "is compressed; unpack it and pass the file in it",
    b"bzh": "is compressed; unpack it and pass the file in it",
    b"\xfd7zxz": "is compressed; unpack it and pass the file in it",
    b"\x28\xb5\x2f\xfd": "is compressed; unpack it and pass the file in it",
    b"\x89hdf": "is an HDF5 file, as Keras writes them; pass weights of PyTorch",
}
SAVE_AGAIN = "where it was made, save the weights alone with `torch.save(model.state_dict(), 'weights.pth')`"


@dataclass(frozen=True)
class Table:
    """One state_dict of a file.

    place    the keys that lead to it, such as "state_dict." or "ema.model."; "" if the file is the state_dict
    tensors  by name, without the segments of ``WRAPPERS``
    """

    place: str
    tensors: Mapping[str, Tensor]


class StandIn:
    """Replaces an object whose class torch does not trust: keeps its attributes and runs no code of its class.

    This reads whole modules, and state_dicts beside an argparse.Namespace or a NumPy scalar.
    """

    state: object = None

    def __new__(cls, *_: object) -> StandIn:
        return super().__new__(cls)

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        self.state = state


def load_tensors(path: str | Path) -> dict:
    """``torch.load`` of plain tensors and containers, never of pickled code; raises CheckpointError."""
    path = Path(path)
    return _table_of(_load(path, _start(path)), path)


def load_weights(path: str | Path) -> tuple[dict[Any, Any], list[str]]:
    """Like ``load_tensors``, but also for .safetensors and for files that hold other objects, see ``StandIn``.

    Returns the content of the file, and the names of the classes that stand-ins replaced.
    Raises CheckpointError, or MissingDependency without the package safetensors.
    """
    path = Path(path)
    start = _start(path)
    if _is_safetensors(start):
        return _load_safetensors(path), []
    unread = _untrusted(path)
    data = _load(path, start, unread)
    if isinstance(data, StandIn):
        data = {"": data}
    return _table_of(data, path), unread


def tables(data: Mapping[Any, Any]) -> list[Table]:
    """Every state_dict in the content of a file, the outer ones first."""
    found: list[Table] = []
    seen: set[int] = set()
    waiting = deque([("", data)])
    while waiting:
        place, value = waiting.popleft()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if _module_state(value) is not None:
            found.append(Table(place, _unwrapped(_module_tensors(value))))
        elif isinstance(value, Mapping):
            tensors = {str(key): item for key, item in value.items() if isinstance(item, Tensor)}
            found += [Table(place, _unwrapped(tensors))] if tensors else []
            waiting += [(place if key == "" else f"{place}{key}.", item) for key, item in value.items()]
    return found


def _start(path: Path) -> bytes:
    """The first bytes of a file, which show its kind."""
    if path.is_dir():
        raise CheckpointError(f"there is no checkpoint at {path}, which is a folder; pass the file of weights in it.")
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint at {path}; check the path.")
    try:
        with open(path, "rb") as file:
            return file.read(256)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({in_one_line(error)}); check the file.") from error


def _load(path: Path, start: bytes, unread: Sequence[str] = ()) -> object:
    stand_ins: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
        (_empty_table if name == "collections.defaultdict" else StandIn, name) for name in unread
    ]
    try:
        with warnings.catch_warnings(), safe_globals(stand_ins), open(path, "rb") as file:
            warnings.simplefilter("ignore")  # torch warns before it raises
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen types for damaged files
        raise CheckpointError(f"{path} {_refusal(path, start.lstrip(), error)}.") from error


def _empty_table(*_: object) -> OrderedDict[Any, Any]:
    return OrderedDict()


def _table_of(data: object, path: str | Path) -> dict[Any, Any]:
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} holds a {type(data).__name__}; expected a table of tensors.")
    return data


def _untrusted(path: Path) -> list[str]:
    """Names of the classes and functions in a file that torch refuses to load."""
    try:
        return sorted(get_unsafe_globals_in_checkpoint(str(path)))
    except Exception:  # torch.load raises the right error later
        return []


def _refusal(path: Path, start: bytes, error: Exception) -> str:
    """The rest of a sentence about a file that torch refuses: what is wrong and what to do."""
    if not start:
        return "is empty; copy or download it again"
    if known := next((told for known, told in STARTS.items() if start.lower().startswith(known)), None):
        return known
    if start.startswith(b"PK") and (told := _told_of_zip(path)):
        return told
    names = _untrusted(path) or re.findall(r"GLOBAL (\S+)", str(error))
    if names:
        return f"is not loaded, for safety: it holds objects of {some(names)}; {SAVE_AGAIN}"
    if start.startswith((b"PK", b"\x80")):
        return f"is damaged or was saved in another way ({in_one_line(error)}); copy it again, or {SAVE_AGAIN}"
    return "is not a file of weights; pass one that torch.save or safetensors wrote"


def _told_of_zip(path: Path) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.rpartition("/")[2] for name in archive.namelist()}
    except Exception:  # zipfile, too, raises several types for damaged files
        return "is damaged or cut short; copy or download it again"
    if "constants.pkl" in names:
        return (
            "is a TorchScript program and not loaded, for safety; open it with torch.jit.load, and "
            "save its weights with `torch.save(model.state_dict(), 'weights.pth')`"
        )
    if "data.pkl" not in names:
        return "is an archive of other files; pass one that torch.save or safetensors wrote"
    return None


def _is_safetensors(start: bytes) -> bool:
    """Whether a file starts like .safetensors: 8 bytes with the length of the JSON that follows."""
    return start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= LARGEST_HEADER


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ModuleNotFoundError as error:
        line = install_line("train", "safetensors")
        raise MissingDependency(f"{path} needs the package safetensors; run `{line}`.") from error
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{path} is not a complete .safetensors file ({in_one_line(error)}); copy or download it again."
        ) from error


def _module_state(value: object) -> dict[str, Any] | None:
    """The attributes of a pickled module; None for any other object."""
    state = value.state if isinstance(value, StandIn) else None
    return state if isinstance(state, dict) and "_modules" in state else None


def _module_tensors(module: object) -> dict[str, Tensor]:
    """The ``state_dict()`` of a pickled module."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    waiting = deque([("", module)])
    while waiting:
        prefix, part = waiting.popleft()
        if id(part) in seen or (state := _module_state(part)) is None:
            continue
        seen.add(id(part))
        own = {**_items(state, "_parameters"), **_items(state, "_buffers")}
        passing = state.get("_non_persistent_buffers_set", ())
        found |= {f"{prefix}{k}": v for k, v in own.items() if isinstance(v, Tensor) and k not in passing}
        waiting += [(f"{prefix}{name}.", child) for name, child in _items(state, "_modules").items()]
    return found


def _items(state: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    items = state.get(name)
    return items if isinstance(items, Mapping) else {}


def _unwrapped(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors without wrappers' segments in their names; a name that would then exist twice stays as it is."""
    plain: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        short = without_wrappers(name)
        plain[name if short != name and (short in tensors or short in plain) else short] = tensor
    return plain


def without_wrappers(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)
