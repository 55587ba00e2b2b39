"""Numbers of invoices: given out in the transaction that finalizes, so that a year's have no gap."""

from __future__ import annotations

from datetime import UTC

from sqlalchemy.dialects.postgresql import insert as upsert

from persistence.subject import Change
from persistence.tables.billing import invoice_sequence

NUMBER_DIGITS = 6


def next_number(change: Change) -> str:
    """Take the year's next number; others wait here until this transaction ends."""
    series = str(change.now.astimezone(UTC).year)
    first = upsert(invoice_sequence).values(series=series, last_number=1)
    taken = first.on_conflict_do_update(
        index_elements=["series"], set_={"last_number": invoice_sequence.c.last_number + 1}
    ).returning(invoice_sequence.c.last_number)
    return f"{series}-{change.connection.execute(taken).scalar_one():0{NUMBER_DIGITS}d}"
