"""One transaction that compares and applies a configuration: reads rows by name, runs writes, stores marks.

A mark stores which fields of a row the files set, and whether applying created the row. Marks belong to the
name given to the apply, and to the caller's organization. Control writes are stored last, each definition of
an account once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    ColumnElement,
    Connection,
    Select,
    Table,
    and_,
    any_,
    bindparam,
    collate,
    delete,
    func,
    or_,
    select,
    text,
    true,
)
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.core.accounts.administration import (
    CREATE,
    OWNER,
    Claim,
    Command,
    ConfigWrite,
    ConfigWriteResult,
    Intent,
    Mark,
    NewRowId,
    Realm,
    Row,
    StoredReply,
    settled,
)
from gateway.errors import AdminRefusal, Conflict, StepRefused, Unprocessable
from persistence.entity import THROUGH, Entity, EntityWrite, WriteBatch, id_in, owners
from persistence.error_mapping import TRY_AGAIN, lock_within, sqlstate, translate_error
from persistence.queries import insert_rows
from persistence.registry import SUBJECTS
from persistence.resources import audit, idempotency
from persistence.tables import applied_row, organization
from persistence.tenant_boundary import confined

# Locks for applying configuration: one apply at a time for each organization, and for staff.
#
# An organization's people never make staff wait who touch none of its rows, nor another organization. Staff
# who do touch its rows wait for one of its transactions: PostgreSQL grants locks in the order of requests, so
# a busy client cannot overtake.

# Advisory lock class 7809: appliers of configuration, by organization; 0 is staff.
_TAKE = text("SELECT pg_advisory_xact_lock(7809, whose) FROM unnest(CAST(:whose AS integer[])) AS whose")
_TAKEN = text(
    "SELECT whose FROM unnest(CAST(:whose AS integer[])) AS whose"
    " WHERE NOT pg_try_advisory_xact_lock(7809, whose)"
)
STAFF = 0
_KEYS_MAX = 2**31 - 1
# Seconds one apply waits for another one's lock. It bounds nothing else of the transaction.
LOCK_WAIT_S = 60
# An apply that touches more organizations locks none of them, since each lock takes memory of the server.
# A row that was changed meanwhile is refused all the same.
ORGANIZATIONS_MAX = 500

# A write: the kind of its row, its id where there is one, and ids of others by the names of fields.
Touched = tuple[str, int | None, Row]


def of(organization_id: int | None) -> int:
    """Return the number of the lock for an organization, or for staff if `organization_id` is None.

    Two organizations may share a number.
    """
    return STAFF if organization_id is None else 1 + (organization_id - 1) % _KEYS_MAX


async def take(connection: AsyncConnection, whose: Sequence[int], wait_s: int) -> None:
    """Lock the numbers in `whose` until the transaction ends; raise `Overloaded` after `wait_s` seconds."""
    taken = "Somebody else is applying, and takes long"
    await connection.run_sync(lock_within, _TAKE, {"whose": whose}, wait_s, taken)


async def take_touched(connection: AsyncConnection, touched: Sequence[Touched], wait_s: int) -> bool:
    """Lock the organizations that the writes in `touched` change, until the transaction ends.

    Return whether another transaction held one of these locks. If the writes touch more than
    `ORGANIZATIONS_MAX` organizations, none is locked. Deadlocks cannot form, because only staff lock several
    organizations, and one staff transaction at a time.
    """
    whose = sorted(map(of, await _owners(connection, touched)))
    if not whose or len(whose) > ORGANIZATIONS_MAX:
        return False
    busy = [*await connection.scalars(_TAKEN, {"whose": whose})]
    if busy:
        await take(connection, busy, wait_s)
    return bool(busy)


async def _owners(connection: AsyncConnection, touched: Sequence[Touched]) -> set[int]:
    """Return the ids of the organizations whose rows are touched."""
    ids: dict[Table, set[int]] = defaultdict(set)
    for resource, row_id, values in touched:
        subject = SUBJECTS[resource]
        for table, value in ((subject.table, row_id), *_named(subject, values)):
            if isinstance(value, int):
                ids[table].add(value)
    found: set[int | None] = {*ids.pop(organization, ())}
    for table, some in ids.items():
        theirs = owners(table, table.c.id == any_(bindparam("ids", [*some], ARRAY(BigInteger))))
        if theirs is not None:
            found.update(await connection.scalars(theirs.distinct()))
    return {each for each in found if each is not None}


def _named(subject: Entity, values: Row) -> Iterator[tuple[Table, object]]:
    referred = {OWNER: organization, **THROUGH, **subject.refers}
    return ((table, values[name]) for name, table in referred.items() if name in values)


ROWS_WRITTEN_MAX = 1_000
# Maximum of parts, such as overrides, of all rows that are read at once.
PARTS_MAX = 200_000

Done = tuple[EntityWrite, Row]
Begins = Callable[[Connection, Command, WriteBatch], EntityWrite]
_here = applied_row.c


class ApplyTransaction:
    """The operations of applying a configuration in one transaction; `begins` prepares a single write."""

    def __init__(self, connection: AsyncConnection, within: Realm | None, begins: Begins) -> None:
        self._connection = connection
        self._within = within
        self._begins = begins
        self._new_ids: dict[int, int] = {}
        self.intents: tuple[Intent, ...] = ()

    async def hold(self, wait_s: int = LOCK_WAIT_S) -> None:
        """Lock out other applies by the caller's organization, or by staff, until the transaction ends.

        Raise `Overloaded` after `wait_s` seconds.
        """
        await take(
            self._connection, [of(None if self._within is None else self._within.organization_id)], wait_s
        )

    async def hold_touched(self, touched: Sequence[Touched], wait_s: int = LOCK_WAIT_S) -> bool:
        """Lock the organizations that the writes of staff in `touched` change.

        Return whether another transaction held one of these locks; raise `Overloaded` after `wait_s` seconds.
        """
        return self._within is None and await take_touched(self._connection, touched, wait_s)

    async def claim(self, claim: Claim) -> StoredReply | None:
        """Claim an idempotency key; return the first answer if one is stored under this key."""
        return await self._connection.run_sync(
            lambda connection: idempotency.claim_idempotency(connection, claim)
        )

    async def keep(self, claim: Claim, body: Row) -> None:
        """Store the answer for a claimed idempotency key."""
        await self._connection.run_sync(
            lambda connection: idempotency.keep_first_answer(connection, claim, body)
        )

    async def find(
        self, resource: str, wanted: Mapping[str, Collection[object]], rows_max: int, *, folded: bool = False
    ) -> Sequence[Row]:
        """Read rows, ordered by id, whose fields each have one of the wanted values.

        At most `rows_max` + 1 rows are read. With `folded`, texts match regardless of the case of A-Z.
        """
        subject = self._subject(resource)
        fields = subject.rows.selected_columns
        each = (_one_of(fields[name], values, folded=folded) for name, values in wanted.items())
        return await self._read(subject, and_(true(), *each), rows_max)

    async def every(self, resource: str, rows_max: int) -> Sequence[Row]:
        return await self._read(self._subject(resource), true(), rows_max)

    async def marks(self, owner: int, name: str, rows_max: int) -> Sequence[Mark]:
        """Read the marks of an apply, which say which rows it wrote: those of an owner under a name.

        At most `rows_max` + 1 are returned.
        """
        noted = select(_here.resource, _here.row_id, _here.fields, _here.made, _here.said)
        mine = noted.where(_here.owner == owner, _here.name == name)
        rows = await self._connection.execute(mine.limit(rows_max + 1))
        return [
            Mark(row.resource, row.row_id, tuple(row.fields), row.made, row.said and tuple(row.said))
            for row in rows
        ]

    async def run(self, steps: Sequence[ConfigWrite]) -> Mapping[int, ConfigWriteResult]:
        """Run the steps in order; raise `StepRefused` with the number of the step that the store refuses."""
        return await self._connection.run_sync(lambda connection: self._run(connection, steps))

    async def note(self, owner: int, name: str, marks: Sequence[Mark], forgotten: Sequence[Mark]) -> None:
        """Store which rows a document owns by their `marks`, and delete the forgotten marks."""
        mine = {"owner": owner, "name": name}
        rows = [
            {
                **mine, "resource": mark.resource, "row_id": self._id(mark), "fields": list(mark.fields),
                "made": mark.made, "said": self._resolve_mark(mark),
            }
            for mark in marks
        ]  # fmt: skip
        for at in range(0, len(rows), ROWS_WRITTEN_MAX):
            kept = insert_rows(applied_row, rows[at : at + ROWS_WRITTEN_MAX])
            again = {name: kept.excluded[name] for name in ("fields", "made", "said")} | {
                "applied_at": func.now()
            }
            await self._connection.execute(
                kept.on_conflict_do_update(index_elements=[*applied_row.primary_key], set_=again)
            )
        for resource in {mark.resource for mark in forgotten}:
            gone = [mark.row_id for mark in forgotten if mark.resource == resource]
            ids = bindparam("gone", gone, ARRAY(BigInteger))
            await self._connection.execute(
                delete(applied_row).where(
                    _here.owner == owner, _here.name == name, _here.resource == resource,
                    _here.row_id == any_(ids),
                )
            )  # fmt: skip

    def _subject(self, resource: str) -> Entity:
        return SUBJECTS[resource].within(self._within)

    async def _read(self, subject: Entity, wanted: ColumnElement[bool], rows_max: int) -> Sequence[Row]:
        statement = subject.rows.where(wanted).order_by(subject.table.c.id).limit(rows_max + 1)
        rows = [dict(row) for row in (await self._connection.execute(statement)).mappings()]
        for name, source in subject.parts.items():
            await self._read_parts(rows, name, source)
        return rows

    async def _read_parts(
        self, rows: Sequence[dict[str, object]], name: str, source: Select[*tuple[Any, ...]]
    ) -> None:
        """Add the list `name` of parts to each row; raise `Unprocessable` if there are too many in all."""
        ids = bindparam("ids", [row["id"] for row in rows], ARRAY(BigInteger))
        query = source.where(source.selected_columns["row_id"] == any_(ids)).limit(PARTS_MAX + 1)
        there = (await self._connection.execute(query)).mappings().all()
        if len(there) > PARTS_MAX:
            raise Unprocessable(
                errors=((name, f"are more than {PARTS_MAX} in all: apply fewer objects at once"),)
            )
        parts: dict[object, list[Row]] = defaultdict(list)
        for part in there:
            parts[part["row_id"]].append(dict(part))
        for row in rows:
            row[name] = parts[row["id"]]

    def _run(self, connection: Connection, steps: Sequence[ConfigWrite]) -> Mapping[int, ConfigWriteResult]:
        """Run the writes of a plan in order; return the row of each, and keep their audit entries."""
        ran: dict[int, ConfigWriteResult] = {}
        batch = WriteBatch()
        entries: list[dict[str, object]] = []
        change: EntityWrite | None = None
        for step in steps:
            done = self._run_step(connection, step, batch)
            if isinstance(done, str):
                ran[step.number] = ConfigWriteResult(step.command.id or 0, done)
                continue
            change, row = done
            entries.append(audit.audit_entry_of(change, row))
            row_id = id_in(row, "id")
            ran[step.number] = ConfigWriteResult(row_id)
            self._new_ids.setdefault(step.number, row_id)
        if change is not None:
            audit.keep_audit(connection, entries)
            change.batch = None
            change.intend_all(_once(batch.writes))
            self.intents = tuple(change.intents)
        return ran

    def _run_step(self, connection: Connection, step: ConfigWrite, batch: WriteBatch) -> Done | str:
        """Run one step of an apply; raise `StepRefused` if the step is refused.

        If the step may stay undone, a `Conflict` is returned as its message instead.
        """
        try:
            return self._step(connection, step, batch)
        except Conflict as refused:
            if not step.may_stay:
                raise StepRefused(step.number) from refused
            return refused.message
        except AdminRefusal as refused:
            raise StepRefused(step.number) from refused
        except SQLAlchemyError as error:
            if sqlstate(error) in TRY_AGAIN or not isinstance(translate_error(error), AdminRefusal):
                raise
            raise StepRefused(step.number) from translate_error(error)

    def _step(self, connection: Connection, step: ConfigWrite, batch: WriteBatch) -> Done:
        """Run one write of a plan; raise Conflict if its row has changed since."""
        command = self._settled(step)
        if not step.may_stay:
            change = self._begins(connection, command, batch)
            row = confined(change)
            before = change.before
            if before is not None and any(before.get(name) != each for name, each in step.before.items()):
                raise Conflict("It was changed meanwhile: plan again.")
            return change, row
        mine = WriteBatch()
        change = self._begins(connection, command, mine)
        with connection.begin_nested():
            row = confined(change)
        batch.writes += mine.writes
        return change, row

    def _settled(self, step: ConfigWrite) -> Command:
        """Return the command of a step with ids of created rows, its own among them."""
        command = step.command
        row_id = self._new_ids[step.number] if command.id is None and command.verb != CREATE else command.id
        return replace(command, id=row_id, values=settled(command.values, self._new_ids))

    def _resolve_mark(self, mark: Mark) -> list[object] | None:
        if mark.said is None:
            return None
        return [self._new_ids[each.number] if isinstance(each, NewRowId) else each for each in mark.said]

    def _id(self, mark: Mark) -> int:
        return self._new_ids[mark.row_id.number] if isinstance(mark.row_id, NewRowId) else mark.row_id


def _one_of(column: ColumnElement[Any], values: Collection[object], *, folded: bool) -> ColumnElement[bool]:
    known = [value for value in values if value is not None]
    compared: Any = func.lower(collate(column, "C")) if folded else column
    found: ColumnElement[bool] = compared == any_(bindparam(None, known, ARRAY(column.type)))
    return found if len(known) == len(values) else or_(found, column.is_(None))


def _once(writes: Sequence[Row]) -> list[Row]:
    """Drop repeated bare definitions: the first write without values defines the whole account already."""
    defined: set[tuple[object, object]] = set()
    kept = []
    for write in writes:
        if write["verb"] == "define" and not write["payload"]:
            account = (write["partition"], write["account"])
            if account in defined:
                continue
            defined.add(account)
        kept.append(write)
    return kept
