"""The loop that expires credits."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gateway.background.loops import Agenda, Loop, run_each
from gateway.core.billing.allocation import ExpiredGrant
from gateway.core.integrity.reconciliation import Owner
from gateway.counters.keeper.verification import KeeperCounters
from gateway.errors import CountersUnavailable
from persistence.billing.credit_balances import Allocations

EXPIRED_MAX = 500


def expirer(
    ledger: Allocations, counters: KeeperCounters, partition_of: Callable[[int], int],
    agenda: Agenda | None = None,
) -> Loop:  # fmt: skip
    """Return the loop that removes the unused rest of expired credits.

    Uses are allocated to grants as they are stored. Once all uses before a grant expired are allocated, its
    rest is final, and a control write removes it: later uses were paid by other grants.
    """

    async def allocate(organization_id: int) -> None:
        while not await ledger.allocate(organization_id):
            pass

    async def expired(_: int, count: int) -> Sequence[ExpiredGrant]:
        return await ledger.expired(await counters.now_ms(), count)

    async def expire(grant: ExpiredGrant) -> None:
        owner = grant.organization_id
        heads = await counters.account_heads([Owner(owner, ())])
        if (head := heads.get(f"credits:{owner}")) is not None:
            await ledger.expire(grant, partition_of(owner), head.seq)

    # A server that is away delays only its own accounts.
    away = (CountersUnavailable,)
    return Loop("expirer", 0.5, (
        run_each(lambda _, count: ledger.behind(count), allocate, count=100, name="organization {}".format),
        run_each(expired, expire, count=EXPIRED_MAX, leaves=away, name=lambda one: f"addition {one.id}"),
    ), quiet=away, agenda=agenda)  # fmt: skip
