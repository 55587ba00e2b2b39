"""Many rows of a kind made at once, with a few statements for all, by the rules that hold for one.

Where not all of them are right `OneByOne` is raised, or what the database raises. Then each is made by
itself, and what is wrong is told of that one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

from sqlalchemy import ARRAY, BigInteger, ColumnElement, any_, bindparam, insert

from gateway.core.accounts.administration import Row
from persistence.subject import Change, fitted, live

Makes = Callable[[Sequence[Change]], Sequence[Row]]


class OneByOne(Exception):
    """Whether all of these may be made is not known together."""


def create(changes: Sequence[Change]) -> Sequence[Row]:
    """Make rows of a kind as `crud.create` makes one."""
    subject = changes[0].subject
    for change in changes:
        subject.check_values(change)
    require(changes)
    return defined(changes, fetch(changes, add(changes)))


def defined(changes: Sequence[Change], rows: Sequence[Row]) -> Sequence[Row]:
    """Have rows defined that were made, and look at each as it is."""
    subject = changes[0].subject
    for change, row in zip(changes, rows, strict=True):
        subject.define(change, row)
        subject.check_row(change, row)
    return rows


def require(changes: Sequence[Change]) -> None:
    """Hold what the values refer to, as `subject.require` does; `OneByOne` where something is not there."""
    first = changes[0]
    if first.within is not None:  # held already, and looked at whose it is
        return
    held = first.batch.held if first.batch is not None else set()
    for name, table in first.subject.refers.items():
        wanted = {change.command.values.get(name) for change in changes} - {None}
        new = [one for one in wanted if (table.name, one) not in held]
        if new:
            found = live(table).where(is_one_of(table.c.id, new)).order_by(table.c.id)
            there = first.connection.execute(found.with_for_update(read=True)).scalars().all()
            if len(there) < len(new):
                raise OneByOne
            held.update((table.name, one) for one in new)


def add(changes: Sequence[Change]) -> list[int]:
    """Insert the commands' values; the new ids, in their order."""
    table, ids = changes[0].subject.table, [0] * len(changes)
    alike: dict[tuple[str, ...], list[tuple[int, Row]]] = defaultdict(list)
    for place, change in enumerate(changes):
        values = fitted(table, change.command.values)
        alike[tuple(sorted(values))].append((place, values))
    statement = insert(table).returning(table.c.id, sort_by_parameter_order=True)
    for some in alike.values():
        made = changes[0].connection.execute(statement, [values for _, values in some]).scalars()
        for (place, _), row_id in zip(some, made, strict=True):
            ids[place] = int(row_id)
    if (batch := changes[0].batch) is not None:
        batch.held.update((table.name, row_id) for row_id in ids)
    return ids


def fetch(changes: Sequence[Change], ids: Sequence[int]) -> list[Row]:
    """Read rows as they stand, in this order; `OneByOne` where one is not to be seen."""
    first = changes[0]
    subject = first.subject.within(first.within)
    rows = first.connection.execute(subject.rows.where(is_one_of(subject.table.c.id, ids))).mappings()
    found = {int(row["id"]): dict(row) for row in rows}
    if len(found) < len(ids):
        raise OneByOne
    return [found[each] for each in ids]


def is_one_of(column: ColumnElement[int], ids: Iterable[object]) -> ColumnElement[bool]:
    """Whether it is one of these ids: the same statement however many there are."""
    return column == any_(bindparam(None, list(ids), ARRAY(BigInteger)))
