"""`/reconciliation`: the last comparison of counters and ledger, and a new one on demand.

`/counters`: how many accounts nobody can read, and their rebuild on demand.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
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
from gateway.admin.resources.reports import REPORTS, CountersRebuild, ReconciliationRun
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
COUNTERS_REPORT = REPORTS["counters"]
# The kinds of rebuilt accounts, by the letter in their keys.
_KINDS = {
    "o": "organizations", "t": "tenants", "k": "api_keys", "u": "users", "a": "services", "b": "budgets",
}  # fmt: skip
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

    async def show_unreadable(request: web.Request) -> web.Response:
        mine = await admit(ports, request)
        require_read(mine.actor, COUNTERS_REPORT)
        counts = {str(kind): count for kind, count in (await mine.snapshot()).get("left_alone", ())}
        return web.json_response(COUNTERS_REPORT.render({"unreadable": counts.get("account", 0)}))

    async def rebuild(request: web.Request) -> web.Response:
        mine = await admit(ports, request)
        require_write(mine.actor, COUNTERS_REPORT, "rebuild")
        sent = await read_body(request)
        claim = claim_of(request, mine.actor, sent)
        values = await checked(mine.store, CountersRebuild, sent, claim)
        organization_id = int(str(values["organization_id"]))
        await mine.unreadable.require(organization_id)

        async def work() -> Row:
            counts = await mine.unreadable.rebuild(organization_id)
            return {name: counts.get(letter, 0) for letter, name in _KINDS.items()}

        report, replayed = await _run(mine, request, claim, ("counters", "rebuild"), values, work)
        return web.json_response(report, headers={"Idempotent-Replayed": "true"} if replayed else None)

    app.router.add_get(f"{root}/reconciliation", show)
    app.router.add_post(f"{root}/reconciliation", start_run)
    app.router.add_get(f"{root}/counters", show_unreadable)
    app.router.add_post(f"{root}/counters", rebuild)


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

    async def work() -> Row:
        summary = await ports.reconciler.run_now(repair=repair, whole=whole, within_s=COMPARISON_S_MAX)
        return RECONCILIATION_REPORT.render(summary)

    values: Row = {"repair": repair, "whole": whole}
    async with ports.reconciler.alone():
        return await _run(ports, request, claim, ("reconciliation", RECONCILIATION_RUN), values, work)


async def _run(  # noqa: PLR0917  # a request, and its work
    ports: AdminPorts, request: web.Request, claim: Claim | None, operation: tuple[str, str], values: Row,
    work: Callable[[], Awaitable[Row]],
) -> tuple[Row, bool]:  # fmt: skip
    """Return the result of new work and False, or the stored one of an equal request and True."""
    request[DEADLINE].reschedule(asyncio.get_running_loop().time() + COMPARISON_S_MAX)
    if claim is not None:
        claim = replace(claim, running_s_max=COMPARISON_S_MAX + REQUEST_S_MAX)
    command = Command(*operation, ports.actor, request[REQUEST_ID], dict, None, values, claim)
    first = await ports.store.write(command)
    # If the first run was interrupted, no result is stored; this run stores one.
    if isinstance(first, StoredReply) and first.status is not None:
        return first.body, True
    report = await work()
    if claim is not None:
        await ports.store.finish(claim, report, 200)
    return report, False
