"""Billing services, where a keeper has them. Stripe is loaded with its key alone, since it is an extra.

Part of the composition root.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Literal, cast

from gateway.background.isolation import Isolation
from gateway.background.timed.handovers import Handovers, Queue
from gateway.core.billing.handover import Collected, Returned
from gateway.errors import StartError
from gateway.run.calling_out import connector
from gateway.run.keeper_settings import KeeperSettings
from gateway.run.timed_loops import Loops
from gateway.run.usage_feed import UsageFeed
from gateway.settings.settings import Settings
from persistence.keeper.usage_feed import FeedQueue

if TYPE_CHECKING:
    from gateway.handover.stripe_api import StripeApi

Reader = Callable[[bytes, str], Collected | Returned | None]
LookUp = Callable[[Returned], Awaitable[Sequence[Collected]]]


class Collecting:
    """The keeper's ends of Stripe: the loop that hands over, and what reads its messages, where wanted.

    Beside them those of the service that is told what was used.
    """

    def __init__(self, settings: Settings, later: KeeperSettings) -> None:
        self._settings = settings
        self._api: StripeApi | None = None
        self.read: Reader | None = None
        self.look_up: LookUp | None = None
        self._feed = UsageFeed(settings, later)
        if not (settings.stripe_api_key or settings.stripe_webhook_secret):
            return
        try:
            from gateway.handover.stripe_api import StripeApi  # noqa: PLC0415  # an extra, and large
            from gateway.handover.stripe_events import StripeEvents  # noqa: PLC0415
            from gateway.handover.stripe_returns import StripeReturns  # noqa: PLC0415
        except ModuleNotFoundError as error:
            raise StartError(
                "TOLLKEEPER_STRIPE_API_KEY is set, and Stripe's library is not installed: "
                "pip install 'tollkeeper[stripe]'"
            ) from error
        if settings.stripe_api_key:
            connects = connector(later.proxies)
            self._api = StripeApi(later.saying("stripe_api_key"), settings.stripe_api_url, connects)
            self.look_up = StripeReturns(self._api).look_up
        if settings.stripe_webhook_secret:
            self.read = StripeEvents(later.saying("stripe_webhook_secret")).read

    def loops(self, queue: Queue, feed: FeedQueue, log: Callable[..., None], isolation: Isolation) -> Loops:
        """What hands over, where there is a key, and what tells of use."""
        telling = self._feed.loops(feed, log, isolation)
        if self._api is None:
            return telling
        from gateway.handover.stripe_invoices import StripeInvoices  # noqa: PLC0415

        how = cast("Literal['charge_automatically', 'send_invoice']", self._settings.stripe_collection)
        stripe = StripeInvoices(self._api, how, partial(datetime.now, UTC))
        return {"handovers": Handovers(queue, stripe, log, isolation=isolation).run, **telling}

    async def aclose(self) -> None:
        """Let go of all connections."""
        await self._feed.aclose()
        if self._api is not None:
            await self._api.aclose()
