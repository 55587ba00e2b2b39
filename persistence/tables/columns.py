"""The column shapes every table is made of, named once for many columns; a `?` after a name: may be null.

Names, types and keys alone: constraints, defaults and indexes stand in `persistence/schema/tables.sql`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Date,
    DateTime,
    ForeignKey,
    Identity,
    MetaData,
    Numeric,
    SmallInteger,
    Table,
    Text,
    Uuid,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.schema import SchemaItem
from sqlalchemy.types import TypeEngine

Columns = list[Column[Any]]

metadata = MetaData(
    naming_convention={
        "pk": "%(table_name)s_pkey",
        "fk": "%(table_name)s_%(column_0_N_name)s_fkey",
        "uq": "%(table_name)s_%(column_0_N_name)s_key",
    }
)


def table(name: str, *parts: Columns | SchemaItem) -> Table:
    """A table of these columns and keys."""
    items = [item for part in parts for item in (part if isinstance(part, list) else [part])]
    return Table(name, metadata, *items)


def identity() -> Column[int]:
    """The primary key of a table people name rows by."""
    return Column("id", BigInteger, Identity(), primary_key=True)


def refers(name: str, target: str, ondelete: str | None = None) -> Column[int]:
    """A foreign key to another table's id."""
    to = ForeignKey(f"{target}.id", ondelete=ondelete)
    return Column(name.rstrip("?"), BigInteger, to, nullable=name.endswith("?"))


def _shape(type_: TypeEngine[Any]) -> Callable[..., Columns]:
    def columns(*names: str) -> Columns:
        return [Column(name.rstrip("?"), type_, nullable=name.endswith("?")) for name in names]

    return columns


texts, documents, flags = _shape(Text()), _shape(JSONB(none_as_null=True)), _shape(Boolean())
moments, days, uuids = _shape(DateTime(timezone=True)), _shape(Date()), _shape(Uuid())
# Counts, balances and ids: within what a double holds exactly.
integers, small_integers = _shape(BigInteger()), _shape(SmallInteger())
# In the organization's currency, exact.
amounts, prices = _shape(Numeric(28, 10)), _shape(Numeric(28, 12))
# As it was said, with the decimals it was said with.
decimals = _shape(Numeric())
