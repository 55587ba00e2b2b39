"""The routes of every resource: authentication, request body, and the operation's answer as JSON."""

from __future__ import annotations

import asyncio
import json
import time
from base64 import b64decode
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import cache
from typing import Any, TypeVar
from urllib.parse import unquote
from uuid import UUID

from aiohttp import web
from multidict import MultiMapping

from gateway.admin.configuration.applying import ApplyRequest, Configurator
from gateway.admin.configuration.objects import OBJECTS_MAX
from gateway.admin.configuration.planning import export
from gateway.admin.configuration.words import schema
from gateway.admin.explanation import explain, find_call
from gateway.admin.http import bodies
from gateway.admin.http.bodies import VALUES_MAX, Body, checked, claim_of, read_body
from gateway.admin.http.callers import admit
from gateway.admin.http.guard import DEADLINE, REQUEST_ID, in_thread
from gateway.admin.http.requests import (
    fingerprint,
    number_or_text,
    read_numbers,
    read_once,
    read_query,
    require_read,
    require_write,
    with_plus,
)
from gateway.admin.http.server import ConcurrencyLimits, WorkSlots
from gateway.admin.operations import Operations, WriteRequest, WriteResult, finish
from gateway.admin.ports import AdminPorts
from gateway.admin.resources.catalogue import QUOTE, Quote, QuoteQuery
from gateway.admin.resources.events import ATTRIBUTE, MANY, ONE, PLAIN, TAKEN, CloudEvent
from gateway.admin.resources.integrity import (
    DEAD_LETTERS,
    DECIDED_USUALLY,
    SCHEMA,
    ConfigurationApply,
    LettersDecide,
)
from gateway.admin.resources.quota import EXPLANATION
from gateway.admin.resources.registry import RESOURCES
from gateway.admin.resources.reports import REPORTS, ReconciliationRun
from gateway.admin.resources.resource import Action, Resource, SubResource
from gateway.admin.resources.values import TEXT_CHARS_MAX
from gateway.calls.rating import cost_of
from gateway.core.accounts.administration import (
    CREATE,
    DELETE,
    LETTERS_S_MAX,
    READONLY,
    REQUEST_S_MAX,
    Actor,
    Claim,
    Command,
    Query,
    Replay,
    Row,
)
from gateway.core.accounts.refusals import busiest
from gateway.core.billing.events import EVENTS_MAX
from gateway.core.billing.hours import decimal_of
from gateway.core.billing.price_book import (
    BASE_CURRENCY,
    KINDS,
    UNITS,
    PriceFound,
    at_moment,
    lines,
    money,
    unpriced,
)
from gateway.core.billing.vector import IMAGES
from gateway.core.integrity.reconciliation import RUN_S_MAX as COMPARISON_S_MAX
from gateway.core.model import INTEGER_MAX
from gateway.core.times import floor_ms
from gateway.errors import (
    AdminRefusal,
    Conflict,
    NotFound,
    Unprocessable,
    UnsupportedEncoding,
    UnsupportedMedia,
)


def answer(status: int, content: object, headers: Mapping[str, str] | None = None) -> web.Response:
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    return web.Response(
        status=status, body=text.encode(), content_type="application/json", charset="utf-8", headers=headers
    )


