"""Finance reports, read from invoices, charges and payments: as of a moment, or month by month."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from datetime import date, timedelta
from decimal import Decimal
from typing import Any, NamedTuple

from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.core.accounts.administration import Row
from gateway.core.billing.finance import SUPPLY, LegPlace, ReportPeriod, tax_by_month
from persistence import engine as engines
from persistence.billing.payments import rest_before

# The double-entry view of owed, billed and paid amounts: legs of entries, computed from rows that never
# change.
#
# The legs of an entry add up to zero; a positive amount is a debit. A charge is entered at the last instant
# of its supply while that month is open (`entered_at` in the schema), else when its row is stored, as all
# other entries. Charges in advance are deferred until they are supplied. A charge that a voided invoice
# restores, and the one that it reverses, are no entries: nothing was supplied or withdrawn.
#
# Sold credits earn their price as they are drawn: used, expired, or taken back. The earned amount of an
# addition is computed from all its known movements, rounded to nano-units; an entry has the difference. So
# the earned and the deferred amount always add up to the addition's price.


# A payment at the same microsecond as the write-off of its invoice is still an entry of `receivables`.
_GIVEN_UP = "i.uncollectible_at + interval '1 microsecond'"
# The accounts of the credit of a note `i`, and of an invoice `d` to which some of it is applied.
_CREDIT = """CASE WHEN (SELECT o.uncollectible_at FROM invoice AS o WHERE o.id = i.corrects_id)
                       < i.finalized_at THEN 'bad_debt' ELSE 'receivables' END"""
_DUE = "CASE WHEN d.uncollectible_at < a.created_at THEN 'bad_debt' ELSE 'receivables' END"
# The time of entry of a charge `c`.
ENTERED = """CASE WHEN c.source = 'credit_addition' AND c.reason <> 'fact' OR c.reason = 'reissued'
                  THEN c.created_at ELSE entered_at(c.created_at, c.period_end) END"""
# Charges that are entries. For invoices older than charges, the lines are the entries.
CHARGED = f"""
    SELECT c.*, c.created_at < c.period_start AS is_ahead, {ENTERED} AS at
      FROM charge AS c
      LEFT JOIN invoice_line AS l ON l.invoice_id = c.invoice_id AND l.position = c.line
     WHERE c.amount <> 0 AND c.reason NOT IN ('void', 'reissued')
       AND NOT (c.reason = 'fact' AND l.position IS NOT NULL AND l.exact IS NULL)
       AND (cast(:organization AS bigint) IS NULL OR c.organization_id = :organization)
       AND (cast(:currency AS text) IS NULL OR c.currency = :currency)"""
# Invoices and notes, once as they became final and once more as they were made void.
_DOCUMENTS = """
    SELECT i.id, i.organization_id, i.currency, i.number, i.kind, i.total_amount, d.source, d.at, d.sign,
           CASE WHEN o.uncollectible_at < i.finalized_at OR i.uncollectible_at < d.at
                THEN 'bad_debt' ELSE 'receivables' END AS account
      FROM invoice AS i LEFT JOIN invoice AS o ON o.id = i.corrects_id,
           LATERAL (VALUES ('invoice', i.finalized_at, 1), ('void', i.voided_at, -1))
             AS d (source, at, sign)
     WHERE i.finalized_at IS NOT NULL AND d.at >= :since AND d.at < :until
       AND (cast(:organization AS bigint) IS NULL OR i.organization_id = :organization)
       AND (cast(:currency AS text) IS NULL OR i.currency = :currency)"""
# Makes a quotient so exact that rounding it is rounding the fraction.
_WIDE = "1." + 30 * "0"
# An entry is older than its row by a month and its grace period at most.
KNOWN_BY = "cast(:until AS timestamptz) + interval '33 days'"
# The payments and notes for prepaid credits of addition `a` before they are in force, and that event.
_WAITED = """
    SELECT 'payment' AS source, p.id AS source_id, p.created_at AS at, p.amount AS paid, 0 AS noted,
           0 AS given, p.reference AS said
      FROM payment AS p WHERE p.invoice_id = a.invoice_id
    UNION ALL
    SELECT 'application', x.id, x.created_at, x.amount, 0, 0, n.number
      FROM note_application AS x JOIN invoice AS n ON n.id = x.note_id
     WHERE x.invoice_id = a.invoice_id AND n.corrects_id IS DISTINCT FROM a.invoice_id
    UNION ALL
    SELECT d.source, n.id, d.at, 0, -d.sign * n.total_amount, 0, n.kind
      FROM invoice AS n, LATERAL (VALUES ('invoice', n.finalized_at, 1), ('void', n.voided_at, -1))
           AS d (source, at, sign)
     WHERE n.corrects_id = a.invoice_id AND d.at IS NOT NULL
    UNION ALL
    SELECT 'posting', a.id, p.created_at, 0, 0, 1, p.kind FROM credit_posting AS p
     WHERE p.organization_id = a.organization_id AND p.credit_addition_id = a.id AND p.kind = 'addition'"""


def _day_of(moment: str) -> str:
    return f"(cast({moment} AS timestamptz) AT TIME ZONE 'UTC')::date"


def moves_of(additions: str) -> str:
    """Return SQL for the money movements of credit additions up to a moment.

    `additions` is a condition on the rows `a` of additions. Each movement changes the deferred, unpaid and
    earned parts of an addition's price. Prepaid credits that are not in force yet are deferred as far as they
    are paid, and unpaid otherwise. The deferred part shrinks in proportion to the remaining credits.
    """
    return f"""
    WITH event AS (
        SELECT a.id AS addition_id, 1 AS place, 'charge' AS source, c.id AS source_id, c.at,
               'credits_purchased' AS earns, c.invoice_id, c.kind AS said, c.amount AS sold,
               0::numeric AS paid, 0::numeric AS noted, 0 AS given, 0::bigint AS drawn
          FROM ({CHARGED} AND c.source = 'credit_addition' AND c.created_at < {KNOWN_BY}) AS c
          JOIN credit_addition AS a ON a.id = c.source_id WHERE c.at < :until AND {additions}
        UNION ALL
        SELECT a.id, 2, e.source, e.source_id, e.at, 'credits_purchased', a.invoice_id, e.said, 0,
               e.paid, e.noted, e.given, 0
          FROM credit_addition AS a, LATERAL ({_WAITED}) AS e
         WHERE a.invoicing = 'prepaid' AND e.at < :until AND {additions}
        UNION ALL
        SELECT a.id, 3, d.kind, d.id, (d.day + 1)::timestamp AT TIME ZONE 'UTC' - interval '1 microsecond',
               CASE d.kind WHEN 'use' THEN 'credits_used' WHEN 'expiry' THEN 'credits_expired'
                           ELSE 'credits_purchased' END, NULL, d.kind, 0, 0, 0, 0, d.credits
          FROM credit_drawdown AS d JOIN credit_addition AS a ON a.id = d.credit_addition_id
         WHERE d.day < {_day_of(":until")} AND {additions}
    ), known AS (
        SELECT e.*, a.organization_id, o.currency, a.credits_added, sum(e.sold) OVER w AS sold_for,
               a.credits_added - sum(e.drawn) OVER w AS left_over,
               CASE WHEN a.invoicing <> 'prepaid' OR sum(e.given) OVER w > 0
                      OR i.total_amount - sum(e.noted + e.paid) OVER w <= 0 THEN 1
                    ELSE greatest(sum(e.paid) OVER w, 0) / (i.total_amount - sum(e.noted) OVER w) END AS part
          FROM event AS e JOIN credit_addition AS a ON a.id = e.addition_id
          JOIN organization AS o ON o.id = a.organization_id LEFT JOIN invoice AS i ON i.id = a.invoice_id
         WHERE (cast(:organization AS bigint) IS NULL OR a.organization_id = :organization)
           AND (cast(:currency AS text) IS NULL OR o.currency = :currency)
        WINDOW w AS (PARTITION BY e.addition_id ORDER BY e.at, e.place, e.source, e.source_id
                     ROWS UNBOUNDED PRECEDING)
    ), worth AS (
        SELECT *, CASE WHEN credits_added > 0 THEN
                    round(sold_for * part * left_over * {_WIDE} / credits_added, 9) ELSE 0 END AS deferred,
               CASE WHEN credits_added > 0 THEN round(sold_for * (1 - part), 9) ELSE 0 END AS unpaid
          FROM known
    ), moved AS (
        SELECT source, source_id, at, organization_id, currency, earns, invoice_id, said, sold,
               deferred - lag(deferred, 1, 0::numeric) OVER w AS deferred,
               unpaid - lag(unpaid, 1, 0::numeric) OVER w AS unpaid
          FROM worth WINDOW w AS (PARTITION BY addition_id ORDER BY at, place, source, source_id)
    )
    SELECT *, sold - deferred - unpaid AS earned FROM moved"""


_LEGS = f"""
WITH document AS ({_DOCUMENTS}),
charged AS (
    SELECT * FROM ({CHARGED} AND c.created_at >= :since AND c.created_at < {KNOWN_BY}) AS c
     WHERE at >= :since AND at < :until
), supplied AS (
    SELECT 'charge' AS source, id, at, organization_id, currency, invoice_id, kind, amount,
           'unbilled' AS debit, CASE WHEN is_ahead THEN 'deferred' ELSE 'revenue_' || kind END AS credit
      FROM charged WHERE source <> 'credit_addition'
    UNION ALL
    SELECT 'release', id, period_end - interval '1 microsecond', organization_id, currency, invoice_id, kind,
           amount, 'deferred', 'revenue_' || kind
      FROM ({CHARGED} AND c.created_at < c.period_start AND c.period_end > :since
            AND c.period_end <= :until AND c.source <> 'credit_addition') AS c
), touched AS (
    SELECT source_id AS id FROM charged WHERE source = 'credit_addition'
    UNION SELECT credit_addition_id FROM credit_drawdown
           WHERE day >= {_day_of(":since")} AND day < {_day_of(":until")}
    UNION SELECT a.id FROM credit_addition AS a, LATERAL ({_WAITED}) AS e
           WHERE a.invoicing = 'prepaid' AND e.at >= :since AND e.at < :until
), moved AS ({moves_of("a.id IN (SELECT id FROM touched)")})
SELECT source, id AS source_id, at, organization_id, currency, leg.account, leg.amount, invoice_id,
       kind AS said
  FROM supplied, LATERAL (VALUES (debit, amount), (credit, -amount)) AS leg (account, amount)
