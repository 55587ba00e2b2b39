"""All tables of the database, read from `schema/tables.sql`: names, column types and keys.

`from persistence.tables import tenant` imports the table `tenant`. Checks and defaults exist in PostgreSQL
only.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    Date,
    DateTime,
    Double,
    FetchedValue,
    ForeignKey,
    ForeignKeyConstraint,
    Identity,
    Integer,
    LargeBinary,
    MetaData,
    Numeric,
    PrimaryKeyConstraint,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    cast,
    literal,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.schema import SchemaItem
from sqlalchemy.types import TypeEngine

from gateway.core.billing.money import NANO

_SQL = (Path(__file__).parent / "schema" / "tables.sql").read_text(encoding="utf-8")
_TABLE = re.compile(r"(?ms)^CREATE TABLE (\w+) \(\n(.*?)^\)")
_COMMENT = re.compile(r"(?m)^ *--.*\n")
# A column or a constraint begins after four blanks; its further lines have more.
_PART = re.compile(r"(?m)^ {4}(?=\S)")
_KEYS = re.compile(
    r"(?:CONSTRAINT (\w+) )?(PRIMARY KEY|UNIQUE|FOREIGN KEY)( NULLS NOT DISTINCT)? \(([^)]+)\)"
    r"(?: REFERENCES (\w+)\(([^)]+)\))?"
)
_COLUMN = re.compile(r'"?(\w+)"? (timestamptz|\w+(?: precision)?)(?:\((\d+),(\d+)\))?(\[\])?')
_REFERS = re.compile(r"REFERENCES (\w+)\((\w+)\)(?: ON DELETE (\w+(?: \w+)?))?")
_TYPES: dict[str, TypeEngine[Any]] = {
    "bigint": BigInteger(), "boolean": Boolean(), "bytea": LargeBinary(), "date": Date(),
    "integer": Integer(), "double precision": Double(), "numeric": Numeric(), "text": Text(),
    "jsonb": JSONB(none_as_null=True), "smallint": SmallInteger(), "timestamptz": DateTime(timezone=True),
    "uuid": Uuid(),
}  # fmt: skip

metadata = MetaData(
    naming_convention={
        "pk": "%(table_name)s_pkey",
        "fk": "%(table_name)s_%(column_0_N_name)s_fkey",
        "uq": "%(table_name)s_%(column_0_N_name)s_key",
    }
)


def _items(body: str) -> Iterator[SchemaItem]:
    """Yield the columns and keys of a table definition."""
    for part in (" ".join(one.split()) for one in _PART.split(_COMMENT.sub("", body))[1:]):
        if key := _KEYS.match(part):
            name, kind, one_null, names, target, to = key.groups()
            columns = names.split(", ")
            if kind == "PRIMARY KEY":
                yield PrimaryKeyConstraint(*columns, name=name)
            elif kind == "UNIQUE":
                yield UniqueConstraint(*columns, name=name, postgresql_nulls_not_distinct=bool(one_null))
            else:
                yield ForeignKeyConstraint(columns, [f"{target}.{one}" for one in to.split(", ")], name=name)
        elif not part.startswith(("CHECK", "CONSTRAINT")):
            yield _column(part)


def _column(part: str) -> Column[Any]:
    """Return SQLAlchemy's column for a column's line of the schema file."""
    match = _COLUMN.match(part)
    assert match is not None, part
    name, word, precision, scale, array = match.groups()
    type_ = Numeric(int(precision), int(scale)) if precision else _TYPES[word]
    refers = _REFERS.search(part)
    references = [ForeignKey(f"{refers[1]}.{refers[2]}", ondelete=refers[3])] if refers else []
    is_key, is_identity = " PRIMARY KEY" in part, " AS IDENTITY" in part
    return Column(
        name,
        ARRAY(type_) if array else type_,
        *([Identity()] if is_identity else []),
        *references,
        server_default=FetchedValue() if " DEFAULT " in part and not is_identity else None,
        primary_key=is_key,
        unique=" UNIQUE" in part or None,
        nullable=not (is_key or is_identity or " NOT NULL" in part),
        autoincrement="auto" if is_identity else False,
    )


for _name, _body in _TABLE.findall(_SQL):
    Table(_name, metadata, *_items(_body))


def __getattr__(name: str) -> Table:
    try:
        return metadata.tables[name]
    except KeyError:
        raise AttributeError(f"there is no table {name}") from None


def money(nano: ColumnElement[int]) -> ColumnElement[Decimal]:
    """Convert nano-units to an amount of the currency, without loss of digits."""
    return cast(nano, Numeric) * literal(Decimal(1) / NANO)