class ResourceHandlers:
    def __init__(self, ports: AdminPorts, resource: Resource) -> None:
        self._ports = ports
        self._resource = resource

    async def list(self, request: web.Request) -> web.Response:
        """`GET /<resource>`: one page of the rows."""
        operations = await self._reading(request)
        resource = self._resource
        query = read_query(resource.name, resource.filters, request.query, tagged=resource.tagged)
        rows, cursor = await operations.list(query)
        return answer(200, {"items": rows, "next_cursor": cursor})

    async def show(self, request: web.Request) -> web.Response:
        """`GET /<resource>/{id}`: one row."""
        operations = await self._reading(request)
        name = request.match_info["id"]
        if "id" in self._resource.filters and not name.isdigit():  # named by callers or upstreams
            rows, _ = await operations.list(Query({"id": name}, None, None, None, 1))
            if not rows:
                raise NotFound
            return answer(200, rows[0])
        return answer(200, await operations.show(row_id(request)))

    async def part(self, request: web.Request, part: SubResource) -> web.Response:
        """`GET /<resource>/{id}/<part>`: one page of a row's parts."""
        operations = await self._reading(request)
        owner = row_id(request)
        name = f"{self._resource.name}/{owner}/{part.name}"
        query = read_query(name, {}, request.query)
        mark = fingerprint(name, query.filters, descending=query.descending)
        rows, cursor = await operations.part(part, owner, query, mark)
        return answer(200, {"items": rows, "next_cursor": cursor})

    async def create(self, request: web.Request) -> web.Response:
        """`POST /<resource>`; a secret made here is in this answer only."""
        return await self._write(request, CREATE, lambda on, asked, sent: on.create(asked, sent))

    async def change(self, request: web.Request) -> web.Response:
        verb = self._resource.patch_verb
        return await self._write(
            request, verb, lambda on, asked, sent: on.change(asked, row_id(request), sent)
        )

    async def delete(self, request: web.Request) -> web.Response:
        return await self._write(request, DELETE, lambda on, asked, _: on.delete(asked, row_id(request)))

    async def act(self, request: web.Request, action: Action) -> web.Response:
        """`POST /<resource>/{id}/<action>`: run an action on a row."""
        return await self._write(
            request, action.name, lambda on, asked, sent: on.act(action, asked, row_id(request), sent)
        )

    async def write_part(self, request: web.Request, part: SubResource, action: Action) -> web.Response:
        """Set or delete one part of a row: `PUT` or `DELETE /<resource>/{id}/<part>/{name}`."""
        # As it was sent: what aiohttp gives has some characters encoded, and others not.
        # Bytes that are no UTF-8 stay unprintable, so that the field is refused.
        named = unquote(request.rel_url.raw_path.rpartition("/")[2], errors="surrogateescape")
        return await self._write(
            request,
            action.name,
            lambda on, asked, sent: on.write_part(
                part, action, asked, row_id(request), named=named, sent=sent
            ),
        )

    async def _reading(self, request: web.Request) -> Operations:
        ports = await admit(self._ports, request)
        require_read(ports.actor, self._resource)
        return Operations(ports, self._resource)

    async def _write(
        self,
        request: web.Request,
        verb: str,
        write: Callable[[Operations, WriteRequest, Body], Awaitable[WriteResult]],
    ) -> web.Response:
        ports = await admit(self._ports, request)
        # Missing rights are refused before the body is checked.
        require_write(ports.actor, self._resource, verb)
        sent: Body = {}
        if request.method != "DELETE":
            sent = await read_body(request, needed=request.method == "PATCH")
        claim = claim_of(request, ports.actor, sent) if request.method == "POST" else None
        done = await write(Operations(ports, self._resource), WriteRequest(request[REQUEST_ID], claim), sent)
        if done.status == 204:
            return web.Response(status=204)
        headers = {"Idempotent-Replayed": "true"} if done.replayed else {}
        if done.made:
            headers["Location"] = f"/admin/v1/{self._resource.name}/{done.content['id']}"
        return answer(done.status, done.content, headers)


def row_id(request: web.Request) -> int:
    """Return the id in the path; raise `NotFound` for a text that is no id."""
    text = request.match_info["id"]
    if text.isascii() and text.isdigit() and len(text) <= 16 and 0 < int(text) <= INTEGER_MAX:
        return int(text)
    raise NotFound


# `/letters`: the numbers of undecided dead letters and accounts, and one decision for many of them.
#
# Each row is decided as by its own action: in its own transaction, with its own entry in the audit log. So
# one refused row does not stop the others. A repeated or interrupted request decides nothing twice.

REPORT = REPORTS["letters"]
DECIDE = "decide"
COUNTED_MAX, COUNT_MS = 100_000, 2_000


@dataclass(frozen=True, slots=True)
class _BulkAction:
    resource: str
    action: str
    still_open: str


