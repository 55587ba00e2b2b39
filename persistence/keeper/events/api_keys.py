"""Messages about API keys that expire soon."""

from gateway.core.alerts.events.api_keys import MARKS_DAYS
from persistence.keeper.occasions import Notice, data_of, message_query

_DATA = data_of(
    "api_key.expiring",
    organization_id="t.organization_id", api_key_id="k.id", name="k.name", prefix="k.prefix", tenant="t.name",
    expires_at="to_char(k.expires_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"')", days="m.days",
)  # fmt: skip
# Of several marks that were reached, the last one is reported.
NOTICE = Notice(
    message_query(
        "api_keys",
        "Create messages about API keys that expire soon",
        f"""
WITH news AS (
    SELECT 'api_key.expiring' AS event,
           format('api_key.expiring:%s:%s:%s', k.id, m.days, extract(epoch FROM k.expires_at)) AS occasion,
           {_DATA} AS data
      FROM api_key AS k JOIN tenant AS t ON t.id = k.tenant_id
     CROSS JOIN LATERAL (
           SELECT min(days) AS days FROM unnest(cast(:marks AS integer[])) AS days
            WHERE k.expires_at <= :now + make_interval(hours => 24 * days)) AS m
     WHERE k.revoked_at IS NULL AND k.expires_at > :now
       AND k.expires_at <= :now + make_interval(hours => 24 * :ahead)
       AND k.created_at < k.expires_at - make_interval(hours => 24 * m.days)
)""",
    ),
    lambda since, now: {"now": now, "marks": list(MARKS_DAYS), "ahead": max(MARKS_DAYS)},
)
