"""Use outside of the gateway, reported by events: each is stored once, by source and id.

The transaction that stores an event stores its control write. The counters then move as by a call, and
ledgers, journal and charges follow. Tokens of an ended cycle move no quota: the excess over its plan is
charged here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from json import dumps
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, TextClause, text

from gateway.calls.event_use import use_of
from gateway.core.accounts.administration import Row
from gateway.core.accounts.definitions import NegotiatedTerms
from gateway.core.accounts.weights import Weights, millionths
from gateway.core.billing import events
from gateway.core.billing.events import EventUsage, Unacceptable
from gateway.core.billing.money import read_pricing
from gateway.core.billing.price_book import PriceBook
from gateway.core.billing.proration import CARRY
from gateway.core.calls.tariff import CONSUMPTION, PAY_PER_USE, as_negotiated, other_currency
from gateway.core.model import Service
from gateway.core.times import floor_ms
from gateway.errors import Unprocessable
from persistence.billing import charges
from persistence.billing.overage_prices import OveragePrices, overage_prices
from persistence.billing.plan_turns import Use, carried, in_cycle, is_borne
from persistence.entity import Entity, EntityWrite, write_of
from persistence.resources.prices import read_book
from persistence.tables import use_event

# Tenants by id or name: two matches suffice to know that a name is ambiguous.
_TENANTS = """
SELECT named.value, found.*
  FROM unnest(cast(:values AS {type}[])) AS named (value) CROSS JOIN LATERAL (
SELECT t.id, t.organization_id, t.updated_at, o.currency, p.weights, p.overage_policy
  FROM tenant AS t JOIN organization AS o ON o.id = t.organization_id
  LEFT JOIN token_plan AS p ON p.id = coalesce(t.plan_id, t.inherited_plan_id)
 WHERE t.deleted_at IS NULL AND o.deleted_at IS NULL AND {column} = named.value
   AND (CAST(:within AS bigint) IS NULL OR o.id = :within) LIMIT 2) AS found"""
_KINDS = ("tenant", "organization")
_BY: Mapping[tuple[str, type], TextClause] = {
    (kind, of): text(_TENANTS.format(column=f"{kind[0]}.{name}", type=type_))
    for kind in _KINDS
    for of, name, type_ in ((int, "id", "bigint"), (str, "name", "text"))
}
_SERVICE = text("""
SELECT s.id, s.key, s.credits, s.service_type, s.counts_tokens, s.counts_none, s.pricing, b.meter,
       n.counts_tokens AS own_counts, n.negotiated_credits, m.meter AS own_meter, n.pricing AS own_pricing
  FROM service AS s JOIN business_model AS b ON b.id = s.business_model_id
  LEFT JOIN organization_service AS n ON n.service_id = s.id AND n.organization_id = :organization
  LEFT JOIN business_model AS m ON m.id = n.business_model_id
 WHERE s.key = :key AND s.deleted_at IS NULL""")
_KEPT = text("SELECT since FROM kept_since WHERE ledger = 'call'")
# In the order of ids, so that two deliveries of the same events in different orders cannot deadlock.
_TAKE = text("""
INSERT INTO use_event (teller, source, event_id, type, organization_id, tenant_id, service_id, request_id,
                       used_at, late_tokens, quota_tokens, actor)
SELECT teller, source, event_id, type, organization_id, tenant_id, service_id, request_id,
       used_at, late_tokens, quota_tokens, actor
  FROM jsonb_populate_recordset(NULL::use_event, cast(:rows AS jsonb)) ORDER BY source, event_id
