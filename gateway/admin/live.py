"""Current quotas and balances: the counters' values, or PostgreSQL's if the counters cannot be read.

Each row states whether it is current; if not, it has the values of the last flush.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from decimal import Decimal
from operator import itemgetter
from typing import Any, NamedTuple, TypeVar, cast

from gateway.admin.ports import INLINE_PUSHES_MAX, PEEK_TIMEOUT_S, AdminPorts
from gateway.core.accounts.administration import Intent, Page, Query, Row
from gateway.core.accounts.budget_amounts import amount_of, read_budget
from gateway.core.accounts.budget_balances import LiveWindow, StoredUse, compute_balance, window_of
from gateway.core.accounts.budgets import BY_BUDGET, BY_RAISE, OTHERS, account_of, owner_in, owner_of
from gateway.core.accounts.plans import LiveQuota
from gateway.core.accounts.runs import ENDED, EXHAUSTED, OPEN
from gateway.core.accounts.runs import account_of as run_account
from gateway.core.accounts.windows import ROLLING, CalendarWindow, read_end_limit
from gateway.core.times import EPOCH, MILLISECOND, moment_of, ms_of
from gateway.errors import Conflict, StoreUnavailable, TollkeeperError

# Current budgets: the counters' values of their accounts, else the values stored last.
#
# Each row states whether it is current; it is not if the counters cannot be read.

LiveBudgets = Mapping[str, Mapping[int, LiveWindow] | None]


async def overlay_budgets(ports: AdminPorts, rows: Sequence[Row]) -> list[Row]:
    """Return budgets with their current use.

    A budget with an account for each caller gets only the time of the next reset.
    """
    at_ms = _now_ms()
    plain = [(row, _account(row)) for row in rows if row["each"] is None]
    live = await _peeked_budgets(ports, plain)
    figures = {row["id"]: _figures(row, at_ms, row["stored_uses"], live, name) for row, name in plain}
    return [{**row, **figures.get(row["id"], {"resets_at": _window(row, at_ms)[1]})} for row in rows]


async def budget_accounts(ports: AdminPorts, row: Row, query: Query) -> Page:
    """Return a budget's accounts in the current window: one for each caller, or the single one."""
    at_ms = _now_ms()
    if row["each"] is None:
        [now] = await overlay_budgets(ports, [row])
        return Page(({**now, "who": None},), None)
    filters = await _window_filters(ports, row, at_ms)
    wanted = Query(filters, None, None, query.after, query.limit, query.descending)
    page = await ports.store.page("budget-accounts", wanted)
    return Page(tuple(await _everybody(ports, row, page.rows, at_ms)), page.next_after)


async def most_used_accounts(ports: AdminPorts, row: Row, rows_max: int) -> list[Row]:
    """Return a budget's accounts with the highest use in the current window."""
    at_ms = _now_ms()
    *_, start = (await _window_filters(ports, row, at_ms)).values()
    stored = await ports.figures.budget_accounts(int(str(row["id"])), cast("datetime", start), rows_max)
    return await _everybody(ports, row, stored, at_ms)


async def own_budgets(ports: AdminPorts, rows: Sequence[Row], whose: str) -> list[Row]:
    """Return budgets that have an account for each user or key, with the use of the account `whose`.

    `limit` and `limit_by` are the account's. The fields about a raise are those of its own raise or override.
    """
    at_ms, owner = _now_ms(), owner_of(whose)
    names = [account_of(int(str(row["organization_id"])), read_budget(row), whose) for row in rows]
    limits, live = await asyncio.gather(
        _own_limits(ports, rows, {owner: whose}), _peeked_budgets(ports, list(zip(rows, names, strict=True)))
    )
    sought: list[Row] = [
        {"budget_id": row["id"], "value": owner, "since": moment_of(read_budget(row).form.since(at_ms))}
        for row in rows
    ]
    pages = [ports.store.page("budget-accounts", Query(filters, None, None, None, 1)) for filters in sought]
    stored = await asyncio.gather(*pages)
    budgets = list[Row]()
    for row, name, page in zip(rows, names, stored, strict=True):
        uses = page.rows[0]["uses"] if page.rows else None
        limit = limits[row["id"]]
        own = _figures({**row, **limit}, at_ms, uses, live, name)
        if own["limit_by"] != BY_BUDGET:
            exception = limit["raises" if own["limit_by"] == BY_RAISE else "overrides"].get(
                owner, _OF_A_GROUP
            )
            own |= {"raised_to": None, "raised_until": exception.until, "raise_reason": exception.reason}
            if own["limit_by"] == BY_RAISE:
                own["raised_to"] = exception.amount
        budgets.append({**row, **own})
    return budgets


