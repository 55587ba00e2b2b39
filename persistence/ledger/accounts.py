"""The state of a batch's accounts in PostgreSQL, and the updates by the batch."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from psycopg import Connection

from gateway.core.accounts.flush_batch import Batch, FlushReport, stream_place
from gateway.core.accounts.outbox import (
    AccountMovement,
    EventFlag,
    EventKind,
    OutboxEntry,
    moved,
    places_before,
)
from gateway.core.model import INTEGER_MAX
from persistence.billing import top_ups
from persistence.ledger import late_units, statements
from persistence.ledger.copying import Place
from persistence.ledger.guard import (
    CREDITS,
    TOKENS,
    UNKNOWN,
    USAGE,
    Head,
    Heads,
    Movement,
    Placed,
    QuarantineReason,
    event_of,
)
from persistence.ledger.rollup import RollupDelta
from persistence.ledger.rows import request_of
from persistence.ledger.statements import bounded

_UNLIMITED, _IN = int(EventFlag.UNLIMITED), int(EventFlag.IN)
_BLOCKED, _MANUAL = int(EventFlag.BLOCKED), int(EventFlag.MANUAL_BLOCK)

# By part: the query for stored rows by account and seq, and the statement that skips a seq left empty.
_STORED = {
    TOKENS: statements.STORED_TOKENS,
    CREDITS: statements.STORED_CREDITS,
    USAGE: statements.STORED_USAGE,
}
_SKIP = {TOKENS: statements.SKIP_QUOTAS, CREDITS: statements.SKIP_CREDITS, USAGE: statements.SKIP_SPENDS}

# The content of a movement: source, amount, balance. Its place is the owner's id and a seq.
Content = tuple[str | None, int, int | None]
Stored = dict[tuple[int, int], Content]


def stand(connection: Connection[Any], batch: Batch) -> Heads:
    """Return the last stored movement of every account of a batch; unusable accounts are marked stopped."""
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
) -> list[QuarantineReason]:
    """Return a fault for each entry in `repeats` that differs from the stored entry with its sequence number.

    Entries in `fresh`, which are about to be stored, count as stored.
    """
    faults = []
    for part in _STORED:
        claims = _claims(repeats, part)
        if not claims:
            continue
        found = _stored(connection, part, [one for _, one, _ in claims])
        wanted = {one.place for _, one, _ in claims}
        found |= {one.place: content for _, one, content in _claims(fresh, part) if one.place in wanted}
        wrong = [claim for claim in claims if found.get(claim[1].place) != claim[2]]
        # A stored entry that differs may be a corrected dead letter: it is recognized by its raw bytes.
        buried = _buried(connection, [placed for placed, _, _ in wrong])
        faults += [
            _conflict(placed, one, found.get(one.place), content)
            for placed, one, content in wrong
            if placed[1][1] not in buried
        ]
    return faults


def count_stored(connection: Connection[Any], placed: Placed) -> int:
    """Return the number of an entry's movements that are stored with exactly its content."""
    return sum(
        _stored(connection, part, [one]).get(one.place) == content
        for part in _STORED
        for _, one, content in _claims([placed], part)
    )


def neighbours(
    connection: Connection[Any], account: str, seq: int
) -> tuple[dict[int, Movement], dict[int, int]]:
    """Return the stored movements at a sequence number and next to it, and the drifts there.

    A drift is a change of the balance without a movement. Both are by sequence number.
    """
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
    """Return the UTC month of a Unix time, as year × 12 + month."""
    moment = datetime.fromtimestamp(seconds, UTC)
    return moment.year * 12 + moment.month


def move(connection: Connection[Any], moves: RollupDelta) -> None:
    """Update accounts and roll-ups by the entries that are stored for the first time."""
    quotas = [_quota(id_, event, moves.resets.get(id_)) for id_, event in sorted(moves.quotas.items())]
    paid = [(id_, e.balance, e.ahead, e.epoch, e.credit_seq) for id_, e in sorted(moves.credits.items())]
    spends = [(id_, e.spent, e.epoch, e.spend_seq, e.at_ms) for id_, e in sorted(moves.spends.items())]
    activated = sorted((e.organization_id, e.service_id, e.source, e.at_ms) for e in moves.activations)
    for statement, rows in (
        (statements.MOVE_QUOTAS, quotas),
        (statements.MOVE_CREDITS, paid),
        (statements.MOVE_SPENDS, spends),
        (statements.ROLL_UP, _added_up(moves.daily)),
        (statements.ROLL_UP_TIERS, _added_up(moves.priced)),
        (late_units.ROLL_UP, _added_up(moves.told)),
        (statements.ACTIVATE, activated),
    ):
        if rows:
            connection.execute(statement, statements.columns_of(rows))


