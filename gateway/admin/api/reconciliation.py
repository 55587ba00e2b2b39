"""`/reconciliation`: the last comparison of counters and ledger, and a new one on demand."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from aiohttp import web

from gateway.admin.http.auth import admit, require_read, require_write
from gateway.admin.http.body import read_body
from gateway.admin.http.guard import DEADLINE, REQUEST_ID
from gateway.admin.http.idempotency import checked, claim_of
from gateway.admin.ports import AdminPorts
from gateway.admin.resources import REPORTS
from gateway.admin.resources.reports import ReconciliationRun
from gateway.core.accounts.administration import REQUEST_S_MAX, Claim, Command, Replay, Row
from gateway.core.integrity.reconciliation import RUN_S_MAX

REPORT = REPORTS["reconciliation"]
RUN = "run"
NOTHING_YET: Row = {
    "checked": 0, "drift_tokens": 0, "drift_credits": 0, "pending": 0, "items": [],
    "started_at": None, "finished_at": None,
}  # fmt: skip


def mount_reconciliation(app: web.Application, ports: AdminPorts, root: str) -> None:
    """Serve the last result, and runs."""

    async def show(request: web.Request) -> web.Response:
        mine = await admit(ports, request)
        require_read(mine.actor, REPORT)
        return web.json_response(await last(mine) or REPORT.render(NOTHING_YET))

    async def run_asked(request: web.Request) -> web.Response:
        mine = await admit(ports, request)
        require_write(mine.actor, REPORT, RUN)
        sent = await read_body(request)
        claim = claim_of(request, mine.actor, sent)
        asked = await checked(mine.store, ReconciliationRun, sent, claim)
        repair, whole = bool(asked.get("repair")), bool(asked.get("whole"))
        found, replayed = await run_once(mine, request, claim, repair=repair, whole=whole)
        return web.json_response(found, headers={"Idempotent-Replayed": "true"} if replayed else None)

    app.router.add_get(f"{root}/reconciliation", show)
    app.router.add_post(f"{root}/reconciliation", run_asked)


async def last(ports: AdminPorts) -> Row | None:
    """The last result as JSON; None where nothing was compared yet."""
    found = await ports.reconciler.last()
    return None if found is None else REPORT.render(found)


async def run_once(
    ports: AdminPorts, request: web.Request, claim: Claim | None, *, repair: bool, whole: bool = False
) -> tuple[Row, bool]:
    """Compare everything now: the result as JSON, and whether it is what was answered first under this claim.

    Who asked is in the audit log. `Overloaded` while another run is under way.
    """
    async with ports.reconciler.alone():
        return await _run(ports, request, claim, repair=repair, whole=whole)


async def _run(
    ports: AdminPorts, request: web.Request, claim: Claim | None, *, repair: bool, whole: bool
) -> tuple[Row, bool]:
    request[DEADLINE].reschedule(asyncio.get_running_loop().time() + RUN_S_MAX)
    values = {"repair": repair, "whole": whole}
    if claim is not None:
        claim = replace(claim, running_s_max=RUN_S_MAX + REQUEST_S_MAX)
    asked = Command("reconciliation", RUN, ports.actor, request[REQUEST_ID], dict, None, values, claim)
    first = await ports.store.write(asked)
    # A first run that came to no end has no result to answer with: this one has.
    if isinstance(first, Replay) and first.status is not None:
        return first.body, True
    found = REPORT.render(await ports.reconciler.run_now(repair=repair, whole=whole, within_s=RUN_S_MAX))
    if claim is not None:
        await ports.store.finish(claim, 200, found)
    return found, False
