"""Reads the definitions of accounts from the tables, as objects of the core.

One query a kind, for one account or for all of a partition's organizations (a rebuild). Objects that many
accounts share are created once: limits, plans, terms without own prices or budgets.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from functools import lru_cache
from itertools import groupby
from typing import Any

import msgspec
from sqlalchemy import RowMapping
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from gateway.core.accounts.budget_amounts import read_budget
from gateway.core.accounts.budgets import Budget
from gateway.core.accounts.definitions import (
    CATALOGUE_ACCOUNT,
    CREDENTIALS_ACCOUNT,
    NO_LISTS,
    PRICES_ACCOUNT,
    CatalogueDefinition,
    ControlWrite,
    Definition,
    KeyDefinition,
    ModelLists,
    NegotiatedTerms,
    OrganizationAccount,
    OrganizationDefinition,
    OrganizationTerms,
    PricesDefinition,
    ServiceUse,
    Share,
    TenantAccount,
    TenantDefinition,
    UserDefinition,
)
from gateway.core.accounts.groups import DIGEST_BYTES, NO_GROUPS, OWN, GroupTerms
from gateway.core.accounts.plans import TERMS, PlanTerms, read_terms
from gateway.core.accounts.run_policies import NO_POLICIES, RunPolicies, RunPolicy
from gateway.core.accounts.spent_answers import UNSAID, SpentAnswer
from gateway.core.accounts.weights import millionths
from gateway.core.billing.money import read_pricing
from gateway.core.billing.price_book import read_price
from gateway.core.calls.routes import EVERYBODY, ModelRule, ModelTarget
from gateway.core.integrity.recovery import NewestWrite
from gateway.core.model import BLOCK_CAUSES, BlockCause, Limits, Service
from gateway.core.times import ZoneOffset, ms_of
from persistence import ids
from persistence.billing.quotas import block_cause
from persistence.engine import looking
from persistence.entity import insert_writes, write_of
from persistence.queries import query
from persistence.resources.claimed_subjects import GIVEN_UP
from persistence.resources.prices import KEPT, in_force, rates_in_force

MICRO = Decimal(1_000_000)
# Maximum of cached limits, by their JSON.
LIMITS_KEPT = 4_096
# The held keys and overrides of an organization, as Redis knows them (`KnownOtherwise`).
HELD = "h.account = 'access:' || {}.organization_id AND h.released_at IS NULL"
# The columns of a tenant's plan.
_STATED = ("plan_id", "anchor", *(term.name for term in TERMS))

# What an organization may have much of is read once for all: a look for each would read the whole of a table
# whose rows are of few organizations.
_ORGANIZATIONS = query("definitions.organizations", "Select the definitions of organizations", """
SELECT id, (extract(epoch FROM created_at) * 1000000)::bigint AS created,
       CAST(limits AS text) AS limits, services = 'listed' AS listed, currency, credit_limit,
       spend_cap, credit_balance, credit_ahead,
       credit_epoch, credit_last_seq, spend_epoch, spend_last_seq, spent, spend_month,
       (SELECT jsonb_agg(jsonb_build_array(n.service_id, n.negotiated_credits, b.meter, n.pricing,
                                           n.counts_tokens) ORDER BY n.service_id)
          FROM organization_service AS n LEFT JOIN business_model AS b ON b.id = n.business_model_id
         WHERE n.organization_id = organization.id) AS negotiated,
       models, spent_status, retry_after_max_s, tags, tenant_models, runs, tenant_runs, user_models, uses,
       (SELECT jsonb_build_object('features', p.feature_access,
               'since', extract(epoch FROM s.start_date) * 1000,
               'until', extract(epoch FROM s.end_date) * 1000)
          FROM organization_subscription AS s JOIN subscription_plan AS p ON p.id = s.plan_id
         WHERE s.organization_id = organization.id AND s.start_date < s.end_date) AS subscription,
       EXISTS (SELECT FROM subscription_segment AS g WHERE g.organization_id = organization.id
                  AND g.start_date < g.end_date
                  AND g.start_date <= (now() AT TIME ZONE 'UTC')::date) AS subscribed,
       cast(extract(year FROM now() AT TIME ZONE 'UTC') * 12 + extract(month FROM now() AT TIME ZONE 'UTC')
            AS integer) AS this_month
  FROM organization
  LEFT JOIN (SELECT organization_id, jsonb_agg(jsonb_build_array(service_id, activated, quantity, in_money)) AS uses
    FROM (SELECT organization_id, service_id, in_money, bool_or(activated) AS activated, sum(quantity) AS quantity
            FROM (SELECT organization_id, service_id, false AS in_money, true AS activated, 0::bigint AS quantity
                    FROM service_activation WHERE organization_id = ANY(:ids)
                   UNION ALL
                  SELECT organization_id, service_id, unit_price = 0.000000001, false, quantity FROM usage_tier
                   WHERE organization_id = ANY(:ids) AND quantity <> 0
                     AND day >= date_trunc('month', now() AT TIME ZONE 'UTC')) AS each
           GROUP BY organization_id, service_id, in_money) AS of_services
   GROUP BY organization_id) AS u ON u.organization_id = id""" + "".join(
    f"""
  LEFT JOIN (SELECT organization_id, jsonb_object_agg({owner}, {field}) AS {name} FROM {table}
    WHERE organization_id = ANY(:ids) AND {field} IS NOT NULL AND deleted_at IS NULL
    GROUP BY organization_id) AS {name} ON {name}.organization_id = organization.id"""
    for name, table, owner, field in (
        ("tenant_models", "tenant", "id", "models"), ("tenant_runs", "tenant", "id", "runs"),
        ("user_models", "app_user", "external_id", "models"),
    )
) + " WHERE id = ANY(:ids) ORDER BY id")  # fmt: skip
_TENANTS = """
SELECT t.id, t.organization_id, (extract(epoch FROM t.created_at) * 1000000)::bigint AS created,
       CAST(t.limits AS text) AS limits,
       CAST(t.user_limits AS text) AS user_limits, p.id AS plan_id, p.{terms},
       coalesce(q.anchor, 1) AS anchor, coalesce(q.last_seq, 0) AS last_seq, q.total, q.tokens_used,
       q.tokens_remaining, q.tokens_granted, q.manual_block, {cause} AS cause,
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
    "{terms}", ", p.".join(term.name for term in TERMS)
).replace("{cause}", block_cause("t.id", "q.manual_block"))
_KEYS = """
SELECT k.id, k.tenant_id, t.organization_id, (extract(epoch FROM k.created_at) * 1000000)::bigint AS created,
       k.digest, CAST(k.limits AS text) AS limits, k.user, k.models,
       k.revoked_at, k.expires_at, k.user_header, k.unsettled, k.priority, k.runs,
       k.spent_status, k.retry_after_max_s, k.tags,
       k.issuer IS NOT NULL AND NOT starts_with(k.digest, :given_up) AS of_tokens,
       cast(h.stood->'keys'->>k.id::text AS bigint) AS held_end
  FROM api_key AS k JOIN tenant AS t ON t.id = k.tenant_id
  LEFT JOIN quarantine AS h ON {held} WHERE {where} ORDER BY k.id""".replace("{held}", HELD.format("t"))
