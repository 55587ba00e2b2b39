"""Use that did not pass the gateway, taken in by events: each once by source and id, a control write each.

An accepted event is a row here, in the transaction that intends it. The counters then move as by a call,
and ledgers, journal and charges follow. Tokens of a cycle that is over move no quota: they are owed where
they are beyond its plan, and charged here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from json import dumps
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, text

from gateway.calls.event_use import use_of
from gateway.core.accounts.administration import Row
from gateway.core.accounts.definitions import NegotiatedTerms
from gateway.core.accounts.plans import Weights, millionths
from gateway.core.billing import events
from gateway.core.billing.events import EventUsage, Unacceptable
from gateway.core.billing.money import read_pricing
from gateway.core.billing.proration import CARRY
from gateway.core.calls.tariff import CONSUMPTION, PAY_PER_USE, as_negotiated, other_currency
from gateway.core.model import Service
from gateway.core.times import ms_of
from gateway.errors import Unprocessable
from persistence.billing import charges
from persistence.billing.credit_balances import OveragePrices, prices_of
from persistence.billing.plans import carried, in_cycle, is_borne
from persistence.entity import Entity, EntityWrite, write_of
from persistence.resources.catalogue import PriceHistory
from persistence.tables import use_event

_TENANTS = """
SELECT t.id, t.organization_id, t.updated_at, o.currency, p.weights, p.overage_policy
  FROM tenant AS t JOIN organization AS o ON o.id = t.organization_id
  LEFT JOIN token_plan AS p ON p.id = coalesce(t.plan_id, t.inherited_plan_id)
 WHERE t.deleted_at IS NULL AND o.deleted_at IS NULL AND {where}
   AND (CAST(:within AS bigint) IS NULL OR o.id = :within) LIMIT 2"""
_BY = {
    "tenant": {True: "t.id = :id", False: "t.name = :name"},
    "organization": {True: "o.id = :id", False: "o.name = :name"},
}
_SERVICE = text("""
SELECT s.id, s.key, s.credits, s.service_type, s.counts_tokens, s.counts_none, s.pricing, b.meter,
       n.counts_tokens AS own_counts, n.negotiated_credits, m.meter AS own_meter, n.pricing AS own_pricing
  FROM service AS s JOIN business_model AS b ON b.id = s.business_model_id
  LEFT JOIN organization_service AS n ON n.service_id = s.id AND n.organization_id = :organization
  LEFT JOIN business_model AS m ON m.id = n.business_model_id
 WHERE s.key = :key AND s.deleted_at IS NULL""")
_KEPT = text("SELECT since FROM kept_since WHERE ledger = 'call'")
# In an order of their own: two deliveries of the same, each in another order, never wait for each other.
_TAKE = text("""
INSERT INTO use_event (teller, source, event_id, type, organization_id, tenant_id, service_id, request_id,
                       used_at, late_tokens, quota_tokens, actor)
SELECT teller, source, event_id, type, organization_id, tenant_id, service_id, request_id,
       used_at, late_tokens, quota_tokens, actor
  FROM jsonb_populate_recordset(NULL::use_event, cast(:rows AS jsonb)) ORDER BY source, event_id
