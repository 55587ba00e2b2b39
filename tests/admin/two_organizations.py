"""Two organizations in one database: Alpha, whose own administrator asks, and Bravo, which is not told of.

Whatever is Bravo's has an id of seven digits from 7,000,000 on or the word bravo in it, so that it is known
wherever it comes out. Of each resource that organizations own Bravo has a row.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

from gateway.admin.resources.registry import RESOURCES
from gateway.core.accounts.administration import RowScope
from gateway.core.accounts.usage import SPANS
from gateway.core.accounts.usage_sums import SUMS
from gateway.core.billing.price_book import KINDS
from gateway.features.usage_feed.events import AMOUNTS
from tests.admin.conftest import Api
from tests.connections import connected

FIRST = 7_000_000
TRACE = re.compile(r"bravo|\b70000\d\d\b", re.IGNORECASE)
# Of an account nobody has.
UNKNOWN = 999_999
NOW = datetime.now(UTC)
REQUEST = str(uuid4())

_SEQUENCES = """
select quote_ident(sequencename), coalesce(last_value, 1), last_value is not null from pg_sequences
 where schemaname = 'public'"""
_BEGIN = """
select setval(name, first, called)
  from unnest(%s::text[], %s::bigint[], %s::bool[]) as each (name, first, called)"""


@dataclass
class World:
    """Who asks (`admin` of all, `alpha` of one), and the ids of Bravo's rows and of Alpha's by resource."""

    admin: Api
    alpha: Api
    bravos: dict[str, int]
    alphas: dict[str, int]
    shared: dict[str, int]
    token: Mapping[str, Any] = field(default_factory=dict)


async def make(api: Api) -> World:
    """Fill the database."""
    shared = await _shared(api)
    alphas = await _people(api, shared, "alpha")
    token = await api.make(
        "admin-tokens", name="alpha's own", role="admin", organization_id=alphas["organizations"], ours=True
    )
    with _ids_from(api, FIRST):
        bravos = await _people(api, shared, "bravo")
        bravos["admin-tokens"] = (
            await api.make(
                "admin-tokens", name="bravo's", role="admin", organization_id=bravos["organizations"]
            )
        )["id"]
        _rows(api, bravos, shared)
        bravos["audit-log"] = api.rows("select max(id) from audit_log")[0][0]
    return World(api, api.acting_as(token["token"]), bravos, alphas, shared, token)


async def few(api: Api) -> World:
    """Fill the database with no more than who is there."""
    rows: dict[str, dict[str, int]] = {}
    for name in ("alpha", "bravo"):
        of = (await api.make("organizations", name=name))["id"]
        tenant = await api.make("tenants", name=f"{name} tenant", organization_id=of)
        user = await api.make("users", external_id=f"{name} user", organization_id=of)
        rows[name] = {"organizations": of, "tenants": tenant["id"], "users": user["id"]}
    of = rows["alpha"]["organizations"]
    token = await api.make("admin-tokens", name="alpha's own", role="admin", organization_id=of, ours=True)
    return World(api, api.acting_as(token["token"]), rows["bravo"], rows["alpha"], {}, token)


def traces(text: str) -> list[str]:
    """What of an answer is Bravo's."""
    return TRACE.findall(text)


def state(api: Api) -> list[tuple[Any, ...]]:
    """Everything of Bravo's, to see whether it stayed as it was."""
    found = []
    for (table,) in api.rows("select tablename from pg_tables where schemaname = 'public' order by 1"):
        found += api.rows(
            f"select %s::text, t::text from {table} as t where t::text ~* %s order by 2",
            table, r"bravo|\m70000\d\d\M",
        )  # fmt: skip
    return found


