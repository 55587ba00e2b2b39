"""The usage feed, where a keeper has one: which service is told, where, and by whom.

Part of the composition root.
"""

from __future__ import annotations

from collections.abc import Callable

from gateway.background.isolation import Isolation
from gateway.background.timed.usage_feed import UsageFeedSender
from gateway.core.billing.usage_feed import Terms
from gateway.errors import StartError
from gateway.handover.lago import Lago
from gateway.handover.openmeter import OpenMeter
from gateway.handover.usage_events import Shape, UsageEvents
from gateway.run.calling_out import outgoing
from gateway.run.keeper_settings import KeeperSettings
from gateway.run.timed_loops import Loops
from gateway.settings.settings import Settings
from persistence.keeper.usage_feed import FeedQueue


class UsageFeed:
    """A keeper's ends of the feed; none where no service is named."""

    def __init__(self, settings: Settings, later: KeeperSettings) -> None:
        self._settings, self._token = settings, later.saying("usage_feed_token")
        self._queue: FeedQueue | None = None
        # An operator names the address: it may be one of the operator's own network.
        self._outgoing = outgoing(later.proxies, private=True)
        if settings.usage_feed == "lago" and not settings.usage_feed_token:
            raise StartError("TOLLKEEPER_USAGE_FEED_TOKEN is not set: Lago wants an API key")

    def loops(self, queue: FeedQueue, log: Callable[..., None], isolation: Isolation) -> Loops:
        """What tells the service, where there is one."""
        settings = self._settings
        if settings.usage_feed == "off":
            return {}
        self._queue = queue
        lago, code = settings.usage_feed == "lago", settings.usage_feed_code
        shape: Shape = Lago(code) if lago else OpenMeter(code)
        events = UsageEvents(self._outgoing.ask, shape, settings.usage_feed_url, self._token)
        terms = Terms("lago" if lago else "openmeter", settings.usage_feed_waiting_max)
        return {"usage feed": UsageFeedSender(queue, events, terms, log, isolation=isolation).run}

    async def aclose(self) -> None:
        """Let another keeper go on, and let go of all connections."""
        if self._queue is not None:
            await self._queue.release()
        await self._outgoing.aclose()