ON CONFLICT (teller, source, event_id) DO NOTHING RETURNING request_id""")
# By their control writes: those stay, whatever becomes of the events.
_KNOWN = text("SELECT id, account FROM control_write WHERE verb = 'use' AND id = ANY(:ids)")

# Tells for any organization.
EVERYBODYS = 0


@dataclass(frozen=True, slots=True)
class _Tenant:
    id: int
    organization_id: int
    currency: str
    weights: Weights | None
    has_plan: bool
    carries: bool
    changed_at: datetime
    beyond: OveragePrices


@dataclass(slots=True)
class _Batch:
    """What one request takes in; what several of its events ask for is read once."""

    change: EntityWrite
    kept_since: datetime | None
    prices: PriceHistory
    # Accounts of control writes that are there already, by what may be events' ids.
    known: Mapping[UUID, str]
    tenants: dict[str, _Tenant] = field(default_factory=dict)
    services: dict[tuple[int, str], Service] = field(default_factory=dict)

    @property
    def connection(self) -> Connection:
        return self.change.connection


@dataclass(frozen=True, slots=True)
class _AcceptedEvent:
    """An event that may be taken in: its row, and its control write. An earlier plan may owe for it."""

    request_id: UUID
    tenant: _Tenant
    at: datetime
    row: Row
    write: Row
    owes: bool


def take(change: EntityWrite) -> Row:
    """Take a batch in: how many were accepted, how many are known already, and why others are not.

    `Unprocessable` where all are refused: who reads the status alone misses none.
    """
    sent = change.command.values["events"]
    assert isinstance(sent, list)
    batch = _begun(change, [event for _, event in sent])
    rejected: list[Row] = list(change.command.values["rejected"])  # type: ignore[call-overload]  # a list
    told = len(sent) + len(rejected)
    events_: dict[UUID, _AcceptedEvent] = {}
    for place, event in sent:
        try:
            accepted = _accept(batch, event)
        except Unacceptable as error:
            rejected.append(refused(place, event, error.name, error.reason))
        else:
            if accepted is not None:
                events_.setdefault(accepted.request_id, accepted)
    document = dumps([one.row for one in events_.values()])
    stored = set(batch.connection.scalars(_TAKE, {"rows": document}))
    taken = [one for request_id, one in events_.items() if request_id in stored]
    change.intend_all([one.write for one in taken])
    _charge_late(batch, taken)
    rejected.sort(key=lambda row: int(str(row["index"])))
    if rejected and len(rejected) == told:
        wrong = tuple((f"{row['index']}.{row['field']}", str(row["reason"])) for row in rejected)
        raise Unprocessable("None of these events was taken.", errors=wrong)
    duplicates = told - len(taken) - len(rejected)
    return {"id": 0, "accepted": len(taken), "duplicates": duplicates, "rejected": rejected}


def _begun(change: EntityWrite, events_: Sequence[Mapping[str, Any]]) -> _Batch:
    """Return a batch with what all of its events ask for."""
    connection = change.connection
    times = [event.get("time") or change.now for event in events_]
    prices = PriceHistory(connection, min(times, default=change.now))
    batch = _Batch(change, connection.execute(_KEPT).scalar(), prices, {})
    ids = list[UUID]()
    for event in events_:
        tenant = None
        with suppress(Unacceptable):
            tenant = _tenant(batch, event["subject"])
        ids += _ids(batch, event, EVERYBODYS if tenant is None else tenant.organization_id)
    batch.known = {row.id: row.account for row in connection.execute(_KNOWN, {"ids": ids})}
    return batch


def _ids(batch: _Batch, event: Mapping[str, Any], organization_id: int) -> list[UUID]:
    """Return the ids of an event: as its teller names it, as staff does, as its organization does."""
    tellers = (batch.change.within or EVERYBODYS, EVERYBODYS, organization_id)
    return [events.request_of(event["source"], event["id"], teller) for teller in tellers]


def refused(place: int, event: Mapping[str, Any], name: str, reason: str) -> Row:
    told = {of: event.get(of) if isinstance(event.get(of), str) else None for of in ("source", "id")}
    return {"index": place, **told, "field": name, "reason": reason}


def _accept(batch: _Batch, event: Mapping[str, Any]) -> _AcceptedEvent | None:
    """Return what an event moves, None where it was taken before, whatever it says now."""
    connection, now = batch.connection, batch.change.now
    # Who tells it names it, together with the source: nobody takes another organization's names.
    teller = batch.change.within or EVERYBODYS
    if _is_known(batch, event, teller):
        return None
    at = event.get("time") or now
    _check_time(batch, at)
    tenant = _tenant(batch, event["subject"])
    if _is_known(batch, event, tenant.organization_id):
        return None
    data = event["data"]
    service = _service(batch, tenant, data["service"])
    told = _told(data, at)
    found = batch.prices.find(told.model, tenant.currency, at) if told.model and told.is_counted else None
    price = None if found is None else found.price.vector
    # A debt that is carried on counts in any cycle.
    runs = (
        not service.counts_tokens
        or in_cycle(connection, now, tenant.id, at)
        or (tenant.carries and carried(connection, tenant.id, at))
    )
    free = service.meter not in {CONSUMPTION, PAY_PER_USE} and not (runs and tenant.has_plan)
    if free and not is_borne(connection, tenant.id, at):
        wrong = "is when no plan of the tenant was in force: nothing would be charged for it"
        raise Unacceptable("time", wrong)
    use = use_of(told, tenant.id, service, price, tenant.weights, in_cycle=runs)
    for _, why in tenant.beyond.too_much(use.weighed if service.counts_tokens else 0, use.credits):
        raise Unacceptable("data.usage" if told.is_counted else "data.units", f"comes to too much: it {why}")
    late = use.weighed if service.counts_tokens and not runs else 0
    # A plan that was in force before has it too, where it was used by that one.
    quota = use.weighed if service.counts_tokens and runs and at < tenant.changed_at else 0
    request_id = events.request_of(event["source"], event["id"], teller)
    row = {
        "teller": teller, "source": event["source"], "event_id": event["id"], "type": event["type"],
        "organization_id": tenant.organization_id, "tenant_id": tenant.id, "service_id": service.id,
        "request_id": str(request_id), "used_at": at.isoformat(), "late_tokens": late, "quota_tokens": quota,
        "actor": batch.change.command.actor.scope,
    }  # fmt: skip
    # Its id is the call's, so the call's row in a ledger makes it done.
    account, partition = (
        f"organization:{tenant.organization_id}",
        batch.change.partition_of(tenant.organization_id),
    )
    write = write_of(partition, account, "use", events.written(use), request_id)
    return _AcceptedEvent(request_id, tenant, at, row, write, owes=bool(late or quota))


def _is_known(batch: _Batch, event: Mapping[str, Any], organization_id: int) -> bool:
    own, *others = _ids(batch, event, organization_id)
    account = f"organization:{organization_id}"
    return own in batch.known or any(batch.known.get(each) == account for each in others)


def _check_time(batch: _Batch, at: datetime) -> None:
    now = batch.change.now
    if at > now + timedelta(seconds=events.AHEAD_S_MAX):
        raise Unacceptable("time", f"must not be more than {events.AHEAD_S_MAX} seconds ahead")
    if at < now - timedelta(days=events.AGE_DAYS_MAX):
        raise Unacceptable("time", f"must not be more than {events.AGE_DAYS_MAX} days ago")
    if batch.kept_since is not None and at < batch.kept_since:
        raise Unacceptable("time", "is before the first call that is kept")


def _tenant(batch: _Batch, subject: str) -> _Tenant:
    """Return who a subject is: `tenant:7`, `organization:3`, a tenant's id, or a name of either."""
    if subject not in batch.tenants:
        batch.tenants[subject] = _look(batch.connection, subject, batch.change.within)
    return batch.tenants[subject]


