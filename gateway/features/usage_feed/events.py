"""Usage as events for a billing service: their contents, and the results of sending them.

Pure. An event has a unique name: it may be sent again at any time, and the receiver counts it once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Final, Literal

from gateway.core.billing.price_book import NANO_DIGITS

Service = Literal["lago", "openmeter", "webhook", "file"]
Kind = Literal["use", "late", "amended", "refunded", "rerated", "folded"]
State = Literal["waiting", "failed", "canceled"]
SERVICES: Final[tuple[Service, ...]] = ("lago", "openmeter", "webhook", "file")
# A call's own event; usage that was known late; changes by a person, a late settlement and a price; and the
# uses of an hour in one event.
KINDS: Final[tuple[Kind, ...]] = ("use", "late", "amended", "refunded", "rerated", "folded")
USE, LATE, AMENDED, REFUNDED, RERATED, FOLDED = KINDS
STATES: Final[tuple[State, ...]] = ("waiting", "failed", "canceled")
WAITING, FAILED, CANCELED = STATES
# The amounts of a call in an event. Each can be summed.
AMOUNTS: Final = (
    "requests", "input", "cache_read", "cache_write", "output", "reasoning", "tokens", "credits", "units",
    "cost",
)  # fmt: skip

# Lago takes no more at once.
BATCH_EVENTS_MAX = 100
BATCHES_AT_ONCE = 4
# Refused events without a decision of a person. With so many, nothing more is sent.
FAILED_MAX = 10_000
WAITING_EVENTS_MAX = 1_000_000
# Events in a state that are counted exactly; larger numbers are estimated.
COUNTED_MAX = 10_000
# The lease is longer than sending a batch, with all its halves: no other keeper sends it meanwhile.
SENDING_S_MAX = 90.0
LEASE_S = 120.0
PAUSE_S_MIN = 5.0
PAUSE_S_MAX = 300.0
# The longest wait that a receiver may ask for.
RETRY_AFTER_S_MAX = 3600.0
ERROR_CHARS_MAX = 500


@dataclass(frozen=True, slots=True)
class Terms:
    """The billing service, and how many events may wait uncombined. Further uses are summed by the hour."""

    service: Service
    waiting_max: int = WAITING_EVENTS_MAX


@dataclass(frozen=True, slots=True)
class FeedEvent:
    """One event: `subject` identifies the user of the service, `properties` are the amounts."""

    id: int
    name: str
    subject: str
    at: datetime
    properties: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Pause:
    """The receiver accepts nothing now: the reason, and the seconds that it asks to wait."""

    reason: str
    seconds: float = 0.0


@dataclass(slots=True)
class FeedResult:
    """The result for a batch of events, by id: accepted, or refused with the reason. Others still wait."""

    taken: set[int] = field(default_factory=set)
    refused: dict[int, str] = field(default_factory=dict)
    pause: Pause | None = None


def pause_s(attempt: int, asked_s: float = 0.0) -> float:
    """Return the seconds of a pause: longer with each failed `attempt`, at least what the receiver asks."""
    own = min(PAUSE_S_MAX, PAUSE_S_MIN * 2.0 ** min(attempt - 1, 16))
    return max(own, min(asked_s, RETRY_AFTER_S_MAX))


def amount_of(name: str, amount: int) -> str:
    """Return an amount as a decimal text; a cost is in units of its currency."""
    return f"{Decimal(amount).scaleb(-NANO_DIGITS).normalize():f}" if name == "cost" else str(amount)
