"""Which entries are rows of the journal: one row a call, whatever it moved, and however often it comes.

What moves an account is stored once by its place there. What moves none, as a call that failed or rode free,
is known again by its row. What settled late, or corrects what was charged, changes the row that is there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from psycopg import Connection

from gateway.core.accounts.ledger import Event, EventKind, EventNote
from gateway.core.moments import moment_of
from persistence.keeper.request_rows import times_of
from persistence.ledger import rows, statements
from persistence.ledger.guard import Placed, event_of

_CONSUMED, _ADJUSTED, _LATE = int(EventKind.CONSUME), int(EventKind.ADJUST), int(EventNote.LATE)


def journal_of(
    connection: Connection[Any], fresh: Sequence[Placed], noted: Sequence[Placed]
) -> tuple[list[Placed], list[Event]]:
    """The entries that become rows, and those that change one; `noted` move no account."""
    made, changing = [], []
    for placed in fresh:
        event = placed[1][2]
        assert event is not None
        if event.kind == _CONSUMED and event.note != _LATE:
            made.append(placed)
        elif event.kind == _CONSUMED or _corrects(event):
            changing.append(placed)
    told = [placed for placed in noted if event_of(placed).kind == _CONSUMED]
    stored = _stored(connection, [one for one in map(event_of, told) if one.note != _LATE])
    made += [
        one for one in told if event_of(one).note != _LATE and event_of(one).source.lower() not in stored
    ]
    changing += [one for one in noted if _corrects(event_of(one)) or event_of(one).note == _LATE]
    late = [one for one in changing if event_of(one).kind == _CONSUMED]
    there = _known(connection, map(event_of, late)) if late else frozenset()
    made += [one for one in late if event_of(one).source.lower() not in there]
    return made, [
        event_of(one)
        for one in changing
        if event_of(one).kind != _CONSUMED or event_of(one).source.lower() in there
    ]


def _corrects(event: Event) -> bool:
    return event.kind == _ADJUSTED and event.facts is not None


def _stored(connection: Connection[Any], events: Sequence[Event]) -> frozenset[str]:
    """The requests of these that have their row: it is of the moment their entry says."""
    if not events:
        return frozenset()
    times = [moment_of(event.at_ms) for event in events]
    values = (_ids(events), min(times), max(times))
    return frozenset(request for (request,) in connection.execute(statements.STORED_CALLS, values))


def _known(connection: Connection[Any], events: Iterable[Event]) -> frozenset[str]:
    """The requests of these that have a row, of whatever moment."""
    ids = _ids(events)
    found = connection.execute(statements.KNOWN_CALLS, {"ids": ids, **times_of(ids)})
    return frozenset(request for (request,) in found)


def _ids(events: Iterable[Event]) -> list[str]:
    return [event.source for event in events if rows.is_uuid(event.source)]
