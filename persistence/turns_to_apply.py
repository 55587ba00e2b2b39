"""Whose turn it is to apply configuration: one after the other of each organization, and of staff.

An organization's people never keep staff waiting who touch nothing of theirs, nor another organization's. Who
does touch something waits for one of their transactions: PostgreSQL gives a lock in the order in which it is
asked for, so that whoever applies again and again has a turn between two, not all of them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from sqlalchemy import ARRAY, BigInteger, Table, any_, bindparam, text
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.core.accounts.administration import OWNER, Row
from persistence.ownership import THROUGH, owners
from persistence.refusals import lock_within
from persistence.subject import Subject
from persistence.subjects import SUBJECTS
from persistence.tables import organization

# Advisory lock class 7809: whoever applies configuration, by organization; 0 is staff.
_TAKE = text("SELECT pg_advisory_xact_lock(7809, whose) FROM unnest(CAST(:whose AS integer[])) AS whose")
_TAKEN = text(
    "SELECT whose FROM unnest(CAST(:whose AS integer[])) AS whose"
    " WHERE NOT pg_try_advisory_xact_lock(7809, whose)"
)
STAFF = 0
_KEYS_MAX = 2**31 - 1
# So long one waits for the other. Nothing else of the transaction is bounded by it.
LOCK_WAIT_S = 60
# Who touches more organizations waits for none of them: each lock takes room of the server's. A row that was
# changed meanwhile is refused all the same.
ORGANIZATIONS_MAX = 500

# A write: the kind of its row, its id where there is one, and ids of others by the names of fields.
Touched = tuple[str, int | None, Row]


def of(organization_id: int | None) -> int:
    """What turns of an organization, or of staff, are called: a lock of two numbers has short ones."""
    return STAFF if organization_id is None else 1 + (organization_id - 1) % _KEYS_MAX


async def take(connection: AsyncConnection, whose: Sequence[int], wait_s: int) -> None:
    """Have turns until the transaction ends; `Overloaded` where somebody else takes long."""
    taken = "Somebody else is applying, and takes long"
    await connection.run_sync(lock_within, _TAKE, {"whose": whose}, wait_s, taken)


async def take_touched(connection: AsyncConnection, touched: Sequence[Touched], wait_s: int) -> bool:
    """Have the turns of all organizations that are touched; whether that had to wait for any.

    Staff alone do, one at a time, and nobody else has the turns of two: so none wait in a circle.
    """
    whose = sorted(map(of, await _owners(connection, touched)))
    if not whose or len(whose) > ORGANIZATIONS_MAX:
        return False
    busy = [*await connection.scalars(_TAKEN, {"whose": whose})]
    if busy:
        await take(connection, busy, wait_s)
    return bool(busy)


async def _owners(connection: AsyncConnection, touched: Sequence[Touched]) -> set[int]:
    """Whose the rows are that are written, and those that they name."""
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


def _named(subject: Subject, values: Row) -> Iterator[tuple[Table, object]]:
    """The rows of other kinds that values name."""
    referred = {OWNER: organization, **THROUGH, **subject.refers}
    return ((table, values[name]) for name, table in referred.items() if name in values)
