"""Reports for finance, read from invoices, charges and payments: as of a moment, or month by month."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from datetime import date, timedelta
from decimal import Decimal
from typing import Any

from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.core.accounts.administration import Row
from gateway.core.billing.finance import SUPPLY, Asked, LegPlace, tax_by_month
from persistence import engine as engines
from persistence.billing.journal import (
    CHARGED,
    ENTERED,
    ENTRIES,
    ENTRIES_AFTER,
    KNOWN_BY,
    REVENUE,
    moves_of,
    rest_before,
)

ROWS_A_BATCH = 5_000
_OF = """
   AND (cast(:organization AS bigint) IS NULL OR i.organization_id = :organization)
   AND (cast(:currency AS text) IS NULL OR i.currency = :currency)"""
_RECEIVABLES = text(f"""
WITH due AS (
    SELECT i.organization_id, i.currency, i.uncollectible_at < :until AS given_up,
           cast(:day AS date) - i.due_date AS days,
           {rest_before(":until")} AS rest
      FROM invoice AS i
     WHERE i.finalized_at < :until
       AND coalesce(i.voided_at, 'infinity') >= :until {_OF}
)
SELECT d.organization_id, o.name AS organization, d.currency, count(*) FILTER (WHERE d.rest > 0) AS invoices,
       coalesce(sum(d.rest) FILTER (WHERE d.rest > 0 AND NOT given_up AND coalesce(d.days, 0) <= 0), 0)
           AS open,
       coalesce(sum(d.rest) FILTER (WHERE d.rest > 0 AND NOT given_up AND d.days BETWEEN 1 AND 30), 0)
           AS overdue_1_30,
       coalesce(sum(d.rest) FILTER (WHERE d.rest > 0 AND NOT given_up AND d.days BETWEEN 31 AND 60), 0)
           AS overdue_31_60,
       coalesce(sum(d.rest) FILTER (WHERE d.rest > 0 AND NOT given_up AND d.days BETWEEN 61 AND 90), 0)
           AS overdue_61_90,
       coalesce(sum(d.rest) FILTER (WHERE d.rest > 0 AND NOT given_up AND d.days > 90), 0) AS overdue_over_90,
       coalesce(sum(-d.rest) FILTER (WHERE d.rest < 0), 0) AS to_pay_back,
       coalesce(sum(d.rest) FILTER (WHERE d.rest > 0 AND given_up), 0) AS uncollectible,
       coalesce(sum(d.rest) FILTER (WHERE NOT (d.rest > 0 AND given_up)), 0) AS total
  FROM (SELECT organization_id, currency, coalesce(given_up, false) AS given_up, days, rest FROM due) AS d
  JOIN organization AS o ON o.id = d.organization_id
 WHERE d.rest <> 0 GROUP BY 1, 2, 3 ORDER BY 1, 3""")  # noqa: S608  # our own words
# Charges that no final invoice had, those of one that was made final later, too. What a void invoice owes
# again is unbilled from then on; what takes its charges back is on it.
_NOT_BILLED = f"""
SELECT i.* FROM (SELECT *, {ENTERED} AS at FROM charge AS c
                  WHERE c.invoice_id IS NULL AND c.created_at < {KNOWN_BY}) AS i WHERE i.at < :until {_OF}
