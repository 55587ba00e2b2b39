"""Usage reports, summed from roll-ups: the largest ones that lie within the requested time."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from functools import partial
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Connection,
    DateTime,
    Label,
    Select,
    Subquery,
    Table,
    case,
    column,
    func,
    literal,
    or_,
    select,
    text,
    true,
    tuple_,
    union_all,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import DataError, DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.core.accounts.administration import Realm, Row
from gateway.core.accounts.groups import PROJECT, USER
from gateway.core.accounts.tags import tag_in
from gateway.core.accounts.usage import (
    BY_CALL,
    DIMENSIONS,
    OTHER,
    OTHER_PROJECTS,
    SPANS,
    TAGS,
    ReportPiece,
    UsageQuery,
    column_of,
    hourly_parts,
    in_parts,
    pieces,
    span_of,
    start_of,
)
from gateway.core.accounts.usage_sums import MONEY_SUMS, SUMS
from gateway.errors import StoreUnavailable, Unprocessable
from persistence.billing import quotas
from persistence.billing.invoice_heads import LINES
from persistence.entity import id_in, live, owned
from persistence.error_mapping import QUERY_CANCELED
from persistence.ledger.statements import SUM_MAX, SUMS_OF_CALL
from persistence.registry import SUBJECTS
from persistence.resources.budget_uses import account_uses
from persistence.resources.groups import overrides_of_members
from persistence.tables import (
    api_key,
    app_user,
    budget_override,
    budget_raise,
    budget_use,
    call,
    caller_group,
    invoice,
    kept_since,
    money,
    organization,
    service,
    signed_in_user,
    tenant,
    usage_rollup,
    usage_tag,
)

# JIT compilation takes longer than these reports. Tens of thousands of groups fit into this memory; with the
# default they are written to disk. Rows read in the order of time are still summed by hashing: sorting them
# costs three times as much.
SETTINGS = {
    "jit": "off",
    "work_mem": "64MB",
    "enable_incremental_sort": "off",
    "max_parallel_workers_per_gather": "0",
}
PLAIN = text(
    "SELECT " + ", ".join(f"set_config('{name}', '{value}', true)" for name, value in SETTINGS.items())
)

_here, _tagged = usage_rollup.c, usage_tag.c
# The name of a group's rows.
_NAMES = {
    "organization": (organization, organization.c.name),
    "tenant": (tenant, tenant.c.name),
    "user": (app_user, app_user.c.external_id),
    "api_key": (api_key, api_key.c.name),
    "service": (service, service.c.key),
    "group": (caller_group, caller_group.c.name),
}
# Calls of a time in the form of the roll-ups, once for each of their groups.
_OF_CALLS = f"""
SELECT {
    ", ".join(
        "to_timestamp(start / 1000) AS start"
        if name == "start"
        else "coalesce(nullif(n.currency, ''), o.currency) AS currency"
        if name == "currency"
        else "n.tags::jsonb AS tags"
        if name == TAGS
        else f"n.{name}"
        for name in (*DIMENSIONS, *SUMS, BY_CALL)
    )
}
  FROM (SELECT {
    SUMS_OF_CALL
}, member::bigint FROM call CROSS JOIN LATERAL jsonb_array_elements_text(groups) AS m (member)
         WHERE groups IS NOT NULL AND NOT refused AND created_at >= :since AND created_at < :until)
       AS n ({", ".join((*DIMENSIONS, *SUMS, "request_id", "used_ms", BY_CALL))})
  JOIN organization AS o ON o.id = n.organization_id"""


def used(connection: Connection, asked: UsageQuery) -> Sequence[Row]:
    """Return the use of a query in the order of time, the highest cost first within an interval."""
    connection.execute(PLAIN)
    try:
        with connection.begin_nested():
            found = _used(connection, asked, "usage_total")
    except DataError:
        # The sum exceeds a bigint; `sum` returns numeric.
        found = _used(connection, asked, "sum")
    # Checked last, because hours may be dropped while they are summed.
    _refuse_dropped(connection, asked)
    return found


def tags_since(connection: Connection, asked: UsageQuery) -> Mapping[str, str]:
    """Return since when calls have each tag of a query, in the organization that it filters by or in any."""
    since = func.jsonb_each_text(organization.c.tags_since).table_valued("key", "value", name="t")
    of = select(since.c.key, func.min(since.c.value).label("since")).select_from(
        organization.join(since, true())
    )
    of = of.where(since.c.key.in_([tag_in(name) for name in asked.tags])).group_by(since.c.key)
    if "organization_id" in asked.filters:
        of = of.where(organization.c.id == asked.filters["organization_id"])
    return {row.key: row.since for row in connection.execute(of)}


# Most pairs of models that a page names.
SUBSTITUTIONS_MAX = 20


def substitutions(connection: Connection, asked: UsageQuery) -> Sequence[Row]:
    """Return what steps of budgets saved in a query's time, by the models that answered and were asked for.

    The largest come first. Empty if the query filters by what calls have no column for.
    """
    if not asked.filters.keys() <= {*call.c.keys()}:
        return []
    by = call.c.model, call.c.model_asked, call.c.currency
    saved = func.sum(call.c.saved)
    pairs = (
        select(*by, money(saved).label("saved"), func.count().label("requests"))
        .where(
            call.c.model_asked.isnot(None), call.c.created_at >= asked.since, call.c.created_at < asked.until
        )
        .where(*(call.c[name] == wanted for name, wanted in asked.filters.items()))
        .group_by(*by)
        .order_by(saved.desc().nulls_last(), *by)
        .limit(SUBSTITUTIONS_MAX)
    )
    return [dict(row) for row in connection.execute(pairs).mappings()]


def _refuse_dropped(connection: Connection, asked: UsageQuery) -> None:
    """Raise `Unprocessable`, naming the field, if hours are requested that are no longer stored."""
    asking = {"from": asked.since} if asked.by_call else hourly_parts(asked)
    if not asking:
        return
    # Hours of calls with tags are kept as long as those of all groups.
    span = "call" if asked.by_call else f"usage_rollup_{'hour' if asked.tags else span_of(asked, 'hour')}"
    since = connection.scalar(select(kept_since.c.since).where(kept_since.c.ledger == span))
    if since is None:
        return
    what, instead = (
        ("calls", "later ones")
        if asked.by_call
        else ("hours", "whole days (UTC), by day, or for later hours")
    )
    reason = f"asks for {what} before {since.astimezone(UTC):%Y-%m-%dT%H:%MZ}, which are not kept: ask for {instead}"
    if wrong := tuple((name, reason) for name, at in asking.items() if at < since):
        raise Unprocessable("Some query parameters are wrong.", wrong)


def _used(connection: Connection, asked: UsageQuery, total: str) -> Sequence[Row]:
    found: list[Row] = []
    parts, skip = in_parts(asked), asked.skip
    part = next(parts)
    with suppress(StopIteration):
        while len(found) < asked.rows_max:
            asking = replace(part, rows_max=asked.rows_max - len(found), skip=skip)
            rows = connection.execute(_question(asking, total)).mappings().all()
            found += map(dict, rows)
            # Rows are skipped in Python: only the first interval's, which the first part contains.
            part = parts.send(len(rows) + skip)
            skip = 0
    return found


def _question(asked: UsageQuery, total: str) -> Select[tuple[object, ...]]:
    """Return the query of a usage report: it sums, sorts, and reads names only for the rows it returns.

    `total` is the SQL function that sums.
    """
    columns = [column_of(group) for group in asked.groups]
    apart = ["currency", *columns] if asked.interval == "none" else ["began", "currency", *columns]
    here = _rows(asked, apart).c
    told_apart = [here[name] for name in apart]
    added = (
        select(*told_apart, *(getattr(func, total)(here[name]).label(name) for name in SUMS))
        .group_by(*told_apart)
        .subquery("added")
    )
    began = literal(asked.since).label("began") if asked.interval == "none" else added.c.began
    order = ("began", "cost", "tokens", *columns, "currency")
    page = (
        select(began, *(column for column in added.c if column.name != "began"))
        # Sums that are all zero are left out.
        .where(or_(*(added.c[name] != 0 for name in SUMS)))
        .order_by(
            *(
                text(f"{_quoted(name)} DESC" if name in ("cost", "tokens") else _quoted(name))
                for name in order
            )
        )
        .limit(asked.rows_max)
        .offset(asked.skip)
        .subquery("page")
    )
    each = page.c
    shown = [
        each.began.label("start"),
        each.currency,
        *(money(each[name]).label(name) if name in MONEY_SUMS else each[name] for name in SUMS),
        *(_id(each[column]) for column in columns),
        *(
            _name(group, each[column_of(group)])
            for group in asked.groups
            if group in _NAMES or group == "project"
        ),
    ]
    return select(*shown).order_by(
        *(each[name].desc() if name in ("cost", "tokens") else each[name] for name in order)
    )


def _id(column: ColumnElement[Any]) -> Label[Any]:
    """Return the report's column for an id; null for 0 (no owner), and for projects summed together."""
    if column.name == "project_id":
        return case((column >= 0, column)).label(column.name)
    if column.name == TAGS:
        return column.label(TAGS)
    is_text = column.name == "model" or tag_in(column.name)
    return func.nullif(column, "" if is_text else 0).label(column.name)


