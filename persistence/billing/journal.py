"""The double-entry view of what is owed, billed and paid: legs of entries, made anew from rows that stay.

Each entry is of the moment its row was made, and adds up to nothing. An amount above zero is a debit. A
charge for a later month is deferred until that month begins. A charge that an invoice made void owes again,
and the one it takes back, are no entries: nothing was supplied or taken away.
"""

from __future__ import annotations


def rest_before(moment: str) -> str:
    """What of invoice `i` was left to pay right before a moment: by its notes and payments until then."""
    return f"""i.total_amount
           + coalesce((SELECT sum(n.total_amount) FROM invoice AS n
                        WHERE n.corrects_id = i.id AND n.finalized_at < {moment}
                          AND coalesce(n.voided_at, 'infinity') >= {moment}), 0)
           - coalesce((SELECT sum(p.amount) FROM payment AS p
                        WHERE p.invoice_id = i.id AND p.created_at < {moment}), 0)"""  # noqa: S608  # our own words


# What comes in with the same tick of the clock as it is given up is still an entry of `receivables`.
_GIVEN_UP = "i.uncollectible_at + interval '1 microsecond'"
# Charges that are entries. Of an invoice from before there were charges, its lines are the entry.
_CHARGED = """
    SELECT c.*, date_trunc('month', c.created_at, 'UTC') AS made_in,
           date_trunc('month', c.period_start, 'UTC') AS supplied_in
      FROM charge AS c
      LEFT JOIN invoice_line AS l ON l.invoice_id = c.invoice_id AND l.position = c.line
     WHERE c.amount <> 0 AND c.reason NOT IN ('void', 'reissued')
       AND NOT (c.reason = 'fact' AND l.position IS NOT NULL AND l.exact IS NULL)
       AND (cast(:organization AS bigint) IS NULL OR c.organization_id = :organization)
       AND (cast(:currency AS text) IS NULL OR c.currency = :currency)"""
# Invoices and notes, once as they became final and once more as they were made void.
_DOCUMENTS = """
    SELECT i.id, i.organization_id, i.currency, i.number, i.kind, i.total_amount, d.source, d.at, d.sign,
           CASE WHEN coalesce(o.uncollectible_at, i.uncollectible_at) < d.at
                THEN 'bad_debt' ELSE 'receivables' END AS account
      FROM invoice AS i LEFT JOIN invoice AS o ON o.id = i.corrects_id,
           LATERAL (VALUES ('invoice', i.finalized_at, 1), ('void', i.voided_at, -1))
             AS d (source, at, sign)
     WHERE i.finalized_at IS NOT NULL AND d.at >= :since AND d.at < :until
       AND (cast(:organization AS bigint) IS NULL OR i.organization_id = :organization)
       AND (cast(:currency AS text) IS NULL OR i.currency = :currency)"""
_LEGS = f"""
WITH document AS ({_DOCUMENTS}),
charged AS ({_CHARGED} AND c.created_at >= :since AND c.created_at < :until),
released AS (
    SELECT * FROM ({_CHARGED} AND c.period_start >= :since AND c.period_start < :until) AS c
     WHERE supplied_in > made_in
)
SELECT 'charge' AS source, id AS source_id, created_at AS at, organization_id, currency,
       'unbilled' AS account, amount, invoice_id, kind AS said FROM charged
UNION ALL
SELECT 'charge', id, created_at, organization_id, currency,
       CASE WHEN supplied_in > made_in THEN 'deferred' ELSE 'revenue_' || kind END, -amount, invoice_id, kind
  FROM charged
UNION ALL
SELECT 'release', id, supplied_in, organization_id, currency, 'deferred', amount, invoice_id, kind
  FROM released
UNION ALL
SELECT 'release', id, supplied_in, organization_id, currency, 'revenue_' || kind, -amount, invoice_id, kind
  FROM released
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
           (CASE WHEN i.uncollectible_at < p.created_at THEN 'bad_debt' ELSE 'receivables' END, -p.amount))
         AS leg (account, amount)
 WHERE p.created_at >= :since AND p.created_at < :until
   AND (cast(:organization AS bigint) IS NULL OR p.organization_id = :organization)
   AND (cast(:currency AS text) IS NULL OR p.currency = :currency)
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
