"""Drafts scheduled invoices, waits for late settlements, and finalizes; logs each invoice it skipped, and
why.

Several keepers share the work: the keeper that has claimed a partition makes the invoices of its
organizations. Invoices that a dead keeper has not made are due again.
"""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from gateway.background.loops import is_store_away
from gateway.core.accounts.administration import Realm
from gateway.core.billing.invoice_schedule import (
    COUNTERS,
    NOT_AGREED,
    NOT_IN_LEDGER,
    NOT_STORED,
    TOOK_TOO_LONG,
    DueInvoice,
    ScheduledResult,
    SkipReason,
    left_by,
)
from gateway.core.integrity.reconciliation import Item, Owner
from gateway.errors import CallsOpen, Conflict, CountersUnavailable, NotStoredYet, TollkeeperError

if TYPE_CHECKING:
    from gateway.background.verifying.reconciler import Reconciler
    from gateway.counters.keeper.verification import KeeperCounters
    from persistence.keeper.verification import Accounts
    from persistence.schedule import Schedule

ORGANIZATIONS_A_PAGE = 5_000
# Organizations whose invoices are one transaction: they wait for each other, and the partition's flush for
# all.
ORGANIZATIONS_A_BATCH = 25
# An organization whose invoice took too long is tried again after two turns, then four, up to an hour.
PAUSE_TURNS_MAX = 60

# Returns whether this keeper got the claim on a partition.
Claim = Callable[[int], Awaitable[bool]]


