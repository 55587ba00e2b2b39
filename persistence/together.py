"""Many rows of a kind made, changed or deleted at once, with a few statements for all, by the rules for one.

Where not all of them are right `OneByOne` is raised, or what the database raises. Then fewer are tried
together, at last each by itself, and what is wrong is told of that one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    BindParameter,
    ColumnElement,
    Select,
    Table,
    any_,
    bindparam,
    cast,
    func,
    insert,
    select,
    update,
)
from sqlalchemy import delete as delete_from
from sqlalchemy.sql.visitors import replacement_traverse

from gateway.core.accounts.administration import Row
from persistence.subject import THIS, Change, fitted, live

# What does to many rows what a verb does to one.
Does = Callable[[Sequence[Change]], Sequence[Row]]


class OneByOne(Exception):
    """Whether all of this may be done is not known together."""


def create(changes: Sequence[Change]) -> Sequence[Row]:
    """Make rows of a kind as `crud.create` makes one."""
    subject = changes[0].subject
    for change in changes:
        subject.check_values(change)
    require(changes)
    return defined(changes, fetch(changes, add(changes)))


def change(changes: Sequence[Change]) -> Sequence[Row]:
    """Change rows of a kind as `crud.change_row` changes one."""
    subject = changes[0].subject
    for each in changes:
        subject.check_values(each)
    lock(changes)
    require(changes)
    alter(changes, [each.command.values for each in changes])
    rows = fetch(changes)
    for each, row in zip(changes, rows, strict=True):
        if subject.defining & each.command.values.keys():
            subject.define(each, row)
        subject.check_row(each, row)
    return rows


def revoke(changes: Sequence[Change]) -> Sequence[Row]:
    """Refuse credentials for ever, as `crud.revoke` does one."""
    lock(changes)
    subject = changes[0].subject
    _update(changes, {"revoked_at": func.coalesce(subject.table.c.revoked_at, func.now())})
    rows = fetch(changes)
    for each, row in zip(changes, rows, strict=True):
        subject.define(each, row)
    return rows


def delete(changes: Sequence[Change]) -> Sequence[Row]:
    """Delete rows of a kind as `crud.delete` deletes one."""
    rows = forget(changes)
    for each, row in zip(changes, rows, strict=True):
        each.subject.define(each, row)
    return rows


def forget(changes: Sequence[Change]) -> Sequence[Row]:
    """Delete rows that nothing refers to as `crud.forget` does one."""
    rows, table = lock(changes), changes[0].subject.table
    refuse_while_referenced(changes)
    if "deleted_at" in table.c:
        _update(changes, {"deleted_at": func.now()})
    else:
        changes[0].connection.execute(delete_from(table).where(is_one_of(table.c.id, _ids(changes))))
    return rows


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


def lock(changes: Sequence[Change]) -> Sequence[Row]:
    """Hold the commands' rows and remember each as it was, as `subject.lock` does one.

    `OneByOne` where one is not there, or is named twice.
    """
    connection, here, ids = changes[0].connection, changes[0].subject.table.c.id, _ids(changes)
    if len({*ids}) < len(ids):
        raise OneByOne
    connection.execute(select(here).where(is_one_of(here, ids)).order_by(here).with_for_update())
    rows = fetch(changes)
    for each, row in zip(changes, rows, strict=True):
        each.before = row
    return rows


def alter(changes: Sequence[Change], values: Sequence[Row]) -> None:
    """Update the commands' rows, each with its values, as `subject.alter` does one."""
    table, alike = changes[0].subject.table, defaultdict[tuple[str, ...], list[dict[str, Any]]](list)
    for each, said in zip(changes, values, strict=True):
        if new := fitted(table, said):
            new_by_name = {f"new_{name}": value for name, value in new.items()}
            alike[tuple(sorted(new))].append({**new_by_name, "row_id": each.row_id})
    touched = _touched(table)
    for names, some in alike.items():
        new = {name: bindparam(f"new_{name}", type_=table.c[name].type) for name in names}
        statement = update(table).where(table.c.id == bindparam("row_id")).values({**new, **touched})
        changes[0].connection.execute(statement, some)


def refuse_while_referenced(changes: Sequence[Change]) -> None:
    """`OneByOne` while any row refers to one of the commands'."""
    for references in changes[0].subject.referenced.values():
        if changes[0].connection.execute(referred(_ids(changes), references)).first() is not None:
            raise OneByOne


def referred(ids: Sequence[int], references: Select[Any]) -> Select[Any]:
    """One of these ids that rows refer to; `references` are those that refer to `THIS`."""
    asked = func.unnest(cast(ids, ARRAY(BigInteger))).table_valued("this").render_derived("asked")

    def named(element: Any, **_: Any) -> Any:
        is_this = isinstance(element, BindParameter) and element.key == THIS.key
        return asked.c.this if is_this else None

    of_one: Any = replacement_traverse(references, {}, named)
    return select(asked.c.this).where(of_one.correlate(asked).exists()).limit(1)


def fetch(changes: Sequence[Change], made: Sequence[int] | None = None) -> list[Row]:
    """Read the commands' rows, or those that were made, in this order; `OneByOne` where one is not there."""
    first, ids = changes[0], _ids(changes) if made is None else made
    subject = first.subject.within(first.within)
    rows = first.connection.execute(subject.rows.where(is_one_of(subject.table.c.id, ids))).mappings()
    found = {int(row["id"]): dict(row) for row in rows}
    if len(found) < len(ids):
        raise OneByOne
    return [found[each] for each in ids]


def is_one_of(column: ColumnElement[int], ids: Iterable[object]) -> ColumnElement[bool]:
    """Whether it is one of these ids: the same statement however many there are."""
    return column == any_(bindparam(None, list(ids), ARRAY(BigInteger)))


def _ids(changes: Sequence[Change]) -> list[int]:
    return [each.row_id for each in changes]


def _update(changes: Sequence[Change], values: dict[str, Any]) -> None:
    """Give all the commands' rows the same values."""
    table = changes[0].subject.table
    here = is_one_of(table.c.id, _ids(changes))
    changes[0].connection.execute(update(table).where(here).values({**values, **_touched(table)}))


def _touched(table: Table) -> dict[str, Any]:
    return {"updated_at": func.now()} if "updated_at" in table.c else {}
