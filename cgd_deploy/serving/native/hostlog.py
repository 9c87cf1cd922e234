"""Sends the log of the package to a function of the host. Knows no engine and no index."""

from __future__ import annotations

import logging
from collections.abc import Callable

LOGGER = logging.getLogger("cgd_deploy")
HIGHEST = logging.ERROR // 10


class HostLog(logging.Handler):
    """A handler whose lock is held while the function runs. A level is 1 (debug) to 4 (error), as in cgd.h."""

    def __init__(self) -> None:
        super().__init__()
        self._function: Callable[[int, bytes], object] | None = None
        self._level_before = logging.NOTSET

    def send_to(self, function: Callable[[int, bytes], object] | None, least: int) -> None:
        """Call ``function`` with the level and the line of each later record; None: call nothing.

        Waits for a running call of the function before.
        """
        self.acquire()
        try:
            if self._function:
                LOGGER.removeHandler(self)
                LOGGER.setLevel(self._level_before)
            self._function, self._level_before = function, LOGGER.level
            if function:
                self.setLevel(10 * least)
                LOGGER.setLevel(min(10 * least, LOGGER.level or 10 * least))
                LOGGER.addHandler(self)
        finally:
            self.release()

    def emit(self, record: logging.LogRecord) -> None:
        if self._function:
            level = min(max(record.levelno // 10, 1), HIGHEST)
            self._function(level, " ".join(record.getMessage().split()).encode(errors="replace"))
