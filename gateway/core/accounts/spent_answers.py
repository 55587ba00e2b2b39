"""Answers to callers whose amount is used up: by API key, else organization, else the settings. Pure.

Agents read 429 as a rate limit that they wait for. After 402 most of them end and show the message.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

STATUSES: Final = (429, 402)
# Reasons of refusals for a used up amount.
SPENT: Final = frozenset({"quota_exceeded", "budget_exceeded", "run_exceeded"})
# Numbers that agents read as the status of a temporary failure, anywhere in the text of a final refusal.
_READ_AS_STATUS: Final = re.compile("429|50[0234]|524")
# The longest `Retry-After` in seconds: a month, and a day more.
RETRY_AFTER_S_MAX: Final = 32 * 86_400


@dataclass(frozen=True, slots=True)
class SpentAnswer:
    """The status of a refusal for a used up amount, and the longest `Retry-After` in seconds; 0: unset."""

    status: int = 0
    retry_after_max_s: int = 0

    def else_of(self, other: SpentAnswer) -> SpentAnswer:
        """Return this answer; values that it does not set are taken from `other`."""
        if self.status and self.retry_after_max_s:
            return self
        return SpentAnswer(self.status or other.status, self.retry_after_max_s or other.retry_after_max_s)


UNSAID: Final = SpentAnswer()


def is_read_as_status(status: int, text: str) -> bool:
    """Return whether a 402 refusal's text contains a number that agents read as a temporary failure."""
    return status == HTTPStatus.PAYMENT_REQUIRED and _READ_AS_STATUS.search(text) is not None


def show_id(status: int, request_id: str) -> dict[str, str]:
    """Return the request id for the body of a refusal; {} if agents would read a status in it.

    The response fields always have the id.
    """
    return {} if is_read_as_status(status, request_id) else {"request_id": request_id}
