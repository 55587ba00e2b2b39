"""`/reconciliation`: the last comparison of counters and ledger, and a new one on demand."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from aiohttp import web

from gateway.admin.http.bodies import checked, claim_of, read_body
from gateway.admin.http.callers import admit
from gateway.admin.http.guard import DEADLINE, REQUEST_ID
from gateway.admin.http.requests import (
    require_read,
    require_write,
)
from gateway.admin.ports import AdminPorts
from gateway.admin.resources.reports import REPORTS, ReconciliationRun
from gateway.core.accounts.administration import (
    REQUEST_S_MAX,
    Claim,
    Command,
    Row,
    StoredReply,
)
from gateway.core.integrity.reconciliation import RUN_S_MAX as COMPARISON_S_MAX

RECONCILIATION_REPORT = REPORTS["reconciliation"]
RECONCILIATION_RUN = "run"
NOTHING_YET: Row = {
    "checked": 0, "drift_tokens": 0, "drift_credits": 0, "pending": 0, "items": [],
    "started_at": None, "finished_at": None,
}  # fmt: skip


def mount_reconciliation(app: web.Application, ports: AdminPorts, root: str) -> None:
    """Add the last reconciliation, and the start of a new one, to the routes of `app`, below `root`."""

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
        report, replayed = await run_reconciliation(mine, request, claim, repair=repair, whole=whole)
        return web.json_response(report, headers={"Idempotent-Replayed": "true"} if replayed else None)

    app.router.add_get(f"{root}/reconciliation", show)
    app.router.add_post(f"{root}/reconciliation", start_run)


async def last_reconciliation(ports: AdminPorts) -> Row | None:
    """Return the last reconciliation's result as JSON; None if there is none."""
    summary = await ports.reconciler.last()
    return None if summary is None else RECONCILIATION_REPORT.render(summary)


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
    """Return the report of a new reconciliation and False, or the stored one of an equal request and True."""
    request[DEADLINE].reschedule(asyncio.get_running_loop().time() + COMPARISON_S_MAX)
    values = {"repair": repair, "whole": whole}
    if claim is not None:
        claim = replace(claim, running_s_max=COMPARISON_S_MAX + REQUEST_S_MAX)
    asked = Command(
        "reconciliation", RECONCILIATION_RUN, ports.actor, request[REQUEST_ID], dict, None, values, claim
    )
    first = await ports.store.write(asked)
    # If the first run was interrupted, no result is stored; this run stores one.
    if isinstance(first, StoredReply) and first.status is not None:
        return first.body, True
    report = RECONCILIATION_REPORT.render(
        await ports.reconciler.run_now(repair=repair, whole=whole, within_s=COMPARISON_S_MAX)
    )
    if claim is not None:
        await ports.store.finish(claim, report, 200)
    return report, False