UNION ALL
SELECT source, source_id, at, organization_id, currency, leg.account, sum(leg.amount), max(invoice_id),
       max(said)
  FROM moved, LATERAL (VALUES
       ('unbilled', CASE WHEN source = 'charge' THEN sold END), ('deferred_credits', -deferred),
       ('unpaid_credits', -unpaid), ('revenue_' || earns, -earned)) AS leg (account, amount)
 WHERE at >= :since AND leg.amount <> 0 GROUP BY 1, 2, 3, 4, 5, 6 HAVING sum(leg.amount) <> 0
UNION ALL
SELECT source, id, at, organization_id, currency, account, sign * total_amount, id, kind FROM document
UNION ALL
SELECT d.source, d.id, d.at, d.organization_id, d.currency, leg.account, -sum(d.sign * leg.amount), d.id,
       d.kind
  FROM document AS d JOIN invoice_line AS l ON l.invoice_id = d.id,
       LATERAL (VALUES
           (CASE WHEN l.kind = 'tax' THEN 'tax' WHEN l.exact IS NULL THEN 'revenue_' || l.kind
                 ELSE 'unbilled' END, coalesce(l.exact, l.amount)),
           ('rounding', l.amount - l.exact)) AS leg (account, amount)
 WHERE leg.amount <> 0 AND l.kind <> 'credits_consumed' GROUP BY 1, 2, 3, 4, 5, 6, 8, 9