def _name(group: str, id_: ColumnElement[int]) -> Label[str]:
    if group == "project":
        return case((id_ == OTHER_PROJECTS, OTHER)).label(group)
    named, name = _NAMES[group]
    return select(name).where(named.c["id"] == id_).scalar_subquery().label(group)


def _quoted(name: str) -> str:
    """Return the name of an output column, which may be a tag's, as SQL of a statement's text."""
    return '"{}"'.format(name.replace(":", r"\:"))


def _rows(asked: UsageQuery, apart: Sequence[str]) -> Subquery:
    """Return the roll-ups that cover the requested time, each hour exactly once.

    Longer spans, such as months, are read where they fit. An "or" between the pieces, a join, or an unused
    column makes PostgreSQL take half as long again.
    """
    if asked.by_call:
        return _rows_of_calls(asked, apart)
    found = []
    for piece in pieces(asked):
        # Labelled, since a column's name in GROUP BY would mean the column.
        for source in _sources(asked, piece):
            columns = source.columns
            began = _began(asked.interval, piece, columns.start).label("began")
            value = partial(_column, source)
            sums = [(-columns[name]).label(name) if source.is_off else columns[name] for name in SUMS]
            found.append(
                select(*(began if name == "began" else value(name).label(name) for name in apart), *sums).where(
                    columns.span == source.span, columns.start >= piece.since, columns.start < piece.until,
                    *(value(name) == wanted for name, wanted in asked.filters.items()), *_among(asked, value),
                )
            )  # fmt: skip
    return union_all(*found).subquery("rows")


