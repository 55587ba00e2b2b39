"""The SQL statements of a flush.

They run in the writer's transaction, once the partitions are locked, over arrays sorted by id, so that two
writers cannot deadlock.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from gateway.core.accounts.budgets import OTHERS
from gateway.core.accounts.usage import NO_PROJECT
from gateway.core.accounts.usage_sums import USAGE_SUMS
from gateway.core.billing.price_book import KINDS
from gateway.core.model import INTEGER_MAX, PARTITIONS
from persistence.billing.charges import OVERAGES, PURCHASES, driver_level, insert_of
from persistence.keeper.retention import SINCE_BEGAN

# Sums that never stop a flush: a sum beyond a column's range is stored as the largest number, and stays so.
#
# Pure. Such a row means "at least this much": nothing is subtracted from it again, and no invariant includes
# it.

# The largest bigint; sums are limited to this distance from 0.
SUM_MAX = 2**63 - 1


def bounded(number: int, most: int = SUM_MAX) -> int:
    """Limit a sum to the range of its column, ±`most`."""
    return max(-most, min(number, most))


def added(column: str) -> str:
    """Return SQL that adds a column of the conflicting row `excluded` to the row `u`, limited to a bigint."""
    mine, more = f"u.{column}", f"excluded.{column}"
    return (
        f"CASE WHEN abs({mine}) = {SUM_MAX} THEN {mine} WHEN abs({more}) = {SUM_MAX} THEN {more}"
        f" WHEN {more} > 0 AND {mine} > {SUM_MAX} - {more} THEN {SUM_MAX}"
        f" WHEN {more} < 0 AND {mine} < -{SUM_MAX} - {more} THEN -{SUM_MAX} ELSE {mine} + {more} END"
    )


# For this transaction only, as a transaction pooler may reuse the session.
BOUND = """
SELECT set_config('statement_timeout', %s, true), set_config('idle_in_transaction_session_timeout', %s, true),
       CASE WHEN current_setting('server_version_num')::integer >= 170000
            THEN set_config('transaction_timeout', %s, true) END"""

# Read by a statement of its own after the locks, so that it sees a verification that ended in between.
HISTORIES = """
SELECT partition, run_id, epoch FROM partition_state WHERE run_id IS NOT NULL AND partition = ANY(%s)"""

# The state by which entries are checked: a person who releases an account holds the partition's lock.
JUDGED = """
SELECT p, coalesce(s.epoch, 0), count(q.id) FILTER (WHERE q.released_at IS NULL),
       count(q.id) FILTER (WHERE q.released_at IS NOT NULL)
  FROM unnest(%s::integer[]) AS p LEFT JOIN partition_state AS s ON s.partition = p
       LEFT JOIN quarantine AS q ON q.partition = p
 GROUP BY p, s.epoch"""
# The last movement of tenants' token accounts; no row: no such tenant.
TENANTS = """
SELECT t.id, t.organization_id, coalesce(q.epoch, 0), coalesce(q.last_seq, 0)
  FROM tenant AS t LEFT JOIN tenant_quota AS q ON q.tenant_id = t.id WHERE t.id = ANY(%s)"""
ORGANIZATIONS = """
SELECT id, credit_epoch, credit_last_seq, spend_epoch, spend_last_seq FROM organization WHERE id = ANY(%s)"""
CURRENCIES = "SELECT id, currency FROM organization WHERE id = ANY(%s)"
# Accounts whose contradictions a person accepted, and up to which time: later entries are checked again.
ACCEPTED = """
SELECT account, extract(epoch FROM max(released_at)) * 1000, max(released_reason) FROM quarantine
 WHERE resolution = 'accepted' AND kind IN ('conflict', 'unknown_account') AND partition = ANY(%s)
   AND released_at > now() - interval '7 days' GROUP BY account"""
FILE_DRIFT = f"""
INSERT INTO known_drift AS u (account, seq, difference) VALUES (%s, %s, %s)
ON CONFLICT (account, seq) DO UPDATE SET difference = {added("difference")}"""
STOPPED = "SELECT account FROM quarantine WHERE released_at IS NULL AND partition = ANY(%s)"

# A redelivered entry is looked up by account and seq: its content must equal the stored row.
STORED_TOKENS = """
SELECT l.tenant_id, l.seq, coalesce(l.control_write_id, l.request_id)::text, l.amount, l.total_remaining
  FROM unnest(%(ids)s::bigint[], %(seqs)s::bigint[]) AS k (id, seq)
  JOIN token_ledger AS l ON l.tenant_id = k.id AND l.seq = k.seq"""
STORED_CREDITS = """
SELECT l.organization_id, l.seq, l.request_id::text, l.credits_used, l.balance_after
  FROM unnest(%(ids)s::bigint[], %(seqs)s::bigint[]) AS k (id, seq)
  JOIN credit_transaction AS l ON l.organization_id = k.id AND l.seq = k.seq
