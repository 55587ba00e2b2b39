"""Figures for people to look at: names by id, quotas by tenant, use by day and service.

Every query is bounded: by the ids asked for, by days, or by rows.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import date, datetime
from typing import Any

from sqlalchemy import ColumnElement, Table, select, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.core.accounts.administration import Row
from gateway.errors import StoreUnavailable
from persistence.billing import quotas
from persistence.billing.invoice_source import LINES
from persistence.ledger.sums import SUM_MAX
from persistence.ownership import owned
from persistence.subject import id_in
from persistence.subjects import SUBJECTS
from persistence.tables import budget_use, invoice, organization, tenant

# An owner's use by day and service, from roll-ups, exact. Units that are money are left out.
_ORGANIZATION_DAYS = text(f"""
SELECT u.day, u.service_id, least(sum(u.requests), {SUM_MAX})::bigint AS requests,
       least(sum(u.tokens), {SUM_MAX})::bigint AS tokens,
       least(sum(u.credits), {SUM_MAX})::bigint AS credits,
       least(sum(u.usage_amount - coalesce(m.quantity, 0)), {SUM_MAX})::bigint AS usage_amount
  FROM usage_daily AS u LEFT JOIN usage_tier AS m ON m.tenant_id = u.tenant_id AND m.day = u.day
   AND m.service_id = u.service_id AND m.unit_price = 0.000000001
 WHERE u.organization_id = :owner AND u.day >= :since
 GROUP BY u.day, u.service_id ORDER BY u.day, u.service_id LIMIT :rows""")  # noqa: S608  # our own words
_TENANTS = text("""
SELECT count(*) FROM (SELECT FROM tenant WHERE organization_id = :owner LIMIT :most) AS t""")
# One pass over the day: its busiest tenants, each row with the sums of all.
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
                 GROUP BY tenant_id) AS used
         ORDER BY tokens DESC, requests DESC, tenant_id LIMIT :rows) AS u
  JOIN tenant AS t ON t.id = u.tenant_id ORDER BY u.tokens DESC, u.requests DESC, u.tenant_id""")  # noqa: S608  # our own words


class Figures:
    """PostgreSQL as the console's pages read it; `partition_of` places an organization in the counters."""

    named = frozenset(
        {
            "organizations",
            "tenants",
            "api-keys",
            "token-plans",
            "services",
            "business-models",
            "subscription-plans",
            "users",
        }
    )

    def __init__(
        self, engine: AsyncEngine, partition_of: Callable[[int], int], *, within: int | None = None,
        organizations: AsyncEngine | None = None,
    ) -> None:  # fmt: skip
        self._engine = engine
        self._organizations = organizations or engine
        self._partition_of = partition_of
        self._within = within

    def within(self, organization_id: int | None) -> Figures:
        """The same for whom there is nothing but an organization's own, and what is everybody's."""
        engine = self._engine if organization_id is None else self._organizations
        return Figures(engine, self._partition_of, within=organization_id, organizations=self._organizations)

    async def names(self, resource: str, ids: Collection[int]) -> Mapping[int, str]:
        """The names of rows, deleted ones too; an id without a row is left out."""
        table = SUBJECTS[resource].table
        name = table.c.external_id if resource == "users" else table.c.name
        if not ids:
            return {}
        named = select(table.c.id, name.label("name")).where(table.c.id.in_(ids), *self._own(table))
        rows = await self._rows(named)
        return {id_in(row, "id"): str(row["name"]) for row in rows}

    async def quotas(self, tenant_ids: Collection[int]) -> Sequence[Row]:
        """Quotas of tenants as last flushed, each with its partition."""
        if not tenant_ids:
            return []
        rows = await self._rows(quotas.SUBJECT.within(self._within).rows.where(tenant.c.id.in_(tenant_ids)))
        return [{**row, "partition": self._partition_of(id_in(row, "organization_id"))} for row in rows]

    async def tenants_of(self, organization_id: int, most: int) -> int:
        """How many tenants an organization has, `most` where there are more."""
        owner = await self._known(organization, organization_id)
        [row] = await self._rows(_TENANTS, owner=owner, most=most)
        return id_in(row, "count")

    async def organization_days(self, organization_id: int, since: date, rows_max: int) -> Sequence[Row]:
        """An organization's use by day and service, oldest first."""
        owner = await self._known(organization, organization_id)
        return await self._rows(_ORGANIZATION_DAYS, owner=owner, since=since, rows=rows_max)

    async def invoice_lines(self, invoice_id: int, after: int, rows_max: int) -> Sequence[Row]:
        """An invoice's lines after a position, in order."""
        which = await self._known(invoice, invoice_id)
        rows = await self._rows(LINES, invoice=which, after=after, rows=rows_max)
        return [dict(row["line"]) for row in rows]  # type: ignore[call-overload]  # an object each

    async def budget_accounts(self, budget_id: int, start: datetime, rows_max: int) -> Sequence[Row]:
        """Accounts of a budget in the window that began then, those that used most first."""
        here = (budget_use.c.budget_id == budget_id, budget_use.c.start == start, *self._own(budget_use))
        most = (budget_use.c.used.desc(), budget_use.c.value)
        return await self._rows(select(budget_use).where(*here).order_by(*most).limit(rows_max))

    async def busiest(self, day: date, rows_max: int) -> Sequence[Row]:
        """The tenants that used most tokens on a UTC day, most first, each with the sums of all (`all_…`)."""
        return await self._rows(_BUSIEST, day=day, rows=rows_max, within=self._within)

    def _own(self, table: Table) -> Sequence[ColumnElement[bool]]:
        return () if self._within is None else (owned(table, self._within),)

    async def _known(self, table: Table, row_id: int) -> int:
        """The id of a row, 0 where it is not there for whoever asks."""
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