async def _shared(api: Api) -> dict[str, int]:
    service = await api.make(
        "services", name="sms", key="sms", credits=2, service_type="Pay-As-You-Go", business_model_id=1
    )
    tokens = await api.make("token-plans", name="plan", total_amount=1_000)
    plan = await api.make(
        "subscription-plans", name="offer", monthly_cost="10", annual_cost="100", feature_access=["sms"]
    )
    # No test takes prices away: each has a time of its own.
    price = await api.make(
        "prices", model="m1", currency="USD", effective_from=datetime.now(UTC).isoformat(), input="1"
    )
    rate = await api.make(
        "exchange-rates", currency="EUR", rate="0.9", effective_from=datetime.now(UTC).isoformat()
    )
    accounting = await api.make(
        "accounting-rates", currency="EUR", accounting_currency="PLN", rate="4.25", source="NBP",
        published_on="2026-04-30", effective_from="2026-05-01",
    )  # fmt: skip
    [(feed,)] = api.rows("insert into usage_feed (service, waiting_max) values ('lago', 1000) returning id")
    return {
        "usage-feeds": int(str(feed)), "services": service["id"], "token-plans": tokens["id"],
        "subscription-plans": plan["id"],
        "prices": price["id"], "exchange-rates": rate["id"], "business-models": 1,
        "accounting-rates": accounting["id"],
    }  # fmt: skip


async def _people(api: Api, shared: Mapping[str, int], name: str) -> dict[str, int]:
    """An organization with what the Admin API makes of it."""
    made: dict[str, int] = {}

    async def keep(resource: str, **values: object) -> int:
        row = await api.make(resource, **values)
        made[resource] = row["id"]
        return int(row["id"])

    of = await keep("organizations", name=name)
    tenant = await keep("tenants", name=f"{name} tenant", organization_id=of, plan_id=shared["token-plans"])
    made["tenant-quotas"] = tenant
    await keep("users", organization_id=of, external_id=f"{name} user")
    key = await keep("api-keys", tenant_id=tenant, name=f"{name} key")
    await keep(
        "organization-services", organization_id=of, service_id=shared["services"], negotiated_credits=1
    )
    await keep(
        "credit-additions", organization_id=of, credits_added=5, remark=f"{name} credits", unit_cost="2"
    )
    await keep(
        "organization-subscriptions", organization_id=of, plan_id=shared["subscription-plans"],
        start_date="2026-01-01",
    )  # fmt: skip
    await keep(
        "budgets", organization_id=of, name=f"{name} budget", unit="tokens", amount=100, interval="total",
        each="key", api_key_id=None, tenant_id=tenant,
    )  # fmt: skip
    await keep("groups", organization_id=of, name=f"{name} group", kind="user", members=[f"{name} member"])
    await keep("tax-rates", organization_id=of, rate="0.1", effective_from="2026-01-01")
    await keep(
        "raise-requests",
        budget_id=made["budgets"],
        amount=500,
        reason=f"{name} asks",
        until="2099-01-01T00:00:00Z",
        who=str(key),
    )
    await keep("models", organization_id=of, name=f"{name}-model", targets=[{"upstream": "openai"}])
    await keep("shares", organization_id=of, upstream="openai", weight=2)
    await keep("webhooks", organization_id=of, url=f"https://{name}.example/hook")
    [(made["invoices"],)] = api.rows(
        "insert into invoice (organization_id, kind, status, currency, period_start, period_end,"
        " total_amount, customer)"
        " values (%s, 'invoice', 'draft', 'USD', '2026-02-01', '2026-03-01', 0, %s) returning id",
        of, name,
    )  # fmt: skip
    return made


@contextmanager
def _ids_from(api: Api, first: int) -> Iterator[None]:
    """Have rows that are made meanwhile numbered from `first` on, and later ones as before."""
    names, lasts, called = map(list, zip(*api.rows(_SEQUENCES), strict=True))
    api.rows(_BEGIN, names, [first] * len(names), [True] * len(names))
    yield
    api.rows(_BEGIN, names, lasts, called)


