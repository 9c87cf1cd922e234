"""Errors as HTTP answers: a status, and ``{"error": {"message", "type"}}``, the form that OpenAI's clients read."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from ...errors import CgdError, EngineError, InputError, Overloaded

RETRY_SECONDS = 1
"""After an overload. A full queue of 256 pictures is computed in seconds."""


class Refused(CgdError):
    """A request that the server does not answer, with the HTTP status that says why."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def status_of(error: CgdError) -> int:
    """The HTTP status of an error. An error of the engine is not the caller's fault."""
    if isinstance(error, Refused):
        return error.status
    if isinstance(error, Overloaded):
        return HTTPStatus.SERVICE_UNAVAILABLE
    if isinstance(error, InputError):
        return HTTPStatus.UNPROCESSABLE_ENTITY
    return HTTPStatus.SERVICE_UNAVAILABLE if isinstance(error, EngineError) else HTTPStatus.INTERNAL_SERVER_ERROR


def answer(status: int, message: str, kind: str, more: Mapping[str, str] | None = None) -> JSONResponse:
    """The answer to a request that failed, with more headers; the caller may try an overloaded server again."""
    headers = dict(more or {})
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        headers["Retry-After"] = str(RETRY_SECONDS)
    if status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    if status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
        headers["Connection"] = "close"  # the rest of the body is not read
    return JSONResponse({"error": {"message": message, "type": kind}}, status, headers)


def answer_errors(app: FastAPI) -> None:
    """Let ``app`` answer our errors and Starlette's own (an unknown path, another method) in one form."""

    @app.exception_handler(CgdError)
    async def ours(_: Request, error: CgdError) -> JSONResponse:
        return answer(status_of(error), str(error), type(error).__name__)

    @app.exception_handler(RequestValidationError)
    async def arguments(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        told = f"{first['loc'][-1]} cannot be used: {first['msg']}; see /docs for what this route takes."
        return answer(HTTPStatus.UNPROCESSABLE_ENTITY, told, "InputError")

    @app.exception_handler(HTTPException)
    async def starlettes(request: Request, error: HTTPException) -> JSONResponse:
        told = f"{request.method} {request.url.path}: {error.detail}; see /docs for what this server answers."
        return answer(error.status_code, told, "HTTPException", error.headers)

    @app.exception_handler(Exception)
    async def bugs(_: Request, error: Exception) -> JSONResponse:
        return answer(HTTPStatus.INTERNAL_SERVER_ERROR, "the server failed; its log says why.", type(error).__name__)
