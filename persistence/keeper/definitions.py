"""What is defined of accounts, read from the tables in the words of the core.

One query a kind, for one account or for all of a partition's organizations (a rebuild). What many accounts
share is made once: limits, plans, terms without prices or budgets of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from functools import lru_cache
from itertools import groupby
from typing import Any

import msgspec
from sqlalchemy import RowMapping, text
from sqlalchemy.ext.asyncio import AsyncConnection

from gateway.core.accounts.budget_terms import read_budget
from gateway.core.accounts.budgets import Budget
from gateway.core.accounts.definitions import (
    CatalogueDefinition,
    KeyDefinition,
    Negotiated,
    OrganizationAccount,
    OrganizationDefinition,
    OrganizationTerms,
    PricesDefinition,
    ServiceUse,
    TenantAccount,
    TenantDefinition,
    UserDefinition,
)
from gateway.core.accounts.plan_terms import TERMS, PlanTerms, read_terms
from gateway.core.accounts.weights import millionths
from gateway.core.billing.price_book import read_price
from gateway.core.billing.pricing import read_pricing
from gateway.core.model import Limits, Service
from gateway.core.moments import ms_of
from persistence.claimed import GIVEN_UP
from persistence.resources.prices import in_force

MICRO = Decimal(1_000_000)
# How many limits are remembered, as they are written.
LIMITS_KEPT = 4_096
# The columns that say which plan a tenant follows.
_STATED = ("plan_id", "anchor", *(one.name for one in TERMS))

_ORGANIZATIONS = """
SELECT id, CAST(limits AS text) AS limits, services = 'listed' AS listed, currency, credit_limit,
       spend_cap, credit_balance, credit_ahead,
       credit_epoch, credit_last_seq, spend_epoch, spend_last_seq, spent, spend_month,
       (SELECT jsonb_agg(jsonb_build_array(n.service_id, n.negotiated_credits, b.meter, n.pricing,
                                           n.counts_tokens) ORDER BY n.service_id)
          FROM organization_service AS n LEFT JOIN business_model AS b ON b.id = n.business_model_id
         WHERE n.organization_id = organization.id) AS negotiated,
       (SELECT jsonb_build_object('features', p.feature_access,
               'since', extract(epoch FROM s.start_date) * 1000,
               'until', extract(epoch FROM s.end_date) * 1000)
          FROM organization_subscription AS s JOIN subscription_plan AS p ON p.id = s.plan_id
         WHERE s.organization_id = organization.id AND s.start_date < s.end_date) AS subscription,
       EXISTS (SELECT FROM subscription_segment AS g WHERE g.organization_id = organization.id
                  AND g.start_date < g.end_date
                  AND g.start_date <= (now() AT TIME ZONE 'UTC')::date) AS subscribed,
       (SELECT jsonb_agg(jsonb_build_array(u.service_id, u.activated, u.quantity, u.in_money)) FROM (
            SELECT service_id, in_money, bool_or(activated) AS activated, sum(quantity) AS quantity
              FROM (
                SELECT service_id, false AS in_money, true AS activated, 0::bigint AS quantity
                  FROM service_activation AS a WHERE a.organization_id = organization.id
                UNION ALL
                SELECT service_id, unit_price = 0.000000001, false, quantity FROM usage_tier AS d
                 WHERE d.organization_id = organization.id AND d.quantity <> 0
                   AND d.day >= date_trunc('month', now() AT TIME ZONE 'UTC')) AS each
             GROUP BY service_id, in_money) AS u) AS uses,
       cast(extract(year FROM now() AT TIME ZONE 'UTC') * 12 + extract(month FROM now() AT TIME ZONE 'UTC')
            AS integer) AS this_month
  FROM organization WHERE {where} ORDER BY id"""
_TENANTS = """
SELECT t.id, t.organization_id, CAST(t.limits AS text) AS limits,
       CAST(t.user_limits AS text) AS user_limits, p.id AS plan_id, p.{terms},
       coalesce(q.anchor, 1) AS anchor, coalesce(q.last_seq, 0) AS last_seq, q.total, q.tokens_used,
       q.tokens_remaining, q.tokens_granted, q.manual_block,
       q.last_reset, q.next_reset_at, q.cycle, coalesce(q.epoch, 0) AS epoch,
       -- Whether it is settled what is beyond a plan that carries: by a plan of before, or before it carried.
       -- A change of a plan says so; a correction may say the same, by what its caller wrote.
       p.overage_policy = 'carry' AND q.last_reset IS NOT NULL AND (
            EXISTS (SELECT FROM token_ledger AS l JOIN control_write AS w
                         ON w.id = l.control_write_id AND w.verb = 'plan'
                     WHERE l.tenant_id = t.id AND l.transaction_type = 'adjust'
                       AND l.created_at >= q.last_reset AND l.metadata->'forgives' IS NOT NULL)
         OR EXISTS (SELECT FROM (SELECT overage_policy, lead(since) OVER (ORDER BY since) AS till
                                   FROM token_plan_price WHERE plan_id = p.id) AS v
                     WHERE v.overage_policy <> 'carry' AND v.till > greatest(q.last_reset,
                           (SELECT max(l.created_at) FROM token_ledger AS l JOIN control_write AS w
                                ON w.id = l.control_write_id AND w.verb = 'plan'
                             WHERE l.tenant_id = t.id AND l.transaction_type <> 'consume')))) AS forgives
  FROM tenant AS t LEFT JOIN token_plan AS p ON p.id = coalesce(t.plan_id, t.inherited_plan_id)
  LEFT JOIN tenant_quota AS q ON q.tenant_id = t.id WHERE {where} ORDER BY t.id""".replace(
    "{terms}", ", p.".join(one.name for one in TERMS)
)
_KEYS = """
SELECT k.id, k.tenant_id, t.organization_id, k.digest, CAST(k.limits AS text) AS limits, k.user, k.models,
       k.revoked_at, k.expires_at, k.user_header,
       k.issuer IS NOT NULL AND NOT starts_with(k.digest, :given_up) AS of_tokens
  FROM api_key AS k JOIN tenant AS t ON t.id = k.tenant_id WHERE {where} ORDER BY k.id"""
_USERS = """
SELECT t.id AS tenant_id, t.organization_id, u.external_id,
       CASE WHEN u.deleted_at IS NULL THEN CAST(u.limits AS text) ELSE '{{}}' END AS limits
  FROM app_user AS u JOIN tenant AS t ON t.organization_id = u.organization_id
 WHERE {where} ORDER BY u.id, t.id"""
_SERVICES = """
SELECT s.id, s.key, s.credits, s.service_type, s.counts_tokens, s.counts_none, s.pricing, s.upstream,
       s.paths, b.meter
  FROM service AS s JOIN business_model AS b ON b.id = s.business_model_id
 WHERE s.deleted_at IS NULL ORDER BY s.id"""

_WEIGHTS = """
SELECT id, weights FROM token_plan WHERE weights <> '{}' AND deleted_at IS NULL ORDER BY id"""

_BUDGETS = """
SELECT * FROM budget WHERE organization_id = ANY(:ids) AND deleted_at IS NULL ORDER BY organization_id, id"""


async def organizations(
    connection: AsyncConnection, where: str, values: Mapping[str, Any]
) -> list[OrganizationAccount]:
    """Organizations with their credit and spend accounts."""
    found = await _rows(connection, _ORGANIZATIONS, where, values)
    budgets = await budgets_of(connection, [row["id"] for row in found])
    return [
        OrganizationAccount(
            definition=OrganizationDefinition(
                organization_id=row["id"],
                limits=_limits(row["limits"]),
                credit_limit=row["credit_limit"],
                cap=None if row["spend_cap"] is None else int(row["spend_cap"] * MICRO),
                terms=_organization_terms(row, budgets.get(row["id"], ())),
            ),
            balance=row["credit_balance"],
            ahead=row["credit_ahead"],
            credit_seq=row["credit_last_seq"],
            spend_seq=row["spend_last_seq"],
            spent=row["spent"],
            month=row["spend_month"].year * 12 + row["spend_month"].month if row["spend_month"] else 0,
            epoch=max(row["credit_epoch"], row["spend_epoch"]),
            uses=tuple(
                ServiceUse(service_id, activated, row["this_month"], quantity, in_money)
                for service_id, activated, quantity, in_money in row["uses"] or ()
            ),
        )
        for row in found
    ]


async def tenants(connection: AsyncConnection, where: str, values: Mapping[str, Any]) -> list[TenantAccount]:
    """Tenants with their token accounts."""
    at_ms, plans = now_ms(), dict[tuple[object, ...], PlanTerms]()

    def terms(row: RowMapping) -> PlanTerms:
        stated = tuple(row[name] for name in _STATED)
        if stated not in plans:
            plans[stated] = read_terms(dict(zip(_STATED, stated, strict=True)), at_ms)
        return plans[stated]

    return [
        TenantAccount(
            definition=TenantDefinition(
                tenant_id=row["id"],
                organization_id=row["organization_id"],
                limits=_limits(row["limits"]),
                user_limits=_limits(row["user_limits"]),
                terms=terms(row),
                has_ledger=row["last_seq"] > 0,
            ),
            remaining=row["tokens_remaining"],
            used=row["tokens_used"] or 0,
            cycle=row["cycle"] or 0,
            total=row["total"],
            manual_block=bool(row["manual_block"]),
            last_reset_ms=ms_of(row["last_reset"]),
            next_reset_ms=ms_of(row["next_reset_at"]),
            seq=row["last_seq"],
            epoch=row["epoch"],
            granted=row["tokens_granted"] or 0,
            forgives=bool(row["forgives"]),
        )
        for row in await _rows(connection, _TENANTS, where, values)
    ]


async def keys(connection: AsyncConnection, where: str, values: Mapping[str, Any]) -> list[KeyDefinition]:
    """API keys and whom they stand for."""
    return [
        KeyDefinition(
            key_id=row["id"],
            tenant_id=row["tenant_id"],
            organization_id=row["organization_id"],
            digest=row["digest"],
            limits=_limits(row["limits"]),
            user=row["user"] or "",
            models=None if row["models"] is None else frozenset(row["models"]),
            revoked=row["revoked_at"] is not None,
            expires_ms=ms_of(row["expires_at"]),
            user_header=row["user_header"],
            of_tokens=row["of_tokens"],
        )
        for row in await _rows(connection, _KEYS, where, {**values, "given_up": GIVEN_UP})
    ]


async def users(connection: AsyncConnection, where: str, values: Mapping[str, Any]) -> list[UserDefinition]:
    """Users' own limits, in each tenant of their organization."""
    return [
        UserDefinition(row["tenant_id"], row["organization_id"], row["external_id"], _limits(row["limits"]))
        for row in await _rows(connection, _USERS, where, values)
    ]


