"""`/reconciliation`: the last comparison of counters and ledger, and a new one on demand."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Annotated, Any, Literal

from aiohttp import web
from pydantic import Field

from gateway.admin.auth import identify, require_write
from gateway.admin.guard import DEADLINE, REQUEST_ID
from gateway.admin.idempotency import KEY_PARAMETER, checked, claim_of
from gateway.admin.ports import AdminPorts
from gateway.admin.reading import read_body
from gateway.admin.resources.values import Flag, In, Instant, Out
from gateway.core.accounts.administration import REQUEST_S_MAX, Actor, Claim, Command, Replay, Row

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
        sent = await read_body(request)
        claim = claim_of(request, actor, sent)
        repair = bool((await checked(ports.store, ReconciliationRun, sent, claim)).get("repair"))
        found, replayed = await _run_once(ports, request, actor, claim, repair=repair)
        return web.json_response(found, headers={"Idempotent-Replayed": "true"} if replayed else None)

    app.router.add_get(f"{root}/reconciliation", show)
    app.router.add_post(f"{root}/reconciliation", run_asked)


async def last(ports: AdminPorts) -> Row | None:
    """The last result as JSON; None where nothing was compared yet."""
    found = await ports.reconciler.last()
    return None if found is None else _json(found)


async def run(ports: AdminPorts, request: web.Request, actor: Actor, *, repair: bool) -> Row:
    """Compare everything now, and answer the result as JSON; who asked is in the audit log."""
    found, _ = await _run_once(ports, request, actor, None, repair=repair)
    return found


async def _run_once(
    ports: AdminPorts, request: web.Request, actor: Actor, claim: Claim | None, *, repair: bool
) -> tuple[Row, bool]:
    """The result as JSON, and whether it is the one that was answered first under this claim."""
    require_write(actor)
    request[DEADLINE].reschedule(asyncio.get_running_loop().time() + RUN_S_MAX)
    values = {"repair": repair}
    if claim is not None:
        claim = replace(claim, running_s_max=RUN_S_MAX + REQUEST_S_MAX)
    asked = Command("reconciliation", "run", actor, request[REQUEST_ID], dict, None, values, claim)
    first = await ports.store.write(asked)
    # A first run that came to no end has no result to answer with: this one has.
    if isinstance(first, Replay) and first.status is not None:
        return first.body, True
    found = _json(await ports.reconciler.run_now(repair=repair))
    if claim is not None:
        await ports.store.finish(claim, 200, found)
    return found, False


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
                "parameters": [KEY_PARAMETER],
                "responses": responses | {"409": {"$ref": "#/components/responses/409"}},
            },
        }
    }


def _json(row: Row) -> Row:
    return Reconciliation.model_validate(row).model_dump(mode="json")
