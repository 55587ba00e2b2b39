"""Sends usage events to a billing service: a batch at once, by halves where a part of it is refused.

What each service is asked, and what it says of single events, stands in a file of its own. An answer that
says nothing of the events, such as 503, 429 or 401, is a pause of all of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from gateway.core.alerts.webhook import Answer
from gateway.core.billing.usage_feed import ERROR_CHARS_MAX, SENDING_S_MAX, Pause, Sent, UsageEvent
from gateway.core.retry_after import retry_after_s

# Of the client's errors those that are about what was sent; the others are about who sends it, and where to.
ABOUT_EVENTS = frozenset({400, 409, 413, 422})


class Post(Protocol):
    """The way out."""

    async def __call__(self, url: str, headers: dict[str, str], body: bytes) -> Answer:
        """Post once; never raises for what the other side does."""


@dataclass(frozen=True, slots=True)
class Verdicts:
    """What an answer says of single events: those it knows already, and what is wrong with others."""

    known: Collection[int]
    refused: Mapping[int, str]


class Shape(Protocol):
    """How one service is spoken to."""

    path: str
    content_type: str

    def body(self, events: Sequence[UsageEvent]) -> bytes:
        """A batch as it is sent."""

    def verdicts(self, events: Sequence[UsageEvent], answer: Answer) -> Verdicts | None:
        """What a refusal says of single events; None where it says nothing of them."""


class UsageEvents:
    """The way of events to a billing service, which knows us by the token of now; empty for none."""

    def __init__(
        self,
        post: Post,
        shape: Shape,
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
        # A compressed answer would be read as it is.
        said = {"User-Agent": "tollkeeper", "Accept-Encoding": "identity"}
        said["Content-Type"] = self._shape.content_type
        self._sent = self._token()
        return said | ({"Authorization": f"Bearer {self._sent}"} if self._sent else {})

    async def send(self, events: Sequence[UsageEvent]) -> Sent:
        """Have a batch taken; whatever the other side does is told, not raised.

        What is neither taken nor refused waits: behind a pause, or since there is no more time.
        """
        sent = Sent()
        end = self._clock() + self._sending_s_max
        pieces = [events]
        while pieces and sent.pause is None and self._clock() < end:
            piece = pieces.pop()
            answer = await self._post(self._url, self._headers(), self._shape.body(piece))
            if answer.status is not None and 200 <= answer.status < 300:
                sent.taken.update(event.id for event in piece)
            elif answer.status in ABOUT_EVENTS:
                pieces += self._refused(piece, answer, sent)
            else:
                sent.pause = Pause(self._said(answer), retry_after_s(answer.retry_after, time.time()) or 0.0)
        return sent

    def _refused(self, piece: Sequence[UsageEvent], answer: Answer, sent: Sent) -> list[Sequence[UsageEvent]]:
        """What of a refused piece is sent again, the first of it last."""
        verdicts = self._shape.verdicts(piece, answer)
        if verdicts is not None:
            sent.taken.update(verdicts.known)
            sent.refused.update((id_, self._shown(why)) for id_, why in verdicts.refused.items())
            told = {*verdicts.known, *verdicts.refused}
            rest = [event for event in piece if event.id not in told]
            return [rest] if rest else []
        if len(piece) == 1:
            sent.refused[piece[0].id] = self._said(answer)
            return []
        half = len(piece) // 2
        return [piece[half:], piece[:half]]

    def _said(self, answer: Answer) -> str:
        """What an answer says, as people read it."""
        if answer.status is None:
            return self._shown(f"it does not answer: {answer.error}")
        body = answer.body.decode("utf-8", "replace")
        return self._shown(f"it answers {answer.status}: {body or answer.error or 'nothing'}")

    def _shown(self, text: str) -> str:
        if self._sent:
            text = text.replace(self._sent, "(hidden)")
        return " ".join(text.replace("\0", "").split())[:ERROR_CHARS_MAX]
