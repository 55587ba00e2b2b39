"""Where the accounts of a batch stand in PostgreSQL, and how a batch moves them on."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from psycopg import Connection

from gateway.core.accounts.ledger import Event, EventFlag, EventKind
from gateway.core.accounts.outbox import Batch
from gateway.core.model import INTEGER_MAX
from persistence.ledger import statements
from persistence.ledger.copying import Place
from persistence.ledger.guard import CREDITS, TOKENS, UNKNOWN, USAGE, Fault, Head, Heads, Placed
from persistence.ledger.refill import Movement
from persistence.ledger.rollup import Moves
from persistence.ledger.rows import request_of

_UNLIMITED, _IN = int(EventFlag.UNLIMITED), int(EventFlag.IN)
_BLOCKED, _MANUAL = int(EventFlag.BLOCKED), int(EventFlag.MANUAL_BLOCK)

# Account id and seq to what identifies a movement: source, amount, balance.
Stored = dict[tuple[int, int], tuple[str | None, int, int | None]]


def stand(connection: Connection[Any], batch: Batch) -> Heads:
    """Where every account of the batch stands; quarantined and unknown ones are stopped."""
    tenants, organizations = set(), set()
    for entries in batch.values():
        for _, _, event in entries:
            if event is not None:
                tenants.add(event.tenant_id)
                organizations.add(event.organization_id)
    heads = Heads(
        {id_: Head(f"tenant:{id_}", 0, 0, 0, UNKNOWN) for id_ in tenants},
        {id_: Head(f"credits:{id_}", id_, 0, 0, UNKNOWN) for id_ in organizations},
        {id_: Head(f"spend:{id_}", id_, 0, 0, UNKNOWN) for id_ in organizations},
    )
    rows = connection.execute(statements.TENANTS, (sorted(tenants),))
    for id_, organization_id, epoch, seq in rows:
        heads.tenants[id_] = Head(f"tenant:{id_}", organization_id, epoch, seq)
    rows = connection.execute(statements.ORGANIZATIONS, (sorted(organizations),))
    for id_, credit_epoch, credit_seq, spend_epoch, spend_seq in rows:
        heads.credits[id_] = Head(f"credits:{id_}", id_, credit_epoch, credit_seq)
        heads.spends[id_] = Head(f"spend:{id_}", id_, spend_epoch, spend_seq)
    return heads


def contradictions(
    connection: Connection[Any], repeats: Sequence[Placed], fresh: Sequence[Placed]
) -> list[Fault]:
    """Entries that claim a stored place with other content; `fresh` is about to be stored."""
    faults = []
    for part, prefix, sql in (
        (TOKENS, "tenant", statements.STORED_TOKENS),
        (CREDITS, "credits", statements.STORED_CREDITS),
        (USAGE, "spend", statements.STORED_USAGE),
    ):
        claims = [(placed, *_claim(placed[1][2], part)) for placed in repeats if _carries(placed, part)]
        if not claims:
            continue
        keys = [key for _, key, _ in claims]
        stored: Stored = {
            (id_, seq): (source, amount, balance)
            for id_, seq, source, amount, balance in connection.execute(
                sql, {"ids": [id_ for id_, _ in keys], "seqs": [seq for _, seq in keys]}
            )
        }
        wanted = set(keys)
        stored |= {
            key: content
            for key, content in (_claim(placed[1][2], part) for placed in fresh if _carries(placed, part))
            if key in wanted
        }
        # One stored otherwise may be a letter that was corrected: it is recognised by its own bytes.
        buried = _buried(
            connection, [placed for placed, key, content in claims if stored.get(key) != content]
        )
        for placed, key, content in claims:
            found = stored.get(key)
            if found != content and placed[1][1] not in buried:
                faults.append(_conflict(placed, f"{prefix}:{key[0]}", key[1], found, content))
    return faults


def stored(connection: Connection[Any], placed: Placed) -> int:
    """How many of an entry's movements are rows already, exactly as it says."""
    found = 0
    for part, sql in (
        (TOKENS, statements.STORED_TOKENS),
        (CREDITS, statements.STORED_CREDITS),
        (USAGE, statements.STORED_USAGE),
    ):
        if _carries(placed, part):
            (id_, seq), content = _claim(placed[1][2], part)
            rows = connection.execute(sql, {"ids": [id_], "seqs": [seq]})
            found += sum((source, amount, balance) == content for _, _, source, amount, balance in rows)
    return found


