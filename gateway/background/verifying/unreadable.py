"""Rebuilds accounts of one organization that no running program can read, once a person asks for it.

Nothing else does so: holds and entries that are no rows yet may be known to another version alone. So a rebuild is
refused while a program with another layout runs, while entries of the organization wait in the outbox, and while a
gateway has yet to send its settlement log again. An account is written in place of the very state that cannot be read:
scripts refuse to change that state, so what rows and existing holds come to is all that it can contain. A rebuild that
ends in the middle leaves other accounts unreadable, for the next one.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from gateway.background.verifying.budget_rebuild import BudgetRebuild
from gateway.core.integrity.roster import Roster
from gateway.core.layout import FORMS, LAYOUT
from gateway.core.processes import Program, name_programs
from gateway.errors import Conflict, CountersUnavailable, NotFound

if TYPE_CHECKING:
    from gateway.counters.keeper.verification import KeeperCounters
    from persistence.keeper.verification import LedgerReader

# How often, and at what interval, it is checked whether the entries of an organization are rows by now.
STORED_LOOKS_MAX, STORED_LOOK_S = 25, 0.2
# The most gateways that a refusal names.
WORKERS_NAMED_MAX = 8


class UnreadableAccounts:
    """Rebuilds an organization's unreadable accounts. `counters_of` returns the counters of a partition's server.

    `programs` returns the running programs; CountersUnavailable if Redis does not answer.
    """

    def __init__(
        self,
        source: LedgerReader,
        counters_of: Callable[[int], KeeperCounters],
        programs: Callable[[], Awaitable[Sequence[Program]]],
        partition_of: Callable[[int], int],
        *,
        looks_max: int = STORED_LOOKS_MAX,
    ) -> None:
        self._source, self._counters_of, self._programs = source, counters_of, programs
        self._partition_of, self._looks_max = partition_of, looks_max

    async def require(self, organization_id: int) -> None:
        """Raise `Conflict` with the reason why an organization's accounts must not be rebuilt now.

        `NotFound` for an unknown organization, CountersUnavailable while its partition is not verified.
        """
        programs = await self._programs()
        if others := [program for program in programs if (program.layout, program.forms) != (LAYOUT, FORMS)]:
            raise Conflict(f"Programs with another layout run, end these first: {name_programs(others)}.")
        if all(program.role != "keeper" for program in programs):
            raise Conflict("The list of programs names no keeper: try again in a while.")
        partition = self._partition_of(organization_id)
        if not (await self._source.truth({partition: [organization_id]}))[partition].organizations:
            raise NotFound(f"There is no organization {organization_id}.")
        target = self._counters_of(partition)
        await self._require_sent_logs(target, partition)
        waiting = await target.ids_waiting(partition, organization_id)
        for _ in range(self._looks_max):
            if not waiting:
                break
            await asyncio.sleep(STORED_LOOK_S)
            waiting &= await target.ids_waiting(partition, organization_id)
        apart = await target.waiting_apart(partition, [organization_id])
        if apart is None or apart:
            raise Conflict("Entries of the organization wait: release its accounts from quarantine first.")
        if waiting:
            raise Conflict(
                f"Entries of the organization wait in the outbox: {len(waiting)}. See `tollkeeper doctor`."
            )

    async def _require_sent_logs(self, target: KeeperCounters, partition: int) -> None:
        markers = await target.markers()
        if partition not in markers.verified:
            raise CountersUnavailable
        roster = Roster()
        roster.expect(await self._source.workers(), time.monotonic())
        epoch = markers.verified[partition]
        if missing := roster.missing(await target.reports(), markers.run_id, partition, epoch):
            named = ", ".join(sorted(missing)[:WORKERS_NAMED_MAX])
            raise Conflict(
                f"Gateways have yet to send their settlement logs again: {named}. Try again in a while."
            )

    async def rebuild(self, organization_id: int) -> Mapping[str, int]:
        """Rewrite the accounts that this version cannot read; return how many of each kind, by the letter in their keys.

        Errors are those of `require`.
        """
        await self.require(organization_id)
        partition = self._partition_of(organization_id)
        target = self._counters_of(partition)
        truth = (await self._source.truth({partition: [organization_id]}))[partition]
        marker = await target.marker(partition)
        written = dict(await target.pack_states(partition, truth)) | target.pack_users(partition, truth)
        before = await target.unreadable_states(written)
        names = await target.replace_states(partition, marker, before, written.items())
        budgets = await BudgetRebuild(self._source, target).rebuild(
            partition, marker, truth.organizations, went_on=False, unreadable=True
        )
        kinds = Counter(name.split(":")[2] for name in names)
        return {**kinds, **({"b": budgets} if budgets else {})}