UNION ALL
SELECT c.*, {ENTERED} FROM invoice AS i JOIN charge AS c ON c.invoice_id = i.id
 WHERE greatest(i.finalized_at, i.voided_at) >= :until AND {ENTERED} < :until AND c.reason <> 'void'
   AND CASE c.reason WHEN 'credit_void' THEN i.voided_at ELSE i.finalized_at END >= :until
   {_OF}"""  # noqa: S608  # our own words
_UNBILLED = text(f"""
SELECT c.organization_id, o.name AS organization, c.currency,
       date_trunc('month', c.period_start, 'UTC') AS month, c.kind, sum(c.amount) AS amount,
       count(*) AS charges
  FROM ({_NOT_BILLED}) AS c JOIN organization AS o ON o.id = c.organization_id
 GROUP BY 1, 2, 3, 4, 5 HAVING sum(c.amount) <> 0 ORDER BY 4, 1, 3, 5""")  # noqa: S608  # our own words
_BALANCES = text(f"""
WITH document AS (
    SELECT i.id, i.organization_id, i.currency, i.kind = 'credit_note' AS is_note, i.total_amount,
           {rest_before(":until")} AS rest,
           coalesce((SELECT sum(p.amount) FROM payment AS p
                      WHERE p.invoice_id = i.id AND p.created_at < :until), 0) AS paid
      FROM invoice AS i
     WHERE i.finalized_at < :until AND coalesce(i.voided_at, 'infinity') >= :until {_OF}
), part AS (
    SELECT organization_id, currency, sum(total_amount) FILTER (WHERE NOT is_note) AS invoiced,
           -sum(total_amount) FILTER (WHERE is_note) AS credited,
           sum(paid) FILTER (WHERE NOT is_note) AS paid, -sum(paid) FILTER (WHERE is_note) AS refunded,
           sum(total_amount - paid - rest) FILTER (WHERE NOT is_note) AS applied,
           sum(rest) FILTER (WHERE NOT is_note) AS due, -sum(rest) FILTER (WHERE is_note) AS open_credit,
           0 AS unbilled
      FROM document GROUP BY 1, 2
    UNION ALL
    SELECT organization_id, currency, 0, 0, 0, 0, 0, 0, 0, sum(amount) FROM ({_NOT_BILLED}) AS c
     GROUP BY 1, 2
)
SELECT p.organization_id, o.name AS organization, p.currency, coalesce(sum(invoiced), 0) AS invoiced,
       coalesce(sum(credited), 0) AS credited, coalesce(sum(paid), 0) AS paid,
       coalesce(sum(refunded), 0) AS refunded, coalesce(sum(applied), 0) AS applied,
       coalesce(sum(due), 0) AS due, coalesce(sum(open_credit), 0) AS open_credit, sum(unbilled) AS unbilled,
       coalesce(sum(due), 0) - coalesce(sum(open_credit), 0) + sum(unbilled) AS balance
  FROM part AS p JOIN organization AS o ON o.id = p.organization_id
 GROUP BY 1, 2, 3 ORDER BY 1, 3""")  # noqa: S608  # our own words
_SOME_LEFT = """(a.spent < a.credits_added OR EXISTS (
    SELECT FROM credit_drawdown AS n WHERE n.credit_addition_id = a.id AND n.day >= :day))"""
# Charged ahead of its supply, whether an invoice has it or not, with what takes it back; and what additions
# of credits have not earned by then.
_DEFERRED = text(f"""
SELECT c.organization_id, o.name AS organization, c.currency,
       date_trunc('month', c.period_start, 'UTC') AS month, c.kind, sum(c.amount) AS amount
  FROM ({CHARGED} AND c.created_at < c.period_start AND c.created_at < :until AND c.period_end > :until
        AND c.source <> 'credit_addition') AS c JOIN organization AS o ON o.id = c.organization_id
 GROUP BY 1, 2, 3, 4, 5 HAVING sum(c.amount) <> 0
