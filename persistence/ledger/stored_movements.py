"""Comparison of entries with stored movements: an entry that repeats a movement must have its content."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from psycopg import Connection

from gateway.core.accounts.outbox import AccountMovement, EventKind, moved
from persistence.ledger import statements
from persistence.ledger.guard import CREDITS, TOKENS, USAGE, Placed, QuarantineReason
from persistence.ledger.rows import request_of

# By part: the query for stored rows by account and seq.
_STORED = {
    TOKENS: statements.STORED_TOKENS,
    CREDITS: statements.STORED_CREDITS,
    USAGE: statements.STORED_USAGE,
}
# The content of a movement: source, amount, balance. Its place is the owner's id and a seq.
Content = tuple[str | None, int, int | None]
Stored = dict[tuple[int, int], Content]


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
        stored = _stored(connection, part, [movement for _, movement, _ in claims])
        wanted = {movement.place for _, movement, _ in claims}
        stored |= {
            movement.place: content
            for _, movement, content in _claims(fresh, part)
            if movement.place in wanted
        }
        wrong = [claim for claim in claims if stored.get(claim[1].place) != claim[2]]
        # A stored entry that differs may be a corrected dead letter: it is recognized by its raw bytes.
        buried = _buried(connection, [placed for placed, _, _ in wrong])
        faults += [
            _conflict(placed, movement, stored.get(movement.place), content)
            for placed, movement, content in wrong
            if placed[1][1] not in buried
        ]
    return faults


def count_stored(connection: Connection[Any], placed: Placed) -> int:
    """Return the number of an entry's movements that are stored with exactly its content."""
    return sum(
        _stored(connection, part, [movement]).get(movement.place) == content
        for part in _STORED
        for _, movement, content in _claims([placed], part)
    )


def _claims(entries: Iterable[Placed], part: int) -> list[tuple[Placed, AccountMovement, Content]]:
    """Return, for each entry, the movement of an account and the content that it claims."""
    claims = []
    for placed in entries:
        event = placed[1][2]
        if event is not None and event.flags & part:
            adjusts = part != TOKENS and event.kind == EventKind.ADJUST
            source = (request_of(event) if adjusts else event.source).lower() or None
            movement = moved(event)[part]
            claims.append((placed, movement, (source, movement.amount, movement.balance)))
    return claims


def _stored(connection: Connection[Any], part: int, places: Sequence[AccountMovement]) -> Stored:
    wanted = {"ids": [place.owner_id for place in places], "seqs": [place.seq for place in places]}
    return {(id_, seq): tuple(content) for id_, seq, *content in connection.execute(_STORED[part], wanted)}


def _buried(connection: Connection[Any], missing: Sequence[Placed]) -> set[bytes]:
    if not missing:
        return set()
    rows = [(partition, entry_id.decode()) for partition, (entry_id, _, _) in missing]
    return {bytes(raw) for (raw,) in connection.execute(statements.STORED_DEAD, statements.columns_of(rows))}


def _conflict(placed: Placed, movement: AccountMovement, stored: object, content: object) -> QuarantineReason:
    partition, (entry_id, _, event) = placed
    assert event is not None
    reason = f"movement {movement.seq} is stored as {stored}, the outbox says {content}"
    return QuarantineReason(
        "conflict", movement.account, partition, entry_id, event, movement.seq, movement.seq, reason
    )
