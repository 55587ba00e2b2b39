"""Reads requests of the admin port: bearer tokens, roles, bodies, queries and idempotency keys.

Tokens are compared in constant time.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import json
import re
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from hashlib import sha256
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, NoReturn
from uuid import UUID

from aiohttp import web
from multidict import MultiMapping
from pydantic import BaseModel, ValidationError

from gateway.admin import credentials
from gateway.admin.http.server import HELD, IDENTIFIED, WorkSlots
from gateway.admin.ports import AdminPorts
from gateway.admin.resources.form_fields import IntegerParameter
from gateway.admin.resources.resource import CURSOR_CHARS_MAX, Endpoint, Filter
from gateway.admin.resources.values import ADDRESS_LINES, ADDRESS_PARTS, FORMS, read_moment
from gateway.core.accounts.administration import (
    ADMIN,
    METER,
    READONLY,
    Actor,
    Claim,
    HourlyUse,
    Hours,
    Place,
    Query,
    refused_read,
    refused_write,
)
from gateway.core.accounts.tags import GROUP, TAG, TAGS_MAX
from gateway.core.credentials import Failures
from gateway.core.issuers import Person
from gateway.errors import (
    AdminRefusal,
    Forbidden,
    NotStoredYet,
    ReadOnly,
    Refusal,
    TollkeeperError,
    TooManyRequests,
    Unauthorized,
    Unprocessable,
    UnsupportedEncoding,
)

if TYPE_CHECKING:
    from persistence.store import Store

PLACES = web.AppKey("places", WorkSlots)
HOURS = web.AppKey("hours", Hours)
# The client's address, if one of our gateways has forwarded the request.
SENDER = web.RequestKey("sender", str)
# First path segments of answers of any size, and the endings of files. Reports of vendors' Admin APIs are at
# /v1.
COSTLY = frozenset({"usage", "reports", "receivables", "spend", "configuration", "v1"})
COSTLY_FILES = (".csv", ".parquet", ".pdf", ".xml")
# A replay of budgets reads as many calls as its caller names.
COSTLY_QUESTIONS = ("/budgets/replay",)
_NAMED = re.compile(
    rf"{credentials.ADMIN_TOKEN}[{credentials.ALPHABET}]{{{credentials.RANDOM_CHARS}}}", re.ASCII
)
BEARER = re.compile(r"(?i:bearer) +([!-~]{1,512})", re.ASCII)


async def admit(ports: AdminPorts, request: web.Request) -> AdminPorts:
    """Return the ports limited to the rights of the caller, whom the `Authorization` header identifies."""
    return ports.of(await identify(ports, request))


async def identify(ports: AdminPorts, request: web.Request) -> Actor:
    """Return the actor of the request's `Authorization` header; raise `Unauthorized` if it is invalid."""
    return await identify_by(ports, request, request.headers.getall("Authorization", []))


async def identify_by(ports: AdminPorts, request: web.Request, sent: Sequence[str]) -> Actor:
    """Return the actor of the `sent` credentials, which must be one `Bearer` token."""
    match = BEARER.fullmatch(sent[0]) if len(sent) == 1 else None
    if match is None:
        nobody = Unauthorized()
        nobody.failure = "malformed" if sent else "missing"
        raise nobody
    actor = (await known_token(ports, match[1]))[0]
    await take_place(request, actor.organization_id)
    return actor


async def take_place(request: web.Request, organization_id: int | None) -> None:
    """Mark a request as identified, and acquire a work slot of its organization until it is answered.

    Each organization has slots, and staff have separate ones, so nobody waits for another's requests.
    Expensive requests also count against the organization's hourly budget.
    """
    request[IDENTIFIED] = True
    counts = organization_id is not None and costs_much(request)
    hour = request.app[HOURS].of(organization_id) if organization_id is not None and counts else None
    await request[HELD].enter_async_context(request.app[PLACES].of(organization_id))
    if hour is not None:
        request[HELD].enter_context(_counted(hour))


