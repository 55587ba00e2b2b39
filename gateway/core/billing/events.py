"""Use that did not pass the gateway: what one event of it says, and what waits for the counters.

An event has the id of a call, made of its source and id: so it is a call once, however often it is sent.
Pure: who is meant by a subject, and where events are kept, is not known here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import NAMESPACE_URL, UUID, uuid5

from gateway.core.accounts.outbox import CallFacts, read_facts, write_facts
from gateway.core.billing.price_book import KINDS, NO_COUNTS, PARTS_OF, WHOLES, Counts

# Of one request.
EVENTS_MAX = 500
# How far back an event may lie, and how far ahead a sender's clock may be.
AGE_DAYS_MAX = 365
AHEAD_S_MAX = 60
# Tokens, units or credits of one event.
AMOUNT_MAX = 10**12
# What calls of the journal that are events say as their route.
ROUTE = "events"


class Unacceptable(ValueError):
    """An event that cannot be charged: the field, and what would be right."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name} {reason}")
        self.name, self.reason = name, reason


@dataclass(frozen=True, slots=True)
class EventUsage:
    """What an event tells was used: `counts` are tokens by `KINDS`; `is_counted`: it told tokens at all."""

    at_ms: int
    model: str = ""
    user: str = ""
    project_id: int | None = None
    units: int = 1
    counts: Counts = NO_COUNTS
    tools: Mapping[str, int] = field(default_factory=dict)
    service_tier: str = ""
    is_counted: bool = False

    @property
    def tokens(self) -> int:
        """All of them: what is a part of another kind is not counted twice."""
        return sum(self.counts[:WHOLES])


@dataclass(frozen=True, slots=True)
class EventSettlement:
    """What an event moves, as it waits for the counters: the amounts of a settlement, and its facts.

    Its tokens count `weighed` ones of the quota. Unless `counts_tokens` they move none: then their service
    takes none, or their cycle is over.
    """

    tenant_id: int
    service_id: int
    meter: str
    one_time: bool
    tiers: bytes
    user: str
    project_id: int | None
    counts_tokens: bool
    tokens: int
    weighed: int
    credits: int
    over: int
    units: int
    money: int
    facts: CallFacts

    @property
    def attribution(self) -> str:
        """Its project, as a settlement carries it."""
        return "" if self.project_id is None else f"\t{self.project_id}\t"


def request_of(source: str, event_id: str, teller: int = 0) -> UUID:
    """Return the id of the call that an event is; `teller` is the organization whose own caller told it."""
    named = f"{len(source)}:{source}:{event_id}"
    return uuid5(NAMESPACE_URL, f"{teller} {named}" if teller else named)


def counts_of(usage: Mapping[str, Any]) -> Counts:
    """Return tokens by `KINDS` of an event's usage; `Unacceptable` where a part is more than its whole."""
    counts = tuple(int(usage.get(kind) or 0) for kind in KINDS)
    for whole, parts in PARTS_OF.items():
        said = sum(int(usage.get(part) or 0) for part in parts)
        if said > int(usage.get(whole) or 0):
            raise Unacceptable(f"data.usage.{whole}", f"must hold its parts: {', '.join(parts)}")
    return counts


def written(use: EventSettlement) -> dict[str, Any]:
    """Return a use as a control write carries it."""
    named = {name: getattr(use, name) for name in _PLAIN}
    return {**named, "tiers": use.tiers.hex(), "facts": write_facts(use.facts).decode()}


def read(payload: Mapping[str, Any]) -> EventSettlement:
    facts = read_facts(str(payload["facts"]).encode())
    assert facts is not None, "they are written above"
    named = {name: payload[name] for name in _PLAIN}
    return EventSettlement(tiers=bytes.fromhex(payload["tiers"]), facts=facts, **named)


_PLAIN = (
    "tenant_id", "service_id", "meter", "one_time", "user", "project_id", "counts_tokens", "tokens",
    "weighed", "credits", "over", "units", "money",
)  # fmt: skip
