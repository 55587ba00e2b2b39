"""What PostgreSQL complains of, without any row: its code, and the constraint, table and column it names.

The text of an error may quote what is stored or was to be: the DETAIL of a unique violation prints the
key, digests of credentials among them, and bad input is repeated whole. So neither a log, an answer nor
a dead letter has that text; every error that leaves this door is told by this module.
"""

from __future__ import annotations

import re
from typing import Any

import psycopg
from sqlalchemy import Engine, event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

# The class of SQLSTATE whose first line quotes values, those that are bad. Of a broken constraint it names
# the constraint and its table alone.
QUOTING = "22"
_COLUMNS = re.compile(r"Key \((.*?)\)=\(")


def complaint(error: BaseException) -> str:
    """One line about an error of PostgreSQL or of the way to it, fit for anybody's eyes."""
    found = origin(error)
    if found is None or (found.sqlstate is None and isinstance(found, psycopg.OperationalError)):
        return _first_line(str(found or error)) or type(error).__name__
    if found.sqlstate is None:  # the driver's own, which quotes what it could not send or read
        return type(found).__name__
    if found.sqlstate.startswith(QUOTING):
        return " ".join([found.sqlstate, type(found).__name__, *_place(found)])
    return f"{found.sqlstate} {_first_line(found.diag.message_primary or type(found).__name__)}"


def origin(error: BaseException) -> psycopg.Error | None:
    """The driver's error, wrapped or not; None where there is none."""
    found = error.orig if isinstance(error, DBAPIError) else error
    return found if isinstance(found, psycopg.Error) else None


def columns(error: BaseException) -> str:
    """The columns whose values are there already, or missing, by name; empty where they are not told."""
    found = origin(error)
    said = _COLUMNS.match(found.diag.message_detail or "") if found is not None else None
    return said[1] if said is not None else ""


def noun(error: BaseException) -> str:
    """The kind of row that an error is about, such as `token plan`; empty where it is not told."""
    found = origin(error)
    return (found.diag.table_name or "").replace("_", " ") if found is not None else ""


def quiet(engine: Engine | AsyncEngine) -> None:
    """Have every error of an engine say its complaint and nothing else, whoever comes to print it."""
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