UNION ALL
SELECT 'payment', p.id, p.created_at, p.organization_id, p.currency, leg.account, leg.amount, p.invoice_id,
       p.reference
  FROM payment AS p JOIN invoice AS i ON i.id = p.invoice_id,
       LATERAL (VALUES ('bank', p.amount),
           (CASE WHEN i.uncollectible_at < p.created_at THEN 'bad_debt' ELSE {_CREDIT} END, -p.amount))
         AS leg (account, amount)
 WHERE p.created_at >= :since AND p.created_at < :until
   AND (cast(:organization AS bigint) IS NULL OR p.organization_id = :organization)
   AND (cast(:currency AS text) IS NULL OR p.currency = :currency)
UNION ALL
SELECT 'application', a.id, a.created_at, a.organization_id, a.currency, leg.account, leg.amount,
       a.invoice_id, i.number
  FROM note_application AS a JOIN invoice AS i ON i.id = a.note_id JOIN invoice AS d ON d.id = a.invoice_id,
       LATERAL (VALUES ({_CREDIT}, a.amount), ({_DUE}, -a.amount)) AS leg (account, amount)
 WHERE a.created_at >= :since AND a.created_at < :until AND {_CREDIT} <> {_DUE}
   AND (cast(:organization AS bigint) IS NULL OR a.organization_id = :organization)
   AND (cast(:currency AS text) IS NULL OR a.currency = :currency)
