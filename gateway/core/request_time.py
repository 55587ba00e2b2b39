"""When requests began, by their ids: those that gateways give are UUIDs of version 7. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from gateway.core.moments import moment_of

VERSION_AT, VERSION = 14, "7"


def began(request_id: str) -> datetime | None:
    """The moment an id says, by its gateway's clock; None where it says none."""
    if request_id[VERSION_AT : VERSION_AT + 1] != VERSION:
        return None
    return moment_of(int(request_id[:8] + request_id[9:13], 16))


def earliest(request_ids: Iterable[str]) -> datetime | None:
    """The earliest moment that any of these say; None where one of them says none."""
    moments = [began(request_id) for request_id in request_ids]
    known = [moment for moment in moments if moment is not None]
    return min(known) if known and len(known) == len(moments) else None
