"""Every failure as problem+json (RFC 9457): the one place that maps errors to HTTP."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus

import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from api import schemas
from minuteman.errors import DataplaneError, MinutemanError, ModelError, SourceError

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_SECONDS = 1

STATUS: Mapping[type[Exception], HTTPStatus] = {
    ModelError: HTTPStatus.UNPROCESSABLE_ENTITY,
    RequestValidationError: HTTPStatus.UNPROCESSABLE_ENTITY,
    SourceError: HTTPStatus.SERVICE_UNAVAILABLE,
    DataplaneError: HTTPStatus.SERVICE_UNAVAILABLE,
}
"""Classes that are not here, nor below one that is, are our own fault: 500."""


def install(app: FastAPI) -> None:
    """Make `app` answer every failure in this form, the framework's own ones too."""
    for kind in (HTTPException, RequestValidationError, MinutemanError, Exception):
        app.add_exception_handler(kind, answer)


async def answer(request: Request, error: Exception) -> Response:
    """The response to a request that ended with `error`."""
    status = status_of(error)
    details = schemas.ProblemDetails(
        type="about:blank",
        title=status.phrase,
        status=status,
        detail=_detail(error, status),
        instance=request.url.path,
        errors=_invalid_fields(error),
    )
    return Response(
        msgspec.json.encode(details),
        status_code=status,
        headers=_headers(error, status),
        media_type=MEDIA_TYPE,
    )


def status_of(error: Exception) -> HTTPStatus:
    """The HTTP status for `error`: total, whatever was raised."""
    if isinstance(error, HTTPException):
        return HTTPStatus(error.status_code)
    for kind in type(error).__mro__:
        if kind in STATUS:
            return STATUS[kind]
    return HTTPStatus.INTERNAL_SERVER_ERROR


def _detail(error: Exception, status: HTTPStatus) -> str:
    match error:
        case HTTPException():
            return error.detail
        case RequestValidationError():
            return "The request is not valid."
        case MinutemanError() if status is not HTTPStatus.INTERNAL_SERVER_ERROR:
            return str(error)
        case _:
            return "The request could not be answered; the log of the agent says why."


def _invalid_fields(error: Exception) -> tuple[schemas.InvalidField, ...]:
    match error:
        case ModelError():
            return (schemas.InvalidField(field=error.field, reason=error.reason),)
        case RequestValidationError():
            return tuple(
                schemas.InvalidField(
                    field=".".join(str(part) for part in invalid["loc"]), reason=invalid["msg"]
                )
                for invalid in error.errors()
            )
        case _:
            return ()


def _headers(error: Exception, status: HTTPStatus) -> dict[str, str]:
    headers = dict(error.headers or {}) if isinstance(error, HTTPException) else {}
    if status is HTTPStatus.SERVICE_UNAVAILABLE:
        headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
    return headers
