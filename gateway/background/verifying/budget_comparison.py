"""Compares budgets with traffic running: accounts count only if nothing moved between two looks."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from gateway.core.accounts.budgets import Budget, ends_of
from gateway.core.integrity.reconciliation import (
    ACCOUNTS_MAX,
    NO_FAULTS,
    BudgetAccountUse,
    Item,
    ReconciliationSummary,
    WaitingUses,
    as_they_should_be,
    carrying,
    collect_use,
    differences,
    forgettable,
    terms_differing,
    waiting_in,
    windows_at,
)

if TYPE_CHECKING:
    from gateway.counters.keeper.verification import KeeperCounters
    from persistence.keeper.verification import Accounts


# A difference may be a movement in flight: it counts only if several looks find it.
LOOKS_MAX = 5
LOOK_AGAIN_S = 0.3


@dataclass(slots=True, eq=False)
class BudgetComparison:
    """Compares budgets with traffic running; `partition_of` returns the partition of an organization id."""

    source: Accounts
    target: KeeperCounters
    partition_of: Callable[[int], int]
    look_again_s: float = LOOK_AGAIN_S

    async def compare(self, organizations: Sequence[int]) -> ReconciliationSummary:
        """Return differences that several comparisons found.

        A budget that changed in each counts as pending.
        """
        found: list[Item] = []
        checked = pending = 0
        defined = await self.source.budgets(organizations)
        for organization_id, budgets in defined.items():
            items = await self._differing(organization_id, budgets)
            checked += len(budgets)
            pending += len(budgets) if items is None else 0
            found += items or ()
            if any(budget.overrides or budget.has_groups for budget in budgets):
                found += await self._untold(organization_id)
        return ReconciliationSummary(checked, pending, tuple(found))

    async def _differing(self, organization_id: int, budgets: Sequence[Budget]) -> list[Item] | None:
        """Return differences found by several comparisons; None if something moved during each of them."""
        gone: Sequence[BudgetAccountUse] = ()

        async def look() -> list[Item] | None:
            nonlocal gone
            found = await self._look(organization_id, budgets)
            if found is None:
                return None
            items, gone = found
            return items

        items = await self._confirm(look)
        if items and gone:
            now_ms = await self.target.now_ms()
            await self.target.take_up_budgets(self.partition_of(organization_id), gone, now_ms)
        return items

    async def _untold(self, organization_id: int) -> Sequence[Item]:
        """Return the budgets whose overrides or groups several looks found to be others in Redis."""

        async def look() -> list[Item]:
            pushed = await self.source.pushed_terms(organization_id)
            if pushed is None:
                return []
            stored, now_ms = await self.target.terms_of(organization_id), await self.target.now_ms()
            return list(terms_differing(*pushed, stored, now_ms))

        return await self._confirm(look) or ()

    async def _confirm(self, look: Callable[[], Awaitable[list[Item] | None]]) -> list[Item] | None:
        """Return the differences that each of several looks found; None if each look was in vain.

        It looks again until only those are left that are no faults.
        """
        items: list[Item] | None = None
        for number in range(LOOKS_MAX):
            if number:
                await asyncio.sleep(self.look_again_s)
            found = await look()
            if found is None:
                continue
            before = {item.account for item in (found if items is None else items)}
            items = [item for item in found if item.account in before]
            if all(item.kind in NO_FAULTS for item in items):
                break
        return items

    async def _look(
        self, organization_id: int, budgets: Sequence[Budget]
    ) -> tuple[list[Item], list[BudgetAccountUse]] | None:
        """Return the differences, and the accounts missing in Redis; None if anything moved meanwhile.

        Missing accounts are compared before others.
        """
        partition, now_ms = self.partition_of(organization_id), await self.target.now_ms()
        windows = windows_at(budgets, now_ms)
        stored = await self.source.stored(partition, [organization_id], windows, carrying(budgets))
        may_lack = forgettable(budgets)
        uses = collect_use(budgets, stored, WaitingUses(), now_ms)
        named = {account.name: account for account in as_they_should_be(organization_id, budgets, uses)}
        unending = [name for name, use in named.items() if _must_last(use)]
        gone = await self.target.keep_budgets(partition, unending)
        names = list(islice(dict.fromkeys([*gone, *named]), ACCOUNTS_MAX))
        if not names:
            return [], []
        looked = await self.target.look(partition, stored.mark, names)
        apart = await self.target.waiting_apart(partition, [organization_id])
        again = await self.source.stored(partition, [organization_id], windows, carrying(budgets))
        if looked is None or apart is None or again != stored:
            return None
        live, entries = looked
        waiting = waiting_in([*entries, *apart, *stored.aside], budgets)
        accounts = as_they_should_be(organization_id, budgets, collect_use(budgets, stored, waiting, now_ms))
        wanted = set(names)
        items = list(differences((account for account in accounts if account.name in wanted), live, may_lack))
        return items, [named[name] for name in gone if name in wanted and name not in live]


def _must_last(use: BudgetAccountUse) -> bool:
    """Return whether an account of a member of a budget has used some of it, and its window never ends."""
    return ":" in use.name and ends_of(use.defined).never and any(use.used)
