"""Refusals of the admin port as problem documents (RFC 9457)."""

from __future__ import annotations

import json
from http import HTTPStatus

from aiohttp import web

from gateway.errors import (
    AdminRefusal,
    NotStoredYet,
    Refusal,
    TollkeeperError,
    TooManyRequests,
)

CONTENT_TYPE = "application/problem+json"


def problem(
    status: int,
    reason: str,
    detail: str,
    *,
    instance: str,
    errors: tuple[tuple[str, str], ...] = (),
    headers: dict[str, str] | None = None,
) -> web.Response:
    """Return an error answer in the format of RFC 9457; `errors` are (field, message) pairs."""
    body: dict[str, object] = {
        "type": f"urn:tollkeeper:problem:{reason}",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "instance": instance,
    }
    if errors:
        body["errors"] = [{"field": field, "message": message} for field, message in errors]
    return web.Response(
        status=status, body=json.dumps(body).encode(), content_type=CONTENT_TYPE, headers=headers
    )


def refusal(error: TollkeeperError, *, instance: str) -> web.Response:
    """Return the answer to an error: its problem document, with the header fields for its status."""
    headers = None
    errors: tuple[tuple[str, str], ...] = ()
    if isinstance(error, AdminRefusal):
        errors = error.errors
    if error.status == 401:
        headers = {"WWW-Authenticate": 'Bearer realm="tollkeeper"'}
    elif error.status in {429, 503} or isinstance(error, NotStoredYet):
        after_s = error.retry_after_s if isinstance(error, Refusal | TooManyRequests | NotStoredYet) else None
        headers = {"Retry-After": str(after_s or 1)}
    return problem(
        error.status, error.reason, error.message, instance=instance, errors=errors, headers=headers
    )