UNION ALL
SELECT l.organization_id, l.seq, l.control_write_id::text, abs(l.amount), l.balance_after
  FROM unnest(%(ids)s::bigint[], %(seqs)s::bigint[]) AS k (id, seq)
  JOIN credit_posting AS l ON l.organization_id = k.id AND l.seq = k.seq"""
STORED_USAGE = """
SELECT l.organization_id, l.seq, l.request_id::text, l.usage_amount, l.spent_after
  FROM unnest(%(ids)s::bigint[], %(seqs)s::bigint[]) AS k (id, seq)
  JOIN feature_usage AS l ON l.organization_id = k.id AND l.seq = k.seq"""
STORED_DEAD = """
SELECT d.raw FROM unnest(%s::smallint[], %s::text[]) AS k (partition, entry_id)
  JOIN dead_letter AS d ON d.partition = k.partition AND d.entry_id = k.entry_id"""

# Rows of an account at a seq and next to it.
AROUND = {
    "tenant": """
SELECT seq, epoch, CASE direction WHEN 'IN' THEN amount ELSE -amount END, total_remaining, created_at
  FROM token_ledger WHERE tenant_id = %(id)s AND seq BETWEEN %(from)s AND %(to)s""",
    "credits": """
SELECT seq, epoch, -credits_used, balance_after, "timestamp" FROM credit_transaction
 WHERE organization_id = %(id)s AND seq BETWEEN %(from)s AND %(to)s
UNION ALL
SELECT seq, epoch, amount, balance_after, created_at FROM credit_posting
 WHERE organization_id = %(id)s AND seq BETWEEN %(from)s AND %(to)s""",
    "spend": """
SELECT seq, epoch, spend, spent_after, "timestamp" FROM feature_usage
 WHERE organization_id = %(id)s AND seq BETWEEN %(from)s AND %(to)s""",
}
DRIFTS_AROUND = """
SELECT seq, difference FROM known_drift WHERE account = %(account)s AND seq BETWEEN %(from)s AND %(to)s"""
# The movements by which a request was charged, corrections apart.
CHARGED = f"""
SELECT 'tenant:' || tenant_id, seq FROM token_ledger
 WHERE request_id = %(request)s AND created_at >= {SINCE_BEGAN} AND transaction_type = 'consume'
UNION ALL
SELECT 'credits:' || organization_id, seq FROM credit_transaction
 WHERE request_id = %(request)s AND "timestamp" >= {SINCE_BEGAN}
   AND NOT coalesce(metadata ? 'corrects', false)
UNION ALL
SELECT 'spend:' || organization_id, seq FROM feature_usage
 WHERE request_id = %(request)s AND "timestamp" >= {SINCE_BEGAN}
   AND NOT coalesce(metadata ? 'corrects', false)"""

MOVE_QUOTAS = """
INSERT INTO tenant_quota AS q (tenant_id, tokens_used, tokens_remaining, tokens_granted, is_blocked,
                               manual_block, last_reset, next_reset_at, cycle, epoch, last_seq, updated_at)
SELECT n.tenant_id, n.used, n.remaining, n.granted, n.blocked, n.manual, to_timestamp(n.reset_ms / 1000.0),
       to_timestamp(nullif(n.next_ms, 0) / 1000.0), n.cycle, n.epoch, n.seq, now()
  FROM unnest(%s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[], %s::boolean[], %s::boolean[],
              %s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[])
    AS n (tenant_id, used, remaining, granted, blocked, manual, reset_ms, next_ms, cycle, epoch, seq)
