"""The stored lines of invoices, their taxes, and the data they are made from."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from decimal import Decimal
from itertools import zip_longest
from typing import Any, NamedTuple

from sqlalchemy import ColumnClause, Connection, func, literal_column, select, text, true
from sqlalchemy.dialects.postgresql import dialect

from gateway.core.accounts.administration import Row
from gateway.core.billing.charge_kinds import ADDITION, SEGMENT
from gateway.core.billing.charges import (
    REDUCTIONS,
    USAGE,
    ChargeSelection,
    SupplyCharge,
    gather_charges,
    split_at_maxima,
)
from gateway.core.billing.document import EffectiveTax, Tax
from gateway.core.billing.invoice import BillLine, Fee, InvoiceFacts, bill, is_back
from gateway.core.billing.subscription import midnight
from gateway.errors import Conflict
from persistence.billing import charges, service_discounts
from persistence.billing.proration import segment_of
from persistence.entity import EntityWrite
from persistence.queries import query
from persistence.tables import invoice, invoice_line, organization, tax_rate

# The uses of a final invoice: the credits that it mentions, and the covered movements of its accounts.

_TELL = query("invoice_lines.tell", "Store credits that invoices mention", """
WITH told AS (
    SELECT n.invoice_id, u.tenant_id, u.day, u.service_id, u.credits - u.billed_credits AS credits
      FROM unnest(cast(:invoices AS bigint[]), cast(:organizations AS bigint[]), cast(:ends AS date[]))
        AS n (invoice_id, organization_id, until)
      JOIN usage_daily AS u ON u.organization_id = n.organization_id AND u.day < n.until
       AND u.credits > u.billed_credits
     ORDER BY u.tenant_id, u.day, u.service_id FOR UPDATE OF u
), marked AS (
    UPDATE usage_daily AS u SET billed_credits = u.credits
      FROM told AS b WHERE u.tenant_id = b.tenant_id AND u.day = b.day AND u.service_id = b.service_id
)
INSERT INTO invoice_basis (invoice_id, kind, quantity, tenant_id, day, service_id)
SELECT invoice_id, 'credits_consumed', credits, tenant_id, day, nullif(service_id, 0) FROM told""")  # fmt: skip
_FORGET = query("invoice_lines.forget", "Release credits that an invoice mentioned", """
UPDATE usage_daily AS u SET billed_credits = u.billed_credits - b.quantity
  FROM invoice_basis AS b
 WHERE b.invoice_id = :invoice AND b.kind = 'credits_consumed' AND u.tenant_id = b.tenant_id
   AND u.day = b.day AND u.service_id = coalesce(b.service_id, 0)""")  # fmt: skip
_COVERS = query("invoice_lines.covers", "Select movements that invoices cover", """
SELECT o.id, jsonb_build_object('since', cast(n.since AS text), 'credits', o.credit_last_seq,
       'spend', o.spend_last_seq, 'tenants', coalesce((
           SELECT jsonb_object_agg(t.id, coalesce(q.last_seq, 0))
             FROM tenant AS t LEFT JOIN tenant_quota AS q ON q.tenant_id = t.id
            WHERE t.organization_id = o.id), '{}'::jsonb)) AS covers
  FROM unnest(cast(:organizations AS bigint[]), cast(:since AS date[])) AS n (organization_id, since)
  JOIN organization AS o ON o.id = n.organization_id""")  # fmt: skip


def tell_credits(connection: Connection, told: Iterable[tuple[int, int, date]]) -> None:
    """Mark used credits that no invoice has mentioned yet as mentioned.

    Each item of `told` is the id of the invoice that mentions them, the id of its organization, and the day
    up to which they were used.
    """
    invoices, organizations, ends = (list(column) for column in zip(*told, strict=True))
    connection.execute(_TELL, {"invoices": invoices, "organizations": organizations, "ends": ends})


def forget_credits(connection: Connection, invoice_id: int) -> None:
    """Release the credits that a void invoice mentioned, so that another invoice may mention them."""
    connection.execute(_FORGET, {"invoice": invoice_id})


def covers_of(connection: Connection, since: Mapping[int, date]) -> dict[int, Row]:
    """Return, by organization, the movements that an invoice finalized now would cover.

    `since` has, by organization, the first day of these movements.
    """
    here = {"organizations": list(since), "since": list(since.values())}
    return {row.id: row.covers for row in connection.execute(_COVERS, here)}


# One-off invoices of a single source, and the obstacles to creating one.

NOTHING_OWED = "Nothing of this source is owed that no invoice has."


def one_off_misfits(values: Row) -> tuple[tuple[str, str], ...]:
    """Return (field, message) pairs for fields that do not fit the kind of invoice.

    An invoice is for a period, or for one source of charges, such as a top-up.
    """
    if values.get("source") is None:
        wanted = "is required, but for a one-off invoice of a source"
        found = [(name, wanted) for name in ("period_start", "period_end") if values.get(name) is None]
        return (*found, *((("source_id", "needs a source"),) if values.get("source_id") is not None else ()))
    if values.get("period_start") is not None:
        return (("period_start", "is when what the source owes began: give period_end alone, or none"),)
    return ()


def refuse_second_draft(change: EntityWrite, organization_id: int) -> None:
    """Raise `Conflict` if another draft of the organization would contain the same charges."""
    values = change.command.values
    here, source_id = invoice.c, values.get("source_id")
    same = here.source_id.is_(None) | (here.source_id == source_id) if source_id is not None else true()
    other = select(here.id).where(
        here.organization_id == organization_id, here.corrects_id.is_(None), here.status == "draft",
        here.source == values["source"], same,
    )  # fmt: skip
    if draft := change.connection.execute(other.limit(1)).scalar():
        raise Conflict(f"Draft {draft} is of this source: finalize or delete it.")


def only_of(row: Row) -> ChargeSelection | None:
    """Return the source of charges, such as a top-up, of a one-off invoice; None for a period's invoice."""
    source, source_id = row.get("source"), row.get("source_id")
    if source is None:
        return None
    return ChargeSelection(str(source), None if source_id is None else int(str(source_id)))