async def budget_overrides(ports: AdminPorts, row: Row, query: Query) -> Page:
    """Return the overrides of a budget that are in force, by owner."""
    wanted = Query({"budget_id": row["id"]}, None, None, query.after, query.limit, query.descending)
    page = await ports.store.page("budget-overrides", wanted)
    return Page(tuple({**own, "unit": row["unit"]} for own in page.rows), page.next_after)


async def _everybody(ports: AdminPorts, row: Row, stored: Sequence[Row], at_ms: int) -> list[Row]:
    """Return stored accounts of a budget with their current use."""
    names = [f"{_account(row)}:{account['value']}" for account in stored]
    limits, live = await asyncio.gather(
        _own_limits(ports, [row], {str(account["value"]): str(account["name"]) for account in stored}),
        _peeked_budgets(ports, [(row, name) for name in names]),
    )
    row = {**row, **limits[row["id"]]}
    return [
        {"unit": row["unit"], "who": account["name"], "shared": account["value"] == OTHERS}
        | _figures(row, at_ms, account["uses"], live, name)
        for account, name in zip(stored, names, strict=True)
    ]


class _OwnLimit(NamedTuple):
    """A raise or an override of one owner: its amount, its end (Unix ms; 0: never), the same as a time, and why."""

    amount: object
    until_ms: int
    until: datetime | None
    reason: object


_OF_A_GROUP = _OwnLimit(None, 0, None, None)
# Limits in the order of `own_limits`: raises, overrides, and overrides of groups.
_OWN = ("raises", "overrides", "overrides")


async def _own_limits(
    ports: AdminPorts, rows: Sequence[Row], owners: Mapping[str, str]
) -> Mapping[object, Mapping[str, dict[str, Any]]]:
    """Return `raises`, `overrides` and `of_groups` of these owners, by budget and by owner as accounts name it.

    `owners` are their names. `of_groups` are ids of an owner's groups that have an override.
    """
    limits: dict[object, dict[str, dict[str, Any]]] = {
        row["id"]: {"raises": {}, "overrides": {}, "of_groups": {}} for row in rows
    }
    values = {name: value for value, name in owners.items() if value != OTHERS}
    stored = await ports.figures.own_limits([int(str(row["id"])) for row in rows], owners)
    for name, own in ((name, own) for name, some in zip(_OWN, stored, strict=True) for own in some):
        until = cast("datetime | None", own["until"])
        limit = _OwnLimit(own["amount"], ms_of(until), until, own["reason"])
        limits[own["budget_id"]][name][str(own["value"])] = limit
        if owner := values.get(str(own.get("member"))):
            limits[own["budget_id"]]["of_groups"].setdefault(owner, []).append(own["group_id"])
    return limits


async def _window_filters(ports: AdminPorts, row: Row, at_ms: int) -> Row:
    """Return the filters for the stored uses in a budget's current window: by one start where all accounts have it."""
    start, form = _window(row, at_ms)[0] or EPOCH, read_budget(row).form
    if isinstance(form, CalendarWindow):
        apart = form.apart_ms * MILLISECOND
        begun = await ports.figures.use_starts(int(str(row["id"])), start - apart, start + apart)
        if begun <= {start}:
            return {"budget_id": row["id"], "start": start}
        start = min(begun)
    return {"budget_id": row["id"], "since": start}


