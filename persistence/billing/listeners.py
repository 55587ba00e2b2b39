"""Features that must know of final documents in the transaction that makes, pays or voids one.

The core names no listener: each feature hands over its own. One that collects a document's money somewhere
else has its open credit too.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from functools import cache
from typing import Protocol

from sqlalchemy import Connection

from gateway.feature import features
from persistence.entity import EntityWrite


class InvoiceListener(Protocol):
    """A feature's side of it.

    `elsewhere` is a condition of SQL over an invoice `i`: its money, or its credit, is there and not here.
    `refusal` says so to a person who would use the credit here. References of payments that it records begin
    with `reference`.
    """

    elsewhere: str
    reference: str
    refusal: str

    def final(self, connection: Connection, invoice_ids: Sequence[int]) -> None:
        """Handle documents that became final."""

    def settled(self, change: EntityWrite, invoice_id: int, status: str, paid: Decimal) -> None:
        """Handle an invoice's new payment status; `paid` is the amount received for the invoice."""

    def void(self, connection: Connection, invoice_id: int) -> None:
        """Handle a document that became void."""


@cache
def invoice_listeners() -> tuple[InvoiceListener, ...]:
    return tuple(listener for feature in features() for listener in feature.invoice_listeners())
