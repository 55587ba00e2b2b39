"""Accounts whose entries contradict stored rows: stopping them, and releasing them by a person.

Releasing alone checks the same entries again. Accepting a gap stores the missing movements as lost, counted
exactly, and their difference as a row. Accepting a contradiction sets the entries aside as dead letters.
Nothing else ever skips an entry.
"""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import msgspec
from sqlalchemy import (
    ColumnElement,
    Connection,
    Insert,
    Select,
    Table,
    Text,
    and_,
    cast,
    func,
    insert,
    literal,
    literal_column,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from gateway.core.accounts.administration import Actor, Row
from gateway.core.accounts.holds import read_letter
from gateway.core.integrity.reconciliation import (
    DifferenceKind,
    Item,
    PartitionMark,
    ReconciliationSummary,
    Rollback,
)
from gateway.core.integrity.recovery import KnownOtherwise
from gateway.core.times import in_utc
from gateway.errors import Conflict, StoreUnavailable, Unprocessable
from persistence.engine import apart, looking
from persistence.entity import Entity, EntityWrite, alter, id_in, lock, write_of
from persistence.error_mapping import translating
from persistence.ledger import statements
from persistence.ledger.quarantine import OPENS
from persistence.ledger.redrive import correct_entry, finish_control_write, redrive, refuse_charged
from persistence.queries import naming, query
from persistence.resources.audit import BY_PEOPLE, STAFF, person_of
from persistence.tables import (
    admin_token,
    control_write,
    credit_posting,
    dead_letter,
    feature_usage,
    lost_event,
    organization,
    partition_state,
    quarantine,
    reconciliation,
    tenant,
    tenant_quota,
    token_ledger,
    usage_daily,
)

# The person who decided about a row, stored as in the audit log, and as shown to an organization.
#
# The columns are `…by`, `…issuer`, `…identity` and `…person`, after a word of the table's own.

_token = admin_token.c


def decided(actor: Actor, word: str) -> dict[str, object]:
    return {f"{word}_by": actor.scope} | {f"{word}_{name}": one for name, one in person_of(actor).items()}


def source(table: Table, word: str) -> Select[Any]:
    """Return a query for a table's rows with the organization of the token that decided them; null for staff.

    The columns of the decision begin with `word`, such as `released`.
    """
    by = literal("token:", Text) + cast(_token.id, Text) == table.c[f"{word}_by"]
    return select(table, _token.organization_id.label("decider_organization_id")).outerjoin(admin_token, by)


def hide_deciders(word: str) -> Callable[[Row, int], Row]:
    """Return a function that shows a row to an organization: deciders of others are shown as staff.

    The columns of the decision begin with `word`, such as `released`.
    """

    def told_of(row: Row, within: int) -> Row:
        if row[f"{word}_by"] is None or row["decider_organization_id"] == within:
            return row
        return {**row, f"{word}_by": STAFF, **{f"{word}_{name}": None for name in BY_PEOPLE}}

    return told_of


ACCEPTABLE = frozenset({"gap", "conflict", "unknown_account"})

_c = quarantine.c
_OPEN = _c.released_at.is_(None)
# The columns of an account's state: owner; last seq, balance and epoch; for a tenant its cycle.
_quota, _its = tenant_quota.c, organization.c
_HEADS: Mapping[str, tuple[ColumnElement[Any], ...]] = {
    "tenant": (_quota.tenant_id, _quota.last_seq, _quota.tokens_remaining, _quota.epoch, _quota.cycle),
    "credits": (_its.id, _its.credit_last_seq, _its.credit_balance, _its.credit_epoch),
    "spend": (_its.id, _its.spend_last_seq, _its.spent, _its.spend_epoch),
}
_BLOCKED = query(
    "integrity.blocked",
    "Store whether a tenant is blocked",
    """
UPDATE tenant_quota AS q SET is_blocked = q.manual_block
       OR (p.id IS NOT NULL AND coalesce(q.tokens_remaining, 1) <= 0 AND p.overage_policy <> 'bill')
  FROM tenant_quota AS k LEFT JOIN token_plan AS p ON p.id = k.plan_id
 WHERE q.tenant_id = k.tenant_id AND q.tenant_id = :tenant""",
)

# The effect of `tenant block`; a person undoes it by `unblock` once the account may continue.
_REFUSE = query(
    "integrity.refuse",
    "Block tenants for their backlog",
    """
INSERT INTO control_write (id, partition, account, verb, payload)
SELECT gen_random_uuid(), :partition, 'tenant:' || t.id, 'block',
       '{"reason": "too many entries wait behind an account in quarantine", "cause": "backlog"}'::jsonb
  FROM tenant AS t
 WHERE t.id = ANY(:ids) AND t.deleted_at IS NULL
   AND 'block' IS DISTINCT FROM (SELECT w.verb FROM control_write AS w
                                  WHERE w.account = 'tenant:' || t.id AND w.verb IN ('block', 'unblock')
                                    AND w.state <> 'refused'
                                  ORDER BY w.position DESC LIMIT 1)
RETURNING account""",
)


# Later holds are added to earlier ones, which the definitions that were compared contain.
_HOLD = query(
    "integrity.hold",
    "Hold keys and overrides as Redis knows them",
    """
INSERT INTO quarantine AS q (account, partition, organization_id, kind, entry_id, epoch, stored_seq, found_seq,
                             reason, stood)
SELECT 'access:' || k.id, :partition, k.id, 'conflict', '', 0, 0, 0,
       'Redis knows keys as ended, or overrides otherwise, than these rows: PostgreSQL is older than it was', k.stood::jsonb
  FROM unnest(cast(:ids AS bigint[]), cast(:stood AS text[])) AS k (id, stood)
ON CONFLICT (account) WHERE released_at IS NULL DO UPDATE SET stood = jsonb_build_object(
    'keys', (q.stood->'keys') || (excluded.stood->'keys'),
    'overrides', (SELECT coalesce(jsonb_object_agg(id, coalesce(q.stood->'overrides'->id, '{}')
                                                   || coalesce(excluded.stood->'overrides'->id, '{}')), '{}')
                    FROM jsonb_object_keys((q.stood->'overrides') || (excluded.stood->'overrides')) AS id))
RETURNING account""",
)


class Quarantines:
    """The stored positions of partitions, and accounts stopped because stored movements were lost."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def marks(self) -> dict[int, PartitionMark]:
        """Return the marks of partitions."""
        state = partition_state.c
        async with looking(self._engine) as connection:
            statement = select(state.partition, state.last_entry_id, state.epoch, state.older)
            named = naming("integrity.marks", "Select the newest stored entry of each partition")
            rows = await connection.execute(statement, execution_options=named)
            return {
                row.partition: PartitionMark((row.last_entry_id or "").encode(), row.epoch, row.older)
                for row in rows
            }

    async def fell_back(self, partitions: Sequence[int]) -> None:
        """Store that PostgreSQL has lost stored rows of these partitions."""
        rows = [{"partition": partition, "older": True} for partition in sorted(partitions)]
        noted = upsert(partition_state).values(rows)
        noted = noted.on_conflict_do_update(index_elements=["partition"], set_={"older": True})
        named = naming("integrity.fell_back", "Store that partitions have lost rows")
        async with self._engine.begin() as connection:
            await connection.execute(noted, execution_options=named)

    async def catch_up(self, partition: int, entry_id: bytes) -> None:
        """Store that a partition was compared up to an entry, and no longer lacks rows."""
        state = partition_state.c
        async with self._engine.begin() as connection:
            if entry_id:
                named = naming("integrity.mark", "Store the newest entry of a partition")
                await connection.exec_driver_sql(statements.MARK, ([partition], [entry_id.decode()]), named)
            named = naming("integrity.catch_up", "Store that a partition lacks no rows")
            caught_up = update(partition_state).where(state.partition == partition).values(older=False)
            await connection.execute(caught_up, execution_options=named)

    async def stop(self, rollbacks: Sequence[Rollback]) -> list[str]:
        """Stop the accounts in `rollbacks` (quarantine); return those that were not stopped before."""
        rows = [_stop(rollback) for rollback in rollbacks]
        if not rows:
            return []
        made = upsert(quarantine).values(rows).on_conflict_do_nothing().returning(_c.account)
        named = naming("integrity.stop", "Stop accounts")
        async with self._engine.begin() as connection:
            return sorted(await connection.scalars(made, execution_options=named))

    async def hold(self, partition: int, known: Mapping[int, KnownOtherwise]) -> list[str]:
        """Hold keys and overrides of a partition's organizations as Redis knows them; return the accounts."""
        values = {
            "partition": partition, "ids": list(known),
            "stood": [msgspec.json.encode(one).decode() for one in known.values()],
        }  # fmt: skip
        async with self._engine.begin() as connection:
            return sorted(await connection.scalars(_HOLD, values))

    async def refuse(self, tenants: Mapping[int, Sequence[int]]) -> list[str]:
        """Block those of the tenants that are not blocked yet, given by partition; return their accounts."""
        blocked: list[str] = []
        async with self._engine.begin() as connection:
            for partition, ids in sorted(tenants.items()):
                result = await connection.scalars(_REFUSE, {"partition": partition, "ids": sorted(ids)})
                blocked += result
        return sorted(blocked)

    async def stopped_accounts(self) -> set[str]:
        named = naming("integrity.stopped", "Select stopped accounts")
        statement = select(_c.account).where(_OPEN)
        async with looking(self._engine) as connection:
            return set(await connection.scalars(statement, execution_options=named))

    async def stopped(self) -> int:
        async with looking(self._engine) as connection:
            statement = select(func.count()).select_from(quarantine).where(_OPEN)
            named = naming("integrity.count_stopped", "Count stopped accounts")
            return int(await connection.scalar(statement, execution_options=named) or 0)


def release(change: EntityWrite) -> Row:
    """Release a stopped account (`/release`), and the accounts that wait for it.

    With `accept`, missing movements are stored as lost, contradicting entries are set aside, and held keys and
    overrides are as their rows say.
    """
    row = lock(change)
    if row["released_at"] is not None:
        raise Conflict(f"It was released at {in_utc(row['released_at'])}.")
    connection, values = change.connection, change.command.values
    account, accept = str(row["account"]), bool(values.get("accept"))
    if row["opens"] is not None:
        _open_held(change, row, accept=accept)
    if accept and row["kind"] not in ACCEPTABLE:
        raise Conflict(f"It waits for {row['behind']}: release that.")
    whose = and_(_OPEN, or_(_c.account == account, _c.behind == account))
    for partition in sorted(connection.scalars(select(_c.partition).where(whose).distinct())):
        change.hold_flushes(partition)
    reason, by = str(values["reason"]), decided(change.command.actor, "released")
    if accept and row["kind"] == "gap":
        _accept_gap(connection, dict(row), reason, by)
    connection.execute(
        update(quarantine)
        .where(whose)
        .values(
            released_at=func.now(), released_reason=reason,
            resolution="accepted" if accept else "judged", **by,
        )
    )  # fmt: skip
    return change.fetch()


def _open_held(change: EntityWrite, row: Row, *, accept: bool) -> None:
    """Define the held keys and overrides of `row` as their rows say; raise `Conflict` without `accept`."""
    opens: Any = row["opens"]
    if not accept and (opens["keys"] or opens["overrides"]):
        raise Conflict(
            f"A release with accept opens {len(opens['keys'])} keys, and has {len(opens['overrides'])} overrides be"
            " as their rows say: revoke keys first that are to stay refused."
        )
    stood: Any = row["stood"]
    accounts = [f"organization:{row['organization_id']}", *(f"key:{key}" for key in stood["keys"])]
    change.intend(accounts, "define", {}, organization_id=id_in(row, "organization_id"))


def _stop(rollback: Rollback) -> dict[str, Any]:
    """Return the quarantine of an account whose movements a restored database has lost."""
    place, owner = rollback.place, rollback.owner
    kind, _, number = place.account.partition(":")
    gone = f"{rollback.stored_seq + 1} to {place.seq}"
    return {
        "account": place.account, "partition": rollback.partition,
        "organization_id": owner.organization_id,
        "tenant_id": int(number) if kind == "tenant" else None,
        "kind": "gap", "entry_id": "", "epoch": place.epoch,
        "stored_seq": rollback.stored_seq, "found_seq": place.seq + 1,
        "reason": f"movements {gone} were stored once and are gone: PostgreSQL is older than it was",
        "stood": {"balance": place.balance, "cycle": place.cycle, "at_ms": place.at_ms},
    }  # fmt: skip


def _accept_gap(connection: Connection, row: dict[str, Any], reason: str, by: Row) -> None:
    """Store that movements are missing in an account: one row for the last of them has the change of all.

    `row` is the quarantine of the account.
    """
    kind, _, number = str(row["account"]).partition(":")
    owner, last = int(number), row["found_seq"] - 1
    owner_id, *head = _HEADS[kind]
    stored, before, epoch, *cycles = connection.execute(select(*head).where(owner_id == owner)).one()
    if stored >= last:
        return  # the missing movements are stored by now
    # If the entry has no earlier state of the account, reconciliation corrects the balance.
    stood = row["stood"] or {"balance": before, "cycle": 0, "at_ms": None}
    after, at = stood["balance"], datetime.now(UTC)
    if stood["at_ms"]:
        at = datetime.fromtimestamp(stood["at_ms"] / 1000, UTC)
    difference = (after or 0) - (before or 0)
    first, epoch = stored + 1, max(epoch, row["epoch"])
    detail = {
        "quarantine": row["id"], "difference": difference, "reason": reason,
        "by": by["released_by"], "person": by["released_person"],
    }  # fmt: skip
    connection.execute(
        insert(lost_event).values(
            account=row["account"], partition=row["partition"], epoch=epoch, first_seq=first,
            last_seq=last, detail=detail,
        )
    )  # fmt: skip
    metadata = {"reason": reason, "lost": {"from": first, "to": last}}
    here: dict[str, Any] = {"epoch": epoch, "seq": last, "metadata": metadata}
    cycles = [max(cycle, stood["cycle"] or 0) for cycle in cycles]
    moved: dict[Any, Any] = dict(zip(head, (last, after, epoch, *cycles), strict=True))
    if kind == "tenant":
        made = insert(token_ledger).values(
            tenant_id=owner, transaction_type="adjust", amount=abs(difference),
            direction="IN" if difference >= 0 else "OUT", total_remaining=after, created_at=at,
            cycle=cycles[0], **here,
        )  # fmt: skip
        moved["updated_at"] = func.now()
    elif kind == "credits":
        made = insert(credit_posting).values(
            organization_id=owner, kind="correction", amount=difference, balance_after=after, created_at=at,
            **here,
        )  # fmt: skip
    else:
        made = _spend_row(connection, owner, at, {**here, "spend": difference, "spent_after": after or 0})
        moved["spend_month"] = at.date().replace(day=1)
    connection.execute(made)
    connection.execute(update(owner_id.table).where(owner_id == owner).values(moved))
    if kind == "tenant":
        connection.execute(_BLOCKED, {"tenant": owner})


def _spend_row(connection: Connection, owner: int, at: datetime, here: dict[str, Any]) -> Insert:
    """Return the INSERT of a movement of spend that bills nothing, after storing its day."""
    first_tenant = select(func.min(tenant.c.id)).where(tenant.c.organization_id == owner)
    tenant_id = connection.execute(first_tenant).scalar_one()
    day = {"tenant_id": tenant_id, "day": at.date(), "service_id": 0, "organization_id": owner}
    connection.execute(upsert(usage_daily).values(day).on_conflict_do_nothing())
    return insert(feature_usage).values(
        organization_id=owner, tenant_id=tenant_id, timestamp=at, usage_amount=0, **here
    )


QUARANTINE_SUBJECT = Entity(
    quarantine,
    source=source(quarantine, "released").add_columns(literal_column(OPENS).label("opens")),
    told=hide_deciders("released"),
    conditions={"released": lambda wanted: _c.released_at.is_not(None) if wanted else _OPEN},
    verbs={"release": release},
)


# Dead letters: entries that could not become rows, and settlements that may be stored or not.
#
# They are listed, retried, or resolved with a reason. A dead letter keeps its raw bytes for ever. Resolving
# one leaves a listed gap in its account, with the reason; a redrive fills the gap, once.

_OWNER = text("SELECT id FROM organization WHERE id = :organization AND deleted_at IS NULL")


def drive_again(change: EntityWrite) -> Row:
    """Store a dead letter (an entry that could not be stored) with the corrections sent (`/redrive`)."""
    letter = _open(change)
    if late := _late(letter):
        _charge_late(change, letter, *late)
        return _close(change, "redriven", change.command.values.get("reason"))
    if change.within not in {None, correct_entry(letter, change.command.values).organization_id}:
        raise Unprocessable(errors=(("raw", f"must be an entry of organization {change.within}"),))
    change.hold_flushes(letter["partition"])
    redrive(change.connection, letter, change.command.values, change.partition_of)
    return _close(change, "redriven", change.command.values.get("reason"))


def resolve(change: EntityWrite) -> Row:
    """Resolve the dead letter without storing it (`/resolve`), with a reason; it blocks invoices no more."""
    letter = _open(change)
    if _late(letter) is None:
        finish_control_write(change.connection, letter)
    return _close(change, "resolved", change.command.values["reason"])


def _late(letter: Row) -> tuple[str, bytes] | None:
    raw = letter["raw"]
    assert isinstance(raw, bytes)
    return read_letter(raw)


def _charge_late(change: EntityWrite, letter: Row, request_id: str, record: bytes) -> None:
    """Store the control write that charges a late settlement, once, as the request id is its id."""
    given = [name for name in ("changes", "raw") if change.command.values.get(name) is not None]
    if given:
        raise Unprocessable(errors=tuple((one, "must be left out: it is a settlement") for one in given))
    change.hold_flushes(letter["partition"])
    refuse_charged(change.connection, request_id)
    owner = change.connection.execute(_OWNER, {"organization": letter["organization_id"]}).scalar()
    if owner is None:
        raise Conflict(f"There is no organization {letter['organization_id']}: resolve it instead.")
    payload = {"record": base64.b64encode(record).decode()}
    change.intend_all(
        [write_of(change.partition_of(owner), f"organization:{owner}", "late", payload, UUID(request_id))]
    )


def _open(change: EntityWrite) -> Row:
    letter = lock(change)
    if letter["resolved_at"] is not None:
        raise Conflict(f"It was {letter['resolution']} at {in_utc(letter['resolved_at'])}.")
    return letter


def _close(change: EntityWrite, resolution: str, reason: object) -> Row:
    alter(
        change,
        {
            "resolved_at": func.now(),
            "resolution": resolution,
            **decided(change.command.actor, "resolved"),
            "resolved_reason": reason,
        },
    )
    return change.fetch()


_resolved = dead_letter.c.resolved_at.is_not(None)

DEAD_LETTER_SUBJECT = Entity(
    dead_letter,
    source=source(dead_letter, "resolved"),
    told=hide_deciders("resolved"),
    conditions={"resolved": lambda wanted: _resolved if wanted else ~_resolved},
    verbs={"redrive": drive_again, "resolve": resolve},
)


def _batch_row(_: EntityWrite) -> Row:
    """Return the row for the audit entry of a whole batch of decisions; each also has its own entry."""
    return {"id": "many"}


MANY_DEAD_LETTERS = Entity(dead_letter, verbs={"decide": _batch_row})
# Accounts that no program can read are rebuilt in Redis alone: the audit log names who did it.
COUNTERS_SUBJECT = Entity(dead_letter, verbs={"rebuild": _batch_row})


# Results of reconciliations, and repairs: a stored drift, and the control write that corrects it.

ITEMS_KEPT_MAX = 1_000
# Advisory lock class 7813: the keeper that compares all accounts.
_TURN = text("SELECT pg_try_advisory_xact_lock(7813, 1)")
# The server's limits on idle or long transactions would release the lock before the run ends.
_UNBOUND = text("""
SELECT set_config('idle_in_transaction_session_timeout', '0', true),
       CASE WHEN current_setting('server_version_num')::integer >= 170000
            THEN set_config('transaction_timeout', '0', true) END""")

# Rows whose balance differs from the previous balance plus their amount, except for stored drifts.
_BREAKS = text("""
SELECT first_seq - 1 AS seq, balance - before - delta - filed AS difference FROM (
    SELECT m.seq, m.first_seq, m.delta, coalesce(m.balance, 0) AS balance, coalesce(d.difference, 0) AS filed,
           m.balance IS NULL AND lag(m.balance) OVER w IS NULL AS unlimited,
           CASE WHEN m.begins THEN 0 ELSE coalesce(lag(m.balance) OVER w, 0) END AS before
      -- spend starts again from zero each month
      FROM (SELECT *, account LIKE 'spend:%'
                   AND lag(date_trunc('month', at AT TIME ZONE 'UTC')) OVER (ORDER BY seq)
                     < date_trunc('month', at AT TIME ZONE 'UTC') AS begins
              FROM account_movement WHERE account = :account) AS m CROSS JOIN LATERAL (
           SELECT sum(difference) AS difference FROM known_drift
            WHERE account = m.account AND seq < m.seq
              AND seq >= CASE WHEN m.begins THEN m.first_seq ELSE m.first_seq - 1 END) AS d
    WINDOW w AS (ORDER BY m.seq)) AS movement
 WHERE NOT unlimited AND balance - before - delta - filed <> 0 ORDER BY seq""")
_FILE = text("""
INSERT INTO known_drift (account, seq, difference, control_write_id)
VALUES (:account, :seq, :difference, :write)
ON CONFLICT (account, seq) DO UPDATE SET difference = known_drift.difference + excluded.difference""")


def _adjustment(correction: int) -> dict[str, object]:
    """Return the payload of an `adjust` that moves a tenant's tokens by so many."""
    direction = "IN" if correction >= 0 else "OUT"
    return {"amount": abs(correction), "direction": direction, "reason": "reconciliation"}


class ReconciliationResults:
    def __init__(self, engine: AsyncEngine, partition_of: Callable[[int], int]) -> None:
        self._engine = engine
        self._partition_of = partition_of

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[bool]:
        """Acquire the lock for comparing all accounts; yield False if another keeper has it.

        Runs take minutes, so the lock uses a separate connection.
        """
        done = False
        try:
            async with apart(self._engine) as connection:
                await connection.execute(_UNBOUND)
                yield bool(await connection.scalar(_TURN))
                done = True
        except (SQLAlchemyError, StoreUnavailable):
            if not done:  # else the lock is not needed any more
                raise

    async def keep(self, started: datetime, finished: datetime, summary: ReconciliationSummary) -> Row:
        values: dict[str, Any] = {
            "started_at": started,
            "finished_at": finished,
            "checked": summary.checked,
            "drift_tokens": summary.drift_tokens,
            "drift_credits": summary.drift_credits,
            "pending": summary.pending,
            "items": [_render_item(item) for item in (*summary.items[:ITEMS_KEPT_MAX], *_more(summary))],
        }
        async with translating(self._engine.begin()) as connection:
            made = insert(reconciliation).values(values).returning(reconciliation)
            return dict((await connection.execute(made)).mappings().one())

    async def last(self) -> Row | None:
        """Return the result of the last reconciliation; None if there is none."""
        newest = select(reconciliation).order_by(reconciliation.c.id.desc()).limit(1)
        async with translating(self._engine.connect()) as connection:
            row = (await connection.execute(newest)).mappings().first()
        return dict(row) if row is not None else None

    async def last_deep_start(self) -> datetime | None:
        """Return the start of the last reconciliation that compared all rows; None if there is none."""
        all_asked = ~reconciliation.c["items"].contains([{"kind": DifferenceKind.UNASKED.value}])
        newest = (
            select(reconciliation.c.started_at).where(all_asked).order_by(reconciliation.c.id.desc()).limit(1)
        )
        async with translating(self._engine.connect()) as connection:
            named = naming("reconciliations.last_deep", "Select when all rows were last compared")
            return await connection.scalar(newest, execution_options=named)

    async def repair(self, item: Item) -> None:
        """Store a drift (a difference from the ledger) and the control write that corrects it.

        The ledger is right: the counters are moved to the sum of its movements, by an `adjust` (tokens) or a
        correction (credits), a row like any other. If only PostgreSQL's own balance is wrong, the row has the
        amount 0 and updates the balance. Spend of a month is a measure that nobody bills: its drift is only
        stored.
        """
        kind, _, number = item.account.partition(":")
        async with translating(self._engine.begin()) as connection:
            if kind == "spend":
                await _file(connection, item, None)
                return
            write_id, owner = uuid4(), int(number)
            write: dict[str, object] = {
                "account": f"organization:{owner}", "verb": "credits", "payload": {"amount": item.correction},
            }  # fmt: skip
            if kind == "tenant":
                of_tenant = select(tenant.c.organization_id).where(tenant.c.id == owner)
                owner = int((await connection.execute(of_tenant)).scalar_one())
                write = {"account": item.account, "verb": "adjust", "payload": _adjustment(item.correction)}
            await _file(connection, item, write_id)
            values = {"id": write_id, "partition": self._partition_of(owner), **write}
            await connection.execute(insert(control_write).values(**values))


async def _file(connection: AsyncConnection, item: Item, write_id: UUID | None) -> None:
    """Store drifts (changes of a balance without a movement) for the difference in `item`.

    They are where the rows break, and for the rest after the last row.
    """
    breaks = [
        (row.seq, row.difference) for row in await connection.execute(_BREAKS, {"account": item.account})
    ]
    rest = -item.correction - sum(difference for _, difference in breaks)
    if rest:
        breaks.append((item.seq, rest))
    for seq, difference in breaks:
        values = {"account": item.account, "seq": seq, "difference": difference, "write": write_id}
        await connection.execute(_FILE, values)


def _more(summary: ReconciliationSummary) -> Sequence[Item]:
    left = len(summary.items) - ITEMS_KEPT_MAX
    detail = f"{left} more are not kept: put these right, and compare again"
    return [Item("rows", DifferenceKind.MORE, 0, 0, detail)] if left > 0 else []


def _render_item(item: Item) -> dict[str, object]:
    return {name: value for name, value in asdict(item).items() if name != "correction"}


# A person requests a run: the request is audited now, the result is stored when the run ends.
RECONCILIATION_SUBJECT = Entity(reconciliation, time="started_at", verbs={"run": lambda _: {"id": "now"}})