_USERS = """
SELECT t.id AS tenant_id, t.organization_id, u.external_id,
       CASE WHEN u.deleted_at IS NULL THEN CAST(u.limits AS text) ELSE '{{}}' END AS limits
  FROM app_user AS u JOIN tenant AS t ON t.organization_id = u.organization_id
 WHERE {where} ORDER BY u.id, t.id"""
# Fields with the same name in rows and definitions.
_OF_KEY = (
    "tenant_id", "organization_id", "digest", "user_header", "unsettled", "priority", "of_tokens", "created",
)  # fmt: skip
_OF_SERVICE = ("id", "key", "meter", "counts_tokens", "counts_none", "credits")
_SERVICES = query("definitions.services", "Select the services of the catalogue", """
SELECT s.id, s.key, s.credits, s.service_type, s.counts_tokens, s.counts_none, s.pricing, s.upstream,
       s.paths, b.meter
  FROM service AS s JOIN business_model AS b ON b.id = s.business_model_id
 WHERE s.deleted_at IS NULL ORDER BY s.id""")  # fmt: skip

_WEIGHTS = query("definitions.weights", "Select the weights of plans", """
SELECT id, weights FROM token_plan WHERE weights <> '{}' AND deleted_at IS NULL ORDER BY id""")  # fmt: skip

_MODELS = query("definitions.models", "Select the rules of models", """
SELECT id, name, targets, fallback, organization_id, output_max, context FROM model ORDER BY id""")  # fmt: skip

_SHARES = query("definitions.shares", "Select the shares of upstreams", """
SELECT id, upstream, model, organization_id, tenant_id, weight, guaranteed, priority FROM share ORDER BY id""")  # fmt: skip

_OF_OWNERS = """
  LEFT JOIN (
    SELECT budget_id, jsonb_object_agg(value, jsonb_build_array(
           amount::text, floor(extract(epoch FROM until) * 1000))) AS {name} FROM {table}
     WHERE coalesce(until > now(), true)
       AND budget_id IN (SELECT id FROM budget WHERE organization_id = ANY(:ids) AND deleted_at IS NULL)
     GROUP BY budget_id) AS {table} ON {table}.budget_id = budget.id"""
