"""The verbs create, change and delete for rows that only have to be kept and defined anew."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy import Select, Table, delete

from gateway.core.accounts.administration import Row
from persistence.subject import Change, Subject, Verb, add, alter, fetch, lock, refuse_while, remove, require

Define = Callable[[Change, Row], None]
References = Callable[[int], Select[Any]]


def verbs(
    subject: Callable[[], Subject],
    table: Table,
    *,
    refers: Mapping[str, Table] | None = None,
    referenced: Mapping[str, References] | None = None,
    define: Define | None = None,
    defining: frozenset[str] = frozenset(),
) -> dict[str, Verb]:
    """Make the verbs of a table.

    `refers` are the fields that name other rows; `referenced` the rows that forbid a delete, by
    the sentence that says so; `define` writes the control writes, on a change only where one of
    the `defining` fields is in it.
    """

    def create(change: Change) -> Row:
        require(change, refers or {})
        row = fetch(change.connection, subject(), add(change, table))
        if define is not None:
            define(change, row)
        return row

    def alter_row(change: Change) -> Row:
        lock(change, subject(), table)
        require(change, refers or {})
        alter(change, table, change.command.values)
        row = fetch(change.connection, subject(), change.row_id)
        if define is not None and defining & change.command.values.keys():
            define(change, row)
        return row

    def delete_row(change: Change) -> Row:
        row = lock(change, subject(), table)
        for sentence, references in (referenced or {}).items():
            refuse_while(change, references(change.row_id), sentence)
        if "deleted_at" in table.c:
            remove(change, table)
        else:
            change.connection.execute(delete(table).where(table.c.id == change.row_id))
        if define is not None:
            define(change, row)
        return row

    return {"create": create, "change": alter_row, "delete": delete_row}
