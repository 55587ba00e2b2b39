"""Notes the days of which request ids were given by a clock that is ahead of Redis' by more than a day.

An id says when its request began, and its rows are looked for from there on. So whoever stores a row before
that says so in the same transaction, a day of ids a row, however many there are. Of use that did not pass
the gateway its event says when that was, by a keeper's clock at the latest.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import date, datetime
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
    some, told = list[Event](), list[Event]()
    for event in events:
        (some if says_when(event.source) else told).append(event)
    found: dict[date, int] = {}
    for event, moment in [*_of_ids(some), *_of_events(told)]:
        found[moment.date()] = min(event.at_ms, found.get(moment.date(), event.at_ms))
    if found:
        days = sorted(found)
        connection.execute(_NOTE, (days, [moment_of(found[day]) for day in days]))


def _of_ids(events: Sequence[Event]) -> Iterator[tuple[Event, datetime]]:
    if not events:
        return
    latest, earliest_ms = began(max(event.source for event in events)), min(event.at_ms for event in events)
    if latest is not None and latest <= moment_of(earliest_ms + AHEAD_MAX_MS):
        return
    for event in events:
        moment = began(event.source)
        if moment is not None and began_ms(event.source) > event.at_ms + AHEAD_MAX_MS:
            yield event, moment


def _of_events(events: Sequence[Event]) -> Iterator[tuple[Event, datetime]]:
    for event in events:
        if event.facts is not None and event.facts.used_ms > event.at_ms + AHEAD_MAX_MS:
            yield event, moment_of(event.facts.used_ms)
