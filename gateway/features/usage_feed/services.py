"""Sends usage events to a billing service: a batch at a time, and halves of it if a part is refused.

Each service has a class with its requests and its verdicts on single events. An answer without such verdicts,
as with 503, 429 or 401, is a pause for all events.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from gateway.core.alerts.messages import Answer
from gateway.core.times import rfc3339
from gateway.core.wait_hints import retry_after_s
from gateway.features.usage_feed.events import ERROR_CHARS_MAX, SENDING_S_MAX, FeedEvent, FeedResult, Pause

# Client errors about the events that were sent. All others are about the sender or the address.
ABOUT_EVENTS = frozenset({400, 409, 413, 422})


# Posts a body with headers to a URL, once. Faults of the receiver are returned, never raised.
Post = Callable[[str, dict[str, str], bytes], Awaitable[Answer]]


@dataclass(frozen=True, slots=True)
class Verdicts:
    """An answer's verdicts on single events: those that the service has already, and faults of others."""

    known: Collection[int]
    refused: Mapping[int, str]


class FeedApi(ABC):
    """The API of one service. `code` is the type or metric of the events."""

    path = ""
    content_type = "application/json"

    def __init__(self, code: str) -> None:
        self._code = code

    @abstractmethod
    def body(self, events: Sequence[FeedEvent]) -> bytes:
        """Return the request body of a batch."""

    def verdicts(self, events: Sequence[FeedEvent], answer: Answer) -> Verdicts | None:
        """Return which single events a refusal accepts or refuses; None if the answer does not tell."""
        return None


class UsageEvents:
    """Sends events to a billing service, with the current token, which may be empty."""

    def __init__(
        self,
        post: Post,
        shape: FeedApi,
        url: str,
        token: Callable[[], str],
        *,
        clock: Callable[[], float] = time.monotonic,
        sending_s_max: float = SENDING_S_MAX,
    ) -> None:
        self._post, self._shape = post, shape
        self._url = url.rstrip("/") + shape.path
        self._token, self._sent = token, ""
        self._clock = clock
        self._sending_s_max = sending_s_max

    def _headers(self) -> dict[str, str]:
        # A compressed answer would not be decoded.
        headers = {"User-Agent": "tollkeeper", "Accept-Encoding": "identity"}
        headers["Content-Type"] = self._shape.content_type
        self._sent = self._token()
        return headers | ({"Authorization": f"Bearer {self._sent}"} if self._sent else {})

    async def send(self, events: Sequence[FeedEvent]) -> FeedResult:
        """Deliver a batch; faults of the receiver are returned, not raised.

        Events that are neither accepted nor refused still wait, after a pause or for lack of time.
        """
        sent = FeedResult()
        end = self._clock() + self._sending_s_max
        pieces = [events]
        while pieces and sent.pause is None and self._clock() < end:
            piece = pieces.pop()
            answer = await self._post(self._url, self._headers(), self._shape.body(piece))
            if answer.status is not None and 200 <= answer.status < 300:
                sent.taken.update(event.id for event in piece)
            elif answer.status in ABOUT_EVENTS:
                pieces += self._note_refused(piece, answer, sent)
            else:
                sent.pause = Pause(
                    self._error_message(answer), retry_after_s(answer.retry_after, time.time()) or 0.0
                )
        return sent

    def _note_refused(
        self, piece: Sequence[FeedEvent], answer: Answer, sent: FeedResult
    ) -> list[Sequence[FeedEvent]]:
        """Note in `sent` which events of a refused batch were accepted or refused.

        Return parts to send again. If the answer does not name events, the parts are the batch's halves, the
        first half last.
        """
        verdicts = self._shape.verdicts(piece, answer)
        if verdicts is not None:
            sent.taken.update(verdicts.known)
            sent.refused.update((id_, self._hide_credentials(why)) for id_, why in verdicts.refused.items())
            ids = {*verdicts.known, *verdicts.refused}
            rest = [event for event in piece if event.id not in ids]
            return [rest] if rest else []
        if len(piece) == 1:
            sent.refused[piece[0].id] = self._error_message(answer)
            return []
        half = len(piece) // 2
        return [piece[half:], piece[:half]]

    def _error_message(self, answer: Answer) -> str:
        """Return the answer as an error message."""
        if answer.status is None:
            return self._hide_credentials(f"it does not answer: {answer.error}")
        body = answer.body.decode("utf-8", "replace")
        return self._hide_credentials(f"it answers {answer.status}: {body or answer.error or 'nothing'}")

    def _hide_credentials(self, text: str) -> str:
        if self._sent:
            text = text.replace(self._sent, "(hidden)")
        return " ".join(text.replace("\0", "").split())[:ERROR_CHARS_MAX]