_DECIDED = {
    DEAD_LETTERS: _BulkAction("dead-letters", "redrive", "resolved"),
    "quarantine": _BulkAction("quarantine", "release", "released"),
}


def mount_letters(app: web.Application, ports: AdminPorts, root: str) -> None:

    async def show(request: web.Request) -> web.Response:
        mine = await admit(ports, request)
        require_read(mine.actor, REPORT)
        counts = {what: await _count(mine, many) for what, many in _DECIDED.items()}
        return answer(200, REPORT.render(counts))

    async def decide(request: web.Request) -> web.Response:
        mine = await admit(ports, request)
        require_write(mine.actor, REPORT, DECIDE)
        sent = await read_body(request)
        claim = claim_of(request, mine.actor, sent)
        values = await checked(mine.store, LettersDecide, sent, claim)
        loop = asyncio.get_running_loop()
        request[DEADLINE].reschedule(loop.time() + LETTERS_S_MAX + REQUEST_S_MAX)
        if claim is not None:
            claim = replace(claim, running_s_max=LETTERS_S_MAX + 2 * REQUEST_S_MAX)
        found, replayed = await _decided(mine, request[REQUEST_ID], claim, values)
        return answer(200, found, {"Idempotent-Replayed": "true"} if replayed else None)

    app.router.add_get(f"{root}/letters", show)
    app.router.add_post(f"{root}/letters", decide)


async def _count(ports: AdminPorts, many: _BulkAction) -> int | None:
    query = Query({many.still_open: False}, None, None, None, 1)
    operations = Operations(ports, RESOURCES[many.resource])
    found = await operations.count(query, COUNTED_MAX, COUNT_MS)
    return None if found is None else min(found, COUNTED_MAX)


async def _decided(ports: AdminPorts, request_id: str, claim: Claim | None, values: Row) -> tuple[Row, bool]:
    """Store dead letters or release accounts, as `values` say; return the result, and whether it is old.

    An old result is that of an earlier request with the same idempotency key.
    """
    first = await ports.store.write(
        Command("letters", DECIDE, ports.actor, request_id, dict, None, values, claim)
    )
    if isinstance(first, Replay) and first.status is not None:
        return first.body, True
    assert REPORT.ran is not None
    found = REPORT.ran.model_validate(await _each(ports, request_id, values)).model_dump(mode="json")
    if claim is not None:
        await finish(ports, claim, 200, found, request_id)
    return found, False


async def _each(ports: AdminPorts, request_id: str, values: Row) -> Row:
    """Store dead letters or release accounts one by one, by id, until the limit or the time is reached."""
    many = _DECIDED[str(values["what"])]
    operations = Operations(ports, RESOURCES[many.resource])
    [action] = [one for one in operations.resource.actions if one.name == many.action]
    body = {name: values[name] for name in ("reason", "accept") if values.get(name) is not None}
    names = operations.resource.filters.keys() - {many.still_open}
    filters = {name: values[name] for name in names if values.get(name) is not None}
    after, limit = int(str(values.get("after_id") or 0)), int(str(values.get("limit") or DECIDED_USUALLY))
    query = Query({**filters, many.still_open: False}, None, None, (after,), limit)
    rows, _ = await operations.list(query)
    until = asyncio.get_running_loop().time() + LETTERS_S_MAX
    done: list[int] = []
    refused: list[Row] = []
    for row in rows:
        if asyncio.get_running_loop().time() > until:
            break
        after = int(str(row["id"]))
        try:
            await operations.act(action, WriteRequest(request_id), after, body)
            done.append(after)
        except (Conflict, Unprocessable, NotFound) as refusal:
            refused.append({"id": after, "why": refusal.message})
    ended = len(done) + len(refused) == len(rows) < limit
    return {"done": done, "refused": refused, "next_after_id": None if ended else after}


