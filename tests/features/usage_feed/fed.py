"""A usage feed between a ledger and a billing service of this machine; time passes when a test says so."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.features.usage_feed.events import AMOUNTS, FAILED_MAX, Terms
from gateway.features.usage_feed.sender import UsageFeedSender
from gateway.features.usage_feed.services import FeedApi, Lago, OpenMeter, UsageEvents
from gateway.outbound.posting import Outgoing
from persistence import engine
from persistence.usage_feed.queue import FeedQueue
from tests.features.usage_feed.usage_servers import CODE, TOKEN, Billing, billing_server
from tests.persistence.scenario import rows_of

# What tests use is older than this machine's clock, or younger.
BEGUN = "UPDATE usage_feed SET begun_at = '2000-01-01' RETURNING id"
# A call that was amended until nothing is left of it is one all the same.
USED = tuple(each for each in AMOUNTS if each != "requests")
SUMS = {"cache_write": "cache_write + cache_write_1h"}
OUT = "SELECT kind, state, requests, tokens, credits, units, cost FROM usage_outbox ORDER BY id"


@dataclass
class Fed:
    """One keeper's feed; `said` is what it logged."""

    url: str
    billing: Billing
    pool: AsyncEngine
    outgoing: Outgoing
    terms: Terms
    queue: FeedQueue
    said: list[dict[str, Any]] = field(default_factory=list)

    @property
    def service(self) -> UsageEvents:
        shape: FeedApi = Lago(CODE) if self.billing.lago else OpenMeter(CODE)
        return UsageEvents(self.outgoing.ask, shape, self.billing.url, lambda: TOKEN)

    def loop(self, batch: int = 100) -> UsageFeedSender:
        def log(what: str, **more: Any) -> None:
            self.said.append({"what": what, **more})

        return UsageFeedSender(self.queue, self.service, self.terms, log, batch=batch)

    async def begin(self, *, since_long: bool) -> None:
        await self.queue.begin(self.terms)
        if since_long:
            rows_of(self.url, BEGUN)

    async def dies(self) -> None:
        """A keeper dies behind sending: nothing is noted, and its lease ends."""
        for batch in (await FeedQueue(self.pool).claim(self.terms.service, 100),):
            if batch:
                await self.service.send(batch)
        self.pass_time()

    async def drain(self, batch: int = 100) -> None:
        """Send whatever can be sent before a pause."""
        loop = self.loop(batch=batch)
        while await loop.turn():
            pass

    def pass_time(self) -> None:
        """Pauses and leases are over."""
        rows_of(self.url, "UPDATE usage_feed SET paused_until = NULL, leased_until = NULL RETURNING id")

    def out(self) -> list[tuple[Any, ...]]:
        """What is in the outbox."""
        return rows_of(self.url, OUT)

    def feed(self, columns: str) -> tuple[Any, ...]:
        """What is said of the open feed."""
        [row] = rows_of(self.url, f"SELECT {columns} FROM usage_feed WHERE ended_at IS NULL")
        return row

    def agree(self) -> None:
        """Everything the journal has is there, once, to the nano-unit."""
        told = ", ".join(f"coalesce(sum({SUMS.get(each, each)}), 0)::bigint" for each in USED)
        [journal] = rows_of(self.url, f"SELECT {told} FROM call")
        there = {each: self.billing.total(each) for each in USED}
        there["cost"] *= 10**9
        assert there == {each: int(str(amount)) for each, amount in zip(USED, journal, strict=True)}


@asynccontextmanager
async def fed(
    url: str,
    *,
    lago: bool = True,
    waiting_max: int = 1_000_000,
    failed_max: int = FAILED_MAX,
    since_long: bool = True,
) -> AsyncIterator[Fed]:
    """A feed that is open, since long or from now on, of an installation whose database is there."""
    pool, outgoing = engine.create(url), Outgoing(private=True)
    async with billing_server(lago=lago) as billing:
        terms = Terms("lago" if lago else "openmeter", waiting_max)
        made = Fed(url, billing, pool, outgoing, terms, FeedQueue(pool, failed_max=failed_max))
        await made.begin(since_long=since_long)
        yield made
    await outgoing.aclose()
    await pool.dispose()
