"""A keeper's work for Stripe: hand over due documents, a few at a time, with growing pauses.

Everything that waits is in PostgreSQL, so a restart forgets nothing. Existing objects at Stripe are looked up
first, so nothing is created twice. Stripe's library is an extra, and loaded only if Stripe is configured.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

from gateway.background.loops import Isolation
from gateway.core.network import DIRECT
from gateway.extras import loading
from gateway.features.stripe.handover import DONE, HandoverStep
from gateway.features.stripe.settings import StripeSettings
from gateway.run.keeper_parts import KeeperParts, Work
from gateway.run.keeper_settings import KeeperSettings
from gateway.settings.settings import Settings
from persistence.stripe.queue import HandoverQueue, forget, handed_over

if TYPE_CHECKING:
    from gateway.features.stripe.service import StripeApi, StripeInvoices

AT_ONCE = 4
INTERVAL_S = 1.0


class Handovers:
    """Runs due hand-overs, at most `at_once` at a time."""

    def __init__(
        self,
        queue: HandoverQueue,
        collector: StripeInvoices,
        log: Callable[..., None],
        *,
        at_once: int = AT_ONCE,
        isolation: Isolation | None = None,
    ) -> None:
        self._queue, self._isolation = queue, isolation or Isolation()
        self._collector = collector
        self._log = log
        self._at_once = at_once
        self._under_way = 0
        self._ended = asyncio.Event()

    async def run(self) -> None:
        """Hand over due documents until cancelled."""
        self._under_way = 0
        async with asyncio.TaskGroup() as attempts:
            while True:
                self._ended.clear()
                for handover in await self.claim():
                    attempts.create_task(self.attempt(handover))
                # A hand-over that waited for another one is due as soon as that is done.
                with suppress(TimeoutError):
                    async with asyncio.timeout(INTERVAL_S):
                        await self._ended.wait()

    async def claim(self) -> Sequence[HandoverStep]:
        """Claim due hand-overs, up to the free slots."""
        room = self._at_once - self._under_way
        due = await self._queue.claim(room) if room > 0 else ()
        self._under_way += len(due)
        return due

    async def attempt(self, handover: HandoverStep) -> None:
        """Make one attempt and store its outcome. If that fails, the hand-over is due again later."""
        try:
            await self._isolation.tried(
                "handovers", handover, self._attempt, name=lambda handover_: f"handover {handover_.id}"
            )
        finally:
            self._under_way -= 1
            self._ended.set()

    async def _attempt(self, handover: HandoverStep) -> None:
        outcome = await self._collector.hand_over(handover, lambda made: self._queue.note(handover, made))
        await self._queue.ended(handover, outcome)
        if outcome.state != DONE:
            fields = {"handover": handover.id, "kind": handover.kind, "state": outcome.state}
            self._log("not handed over", **fields, error=outcome.error, level="warning")


def is_used(settings: Settings) -> bool:
    """Return whether Stripe is configured; a missing library is reported at the start."""
    own = settings.select(StripeSettings)
    if not (own.stripe_api_key or own.stripe_webhook_secret):
        return False
    with loading("stripe"):
        import gateway.features.stripe.service  # noqa: F401  # large, and an extra
    return True


def api_of(settings: Settings, later: KeeperSettings) -> StripeApi:
    """Return the Stripe API, by the current key and proxies."""
    from gateway.features.stripe.service import StripeApi  # large

    # Where nobody is before any of them, nobody ever is: variables do not change while a process runs, and
    # files of proxies are never empty.
    connector = None
    if later.proxies() != DIRECT:
        from gateway.outbound.client import Connector  # heavy, and few keepers need it

        connector = Connector(later.proxies, None)
    return StripeApi(
        later.saying("stripe_api_key"), settings.select(StripeSettings).stripe_api_url, connector
    )


def work(parts: KeeperParts) -> Work:
    """Return the keeper's work for Stripe; documents are handed over only if there is an API key."""
    settings, engine = parts.settings, parts.engine
    own = settings.select(StripeSettings)
    does = Work(
        gauges=(partial(handed_over, engine),),
        hourly=(partial(forget, engine, own.stripe_events_keep_days),),
    )
    if not is_used(settings) or not own.stripe_api_key:
        return does
    from gateway.features.stripe.service import StripeInvoices  # large

    api = api_of(settings, parts.later)
    stripe = StripeInvoices(api, own.stripe_collection, partial(datetime.now, UTC))
    handovers = Handovers(HandoverQueue(engine, parts.store), stripe, parts.log, isolation=parts.isolation)
    return replace(does, tasks={"handovers": handovers.run}, aclose=api.aclose)
