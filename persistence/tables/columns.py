"""The column shapes every table is made of: ids, integers, money, times, JSON.

Names, types and keys alone: constraints, defaults and indexes stand in the migrations' SQL, which runs.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, Column, DateTime, ForeignKey, Identity, MetaData, Numeric, Text
from sqlalchemy.dialects.postgresql import JSONB

metadata = MetaData(
    naming_convention={
        "pk": "%(table_name)s_pkey",
        "fk": "%(table_name)s_%(column_0_N_name)s_fkey",
        "uq": "%(table_name)s_%(column_0_N_name)s_key",
        "ix": "%(table_name)s_%(column_0_N_name)s_idx",
        "ck": "%(table_name)s_%(constraint_name)s_check",
    }
)


def identity() -> Column[int]:
    """The primary key of a table people name rows by."""
    return Column("id", BigInteger, Identity(), primary_key=True)


def refers(name: str, target: str, *, required: bool = False) -> Column[int]:
    """A foreign key to another table's id."""
    return Column(name, BigInteger, ForeignKey(f"{target}.id"), nullable=not required)


def integer(name: str, *, required: bool = True) -> Column[int]:
    """A count or a balance, within what a double holds exactly; `required=False` lets null say "none"."""
    return Column(name, BigInteger, nullable=not required)


def money(name: str, *, required: bool = False) -> Column[Any]:
    """An amount in the organization's currency, exact."""
    return Column(name, Numeric(28, 10), nullable=not required)


def moment(name: str, *, required: bool = False) -> Column[Any]:
    """A time with zone."""
    return Column(name, DateTime(timezone=True), nullable=not required)


def document(name: str, *, required: bool = True) -> Column[Any]:
    """A JSON value."""
    return Column(name, JSONB(none_as_null=True), nullable=not required)


def line(name: str) -> Column[str]:
    """A text that is always there."""
    return Column(name, Text, nullable=False)
