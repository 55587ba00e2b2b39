"""Figures for pages of the console: names by id, quotas by tenant, use by day and service.

Every query is bounded: by the given ids, by days, or by rows.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import date, datetime
from typing import Any

from sqlalchemy import ColumnElement, Table, func, or_, select, text, true
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.core.accounts.administration import Realm, Row
from gateway.core.accounts.groups import PROJECT, USER
from gateway.errors import StoreUnavailable
from persistence.billing import quotas
from persistence.billing.invoice_heads import LINES
from persistence.entity import id_in, live, owned
from persistence.error_mapping import QUERY_CANCELED
from persistence.ledger.statements import SUM_MAX
from persistence.registry import SUBJECTS
from persistence.resources.budget_uses import account_uses
from persistence.resources.groups import overrides_of_members
from persistence.tables import (
    budget_override,
    budget_raise,
    budget_use,
    call,
    caller_group,
    invoice,
    organization,
    signed_in_user,
    tenant,
)

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
        name = next(table.c[column] for column in FOUND_BY if column in table.c)
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
        owner = await self._require_row(organization, organization_id)
        [row] = await self._rows(_TENANTS, owner=owner, most=most)
        return id_in(row, "count")

    async def organization_days(self, organization_id: int, since: date, rows_max: int) -> Sequence[Row]:
        """Return an organization's use by day and service, oldest first."""
        owner = await self._require_row(organization, organization_id)
        return await self._rows(_ORGANIZATION_DAYS, owner=owner, since=since, rows=rows_max)

    async def invoice_lines(self, invoice_id: int, after: int, rows_max: int) -> Sequence[Row]:
        """Return up to `rows_max` lines of an invoice beyond a position, in order."""
        invoice_row = await self._require_row(invoice, invoice_id)
        rows = await self._rows(LINES, invoice=invoice_row, after=after, rows=rows_max)
        return [dict(row["line"]) for row in rows]  # type: ignore[call-overload]  # an object each

    async def budget_accounts(self, budget_id: int, start: datetime, rows_max: int) -> Sequence[Row]:
        """Return the accounts of a budget with use since `start`, highest use first."""
        here = (budget_use.c.budget_id == budget_id, budget_use.c.start >= start, *self._own(budget_use))
        most = (func.sum(budget_use.c.used).desc(), budget_use.c.value)
        return await self._rows(account_uses().where(*here).order_by(*most).limit(rows_max))

    async def use_starts(self, budget_id: int, since: datetime, until: datetime) -> set[datetime]:
        """Return the earliest and the latest start of uses of a budget between two moments."""
        here, own = budget_use.c, self._own(budget_use)
        ends = select(func.min(here.start).label("first"), func.max(here.start).label("last"))
        [row] = await self._rows(
            ends.where(here.budget_id == budget_id, here.start.between(since, until), *own)
        )
        return {start for start in row.values() if isinstance(start, datetime)}

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
        realm = self._within
        own = {"within": realm and realm.organization_id, "tenant": realm and realm.tenant_id}
        return await self._rows(_BUSIEST, day=day, rows=rows_max, **own)

    def _own(self, table: Table) -> Sequence[ColumnElement[bool]]:
        return () if self._within is None else (owned(table, self._within),)

    async def _require_row(self, table: Table, row_id: int) -> int:
        if self._within is None:
            return row_id
        rows = await self._rows(select(table.c.id).where(table.c.id == row_id, *self._own(table)))
        return row_id if rows else 0

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
