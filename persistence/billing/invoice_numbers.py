"""Numbers of final documents, without a gap."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from sqlalchemy import Connection
from sqlalchemy.dialects.postgresql import insert as upsert

from persistence.tables import invoice_sequence

NUMBER_DIGITS = 6


def next_numbers(connection: Connection, now: datetime, count: int) -> Sequence[str]:
    """Return the year's next `count` invoice numbers; other transactions wait until this one ends."""
    series, last = str(now.astimezone(UTC).year), invoice_sequence.c.last_number
    first = upsert(invoice_sequence).values(series=series, last_number=count)
    taken = first.on_conflict_do_update(
        index_elements=["series"], set_={"last_number": last + count}
    ).returning(last)
    upto = int(connection.execute(taken).scalar_one())
    return [f"{series}-{number:0{NUMBER_DIGITS}d}" for number in range(upto - count + 1, upto + 1)]