ON CONFLICT (tenant_id) DO UPDATE SET
    tokens_used = excluded.tokens_used, tokens_remaining = excluded.tokens_remaining,
    tokens_granted = excluded.tokens_granted,
    is_blocked = excluded.is_blocked, manual_block = excluded.manual_block,
    last_reset = coalesce(excluded.last_reset, q.last_reset), next_reset_at = excluded.next_reset_at,
    cycle = excluded.cycle, epoch = excluded.epoch, last_seq = excluded.last_seq,
    updated_at = excluded.updated_at"""
# A plan comes into force when its movement is stored; its total also at each reset.
CHANGE_PLANS = """
UPDATE tenant_quota AS q SET plan_id = p.id
  FROM control_write AS w LEFT JOIN token_plan AS p ON p.id = (w.payload->>'plan_id')::bigint
 WHERE w.id = ANY(%s::uuid[]) AND w.verb = 'plan' AND w.payload ? 'plan_id'
   AND w.account = 'tenant:' || q.tenant_id
RETURNING q.tenant_id"""
RENEW_TOTALS = """
UPDATE tenant_quota AS q
   SET total = CASE WHEN q.tokens_remaining IS NOT NULL THEN coalesce(p.total_amount, q.total) END
  FROM tenant_quota AS k LEFT JOIN token_plan AS p ON p.id = k.plan_id
 WHERE q.tenant_id = k.tenant_id AND q.tenant_id = ANY(%s)"""
SKIP_QUOTAS = """
INSERT INTO tenant_quota AS q (tenant_id, epoch, last_seq)
SELECT * FROM unnest(%s::bigint[], %s::bigint[], %s::bigint[])
ON CONFLICT (tenant_id) DO UPDATE SET epoch = greatest(q.epoch, excluded.epoch), last_seq = excluded.last_seq
 WHERE q.last_seq < excluded.last_seq"""
SKIP_CREDITS = """
UPDATE organization AS o SET credit_epoch = greatest(credit_epoch, n.epoch), credit_last_seq = n.seq
  FROM unnest(%s::bigint[], %s::bigint[], %s::bigint[]) AS n (id, epoch, seq)
 WHERE o.id = n.id AND o.credit_last_seq < n.seq"""
SKIP_SPENDS = """
UPDATE organization AS o SET spend_epoch = greatest(spend_epoch, n.epoch), spend_last_seq = n.seq
  FROM unnest(%s::bigint[], %s::bigint[], %s::bigint[]) AS n (id, epoch, seq)
 WHERE o.id = n.id AND o.spend_last_seq < n.seq"""
STAND = """
INSERT INTO tenant_quota AS q (tenant_id, is_blocked, manual_block)
SELECT * FROM unnest(%s::bigint[], %s::boolean[], %s::boolean[])
ON CONFLICT (tenant_id) DO UPDATE SET
    is_blocked = excluded.is_blocked, manual_block = excluded.manual_block, updated_at = now()"""
MOVE_CREDITS = """
UPDATE organization AS o SET credit_balance = n.balance, credit_ahead = n.ahead, credit_epoch = n.epoch,
       credit_last_seq = n.seq
  FROM unnest(%s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[])
    AS n (id, balance, ahead, epoch, seq)
 WHERE o.id = n.id"""
MOVE_SPENDS = """
UPDATE organization AS o SET spent = n.spent, spend_epoch = n.epoch, spend_last_seq = n.seq,
       spend_month = date_trunc('month', to_timestamp(n.at_ms / 1000.0) AT TIME ZONE 'UTC')::date
  FROM unnest(%s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[])
    AS n (id, spent, epoch, seq, at_ms)
 WHERE o.id = n.id"""
ROLL_UP = f"""
INSERT INTO usage_daily AS u (tenant_id, day, service_id, organization_id, requests, tokens, credits,
                              usage_amount)
SELECT t, date '1970-01-01' + d, s, o, r, k, c, a
  FROM unnest(%s::bigint[], %s::integer[], %s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[],
              %s::bigint[], %s::bigint[]) AS n (t, d, s, o, r, k, c, a)
ON CONFLICT (tenant_id, day, service_id) DO UPDATE SET
    requests = {added("requests")}, tokens = {added("tokens")}, credits = {added("credits")},
    usage_amount = {added("usage_amount")}"""
ROLL_UP_TIERS = f"""
INSERT INTO usage_tier AS u (tenant_id, day, service_id, unit_price, organization_id, first_unit, quantity)
SELECT t, date '1970-01-01' + d, s, p, o, f, q
  FROM unnest(%s::bigint[], %s::integer[], %s::bigint[], %s::numeric[], %s::bigint[], %s::bigint[],
              %s::bigint[]) AS n (t, d, s, p, o, f, q)
