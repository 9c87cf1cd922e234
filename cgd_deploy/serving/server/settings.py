"""What a server may be told: limits, deadlines, keys. Reads the file of keys; knows no HTTP library."""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from pathlib import Path

from ...errors import InputError, in_one_line
from ...files import check_file

ADMIN = "admin"
"""The word behind a key in the file of keys that may change the server."""


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """How a server answers.

    keys            who may use it; None: everybody
    max_body        bytes of a request's body
    max_pictures    pictures in a request
    max_requests    requests with pictures that are read or answered at the same time; one more is refused unread
    max_neighbours  the largest k of a search
    timeout_ms      milliseconds after which a picture is no longer computed; a request may ask for less
    cors_origins    origins whose pages may read the answers, such as "https://shop.example"
    save_seconds    a changed gallery is written this often

    Raises InputError for a value out of range.
    """

    keys: Keys | None = None
    max_body: int = 32 << 20
    max_pictures: int = 64
    max_requests: int = 256
    max_neighbours: int = 1000
    timeout_ms: float = 30_000
    cors_origins: tuple[str, ...] = ()
    save_seconds: float = 10.0

    def __post_init__(self) -> None:
        positive = ("max_body", "max_pictures", "max_requests", "max_neighbours", "timeout_ms", "save_seconds")
        for name in positive:
            if not getattr(self, name) > 0:
                raise InputError(f"{name}={getattr(self, name)} cannot be used; expected more than 0.")


@dataclass(frozen=True, repr=False)
class Keys:
    """The keys of a server. ``users`` may describe and search; ``admins`` may also change galleries and engines."""

    users: tuple[bytes, ...]
    admins: tuple[bytes, ...]

    def is_user(self, key: str) -> bool:
        return _is_among(key, self.users + self.admins)

    def is_admin(self, key: str) -> bool:
        return _is_among(key, self.admins)


def read_keys(path: str | Path) -> Keys:
    """Read a file of keys: one in each line, with the word "admin" behind a key that may change the server.

    Empty lines and lines that start with # are skipped. Raises InputError for a file without keys, and for a line of
    another form; the error does not show the key.
    """
    try:
        check_file(path, "list_bytes")
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the keys in {path} cannot be read ({in_one_line(error)}); check the file.") from error
    keys: dict[bool, list[bytes]] = {False: [], True: []}
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words or line.lstrip().startswith("#"):
            continue
        if words[1:] not in ([], [ADMIN]):
            raise InputError(f"line {number} of {path} is not a key; expected KEY, or KEY {ADMIN}.")
        keys[len(words) > 1].append(words[0].encode())
    if not any(keys.values()):
        raise InputError(f"{path} holds no keys; write one in each line.")
    return Keys(tuple(keys[False]), tuple(keys[True]))


def _is_among(key: str, known: tuple[bytes, ...]) -> bool:
    """Whether ``key`` is known. The time of a comparison does not tell how much of the key is right."""
    return any(hmac.compare_digest(key.encode(), other) for other in known)
