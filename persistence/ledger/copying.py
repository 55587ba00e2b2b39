"""Fresh entries copied into ledgers and journal, and which entry it was when PostgreSQL refuses one."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

import psycopg
from psycopg import Connection

from gateway.core.accounts.ledger import Event, EventKind, EventNote
from gateway.core.billing.usage_feed import LATE
from persistence.keeper.request_rows import times_of
from persistence.ledger import (
    budget_uses,
    clock_ahead,
    rows,
    statements,
    usage_feed,
    usage_rollup,
    usage_spans,
)
from persistence.ledger.attribution import Name
from persistence.ledger.call_rows import (
    CALL_COLUMNS,
    call_row,
    correction,
    facts_of,
    reclaimed_facts,
    used_at,
)
from persistence.ledger.guard import CREDITS, TOKENS, USAGE, Placed, event_of
from persistence.ledger.journal import journal_of

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
    """An entry cannot become a row; carries where it is and why."""

    def __init__(self, place: Place, reason: str) -> None:
        super().__init__(reason)
        self.place = place
        self.reason = reason


class Copies:
    """The rows of one transaction, by ledger; remembers their order to name a refused one."""

    def __init__(self, fresh: Sequence[Placed], noted: Sequence[Placed] = ()) -> None:
        self._fresh, self._noted = fresh, noted
        self._corrections: list[Event] = []
        self._by_table = {
            "token_ledger": _with(fresh, TOKENS),
            "credit_transaction": [p for p in _with(fresh, CREDITS) if event_of(p).kind != EventKind.CREDIT],
            "feature_usage": _with(fresh, USAGE),
            "credit_posting": [p for p in _with(fresh, CREDITS) if event_of(p).kind == EventKind.CREDIT],
            "call": [],
        }

    def write(self, connection: Connection[Any], users: dict[Name, int]) -> dict[str, int]:
        """Copy every row; answers how many by ledger. `Unstorable` where one cannot be packed."""

        def user(event: Event) -> int | None:
            return users.get((event.organization_id, event.user)) if event.user else None

        additions = self._additions(connection)
        self._by_table["call"], self._corrections = journal_of(connection, self._fresh, self._noted)
        self._price_reclaimed(connection)
        shapes: dict[str, tuple[str, Callable[[Event], bytes]]] = {
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
            "call": (CALL_COLUMNS, lambda event: call_row(event, user(event))),
        }
        written = {table: placed for table, placed in self._by_table.items() if placed}
        for table, placed in written.items():
            columns, row = shapes[table]
            _copy(connection, f"COPY {table} ({columns}) FROM STDIN (FORMAT BINARY)", row, placed)
        changes = self._roll_up(connection, user)
        self._tell(connection, user, changes)
        clock_ahead.note(connection, map(event_of, [*self._fresh, *self._noted]))
        budget_uses.move(connection, self._fresh, self._noted)
        return {table: len(placed) for table, placed in written.items()}

    def _roll_up(
        self, connection: Connection[Any], user: Callable[[Event], int | None]
    ) -> list[tuple[Row, Row]]:
        """Bring hours and days to where calls leave them; answers corrected ones as they were, and are."""
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
                usage_rollup.moved(before, after, hours)
                changes.append((before, after))
        if hours:
            connection.execute(usage_spans.ROLL_UP_CALLS, statements.columns_of(usage_rollup.rows_of(hours)))
        return changes

    def _tell(
        self,
        connection: Connection[Any],
        user: Callable[[Event], int | None],
        changes: Sequence[tuple[Row, Row]],
    ) -> None:
        """Have a billing service told of calls and of corrected ones, where they are of a feed's time."""
        calls = [event_of(placed) for placed in self._by_table["call"]]
        times = [used_at(event, facts_of(event)) for event in calls]
        times += [usage_feed.used_in(after) for _, after in changes]
        if not times or connection.execute(*usage_feed.may_have(times)).fetchone() != (True,):
            return
        told = [one for event in calls for one in usage_feed.of_call(event, facts_of(event), user(event))]
        told += [one for before, after in changes for one in usage_feed.of_change(LATE, before, after)]
        if told:
            connection.execute(usage_feed.TELL, statements.columns_of(told))

    def _price_reclaimed(self, connection: Connection[Any]) -> None:
        """Have calls that nobody settled cost what their budgets were charged."""
        events = [
            event
            for _, (_, _, event) in self._by_table["call"]
            if event is not None and event.note == RECLAIMED and event.money > 0 and event.facts is None
        ]
        if events:
            owners = sorted({event.organization_id for event in events})
            currencies = dict(connection.execute(statements.CURRENCIES, (owners,)).fetchall())
            for event in events:
                event.facts = reclaimed_facts(event, currencies.get(event.organization_id, ""))

    def refused(self, error: psycopg.Error) -> tuple[Placed, int] | None:
        """The entry an error of PostgreSQL speaks of and the account it moves; None if it names none."""
        at = _LINE.search(error.diag.context or "")
        if at is None:
            return None
        table = next((name for name in self._by_table if at[1].startswith(name)), None)
        number = int(at[2])
        if table is None or not 0 < number <= len(self._by_table[table]):
            return None
        return self._by_table[table][number - 1], _ACCOUNTS[table]

    def _additions(self, connection: Connection[Any]) -> dict[str, rows.Origin]:
        """Which credit addition each posting comes from, by control write."""
        sources = [event_of(placed).source for placed in self._by_table["credit_posting"]]
        known = [source for source in sources if rows.is_uuid(source)]
        found = connection.execute(statements.ADDITIONS, {"ids": known}) if known else ()
        return {write_id: (addition_id, kind) for write_id, addition_id, kind in found}


def _with(fresh: Sequence[Placed], part: int) -> list[Placed]:
    return [placed for placed in fresh if event_of(placed).flags & part]


def _copy(
    connection: Connection[Any], statement: str, row: Callable[[Event], bytes], placed: Sequence[Placed]
) -> None:
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