def charge(connection: Connection[Any], moves: RollupDelta) -> None:
    """Charge what the stored movements make billable: tokens used beyond ended plans, and sold credits."""
    if moves.beyond:
        connection.execute(statements.CHARGE_TOKENS, (sorted(moves.beyond),))
    if moves.granted:
        connection.execute(statements.CHARGE_CREDITS, (sorted(moves.granted),))


def top_up(connection: Connection[Any], moves: RollupDelta) -> None:
    """Close the top-up orders whose credits have arrived; order credits for balances at their threshold."""
    if moves.granted:
        connection.execute(top_ups.CLOSE_AFTER, (sorted(moves.granted),))
    if moves.credits:
        connection.execute(top_ups.ORDER_AFTER, (sorted(moves.credits),))


def set_status(connection: Connection[Any], status_changes: Iterable[Placed], moves: RollupDelta) -> None:
    """Store whether tenants are blocked, after entries that block or unblock them by hand.

    A tenant with a later movement is left out.
    """
    last = {}
    for _, (_, _, event) in status_changes:
        assert event is not None
        moved = moves.quotas.get(event.tenant_id)
        if moved is not None and moved.seq > event.seq:
            continue
        last[event.tenant_id] = (bool(event.flags & _BLOCKED), bool(event.flags & _MANUAL))
    if last:
        connection.execute(
            statements.STAND, statements.columns_of([(id_, *flags) for id_, flags in sorted(last.items())])
        )


def finish(connection: Connection[Any], control_ids: Sequence[str], renewed: Iterable[int]) -> None:
    """Mark the control writes in `control_ids` as done, as their movements are stored.

    Tenants whose plan changed, or in `renewed`, get the total of their plan.
    """
    changed: set[int] = set(renewed)
    if control_ids:
        ids = sorted(control_ids)
        connection.execute(statements.FINISH, (ids,))
        changed.update(id_ for (id_,) in connection.execute(statements.CHANGE_PLANS, (ids,)))
    if changed:
        connection.execute(statements.RENEW_TOTALS, (sorted(changed),))


def bury(connection: Connection[Any], dead: Sequence[tuple[Placed, str]], aside: Collection[Place]) -> None:
    """Store entries that cannot become rows as dead letters, in raw bytes, and let their accounts continue.

    An entry in `aside` claimed the sequence number of another entry, so it leaves no gap.
    """
    skipped: dict[int, dict[int, tuple[int, int]]] = {part: {} for part in _SKIP}
    for (partition, (entry_id, packed, event)), reason in dead:
        named: tuple[int | None, ...] = (None,) * 6
        if event is not None:
            epoch, seqs = 0, dict[int, int | None].fromkeys(_SKIP)
            if (partition, entry_id) not in aside:
                epoch = event.epoch if event.epoch <= INTEGER_MAX else 0
                for part, one in moved(event).items():
                    seqs[part] = one.seq
                    skipped[part][one.owner_id] = (epoch, one.seq)
            named = (event.organization_id, event.tenant_id or None, epoch, *seqs.values())
        connection.execute(statements.BURY, (partition, entry_id.decode(), packed, reason, *named))
    for part, statement in _SKIP.items():
        if skipped[part]:
            rows = [(id_, *at) for id_, at in sorted(skipped[part].items())]
            connection.execute(statement, statements.columns_of(rows))


def set_aside(
    connection: Connection[Any], fresh: Iterable[Placed], unreadable: Mapping[tuple[int, bytes], str]
) -> int:
    """Store the raw bytes of entries whose unreadable metadata was replaced; return their number.

    `unreadable` are the reasons by entry.
    """
    kept = 0
    for partition, (entry_id, packed, _) in fresh if unreadable else ():
        reason = unreadable.get((partition, entry_id))
        if reason is not None:
            connection.execute(statements.BURY, (partition, entry_id.decode(), packed, reason, *[None] * 6))
            kept += 1
    return kept


def _quota(tenant_id: int, event: OutboxEntry, reset_ms: int | None) -> tuple[Any, ...]:
    unlimited = event.flags & _UNLIMITED
    return (
        tenant_id, event.used, None if unlimited else event.remaining, event.remaining if unlimited else 0,
        bool(event.flags & _BLOCKED), bool(event.flags & _MANUAL), reset_ms, event.next_reset_ms,
        event.cycle, event.epoch, event.seq,
    )  # fmt: skip


def _added_up(buckets: Mapping[Any, Sequence[int]]) -> list[tuple[Any, ...]]:
    return [(*bucket, *map(bounded, sums)) for bucket, sums in sorted(buckets.items())]


def _claims(entries: Iterable[Placed], part: int) -> list[tuple[Placed, AccountMovement, Content]]:
    claims = []
    for placed in entries:
        event = placed[1][2]
        if event is not None and event.flags & part:
            adjusts = part != TOKENS and event.kind == EventKind.ADJUST
            source = (request_of(event) if adjusts else event.source).lower() or None
            one = moved(event)[part]
            claims.append((placed, one, (source, one.amount, one.balance)))
    return claims


