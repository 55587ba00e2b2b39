"""Whether a pooler shares PostgreSQL's sessions between transactions."""

from __future__ import annotations

from typing import Any

import psycopg

from persistence.address import CONNECT, plain_url

# A pooler reuses the session that was returned last. Others may be quicker, so the check is repeated.
TRIES = 20


def shares_sessions(url: str) -> bool:
    """Return whether two clients that are connected at once were seen in the same server session.

    A pooler in transaction mode does so. Errors of psycopg are raised.
    """
    with _connected(url) as one:
        # The server's own process, where nobody is between.
        if one.info.backend_pid == _pid(one):
            return False
        with _connected(url) as other:
            return any(_pid(one) == _pid(other) for _ in range(TRIES))


def is_seen_to_share(url: str) -> bool | None:
    """Return whether a pooler shares sessions, as `shares_sessions` does; None if the check fails."""
    try:
        return shares_sessions(url)
    except psycopg.Error:
        return None


def _connected(url: str) -> psycopg.Connection[tuple[Any, ...]]:
    return psycopg.connect(plain_url(url), autocommit=True, **CONNECT)


def _pid(connection: psycopg.Connection[tuple[Any, ...]]) -> int:
    row = connection.execute("SELECT pg_backend_pid()").fetchone()
    assert row is not None
    return int(row[0])
