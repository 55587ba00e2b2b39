"""Reads from PostgreSQL the true state of partitions, from which Redis is rebuilt.

Some partitions are read at a time: the partition of an organization follows from its id.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Collection, Container, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from sqlalchemy import Row
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from gateway.core.accounts.budgets import DELETED, EACH_UNUSED_DAYS, Budget
from gateway.core.accounts.definitions import AccountDefinition, KeyDefinition
from gateway.core.accounts.groups import NO_GROUPS, GroupTerms
from gateway.core.accounts.outbox import WindowKey
from gateway.core.accounts.runs import Run, read_stored
from gateway.core.accounts.windows import read_end_limit
from gateway.core.integrity.reconciliation import (
    CarriedUse,
    DifferenceKind,
    Item,
    LedgerAccount,
    Owner,
    StoredBudgets,
)
from gateway.core.integrity.recovery import (
    AccountHead,
    ComparisonPoint,
    GlobalDefinitions,
    LedgerState,
    PartitionContents,
)
from gateway.core.model import INTEGER_MAX, PARTITIONS
from persistence.engine import apart, looking
from persistence.error_mapping import QUERY_CANCELED, sqlstate, translating
from persistence.keeper import definitions, forgetting, retention
from persistence.keeper.definitions import budgets_of, groups_of
from persistence.keeper.retention import SINCE
from persistence.ledger.checkpoints import closed, disproved, sums, violations
from persistence.ledger.rows import is_uuid
from persistence.queries import query

# Usual seconds of a query that reads ledgers whole, or waits for flushes.
LONG_S = 30.0

# Stored use of budgets: Redis is rebuilt from it and compared with it, in one snapshot.

# Maximum of dead letters that are read.
ASIDE_MAX = 1_000
# A window is kept for more than a year, and the last one of an account that carries; the total of a session as long as in Redis.
KEPT_DAYS = 400
# A part of a rolling window is kept for twice its length, and so long: a use is stored late, and clocks differ.
PART_HOURS = 2
# How long Redis keeps a run that is over.
RUNS_KEPT_S = 86_400

_MS = "floor(extract(epoch FROM {}) * 1000)::bigint"
# Accounts of sessions that Redis has dropped as unused; it counts days in UTC.
_FORGOTTEN = """b."interval" = 'total' AND b.each = 'session'
           AND u.moved_at < date_trunc('day', now(), 'UTC') - make_interval(days => :unused_days)"""
# Redis has the use of a user whose data was deleted under another owner, until it ends.
_IS_KNOWN = f"NOT starts_with(u.value, '{DELETED}')"
_USED = query("verification.used", "Select the use of accounts of budgets", f"""
SELECT u.budget_id, {_MS.format("u.start")} AS start_ms, u.value, u.used, {_MS.format("u.moved_at")} AS moved_ms,
       u.carried, u.limit_at_end, u.changed
  FROM unnest(cast(:ids AS bigint[]), cast(:starts AS bigint[])) AS k (id, start)
  JOIN budget_use AS u ON u.budget_id = k.id AND u.start >= to_timestamp(k.start / 1000.0)
  LEFT JOIN budget AS b ON b.id = u.budget_id AND {_FORGOTTEN}
 WHERE b.id IS NULL AND {_IS_KNOWN}""")  # fmt: skip
# The last windows of budgets that carry, before the present ones.
_CARRIED = query("verification.carried", "Select the last use of accounts of budgets that carry", f"""
SELECT DISTINCT ON (u.budget_id, u.value) u.budget_id, {_MS.format("u.start")} AS start_ms, u.value, u.used,
       {_MS.format("u.moved_at")} AS moved_ms, u.carried, u.limit_at_end, u.changed
  FROM unnest(cast(:ids AS bigint[]), cast(:starts AS bigint[])) AS k (id, start)
  JOIN budget_use AS u ON u.budget_id = k.id AND u.start < to_timestamp(k.start / 1000.0)
 WHERE {_IS_KNOWN}
 ORDER BY u.budget_id, u.value, u.start DESC""")  # fmt: skip
_FORGET_WINDOWS = query("verification.forget_windows", "Delete the use of old windows of budgets", """
DELETE FROM budget_use WHERE ctid = ANY(ARRAY(
    SELECT u.ctid FROM budget_use AS u JOIN budget AS b ON b.id = u.budget_id
     WHERE u.start > 'epoch' AND u.start < now() - make_interval(days => :days)
       AND u.moved_at < now() - make_interval(days => :days)
       AND (u.carried IS NULL OR b.deleted_at IS NOT NULL OR EXISTS (
           SELECT FROM budget_use AS l WHERE l.budget_id = u.budget_id AND l.value = u.value AND l.start > u.start))
     LIMIT :n))""")  # fmt: skip
# Parts of rolling windows that count no more.
_FORGET_PARTS = query("verification.forget_parts", "Delete the use of old parts of rolling windows", """
DELETE FROM budget_use WHERE ctid = ANY(ARRAY(
    SELECT u.ctid FROM (SELECT id, length::interval AS length FROM budget
                         WHERE "window" = 'rolling' OFFSET 0) AS b
     CROSS JOIN LATERAL (SELECT ctid FROM budget_use WHERE budget_id = b.id
                            AND start < now() - 2 * b.length - make_interval(hours => :part_hours) OFFSET 0) AS u
     LIMIT :n))""")  # fmt: skip
# Windows without end are kept, except those of sessions, and of budgets that were deleted long ago.
_FORGET_ENDLESS = query(
    "verification.forget_endless", "Delete the use of old sessions and of deleted budgets", f"""
