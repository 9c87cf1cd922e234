"""Routes that describe pictures: OpenAI's form, and a short one."""

from __future__ import annotations

import base64
from http import HTTPStatus
from typing import Any, Literal

import orjson
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from ...errors import InputError
from ...runtime.descriptors import Descriptor
from .bodies import PICTURES, EncodedPicture, check_pictures, json_body, read_json, read_pictures
from .models import Model
from .service import User, describe, server_timing, service_of

FLOATS = "application/octet-stream"

router = APIRouter(dependencies=[User])


class EmbeddingsRequest(BaseModel):
    """The request of OpenAI's embeddings, with pictures in place of texts."""

    input: EncodedPicture | list[EncodedPicture] = Field(description="pictures as data URLs or base64")
    model: str | None = Field(None, description="name of an engine of this server; the first one if left out")
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, description="if given, the length of the engine's descriptors")


@router.post("/v1/embeddings", openapi_extra=json_body(EmbeddingsRequest))
async def embeddings(request: Request) -> Response:
    """Describe pictures. The OpenAI client works with this route."""
    service = service_of(request)
    models, settings = service.ready, service.settings
    with service.admitted():
        asked = await read_json(request, EmbeddingsRequest, settings.max_body)
        pictures = asked.input if isinstance(asked.input, list) else [asked.input]
        check_pictures(pictures, settings.max_pictures)
        model = models.named(asked.model)
        with model.used() as engine:
            dim = engine.spec.dim
            if asked.dimensions not in (None, dim):
                raise InputError(f"dimensions={asked.dimensions} is not what {model.name} has; expected {dim}.")
            described = await describe(request, engine, pictures)
            space_id = engine.spec.space_id
    content = {
        "object": "list",
        "data": [
            {"object": "embedding", "index": number, "embedding": _encoded(row, asked.encoding_format)}
            for number, row in enumerate(described.descriptors)
        ],
        "model": model.name,
        "space_id": space_id,
        "usage": {"prompt_tokens": 0, "total_tokens": 0},
    }
    return json_answer(content, server_timing(described.seconds))


@router.post("/embed", openapi_extra=PICTURES)
async def embed(request: Request, model: str | None = None) -> Response:
    """Describe a picture, or the files of a form: JSON, or with `Accept: application/octet-stream` float32 rows."""
    service = service_of(request)
    named, settings = service.ready.named(model), service.settings
    with service.admitted():
        pictures = await read_pictures(request, settings.max_body, settings.max_pictures)
        with named.used() as engine:
            described = await describe(request, engine, pictures)
            space_id = engine.spec.space_id
    timing, rows = server_timing(described.seconds), described.descriptors
    if FLOATS in request.headers.get("accept", ""):
        told = {"X-Model": named.name, "X-Space-Id": space_id, "X-Shape": ",".join(map(str, rows.shape)), **timing}
        return Response(rows.astype("<f4").tobytes(), media_type=FLOATS, headers=told)
    return json_answer({"model": named.name, "space_id": space_id, "descriptors": list(rows)}, timing)


@router.get("/v1/models")
async def models(request: Request) -> dict[str, Any]:
    """The engines of this server, in the form of OpenAI's list of models."""
    return {"object": "list", "data": [facts_of(model) for model in service_of(request).ready]}


def facts_of(model: Model) -> dict[str, Any]:
    """An engine as /v1/models tells it."""
    return {
        "id": model.name,
        "object": "model",
        "owned_by": "cgd-deploy",
        **model.facts,
        "input_size": list(model.engine.spec.input_size),
        "gallery": len(model.gallery.index) if model.gallery else None,
    }


def json_answer(content: dict[str, Any], headers: dict[str, str]) -> Response:
    """JSON; float32 values get the fewest digits that give the same float32 again."""
    body = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(body, HTTPStatus.OK, headers, "application/json")


def _encoded(descriptor: Descriptor, form: str) -> Descriptor | str:
    return descriptor if form == "float" else base64.b64encode(descriptor.astype("<f4").tobytes()).decode()