ON CONFLICT (tenant_id, day, service_id, unit_price) DO UPDATE SET
    first_unit = least(u.first_unit, excluded.first_unit), quantity = {added("quantity")}"""
# An unknown budget is skipped. The first call that names the owner of an account sets its name.
_MOVE_BUDGETS = """
INSERT INTO budget_use AS u (budget_id, start, value, name, used{reset})
SELECT budget_id, start, value, name, used{taken} FROM (
    SELECT n.budget_id, to_timestamp(n.start / 1000.0) AS start, n.value,
           CASE WHEN n.value IN ('', '{others}') THEN '' WHEN b.each = 'user' THEN n.user_name
                WHEN b.each = 'key' THEN n.key_id WHEN b.each = 'project' THEN n.project
                WHEN b.each = 'session' THEN n.session WHEN b.each = 'tenant' THEN n.tenant_id
                ELSE coalesce(n.tags::jsonb ->> substr(b.each, 5), '') END AS name,
           CASE b.unit WHEN 'money' THEN n.money WHEN 'tokens' THEN n.tokens ELSE n.requests END AS used
      FROM unnest(%s::bigint[], %s::bigint[], %s::text[], %s::bigint[], %s::numeric[], %s::bigint[],
                  %s::bigint[], %s::text[], %s::text[], %s::text[], %s::text[], %s::text[], %s::text[])
        AS n (budget_id, start, value, organization_id, money, tokens, requests,
              user_name, key_id, project, session, tenant_id, tags)
      JOIN budget AS b ON b.id = n.budget_id AND b.organization_id = n.organization_id) AS moved
 ORDER BY budget_id, start, value
ON CONFLICT (budget_id, start, value) DO UPDATE SET
    name = CASE WHEN u.name = '' THEN excluded.name ELSE u.name END, moved_at = now(), used = {used}{more}"""
# Tokens and requests count as far as the counters do, money without end. The unit is asked for beyond that
# alone.
_USED = f"""CASE WHEN u.used + excluded.used <= {INTEGER_MAX} OR (SELECT unit FROM {{}}) = 'money'
    THEN u.used + excluded.used ELSE {INTEGER_MAX} END"""
_MOVED = {"others": OTHERS, "used": _USED.format("budget AS b WHERE b.id = u.budget_id")}
MOVE_BUDGETS = _MOVE_BUDGETS.format(reset="", taken="", more="", **_MOVED)
# A reset subtracts its amount from the use, and is summed separately.
RESET_BUDGETS = _MOVE_BUDGETS.format(
    reset=", reset", taken=", -used", more=", reset = u.reset + excluded.reset", **_MOVED
)
# What windows carry; a repeated entry changes nothing.
CARRY_BUDGETS = """
INSERT INTO budget_use AS u (budget_id, start, value, used, carried, limit_at_end, changed)
SELECT n.budget_id, to_timestamp(n.start / 1000.0), n.value, 0,
       CASE b.unit WHEN 'money' THEN n.money WHEN 'tokens' THEN n.tokens ELSE n.requests END,
       CASE b.unit WHEN 'money' THEN n.limit_of_money ELSE n.limit_of_others END, n.changed
  FROM unnest(%s::bigint[], %s::bigint[], %s::text[], %s::bigint[], %s::numeric[], %s::bigint[], %s::bigint[],
              %s::numeric[], %s::numeric[], %s::double precision[])
    AS n (budget_id, start, value, organization_id, money, tokens, requests, limit_of_money, limit_of_others, changed)
  JOIN budget AS b ON b.id = n.budget_id AND b.organization_id = n.organization_id
 ORDER BY 1, 2, 3
ON CONFLICT (budget_id, start, value) DO UPDATE SET
    carried = excluded.carried, limit_at_end = excluded.limit_at_end, changed = excluded.changed"""
# Runs that were opened or ended; a repeated entry changes nothing.
STORE_RUNS = """
INSERT INTO run AS r (id, organization_id, tenant_id, name, parent_name, unit, amount, calls_max, created_at,
                      expires_at, ended_at)
SELECT id, o, t, n, nullif(p, ''), u, CASE WHEN a >= 0 THEN a END, nullif(m, 0), to_timestamp(c / 1000.0),
       to_timestamp(e / 1000.0), to_timestamp(nullif(d, 0) / 1000.0)
  FROM unnest(%s::bigint[], %s::bigint[], %s::bigint[], %s::text[], %s::text[], %s::text[], %s::bigint[],
              %s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[]) AS n (id, o, t, n, p, u, a, m, c, e, d)
