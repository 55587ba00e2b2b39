"""`/reconciliation`: the last comparison of counters and ledger, and a new one on demand."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal

from aiohttp import web
from pydantic import Field

from gateway.admin import body
from gateway.admin.auth import identify, require_write
from gateway.admin.fields import Flag, In, Instant, Out
from gateway.admin.guard import DEADLINE
from gateway.admin.ports import AdminPorts
from gateway.admin.reading import read_body
from gateway.core.administration import Row
from gateway.errors import NotFound

RUN_S_MAX = 600.0


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
    started_at: Instant
    finished_at: Instant | None


MODELS = ((Reconciliation, "serialization"), (ReconciliationRun, "validation"))


def mount_reconciliation(app: web.Application, ports: AdminPorts, root: str) -> None:
    """Serve the last result, and runs."""

    async def show(request: web.Request) -> web.Response:
        await identify(ports, request)
        last = await ports.reconciler.last()
        if last is None:
            raise NotFound("Nothing was reconciled yet; POST runs it.")
        return _answer(last)

    async def run(request: web.Request) -> web.Response:
        require_write(await identify(ports, request))
        asked = body.check(ReconciliationRun, await read_body(request))
        request[DEADLINE].reschedule(asyncio.get_running_loop().time() + RUN_S_MAX)
        return _answer(await ports.reconciler.run_now(repair=bool(asked.get("repair"))))

    app.router.add_get(f"{root}/reconciliation", show)
    app.router.add_post(f"{root}/reconciliation", run)


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


def _answer(row: Row) -> web.Response:
    return web.json_response(Reconciliation.model_validate(row).model_dump(mode="json"))
