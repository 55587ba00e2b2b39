"""Quotas and balances as they are now: the counters' word over PostgreSQL's, where they can be asked."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict

from gateway.admin import budgets
from gateway.admin.ports import PEEK_TIMEOUT_S, AdminPorts
from gateway.core.accounts.administration import Row
from gateway.core.accounts.quota import LiveQuota
from gateway.errors import TollkeeperError


async def overlay(ports: AdminPorts, what: str, rows: Sequence[Row]) -> list[Row]:
    """Replace the stored account in rows (they carry `partition`) by the live one.

    `what` is `quota` of tenants, `credits` of organizations, `budgets`, or empty: nothing to replace.
    """
    if not rows or not what:
        return list(rows)
    if what == "budgets":
        return await budgets.overlay(ports, rows)
    owner = "tenant_id" if what == "quota" else "organization_id"
    pairs = [(int(str(row["partition"])), int(str(row[owner]))) for row in rows]
    try:
        async with asyncio.timeout(PEEK_TIMEOUT_S):
            if what == "quota":
                quotas = await ports.counters.peek_tenants(pairs)
                return [_over(row, quotas.get(id_)) for row, (_, id_) in zip(rows, pairs, strict=True)]
            balances = await ports.counters.peek_balances(pairs)
    except (TollkeeperError, OSError, TimeoutError):
        # The counters are away: what was last flushed is the best that is known.
        return list(rows)
    return [
        row if balances.get(id_) is None else {**row, "credit_balance": balances[id_]}
        for row, (_, id_) in zip(rows, pairs, strict=True)
    ]


def _over(row: Row, quota: LiveQuota | None) -> Row:
    if quota is None:
        return row
    return {
        **row,
        **asdict(quota),
        "last_reset": budgets.moment(quota.last_reset_ms),
        "next_reset_at": budgets.moment(quota.next_reset_ms),
    }
