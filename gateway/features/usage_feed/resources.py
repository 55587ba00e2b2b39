"""The resources for usage feeds, and for usage events that wait or were refused."""

from __future__ import annotations

from uuid import UUID

from pydantic import Field

from gateway.admin.resources.resource import Action, Filter, Resource
from gateway.admin.resources.values import Exactly, Id, Instant, Out
from gateway.core.accounts.administration import BILLING, RowScope, access
from gateway.features.usage_feed.events import CANCELED, COUNTED_MAX, FAILED, KINDS, STATES


class UsageFeed(Out):
    """A span of time whose usage is reported to a billing service."""

    id: Id
    service: str = Field(description="lago, openmeter, webhook or file.")
    begun_at: Instant = Field(description="Earlier use is not reported.")
    ended_at: Instant | None = Field(
        description="Use since is not reported. what was used before is, also what becomes known later."
    )
    dropped_at: Instant | None = Field(description="Since when nothing of it is told any more.")
    dropped: int | None = Field(description="Events that were not told by then.")
    waiting: int = Field(description=f"Events that wait; at most {COUNTED_MAX} are counted.")
    failed: int = Field(description="Events that were refused, and a person has to look.")
    waiting_max: int = Field(description="Events that may wait one a use; more are added up by the hour.")
    sent: int = Field(description="Events that were taken.")
    attempts: int = Field(description="Attempts in a row that nothing came of.")
    paused_until: Instant | None
    error: str | None = Field(description="What the last attempt failed by.")


class UsageEvent(Out):
    """A usage event that waits, was refused or was canceled. Accepted events are deleted."""

    id: Id
    feed_id: Id
    name: str = Field(description="Makes it once at the other side.")
    kind: str = Field(
        description="use (a call), late, amended, refunded or rerated (a difference), folded (an hour)."
    )
    state: str = Field(description="waiting, failed (a person has to look) or canceled.")
    at: Instant = Field(description="When it counts.")
    request_id: UUID | None
    used_at: Instant | None
    organization_id: Id
    tenant_id: Id
    api_key_id: Id | None
    user_id: Id | None
    project_id: int | None
    service_id: Id | None
    model: str
    currency: str
    tags: dict[str, str] = Field(description="Those of its call; none of an hour.")
    model_asked: str | None = Field(
        description="Asked for, where a step of a budget sent `model`; none of an hour."
    )
    substituted_by: str | None = Field(description="The name of that budget.")
    requests: int
    input: int
    cache_read: int
    cache_write: int
    output: int
    reasoning: int
    tokens: int
    credits: int
    units: int
    cost: Exactly
    error: str | None = Field(description="Why it was refused.")
    created_at: Instant


RESOURCES = (
    Resource(
        name="usage-feeds",
        access=access(BILLING, reach=RowScope.WHOLE),
        description="Spans of time whose use is told to Lago, OpenMeter, a webhook or a file.",
        out=UsageFeed,
        named_by="id",
        actions=(
            Action(
                "resume", "Send again at once, whatever pause there is",
                offered=lambda row: row["paused_until"] is not None and row["dropped_at"] is None,
                done="It is sent again.",
            ),
            Action(
                "retry", "Send all again that was refused",
                offered=lambda row: row["failed"] != 0 and row["dropped_at"] is None,
            ),
            Action(
                "end", "Report no use from now on; what was used before is still told",
                offered=lambda row: row["ended_at"] is None,
                confirmed="Use from now on is not reported, now or later.", done="Ended.",
            ),
            Action(
                "drop", "Leave what an ended feed did not tell yet, and tell nothing more of its time",
                offered=lambda row: row["ended_at"] is not None and row["dropped_at"] is None,
                confirmed="The billing service is never told what waits, nor what becomes known later.",
                done="Dropped.",
            ),
            Action(
                "begin", "Tell what is used from now on again, in a feed like one that has ended",
                offered=lambda row: row["ended_at"] is not None, done="A new feed has begun.",
            ),
        ),
    ),
    Resource(
        name="usage-events",
        access=access(BILLING, ours=("retry", "cancel")),
        description="Usage events that wait for the usage feed, or were refused there.",
        out=UsageEvent,
        named_by="id",
        filters={
            "organization_id": Filter(),
            "feed_id": Filter(),
            "state": Filter("text", STATES),
            "kind": Filter("text", KINDS),
        },
        actions=(
            Action(
                "retry", "Send one again that was refused or left",
                offered=lambda row: row["state"] in {FAILED, CANCELED},
            ),
            Action(
                "cancel", "Leave one that was refused",
                offered=lambda row: row["state"] == FAILED,
                confirmed="The billing service is never told this use.",
            ),
        ),
    ),
)  # fmt: skip
