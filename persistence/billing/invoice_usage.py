"""Behind an invoice, as CSV: what each line is charged for, and every use with the request it came from.

Amounts of a line add up to it, and all of them to the invoice. An invoice covers the movements from its first
day on up to a seq of each account, noted when it was finalized, less what an invoice finalized before covers
already. A draft covers what it would.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import psycopg
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.core.billing.charge import ONE_DAY, OVERAGE, USAGE
from gateway.core.billing.invoice import INFORMATION
from gateway.core.billing.subscription import midnight
from gateway.core.model import INTEGER_MAX
from gateway.core.spreadsheet import csv
from gateway.errors import NotFound
from persistence import engine as engines
from persistence.billing import usage_charges
from persistence.billing.coverage import Box, Cover, boxes
from persistence.billing.placed import Placed, placed
from persistence.billing.usage_sql import COLUMNS, SUMS, rows_of, slice_of

ROWS_A_SLICE = 20_000
# A service, a price, the first and the last day, a line.
Span = tuple[int, Decimal, date, date, int]
SPAN_PARTS = 5
_ENDLESS = datetime(9999, 12, 30, tzinfo=UTC)

_INVOICE = text("""
SELECT i.*, least(i.period_start,
                  (SELECT min(u.day) FROM usage_daily AS u WHERE u.organization_id = i.organization_id),
                  (SELECT min(u.supplied_on) FROM usage_told AS u
                    WHERE u.organization_id = i.organization_id)) AS first_day
  FROM invoice AS i WHERE i.id = :id""")
_FINAL = text("""
SELECT id, period_end, covers, finalized_at, voided_at FROM invoice
 WHERE organization_id = :organization AND corrects_id IS NULL AND finalized_at IS NOT NULL AND id <> :id
   AND covers IS NOT NULL AND (finalized_at, number)
       < (coalesce(cast(:finalized_at AS timestamptz), 'infinity'), coalesce(cast(:number AS text), ''))
 ORDER BY finalized_at, number""")
_TENANTS = text("SELECT id FROM tenant WHERE organization_id = :organization ORDER BY id")

Values = dict[str, Any]


class InvoiceUsage:
    """Writes what is behind invoices, in pieces."""

    def __init__(self, engine: AsyncEngine, *, rows_a_slice: int = ROWS_A_SLICE) -> None:
        self._engine = engine
        self._rows_a_slice = rows_a_slice

    async def csv(self, invoice_id: int, today: date) -> AsyncIterator[bytes]:
        """The whole file, of one moment; `NotFound` if there is no such invoice.

        It has a connection of its own: readers may be slow.
        """
        async with engines.apart(self._engine) as connection:
            await connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))
            # Each slice is a statement of its own: to compile one takes longer than to run it.
            await connection.execute(text("SET LOCAL jit = off"))
            invoice = (await connection.execute(_INVOICE, {"id": invoice_id})).first()
            if invoice is None:
                raise NotFound
            found = await connection.run_sync(placed, invoice, today)
            told = await connection.run_sync(usage_charges.rows, invoice, found)
            yield csv(COLUMNS, told, head=True)
            if invoice.corrects_id is not None or invoice.source is not None:
                return
            accounts = await connection.run_sync(_accounts, invoice)
            driver: Any = (await connection.get_raw_connection()).driver_connection
            summed: dict[int, Decimal] = defaultdict(Decimal)
            values = _values(invoice, found)
            for kind, owner, of_account in accounts:
                for box in of_account:
                    here = values | {"owner": owner} | box._asdict() | _of_tenant(found, owner)
                    async for piece in self._rows(driver, kind, here, summed):
                        yield piece
            rest = list(usage_charges.rest(invoice, found, summed))
            if rest:
                yield csv(COLUMNS, rest)

    async def _rows(
        self, driver: psycopg.AsyncConnection[Any], kind: str, here: Values, summed: dict[int, Decimal]
    ) -> AsyncIterator[bytes]:
        """The rows of a box, slice by slice; adds up what those of units come to by line."""
        while True:
            wanted = here | {"rows": self._rows_a_slice}
            found = await (await driver.execute(slice_of(kind), wanted)).fetchone()
            assert found is not None, "it adds up"
            upto, first, last = found
            if upto is None:
                return
            one = here | {"upto": upto, "first": first, "last": last}
            async with driver.cursor() as cursor, cursor.copy(rows_of(kind), one) as copied:
                async for piece in copied:
                    yield bytes(piece).replace(b"\n", b"\r\n")
            if kind == "units":
                async for line, amount in await driver.execute(SUMS, one):
                    summed[line] += amount
            here = here | {"after": upto}


def _accounts(connection: Connection, invoice: Any) -> list[tuple[str, int, Sequence[Box]]]:
    """Each account of an invoice's organization, and what the invoice has of it."""
    here = {
        "organization": invoice.organization_id, "id": invoice.id, "finalized_at": invoice.finalized_at,
        "number": invoice.number,
    }  # fmt: skip
    final = connection.execute(_FINAL, here).all()
    owners = [("tokens", tenant) for tenant in connection.execute(_TENANTS, here).scalars()]
    owners += [("credits", invoice.organization_id), ("units", invoice.organization_id)]
    found: list[tuple[str, int, Sequence[Box]]] = []
    for kind, owner in owners:
        others = [_cover(each, kind, owner) for each in final]
        found.append((kind, owner, boxes(others, _mine(invoice, kind, owner))))
    return found