class _Source(NamedTuple):
    """Roll-ups of a span. With `has_tags` their rows are read by tag; if it `is_off`, sums are subtracted."""

    columns: Any
    span: str
    has_tags: bool = False
    is_off: bool = False


def _sources(asked: UsageQuery, piece: ReportPiece) -> list[_Source]:
    """Return the roll-ups to read for a piece of a report.

    Where tags matter, calls that have some are added with them and taken off those without.
    """
    everything = _Source(_here, piece.span)
    if not asked.tags:
        return [everything]
    unit = SPANS[piece.span].unit
    tagged = _Source(_tagged, unit, has_tags=True)
    if any(asked.filters.get(name) for name in asked.tags):
        return [tagged]
    return [everything, tagged, _Source(_tagged, unit, is_off=True)]


def _column(source: _Source, name: str) -> Any:
    """Return a column of roll-ups; those that are not read by tag are of calls without."""
    if name == TAGS:
        return source.columns.tags if source.has_tags else literal({}, JSONB)
    if tag := tag_in(name):
        return func.coalesce(source.columns.tags[tag].astext, "") if source.has_tags else literal("")
    return source.columns[name]


def _rows_of_calls(asked: UsageQuery, apart: Sequence[str]) -> Subquery:
    """Return the calls of the requested time in the form of the roll-ups, once for each of their groups."""
    names = (*DIMENSIONS, *SUMS, BY_CALL)
    calls = text(_OF_CALLS).bindparams(since=asked.since, until=asked.until)
    here = (
        calls.columns(*(column(name, JSONB if name == TAGS else None) for name in names)).subquery("calls").c
    )
    began = func.date_trunc(asked.interval, here.start, "UTC").label("began")
    value = partial(_column, _Source(here, "", has_tags=True))
    return (
        select(
            *(began if name == "began" else value(name).label(name) for name in apart),
            *(here[name] for name in SUMS),
        )
        .where(*(value(name) == wanted for name, wanted in asked.filters.items()), *_among(asked, value))
        .subquery("rows")
    )


