"""Stores a dead letter as a row after all: checked like any entry, stored by the same code, once.

It runs in the transaction that resolves the dead letter, under the flusher's lock of the partition. So either
the row is stored and the dead letter closed, or neither.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from io import BytesIO
from typing import Any, cast

import psycopg
from sqlalchemy import Connection
from sqlalchemy.exc import DataError, IntegrityError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.util import await_only

from gateway.core.accounts.administration import Row
from gateway.core.accounts.flush_batch import control_id
from gateway.core.accounts.outbox import EventKind, MalformedEvent, OutboxEntry, attributed, decode, moved
from gateway.core.accounts.refusals import RefusedBatch, RefusedCall, RefusedCount, RefusingLimit, others
from gateway.core.accounts.tags import Tags
from gateway.core.accounts.usage_sums import SUMS
from gateway.core.billing.price_book import KINDS
from gateway.core.times import DAY_MS, moment_of
from gateway.errors import Conflict, LedgerUnavailable, Unprocessable
from persistence.billing.credit_balances import allocate_late
from persistence.error_mapping import complaint, refuses_values
from persistence.keeper.retention import SINCE_BEGAN, times_of
from persistence.ledger import (
    acceptance,
    account_heads,
    accounts,
    rows,
    statements,
    stored_movements,
    usage_rollup,
)
from persistence.ledger.checkpoints import count_again
from persistence.ledger.copying import Copies, Name, Unstorable, Users, columns_of
from persistence.ledger.copying import storable as storable_names
from persistence.ledger.guard import (
    CREDITS,
    UNKNOWN,
    USAGE,
    Movement,
    Placed,
    event_of,
    misfit,
    movements,
    storable,
)
from persistence.ledger.rollup import RollupDelta, add_up
from persistence.ledger.rows import stored_text
from persistence.queries import insert_rows, query
from persistence.tables import call

# Refused calls: rows of the journal, and counts of the roll-ups, stored in one transaction.
#
# A worker numbers its batches: a number that is stored already is skipped, so that a batch counts once. Names
# that callers invent are limited by organization and day; a refused call creates no user.

# Maximum of one organization and day: combinations of user, project, model and tags.
NAMED_A_DAY_MAX = 1_000
# A user, project, model and tags.
CountedName = tuple[int, int, str, Tags]
ORGANIZATIONS_MAX = 10_000
_REFUSED = SUMS.index("refused")
_CLAIM = query("redrive.claim", "Store a refused batch", """
INSERT INTO refused_batch AS b (worker, number) VALUES (cast(:worker AS uuid), :number)
ON CONFLICT (worker) DO UPDATE SET number = excluded.number, stored_at = now()
 WHERE b.number < excluded.number
