"""Prints the log of the package to stderr. Knows no command."""

from __future__ import annotations

import logging
import sys
from enum import Enum

LOGGER = logging.getLogger("cgd_deploy")


class Level(str, Enum):
    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class StderrHandler(logging.Handler):
    """Prints to the current ``sys.stderr``: a progress bar replaces it while the bar is drawn."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr)


def log_to_stderr(level: Level) -> None:
    """Print records of at least this level."""
    handler = StderrHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    LOGGER.handlers = [handler]
    LOGGER.setLevel(level.name)


def log_warnings() -> None:
    """Print warnings and errors, unless the user has chosen a level."""
    if LOGGER.level == logging.NOTSET:
        log_to_stderr(Level.WARNING)
