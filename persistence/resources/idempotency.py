"""Idempotency keys: one write for each key and caller; the first answer is kept for 30 days.

The key is stored in the transaction of the write: both are stored or neither. A request that failed between
its commit and its answer is answered from the committed data, once no request can still be running.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from sqlalchemy import Connection, func, insert, select, update
from sqlalchemy import Row as SqlRow
from sqlalchemy import delete as delete_

from gateway.core.accounts.administration import Claim, Row, StoredReply
from gateway.errors import Conflict
from persistence.tables import idempotency_key

KEPT = timedelta(days=30)
EXPIRED_SWEPT_MAX = 20

_keys = idempotency_key.c


def claim_idempotency(connection: Connection, wanted: Claim) -> StoredReply | None:
    """Claim an idempotency key in this transaction, or return the first answer stored under the key.

    Raise `Conflict` if the key was used for another request, or its first request is still running.
    """
    lock_on = func.hashtextextended(f"{wanted.scope}\n{wanted.key}", 0)
    if not connection.execute(select(func.pg_try_advisory_xact_lock(lock_on))).scalar_one():
        raise _running()
    here = (_keys.actor == wanted.scope, _keys.key == wanted.key)
    _sweep(connection)
    connection.execute(delete_(idempotency_key).where(*here, _keys.expires_at <= func.now()))
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
    return StoredReply(first.status, first.response or {})


def refuse_other(connection: Connection, wanted: Claim) -> None:
    """Raise `Conflict` if an idempotency key was used for another request."""
    here = (_keys.actor == wanted.scope, _keys.key == wanted.key, _keys.expires_at > func.now())
    first = connection.execute(select(idempotency_key).where(*here)).first()
    if first is not None:
        _refuse_other(first, wanted)


def keep_first_answer(connection: Connection, wanted: Claim, body: Row, status: int | None = None) -> None:
    """Store the answer `body` for an idempotency key.

    Without a `status`, it is the answer to give if the process crashes before the write is complete.
    """
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
        delete_(idempotency_key).where(_keys.actor == expired.c.actor, _keys.key == expired.c.key)
    )


def _running() -> Conflict:
    return Conflict("The first request with this Idempotency-Key is still running.")
