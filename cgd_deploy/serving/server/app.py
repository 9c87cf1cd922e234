"""Puts the routes of a server together."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from fastapi_offline import FastAPIOffline  # its /docs loads no script from elsewhere
from prometheus_client import CollectorRegistry

from ...hardware.packages import package_version
from . import embeddings, operations, searching
from .access import AccessLog
from .metrics import Engines, Requests
from .refusals import answer_errors
from .service import Service

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


def create_app(service: Service, lifespan: Lifespan | None = None) -> FastAPI:
    """The ASGI application of ``service``."""
    app = FastAPIOffline(
        title="cgd-deploy",
        description="Describe pictures, and find the nearest pictures of a gallery.",
        version=package_version("cgd-deploy") or "0",
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.service = service
    app.state.metrics = registry = CollectorRegistry()
    registry.register(Engines(service))
    for routes in (embeddings, searching, operations):
        app.include_router(routes.router)
    answer_errors(app)
    if origins := service.settings.cors_origins:
        app.add_middleware(CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"])
    app.add_middleware(AccessLog, requests=Requests(registry))
    return app