DELETE FROM budget_use WHERE ctid = ANY(ARRAY(
    SELECT u.ctid FROM budget AS b
     CROSS JOIN LATERAL (SELECT ctid, moved_at FROM budget_use
                          WHERE budget_id = b.id AND start = 'epoch' OFFSET 0) AS u
     WHERE (b.each = 'session' OR b.deleted_at < now() - make_interval(days => :days))
       AND ({_FORGOTTEN} OR b.deleted_at < now() - make_interval(days => :days)) LIMIT :n))""")  # fmt: skip
# Runs that Redis keeps.
_RUNS = query("verification.runs", "Select runs that Redis keeps", """
SELECT r.*, coalesce(u.used, 0)::bigint AS calls FROM run AS r
  LEFT JOIN budget_use AS u ON u.budget_id = r.id AND u.start = r.created_at
 WHERE r.organization_id = ANY(:ids) AND r.expires_at > now() - make_interval(secs => :kept_s)
 ORDER BY r.created_at, r.id""")  # fmt: skip
_FORGET_RUNS = query("verification.forget_runs", "Delete expired runs", """
WITH gone AS (
    SELECT id, created_at FROM run WHERE expires_at < now() - make_interval(days => :days) LIMIT :n
), uses AS (
    DELETE FROM budget_use WHERE ctid = ANY(ARRAY(
        SELECT u.ctid FROM gone AS g
         CROSS JOIN LATERAL (SELECT ctid FROM budget_use
                              WHERE budget_id IN (g.id, g.id + 1) AND start = g.created_at OFFSET 0) AS u))
)
DELETE FROM run WHERE id = ANY(ARRAY(SELECT id FROM gone))""")  # fmt: skip
_FORGET_JOBS = query("verification.forget_jobs", "Delete expired jobs", """
DELETE FROM job WHERE ctid = ANY(ARRAY(
    SELECT ctid FROM job WHERE expires_at < now() - make_interval(days => :days) LIMIT :n))""")  # fmt: skip
_UNTOLD = query("verification.untold", "Select whether control writes of an account wait",
    "SELECT EXISTS (SELECT FROM control_write WHERE account = :account AND state = 'pending')")  # fmt: skip
_MARK = query("verification.mark", "Select the last stored entry of a partition",
    "SELECT last_entry_id FROM partition_state WHERE partition = :partition")  # fmt: skip
_ASIDE = query("verification.aside", "Select open dead letters of organizations", """
SELECT raw FROM dead_letter WHERE resolved_at IS NULL AND organization_id = ANY(:organizations) LIMIT :n""")  # fmt: skip


class BudgetUses:
    """Reads stored budgets, runs and use for the verifier and the reconciler."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def budgets(self, organizations: Sequence[int]) -> Mapping[int, Sequence[Budget]]:
        async with translating(self._engine.connect()) as connection:
            return await budgets_of(connection, organizations)

    async def pushed_terms(self, organization_id: int) -> tuple[Sequence[Budget], GroupTerms] | None:
        """Return the budgets of an organization that have overrides or go by groups, and its groups.

        None while a write waits that tells Redis of them.
        """
        async with translating(self._engine.connect()) as connection:
            await connection.execution_options(isolation_level="REPEATABLE READ")
            if await connection.scalar(_UNTOLD, {"account": f"organization:{organization_id}"}):
                return None
            budgets = (await budgets_of(connection, [organization_id])).get(organization_id, ())
            groups = await groups_of(connection, [organization_id])
        told = [budget for budget in budgets if budget.overrides or budget.has_groups]
        return told, groups.get(organization_id, NO_GROUPS)

    async def runs(self, organizations: Sequence[int]) -> list[Run]:
        """Return the runs that calls may name, and those that expired in the last day, the oldest first.

        A run is a task with a budget of its own.
        """
        values = {"ids": list(organizations), "kept_s": RUNS_KEPT_S}
        async with translating(self._engine.connect()) as connection:
            rows = (await connection.execute(_RUNS, values)).mappings().all()
        return [read_stored(dict(row)) for row in rows]

    async def stored(
        self,
        partition: int,
        organizations: Sequence[int],
        windows: Iterable[WindowKey],
        carrying: Collection[int] = (),
    ) -> StoredBudgets:
        """Return the use of organizations in `windows` and later ones; budgets `carrying` with the one before."""
        async with translating(self._engine.connect()) as connection:
            await connection.execution_options(isolation_level="REPEATABLE READ")
            mark = await connection.scalar(_MARK, {"partition": partition})
            used, moved, carried = await _read_window_use(connection, list(windows), carrying)
            values = {"organizations": list(organizations), "n": ASIDE_MAX}
            aside = [bytes(raw) for raw in await connection.scalars(_ASIDE, values)]
        return StoredBudgets((mark or "").encode(), used, aside, moved, carried)


