"""Quotas and balances as they are now: the counters' word over PostgreSQL's, where that can be had.

Each row says whether it is current; if not, it is what was last flushed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict
from typing import TypeVar

from gateway.admin import budgets
from gateway.admin.ports import PEEK_TIMEOUT_S, AdminPorts
from gateway.core.accounts.administration import Row
from gateway.core.accounts.quota import LiveQuota
from gateway.errors import TollkeeperError

Live = TypeVar("Live")


async def overlay(ports: AdminPorts, what: str, rows: Sequence[Row]) -> list[Row]:
    """Replace the stored account in rows by the live one; `what` is a name of `LIVE`, or empty: nothing."""
    return await LIVE[what](ports, rows) if rows and what else list(rows)


async def _quotas(ports: AdminPorts, rows: Sequence[Row]) -> list[Row]:
    return await _peeked(ports.counters.peek_tenants, rows, "tenant_id", _over, "is_current")


async def _balances(ports: AdminPorts, rows: Sequence[Row]) -> list[Row]:
    peek = ports.counters.peek_balances
    return await _peeked(peek, rows, "organization_id", _with_balance, "balance_is_current")


# What the counters know better, as resources name it.
LIVE: Mapping[str, Callable[[AdminPorts, Sequence[Row]], Awaitable[list[Row]]]] = {
    "quota": _quotas,
    "credits": _balances,
    "budgets": budgets.overlay,
}


async def _peeked(
    peek: Callable[[list[tuple[int, int]]], Awaitable[Mapping[int, Live | None]]],
    rows: Sequence[Row],
    owner: str,
    over: Callable[[Row, Live], Row],
    mark: str,
) -> list[Row]:
    """Rows with what the counters have of their owners; they carry `partition`, and get the `mark`."""
    pairs = [(int(str(row["partition"])), int(str(row[owner]))) for row in rows]
    try:
        async with asyncio.timeout(PEEK_TIMEOUT_S):
            known = await peek(pairs)
    except (TollkeeperError, OSError, TimeoutError):
        # The counters are away: what was last flushed is the best that is known.
        known = {}
    return [
        {**(row if (live := known.get(id_)) is None else over(row, live)), mark: id_ in known}
        for row, (_, id_) in zip(rows, pairs, strict=True)
    ]


def _with_balance(row: Row, balance: int) -> Row:
    return {**row, "credit_balance": balance}


def _over(row: Row, quota: LiveQuota) -> Row:
    return {
        **row,
        **asdict(quota),
        "last_reset": budgets.moment(quota.last_reset_ms),
        "next_reset_at": budgets.moment(quota.next_reset_ms),
    }
