"""First answers by idempotency key: one write per key and caller, kept for 30 days.

The key is written in the transaction of the write itself: both are there or neither is. A
request that died between its commit and its answer is answered from what was committed, once
no request can still be running.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from sqlalchemy import Connection, delete, func, insert, select, update
from sqlalchemy import Row as SqlRow

from gateway.core.accounts.administration import Claim, Replay, Row
from gateway.errors import Conflict
from persistence.tables import idempotency_key

KEPT = timedelta(days=30)
EXPIRED_SWEPT_MAX = 20

_keys = idempotency_key.c


def claim(connection: Connection, wanted: Claim) -> Replay | None:
    """Take a key for this transaction, or answer what it was answered first.

    Raises `Conflict` where the key stands for another request or its first is still running.
    """
    lock_on = func.hashtextextended(f"{wanted.scope}\n{wanted.key}", 0)
    if not connection.execute(select(func.pg_try_advisory_xact_lock(lock_on))).scalar_one():
        raise _running()
    here = (_keys.actor == wanted.scope, _keys.key == wanted.key)
    _sweep(connection)
    connection.execute(delete(idempotency_key).where(*here, _keys.expires_at <= func.now()))
    since = func.now() - timedelta(seconds=wanted.running_s_max)
    first = connection.execute(
        select(idempotency_key, (_keys.created_at > since).label("recent")).where(*here)
    ).first()
    if first is None:
        connection.execute(
            insert(idempotency_key).values(
                actor=wanted.scope,
                key=wanted.key,
                method=wanted.method,
                path=wanted.path,
                body_digest=wanted.body_digest,
                expires_at=func.now() + KEPT,
            )
        )
        return None
    _refuse_other(first, wanted)
    if first.status is None and first.recent:
        raise _running()
    return Replay(first.status, first.response or {})


def refuse_other(connection: Connection, wanted: Claim) -> None:
    """Raise `Conflict` where a key stands for another request."""
    here = (_keys.actor == wanted.scope, _keys.key == wanted.key, _keys.expires_at > func.now())
    first = connection.execute(select(idempotency_key).where(*here)).first()
    if first is not None:
        _refuse_other(first, wanted)


def keep(connection: Connection, wanted: Claim, body: Row, status: int | None = None) -> None:
    """Keep an answer; without a status it is what would be answered after a crash."""
    connection.execute(
        update(idempotency_key)
        .where(_keys.actor == wanted.scope, _keys.key == wanted.key)
        .values(response=dict(body), status=status)
    )


def _refuse_other(first: SqlRow[Any], wanted: Claim) -> None:
    asked = (wanted.method, wanted.path, wanted.body_digest)
    if (first.method, first.path, first.body_digest) != asked:
        raise Conflict("This Idempotency-Key was used for another request.")


def _sweep(connection: Connection) -> None:
    expired = (
        select(_keys.actor, _keys.key)
        .where(_keys.expires_at <= func.now())
        .order_by(_keys.expires_at)
        .limit(EXPIRED_SWEPT_MAX)
        .with_for_update(skip_locked=True)
        .cte("expired")
    )
    connection.execute(
        delete(idempotency_key).where(_keys.actor == expired.c.actor, _keys.key == expired.c.key)
    )


def _running() -> Conflict:
    return Conflict("The first request with this Idempotency-Key is still running.")
