"""Copies fresh entries into ledgers and journal, and identifies the entry that PostgreSQL refuses."""

from __future__ import annotations

import re
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import date, datetime
from itertools import groupby, islice
from typing import Any

import psycopg
from psycopg import Connection

from gateway.core.accounts.outbox import EventKind, EventNote, OutboxEntry
from gateway.core.times import AHEAD_MAX_MS, began, began_ms, moment_of, says_when
from persistence.keeper.retention import times_of
from persistence.ledger import budget_moves, rows, statements, usage_rollup
from persistence.ledger.guard import CREDITS, TOKENS, USAGE, Placed, event_of
from persistence.ledger.listeners import listeners
from persistence.ledger.rows import call_row, correction, facts_of, journal_of, reclaimed_facts

# Users named by requests: created when first seen, cached by this process.
#
# Many invented names cost one query: new users are counted once for each organization and batch, and a name
# beyond the organization's limit is not looked up again for a while.

NEW_USERS_A_DAY_MAX = 10_000
REMEMBERED_MAX = 200_000
# Seconds until a name over the limit is tried again: on a new day, or because a person created the user.
REFUSED_S = 60.0
# Seconds for which an id is cached: a deletion may have removed its name (`person delete` waits this long).
KNOWN_S = 10.0
NAME_LENGTH_MAX = 128

# Organization and the caller's own user id.
Name = tuple[int, str]


class Users:
    """A cache of user ids by organization and external id; ids from a transaction count once it commits.

    `clock` is monotonic.
    """

    def __init__(
        self,
        *,
        new_a_day_max: int = NEW_USERS_A_DAY_MAX,
        clock: Callable[[], float] = time.monotonic,
        remembered_max: int = REMEMBERED_MAX,
    ) -> None:
        self._new_a_day_max, self._remembered_max = new_a_day_max, remembered_max
        self._clock = clock
        self._known: dict[Name, int] = {}
        self._known_from = clock()
        # Stored as hashes, as callers may send long names.
        self._refused: set[int] = set()
        self._refused_from = clock()

    def resolve(self, connection: Connection[Any], fresh: Iterable[Placed]) -> dict[Name, int]:
        """Return the ids of all users named by these entries; users over the daily limit have none."""
        if self._clock() - self._refused_from > REFUSED_S:
            self._refused.clear()
        if self._clock() - self._known_from > KNOWN_S:
            self._known.clear()
            self._known_from = self._clock()
        names = {(e[2].organization_id, e[2].user) for _, e in fresh if e[2] is not None and e[2].user}
        found = {name: self._known[name] for name in names if name in self._known}
        missing = storable(name for name in names - found.keys() if hash(name) not in self._refused)
        if missing:
            found |= _read_users(connection, missing)
        if unknown := [name for name in missing if name not in found]:
            met = self._within_limit(connection, unknown)
            connection.execute(statements.MEET_USERS, columns_of(met))
            found |= _read_users(connection, met)
            over = set(unknown) - found.keys()
            if not self._refused or len(self._refused) + len(over) > self._remembered_max:
                self._refused.clear()
                self._refused_from = self._clock()
            self._refused |= set(map(hash, over))
        return found

    def remember(self, found: dict[Name, int]) -> None:
        if len(self._known) + len(found) > self._remembered_max:
            self._known.clear()
        self._known.update(found)

    def _within_limit(self, connection: Connection[Any], unknown: Sequence[Name]) -> list[Name]:
        """Return the names of unknown users that may still be stored today, by organization."""
        organizations = sorted({organization for organization, _ in unknown})
        today = Counter(dict(connection.execute(statements.NEW_TODAY, (organizations,)).fetchall()))
        met: list[Name] = []
        for organization, names in groupby(unknown, key=lambda name: name[0]):
            met += list(names)[: max(0, self._new_a_day_max - today[organization])]
        return met


def _read_users(connection: Connection[Any], names: Sequence[Name]) -> dict[Name, int]:
    rows = connection.execute(statements.KNOW_USERS, columns_of(names))
    return {(organization, external_id): id_ for organization, external_id, id_ in rows}


def columns_of(names: Sequence[Name]) -> dict[str, Any]:
    return {"organizations": [one for one, _ in names], "names": [name for _, name in names]}


def storable(names: Iterable[Name]) -> list[Name]:
    """Return the valid user names, sorted in the order in which writers lock rows."""
    return sorted(name for name in names if 0 < len(name[1]) <= NAME_LENGTH_MAX and "\0" not in name[1])


