"""Messages about organizations whose credits are low."""

from persistence.keeper.occasions import Notice, data_of, message_query

# Credits are low at a tenth of the last addition.
LOW_DIVISOR = 10

_DATA = data_of(
    "credits.low",
    organization_id="o.id", organization="o.name", credit_balance="o.credit_balance",
    last_added="a.credits_added",
)  # fmt: skip
NOTICE = Notice(
    message_query(
        "credits",
        "Create messages about organizations whose credits are low",
        f"""
WITH news AS (
    SELECT 'credits.low' AS event, format('credits:%s:%s', o.id, a.id) AS occasion, {_DATA} AS data
      FROM organization AS o
     CROSS JOIN LATERAL (
           SELECT c.id, c.credits_added FROM credit_addition AS c
             JOIN credit_posting AS p ON p.organization_id = o.id AND p.credit_addition_id = c.id
              AND p.kind = 'addition'
            WHERE c.organization_id = o.id AND c.credits_added > 0 ORDER BY c.id DESC LIMIT 1) AS a
     WHERE o.deleted_at IS NULL AND o.credit_balance * :divisor <= a.credits_added
)""",
    ),
    lambda since, now: {"divisor": LOW_DIVISOR},
)