def _figures(row: Row, at_ms: int, stored: object, live: LiveBudgets, name: str) -> dict[str, object]:
    """Return used, held and remaining amount of one account of a budget, and the time of the next reset.

    `stored` are its uses in PostgreSQL as `stored_uses` has them: they count if `live` has no `name`.
    """
    budget = read_budget(row)
    uses = cast("Sequence[Sequence[Any]]", stored or ())
    known = None
    if uses:
        _, _, carried, at_end, changed = max(uses, key=itemgetter(0))
        known = StoredUse(
            {start: int(used) for start, used, *_ in uses}, None if carried is None else int(carried),
            read_end_limit(at_end, changed),
        )  # fmt: skip
    owner = owner_in(name)
    of_groups = cast("Mapping[str, Sequence[int]]", row.get("of_groups") or {})
    now = compute_balance(budget, at_ms, known, live.get(name), owner, groups=of_groups.get(owner, ()))
    return {
        "limit": None if now.limit is None else amount_of(budget.unit, now.limit),
        "limit_by": now.limit_by,
        "limit_group_id": now.group_id,
        "used": amount_of(budget.unit, now.used),
        "held": amount_of(budget.unit, now.held),
        "remaining": None if now.remaining is None else amount_of(budget.unit, now.remaining),
        "resets_at": budget_moment(now.resets_ms),
        "carried": None if budget.carry is None else amount_of(budget.unit, now.carried),
        "frees": [
            {"at": moment_of(frees_ms), "amount": amount_of(budget.unit, freed)}
            for frees_ms, freed in now.frees
        ]
        if budget.window == ROLLING
        else None,
        "is_current": name in live,
    }


def _window(row: Row, at_ms: int) -> tuple[datetime | None, datetime | None]:
    """Return the start of the current window and of the next one."""
    start_ms, next_ms = window_of(read_budget(row), at_ms)
    return budget_moment(start_ms), budget_moment(next_ms)


async def _peeked_budgets(ports: AdminPorts, accounts: Sequence[tuple[Row, str]]) -> LiveBudgets:
    """Return the counters of accounts; empty if the counters cannot be read."""
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
    """Return the name of a budget's account, or the common prefix if it has one for each caller."""
    budget = read_budget(row)
    return account_of(int(str(row["organization_id"])), budget).partition(":")[0]


def _now_ms() -> int:
    return ms_of(datetime.now(UTC))


def budget_moment(at_ms: int) -> datetime | None:
    """Convert Unix milliseconds to a time; 0 means never, and gives None."""
    return moment_of(at_ms) if at_ms > 0 else None


Live = TypeVar("Live")


async def overlay(ports: AdminPorts, what: str, rows: Sequence[Row]) -> list[Row]:
    """Replace stored values in rows by live ones; `what` is a name in `LIVE`, or "" for no change."""
    return await LIVE[what](ports, rows) if rows and what else list(rows)


async def _quotas(ports: AdminPorts, rows: Sequence[Row]) -> list[Row]:
    return await _read_present(ports.counters.peek_tenants, rows, "tenant_id", _over, "is_current")


async def _balances(ports: AdminPorts, rows: Sequence[Row]) -> list[Row]:
    return await _read_present(
        ports.counters.peek_balances, rows, "organization_id",
        lambda row, balance: {**row, "credit_balance": balance}, "balance_is_current",
    )  # fmt: skip


async def _runs(ports: AdminPorts, rows: Sequence[Row]) -> list[Row]:
    """Return runs with their live use; an ended run has the number of its stored calls."""
    names = [
        run_account(int(str(row["organization_id"])), int(str(row["tenant_id"])), str(row["name"]))
        for row in rows
    ]
    live = await _peeked_budgets(ports, list(zip(rows, names, strict=True)))
    return [_live_run(row, live.get(name) or {}) for row, name in zip(rows, names, strict=True)]