# `POST /events`: one CloudEvent or a list. An invalid event is refused alone.
def mount_events(app: web.Application, ports: AdminPorts, root: str) -> None:
    resource = RESOURCES["events"]

    async def take(request: web.Request) -> web.Response:
        mine = await admit(ports, request)
        require_write(mine.actor, resource, CREATE)
        sent = await _read(request)
        claim = claim_of(request, mine.actor, {"events": sent})
        asked = WriteRequest(request[REQUEST_ID], claim)
        done = await Operations(mine, resource).take(asked, _sorted(sent), TAKEN)
        headers = {"Idempotent-Replayed": "true"} if done.replayed else None
        return answer(done.status, done.content, headers)

    app.router.add_post(f"{root}/events", take)


async def _read(request: web.Request) -> list[object]:
    if request.headers.get("Content-Encoding", "identity") != "identity":
        raise UnsupportedEncoding
    media = request.content_type
    if media not in {ONE, MANY, PLAIN, "application/octet-stream"}:  # the last where none is said
        raise UnsupportedMedia(f"Events are sent as {ONE}, {MANY} or {PLAIN}.")
    found = bodies.parse_any_body(await request.read())
    if f"{ATTRIBUTE}specversion" in request.headers and media not in {ONE, MANY}:
        return [_binary(request, found)]
    if isinstance(found, dict) and media != MANY:
        return [found]
    if not isinstance(found, list) or media == ONE:
        raise AdminRefusal(f"The body must be {'a list of events' if media == MANY else 'an event'}.")
    if len(found) > EVENTS_MAX:
        raise Unprocessable(errors=(("", f"{len(found)} events at once; send at most {EVENTS_MAX}"),))
    return found


def _binary(request: web.Request, data: object) -> dict[str, object]:
    """Return an event sent in binary mode: percent-encoded header fields are attributes, the body is data."""
    attributes = {}
    for name, value in request.headers.items():
        if name.lower().startswith(ATTRIBUTE):
            try:
                attributes[name.lower().removeprefix(ATTRIBUTE)] = unquote(value, errors="strict")
            except UnicodeDecodeError as error:
                raise Unprocessable(errors=((name.lower(), "must be UTF-8, percent-encoded"),)) from error
    return {**attributes, "datacontenttype": PLAIN, "data": data}


def _with_data(event: bodies.Body) -> bodies.Body:
    """Return an event with `data_base64` replaced by the JSON that it encodes, as `data`."""
    if "data_base64" not in event or "data" in event:
        return event
    try:
        data = bodies.parse_any_body(b64decode(str(event["data_base64"]), validate=True))
    except (AdminRefusal, ValueError) as error:
        raise Unprocessable(errors=(("data_base64", "must be one clear JSON document in base64"),)) from error
    return {**{name: value for name, value in event.items() if name != "data_base64"}, "data": data}


def _sorted(sent: list[object]) -> Row:
    """Return the valid events with their positions, and the positions and reasons of the rejected ones."""
    events: list[tuple[int, Row]] = []
    rejected: list[Row] = []
    for place, one in enumerate(sent):
        if not isinstance(one, dict):
            rejected.append(_refused(place, {}, "", "must be a JSON object"))
            continue
        try:
            events.append((place, bodies.check_body(CloudEvent, _with_data(one))))
        except Unprocessable as error:
            name, reason = error.errors[0]
            rejected.append(_refused(place, one, name, reason))
    return {"events": events, "rejected": rejected}


def _refused(place: int, event: bodies.Body, name: str, reason: str) -> Row:
    return {
        "index": place, "source": _said(event.get("source")), "id": _said(event.get("id")), "field": name,
        "reason": reason,
    }  # fmt: skip


def _said(name: object) -> str | None:
    """Return a refused event's source or id for a row: cut, and without NUL; None if it is no string."""
    if not isinstance(name, str):
        return None
    return name[:TEXT_CHARS_MAX].replace("\x00", "\N{REPLACEMENT CHARACTER}")


# The limits of configuration uploads: each organization, and staff, have slots of their own.
#
# Uploads of one organization never use the slots of others or of staff. Work is cancelled when its client
# disconnects.

T = TypeVar("T")

# Seconds between checks whether the client is still connected.
LOOK_S = 0.25


@dataclass(frozen=True, slots=True)
class UploadLimits:
    """Limits of configuration uploads: concurrent ones, bytes, JSON values, objects, and seconds of work."""

    at_once_max: int
    bytes_max: int
    values_max: int
    work_s_max: float
    objects_max: int