def _among(asked: UsageQuery, value: Callable[[str], Any]) -> list[ColumnElement[bool]]:
    """Return the condition of a report that is limited to some values of its groups; `value` returns a column."""
    groups = tuple_(*(value(column_of(group)) for group in asked.groups))
    return [groups.in_(asked.only)] if asked.only else []


def _began(interval: str, piece: ReportPiece, start: ColumnElement[datetime]) -> ColumnElement[datetime]:
    """Return SQL for the start of the report's interval that a row belongs to.

    It is a constant or a column where possible, because a function for each row costs as much as summing it.
    """
    if SPANS[piece.span].unit == interval:
        return start
    if start_of(interval, piece.until - timedelta(hours=1)) == (since := start_of(interval, piece.since)):
        return literal(since, DateTime(timezone=True))
    return func.date_trunc(interval, start, "UTC")


# Figures for pages: names by id, quotas by tenant, use by day and service.
#
# Every query is bounded: by the given ids, by days, or by rows.

# An owner's exact use by day and service, from roll-ups. Units that are money are left out.
_ORGANIZATION_DAYS = text(f"""
SELECT u.day, u.service_id, least(sum(u.tokens), {SUM_MAX})::bigint AS tokens,
       least(sum(u.credits), {SUM_MAX})::bigint AS credits,
       least(sum(u.usage_amount - coalesce(m.quantity, 0)), {SUM_MAX})::bigint AS usage_amount
  FROM usage_daily AS u LEFT JOIN usage_tier AS m ON m.tenant_id = u.tenant_id AND m.day = u.day
   AND m.service_id = u.service_id AND m.unit_price = 0.000000001
 WHERE u.organization_id = :owner AND u.day >= :since
 GROUP BY u.day, u.service_id ORDER BY u.day, u.service_id LIMIT :rows""")
_TENANTS = text("""
SELECT count(*) FROM (SELECT FROM tenant WHERE organization_id = :owner LIMIT :most) AS t""")
# The tenants with the most tokens of a day, each row with the sums of all tenants, in one pass.
_BUSIEST = text(f"""
SELECT u.tenant_id, t.name, u.requests, u.tokens, u.all_requests, u.all_tokens, u.all_credits, u.tenants
  FROM (SELECT tenant_id, requests, tokens, sum(requests) OVER () AS all_requests,
               sum(tokens) OVER () AS all_tokens, sum(credits) OVER () AS all_credits,
               count(*) OVER () AS tenants
          FROM (SELECT tenant_id, least(sum(requests), {SUM_MAX})::bigint AS requests,
                       least(sum(tokens), {SUM_MAX})::bigint AS tokens,
                       least(sum(credits), {SUM_MAX})::bigint AS credits
                  FROM usage_daily WHERE day = :day
                   AND (CAST(:within AS bigint) IS NULL OR organization_id = :within)
                   AND (CAST(:tenant AS bigint) IS NULL OR tenant_id = :tenant)
                 GROUP BY tenant_id) AS used
         ORDER BY tokens DESC, requests DESC, tenant_id LIMIT :rows) AS u
  JOIN tenant AS t ON t.id = u.tenant_id ORDER BY u.tokens DESC, u.requests DESC, u.tenant_id""")

# Columns with the names of rows, and the number of newest rows that are searched for a name.
FOUND_BY = ("external_id", "url", "number", "name")
FOUND_READ_MAX = 10_000
# A page leaves out the outcomes of calls if they take longer.
OUTCOMES_MS_MAX = 500