def _mine(invoice: Any, kind: str, owner: int) -> Cover:
    if invoice.covers is None:
        since, until = midnight(invoice.first_day), midnight(invoice.period_end)
        return Cover(invoice.id, since, until, INTEGER_MAX, invoice.finalized_at or _ENDLESS)
    return _cover(invoice, kind, owner)


def _cover(invoice: Any, kind: str, owner: int) -> Cover:
    covers: Mapping[str, Any] = invoice.covers
    seqs = {
        "tokens": covers["tenants"].get(str(owner), 0),
        "credits": covers["credits"],
        "units": covers["spend"],
    }
    since, until = midnight(date.fromisoformat(covers["since"])), midnight(invoice.period_end)
    return Cover(invoice.id, since, until, int(seqs[kind]), invoice.finalized_at, invoice.voided_at)


def _values(invoice: Any, found: Placed) -> Values:
    """What rows of uses look up: the line of a service's days at a price, and that of credits."""
    spans = _spans(found)
    services, prices, first, last, lines = ([span[at] for span in spans] for at in range(SPAN_PARTS))
    credits_line = [line.position for line in found.lines if line.kind == INFORMATION]
    return {
        "currency": invoice.currency, "services": services, "prices": prices, "first_days": first,
        "last_days": last, "lines": lines, "credits_line": credits_line[0] if credits_line else None,
    }  # fmt: skip


def _spans(found: Placed) -> list[Span]:
    """A service, a price, and from which day to which one of a month its units are on a line.

    A month has several lines where a rate of tax changed within it.
    """
    of_month: dict[tuple[int, Decimal, date], dict[date, int]] = {}
    for charge, line in found.charges:
        if charge.kind == USAGE and line is not None:
            place = (charge.service_id or 0, charge.unit_price, charge.day.replace(day=1))
            of_month.setdefault(place, {})[charge.day] = line
    spans: list[Span] = []
    for (service_id, price, month), lines in of_month.items():
        first, line = month, lines[min(lines)]
        for day in sorted(lines):
            if lines[day] != line:
                spans.append((service_id, price, first, day - ONE_DAY, line))
                first, line = day, lines[day]
        until = (month + timedelta(days=31)).replace(day=1) - ONE_DAY
        spans.append((service_id, price, first, until, line))
    return spans


def _of_tenant(found: Placed, tenant_id: int) -> Values:
    """The lines of a tenant's cycles that went beyond its plan."""
    lines = dict(_cycles(found, tenant_id))
    return {"cycles": list(lines), "cycle_lines": list(lines.values())}


def _cycles(found: Placed, tenant_id: int) -> Iterator[tuple[int, int]]:
    for charge, line in found.charges:
        if charge.kind == OVERAGE and charge.tenant_id == tenant_id and line and charge.place is not None:
            yield charge.place, line