async def catalogue(connection: AsyncConnection) -> CatalogueDefinition:
    """Every service as the catalogue has it, with the meter of its business model, and what plans weigh."""
    rows = (await connection.execute(text(_SERVICES))).mappings().all()
    weighing = (await connection.execute(text(_WEIGHTS))).mappings().all()
    return CatalogueDefinition(
        tuple(
            Service(
                id=row["id"],
                key=row["key"],
                meter=row["meter"],
                counts_tokens=row["counts_tokens"],
                counts_none=row["counts_none"],
                credits=row["credits"],
                one_time=row["service_type"] == "One-Time",
                pricing=read_pricing(row["pricing"]),
                upstream=row["upstream"] or "",
                paths=tuple(row["paths"] or ()),
            )
            for row in rows
        ),
        {row["id"]: millionths(row["weights"]) for row in weighing},
    )


async def prices(connection: AsyncConnection) -> PricesDefinition:
    """Prices of models known by their names that are in force, were a day ago, or will be."""
    rows = (await connection.execute(in_force(datetime.now(UTC)))).mappings().all()
    return PricesDefinition(tuple(read_price(dict(row)) for row in rows))


async def budgets_of(
    connection: AsyncConnection, organization_ids: Sequence[int]
) -> dict[int, tuple[Budget, ...]]:
    """Budgets by whose they are."""
    rows = (await connection.execute(text(_BUDGETS), {"ids": list(organization_ids)})).mappings().all()
    return {
        organization_id: tuple(read_budget(dict(row)) for row in its)
        for organization_id, its in groupby(rows, lambda row: row["organization_id"])
    }