RETURNING number""")  # fmt: skip
_RUNS = query("redrive.runs", "Select runs by name", """
SELECT DISTINCT ON (tenant_id, name) tenant_id, name, id FROM run
 WHERE (tenant_id, name) IN (SELECT * FROM unnest(cast(:tenants AS bigint[]), cast(:names AS text[])))
 ORDER BY tenant_id, name, created_at DESC""")  # fmt: skip
_PLANS = query("redrive.plans", "Select the plans of tenants", """
SELECT tenant_id, plan_id FROM tenant_quota
 WHERE tenant_id = ANY(cast(:tenants AS bigint[])) AND plan_id IS NOT NULL""")  # fmt: skip
_REFUSED_BY = frozenset(RefusingLimit)
# Of workers that ended long ago: a running one has stored something since, or repeats nothing.
_FORGET = query("redrive.forget", "Delete refused batches of ended workers",
    "DELETE FROM refused_batch WHERE stored_at < now() - interval '30 days'")  # fmt: skip


class RefusedJournal:
    """Stores batches of refused calls."""

    def __init__(self, engine: AsyncEngine, *, named_a_day_max: int = NAMED_A_DAY_MAX) -> None:
        self._engine = engine
        self._named = RefusalNames(named_a_day_max)

    async def store(self, batches: Sequence[RefusedBatch]) -> int:
        """Store the batches that are not stored yet; return the number of calls counted.

        Raise `LedgerUnavailable` if PostgreSQL cannot store them now. Raise PostgreSQL's error if it refuses
        the values.
        """
        try:
            async with self._engine.begin() as connection:
                return await self._store(connection, batches)
        except SQLAlchemyError as error:
            if refuses_values(error):
                raise
            raise LedgerUnavailable(f"PostgreSQL: {complaint(error)}") from error

    async def _store(self, connection: AsyncConnection, batches: Sequence[RefusedBatch]) -> int:
        """Store counts and calls of refused batches, each batch once; return the number of refusals."""
        # All writers claim batches in this order, so no deadlock can form.
        in_order = sorted(batches, key=lambda batch: (batch.worker, batch.number))
        mine = [
            batch for batch in in_order if rows.is_uuid(batch.worker) and await _claimed(connection, batch)
        ]
        counts = [count for batch in mine for count in batch.counts]
        told = [one for batch in mine for one in batch.calls if rows.is_uuid(one.request_id)]
        named = {(count.organization_id, count.user) for count in counts}
        users = await _read_users(connection, named | {(one.organization_id, one.user) for one in told})
        hours: usage_rollup.Rollup = {}
        for count in counts:
            bucket = self._bucket(count, users)
            hours.setdefault(bucket, [0] * len(SUMS))[_REFUSED] += count.refused
        if hours:
            columns = statements.columns_of(usage_rollup.usage_rows_of(hours))
            await connection.exec_driver_sql(usage_rollup.ROLL_UP_CALLS, tuple(columns))
        if told:
            runs, plans = await _runs(connection, told), await _plans(connection, told)
            calls = [_row(one, users, runs, plans) for one in told]
            await connection.execute(insert_rows(call, calls))
        if any(batch.number == 1 for batch in mine):
            await connection.execute(_FORGET)
        return sum(count.refused for count in counts)

    def _bucket(self, count: RefusedCount, users: dict[Name, int]) -> usage_rollup.UsageBucket:
        """Return the hour, owner and names to count refused calls by; too many names a day share one."""
        owner, hour_ms = count.organization_id, count.hour_ms
        user, project, model = users.get((owner, count.user), 0), count.project_id, stored_text(count.model)
        tags = count.tags
        if not self._named.has_name(owner, hour_ms // DAY_MS, (user, project, model, tags)):
            user, (project, model), tags = 0, others(project, model), ()
        own = (owner, hour_ms, count.tenant_id, count.key_id, user, project, count.service_id, model, "")
        return *own, usage_rollup.tags_json(tags)


class RefusalNames:
    """Names that refused calls are counted by: the first ones of each organization and day."""

    def __init__(self, a_day_max: int) -> None:
        self._a_day_max = a_day_max
        self._known: dict[tuple[int, int], set[CountedName]] = {}

    def has_name(self, organization_id: int, day: int, name: CountedName) -> bool:
        """Return whether calls of this user, project, model and tags are counted by these names.

        New names are accepted up to a maximum a day; later ones are counted together.
        """
        if len(self._known) > ORGANIZATIONS_MAX:
            self._known.clear()
        names = self._known.setdefault((organization_id, day), set())
        if name not in names and len(names) < self._a_day_max:
            names.add(name)
        return name in names


async def _claimed(connection: AsyncConnection, batch: RefusedBatch) -> bool:
    """Claim a batch of refused calls; return False if it was stored before."""
    values = {"worker": batch.worker, "number": batch.number}
    return (await connection.execute(_CLAIM, values)).first() is not None


async def _read_users(connection: AsyncConnection, names: Iterable[Name]) -> dict[Name, int]:
    """Return the ids of existing users by name; a refused call creates no user."""
    asked = storable_names(names)
    if not asked:
        return {}
    found = await connection.exec_driver_sql(statements.KNOW_USERS, columns_of(asked))
    rows_: Iterable[tuple[int, str, int]] = map(tuple, found)
    return {(organization, external_id): id_ for organization, external_id, id_ in rows_}


async def _runs(connection: AsyncConnection, calls: Iterable[RefusedCall]) -> dict[tuple[int, str], int]:
    """Return the ids of the runs that refused calls name, by tenant and name, if the runs are stored."""
    named = {(one.tenant_id, run) for one in calls if (run := stored_text(one.run))}
    if not named:
        return {}
    tenants, names = map(list, zip(*named, strict=True))
    found = await connection.execute(_RUNS, {"tenants": tenants, "names": names})
    return {(row.tenant_id, row.name): row.id for row in found}


async def _plans(connection: AsyncConnection, calls: Iterable[RefusedCall]) -> dict[int, int]:
    """Return the token plans that refused the calls in `calls`, by tenant."""
    tenants = list({one.tenant_id for one in calls if one.refused_kind == RefusingLimit.PLAN})
    if not tenants:
        return {}
    found = await connection.execute(_PLANS, {"tenants": tenants})
    return {row.tenant_id: row.plan_id for row in found}


def _row(
    refused_call: RefusedCall, users: dict[Name, int], runs: dict[tuple[int, str], int], plans: dict[int, int]
) -> Row:
    """Return the journal's row for a refused call."""
    run_id = runs.get((refused_call.tenant_id, stored_text(refused_call.run)))
    looked_up = {RefusingLimit.RUN.value: run_id, RefusingLimit.PLAN.value: plans.get(refused_call.tenant_id)}
    by = refused_call.refused_by or looked_up.get(refused_call.refused_kind)
    kind = refused_call.refused_kind if refused_call.refused_kind in _REFUSED_BY else None
    content, project, version = attributed(refused_call.attribution)
    return {
        **dict.fromkeys((*KINDS, "tokens", "credits", "units"), 0),
        "request_id": refused_call.request_id,
        "created_at": moment_of(refused_call.at_ms),
        "organization_id": refused_call.organization_id,
        "tenant_id": refused_call.tenant_id,
        "api_key_id": refused_call.key_id,
        "user_id": users.get((refused_call.organization_id, refused_call.user)),
        "service_id": refused_call.service_id or None,
        "project_id": int(project) if project else None,
        "content_id": int(content) if content else None,
        "feature_version": stored_text(version) or None,
        **{
            name: stored_text(getattr(refused_call, name)) or None
            for name in ("session", "route", "model", "reason")
        },
        "status": refused_call.status,
        "streamed": refused_call.streamed,
        "estimated": False,
        "duration_ms": refused_call.duration_ms,
        "refused": True,
        "run_id": run_id,
        "refused_kind": kind if by else None,
        "refused_by": None if kind is None else by,
        "tags": refused_call.tags or None,
        "groups": list(refused_call.groups) or None,
    }


