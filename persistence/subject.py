"""What the Admin API may ask of one kind of row: how it is read, filtered, ordered and changed.

Everything here runs on one connection inside one transaction that the store opened.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from itertools import pairwise
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import ColumnElement, Connection, Select, Table, func, insert, literal, select, tuple_, update

from gateway.core.accounts.administration import Command, Intent, Page, Query, Row
from gateway.core.model import INTEGER_MAX
from gateway.errors import Conflict, NotFound, Unprocessable
from persistence.tables.operations import control_write

# Written intents reported back for the inline push; the pusher finds the rest by itself.
INTENTS_REPORTED_MAX = 100
INSERT_ROWS_MAX = 1_000
# Words of a search that are looked for; what has these and not the others is found as well.
WORDS_MAX = 12

_BETWEEN_WORDS = re.compile(r"[\s!-/:-@\[-`{-~]+")

Condition = Callable[[Any], ColumnElement[bool]]


@dataclass(slots=True)
class Change:
    """One write under way: what was asked, what was there before, what must reach the counters."""

    connection: Connection
    command: Command
    partition_of: Callable[[int], int]
    now: datetime
    private_addresses: bool = False
    before: Row | None = None
    intents: list[Intent] = field(default_factory=list)

    @property
    def today(self) -> date:
        """The UTC day it is."""
        return self.now.astimezone(UTC).date()

    @property
    def row_id(self) -> int:
        """The row the command names."""
        assert self.command.id is not None
        return self.command.id

    def intend(
        self, accounts: Sequence[str], verb: str, payload: Row, *, organization_id: int | None
    ) -> list[UUID]:
        """Write a control write per account, answer their ids; no organization concerns every partition."""
        partition = self.partition_of(organization_id) if organization_id is not None else None
        rows = [
            {
                "id": uuid4(),
                "partition": partition,
                "account": account,
                "verb": verb,
                "payload": dict(payload),
            }
            for account in accounts
        ]
        for at in range(0, len(rows), INSERT_ROWS_MAX):
            self.connection.execute(insert(control_write), rows[at : at + INSERT_ROWS_MAX])
        room = INTENTS_REPORTED_MAX - len(self.intents)
        self.intents += [Intent(str(row["id"]), str(row["account"])) for row in rows[:room]]
        return [UUID(str(row["id"])) for row in rows]


Verb = Callable[[Change], Row]


@dataclass(frozen=True, slots=True)
class Subject:
    """A kind of row: `source` selects it, labelled with its public field names.

    `order` are labels of integer columns that together name a row; `filters` make conditions
    of values; `partitioned` rows carry their organization's partition.
    """

    source: Select[Any]
    id: ColumnElement[int]
    time: ColumnElement[Any]
    order: tuple[tuple[str, ColumnElement[int]], ...]
    filters: Mapping[str, Condition] = field(default_factory=dict)
    verbs: Mapping[str, Verb] = field(default_factory=dict)
    partitioned: bool = False


def equals(column: ColumnElement[Any]) -> Condition:
    """Filter rows whose column is the value."""
    return lambda value: column == value


def named(table: Table) -> Condition:
    """Filter rows by the beginnings of the words of their name; a number also finds the row of that id."""

    def condition(value: Any) -> ColumnElement[bool]:
        found: ColumnElement[bool] = func.name_words(table.c.name).op("@@")(func.name_query(_words(value)))
        if value.isascii() and value.isdigit() and int(value) <= INTEGER_MAX:
            return found | (table.c.id == int(value))
        return found

    return condition


def _words(wanted: str) -> str:
    """The words that are looked for, without those that others begin with: each costs a look-up."""
    words = {word.lower(): word for word in _BETWEEN_WORDS.split(wanted)}
    told = [word for word, following in pairwise([*sorted(words), ""]) if not following.startswith(word)]
    return " ".join(words[word] for word in told[:WORDS_MAX]) or wanted


def fetch(connection: Connection, subject: Subject, row_id: int) -> Row:
    """Read one row; `NotFound` if there is none."""
    row = connection.execute(subject.source.where(subject.id == row_id)).mappings().first()
    if row is None:
        raise NotFound
    return dict(row)


def page(connection: Connection, subject: Subject, query: Query) -> Page:
    """Read the rows after a cursor, in order."""
    found = subject.source.where(*(subject.filters[name](value) for name, value in query.filters.items()))
    if query.since is not None:
        found = found.where(subject.time >= query.since)
    if query.until is not None:
        found = found.where(subject.time < query.until)
    columns = [column for _, column in subject.order]
    if query.after is not None:
        if len(query.after) != len(columns):
            raise Unprocessable(errors=(("cursor", "is not a cursor of this list"),))
        here = tuple_(*columns)
        there = tuple_(
            *(literal(part, column.type) for part, column in zip(query.after, columns, strict=True))
        )
        found = found.where(here < there if query.descending else here > there)
    found = found.order_by(*(column.desc() if query.descending else column for column in columns))
    rows = [dict(row) for row in connection.execute(found.limit(query.limit + 1)).mappings()]
    more, rows = len(rows) > query.limit, rows[: query.limit]
    last = tuple(int(rows[-1][label]) for label, _ in subject.order) if more else None
    return Page(tuple(rows), last)


def lock(change: Change, subject: Subject, table: Table) -> Row:
    """Hold the command's row until the end of the transaction and remember it as it was."""
    # The bare row first: a source with outer joins cannot be locked.
    change.connection.execute(select(table.c.id).where(table.c.id == change.row_id).with_for_update())
    change.before = fetch(change.connection, subject, change.row_id)
    return change.before


def require(change: Change, refers: Mapping[str, Table]) -> None:
    """Check that what the values refer to is there, and hold it there; `Unprocessable` names the field."""
    missing = []
    for name, table in refers.items():
        wanted = change.command.values.get(name)
        if wanted is None:
            continue
        found = select(table.c.id).where(table.c.id == wanted)
        if "deleted_at" in table.c:
            found = found.where(table.c.deleted_at.is_(None))
        if change.connection.execute(found.with_for_update(read=True)).first() is None:
            missing.append((name, f"there is no {table.name.replace('_', ' ')} {wanted}"))
    if missing:
        raise Unprocessable(errors=tuple(missing))


def refuse_while(change: Change, references: Select[Any], message: str) -> None:
    """Raise `Conflict` while any row refers to this one."""
    if change.connection.execute(references.limit(1)).first() is not None:
        raise Conflict(message)


def add(change: Change, table: Table, **more: object) -> int:
    """Insert the command's values and answer the new id."""
    values = _columns(table, {**change.command.values, **more})
    return int(change.connection.execute(insert(table).values(values).returning(table.c.id)).scalar_one())


def alter(change: Change, table: Table, values: Row) -> None:
    """Update the command's row; nothing to change is nothing done."""
    if not values:
        return
    touched = {"updated_at": func.now()} if "updated_at" in table.c else {}
    change.connection.execute(
        update(table).where(table.c.id == change.row_id).values({**_columns(table, values), **touched})
    )


def remove(change: Change, table: Table) -> None:
    """Mark the command's row as deleted: ledgers may still speak of it."""
    alter(change, table, {"deleted_at": func.now()})


def _columns(table: Table, values: Row) -> dict[str, Any]:
    """Fit values to columns: null for a column that is always there means its empty value."""
    fitted: dict[str, Any] = {}
    for name, value in values.items():
        if name in {"limits", "user_limits"}:
            limits = value if isinstance(value, dict) else {}
            fitted[name] = {kind: limit for kind, limit in limits.items() if limit is not None}
        else:
            fitted[table.c[name].name] = value
    return fitted
