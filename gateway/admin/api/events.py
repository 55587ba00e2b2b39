"""`POST /events`: one CloudEvent or a list. An invalid event is refused alone."""

from __future__ import annotations

from base64 import b64decode
from urllib.parse import unquote

from aiohttp import web

from gateway.admin.api.views import answer
from gateway.admin.http import bodies
from gateway.admin.http.bodies import claim_of
from gateway.admin.http.callers import admit
from gateway.admin.http.guard import REQUEST_ID
from gateway.admin.http.requests import (
    require_write,
)
from gateway.admin.operations import Operations, WriteRequest
from gateway.admin.ports import AdminPorts
from gateway.admin.resources.events import ATTRIBUTE, MANY, ONE, PLAIN, TAKEN, CloudEvent
from gateway.admin.resources.registry import RESOURCES
from gateway.admin.resources.values import TEXT_CHARS_MAX
from gateway.core.accounts.administration import (
    CREATE,
    Row,
)
from gateway.core.billing.events import EVENTS_MAX
from gateway.errors import (
    AdminRefusal,
    Unprocessable,
    UnsupportedEncoding,
    UnsupportedMedia,
)


# `POST /events`: one CloudEvent or a list. An invalid event is refused alone.
def mount_events(app: web.Application, ports: AdminPorts, root: str) -> None:
    """Add the route for events to `app`, below the path `root`."""
    resource = RESOURCES["events"]

    async def take(request: web.Request) -> web.Response:
        mine = await admit(ports, request)
        require_write(mine.actor, resource, CREATE)
        sent = await _read(request)
        claim = claim_of(request, mine.actor, {"events": sent})
        asked = WriteRequest(request[REQUEST_ID], claim)
        done = await Operations(mine, resource).take(asked, _sort_events(sent), TAKEN)
        headers = {"Idempotent-Replayed": "true"} if done.replayed else None
        return answer(done.status, done.content, headers)

    app.router.add_post(f"{root}/events", take)


async def _read(request: web.Request) -> list[object]:
    """Return the events in a request, in any of the forms of CloudEvents over HTTP."""
    if request.headers.get("Content-Encoding", "identity") != "identity":
        raise UnsupportedEncoding
    media = request.content_type
    if media not in {ONE, MANY, PLAIN, "application/octet-stream"}:  # the last where none is said
        raise UnsupportedMedia(f"Events are sent as {ONE}, {MANY} or {PLAIN}.")
    document = bodies.parse_any_body(await request.read())
    if f"{ATTRIBUTE}specversion" in request.headers and media not in {ONE, MANY}:
        return [_binary(request, document)]
    if isinstance(document, dict) and media != MANY:
        return [document]
    if not isinstance(document, list) or media == ONE:
        raise AdminRefusal(f"The body must be {'a list of events' if media == MANY else 'an event'}.")
    if len(document) > EVENTS_MAX:
        raise Unprocessable(errors=(("", f"{len(document)} events at once; send at most {EVENTS_MAX}"),))
    return document


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


def _decode_data(event: bodies.Body) -> bodies.Body:
    """Return an event with `data_base64` replaced by the JSON that it encodes, as `data`."""
    if "data_base64" not in event or "data" in event:
        return event
    try:
        data = bodies.parse_any_body(b64decode(str(event["data_base64"]), validate=True))
    except (AdminRefusal, ValueError) as error:
        raise Unprocessable(errors=(("data_base64", "must be one clear JSON document in base64"),)) from error
    return {**{name: value for name, value in event.items() if name != "data_base64"}, "data": data}


def _sort_events(sent: list[object]) -> Row:
    """Return the valid events with their positions, and the positions and reasons of the rejected ones."""
    events: list[tuple[int, Row]] = []
    rejected: list[Row] = []
    for place, item in enumerate(sent):
        if not isinstance(item, dict):
            rejected.append(_refused_event(place, {}, "", "must be a JSON object"))
            continue
        try:
            events.append((place, bodies.check_body(CloudEvent, _decode_data(item))))
        except Unprocessable as error:
            name, reason = error.errors[0]
            rejected.append(_refused_event(place, item, name, reason))
    return {"events": events, "rejected": rejected}


def _refused_event(place: int, event: bodies.Body, name: str, reason: str) -> Row:
    return {
        "index": place, "source": _shorten_name(event.get("source")), "id": _shorten_name(event.get("id")), "field": name,
        "reason": reason,
    }  # fmt: skip


def _shorten_name(name: object) -> str | None:
    """Return a refused event's source or id for a row: cut, and without NUL; None if it is no string."""
    if not isinstance(name, str):
        return None
    return name[:TEXT_CHARS_MAX].replace("\x00", "\N{REPLACEMENT CHARACTER}")