ON CONFLICT (teller, source, event_id) DO NOTHING RETURNING request_id""")
# By their control writes, which are kept even if events are deleted.
_KNOWN = text("SELECT id, account FROM control_write WHERE verb = 'use' AND id = ANY(:ids)")

# The teller that may report for any organization.
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
    """The events of one request, with everything that their checks need, read once."""

    change: EntityWrite
    kept_since: datetime | None
    # The tenant of each subject, or why there is none.
    tenants: Mapping[str, _Tenant | Unacceptable]
    # Accounts of stored control writes, by their ids.
    known: Mapping[UUID, str]
    prices: PriceBook
    # Uses in the running cycle; uses whose debt is carried on; uses while a plan was in force.
    current: set[Use] = field(default_factory=set)
    carried: set[Use] = field(default_factory=set)
    borne: set[Use] = field(default_factory=set)
    services: dict[tuple[int, str], Service] = field(default_factory=dict)

    @property
    def connection(self) -> Connection:
        return self.change.connection


@dataclass(frozen=True, slots=True)
class _SentEvent:
    """An event as received: body, time, and its ids as reported by the sender, staff and its organization."""

    body: Mapping[str, Any]
    at: datetime
    ids: tuple[UUID, UUID, UUID]


@dataclass(frozen=True, slots=True)
class _AcceptedEvent:
    """A valid event: its row and its control write; `owes` if an earlier plan may charge it."""

    request_id: UUID
    tenant: _Tenant
    at: datetime
    row: Row
    write: Row
    owes: bool


def take(change: EntityWrite) -> Row:
    """Store a batch of events; return the numbers of accepted and known events, and why others were refused.

    Raise `Unprocessable` if all are refused, for clients that read only the status.
    """
    sent = change.command.values["events"]
    assert isinstance(sent, list)
    rejected: list[Row] = list(change.command.values["rejected"])  # type: ignore[call-overload]  # a list
    count = len(sent) + len(rejected)
    events_: dict[UUID, _AcceptedEvent] = {}
    batch, begun = _begin(change, [event for _, event in sent])
    for (place, event), sent_event in zip(sent, begun, strict=True):
        try:
            accepted = _accept(batch, sent_event)
        except Unacceptable as error:
            rejected.append(refused(place, event, error.name, error.reason))
        else:
            if accepted is not None:
                events_.setdefault(accepted.request_id, accepted)
    document = dumps([event.row for event in events_.values()])
    stored = set(batch.connection.scalars(_TAKE, {"rows": document}))
    taken = [event for request_id, event in events_.items() if request_id in stored]
    change.intend_all([event.write for event in taken])
    _charge_late(batch, taken)
    rejected.sort(key=lambda row: int(str(row["index"])))
    if rejected and len(rejected) == count:
        wrong = tuple((f"{row['index']}.{row['field']}", str(row["reason"])) for row in rejected)
        raise Unprocessable("None of these events was taken.", errors=wrong)
    duplicates = count - len(taken) - len(rejected)
    return {"id": 0, "accepted": len(taken), "duplicates": duplicates, "rejected": rejected}


def _begin(change: EntityWrite, events_: Sequence[Mapping[str, Any]]) -> tuple[_Batch, list[_SentEvent]]:
    """Return the events of a batch with their ids, and the batch with the data needed to check them."""
    connection, now = change.connection, change.now
    tenants = _look_up(connection, {event["subject"] for event in events_}, change.within)
    begun = [_SentEvent(event, event.get("time") or now, _ids(change, event, tenants)) for event in events_]
    ids = list({id_ for sent_event in begun for id_ in sent_event.ids})
    known = {row.id: row.account for row in connection.execute(_KNOWN, {"ids": ids})}
    priced = [sent_event for sent_event in begun if sent_event.body["data"].get("usage") is not None]
    models = {sent_event.body["data"].get("model") or "" for sent_event in priced} - {""}
    prices = read_book(connection, models, min((sent_event.at for sent_event in priced), default=now))
    batch = _Batch(change, connection.execute(_KEPT).scalar(), tenants, known, prices)
    _read_cycles(batch, begun)
    return batch, begun


def _read_cycles(batch: _Batch, begun: Sequence[_SentEvent]) -> None:
    """Read which uses lie in the running quota cycle of their tenant.

    For the others, read whether their debt is carried on, and whether a plan was in force.
    """
    uses: dict[Use, _Tenant] = {}
    for sent in begun:
        tenant = batch.tenants[sent.body["subject"]]
        if isinstance(tenant, _Tenant):
            uses[tenant.id, sent.at] = tenant
    connection = batch.connection
    batch.current = in_cycle(connection, batch.change.now, uses)
    over = [use for use in uses if use not in batch.current]
    batch.carried = carried(connection, [use for use in over if uses[use].carries])
    batch.borne = is_borne(
        connection, [use for use, tenant in uses.items() if use in over or not tenant.has_plan]
    )


def _ids(
    change: EntityWrite, event: Mapping[str, Any], tenants: Mapping[str, _Tenant | Unacceptable]
) -> tuple[UUID, UUID, UUID]:
    """Return the ids of an event as reported by the sender, by staff, and by its organization."""
    tenant = tenants[event["subject"]]
    owner = tenant.organization_id if isinstance(tenant, _Tenant) else EVERYBODYS
    own, staff = change.within or EVERYBODYS, EVERYBODYS
    ids = {teller: events.request_of(event["source"], event["id"], teller) for teller in {own, staff, owner}}
    return ids[own], ids[staff], ids[owner]


def refused(place: int, event: Mapping[str, Any], name: str, reason: str) -> Row:
    source_and_id = {
        attribute: event.get(attribute) if isinstance(event.get(attribute), str) else None
        for attribute in ("source", "id")
    }
    return {"index": place, **source_and_id, "field": name, "reason": reason}


def _accept(batch: _Batch, sent: _SentEvent) -> _AcceptedEvent | None:
    """Validate the event `sent`; return its row and control write, or None if it was stored before."""
    # The id includes the reporting organization, so that no organization can use up another one's ids.
    event, at, request_id = sent.body, sent.at, sent.ids[0]
    teller = batch.change.within or EVERYBODYS
    if _is_known(batch, sent, teller):
        return None
    _check_time(batch, at)
    tenant = batch.tenants[event["subject"]]
    if isinstance(tenant, Unacceptable):
        raise tenant
    if _is_known(batch, sent, tenant.organization_id):
        return None
    data = event["data"]
    service = _service(batch, tenant, data["service"])
    usage = _usage_of_event(data, at)
    price = None
    if usage.model and usage.is_counted:
        price = batch.prices.vector(usage.model, tenant.currency, usage.at_ms)
    # Debt that is carried on counts in any cycle.
    use = (tenant.id, at)
    runs = not service.counts_tokens or use in batch.current or use in batch.carried
    free = service.meter not in {CONSUMPTION, PAY_PER_USE} and not (runs and tenant.has_plan)
    if free and use not in batch.borne:
        wrong = "is when no plan of the tenant was in force: nothing would be charged for it"
        raise Unacceptable("time", wrong)
    moved = use_of(usage, tenant.id, service, price, tenant.weights, in_cycle=runs)
    for _, why in tenant.beyond.too_much(moved.quota_tokens if service.counts_tokens else 0, moved.credits):
        raise Unacceptable("data.usage" if usage.is_counted else "data.units", f"comes to too much: it {why}")
    late = moved.quota_tokens if service.counts_tokens and not runs else 0
    # An earlier plan counts the use as well if it was in force then.
    quota = moved.quota_tokens if service.counts_tokens and runs and at < tenant.changed_at else 0
    row = {
        "teller": teller, "source": event["source"], "event_id": event["id"], "type": event["type"],
        "organization_id": tenant.organization_id, "tenant_id": tenant.id, "service_id": service.id,
        "request_id": str(request_id), "used_at": at.isoformat(), "late_tokens": late, "quota_tokens": quota,
        "actor": batch.change.command.actor.scope,
    }  # fmt: skip
    # The control write has the call's id, so the call's ledger row marks it as done.
    account, partition = (
        f"organization:{tenant.organization_id}",
        batch.change.partition_of(tenant.organization_id),
    )
    write = write_of(partition, account, "use", events.written(moved), request_id)
    return _AcceptedEvent(request_id, tenant, at, row, write, owes=bool(late or quota))


def _is_known(batch: _Batch, sent: _SentEvent, organization_id: int) -> bool:
    own, *others = sent.ids
    account = f"organization:{organization_id}"
    return own in batch.known or any(batch.known.get(id_) == account for id_ in others)


def _check_time(batch: _Batch, at: datetime) -> None:
    now = batch.change.now
    if at > now + timedelta(seconds=events.AHEAD_S_MAX):
        raise Unacceptable("time", f"must not be more than {events.AHEAD_S_MAX} seconds ahead")
    if at < now - timedelta(days=events.AGE_DAYS_MAX):
        raise Unacceptable("time", f"must not be more than {events.AGE_DAYS_MAX} days ago")
    if batch.kept_since is not None and at < batch.kept_since:
        raise Unacceptable("time", "is before the first call that is kept")


def _look_up(
    connection: Connection, subjects: Collection[str], within: int | None
) -> dict[str, _Tenant | Unacceptable]:
    """Return the tenant that each subject means, or why it means none."""
    meant = {subject: _meant(subject) for subject in subjects}
    rows: dict[tuple[str, int | str], list[Any]] = {}
    for (kind, type_), statement in _BY.items():
        values = {value for kinds, value in meant.values() if kind in kinds and isinstance(value, type_)}
        if values:
            for row in connection.execute(statement, {"values": list(values), "within": within}):
                rows.setdefault((kind, row.value), []).append(row)
    beyond = overage_prices(connection, {row.id for matches in rows.values() for row in matches})
    return {
        subject: _one_of([(kind, value, rows.get((kind, value), ())) for kind in kinds], beyond)
        for subject, (kinds, value) in meant.items()
    }


def _meant(subject: str) -> tuple[tuple[str, ...], int | str]:
    """Parse a subject such as `tenant:7`, `7` or a name; return its possible kinds, and the id or name."""
    kind, _, name = subject.partition(":")
    kinds: tuple[str, ...] = (kind,)
    if kind not in _KINDS or not name:
        kinds, name = _KINDS, subject
    if name.isascii() and name.isdigit() and len(name) <= 15:
        return kinds[:1], int(name)
    return kinds, name


def _one_of(
    ways: Sequence[tuple[str, int | str, Sequence[Any]]], beyond: Mapping[int, OveragePrices]
) -> _Tenant | Unacceptable:
    """Return the tenant that an event's subject means: the result of the first lookup in `ways` with a row.

    Return an error if no lookup has a row, or one has several. `beyond` are overage prices by tenant.
    """
    for kind, name, rows in ways:
        if len(rows) > 1:
            return Unacceptable("subject", f"is more than one tenant; say tenant:ID of one of {kind} {name}")
        if rows:
            row = rows[0]
            weights = millionths(row.weights)
            return _Tenant(
                row.id, row.organization_id, row.currency, Weights.of(weights) if weights else None,
                row.overage_policy is not None, row.overage_policy == CARRY, row.updated_at, beyond[row.id],
            )  # fmt: skip
    return Unacceptable("subject", "is no tenant and no organization here; say tenant:ID or organization:ID")


def _service(batch: _Batch, tenant: _Tenant, key: str) -> Service:
    """Return a service by its key, read once a batch; raise Unacceptable if events cannot use it."""
    wanted = (tenant.organization_id, key)
    if wanted not in batch.services:
        service = service_of(batch.connection, *wanted)
        if service is None:
            raise Unacceptable("data.service", "is the key of no service")
        if costs := other_currency(service, tenant.currency):
            wrong = f"costs {costs}, and the organization pays in {tenant.currency}"
            raise Unacceptable("data.service", wrong)
        batch.services[wanted] = service
    return batch.services[wanted]


def service_of(connection: Connection, organization_id: int, key: str) -> Service | None:
    """Return a service with an organization's negotiated terms; None if it does not exist."""
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