def _rows(api: Api, bravos: dict[str, int], shared: Mapping[str, int]) -> None:
    """What calls, bills and faults leave of Bravo, written as they are stored."""
    with connected(api.url, autocommit=True) as connection:
        # What it refers to beside is not there, and what only grows has no other way in.
        connection.execute("set session_replication_role = replica")
        for resource, table, values in _stored(bravos, shared):
            columns = ", ".join(f'"{name}"' for name in values)
            asked = f"insert into {table} ({columns}) values ({', '.join(['%s'] * len(values))})"
            row = connection.execute(f"{asked} returning *", list(values.values()))
            names = [column.name for column in row.description or ()]
            found = dict(zip(names, row.fetchone() or (), strict=False))
            if resource:
                bravos[resource] = int(found["id"])


Stored = tuple[str, str, dict[str, Any]]


def _stored(bravos: Mapping[str, int], shared: Mapping[str, int]) -> Iterator[Stored]:
    yield from _of_calls(bravos, shared)
    yield from _of_bills_and_faults(bravos, shared)


def _of_calls(bravos: Mapping[str, int], shared: Mapping[str, int]) -> Iterator[Stored]:
    of, tenant, service = bravos["organizations"], bravos["tenants"], shared["services"]
    owner = {"organization_id": of}
    both = {**owner, "tenant_id": tenant}
    moved = {"epoch": 1, "seq": 1}
    use = {
        **both, **moved, "timestamp": NOW, "request_id": REQUEST, "feature_id": service,
        "feature_version": "bravo version",
    }  # fmt: skip
    yield "token-ledger", "token_ledger", {
        "tenant_id": tenant, **moved, "created_at": NOW, "transaction_type": "consume", "direction": "OUT",
        "amount": 3, "total_remaining": 7, "cycle": 1, "request_id": REQUEST,
        "feature_version": "bravo version",
    }  # fmt: skip
    yield (
        "credit-transactions",
        "credit_transaction",
        {**use, "credits_used": 1, "carried": 0, "balance_after": 4},
    )
    yield "feature-usage", "feature_usage", {
        **use, "usage_amount": 1, "spend": 1, "spent_after": 1, "in_money": False,
    }  # fmt: skip
    yield "calls", "call", {
        **both, **dict.fromkeys((*KINDS, "tokens", "credits", "units", "duration_ms"), 0),
        "request_id": REQUEST, "created_at": NOW, "api_key_id": bravos["api-keys"], "status": 200,
        "streamed": False, "estimated": False, "model": "bravo model", "session": "bravo session",
    }  # fmt: skip
    yield "runs", "run", {
        **both, "id": FIRST + 55, "name": "bravo run", "parent_name": "bravo parent", "unit": "money",
        "created_at": NOW, "expires_at": NOW + timedelta(days=1),
    }  # fmt: skip
    yield "jobs", "job", {
        **both, "request_id": REQUEST, "name": "bravo job", "kind": "batch", "model": "bravo model",
        "status": "completed", "lines": 2, "created_at": NOW, "expires_at": NOW + timedelta(days=2),
    }  # fmt: skip
    for span, (_, whole) in SPANS.items():
        apart = {
            "api_key_id": bravos["api-keys"], "user_id": bravos["users"], "project_id": 7_000_055,
            "service_id": service, "model": "bravo model",
        }  # fmt: skip
        apart |= {
            name: -1 if name == "project_id" else 0 for name in whole if name in apart and name != "model"
        }
        yield "", "usage_rollup", {
            "span": span, "start": NOW.replace(hour=0, minute=0, second=0, microsecond=0), **both, **apart,
            "currency": "USD", **dict.fromkeys(SUMS, 0), "requests": 1, "tokens": 9, "cost": 10**9,
        }  # fmt: skip
    yield "", "usage_daily", {
        **both, "day": NOW.date(), "service_id": service, "requests": 1, "tokens": 9, "credits": 1,
        "usage_amount": 1,
    }  # fmt: skip


