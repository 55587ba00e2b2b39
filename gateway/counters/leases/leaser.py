"""Renews a lease for each tenant that was seen lately, so that its calls may go on without Redis.

The script `lease` runs a few times a minute for each tenant, never while a request waits. A lease shrinks
here at once, and in Redis with the next renewal. So tokens that this worker counts on are always held in
Redis, even if an answer is lost.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from contextlib import suppress
from typing import cast

from gateway.core.wait import Wait, in_task
from gateway.counters.layouts.packing import code_of
from gateway.counters.leases.allowance import (
    GIVE_BACK,
    LEASED,
    NONE,
    NOTHING,
    UNKNOWN,
    AccountLease,
    Allowance,
    Allowances,
    lease,
    leased,
)
from gateway.counters.redis.calls import Reply
from gateway.counters.redis.cluster import RedisConnections
from gateway.counters.redis.connection import RedisConnection, encode_script
from gateway.errors import CountersUnavailable

TICK_S = 0.25
# Tenants are renewed in small batches, because calls wait for whatever Redis does at once.
BATCH_S = 0.02
RENEW_S = 5.0
ACTIVE_S = 60.0
BATCH_MAX = 50
# Other settlements may wait in the same late queue for long: nothing is held that long for them.
CHARGED_S_MAX = 600.0

_Asked = tuple[Allowance, AccountLease, AccountLease, float, Wait[Reply]]


class Leaser:
    """The leases of one worker.

    Each is a `fraction` of the free amount, and ends after `lease_s` seconds without renewal. `pending`
    returns the number of settlements that have not reached Redis yet.
    """

    def __init__(
        self,
        wires: RedisConnections,
        allowances: Allowances,
        clock: Callable[[], float],
        *,
        fraction: float,
        lease_s: float,
        took: Callable[[float], None] = lambda _seconds: None,
        pending: Callable[[], int] = lambda: 0,
    ) -> None:
        self._wires, self._allowances, self._clock = wires, allowances, clock
        self._fraction, self._lease_s, self._batch_max = fraction, lease_s, BATCH_MAX
        self._took, self._pending = took, pending
        self._queue: list[tuple[float, int, Allowance]] = []
        self._turn = self._asking = 0
        # By available server, the run id that has every lease.
        self._heard: dict[RedisConnection, bytes] = {}

    @property
    def is_current(self) -> bool:
        """Whether Redis has the latest state and use of every valid lease."""
        if self._fraction <= 0:
            return True
        is_due = bool(self._queue) and self._queue[0][0] <= self._clock()
        there = self._connected_wires()
        return bool(there) and not is_due and not self._asking and there.items() <= self._heard.items()

    async def keep(self) -> None:
        """Renew due leases until cancelled; do nothing if the leased fraction is 0."""
        while True:
            more = self._fraction > 0 and await self.lease()
            await asyncio.sleep(BATCH_S if more else TICK_S)

    async def lease(self) -> bool:
        """Renew the due leases, or all of them after Redis was away; return whether more are due."""
        now = self._clock()
        allowances = self._allowances
        for allowance in (*allowances.fresh, *allowances.hurried.values()):
            self._schedule(allowance, now)
        allowances.fresh.clear()
        allowances.hurried.clear()
        there, of = self._connected_wires(), self._wires.of
        new = {wire for wire, run_id in there.items() if self._heard.get(wire) != run_id}
        for allowance in allowances.all() if new else ():
            if of(allowance.caller.partition) in new:
                self._schedule(allowance, now)
        self._heard = there
        asked: list[_Asked] = []
        while there and self._queue and self._queue[0][0] <= now and len(asked) < self._batch_max:
            _, turn, allowance = heapq.heappop(self._queue)
            if turn == allowance.turn and of(allowance.caller.partition) in there:
                asked.append(self._ask(allowance, now))
            elif turn == allowance.turn:  # its server is away, and another may have its partition later
                self._schedule(allowance, now + RENEW_S)
        self._asking = len(asked)
        for allowance, tokens, credits_, began, wait in asked:
            try:
                answer = cast("bytes", await in_task(wait))
            except CountersUnavailable:
                allowance.held = True  # it may be
                self._schedule(allowance, now)
                continue
            finally:
                self._asking -= 1
            self._took(self._clock() - began)
            self._answered(allowance, answer, tokens, credits_, began)
        return len(asked) == self._batch_max

    async def give_back(self) -> None:
        """Return every lease before this worker stops; used amounts stay held until they are charged."""
        held = [row for row in self._allowances.all() if row.held]
        for start in range(0, len(held), self._batch_max):
            waits = [self._end(allowance) for allowance in held[start : start + self._batch_max]]
            for wait in waits:
                with suppress(CountersUnavailable):  # the others may be on another server
                    await in_task(wait)

    def _connected_wires(self) -> dict[RedisConnection, bytes]:
        return {wire: wire.run_id for wire in self._wires.wires if wire.available}

    def _ask(self, allowance: Allowance, now: float) -> _Asked:
        handed_in = self._pending() == 0
        if allowance.spent and handed_in and now - allowance.used_at > CHARGED_S_MAX:
            allowance.charged()
        tokens, credits_ = allowance.tokens.share(handed_in), allowance.credits.share(handed_in)
        if now - allowance.seen > ACTIVE_S and not allowance.spent:
            allowance.ends = True
        if allowance.ends:
            allowance.drop()
            wait = self._send(allowance, GIVE_BACK)
        else:
            wait = self._send(allowance, self._lease_s, self._fraction, tokens, credits_)
        return allowance, tokens, credits_, now, wait

    def _end(self, allowance: Allowance) -> Wait[Reply]:
        """Return a lease to Redis, except its used part, which stays held until it is likely charged."""
        if not allowance.spent:
            return self._send(allowance, GIVE_BACK)
        spent, credits_ = (
            AccountLease(share.spent, share.spent) for share in (allowance.tokens, allowance.credits)
        )
        return self._send(allowance, min(self._lease_s, ACTIVE_S), 0.0, spent, credits_)

    def _send(
        self, allowance: Allowance, seconds: float, fraction: float = 0.0,
        tokens: AccountLease = NOTHING, credits_: AccountLease = NOTHING,
    ) -> Wait[Reply]:  # fmt: skip
        wire = self._wires.of(allowance.caller.partition)
        call = lease(
            wire.run_id, allowance.caller, allowance.lease_id, round(seconds * 1000),
            fraction=fraction, tokens=tokens, credits_=credits_,
        )  # fmt: skip
        return wire.send(encode_script("lease", *call))

    def _answered(
        self, allowance: Allowance, answer: bytes, tokens: AccountLease, credits_: AccountLease, began: float
    ) -> None:
        code, now = code_of(answer), self._clock()
        if code == LEASED:
            found = leased(answer)
            assert found is not None
            allowance.renew(found, began + self._lease_s, tokens, credits_)
            # Amounts no longer counted on are freed soon if they are large.
            shrunk = allowance.credits.kept * 2 < credits_.kept or (
                not allowance.unlimited and allowance.tokens.kept * 2 < tokens.kept
            )
            self._schedule(allowance, now if shrunk else now + RENEW_S)
        elif code == NONE:
            allowance.drop()
            if allowance.held and not allowance.ends:
                allowance.ends = True
                self._schedule(allowance, now)
            elif (
                allowance.spent and now - allowance.seen <= ACTIVE_S
            ):  # the next lease must know of the spent amount
                self._schedule(allowance, now + RENEW_S)
                allowance.held = allowance.ends = False
            else:  # the next caller admitted under a plan that allows it requests a new one
                self._allowances.forget(allowance)
        else:
            self._schedule(allowance, now + (RENEW_S if code == UNKNOWN else 0))

    def _schedule(self, allowance: Allowance, due: float) -> None:
        """Schedule the next renewal at `due`; an earlier one is cancelled."""
        allowance.turn = self._turn = self._turn + 1
        heapq.heappush(self._queue, (due, allowance.turn, allowance))