ON CONFLICT (id) DO UPDATE SET ended_at = coalesce(r.ended_at, excluded.ended_at)"""
# An unknown run is skipped.
MOVE_RUNS = f"""
INSERT INTO budget_use AS u (budget_id, start, value, used)
SELECT n.budget_id, to_timestamp(n.start / 1000.0), n.value,
       CASE WHEN n.budget_id = r.id THEN n.requests WHEN r.unit = 'money' THEN n.money ELSE n.tokens END
  FROM unnest(%s::bigint[], %s::bigint[], %s::text[], %s::bigint[], %s::numeric[], %s::bigint[], %s::bigint[])
    AS n (budget_id, start, value, organization_id, money, tokens, requests)
  JOIN run AS r ON r.id = n.budget_id - n.budget_id %% 2 AND r.organization_id = n.organization_id
 ORDER BY 1, 2, 3
ON CONFLICT (budget_id, start, value) DO UPDATE SET
    used = {_USED.format("run AS r WHERE r.id = u.budget_id - 1")}, moved_at = now()"""
ACTIVATE = """
INSERT INTO service_activation (organization_id, service_id, request_id, activated_at)
SELECT o, s, r::uuid, to_timestamp(at_ms / 1000.0)
  FROM unnest(%s::bigint[], %s::bigint[], %s::text[], %s::bigint[]) AS n (o, s, r, at_ms)
ON CONFLICT DO NOTHING"""
# Charges that these rows establish; the same statements as an invoice's.
CHARGE_TOKENS = driver_level(insert_of(OVERAGES), which="o.next_seq IS NOT NULL AND o.tenant_id = ANY(%s)")
CHARGE_CREDITS = driver_level(insert_of(PURCHASES), which="p.organization_id = ANY(%s)")
# A control write is done once its movement is stored.
FINISH = """
UPDATE control_write SET state = 'done', done_at = now(), applied_at = coalesce(applied_at, now())
 WHERE id = ANY(%s::uuid[]) AND state <> 'done'"""
QUARANTINE = """
INSERT INTO quarantine (account, partition, organization_id, tenant_id, kind, behind, entry_id, epoch,
                        stored_seq, found_seq, reason, stood)
VALUES (%s, %s, %s, nullif(%s, 0), %s, %s, %s, %s, %s, %s, %s, %s)
ON CONFLICT (account) WHERE released_at IS NULL DO NOTHING"""
BURY = """
INSERT INTO dead_letter (partition, entry_id, raw, reason, organization_id, tenant_id, epoch,
                         token_seq, credit_seq, spend_seq)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s) ON CONFLICT (partition, entry_id) DO NOTHING"""

# The newest stored entry of each partition before this transaction.
MARKS = """
SELECT partition, last_entry_id FROM partition_state
 WHERE partition = ANY(%s) AND last_entry_id IS NOT NULL"""
# The newest entry of each partition that is stored or set aside: a deleted later entry means that stored rows
# were lost.
MARK = """
INSERT INTO partition_state AS s (partition, last_entry_id)
SELECT * FROM unnest(%s::smallint[], %s::text[])
ON CONFLICT (partition) DO UPDATE SET last_entry_id = excluded.last_entry_id
 WHERE s.last_entry_id IS NULL
    OR string_to_array(s.last_entry_id, '-')::bigint[]
       < string_to_array(excluded.last_entry_id, '-')::bigint[]"""

# The number of users each organization got today: read once for each batch, not for each name.
NEW_TODAY = """
SELECT organization_id, count(*) FROM app_user
 WHERE organization_id = ANY(%s) AND first_sight AND created_at >= date_trunc('day', now(), 'UTC')
 GROUP BY organization_id"""
MEET_USERS = """
INSERT INTO app_user (organization_id, external_id, first_sight)
SELECT o, x, true FROM unnest(%(organizations)s::bigint[], %(names)s::text[]) AS k (o, x) ORDER BY o, x
ON CONFLICT DO NOTHING"""
KNOW_USERS = """
SELECT u.organization_id, u.external_id, u.id
  FROM unnest(%(organizations)s::bigint[], %(names)s::text[]) AS k (o, x)
  JOIN app_user AS u ON u.organization_id = k.o AND u.external_id = k.x"""
# The origin of a credit posting: an addition, or its expiry.
ADDITIONS = """
SELECT control_write_id::text, id, 'addition' FROM credit_addition
 WHERE control_write_id = ANY(%(ids)s::uuid[])
