"""How much of a kind an organization's own people make: what each of them costs is kept for everybody.

Staff may make more: what was paid, charged or granted is never refused for being one too many.
"""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import ColumnElement, Select, func, select, text

from gateway.core.accounts.roles import CREATE
from gateway.errors import Conflict
from persistence.ownership import owned
from persistence.refusals import lock_within
from persistence.subject import Change, live

# Advisory lock class 7812: one at a time makes rows of an organization, so that nobody counts beside another.
_LOCK = text("SELECT pg_advisory_xact_lock(7812, hashint8(:organization))")
# So long one waits for the other, on a connection that everybody else may need.
LOCK_WAIT_S = 2
# What ended stays as a row: made and ended in turns, a kind grows by so many times its maximum in a day.
TIMES_A_DAY = 2
# Of rows that are neither deleted nor revoked.
MOST: Mapping[str, int] = {
    "admin-tokens": 200,
    "api-keys": 10_000,
    "budgets": 500,
    "tenants": 1_000,
    "users": 10_000,
    "webhooks": 50,
}


def refuse_more(change: Change) -> None:
    """Raise `Conflict` where a caller of one organization would make more of a kind than it may have."""
    most = MOST.get(change.command.resource)
    if change.within is None or most is None or change.command.verb != CREATE:
        return
    whose = {"organization": change.within}
    taken = "Others of this organization make some as well, and take long"
    lock_within(change.connection, _LOCK, whose, LOCK_WAIT_S, taken)
    table, kind = change.subject.table, change.command.resource.replace("-", " ")
    mine = owned(table, change.within)
    if "first_sight" in table.c:  # met by requests: nobody has made those
        mine &= table.c.first_sight.is_(False)
    there = live(table, table.c.id).where(mine)
    if "revoked_at" in table.c:
        there = there.where(table.c.revoked_at.is_(None))
    if _number(change, there, most) >= most:
        raise Conflict(
            f"An organization's own people make at most {most} {kind}: end some first, or ask the provider."
        )
    a_day = TIMES_A_DAY * most
    today: ColumnElement[bool] = table.c.created_at > func.now() - text("interval '1 day'")
    if _number(change, select(table.c.id).where(mine, today), a_day) >= a_day:
        raise Conflict(
            f"An organization's own people make at most {a_day} {kind} within 24 hours, ended ones too: "
            "go on tomorrow, or ask the provider."
        )


def _number(change: Change, rows: Select[tuple[int]], most: int) -> int:
    """How many rows there are; `most` where there are more."""
    counted = select(func.count()).select_from(rows.limit(most).subquery())
    return change.count((change.command.resource, most), lambda: change.connection.scalars(counted).one())
