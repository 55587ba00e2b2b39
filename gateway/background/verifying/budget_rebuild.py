"""Compares accounts of budgets in Redis with their stored use plus the entries that wait to be stored, and rewrites them.

While a partition is being verified, nothing moves: the flusher stores no entries that it read under another
history, and scripts refuse. So the sum is exact, whatever the counters lost or added.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from gateway.core.accounts.budgets import Budget, account_of, accounts_of
from gateway.core.accounts.definitions import OrganizationAccount
from gateway.core.accounts.outbox import WindowKey
from gateway.core.integrity.reconciliation import (
    BudgetAccountUse,
    as_they_should_be,
    carrying,
    collect_use,
    differing,
    run_as_it_should_be,
    waiting_in,
    windows_at,
)
from gateway.core.text import batched

if TYPE_CHECKING:
    from gateway.counters.keeper.verification import KeeperCounters
    from persistence.keeper.verification import BudgetUses


# Accounts that are compared and written before other work gets a turn.
REBUILT_AT_ONCE = 5_000


class BudgetRebuild:
    """Compares and rewrites the budget accounts of one partition at a time."""

    def __init__(self, source: BudgetUses, target: KeeperCounters) -> None:
        self._source, self._target = source, target

    async def rebuild(
        self, partition: int, marker: bytes, organizations: Iterable[OrganizationAccount], *, went_on: bool,
        unreadable: bool = False,
    ) -> int | None:  # fmt: skip
        """Rewrite wrong budget counters of organizations and runs in a partition; return how many.

        None if the partition's `marker` changed meanwhile. Counters above the use in PostgreSQL are lowered
        only with `went_on`, that is if Redis continued with older data. Otherwise, or if too many entries
        wait, they are left unchanged, since PostgreSQL may be the older one. If `unreadable`, only accounts that this
        version cannot read are rewritten, each in place of its present state.
        """
        definitions = [organization.definition for organization in organizations]
        defined = [definition for definition in definitions if definition.terms.budgets]
        # Most partitions have no organizations: a query for each would be most of a verification.
        ids = [definition.organization_id for definition in definitions]
        runs = await self._source.runs(ids) if ids else []
        if not defined and not runs:
            return 0
        now_ms = await self._target.now_ms()
        of_runs = [window for run in runs for window in run.budgets]
        budgets = [budget for definition in defined for budget in definition.terms.budgets]
        begun = [WindowKey(budget.id, run.created_ms) for run in runs for budget in run.budgets]
        windows = [*windows_at(budgets, now_ms), *begun]
        stored = await self._source.stored(partition, ids, windows, carrying(budgets))
        entries = await self._target.waiting(partition, stored.mark)
        apart = await self._target.waiting_apart(partition, ids)
        less_only = not went_on or entries is None or apart is None
        packed = [*(entries or ()), *(apart or ()), *stored.aside]
        waiting = waiting_in(packed, [*budgets, *of_runs])
        accounts = [run_as_it_should_be(run, stored.used, waiting.used) for run in runs]
        holds = await self._target.held_of_budgets(partition)
        known = collect_use(budgets, stored, waiting, now_ms)

        async def restore(expected: Sequence[BudgetAccountUse]) -> int | None:
            """Rewrite the wrong ones of some accounts; return their number, None if `marker` changed."""
            before = None
            if unreadable:
                before = await self._target.unreadable_budgets(
                    partition, [account.name for account in expected]
                )
                wrong = [account for account in expected if account.name in before]
            else:
                wrong = await self._wrong(partition, expected, less_only=less_only)
            if wrong and not await self._target.restore_budgets(
                partition, marker, wrong, now_ms, holds, before=before
            ):
                return None
            return len(wrong)

        written = await restore(accounts)
        if written is None:
            return None
        for definition in defined:
            owner, owned = definition.organization_id, definition.terms.budgets
            names = await self._read_names(partition, owner, owned)
            expected_uses = as_they_should_be(owner, owned, known, names)
            for some in batched(expected_uses, REBUILT_AT_ONCE):
                count = await restore(some)
                if count is None:
                    return None
                written += count
        await self._target.restore_runs(partition, runs)
        return written

    async def _read_names(self, partition: int, owner: int, budgets: Sequence[Budget]) -> list[str]:
        """Return the names of accounts in Redis of members of an organization's budgets."""
        return [
            name
            for alike in accounts_of(budgets)
            if alike[0].each
            for name in await self._target.somebodys_budgets(partition, account_of(owner, alike[0]))
        ]

    async def _wrong(
        self, partition: int, accounts: Sequence[BudgetAccountUse], *, less_only: bool
    ) -> list[BudgetAccountUse]:
        """Return the accounts whose counters in Redis differ; with `less_only`, those with too low ones.

        Accounts that another version wrote are omitted.
        """
        live, others = await self._target.live_budgets(partition, [account.name for account in accounts])
        return differing(
            [account for account in accounts if account.name not in others], live, less_only=less_only
        )