def _look(connection: Connection, subject: str, within: int | None) -> _Tenant:
    kind, _, name = subject.partition(":")
    if kind not in _BY or not name:
        kind, name = "", subject
    is_id = name.isascii() and name.isdigit() and len(name) <= 15
    values = {"id": int(name) if is_id else None, "name": name, "within": within}
    for one in (kind,) if kind else ("tenant",) if is_id else tuple(_BY):
        where = text(_TENANTS.format(where=_BY[one][is_id]))
        found = connection.execute(where, values).all()
        if len(found) > 1:
            raise Unacceptable("subject", f"is more than one tenant; say tenant:ID of one of {one} {name}")
        if found:
            row = found[0]
            weights = millionths(row.weights)
            return _Tenant(
                row.id, row.organization_id, row.currency, Weights.of(weights) if weights else None,
                row.overage_policy is not None, row.overage_policy == CARRY, row.updated_at,
                prices_of(connection, row.id),
            )  # fmt: skip
    raise Unacceptable("subject", "is no tenant and no organization here; say tenant:ID or organization:ID")


def _service(batch: _Batch, tenant: _Tenant, key: str) -> Service:
    wanted = (tenant.organization_id, key)
    if wanted not in batch.services:
        found = service_of(batch.connection, *wanted)
        if found is None:
            raise Unacceptable("data.service", "is the key of no service")
        if costs := other_currency(found, tenant.currency):
            wrong = f"costs {costs}, and the organization pays in {tenant.currency}"
            raise Unacceptable("data.service", wrong)
        batch.services[wanted] = found
    return batch.services[wanted]


def service_of(connection: Connection, organization_id: int, key: str) -> Service | None:
    """A service as an organization has it, None where there is none."""
    row = connection.execute(_SERVICE, {"organization": organization_id, "key": key}).first()
    if row is None:
        return None
    base = Service(
        row.id, row.key, row.meter, row.counts_tokens, row.credits, row.service_type == "One-Time",
        read_pricing(row.pricing), counts_none=row.counts_none,
    )  # fmt: skip
    negotiated = None
    if row.negotiated_credits is not None:
        pricing = read_pricing(row.own_pricing) if row.own_pricing else None
        negotiated = NegotiatedTerms(row.id, row.negotiated_credits, row.own_meter, pricing, row.own_counts)
    return as_negotiated(base, negotiated)


def _told(data: Mapping[str, Any], at: datetime) -> EventUsage:
    usage = data.get("usage")
    counts, tools = events.counts_of(usage or {}), (usage or {}).get("tools") or {}
    return EventUsage(
        at_ms=ms_of(at), model=data.get("model") or "", user=data.get("user") or "",
        project_id=data.get("project_id"), units=data.get("units") or 1, counts=counts, tools=tools,
        service_tier=data.get("service_tier") or "", is_counted=usage is not None,
    )  # fmt: skip


def _charge_late(batch: _Batch, taken: Sequence[_AcceptedEvent]) -> None:
    """Charge what events tell of cycles that are over: organizations are held, then partitions, in order."""
    change = batch.change
    since: dict[int, dict[int, datetime]] = {}  # by organization and tenant
    for one in taken:
        if one.owes:
            those = since.setdefault(one.tenant.organization_id, {})
            those[one.tenant.id] = min(one.at, those.get(one.tenant.id, one.at))
    for organization_id in sorted(since):
        charges.hold(batch.connection, organization_id)
    for partition in sorted({change.partition_of(each) for each in since}):
        change.hold_flushes(partition)
    if since:
        charges.accrue_early_use(batch.connection, since)


SUBJECT = Entity(use_event, verbs={"create": take})