UNION ALL
SELECT m.organization_id, o.name, m.currency, NULL, 'credits_purchased', trim_scale(sum(m.deferred))
  FROM ({moves_of(_SOME_LEFT)}) AS m
  JOIN organization AS o ON o.id = m.organization_id GROUP BY 1, 2, 3 HAVING sum(m.deferred) <> 0
 ORDER BY 4 NULLS LAST, 1, 3, 5""")  # noqa: S608  # our own words
# Lines with what they are taxed by: as the line says, else as its document's one line of tax does.
_TAXED = f"""
SELECT i.id, i.organization_id, o.name AS organization, i.currency, i.at, i.sign, l.kind = 'tax' AS is_tax,
       l.amount, coalesce(l.tax_rate, (
           SELECT max((substring(t.description FROM '([0-9.]+) %$'))::numeric) / 100 FROM invoice_line AS t
            WHERE t.invoice_id = i.id AND t.kind = 'tax'), 0) AS rate, {{supplied}} AS supplied
  FROM ({{documents}}) AS i JOIN organization AS o ON o.id = i.organization_id
  JOIN invoice_line AS l ON l.invoice_id = i.id
 WHERE l.kind <> 'credits_consumed' {_OF} ORDER BY i.id, i.at, l.position"""  # noqa: S608  # our own words
_BY_DOCUMENT = text(_TAXED.format(
    documents="""SELECT i.*, d.at, d.sign FROM invoice AS i,
       LATERAL (VALUES (i.finalized_at, 1), (i.voided_at, -1)) AS d (at, sign)
 WHERE i.finalized_at IS NOT NULL AND d.at >= :since AND d.at < :until""",
    supplied="(i.at AT TIME ZONE 'UTC')::date",
))  # fmt: skip
_BY_SUPPLY = text(_TAXED.format(
    documents="""SELECT i.*, i.finalized_at AS at, 1 AS sign FROM invoice AS i
 WHERE i.status = 'finalized' AND i.id IN (
       SELECT c.invoice_id FROM charge AS c WHERE c.period_end > :since AND c.period_start < :until
        UNION SELECT id FROM invoice AS w WHERE w.period_end > :since AND w.period_start <= :until)""",
    supplied="""coalesce((SELECT max(c.period_end) - interval '1 microsecond' FROM charge AS c
                           WHERE c.invoice_id = i.id AND c.line = l.position) AT TIME ZONE 'UTC',
                i.period_end - 1)::date""",
))  # fmt: skip

Reader = Callable[[Connection, Asked], list[Row]]


def read(connection: Connection, report: str, asked: Asked, after: int, rows_max: int) -> Sequence[Row]:
    """Some rows of a report that is no ledger, in its order, behind so many."""
    return _REPORTS[report](connection, asked)[after : after + rows_max]


def ledger(connection: Connection, asked: Asked, after: LegPlace, rows_max: int) -> Sequence[Row]:
    """Some legs of entries, in the order of the ledger, behind a place."""
    here = _values(asked) | after._asdict() | {"since": after.at, "rows": rows_max}
    return [dict(row) for row in connection.execute(text(ENTRIES_AFTER), here).mappings()]


async def entries(engine: AsyncEngine, asked: Asked) -> AsyncIterator[Sequence[Row]]:
    """The legs of all entries of a time, in batches, over a connection of its own: readers may be slow."""
    async with engines.apart(engine) as connection:
        await connection.execute(text("SET LOCAL jit = off"))
        async with connection.stream(text(ENTRIES), _values(asked)) as result:
            async for batch in result.mappings().partitions(ROWS_A_BATCH):
                yield [dict(row) for row in batch]


def _values(asked: Asked) -> dict[str, Any]:
    return {
        "since": asked.since, "until": asked.until, "day": (asked.until - timedelta(microseconds=1)).date(),
        "organization": asked.organization_id, "currency": asked.currency,
    }  # fmt: skip


def _plain(statement: Any) -> Reader:
    def read(connection: Connection, asked: Asked) -> list[Row]:
        return [dict(row) for row in connection.execute(statement, _values(asked)).mappings()]

    return read


def _by_month(statement: Any) -> Reader:
    def read(connection: Connection, asked: Asked) -> list[Row]:
        rows = connection.execute(statement, _values(asked)).mappings()
        return [{**row, "month": row["month"] and row["month"].date()} for row in rows]

    return read


def _taxes(connection: Connection, asked: Asked) -> list[Row]:
    """By month, rate, currency and organization; a document made void is taken back in the month it was."""
    by_supply = asked.by == SUPPLY
    found: dict[tuple[date, int, str, Decimal], dict[str, Any]] = {}
    assert asked.since is not None
    since, until = asked.since.date(), asked.until.date()
    for lines in _documents(connection.execute(_BY_SUPPLY if by_supply else _BY_DOCUMENT, _values(asked))):
        head = lines[0]
        for rate, month, net, tax in _of_document(lines, head.currency):
            if not since <= month < until:
                continue
            place = (month, head.organization_id, head.currency, rate)
            sums = found.setdefault(place, {
                "month": month, "organization_id": head.organization_id, "organization": head.organization,
                "currency": head.currency, "rate": rate, "net": Decimal(0), "tax": Decimal(0), "documents": 0,
            })  # fmt: skip
            sums["net"] += head.sign * net
            sums["tax"] += head.sign * tax
            sums["documents"] += 1
    return [found[place] for place in sorted(found)]


def _documents(rows: Any) -> Iterator[list[Any]]:
    lines: list[Any] = []
    for row in rows:
        if lines and (lines[0].id, lines[0].at) != (row.id, row.at):
            yield lines
            lines = []
        lines.append(row)
    if lines:
        yield lines


def _of_document(lines: Sequence[Any], currency: str) -> Iterator[tuple[Decimal, date, Decimal, Decimal]]:
    """Rate, month, net and tax of a document, each pair once."""
    nets: dict[Decimal, dict[date, Decimal]] = defaultdict(lambda: defaultdict(Decimal))
    taxes: dict[Decimal, Decimal] = defaultdict(Decimal)
    for line in lines:
        rate = line.rate.normalize()
        if line.is_tax:
            taxes[rate] += line.amount
        else:
            nets[rate][line.supplied.replace(day=1)] += line.amount
    for rate in sorted({*nets, *taxes}):
        months = nets.get(rate) or {lines[-1].supplied.replace(day=1): Decimal(0)}
        for month, tax in tax_by_month(taxes[rate], months, currency).items():
            yield rate, month, months[month], tax


_REPORTS: dict[str, Reader] = {
    "receivables": _plain(_RECEIVABLES),
    "unbilled": _by_month(_UNBILLED),
    "balances": _plain(_BALANCES),
    "deferred-revenue": _by_month(_DEFERRED),
    "revenue": _by_month(text(REVENUE)),
    "taxes": _taxes,
}