def _stored(connection: Connection[Any], part: int, places: Sequence[AccountMovement]) -> Stored:
    wanted = {"ids": [one.owner_id for one in places], "seqs": [one.seq for one in places]}
    return {(id_, seq): tuple(content) for id_, seq, *content in connection.execute(_STORED[part], wanted)}


def _buried(connection: Connection[Any], missing: Sequence[Placed]) -> set[bytes]:
    if not missing:
        return set()
    rows = [(partition, entry_id.decode()) for partition, (entry_id, _, _) in missing]
    return {bytes(raw) for (raw,) in connection.execute(statements.STORED_DEAD, statements.columns_of(rows))}


def _conflict(placed: Placed, one: AccountMovement, found: object, content: object) -> QuarantineReason:
    partition, (entry_id, _, event) = placed
    assert event is not None
    reason = f"movement {one.seq} is stored as {found}, the outbox says {content}"
    return QuarantineReason("conflict", one.account, partition, entry_id, event, one.seq, one.seq, reason)


# Quarantine: accounts with contradictions are stopped by the writer, and released.
#
# The entries of a stopped account wait in the outbox until a person decides.

# By account: the time (Unix ms) up to which a person accepted contradictions, and the reason.
Accepted = Mapping[str, tuple[float, str]]
ACCEPTABLE = ("conflict", UNKNOWN)


def stopped_accounts(connection: Connection[Any], partitions: Sequence[int]) -> set[str]:
    return {account for (account,) in connection.execute(statements.STOPPED, (list(partitions),))}


def accepted_accounts(connection: Connection[Any], partitions: Sequence[int]) -> Accepted:
    rows = connection.execute(statements.ACCEPTED, (list(partitions),))
    return {account: (float(until_ms), reason) for account, until_ms, reason in rows}


def set_aside_account(faults: Iterable[QuarantineReason], accepted: Accepted) -> dict[Place, str]:
    """Return the entries of those faults that a person has accepted, each with the reason.

    They are set aside instead of stopping their account.
    """
    aside = {}
    for fault in faults:
        until_ms, why = accepted.get(fault.account, (0.0, ""))
        if fault.kind in ACCEPTABLE and stream_place(fault.entry_id)[0] <= until_ms:
            aside[fault.partition, fault.entry_id] = f"{fault.reason}; set aside: {why}"
    return aside


def file_breaks(connection: Connection[Any], fresh: Sequence[Placed], accepted: Accepted) -> None:
    """Store a drift for each account that continues from another balance than the stored rows give.

    This happens after an entry of the account was set aside, as accepted by a person.
    """
    done: set[str] = set()
    for placed in fresh if accepted else ():
        event = event_of(placed)
        for place in places_before(event):
            if place.account in done or place.account not in accepted or place.seq == 0:
                continue
            done.add(place.account)
            around, drifts = neighbours(connection, place.account, place.seq)
            before = around.get(place.seq)
            if before is None or before.balance is None or place.balance is None:
                continue
            if before.month and before.month < month_of(event.at_ms / 1000):
                continue
            difference = place.balance - before.balance - drifts.get(place.seq, 0)
            if difference:
                connection.execute(statements.FILE_DRIFT, (place.account, place.seq, difference))


def quarantine(connection: Connection[Any], faults: Iterable[QuarantineReason]) -> None:
    """Stop accounts until a person or the verifier releases them."""
    for fault in sorted(faults, key=lambda fault: fault.account):
        event = fault.event
        where = (fault.account, fault.partition, event.organization_id, event.tenant_id)
        seqs = (_bounded(event.epoch), fault.stored_seq, _bounded(fault.found_seq))
        why = (fault.kind, fault.behind, fault.entry_id.decode())
        connection.execute(statements.QUARANTINE, (*where, *why, *seqs, fault.reason, _stood(fault)))


def mark_stopped(connection: Connection[Any], report: FlushReport) -> None:
    """Store, for each partition, the newest entry that is deleted from the outbox after this transaction."""
    leaving = {partition: list(ids) for partition, ids in report.acknowledged.items()}
    for (partition, _), ids in report.parked.items():
        leaving.setdefault(partition, []).extend(ids)
    newest = {partition: max(ids, key=stream_place) for partition, ids in leaving.items() if ids}
    if newest:
        partitions = sorted(newest)
        connection.execute(statements.MARK, (partitions, [newest[one].decode() for one in partitions]))


def _stood(fault: QuarantineReason) -> str | None:
    """Return the state of a fault's account before the entry that stopped it, as JSON; None if unknown."""
    for place in places_before(fault.event):
        if place.account == fault.account and abs(place.balance or 0) <= INTEGER_MAX:
            return json.dumps(
                {"balance": place.balance, "cycle": _bounded(place.cycle), "at_ms": place.at_ms}
            )
    return None


def _bounded(number: int) -> int:
    return max(0, min(number, INTEGER_MAX))
