"""An index in many Parquet files: a folder of shards, each named after its range of a list. Knows nothing of Ray.

A shard gets its name when it is complete, so a run that was killed continues with the missing shards. The footer of a
shard records the state of its picture files, so a later run can replace the shard. No picture can be there twice: it
belongs to one range, and a range has one name.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError, in_one_line
from ..files import replacing, sha256_bytes, write_text
from ..pictures.folders import is_leftover
from .compact import Compact, Stored
from .parquet import load_table, save_table, table_facts

RUN = "_run.json"
"""The file that describes the run; Parquet readers skip names that start with an underscore."""
SCHEMA = 1
AGAIN = "run the same `cgd-deploy embed --ray` again, which continues from there"


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """Everything that determines the contents of the shards; runs that differ in any field never share a folder.

    pictures          number of pictures in the list
    shard             pictures in a shard; the last shard may have fewer
    root              folder in which the list's names start, as the user gave it
    list_sha256       hash of names, classes and boxes
    engine_sha256     hash of the .cgd file
    space_id, precision, dim   of the engine
    descriptor_dtype  how shards keep descriptors, see ``compact``
    fast_decode       see ``preprocess``
    """

    pictures: int
    shard: int
    root: str
    list_sha256: str
    engine_sha256: str
    space_id: str
    precision: str
    dim: int
    descriptor_dtype: str
    fast_decode: bool

    def __post_init__(self) -> None:
        if self.shard < 1 or self.pictures < 1:
            raise InputError(
                f"shard={self.shard} of {self.pictures} pictures is impossible; expected at least 1 of each."
            )

    @property
    def ranges(self) -> list[range]:
        """The list numbers of each shard's pictures."""
        starts = range(0, self.pictures, self.shard)
        return [range(start, min(start + self.shard, self.pictures)) for start in starts]

    @property
    def text(self) -> str:
        return json.dumps({"schema": SCHEMA, **asdict(self)}, indent=1) + "\n"

    @property
    def sha256(self) -> str:
        return sha256_bytes(self.text.encode())


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """Facts about the pictures of a shard, from its footer.

    left_out      list number -> reason, for each picture that could not be read
    files_sha256  state of the picture files just before they were read, see ``ImageList``
    paths_are     see ``paths``
    statement     see ``Index``

    Release 0.1.0 wrote only ``left_out``; in its shards the other fields are None.
    """

    left_out: dict[int, str]
    files_sha256: str | None
    paths_are: str | None
    statement: str | None


