"""Accounts of budgets against what is stored of them and what waits to be.

While a partition is verified nothing moves there: no flush stores what was read under another history, and
no script serves. So both together are exact, whatever the counters lost or went on with. With traffic running
they are compared where nothing moved between two looks at the same things.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Protocol

from gateway.core.accounts.budgets import Budget, account_of, accounts_of
from gateway.core.accounts.definitions import OrganizationAccount
from gateway.core.accounts.ledger import Budgeted
from gateway.core.integrity.budget_accounts import (
    ACCOUNTS_MAX,
    BudgetAccountUse,
    Live,
    StoredBudgets,
    as_they_should_be,
    differences,
    differing,
    forgettable,
    waiting_in,
    windows_at,
)
from gateway.core.integrity.reconciliation import NO_FAULTS, Item, Reconciled

# What was caught in flight is looked at again before it is called different.
LOOKS_MAX = 5
LOOK_AGAIN_S = 0.3


class Source(Protocol):
    """PostgreSQL."""

    async def budgets(self, organizations: Sequence[int]) -> Mapping[int, Sequence[Budget]]:
        """The budgets of organizations that have any."""

    async def stored(
        self, partition: int, organizations: Sequence[int], windows: Iterable[Budgeted]
    ) -> StoredBudgets:
        """What is used of these organizations' windows, whoever's accounts, and up to which entry."""


class Target(Protocol):
    """The counters."""

    async def now_ms(self) -> int:
        """Their own clock."""

    async def waiting(self, partition: int, mark: bytes) -> list[bytes] | None:
        """Entries of a partition behind the newest stored one; None where more are than are looked at."""

    async def waiting_apart(self, partition: int, organizations: Iterable[int]) -> list[bytes] | None:
        """Entries of these that are set aside, likewise."""

    async def somebodys_budgets(self, partition: int, name: str) -> list[str]:
        """The accounts for each that are like one."""

    async def live_budgets(self, partition: int, names: Sequence[str]) -> tuple[Live, frozenset[str]]:
        """Accounts as they are, by name and budget; and the names of those of another version."""

    async def look(
        self, partition: int, mark: bytes, names: Sequence[str]
    ) -> tuple[Live, Sequence[bytes]] | None:
        """Accounts, and the entries behind `mark`, at one moment; None where it was not one."""

    async def restore_budgets(
        self, partition: int, marker: bytes, accounts: Iterable[BudgetAccountUse], now_ms: int
    ) -> bool:
        """Write accounts, with what holds hold of them; False where the marker moved on."""


class BudgetRebuild:
    """Compares and writes, a partition at a time."""

    def __init__(self, source: Source, target: Target) -> None:
        self._source, self._target = source, target

    async def rebuild(
        self, partition: int, marker: bytes, organizations: Iterable[OrganizationAccount], *, went_on: bool
    ) -> int | None:
        """How many accounts were written; None where the marker moved on.

        Only data that `went_on` beside what is stored has more than it should. Elsewhere an account that has
        more is left alone, since PostgreSQL may be older than it was. So it is where too much waits.
        """
        defined = [one.definition for one in organizations if one.definition.terms.budgets]
        if not defined:
            return 0
        now_ms, ids = await self._target.now_ms(), [one.organization_id for one in defined]
        budgets = [budget for one in defined for budget in one.terms.budgets]
        stored = await self._source.stored(partition, ids, windows_at(budgets, now_ms))
        entries = await self._target.waiting(partition, stored.mark)
        apart = await self._target.waiting_apart(partition, ids)
        less_only = not went_on or entries is None or apart is None
        waiting = waiting_in([*(entries or ()), *(apart or ()), *stored.aside], budgets)
        wrong: list[BudgetAccountUse] = []
        for one in defined:
            names = [
                name
                for alike in accounts_of(one.terms.budgets)
                if alike[0].each
                for name in await self._target.somebodys_budgets(
                    partition, account_of(one.organization_id, alike[0])
                )
            ]
            accounts = list(
                as_they_should_be(one.organization_id, one.terms.budgets, stored.used, waiting, now_ms, names)
            )
            live, others = await self._target.live_budgets(partition, [one.name for one in accounts])
            ours = [one for one in accounts if one.name not in others]
            wrong += differing(ours, live, less_only=less_only)
        if wrong and not await self._target.restore_budgets(partition, marker, wrong, now_ms):
            return None
        return len(wrong)


class BudgetComparison:
    """Compares budgets with traffic running; `partition_of` places organizations."""

    def __init__(
        self,
        source: Source,
        target: Target,
        partition_of: Callable[[int], int],
        look_again_s: float = LOOK_AGAIN_S,
    ) -> None:
        self._source, self._target, self._partition_of = source, target, partition_of
        self._look_again_s = look_again_s

    async def compare(self, organizations: Sequence[int]) -> Reconciled:
        """What differs in every look. What never stood still is pending: nothing can be said of it."""
        found: list[Item] = []
        checked = pending = 0
        defined = await self._source.budgets(organizations)
        for one, budgets in defined.items():
            items = await self._differing(one, budgets)
            checked += len(budgets)
            pending += len(budgets) if items is None else 0
            found += items or ()
        return Reconciled(checked, pending, tuple(found))

    async def _differing(self, organization_id: int, budgets: Sequence[Budget]) -> list[Item] | None:
        """What differs in every look; None where something moved during each of them."""
        items: list[Item] | None = None
        for look in range(LOOKS_MAX):
            if look:
                await asyncio.sleep(self._look_again_s)
            again = await self._look(organization_id, budgets)
            if again is None:
                continue
            before = {item.account for item in (again if items is None else items)}
            items = [item for item in again if item.account in before]
            if all(item.kind in NO_FAULTS for item in items):
                break
        return items

    async def _look(self, organization_id: int, budgets: Sequence[Budget]) -> list[Item] | None:
        """What differs; None where anything moved meanwhile."""
        partition, now_ms = self._partition_of(organization_id), await self._target.now_ms()
        windows = windows_at(budgets, now_ms)
        stored = await self._source.stored(partition, [organization_id], windows)
        known = as_they_should_be(organization_id, budgets, stored.used, {}, now_ms)
        names = [account.name for account in islice(known, ACCOUNTS_MAX)]
        if not names:
            return []
        looked = await self._target.look(partition, stored.mark, names)
        apart = await self._target.waiting_apart(partition, [organization_id])
        again = await self._source.stored(partition, [organization_id], windows)
        if looked is None or apart is None or again != stored:
            return None
        live, entries = looked
        waiting = waiting_in([*entries, *apart, *stored.aside], budgets)
        accounts = as_they_should_be(organization_id, budgets, stored.used, waiting, now_ms)
        wanted = set(names)
        return list(differences((one for one in accounts if one.name in wanted), live, forgettable(budgets)))
