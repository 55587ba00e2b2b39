"""One worker with its leases and its settlement log, on a real server, for tests."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from gateway.core.model import (
    Admitted,
    HoldRequest,
    Refused,
    Settlement,
    SettleResult,
)
from gateway.counters.admission.counters import Counters
from gateway.counters.leases.allowance import Allowances
from gateway.counters.leases.leaser import RENEW_S, Leaser
from gateway.counters.redis.connection import RedisConnection
from gateway.counters.settlement_log.log import SettlementLog
from gateway.counters.settlement_log.resubmission import Resubmitter
from gateway.errors import CountersUnavailable
from tests.builders import (
    CHAT,
    World,
    driven,
    new_id,
)

LEASE_S = 600.0


@dataclass(slots=True)
class Clock:
    """Seconds that pass when told."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass(slots=True)
class Worker:
    """One worker's counters and leases; `cut` is whether it has lost Redis."""

    world: World
    wire: RedisConnection
    allowances: Allowances
    counters: Counters
    leaser: Leaser
    clock: Clock
    log: SettlementLog
    resubmitter: Resubmitter

    def seen(self) -> None:
        self.allowances.wanted(self.world.caller)

    async def renew(self) -> None:
        """Everything that is due by then."""
        self.seen()
        self.clock.now += RENEW_S
        await self.leaser.lease()

    async def lose(self) -> None:
        """The breaker opens: to this worker Redis is away."""
        self.wire.available = False
        await self.leaser.lease()

    async def find(self) -> None:
        self.wire.available = True
        await self.leaser.lease()

    @property
    def left(self) -> int:
        return self.allowances.all()[0].tokens.left

    def request(self, need: int = 0, **more: Any) -> HoldRequest:
        service = more.pop("service", CHAT)
        ceiling, credits_ = more.pop("ceiling", need), more.pop("credits_", 0)
        return HoldRequest(self.world.caller, new_id(), "", service, need, ceiling, credits_, **more)

    async def reserve(self, need: int = 0, **more: Any) -> tuple[HoldRequest, Admitted | Refused]:
        request = self.request(need, **more)
        return request, await driven(self.counters.reserve(request))

    async def settle(
        self, request: HoldRequest, tokens: int, *, charge: bool = True, **used: Any
    ) -> SettleResult:
        settlement = Settlement(
            request.caller, request.request_id, request.user, request.service, charge, tokens, **used
        )
        return await driven(self.counters.settle(settlement))

    async def release(self, request: HoldRequest) -> None:
        """End a call of which nothing came; whether that is acknowledged does not matter."""
        with suppress(CountersUnavailable):
            await self.settle(request, 0, charge=False)


Employ = Callable[..., Any]


def silent(*_: Any, **__: Any) -> None:
    """Says nothing."""
