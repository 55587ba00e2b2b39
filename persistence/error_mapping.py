"""Translates errors of PostgreSQL, and refusals of the counters, into errors of the product."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any
from uuid import UUID

import psycopg
from sqlalchemy import Connection, Engine, TextClause, event, select, text
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import (
    DBAPIError,
    InterfaceError,
    OperationalError,
    SQLAlchemyError,
    TimeoutError,  # noqa: A004  # loaded where it is needed
)
from sqlalchemy.exc import (
    TimeoutError as PoolTimeout,
)
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from gateway.errors import (
    Conflict,
    Overloaded,
    StoreTimeout,
    StoreUnavailable,
    TollkeeperError,
    Unprocessable,
)
from persistence.tables import control_write

# Errors of PostgreSQL without stored values: the code, and the constraint, table and columns.
#
# The text of an error may quote values: the DETAIL of a unique violation contains the key, even digests of
# credentials, and invalid input is repeated. So no log, answer or dead letter has that text; every error that
# leaves the persistence layer is rendered by this module.

# The class of SQLSTATE whose message quotes invalid values. Messages on constraints name only the
# constraint and its table.
QUOTING = "22"
_COLUMNS = re.compile(r"Key \((.*?)\)=\(")


def complaint(error: BaseException) -> str:
    """Return one line about an error of PostgreSQL or of its connection, without any stored values."""
    cause = origin(error)
    if cause is None or (cause.sqlstate is None and isinstance(cause, psycopg.OperationalError)):
        return _first_line(str(cause or error)) or type(error).__name__
    if cause.sqlstate is None:  # the driver's own, which quotes what it could not send or read
        return type(cause).__name__
    if cause.sqlstate.startswith(QUOTING):
        return " ".join([cause.sqlstate, type(cause).__name__, *_place(cause)])
    return f"{cause.sqlstate} {_first_line(cause.diag.message_primary or type(cause).__name__)}"


def origin(error: BaseException) -> psycopg.Error | None:
    """Return the driver's error, unwrapped from SQLAlchemy's; None if it is another error."""
    found = error.orig if isinstance(error, DBAPIError) else error
    return found if isinstance(found, psycopg.Error) else None


def columns(error: BaseException) -> str:
    """Return the names of the columns with duplicate or missing values; "" if PostgreSQL names none."""
    cause = origin(error)
    said = _COLUMNS.match(cause.diag.message_detail or "") if cause is not None else None
    return said[1] if said is not None else ""


def noun(error: BaseException) -> str:
    """Return the kind of row that an error is about, such as `token plan`; "" if PostgreSQL names none."""
    cause = origin(error)
    return (cause.diag.table_name or "").replace("_", " ") if cause is not None else ""


def quiet(engine: Engine | AsyncEngine) -> None:
    """Reduce every error of an engine to one line without values, wherever the error is printed."""
    event.listen(engine.sync_engine if isinstance(engine, AsyncEngine) else engine, "handle_error", _quieten)


def _quieten(context: ExceptionContext) -> None:
    found: Any = context.original_exception
    said = complaint(found)
    wrapped = context.sqlalchemy_exception
    if isinstance(wrapped, DBAPIError):
        wrapped.args = (f"({type(found).__name__}) {said}",)
    if isinstance(found, psycopg.Error):
        found.args = (said,)


def _place(error: psycopg.Error) -> list[str]:
    told = (
        ("constraint", error.diag.constraint_name), ("column", error.diag.column_name),
        ("of table", error.diag.table_name),
    )  # fmt: skip
    return [f"{what} {name}" for what, name in told if name]


def _first_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[0]


TRY_AGAIN = frozenset({"40001", "40P01"})
# The statement timed out, or was cancelled.
QUERY_CANCELED = "57014"
# The server is a standby, or read-only for this user.
READ_ONLY = "25006"
# A lock was not acquired within `lock_timeout`, which bounds this one wait of the transaction.
LOCK_NOT_AVAILABLE = "55P03"
# Libpq gives no code of an error before there is a connection. These are the texts of PostgreSQL 18
# (`proc.c`, `postinit.c`, `miscinit.c`), in English unless `lc_messages` of the server is another, and of
# PgBouncer (`client.c`).
NO_CONNECTION_LEFT = "53300"
_NO_CONNECTION_LEFT = re.compile(
    "too many clients already|remaining connection slots are reserved|too many connections for (role|database)"
    "|no more connections allowed"
)
_LOCK_WAIT = text("SELECT set_config('lock_timeout', :wait, true)")
_STATEMENTS_WITHIN = text("SELECT set_config('statement_timeout', :within, true)")
_LOCK_WAIT_AS_EVER = text("SET LOCAL lock_timeout TO DEFAULT")


def sqlstate(error: BaseException) -> str:
    """Return PostgreSQL's code of an error; "" if the error has none, and no text that stands for one."""
    cause = origin(error)
    if isinstance(cause, psycopg.OperationalError) and _NO_CONNECTION_LEFT.search(str(cause)):
        return cause.sqlstate or NO_CONNECTION_LEFT
    return (cause.sqlstate or "") if cause is not None else ""


