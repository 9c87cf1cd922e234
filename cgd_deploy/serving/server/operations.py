"""Routes for whoever runs the server: health, metrics, reload, and the page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from .embeddings import facts_of
from .service import Admin, User, service_of

PAGE = Path(__file__).parent / "page.html"

router = APIRouter()


@router.get("/livez", tags=["health"])
async def livez() -> dict[str, str]:
    """The process answers."""
    return {"status": "alive"}


@router.get("/readyz", tags=["health"])
async def readyz(request: Request) -> dict[str, Any]:
    """Every engine is loaded, warm, and gave the descriptors of its golden pictures; 503 until then."""
    return {"status": "ready", "models": [model.name for model in service_of(request).ready]}


@router.get("/metrics", dependencies=[User], response_class=Response)
async def metrics(request: Request) -> Response:
    """Numbers for Prometheus."""
    return Response(generate_latest(request.app.state.metrics), media_type=CONTENT_TYPE_LATEST)


@router.post("/admin/reload", dependencies=[Admin])
async def reload(request: Request, model: str | None = None) -> dict[str, Any]:
    """Load an engine's file again and let it take over. No request is lost; both engines are in memory meanwhile."""
    named = service_of(request).ready.named(model)
    await named.reload()
    return facts_of(named)


@router.get("/", include_in_schema=False)
async def page() -> HTMLResponse:
    """The page for people."""
    return HTMLResponse(PAGE.read_text(encoding="utf-8"))