_BUDGETS = query("definitions.budgets", "Select the budgets of organizations, with raises and overrides", f"""
SELECT budget.*, raises, jsonb_strip_nulls(
           coalesce(overrides, '{{}}') || coalesce(h.stood->'overrides'->(budget.id::text), '{{}}')) AS overrides
  FROM budget LEFT JOIN quarantine AS h ON {HELD.format("budget")}
{_OF_OWNERS.format(table="budget_raise", name="raises")}{_OF_OWNERS.format(table="budget_override", name="overrides")}
 WHERE budget.organization_id = ANY(:ids) AND deleted_at IS NULL ORDER BY budget.organization_id, id""")  # fmt: skip


# A row of the table is made as `row_of` in `gateway/core/accounts/groups.py` makes it.
_GROUPS = query("definitions.groups", "Select the groups of organizations, with their members", f"""
WITH live AS (SELECT * FROM caller_group WHERE organization_id = ANY(:ids) AND deleted_at IS NULL),
members AS (
    SELECT organization_id, kind, substring(sha256(convert_to(kind || ':' || member, 'UTF8')) FOR {DIGEST_BYTES})
           || int8send(id) AS row
      FROM (SELECT organization_id, kind, member, id
              FROM live CROSS JOIN jsonb_array_elements_text(members) AS m (member)
             UNION ALL SELECT organization_id, '{OWN}', s.name, id FROM live JOIN signed_in_user AS s
             USING (organization_id) WHERE jsonb_exists(s.claims, live.claim)) AS each)
SELECT organization_id AS id, kinds, "table", claims FROM (SELECT DISTINCT organization_id FROM live) AS each
  LEFT JOIN (SELECT organization_id, array_agg(DISTINCT kind) AS kinds, string_agg(row, '' ORDER BY row) AS "table"
               FROM members GROUP BY organization_id) AS m USING (organization_id)
  LEFT JOIN (SELECT organization_id, jsonb_object_agg(claim, ids) AS claims
               FROM (SELECT organization_id, claim, jsonb_agg(id ORDER BY id) AS ids
                       FROM live WHERE claim IS NOT NULL GROUP BY organization_id, claim) AS of_claims
              GROUP BY organization_id) AS c USING (organization_id)""")  # fmt: skip


async def organizations(connection: AsyncConnection, ids: Sequence[int]) -> list[OrganizationAccount]:
    rows = (await connection.execute(_ORGANIZATIONS, {"ids": ids})).mappings().all()
    budgets, groups = await budgets_of(connection, ids), await groups_of(connection, ids)
    return [
        OrganizationAccount(
            definition=OrganizationDefinition(
                organization_id=row["id"],
                limits=_limits(row["limits"]),
                credit_limit=row["credit_limit"],
                cap=None if row["spend_cap"] is None else int(row["spend_cap"] * MICRO),
                terms=_organization_terms(row, budgets.get(row["id"], ()), groups.get(row["id"], NO_GROUPS)),
                created=row["created"],
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
        for row in rows
    ]


async def tenants(connection: AsyncConnection, where: str, values: Mapping[str, Any]) -> list[TenantAccount]:
    """Return the definitions and balances of the tenants that the SQL condition `where` selects."""
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
                created=row["created"],
            ),
            remaining=row["tokens_remaining"],
            used=row["tokens_used"] or 0,
            cycle=row["cycle"] or 0,
            total=row["total"],
            manual_block=bool(row["manual_block"]),
            block_cause=BLOCK_CAUSES.get(row["cause"], BlockCause.MANUAL),
            last_reset_ms=ms_of(row["last_reset"]),
            next_reset_ms=ms_of(row["next_reset_at"]),
            seq=row["last_seq"],
            epoch=row["epoch"],
            granted=row["tokens_granted"] or 0,
            forgives=bool(row["forgives"]),
        )
        for row in await _rows(connection, "tenants", _TENANTS, where, values)
    ]


async def keys(connection: AsyncConnection, where: str, values: Mapping[str, Any]) -> list[KeyDefinition]:
    """Return the definitions of the API keys that the SQL condition `where` selects."""
    return [
        KeyDefinition(
            **{name: row[name] for name in _OF_KEY},
            key_id=row["id"],
            limits=_limits(row["limits"]),
            user=row["user"] or "",
            models=None if row["models"] is None else frozenset(row["models"]),
            revoked=row["revoked_at"] is not None or row["held_end"] == 0,
            expires_ms=min(filter(None, (ms_of(row["expires_at"]), row["held_end"])), default=0),
            runs=_read_run_policy(row["runs"]),
            spent=_spent_answer(row),
            tags=tuple(sorted((row["tags"] or {}).items())),
        )
        for row in await _rows(connection, "keys", _KEYS, where, {**values, "given_up": GIVEN_UP})
    ]


