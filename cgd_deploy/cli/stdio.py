"""Standard output and error of a command: any file name can be printed, and a failed write ends in no traceback.

Knows no command and prints nothing.
"""

from __future__ import annotations

import codecs
import io
import os
import sys
from typing import Any, TextIO

from ..errors import InputError

CLOSED_PIPE = 141
"""Exit status when the reader of the results has gone: 128 + 13, as of a process that SIGPIPE ends."""
ANY_NAME = "cgd-deploy-any-name"
"""The error handler ``_any_name``."""


class Sink(io.FileIO):
    """A file descriptor that discards everything after its first failure: Python tries once more when it exits."""

    broken = False

    def write(self, data: Any, /) -> int:
        if self.broken:
            return len(data)
        try:
            return super().write(data)
        except OSError as error:
            self.broken = True
            self.on_failure(error)
            return len(data)

    def on_failure(self, error: OSError) -> None:
        """Nothing: a message that stderr cannot take is lost, and stops no work."""


class Results(Sink):
    """Standard output, without which a command has failed."""

    def on_failure(self, error: OSError) -> None:
        if isinstance(error, BrokenPipeError):
            sys.exit(CLOSED_PIPE)
        raise InputError(f"cannot write to standard output: {error.strerror}; redirect it to another place.") from error


def take_over() -> None:
    """Make ``sys.stdout`` and ``sys.stderr`` safe to print to; those that a test or a host replaced stay as they are.

    A name in another encoding keeps its bytes on stdout. Other characters that the encoding lacks become escapes.
    Writing to stdout raises InputError where it fails, and SystemExit with CLOSED_PIPE if nobody reads any more.
    """
    codecs.register_error(ANY_NAME, _any_name)
    sys.stdout = _safe(sys.stdout, Results, ANY_NAME)
    sys.stderr = _safe(sys.stderr, Sink, "backslashreplace")


def _safe(stream: TextIO | None, kind: type[Sink], errors: str) -> TextIO:
    if stream is None:  # closed by the caller; open it, or the next file of ours would become the output
        return open(os.devnull, "w", encoding="utf-8", errors=errors)
    if type(stream) is not io.TextIOWrapper:
        return stream
    stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(kind(stream.fileno(), "w", closefd=False)),
        encoding=stream.encoding,
        errors=errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def _any_name(error: UnicodeError) -> tuple[str | bytes, int]:
    """The byte that a surrogate stands for, or an escape such as \\xe9 for a character that the encoding lacks."""
    if isinstance(error, UnicodeEncodeError) and "\udc80" <= error.object[error.start] <= "\udcff":
        return bytes([ord(error.object[error.start]) - 0xDC00]), error.start + 1
    return codecs.backslashreplace_errors(error)
