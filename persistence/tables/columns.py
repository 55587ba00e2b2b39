"""The column shapes every table is made of: ids, counts, money, times, JSON.

Counts are bigint and below 2**53, because the counters that produce them are doubles.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    DateTime,
    ForeignKey,
    Identity,
    MetaData,
    Numeric,
    Text,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

from gateway.core.model import INTEGER_MAX

metadata = MetaData(
    naming_convention={
        "pk": "%(table_name)s_pkey",
        "fk": "%(table_name)s_%(column_0_N_name)s_fkey",
        "uq": "%(table_name)s_%(column_0_N_name)s_key",
        "ix": "%(table_name)s_%(column_0_N_name)s_idx",
        "ck": "%(table_name)s_%(constraint_name)s_check",
    }
)


def identity(*, cache: int = 1) -> Column[int]:
    """The primary key of a table people name rows by."""
    return Column("id", BigInteger, Identity(cache=cache), primary_key=True)


def refers(name: str, target: str, *, required: bool = False, index: bool = True) -> Column[int]:
    """A foreign key to another table's id."""
    return Column(name, BigInteger, ForeignKey(f"{target}.id"), nullable=not required, index=index)


def count(name: str, *, required: bool = True, default: int | None = 0) -> Column[int]:
    """An integer from 0 to 2**53 - 1; `required=False` lets null say "none"."""
    bounds = CheckConstraint(f'"{name}" BETWEEN 0 AND {INTEGER_MAX}', name=name)
    server_default = text(str(default)) if required and default is not None else None
    return Column(name, BigInteger, bounds, nullable=not required, server_default=server_default)


def signed(name: str, *, required: bool = True) -> Column[int]:
    """An integer from -(2**53 - 1) to 2**53 - 1: a balance that may be in debt."""
    bounds = CheckConstraint(f'"{name}" BETWEEN -{INTEGER_MAX} AND {INTEGER_MAX}', name=name)
    return Column(
        name, BigInteger, bounds, nullable=not required, server_default=text("0") if required else None
    )


def money(name: str, *, required: bool = False) -> Column[Any]:
    """An amount in the organization's currency, exact."""
    return Column(name, Numeric(28, 10), nullable=not required)


def moment(name: str, *, now: bool = False, required: bool = False) -> Column[Any]:
    """A time with zone; `now` fills it with the transaction's time."""
    return Column(
        name,
        DateTime(timezone=True),
        nullable=not (now or required),
        server_default=text("now()") if now else None,
    )


def one_of(name: str, values: tuple[str, ...], *, default: str | None = None) -> Column[str]:
    """A text that is one of a few words."""
    words = ", ".join(f"'{value}'" for value in values)
    return Column(
        name,
        Text,
        CheckConstraint(f"{name} IN ({words})", name=name),
        nullable=False,
        server_default=text(f"'{default}'") if default is not None else None,
    )


def document(name: str, *, default: str | None = "{}") -> Column[Any]:
    """A JSON value; `default=None` makes it nullable."""
    return Column(
        name,
        JSONB(none_as_null=True),
        nullable=default is None,
        server_default=text(f"'{default}'::jsonb") if default is not None else None,
    )


def line(name: str, *, default: str | None = None) -> Column[str]:
    """A text that is always there."""
    return Column(
        name, Text, nullable=False, server_default=text(f"'{default}'") if default is not None else None
    )