_today: ColumnClause[date] = literal_column("(now() AT TIME ZONE 'UTC')::date")
_REDUCTIONS = ", ".join(f"'{kind}'" for kind in REDUCTIONS)
# The tax with which supplies were billed, by the columns of `SupplyCharge.supply`.
_TAX_BILLED = query("invoice_lines.tax_billed", "Select the tax of billed supplies", f"""
SELECT DISTINCT ON (c.kind, c.source, c.source_id, c.tenant_id, c.service_id, c.period_start, c.period_end)
       c.kind, c.source, c.source_id, c.tenant_id, c.service_id, c.period_start, c.period_end,
       l.tax_rate, l.tax_category, l.tax_reason
  FROM charge AS c
  JOIN invoice AS i ON i.id = c.invoice_id AND i.status = 'finalized'
  JOIN invoice_line AS l ON l.invoice_id = i.id AND l.position = c.line AND l.tax_rate IS NOT NULL
 WHERE c.organization_id = :organization AND (c.amount > 0) <> (c.kind IN ({_REDUCTIONS}))
   AND c.period_start >= :since
 ORDER BY c.kind, c.source, c.source_id, c.tenant_id, c.service_id, c.period_start, c.period_end,
       c.id DESC""")  # fmt: skip

# Values in force today, of organizations as they are read.
TODAY = func.coalesce(
    select(tax_rate.c.rate)
    .where(tax_rate.c.organization_id == organization.c.id, tax_rate.c.effective_from <= _today)
    .order_by(tax_rate.c.effective_from.desc(), tax_rate.c.id.desc())
    .limit(1)
    .correlate(organization)
    .scalar_subquery(),
    organization.c.tax_rate,
)


def read_tax_rates(
    connection: Connection, organization_ids: Sequence[int]
) -> Mapping[int, Sequence[EffectiveTax]]:
    """Return the dated tax rates of organizations that have some, in the order of days."""
    here = tax_rate.c
    statement = select(tax_rate).where(here.organization_id.in_(organization_ids))
    rows = connection.execute(statement.order_by(here.effective_from, here.id))
    dated = defaultdict[int, list[EffectiveTax]](list)
    for row in rows:
        dated[row.organization_id].append(
            EffectiveTax(row.effective_from, tax_of(row.rate, row.category, row.reason))
        )
    return dated


def taxed_with(
    connection: Connection, organization_id: int, charges: Iterable[SupplyCharge]
) -> Mapping[object, Tax]:
    """Return the tax with which refunded supplies were billed, by supply."""
    since = min((charge.start for charge in charges if is_back(charge)), default=None)
    if since is None:
        return {}
    rows = connection.execute(_TAX_BILLED, {"organization": organization_id, "since": since})
    taxes: dict[object, Tax] = {}
    for row in rows:
        supply = (row.kind, row.source, row.source_id, row.tenant_id, row.service_id)
        tax = tax_of(row.tax_rate, row.tax_category, row.tax_reason)
        taxes[*supply, row.period_start, row.period_end] = tax
    return taxes


