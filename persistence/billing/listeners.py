"""Features that react to final documents in the transaction that finalizes, pays or voids one.

The core names no feature: each supplies its own listener. A feature that collects a document's payment in
another system also manages the document's open credit.
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
    """A feature's reactions to final documents.

    `elsewhere` is an SQL condition over an invoice `i`: another system holds its payments or credit.
    `refusal` is the error message for a person who would use that credit here. References of payments that
    the feature records begin with `reference`.
    """

    elsewhere: str
    reference: str
    refusal: str

    def final(self, connection: Connection, invoice_ids: Sequence[int]) -> None:
        """Handle invoices and credit notes that have just become final."""

    def settled(self, change: EntityWrite, invoice_id: int, status: str, paid: Decimal) -> None:
        """Handle an invoice's new payment status; `paid` is the amount received for the invoice."""

    def void(self, connection: Connection, invoice_id: int) -> None:
        """Handle an invoice or credit note that has just become void."""


@cache
def invoice_listeners() -> tuple[InvoiceListener, ...]:
    return tuple(listener for feature in features() for listener in feature.invoice_listeners())
