"""The CPU quota that Linux control groups (cgroups, v1 and v2) set for this process. Knows nothing of cores."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath


@dataclass(frozen=True)
class Mount:
    """A mounted hierarchy of cgroups.

    version   2, or 1 for the hierarchy of v1's cpu controller
    top       the cgroup that is mounted at ``folder``; in a container this may be the container's own cgroup
    """

    version: int
    top: str
    folder: str


def cpu_quota(root: Path = Path("/")) -> float | None:
    """The smallest quota, in cores, of this process's cgroup and the cgroup's parents; None without a quota.

    root   the folder that holds proc/ and the mounts
    """
    quotas = (_quota(folder) for folder in _cgroups(root))
    return min((quota for quota in quotas if quota is not None), default=None)


def _cgroups(root: Path) -> Iterator[Path]:
    """The folder of this process's cgroup and the folders of its parents, in every hierarchy that can set a quota."""
    paths = _own_paths(_lines(root / "proc/self/cgroup"))
    for mount in _mounts(_lines(root / "proc/self/mountinfo")):
        if mount.version not in paths:
            continue
        folder = root / mount.folder.lstrip("/")
        below = _below(paths[mount.version], mount.top)
        yield from (folder / below, *(folder / parent for parent in below.parents))


def _own_paths(lines: list[str]) -> dict[int, str]:
    """This process's cgroup by version, out of lines such as "0::/user.slice" and "4:cpu,cpuacct:/docker/1f"."""
    paths: dict[int, str] = {}
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, colon, path = rest.partition(":")
        if colon and number == "0" and not controllers:
            paths[2] = path
        elif colon and "cpu" in controllers.split(","):
            paths[1] = path
    return paths


def _mounts(lines: list[str]) -> Iterator[Mount]:
    """Out of lines such as "31 23 0:28 /top /sys/fs/cgroup rw - cgroup2 cgroup rw", see proc(5)."""
    for line in lines:
        before, _, after = line.partition(" - ")
        where, how = before.split(" "), after.split(" ")
        if len(where) < 5 or len(how) < 3:
            continue
        top, folder = _unescaped(where[3]), _unescaped(where[4])
        if how[0] == "cgroup2":
            yield Mount(2, top, folder)
        elif how[0] == "cgroup" and "cpu" in how[2].split(","):
            yield Mount(1, top, folder)


def _below(path: str, top: str) -> PurePosixPath:
    """``path`` relative to ``top``; the empty path if ``path`` is not below ``top``."""
    try:
        below = PurePosixPath(path).relative_to(top)
    except ValueError:
        return PurePosixPath()
    return PurePosixPath() if ".." in below.parts else below


def _quota(folder: Path) -> float | None:
    """The quota of one cgroup in cores; None without a quota or with unreadable files."""
    words = " ".join(_lines(folder / "cpu.max")).split()
    words = words or [" ".join(_lines(folder / f"cpu.cfs_{name}_us")).strip() for name in ("quota", "period")]
    try:
        quota, period = map(int, words)
    except ValueError:  # "max" among them
        return None
    return quota / period if quota > 0 and period > 0 else None


def _unescaped(text: str) -> str:
    r"""proc(5) writes space, tab, line end and backslash as \040, \011, \012 and \134."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)


def _lines(path: Path) -> list[str]:
    try:
        return os.fsdecode(path.read_bytes()).split("\n")
    except OSError:
        return []