async def _read_window_use(
    connection: AsyncConnection, windows: Sequence[WindowKey], carrying: Collection[int]
) -> tuple[dict[WindowKey, int], dict[WindowKey, int], dict[WindowKey, CarriedUse]]:
    """Return the stored use of budgets' windows, the ms when each last changed, and what each carries."""
    used, moved, carried = dict[WindowKey, int](), dict[WindowKey, int](), dict[WindowKey, CarriedUse]()
    more = [window for window in windows if window.budget_id in carrying]
    for statement, asked in ((_USED, windows), (_CARRIED, more)):
        if not asked:
            continue
        values = {"ids": [key.budget_id for key in asked], "starts": [key.start_ms for key in asked]}
        unused = {"unused_days": EACH_UNUSED_DAYS} if statement is _USED else {}
        rows = await connection.execute(statement, {**values, **unused})
        for budget_id, start_ms, value, amount, moved_ms, carries, limit, changed in rows.all():
            window = WindowKey(budget_id, start_ms, value)
            used[window], moved[window] = int(amount), moved_ms
            if carries is not None:
                carried[window] = CarriedUse(int(carries), read_end_limit(limit, changed))
    return used, moved, carried


async def forget_budget_uses(engine: AsyncEngine, *, at_once: int = retention.DELETED_ROWS_AT_ONCE) -> int:
    """Delete the use of budgets' windows that ended long ago, and old runs and jobs; return the row count."""
    forgotten = 0
    values = {"days": KEPT_DAYS, "unused_days": EACH_UNUSED_DAYS, "part_hours": PART_HOURS}
    for statement in (_FORGET_WINDOWS, _FORGET_PARTS, _FORGET_ENDLESS, _FORGET_RUNS, _FORGET_JOBS):
        named = {name: value for name, value in values.items() if f":{name}" in statement.text}
        forgotten += await forgetting.delete(engine, statement, named, at_once)
    return forgotten


# Credentials read at a time, if all of them are needed.
CREDENTIALS_MAX = 5_000
# Maximum of later definitions that are checked one by one; if there are more, all accounts are.
CHANGES_MAX = 20_000

_APPLIED = query("verification.applied", "Select control writes that are applied and not stored",
    "SELECT id, partition FROM control_write WHERE state = 'applied' AND partition = ANY(:partitions)"
)  # fmt: skip
_AGAIN = query("verification.again", "Store that control writes are pending again",
    "UPDATE control_write SET state = 'pending' WHERE state = 'applied' AND id = ANY(cast(:ids AS uuid[]))"
)  # fmt: skip
_PENDING = query("verification.pending", "Select accounts whose definitions are not pushed yet",
    "SELECT account FROM control_write WHERE state = 'pending' AND verb = 'define'")  # fmt: skip
_NOTED = query("verification.noted", "Select the verified histories of partitions",
    "SELECT partition, run_id, epoch FROM partition_state WHERE run_id IS NOT NULL")  # fmt: skip
_SETTLED = query("verification.settled", "Select which requests are settled", f"""
SELECT request_id::text AS request FROM token_ledger
 WHERE request_id = ANY(cast(:ids AS uuid[])) AND created_at >= {SINCE}
 UNION SELECT request_id::text FROM credit_transaction
        WHERE request_id = ANY(cast(:ids AS uuid[])) AND "timestamp" >= {SINCE}
 UNION SELECT request_id::text FROM feature_usage
        WHERE request_id = ANY(cast(:ids AS uuid[])) AND "timestamp" >= {SINCE}""")  # fmt: skip
_WORKERS = query("verification.workers", "Select the slots of gateway workers",
    "SELECT worker_slot FROM gateway_worker")  # fmt: skip
_CAME = query("verification.came", "Add the slots of gateway workers",
    "INSERT INTO gateway_worker (worker_slot) SELECT unnest(cast(:worker_slots AS text[]))"
    " ON CONFLICT DO NOTHING"
)  # fmt: skip
_GONE = query("verification.gone", "Delete the slots of gateway workers",
    "DELETE FROM gateway_worker WHERE worker_slot = ANY(:worker_slots)")  # fmt: skip
_ORGANIZATIONS = query("verification.organizations", "Select all organizations",
    "SELECT id FROM organization")  # fmt: skip
_CREDENTIALS = query("verification.credentials", "Select the digests of all keys",
    "SELECT k.id AS key_id, k.digest, t.organization_id"
    " FROM api_key AS k JOIN tenant AS t ON t.id = k.tenant_id"
)  # fmt: skip
# Organizations and keys defined after a position. Other writes to an account are entries of its partition,
# too: data that continues contains them, or they are stored nowhere, and are pushed again.
_DEFINED = "FROM control_write WHERE verb = 'define' AND position > :position"
_CHANGES = query("verification.changes", "Count definitions that changed since a position",
    f"SELECT count(*) FROM (SELECT {_DEFINED} LIMIT :n) AS w")  # fmt: skip
_CHANGED = query("verification.changed", "Select the objects whose definition changed since a position", f"""
WITH w AS (SELECT DISTINCT split_part(account, ':', 1) AS kind, split_part(account, ':', 2)::bigint AS id
             {_DEFINED} AND account ~ '^(organization|tenant|key|user):[0-9]{{1,18}}(:|$)')
SELECT id AS organization_id, NULL::bigint AS key_id, NULL AS digest FROM w WHERE kind = 'organization'
UNION ALL SELECT t.organization_id, NULL, NULL FROM w JOIN tenant AS t ON t.id = w.id
           WHERE kind IN ('tenant', 'user')
UNION ALL SELECT t.organization_id, k.id, k.digest
            FROM w JOIN api_key AS k ON k.id = w.id JOIN tenant AS t ON t.id = k.tenant_id
           WHERE kind = 'key'""")  # fmt: skip