def _usage_of_event(data: Mapping[str, Any], at: datetime) -> EventUsage:
    usage = data.get("usage")
    counts, tools = events.counts_of(usage or {}), (usage or {}).get("tools") or {}
    return EventUsage(
        at_ms=floor_ms(at), model=data.get("model") or "", user=data.get("user") or "",
        project_id=data.get("project_id"), units=data.get("units") or 1, counts=counts, tools=tools,
        service_tier=data.get("service_tier") or "", is_counted=usage is not None,
    )  # fmt: skip


def _charge_late(batch: _Batch, taken: Sequence[_AcceptedEvent]) -> None:
    """Charge the use in `taken`, reported after its cycle; lock organizations, then partitions, in order."""
    change = batch.change
    since: dict[int, dict[int, datetime]] = {}  # by organization and tenant
    for event in taken:
        if event.owes:
            those = since.setdefault(event.tenant.organization_id, {})
            those[event.tenant.id] = min(event.at, those.get(event.tenant.id, event.at))
    for organization_id in sorted(since):
        charges.hold(batch.connection, organization_id)
    for partition in sorted({change.partition_of(organization_id) for organization_id in since}):
        change.hold_flushes(partition)
    if since:
        charges.accrue_early_use(batch.connection, since)


SUBJECT = Entity(use_event, verbs={"create": take})