def code_of(error: BaseException) -> str:
    """Return PostgreSQL's code of an error, or of the error that caused it; "" if none has one."""
    cause: BaseException | None = error
    while cause is not None:
        if state := sqlstate(cause):
            return state
        cause = cause.__cause__
    return ""


def lock_within(
    connection: Connection, lock: TextClause, values: Mapping[str, object], wait_s: int, taken: str
) -> None:
    """Acquire a lock until the transaction ends; raise `Overloaded` with the text `taken` after `wait_s`."""
    connection.execute(_LOCK_WAIT, {"wait": f"{wait_s}s"})
    try:
        connection.execute(lock, values)
    except SQLAlchemyError as error:
        if sqlstate(error) != LOCK_NOT_AVAILABLE:
            raise
        raise Overloaded(f"{taken}: try again in a while.") from error
    connection.execute(_LOCK_WAIT_AS_EVER)


def statements_within(connection: Connection, seconds: float) -> None:
    """Limit each later statement of the transaction to `seconds`; a slower one raises `StoreTimeout`."""
    connection.execute(_STATEMENTS_WITHIN, {"within": f"{seconds * 1000:.0f}ms"})


def translate_error(error: Exception) -> Exception:
    """Translate a database error into an error of the API; return other errors unchanged."""
    state = sqlstate(error)
    named = f" ({found})" if (found := columns(error)) else ""
    refusals: dict[str, Callable[[], TollkeeperError]] = {
        "23505": lambda: Conflict(f"This {noun(error) or 'row'} already exists{named}."),
        "23503": lambda: Conflict(f"Something still refers to this{named}, or what it names is gone."),
        "23001": lambda: Conflict(f"Something still refers to this{named}."),
        "23514": lambda: Unprocessable("A value is out of range."),
        "22003": lambda: Unprocessable("A number is out of range."),
        "22021": lambda: Unprocessable("A text holds characters that cannot be stored."),
        QUERY_CANCELED: StoreTimeout,
    }
    if state in refusals:
        return refusals[state]()
    unreachable = state[:2] in {"", "08", "53", "57"} or state in {*TRY_AGAIN, READ_ONLY}
    if isinstance(error, (DBAPIError, PoolTimeout, OSError)) and unreachable:
        return StoreUnavailable(_LACKS.get(state) or _LACKS.get(state[:2]))
    return error


# What a server that answers lacks, by SQLSTATE or its class (PostgreSQL 18, Appendix A).
_LACKS = {
    "53": "PostgreSQL lacks resources; try again in a moment.",
    "53100": "The disk of PostgreSQL is full; nothing can be written until it has room.",
    "53200": "PostgreSQL has no memory left; try again in a moment.",
    NO_CONNECTION_LEFT: "PostgreSQL has no connection left; try again in a moment.",
    READ_ONLY: "PostgreSQL reads only; nothing can be written until its primary answers here.",
}


@asynccontextmanager
async def translating(
    connecting: AbstractAsyncContextManager[AsyncConnection],
) -> AsyncIterator[AsyncConnection]:
    """Yield a connection, or a transaction, whose database errors become errors of the API."""
    try:
        async with connecting as connection:
            yield connection
    except (SQLAlchemyError, OSError) as error:
        raise translate_error(error) from error


def of_writes(connection: Connection, intents: Sequence[str]) -> str | None:
    """Return a message if the counters have refused one of the control writes with these ids; else None."""
    row = connection.execute(
        select(control_write.c.verb, control_write.c.result)
        .where(control_write.c.id.in_([UUID(text) for text in intents]), control_write.c.state == "refused")
        .order_by(control_write.c.position)
        .limit(1)
    ).first()
    if row is None:
        return None
    reason = str(row.result.get("reason") or "") if isinstance(row.result, dict) else ""
    return f"The counters refused {row.verb}: {reason.rstrip('.') or 'no reason was given'}."


# The subject of an error of PostgreSQL: the server (away, or out of resources), or a single request.

# Classes of SQLSTATE: no connection, no resources, an operator's intervention, a system error; and one code.
EVERYBODYS = ("08", "53", "57", "58", READ_ONLY)
# Classes of SQLSTATE: bad data, a broken constraint, more than a row or an index holds.
REFUSED = ("22", "23", "54")


def is_away(error: Exception) -> bool:
    """Return whether an error concerns the whole server, not only this statement or its values.

    A statement that timed out was large: others work as before.
    """
    cause = origin(error)
    if cause is not None and cause.sqlstate is not None:
        return cause.sqlstate != QUERY_CANCELED and cause.sqlstate.startswith(EVERYBODYS)
    away = OperationalError, InterfaceError, TimeoutError, psycopg.OperationalError, psycopg.InterfaceError
    return isinstance(error, away)


def refuses_values(error: Exception) -> bool:
    """Return whether PostgreSQL, or its driver, will never store these values."""
    cause = origin(error)
    if cause is not None and cause.sqlstate is not None:
        return cause.sqlstate.startswith(REFUSED)
    return isinstance(cause, psycopg.DataError)
