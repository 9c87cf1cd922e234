"""Logs each request as one line of JSON, and counts it for Prometheus."""

from __future__ import annotations

import atexit
import json
import logging
import sys
from datetime import datetime, timezone
from logging.handlers import QueueHandler, QueueListener
from queue import SimpleQueue
from time import perf_counter

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .metrics import Requests

UNKNOWN = "unknown"
"""The route of a request that no route answers. Its path would make a new time series for each."""

log = logging.getLogger("cgd_deploy.access")


def log_to_stdout() -> None:
    """Write the lines in a thread, so that a slow reader of stdout never holds up a request."""
    lines: SimpleQueue[logging.LogRecord] = SimpleQueue()
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    log.handlers, log.propagate = [QueueHandler(lines)], False
    log.setLevel(logging.INFO)
    listener = QueueListener(lines, handler)
    listener.start()
    atexit.register(listener.stop)


class AccessLog:
    """ASGI middleware around ``app``."""

    def __init__(self, app: ASGIApp, requests: Requests) -> None:
        self._app = app
        self._requests = requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status, sent = perf_counter(), 500, 0

        async def counted(message: Message) -> None:
            nonlocal status, sent
            status = message.get("status", status)
            sent += len(message.get("body", b""))
            await send(message)

        try:
            await self._app(scope, receive, counted)
        finally:
            seconds = perf_counter() - began
            self._requests.add(getattr(scope.get("route"), "path", UNKNOWN), status, seconds)
            log.info("%s", json.dumps(_facts(scope, status, sent, seconds)))


def _facts(scope: Scope, status: int, sent: int, seconds: float) -> dict[str, object]:
    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
        "client": (scope.get("client") or [None])[0],
        "method": scope["method"],
        "path": scope["path"],
        "status": status,
        "bytes": sent,
        "ms": round(1000 * seconds, 2),
    }
