"""Whether a pooler between here and PostgreSQL gives a session to several clients, a transaction at a time.

A keeper keeps nothing in a session, so it may. A backup and an archive cannot do without one: pg_dump sets
what it reads by for its whole session, and would leave that to whoever has the session next.
"""

from __future__ import annotations

from typing import Any

import psycopg

from persistence.engine import CONNECT, plain_url

# A pooler hands out first what it got back last. Where others are quicker, it is asked again.
TRIES = 20
ASK_OWNER = (
    "PostgreSQL is behind a pooler in transaction mode, which has no session for this:"
    " let TOLLKEEPER_DATABASE_OWNER_URL name the server itself"
)


def shares_sessions(url: str) -> bool:
    """Whether two clients that are there at once were seen in one session; psycopg's own errors."""
    with _connected(url) as one:
        # The server's own process, where nobody is between.
        if one.info.backend_pid == _pid(one):
            return False
        with _connected(url) as other:
            return any(_pid(one) == _pid(other) for _ in range(TRIES))


def is_seen_to_share(url: str) -> bool:
    """The same; False where nobody answers, which others say."""
    try:
        return shares_sessions(url)
    except psycopg.Error:
        return False


def _connected(url: str) -> psycopg.Connection[tuple[Any, ...]]:
    return psycopg.connect(plain_url(url), autocommit=True, **CONNECT)


def _pid(connection: psycopg.Connection[tuple[Any, ...]]) -> int:
    row = connection.execute("SELECT pg_backend_pid()").fetchone()
    assert row is not None
    return int(row[0])
