"""`Idempotency-Key`: what a caller claims with it, and that nothing else is asked under one.

The first answer itself is the store's to keep, in the transaction of the write.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from aiohttp import web
from pydantic import BaseModel

from gateway.admin.http import body
from gateway.admin.ports import Store
from gateway.core.accounts.administration import Actor, Claim
from gateway.errors import AdminRefusal, Unprocessable

KEY_CHARS_MAX = 255
KEY_PARAMETER: dict[str, Any] = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "Kept for 30 days: the same key and body give the first answer again.",
    "schema": {"type": "string", "minLength": 1, "maxLength": KEY_CHARS_MAX},
}

_KEY = re.compile(rf"[ -~]{{1,{KEY_CHARS_MAX}}}", re.ASCII)


def claim_of(request: web.Request, actor: Actor, sent: body.Body) -> Claim | None:
    """What a request claims; None without a key, `AdminRefusal` for what is not exactly one."""
    keys = request.headers.getall("Idempotency-Key", [])
    if not keys:
        return None
    key = keys[0].strip()
    if len(keys) > 1 or not _KEY.fullmatch(key):
        raise AdminRefusal(
            f"Idempotency-Key must be sent once, as 1 to {KEY_CHARS_MAX} printable ASCII characters."
        )
    return Claim(actor.claims_as, key, request.method, request.path, body.digest(sent))


async def checked(
    store: Store,
    model: type[BaseModel],
    sent: body.Body,
    claim: Claim | None,
    *,
    known: Mapping[str, str] = body.NONE_KNOWN,
) -> body.Body:
    """Check a body as `body.check` does; under a key that stands for another request it is a `Conflict`."""
    try:
        return body.check(model, sent, known=known)
    except Unprocessable:
        if claim is not None:
            await store.refuse_other(claim)
        raise
