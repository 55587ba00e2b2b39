"""Reading a request's JSON body without guessing, and checking it against a resource's fields."""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256
from typing import NoReturn

from aiohttp import web
from pydantic import BaseModel, ValidationError

from gateway.errors import AdminRefusal, Unprocessable, UnsupportedEncoding

ERRORS_MAX = 50
# What a body may hold, however deep: each takes many times the memory that it takes as JSON.
VALUES_MAX = 50_000
# What pydantic adds where a name itself is wrong, not what it names.
_OF_A_NAME = "[key]"

Body = dict[str, object]
NONE_KNOWN: Mapping[str, str] = {}


async def read_body(request: web.Request, *, needed: bool = False) -> Body:
    """Read the JSON object that was sent plain; nothing at all is `{}`, or refused where one is `needed`."""
    if request.headers.get("Content-Encoding", "identity") != "identity":
        raise UnsupportedEncoding
    raw = await request.read()
    if needed and not raw.strip():
        raise AdminRefusal("The body must be a JSON object that names the fields to change.")
    return parse(raw)


def parse(raw: bytes, values_max: int = VALUES_MAX) -> Body:
    """Read a JSON object; `AdminRefusal` for anything that is not exactly one.

    Nothing at all counts as `{}`: an action without arguments needs no body.
    """
    if not raw.strip():
        return {}
    value = parse_any(raw, values_max)
    if not isinstance(value, dict):
        raise AdminRefusal("The body must be a JSON object.")
    return value


def parse_any(raw: bytes, values_max: int = VALUES_MAX) -> object:
    """Read a JSON value; `AdminRefusal` where it is ambiguous, or none.

    What may hold more than `values_max` values is not read at all. Commas of texts count as well.
    """
    if raw.count(b",") + raw.count(b"[") + raw.count(b"{") > values_max:
        raise Unprocessable(errors=(("", f"holds more than {values_max} values: send less at once"),))
    try:
        value: object = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_constant)
        canonical(value)
    except RecursionError as error:
        raise AdminRefusal("The body is nested too deeply.") from error
    except UnicodeError as error:
        raise AdminRefusal("The body is not valid UTF-8 text.") from error
    except ValueError as error:
        raise AdminRefusal(f"The body is not valid JSON: {error}.") from error
    return value


def canonical(value: object) -> bytes:
    """Write a JSON value so that equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode("utf-8")


def digest(body: Mapping[str, object]) -> str:
    """Name a body by its content: hex SHA-256."""
    return sha256(canonical(body)).hexdigest()


def check(model: type[BaseModel], body: Body, *, known: Mapping[str, str] = NONE_KNOWN) -> Body:
    """Check a body against a model and return the fields that were sent.

    `known` are the resource's fields, and what is said of one that the model lacks.
    Raises `Unprocessable`, field by field.
    """
    try:
        checked = model.model_validate(body)
    except ValidationError as error:
        raise Unprocessable(errors=errors_of(error, known)) from error
    return checked.model_dump(exclude_unset=True)


def errors_of(error: ValidationError, known: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """What a model found wrong, as (field, message) pairs."""
    found = []
    for item in error.errors(include_url=False, include_input=False, include_context=False)[:ERRORS_MAX]:
        field = ".".join(str(part) for part in item["loc"] if part != _OF_A_NAME)
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            message = known.get(field, "unknown field")
        elif item["type"] == "missing":
            message = "required"
        found.append((field, message))
    return tuple(found)


def _unique(pairs: list[tuple[str, object]]) -> Body:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a member is named twice")
    return members


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")
