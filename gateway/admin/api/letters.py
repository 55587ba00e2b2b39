"""`/letters`: the numbers of undecided dead letters and accounts, and one decision for many of them.

Each row is decided as by its own action: in its own transaction, with its own entry in the audit log. So
one refused row does not stop the others. A repeated or interrupted request decides nothing twice.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace

from aiohttp import web

from gateway.admin.api.views import answer
from gateway.admin.http.bodies import checked, claim_of, read_body
from gateway.admin.http.callers import admit
from gateway.admin.http.guard import DEADLINE, REQUEST_ID
from gateway.admin.http.requests import (
    require_read,
    require_write,
)
from gateway.admin.operations import Operations, WriteRequest, finish
from gateway.admin.ports import AdminPorts
from gateway.admin.resources.letters import DEAD_LETTERS, DECIDED_USUALLY, LettersDecide
from gateway.admin.resources.registry import RESOURCES
from gateway.admin.resources.reports import REPORTS
from gateway.core.accounts.administration import (
    LETTERS_S_MAX,
    REQUEST_S_MAX,
    Claim,
    Command,
    Query,
    Row,
    StoredReply,
)
from gateway.errors import (
    Conflict,
    NotFound,
    Unprocessable,
)

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
    """Add the report of letters, and the decision about them, to the routes of `app`, below `root`."""

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
        found, replayed = await _decide_letters(mine, request[REQUEST_ID], claim, values)
        return answer(200, found, {"Idempotent-Replayed": "true"} if replayed else None)

    app.router.add_get(f"{root}/letters", show)
    app.router.add_post(f"{root}/letters", decide)


async def _count(ports: AdminPorts, many: _BulkAction) -> int | None:
    query = Query({many.still_open: False}, None, None, None, 1)
    operations = Operations(ports, RESOURCES[many.resource])
    count = await operations.count(query, COUNTED_MAX, COUNT_MS)
    return None if count is None else min(count, COUNTED_MAX)


async def _decide_letters(
    ports: AdminPorts, request_id: str, claim: Claim | None, values: Row
) -> tuple[Row, bool]:
    """Store dead letters or release accounts, as `values` say; return the result, and whether it is old.

    An old result is that of an earlier request with the same idempotency key.
    """
    first = await ports.store.write(
        Command("letters", DECIDE, ports.actor, request_id, dict, None, values, claim)
    )
    if isinstance(first, StoredReply) and first.status is not None:
        return first.body, True
    assert REPORT.ran is not None
    found = REPORT.ran.model_validate(await _decide_each(ports, request_id, values)).model_dump(mode="json")
    if claim is not None:
        await finish(ports, claim, 200, found, request_id)
    return found, False


async def _decide_each(ports: AdminPorts, request_id: str, values: Row) -> Row:
    """Store dead letters or release accounts one by one, by id, until the limit or the time is reached."""
    many = _DECIDED[str(values["what"])]
    operations = Operations(ports, RESOURCES[many.resource])
    [action] = [action for action in operations.resource.actions if action.name == many.action]
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
        if row.get("opens") is not None:
            refused.append({"id": after, "why": "It opens keys and overrides: release it by itself."})
            continue
        try:
            await operations.act(action, WriteRequest(request_id), after, body)
            done.append(after)
        except (Conflict, Unprocessable, NotFound) as refusal:
            refused.append({"id": after, "why": refusal.message})
    ended = len(done) + len(refused) == len(rows) < limit
    return {"done": done, "refused": refused, "next_after_id": None if ended else after}