class ConsoleQueries:
    """PostgreSQL queries of the console's pages; `partition_of` returns an organization's partition."""

    named = frozenset(
        {
            "organizations",
            "tenants",
            "admin-tokens",
            "api-keys",
            "token-plans",
            "services",
            "business-models",
            "subscription-plans",
            "users",
            "groups",
        }
    )

    def __init__(
        self, engine: AsyncEngine, partition_of: Callable[[int], int], *, within: Realm | None = None,
        organizations: AsyncEngine | None = None,
    ) -> None:  # fmt: skip
        self._engine = engine
        self._organizations = organizations or engine
        self._partition_of = partition_of
        self._within = within

    def within(self, realm: Realm | None) -> ConsoleQueries:
        """Return queries with only the rows that a realm (organization or tenant) may see; None means all."""
        engine = self._engine if realm is None else self._organizations
        return ConsoleQueries(engine, self._partition_of, within=realm, organizations=self._organizations)

    async def names(self, resource: str, ids: Collection[int]) -> Mapping[int, str]:
        """Return the names of rows by id, deleted rows included; ids without a row are left out."""
        table = SUBJECTS[resource].table
        name = table.c.external_id if resource == "users" else table.c.name
        if not ids:
            return {}
        named = select(table.c.id, name.label("name")).where(table.c.id.in_(ids), *self._own(table))
        rows = await self._rows(named)
        return {id_in(row, "id"): str(row["name"]) for row in rows}

    async def find(self, resource: str, said: str, rows_max: int) -> Sequence[tuple[int, str]]:
        """Return ids and names of rows whose name contains the text `said`, among the newest rows."""
        table = SUBJECTS[resource].table
        name = next(table.c[each] for each in FOUND_BY if each in table.c)
        there = (table.c.deleted_at.is_(None),) if "deleted_at" in table.c else ()
        newest = (
            select(table.c.id, name.label("name"))
            .where(name.isnot(None), *there, *self._own(table))
            .order_by(table.c.id.desc())
            .limit(FOUND_READ_MAX)
            .subquery()
        )
        wanted = select(newest).where(newest.c.name.icontains(said, autoescape=True)).limit(rows_max)
        return [(id_in(row, "id"), str(row["name"])) for row in await self._rows(wanted)]

    async def quotas(self, tenant_ids: Collection[int]) -> Sequence[Row]:
        if not tenant_ids:
            return []
        rows = await self._rows(quotas.SUBJECT.within(self._within).rows.where(tenant.c.id.in_(tenant_ids)))
        return [{**row, "partition": self._partition_of(id_in(row, "organization_id"))} for row in rows]

    async def tenants_of(self, organization_id: int, most: int) -> int:
        owner = await self._known(organization, organization_id)
        [row] = await self._rows(_TENANTS, owner=owner, most=most)
        return id_in(row, "count")

    async def organization_days(self, organization_id: int, since: date, rows_max: int) -> Sequence[Row]:
        """Return an organization's use by day and service, oldest first."""
        owner = await self._known(organization, organization_id)
        return await self._rows(_ORGANIZATION_DAYS, owner=owner, since=since, rows=rows_max)

    async def invoice_lines(self, invoice_id: int, after: int, rows_max: int) -> Sequence[Row]:
        """Return up to `rows_max` lines of an invoice beyond a position, in order."""
        which = await self._known(invoice, invoice_id)
        rows = await self._rows(LINES, invoice=which, after=after, rows=rows_max)
        return [dict(row["line"]) for row in rows]  # type: ignore[call-overload]  # an object each

    async def budget_accounts(self, budget_id: int, start: datetime, rows_max: int) -> Sequence[Row]:
        """Return the accounts of a budget with use since `start`, highest use first."""
        here = (budget_use.c.budget_id == budget_id, budget_use.c.start >= start, *self._own(budget_use))
        most = (func.sum(budget_use.c.used).desc(), budget_use.c.value)
        return await self._rows(account_uses().where(*here).order_by(*most).limit(rows_max))

    async def own_limits(
        self, budget_ids: Collection[int], owners: Mapping[str, str]
    ) -> tuple[Sequence[Row], Sequence[Row], Sequence[Row]]:
        """Return raises and overrides in force of these budgets' owners, and those of their groups by member.

        `owners` are their names by the owner's part of the account.
        """
        raises, overrides = [
            await self._rows(
                select(table).where(
                    table.c["budget_id"].in_(budget_ids), table.c["value"].in_(owners),
                    func.coalesce(table.c["until"] > func.now(), true()), *self._own(table),
                )
            )
            if owners
            else []
            for table in (budget_raise, budget_override)
        ]  # fmt: skip
        of_groups = overrides_of_members(budget_ids, list(owners.values()))
        return raises, overrides, await self._rows(of_groups.where(*self._own(budget_override)))

    async def groups_of(self, organization_id: int, members: Mapping[str, Collection[str]]) -> frozenset[int]:
        """Return ids of an organization's groups that calls of these members, by kind, may be in.

        A user is in a group by a claim too, if the last sign-in to the console named it. Any call may name a
        project, so groups of projects are among them.
        """
        own = (caller_group.c.organization_id == organization_id, *self._own(caller_group))
        rows = await self._rows(live(caller_group, caller_group.c.id).where(*own, _has_member(members)))
        return frozenset(id_in(row, "id") for row in rows)

    async def outcomes(
        self, since: datetime, filters: Mapping[str, object], calls_max: int
    ) -> Sequence[Row] | None:
        """Count the newest calls since a time by status and reason; return None if that takes too long."""
        own = [*self._own(call), *(call.c[name] == value for name, value in filters.items())]
        if "tenant_id" in filters:
            owner = select(tenant.c.organization_id).where(tenant.c.id == filters["tenant_id"])
            own += [call.c.organization_id == row["organization_id"] for row in await self._rows(owner)]
        newest = (
            select(call.c.status, call.c.reason)
            .where(call.c.created_at >= since, *own)
            .order_by(call.c.created_at.desc(), call.c.id.desc())
            .limit(calls_max)
            .subquery()
        )
        counted = select(newest, func.count().label("calls")).group_by(newest.c.status, newest.c.reason)
        try:
            async with self._engine.connect() as connection:
                await connection.execute(text(f"SET LOCAL statement_timeout = {OUTCOMES_MS_MAX:d}"))
                return [dict(row) for row in (await connection.execute(counted)).mappings()]
        except (SQLAlchemyError, OSError) as error:
            if isinstance(error, DBAPIError) and getattr(error.orig, "sqlstate", "") == QUERY_CANCELED:
                return None
            raise StoreUnavailable from error

    async def busiest(self, day: date, rows_max: int) -> Sequence[Row]:
        """Return the tenants with the most tokens on a UTC day, with the sums of all tenants (`all_…`)."""
        of = self._within
        own = {"within": of and of.organization_id, "tenant": of and of.tenant_id}
        return await self._rows(_BUSIEST, day=day, rows=rows_max, **own)

    def _own(self, table: Table) -> Sequence[ColumnElement[bool]]:
        return () if self._within is None else (owned(table, self._within),)

    async def _known(self, table: Table, row_id: int) -> int:
        if self._within is None:
            return row_id
        found = await self._rows(select(table.c.id).where(table.c.id == row_id, *self._own(table)))
        return row_id if found else 0

    async def _rows(self, statement: Any, **values: object) -> Sequence[Row]:
        try:
            async with self._engine.connect() as connection:
                return [dict(row) for row in (await connection.execute(statement, values)).mappings()]
        except (SQLAlchemyError, OSError) as error:
            raise StoreUnavailable from error


def _has_member(members: Mapping[str, Collection[str]]) -> ColumnElement[bool]:
    """Return the condition that a group is of projects, or has one of these members, by kind."""
    member = func.jsonb_array_elements_text(caller_group.c.members).table_valued("value", name="m")
    is_own = [
        (caller_group.c.kind == kind) & select(member.c.value).where(member.c.value.in_(names)).exists()
        for kind, names in members.items()
    ]
    signed_in = select(signed_in_user.c.name).where(
        signed_in_user.c.organization_id == caller_group.c.organization_id,
        signed_in_user.c.name.in_(members.get(USER, ())),
        func.jsonb_exists(signed_in_user.c.claims, caller_group.c.claim),
    )
    return or_(caller_group.c.kind == PROJECT, *is_own, signed_in.exists())