async def users(connection: AsyncConnection, where: str, values: Mapping[str, Any]) -> list[UserDefinition]:
    return [
        UserDefinition(row["tenant_id"], row["organization_id"], row["external_id"], _limits(row["limits"]))
        for row in await _rows(connection, "users", _USERS, where, values)
    ]


async def catalogue(connection: AsyncConnection) -> CatalogueDefinition:
    """Read the catalogue for the gateways: services with their meters, and weights of tokens.

    Weights belong to plans and models: how much a kind of token counts.
    """
    rows = (await connection.execute(_SERVICES)).mappings().all()
    weighing = (await connection.execute(_WEIGHTS)).mappings().all()
    return CatalogueDefinition(
        tuple(
            Service(
                **{name: row[name] for name in _OF_SERVICE},
                one_time=row["service_type"] == "One-Time",
                pricing=read_pricing(row["pricing"]),
                upstream=row["upstream"] or "",
                paths=tuple(row["paths"] or ()),
            )
            for row in rows
        ),
        {row["id"]: millionths(row["weights"]) for row in weighing},
        tuple(_model(row) for row in (await connection.execute(_MODELS)).mappings()),
        tuple(_share(row) for row in (await connection.execute(_SHARES)).mappings()),
    )


def _share(row: RowMapping) -> Share:
    guaranteed = row["guaranteed"] or {}
    return Share(
        row["upstream"],
        row["model"] or "",
        row["organization_id"],
        row["tenant_id"] or 0,
        row["weight"],
        guaranteed.get("requests_per_minute", 0),
        guaranteed.get("tokens_per_minute", 0),
        row["priority"],
    )


def _model(row: RowMapping) -> ModelRule:
    name = str(row["name"])
    return ModelRule(
        name.removesuffix("*"),
        name.endswith("*"),
        tuple(ModelTarget(one["upstream"], one.get("model") or "") for one in row["targets"]),
        frozenset(row["fallback"]),
        row["organization_id"] or EVERYBODY,
        f"models {row['id']}",
        row["output_max"],
        row["context"],
    )


async def prices(connection: AsyncConnection) -> PricesDefinition:
    """Read prices of named models, and exchange rates: present and future ones, and those of the last day."""
    now = datetime.now(UTC)
    rows = (await connection.execute(in_force(now))).mappings().all()
    rates = await connection.run_sync(lambda session: rates_in_force(session, now - KEPT))
    return PricesDefinition(tuple(read_price(dict(row)) for row in rows), rates)


async def budgets_of(
    connection: AsyncConnection, organization_ids: Sequence[int]
) -> dict[int, tuple[Budget, ...]]:
    rows = (await connection.execute(_BUDGETS, {"ids": list(organization_ids)})).mappings().all()
    return {
        organization_id: tuple(read_budget(dict(row)) for row in budget_rows)
        for organization_id, budget_rows in groupby(rows, lambda row: row["organization_id"])
    }


async def _rows(
    connection: AsyncConnection, kind: str, sql: str, where: str, values: Mapping[str, Any]
) -> Sequence[RowMapping]:
    statement = query(f"definitions.{kind}", f"Select the definitions of {kind}", sql.format(where=where))
    return (await connection.execute(statement, values)).mappings().all()


@lru_cache(LIMITS_KEPT)
def _limits(document: str | None) -> Limits:
    return Limits(**(msgspec.json.decode(document) if document else {}))


@lru_cache
def _plain_terms(currency: str, *, subscribed: bool, listed: bool) -> OrganizationTerms:
    return OrganizationTerms(currency=currency, subscribed=subscribed, listed=listed)


async def groups_of(connection: AsyncConnection, organization_ids: Sequence[int]) -> Mapping[int, GroupTerms]:
    """Read the groups of organizations that have any with members or claims."""
    rows = (await connection.execute(_GROUPS, {"ids": organization_ids})).mappings()
    return {
        row["id"]: GroupTerms(
            tuple(row["kinds"] or ()), bytes(row["table"] or b""),
            {claim: tuple(ids) for claim, ids in (row["claims"] or {}).items()},
        )
        for row in rows
    }  # fmt: skip