_LIMITED = "u.organization_id = ANY(:ids) AND u.deleted_at IS NULL AND u.limits <> '{}'"
_VERSION = query("verification.version", "Select the position of the last control write",
    "SELECT coalesce(max(position), 1) FROM control_write")  # fmt: skip
# A concurrent transaction may have a lower position; none takes as long as this.
_POSITION = query("verification.position", "Select a position that no open transaction is before", """
SELECT coalesce((SELECT position FROM control_write WHERE created_at < now() - interval '10 minutes'
                  ORDER BY position DESC LIMIT 1), 0)""")  # fmt: skip
_COMPARED = query("verification.compared", "Select the partitions whose definitions were compared", """
SELECT partition, compared_run_id, compared_epoch, compared_position FROM partition_state
 WHERE compared_position IS NOT NULL AND NOT older""")  # fmt: skip
_NOTE_COMPARED = query("verification.note_compared", "Store that definitions of partitions were compared", """
UPDATE partition_state AS s
   SET compared_run_id = :run_id, compared_epoch = n.epoch, compared_position = :position, updated_at = now()
  FROM unnest(cast(:partitions AS smallint[]), cast(:epochs AS bigint[])) AS n (partition, epoch)
 WHERE s.partition = n.partition AND s.run_id = :run_id AND s.epoch = n.epoch""")  # fmt: skip
# The flusher's locks: their holder knows that every earlier flush has ended.
_BARRIER = query("verification.barrier", "Wait for the flushes of partitions", """
SELECT pg_advisory_xact_lock(7800, p) FROM unnest(cast(:partitions AS integer[])) AS p ORDER BY p""", usual_s=LONG_S)  # fmt: skip
_NOTE = query("verification.note", "Store that partitions are verified", """
INSERT INTO partition_state (partition, run_id, epoch, verified_at, updated_at)
SELECT n.partition, :run_id, n.epoch, now(), now()
  FROM unnest(cast(:partitions AS smallint[]), cast(:epochs AS bigint[])) AS n (partition, epoch) ORDER BY 1
ON CONFLICT (partition) DO UPDATE SET run_id = excluded.run_id, epoch = excluded.epoch,
       verified_at = excluded.verified_at, updated_at = excluded.updated_at
 WHERE excluded.epoch > partition_state.epoch
    OR (excluded.epoch = partition_state.epoch AND excluded.run_id = partition_state.run_id)
RETURNING partition""")  # fmt: skip


