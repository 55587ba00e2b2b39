"""Bodies of requests at the admin port: read, parsed and checked, with errors by field; idempotency keys."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from hashlib import sha256
from typing import TYPE_CHECKING, Any, NoReturn

from aiohttp import web
from pydantic import BaseModel, ValidationError

from gateway.admin.resources.values import ADDRESS_LINES, ADDRESS_PARTS, FORMS
from gateway.core.accounts.administration import (
    Actor,
    Claim,
)
from gateway.core.text import nests_within
from gateway.errors import (
    AdminRefusal,
    Unprocessable,
    UnsupportedEncoding,
)

if TYPE_CHECKING:
    from persistence.store import Store


ERRORS_MAX = 50
# Maximum of values in a body, at any depth: each takes many times the memory of its JSON.
VALUES_MAX = 50_000
# Maximum of objects and lists inside each other: later readers have a bounded stack.
NESTED_MAX = 256
# Parts that pydantic adds to the path of an error: for an invalid key, and for a value with several forms.
_OF_A_NAME = "[key]"
_NO_FIELDS = {_OF_A_NAME, *FORMS, ADDRESS_LINES, ADDRESS_PARTS}

Body = dict[str, object]
NONE_KNOWN: Mapping[str, str] = {}


async def read_body(request: web.Request, *, needed: bool = False) -> Body:
    """Read the uncompressed JSON object of a request; an empty body is `{}`, or refused if `needed`."""
    if request.headers.get("Content-Encoding", "identity") != "identity":
        raise UnsupportedEncoding
    raw = await request.read()
    if needed and not raw.strip():
        raise AdminRefusal("The body must be a JSON object that names the fields to change.")
    return parse_body(raw)


def parse_body(raw: bytes, values_max: int = VALUES_MAX) -> Body:
    """Parse a JSON object; raise `AdminRefusal` for anything else.

    An empty body counts as `{}`, as actions without arguments need none.
    """
    if not raw.strip():
        return {}
    value = parse_any_body(raw, values_max)
    if not isinstance(value, dict):
        raise AdminRefusal("The body must be a JSON object.")
    return value


def parse_any_body(raw: bytes, values_max: int = VALUES_MAX) -> object:
    """Parse a JSON value; raise `AdminRefusal` if it is ambiguous or invalid.

    A body with more than `values_max` values is not parsed. The count includes commas within texts.
    """
    if raw.count(b",") + raw.count(b"[") + raw.count(b"{") > values_max:
        raise Unprocessable(errors=(("", f"holds more than {values_max} values: send less at once"),))
    try:
        value: object = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_constant)
        canonical(value)
        is_deep = not nests_within(value, NESTED_MAX)
    except RecursionError:
        value, is_deep = None, True
    except UnicodeError as error:
        raise AdminRefusal("The body is not valid UTF-8 text.") from error
    except ValueError as error:
        raise AdminRefusal(f"The body is not valid JSON: {error}.") from error
    if is_deep:
        raise AdminRefusal(f"The body is nested more than {NESTED_MAX} deep.")
    return value


def canonical(value: object) -> bytes:
    """Encode a JSON value so that equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode("utf-8")


def body_digest(body: Mapping[str, object]) -> str:
    """Return the hex SHA-256 of a body in canonical form."""
    return sha256(canonical(body)).hexdigest()


def check_body(model: type[BaseModel], body: Body, *, known: Mapping[str, str] = NONE_KNOWN) -> Body:
    """Validate a body by a model and return the fields that were sent.

    `known` are the resource's fields with a message for those that the model lacks. Raise `Unprocessable`
    with each error's field.
    """
    try:
        checked = model.model_validate(body)
    except ValidationError as error:
        raise Unprocessable(errors=errors_of(error, known)) from error
    return checked.model_dump(exclude_unset=True)


def errors_of(error: ValidationError, known: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Return a model's validation errors as (field, message) pairs."""
    errors = []
    for item in error.errors(include_url=False, include_input=False, include_context=False)[:ERRORS_MAX]:
        field = ".".join(str(part) for part in item["loc"] if part not in _NO_FIELDS)
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            message = known.get(field, "unknown field")
        elif item["type"] == "missing":
            message = "required"
        elif item["type"] == "model_type":
            message = "must be an object: fields and their values"
        errors.append((field, message))
    return tuple(errors)


def _unique(pairs: list[tuple[str, object]]) -> Body:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a member is named twice")
    return members


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


KEY_CHARS_MAX = 255
KEY_PARAMETER: dict[str, Any] = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "Kept for 30 days: the same key and body give the first answer again.",
    "schema": {"type": "string", "maxLength": KEY_CHARS_MAX, "pattern": "^[!-~]([ -~]*[!-~])?$"},
}

_KEY = re.compile(rf"[ -~]{{1,{KEY_CHARS_MAX}}}", re.ASCII)


def claim_of(request: web.Request, actor: Actor, sent: Body) -> Claim | None:
    """Return the claim of an idempotency key, if one is sent; raise `AdminRefusal` if it is invalid."""
    keys = request.headers.getall("Idempotency-Key", [])
    if not keys:
        return None
    key = keys[0].strip()
    if len(keys) > 1 or not _KEY.fullmatch(key):
        raise AdminRefusal(
            f"Idempotency-Key must be sent once, as 1 to {KEY_CHARS_MAX} printable ASCII characters."
        )
    return Claim(actor.claims_as, key, request.method, request.path, body_digest(sent))


async def checked(
    store: Store,
    model: type[BaseModel],
    sent: Body,
    claim: Claim | None,
    *,
    known: Mapping[str, str] = NONE_KNOWN,
) -> Body:
    """Validate a body by a model; raise `Unprocessable` if it is invalid.

    Raise `Conflict` instead if the idempotency key in `claim` was used for another request.
    """
    try:
        return check_body(model, sent, known=known)
    except Unprocessable:
        if claim is not None:
            await store.refuse_other(claim)
        raise
