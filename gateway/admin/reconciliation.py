"""`/reconciliation`: the last comparison of counters and ledger, and a new one on demand."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal

from aiohttp import web
from pydantic import Field

from gateway.admin import body
from gateway.admin.auth import identify, require_write
from gateway.admin.fields import Flag, In, Instant, Out
from gateway.admin.guard import DEADLINE, REQUEST_ID
from gateway.admin.ports import AdminPorts
from gateway.admin.reading import read_body
from gateway.core.administration import Actor, Command, Row

RUN_S_MAX = 600.0
NOTHING_YET: Row = {
    "checked": 0, "drift_tokens": 0, "drift_credits": 0, "pending": 0, "items": [],
    "started_at": None, "finished_at": None,
}  # fmt: skip


class ReconciliationRun(In):
    """What a run is to do."""

    repair: Flag = Field(
        default=False, description="Make each drift good by an appended adjust or correction."
    )


class ReconciliationItem(Out):
    """One account that differs."""

    account: str = Field(description="tenant:<id>, credits:<organization id> or spend:<organization id>.")
    kind: Literal["lag", "gap", "excess", "drift"]
    difference: int = Field(
        description="The counters' balance less the ledger's; missing movements of a gap."
    )
    seq: int
    detail: str


class Reconciliation(Out):
    """What comparing found."""

    checked: int = Field(description="Accounts compared.")
    drift_tokens: int = Field(description="Sum of absolute differences.")
    drift_credits: int = Field(description="Sum of absolute differences.")
    pending: int = Field(description="Accounts with movements not stored yet.")
    items: Annotated[list[ReconciliationItem], Field(description="Accounts that differ.")]
    started_at: Instant | None = Field(description="Null before the first run.")
    finished_at: Instant | None


MODELS = ((Reconciliation, "serialization"), (ReconciliationRun, "validation"))


def mount_reconciliation(app: web.Application, ports: AdminPorts, root: str) -> None:
    """Serve the last result, and runs."""

    async def show(request: web.Request) -> web.Response:
        await identify(ports, request)
        return web.json_response(await last(ports) or _json(NOTHING_YET))

    async def run_asked(request: web.Request) -> web.Response:
        actor = await identify(ports, request)
        require_write(actor)
        asked = body.check(ReconciliationRun, await read_body(request))
        return web.json_response(await run(ports, request, actor, repair=bool(asked.get("repair"))))

    app.router.add_get(f"{root}/reconciliation", show)
    app.router.add_post(f"{root}/reconciliation", run_asked)


async def last(ports: AdminPorts) -> Row | None:
    """The last result as JSON; None where nothing was compared yet."""
    found = await ports.reconciler.last()
    return None if found is None else _json(found)


async def run(ports: AdminPorts, request: web.Request, actor: Actor, *, repair: bool) -> Row:
    """Compare everything now, and answer the result as JSON; who asked is in the audit log."""
    require_write(actor)
    request[DEADLINE].reschedule(asyncio.get_running_loop().time() + RUN_S_MAX)
    values = {"repair": repair}
    await ports.store.write(Command("reconciliation", "run", actor, request[REQUEST_ID], dict, None, values))
    return _json(await ports.reconciler.run_now(repair=repair))


def paths(root: str, refusals: dict[str, Any]) -> dict[str, Any]:
    """Describe the routes as OpenAPI does; `refusals` are the responses every route may give."""
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Reconciliation"}}}
    asked = {"application/json": {"schema": {"$ref": "#/components/schemas/ReconciliationRun"}}}
    responses = {"200": {"description": "The result.", "content": content}, **refusals}
    return {
        f"{root}/reconciliation": {
            "get": {
                "operationId": "reconciliation.show",
                "tags": ["reconciliation"],
                "summary": "Read the last result",
                "responses": responses,
            },
            "post": {
                "operationId": "reconciliation.run",
                "tags": ["reconciliation"],
                "summary": "Compare all accounts now; repair drifts only if asked",
                "requestBody": {"required": False, "content": asked},
                "responses": responses,
            },
        }
    }


def _json(row: Row) -> Row:
    return Reconciliation.model_validate(row).model_dump(mode="json")
