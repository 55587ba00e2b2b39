"""Credits expire when everything that happened before their moment is stored, not earlier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from gateway.background.loops import Loop
from gateway.core.billing.charges import ExpiredGrant
from gateway.core.integrity.reconciliation import Owner
from gateway.core.integrity.recovery import AccountHead
from gateway.counters.keeper.verification import KeeperCounters
from gateway.run.timed_loops import expirer
from persistence.billing.credit_balances import Allocations


class FakeLedger:
    """One organization (1) with two pages to allocate and one addition to expire."""

    def __init__(self) -> None:
        self.pages = 2
        self.waiting = [ExpiredGrant(5, 1)]
        self.allocated = 0
        self.asked: list[tuple[int, int]] = []

    async def behind(self, count: int) -> Sequence[int]:
        return [1] if self.pages else []

    async def allocate(self, organization_id: int) -> bool:
        self.pages -= 1
        self.allocated += 10
        return self.pages == 0

    async def expired(self, now_ms: int, count: int) -> Sequence[ExpiredGrant]:
        return self.waiting if now_ms >= 1_000 else []

    async def expire(self, expired: ExpiredGrant, partition: int, seq: int) -> bool:
        self.asked.append((partition, seq))
        if self.allocated < seq:
            return False
        self.waiting = []
        return True


class FakeCounters:
    """A clock and one account."""

    def __init__(self) -> None:
        self.at_ms = 999
        self.head: AccountHead | None = AccountHead(20, 5)

    async def now_ms(self) -> int:
        return self.at_ms

    async def account_heads(self, owners: Sequence[Owner]) -> Mapping[str, AccountHead | None]:
        return {"credits:1": self.head, "spend:1": None}


def loop(ledger: FakeLedger, counters: FakeCounters) -> Loop:
    return expirer(cast("Allocations", ledger), cast("KeeperCounters", counters), lambda _: 7)


async def test_nothing_expires_before_its_moment_by_the_counters_clock() -> None:
    ledger, counters = FakeLedger(), FakeCounters()
    await loop(ledger, counters).turn()
    assert (ledger.asked, ledger.allocated) == ([], 20)


async def test_the_rest_is_taken_once_the_account_is_allocated_as_far_as_it_went() -> None:
    ledger, counters = FakeLedger(), FakeCounters()
    counters.at_ms, counters.head = 1_000, AccountHead(30, 5)
    await loop(ledger, counters).turn()
    assert ledger.waiting
    ledger.pages = 1
    await loop(ledger, counters).turn()
    assert (ledger.asked, ledger.waiting) == ([(7, 30), (7, 30)], [])


async def test_an_account_the_counters_do_not_know_waits() -> None:
    ledger, counters = FakeLedger(), FakeCounters()
    counters.at_ms, counters.head = 1_000, None
    await loop(ledger, counters).turn()
    assert ledger.asked == []