# Stores the days on which request ids were given by a clock that is more than a day ahead of Redis'.
#
# An id contains the time of its request, and a request's rows are searched from that time on. So the writer
# of an earlier row stores the day of the id in the same transaction, one row for each day. For use outside of
# the gateway the event has the time, at most a keeper's own.

_NOTE = """
INSERT INTO clock_ahead AS c (day, since) SELECT * FROM unnest(%s::date[], %s::timestamptz[])
ON CONFLICT (day) DO UPDATE SET since = excluded.since WHERE c.since > excluded.since"""


def note_clock_ahead(connection: Connection[Any], events: Iterable[OutboxEntry]) -> None:
    """Store the days of requests whose rows are earlier than the time in their id, as a clock was ahead.

    Later searches for these requests then begin earlier.
    """
    some, told = list[OutboxEntry](), list[OutboxEntry]()
    for event in events:
        (some if says_when(event.source) else told).append(event)
    found: dict[date, int] = {}
    of_events = [
        (event, moment_of(event.facts.used_ms))
        for event in told
        if event.facts is not None and event.facts.used_ms > event.at_ms + AHEAD_MAX_MS
    ]
    for event, moment in [*_entries_by_id(some), *of_events]:
        found[moment.date()] = min(event.at_ms, found.get(moment.date(), event.at_ms))
    if found:
        days = sorted(found)
        connection.execute(_NOTE, (days, [moment_of(found[day]) for day in days]))


def _entries_by_id(events: Sequence[OutboxEntry]) -> Iterator[tuple[OutboxEntry, datetime]]:
    """Yield entries whose id is of a later time than the entry allows, with that time."""
    if not events:
        return
    latest, earliest_ms = began(max(event.source for event in events)), min(event.at_ms for event in events)
    if latest is not None and latest <= moment_of(earliest_ms + AHEAD_MAX_MS):
        return
    for event in events:
        moment = began(event.source)
        if moment is not None and began_ms(event.source) > event.at_ms + AHEAD_MAX_MS:
            yield event, moment


ROWS_A_CHUNK = 500
RECLAIMED = int(EventNote.RECLAIMED)

Place = tuple[int, bytes]
Row = Sequence[Any]

_LINE = re.compile(r"COPY (\w+), line (\d+)")
_ACCOUNTS = {
    "token_ledger": TOKENS,
    "credit_transaction": CREDITS,
    "credit_posting": CREDITS,
    "feature_usage": USAGE,
    "call": TOKENS,
}


class Unstorable(Exception):
    """An entry cannot become a row; carries its place and the reason."""

    def __init__(self, place: Place, reason: str) -> None:
        super().__init__(reason)
        self.place = place
        self.reason = reason


