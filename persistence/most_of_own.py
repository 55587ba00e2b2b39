"""How much of a kind an organization's own people make: what each of them costs is kept for everybody.

Staff may make more. Money has none of these bounds: what was paid, charged or granted is never refused for
being one too many.
"""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import func, select

from gateway.core.accounts.roles import CREATE
from gateway.errors import Conflict
from persistence.ownership import owned
from persistence.subject import Change, live

# Of rows that are neither deleted nor revoked. Two who make the last one at once both may.
MOST: Mapping[str, int] = {
    "admin-tokens": 200,
    "api-keys": 10_000,
    "budgets": 500,
    "tenants": 1_000,
    "users": 10_000,
    "webhooks": 50,
}
# What each costs by itself: a row of money, or of a pair or a moment of which there can be but one.
UNBOUNDED = frozenset({
    "amendments", "credit-additions", "invoices", "organization-services", "organization-subscriptions",
    "tax-rates",
})  # fmt: skip


def refuse_more(change: Change, count: int = 1) -> None:
    """Raise `Conflict` where a caller of one organization would make more of a kind than it may have."""
    most = MOST.get(change.command.resource)
    if change.within is None or most is None or change.command.verb != CREATE:
        return
    table = change.subject.table
    there = live(table, table.c.id).where(owned(table, change.within))
    if "revoked_at" in table.c:
        there = there.where(table.c.revoked_at.is_(None))
    if "first_sight" in table.c:  # met by requests: nobody has made those
        there = there.where(table.c.first_sight.is_(False))
    some = there.limit(most).subquery()
    if change.connection.execute(select(func.count()).select_from(some)).scalar_one() + count > most:
        kind = change.command.resource.replace("-", " ")
        raise Conflict(
            f"An organization's own people make at most {most} {kind}: end some first, or ask the provider."
        )
