#!/usr/bin/env python3
"""The types of `persistence/tables.py`, from the same SQL.

`make docs` writes them to `tables.pyi`, from which mypy knows each table and column by name and type.
"""

from __future__ import annotations

from sqlalchemy import ARRAY, Column, Table, TypedColumns
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.types import TypeEngine

from persistence.tables import metadata

_HEAD = """\
# Made from schema/tables.sql by deploy/tables_stub.py: `make docs` writes it again.
from datetime import date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from sqlalchemy import Column, ColumnElement, MetaData, Table, TypedColumns

metadata: MetaData

def money(nano: ColumnElement[int] | ColumnElement[int | None]) -> ColumnElement[Decimal]: ...

class Columns(TypedColumns):
    __getattr__: None  # type: ignore[assignment, misc]  # SQLAlchemy's accepts any name
"""


def stub() -> str:
    """Return the text of the stub."""
    tables = [metadata.tables[name] for name in sorted(metadata.tables)]
    return _HEAD + "".join(map(_columns_of, tables)) + "\n" + "".join(map(_table, tables))


def _table(table: Table) -> str:
    return f"{table.name}: Table[{_class(table)}]\n"


def _columns_of(table: Table) -> str:
    # A column of the name of a method is reached by `c["items"]` alone.
    columns = [column for column in table.columns if not hasattr(TypedColumns, column.name)]
    lines = [f"    {column.name}: Column[{_type(column)}]\n" for column in columns]
    return f"\nclass {_class(table)}(Columns):\n" + "".join(lines)


def _class(table: Table) -> str:
    return "".join(word.capitalize() for word in table.name.split("_")) + "Columns"


def _type(column: Column[object]) -> str:
    python = _python(column.type)
    return f"{python} | None" if column.nullable else python


def _python(type_: TypeEngine[object]) -> str:
    if isinstance(type_, ARRAY):
        return f"list[{_python(type_.item_type)}]"
    if isinstance(type_, JSONB):
        return "Any"
    return type_.python_type.__name__