def costs_much(request: web.Request) -> bool:
    """Return whether the caller decides how much work a request is: report, file or configuration."""
    route = request.match_info.route.resource
    path = "" if route is None else route.canonical.removeprefix("/admin/v1")
    return not COSTLY.isdisjoint(path.split("/")[1:2]) or path.endswith(COSTLY_FILES + COSTLY_QUESTIONS)


@contextmanager
def _counted(hour: HourlyUse) -> Iterator[None]:
    meter, began = METER.get(), time.monotonic()
    if meter is not None:
        meter.hour = hour
    try:
        yield
    finally:
        hour.work_s += time.monotonic() - began


async def slow_down(failures: Failures, request: web.Request, reason: str) -> None:
    """Count a wrong credential; after many, delay the answer to this sender."""
    delay_s = failures.count(sent_from(request), reason)
    if delay_s:
        failures.delayed += 1
        try:
            await asyncio.sleep(delay_s)
        finally:
            failures.delayed -= 1


def sent_from(request: web.Request) -> str:
    """Return the address of the sender; "" if it is unknown."""
    return request.get(SENDER) or request.remote or ""


async def known_token(ports: AdminPorts, token: str) -> tuple[Actor, str]:
    """Return the actor of a token, and the token's stored digest; raise `Unauthorized` if there is none."""
    first, *earlier = ports.peppers.digests(token)
    actor = _built_in(ports, first)
    if actor is not None:
        return actor, first
    for digest in (first, *earlier) if _NAMED.fullmatch(token) else ():
        actor = await ports.store.staff_token(digest)
        if actor is not None:
            return actor, digest
    raise Unauthorized


async def known_key(ports: AdminPorts, key: str) -> tuple[Actor, str]:
    """Return the actor of an API key, and the key's stored digest; raise `Unauthorized` if there is none."""
    for digest in ports.peppers.digests(key):
        actor = await ports.store.key_holder(digest)
        if actor is not None:
            return actor, digest
    raise Unauthorized


async def known_person(ports: AdminPorts, person: Person) -> tuple[Actor, str] | None:
    """Return the actor and the admin token's digest of a person signed in by a provider; else None.

    A person may be known by several subjects. If the token of one has ended, those of later ones are not
    used.
    """
    for known_as in person.known_as:
        digests = ports.peppers.digests(known_as)
        for digest in digests:
            actor = await ports.store.staff_token(digest)
            if actor is not None:
                return replace(actor, person=person.who), digest
        for digest in digests:
            if await ports.store.has_ended_token(digest):
                return None
    return None


async def actor_of_digest(ports: AdminPorts, digest: str) -> Actor:
    """Return the actor of the token or key with this digest; raise `Unauthorized` if it is invalid."""
    actor = _built_in(ports, digest) or await ports.store.staff_token(digest)
    actor = actor or await ports.store.key_holder(digest)
    if actor is None:
        raise Unauthorized
    return actor


def require_read(actor: Actor, answered: Endpoint) -> None:
    """Raise `Forbidden` if the actor's role or organization may not read an endpoint."""
    refused = refused_read(actor, answered.name, answered.access)
    if refused is not None:
        raise Forbidden(refused)


def require_write(actor: Actor, answered: Endpoint, verb: str, sent: Collection[str] = ()) -> None:
    """Raise `Forbidden` or `ReadOnly` if the actor may not use a verb of an endpoint with these fields."""
    refused = refused_write(actor, answered.name, answered.access, verb, sent)
    if refused is not None:
        raise ReadOnly(refused) if actor.role == READONLY else Forbidden(refused)


def may_write(actor: Actor, answered: Endpoint, verb: str) -> bool:
    """Return whether an actor may use a verb of an endpoint."""
    return refused_write(actor, answered.name, answered.access, verb) is None


