"""Use as Lago takes it: a batch of events.

https://getlago.com/docs/api-reference/events/batch: `POST /api/v1/events/batch` with at most 100 events, each
with a `transaction_id`, an `external_subscription_id`, the `code` of a billable metric, a `timestamp` in
seconds, and `properties`. All are taken, or none: a refusal (422) says by position what is wrong with which,
also of one that it has already (`value_already_exist`, getlago/lago-api#3049). Such a one is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from gateway.core.alerts.webhook import Answer
from gateway.core.billing.usage_feed import UsageEvent
from gateway.handover.usage_events import Verdicts

KNOWN = {"transaction_id": ["value_already_exist"]}


class _Refusal(msgspec.Struct):
    error_details: dict[str, Any]


class Lago:
    """How Lago is spoken to; `code` is the billable metric."""

    path = "/api/v1/events/batch"
    content_type = "application/json"

    def __init__(self, code: str) -> None:
        self._code = code

    def body(self, events: Sequence[UsageEvent]) -> bytes:
        """A batch as it is sent."""
        return msgspec.json.encode({"events": [self._event(event) for event in events]})

    def verdicts(self, events: Sequence[UsageEvent], answer: Answer) -> Verdicts | None:
        """What is said of events by their positions; None where something else is said."""
        try:
            details = msgspec.json.decode(answer.body, type=_Refusal).error_details
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return None
        told = {at: details[str(at)] for at in range(len(events)) if str(at) in details}
        if not told or len(told) != len(details):
            return None
        known = {events[at].id for at, said in told.items() if said == KNOWN}
        refused = {
            events[at].id: f"Lago refuses it: {msgspec.json.encode(said).decode()}"
            for at, said in told.items()
            if said != KNOWN
        }
        return Verdicts(known, refused)

    def _event(self, event: UsageEvent) -> dict[str, object]:
        return {
            "transaction_id": event.name, "external_subscription_id": event.subject, "code": self._code,
            "timestamp": f"{event.at.timestamp():.3f}", "properties": event.properties,
        }  # fmt: skip
