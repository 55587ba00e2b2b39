"""Maxima of rows that an organization's own people may create, since gateways and pages pay for each row.

Staff may create more: a payment, charge or grant is never refused for being one too many.
"""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import ColumnElement, Select, func, select, text

from gateway.core.accounts.administration import CREATE, Realm
from gateway.errors import Conflict
from persistence.entity import EntityWrite, live, owned
from persistence.error_mapping import lock_within

# Advisory lock class 7812: one transaction at a time creates rows of an organization, so counts are exact.
_LOCK = text("SELECT pg_advisory_xact_lock(7812, hashint8(:organization))")
# Seconds to wait for that lock, on a connection that others may need.
COUNT_LOCK_WAIT_S = 2
# Ended rows stay stored: a kind grows by at most this many times its maximum in a day.
TIMES_A_DAY = 2
# Of rows that are neither deleted nor revoked.
MOST: Mapping[str, int] = {
    "admin-tokens": 200,
    "api-keys": 10_000,
    "budgets": 500,
    "groups": 500,
    "raise-requests": 10_000,
    "tenants": 1_000,
    "users": 10_000,
    "webhooks": 50,
}


def refuse_more(change: EntityWrite) -> None:
    """Raise `Conflict` if an organization already has `MOST` rows of a kind; staff may create more."""
    most = MOST.get(change.command.resource)
    if change.within is None or most is None or change.command.verb != CREATE:
        return
    whose = {"organization": change.within}
    taken = "Others of this organization make some as well, and take long"
    lock_within(change.connection, _LOCK, whose, COUNT_LOCK_WAIT_S, taken)
    table, kind = change.subject.table, change.command.resource.replace("-", " ")
    mine = owned(table, Realm(change.within))
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


def _number(change: EntityWrite, rows: Select[tuple[int]], most: int) -> int:
    """Return the number of rows that a query selects, at most `most`."""
    counted = select(func.count()).select_from(rows.limit(most).subquery())
    return change.count((change.command.resource, most), lambda: change.connection.scalars(counted).one())
