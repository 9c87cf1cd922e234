"""Finds the pictures that cannot be decoded, so that a command can leave them out and report them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import NamedTuple, TypeVar

from ..errors import InputError, reason
from ..hardware.cpu import available_threads
from ..pictures.images import ImageList
from ..pictures.preprocess import ahead, decode
from .evaluation import Evaluation

Pictures = TypeVar("Pictures", ImageList, Evaluation)


class LeftOut(NamedTuple):
    """A picture that was left out.

    path     its path, even if no file is there
    reason   why, and what to do about it, without the path
    """

    path: str
    reason: str

    @classmethod
    def of(cls, path: Path, error: InputError) -> LeftOut:
        """The picture at ``path``, with the reason that ``error`` gives."""
        return cls(str(path), reason(error, str(path)))

    def __str__(self) -> str:
        return f"left out: {self.path} {self.reason}"


def without_bad(
    pictures: Pictures, *, strict: bool = False, on_progress: Callable[[str, float], None] | None = None
) -> tuple[Pictures, list[LeftOut]]:
    """Decode every picture of a list or of a test set once; returns the good pictures, and the bad ones.

    strict        raise the InputError of the first bad picture instead
    on_progress   called with "Checking pictures" and the fraction of the pictures that is checked

    Raises InputError if no picture is good, or if no query or no gallery picture is good.
    """
    images = pictures.images if isinstance(pictures, Evaluation) else pictures

    def checked(number: int) -> None:
        if on_progress:
            on_progress("Checking pictures", (number + 1) / len(images))

    kept, left_out = sort_out(images, bad_pictures(images, checked), strict)
    return pictures.subset(kept), left_out


def bad_pictures(images: ImageList, on_checked: Callable[[int], None] | None = None) -> dict[int, InputError]:
    """The error of each picture that cannot be decoded, by its number in the list.

    JPEG files without a box are decoded at an eighth of their size. This also finds truncated files, in about a third
    of the time of a full decode.
    """

    def attempt(number: int) -> InputError | None:
        try:
            decode(images.path(number), images.box(number), least=1)
        except InputError as error:
            return error
        return None

    threads = available_threads()
    bad = {}
    with closing(ahead(attempt, range(len(images)), threads, depth=8 * threads)) as attempts:
        for number, error in enumerate(attempts):
            if error is not None:
                bad[number] = error
            if on_checked:
                on_checked(number)
    return bad


def sort_out(images: ImageList, bad: Mapping[int, InputError], strict: bool) -> tuple[list[int], list[LeftOut]]:
    """The numbers of the good pictures in list order, and the bad pictures.

    bad   errors by number, from ``bad_pictures``

    Raises the first error if ``strict``, and InputError if no picture is good.
    """
    if bad and strict:
        raise bad[min(bad)]
    if bad and len(bad) == len(images):
        alone = len(images) == 1
        raise bad[0] if alone else InputError(f"none of the {len(images)} pictures can be used: {bad[0]}")
    kept = [number for number in range(len(images)) if number not in bad]
    return kept, [LeftOut.of(images.path(number), error) for number, error in sorted(bad.items())]
