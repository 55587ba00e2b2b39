"""The double-entry view of what is owed, billed and paid: legs of entries, made anew from rows that stay.

Each entry adds up to nothing; an amount above zero is a debit. A charge is of the last instant of its supply
while the month of that is open (`entered_at` in the schema), else of the moment its row was made, as all
others are. What is charged ahead is deferred until it is supplied. A charge that an invoice made void owes
again, and the one it takes back, are no entries: nothing was supplied or taken away.

Credits that were sold earn what they cost as they are drawn: used, expired, taken back. What an addition has
earned follows from all that is known of it, rounded to nano-units; an entry moves the difference. So what it
earned and what it has deferred come to what it was sold for, at each moment.
"""

from __future__ import annotations


def rest_before(moment: str) -> str:
    """What of invoice `i` was left to pay right before a moment; of a note, below zero, its open credit."""
    return f"""i.total_amount
           - coalesce((SELECT sum(p.amount) FROM payment AS p
                        WHERE p.invoice_id = i.id AND p.created_at < {moment}), 0)
           - coalesce((SELECT sum(a.amount) FROM note_application AS a
                        WHERE a.invoice_id = i.id AND a.created_at < {moment}), 0)
           + coalesce((SELECT sum(a.amount) FROM note_application AS a
                        WHERE a.note_id = i.id AND a.created_at < {moment}), 0)"""  # noqa: S608  # our own words


# What comes in with the same tick of the clock as it is given up is still an entry of `receivables`.
_GIVEN_UP = "i.uncollectible_at + interval '1 microsecond'"
# Where the credit of a note `i` stands, and an invoice `d` as some of it is applied.
_CREDIT = """CASE WHEN (SELECT o.uncollectible_at FROM invoice AS o WHERE o.id = i.corrects_id)
                       < i.finalized_at THEN 'bad_debt' ELSE 'receivables' END"""
_DUE = "CASE WHEN d.uncollectible_at < a.created_at THEN 'bad_debt' ELSE 'receivables' END"
# When a charge `c` is entered.
ENTERED = """CASE WHEN c.source = 'credit_addition' AND c.reason <> 'fact' OR c.reason = 'reissued'
                  THEN c.created_at ELSE entered_at(c.created_at, c.period_end) END"""
# Charges that are entries. Of an invoice from before there were charges, its lines are the entry.
CHARGED = f"""
    SELECT c.*, c.created_at < c.period_start AS is_ahead, {ENTERED} AS at
      FROM charge AS c
      LEFT JOIN invoice_line AS l ON l.invoice_id = c.invoice_id AND l.position = c.line
     WHERE c.amount <> 0 AND c.reason NOT IN ('void', 'reissued')
       AND NOT (c.reason = 'fact' AND l.position IS NOT NULL AND l.exact IS NULL)
       AND (cast(:organization AS bigint) IS NULL OR c.organization_id = :organization)
       AND (cast(:currency AS text) IS NULL OR c.currency = :currency)"""  # noqa: S608  # our own words
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
# An entry is a month and its grace older than its row at most.
KNOWN_BY = "cast(:until AS timestamptz) + interval '33 days'"
# What becomes of prepaid credits of addition `a` before they are in force, and that they are.
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
    """What moved additions `a` until a moment, and by how much what is deferred, unpaid and earned of each.

    Nobody has to pay for prepaid credits before they are in force: until then that part is deferred which is
    paid of what is asked for, and the rest is unpaid. Of what is deferred as much is left as of the credits.
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
    SELECT *, sold - deferred - unpaid AS earned FROM moved"""  # noqa: S608  # our own words


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
   AND (cast(:currency AS text) IS NULL OR i.currency = :currency)"""  # noqa: S608  # our own words

_ENTRIES = f"""
SELECT g.source || ':' || g.source_id AS entry_id, g.at, g.organization_id, o.name AS organization,
       g.account, g.amount, g.currency, g.source, g.source_id, g.invoice_id, i.number, g.said
  FROM ({_LEGS}) AS g JOIN organization AS o ON o.id = g.organization_id
  LEFT JOIN invoice AS i ON i.id = g.invoice_id"""  # noqa: S608  # our own words
# In the order of time; an entry's legs together, debits first. No two legs have the same place.
_PLACE = "g.at, g.source, g.source_id, g.amount < 0, g.account"
ENTRIES = f"{_ENTRIES}\n ORDER BY {_PLACE}"
# The legs behind a place: what was before its moment is not read again, since `since` is that moment.
ENTRIES_AFTER = f"""{_ENTRIES}
 WHERE ({_PLACE}) > (:since, :source, :source_id, :is_credit, :account)
 ORDER BY {_PLACE} LIMIT :rows"""
REVENUE = f"""
SELECT g.organization_id, o.name AS organization, g.currency, date_trunc('month', g.at, 'UTC') AS month,
       substr(g.account, 9) AS kind, -sum(g.amount) AS amount
  FROM ({_LEGS}) AS g JOIN organization AS o ON o.id = g.organization_id
 WHERE g.account LIKE 'revenue!_%' ESCAPE '!'
 GROUP BY 1, 2, 3, 4, 5 HAVING sum(g.amount) <> 0 ORDER BY 4, 1, 3, 5"""  # noqa: S608  # our own words