def tax_of(rate: Decimal, category: str | None, reason: str | None) -> Tax:
    """Return a stored tax, with its rate in normal form so that equal rates compare equal."""
    return Tax(rate.normalize(), category, reason)


# The columns of a stored line.
_NAMES = (
    "invoice_id", "position", "kind", "description", "service_id", "tenant_id", "quantity", "unit_price",
    "amount", "exact", "basis", "corrects_position", "period_start", "period_end", "tax_rate",
    "tax_category", "tax_reason",
)  # fmt: skip
_DIALECT = dialect()  # type: ignore[no-untyped-call]  # as the library has it
_ARRAYS = ", ".join(f"cast(:{name} AS {invoice_line.c[name].type.compile(_DIALECT)}[])" for name in _NAMES)
# Stored with the current names of tenant and service.
_KEEP = query("invoice_lines.keep", "Store lines of invoices", f"""
INSERT INTO invoice_line ({", ".join(_NAMES)}, tenant, service)
SELECT {", ".join(f"n.{name}" for name in _NAMES)}, t.name, s.name
  FROM unnest({_ARRAYS}) WITH ORDINALITY AS n ({", ".join(_NAMES)}, place)
  LEFT JOIN tenant AS t ON t.id = n.tenant_id LEFT JOIN service AS s ON s.id = n.service_id
 ORDER BY n.place""")  # fmt: skip


def lines_of(change: EntityWrite, invoice_id: int) -> Sequence[Any]:
    kept = invoice_line.c
    statement = select(invoice_line).where(kept.invoice_id == invoice_id).order_by(kept.position)
    return change.connection.execute(statement).all()


def line_of(row: Any) -> BillLine:
    """Return a stored line; its tax is None if none was stored."""
    tax = None if row.tax_rate is None else tax_of(row.tax_rate, row.tax_category, row.tax_reason)
    return BillLine(
        row.kind, row.description, int(row.quantity), row.unit_price, row.amount, row.service_id,
        row.tenant_id, row.basis, tax=tax, start=row.period_start, end=row.period_end,
    )  # fmt: skip


def keep_lines(
    connection: Connection, bills: Mapping[int, Sequence[BillLine]], corrects: Sequence[int | None] = ()
) -> dict[int, Decimal]:
    """Store the lines in `bills`, by invoice id, and return the total of each invoice.

    For a credit note, `corrects` are the positions of the invoice lines that its lines refund.
    """
    rows: list[dict[str, Any]] = [
        {
            "invoice_id": invoice_id, "position": position, "kind": line.kind,
            "description": line.description, "service_id": line.service_id or None,
            "tenant_id": line.tenant_id, "quantity": line.quantity, "unit_price": line.unit_price,
            "amount": line.amount, "exact": line.exact, "basis": line.basis,
            "corrects_position": corrected, "period_start": line.start, "period_end": line.end,
            **{f"tax_{name}": getattr(line.tax, name, None) for name in ("rate", "category", "reason")},
        }
        for invoice_id, lines in bills.items()
        for position, (line, corrected) in enumerate(zip_longest(lines, corrects), 1)
    ]  # fmt: skip
    if rows:
        connection.execute(_KEEP, {name: [row[name] for row in rows] for name in _NAMES})
    return {
        invoice_id: sum((line.amount for line in lines), Decimal(0)) for invoice_id, lines in bills.items()
    }


# The data of invoices besides their charges: names, and the amounts that earlier invoices billed.
#
# Charges are collected, never computed again from their facts. Each statement reads for many organizations.

_WANTED = """unnest(cast(:organizations AS bigint[]), cast(:starts AS date[]), cast(:ends AS date[]))
    AS w (organization_id, start, until)"""
# The next invoice covers uses since then that no invoice covers yet.
_ORGANIZATIONS = query("invoice_lines.organizations", "Select organizations to invoice", f"""
SELECT o.id, o.name, o.currency, o.tax_rate, o.address, o.country, o.tax_number, o.due_days,
       o.contact, o.buyer_reference, o.endpoint_id,
       (SELECT coalesce(sum(u.credits - u.billed_credits), 0)::bigint FROM usage_daily AS u
         WHERE u.organization_id = o.id AND u.day < w.until AND u.credits <> u.billed_credits) AS consumed,
       least(w.start, (SELECT min(u.day) FROM usage_daily AS u WHERE u.organization_id = o.id),
             (SELECT min(u.supplied_on) FROM usage_told AS u WHERE u.organization_id = o.id)) AS since
  FROM {_WANTED} JOIN organization AS o ON o.id = w.organization_id""")  # fmt: skip