@dataclass(slots=True, eq=False)
class Invoicing:
    """Makes due invoices, in batches of organizations, for `at_once` partitions at a time."""

    invoices: Schedule
    closing: AccountCloser
    log: Callable[..., None]
    _: KW_ONLY
    finalize: bool
    at_once: int
    organizations_a_batch: int = ORGANIZATIONS_A_BATCH
    shuffle: Callable[[list[int]], None] = random.shuffle
    _turns: int = field(default=0, init=False)
    # By organization whose statements took too long: the turn of the next try, and the pause in turns.
    _later: dict[int, tuple[int, int]] = field(default_factory=dict, init=False)

    async def turn(self) -> tuple[int, int]:
        """Make all due invoices; return the numbers of organizations done and skipped."""
        after, made, left = 0, 0, 0
        self._turns += 1
        due = partial(self.invoices.invoices_due, finalize=self.finalize)
        async with self.invoices.claims() as claim:
            while page := await due(after, ORGANIZATIONS_A_PAGE):
                done = await self._page(page, claim)
                after = page[-1].organization_id
                made, left = made + sum(one for one, _ in done), left + sum(one for _, one in done)
        await self.invoices.clear_skipped(ORGANIZATIONS_A_PAGE, finalize=self.finalize)
        if made or left:
            self.log("invoices made", made=made, left=left, level="warning" if left else "info")
        return made, left

    async def _page(self, page: Sequence[DueInvoice], claim: Claim) -> Sequence[tuple[int, int]]:
        """Make the invoices of each partition that this keeper can claim; return (done, skipped) of each."""
        free = asyncio.Semaphore(self.at_once)
        shares = defaultdict[int, list[int]](list)
        for due in page:
            shares[due.partition].append(due.organization_id)

        async def share(partition: int) -> tuple[int, int]:
            async with free:
                return await self._share(shares[partition]) if await claim(partition) else (0, 0)

        order = list(shares)
        self.shuffle(order)  # so that two keepers seldom try the same partition
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(share(organization_id)) for organization_id in order]
        return [task.result() for task in tasks]

    async def _share(self, organization_ids: Sequence[int]) -> tuple[int, int]:
        """Make the due invoices of these organizations in batches; return how many were made and left."""
        made = left = 0
        # Each try that takes too long delays the flush of its partition.
        now = [
            organization_id
            for organization_id in organization_ids
            if self._later.get(organization_id, (0, 0))[0] <= self._turns
        ]
        due = await self.invoices.still_due(now, finalize=self.finalize)
        final = {bill.organization_id for bill in due if bill.finalize}
        every = list(dict.fromkeys(bill.organization_id for bill in due))
        for at in range(0, len(every), self.organizations_a_batch):
            some = every[at : at + self.organizations_a_batch]
            result = await self._make(some, final.intersection(some))
            made, left = made + len(result.done), left + len(result.left)
        return made, left

    async def _make(self, organization_ids: Sequence[int], final: Collection[int]) -> ScheduledResult:
        """Make the invoices of a batch of organizations, after closing the accounts of those in `final`.

        Store and log the organizations that were skipped.
        """
        left = dict(await self._close(sorted(final))) if final else {}
        result = await self._make_invoices(
            [organization_id for organization_id in organization_ids if organization_id not in left]
        )
        left |= result.left
        await self.invoices.leave_invoices({**dict.fromkeys(result.done), **left})
        for organization_id in result.done:
            self._later.pop(organization_id, None)
        for organization_id, (reason, why) in left.items():
            if reason == TOOK_TOO_LONG:
                pause = min(2 * self._later.get(organization_id, (0, 1))[1], PAUSE_TURNS_MAX)
                self._later[organization_id] = (self._turns + pause, pause)
            fields = {"organization_id": organization_id, "reason": reason, "why": why}
            self.log("invoice left", **fields, level="warning")
        return ScheduledResult(result.done, left)

    async def _close(self, organization_ids: Sequence[int]) -> Mapping[int, SkipReason]:
        """Close the accounts of organizations (all movements stored), together or singly if that fails.

        Return the reason for each organization that is skipped.
        """
        try:
            return await self.closing.close_all(organization_ids)
        except TollkeeperError as refusal:
            if is_store_away(refusal):
                raise
            if len(organization_ids) == 1 or type(refusal) is CountersUnavailable:
                return dict.fromkeys(organization_ids, left_by(refusal))
        skip_reasons: dict[int, SkipReason] = {}
        for organization_id in organization_ids:
            skip_reasons |= await self._close([organization_id])
        return skip_reasons

    async def _make_invoices(self, organization_ids: Sequence[int]) -> ScheduledResult:
        """Make the invoices of organizations together, or one by one if PostgreSQL refuses all of them."""
        if not organization_ids:
            return ScheduledResult((), {})
        try:
            return await self.invoices.make_invoices(organization_ids, finalize=self.finalize)
        except TollkeeperError as refusal:
            if is_store_away(refusal):
                raise
            if len(organization_ids) == 1:
                return ScheduledResult((), {organization_ids[0]: left_by(refusal)})
        alone = [await self._make_invoices([organization_id]) for organization_id in organization_ids]
        done = [organization_id for result in alone for organization_id in result.done]
        return ScheduledResult(
            done, {organization_id: why for result in alone for organization_id, why in result.left.items()}
        )


# Closes the accounts of organizations, so that their invoices can be final.
#
# Three steps: sweep (no reset is due), drain (all movements up to now are stored), reconcile (counters and
# ledger agree, and no movement is missing).

DRAIN_LOOKS_MAX = 100
LOOK_AGAIN_S = 0.1
# How long a deletion or a change of currency waits, since a person waits for its answer.
SETTLE_S_MAX = 1.5
# The longest that a report of the newest calls waits for them, in seconds: at rest they are stored within 2.
STORED_S_MAX = 5.0
FAULTS_SAID_MAX = 3


