"""Ids of rows, each given once, also behind a PostgreSQL that was set back while Redis went on.

Redis stores the newest control write that it was told of (`NewestWrite`). A PostgreSQL without that write is
older than it was, and Redis may know rows by ids that its sequences would give again. So each transaction
that creates rows looks for the write first. If it is missing, all sequences move past the ids in Redis, and
the write is stored again, at a new position: later definitions are newer than those in Redis. A second write
compares rows with what Redis knows, before anything else is pushed: Redis forgets the credentials of rows that
are gone, since nobody could list or revoke them, and gets those that came back.
"""

from __future__ import annotations

from sqlalchemy import Connection

from gateway.core.accounts.definitions import CATALOGUE_ACCOUNT, CREDENTIALS_ACCOUNT
from gateway.core.integrity.recovery import NewestWrite
from persistence.queries import query

# Tables with rows that Redis knows by their ids.
KNOWN_TO_REDIS = ("organization", "tenant", "api_key", "budget", "service", "token_plan", "price")

# Why nothing is created, while nobody knows whether the database was set back.
UNKNOWN = (
    "Redis has not answered since this process started, and may know ids that PostgreSQL would give again: "
    "wait until Redis answers."
)

_KNOWN = query("ids.known", "Select whether a control write is stored",
    "SELECT EXISTS (SELECT FROM control_write WHERE id = cast(:id AS uuid))")  # fmt: skip
# Advisory lock class 7816: one transaction at a time moves the sequences.
_LOCK = query("ids.lock", "Wait to move the ids of rows", "SELECT pg_advisory_xact_lock(7816, 1)")
_MOVE = query("ids.move", "Move the ids of rows past those in Redis", "SELECT move_ids_past(:known)")
_STORE_AGAIN = query("ids.store_again", "Store a lost control write again", f"""
INSERT INTO control_write (id, account, verb)
VALUES (cast(:id AS uuid), '{CATALOGUE_ACCOUNT}', 'define'),
       (gen_random_uuid(), '{CREDENTIALS_ACCOUNT}', 'define')""")  # fmt: skip
_COMPARING = query("ids.comparing", "Select whether rows are to be compared with what Redis knows",
    "SELECT EXISTS (SELECT FROM control_write WHERE account = :account AND state = 'pending')")  # fmt: skip
_HIGHEST = ", ".join(f"(SELECT max(id) FROM {name})" for name in KNOWN_TO_REDIS)
_NEWEST = query("ids.newest", "Select the newest control write, and the highest id in Redis", f"""
SELECT position, id::text, coalesce(greatest({_HIGHEST}), 0)
  FROM control_write ORDER BY position DESC LIMIT 1""")  # fmt: skip


def keep_ahead(connection: Connection, known: NewestWrite | None) -> bool:
    """Move the sequences past the ids in Redis, if this database lacks `known`, the newest write there.

    Return whether they were moved. `known` is None if Redis has no such write, or does not answer.
    """
    if known is None or connection.scalar(_KNOWN, {"id": known.id}):
        return False
    connection.execute(_LOCK)
    if connection.scalar(_KNOWN, {"id": known.id}):
        return False
    connection.execute(_MOVE, {"known": max(known.position, known.highest_id)})
    connection.execute(_STORE_AGAIN, {"id": known.id})
    return True


def is_comparing(connection: Connection) -> bool:
    """Return whether this database was set back, and its rows are not yet compared with what Redis knows."""
    return bool(connection.scalar(_COMPARING, {"account": CREDENTIALS_ACCOUNT}))


def newest_write(connection: Connection) -> NewestWrite | None:
    row = connection.execute(_NEWEST).one_or_none()
    return None if row is None else NewestWrite(*row)
