"""Reads the bodies of requests: raw pictures, multipart forms, and JSON with data URLs or base64.

Nothing here decodes a picture; the engine does that after it has admitted the picture.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import AsyncGenerator, Sequence
from http import HTTPStatus
from typing import Annotated, Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, BeforeValidator, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from ...errors import InputError, in_one_line
from .refusals import Refused

JSON = "application/json"
MULTIPART = "multipart/form-data"
RAW = ("application/octet-stream", "application/x-www-form-urlencoded", "")
"""Content types that may hold a picture beside image/*: clients such as curl send one of these if told nothing."""
DATA_URL = re.compile(r"data:image/[\w.+-]+;base64,")

_FILE = {"type": "string", "format": "binary"}
PICTURES: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "image/*": {"schema": _FILE},
            MULTIPART: {"schema": {"type": "object", "properties": {"files": {"type": "array", "items": _FILE}}}},
        },
    }
}
"""OpenAPI's description of a body that ``read_pictures`` reads."""

Body = TypeVar("Body", bound=BaseModel)


def picture_of(text: object) -> bytes:
    """The encoded picture in a data URL or in base64. Raises ValueError for anything else."""
    if not isinstance(text, str):
        raise ValueError("expected a picture as data URL or base64")
    start = match.end() if (match := DATA_URL.match(text)) else 0
    try:
        return base64.b64decode(text[start:], validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(
            f"{text[:40]!r} is not a picture as data URL or base64; pictures elsewhere are not fetched"
        ) from error


EncodedPicture = Annotated[bytes, BeforeValidator(picture_of, json_schema_input_type=str)]
"""A picture in JSON: text as data URL or base64."""


def json_body(model: type[BaseModel]) -> dict[str, Any]:
    """OpenAPI's description of a body that ``read_json`` reads."""
    return {"requestBody": {"required": True, "content": {JSON: {"schema": model.model_json_schema()}}}}


async def read_body(request: Request, most: int) -> bytes:
    """The body. Raises Refused for more than ``most`` bytes, before it is read where the request tells its length."""
    refusal = Refused(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body has more than {most:,} bytes; send fewer or smaller pictures."
    )
    told = request.headers.get("content-length", "")
    if told.isdecimal() and int(told) > most:
        raise refusal
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > most:
            raise refusal
        parts.append(part)
    return b"".join(parts)


def content_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def read_json(request: Request, model: type[Body], most: int) -> Body:
    """The body as ``model``. Raises Refused for another type or a large body, InputError for other content."""
    if content_type(request) != JSON:
        raise Refused(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            f"the body is {content_type(request) or 'of no type'}; send JSON, with Content-Type: {JSON}.",
        )
    body = await read_body(request, most)
    try:
        return await run_in_threadpool(model.model_validate_json, body)  # megabytes of base64 would hold the loop up
    except ValidationError as error:
        raise InputError(_told(error)) from error


def _told(error: ValidationError) -> str:
    """The innermost error as a sentence: for a list of pictures, the error of one of them."""
    inner = max(error.errors(include_url=False, include_input=False), key=lambda one: len(one["loc"]))
    field, *places = inner["loc"] or ("the body",)
    where = f"{field}{''.join(f'[{place}]' for place in places if isinstance(place, int))}"
    return f"{where} cannot be used: {inner['msg'].removeprefix('Value error, ')}."


async def read_pictures(request: Request, most: int, most_pictures: int) -> list[bytes]:
    """The encoded pictures in a body: one as it is, or the files of a multipart form.

    Raises Refused for another type or a large body, InputError for a damaged form or too many pictures.
    """
    kind = content_type(request)
    if not (kind.startswith("image/") or kind in (*RAW, MULTIPART)):
        raise Refused(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"the body is {kind}; send a picture (image/*), or a form ({MULTIPART})."
        )
    body = await read_body(request, most)
    pictures = await _files(request, body, most_pictures) if kind == MULTIPART else [body]
    check_pictures(pictures, most_pictures)
    return pictures


def check_pictures(pictures: Sequence[bytes], most: int) -> None:
    """Raise InputError unless there are 1 to ``most`` pictures, none of them empty."""
    if not 1 <= len(pictures) <= most:
        raise InputError(f"the request has {len(pictures)} pictures; send 1 to {most}.")
    if not all(pictures):
        raise InputError(f"picture {pictures.index(b'')} is empty; send the bytes of a picture's file.")


async def _files(request: Request, body: bytes, most_pictures: int) -> list[bytes]:
    async def whole() -> AsyncGenerator[bytes, None]:
        yield body

    try:
        form = await MultiPartParser(request.headers, whole(), max_files=most_pictures).parse()
    except (MultiPartException, KeyError, ValueError) as error:
        message = error.message if isinstance(error, MultiPartException) else in_one_line(error)
        raise InputError(f"the form cannot be read ({message}); send each picture as a file of the form.") from error
    try:
        return [await part.read() for _, part in form.multi_items() if isinstance(part, UploadFile)]
    finally:
        await form.close()