def _of_bills_and_faults(bravos: Mapping[str, int], shared: Mapping[str, int]) -> Iterator[Stored]:
    of, tenant, service = bravos["organizations"], bravos["tenants"], shared["services"]
    owner = {"organization_id": of}
    both = {**owner, "tenant_id": tenant}
    told = {"request_id": REQUEST, "reason": "bravo reason", "actor": "token:1", "created_at": NOW}
    yield "payments", "payment", {
        **owner, "invoice_id": bravos["invoices"], "amount": 1, "currency": "USD",
        "reference": "bravo payment",
    }  # fmt: skip
    yield "note-applications", "note_application", {
        **owner, "note_id": bravos["invoices"], "invoice_id": bravos["invoices"], "amount": 1,
        "currency": "USD", "reason": "asked", "actor": "bravo person",
    }  # fmt: skip
    yield "dunning-steps", "dunning_step", {
        **owner, "invoice_id": bravos["invoices"], "action": "reminder", "days": 1, "reason": "bravo reason",
        "actor": "keeper",
    }  # fmt: skip
    handed = {**owner, "invoice_id": bravos["invoices"]}
    yield "handovers", "handover", {
        **handed, "about_id": bravos["invoices"], "kind": "invoice", "customer": "cus_bravo",
    }  # fmt: skip
    yield "handover-events", "handover_event", {
        **handed, "handover_id": bravos["handovers"], "name": "bravo event", "kind": "invoice.paid",
        "amount": 1, "currency": "USD",
    }  # fmt: skip
    yield "usage-events", "usage_outbox", {
        **both, **dict.fromkeys(AMOUNTS, 0), "feed_id": 1, "place": 1, "name": "bravo use",
        "kind": "use", "at": NOW, "api_key_id": bravos["api-keys"], "user_id": bravos["users"],
        "project_id": -1, "service_id": service, "model": "bravo model", "currency": "USD",
    }  # fmt: skip
    yield "charges", "charge", {
        **both, "kind": "usage", "period_start": NOW, "period_end": NOW + timedelta(days=1),
        "quantity": 1, "unit_price": 1,
        "amount": 1, "currency": "USD", "source": "usage_tier", "reason": "fact", "fact": "bravo fact",
        "invoice_id": bravos["invoices"], "service_id": service,
    }  # fmt: skip
    yield "events", "use_event", {
        **both, "source": "bravo source", "event_id": "bravo event", "type": "bravo type",
        "service_id": service, "request_id": REQUEST, "used_at": NOW, "late_tokens": 0, "actor": "token:1",
    }  # fmt: skip
    yield "amendments", "amendment", {
        **both, **told, "service_id": service, "used_at": NOW, "tokens": 1, "credits": 0, "units": 0,
        "in_money": False, "late_tokens": 0,
    }  # fmt: skip
    yield "reratings", "rerating", {
        **both, **told, "price_id": shared["prices"], "service_id": service, "cost_before": 1,
        "cost_after": 2, "charged": 0, "currency": "USD",
    }  # fmt: skip
    yield "webhook-deliveries", "webhook_delivery", {
        "webhook_id": bravos["webhooks"], "event": "test", "occasion": "bravo occasion", "state": "delivered",
        "payload": '{"text": "bravo"}',
    }  # fmt: skip
    yield "quarantine", "quarantine", {
        **both, "account": f"tenant:{tenant}", "kind": "gap", "entry_id": "1-1", "reason": "bravo reason",
        "partition": 1, "epoch": 1, "stored_seq": 1, "found_seq": 3,
    }  # fmt: skip
    yield "dead-letters", "dead_letter", {
        **both, "partition": 1, "entry_id": "1-2", "reason": "bravo reason", "raw": b"bravo",
    }  # fmt: skip
    yield "", "budget_use", {
        "budget_id": bravos["budgets"], "start": "1970-01-01T00:00:00Z", "value": "bravo", "name": "bravo",
        "used": 1, "reset": 0, "moved_at": NOW,
    }  # fmt: skip


def owned() -> set[str]:
    """The resources of which each organization has its own rows."""
    return {name for name, resource in RESOURCES.items() if resource.access.reach is RowScope.OWNED}
