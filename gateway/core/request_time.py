"""When requests began, by their ids: those that gateways give are UUIDs of version 7. Pure."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

from gateway.core.moments import DAY_MS, moment_of

VERSION_AT: Final = 14
VERSION: Final = "7"
GIVEN: Final = ("4", VERSION)
# By so much a gateway's clock may be ahead of Redis': what is more is noted by the day.
AHEAD_MAX_MS: Final = DAY_MS
AHEAD_MAX: Final = timedelta(milliseconds=AHEAD_MAX_MS)


def is_of_gateway(request_id: str) -> bool:
    """Whether a gateway gave it to a request, this version or one before; leases have others."""
    return request_id[VERSION_AT : VERSION_AT + 1] in GIVEN


def says_when(request_id: str) -> bool:
    """Whether it is an id that says when its request began."""
    return request_id[VERSION_AT : VERSION_AT + 1] == VERSION


def began_ms(request_id: str) -> int:
    """The millisecond that such an id says, by its gateway's clock."""
    return int(request_id[:8] + request_id[9:13], 16)


def began(request_id: str) -> datetime | None:
    """The moment an id says; None where it says none, or one that no calendar has."""
    if not says_when(request_id):
        return None
    try:
        return moment_of(began_ms(request_id))
    except (ValueError, OverflowError):
        return None