def _organization_terms(
    row: RowMapping, budgets: tuple[Budget, ...], groups: GroupTerms
) -> OrganizationTerms:
    """Return an organization's terms; organizations with plain terms share one value."""
    lists, runs, spent = _read_model_lists(row), _run_policies(row), _spent_answer(row)
    plain = lists is NO_LISTS and runs is NO_POLICIES and spent is UNSAID and not row["tags"]
    if plain and groups == NO_GROUPS and not (row["negotiated"] or row["subscription"] or budgets):
        return _plain_terms(row["currency"], subscribed=row["subscribed"], listed=row["listed"])
    subscription = row["subscription"] or {"features": (), "since": 0, "until": 0}
    return OrganizationTerms(
        negotiated=tuple(
            NegotiatedTerms(service_id, credits_, meter, read_pricing(pricing) if pricing else None, counts)
            for service_id, credits_, meter, pricing, counts in row["negotiated"] or ()
        ),
        features=tuple(subscription["features"]),
        since_ms=int(subscription["since"]),
        until_ms=int(subscription["until"]),
        subscribed=row["subscribed"],
        currency=row["currency"],
        budgets=budgets,
        listed=row["listed"],
        models=lists,
        runs=runs,
        spent=spent,
        tags=tuple(row["tags"] or ()),
        groups=groups,
    )


def _read_model_lists(row: RowMapping) -> ModelLists:
    """Return the lists of allowed models of an organization, its tenants and its users."""
    own, tenants, users = row["models"], row["tenant_models"] or {}, row["user_models"] or {}
    if own is None and not tenants and not users:
        return NO_LISTS
    return ModelLists(
        None if own is None else tuple(own),
        {int(tenant_id): tuple(models) for tenant_id, models in tenants.items()},
        {user: tuple(models) for user, models in users.items()},
    )


def _spent_answer(row: RowMapping) -> SpentAnswer:
    status, retry_after_max_s = row["spent_status"], row["retry_after_max_s"]
    return SpentAnswer(status or 0, retry_after_max_s or 0) if status or retry_after_max_s else UNSAID


def _run_policies(row: RowMapping) -> RunPolicies:
    own, tenants = row["runs"], row["tenant_runs"]
    if own is None and not tenants:
        return NO_POLICIES
    each = {int(id_): _read_run_policy(tenant) for id_, tenant in (tenants or {}).items()}
    return RunPolicies(_read_run_policy(own), {id_: one for id_, one in each.items() if one is not None})


def _read_run_policy(document: Mapping[str, Any] | None) -> RunPolicy | None:
    """Return the policy for runs in a stored document; its amount in units of 10^-9."""
    if document is None:
        return None
    amount = int(Decimal(document["max"]).scaleb(9)) if "max" in document else 0
    return RunPolicy(
        amount, document.get("max_calls", 0), document.get("ttl_s", 0), document.get("required", False)
    )


def now_ms() -> int:
    """Return the Unix time in milliseconds."""
    return ms_of(datetime.now(UTC))


# Definitions of the accounts that control writes name: a few queries a kind, for any number of names.

Named = Sequence[tuple[str, Definition]]


async def of_accounts(
    connection: AsyncConnection, accounts: Collection[str]
) -> Mapping[str, tuple[Definition, ...]]:
    """Return the definitions (settings for the counters) of accounts by name, such as `tenant:7`.

    Names that no longer exist are left out.
    """
    named: dict[str, list[str]] = defaultdict(list)
    for account in accounts:
        kind, _, name = account.partition(":")
        named[kind].append(name)
    definitions: dict[str, tuple[Definition, ...]] = {}
    for kind, names in named.items():
        if kind == CATALOGUE_ACCOUNT:
            definitions[kind] = (await catalogue(connection),)
        elif kind == PRICES_ACCOUNT:
            definitions[kind] = (await prices(connection),)
        elif kind != CREDENTIALS_ACCOUNT:
            definitions |= {
                f"{kind}:{name}": (each,) for name, each in await _read_accounts(connection, kind, names)
            }
    return definitions


async def _read_accounts(connection: AsyncConnection, kind: str, names: Sequence[str]) -> Named:
    """Read the accounts of a kind; `names` are their ids as text, that of a user is `TENANT_ID:USER`."""
    if kind == "user":
        parts = [name.partition(":") for name in names]
        values = {"tenants": [int(one) for one, _, _ in parts], "externals": [user for _, _, user in parts]}
        where = """(t.id, u.external_id) IN
       (SELECT * FROM unnest(cast(:tenants AS bigint[]), cast(:externals AS text[])))"""
        found = await users(connection, where, values)
        return [(f"{each.tenant_id}:{each.user}", each) for each in found]
    ids = {"ids": [int(name) for name in names]}
    if kind == "key":
        return [(str(each.key_id), each) for each in await keys(connection, "k.id = ANY(:ids)", ids)]
    if kind == "tenant":
        definitions = [tenant.definition for tenant in await tenants(connection, "t.id = ANY(:ids)", ids)]
        return [(str(each.tenant_id), each) for each in definitions]
    whole = [organization.definition for organization in await organizations(connection, ids["ids"])]
    return [(str(each.organization_id), each) for each in whole]


