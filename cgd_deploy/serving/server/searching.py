"""Routes of the gallery: search it, look at its pictures, and change it."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from time import perf_counter
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from ...errors import InputError
from .bodies import PICTURES, read_pictures
from .embeddings import json_answer
from .refusals import Refused
from .service import Admin, User, describe, server_timing, service_of
from .thumbnails import thumbnail

router = APIRouter()

Picture = "/index/{path:path}"
"""A picture of the gallery, by its path in the index."""


@router.post("/search", dependencies=[User], openapi_extra=PICTURES)
async def search(request: Request, k: Annotated[int, Query(ge=1)] = 8, model: str | None = None) -> Response:
    """The `k` nearest pictures of the gallery for a picture, or for each file of a form, best first."""
    service = service_of(request)
    (named, gallery), settings = service.ready.searched(model), service.settings
    if k > settings.max_neighbours:
        raise InputError(f"k={k} is too large; ask for 1 to {settings.max_neighbours} neighbours.")
    with service.admitted():
        pictures = await read_pictures(request, settings.max_body, settings.max_pictures)
        with named.used() as engine:
            described = await describe(request, engine, pictures)
            began = perf_counter()
            found = await gallery.find(engine, described.descriptors, k)
            searched = perf_counter() - began
            space_id = engine.spec.space_id
    content = {
        "model": named.name,
        "space_id": space_id,
        "results": [[{"path": path, "similarity": similarity} for path, similarity in row] for row in found],
    }
    return json_answer(content, server_timing({**described.seconds, "search": searched}))


@router.get(Picture, dependencies=[User], response_class=Response, responses={200: {"content": {"image/jpeg": {}}}})
async def picture(request: Request, path: str, model: str | None = None) -> Response:
    """A small JPEG of a picture of the gallery."""
    _, gallery = service_of(request).ready.searched(model)
    path = gallery.listed(path)
    if path not in gallery.index:
        raise Refused(HTTPStatus.NOT_FOUND, f"the gallery has no picture {path!r}; /search tells the paths it has.")
    return Response(await asyncio.to_thread(thumbnail, path), media_type="image/jpeg")


@router.put(Picture, dependencies=[Admin], openapi_extra=PICTURES)
async def put(request: Request, path: str, model: str | None = None) -> dict[str, Any]:
    """Describe the picture in the body, and add it to the gallery or replace the picture of that path."""
    service = service_of(request)
    named, gallery = service.ready.searched(model)
    path = gallery.listed(path)
    with service.admitted():
        pictures = await read_pictures(request, service.settings.max_body, 1)
        with named.used() as engine:
            described = await describe(request, engine, pictures)
            await gallery.put(path, described.descriptors[0])
    return {"path": path, "pictures": len(gallery.index), "space_id": engine.spec.space_id}


@router.delete(Picture, dependencies=[Admin])
async def remove(request: Request, path: str, model: str | None = None) -> dict[str, Any]:
    """Remove a picture from the gallery. The file of the picture stays."""
    _, gallery = service_of(request).ready.searched(model)
    path = gallery.listed(path)
    await gallery.remove(path)
    return {"path": path, "pictures": len(gallery.index)}