class LedgerReader(BudgetUses):
    def __init__(
        self,
        engine: AsyncEngine,
        partition_of: Callable[[int], int],
        partition_of_digest: Callable[[str], int] | None = None,
        *,
        credentials_max: int = CREDENTIALS_MAX,
        changes_max: int = CHANGES_MAX,
    ) -> None:
        """Find the partition of an organization by `partition_of`, of a key by `partition_of_digest`.

        Without the latter, keys are in the partition of their organization.
        """
        super().__init__(engine)
        self._partition_of, self._partition_of_digest = partition_of, partition_of_digest
        self._credentials_max, self._changes_max = credentials_max, changes_max

    async def everybodys(self) -> GlobalDefinitions:
        async with self._read_one_moment() as (connection, version):
            catalogue, prices = await definitions.catalogue(connection), await definitions.prices(connection)
            position = int((await connection.execute(_POSITION)).scalar_one())
        return GlobalDefinitions(catalogue, prices, version, position)

    async def places(self, partitions: Collection[int], known: Mapping[int, int]) -> PartitionContents:
        """Return the organizations and keys to verify in these partitions.

        `known` are the positions up to which partitions were verified before. Of these partitions only later
        changes are returned, unless there are too many.
        """
        found, credentials = dict[int, set[int]](), set[int]()
        async with self._engine.connect() as connection:
            if known:
                values = {"position": min(known.values()), "n": self._changes_max + 1}
                if (await connection.execute(_CHANGES, values)).scalar_one() > self._changes_max:
                    known = {}
            whole = frozenset(partitions) - known.keys()
            if whole:
                for (organization_id,) in await connection.execute(_ORGANIZATIONS):
                    if (partition := self._partition_of(organization_id)) in whole:
                        found.setdefault(partition, set()).add(organization_id)
            if 0 < len(whole) < PARTITIONS:
                options = {"yield_per": self._credentials_max}
                async with connection.stream(_CREDENTIALS, execution_options=options) as result:
                    async for some in result.partitions():
                        credentials |= self._standing(some, whole, but_of=whole)
            if known:
                rows = await connection.execute(_CHANGED, {"position": min(known.values())})
                changed = rows.all()
                for row in changed:
                    if (partition := self._partition_of(row.organization_id)) in known:
                        found.setdefault(partition, set()).add(row.organization_id)
                written = [row for row in changed if row.key_id is not None]
                credentials |= self._standing(written, known, but_of=partitions)
        return PartitionContents({one: sorted(ids) for one, ids in found.items()}, sorted(credentials))

    def _standing(
        self, keys: Sequence[Row[Any]], there: Container[int], *, but_of: Container[int]
    ) -> set[int]:
        """Return keys whose digest's partition is in `there`, and their organization's is not in `but_of`."""
        if self._partition_of_digest is None:
            return set()
        return {
            row.key_id
            for row in keys
            if self._partition_of_digest(row.digest) in there
            and self._partition_of(row.organization_id) not in but_of
        }

    async def compared(self) -> dict[int, ComparisonPoint]:
        """Return, by partition, the point to which its counters were last compared; none if it lost rows."""
        async with looking(self._engine) as connection:
            rows = await connection.execute(_COMPARED)
            return {
                row.partition: ComparisonPoint(
                    row.compared_run_id.encode(), row.compared_epoch, row.compared_position
                )
                for row in rows
            }

    async def note_compared(self, run_id: bytes, epochs: Mapping[int, int], position: int) -> None:
        """Store that the counters of these verified partitions have all definitions up to `position`."""
        values = {
            "run_id": run_id.decode(), "partitions": list(epochs), "epochs": list(epochs.values()),
            "position": position,
        }  # fmt: skip
        async with self._engine.begin() as connection:
            await connection.execute(_NOTE_COMPARED, values)

    async def truth(self, organizations: Mapping[int, Sequence[int]]) -> dict[int, LedgerState]:
        """Return what the counters of each partition should be, read from PostgreSQL at one moment.

        `organizations` are their ids by partition.
        """
        ids = {
            "ids": [
                organization_id
                for organization_ids in organizations.values()
                for organization_id in organization_ids
            ]
        }
        async with self._read_one_moment() as (connection, version):
            applied = await connection.execute(_APPLIED, {"partitions": list(organizations)})
            found = {organization: LedgerState([], [], [], [], [], version) for organization in organizations}
            for row in applied:
                found[row.partition].applied.append(str(row.id))
            if not ids["ids"]:
                return found
            for organization in await definitions.organizations(connection, ids["ids"]):
                self._its(found, organization.definition).organizations.append(organization)
            for tenant in await definitions.tenants(connection, "t.organization_id = ANY(:ids)", ids):
                self._its(found, tenant.definition).tenants.append(tenant)
            for key in await definitions.keys(connection, "t.organization_id = ANY(:ids)", ids):
                self._its(found, key).keys.append(key)
            for user in await definitions.users(connection, _LIMITED, ids):
                self._its(found, user).users.append(user)
        return found

    def _its(self, states: Mapping[int, LedgerState], definition: AccountDefinition) -> LedgerState:
        return states[self._partition_of(definition.organization_id)]

    async def credentials(self, keys: Sequence[int]) -> list[KeyDefinition]:
        async with looking(self._engine) as connection:
            return await definitions.keys(connection, "k.id = ANY(:ids)", {"ids": list(keys)})

    @asynccontextmanager
    async def _read_one_moment(self) -> AsyncIterator[tuple[AsyncConnection, int]]:
        """Yield a connection that sees one moment of the database, and the version of the data then."""
        async with self._engine.connect() as connection:
            await connection.execution_options(isolation_level="REPEATABLE READ")
            yield connection, int((await connection.execute(_VERSION)).scalar_one())

    async def settled(self, held: Mapping[str, int]) -> list[str]:
        """Return the holds that are no running calls: their request has, or may have had, a ledger row.

        `held` are the deadlines in ms by request id. A hold that ended in a month which is no longer in
        PostgreSQL is returned too; if it was never charged, its settlement comes late.
        """
        ids = [one for one in held if is_uuid(one)]
        if not ids:
            return []
        async with self._engine.connect() as connection:
            here: set[str] = set()
            for some, since in retention.by_month(await retention.places(connection, ids)):
                here.update(await connection.scalars(_SETTLED, {"ids": some, "since": since}))
            return sorted({*here, *await retention.ended_before(connection, held)})

    async def pending_definitions(self) -> frozenset[str]:
        """Return the accounts whose definitions are not pushed yet."""
        async with looking(self._engine) as connection:
            return frozenset(await connection.scalars(_PENDING))

    async def push_again(self, ids: Sequence[str]) -> None:
        """Mark these applied control writes as pending, so that they are pushed again."""
        async with self._engine.begin() as connection:
            await connection.execute(_AGAIN, {"ids": list(ids)})

    async def noted(self) -> dict[int, tuple[bytes, int]]:
        """Return, by partition, the Redis run id and epoch of its last verification, if there was one."""
        async with looking(self._engine) as connection:
            rows = await connection.execute(_NOTED)
            return {row.partition: (row.run_id.encode(), row.epoch) for row in rows}

    async def workers(self) -> list[str]:
        """Return the slots (ids in Redis) of all gateway workers that are known."""
        async with looking(self._engine) as connection:
            return list(await connection.scalars(_WORKERS))

    async def keep_workers(self, came: Collection[str], gone: Collection[str]) -> None:
        async with self._engine.begin() as connection:
            await connection.execute(_CAME, {"worker_slots": sorted(came)})
            await connection.execute(_GONE, {"worker_slots": sorted(gone)})

    async def note(self, run_id: bytes, epochs: Mapping[int, int]) -> frozenset[int]:
        """Store the Redis run id and the epochs of partitions just verified.

        Return the partitions that were accepted. A partition is not accepted if a later epoch is stored, or
        the same epoch of another Redis run. All flushes that had begun are over when this returns, so that
        later reads see their rows.
        """
        values = {"run_id": run_id.decode(), "partitions": list(epochs), "epochs": list(epochs.values())}
        async with self._engine.begin() as connection:
            await connection.execute(_BARRIER, {"partitions": sorted(epochs)})
            return frozenset(await connection.scalars(_NOTE, values))