class Copies:
    """The rows of one transaction by ledger, in copied order, to trace a refused row to its entry."""

    def __init__(self, fresh: Sequence[Placed], noted: Sequence[Placed] = ()) -> None:
        self._fresh, self._noted = fresh, noted
        self._corrections: list[OutboxEntry] = []
        self._by_table = {
            "token_ledger": _with(fresh, TOKENS),
            "credit_transaction": [p for p in _with(fresh, CREDITS) if event_of(p).kind != EventKind.CREDIT],
            "feature_usage": _with(fresh, USAGE),
            "credit_posting": [p for p in _with(fresh, CREDITS) if event_of(p).kind == EventKind.CREDIT],
            "call": [],
        }

    def write(self, connection: Connection[Any], users: dict[Name, int]) -> dict[str, int]:
        """Write the rows of all ledgers; return the number of rows by ledger. `users` are user ids by name.

        Raise `Unstorable` if an entry cannot be converted to a row.
        """

        def user(event: OutboxEntry) -> int | None:
            return users.get((event.organization_id, event.user)) if event.user else None

        sources = [event_of(placed).source for placed in self._by_table["credit_posting"]]
        known = [source for source in sources if rows.is_uuid(source)]
        found = connection.execute(statements.ADDITIONS, {"ids": known}) if known else ()
        additions: dict[str, rows.Origin] = {write_id: (addition, kind) for write_id, addition, kind in found}
        self._by_table["call"], self._corrections = journal_of(connection, self._fresh, self._noted)
        self._price_reclaimed(connection)
        shapes: dict[str, tuple[str, Callable[[OutboxEntry], bytes]]] = {
            "token_ledger": (rows.LEDGER_COLUMNS, lambda event: rows.token_row(event, user(event))),
            "credit_transaction": (
                rows.TRANSACTION_COLUMNS,
                lambda event: rows.credit_row(event, user(event)),
            ),
            "feature_usage": (rows.USAGE_COLUMNS, lambda event: rows.usage_row(event, user(event))),
            "credit_posting": (
                rows.POSTING_COLUMNS,
                lambda event: rows.posting_row(event, additions.get(event.source.lower())),
            ),
            "call": (", ".join(statements.CALL_COLUMNS), lambda event: call_row(event, user(event))),
        }
        written = {table: placed for table, placed in self._by_table.items() if placed}
        for table, placed in written.items():
            columns, row = shapes[table]
            _copy(connection, f"COPY {table} ({columns}) FROM STDIN (FORMAT BINARY)", row, placed)
        changes = self._roll_up(connection, user)
        self._tell(connection, user, changes)
        note_clock_ahead(connection, map(event_of, [*self._fresh, *self._noted]))
        budget_moves.store_runs(connection, self._noted)
        budget_moves.move_budget_uses(connection, self._fresh, self._noted)
        return {table: len(placed) for table, placed in written.items()}

    def _roll_up(
        self, connection: Connection[Any], user: Callable[[OutboxEntry], int | None]
    ) -> list[tuple[Row, Row]]:
        """Add calls to the hourly and daily roll-ups; return corrected calls as rows before and after."""
        hours: usage_rollup.Rollup = {}
        changes: list[tuple[Row, Row]] = []
        for placed in self._by_table["call"]:
            event = event_of(placed)
            usage_rollup.add_call(hours, event, facts_of(event), user(event))
        for event in self._corrections:
            values = correction(event)
            values |= times_of([str(values["request_id"])])
            before = connection.execute(statements.CALL_SUMS, values).fetchone()
            if before is not None:
                after = connection.execute(statements.CORRECT_CALL, values).fetchone()
                assert after is not None, "its row is held"
                usage_rollup.moved_usage(before, after, hours)
                changes.append((before, after))
        if hours:
            connection.execute(
                usage_rollup.ROLL_UP_CALLS, statements.columns_of(usage_rollup.usage_rows_of(hours))
            )
        return changes

    def _tell(
        self,
        connection: Connection[Any],
        user: Callable[[OutboxEntry], int | None],
        changes: Sequence[tuple[Row, Row]],
    ) -> None:
        """Notify every feature of stored calls, and of corrected calls by their rows before and after.

        `user` returns the user id of an entry.
        """
        calls = [event_of(placed) for placed in self._by_table["call"]]
        for listener in listeners():
            listener.stored(connection, calls, user, changes)

    def _price_reclaimed(self, connection: Connection[Any]) -> None:
        """Set the cost of reclaimed calls (expired without a settlement) to the money charged for them."""
        events = [event for _, (_, _, event) in self._by_table["call"] if event and _lacks_cost(event)]
        if events:
            owners = sorted({event.organization_id for event in events})
            currencies = dict(connection.execute(statements.CURRENCIES, (owners,)).fetchall())
            for event in events:
                event.facts = reclaimed_facts(event, currencies.get(event.organization_id, ""))

    def refused(self, error: psycopg.Error) -> tuple[Placed, int] | None:
        """Return the entry that a PostgreSQL error is about, and the kind of its account; None if unnamed."""
        at = _LINE.search(error.diag.context or "")
        if at is None:
            return None
        table = next((name for name in self._by_table if at[1].startswith(name)), None)
        number = int(at[2])
        if table is None or not 0 < number <= len(self._by_table[table]):
            return None
        return self._by_table[table][number - 1], _ACCOUNTS[table]


def _lacks_cost(event: OutboxEntry) -> bool:
    """Return whether an entry reclaims a call whose costs are unknown, for money."""
    return event.note == RECLAIMED and event.money > 0 and event.facts is None


def _with(fresh: Sequence[Placed], part: int) -> list[Placed]:
    return [placed for placed in fresh if event_of(placed).flags & part]


def _copy(
    connection: Connection[Any], statement: str, row: Callable[[OutboxEntry], bytes], placed: Sequence[Placed]
) -> None:
    """Copy entries into a table, each packed by `row`; raise Unstorable naming the entry that cannot be."""
    remaining = iter(placed)
    with connection.cursor() as cursor, cursor.copy(statement) as copy:
        copy.write(rows.COPY_HEAD)
        # PostgreSQL stores one chunk while the next is packed.
        while chunk := list(islice(remaining, ROWS_A_CHUNK)):
            packed = []
            for partition, (entry_id, _, event) in chunk:
                assert event is not None
                try:
                    packed.append(row(event))
                except (ValueError, ArithmeticError, struct.error) as error:
                    raise Unstorable((partition, entry_id), str(error)) from error
            copy.write(b"".join(packed))
        copy.write(rows.COPY_TAIL)
