"""Budgets of money after calls were rated again: a window that still runs counts what its calls cost now.

A call counts in a window if it came in it, since the budget was made and since its use was reset last: in the part
of a rolling window in which it came, and in the window of its owner that a first use began.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any, NamedTuple

from sqlalchemy import bindparam, select

from gateway.core.accounts.administration import Row
from gateway.core.accounts.budget_amounts import read_budget
from gateway.core.accounts.budget_balances import window_of
from gateway.core.accounts.budgets import MONEY, Budget, CallAttributes, account_of, owner_in
from gateway.core.model import INTEGER_MAX
from gateway.core.text import batched
from gateway.core.times import UnknownZone, moment_of, ms_of
from persistence.entity import EntityWrite, write_of
from persistence.queries import query
from persistence.tables import budget, budget_use

# Accounts of a budget that one control write moves: one script does, so that it is done once or not at all.
BUDGET_ACCOUNTS_A_WRITE = 250
# When the use of budgets was reset last.
_RESETS = query("rerated_budgets.resets", "Select the last resets of budgets", """
SELECT (payload->>'budget_id')::bigint AS budget_id, max(coalesce(applied_at, now())) AS at
  FROM control_write WHERE verb = 'budget' AND state <> 'refused' AND account = ANY(:accounts)
 GROUP BY 1""")  # fmt: skip


def budget_writes(change: EntityWrite, rated: Iterable[tuple[Any, int]], reason: str) -> Iterator[Row]:
    """Yield control writes that take from budgets what calls were counted too much.

    `rated` are rows of calls with what they cost before, and what they cost now.
    """
    calls = defaultdict[int, list[tuple[Any, int]]](list)
    for call, cost in rated:
        if call.cost != cost:
            calls[call.organization_id].append((call, cost))
    for budget_id, since, owned in _running(change, list(calls)):
        starts, running = _started(change, owned.budget), owned.budget.form.start_of(ms_of(change.now), {})
        taken: dict[int, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        for call, cost in calls[owned.organization_id]:
            asked, came_ms = _attributes(call), ms_of(call.created_at)
            if came_ms >= since and owned.budget.matches(asked):
                name = account_of(owned.organization_id, owned.budget, owned.budget.value_of(asked))
                taken[starts.get(owner_in(name), running)][name] += call.cost - cost
        amounts = [
            (begun, name, max(-INTEGER_MAX, min(amount, INTEGER_MAX)))
            for begun, of_start in sorted(taken.items())
            for name, amount in sorted(of_start.items())
            if amount
        ]
        for begun, some in _writes_of(amounts):
            payload = {
                "tenant_id": 0, "service_id": 0, "tokens": 0, "units": 0, "tiers": "", "attribution": "",
                "reason": reason, "budget_id": budget_id, "start_ms": begun, "taken": some,
            }  # fmt: skip
            account, partition = (
                f"organization:{owned.organization_id}",
                change.partition_of(owned.organization_id),
            )
            yield write_of(partition, account, "amend", payload)


def _writes_of(amounts: Sequence[tuple[int, str, int]]) -> Iterator[tuple[int, dict[str, int]]]:
    """Yield the start of a window, and amounts by account, as many as one write moves."""
    for begun, alike in groupby(amounts, key=itemgetter(0)):
        for some in batched([(name, amount) for _, name, amount in alike], BUDGET_ACCOUNTS_A_WRITE):
            yield begun, dict(some)


def _started(change: EntityWrite, its_budget: Budget) -> dict[str, int]:
    """Return when the windows of owners began that run now, also by another edition of the time zones."""
    here, form, now_ms = budget_use.c, its_budget.form, ms_of(change.now)
    rows = change.connection.execute(
        select(here.value, here.start)
        .where(here.budget_id == its_budget.id, here.start >= moment_of(form.since(now_ms)))
        .order_by(here.start)
    ).all()
    running = {start: form.start_of(now_ms, {ms_of(start): 0}) for start in {row.start for row in rows}}
    return {row.value: running[row.start] for row in rows}


class _OwnedBudget(NamedTuple):
    organization_id: int
    budget: Budget


def _running(change: EntityWrite, organization_ids: Sequence[int]) -> Iterator[tuple[int, int, _OwnedBudget]]:
    """Yield budgets of money: the id, and since when calls count in the window that runs."""
    here = budget.c
    query = select(budget).where(
        here.organization_id.in_(bindparam("owners", expanding=True)), here.unit == MONEY,
        here.deleted_at.is_(None), here.tool.is_(None), here.server.is_(None),
    )  # fmt: skip
    rows = change.connection.execute(query, {"owners": list(organization_ids)}).mappings().all()
    accounts = [f"organization:{owner}" for owner in organization_ids]
    found_resets = change.connection.execute(_RESETS, {"accounts": accounts}) if rows else ()
    resets = {reset.budget_id: ms_of(reset.at) for reset in found_resets}
    for row in rows:
        owned = read_budget(dict(row))
        if owned.length_ms:  # its calls leave it by themselves, and a correction has no part of it
            continue
        try:
            start, _ = window_of(owned, ms_of(change.now))
        except (UnknownZone, ValueError):  # its window is not known here
            continue
        since = max(start, owned.created_ms, resets.get(owned.id, 0))
        yield owned.id, since, _OwnedBudget(row["organization_id"], owned)


def _attributes(call: Any) -> CallAttributes:
    return CallAttributes(
        call.tenant_id, call.api_key_id, call.service_id, call.user, call.project_id, (call.model,),
        call.session, tags=tuple(call.tags.items()), groups=tuple(call.groups or ()),
    )  # fmt: skip
