"""`POST /budgets/replay`: what budgets would have done with stored calls.

The budgets are checked as new ones, and the caller must have the right to create them. A process that ends with the
request reads the calls.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web

from gateway.admin.api.views import answer
from gateway.admin.http.bodies import check_body, read_body
from gateway.admin.http.callers import admit
from gateway.admin.http.guard import DEADLINE, REQUEST_ID, in_thread
from gateway.admin.http.requests import require_write
from gateway.admin.ports import AdminPorts
from gateway.admin.resources.budgets import REPLAY, ReplayedBudget
from gateway.admin.resources.registry import RESOURCES
from gateway.core.accounts.administration import CREATE, OWNER, REQUEST_S_MAX, TENANT, Actor, Command, Row
from gateway.core.accounts.replay.fold import DAYS_MAX, REPLAY_S_MAX
from gateway.core.times import MILLISECOND, rfc3339
from gateway.errors import Unprocessable

if TYPE_CHECKING:
    from persistence.store import Store

BUDGETS = RESOURCES["budgets"]
# How often a replay's client is looked at, in seconds.
LOOK_S: Final = 0.2
USUAL_DAYS: Final = 30


def mount_replay(app: web.Application, ports: AdminPorts, root: str) -> None:
    async def post(request: web.Request) -> web.Response:
        mine = await admit(ports, request)
        require_write(mine.actor, BUDGETS, CREATE)
        asked = await check_replay(mine.store, mine.actor, await read_body(request), request[REQUEST_ID])
        replayed = await while_connected(request, mine.replay(asked, mine.actor.organization_id))
        return await in_thread(lambda: answer(200, render_replay(replayed)))

    app.router.add_post(f"{root}/{BUDGETS.name}/{REPLAY.name}", post)


async def check_replay(store: Store, actor: Actor, sent: Row, request_id: str) -> Row:
    """Return a checked replay of an actor as JSON values: the owner of its calls, their time, and its budgets.

    Raise `Unprocessable` with the fields that are wrong.
    """
    if actor.organization_id is not None:
        sent = {OWNER: actor.organization_id, **sent}
    values: Any = check_body(REPLAY.asked, dict(sent))
    owner, budgets = values[OWNER], values["budgets"]
    until: datetime = values.get("until") or datetime.now(UTC)
    since: datetime = values.get("since") or until - timedelta(days=USUAL_DAYS)
    errors = [*_wrong_time(since, until), *_wrong_budgets(budgets, owner)]
    if errors:
        raise Unprocessable(errors=tuple(errors))
    commands = [
        Command(BUDGETS.name, CREATE, actor, request_id, dict, values={**budget, OWNER: owner})
        for budget in budgets
    ]
    checked = [ReplayedBudget.model_validate(budget) for budget in await store.check_replay(commands)]
    return {
        OWNER: owner, TENANT: actor.tenant_id, "since": rfc3339(since), "until": rfc3339(until),
        "budgets": [budget.model_dump(mode="json") for budget in checked],
    }  # fmt: skip


def render_replay(replayed: Row) -> Row:
    """Return the answer of a replay as the Admin API has it."""
    return REPLAY.out.model_validate(replayed).model_dump(mode="json")


async def while_connected(request: web.Request, replay: Awaitable[Row]) -> Row:
    """Return the result of a replay; cancel it, and with it its process, once its client is gone."""
    request[DEADLINE].reschedule(asyncio.get_running_loop().time() + REPLAY_S_MAX + REQUEST_S_MAX)
    task = asyncio.ensure_future(replay)
    try:
        while not (await asyncio.wait({task}, timeout=LOOK_S))[0]:
            if request.transport is None or request.transport.is_closing():
                raise ConnectionResetError
        return task.result()
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait({task})


def _wrong_time(since: datetime, until: datetime) -> Iterator[tuple[str, str]]:
    if until - since < MILLISECOND:
        yield "from", "must be at least a millisecond before `to`"
    elif until - since > timedelta(days=DAYS_MAX):
        yield "from", f"must be at most {DAYS_MAX} days before `to`"


def _wrong_budgets(budgets: Sequence[Row], owner: int) -> Iterator[tuple[str, str]]:
    """Yield (field, fault) for each budget of another organization, or with the name of an earlier one."""
    names = [budget["name"] for budget in budgets]
    for place, budget in enumerate(budgets):
        if budget.get(OWNER) not in {None, owner}:
            yield f"budgets.{place}.{OWNER}", f"must be {owner}, that of the replay, or left out"
        if budget["name"] in names[:place]:
            yield f"budgets.{place}.name", "is the name of another budget here: names must differ"
