"""Configuration that is compared and applied in one transaction: rows by their names, many writes, marks.

A mark says which fields of a row files said, and whether applying made it: by name of who applies, and of
the organization whose caller did. Control writes are kept until all is written, each definition once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Column,
    ColumnElement,
    Connection,
    and_,
    any_,
    bindparam,
    collate,
    delete,
    func,
    or_,
    select,
    true,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.core.accounts.administration import Claim, Command, Intent, Replay, Row
from gateway.core.accounts.declaration import Mark, New, Ran, Step, settled
from gateway.errors import AdminRefusal, Conflict, StepRefused
from persistence import confinement, turns_to_apply
from persistence.refusals import TRY_AGAIN, sqlstate, translated
from persistence.resources import audit, idempotency
from persistence.subject import Batch, Change, Subject, id_in
from persistence.subjects import SUBJECTS
from persistence.tables import applied_row
from persistence.turns_to_apply import LOCK_WAIT_S, Touched

ROWS_WRITTEN_MAX = 1_000

Done = tuple[Change, Row]
Begins = Callable[[Connection, Command, Batch], Change]
_here = applied_row.c


class Applying:
    """What applying may do within a transaction; `begins` says of one write what it is."""

    def __init__(self, connection: AsyncConnection, within: int | None, begins: Begins) -> None:
        self._connection = connection
        self._within = within
        self._begins = begins
        self._made: dict[int, int] = {}
        self.intents: tuple[Intent, ...] = ()

    async def hold(self, wait_s: int = LOCK_WAIT_S) -> None:
        """Let nobody else of the caller's organization, or of staff, apply until the transaction ends.

        `Overloaded` where somebody else takes long.
        """
        await turns_to_apply.take(self._connection, [turns_to_apply.of(self._within)], wait_s)

    async def hold_touched(self, touched: Sequence[Touched], wait_s: int = LOCK_WAIT_S) -> bool:
        """Let nobody of the organizations that staff's writes touch apply either; whether that had to wait.

        `Overloaded` where somebody there takes long.
        """
        return self._within is None and await turns_to_apply.take_touched(self._connection, touched, wait_s)

    async def claim(self, claim: Claim) -> Replay | None:
        """Take an idempotency key, or answer what was answered first."""
        return await self._connection.run_sync(lambda connection: idempotency.claim(connection, claim))

    async def keep(self, claim: Claim, body: Row) -> None:
        """Keep what would be answered under a claim if nothing more came."""
        await self._connection.run_sync(lambda connection: idempotency.keep(connection, claim, body))

    async def find(
        self, resource: str, wanted: Mapping[str, Collection[object]], rows_max: int, *, folded: bool = False
    ) -> Sequence[Row]:
        """Read the rows whose fields each are one of these, by id, one more than `rows_max` at most.

        A-Z and a-z are the same in texts where `folded`.
        """
        subject = self._subject(resource)
        each = (_one_of(subject.table.c[name], values, folded=folded) for name, values in wanted.items())
        return await self._read(subject, and_(true(), *each), rows_max)

    async def every(self, resource: str, rows_max: int) -> Sequence[Row]:
        """Read all rows, one more than `rows_max` at most."""
        return await self._read(self._subject(resource), true(), rows_max)

    async def marks(self, owner: int, name: str, rows_max: int) -> Sequence[Mark]:
        """Read what was noted of rows by those who applied under a name, one more than `rows_max` at most."""
        noted = select(_here.resource, _here.row_id, _here.fields, _here.made, _here.said)
        mine = noted.where(_here.owner == owner, _here.name == name)
        rows = await self._connection.execute(mine.limit(rows_max + 1))
        return [
            Mark(row.resource, row.row_id, tuple(row.fields), row.made, row.said and tuple(row.said))
            for row in rows
        ]

    async def run(self, steps: Sequence[Step]) -> Mapping[int, Ran]:
        """Do them, in order; `StepRefused` tells which one the store refuses."""
        return await self._connection.run_sync(lambda connection: self._run(connection, steps))

    async def note(self, owner: int, name: str, marks: Sequence[Mark], forgotten: Sequence[Mark]) -> None:
        """Keep marks, and drop others."""
        mine = {"owner": owner, "name": name}
        rows = [
            {
                **mine, "resource": mark.resource, "row_id": self._id(mark), "fields": list(mark.fields),
                "made": mark.made, "said": self._said(mark),
            }
            for mark in marks
        ]  # fmt: skip
        kept = insert(applied_row)
        again = {name: kept.excluded[name] for name in ("fields", "made", "said")} | {
            "applied_at": func.now()
        }
        kept = kept.on_conflict_do_update(index_elements=[*applied_row.primary_key], set_=again)
        for at in range(0, len(rows), ROWS_WRITTEN_MAX):
            await self._connection.execute(kept, rows[at : at + ROWS_WRITTEN_MAX])
        for resource in {mark.resource for mark in forgotten}:
            gone = [mark.row_id for mark in forgotten if mark.resource == resource]
            ids = bindparam("gone", gone, ARRAY(BigInteger))
            await self._connection.execute(
                delete(applied_row).where(
                    _here.owner == owner, _here.name == name, _here.resource == resource,
                    _here.row_id == any_(ids),
                )
            )  # fmt: skip

    def _subject(self, resource: str) -> Subject:
        return SUBJECTS[resource].within(self._within)

    async def _read(self, subject: Subject, wanted: ColumnElement[bool], rows_max: int) -> Sequence[Row]:
        found = subject.rows.where(wanted).order_by(subject.table.c.id).limit(rows_max + 1)
        rows = await self._connection.execute(found)
        return [dict(row) for row in rows.mappings()]

    def _run(self, connection: Connection, steps: Sequence[Step]) -> Mapping[int, Ran]:
        ran: dict[int, Ran] = {}
        batch = Batch()
        entries: list[dict[str, object]] = []
        change: Change | None = None
        for step in steps:
            done = self._one(connection, step, batch)
            if isinstance(done, str):
                ran[step.number] = Ran(step.command.id or 0, done)
                continue
            change, row = done
            entries.append(audit.entry_of(change, row))
            row_id = id_in(row, "id")
            ran[step.number] = Ran(row_id)
            self._made.setdefault(step.number, row_id)
        if change is not None:
            audit.keep(connection, entries)
            change.batch = None
            change.intend_all(_once(batch.writes))
            self.intents = tuple(change.intents)
        return ran

    def _one(self, connection: Connection, step: Step, batch: Batch) -> Done | str:
        """Do one step; why it stays, where it may. `StepRefused` tells which one is refused."""
        try:
            return self._step(connection, step, batch)
        except Conflict as refused:
            if not step.may_stay:
                raise StepRefused(step.number) from refused
            return refused.message
        except AdminRefusal as refused:
            raise StepRefused(step.number) from refused
        except SQLAlchemyError as error:
            if _is_fault(error):
                raise
            raise StepRefused(step.number) from translated(error)

    def _step(self, connection: Connection, step: Step, batch: Batch) -> Done:
        command = self._settled(step)
        if not step.may_stay:
            change = self._begins(connection, command, batch)
            row = confinement.done(change)
            _refuse_changed(change, step)
            return change, row
        mine = Batch()
        change = self._begins(connection, command, mine)
        with connection.begin_nested():
            row = confinement.done(change)
        batch.writes += mine.writes
        return change, row

    def _settled(self, step: Step) -> Command:
        return replace(step.command, values=settled(step.command.values, self._made))

    def _said(self, mark: Mark) -> list[object] | None:
        if mark.said is None:
            return None
        return [self._made[each.number] if isinstance(each, New) else each for each in mark.said]

    def _id(self, mark: Mark) -> int:
        return self._made[mark.row_id.number] if isinstance(mark.row_id, New) else mark.row_id


def _is_fault(error: SQLAlchemyError) -> bool:
    """Whether it says nothing of the step: PostgreSQL is away, or others were in the way."""
    return sqlstate(error) in TRY_AGAIN or not isinstance(translated(error), AdminRefusal)


def _one_of(column: Column[Any], values: Collection[object], *, folded: bool) -> ColumnElement[bool]:
    known = [value for value in values if value is not None]
    compared: Any = func.lower(collate(column, "C")) if folded else column
    found: ColumnElement[bool] = compared == any_(bindparam(None, known, ARRAY(column.type)))
    return found if len(known) == len(values) else or_(found, column.is_(None))


def _refuse_changed(change: Change, step: Step) -> None:
    """Raise `Conflict` where the row was changed since it was compared."""
    if change.before is None:
        return
    if any(change.before.get(name) != each for name, each in step.before.items()):
        raise Conflict("It was changed meanwhile: plan again.")


def _once(writes: Sequence[Row]) -> list[Row]:
    """Control writes without definitions of an account that is defined already: each tells all there is."""
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
