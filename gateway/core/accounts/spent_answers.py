"""How callers are told that an amount is spent: by API key, else organization, else the settings. Pure.

Agents read 429 as a rate limit that they wait for. With 402 most of them end and show the sentence.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

STATUSES: Final = (429, 402)
# Reasons of refusals that say so.
SPENT: Final = frozenset({"quota_exceeded", "budget_exceeded", "run_exceeded"})
# Numbers that agents read as the status of a failure that passes, wherever they stand in a final refusal.
_READ_AS_STATUS: Final = re.compile("429|50[0234]|524")
# Seconds that a client may be told to wait at most: a month, and a day for those that count on.
RETRY_AFTER_S_MAX: Final = 32 * 86_400


@dataclass(frozen=True, slots=True)
class SpentAnswer:
    """The status of such a refusal, and the longest `Retry-After` in seconds; 0 where nobody says."""

    status: int = 0
    retry_after_max_s: int = 0

    def else_of(self, other: SpentAnswer) -> SpentAnswer:
        """Return this answer, with the values that it lacks from `other`."""
        if self.status and self.retry_after_max_s:
            return self
        return SpentAnswer(self.status or other.status, self.retry_after_max_s or other.retry_after_max_s)


UNSAID: Final = SpentAnswer()


def is_read_as_status(status: int, text: str) -> bool:
    """Return whether an agent reads a number of a final refusal's text as the status of another failure."""
    return status == HTTPStatus.PAYMENT_REQUIRED and _READ_AS_STATUS.search(text) is not None


def show_id(status: int, request_id: str) -> dict[str, str]:
    """Return the id of a refused request for its body, but where an agent would read a status in it.

    The answer's fields have it in each case.
    """
    return {} if is_read_as_status(status, request_id) else {"request_id": request_id}
