"""What an organization owes and no invoice has: by kind, with what is known and not written yet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from decimal import Decimal
from itertools import groupby

from sqlalchemy import Connection, select

from gateway.core.accounts.administration import Row
from gateway.core.billing.charge import Charge
from persistence.billing import charges
from persistence.tables.people import organization
from persistence.together import is_one_of


def read(connection: Connection, organization_id: int, today: date) -> list[Row]:
    """A row for each kind of charge, none where all is billed; of a subscription, days that are over."""
    return read_all(connection, [organization_id], today)[organization_id]


def read_all(connection: Connection, organization_ids: Sequence[int], today: date) -> Mapping[int, list[Row]]:
    """The same of many organizations, by whose it is."""
    pays = select(organization.c.id, organization.c.currency)
    currencies = connection.execute(pays.where(is_one_of(organization.c.id, organization_ids)))
    all_that_runs = charges.ALL_THAT_RUNS
    found = charges.open_charges(connection, organization_ids, today, today=today, running=all_that_runs)
    unbilled = charges.unbilled(connection, organization_ids)
    return {
        organization_id: _by_kind(currency, unbilled[organization_id] + found[organization_id])
        for organization_id, currency in currencies
    }


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