_FEES = query("invoice_lines.fees", "Select segments of fees", """
SELECT s.*, p.name FROM subscription_segment AS s JOIN subscription_plan AS p ON p.id = s.plan_id
 WHERE s.id = ANY(cast(:ids AS bigint[]))""")  # fmt: skip
_LINE_NAMES = {
    "tenant": text("SELECT id, name FROM tenant WHERE id = ANY(cast(:ids AS bigint[]))"),
    "service": text("SELECT id, name FROM service WHERE id = ANY(cast(:ids AS bigint[]))"),
    "addition": text("SELECT id, remark AS name FROM credit_addition WHERE id = ANY(cast(:ids AS bigint[]))"),
}
_CARRIED = query("invoice_lines.carried", "Add up rounding differences", """
SELECT i.organization_id, l.basis, sum(l.exact - l.amount) AS rest
  FROM invoice AS i JOIN invoice_line AS l ON l.invoice_id = i.id AND l.exact IS NOT NULL
 WHERE i.organization_id = ANY(cast(:organizations AS bigint[])) AND i.status = 'finalized'
 GROUP BY 1, 2 HAVING sum(l.exact - l.amount) <> 0""")  # fmt: skip
# The units of each month billed so far, which decide the price tier of further ones. Billed charges are
# searched by organization: the index by invoice would read everybody's while few were billed.
_UNITS_BEFORE = query("invoice_lines.units_before", "Add up billed units of months", """
SELECT c.organization_id, c.service_id, date_trunc('month', c.period_start, 'UTC')::date AS month,
       sum(c.quantity)::bigint AS units
  FROM unnest(cast(:organizations AS bigint[]), cast(:since AS date[])) AS w (organization_id, since)
  JOIN charge AS c ON c.organization_id = w.organization_id AND c.kind = 'usage'
   AND num_nulls(c.invoice_id) = 0 AND c.unit_price <> 0.000000001
   AND c.reason NOT IN ('credited', 'credit_void')
   AND c.period_start >= cast(w.since AS timestamp) AT TIME ZONE 'UTC'
 GROUP BY 1, 2, 3""")  # fmt: skip


class InvoiceCharges(NamedTuple):
    """The charges that an organization's invoice takes, and its days (`until` excluded)."""

    organization_id: int
    start: date
    until: date
    charges: Sequence[SupplyCharge]


class InvoiceInputs(NamedTuple):
    """The data that an invoice is made from, its organization's row, and the first day of its uses."""

    facts: InvoiceFacts
    organization: Any
    since: date


def read_facts(connection: Connection, wanted: Sequence[InvoiceCharges]) -> dict[int, InvoiceInputs]:
    """Return what the invoices of these charges are computed from, by organization."""
    every = [charge for each in wanted for charge in each.charges]
    ids = [each.organization_id for each in wanted]
    dated = read_tax_rates(connection, ids)
    named = {
        "tenant": {charge.tenant_id for charge in every},
        "service": {charge.service_id for charge in every},
        "addition": {charge.source_id for charge in every if charge.source == ADDITION},
    }
    names = {what: _names(connection, what, subject_ids) for what, subject_ids in named.items()}
    fees = _fees(connection, every)
    rest, before = _carried_rounding(connection, ids), _units_before(connection, wanted)
    discounts = service_discounts.read_rates(connection, ids)
    rows = {row.id: row for row in connection.execute(_ORGANIZATIONS, _spans(wanted))}
    found = {}
    for organization_id, start, until, taken in wanted:
        row, taxes = rows[organization_id], dated.get(organization_id, ())
        facts = InvoiceFacts(
            currency=row.currency,
            tax_rate=row.tax_rate.normalize(),
            taxes=taxes,
            taxed_before=taxed_with(connection, organization_id, taken) if taxes else {},
            until=until,
            charges=taken,
            credits_consumed=row.consumed,
            fees=fees,
            tenants=names["tenant"],
            services=names["service"],
            remarks=names["addition"],
            carried=rest.get(organization_id, {}),
            units_before=before.get(organization_id, {}),
            since=start,
            discounts=discounts.get(organization_id, {}),
        )
        found[organization_id] = InvoiceInputs(facts, row, row.since)
    return found


def _spans(wanted: Iterable[InvoiceCharges]) -> dict[str, Any]:
    ids, starts, ends, _ = (list(column) for column in zip(*wanted, strict=True))
    return {"organizations": ids, "starts": starts, "ends": ends}


def _carried_rounding(
    connection: Connection, organization_ids: Sequence[int]
) -> Mapping[int, Mapping[str, Decimal]]:
    """Return, by organization and basis (a kind of charge), the amount lost by rounding so far.

    It is the sum of exact amounts billed, less the sum of rounded ones.
    """
    found = defaultdict[int, dict[str, Decimal]](dict)
    for row in connection.execute(_CARRIED, {"organizations": organization_ids}):
        found[row.organization_id][row.basis] = row.rest
    return found


