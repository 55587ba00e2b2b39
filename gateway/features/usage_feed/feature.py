"""Usage feed: Lago, OpenMeter, a webhook or a file gets all usage as events."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from gateway.errors import StartError
from gateway.features.record import Feature, lazy, load
from gateway.features.usage_feed.settings import UsageFeedSettings

if TYPE_CHECKING:
    from gateway.ops.doctor_redis import Finding
    from gateway.run.keeper_parts import KeeperParts, Work
    from gateway.settings.settings import Settings


def _work(parts: KeeperParts) -> Work:
    """Return what a keeper runs for the usage feed: its gauges, and the sender that the settings choose."""
    from gateway.features.usage_feed.events import Terms  # of keepers alone
    from gateway.features.usage_feed.file import WRITTEN_AT_ONCE, EventFile
    from gateway.features.usage_feed.sender import UsageFeedSender
    from gateway.features.usage_feed.services import (
        CloudEventsWebhook,
        FeedApi,
        Lago,
        OpenMeter,
        UsageEvents,
    )
    from gateway.outbound.posting import Outgoing
    from gateway.run.keeper_parts import Work
    from persistence.usage_feed.queue import FeedQueue, forget, usage_feeds

    settings, engine = parts.settings.select(UsageFeedSettings), parts.engine
    work = Work(gauges=(partial(usage_feeds, engine),), hourly=(partial(forget, engine),))
    if settings.usage_feed == "off":
        return work
    if settings.usage_feed == "lago" and not settings.usage_feed_token:
        raise StartError("TOLLKEEPER_USAGE_FEED_TOKEN is not set: Lago wants an API key")
    queue, code, url = FeedQueue(engine), settings.usage_feed_code, settings.usage_feed_url
    terms = Terms(settings.usage_feed, settings.usage_feed_waiting_max)
    if settings.usage_feed == "file":
        file = EventFile(unquote(urlsplit(url).path), code)
        sender = UsageFeedSender(
            queue, file, terms, parts.log, batch=WRITTEN_AT_ONCE, at_once=1, isolation=parts.isolation
        )
        return replace(work, tasks={"usage feed": sender.run}, aclose=queue.release)
    # An operator names the address: it may be one of the operator's own network.
    outgoing = Outgoing(private=True, proxies=parts.later.proxies)
    token = parts.later.saying("usage_feed_token")
    shapes: dict[str, type[FeedApi]]
    shapes = {"lago": Lago, "openmeter": OpenMeter, "webhook": CloudEventsWebhook}
    events = UsageEvents(outgoing.ask, shapes[settings.usage_feed](code), url, token)
    sender = UsageFeedSender(queue, events, terms, parts.log, isolation=parts.isolation)

    async def aclose() -> None:
        await queue.release()
        await outgoing.aclose()

    return replace(work, tasks={"usage feed": sender.run}, aclose=aclose)


async def _findings(settings: Settings) -> AsyncIterator[Finding]:
    """Yield whether the service that takes the usage feed can be reached."""
    from gateway.core.calls.routes import UpstreamTarget  # of the doctor alone
    from gateway.ops.doctor import upstream_finding

    feed = settings.select(UsageFeedSettings)
    if feed.usage_feed not in {"off", "file"}:
        url = feed.usage_feed_url
        target = UpstreamTarget("", url, via=settings.proxies.to(url))
        yield await upstream_finding(target, f"usage feed {feed.usage_feed}")


FEATURE = Feature(
    name="usage_feed",
    tables=("usage_feed", "usage_outbox"),
    settings=UsageFeedSettings,
    metrics=(
        ("usage_feed_events", "gauge", "Usage events that the usage feed has not delivered.", ("state",)),
        ("usage_feed_oldest_seconds", "gauge", "Age of the oldest usage event that waits.", ()),
        ("usage_feed_sent", "counter", "Usage events that the usage feed delivered.", ()),
    ),
    resources=lazy("gateway.features.usage_feed.resources:RESOURCES"),
    subjects=lambda: {
        "usage-feeds": load("persistence.usage_feed.administration:FEEDS"),
        "usage-events": load("persistence.usage_feed.administration:EVENTS"),
    },
    screens=(
        {
            "heading": "Billing", "name": "usage-feeds", "title": "Usage feeds", "one": "usage feed",
            "columns": (
                "id", "service", "begun_at", "ended_at", "dropped_at", "sent", "waiting", "failed",
                "paused_until", "error",
            ),
            "empty": "No usage feed. TOLLKEEPER_USAGE_FEED names who is told.",
        },
        {
            "heading": "Billing", "name": "usage-events", "title": "Usage events", "one": "usage event",
            "columns": ("name", "organization_id", "kind", "state", "at", "model", "tokens", "cost", "error"),
            "empty": "No event is waiting.", "is_staffs": True,
        },
    ),
    is_on=lambda settings: settings.select(UsageFeedSettings).usage_feed != "off",
    listeners=lambda: (load("persistence.usage_feed.outbox:FeedListener")(),),
    work=_work,
    findings=_findings,
)  # fmt: skip
