"""What an error of PostgreSQL is about: the server, which is away or has no room, or what was asked of it."""

from __future__ import annotations

import psycopg
from sqlalchemy.exc import InterfaceError, OperationalError, TimeoutError  # noqa: A004  # its own name

from persistence.complaint import origin
from persistence.refusals import QUERY_CANCELED

# Classes of SQLSTATE: no connection, no resources, an operator's intervention, a system error.
EVERYBODYS = ("08", "53", "57", "58")
# Classes of SQLSTATE: bad data, a broken constraint, more than a row or an index holds.
REFUSED = ("22", "23", "54")


def is_away(error: Exception) -> bool:
    """True where it concerns everybody who asks; a refused row concerns nobody else.

    A statement that took longer than it may was about something large: others are as quick as ever.
    """
    found = origin(error)
    if found is not None and found.sqlstate is not None:
        return found.sqlstate != QUERY_CANCELED and found.sqlstate.startswith(EVERYBODYS)
    away = OperationalError, InterfaceError, TimeoutError, psycopg.OperationalError, psycopg.InterfaceError
    return isinstance(error, away)


def refuses_values(error: Exception) -> bool:
    """True where PostgreSQL, or its driver, will never store these values."""
    found = origin(error)
    if found is not None and found.sqlstate is not None:
        return found.sqlstate.startswith(REFUSED)
    return isinstance(found, psycopg.DataError)
