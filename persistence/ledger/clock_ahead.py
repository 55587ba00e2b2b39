"""Notes the days of which request ids were given by a clock that is ahead of Redis' by more than a day.

An id says when its request began, and its rows are looked for from there on. So whoever stores a row before
that says so in the same transaction, a day of ids a row, however many there are.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date
from typing import Any

from psycopg import Connection

from gateway.core.accounts.ledger import Event
from gateway.core.moments import moment_of
from gateway.core.request_time import AHEAD_MAX_MS, began, began_ms, says_when

_NOTE = """
INSERT INTO clock_ahead AS c (day, since) SELECT * FROM unnest(%s::date[], %s::timestamptz[])
ON CONFLICT (day) DO UPDATE SET since = excluded.since WHERE c.since > excluded.since"""


def note(connection: Connection[Any], events: Iterable[Event]) -> None:
    """Note the days of these entries' requests, where rows of them are earlier than their ids say."""
    some = [event for event in events if says_when(event.source)]
    if not some:
        return
    latest, earliest_ms = began(max(event.source for event in some)), min(event.at_ms for event in some)
    if latest is not None and latest <= moment_of(earliest_ms + AHEAD_MAX_MS):
        return
    found: dict[date, int] = {}
    for event in some:
        moment = began(event.source)
        if moment is not None and began_ms(event.source) > event.at_ms + AHEAD_MAX_MS:
            found[moment.date()] = min(event.at_ms, found.get(moment.date(), event.at_ms))
    if found:
        days = sorted(found)
        connection.execute(_NOTE, (days, [moment_of(found[day]) for day in days]))