def _fees(connection: Connection, charges: Iterable[SupplyCharge]) -> dict[int, Fee]:
    ids = sorted({charge.source_id for charge in charges if charge.source == SEGMENT and charge.source_id})
    result = connection.execute(_FEES, {"ids": ids}) if ids else ()
    return {row.id: Fee(segment_of(row), row.name) for row in result}


def _names(connection: Connection, what: str, ids: set[int | None]) -> dict[int, str]:
    wanted = sorted(id_ for id_ in ids if id_)
    result = connection.execute(_LINE_NAMES[what], {"ids": wanted}) if wanted else ()
    return {row.id: row.name for row in result if row.name}


def _units_before(
    connection: Connection, wanted: Iterable[InvoiceCharges]
) -> Mapping[int, Mapping[tuple[int | None, date], int]]:
    """Return units billed earlier in each month of these invoices, by organization, service and month."""
    first = {
        each.organization_id: min(charge.day for charge in each.charges if charge.kind == USAGE)
        for each in wanted
        if any(charge.kind == USAGE for charge in each.charges)
    }
    found = defaultdict[int, dict[tuple[int | None, date], int]](dict)
    if first:
        since = [day.replace(day=1) for day in first.values()]
        for row in connection.execute(_UNITS_BEFORE, {"organizations": list(first), "since": since}):
            found[row.organization_id][row.service_id, row.month] = row.units
    return found


# The charges of an invoice, each with its line: as stored for a final one, as of today for a draft.

# Charges reversed because it was voided were on it all the same.
_BILLED = query("invoice_lines.billed", "Select the charges of an invoice", """
SELECT * FROM charge WHERE invoice_id = :invoice AND reason NOT IN ('void', 'credit_void')
 ORDER BY line, id""")  # fmt: skip
_LINES = query("invoice_lines.lines", "Select the lines of an invoice", """
SELECT position, kind, description, amount, tenant_id, service_id FROM invoice_line
 WHERE invoice_id = :invoice ORDER BY position""")  # fmt: skip


@dataclass(frozen=True, slots=True)
class NumberedLine:
    position: int
    kind: str
    description: str
    amount: Decimal
    tenant_id: int | None
    service_id: int | None


@dataclass(frozen=True, slots=True)
class NumberedLines:
    """Invoice lines in order, and the charges with the position of their line (None if they cancel out)."""

    lines: Sequence[NumberedLine]
    charges: Sequence[tuple[SupplyCharge, int | None]]


def read_unbilled(
    connection: Connection, organization_ids: Sequence[int], until: date, today: date
) -> dict[int, list[SupplyCharge]]:
    """Return the unbilled charges up to a day, stored or not, by organization; the day may lie ahead."""
    found, running = charges.unbilled(connection, organization_ids), midnight(until)
    open_ = charges.open_charges(connection, organization_ids, until, today=today, running=running)
    for owner, more in open_.items():
        found[owner] += more
    return found


def number_lines(connection: Connection, invoice: Any, today: date) -> NumberedLines:
    """Return the numbered lines and the charges of an invoice; a draft's are computed as of `today`."""
    if invoice.status == "draft" and invoice.corrects_id is None:
        return _draw_lines(connection, invoice, today)
    here = {"invoice": invoice.id}
    lines = [NumberedLine(*row) for row in connection.execute(_LINES, here)]
    return NumberedLines(
        lines, [(charges.charge_of(row), row.line) for row in connection.execute(_BILLED, here)]
    )


def _draw_lines(connection: Connection, invoice: Any, today: date) -> NumberedLines:
    """Return the lines that an invoice would have today, with their positions."""
    organization_id, start, until = invoice.organization_id, invoice.period_start, invoice.period_end
    only = only_of({"source": invoice.source, "source_id": invoice.source_id})
    open_ = read_unbilled(connection, [organization_id], until, today)[organization_id]
    taken = split_at_maxima(
        gather_charges(open_, until, charges.segments(connection, [organization_id])[organization_id], only)
    ).taken
    wanted = InvoiceCharges(organization_id, start, until, taken)
    facts = read_facts(connection, [wanted])[organization_id].facts
    made = bill(facts if only is None else replace(facts, credits_consumed=0))
    lines = [
        NumberedLine(
            position, line.kind, line.description, line.amount, line.tenant_id, line.service_id or None
        )
        for position, line in enumerate(made.lines, 1)
    ]
    return NumberedLines(lines, made.placed)
