"""What an organization owes and no invoice has: by kind, with what is known and not written yet."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import date
from decimal import Decimal
from itertools import groupby

from sqlalchemy import Connection, select

from gateway.core.accounts.administration import Row
from gateway.core.billing.charge import Charge
from persistence.billing import charges
from persistence.tables import organization


def read(connection: Connection, organization_id: int, today: date) -> list[Row]:
    """A row for each kind of charge, none where all is billed; of a subscription, days that are over."""
    pays = select(organization.c.currency).where(organization.c.id == organization_id)
    currency, ids = connection.execute(pays).scalar_one(), [organization_id]
    found = charges.open_charges(connection, ids, today, today=today, running=charges.ALL_THAT_RUNS)
    return _by_kind(currency, charges.unbilled(connection, ids)[organization_id] + found[organization_id])


def _by_kind(currency: str, known: Sequence[Charge]) -> list[Row]:
    by_kind = groupby(sorted(known, key=lambda charge: charge.kind), key=lambda charge: charge.kind)
    return [row for kind, some in by_kind if (row := _row(kind, currency, some)) is not None]


def said(rows: Iterable[Row]) -> str:
    """What is owed, in words; empty where nothing is."""
    return ", ".join(f"{row['currency']} {row['amount']} of {row['kind']}" for row in rows)


def _row(kind: str, currency: str, some: Iterable[Charge]) -> Row | None:
    found = list(some)
    amount = sum((charge.amount for charge in found), Decimal(0)).normalize()
    if not amount:
        return None
    return {
        "kind": kind,
        "currency": currency,
        "amount": f"{amount:f}",
        "period_start": min(charge.start for charge in found),
        "period_end": max(charge.end for charge in found),
        "charges": len(found),
    }
