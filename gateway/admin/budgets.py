"""Budgets as they are now: what the counters hold of their accounts, else what was stored last.

Each says whether it is current, and not what was stored because the counters are away or cannot be read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from gateway.admin.ports import PEEK_TIMEOUT_S, AdminPorts
from gateway.core.accounts.administration import Page, Query, Row
from gateway.core.accounts.budget_figures import LiveWindow, figures, window_of
from gateway.core.accounts.budget_terms import amount_of, read_budget
from gateway.core.accounts.budgets import OTHERS, account_of
from gateway.core.moments import EPOCH, moment_of, ms_of
from gateway.errors import TollkeeperError

Live = Mapping[str, Mapping[int, LiveWindow] | None]


async def overlay(ports: AdminPorts, rows: Sequence[Row]) -> list[Row]:
    """Budgets with their figures; of one with `each`, when its windows begin again and no more."""
    at_ms = _now_ms()
    plain = [(row, _account(row)) for row in rows if row["each"] is None]
    live = await _peeked(ports, plain)
    told = {
        row["id"]: _figures(row, at_ms, (row["stored_start"], row["stored_used"]), live, name)
        for row, name in plain
    }
    return [{**row, **told.get(row["id"], {"resets_at": _window(row, at_ms)[1]})} for row in rows]


async def accounts(ports: AdminPorts, row: Row, query: Query) -> Page:
    """A budget's accounts in the window that runs; all calls' one where it has no `each`."""
    at_ms = _now_ms()
    if row["each"] is None:
        [now] = await overlay(ports, [row])
        return Page(({**now, "who": None},), None)
    here = {"budget_id": row["id"], "start": _started(row, at_ms)}
    wanted = Query(here, None, None, query.after, query.limit, query.descending)
    page = await ports.store.page("budget-accounts", wanted)
    return Page(tuple(await _everybody(ports, row, page.rows, at_ms)), page.next_after)


async def most_used(ports: AdminPorts, row: Row, rows_max: int) -> list[Row]:
    """Of a budget with `each` the accounts that used most in the window that runs."""
    at_ms = _now_ms()
    stored = await ports.figures.budget_accounts(int(str(row["id"])), _started(row, at_ms), rows_max)
    return await _everybody(ports, row, stored, at_ms)


async def own(ports: AdminPorts, rows: Sequence[Row], whose: str) -> list[Row]:
    """Budgets with `each`, with the figures of somebody's own account."""
    at_ms = _now_ms()
    names = [account_of(int(str(row["organization_id"])), read_budget(row), whose) for row in rows]
    live = await _peeked(ports, list(zip(rows, names, strict=True)))
    stored = await asyncio.gather(
        *(
            ports.store.page("budget-accounts", Query(_of(row, name, at_ms), None, None, None, 1))
            for row, name in zip(rows, names, strict=True)
        )
    )
    return [
        {
            **row,
            **_figures(
                row,
                at_ms,
                (_started(row, at_ms), sum(int(str(each["used"])) for each in page.rows)),
                live,
                name,
            ),
        }
        for row, name, page in zip(rows, names, stored, strict=True)
    ]


async def _everybody(ports: AdminPorts, row: Row, stored: Sequence[Row], at_ms: int) -> list[Row]:
    """Accounts of a budget as they were stored, as they are now."""
    names = [f"{_account(row)}:{each['value']}" for each in stored]
    live = await _peeked(ports, [(row, name) for name in names])
    return [
        {"unit": row["unit"], "who": each["name"], "shared": each["value"] == OTHERS}
        | _figures(row, at_ms, (each["start"], each["used"]), live, name)
        for each, name in zip(stored, names, strict=True)
    ]


def _of(row: Row, account: str, at_ms: int) -> Row:
    """The filters of one account's uses."""
    return {"budget_id": row["id"], "start": _started(row, at_ms), "value": account.partition(":")[2]}


def _started(row: Row, at_ms: int) -> datetime:
    """When the window that runs began, as its uses are stored."""
    return _window(row, at_ms)[0] or EPOCH


def _figures(row: Row, at_ms: int, stored: tuple[Any, Any], live: Live, name: str) -> dict[str, object]:
    """What is answered of one account of a budget; stored are the start of its window and what was used."""
    budget, (start, used) = read_budget(row), stored
    known = None if start is None else (ms_of(start), used)
    now = figures(budget, at_ms, known, live.get(name))
    return {
        "used": amount_of(budget.unit, now.used),
        "held": amount_of(budget.unit, now.held),
        "remaining": amount_of(budget.unit, now.limit - now.used),
        "resets_at": moment(now.resets_ms),
        "is_current": name in live,
    }


def _window(row: Row, at_ms: int) -> tuple[datetime | None, datetime | None]:
    """When the window that runs has begun, and when the next one begins."""
    start_ms, next_ms = window_of(read_budget(row), at_ms)
    return moment(start_ms), moment(next_ms)


async def _peeked(ports: AdminPorts, accounts: Sequence[tuple[Row, str]]) -> Live:
    """What the counters hold of accounts; nothing where they cannot be asked."""
    if not accounts:
        return {}
    try:
        async with asyncio.timeout(PEEK_TIMEOUT_S):
            return await ports.counters.peek_budgets(
                [(int(str(row["partition"])), name) for row, name in accounts]
            )
    except (TollkeeperError, OSError, TimeoutError):
        return {}


def _account(row: Row) -> str:
    """The name of a budget's account; of one with `each`, what theirs begin with."""
    budget = read_budget(row)
    return account_of(int(str(row["organization_id"])), budget).partition(":")[0]


def _now_ms() -> int:
    return ms_of(datetime.now(UTC))


def moment(at_ms: int) -> datetime | None:
    """A time in ms since the epoch; 0 is never."""
    return moment_of(at_ms) if at_ms > 0 else None