STAFF = UploadLimits(2, 16 * 1024 * 1024, 12 * VALUES_MAX, 300.0, OBJECTS_MAX)
# Shorter than the time staff wait for a lock on the same organization.
ORGANIZATION = UploadLimits(1, 4 * 1024 * 1024, 3 * VALUES_MAX, 45.0, 5_000)
# For callers who may only plan.
READER = replace(ORGANIZATION, objects_max=1_000)
# Maxima of all organizations together: uploads being processed, each with a database connection, and all
# uploads, including those still being received.
ORGANIZATIONS_AT_ONCE_MAX = 2
ORGANIZATIONS_THERE_MAX = 16


def share_of(actor: Actor) -> UploadLimits:
    if actor.organization_id is None:
        return STAFF
    return READER if actor.role == READONLY else ORGANIZATION


class UploadSlots:
    """The slots for uploads of configurations, by organization."""

    def __init__(self) -> None:
        self._there = WorkSlots(
            ConcurrencyLimits(STAFF.at_once_max, ORGANIZATION.at_once_max, ORGANIZATIONS_THERE_MAX)
        )
        self._working = WorkSlots(
            ConcurrencyLimits(STAFF.at_once_max, ORGANIZATION.at_once_max, ORGANIZATIONS_AT_ONCE_MAX)
        )

    @asynccontextmanager
    async def taken(self, actor: Actor) -> AsyncIterator[UploadLimits]:
        """Acquire an upload slot for the context and yield its limits; raise `Overloaded` if none is free."""
        async with self._there.of(actor.organization_id):
            yield share_of(actor)

    def working(self, actor: Actor) -> AbstractAsyncContextManager[None]:
        """Acquire a slot for processing; raise `Overloaded` if other organizations use all of them."""
        return self._working.of(actor.organization_id)


async def read_within(request: web.Request, share: UploadLimits) -> bytes:
    """Return the raw body, which may be as large as the caller's upload limits allow."""
    if request.headers.get("Content-Encoding", "identity") != "identity":
        raise UnsupportedEncoding
    if (request.content_length or 0) > share.bytes_max:
        raise web.HTTPRequestEntityTooLarge(share.bytes_max, request.content_length or 0)
    read = bytearray()
    async for piece in request.content.iter_any():
        read += piece
        if len(read) > share.bytes_max:
            raise web.HTTPRequestEntityTooLarge(share.bytes_max, len(read))
    return bytes(read)


async def until_client_leaves(request: web.Request, work: Coroutine[Any, Any, T]) -> T:
    """Return the result of `work`, which changes nothing; cancel it once the client is gone."""
    doing = asyncio.ensure_future(work)
    try:
        while not doing.done():
            await asyncio.wait({doing}, timeout=LOOK_S)
            if request.transport is None or request.transport.is_closing():
                break
    finally:
        if not doing.done():
            doing.cancel()
            await asyncio.wait({doing})
    if doing.cancelled():
        raise ConnectionResetError
    return doing.result()


# `/configuration`: export it, plan the changes by files, and apply them.

CONFIGURATION_BYTES_MAX = STAFF.bytes_max
CONFIGURATION_REPORT = REPORTS["configuration"]


def _now() -> datetime:
    return datetime.now(UTC)


