"""What a refusal means to who asked: of PostgreSQL, told as those of the product, and of the counters."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from uuid import UUID

from sqlalchemy import Connection, TextClause, select, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.errors import Conflict, Overloaded, StoreUnavailable, TollkeeperError, TookTooLong, Unprocessable
from persistence.complaint import columns, noun, origin
from persistence.tables import control_write

TRY_AGAIN = frozenset({"40001", "40P01"})
# It took longer than a statement may, or was left.
QUERY_CANCELED = "57014"
# A lock was not had within `lock_timeout`: what bounds one wait of a transaction, and no other of it.
LOCK_NOT_AVAILABLE = "55P03"
_LOCK_WAIT = text("SELECT set_config('lock_timeout', :wait, true)")
_STATEMENTS_WITHIN = text("SELECT set_config('statement_timeout', :within, true)")
_LOCK_WAIT_AS_EVER = text("SET LOCAL lock_timeout TO DEFAULT")


def sqlstate(error: BaseException) -> str:
    """The code PostgreSQL gave an error; empty where it gave none."""
    found = origin(error)
    return (found.sqlstate or "") if found is not None else ""


def lock_within(
    connection: Connection, lock: TextClause, values: Mapping[str, object], wait_s: int, taken: str
) -> None:
    """Have a lock until the transaction ends; `Overloaded` says `taken` where another has it for so long."""
    connection.execute(_LOCK_WAIT, {"wait": f"{wait_s}s"})
    try:
        connection.execute(lock, values)
    except SQLAlchemyError as error:
        if sqlstate(error) != LOCK_NOT_AVAILABLE:
            raise
        raise Overloaded(f"{taken}: try again in a while.") from error
    connection.execute(_LOCK_WAIT_AS_EVER)


def statements_within(connection: Connection, seconds: float) -> None:
    """Let no statement of the transaction take longer from now on: `TookTooLong`."""
    connection.execute(_STATEMENTS_WITHIN, {"within": f"{seconds * 1000:.0f}ms"})


def translated(error: Exception) -> Exception:
    """Tell a database error as what it means to the caller; one that means nothing to it stays."""
    state = sqlstate(error)
    named = f" ({found})" if (found := columns(error)) else ""
    refusals: dict[str, Callable[[], TollkeeperError]] = {
        "23505": lambda: Conflict(f"There is such a {noun(error) or 'row'} already{named}."),
        "23503": lambda: Conflict(f"Something still refers to this{named}, or what it names is gone."),
        "23001": lambda: Conflict(f"Something still refers to this{named}."),
        "23514": lambda: Unprocessable("A value is out of range."),
        "22003": lambda: Unprocessable("A number is out of range."),
        "22021": lambda: Unprocessable("A text holds characters that cannot be stored."),
        QUERY_CANCELED: TookTooLong,
    }
    if state in refusals:
        return refusals[state]()
    unreachable = state[:2] in {"", "08", "53", "57"} or state in TRY_AGAIN
    if isinstance(error, (DBAPIError, PoolTimeout, OSError)) and unreachable:
        return StoreUnavailable()
    return error


@asynccontextmanager
async def translating(
    connecting: AbstractAsyncContextManager[AsyncConnection],
) -> AsyncIterator[AsyncConnection]:
    """A connection, or a transaction, whose errors are told as what they mean to the caller."""
    try:
        async with connecting as connection:
            yield connection
    except (SQLAlchemyError, OSError) as error:
        raise translated(error) from error


def of_writes(connection: Connection, intents: Sequence[str]) -> str | None:
    """Say why the counters refused one of these control writes; None if they did not."""
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