def neighbours(
    connection: Connection[Any], account: str, seq: int
) -> tuple[dict[int, Movement], dict[int, int]]:
    """The movements stored at a place and beside it, and the drifts on file there, by seq."""
    kind, _, number = account.partition(":")
    here = {"id": int(number), "from": seq - 1, "to": seq + 1, "account": account}
    rows = {
        at: Movement(
            account, at, epoch, delta, balance, month_of(moment.timestamp()) if kind == "spend" else 0
        )
        for at, epoch, delta, balance, moment in connection.execute(statements.AROUND[kind], here)
    }
    return rows, dict(map(tuple, connection.execute(statements.DRIFTS_AROUND, here)))


def month_of(seconds: float) -> int:
    """A moment's month, UTC: year × 12 + month."""
    moment = datetime.fromtimestamp(seconds, UTC)
    return moment.year * 12 + moment.month


def move(connection: Connection[Any], moves: Moves) -> None:
    """Bring accounts and roll-ups to where the fresh entries leave them."""
    if moves.quotas:
        rows = [
            _quota(tenant_id, event, moves.resets.get(tenant_id))
            for tenant_id, event in sorted(moves.quotas.items())
        ]
        connection.execute(statements.MOVE_QUOTAS, _columns(rows))
    if moves.credits:
        rows = [(id_, e.balance, e.epoch, e.credit_seq) for id_, e in sorted(moves.credits.items())]
        connection.execute(statements.MOVE_CREDITS, _columns(rows))
    if moves.spends:
        rows = [(id_, e.spent, e.epoch, e.spend_seq, e.at_ms) for id_, e in sorted(moves.spends.items())]
        connection.execute(statements.MOVE_SPENDS, _columns(rows))
    if moves.daily:
        rows = [(*bucket, *sums) for bucket, sums in sorted(moves.daily.items())]
        connection.execute(statements.ROLL_UP, _columns(rows))
    if moves.priced:
        rows = [(*bucket, *sums) for bucket, sums in sorted(moves.priced.items())]
        connection.execute(statements.ROLL_UP_TIERS, _columns(rows))
    if moves.activations:
        rows = [(e.organization_id, e.service_id, e.source, e.at_ms) for e in moves.activations]
        connection.execute(statements.ACTIVATE, _columns(sorted(rows)))


def set_status(connection: Connection[Any], status_changes: Iterable[Placed], moves: Moves) -> None:
    """Blocks and unblocks by hand: how a tenant stands after the last, unless it moved since."""
    last = {}
    for _, (_, _, event) in status_changes:
        assert event is not None
        moved = moves.quotas.get(event.tenant_id)
        if moved is not None and moved.seq > event.seq:
            continue
        last[event.tenant_id] = (bool(event.flags & _BLOCKED), bool(event.flags & _MANUAL))
    if last:
        connection.execute(statements.STAND, _columns([(id_, *flags) for id_, flags in sorted(last.items())]))


def finish(connection: Connection[Any], control_ids: Sequence[str], renewed: Iterable[int]) -> None:
    """Mark control writes done whose movement is stored, and bring changed plans and totals into force."""
    changed: set[int] = set(renewed)
    if control_ids:
        ids = sorted(control_ids)
        connection.execute(statements.FINISH, (ids,))
        changed.update(id_ for (id_,) in connection.execute(statements.CHANGE_PLANS, (ids,)))
    if changed:
        connection.execute(statements.RENEW_TOTALS, (sorted(changed),))