# Control writes for the pusher: in order, many accounts at a time, with their definitions.
#
# An account's writes are read under a transaction-level advisory lock, so that two keepers never push the
# same account. Their rows are locked too: the flusher finishes a write before Redis forgets its id, so it
# waits for a push that may apply the write again, and a write that it is finishing is not read. Waiting for
# an account holds no connection, and pushes hold a limited number, as Redis may hang. A definition is read
# here at the moment of its push: the tables are the truth, and an older definition never replaces a newer one.

# Maximum of writes read at a time, divided among the accounts that are pushed together.
WRITES_MAX = 1_000
# Maximum of concurrent pushes of some accounts, with one connection each.
PUSHES_AT_ONCE_MAX = 4
# Interval of attempts while another keeper pushes the account.
BUSY_S = 0.05

PENDING = "SELECT FROM control_write WHERE state = 'pending'"
# The catalogue and the prices have no partition: the first keeper pushes them.
_WAITING = query("definitions.waiting", "Select accounts with pending control writes", """
SELECT account FROM control_write
 WHERE state = 'pending' AND (cast(:partitions AS smallint[]) IS NULL OR partition IS NULL
                              OR partition = ANY(cast(:partitions AS smallint[])))
 GROUP BY account ORDER BY min(position) LIMIT :n""")  # fmt: skip
_LOCK = query("definitions.lock", "Lock accounts of control writes", """
SELECT account FROM unnest(cast(:accounts AS text[])) AS account
 WHERE pg_try_advisory_xact_lock(hashtextextended('control:' || account, 0))""")  # fmt: skip
_TAKE = query("definitions.take", "Select the first pending control writes of each account", """
SELECT w.id, w.position, w.account, w.verb, w.payload, t.turn FROM control_write AS w JOIN (
       SELECT id, row_number() OVER (PARTITION BY account ORDER BY position) AS turn
         FROM control_write WHERE account = ANY(cast(:accounts AS text[])) AND state = 'pending') AS t
    ON t.id = w.id
 WHERE t.turn <= :n AND w.state = 'pending' ORDER BY w.position FOR NO KEY UPDATE OF w SKIP LOCKED""")  # fmt: skip
_APPLIED = query("definitions.applied", "Store that control writes are applied", """
UPDATE control_write SET applied_at = coalesce(applied_at, now()),
       state = CASE WHEN verb = 'define' THEN 'done' ELSE 'applied' END,
       done_at = CASE WHEN verb = 'define' THEN now() END
 WHERE id = ANY(cast(:ids AS uuid[])) AND state = 'pending'""")  # fmt: skip
_REFUSED = query("definitions.refused", "Store that control writes were refused", """
UPDATE control_write AS w SET state = 'refused', result = jsonb_build_object('reason', r.reason)
  FROM unnest(cast(:ids AS uuid[]), cast(:reasons AS text[])) AS r (id, reason)
 WHERE w.id = r.id AND w.state = 'pending'""")  # fmt: skip
_UNKNOWN_CREDENTIALS = query("definitions.unknown_credentials", "Select digests that no key has", """
SELECT digest FROM unnest(cast(:digests AS text[])) AS digest
 WHERE NOT EXISTS (SELECT FROM api_key AS k WHERE k.digest = digest.digest)""")  # fmt: skip
_TENANT = "tenant:"
_OWNERS = query("definitions.owners", "Select the organizations of tenants",
    "SELECT id, organization_id FROM tenant WHERE id = ANY(:ids)")  # fmt: skip


@dataclass(slots=True, eq=False)
class PendingWrites:
    """The pending writes of accounts, the oldest first; empty for an account without any.

    Accounts in `cut` have more pending writes than were read. `newest` is the newest write of all. None is read
    while the database `is_comparing`: it was set back, and its rows are first compared with what Redis knows.
    """

    connection: AsyncConnection
    by_account: Mapping[str, Sequence[ControlWrite]]
    cut: Collection[str]
    newest: NewestWrite | None
    is_comparing: bool = False

    async def note(
        self, applied: Collection[ControlWrite], refused: Collection[tuple[ControlWrite, str]]
    ) -> None:
        """Store which control writes Redis has applied, and which ones it refuses, each with the reason."""
        if applied:
            await self.connection.execute(_APPLIED, {"ids": [write.id for write in applied]})
        if refused:
            ids, reasons = [write.id for write, _ in refused], [reason for _, reason in refused]
            await self.connection.execute(_REFUSED, {"ids": ids, "reasons": reasons})


