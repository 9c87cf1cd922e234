"""Runs a server until a signal ends it: the socket, loading, and the end."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import uvicorn
from fastapi import FastAPI

from ...errors import InputError, in_one_line
from .app import create_app
from .models import Models
from .service import Service
from .settings import ServerSettings

KEEP_ALIVE_SECONDS = 75
"""A proxy that closes idle connections after the usual 60 seconds does so first, so it never sends on a closed one."""
GRACE_SECONDS = 5
"""After the timeout of the requests; then connections that still send or receive are cut."""


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes a free one. Raises InputError if the address cannot be used."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((host, port))
        made.listen(1024)
    except (OSError, OverflowError) as error:
        made.close()
        raise InputError(f"cannot listen on {host}:{port} ({in_one_line(error)}); choose another one.") from error
    return made


def run_server(
    opened: socket.socket, load_models: Callable[[], Models], settings: ServerSettings, on_ready: Callable[[], None]
) -> None:
    """Serve on a listening socket until SIGTERM or SIGINT.

    load_models   loads the engines, in a thread: meanwhile /livez answers and everything else is refused
    on_ready      called when the engines are loaded

    After the signal the server accepts no more connections, answers the requests that it has, writes changed galleries
    and frees the engines. Raises what ``load_models`` raises.
    """
    service, failures = Service(settings), list[BaseException]()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async def begin() -> None:
            try:
                models = await asyncio.to_thread(load_models)
            except BaseException as error:
                failures.append(error)
                server.should_exit = True
                return
            service.models = models
            on_ready()
            await asyncio.gather(
                *(model.gallery.keep_saving(settings.save_seconds) for model in models if model.gallery)
            )

        task = asyncio.create_task(begin())
        yield
        if service.models is None:
            with suppress(asyncio.CancelledError):
                await task  # the thread that loads cannot be stopped
        task.cancel()
        if service.models:
            await service.models.close()

    config = uvicorn.Config(
        create_app(service, lifespan),
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=int(settings.timeout_ms / 1000) + GRACE_SECONDS,
    )
    server = uvicorn.Server(config)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)  # uvicorn raises the signal again after it has ended everything
    server.run(sockets=[opened])
    if failures:
        raise failures[0]