# Use as Lago takes it: a batch of events.
#
# https://getlago.com/docs/api-reference/events/batch: `POST /api/v1/events/batch` with at most 100 events,
# each with a `transaction_id`, an `external_subscription_id`, the `code` of a billable metric, a `timestamp`
# in seconds, and `properties`. All are taken, or none: a refusal (422) says by position what is wrong with
# which, also of one that it has already (`value_already_exist`, getlago/lago-api#3049). Such a one is taken.

KNOWN = {"transaction_id": ["value_already_exist"]}


class _LagoRefusal(msgspec.Struct):
    error_details: dict[str, Any]


class Lago(FeedApi):
    """Lago's API; `code` is the billable metric."""

    path = "/api/v1/events/batch"

    def body(self, events: Sequence[FeedEvent]) -> bytes:
        return msgspec.json.encode({"events": [self._event(event) for event in events]})

    def verdicts(self, events: Sequence[FeedEvent], answer: Answer) -> Verdicts | None:
        """Return the verdicts on events by their positions, or None for any other error."""
        try:
            details = msgspec.json.decode(answer.body, type=_LagoRefusal).error_details
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return None
        verdicts_ = {at: details[str(at)] for at in range(len(events)) if str(at) in details}
        if not verdicts_ or len(verdicts_) != len(details):
            return None
        known = {events[at].id for at, verdict in verdicts_.items() if verdict == KNOWN}
        refused = {
            events[at].id: f"Lago refuses it: {msgspec.json.encode(verdict).decode()}"
            for at, verdict in verdicts_.items()
            if verdict != KNOWN
        }
        return Verdicts(known, refused)

    def _event(self, event: FeedEvent) -> dict[str, object]:
        return {
            "transaction_id": event.name, "external_subscription_id": event.subject, "code": self._code,
            "timestamp": f"{event.at.timestamp():.3f}", "properties": event.properties,
        }  # fmt: skip


# Use as OpenMeter takes it: a batch of CloudEvents 1.0.
#
# https://openmeter.io/docs/api (Ingest events): `POST /api/v1/events`, `application/cloudevents-batch+json`,
# 204. https://openmeter.io/docs/metering/events/overview: an event counts once by `id` and `source`; a meter
# matches its `type`, and adds up a property of `data`, a number or a text that is one. A batch with an event
# that cannot be read is 400; it does not say which.

SOURCE = "tollkeeper"


class OpenMeter(FeedApi):
    """OpenMeter's API; `code` is the type that its meters match. It refuses no single event."""

    path = "/api/v1/events"
    content_type = "application/cloudevents-batch+json"

    def body(self, events: Sequence[FeedEvent]) -> bytes:
        return msgspec.json.encode([cloud_event(event, self._code) for event in events])


class CloudEventsWebhook(OpenMeter):
    """A receiver of batches of CloudEvents at the whole configured URL.

    The content mode is that of
    https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/http-protocol-binding.md (3.3, batched).
    """

    path = ""


def cloud_event(event: FeedEvent, type_: str) -> dict[str, object]:
    """Return an event as CloudEvents 1.0 defines it; it counts once by `id` and `source`."""
    return {
        "specversion": "1.0", "id": event.name, "source": SOURCE, "type": type_,
        "subject": event.subject, "time": rfc3339(event.at), "datacontenttype": "application/json",
        "data": event.properties,
    }  # fmt: skip
