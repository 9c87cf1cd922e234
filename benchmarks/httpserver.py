"""A ``cgd-deploy serve`` for measurements, and a client that many threads may use."""

from __future__ import annotations

import io
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cgd_deploy.errors import InputError, Overloaded

SIDE = 256
QUALITY = 90
START_SECONDS = 120.0
STOP_SECONDS = 60.0
ROWS = {"Accept": "application/octet-stream", "Content-Type": "image/jpeg"}
"""Ask for float32 rows."""


@contextmanager
def serving(engine: Path, *options: object) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Serve an engine on a free port; yields its address and its process once it is ready.

    options   more options of ``cgd-deploy serve``

    Raises InputError with the server's own words if it does not start.
    """
    command = [sys.executable, "-m", "cgd_deploy", "serve", str(engine), "--port", "0", *map(str, options)]
    with TemporaryDirectory() as folder, ExitStack() as stack:
        log = Path(folder) / "log"
        with log.open("wb") as errors:
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors)
        stack.callback(_end, process)
        end = time.monotonic() + START_SECONDS
        while "ready" not in (told := log.read_text(encoding="utf-8")):
            if process.poll() is not None or time.monotonic() > end:
                raise InputError(f"the server did not start: {told.strip()}.")
            time.sleep(0.05)
        yield told.split("http://")[1].split(";")[0], process


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    finally:
        process.kill()
        process.wait()


class Client:
    """Sends requests on connections that stay open, one for each thread.

    threads   requests that may be under way
    """

    def __init__(self, address: str, threads: int) -> None:
        self._address = urlsplit(f"//{address}").netloc
        self._own = threading.local()
        self._connections: list[HTTPConnection] = []
        self._pool = ThreadPoolExecutor(threads)

    def ask(self, route: str, body: bytes, headers: Mapping[str, str]) -> tuple[int, bytes]:
        """POST; the status and the body of an answer. A connection that the server had closed is opened again."""
        if not hasattr(self._own, "connection"):
            self._own.connection = HTTPConnection(self._address, timeout=START_SECONDS)
            self._connections.append(self._own.connection)
        connection, idle = self._own.connection, self._own.connection.sock is not None
        try:
            connection.request("POST", route, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        except (OSError, HTTPException):
            connection.close()
            if not idle:
                raise
        return self.ask(route, body, headers)

    def describe(self, picture: bytes) -> NDArray[np.float32]:
        """The descriptor of a JPEG file. Raises Overloaded if the server has no room, InputError for other refusals."""
        status, body = self.ask("/embed", picture, ROWS)
        if status == 503:
            raise Overloaded(body.decode())
        if status != 200:
            raise InputError(body.decode())
        return np.frombuffer(body, "<f4")

    def submit(self, picture: bytes) -> Future[Any]:
        """``describe`` in a thread of the client."""
        return self._pool.submit(self.describe, picture)

    def close(self) -> None:
        """End the threads of ``submit``, and close every connection."""
        self._pool.shutdown()
        for connection in self._connections:
            connection.close()


def jpeg_files(images: Sequence[NDArray[np.uint8]] | NDArray[np.uint8], side: int = SIDE) -> list[bytes]:
    """Pictures uint8 [H, W, 3], resized to ``side`` x ``side`` pixels, as JPEG files."""
    files = []
    for image in images:
        file = io.BytesIO()
        Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC).save(file, "JPEG", quality=QUALITY)
        files.append(file.getvalue())
    return files