def mount_configuration(app: web.Application, ports: AdminPorts, root: str) -> None:
    turns = UploadSlots()

    async def show(request: web.Request) -> web.Response:
        mine = await admit(ports, request)
        require_read(mine.actor, CONFIGURATION_REPORT)
        async with turns.taken(mine.actor) as share, turns.working(mine.actor):
            _take_time(request, share)
            return await until_client_leaves(request, _shown(mine))

    async def apply(request: web.Request) -> web.Response:
        mine = await admit(ports, request)
        assert CONFIGURATION_REPORT.run is not None
        require_write(mine.actor, CONFIGURATION_REPORT, CONFIGURATION_REPORT.run.name)
        async with turns.taken(mine.actor) as share:
            raw = await read_within(request, share)  # in the time that any body has
            async with turns.working(mine.actor):
                _take_time(request, share)
                wish, claim = await in_thread(_wish, request, mine.actor, raw, share)
                del raw
                doing = _answered(
                    Configurator(mine, request[REQUEST_ID], _now, claim, objects_max=share.objects_max), wish
                )
                # A plan changes nothing, so it may be cancelled. A running apply is never cancelled.
                return await (until_client_leaves(request, doing) if wish.digest is None else doing)

    async def schema_of(_: web.Request) -> web.Response:  # anybody may ask: it shows no data
        return web.Response(body=_schema(), content_type="application/schema+json", charset="utf-8")

    app.router.add_get(f"{root}/configuration", show)
    app.router.add_post(f"{root}/configuration", apply)
    app.router.add_get(f"{root}/configuration{SCHEMA}", schema_of)


@cache
def _schema() -> bytes:
    return json.dumps(schema(), ensure_ascii=False, separators=(",", ":")).encode()


def _take_time(request: web.Request, share: UploadLimits) -> None:
    request[DEADLINE].reschedule(asyncio.get_running_loop().time() + share.work_s_max)


def _wish(
    request: web.Request, actor: Actor, raw: bytes, share: UploadLimits
) -> tuple[ApplyRequest, Claim | None]:
    sent = bodies.parse_body(raw, share.values_max)
    objects = sent.get("objects")
    # Objects are checked one by one later, and not copied here.
    checked = bodies.check_body(
        ConfigurationApply, {**sent, "objects": {}} if isinstance(objects, dict) else sent
    )
    wish = ApplyRequest(**{**checked, "objects": objects})  # type: ignore[arg-type]  # as it is checked
    claim = claim_of(request, actor, sent)
    if wish.digest is None:  # a plan changes nothing
        return wish, None
    return wish, claim and replace(claim, running_s_max=share.work_s_max + REQUEST_S_MAX)


async def _answered(configurator: Configurator, wish: ApplyRequest) -> web.Response:
    done = await configurator.do(wish)
    headers = {"Idempotent-Replayed": "true"} if done.replayed else None
    return await in_thread(answer, done.status, done.content, headers)


async def _shown(mine: AdminPorts) -> web.Response:
    return await in_thread(answer, 200, await export(mine))


# `/programs`: the running gateway workers and keepers.

PROGRAMS_REPORT = REPORTS["programs"]


def mount_programs(app: web.Application, ports: AdminPorts, root: str) -> None:
    async def show(request: web.Request) -> web.Response:
        mine = await admit(ports, request)
        require_read(mine.actor, PROGRAMS_REPORT)
        return web.json_response(await running_programs(mine))

    app.router.add_get(f"{root}/programs", show)


async def running_programs(ports: AdminPorts) -> Row:
    """Return the programs report as JSON; raise `CountersUnavailable` if the counters cannot be read."""
    return PROGRAMS_REPORT.render(await ports.programs())


# `/activity`: the tenants that are busy now, and the reasons of their refused calls, over all gateways.

ACTIVITY_REPORT = REPORTS["activity"]


def mount_activity(app: web.Application, ports: AdminPorts, root: str) -> None:
    async def show(request: web.Request) -> web.Response:
        mine = await admit(ports, request)
        require_read(mine.actor, ACTIVITY_REPORT)
        asked = read_numbers(ACTIVITY_REPORT.numbers, request.query)
        counts, covered_s = await ports.activity.read(asked["window"])
        waiting_s = None
        if mine.actor.organization_id is None:
            _, oldest_ms = await ports.counters.depth()
            waiting_s = round(max(0.0, time.time() - oldest_ms / 1000), 3) if oldest_ms else None
        else:
            own = await mine.figures.names("tenants", {tenant_id for (tenant_id, _), _ in counts})
            counts = [each for each in counts if each[0][0] in own]
        everybody, tenants = busiest(counts, asked["limit"])
        names = await mine.figures.names("tenants", [busy.tenant_id for busy in tenants])
        items = [{**asdict(busy), "tenant": names.get(busy.tenant_id)} for busy in tenants]
        facts = {**asdict(everybody), "window_s": round(covered_s, 3), "waiting_s": waiting_s, "items": items}
        return web.json_response(ACTIVITY_REPORT.render(facts))

    app.router.add_get(f"{root}/activity", show)