def bury(connection: Connection[Any], dead: Sequence[tuple[Placed, str]], aside: Collection[Place]) -> None:
    """Keep what cannot become rows, raw, and let its accounts go on behind it.

    What was set `aside` had no place of its own: it names whose it is, and leaves no gap.
    """
    tokens: dict[int, tuple[int, int]] = {}
    paid: dict[int, tuple[int, int]] = {}
    spends: dict[int, tuple[int, int]] = {}
    for (partition, (entry_id, packed, event)), reason in dead:
        named: tuple[int | None, ...] = (None,) * 6
        if event is not None:
            epoch = event.epoch if event.epoch <= INTEGER_MAX else 0
            seqs = (
                event.seq if event.flags & TOKENS else None,
                event.credit_seq if event.flags & CREDITS else None,
                event.spend_seq if event.flags & USAGE else None,
            )
            if (partition, entry_id) in aside:
                epoch, seqs = 0, (None, None, None)
            named = (event.organization_id, event.tenant_id or None, epoch, *seqs)
            for skipped, id_, seq in zip(
                (tokens, paid, spends),
                (event.tenant_id, event.organization_id, event.organization_id),
                seqs,
                strict=True,
            ):
                if seq is not None:
                    skipped[id_] = (epoch, seq)
        connection.execute(statements.BURY, (partition, entry_id.decode(), packed, reason, *named))
    for skipped, sql in (
        (tokens, statements.SKIP_QUOTAS),
        (paid, statements.SKIP_CREDITS),
        (spends, statements.SKIP_SPENDS),
    ):
        if skipped:
            connection.execute(sql, _columns([(id_, *at) for id_, at in sorted(skipped.items())]))


def set_aside(
    connection: Connection[Any], fresh: Iterable[Placed], unreadable: Mapping[tuple[int, bytes], str]
) -> int:
    """Keep, raw, the entries stored without their metadata; they are no gap. Answers how many."""
    kept = 0
    for partition, (entry_id, packed, _) in fresh if unreadable else ():
        reason = unreadable.get((partition, entry_id))
        if reason is not None:
            connection.execute(statements.BURY, (partition, entry_id.decode(), packed, reason, *[None] * 6))
            kept += 1
    return kept


def _quota(tenant_id: int, event: Event, reset_ms: int | None) -> tuple[Any, ...]:
    unlimited = event.flags & _UNLIMITED
    return (
        tenant_id, event.used, None if unlimited else event.remaining, event.remaining if unlimited else 0,
        bool(event.flags & _BLOCKED), bool(event.flags & _MANUAL), reset_ms, event.next_reset_ms,
        event.cycle, event.epoch, event.seq,
    )  # fmt: skip


def _bounded(number: int) -> int:
    return max(0, min(number, INTEGER_MAX))


def _carries(placed: Placed, part: int) -> bool:
    event = placed[1][2]
    return event is not None and bool(event.flags & part)


def _claim(event: Event | None, part: int) -> tuple[tuple[int, int], tuple[str | None, int, int | None]]:
    assert event is not None
    source = event.source.lower() or None
    if part != TOKENS and event.kind == EventKind.ADJUST:
        source = request_of(event).lower() or None
    if part == TOKENS:
        balance = None if event.flags & _UNLIMITED else event.remaining
        return (event.tenant_id, event.seq), (source, event.amount, balance)
    if part == CREDITS:
        return (event.organization_id, event.credit_seq), (source, event.credits, event.balance)
    return (event.organization_id, event.spend_seq), (source, event.units, event.spent)


def _buried(connection: Connection[Any], missing: Sequence[Placed]) -> set[bytes]:
    if not missing:
        return set()
    rows = [(partition, entry_id.decode()) for partition, (entry_id, _, _) in missing]
    return {bytes(raw) for (raw,) in connection.execute(statements.STORED_DEAD, _columns(rows))}


def _conflict(placed: Placed, account: str, seq: int, found: object, content: object) -> Fault:
    partition, (entry_id, _, event) = placed
    assert event is not None
    reason = f"movement {seq} is stored as {found}, the outbox says {content}"
    return Fault("conflict", account, partition, entry_id, event, seq, seq, reason)


def _columns(rows: Sequence[tuple[Any, ...]]) -> list[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)]
