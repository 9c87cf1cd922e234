"""Notes, warnings and progress bars on stderr, and results on stdout. The tables of results are in ``results``."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..datasets.left_out import LeftOut, Pictures, without_bad
from ..hardware.timing import load_warning

LINES = 10
"""``first_few`` prints this many lines before it counts reasons."""
REASONS = 5
"""``first_few`` names this many reasons, the most common ones."""

errors = Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)
output = Console(highlight=False, markup=False, emoji=False)


def print_result(facts: object, text: str, as_json: bool) -> None:
    """Print the result of a command on stdout: ``facts`` as one line of JSON, or ``text`` for people."""
    print(json.dumps(facts) if as_json else text)


def warn(text: str) -> None:
    """Print a warning on stderr."""
    errors.print(f"warning: {text}", style="yellow", soft_wrap=True)


def warn_all(notes: Iterable[str]) -> None:
    """Print each different note once, as a warning on stderr."""
    for note in dict.fromkeys(notes):
        warn(note)


def warn_of_load(load: Mapping[str, Any]) -> None:
    """Warn if the machine was busy while speed was measured, or if that is unknown; see ``timing.load_between``."""
    if warning := load_warning(load):
        warn(warning)


@contextmanager
def counting(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a progress bar over ``total`` items; yields a function that takes the number of items just done."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=errors, transient=True, disable=not (total and _shows_bars())) as progress:
        task = progress.add_task(what, total=total)
        yield lambda count: progress.advance(task, count)


@contextmanager
def phases() -> Iterator[Callable[[str, float], None]]:
    """Show a progress bar for each phase; yields a function that takes a phase's name and the fraction done, 0 to 1.

    Before the first phase the terminal is free for the bars of others.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
    progress = Progress(*columns, console=errors, transient=True, disable=not _shows_bars())
    tasks: dict[str, Any] = {}

    def update(what: str, done: float) -> None:
        if what not in tasks:
            progress.start()
            tasks[what] = progress.add_task(what, total=1.0)
        progress.update(tasks[what], completed=done)

    try:
        yield update
    finally:
        if tasks:
            progress.stop()


def _shows_bars() -> bool:
    return errors.is_terminal and not errors.quiet


@contextmanager
def first_few(title: str) -> Iterator[Callable[[str, str], None]]:
    """Print the first lines on stderr, and at the end the number of all lines with their most common reasons.

    Yields a function that takes a line and its reason. Two reasons count as the same if they differ only in numbers or
    in the advice after the semicolon.
    """
    reasons: Counter[str] = Counter()

    def tell(line: str, reason: str) -> None:
        reasons[re.sub(r"\d[\d,]*", "N", reason.rpartition("; ")[0] or reason)] += 1
        if reasons.total() <= LINES:
            errors.print(line, style="yellow")

    yield tell
    if reasons.total() > LINES:
        told = [f"{count} x {reason}" for reason, count in reasons.most_common(REASONS)]
        if others := reasons.total() - sum(count for _, count in reasons.most_common(REASONS)):
            told.append(f"{others} x other reasons")
        errors.print(f"{title}: {reasons.total()} in all, {', '.join(told)}", style="yellow")


def tell_left_out(left_out: Iterable[LeftOut]) -> None:
    """Print the pictures that were left out, as ``first_few`` does."""
    with first_few("left out") as tell:
        for picture in left_out:
            tell(str(picture), picture.reason)


def good_pictures(pictures: Pictures, strict: bool, left_out: list[LeftOut]) -> Pictures:
    """Return the pictures that can be decoded; print the others and append them to ``left_out``.

    Raises InputError at the first bad picture if ``strict``.
    """
    with phases() as on_progress:
        good, bad = without_bad(pictures, strict=strict, on_progress=on_progress)
    tell_left_out(bad)
    left_out += bad
    return good
