"""What the ledgers say is owed and not charged yet, as rows of charges: one statement for each kind of fact.

The same statement is read by a draft and written by an invoice, by the keeper, and by a flush in the
transaction that stores the fact. Each row names its fact, so what is delivered twice is charged once.
"""

from __future__ import annotations

_COLUMNS = (
    "organization_id, kind, period_start, period_end, quantity, unit_price, amount, currency, source,"
    " source_id, fact, tenant_id, service_id, place"
)

# Tokens beyond a plan, at the end of a cycle or of a plan within it, or so far: those of the span, but for
# what earlier spans of the cycle were beyond theirs. A recharge takes back what was charged while it ran.
OVERAGES = """
SELECT organization_id, 'overage' AS kind, date_trunc('day', began, 'UTC') AS period_start,
       date_trunc('day', greatest(began, ended), 'UTC') + interval '1 day' AS period_end,
       (owed - charged)::numeric AS quantity, unit_price, (owed - charged) * unit_price AS amount, currency,
       'token_ledger' AS source, first_seq AS source_id,
       format('tokens:%s:%s:%s', tenant_id, first_seq, last_seq)
           || CASE WHEN back > 0 THEN format(':%s:%s', late, back)
                   WHEN late > 0 THEN format(':%s', late) ELSE '' END AS fact, tenant_id,
       NULL::bigint AS service_id, cycle AS place
  FROM (SELECT o.*, g.currency,
               greatest(beyond - coalesce(max(beyond) OVER (
                   PARTITION BY o.tenant_id, o.cycle ORDER BY o.first_seq
                   ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0), 0) AS owed,
               (SELECT coalesce(sum(c.quantity), 0) FROM charge AS c
                 WHERE c.source = 'token_ledger' AND c.tenant_id = o.tenant_id AND c.place = o.cycle
                   AND c.source_id = o.first_seq AND c.reason NOT IN ('credited', 'credit_void')) AS charged
          FROM overage_span AS o JOIN organization AS g ON g.id = o.organization_id
         WHERE {which}) AS span
 WHERE owed <> charged"""
_PURCHASE = """
SELECT a.organization_id, 'credits_purchased' AS kind,
       date_trunc('day', a."timestamp", 'UTC') AS period_start,
       date_trunc('day', a."timestamp", 'UTC') + interval '1 day' AS period_end,
       a.credits_added::numeric AS quantity, a.unit_cost AS unit_price,
       a.credits_added * a.unit_cost AS amount, g.currency, 'credit_addition' AS source, a.id AS source_id,
       format('addition:%s', a.id) AS fact, NULL::bigint AS tenant_id, NULL::bigint AS service_id,
       NULL::bigint AS place
  FROM credit_addition AS a JOIN organization AS g ON g.id = a.organization_id"""
# Credits that were sold, or taken back, once the account has them: whatever their date.
PURCHASES = f"""{_PURCHASE}
  JOIN credit_posting AS p ON p.credit_addition_id = a.id
 WHERE p.kind = 'addition' AND a.category = 'paid' AND a.unit_cost IS NOT NULL AND {{which}}
   AND NOT EXISTS (SELECT FROM charge AS c WHERE c.fact = format('addition:%s', a.id))"""
# Credits that wait for their payment are owed before the account has them.
PREPAID = f"{_PURCHASE}\n WHERE a.invoicing = 'prepaid' AND a.id = :addition"
_OF_DAY = (
    "u.tenant_id = t.tenant_id AND u.day = t.day AND u.service_id = t.service_id"
    " AND u.unit_price = t.unit_price"
)
# Where the roll-ups of units have more than there are charges of, by the day that they came on.
DUE_USES = """
(SELECT tenant_id, day, service_id, unit_price FROM usage_tier
  WHERE organization_id = ANY(cast(:organizations AS bigint[])) AND quantity <> charged_quantity
  UNION
 SELECT tenant_id, day, service_id, unit_price FROM usage_told
  WHERE organization_id = ANY(cast(:organizations AS bigint[])) AND quantity <> charged_quantity)"""
