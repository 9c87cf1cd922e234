"""Makes standard output and error safe: they take any file name, and a failed write gives no traceback.

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
"""Exit status if the reader of the results has gone: 128 + 13, the status of a process that SIGPIPE ends."""
ANY_NAME = "cgd-deploy-any-name"
"""Name under which Python's codecs know ``_any_name``."""


class Sink(io.FileIO):
    """A file descriptor that discards everything after its first failure, because Python writes again when it exits."""

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
        """Ignore the error: a message is lost, and the work goes on."""


class Results(Sink):
    """Standard output. A command fails if it cannot write there."""

    def on_failure(self, error: OSError) -> None:
        if isinstance(error, BrokenPipeError):
            sys.exit(CLOSED_PIPE)
        raise InputError(f"cannot write to standard output: {error.strerror}; redirect it to another place.") from error


def take_over() -> None:
    """Make ``sys.stdout`` and ``sys.stderr`` safe to print to. Streams that a test or a host replaced stay as they are.

    On stdout, a file name in another encoding keeps its bytes. Other characters that the encoding lacks become escapes.
    Writing to stdout raises InputError if the write fails, and SystemExit with CLOSED_PIPE if nobody reads any more.
    """
    codecs.register_error(ANY_NAME, _any_name)
    sys.stdout = _safe(sys.stdout, Results, ANY_NAME)
    sys.stderr = _safe(sys.stderr, Sink, "backslashreplace")


def _safe(stream: TextIO | None, kind: type[Sink], errors: str) -> TextIO:
    if stream is None:  # the caller closed it; the next file that we open would take its descriptor
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
    """Print a surrogate as the byte that it stands for, and another character that the encoding lacks as \\xe9."""
    if isinstance(error, UnicodeEncodeError) and "\udc80" <= error.object[error.start] <= "\udcff":
        return bytes([ord(error.object[error.start]) - 0xDC00]), error.start + 1
    return codecs.backslashreplace_errors(error)