def _built_in(ports: AdminPorts, digest: str) -> Actor | None:
    # Digests have one length and hide the tokens': comparing them leaks neither.
    found = None
    for role, token in ((ADMIN, ports.built_in.admin), (READONLY, ports.built_in.readonly)):
        if token and hmac.compare_digest(digest, ports.peppers.digest(token)) and found is None:
            found = Actor(f"builtin:{role}", role)
    return found


# Parses JSON bodies strictly, and validates them by a resource's models.

ERRORS_MAX = 50
# Maximum of values in a body, at any depth: each takes many times the memory of its JSON.
VALUES_MAX = 50_000
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
    except RecursionError as error:
        raise AdminRefusal("The body is nested too deeply.") from error
    except UnicodeError as error:
        raise AdminRefusal("The body is not valid UTF-8 text.") from error
    except ValueError as error:
        raise AdminRefusal(f"The body is not valid JSON: {error}.") from error
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
    found = []
    for item in error.errors(include_url=False, include_input=False, include_context=False)[:ERRORS_MAX]:
        field = ".".join(str(part) for part in item["loc"] if part not in _NO_FIELDS)
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


# Parses the query string of a list: limit, cursor, order, filters and period.
#
# A cursor contains the last row seen, for one resource under one set of filters; it is opaque to the caller
# and refused for any other list.

LIMIT_DEFAULT = 100
LIMIT_MAX = 1_000
FILTER_CHARS_MAX = 200
WHOLE_CHARS_MAX = 16

# A filter by the value of a tag; the empty one finds rows without it.
OF_TAG = Filter("text")

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


def read_query(
    resource: str, filters: Mapping[str, Filter], sent: MultiMapping[str], *, tagged: bool = False
) -> Query:
    """Parse the query string of a list, of `tagged` rows maybe; raise `Unprocessable` with each error."""
    errors: list[tuple[str, str]] = []
    if tagged and (tags := dict.fromkeys(filter(GROUP.fullmatch, sent), OF_TAG)):
        if len(tags) > TAGS_MAX:
            errors.append((next(iter(tags)), f"is one of more than {TAGS_MAX} tags, which no call has"))
        filters = {**filters, **tags}
    values: dict[str, object] = {}
    for name in dict.fromkeys(sent):
        given = sent.getall(name)
        try:
            if len(given) > 1:
                raise ValueError("given twice")  # noqa: TRY301  # collected with the others
            values[name] = _read(name, given[0], filters)
        except ValueError as error:
            errors.append((name, str(error)))
    if errors:
        raise Unprocessable("Some query parameters are wrong.", tuple(errors))
    wanted = {name: values[name] for name in filters if name in values}
    after = values.get("cursor")
    limit = values.get("limit", LIMIT_DEFAULT)
    descending = values.get("order") == "desc"
    mark = fingerprint(resource, wanted, descending=descending)
    return Query(
        filters=wanted,
        since=values.get("from"),  # type: ignore[arg-type]  # read by _read
        until=values.get("to"),  # type: ignore[arg-type]  # read by _read
        after=decode_cursor(str(after), mark) if after is not None else None,
        limit=limit if isinstance(limit, int) else LIMIT_DEFAULT,
        descending=descending,
    )


def read_numbers(numbers: Mapping[str, IntegerParameter], sent: MultiMapping[str]) -> dict[str, int]:
    """Return the number parameters of a report; raise `Unprocessable` if one is invalid."""
    errors = _twice(sent) + [(name, "unknown parameter") for name in sent.keys() - numbers.keys()]
    found = {}
    for name, wanted in numbers.items():
        try:
            found[name] = _whole(sent.get(name, str(wanted.default)), wanted.least, wanted.most)
        except ValueError as error:
            errors.append((name, str(error)))
    if errors:
        raise Unprocessable("Some query parameters are wrong.", tuple(errors))
    return found


def read_once(sent: MultiMapping[str]) -> dict[str, str]:
    """Return the parameters of a query string; raise `Unprocessable` if one is given twice."""
    twice = _twice(sent)
    if twice:
        raise Unprocessable("Some query parameters are wrong.", tuple(twice))
    return dict(sent)