def _live_run(row: Row, windows: Mapping[int, LiveWindow]) -> Row:
    """Return a run's row with its present use and status, if the counters still have it."""
    number, unit = int(str(row["id"])), str(row["unit"])
    calls, amount = windows.get(number), windows.get(number + 1)
    if calls is None or amount is None:
        return {**row, "is_current": False}
    used, held = amount_of(unit, amount.used), amount_of(unit, amount.held)
    now = {"used": used, "held": held, "is_current": True}
    if row["status"] == ENDED:
        return {**row, **now}
    limits = ((row["max"], used), (row["max_calls"], calls.used))
    is_used_up = any(limit is not None and Decimal(str(limit)) <= so_far for limit, so_far in limits)
    return {**row, **now, "calls": calls.used, "status": EXHAUSTED if is_used_up else OPEN}


# Live values by the name that resources use.
LIVE: Mapping[str, Callable[[AdminPorts, Sequence[Row]], Awaitable[list[Row]]]] = {
    "quota": _quotas,
    "credits": _balances,
    "budgets": overlay_budgets,
    "runs": _runs,
}


async def _read_present(
    peek: Callable[[list[tuple[int, int]]], Awaitable[Mapping[int, Live | None]]],
    rows: Sequence[Row],
    owner: str,
    over: Callable[[Row, Live], Row],
    mark: str,
) -> list[Row]:
    """Return rows with their owners' present values from the counters, which `over` writes into a row.

    Rows have a `partition`, and the owner's id in the field `owner`; `peek` reads the counters. The field
    `mark` tells whether a row is current: it is false if the counters cannot be read.
    """
    pairs = [(int(str(row["partition"])), int(str(row[owner]))) for row in rows]
    try:
        async with asyncio.timeout(PEEK_TIMEOUT_S):
            known = await peek(pairs)
    except (TollkeeperError, OSError, TimeoutError):
        # The counters cannot be read: the values of the last flush are used.
        known = {}
    return [
        {**(row if (live := known.get(id_)) is None else over(row, live)), mark: id_ in known}
        for row, (_, id_) in zip(rows, pairs, strict=True)
    ]


def _over(row: Row, quota: LiveQuota) -> Row:
    return {
        **row,
        **asdict(quota),
        "last_reset": budget_moment(quota.last_reset_ms),
        "next_reset_at": budget_moment(quota.next_reset_ms),
    }


# Pushes stored control writes to the counters, as far as they answer at once.

_log = logging.getLogger("tollkeeper.admin")
# Running pushes; the event loop keeps only weak references to tasks.
_pushing: set[asyncio.Task[Sequence[str]]] = set()


async def push(ports: AdminPorts, intents: Sequence[Intent]) -> bool:
    """Push control writes to the counters; return False if some are applied later.

    A push that takes too long continues in the background. Raise `Conflict` with the counters' reason if they
    refused one.
    """
    accounts = list(dict.fromkeys(intent.account for intent in intents))
    pushing = asyncio.create_task(_push(ports, accounts[:INLINE_PUSHES_MAX]))
    _pushing.add(pushing)
    pushing.add_done_callback(_pushed)
    done, _ = await asyncio.wait({pushing}, timeout=ports.push_timeout_s)
    error = pushing.exception() if done else None
    if not done or error is not None:
        # The control write is committed: if the push fails, it is applied later.
        _log.warning("control writes wait", exc_info=error, extra={"accounts": accounts[:8]})
        return False
    if accounts:
        try:
            refusal = await ports.store.refusal([intent.id for intent in intents])
        except StoreUnavailable:  # what became of it nobody can say now; it is committed
            return False
        if refusal is not None:
            raise Conflict(refusal)
    return not pushing.result() and len(accounts) <= INLINE_PUSHES_MAX


async def _push(ports: AdminPorts, accounts: Sequence[str]) -> Sequence[str]:
    return await ports.pusher.push(accounts)


def _pushed(pushing: asyncio.Task[Sequence[str]]) -> None:
    _pushing.discard(pushing)
    if not pushing.cancelled():
        pushing.exception()  # said where it was waited for, else by the pusher's own next round


# The unbilled charges of an organization, as a part of its row.
async def unbilled(ports: AdminPorts, row: Row, _: Query) -> Page:
    return Page(tuple(await ports.store.unbilled(int(str(row["id"])))), None)
