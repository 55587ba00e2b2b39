"""Messages about tenants that have used a part of their tokens."""

from datetime import timedelta

from gateway.core.alerts.events.quotas import PERCENTS
from persistence.keeper.occasions import Notice, data_of, message_query

# A row may become visible this long after the time written in it.
OVERLAP = timedelta(minutes=2)

_DATA = data_of(
    "quota.50", "quota.80", "quota.100",
    organization_id="t.organization_id", tenant_id="q.tenant_id", tenant="t.name", percent="p.percent",
    tokens_used="q.tokens_used", tokens_remaining="q.tokens_remaining", cycle="q.cycle",
    next_reset_at="q.next_reset_at",
)  # fmt: skip
NOTICE = Notice(
    message_query(
        "quotas",
        "Create messages about tenants that have used a part of their tokens",
        f"""
WITH news AS (
    SELECT 'quota.' || p.percent AS event,
           format('quota:%s:%s:%s', q.tenant_id, q.cycle, p.percent) AS occasion, {_DATA} AS data
      FROM tenant_quota AS q JOIN tenant AS t ON t.id = q.tenant_id
     CROSS JOIN unnest(cast(:thresholds AS bigint[])) AS p (percent)
     WHERE q.updated_at >= :since AND q.plan_id IS NOT NULL AND q.tokens_remaining IS NOT NULL
       AND q.tokens_used * 100 >= p.percent * (q.tokens_used + q.tokens_remaining)
)""",
    ),
    lambda since, now: {"since": since - OVERLAP, "thresholds": list(PERCENTS)},
)