# Adapts a transaction of the Admin API's store to the interface that the writer's code uses.
#
# All rows are stored by the same code; this is the part of psycopg's blocking connection that it needs.

Params = Sequence[Any] | Mapping[str, Any]


def blocking(connection: Connection) -> psycopg.Connection[Any]:
    """Return the transaction with the interface of a psycopg connection.

    It may be used only in a function that the store runs, because it blocks.
    """
    return cast("psycopg.Connection[Any]", _SyncConnection(connection))


class _SyncConnection:
    """Psycopg's interface over an SQLAlchemy connection: runs statements and copies rows."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def execute(self, statement: str, parameters: Params | None = None) -> Any:
        """Run a statement with psycopg's placeholders and return its rows."""
        if parameters is None:
            return self._connection.exec_driver_sql(statement)
        named = isinstance(parameters, Mapping)
        return self._connection.exec_driver_sql(statement, parameters if named else tuple(parameters))

    @contextmanager
    def cursor(self) -> Iterator[_CopyCursor]:
        driver = self._connection.connection.driver_connection
        yield _CopyCursor(cast("psycopg.AsyncConnection[Any]", driver))


class _CopyCursor:
    """A cursor that can only copy; the rows are sent when the copy ends."""

    def __init__(self, driver: psycopg.AsyncConnection[Any]) -> None:
        self._driver = driver

    @contextmanager
    def copy(self, statement: str) -> Iterator[BytesIO]:
        rows = BytesIO()
        yield rows
        await_only(self._send(statement, rows.getvalue()))

    async def _send(self, statement: str, rows: bytes) -> None:
        async with self._driver.cursor() as cursor, cursor.copy(statement.encode()) as copy:
            await copy.write(rows)


