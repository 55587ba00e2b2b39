"""`/configuration`: export it, plan the changes by files, and apply them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache
from typing import Any, TypeVar

from aiohttp import web

from gateway.admin.api.uploads import STAFF, UploadLimits, UploadSlots, read_within
from gateway.admin.api.views import answer
from gateway.admin.configuration.applying import ApplyRequest, Configurator
from gateway.admin.configuration.planning import export
from gateway.admin.configuration.words import schema
from gateway.admin.http import bodies
from gateway.admin.http.bodies import claim_of
from gateway.admin.http.callers import admit
from gateway.admin.http.guard import DEADLINE, REQUEST_ID, in_thread
from gateway.admin.http.requests import (
    require_read,
    require_write,
)
from gateway.admin.ports import AdminPorts
from gateway.admin.resources.configuration import SCHEMA, ConfigurationApply
from gateway.admin.resources.reports import REPORTS
from gateway.core.accounts.administration import (
    REQUEST_S_MAX,
    Actor,
    Claim,
)

# Seconds between checks whether the client is still connected.
LOOK_S = 0.25
T = TypeVar("T")
CONFIGURATION_BYTES_MAX = STAFF.bytes_max
CONFIGURATION_REPORT = REPORTS["configuration"]


def _now() -> datetime:
    return datetime.now(UTC)


def mount_configuration(app: web.Application, ports: AdminPorts, root: str) -> None:
    """Add export, plan and apply of configuration, and its schema, to the routes of `app`, below `root`."""
    turns = UploadSlots()

    async def show(request: web.Request) -> web.Response:
        mine = await admit(ports, request)
        require_read(mine.actor, CONFIGURATION_REPORT)
        async with turns.acquire(mine.actor) as share, turns.working(mine.actor):
            _take_time(request, share)
            return await until_client_leaves(request, _show_plan(mine))

    async def apply(request: web.Request) -> web.Response:
        mine = await admit(ports, request)
        assert CONFIGURATION_REPORT.run is not None
        require_write(mine.actor, CONFIGURATION_REPORT, CONFIGURATION_REPORT.run.name)
        async with turns.acquire(mine.actor) as share:
            raw = await read_within(request, share)  # in the time that any body has
            async with turns.working(mine.actor):
                _take_time(request, share)
                wish, claim = await in_thread(_wish, request, mine.actor, raw, share)
                del raw
                doing = _apply_and_answer(
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
    """Return the request to plan or apply that a body contains; an apply has an idempotency claim."""
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


async def _apply_and_answer(configurator: Configurator, wish: ApplyRequest) -> web.Response:
    done = await configurator.do(wish)
    headers = {"Idempotent-Replayed": "true"} if done.replayed else None
    return await in_thread(answer, done.status, done.content, headers)


async def _show_plan(mine: AdminPorts) -> web.Response:
    return await in_thread(answer, 200, await export(mine))


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