# Accounts in PostgreSQL, for comparison with Redis, and the differences found.
#
# Everything is read in one snapshot. `deep` also counts and sums all movements, with checkpoints for past
# months; without it the balance of an account's last row is trusted.

_WITHIN = query("verification.within", "Limit the time of statements",
    "SELECT set_config('statement_timeout', :ms, true)")  # fmt: skip
# The part of a ledger after the last checkpoint.
_OPEN = {"since": "c.last_seq", "until": str(INTEGER_MAX), "month": "o.spend_month"}

_OWNERS = """
SELECT o.id, coalesce(array_agg(t.id ORDER BY t.id) FILTER (WHERE t.id IS NOT NULL), '{{}}') AS tenants
  FROM (SELECT id FROM organization WHERE {where} ORDER BY id LIMIT :n) AS o
  LEFT JOIN tenant AS t ON t.organization_id = o.id
 GROUP BY o.id ORDER BY o.id"""
_EVERY = query("verification.every", "Select accounts after an organization",
    _OWNERS.format(where="id > :after"))  # fmt: skip
_THESE = query("verification.these", "Select accounts of organizations",
    _OWNERS.format(where="id = ANY(cast(:ids AS bigint[]))"))  # fmt: skip
_ANYBODY = query("verification.anybody", "Select a random organization",
    "SELECT id FROM organization ORDER BY random() LIMIT 1")  # fmt: skip

_TENANTS = query("verification.tenants", "Select balances of tenants", """
SELECT 'tenant:' || k.id AS account, q.last_seq, q.tokens_remaining AS head, found.seq IS NOT NULL AS found,
       found.total_remaining + coalesce(d.difference, 0) AS at_seq, last.total_remaining AS last_row
  FROM unnest(cast(:ids AS bigint[]), cast(:seqs AS bigint[])) AS k (id, seq)
  JOIN tenant_quota AS q ON q.tenant_id = k.id
  LEFT JOIN token_ledger AS found ON found.tenant_id = k.id AND found.seq = k.seq
  LEFT JOIN LATERAL (SELECT total_remaining FROM token_ledger WHERE tenant_id = k.id AND seq <= q.last_seq
                      ORDER BY seq DESC LIMIT 1) AS last ON true
  LEFT JOIN known_drift AS d ON d.account = 'tenant:' || k.id AND d.seq = k.seq""")  # fmt: skip
# An unlimited account has no balance: the movements since it became limited count. A known drift is contained
# in the next row; until there is one, only Redis contains it.
_TENANT_SUMS = query("verification.tenant_sums", "Add up the movements of tenants", f"""
SELECT 'tenant:' || k.id AS account, c.movements + s.movements AS rows,
       u.last IS NOT DISTINCT FROM u.unlimited AS unlimited,
       (s.amount + CASE WHEN s.since_seq IS NULL THEN c.amount ELSE 0 END)::bigint AS summed,
       coalesce((SELECT sum(d.difference) FROM known_drift AS d WHERE d.account = 'tenant:' || k.id
                    AND d.seq >= coalesce(u.unlimited, 0) AND d.seq < u.last), 0)::bigint AS drift
  FROM unnest(cast(:ids AS bigint[])) AS k (id)
 CROSS JOIN LATERAL ({closed("tenant", "")}) AS c
 CROSS JOIN LATERAL ({sums("tenant", **_OPEN)}) AS s
 CROSS JOIN LATERAL (SELECT coalesce(s.since_seq, c.since_seq) AS unlimited,
                            greatest(s.last_seq, nullif(c.last_seq, 0)) AS last) AS u""", usual_s=LONG_S)  # fmt: skip
_CREDITS = query("verification.credits", "Select balances of credits", """
SELECT 'credits:' || k.id AS account, o.credit_last_seq AS last_seq, o.credit_balance AS head,
       found.seq IS NOT NULL AS found, found.balance_after + coalesce(d.difference, 0) AS at_seq,
       coalesce(last.balance_after, 0) AS last_row
  FROM unnest(cast(:ids AS bigint[]), cast(:seqs AS bigint[])) AS k (id, seq)
  JOIN organization AS o ON o.id = k.id
  LEFT JOIN LATERAL (
      SELECT seq, balance_after FROM credit_transaction WHERE organization_id = k.id AND seq = k.seq
      UNION ALL
      SELECT seq, balance_after FROM credit_posting WHERE organization_id = k.id AND seq = k.seq
  ) AS found ON true
  LEFT JOIN LATERAL (
      (SELECT seq, balance_after FROM credit_transaction
        WHERE organization_id = k.id AND seq <= o.credit_last_seq ORDER BY seq DESC LIMIT 1)
      UNION ALL
      (SELECT seq, balance_after FROM credit_posting
        WHERE organization_id = k.id AND seq <= o.credit_last_seq ORDER BY seq DESC LIMIT 1)
      ORDER BY seq DESC LIMIT 1
  ) AS last ON true
  LEFT JOIN known_drift AS d ON d.account = 'credits:' || k.id AND d.seq = k.seq""")  # fmt: skip