# `/prices/quote`: the cost of a call at a time, line by line, by the price in force then.

# Groups of counts with free names, and the form of these names.
_NAMED = {"tools": "NAME", "images": "SIZE/QUALITY"}
PRICES = RESOURCES["prices"]


def mount_quotes(app: web.Application, ports: AdminPorts, root: str) -> None:
    """Serve quotes of prices. Mount them before the resources, whose paths would match, too."""

    async def quote(request: web.Request) -> web.Response:
        mine = await admit(ports, request)
        require_read(mine.actor, PRICES)
        asked = bodies.check_body(QuoteQuery, _read_quote(request.query))
        at = asked.get("at")
        at = at if isinstance(at, datetime) else datetime.now(UTC)
        currency = str(asked.get("currency", BASE_CURRENCY))
        model, provider = str(asked["model"]), str(asked.get("provider") or "")
        found = await mine.store.price_of(model, currency, at, provider)
        if found is None:
            why = f"There is no price in {currency} of the model {model!r} at that time"
            other = currency != BASE_CURRENCY and await mine.store.price_of(
                model, BASE_CURRENCY, at, provider
            )
            more = f", and no exchange rate from {BASE_CURRENCY} to {currency}" if other else ""
            raise NotFound(f"{why}{more}. The list of prices has those that there are.")
        return web.json_response(_quoted(asked, found, floor_ms(at)))

    app.router.add_get(f"{root}/prices/{QUOTE.name}", quote)


def _read_quote(sent: MultiMapping[str]) -> bodies.Body:
    asked: dict[str, Any] = {}
    for name, text in read_once(sent).items():
        # As tools.NAME, or as OpenAPI's deepObject has it: tools[NAME].
        group, mark, one = name.partition("[" if name.endswith("]") else ".")
        if group in _NAMED and mark:
            one, there = one.removesuffix("]"), asked.setdefault(group, {})
            if one in there:
                raise Unprocessable(
                    "Some query parameters are wrong.", ((name, f"{group}.{one} is said twice"),)
                )
            there[one] = number_or_text(text)
        elif group in _NAMED:
            wrong = ((group, f"must name one: {group}.{_NAMED[group]}"),)
            raise Unprocessable("Some query parameters are wrong.", wrong)
        elif name == "at":
            asked[name] = with_plus(text)
        else:
            asked[name] = number_or_text(text) if name in KINDS or name in UNITS else text
    return asked


def _quoted(asked: Mapping[str, Any], found: PriceFound, at_ms: int) -> Row:
    tier, vector, rate = asked.get("service_tier") or "", found.price.vector, found.rate
    if vector.hours is not None:
        vector = at_moment(vector, at_ms)
    counts = tuple([asked.get(kind, 0) for kind in KINDS])
    tools = dict(asked.get("tools", {}))
    tools |= {IMAGES + name: count for name, count in asked.get("images", {}).items()}
    tools |= {name: asked[name] for name in UNITS if asked.get(name)}
    return Quote.model_validate(
        {
            **found.row,
            "price_id": vector.price_id,
            "currency": vector.currency,
            "base": None if rate is None else rate.base,
            "exchange_rate": None if rate is None else rate.rate,
            "cost": money(cost_of(vector, counts, tools, tier)),
            "lines": [line._asdict() for line in lines(vector, counts, tools, tier)],
            "unpriced": unpriced(vector, tools, counts, tier),
            "hour_factor": None if vector.hours is None else decimal_of(vector.hours.factor),
        }
    ).model_dump(mode="json")


# `/calls/{id}/explanation`, by a request id or the id of a row: the steps of a call.
CALLS = RESOURCES["calls"]