class AccountCloser:
    """Closes accounts of organizations; reports the reasons of those it cannot close."""

    def __init__(self, counters: KeeperCounters, ledger: Accounts, check: Reconciler) -> None:
        self._counters = counters
        self._ledger = ledger
        self._check = check

    async def close(self, organization_id: int) -> None:
        """Wait until an organization's movements are in the ledger, and agree with the counters.

        Raise `Conflict` with the obstacle.
        """
        for open_ in (await self.close_all([organization_id])).values():
            raise Conflict(open_.why)

    async def close_all(self, organization_ids: Sequence[int]) -> Mapping[int, SkipReason]:
        """Close the accounts of organizations together; return the reason for each that stays open."""
        owners = await self._ledger.owners_of(organization_ids)
        obstacles = await self._bring(organization_ids, owners)
        rest = [owner for owner in owners if owner.organization_id not in obstacles]
        faults = (await self._check.check(rest, deep=True)).faults if rest else ()
        for owner in rest:
            mine = [item for item in faults if item.account in owner.accounts]
            if mine:
                obstacles[owner.organization_id] = SkipReason(NOT_AGREED, _describe_faults(mine))
        return obstacles

    async def settle(self, realm: Realm) -> None:
        """Wait until the movements of a realm's organization are in the ledger.

        Raise `CallsOpen` if calls of the realm (organization, tenant) have not ended: what they cost is known
        to nobody. Raise `NotStoredYet` if movements are not stored within `SETTLE_S_MAX`, or `Conflict` with
        another obstacle.
        """
        organization_id = realm.organization_id
        try:
            async with asyncio.timeout(SETTLE_S_MAX):
                owners = await self._ledger.owners_of([organization_id])
                tenants = owners[0].tenant_ids if realm.tenant_id is None else (realm.tenant_id,)
                if await self._counters.open_calls(organization_id, tenants):
                    raise CallsOpen
                for obstacle in (await self._bring([organization_id], owners)).values():
                    raise Conflict(obstacle.why)
        except (TimeoutError, CountersUnavailable) as error:
            raise NotStoredYet from error

    async def await_stored(self, organization_id: int) -> None:
        """Wait until movements of an organization up to now are in the ledger, for `STORED_S_MAX` at most.

        Do not wait while Redis does not answer.
        """
        with suppress(TimeoutError, CountersUnavailable):
            async with asyncio.timeout(STORED_S_MAX):
                await self._drain(await self._ledger.owners_of([organization_id]))

    async def _bring(self, organization_ids: Sequence[int], owners: Sequence[Owner]) -> dict[int, SkipReason]:
        """Apply due resets, and wait until all movements are in the ledger.

        Return the obstacle of each organization whose movements are not all there.
        """
        for tenant_id, organization_id in await self._ledger.due(organization_ids):
            await self._counters.sweep(tenant_id, organization_id)
        drained = await self._drain(owners)
        for organization_id, reasons in (await self._ledger.unresolved(organization_ids)).items():
            reasons_ = "; ".join(reasons[:FAULTS_SAID_MAX])
            drained.setdefault(
                organization_id, SkipReason(NOT_IN_LEDGER, f"Not everything is in the ledger: {reasons_}.")
            )
        return drained

    async def _drain(self, owners: Sequence[Owner]) -> dict[int, SkipReason]:
        """Wait until the owners' movements up to now are in PostgreSQL.

        Return the reason for each organization that still lacks some.
        """
        account_heads = await self._counters.account_heads(owners)
        others = SkipReason(
            COUNTERS, "A newer version of Tollkeeper keeps its counters: only that can close it."
        )
        strange = {
            owner.organization_id: others
            for owner in owners
            if not account_heads.keys() >= set(owner.accounts)
        }
        seqs = {name: head.seq for name, head in account_heads.items() if head is not None}
        for _ in range(DRAIN_LOOKS_MAX):
            stored = await self._ledger.accounts(seqs, deep=False)
            seqs = {name: seqs[name] for name, account in stored.items() if account.head.seq < seqs[name]}
            if not seqs:
                return strange
            await asyncio.sleep(LOOK_AGAIN_S)
        late = SkipReason(NOT_STORED, "Not everything that happened is stored yet; try again in a moment.")
        return strange | {
            owner.organization_id: late for owner in owners if not seqs.keys().isdisjoint(owner.accounts)
        }


def _describe_faults(faults: Sequence[Item]) -> str:
    sentence = "; ".join(f"{item.account} {item.kind}: {item.detail}" for item in faults[:FAULTS_SAID_MAX])
    return f"The accounts do not agree: {sentence}. See reconciliation."
