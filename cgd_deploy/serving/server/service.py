"""What the routes of a server share: its settings and models, who may ask, and how pictures become descriptors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, TypeVar

import numpy as np
from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from ...errors import InputError, Overloaded, reason
from ...runtime.admission import Submitted
from ...runtime.descriptors import Descriptors
from ...runtime.engine import Engine
from ...runtime.statistics import STAGES
from .models import Models
from .refusals import Refused
from .settings import ServerSettings

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


# Dependencies are coroutines although they wait for nothing: FastAPI calls plain functions in a thread, and on a busy
# CPU each change of threads takes milliseconds.


async def service_of(request: Request) -> Service:
    return request.app.state.service


CurrentService = Annotated[Service, Depends(service_of)]
Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))]


async def check_user(service: CurrentService, credentials: Credentials) -> None:
    """Raise Refused if the server has keys and the request brings none of them."""
    keys = service.settings.keys
    if keys and not (credentials and keys.is_user(credentials.credentials)):
        raise Refused(HTTPStatus.UNAUTHORIZED, "the key is missing or unknown; send Authorization: Bearer KEY.")


async def check_admin(service: CurrentService, credentials: Credentials) -> None:
    """Raise Refused unless the request brings a key that may change the server."""
    await check_user(service, credentials)
    keys = service.settings.keys
    if not (keys and credentials and keys.is_admin(credentials.credentials)):
        raise Refused(
            HTTPStatus.FORBIDDEN,
            "this changes the server and needs an admin key; start it with --api-keys FILE, with a line `KEY admin`.",
        )


async def admit(service: CurrentService) -> AsyncIterator[None]:
    """Count a request until it is answered. Raises Overloaded, before its body is read, if there are too many."""
    if service.requests >= service.settings.max_requests:
        raise Overloaded(f"{service.requests} requests are being answered already; try again in a moment.")
    service.requests += 1
    try:
        yield
    finally:
        service.requests -= 1


User, Admin, Admitted = Depends(check_user), Depends(check_admin), Depends(admit)


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
    timeout_ms = _timeout(request, (await service_of(request)).settings.timeout_ms)
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