def mount_explanations(app: web.Application, ports: AdminPorts, root: str) -> None:

    async def show(request: web.Request) -> web.Response:
        mine = await admit(ports, request)
        require_read(mine.actor, CALLS)
        bodies.check_body(EXPLANATION.asked, dict(read_once(request.query)))
        steps = await explain(mine, await _called(mine, request))
        told = EXPLANATION.out.model_validate({"steps": [asdict(step) for step in steps]})
        return answer(200, told.model_dump(mode="json"))

    app.router.add_get(f"{root}/calls/{{id}}/{EXPLANATION.name}", show)


async def _called(ports: AdminPorts, request: web.Request) -> Row:
    """Return the call whose request id or row id is in the path."""
    name = request.match_info["id"]
    if name.isdigit():
        return await Operations(ports, CALLS).show(row_id(request))
    try:
        return await find_call(ports, str(UUID(name)))
    except ValueError:
        raise NotFound from None


# `/reconciliation`: the last comparison of counters and ledger, and a new one on demand.

RECONCILIATION_REPORT = REPORTS["reconciliation"]
RECONCILIATION_RUN = "run"
NOTHING_YET: Row = {
    "checked": 0, "drift_tokens": 0, "drift_credits": 0, "pending": 0, "items": [],
    "started_at": None, "finished_at": None,
}  # fmt: skip


def mount_reconciliation(app: web.Application, ports: AdminPorts, root: str) -> None:

    async def show(request: web.Request) -> web.Response:
        mine = await admit(ports, request)
        require_read(mine.actor, RECONCILIATION_REPORT)
        return web.json_response(await last_reconciliation(mine) or RECONCILIATION_REPORT.render(NOTHING_YET))

    async def start_run(request: web.Request) -> web.Response:
        mine = await admit(ports, request)
        require_write(mine.actor, RECONCILIATION_REPORT, RECONCILIATION_RUN)
        sent = await read_body(request)
        claim = claim_of(request, mine.actor, sent)
        asked = await checked(mine.store, ReconciliationRun, sent, claim)
        repair, whole = bool(asked.get("repair")), bool(asked.get("whole"))
        found, replayed = await run_reconciliation(mine, request, claim, repair=repair, whole=whole)
        return web.json_response(found, headers={"Idempotent-Replayed": "true"} if replayed else None)

    app.router.add_get(f"{root}/reconciliation", show)
    app.router.add_post(f"{root}/reconciliation", start_run)


async def last_reconciliation(ports: AdminPorts) -> Row | None:
    """Return the last reconciliation's result as JSON; None if there is none."""
    found = await ports.reconciler.last()
    return None if found is None else RECONCILIATION_REPORT.render(found)


async def run_reconciliation(
    ports: AdminPorts, request: web.Request, claim: Claim | None, *, repair: bool, whole: bool = False
) -> tuple[Row, bool]:
    """Compare all accounts now and return the result. Raise `Overloaded` while another run is active.

    The second value is true if the result is the stored answer of an earlier request with the same
    idempotency key. The request is in the audit log.
    """
    async with ports.reconciler.alone():
        return await _run(ports, request, claim, repair=repair, whole=whole)


async def _run(
    ports: AdminPorts, request: web.Request, claim: Claim | None, *, repair: bool, whole: bool
) -> tuple[Row, bool]:
    request[DEADLINE].reschedule(asyncio.get_running_loop().time() + COMPARISON_S_MAX)
    values = {"repair": repair, "whole": whole}
    if claim is not None:
        claim = replace(claim, running_s_max=COMPARISON_S_MAX + REQUEST_S_MAX)
    asked = Command(
        "reconciliation", RECONCILIATION_RUN, ports.actor, request[REQUEST_ID], dict, None, values, claim
    )
    first = await ports.store.write(asked)
    # If the first run was interrupted, no result is stored; this run stores one.
    if isinstance(first, Replay) and first.status is not None:
        return first.body, True
    found = RECONCILIATION_REPORT.render(
        await ports.reconciler.run_now(repair=repair, whole=whole, within_s=COMPARISON_S_MAX)
    )
    if claim is not None:
        await ports.store.finish(claim, found, 200)
    return found, False
