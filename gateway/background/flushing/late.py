"""Posts settlements whose hold was unknown, each exactly once.

Such a settlement may have happened after all (its answer was lost), may have been reclaimed, or
may never have reached Redis. Once everything that happened before it is in the ledger, the
ledger knows: a request id found there is dropped or corrected, one not found is posted. What may have
been charged in a month that is archived becomes a dead letter, for a person who looks there. The
queue's entry is the token: posting and correcting delete it in the same step.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Protocol

from gateway.core.accounts.holds import Charged, Ending, LateSettlement, Verb
from gateway.core.accounts.losses import Movement
from gateway.core.billing.pricing import NANO, whole_credits
from gateway.core.calls.tariff import CONSUMPTION, PAY_PER_USE
from gateway.core.model import Settlement
from gateway.errors import CountersUnavailable

INTERVAL_S = 0.5
# What one pass reads, looks up and writes at once.
ENTRIES_MAX = 1_000


class Lane(Protocol):
    """The counters' late queue."""

    async def late(self, count: int) -> Sequence[LateSettlement]:
        """Late settlements that can be decided: what came before them is on its way no more."""

    async def end(self, endings: Sequence[Ending]) -> Sequence[bool]:
        """Deal with these at once, each once by its entry; which were dealt with."""


class Ledger(Protocol):
    """PostgreSQL."""

    async def charged(self, late: Sequence[LateSettlement]) -> Mapping[str, Charged]:
        """What is charged for each of these request ids, corrections included; absent: nothing."""

    async def maybe_gone(self, late: Sequence[LateSettlement]) -> Collection[str]:
        """The request ids of these that may have been charged in months that are not there any more."""

    async def set_aside(self, late: Sequence[LateSettlement]) -> None:
        """Make dead letters of them, each once by its entry."""

    async def refund(self, late: LateSettlement, amount: int) -> None:
        """Give credits of a request back, once by its id."""

    async def remember(self, acknowledged: Sequence[Movement]) -> None:
        """Keep as evidence what the counters acknowledged and the ledger of that epoch has not."""


class LateSettlements:
    """Empties the late queue."""

    def __init__(self, lane: Lane, ledger: Ledger, *, interval_s: float = INTERVAL_S) -> None:
        self._lane = lane
        self._ledger = ledger
        self._interval_s = interval_s
        self._wanted = asyncio.Event()

    def hurry(self) -> None:
        """Look at once: somebody is not served before what waits is dealt with."""
        self._wanted.set()

    async def drain(self) -> int:
        """Deal with what can be dealt with now; answers how many were.

        One that the counters refuse keeps no other from being dealt with.
        """
        late = await self._lane.late(ENTRIES_MAX)
        if not late:
            return 0
        if acknowledged := [movement for one in late for movement in one.acknowledged]:
            await self._ledger.remember(acknowledged)
        known = await self._ledger.charged(late)
        endings = [ended(one, known.get(one.settlement.request_id)) for one in late]
        unsure = await self._unsure([ending for ending, _ in endings if ending.verb is not Verb.DROP])
        for ending, refund in endings:
            if refund and ending not in unsure:
                await self._ledger.refund(ending.late, refund)
        left = [Ending(one.late, Verb.DROP) if one in unsure else one for one, _ in endings]
        return sum(await self._lane.end(left))

    async def _unsure(self, endings: Sequence[Ending]) -> set[Ending]:
        """Those that move something although their calls may be charged: dead letters from here on."""
        if not endings:
            return set()
        gone = await self._ledger.maybe_gone([one.late for one in endings])
        unsure = [one for one in endings if one.late.settlement.request_id in gone]
        if unsure:
            await self._ledger.set_aside([one.late for one in unsure])
        return set(unsure)

    async def run(self) -> None:
        """Drain twice a second, at once where there was anything to do or one hurries, until cancelled."""
        while True:
            drained = 0
            self._wanted.clear()
            with suppress(CountersUnavailable):
                drained = await self.drain()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wanted.wait(), 0 if drained else self._interval_s)


def ended(late: LateSettlement, charged: Charged | None) -> tuple[Ending, int]:
    """How a late settlement ends by what the ledger has of it, and the credits to give back.

    What settled after all stays as it is; what a reclaim charged is made good, and told where nothing of it
    differs: only its settlement knows what the call was.
    """
    if charged is None:
        used = late.settlement
        all_of_it = Charged(
            used.tokens, used.credits, used.units, over=used.over, weighed=used.weighed,
            money=used.money, raw_tokens=used.raw_tokens, requests=1,
        )  # fmt: skip
        return Ending(late, Verb.POST, all_of_it), 0
    if not late.charged and not charged.reclaimed:
        return Ending(late, Verb.DROP), 0
    more = difference(late.settlement, charged)
    move = replace(more, credits=max(0, more.credits))
    return Ending(late, Verb.CORRECT, move), max(0, -more.credits)


def difference(used: Settlement, charged: Charged) -> Charged:
    """What a call used beyond what is charged for it. A One-Time price is paid by whoever came first."""
    service = used.service
    weighed = used.of_quota - charged.of_quota if service.counts_tokens else 0
    tokens = weighed  # by the ledger alone, unless its amounts are weighed
    if service.counts_tokens and used.weighed is not None:
        tokens = used.tokens - charged.tokens
    credits_, over = 0, 0
    if service.meter == CONSUMPTION and not service.one_time:
        more = (used.credits - charged.credits) * NANO - (used.over - charged.over)
        credits_, over = whole_credits(more)
    return Charged(
        tokens,
        credits_,
        used.units - charged.units if service.meter == PAY_PER_USE else 0,
        over=over,
        weighed=None if weighed == tokens else weighed,
        money=used.money - charged.money,
        raw_tokens=used.raw_tokens - charged.raw_tokens,
        requests=1 - charged.requests,
    )