def _twice(sent: MultiMapping[str]) -> list[tuple[str, str]]:
    return [(name, "given twice") for name in dict.fromkeys(sent) if len(sent.getall(name)) > 1]


def with_plus(text: str) -> str:
    """Return a time with its plus sign, which arrives as a space if it was not escaped."""
    return text.replace(" ", "+")


def number_or_text(text: str) -> object:
    """Return a text as a whole number if it is one; else unchanged, for the field's check to refuse."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= WHOLE_CHARS_MAX else text


def id_of(text: str) -> int | None:
    """Return the id that a text contains; None if it is no whole number."""
    number = number_or_text(text)
    return number if isinstance(number, int) else None


def fingerprint(resource: str, filters: Mapping[str, object], *, descending: bool) -> str:
    """Return a short hash of a list and its filters, so that cursors of other lists are refused."""
    return sha256(repr((resource, sorted(filters.items()), descending)).encode()).hexdigest()[:12]


def encode_cursor(after: Place, mark: str) -> str:
    return base64.urlsafe_b64encode(json.dumps([mark, *after]).encode()).decode().rstrip("=")


def decode_cursor(text: str, mark: str) -> Place:
    """Decode a cursor to the position after a page's last row.

    Raise `Unprocessable` if its fingerprint is not `mark`, that of this list with these filters.
    """
    with suppress(binascii.Error, ValueError, RecursionError):
        padded = text + "=" * (-len(text) % 4)
        read = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
        if isinstance(read, list) and len(read) > 1 and read[0] == mark and all(map(_is_key, read[1:])):
            return tuple(read[1:])
    raise Unprocessable(
        "Some query parameters are wrong.",
        (("cursor", "is not a next_cursor of this list with these filters"),),
    )


def _is_key(part: object) -> bool:
    if isinstance(part, str):
        return _UNSTORABLE.search(part) is None
    return type(part) is int and abs(part) <= 2**63 - 1


def _read(name: str, text: str, filters: Mapping[str, Filter]) -> object:
    if name == "limit":
        return _whole(text, 1, LIMIT_MAX)
    if name == "cursor":
        if not 0 < len(text) <= CURSOR_CHARS_MAX:
            raise ValueError("is not a cursor")
        return text
    if name == "order":
        if text not in {"asc", "desc"}:
            raise ValueError("must be asc or desc")
        return text
    if name in {"from", "to"}:
        return read_moment(with_plus(text) if len(text) < 40 else text)
    if name not in filters:
        raise ValueError("unknown parameter")
    return _read_filter(filters[name], text)


def _read_filter(wanted: Filter, text: str) -> object:
    if wanted.kind in {"id", "count"}:
        return _whole(text, int(wanted.kind == "id"), wanted.most)
    if wanted.kind == "uuid":
        return UUID(text)
    if wanted.kind == "flag":
        if text not in {"true", "false"}:
            raise ValueError("must be true or false")
        return text == "true"
    if wanted.choices and text not in wanted.choices:
        if not wanted.or_tag or GROUP.fullmatch(text) is None:
            tag = f" or {TAG}NAME" if wanted.or_tag else ""
            raise ValueError(f"must be one of {', '.join(wanted.choices)}{tag}")
    elif wanted is OF_TAG and not text:
        return text
    if not 0 < len(text) <= FILTER_CHARS_MAX or _UNSTORABLE.search(text):
        raise ValueError(f"must be 1 to {FILTER_CHARS_MAX} characters")
    return text


def _whole(text: str, least: int, most: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 16 and least <= int(text) <= most):
        raise ValueError(f"must be a whole number from {least} to {most}")
    return int(text)


# `Idempotency-Key`: a caller claims a key for one request; a different request under this key is refused.
#
# The store keeps the first answer, in the transaction of the write.

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


# All error answers of the Admin API: RFC 9457 problem+json, created in one place.

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