# Units at a price by the day of their supply: of a day those that came on it, but for those that were told of
# another one; these are of that. What is taken back has the source of what it was.
USES = f"""
SELECT u.organization_id, 'usage' AS kind, u.supplied_on::timestamp AT TIME ZONE 'UTC' AS period_start,
       (u.supplied_on + 1)::timestamp AT TIME ZONE 'UTC' AS period_end, u.quantity, u.unit_price,
       u.quantity * u.unit_price AS amount, g.currency, u.source, u.source_id,
       format('%s:%s:%s:%s:%s:%s', u.prefix, u.tenant_id, u.day, u.service_id, u.unit_price, u.counted)
           AS fact,
       u.tenant_id, nullif(u.service_id, 0) AS service_id, u.first_unit AS place
  FROM (
    SELECT t.organization_id, t.tenant_id, t.day, t.day AS supplied_on, t.service_id, t.unit_price,
           t.first_unit, t.quantity - t.charged_quantity - coalesce((
               SELECT sum(u.quantity - u.charged_quantity) FROM usage_told AS u
                WHERE {_OF_DAY}), 0) AS quantity,
           'usage_tier' AS source, NULL::bigint AS source_id, 'units' AS prefix, t.charges::text AS counted
      FROM {DUE_USES} AS d JOIN usage_tier AS t USING (tenant_id, day, service_id, unit_price)
     UNION ALL
    SELECT t.organization_id, t.tenant_id, t.day, u.supplied_on, t.service_id, t.unit_price,
           t.first_unit, (u.quantity - u.charged_quantity)::numeric,
           CASE WHEN u.told_on = u.supplied_on THEN 'usage_tier' ELSE 'usage_told' END,
           CASE WHEN u.told_on <> u.supplied_on THEN coalesce(o.id, u.id) END, 'told',
           format('%s:%s', u.id, u.charges)
      FROM usage_told AS u JOIN usage_tier AS t ON {_OF_DAY}
      LEFT JOIN usage_told AS o ON u.is_back AND NOT o.is_back AND o.tenant_id = u.tenant_id
       AND o.day = u.told_on AND o.service_id = u.service_id AND o.unit_price = u.unit_price
       AND o.supplied_on = u.supplied_on
     WHERE u.organization_id = ANY(cast(:organizations AS bigint[])) AND u.quantity <> u.charged_quantity
       ) AS u JOIN organization AS g ON g.id = u.organization_id
 WHERE u.quantity <> 0"""  # noqa: S608  # our own words

# Credits of a day used beyond the balance at a price, as far as there are more of them than charges say.
DEBTS = """
SELECT d.organization_id, 'credits_postpaid' AS kind, d.day::timestamp AT TIME ZONE 'UTC' AS period_start,
       (d.day + 1)::timestamp AT TIME ZONE 'UTC' AS period_end,
       (d.quantity - d.charged_quantity)::numeric AS quantity, d.unit_cost AS unit_price,
       (d.quantity - d.charged_quantity) * d.unit_cost AS amount, g.currency, 'credit_debt' AS source,
       NULL::bigint AS source_id,
       format('debt:%s:%s:%s:%s', d.organization_id, d.day, d.unit_cost, d.charges) AS fact,
       NULL::bigint AS tenant_id, NULL::bigint AS service_id, NULL::bigint AS place
  FROM credit_debt AS d JOIN organization AS g ON g.id = d.organization_id
 WHERE d.organization_id = ANY(cast(:organizations AS bigint[])) AND d.quantity <> d.charged_quantity"""


def insert_of(select: str) -> str:
    """The statement that writes what another one reads, in the order of what was supplied."""
    return (
        f"INSERT INTO charge ({_COLUMNS}) {select}"
        " ORDER BY organization_id, period_start, tenant_id, service_id, place, fact"
        " ON CONFLICT (fact) DO NOTHING"
    )


def driver_level(statement: str, which: str) -> str:
    """The statement as the driver takes it, of those rows."""
    return statement.replace("%", "%%").format(which=which)
