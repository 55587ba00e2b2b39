"""Writes of negotiated prices: their discounts are stored by month."""

from __future__ import annotations

from decimal import Decimal

from gateway.core.accounts.administration import Row
from persistence import entity
from persistence.entity import EntityWrite, lock
from persistence.queries import query

_NOTE = query("negotiated_prices.note", "Store a discount on a service from a month on", """
INSERT INTO service_discount (organization_id, service_id, month, rate)
VALUES (:organization, :service, :month, :rate)
ON CONFLICT (organization_id, service_id, month) DO UPDATE SET rate = excluded.rate, is_due = true""")  # fmt: skip


def create(change: EntityWrite) -> Row:
    """Store what an organization negotiated for a service; a discount holds from this month on."""
    row = entity.create(change)
    if row["discount"] is not None:
        _note(change, row, row["discount"])
    return row


def change_row(change: EntityWrite) -> Row:
    """Change what an organization negotiated for a service; another discount holds from this month on."""
    before = lock(change)
    row = entity.change_row(change)
    if row["discount"] != before["discount"]:
        _note(change, row, row["discount"])
    return row


def delete(change: EntityWrite) -> Row:
    """Delete what an organization negotiated for a service; its discount ends with the month before."""
    row = entity.delete(change)
    if row["discount"] is not None:
        _note(change, row, None)
    return row


def _note(change: EntityWrite, row: Row, rate: object) -> None:
    change.connection.execute(_NOTE, {
        "organization": row["organization_id"], "service": row["service_id"],
        "month": change.today.replace(day=1), "rate": Decimal(0) if rate is None else rate,
    })  # fmt: skip