class Pushes:
    def __init__(self, engine: AsyncEngine, *, at_once_max: int = PUSHES_AT_ONCE_MAX) -> None:
        self._engine = engine
        self._free = asyncio.Semaphore(at_once_max)
        # Accounts that this process is pushing; `_let_go` signals the end of a push.
        self._taken_accounts: set[str] = set()
        self._let_go = asyncio.Event()

    async def newest(self, known: NewestWrite | None) -> tuple[NewestWrite | None, bool]:
        """Return the newest control write, and whether ids moved, because this database lacks `known`."""
        async with self._engine.begin() as connection:
            moved = await connection.run_sync(ids.keep_ahead, known)
            return await connection.run_sync(ids.newest_write), moved

    async def is_comparing(self) -> bool:
        async with looking(self._engine) as connection:
            return await connection.run_sync(ids.is_comparing)

    async def unknown_credentials(self, digests: Sequence[str]) -> list[str]:
        """Return those of the `digests` that no API key has."""
        async with looking(self._engine) as connection:
            return [*await connection.scalars(_UNKNOWN_CREDENTIALS, {"digests": digests})]

    async def accounts(self, count: int, partitions: Sequence[int] | None = None) -> list[str]:
        """Return up to `count` accounts with pending control writes, the oldest writes first.

        With `partitions`, only accounts in these partitions, and accounts that belong to none.
        """
        partition_list = None if partitions is None else list(partitions)
        async with looking(self._engine) as connection:
            rows = await connection.execute(_WAITING, {"n": count, "partitions": partition_list})
            return [str(row.account) for row in rows]

    @asynccontextmanager
    async def waiting(
        self, accounts: Sequence[str], known: NewestWrite | None = None
    ) -> AsyncIterator[PendingWrites]:
        """Yield the pending control writes of accounts, locked, while no other task pushes these accounts.

        Wait until at least one account is free. `known` is the newest write that Redis knows.
        """
        while True:
            mine = await self._take(accounts)
            try:
                async with self._free, self._engine.begin() as connection:
                    locked = (await connection.execute(_LOCK, {"accounts": mine})).scalars().all()
                    if locked:
                        await connection.run_sync(ids.keep_ahead, known)
                        if CREDENTIALS_ACCOUNT not in locked and await connection.run_sync(ids.is_comparing):
                            newest = await connection.run_sync(ids.newest_write)
                            yield PendingWrites(connection, {}, (), newest, is_comparing=True)
                        else:
                            yield await _waiting(connection, locked)
                        return
            finally:
                self._taken_accounts.difference_update(mine)
                self._let_go.set()
            await asyncio.sleep(BUSY_S)

    async def _take(self, accounts: Sequence[str]) -> list[str]:
        while self._taken_accounts.issuperset(accounts):
            self._let_go.clear()
            await self._let_go.wait()
        mine = [account for account in accounts if account not in self._taken_accounts]
        self._taken_accounts.update(mine)
        return mine


