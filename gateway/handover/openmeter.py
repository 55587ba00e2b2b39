"""Use as OpenMeter takes it: a batch of CloudEvents 1.0.

https://openmeter.io/docs/api (Ingest events): `POST /api/v1/events`, `application/cloudevents-batch+json`,
204. https://openmeter.io/docs/metering/events/overview: an event counts once by `id` and `source`; a meter
matches its `type`, and adds up a property of `data`, a number or a text that is one. A batch with an event
that cannot be read is 400; it does not say which.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from gateway.core.alerts.webhook import Answer
from gateway.core.billing.usage_feed import UsageEvent
from gateway.core.moments import rfc3339
from gateway.handover.usage_events import Verdicts

SOURCE = "tollkeeper"


class OpenMeter:
    """How OpenMeter is spoken to; `type_` is what its meters match."""

    path = "/api/v1/events"
    content_type = "application/cloudevents-batch+json"

    def __init__(self, type_: str) -> None:
        self._type = type_

    def body(self, events: Sequence[UsageEvent]) -> bytes:
        """A batch as it is sent."""
        return msgspec.json.encode([self._event(event) for event in events])

    def verdicts(self, events: Sequence[UsageEvent], answer: Answer) -> Verdicts | None:
        """Nothing: a refusal does not say which event it is about."""
        return None

    def _event(self, event: UsageEvent) -> dict[str, object]:
        return {
            "specversion": "1.0", "id": event.name, "source": SOURCE, "type": self._type,
            "subject": event.subject, "time": rfc3339(event.at), "datacontenttype": "application/json",
            "data": event.properties,
        }  # fmt: skip