_CREDIT_SUMS = query("verification.credit_sums", "Add up the movements of credits", f"""
SELECT 'credits:' || k.id AS account, c.movements + s.movements AS rows, false AS unlimited,
       (c.amount + s.amount)::bigint AS summed,
       coalesce((SELECT sum(d.difference) FROM known_drift AS d
                  WHERE d.account = 'credits:' || k.id AND d.seq < o.credit_last_seq), 0)::bigint AS drift
  FROM unnest(cast(:ids AS bigint[])) AS k (id)
  JOIN organization AS o ON o.id = k.id
 CROSS JOIN LATERAL ({closed("credits", "")}) AS c
 CROSS JOIN LATERAL ({sums("credits", **_OPEN)}) AS s""", usual_s=LONG_S)  # fmt: skip
_SPENDS = query("verification.spends", "Select the spend of organizations", """
SELECT 'spend:' || k.id AS account, o.spend_last_seq AS last_seq, o.spent AS head,
       found.seq IS NOT NULL AS found, found.spent_after + coalesce(d.difference, 0) AS at_seq,
       coalesce(last.spent_after, 0) AS last_row
  FROM unnest(cast(:ids AS bigint[]), cast(:seqs AS bigint[])) AS k (id, seq)
  JOIN organization AS o ON o.id = k.id
  LEFT JOIN feature_usage AS found ON found.organization_id = k.id AND found.seq = k.seq
  LEFT JOIN LATERAL (SELECT spent_after FROM feature_usage WHERE organization_id = k.id
                        AND seq <= o.spend_last_seq ORDER BY seq DESC LIMIT 1) AS last ON true
  LEFT JOIN known_drift AS d ON d.account = 'spend:' || k.id AND d.seq = k.seq""")  # fmt: skip
# Spend starts at zero each month, whatever drift is known after the last movement before.
_SPEND_SUMS = query("verification.spend_sums", "Add up the spend of organizations", f"""
SELECT 'spend:' || k.id AS account, c.movements + s.movements AS rows, false AS unlimited,
       (c.amount + s.amount)::bigint AS summed,
       coalesce((SELECT sum(d.difference) FROM known_drift AS d WHERE d.account = 'spend:' || k.id
                    AND d.seq >= b.since_seq + (b.since_seq > 0)::integer
                    AND d.seq < o.spend_last_seq), 0)::bigint AS drift
  FROM unnest(cast(:ids AS bigint[])) AS k (id)
  JOIN organization AS o ON o.id = k.id
 CROSS JOIN LATERAL ({closed("spend", "o.spend_month")}) AS c
 CROSS JOIN LATERAL ({sums("spend", **_OPEN)}) AS s
 CROSS JOIN LATERAL (SELECT least(c.since_seq, s.since_seq) AS since_seq) AS b""", usual_s=LONG_S)  # fmt: skip
_LISTED = query("verification.listed", "Count the known gaps of accounts",
    "SELECT account, count(*) AS n FROM listed_gap GROUP BY account")  # fmt: skip
_STOPPED = query("verification.stopped", "Select accounts in quarantine",
    "SELECT account, reason FROM quarantine WHERE released_at IS NULL")  # fmt: skip
_UNRESOLVED = query("verification.unresolved", "Select dead letters that stop an invoice", """
SELECT o.id, 'entry ' || d.entry_id || ' could not be stored: ' || d.reason AS why
  FROM unnest(cast(:ids AS bigint[])) AS o (id)
 CROSS JOIN LATERAL (
       SELECT entry_id, reason FROM dead_letter WHERE resolved_at IS NULL
          AND (organization_id = o.id OR tenant_id IN (SELECT id FROM tenant WHERE organization_id = o.id))
        LIMIT 10) AS d""")  # fmt: skip
_DUE = query("verification.due", "Select tenants of organizations whose tokens are due to be reset", """
SELECT q.tenant_id, t.organization_id FROM tenant_quota AS q JOIN tenant AS t ON t.id = q.tenant_id
 WHERE t.organization_id = ANY(cast(:ids AS bigint[])) AND q.next_reset_at <= now() ORDER BY 1""")  # fmt: skip

# By kind of account: the queries of heads and of sums.
_READS = {
    "tenant": (_TENANTS, _TENANT_SUMS),
    "credits": (_CREDITS, _CREDIT_SUMS),
    "spend": (_SPENDS, _SPEND_SUMS),
}