async def _waiting(connection: AsyncConnection, accounts: Sequence[str]) -> PendingWrites:
    """Read the oldest pending control writes of each account, with the accounts' definitions.

    Each account gets an equal share of `WRITES_MAX`.
    """
    each = max(1, WRITES_MAX // len(accounts))
    result = (await connection.execute(_TAKE, {"accounts": accounts, "n": each + 1})).mappings().all()
    rows = [row for row in result if row["turn"] <= each]
    cut = {str(row["account"]) for row in result if row["turn"] > each}
    defined = {str(row["account"]) for row in rows if row["verb"] == "define"}
    definitions_of = await of_accounts(connection, sorted(defined))
    tenant_ids = {_number(row) for row in rows if str(row["account"]).startswith(_TENANT)}
    owners = {
        row.id: row.organization_id for row in await connection.execute(_OWNERS, {"ids": list(tenant_ids)})
    }
    by_account: dict[str, list[ControlWrite]] = {account: [] for account in accounts}
    for row in rows:
        by_account[str(row["account"])].append(_write(row, definitions_of, owners))
    return PendingWrites(connection, by_account, cut, await connection.run_sync(ids.newest_write))


def _write(
    row: RowMapping, definitions_of: Mapping[str, tuple[Definition, ...]], owners: Mapping[int, int]
) -> ControlWrite:
    """Return a control write with what it defines, from its row."""
    verb, account = str(row["verb"]), str(row["account"])
    payload: dict[str, Any] = dict(row["payload"] or {})
    tenant_id = organization_id = 0
    definitions: tuple[Definition, ...] = ()
    terms: PlanTerms | None = None
    if verb == "define":
        definitions = definitions_of.get(account) or _last_definition(account, payload)
        organization_id = next((getattr(definition, "organization_id", 0) for definition in definitions), 0)
    elif account.startswith(_TENANT):
        tenant_id = _number(row)
        organization_id = owners[tenant_id]
    else:
        assert account.startswith("organization:"), account
        organization_id = _number(row)
    if verb == "plan":
        terms = read_terms(payload, now_ms())
    return ControlWrite(
        id=str(row["id"]),
        position=int(row["position"]),
        account=account,
        verb=verb,
        payload=payload,
        tenant_id=tenant_id,
        organization_id=organization_id,
        definitions=definitions,
        terms=terms,
    )


def _number(row: RowMapping) -> int:
    return int(str(row["account"]).split(":")[1])


def _last_definition(account: str, payload: dict[str, Any]) -> tuple[Definition, ...]:
    """Return the last definition of a deleted key, which frees the subject of its signed tokens.

    Return an empty tuple for other accounts.
    """
    kind, _, name = account.partition(":")
    if kind != "key" or "digest" not in payload:
        return ()
    owner, digest = int(payload["organization_id"]), str(payload["digest"])
    return (KeyDefinition(int(name), 0, owner, digest, Limits(), revoked=True, of_tokens=True, gone=True),)


# Tenants whose definition is to be written again after a change of their time zone's clock, in batches.
#
# The zone's clock and the last tenant are stored, so that nothing is read while clocks do not change, and a
# restarted keeper continues. In a new zone all tenants are written, as its plans may be older than its clock.

# Clocks of UTC never change.
_ZONES = query("definitions.zones", "Select the time zones of plans", """
SELECT DISTINCT time_zone FROM token_plan WHERE deleted_at IS NULL AND time_zone <> 'UTC' ORDER BY 1""")  # fmt: skip
_TOLD = query("definitions.told", "Select whether a time zone has this clock", """
SELECT FROM zone_clock WHERE time_zone = :zone AND tenant_id IS NULL
   AND ("offset", turns_at, offset_after) = (:offset, :turns_at, :offset_after)""")  # fmt: skip
# Waits for another keeper that does the same. New zones begin at the first tenant.
_BEGIN = query("definitions.begin", "Store a new clock of a time zone", """
INSERT INTO zone_clock AS z (time_zone, "offset", turns_at, offset_after, tenant_id)
VALUES (:zone, :offset, :turns_at, :offset_after, 0)
ON CONFLICT (time_zone) DO UPDATE SET
       "offset" = excluded."offset", turns_at = excluded.turns_at, offset_after = excluded.offset_after,
       tenant_id = CASE WHEN (z."offset", z.turns_at, z.offset_after)
                           = (excluded."offset", excluded.turns_at, excluded.offset_after)
                        THEN z.tenant_id ELSE 0 END
RETURNING tenant_id""")  # fmt: skip
_CLOCK_TENANTS = query("definitions.clock_tenants", "Select tenants of a time zone whose clock changed", """
SELECT t.id, t.organization_id FROM tenant AS t
  JOIN token_plan AS p ON p.id = coalesce(t.plan_id, t.inherited_plan_id)
 WHERE p.time_zone = :zone AND t.deleted_at IS NULL AND t.id > :after ORDER BY t.id LIMIT :n""")  # fmt: skip
_UP_TO = query("definitions.up_to", "Store the last tenant that has the new clock",
    "UPDATE zone_clock SET tenant_id = :tenant WHERE time_zone = :zone")  # fmt: skip


class ClockReports:
    """The offsets of time zones' clocks that definitions in Redis were written with."""

    def __init__(self, engine: AsyncEngine, partition_of: Callable[[int], int]) -> None:
        self._engine = engine
        self._partition_of = partition_of

    async def zones(self) -> Sequence[str]:
        async with looking(self._engine) as connection:
            return (await connection.scalars(_ZONES)).all()

    async def tell(self, time_zone: str, clock: ZoneOffset, count: int) -> int:
        """Queue definitions of up to `count` tenants in a zone whose clock changed; return the number."""
        values = {"zone": time_zone, **clock._asdict()}
        async with looking(self._engine) as connection:
            if (await connection.execute(_TOLD, values)).first() is not None:
                return 0
        async with self._engine.begin() as connection:
            after = (await connection.execute(_BEGIN, values)).scalar_one()
            if after is None:
                return 0
            found = {"zone": time_zone, "after": after, "n": count}
            tenants = (await connection.execute(_CLOCK_TENANTS, found)).all()
            if tenants:
                writes = [
                    write_of(self._partition_of(tenant.organization_id), f"tenant:{tenant.id}", "define", {})
                    for tenant in tenants
                ]
                await connection.run_sync(insert_writes, writes)
            last = tenants[-1].id if len(tenants) == count else None
            await connection.execute(_UP_TO, {"zone": time_zone, "tenant": last})
            return len(tenants)