UNION ALL
SELECT 'write_off', i.id, i.uncollectible_at, i.organization_id, i.currency, leg.account, leg.amount, i.id,
       i.kind
  FROM invoice AS i, LATERAL (
       SELECT {rest_before(_GIVEN_UP)} AS rest) AS r,
       LATERAL (VALUES ('bad_debt', r.rest), ('receivables', -r.rest)) AS leg (account, amount)
 WHERE i.uncollectible_at >= :since AND i.uncollectible_at < :until
   AND (cast(:organization AS bigint) IS NULL OR i.organization_id = :organization)
   AND (cast(:currency AS text) IS NULL OR i.currency = :currency)"""

_ENTRIES = f"""
SELECT g.source || ':' || g.source_id AS entry_id, g.at, g.organization_id, o.name AS organization,
       g.account, g.amount, g.currency, g.source, g.source_id, g.invoice_id, i.number, g.said
  FROM ({_LEGS}) AS g JOIN organization AS o ON o.id = g.organization_id
  LEFT JOIN invoice AS i ON i.id = g.invoice_id"""
# In the order of time; an entry's legs together, debits first. No two legs have the same position.
_PLACE = "g.at, g.source, g.source_id, g.amount < 0, g.account"
ENTRIES = f"{_ENTRIES}\n ORDER BY {_PLACE}"
# The legs beyond a position; `since` is its time, so that earlier legs are not read again.
ENTRIES_AFTER = f"""{_ENTRIES}
 WHERE ({_PLACE}) > (:since, :source, :source_id, :is_credit, :account)
 ORDER BY {_PLACE} LIMIT :rows"""
REVENUE = f"""
SELECT g.organization_id, o.name AS organization, g.currency, date_trunc('month', g.at, 'UTC') AS month,
       substr(g.account, 9) AS kind, -sum(g.amount) AS amount
  FROM ({_LEGS}) AS g JOIN organization AS o ON o.id = g.organization_id
 WHERE g.account LIKE 'revenue!_%' ESCAPE '!'
 GROUP BY 1, 2, 3, 4, 5 HAVING sum(g.amount) <> 0 ORDER BY 4, 1, 3, 5"""


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
 WHERE d.rest <> 0 GROUP BY 1, 2, 3 ORDER BY 1, 3""")
# Charges on no final invoice at that time. The charges of a voided invoice are unbilled again from then on;
# the rows that reverse them belong to it.
_NOT_BILLED = f"""
SELECT i.* FROM (SELECT *, {ENTERED} AS at FROM charge AS c
                  WHERE c.invoice_id IS NULL AND c.created_at < {KNOWN_BY}) AS i WHERE i.at < :until {_OF}
UNION ALL
SELECT c.*, {ENTERED} FROM invoice AS i JOIN charge AS c ON c.invoice_id = i.id
 WHERE greatest(i.finalized_at, i.voided_at) >= :until AND {ENTERED} < :until AND c.reason <> 'void'
   AND CASE c.reason WHEN 'credit_void' THEN i.voided_at ELSE i.finalized_at END >= :until
   {_OF}"""
_UNBILLED = text(f"""
SELECT c.organization_id, o.name AS organization, c.currency,
       date_trunc('month', c.period_start, 'UTC') AS month, c.kind, sum(c.amount) AS amount,
       count(*) AS charges
  FROM ({_NOT_BILLED}) AS c JOIN organization AS o ON o.id = c.organization_id
 GROUP BY 1, 2, 3, 4, 5 HAVING sum(c.amount) <> 0 ORDER BY 4, 1, 3, 5""")
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
 GROUP BY 1, 2, 3 ORDER BY 1, 3""")
_SOME_LEFT = """(a.spent < a.credits_added OR EXISTS (
    SELECT FROM credit_drawdown AS n WHERE n.credit_addition_id = a.id AND n.day >= :day))"""
# Charges ahead of their supply, invoiced or not, with their reversals; and the part of credit additions that
# is not earned by then.
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
 ORDER BY 4 NULLS LAST, 1, 3, 5""")
# Lines with their tax rate: the line's, else that of the document's only tax line.
_TAXED = f"""
SELECT i.id, i.organization_id, o.name AS organization, i.currency, i.at, i.sign, l.kind = 'tax' AS is_tax,
       l.amount, coalesce(l.tax_rate, (
           SELECT max((substring(t.description FROM '([0-9.]+) %$'))::numeric) / 100 FROM invoice_line AS t
            WHERE t.invoice_id = i.id AND t.kind = 'tax'), 0) AS rate, {{supplied}} AS supplied
  FROM ({{documents}}) AS i JOIN organization AS o ON o.id = i.organization_id
  JOIN invoice_line AS l ON l.invoice_id = i.id
 WHERE l.kind <> 'credits_consumed' {_OF} ORDER BY i.id, i.at, l.position"""
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

