"""News of sudden use: organizations, tenants and keys whose running hour costs many times what is usual.

Roll-ups by hour are read, for those alone that somebody wants to hear of and whose hour costs enough to be
told.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.core.accounts.budgets import MONEY, shown_amount
from gateway.core.alerts.sudden import COST_LEAST, DAYS, Hour, is_sudden, same_hours
from gateway.core.moments import rfc3339
from persistence.keeper.news import News, tell, wanted

EVENT: Final = "usage.sudden"
# Who is looked at in a minute, those whose hour costs most.
SUBJECTS_MAX: Final = 1_000

_SUBJECTS = """GROUPING SETS (
    (organization_id, currency{by}), (organization_id, tenant_id, currency{by}),
    (organization_id, tenant_id, api_key_id, currency{by}))"""
# Whose hour costs enough; then what their organizations cost before, read once for all of them.
_HOURS = text(f"""
WITH running AS MATERIALIZED (
    SELECT organization_id, tenant_id, api_key_id, currency, sum(cost) AS cost FROM usage_rollup AS u
     WHERE span = 'hour' AND start = :hour AND {wanted((EVENT,), "u.organization_id")}
     GROUP BY {_SUBJECTS.format(by="")}
    HAVING sum(cost) >= {COST_LEAST} ORDER BY cost DESC LIMIT {SUBJECTS_MAX}
), looked_at AS MATERIALIZED (
    SELECT DISTINCT organization_id FROM running
), same_hours AS MATERIALIZED (
    SELECT organization_id, coalesce(tenant_id, -1) AS tenant_id,
           coalesce(api_key_id, -1) AS api_key_id, currency, max(cost) AS cost
      FROM (SELECT organization_id, tenant_id, api_key_id, currency, sum(cost) AS cost FROM usage_rollup
              JOIN looked_at USING (organization_id)
             WHERE span = 'hour' AND start = ANY(cast(:same AS timestamptz[]))
             GROUP BY {_SUBJECTS.format(by=", start")}) AS each_hour
     GROUP BY 1, 2, 3, 4
), days AS MATERIALIZED (
    SELECT organization_id, currency, sum(cost) / {DAYS} AS cost FROM usage_rollup
      JOIN looked_at USING (organization_id)
     WHERE span = 'team_day' AND start >= :since AND start < :today GROUP BY 1, 2
)
SELECT r.*, o.name AS organization, t.name AS tenant, k.name AS api_key,
       coalesce(k.created_at, t.created_at, o.created_at) AS known_since,
       coalesce(h.cost, 0) AS usual, coalesce(d.cost, 0) AS average_day
  FROM running AS r
  JOIN organization AS o ON o.id = r.organization_id
  LEFT JOIN tenant AS t ON t.id = r.tenant_id
  LEFT JOIN api_key AS k ON k.id = r.api_key_id
  LEFT JOIN same_hours AS h ON h.organization_id = r.organization_id AND h.currency = r.currency
   AND h.tenant_id = coalesce(r.tenant_id, -1) AND h.api_key_id = coalesce(r.api_key_id, -1)
  LEFT JOIN days AS d ON d.organization_id = r.organization_id AND d.currency = r.currency""")  # noqa: S608  # ours

Found = Row[Any]


async def look(engine: AsyncEngine, now: datetime) -> None:
    """Tell of sudden use in the hour that runs."""
    hour = now.replace(minute=0, second=0, microsecond=0)
    today = hour.replace(hour=0)
    sought = {
        "hour": hour, "same": same_hours(hour), "today": today, "since": today - timedelta(days=DAYS),
    }  # fmt: skip
    async with engine.begin() as connection:
        found = (await connection.execute(_HOURS, sought)).all()
        await tell(connection, [_news(each, hour) for each in found if is_sudden(_hour(each), now)])


def _hour(found: Found) -> Hour:
    return Hour(int(found.cost), int(found.usual), int(found.average_day), found.known_since)


def _news(found: Found, hour: datetime) -> News:
    scope = "tenant" if found.tenant_id is not None else "organization"
    if found.api_key_id is not None:
        scope = "api_key"
    subject = getattr(found, f"{scope}_id")
    return News(
        EVENT,
        f"sudden:{scope}:{subject}:{found.currency}:{hour.isoformat()}",
        {
            "scope": scope, "organization_id": found.organization_id, "organization": found.organization,
            "tenant_id": found.tenant_id, "tenant": found.tenant, "api_key_id": found.api_key_id,
            "api_key": found.api_key, "hour": rfc3339(hour),
            "cost": shown_amount(MONEY, int(found.cost)), "usual": shown_amount(MONEY, int(found.usual)),
            "currency": found.currency,
        },
    )  # fmt: skip
