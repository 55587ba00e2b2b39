"""Messages about tenants that became blocked, or are no longer."""

from persistence.billing.quotas import block_cause
from persistence.keeper.occasions import Notice, data_of, message_query

_DATA = data_of(
    "tenant.blocked", "tenant.unblocked",
    organization_id="t.organization_id", tenant_id="c.tenant_id", tenant="t.name",
    manual_block="c.manual_block", block_cause=block_cause("t.id", "c.manual_block"),
    tokens_remaining="c.tokens_remaining",
)  # fmt: skip
NOTICE = Notice(
    message_query(
        "blocks",
        "Create messages about tenants that became blocked, or are no longer",
        f"""
WITH changed AS (
    UPDATE tenant_quota SET noticed_blocked = is_blocked WHERE is_blocked <> noticed_blocked
    RETURNING tenant_id, is_blocked, manual_block, tokens_remaining
), news AS (
    SELECT CASE WHEN c.is_blocked THEN 'tenant.blocked' ELSE 'tenant.unblocked' END AS event,
           'blocked:' || gen_random_uuid() AS occasion, {_DATA} AS data
      FROM changed AS c JOIN tenant AS t ON t.id = c.tenant_id
)""",
    )
)
