"""Usage, added up from its roll-ups: whole days where a span has them, hours at its ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta

from sqlalchemy import ColumnElement, Connection, Label, Numeric, and_, case, cast, func, literal, or_, select

from gateway.core.accounts.administration import Row
from gateway.core.accounts.usage import GROUPS, NO_PROJECT, SUMS, UsageQuery
from gateway.core.billing.pricing import NANO
from persistence.tables.billing import service
from persistence.tables.ledgers import usage_rollup
from persistence.tables.people import api_key, app_user, organization, tenant

_here = usage_rollup.c
# What a group is called.
_NAMES = {
    "organization": (organization, organization.c.name),
    "tenant": (tenant, tenant.c.name),
    "user": (app_user, app_user.c.external_id),
    "api_key": (api_key, api_key.c.name),
    "service": (service, service.c.key),
}
# What stands for none of it, where that is not 0.
_NOBODY: Mapping[str, object] = {"project_id": NO_PROJECT, "model": ""}


def used(connection: Connection, asked: UsageQuery) -> Sequence[Row]:
    """What was used, in the order of time, the dearest of a time first; at most `rows_max` rows."""
    columns = [GROUPS[group] for group in asked.groups]
    start = func.date_trunc(asked.interval, _here.start, "UTC") if asked.interval != "none" else None
    # What had no price is in the organization's currency, as it would be with one.
    currency = case((_here.currency == "", organization.c.currency), else_=_here.currency)
    wanted = [
        (currency if name == "currency" else _here[name]) == value for name, value in asked.filters.items()
    ]
    # By labels of their own: a name that a column has would be that column.
    apart = [currency.label("money"), *(() if start is None else (start.label("began"),))]
    told_apart = [_here[column] for column in columns]
    added = (
        select(*apart, *told_apart, *(func.sum(_here[name]).label(name) for name in SUMS))
        .join_from(usage_rollup, organization, organization.c.id == _here.organization_id)
        .where(_within(asked), *wanted)
        .group_by(*(label.name for label in apart), *told_apart)
        .subquery("added")
    )
    each = added.c
    began = literal(asked.since) if start is None else each.began
    shown = [
        began.label("start"),
        each.money.label("currency"),
        (cast(each.cost, Numeric) / NANO).label("cost"),
        *(each[name] for name in SUMS if name != "cost"),
        *(func.nullif(each[column], _NOBODY.get(column, 0)).label(column) for column in columns),
        *(_name(group, each[GROUPS[group]]) for group in asked.groups if group in _NAMES),
    ]
    order = (began, each.cost.desc(), each.tokens.desc(), *(each[column] for column in columns))
    found = connection.execute(select(*shown).order_by(*order).limit(asked.rows_max))
    return [dict(row) for row in found.mappings()]


def _name(group: str, id_: ColumnElement[int]) -> Label[str]:
    named, name = _NAMES[group]
    return select(name).where(named.c.id == id_).scalar_subquery().label(group)


def _within(asked: UsageQuery) -> ColumnElement[bool]:
    """The roll-ups that make up a span, each hour of it once."""
    since, until, day = asked.since, asked.until, timedelta(days=1)
    first = since.replace(hour=0)
    first = first if first == since else first + day
    last = until.replace(hour=0)
    if asked.interval == "hour" or first >= last:
        return and_(_here.span == "hour", _here.start >= since, _here.start < until)
    return or_(
        and_(_here.span == "day", _here.start >= first, _here.start < last),
        and_(_here.span == "hour", _here.start >= since, _here.start < first),
        and_(_here.span == "hour", _here.start >= last, _here.start < until),
    )