# A request's charged call, or a pending charge for it.
_CALLED = f"""
SELECT 1 FROM call WHERE request_id = %(request)s AND created_at >= {SINCE_BEGAN} AND NOT refused
   AND (reason IS DISTINCT FROM 'reclaimed' OR tokens <> 0 OR cost > 0)
UNION ALL SELECT 1 FROM control_write WHERE id = %(request)s"""

SEQS = {"tenant": "token_seq", "credits": "credit_seq", "spend": "spend_seq"}


def redrive(connection: Connection, letter: Row, sent: Row, partition_of: Callable[[int], int]) -> None:
    """Store a dead letter (an entry that could not be stored) with the corrections in `sent`, once.

    Raise `Conflict` if it no longer fits its accounts, `Unprocessable` if it still cannot become a row. The
    caller must hold the flusher's lock of the partition.
    """
    event = correct_entry(letter, sent)
    plain = blocking(connection)
    partition = int(str(letter["partition"]))
    if partition_of(event.organization_id) != partition:
        raise Conflict(f"Organization {event.organization_id} does not live in partition {partition}.")
    placed: Placed = (partition, (str(letter["entry_id"]).encode(), b"", event))
    if not storable(event):
        raise Unprocessable("Its numbers are out of range: correct them.")
    heads = account_heads.read_heads(plain, {partition: [placed[1]]})
    parts = movements(event, heads)
    if not parts:
        raise Conflict("It moves no account: there is nothing to store. Resolve it instead.")
    for head, _ in parts:
        if head.stopped == UNKNOWN or head.organization_id != event.organization_id:
            account = head.account.replace(":", " ")
            raise Conflict(f"There is no {account} of organization {event.organization_id}.")
    if stored_movements.count_stored(plain, placed) == len(parts):
        return
    own = {head.account: letter[SEQS[head.account.partition(":")[0]]] for head, _ in parts}
    for (head, seq), movement in zip(parts, _movements(event), strict=True):
        around, drifts = acceptance.neighbours(plain, head.account, seq)
        why = misfit(movement, head.seq, around, drifts, listed=own[head.account] == seq)
        if why is not None:
            raise Conflict(f"It does not fit: {why}.")
    _refuse_twice(plain, event)
    _store(plain, placed, {head.account: head.seq for head, _ in parts})
    count_again(connection, [(head.account, seq) for head, seq in parts])
    if event.flags & CREDITS:
        allocate_late(connection, event.organization_id, event.credit_seq)


def refuse_charged(connection: Connection, request_id: str) -> None:
    """Raise `Conflict` if a late settlement's request is charged already, or a charge is pending."""
    plain = blocking(connection)
    _refuse_moved(plain, request_id)
    if plain.execute(_CALLED, {"request": request_id, **times_of([request_id])}).fetchone():
        raise Conflict(f"Request {request_id} is charged already: resolve it instead.")