class Accounts(BudgetUses):
    def __init__(self, engine: AsyncEngine) -> None:
        super().__init__(engine)
        # The last organization of the previous sample; None before the first.
        self._after: int | None = None

    async def owners(self, after: int, count: int) -> list[Owner]:
        """Return up to `count` organizations with ids above `after`, with their tenants."""
        return await self._owners(_EVERY, {"after": after, "n": count})

    async def some_owners(self, count: int) -> list[Owner]:
        """Return the next `count` organizations in rotation, with their tenants.

        The rotation begins at random, so that a program that restarts often does not always check the same
        ones.
        """
        if self._after is None:
            async with translating(self._engine.connect()) as connection:
                self._after = int(await connection.scalar(_ANYBODY) or 0)
        owners = await self.owners(self._after, count)
        if len(owners) < count:
            begun = await self.owners(0, count - len(owners))
            owners += [one for one in begun if one.organization_id <= self._after]
        if owners:
            self._after = owners[-1].organization_id
        return owners

    async def owners_of(self, organization_ids: Sequence[int]) -> Sequence[Owner]:
        """Return the owners of accounts in these organizations, without accounts if none is left."""
        owners = await self._owners(_THESE, {"ids": list(organization_ids), "n": len(organization_ids)})
        there = {owner.organization_id for owner in owners}
        return [
            *owners,
            *(
                Owner(organization_id, ())
                for organization_id in organization_ids
                if organization_id not in there
            ),
        ]

    async def accounts(self, seqs: Mapping[str, int], *, deep: bool) -> dict[str, LedgerAccount]:
        """Return the stored accounts by name, each with its balance at the sequence number in `seqs`.

        With `deep`, the balance is the sum of all movements (of past months, of checkpoints); without, that
        of the last row.
        """
        ledger_accounts: dict[str, LedgerAccount] = {}
        async with translating(self._engine.connect()) as connection:
            await connection.execution_options(isolation_level="REPEATABLE READ")
            listed = {row.account: row.n for row in await connection.execute(_LISTED)}
            stopped = {row.account: row.reason for row in await connection.execute(_STOPPED)}
            for kind in _READS:
                mine = {name: seq for name, seq in seqs.items() if name.startswith(f"{kind}:")}
                for one in await _read(connection, kind, mine, deep=deep):
                    missing = listed.get(one.account, 0)
                    # Missing rows cannot be summed: then the last row's balance is trusted.
                    summed = one.last_row if missing else one.summed
                    ledger_accounts[one.account] = replace(
                        one, listed=missing, summed=summed, stopped=stopped.get(one.account, "")
                    )
        return ledger_accounts

    async def disproved(self, owners: Sequence[Owner], count: int) -> Sequence[Item]:
        """Compute up to `count` random stored sums of these owners' accounts; return those that are wrong."""
        async with translating(self._engine.connect()) as connection:
            accounts = [account for owner in owners for account in owner.accounts]
            return await disproved(connection, accounts, count)

    async def contradictions(self, *, within_s: float) -> Sequence[Item] | None:
        """Return contradictions between stored rows; None if the search takes longer than `within_s` seconds.

        It may take minutes, so it uses a connection of its own.
        """
        async with apart(self._engine) as connection:
            try:
                async with connection.begin_nested():
                    await connection.execute(_WITHIN, {"ms": str(max(1, round(within_s * 1_000)))})
                    found = await violations(connection)
            except DBAPIError as error:
                if sqlstate(error) != QUERY_CANCELED:
                    raise
                return None
        return [
            Item(one.account, DifferenceKind.CONTRADICTION, 0, one.seq or 0, f"{one.invariant}: {one.detail}")
            for one in found
        ]

    async def unresolved(self, organization_ids: Sequence[int]) -> Mapping[int, Sequence[str]]:
        """Return, by organization, the reasons of dead letters that nobody has resolved yet.

        A dead letter is an entry that could not be stored.
        """
        found = defaultdict[int, list[str]](list)
        async with translating(self._engine.connect()) as connection:
            for row in await connection.execute(_UNRESOLVED, {"ids": list(organization_ids)}):
                found[row.id].append(row.why)
        return found

    async def due(self, organization_ids: Sequence[int]) -> Sequence[tuple[int, int]]:
        async with translating(self._engine.connect()) as connection:
            rows = await connection.execute(_DUE, {"ids": list(organization_ids)})
            return [(row.tenant_id, row.organization_id) for row in rows]

    async def _owners(self, query: Any, values: Mapping[str, Any]) -> list[Owner]:
        async with translating(self._engine.connect()) as connection:
            return [Owner(row.id, tuple(row.tenants)) for row in await connection.execute(query, values)]


async def _read(
    connection: AsyncConnection, kind: str, seqs: Mapping[str, int], *, deep: bool
) -> list[LedgerAccount]:
    """Return the ledger's accounts of a kind; `deep` also sums up their rows."""
    if not seqs:
        return []
    heads, sums = _READS[kind]
    values = {"ids": [int(name.partition(":")[2]) for name in seqs], "seqs": list(seqs.values())}
    added: dict[str, Any] = {}
    if deep:
        added = {row.account: row for row in await connection.execute(sums, {"ids": values["ids"]})}
    return [_account(row, added.get(row.account)) for row in await connection.execute(heads, values)]


def _account(row: Any, added: Any) -> LedgerAccount:
    """Return an account as the ledger has it; `added` are the sums of its rows, if they were read."""
    summed = row.last_row
    if added is not None:
        summed = None if added.unlimited and row.last_row is None else added.summed + added.drift
    return LedgerAccount(
        account=row.account,
        head=AccountHead(row.last_seq, row.head),
        found=row.found,
        at_seq=row.at_seq,
        rows=row.last_seq if added is None else added.rows,
        listed=0,
        last_row=row.last_row,
        summed=summed,
    )
