"""What the routes of a server share: its settings and models, who may ask, and how pictures become descriptors."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import TypeVar

import numpy as np
from fastapi import Depends, Request
from fastapi.security import HTTPBearer
from starlette.requests import HTTPConnection

from ...errors import InputError, Overloaded, reason
from ...runtime.admission import Submitted
from ...runtime.descriptors import Descriptors
from ...runtime.engine import Engine
from ...runtime.statistics import STAGES
from .models import Models
from .refusals import Refused
from .settings import Keys, ServerSettings

Result = TypeVar("Result")

TIMEOUT = "x-timeout-ms"
"""The header by which a request asks for less time than the server allows."""
DISCONNECTED = 499
"""The status that nginx logs for a client that has gone; nobody receives it."""


class Service:
    """The state of a running server.

    models    None while the engines are being loaded
    requests  how many requests with pictures are being read or answered
    """

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings
        self.models: Models | None = None
        self.requests = 0

    @property
    def ready(self) -> Models:
        """The models. Raises Refused while the engines are being loaded."""
        if self.models is None:
            raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, "the engines are being loaded; try again in a moment.")
        return self.models

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Count a request until the block ends. Raises Overloaded if there are too many; then do not read its body."""
        if self.requests >= self.settings.max_requests:
            raise Overloaded(f"{self.requests} requests are being answered already; try again in a moment.")
        self.requests += 1
        try:
            yield
        finally:
            self.requests -= 1


def service_of(request: HTTPConnection) -> Service:
    """The service that answers ``request``."""
    service: Service = request.app.state.service
    return service


def check_user(keys: Keys | None, key: str) -> None:
    """Raise Refused if the server has keys and ``key`` is none of them."""
    if keys and not keys.is_user(key):
        raise Refused(HTTPStatus.UNAUTHORIZED, "the key is missing or unknown; send Authorization: Bearer KEY.")


def check_admin(keys: Keys | None, key: str) -> None:
    """Raise Refused unless ``key`` may change the server."""
    check_user(keys, key)
    if not (keys and keys.is_admin(key)):
        raise Refused(
            HTTPStatus.FORBIDDEN,
            "this changes the server and needs an admin key; start it with --api-keys FILE, with a line `KEY admin`.",
        )


class Bearer(HTTPBearer):
    """Checks the key of a request. It is a coroutine, because FastAPI calls plain functions in a thread.

    Routes have no other dependency. With six of them, the event loop took 1.1 ms for a request instead of 0.8.
    """

    def __init__(self, check: Callable[[Keys | None, str], None]) -> None:
        super().__init__(scheme_name="key", auto_error=False)
        self._check = check

    async def __call__(self, request: HTTPConnection) -> None:
        credentials = await super().__call__(request)
        self._check(service_of(request).settings.keys, credentials.credentials if credentials else "")


User, Admin = Depends(Bearer(check_user)), Depends(Bearer(check_admin))


@dataclass(frozen=True)
class Described:
    """Unit descriptors float32 [N, dim] of the pictures of a request; ``seconds`` of the slowest picture by stage."""

    descriptors: Descriptors
    seconds: dict[str, float]


async def describe(request: Request, engine: Engine, pictures: Sequence[bytes]) -> Described:
    """Describe encoded pictures in batches with pictures of other requests.

    All pictures are admitted or none. If the client goes away, its pictures free their places.
    Raises InputError that names a bad picture, Overloaded for a full queue, or if the time is over.
    """
    timeout_ms = _timeout(request, service_of(request).settings.timeout_ms)
    futures: list[Submitted] = []
    try:
        for picture in pictures:
            futures.append(engine.submit(picture, timeout_ms))
        rows = await _unless_gone(request, asyncio.gather(*(_described(*one) for one in enumerate(futures))))
    except BaseException:
        for future in futures:
            future.cancel()
        raise
    slowest = {stage: max(future.seconds.get(stage, 0.0) for future in futures) for stage in STAGES}
    return Described(np.stack(rows), slowest)


def server_timing(seconds: dict[str, float]) -> dict[str, str]:
    """The standard header that shows the stages of a request in a browser, in milliseconds."""
    return {"Server-Timing": ", ".join(f"{stage};dur={1000 * time:.1f}" for stage, time in seconds.items())}


async def _described(number: int, future: Submitted) -> Descriptors:
    try:
        return await asyncio.wrap_future(future)
    except InputError as error:
        raise InputError(f"picture {number} {reason(error, 'the picture')}") from error


async def _unless_gone(request: Request, work: Awaitable[Result]) -> Result:
    """Await ``work``. Cancel it and raise Refused if the client disconnects first."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_disconnect(request))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Refused(DISCONNECTED, "the client has gone.")
        return task.result()
    finally:
        task.cancel()
        gone.cancel()


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _timeout(request: Request, most: float) -> float:
    text = request.headers.get(TIMEOUT)
    if text is None:
        return most
    try:
        asked = float(text)
    except ValueError:
        asked = 0.0
    if not asked > 0:
        raise InputError(f"{TIMEOUT}: {text[:40]!r} cannot be used; expected milliseconds above 0.")
    return min(asked, most)