def correct_entry(letter: Row, sent: Row) -> OutboxEntry:
    """Return the entry of a dead letter with the sent corrections: a whole new entry, or some fields."""
    raw = letter["raw"]
    assert isinstance(raw, bytes)
    if sent.get("raw") is not None:
        raw = base64.b64decode(str(sent["raw"]), validate=True)
    try:
        event = decode(raw)
        EventKind(event.kind)
    except (MalformedEvent, ValueError) as error:
        field = "raw" if sent.get("raw") is not None else "changes"
        raise Unprocessable(
            f"The entry cannot be read ({error}): send it whole, as `raw`.", ((field, "cannot be read"),)
        ) from error
    changes = sent.get("changes")
    facts: dict[str, Any] = dict(changes) if isinstance(changes, Mapping) else {}
    if "metadata" in facts:
        facts["metadata"] = json.dumps(facts["metadata"]).encode() if facts["metadata"] is not None else b""
    event = replace(event, **facts)
    for name in SEQS.values():
        named = letter[name]
        if named is not None and named != getattr(event, "seq" if name == "token_seq" else name):
            raise Conflict(f"The dead letter's {name} is {named}: a correction cannot move it.")
    return event


def finish_control_write(connection: Connection, letter: Row) -> None:
    """Mark the control write that a dead letter carries as done, so that it is not applied again."""
    raw = letter["raw"]
    assert isinstance(raw, bytes)
    try:
        id_ = control_id(decode(raw))
    except MalformedEvent:
        return
    if rows.is_uuid(id_):
        accounts.finish(blocking(connection), [id_], ())


def _movements(event: OutboxEntry) -> list[Movement]:
    """Return the movements of an entry, one for each account, in the order of `guard.movements`."""
    month = acceptance.month_of(event.at_ms // 1000)
    return [
        Movement(one.account, one.seq, event.epoch, one.delta, one.balance, month if part == USAGE else 0)
        for part, one in moved(event).items()
    ]


def _refuse_twice(connection: psycopg.Connection[Any], event: OutboxEntry) -> None:
    """Raise `Conflict` if another movement has charged the entry's request meanwhile."""
    if event.kind != EventKind.CONSUME or not rows.is_uuid(event.source) or rows.corrects(event.metadata):
        return
    _refuse_moved(connection, event.source)


def _refuse_moved(connection: psycopg.Connection[Any], request_id: str) -> None:
    values = {"request": request_id, **times_of([request_id])}
    for account, seq in connection.execute(statements.CHARGED, values):
        raise Conflict(
            f"Request {request_id} is charged already, by movement {seq} of {account}: resolve it instead."
        )


def _store(connection: psycopg.Connection[Any], placed: Placed, seqs: Mapping[str, int]) -> None:
    """Store a corrected dead letter with all that follows from it; raise Unprocessable if it still fails."""
    event = event_of(placed)
    try:
        users = Users().resolve(connection, [placed])
        Copies([placed]).write(connection, users)
        moves = _heads(add_up([placed]), event, seqs)
        accounts.move(connection, moves)
        id_ = control_id(event)
        accounts.finish(connection, [id_] if rows.is_uuid(id_) else [], moves.resets)
    except Unstorable as error:
        raise Unprocessable(f"It still cannot be stored: {error.reason}.") from error
    except (psycopg.DataError, psycopg.IntegrityError, DataError, IntegrityError) as error:
        raise Unprocessable(f"PostgreSQL still refuses it: {complaint(error)}.") from error


def _heads(moves: RollupDelta, event: OutboxEntry, seqs: Mapping[str, int]) -> RollupDelta:
    """Remove from `moves` the accounts that have later movements than `event`, and return `moves`.

    `seqs` are the last stored sequence numbers by account.
    """
    if event.seq < seqs.get(f"tenant:{event.tenant_id}", 0):
        moves.quotas.clear()
        moves.resets.clear()
    if event.credit_seq < seqs.get(f"credits:{event.organization_id}", 0):
        moves.credits.clear()
    if event.spend_seq < seqs.get(f"spend:{event.organization_id}", 0):
        moves.spends.clear()
    return moves
