"""Messages about subscriptions that end soon."""

from datetime import timedelta

from gateway.core.alerts.events.subscriptions import ENDING_DAYS
from persistence.keeper.occasions import Notice, data_of, message_query

_DATA = data_of(
    "subscription.ending",
    organization_subscription_id="s.id", organization_id="s.organization_id", organization="o.name",
    plan_id="s.plan_id", end_date="s.end_date",
)  # fmt: skip
NOTICE = Notice(
    message_query(
        "subscriptions",
        "Create messages about subscriptions that end soon",
        f"""
WITH news AS (
    SELECT 'subscription.ending' AS event, format('ending:%s:%s', s.id, s.end_date) AS occasion,
           {_DATA} AS data
      FROM organization_subscription AS s JOIN organization AS o ON o.id = s.organization_id
     WHERE s.status = 'active' AND s.end_date <= cast(:until AS date)
)""",
    ),
    lambda since, now: {"until": now.date() + timedelta(days=ENDING_DAYS)},
)