async def _rows(
    connection: AsyncConnection, query: str, where: str, values: Mapping[str, Any]
) -> Sequence[RowMapping]:
    return (await connection.execute(text(query.format(where=where)), values)).mappings().all()


@lru_cache(LIMITS_KEPT)
def _limits(document: str | None) -> Limits:
    return Limits(**(msgspec.json.decode(document) if document else {}))


@lru_cache
def _plain_terms(currency: str, *, subscribed: bool, listed: bool) -> OrganizationTerms:
    return OrganizationTerms(currency=currency, subscribed=subscribed, listed=listed)


def _organization_terms(row: RowMapping, budgets: tuple[Budget, ...]) -> OrganizationTerms:
    if not (row["negotiated"] or row["subscription"] or budgets):
        return _plain_terms(row["currency"], subscribed=row["subscribed"], listed=row["listed"])
    subscription = row["subscription"] or {"features": (), "since": 0, "until": 0}
    return OrganizationTerms(
        negotiated=tuple(
            Negotiated(service_id, credits_, meter, read_pricing(pricing) if pricing else None, counts)
            for service_id, credits_, meter, pricing, counts in row["negotiated"] or ()
        ),
        features=tuple(subscription["features"]),
        since_ms=int(subscription["since"]),
        until_ms=int(subscription["until"]),
        subscribed=row["subscribed"],
        currency=row["currency"],
        budgets=budgets,
        listed=row["listed"],
    )


def now_ms() -> int:
    """The time at which a zone's clocks are told."""
    return ms_of(datetime.now(UTC))
