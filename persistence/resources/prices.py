"""Prices and exchange rates: which are in force, their changes, and their bounds."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from datetime import datetime, timedelta
from json import dumps
from typing import Any
from uuid import uuid4

from sqlalchemy import (
    ARRAY,
    ColumnElement,
    Connection,
    Select,
    Text,
    and_,
    collate,
    exists,
    func,
    insert,
    literal,
    or_,
    select,
)
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.core.accounts.administration import Row
from gateway.core.accounts.definitions import PRICES_ACCOUNT
from gateway.core.billing.hours import BEGIN
from gateway.core.billing.price_book import (
    BASE_CURRENCY,
    BUNDLED,
    EXACT_NAME,
    KINDS,
    OPERATOR,
    PREFIX,
    UNITS,
    PriceBook,
    PriceFound,
    choose_converted,
    folded,
    read_price,
    read_rate,
)
from gateway.core.billing.vector import ExchangeRate
from gateway.core.times import floor_ms
from gateway.errors import Conflict, Unprocessable
from persistence import entity
from persistence.entity import Entity, EntityWrite, live
from persistence.error_mapping import lock_within
from persistence.queries import naming, query
from persistence.tables import control_write, exchange_rate, organization, price

# Every gateway loads all of them; the bundled list has some 1,300.
IN_FORCE_MAX = 20_000
# A call has the price of its admission, so a replaced price stays loaded for this long.
KEPT = timedelta(days=1)

# Advisory lock class 7805: writers of prices, so that no two prices are for the same.
LOCK_PRICES = query("prices.lock", "Wait to write prices", "SELECT pg_advisory_xact_lock(7805, 0)")
# Seconds for which a request waits for them, with a connection that others need.
LOCK_WAIT_S = 5
_COLUMNS = ", ".join(column.name for column in price.c if column.name not in {"id", "created_at"})
_PUT_IN = query(
    "prices.put_in", "Store the bundled prices in a new database",
    f"INSERT INTO price ({_COLUMNS}) SELECT {_COLUMNS}"  # its own columns
    " FROM jsonb_populate_recordset(NULL::price, cast(:rows AS jsonb))",
)  # fmt: skip
_ANY_BUNDLED = (
    select(price.c.id)
    .where(price.c.source == BUNDLED)
    .limit(1)
    .execution_options(**naming("prices.any_bundled", "Select whether bundled prices are stored"))
)
_DEFINE = {"account": PRICES_ACCOUNT, "verb": "define", "payload": {}}
_prices_here = price.c
_amending = price.alias("amending")


def _folded(name: ColumnElement[str]) -> ColumnElement[str]:
    return func.lower(collate(name, "C"))


_provider = _folded(func.coalesce(_prices_here.provider, ""))
_same = (
    _folded(_prices_here.model),
    _prices_here.match,
    _prices_here.currency,
    _prices_here.source,
    _provider,
)


def lock_prices(change: EntityWrite) -> None:
    """Wait for the writers of prices; raise `Overloaded` if that takes long, except for an applied batch."""
    if change.batch is not None:
        change.connection.execute(LOCK_PRICES)
        return
    taken = "Prices are written, or calls are rated again, and that takes long"
    lock_within(change.connection, LOCK_PRICES, {}, LOCK_WAIT_S, taken)


def check_values(change: EntityWrite) -> None:
    """Raise `Unprocessable` for an empty or duplicate price, or one in an unused currency."""
    connection, values = change.connection, change.command.values
    lock_prices(change)
    errors = [*_empty(values), *_unused(connection, str(values["currency"]))]
    same = select(_prices_here.id).where(
        *(column == value for column, value in zip(_same, _kind(values), strict=True)),
        _prices_here.effective_from == values["effective_from"],
    )
    if (other := connection.execute(same).scalar()) is not None:
        message = f"price {other} is for the same from then on; name another time"
        errors.append(("effective_from", message))
    if errors:
        raise Unprocessable(errors=tuple(errors))
    refuse_too_many(change.count(price, lambda: in_force_count(connection, change.now)))


def in_force_count(connection: Connection, now: datetime) -> int:
    return connection.scalars(select(func.count()).select_from(in_force(now).subquery())).one()


def refuse_too_many(there: int, most: int = IN_FORCE_MAX) -> None:
    """Raise `Conflict` if `there`, the number of loaded prices, has reached the maximum `most`."""
    if there >= most:
        raise Conflict(f"{most} prices are in force, were a day ago or will be: there cannot be more.")


def define_price(change: EntityWrite, _: Row) -> None:
    change.intend([PRICES_ACCOUNT], "define", {}, organization_id=None)


def _empty(values: Row) -> Iterator[tuple[str, str]]:
    others = (*KINDS[1:], "request", "tools", "images", *UNITS)
    if not any(values.get(name) not in (None, {}) for name in ("input", *others)):
        yield "input", f"required, unless there is another price: {', '.join(others[:-1])} or {others[-1]}"


def _unused(connection: Connection, currency: str) -> Iterator[tuple[str, str]]:
    used = live(organization).where(organization.c.currency == currency).limit(1)
    based = select(_rates_here.id).where(_rates_here.base == currency).limit(1)
    if currency == BASE_CURRENCY or connection.execute(used).first() or connection.execute(based).first():
        return
    yield "currency", f"no organization's money is in {currency}, and no exchange rate is from it"


def _kind(values: Row) -> tuple[object, ...]:
    return (
        folded(str(values["model"])), values.get("match", EXACT_NAME), values["currency"],
        values.get("source", OPERATOR),
        folded(str(values.get("provider") or "")),
    )  # fmt: skip


def in_force(now: datetime) -> Select[Any]:
    """Return a query for prices that are in force, were a day ago, or will be."""
    statement = _superseded_later_than(now - KEPT)[1]
    return statement.execution_options(**naming("prices.in_force", "Select the prices that are in force"))


def rates_in_force(connection: Connection, at: datetime) -> tuple[ExchangeRate, ...]:
    """Return the exchange rates in force at the time `at` or later."""
    following = func.lead(_rates_here.effective_from).over(
        partition_by=(_rates_here.currency, _rates_here.base), order_by=_rates_here.effective_from
    )
    each = select(exchange_rate, following.label("following")).subquery()
    statement = select(each).where(or_(each.c.following.is_(None), each.c.following > at))
    rates = connection.execute(
        statement, execution_options=naming("prices.rates", "Select exchange rates in force")
    )
    return tuple(read_rate(dict(row)) for row in rates.mappings())


def find_price(
    connection: Connection, model: str, currency: str, at: datetime, provider: str = ""
) -> PriceFound | None:
    """Return the price of a model at the time `at`, in a currency, converted from another if necessary.

    Return None if no price applies.
    """
    rates = [rate for rate in rates_in_force(connection, at) if rate.currency == currency]
    rows = _prices_since(connection, [model], at, [currency, *(rate.base for rate in rates)])
    prices = list(map(read_price, rows.values()))
    found = choose_converted(prices, rates, model, currency, floor_ms(at), provider)
    return None if found is None else PriceFound(found[0], rows[found[0].vector.price_id], found[1])


def read_book(connection: Connection, models: Collection[str], since: datetime) -> PriceBook:
    """Return the prices from a time on that may apply to these model names, in any currency."""
    if not models:
        return PriceBook()
    prices = _prices_since(connection, models, since).values()
    return PriceBook(map(read_price, prices), rates_in_force(connection, since))


def _prices_since(
    connection: Connection, models: Collection[str], since: datetime, currencies: Collection[str] = ()
) -> dict[object, Row]:
    """Return the price rows of these models since a time, by id; without `currencies`, in any currency."""
    each, columns = _superseded_later_than(since)
    names = sorted(set(map(folded, models)))
    own, name = _folded(each.model), func.unnest(literal(names, ARRAY(Text))).column_valued("name")
    statement = columns.where(
        or_(
            and_(each.match == EXACT_NAME, own.in_(names)),
            and_(each.match == PREFIX, exists(select(name).where(func.starts_with(name, own)))),
        )
    )
    if currencies:
        statement = statement.where(each.currency.in_(set(currencies)))
    return {row["id"]: dict(row) for row in connection.execute(statement).mappings()}


def _superseded_later_than(at: datetime) -> tuple[Any, Select[Any]]:
    """Return the columns of prices, and a query for the prices that are not yet replaced at the time `at`."""
    following = func.lead(_prices_here.effective_from).over(
        partition_by=_same, order_by=_prices_here.effective_from
    )
    is_amended = exists().where(_amending.c.amends_id == _prices_here.id)
    each = select(price, following.label("following")).where(~is_amended).subquery().c
    columns = [each[column.name] for column in price.c]
    return each, select(*columns).where(or_(each.following.is_(None), each.following > at))


class PriceTable:
    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def has_bundled(self) -> bool:
        async with self._engine.connect() as connection:
            return (await connection.execute(_ANY_BUNDLED)).first() is not None

    async def put_in_bundled(self, rows: Sequence[Row]) -> int:
        """Store the bundled prices if none are stored yet; return the number of stored rows."""
        document = dumps(
            [{"hours_at": BEGIN, **row, "effective_from": str(row["effective_from"])} for row in rows]
        )
        async with self._engine.begin() as connection:
            await connection.execute(LOCK_PRICES)
            if (await connection.execute(_ANY_BUNDLED)).first() is not None:
                return 0
            await connection.execute(_PUT_IN, {"rows": document})
            define = insert(control_write).values(id=uuid4(), **_DEFINE)
            await connection.execute(
                define, execution_options=naming("prices.define", "Add the control write of prices")
            )
        return len(rows)


_rates_here = exchange_rate.c
# Every gateway loads those that are in force, were a day ago or will be.
RATES_MAX = 2_000


def check_rate(change: EntityWrite) -> None:
    """Raise `Unprocessable` for a second rate of the same pair and time; `Conflict` beyond `RATES_MAX`."""
    values = change.command.values
    lock_prices(change)
    base = values.get("base", BASE_CURRENCY)
    if values["currency"] == base:
        raise Unprocessable(errors=(("currency", "must be another one than base"),))
    same = (_rates_here.currency == values["currency"]) & (_rates_here.base == base)
    statement = select(_rates_here.id).where(same, _rates_here.effective_from == values["effective_from"])
    if (other := change.connection.execute(statement).scalar()) is not None:
        wrong = f"exchange rate {other} is for the same from then on; name another time"
        raise Unprocessable(errors=(("effective_from", wrong),))
    if len(rates_in_force(change.connection, change.now - KEPT)) >= RATES_MAX:
        raise Conflict(f"{RATES_MAX} exchange rates are in force, were a day ago or will be.")


RATE_SUBJECT = Entity(
    exchange_rate,
    time="effective_from",
    verbs={"create": entity.create},
    check_values=check_rate,
    define=define_price,
)

_amended_by = select(_amending.c.id).where(_amending.c.amends_id == _prices_here.id).scalar_subquery()

PRICE_SUBJECT = Entity(
    price,
    source=select(price, _amended_by.label("amended_by_id")),
    told=lambda row, _: {**row, "amend_reason": None},
    time="effective_from",
    conditions={
        "model": lambda value: _folded(_prices_here.model) == folded(str(value)),
        "provider": lambda value: _provider == folded(str(value)),
    },
    verbs={"create": entity.create},
    check_values=check_values,
    define=define_price,
)
