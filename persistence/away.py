"""Whether an error says that PostgreSQL is away, or has no room: nothing of what was asked."""

from __future__ import annotations

import psycopg
from sqlalchemy.exc import InterfaceError, OperationalError, TimeoutError  # noqa: A004  # its own name

from persistence.complaint import origin

# Classes of SQLSTATE: no connection, no resources, an operator's intervention, a system error.
EVERYBODYS = ("08", "53", "57", "58")


def is_away(error: Exception) -> bool:
    """True where it concerns everybody who asks; a refused row concerns nobody else."""
    found = origin(error)
    if found is not None and found.sqlstate is not None:
        return found.sqlstate.startswith(EVERYBODYS)
    away = OperationalError, InterfaceError, TimeoutError, psycopg.OperationalError, psycopg.InterfaceError
    return isinstance(error, away)