@dataclass(frozen=True, slots=True)
class Shards:
    """The folder of one run. Any number of processes may write to it; two writers of one shard write the same file."""

    folder: Path
    run: Run

    def check(self) -> None:
        """Raise InputError if the folder holds anything but this run."""
        if not self.folder.exists():
            return
        if not self.folder.is_dir():
            raise InputError(
                f"{self.folder} is a file, and shards need a folder; choose another name, or remove the file."
            )
        if (self.folder / RUN).exists():
            there, run = asdict(_read_run(self.folder)), asdict(self.run)
            for name in run:
                if there[name] != run[name]:
                    raise InputError(
                        f"{self.folder} holds another run, whose {name} is {there[name]} and not {run[name]}; "
                        "choose another folder, or remove this one."
                    )
        elif any(not is_leftover(name) for name in os.listdir(self.folder)):
            raise InputError(f"{self.folder} holds other files and no {RUN}; choose a new folder.")

    def begin(self) -> None:
        """Claim the folder for this run, and reset the counts of tries; raises as ``check`` does."""
        self.check()
        if not (self.folder / RUN).exists():
            write_text(self.folder / RUN, self.run.text)
        self._remove(".tries")

    def end(self) -> None:
        """Remove the unfinished files of killed writers; nobody may write any more."""
        self._remove(".part")

    def path(self, part: range) -> Path:
        """The file of a shard, named by its first and last list number: 0000000000-0000001023.parquet."""
        return self.folder / f"{part[0]:010d}-{part[-1]:010d}.parquet"

    def begin_shard(self, part: range) -> int:
        """Count how many processes began this shard since ``begin`` without finishing it, this process included."""
        tries = self._tries(part)
        with suppress(OSError):  # writing the shard reports a full disk
            with open(tries, "a", encoding="utf-8") as file:
                file.write(f"{os.uname().nodename} {os.getpid()}\n")
            return len(tries.read_text(encoding="utf-8").splitlines())
        return 1

    def write(self, part: range, stored: Stored, paths: list[str], shard: Shard) -> None:
        """Write a shard atomically.

        stored, paths   descriptors [n, W] and paths of the pictures that could be read, in list order

        Raises InputError if the folder cannot be written.
        """
        run = self.run
        facts = {
            "space_id": run.space_id,
            "precision": run.precision,
            **Compact(run.descriptor_dtype, run.dim).facts,
            "run_sha256": run.sha256,
            "first": part[0],
            **asdict(shard),
            "left_out": sorted(shard.left_out.items()),
        }
        with replacing(self.path(part)) as temporary:
            save_table(temporary, stored, paths, facts)
        with suppress(OSError):
            self._tries(part).unlink()

    def done(self) -> dict[range, Shard]:
        """The finished shards in list order, read from their footers.

        Raises InputError for a shard that is damaged or belongs to another run or range, and for other Parquet files.
        """
        listed = os.listdir(self.folder) if self.folder.exists() else []
        names = {name for name in listed if name.endswith(".parquet") and not is_leftover(name)}
        there = [part for part in self.run.ranges if self.path(part).name in names]
        if strange := names - {self.path(part).name for part in there}:
            raise InputError(f"{self.folder / min(strange)} is not a shard of this run; move it out of the folder.")
        return {part: self._read(part) for part in there}

    def check_complete(self, done: Collection[range]) -> None:
        """Raise InputError if a shard is missing; ``done`` holds the ranges of the finished shards."""
        if lacking := len(self.run.ranges) - len(done):
            raise InputError(f"{self.folder} lacks {lacking} of its {len(self.run.ranges)} shards; {AGAIN}.")

    def _read(self, part: range) -> Shard:
        path = self.path(part)
        try:
            rows, facts = table_facts(path)
            left_out = dict(facts["left_out"])
            shard = Shard(
                left_out=left_out,
                files_sha256=facts.get("files_sha256"),
                paths_are=facts.get("paths_are"),
                statement=facts.get("statement"),
            )
        except (OSError, KeyError, ValueError, TypeError) as error:
            raise InputError(f"{path} is damaged ({in_one_line(error)}); remove it and {AGAIN}.") from error
        told = (facts.get("run_sha256"), facts.get("first"), rows + len(left_out))
        if told != (self.run.sha256, part[0], len(part)) or left_out.keys() - set(part):
            raise InputError(f"{path} belongs to another run or range; remove it and {AGAIN}.")
        return shard

    def _tries(self, part: range) -> Path:
        return self.folder / f".{self.path(part).stem}.tries"

    def _remove(self, suffix: str) -> None:
        for name in os.listdir(self.folder):
            if name.startswith(".") and name.endswith(suffix):
                with suppress(OSError):
                    (self.folder / name).unlink()


def load_shards(folder: Path) -> tuple[Stored, list[str], dict[str, Any], None]:
    """Read all descriptors [N, W] of a folder in list order, with their paths and facts; no checksums of pictures.

    Raises InputError if a shard is missing or damaged, or if the folder holds no shards.
    """
    shards = Shards(folder, _read_run(folder))
    done = shards.done()
    shards.check_complete(done)
    rows = sum(len(part) - len(shard.left_out) for part, shard in done.items())
    first, _, facts, _ = load_table(shards.path(shards.run.ranges[0]))
    stored = np.empty((rows, first.shape[1]), first.dtype)  # allocated once: a gallery may take half of the memory
    paths: list[str] = []
    for part in done:
        block, names, *_ = load_table(shards.path(part))
        stored[len(paths) : len(paths) + len(block)] = block
        paths += names
    return stored, paths, facts, None


def _read_run(folder: Path) -> Run:
    try:
        told = json.loads((folder / RUN).read_text(encoding="utf-8"))
        if told.pop("schema") != SCHEMA:
            raise ValueError("made by another release")
        return Run(**told)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{folder} is not a folder of cgd-deploy embed --ray ({in_one_line(error)}); make it again."
        ) from error
