"""Reading a request's body as the Admin API takes it: plain, one JSON object."""

from __future__ import annotations

from aiohttp import web

from gateway.admin import body
from gateway.errors import UnsupportedEncoding


async def read_body(request: web.Request) -> body.Body:
    """Read the JSON object that was sent; nothing at all is `{}`."""
    if request.headers.get("Content-Encoding", "identity") != "identity":
        raise UnsupportedEncoding
    return body.parse(await request.read())