Reader = Callable[[Connection, ReportPeriod], list[Row]]


def read_report(
    connection: Connection, report: str, asked: ReportPeriod, after: int, rows_max: int
) -> Sequence[Row]:
    """Return up to `rows_max` rows of a finance report, without the first `after` rows."""
    return _REPORTS[report](connection, asked)[after : after + rows_max]


def ledger(connection: Connection, asked: ReportPeriod, after: LegPlace, rows_max: int) -> Sequence[Row]:
    """Return up to `rows_max` legs (debits and credits) of journal entries, from the position `after` on."""
    here = _values(asked) | after._asdict() | {"since": after.at, "rows": rows_max}
    return [dict(row) for row in connection.execute(text(ENTRIES_AFTER), here).mappings()]


async def entries(engine: AsyncEngine, asked: ReportPeriod) -> AsyncIterator[Sequence[Row]]:
    """Yield the legs of all entries of a period in batches, over a separate connection for slow readers."""
    async with engines.apart(engine) as connection:
        await connection.execute(text("SET LOCAL jit = off"))
        async with connection.stream(text(ENTRIES), _values(asked)) as result:
            async for batch in result.mappings().partitions(ROWS_A_BATCH):
                yield [dict(row) for row in batch]


def _values(asked: ReportPeriod) -> dict[str, Any]:
    return {
        "since": asked.since, "until": asked.until, "day": (asked.until - timedelta(microseconds=1)).date(),
        "organization": asked.organization_id, "currency": asked.currency,
    }  # fmt: skip


def _plain(statement: Any) -> Reader:
    def read(connection: Connection, asked: ReportPeriod) -> list[Row]:
        return [dict(row) for row in connection.execute(statement, _values(asked)).mappings()]

    return read


def _sum_by_month(statement: Any) -> Reader:
    def read(connection: Connection, asked: ReportPeriod) -> list[Row]:
        rows = connection.execute(statement, _values(asked)).mappings()
        return [{**row, "month": row["month"] and row["month"].date()} for row in rows]

    return read


def _taxes(connection: Connection, asked: ReportPeriod) -> list[Row]:
    """Sum taxes by month, rate, currency and organization; a void document is reversed in its void month."""
    by_supply = asked.by == SUPPLY
    found: dict[tuple[date, int, str, Decimal], dict[str, Any]] = {}
    assert asked.since is not None
    since, until = asked.since.date(), asked.until.date()
    for lines in _documents(connection.execute(_BY_SUPPLY if by_supply else _BY_DOCUMENT, _values(asked))):
        head = lines[0]
        for taxed in _taxes_of_document(lines, head.currency):
            if not since <= taxed.month < until:
                continue
            place = (taxed.month, head.organization_id, head.currency, taxed.rate)
            sums = found.setdefault(place, {
                "month": taxed.month, "organization_id": head.organization_id, "organization": head.organization,
                "currency": head.currency, "rate": taxed.rate, "net": Decimal(0), "tax": Decimal(0), "documents": 0,
            })  # fmt: skip
            sums["net"] += head.sign * taxed.net
            sums["tax"] += head.sign * taxed.tax
            sums["documents"] += 1
    return [found[place] for place in sorted(found)]


def _documents(rows: Any) -> Iterator[list[Any]]:
    """Yield the rows of each document together."""
    lines: list[Any] = []
    for row in rows:
        if lines and (lines[0].id, lines[0].at) != (row.id, row.at):
            yield lines
            lines = []
        lines.append(row)
    if lines:
        yield lines


class TaxedMonth(NamedTuple):
    rate: Decimal
    month: date
    net: Decimal
    tax: Decimal


def _taxes_of_document(lines: Sequence[Any], currency: str) -> Iterator[TaxedMonth]:
    """Yield the net amounts and taxes of a document, once for each rate and month."""
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
            yield TaxedMonth(rate, month, months[month], tax)


_REPORTS: dict[str, Reader] = {
    "receivables": _plain(_RECEIVABLES),
    "unbilled": _sum_by_month(_UNBILLED),
    "balances": _plain(_BALANCES),
    "deferred-revenue": _sum_by_month(_DEFERRED),
    "revenue": _sum_by_month(text(REVENUE)),
    "taxes": _taxes,
}