UNION ALL
SELECT expiry_write_id::text, id, 'expiry' FROM credit_addition
 WHERE expiry_write_id = ANY(%(ids)s::uuid[])"""

# Stored calls among those that moved no account.
STORED_CALLS = """
SELECT request_id::text FROM call
 WHERE request_id = ANY(%s::uuid[]) AND created_at BETWEEN %s AND %s"""
_CALL = f"request_id = %(request_id)s AND created_at >= {SINCE_BEGAN}"
KNOWN_CALLS = f"""
SELECT request_id::text FROM call
 WHERE request_id = ANY(%(ids)s::uuid[]) AND created_at >= {SINCE_BEGAN}"""
# A call in the form of the roll-ups: `DIMENSIONS`, then `SUMS`; and for reports its request id and time.
SUMS_OF_CALL = f"""
       organization_id, (extract(epoch FROM date_trunc('hour', created_at, 'UTC')) * 1000)::bigint, tenant_id,
       api_key_id, coalesce(user_id, 0), coalesce(project_id, {NO_PROJECT}), coalesce(service_id, 0),
       coalesce(model, ''), coalesce(currency, ''), coalesce(tags::text, '{{}}'),
       {", ".join(usage_sum.sql for usage_sum in USAGE_SUMS)},
       request_id::text, (extract(epoch FROM created_at) * 1000)::bigint"""
# Its row is locked.
CALL_SUMS = f"SELECT {SUMS_OF_CALL} FROM call WHERE {_CALL} FOR UPDATE"
# The columns of a new row of `call`, in the order of `rows.call_row`.
CALL_COLUMNS: Final = (
    "organization_id", "tenant_id", "api_key_id", "created_at", "tokens", "credits", "units", "status", "duration_ms",
    "streamed", "estimated", *KINDS, "request_id", "service_id", "user_id", "content_id", "project_id",
    "feature_version", "session", "route", "model", "response_model", "service_tier", "tools", "cost", "currency",
    "price_id", "first_token_ms", "upstream_request_id", "unknown_usage", "reason", "unpriced", "exchange_rate", "run_id",
    "priced_at", "hour_factor", "tags", "groups", "model_asked", "substituted_by", "saved",
)  # fmt: skip
# Whose call it is, and when it was: a correction leaves these.
_KEPT: Final = {
    "organization_id", "tenant_id", "api_key_id", "created_at", "request_id", "service_id", "user_id", "run_id",
}  # fmt: skip
# Those that are not set to a parameter of their name.
_CORRECTED: Final = {
    "credits": "credits + %(credits)s", "units": "CASE WHEN %(more_units)s THEN units ELSE 0 END + %(units)s",
    **{name: f"%({name})s::jsonb" for name in ("tools", "tags", "groups", "substituted_by")},
}  # fmt: skip
# The real use of a call, once known, by the parameters of `rows.correction`: credits and charged units are differences.
CORRECT_CALL = f"""
UPDATE call SET
       {", ".join(f"{name} = {_CORRECTED.get(name, f'%({name})s')}" for name in CALL_COLUMNS if name not in _KEPT)}
 WHERE {_CALL} RETURNING {SUMS_OF_CALL}"""
REFUND_CALL = f"""
UPDATE call SET credits = credits - %(amount)s
 WHERE {_CALL} RETURNING {SUMS_OF_CALL}"""

AMEND_CALL = f"""
UPDATE call SET tokens = tokens - %(tokens)s, amended = amended + %(tokens)s, credits = credits - %(credits)s,
       units = units - %(units)s
 WHERE {_CALL} RETURNING {SUMS_OF_CALL}"""


def columns_of(rows: Sequence[tuple[Any, ...]]) -> list[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)]


# The lock of a partition: its holder may store the entries of the partition's outbox.

# A session lock would outlive a frozen flusher; this one ends with the transaction.
LOCK = """
SELECT p FROM unnest(%s::integer[]) AS p WHERE pg_try_advisory_xact_lock(7800, p)"""
# The locks are read, not tried, as a try could make another one's fail.
LOCKED = """
SELECT DISTINCT objid::integer FROM pg_locks
 WHERE locktype = 'advisory' AND classid = 7800 AND objsubid = 2 AND granted AND objid::integer = ANY(%s)
   AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"""
# Locks all partitions in order: all running flushes have ended then, and none begins.
HOLD_FLUSHES = f"SELECT pg_advisory_xact_lock(7800, p) FROM generate_series(0, {PARTITIONS - 1}) AS p"
