"""What models cost: added to and never changed; whoever sets a price has every gateway told."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from json import dumps
from typing import Any
from uuid import uuid4

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    and_,
    collate,
    func,
    insert,
    or_,
    select,
    text,
)
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.core.accounts.administration import Row
from gateway.core.accounts.definitions import PRICES_ACCOUNT
from gateway.core.billing.price_book import BUNDLED, EXACT_NAME, MAKERS, OPERATOR, PREFIX, folded
from gateway.core.billing.vector import BASE_CURRENCY, KINDS
from gateway.errors import Conflict, Unprocessable
from persistence import crud
from persistence.subject import Change, Subject, live
from persistence.tables import control_write, organization, price

# Every gateway holds all of them; of the bundled list some 1,300.
IN_FORCE_MAX = 20_000
# A call has the price of its admission: one that another has taken the place of meanwhile is told as long.
KEPT = timedelta(days=1)

# Advisory lock class 7805: whoever adds prices, so that no two are for the same.
_LOCK = text("SELECT pg_advisory_xact_lock(7805, 0)")
_COLUMNS = ", ".join(column.name for column in price.c if column.name not in {"id", "created_at"})
_PUT_IN = text(
    f"INSERT INTO price ({_COLUMNS}) SELECT {_COLUMNS}"  # noqa: S608  # its own columns
    " FROM jsonb_populate_recordset(NULL::price, cast(:rows AS jsonb))"
)
_ANY_BUNDLED = select(price.c.id).where(price.c.source == BUNDLED).limit(1)
_DEFINE = {"account": PRICES_ACCOUNT, "verb": "define", "payload": {}}
_here = price.c


def _folded(name: ColumnElement[str]) -> ColumnElement[str]:
    """A column's names as `folded` has them."""
    return func.lower(collate(name, "C"))


_provider = _folded(func.coalesce(_here.provider, ""))
_same = (_folded(_here.model), _here.match, _here.currency, _here.source, _provider)


def check_values(change: Change) -> None:
    """`Unprocessable` where a price says nothing, in nobody's currency, or for the same as another."""
    connection, values = change.connection, change.command.values
    connection.execute(_LOCK)
    errors = [*_empty(values), *_unused(connection, str(values["currency"])), *_overlaps(connection, values)]
    if errors:
        raise Unprocessable(errors=tuple(errors))
    refuse_too_many(change.count(price, lambda: in_force_count(connection, change.now)))


def in_force_count(connection: Connection, now: datetime) -> int:
    """How many prices gateways hold."""
    return connection.scalars(select(func.count()).select_from(in_force(now).subquery())).one()


def refuse_too_many(there: int, most: int = IN_FORCE_MAX) -> None:
    """Raise `Conflict` where gateways hold as many prices as they may."""
    if there >= most:
        raise Conflict(f"{most} prices are in force, were a day ago or will be: there cannot be more.")


def define(change: Change, _: Row) -> None:
    """Have every gateway told."""
    change.intend([PRICES_ACCOUNT], "define", {}, organization_id=None)


def _empty(values: Row) -> Iterator[tuple[str, str]]:
    if not any(values.get(name) not in (None, {}) for name in (*KINDS, "request", "tools")):
        yield "input", f"required, unless there is another price: {', '.join(KINDS[1:])}, request or tools"


def _unused(connection: Connection, currency: str) -> Iterator[tuple[str, str]]:
    used = live(organization).where(organization.c.currency == currency).limit(1)
    if currency != BASE_CURRENCY and connection.execute(used).first() is None:
        yield "currency", f"no organization's money is in {currency}"


def _overlaps(connection: Connection, values: Row) -> Iterator[tuple[str, str]]:
    found = select(_here.id).where(
        *(column == value for column, value in zip(_same, _kind(values), strict=True)),
        _here.effective_from == values["effective_from"],
    )
    if (other := connection.execute(found).scalar()) is not None:
        yield "effective_from", f"price {other} is for the same from then on; name another time"


def _kind(values: Row) -> tuple[object, ...]:
    """What a price is for, as the columns of `_same` have it."""
    return (
        folded(str(values["model"])), values.get("match", EXACT_NAME), values["currency"],
        values.get("source", OPERATOR),
        folded(str(values.get("provider") or "")),
    )  # fmt: skip


def in_force(now: datetime) -> Select[Any]:
    """Prices of models known by their names that are in force, were a day ago, or will be."""
    each, columns = _superseded_later_than(now - KEPT)
    known = or_(each.source != BUNDLED, _folded(func.coalesce(each.provider, "")).in_(("", *MAKERS)))
    return columns.where(known)


def candidates(connection: Connection, model: str, currency: str, at: datetime) -> Sequence[Row]:
    """Prices that a model may have at a time: of each kind of price the newest."""
    each, columns = _superseded_later_than(at)
    name, own = folded(model), _folded(each.model)
    matching = or_(
        and_(each.match == EXACT_NAME, own == name),
        and_(each.match == PREFIX, func.starts_with(name, own)),
    )
    found = columns.where(each.currency == currency, each.effective_from <= at, matching)
    return [dict(row) for row in connection.execute(found).mappings()]


def _superseded_later_than(at: datetime) -> tuple[Any, Select[Any]]:
    """Prices without those in whose place another had come; their columns, and a query of them."""
    following = func.lead(_here.effective_from).over(partition_by=_same, order_by=_here.effective_from)
    each = select(price, following.label("following")).subquery().c
    columns = [each[column.name] for column in price.c]
    return each, select(*columns).where(or_(each.following.is_(None), each.following > at))


class PriceTable:
    """The table as a keeper fills it."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def has_bundled(self) -> bool:
        """Whether there are any of the bundled list."""
        async with self._engine.connect() as connection:
            return (await connection.execute(_ANY_BUNDLED)).first() is not None

    async def put_in_bundled(self, rows: Sequence[Row]) -> int:
        """Add these where there are none yet, whoever else does; answers how many were added."""
        document = dumps([{**row, "effective_from": str(row["effective_from"])} for row in rows])
        async with self._engine.begin() as connection:
            await connection.execute(_LOCK)
            if (await connection.execute(_ANY_BUNDLED)).first() is not None:
                return 0
            await connection.execute(_PUT_IN, {"rows": document})
            await connection.execute(insert(control_write).values(id=uuid4(), **_DEFINE))
        return len(rows)


SUBJECT = Subject(
    price,
    time="effective_from",
    conditions={
        "model": lambda value: _folded(_here.model) == folded(str(value)),
        "provider": lambda value: _provider == folded(str(value)),
    },
    verbs={"create": crud.create},
    check_values=check_values,
    define=define,
)
