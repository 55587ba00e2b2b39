"""The catalogue: services, models, plans, prices and exchange rates; a change reloads gateways."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
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
    case,
    collate,
    exists,
    false,
    func,
    insert,
    literal,
    or_,
    select,
    text,
    true,
)
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.core.accounts.administration import Row
from gateway.core.accounts.definitions import CATALOGUE_ACCOUNT, PRICES_ACCOUNT
from gateway.core.billing.hours import BEGIN
from gateway.core.billing.money import read_pricing
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
from gateway.core.calls.routes import MODELS_MAX
from gateway.core.calls.tariff import CONSUMPTION, PAY_PER_USE, misfit
from gateway.core.times import floor_ms
from gateway.errors import Conflict, Unprocessable
from persistence import entity
from persistence.billing import subscriptions
from persistence.billing.plans import priced_in
from persistence.entity import (
    THIS,
    Entity,
    EntityWrite,
    alter,
    live,
    lock,
    refuse_while_referenced,
)
from persistence.resources import negotiated_prices, people
from persistence.tables import (
    budget,
    business_model,
    control_write,
    exchange_rate,
    model,
    organization,
    organization_service,
    organization_subscription,
    price,
    service,
    subscription_plan,
    token_plan,
)

# A price must fit the business model of its service: otherwise a call could not be charged.
#
# The state after a change is checked, in the same transaction: the service's price, and the prices of
# organizations with and without a business model of their own.

# Changes of other fields do not affect the cost of calls.
_DECIDING = frozenset({"pricing", "business_model_id", "service_type", "meter", "service_id"})
_own = business_model.alias("own")
_chosen = business_model.alias("chosen")


def check_service(change: EntityWrite, row: Row) -> None:
    for found in _services(change, service.c.id == row["id"]):
        raise Unprocessable(errors=(found,))
    _refuse_negotiated(change, organization_service.c.service_id == row["id"])


def check_negotiated(change: EntityWrite, row: Row) -> None:
    for _, found in _negotiated(change, organization_service.c.id == row["id"]):
        raise Unprocessable(errors=(found,))


def check_model_prices(change: EntityWrite, row: Row) -> None:
    for _, why in _services(change, service.c.business_model_id == row["id"]):
        raise Conflict(f"A service of this business model could not use its pricing: {why}.")
    follows = service.c.business_model_id == row["id"]
    _refuse_negotiated(change, (organization_service.c.business_model_id == row["id"]) | follows)


def _refuse_negotiated(change: EntityWrite, which: ColumnElement[bool]) -> None:
    for row_id, (_, why) in _negotiated(change, which):
        raise Conflict(
            f"Change organization-services {row_id} first, which could not use its pricing: {why}."
        )


def _services(change: EntityWrite, which: ColumnElement[bool]) -> Iterator[tuple[str, str]]:
    """Yield the (field, message) of the error for each service in `which` whose price does not fit."""
    if not _DECIDING & change.command.values.keys():
        return
    query = (
        select(service.c.service_type, service.c.pricing, _own.c.meter)
        .join(_own, _own.c.id == service.c.business_model_id)
        .where(which, service.c.deleted_at.is_(None), service.c.pricing.is_not(None))
    )
    for kind, pricing, meter in change.connection.execute(query):
        found = misfit(meter, kind == "One-Time", read_pricing(pricing))
        if found is not None:
            yield found


def _negotiated(change: EntityWrite, which: ColumnElement[bool]) -> Iterator[tuple[int, tuple[str, str]]]:
    """Yield, for each unusable negotiated price in `which`, its id and the (field, message) of the error."""
    if not _DECIDING & change.command.values.keys():
        return
    query = (
        select(
            organization_service.c.id,
            service.c.service_type,
            organization_service.c.pricing,
            service.c.pricing,
            _own.c.meter,
            _chosen.c.meter,
            organization.c.currency,
        )
        .join(organization, organization.c.id == organization_service.c.organization_id)
        .join(service, service.c.id == organization_service.c.service_id)
        .join(_own, _own.c.id == service.c.business_model_id)
        .outerjoin(_chosen, _chosen.c.id == organization_service.c.business_model_id)
        .where(which)
    )
    for row_id, kind, pricing, inherited, own, chosen, pays in change.connection.execute(query):
        meter = chosen or own
        found = _misfit_of(meter, kind, pricing, inherited) or _misspent(meter, pricing, inherited, pays)
        if found is not None:
            yield row_id, found


def _misspent(meter: str, pricing: Any, inherited: Any, pays: str) -> tuple[str, str] | None:
    """Return the (field, message) of the error if a unit price has another currency than `pays`, else None.

    `pays` is the currency of the organization.
    """
    costs = read_pricing(pricing or inherited).currency
    if meter != PAY_PER_USE or costs in {"", pays}:
        return None
    field = "service_id" if pricing is None else "pricing.currency"
    return field, f"costs {costs}, and the organization pays in {pays}"


def _misfit_of(meter: str, kind: str, pricing: Any, inherited: Any) -> tuple[str, str] | None:
    if pricing is not None:
        return misfit(meter, kind == "One-Time", read_pricing(pricing))
    own = read_pricing(inherited)
    if meter not in {CONSUMPTION, PAY_PER_USE} or (meter == CONSUMPTION and own.tiers):
        return None  # the service's own is not used then
    found = misfit(meter, kind == "One-Time", own)
    return None if found is None else ("pricing", f"must be stated: the service's own {found[0]} {found[1]}")


ALWAYS_THERE = frozenset({"Consumption", "Subscription", "Pay-Per-Use"})


def define(change: EntityWrite, _: Row) -> None:
    change.intend([CATALOGUE_ACCOUNT], "define", {}, organization_id=None)


def define_model(change: EntityWrite, row: Row) -> None:
    """Push the catalogue to the gateways, and the organizations that negotiated this business model."""
    define(change, row)
    here = organization_service.c
    told = select(here.organization_id).where(here.business_model_id == row["id"]).distinct()
    for organization_id in change.connection.execute(told.order_by(here.organization_id)).scalars().all():
        change.define(f"organization:{organization_id}", organization_id)


def delete_service(change: EntityWrite) -> Row:
    """Mark a service as deleted and rename its key, so that another one may have it."""
    row = lock(change)
    refuse_while_referenced(change)
    # No key a caller can choose holds a tilde.
    alter(change, {"key": f"{row['key']}~{row['id']}", "deleted_at": func.now()})
    define(change, row)
    return row


def check_model(change: EntityWrite) -> None:
    if change.command.id is not None and {"name", "meter"} & change.command.values.keys():
        name = lock(change)["name"]
        if name in ALWAYS_THERE:
            raise Conflict(f"{name} is always there: its name and meter cannot change.")


def delete_model(change: EntityWrite) -> Row:
    name = lock(change)["name"]
    if name in ALWAYS_THERE:
        raise Conflict(f"{name} is always there.")
    return entity.forget(change)


BUSINESS_MODELS = Entity(
    business_model,
    verbs={**entity.VERBS, "delete": delete_model},
    referenced={
        "Services still follow this business model.": live(service).where(
            service.c.business_model_id == THIS
        ),
    },
    check_values=check_model,
    check_row=check_model_prices,
    define=define_model,
    defining=frozenset({"meter"}),
)

_key = select(service.c.key).where(service.c.id == THIS).scalar_subquery()

_counts = case((service.c.counts_tokens, true()), (service.c.counts_none, false()))
_columns = [one for one in service.c if one.name not in {"counts_tokens", "counts_none"}]

SERVICES = Entity(
    service,
    source=live(service, *_columns, _counts.label("counts_tokens")),
    verbs={**entity.VERBS, "delete": delete_service},
    refers={"business_model_id": business_model},
    referenced={
        "Organizations still have a price for this service.": select(organization_service.c.id).where(
            organization_service.c.service_id == THIS
        ),
        "Subscription plans still include this service.": live(subscription_plan).where(
            subscription_plan.c.feature_access.has_key(_key)
        ),
        "A budget is of this service; delete it first.": live(budget).where(budget.c.service_id == THIS),
    },
    check_row=check_service,
    define=define,
    defining=frozenset(
        {"credits", "service_type", "business_model_id", "counts_tokens", "pricing", "upstream", "paths"}
    ),
)


# Models: a name, or a prefix and a *, with the upstreams that serve them.
def create_model(change: EntityWrite) -> Row:
    """Store a model; a `prefix` becomes a name that ends with *."""
    values = dict(change.command.values)
    prefix, name = values.pop("prefix", None), values.get("name")
    whole = None if prefix is None else f"{str(prefix).removesuffix('*')}*"
    if name is None and whole is None:
        raise Unprocessable(errors=(("name", "is required, unless there is a prefix"),))
    if name is not None and whole is not None and name != whole:
        raise Unprocessable(errors=(("prefix", "must belong together with the name, which is it and a *"),))
    values["name"] = name or whole
    change.command = replace(change.command, values=values)
    refuse_many(change.count(model, lambda: change.connection.execute(_models_there).scalar_one()))
    return entity.create(change)


def refuse_many(count: int) -> None:
    if count >= MODELS_MAX:
        raise Conflict(f"There are {MODELS_MAX} models, which is the most.")


def check_targets(change: EntityWrite, row: Row) -> None:
    """Raise `Unprocessable` for a repeated target of a model, or one with a * if the model has no prefix."""
    targets = row["targets"]
    assert isinstance(targets, list)
    said = [(one["upstream"], one.get("model")) for one in targets]
    if len(set(said)) < len(said):
        raise Unprocessable(errors=(("targets", "must name each target once"),))
    if row["prefix"] is None and any("*" in (name or "") for _, name in said):
        raise Unprocessable(errors=(("targets", "must be without * in a model, unless there is a prefix"),))


_models_there = select(func.count()).select_from(model)
_prefix = case((model.c.name.endswith("*", autoescape=True), func.left(model.c.name, -1)))

MODELS = Entity(
    model,
    source=select(*model.c, _prefix.label("prefix")),
    verbs={**entity.VERBS, "create": create_model},
    refers={"organization_id": organization},
    check_row=check_targets,
    define=define,
    defining=frozenset({"targets", "fallback", "output_max", "context"}),
)


# Negotiated terms of organizations, and subscription plans.
def check_features(change: EntityWrite) -> None:
    wanted = change.command.values.get("feature_access")
    if isinstance(wanted, list) and wanted:
        found = change.connection.execute(live(service, service.c.key).where(service.c.key.in_(wanted)))
        missing = sorted(set(wanted) - set(found.scalars()))
        if missing:
            raise Unprocessable(errors=(("feature_access", f"there is no service {missing[0]!r}"),))


def check_currency(change: EntityWrite, row: Row) -> None:
    """Raise `Unprocessable` if the price of the row's token plan is in another currency than the row.

    The row is a subscription plan.
    """
    costs = priced_in(change, row["token_plan_id"])
    if costs is not None and costs != row["currency"]:
        wrong = f"has a price in {costs}, and this plan is in {row['currency']}"
        raise Unprocessable(errors=(("token_plan_id", wrong),))


_here = organization_subscription.c

ORGANIZATION_SERVICES = Entity(
    organization_service,
    verbs={
        "create": negotiated_prices.create,
        "change": negotiated_prices.change_row,
        "delete": negotiated_prices.delete,
    },
    refers={
        "organization_id": organization,
        "service_id": service,
        "business_model_id": business_model,
    },
    check_row=check_negotiated,
    define=people.define_organization,
    defining=frozenset({"negotiated_credits", "business_model_id", "counts_tokens", "pricing"}),
)

SUBSCRIPTION_PLANS = Entity(
    subscription_plan,
    source=subscriptions.PLAN_PRICE_SOURCE,
    verbs=subscriptions.PLAN_PRICE_VERBS,
    refers={"token_plan_id": token_plan},
    referenced={
        "Organizations still subscribe to this plan.": select(_here.id).where(
            _here.status != "over", or_(_here.plan_id == THIS, _here.next_plan_id == THIS)
        ),
    },
    check_values=check_features,
    check_row=check_currency,
    define=subscriptions.tell,
    defining=frozenset({"feature_access", "token_plan_id"}),
)


# Prices of models: append-only; a new price reloads every gateway.

# Every gateway loads all of them; the bundled list has some 1,300.
IN_FORCE_MAX = 20_000
# A call has the price of its admission, so a replaced price stays loaded for this long.
KEPT = timedelta(days=1)

# Advisory lock class 7805: writers of prices, so that no two prices are for the same.
LOCK_PRICES = text("SELECT pg_advisory_xact_lock(7805, 0)")
_COLUMNS = ", ".join(column.name for column in price.c if column.name not in {"id", "created_at"})
_PUT_IN = text(
    f"INSERT INTO price ({_COLUMNS}) SELECT {_COLUMNS}"  # its own columns
    " FROM jsonb_populate_recordset(NULL::price, cast(:rows AS jsonb))"
)
_ANY_BUNDLED = select(price.c.id).where(price.c.source == BUNDLED).limit(1)
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


def check_values(change: EntityWrite) -> None:
    """Raise `Unprocessable` for an empty or duplicate price, or one in an unused currency."""
    connection, values = change.connection, change.command.values
    connection.execute(LOCK_PRICES)
    errors = [*_empty(values), *_unused(connection, str(values["currency"]))]
    same = select(_prices_here.id).where(
        *(column == value for column, value in zip(_same, _kind(values), strict=True)),
        _prices_here.effective_from == values["effective_from"],
    )
    if (other := connection.execute(same).scalar()) is not None:
        said = f"price {other} is for the same from then on; name another time"
        errors.append(("effective_from", said))
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
    return _superseded_later_than(now - KEPT)[1]


def rates_in_force(connection: Connection, at: datetime) -> tuple[ExchangeRate, ...]:
    """Return the exchange rates in force at the time `at` or later."""
    following = func.lead(_rates_here.effective_from).over(
        partition_by=(_rates_here.currency, _rates_here.base), order_by=_rates_here.effective_from
    )
    each = select(exchange_rate, following.label("following")).subquery()
    found = select(each).where(or_(each.c.following.is_(None), each.c.following > at))
    return tuple(read_rate(dict(row)) for row in connection.execute(found).mappings())


def find_price(
    connection: Connection, model: str, currency: str, at: datetime, provider: str = ""
) -> PriceFound | None:
    """Return the price of a model at the time `at`, in a currency, converted from another if necessary.

    Return None if no price applies.
    """
    rates = [one for one in rates_in_force(connection, at) if one.currency == currency]
    rows = _prices_since(connection, [model], at, [currency, *(one.base for one in rates)])
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
    found = columns.where(
        or_(
            and_(each.match == EXACT_NAME, own.in_(names)),
            and_(each.match == PREFIX, exists(select(name).where(func.starts_with(name, own)))),
        )
    )
    if currencies:
        found = found.where(each.currency.in_(set(currencies)))
    return {row["id"]: dict(row) for row in connection.execute(found).mappings()}


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
            await connection.execute(insert(control_write).values(id=uuid4(), **_DEFINE))
        return len(rows)


_rates_here = exchange_rate.c
# Every gateway loads those that are in force, were a day ago or will be.
RATES_MAX = 2_000


def check_rate(change: EntityWrite) -> None:
    """Raise `Unprocessable` for a second rate of the same pair and time; `Conflict` beyond `RATES_MAX`."""
    values = change.command.values
    change.connection.execute(LOCK_PRICES)
    base = values.get("base", BASE_CURRENCY)
    if values["currency"] == base:
        raise Unprocessable(errors=(("currency", "must be another one than base"),))
    same = (_rates_here.currency == values["currency"]) & (_rates_here.base == base)
    found = select(_rates_here.id).where(same, _rates_here.effective_from == values["effective_from"])
    if (other := change.connection.execute(found).scalar()) is not None:
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
