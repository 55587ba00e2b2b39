"""`POST /events`: CloudEvents, one or a list of them. What is wrong with one refuses that one alone."""

from __future__ import annotations

from aiohttp import web

from gateway.admin.api.views import answer
from gateway.admin.http import body
from gateway.admin.http.auth import admit, require_write
from gateway.admin.http.guard import REQUEST_ID
from gateway.admin.http.idempotency import claim_of
from gateway.admin.operations import Asked, Operations
from gateway.admin.ports import AdminPorts
from gateway.admin.resources import RESOURCES
from gateway.admin.resources.events import MANY, ONE, PLAIN, TAKEN, CloudEvent
from gateway.admin.resources.values import TEXT_CHARS_MAX
from gateway.core.accounts.administration import Row
from gateway.core.accounts.roles import CREATE
from gateway.core.billing.events import EVENTS_MAX
from gateway.errors import AdminRefusal, Unprocessable, UnsupportedEncoding, UnsupportedMedia


def mount_events(app: web.Application, ports: AdminPorts, root: str) -> None:
    """Serve what takes events in."""
    resource = RESOURCES["events"]

    async def take(request: web.Request) -> web.Response:
        mine = await admit(ports, request)
        require_write(mine.actor, resource, CREATE)
        sent = await _read(request)
        claim = claim_of(request, mine.actor, {"events": sent})
        asked = Asked(request[REQUEST_ID], claim)
        done = await Operations(mine, resource).take(asked, _sorted(sent), TAKEN)
        headers = {"Idempotent-Replayed": "true"} if done.replayed else None
        return answer(done.status, done.content, headers)

    app.router.add_post(f"{root}/events", take)


async def _read(request: web.Request) -> list[object]:
    """What was sent, as a list."""
    if request.headers.get("Content-Encoding", "identity") != "identity":
        raise UnsupportedEncoding
    media = request.content_type
    if media not in {ONE, MANY, PLAIN, "application/octet-stream"}:  # the last where none is said
        raise UnsupportedMedia(f"Events are sent as {ONE}, {MANY} or {PLAIN}.")
    found = body.parse_any(await request.read())
    if isinstance(found, dict) and media != MANY:
        return [found]
    if not isinstance(found, list) or media == ONE:
        raise AdminRefusal(f"The body must be {'a list of events' if media == MANY else 'an event'}.")
    if len(found) > EVENTS_MAX:
        raise Unprocessable(errors=(("", f"{len(found)} events at once; send at most {EVENTS_MAX}"),))
    return found


def _sorted(sent: list[object]) -> Row:
    """Those that say all an event has to, each with its place; and why the others do not."""
    events: list[tuple[int, Row]] = []
    rejected: list[Row] = []
    for place, one in enumerate(sent):
        if not isinstance(one, dict):
            rejected.append(_refused(place, {}, "", "must be a JSON object"))
            continue
        try:
            events.append((place, body.check(CloudEvent, one)))
        except Unprocessable as error:
            name, reason = error.errors[0]
            rejected.append(_refused(place, one, name, reason))
    return {"events": events, "rejected": rejected}


def _refused(place: int, event: body.Body, name: str, reason: str) -> Row:
    return {
        "index": place, "source": _said(event.get("source")), "id": _said(event.get("id")), "field": name,
        "reason": reason,
    }  # fmt: skip


def _said(name: object) -> str | None:
    """What an event that is refused calls itself, as far as a row can hold it: none has a NUL."""
    if not isinstance(name, str):
        return None
    return name[:TEXT_CHARS_MAX].replace("\x00", "\N{REPLACEMENT CHARACTER}")
