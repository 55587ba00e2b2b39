"""Reported use that did not pass the gateway: the content of an event, and its pending settlement.

An event has a call id derived from its source and id, so it is one call, however often it is sent. Pure: who
a subject is, and where events are stored, is not known here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import NAMESPACE_URL, UUID, uuid5

from gateway.core.accounts.call_facts import CallFacts, read_facts, write_facts
from gateway.core.billing.price_book import KINDS, NO_COUNTS, PARTS_OF, WHOLES, Counts

# Most events of one request.
EVENTS_MAX = 500
# Most days since an event, and most seconds that a sender's clock may be ahead.
AGE_DAYS_MAX = 365
AHEAD_S_MAX = 60
# Most tokens, units or credits of one event.
AMOUNT_MAX = 10**12
# The route of events in the journal of calls.
ROUTE = "events"


class Unacceptable(ValueError):
    """Raised for an event that cannot be charged: the field, and what would be right."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name} {reason}")
        self.name, self.reason = name, reason


@dataclass(frozen=True, slots=True)
class EventUsage:
    """The use that an event reports. `counts` are tokens by `KINDS`; `is_counted`: it reported tokens."""

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
        """The total of tokens. A kind that is part of another (cached of input, for example) adds nothing."""
        return sum(self.counts[:WHOLES])


@dataclass(frozen=True, slots=True)
class EventSettlement:
    """The charge of an event while it waits for Redis: the amounts of a settlement, and its facts.

    Its tokens count as `quota_tokens` quota tokens. Without `counts_tokens` no quota is charged, because the
    service does not count tokens, or their cycle is over.
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
    quota_tokens: int
    credits: int
    over: int
    units: int
    money: int
    facts: CallFacts

    @property
    def attribution(self) -> str:
        """The event's project, in the form of a settlement's attribution; empty without a project."""
        return "" if self.project_id is None else f"\t{self.project_id}\t"


def request_of(source: str, event_id: str, teller: int = 0) -> UUID:
    """Return the id of the call that an event stands for; the same event always has the same id.

    `teller` is the id of the organization if its own caller reported the event.
    """
    named = f"{len(source)}:{source}:{event_id}"
    return uuid5(NAMESPACE_URL, f"{teller} {named}" if teller else named)


def counts_of(usage: Mapping[str, Any]) -> Counts:
    """Return an event's tokens by `KINDS`. Raise `Unacceptable` if parts exceed their whole."""
    counts = tuple(int(usage.get(kind) or 0) for kind in KINDS)
    for whole, parts in PARTS_OF.items():
        said = sum(int(usage.get(part) or 0) for part in parts)
        if said > int(usage.get(whole) or 0):
            raise Unacceptable(f"data.usage.{whole}", f"must hold its parts: {', '.join(parts)}")
    return counts


def written(use: EventSettlement) -> dict[str, Any]:
    """Return the settlement of a usage event as the payload of a control write (a command in Redis)."""
    named = {name: getattr(use, name) for name in _PLAIN}
    return {
        **named,
        "weighed": use.quota_tokens,
        "tiers": use.tiers.hex(),
        "facts": write_facts(use.facts).decode(),
    }


def read(payload: Mapping[str, Any]) -> EventSettlement:
    facts = read_facts(str(payload["facts"]).encode())
    assert facts is not None, "they are written above"
    named = {name: payload[name] for name in _PLAIN}
    tiers = bytes.fromhex(payload["tiers"])
    return EventSettlement(quota_tokens=payload["weighed"], tiers=tiers, facts=facts, **named)


_PLAIN = (
    "tenant_id", "service_id", "meter", "one_time", "user", "project_id", "counts_tokens", "tokens",
    "credits", "over", "units", "money",
)  # fmt: skip
