"""Billable facts become charges, each once, in the transaction in which they become known.

`accrue` stores an organization's new charges, `open_charges` only computes them. A correction is a row of its
own: for days a subscription segment lost, a voided invoice, or a credit note.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime
from decimal import ROUND_CEILING, Decimal
from itertools import groupby
from typing import Any

from sqlalchemy import Connection, select

from gateway.core.accounts.administration import Row
from gateway.core.billing.charges import DEBT, SupplyCharge, due, spread_amount
from gateway.core.billing.money import EXACT
from gateway.core.billing.subscription import PlanSegment, midnight
from gateway.errors import Conflict
from persistence.billing import credit_balances, proration, service_discounts
from persistence.billing.proration import NamedCharge, segment_of
from persistence.entity import Entity, hold_flushes
from persistence.error_mapping import statements_within
from persistence.queries import query
from persistence.tables import charge as table
from persistence.tables import organization

# A correction is a row of its own: for a voided invoice, and for a credit note.

_COUNTER = """
INSERT INTO charge (organization_id, kind, period_start, period_end, quantity, unit_price, amount, currency,
                    source, source_id, reason, corrects_id, fact, tenant_id, service_id, place, invoice_id,
                    line)
SELECT organization_id, kind, period_start, period_end, {sign}quantity, unit_price, {sign}amount, currency,
       source, source_id, {reason}, id, format('{fact}:%s', id), tenant_id, service_id, place, {invoice}
  FROM charge WHERE invoice_id = :invoice AND reason NOT IN ('void', 'credit_void')"""
_VOID = query("charges.void", "Take the charges of an invoice back",
    _COUNTER.format(sign="-", reason="'void'", fact="void", invoice="invoice_id, line"))  # fmt: skip
_OWED_AGAIN = query("charges.owed_again", "Add the charges of a void invoice again",
    _COUNTER.format(sign="", reason="'reissued'", fact="reissued", invoice="NULL, NULL"))  # fmt: skip
_VOID_NOTE = query("charges.void_note", "Take the charges of a credit note back",
    _COUNTER.format(sign="-", reason="'credit_void'", fact="void", invoice="invoice_id, line"))  # fmt: skip
# The charges of an invoice line, less the amounts that other credit notes refunded.
_BEHIND = query("charges.behind", "Select the charges of an invoice line", """
SELECT id, max(source) AS source, max(unit_price) AS unit_price, sum(quantity) AS quantity,
       sum(amount) AS amount
  FROM (SELECT id, source, unit_price, quantity, amount FROM charge
         WHERE invoice_id = :invoice AND line = :line
        UNION ALL
        SELECT c.corrects_id, c.source, c.unit_price, c.quantity, c.amount
          FROM invoice AS n JOIN invoice_line AS l ON l.invoice_id = n.id AND l.corrects_position = :line
          JOIN charge AS c ON c.invoice_id = n.id AND c.line = l.position AND c.reason = 'credited'
         WHERE n.corrects_id = :invoice AND n.status = 'finalized') AS c
 GROUP BY id ORDER BY id""")  # fmt: skip
_CREDIT = query("charges.credit", "Add the charges of a credit note", """
INSERT INTO charge (organization_id, kind, period_start, period_end, quantity, unit_price, amount, currency,
                    source, source_id, reason, corrects_id, fact, tenant_id, service_id, place, invoice_id,
                    line)
SELECT c.organization_id, c.kind, c.period_start, c.period_end, n.quantity, c.unit_price, n.amount,
       c.currency, c.source, c.source_id, 'credited', c.id,
       format('credited:%s:%s', cast(:note AS bigint), c.id), c.tenant_id, c.service_id, c.place, :note, :line
  FROM unnest(cast(:ids AS bigint[]), cast(:quantities AS numeric[]), cast(:amounts AS numeric[]))
    AS n (id, quantity, amount) JOIN charge AS c ON c.id = n.id
 WHERE c.invoice_id = :invoice AND c.line = :position""")  # fmt: skip

# What unbilled use gives back of supplies that final notes by hand have given back: once, so it is owed again.
_OWED_AFTER_NOTES = query("charges.owed_after_notes", "Add use again that notes by hand gave back", """
WITH back AS (
    SELECT organization_id, source, tenant_id, service_id, period_start, -sum(amount) AS amount, max(id) AS id
      FROM charge WHERE organization_id = :organization AND invoice_id IS NULL AND kind = 'usage'
     GROUP BY 1, 2, 3, 4, 5 HAVING sum(amount) < 0
), noted AS (
    SELECT c.*, b.amount AS back, b.id AS back_id, -c.amount - coalesce((
               SELECT sum(a.amount) FROM charge AS a WHERE a.corrects_id = c.id), 0) AS rest
      FROM back AS b JOIN charge AS c USING (organization_id, source, period_start)
      JOIN invoice AS n ON n.id = c.invoice_id
     WHERE c.reason = 'credited' AND c.kind = 'usage' AND n.status = 'finalized'
       AND c.tenant_id IS NOT DISTINCT FROM b.tenant_id AND c.service_id IS NOT DISTINCT FROM b.service_id
), spread AS (
    SELECT *, least(rest, back - (sum(rest) OVER (PARTITION BY back_id ORDER BY id) - rest)) AS again
      FROM noted WHERE rest > 0
)
INSERT INTO charge (organization_id, kind, period_start, period_end, quantity, unit_price, amount, currency,
                    source, source_id, reason, corrects_id, fact, tenant_id, service_id, place)
SELECT organization_id, kind, period_start, period_end, coalesce(again / nullif(unit_price, 0), 0), unit_price,
       again, currency, source, source_id, 'credit_void', id, format('noted:%s:%s', back_id, id), tenant_id,
       service_id, place
  FROM spread WHERE again > 0""")  # fmt: skip


def void_charges(connection: Connection, invoice_id: int) -> None:
    connection.execute(_OWED_AGAIN, {"invoice": invoice_id})
    connection.execute(_VOID, {"invoice": invoice_id})
    credit_balances.unbill_debt(connection, [invoice_id])


def void_note_charges(connection: Connection, note_id: int) -> None:
    connection.execute(_VOID_NOTE, {"invoice": note_id})


def owe_noted(connection: Connection, organization_id: int, until: date, today: date) -> None:
    """Charge again what notes by hand gave back of use, as far as unbilled use gives it back a second time."""
    accrue(connection, [organization_id], until, today=today, running=midnight(until))
    connection.execute(_OWED_AFTER_NOTES, {"organization": organization_id})


def refuse_noted(connection: Connection, invoice_id: int) -> None:
    """Raise `Conflict` if an invoice takes account of notes by hand: its charges cannot be owed again."""
    here = table.c
    charge_ids = select(here.id).where(
        here.invoice_id == invoice_id, here.reason == "credit_void", here.fact.startswith("noted:")
    )
    if connection.execute(charge_ids.limit(1)).first() is not None:
        raise Conflict(
            "It takes account of credit notes by hand for the same use, so it cannot be made void: draft a credit note."
        )


def credit_charges(
    connection: Connection, note_id: int, line: int, corrected: tuple[int, int], amount: Decimal | None
) -> Decimal | None:
    """Refund `amount` of the charges on an invoice line, or their rest if None; return the refunded amount.

    `corrected` is the invoice and the line's position, `note_id` and `line` are the credit note and its line.
    Return None for old invoices, which have no stored charges.
    """
    invoice_id, position = corrected
    behind = connection.execute(_BEHIND, {"invoice": invoice_id, "line": position}).all()
    if not behind:
        return None
    if amount is None:
        quantities, amounts = [-charge.quantity for charge in behind], [-charge.amount for charge in behind]
    else:
        amounts = spread_amount(amount, [charge.amount for charge in behind])
        quantities = _credits_of(behind, sum(amounts, Decimal(0)))
    values = {"ids": [charge.id for charge in behind], "quantities": quantities, "amounts": amounts}
    references = {"note": note_id, "line": line, "invoice": invoice_id, "position": position}
    connection.execute(_CREDIT, references | values)
    return sum(amounts, Decimal(0))


def _credits_of(behind: Sequence[Any], amount: Decimal) -> list[Decimal]:
    """Return how many postpaid credits each charge in `behind` loses if `amount` is refunded.

    Charges of other kinds lose 0. The payer keeps the credits that the rest of the price pays for, rounded
    up.
    """
    back = [Decimal(0)] * len(behind)
    if behind[0].source != DEBT:
        return back
    left = sum((charge.amount for charge in behind), Decimal(0)) + amount
    paid_for = EXACT.divide(left, behind[0].unit_price).to_integral_value(ROUND_CEILING, EXACT)
    more = sum((charge.quantity for charge in behind), Decimal(0)) - paid_for
    for at, charge in enumerate(behind):
        taken = max(Decimal(0), min(charge.quantity, more))
        back[at], more = -taken, more - taken
    return back


# Uncharged facts of the ledgers in the form of charges: one statement for each kind of fact.
#
# The same statement is read for a draft, and stored as charges by an invoice, by the keeper, and by a flush
# in the transaction that stores the fact. Each row names its fact, so repeated deliveries are charged once.

_COLUMNS = (
    "organization_id, kind, period_start, period_end, quantity, unit_price, amount, currency, source,"
    " source_id, fact, tenant_id, service_id, place"
)

# Tokens beyond a plan, at the end of a cycle or of a plan within it, or so far: those of the span, less the
# excess of earlier spans of the cycle. A recharge takes back the charges made while it ran.
OVERAGES = """
SELECT organization_id, 'overage' AS kind, date_trunc('day', began, 'UTC') AS period_start,
       date_trunc('day', greatest(began, ended), 'UTC') + interval '1 day' AS period_end,
       (owed - charged)::numeric AS quantity, unit_price, (owed - charged) * unit_price AS amount, currency,
       'token_ledger' AS source, first_seq AS source_id,
       format('tokens:%s:%s:%s', tenant_id, first_seq, last_seq)
           || CASE WHEN back > 0 THEN format(':%s:%s', late, back)
                   WHEN late > 0 THEN format(':%s', late) ELSE '' END AS fact, tenant_id,
       NULL::bigint AS service_id, cycle AS place
  FROM (SELECT o.*, g.currency,
               greatest(beyond - coalesce(max(beyond) OVER (
                   PARTITION BY o.tenant_id, o.cycle ORDER BY o.first_seq
                   ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0), 0) AS owed,
               (SELECT coalesce(sum(c.quantity), 0) FROM charge AS c
                 WHERE c.source = 'token_ledger' AND c.tenant_id = o.tenant_id AND c.place = o.cycle
                   AND c.source_id = o.first_seq AND c.reason NOT IN ('credited', 'credit_void')) AS charged
          FROM overage_span AS o JOIN organization AS g ON g.id = o.organization_id
         WHERE {which}) AS span
 WHERE owed <> charged"""
_PURCHASE = """
SELECT a.organization_id, 'credits_purchased' AS kind,
       date_trunc('day', a."timestamp", 'UTC') AS period_start,
       date_trunc('day', a."timestamp", 'UTC') + interval '1 day' AS period_end,
       a.credits_added::numeric AS quantity, a.unit_cost AS unit_price,
       a.credits_added * a.unit_cost AS amount, g.currency, 'credit_addition' AS source, a.id AS source_id,
       format('addition:%s', a.id) AS fact, NULL::bigint AS tenant_id, NULL::bigint AS service_id,
       NULL::bigint AS place
  FROM credit_addition AS a JOIN organization AS g ON g.id = a.organization_id"""
# Credits that were sold, or taken back, once the account has them, regardless of their date.
PURCHASES = f"""{_PURCHASE}
  JOIN credit_posting AS p ON p.credit_addition_id = a.id
 WHERE p.kind = 'addition' AND a.category = 'paid' AND a.unit_cost IS NOT NULL AND {{which}}
   AND NOT EXISTS (SELECT FROM charge AS c WHERE c.fact = format('addition:%s', a.id))"""
# Prepaid credits are charged before the account has them.
PREPAID = f"{_PURCHASE}\n WHERE a.invoicing = 'prepaid' AND a.id = :addition"
_OF_DAY = (
    "u.tenant_id = t.tenant_id AND u.day = t.day AND u.service_id = t.service_id"
    " AND u.unit_price = t.unit_price"
)
# Days on which the roll-ups have more units than are charged.
DUE_USES = """
(SELECT tenant_id, day, service_id, unit_price FROM usage_tier
  WHERE organization_id = ANY(cast(:organizations AS bigint[])) AND quantity <> charged_quantity
  UNION
 SELECT tenant_id, day, service_id, unit_price FROM usage_told
  WHERE organization_id = ANY(cast(:organizations AS bigint[])) AND quantity <> charged_quantity)"""
# Units at a price by the day of their supply: those counted on a day, unless they were reported for another
# one. A correction has the source of its charge.
USES = f"""
SELECT u.organization_id, 'usage' AS kind, u.supplied_on::timestamp AT TIME ZONE 'UTC' AS period_start,
       (u.supplied_on + 1)::timestamp AT TIME ZONE 'UTC' AS period_end, u.quantity, u.unit_price,
       u.quantity * u.unit_price AS amount, g.currency, u.source, u.source_id,
       format('%s:%s:%s:%s:%s:%s', u.prefix, u.tenant_id, u.day, u.service_id, u.unit_price, u.counted)
           AS fact,
       u.tenant_id, nullif(u.service_id, 0) AS service_id, u.first_unit AS place
  FROM (
    SELECT t.organization_id, t.tenant_id, t.day, t.day AS supplied_on, t.service_id, t.unit_price,
           t.first_unit, t.quantity - t.charged_quantity - coalesce((
               SELECT sum(u.quantity - u.charged_quantity) FROM usage_told AS u
                WHERE {_OF_DAY}), 0) AS quantity,
           'usage_tier' AS source, NULL::bigint AS source_id, 'units' AS prefix, t.charges::text AS counted
      FROM {DUE_USES} AS d JOIN usage_tier AS t USING (tenant_id, day, service_id, unit_price)
     UNION ALL
    SELECT t.organization_id, t.tenant_id, t.day, u.supplied_on, t.service_id, t.unit_price,
           t.first_unit, (u.quantity - u.charged_quantity)::numeric,
           CASE WHEN u.told_on = u.supplied_on THEN 'usage_tier' ELSE 'usage_told' END,
           CASE WHEN u.told_on <> u.supplied_on THEN coalesce(o.id, u.id) END, 'told',
           format('%s:%s', u.id, u.charges)
      FROM usage_told AS u JOIN usage_tier AS t ON {_OF_DAY}
      LEFT JOIN usage_told AS o ON u.is_back AND NOT o.is_back AND o.tenant_id = u.tenant_id
       AND o.day = u.told_on AND o.service_id = u.service_id AND o.unit_price = u.unit_price
       AND o.supplied_on = u.supplied_on
     WHERE u.organization_id = ANY(cast(:organizations AS bigint[])) AND u.quantity <> u.charged_quantity
       ) AS u JOIN organization AS g ON g.id = u.organization_id
 WHERE u.quantity <> 0"""

# Credits of a day used beyond the balance at a price, as far as they exceed those already charged.
DEBTS = """
SELECT d.organization_id, 'credits_postpaid' AS kind, d.day::timestamp AT TIME ZONE 'UTC' AS period_start,
       (d.day + 1)::timestamp AT TIME ZONE 'UTC' AS period_end,
       (d.quantity - d.charged_quantity)::numeric AS quantity, d.unit_cost AS unit_price,
       (d.quantity - d.charged_quantity) * d.unit_cost AS amount, g.currency, 'credit_debt' AS source,
       NULL::bigint AS source_id,
       format('debt:%s:%s:%s:%s', d.organization_id, d.day, d.unit_cost, d.charges) AS fact,
       NULL::bigint AS tenant_id, NULL::bigint AS service_id, NULL::bigint AS place
  FROM credit_debt AS d JOIN organization AS g ON g.id = d.organization_id
 WHERE d.organization_id = ANY(cast(:organizations AS bigint[])) AND d.quantity <> d.charged_quantity"""


def insert_of(select: str) -> str:
    """Return the SQL that stores the rows of a SELECT as charges, in the order of supply."""
    return (
        f"INSERT INTO charge ({_COLUMNS}) {select}"
        " ORDER BY organization_id, period_start, tenant_id, service_id, place, fact"
        " ON CONFLICT (fact) DO NOTHING"
    )


def driver_level(statement: str, which: str) -> str:
    """Return a statement in psycopg's syntax; `which` is the SQL condition that it inserts."""
    return statement.replace("%", "%%").format(which=which)


NOTHING_THAT_RUNS = datetime(1, 1, 2, tzinfo=UTC)
ALL_THAT_RUNS = datetime(9999, 12, 30, tzinfo=UTC)
# Seconds that a statement for one organization may take, and one for many, which on a timeout follow one by
# one. Meanwhile the flush of their partition waits.
STATEMENT_S_MAX, STATEMENT_OF_MANY_S_MAX = 10.0, 5.0

# Advisory lock class 7803: charges and invoices of one organization.
_LOCK = query("charges.lock", "Wait for charges of an organization",
    "SELECT pg_advisory_xact_lock(7803, hashint8(:organization))")  # fmt: skip
_FREE = query("charges.free", "Lock organizations for charges", """
SELECT id FROM unnest(cast(:organizations AS bigint[])) AS id
 WHERE pg_try_advisory_xact_lock(7803, hashint8(id))""")  # fmt: skip
_TENANTS = query("charges.tenants", "Select the tenants of organizations",
    "SELECT id FROM tenant WHERE organization_id = ANY(cast(:organizations AS bigint[]))")  # fmt: skip
_OF = {
    # Of the cycle that runs nothing is charged before an invoice reaches what was used of it last. Named by
    # tenants, or the turns of everybody's plan were put in order.
    "overages": OVERAGES.format(
        which="o.tenant_id = ANY(cast(:tenants AS bigint[]))"
        " AND (o.next_seq IS NOT NULL OR o.ended < :running)"
    ),
    "purchases": PURCHASES.format(which="p.organization_id = ANY(cast(:organizations AS bigint[]))"),
    "uses": USES,
    "debts": DEBTS,
}
_READ = {
    name: query(f"charges.read_{name}", "Select facts that are not charged yet", select)
    for name, select in _OF.items()
}
_WRITE_OVERAGES, _WRITE_PURCHASES = [
    query(f"charges.write_{name}", "Charge facts that are not charged yet", insert_of(_OF[name]))
    for name in ("overages", "purchases")
]
# The roll-ups store how much of them is charged: one statement updates them and stores the charges.
_WRITE_USES = query("charges.write_uses", "Charge the use of organizations", f"""
WITH due AS (
    SELECT t.tenant_id, t.day, t.service_id, t.unit_price
      FROM {DUE_USES} AS d JOIN usage_tier AS t USING (tenant_id, day, service_id, unit_price)
     ORDER BY t.tenant_id, t.day, t.service_id, t.unit_price FOR UPDATE OF t
), made AS ({insert_of(USES)}), told AS (
    UPDATE usage_told SET charged_quantity = quantity, charges = charges + 1
     WHERE organization_id = ANY(cast(:organizations AS bigint[])) AND quantity <> charged_quantity
), marked AS (
    UPDATE usage_tier AS u SET charged_quantity = u.quantity, charges = u.charges + 1 FROM due
     WHERE u.tenant_id = due.tenant_id AND u.day = due.day AND u.service_id = due.service_id
       AND u.unit_price = due.unit_price
)
SELECT count(*) FROM due""")  # fmt: skip
# Allocation of debt is locked meanwhile.
_WRITE_DEBTS = query("charges.write_debts", "Charge credits beyond the balance", f"""
WITH made AS ({insert_of(DEBTS)})
UPDATE credit_debt SET charged_quantity = quantity, charges = charges + 1
 WHERE organization_id = ANY(cast(:organizations AS bigint[]))
   AND quantity <> charged_quantity""")  # fmt: skip
_UNBILLED = query("charges.unbilled", "Select charges that no invoice has", """
SELECT * FROM charge WHERE organization_id = ANY(cast(:organizations AS bigint[])) AND invoice_id IS NULL
 ORDER BY id""")  # fmt: skip
_BILL = query("charges.bill", "Store the invoices of charges", """
UPDATE charge AS c SET invoice_id = n.invoice_id, line = n.line
  FROM unnest(cast(:ids AS bigint[]), cast(:invoices AS bigint[]), cast(:lines AS integer[]))
    AS n (id, invoice_id, line)
 WHERE c.id = n.id AND c.invoice_id IS NULL""")  # fmt: skip


# The day behind the last one whose use an invoice has.
_USE_BILLED = query("charges.use_billed", "Select the last day of use on an invoice", """
SELECT (max(period_end) AT TIME ZONE 'UTC')::date FROM charge
 WHERE organization_id = :organization AND kind = 'usage' AND invoice_id IS NOT NULL""")  # fmt: skip


def billed_use_end(connection: Connection, organization_id: int) -> date | None:
    """Return the day after the last one whose use is on an invoice; None without any."""
    day: date | None = connection.execute(_USE_BILLED, {"organization": organization_id}).scalar()
    return day


def hold(connection: Connection, organization_id: int) -> None:
    """Lock an organization against other charging and invoicing until the end of the transaction."""
    connection.execute(_LOCK, {"organization": organization_id})


def hold_free(connection: Connection, organization_ids: Sequence[int]) -> list[int]:
    """Lock the organizations that no other transaction charges or invoices; return the locked ones."""
    result = connection.execute(_FREE, {"organizations": sorted(organization_ids)})
    return sorted(result.scalars())


def accrue(
    connection: Connection,
    organization_ids: Sequence[int],
    until: date,
    *,
    today: date,
    running: datetime = NOTHING_THAT_RUNS,
) -> None:
    """Charge everything billable to these organizations: fees of days before `until`, and use.

    Cycles billed in advance that have begun `today` are charged whole. Tokens of a cycle that still runs are
    charged if the last use was before `running`; what is missing to an agreed minimum is charged after the
    cycle. The caller must have locked the organizations, then the flushes of their partitions. Raise
    `StoreTimeout` if a statement takes too long.
    """
    statements_within(connection, STATEMENT_OF_MANY_S_MAX if len(organization_ids) > 1 else STATEMENT_S_MAX)
    here = _parameters(connection, organization_ids, running)
    credit_balances.catch_up_allocations(connection, organization_ids)
    for statement in (_WRITE_OVERAGES, _WRITE_PURCHASES, _WRITE_USES, _WRITE_DEBTS):
        connection.execute(statement, here)
    rows = proration.fee_rows_of(connection, organization_ids)
    _write_fees(connection, rows, until, today)
    give_back(connection, organization_ids)
    # Charge tokens of ended plans once their use is known.
    for organization_id in proration.waiting_early_uses(connection, organization_ids):
        while ends := proration.owed_early_use(connection, organization_id):
            _settle_ends(connection, organization_id, ends)
    rates = service_discounts.read_rates(connection, organization_ids, held=True)
    proration.add_fees(connection, service_discounts.owed_discounts(connection, rates, {}), "fact")
    service_discounts.settle(connection, rates)
    proration.add_fees(connection, _missing(connection, rows, min(until, today), {}), "fact")


def segments(connection: Connection, organization_ids: Sequence[int]) -> dict[int, dict[int, PlanSegment]]:
    plan_segments: dict[int, dict[int, PlanSegment]] = {
        organization_id: {} for organization_id in organization_ids
    }
    for row in proration.fee_rows_of(connection, organization_ids):
        plan_segments[row.organization_id][row.id] = segment_of(row)
    return plan_segments


def accrue_early_use(
    connection: Connection, early_use_reports: Mapping[int, proration.EarlyUseReport]
) -> None:
    """Charge tokens of ended token plans that were reported late.

    These are tokens beyond the plan, and tokens used in advance. `early_use_reports` has the reports by organization. The
    caller must hold the locks that `accrue` requires.
    """
    connection.execute(_WRITE_OVERAGES, _parameters(connection, list(early_use_reports), NOTHING_THAT_RUNS))
    for organization_id in sorted(early_use_reports):
        ends = proration.owed_early_use(connection, organization_id, early_use_reports[organization_id])
        _settle_ends(connection, organization_id, ends)


def accrue_fees(connection: Connection, organization_id: int, today: date) -> None:
    """Charge an organization's fees of all days up to `today`, and refund fees of days no longer covered."""
    hold(connection, organization_id)
    _write_fees(connection, proration.fee_rows_of(connection, [organization_id]), today, today)
    give_back(connection, [organization_id])


def accrue_moved(connection: Connection, organization_id: int, since: date) -> None:
    """Charge or refund use of ended token plans whose days or terms were changed from the day `since` on."""
    hold(connection, organization_id)
    _settle_ends(connection, organization_id, proration.moved_early_use(connection, organization_id, since))


def give_back(connection: Connection, organization_ids: Sequence[int]) -> None:
    """Refund the fees of days on which a subscription no longer applies, as it was changed later."""
    proration.add_fees(connection, proration.lost_fees(connection, organization_ids), "returned")


def open_charges(
    connection: Connection, organization_ids: Sequence[int], until: date, *, today: date, running: datetime
) -> dict[int, list[SupplyCharge]]:
    """Return the charges that no invoice has yet, by organization, up to `until`."""
    here = _parameters(connection, organization_ids, running)
    supply_charges = defaultdict[int, list[SupplyCharge]](list)
    for statement in _READ.values():
        for row in connection.execute(statement, here):
            supply_charges[row.organization_id].append(charge_of(row))
    rows = proration.fee_rows_of(connection, organization_ids)
    _, fees = proration.subscription_fees(connection, _not_over(rows), until, today=today)
    for named in (*fees, *proration.lost_fees(connection, organization_ids)):
        supply_charges[named.organization_id].append(named.charge)
    for owner in proration.waiting_early_uses(connection, organization_ids):
        supply_charges[owner] += [
            end.named.charge for end in proration.owed_early_use(connection, owner) if end.named
        ]
    rates = service_discounts.read_rates(connection, organization_ids)
    for named in service_discounts.owed_discounts(connection, rates, supply_charges):
        supply_charges[named.organization_id].append(named.charge)
    for named in _missing(connection, rows, min(until, today), supply_charges):
        supply_charges[named.organization_id].append(named.charge)
    return supply_charges


def unbilled(connection: Connection, organization_ids: Sequence[int]) -> dict[int, list[SupplyCharge]]:
    supply_charges = defaultdict[int, list[SupplyCharge]](list)
    for row in connection.execute(_UNBILLED, {"organizations": list(organization_ids)}):
        supply_charges[row.organization_id].append(charge_of(row))
    return supply_charges


def bill(connection: Connection, placed: Iterable[tuple[int, SupplyCharge, int | None]]) -> None:
    rows = [(charge.id, invoice_id, line) for invoice_id, charge, line in placed]
    if rows:
        ids, invoices, lines = (list(column) for column in zip(*rows, strict=True))
        connection.execute(_BILL, {"ids": ids, "invoices": invoices, "lines": lines})


def charge_of(row: Any) -> SupplyCharge:
    return SupplyCharge(
        kind=row.kind, start=row.period_start, end=row.period_end, quantity=row.quantity,
        unit_price=row.unit_price, amount=row.amount, source=row.source, source_id=row.source_id,
        tenant_id=row.tenant_id, service_id=row.service_id, place=row.place, id=getattr(row, "id", 0),
    )  # fmt: skip


def _parameters(connection: Connection, organization_ids: Sequence[int], running: datetime) -> dict[str, Any]:
    ids = {"organizations": list(organization_ids)}
    return {**ids, "tenants": list(connection.execute(_TENANTS, ids).scalars()), "running": running}


def _write_fees(connection: Connection, segments: Iterable[Any], until: date, today: date) -> None:
    moved, fees = proration.subscription_fees(connection, _not_over(segments), until, today=today)
    proration.add_fees(connection, fees, "fact")
    proration.move_fees(connection, moved)


def _settle_ends(
    connection: Connection, organization_id: int, ends: Sequence[proration.SettledEarlyUse]
) -> None:
    proration.settle_early_use(connection, ends)
    facts = [NamedCharge(organization_id, *end.named) for end in ends if end.named]
    proration.add_fees(connection, facts, "fact")


def _not_over(segments: Iterable[Any]) -> list[Any]:
    return [row for row in segments if row.charged_until != row.end_date]


def _missing(
    connection: Connection, segments: Iterable[Any], until: date, more: Mapping[int, Sequence[SupplyCharge]]
) -> list[NamedCharge]:
    """Return charges that fill organizations up to their agreed minimum, for cycles ended by `until`.

    `more` are charges that count towards the minimum but are not stored yet, by organization.
    """
    agreed = {row.organization_id for row in segments if row.minimum_commitment is not None}
    return [
        NamedCharge(organization_id, fact, charge)
        for organization_id in sorted(agreed)
        for fact, charge in proration.missing_to_commitments(
            connection, organization_id, until, more.get(organization_id, ())
        )
    ]


# Charges for lists, and the organizations with uncharged facts.

# Days that are over; in advance also today, whose cycle has begun.
_BEGUN = "cast(:today AS date) + CASE WHEN billing = 'advance' THEN 1 ELSE 0 END"
# Used units, credits beyond the balance, days that are over or were lost, and ended plans. Tokens beyond
# plans and sold credits are charged when they are stored.
_DUE = query("charges.due", "Select organizations with facts to charge", f"""
SELECT id FROM (
    SELECT organization_id AS id FROM usage_tier
     WHERE quantity <> charged_quantity AND organization_id > :after
    UNION
    SELECT organization_id FROM usage_told WHERE quantity <> charged_quantity AND organization_id > :after
    UNION
    SELECT organization_id FROM credit_debt WHERE quantity <> charged_quantity AND organization_id > :after
    UNION
    {service_discounts.DUE} AND organization_id > :after
    UNION
    SELECT e.organization_id FROM plan_end AS e
     WHERE e.quantity IS NULL AND e.organization_id > :after AND {proration.KNOWN_EARLY_USES}
    UNION
    SELECT organization_id FROM subscription_segment
     WHERE organization_id > :after AND start_date < least(end_date, {_BEGUN})
       AND (charged_until IS NULL OR charged_until < least(end_date, {_BEGUN})
            OR charged_until > end_date)) AS due
 ORDER BY id LIMIT :count""")  # fmt: skip


def charges_due(connection: Connection, today: date, after: int, count: int) -> Sequence[int]:
    """Return up to `count` ids of organizations with something to charge, in order, beyond the id `after`."""
    result = connection.execute(_DUE, {"today": today, "after": after, "count": count})
    return list(result.scalars())


def charge_known(connection: Connection, organization_id: int, partition: int, today: date) -> None:
    hold(connection, organization_id)
    hold_flushes(connection, partition)
    accrue(connection, [organization_id], today, today=today)


def charge_free(
    connection: Connection, organization_ids: Sequence[int], partition: int, today: date
) -> list[int]:
    """Charge those organizations of a partition that no other transaction has locked; return the others."""
    held = hold_free(connection, organization_ids)
    if held:
        hold_flushes(connection, partition)
        accrue(connection, held, today, today=today)
    return sorted(set(organization_ids) - set(held))


CHARGE_SUBJECT = Entity(
    table,
    time="period_start",
    conditions={
        "billed": lambda wanted: table.c.invoice_id.is_not(None) if wanted else table.c.invoice_id.is_(None)
    },
)


# An organization's charges without an invoice, stored or not, by kind.
def read_unbilled(connection: Connection, organization_id: int, today: date) -> list[Row]:
    """Return one row for each kind of unbilled charge; fees only for days that are over."""
    pays = select(organization.c.currency).where(organization.c.id == organization_id)
    currency, ids = connection.execute(pays).scalar_one(), [organization_id]
    charges = open_charges(connection, ids, today, today=today, running=ALL_THAT_RUNS)
    known = unbilled(connection, ids)[organization_id] + charges[organization_id]
    by_kind = groupby(sorted(known, key=lambda charge: charge.kind), key=lambda charge: charge.kind)
    return [row for kind, some in by_kind if (row := _row(kind, currency, some)) is not None]


def read_waiting(connection: Connection, organization_id: int, until: date, today: date) -> list[Row]:
    """Return the charges that an invoice up to `until` leaves for a later one, by kind and earliest day."""
    pays = select(organization.c.currency).where(organization.c.id == organization_id)
    currency, ids = connection.execute(pays).scalar_one(), [organization_id]
    charges = open_charges(connection, ids, today, today=today, running=ALL_THAT_RUNS)
    known, here = (
        unbilled(connection, ids)[organization_id] + charges[organization_id],
        segments(connection, ids),
    )
    sums = defaultdict[tuple[str, date], Decimal](Decimal)
    for charge in known:
        day = due(charge, here[organization_id]).astimezone(UTC).date()
        if day > until:
            sums[charge.kind, day] += charge.amount
    return [
        {"kind": kind, "currency": currency, "amount": amount.normalize(), "from": day}
        for (kind, day), amount in sorted(sums.items(), key=lambda each: each[0][::-1])
        if amount
    ]


def unbilled_in_words(rows: Iterable[Row]) -> str:
    """Return the unbilled amounts as text; "" if there are none."""
    return ", ".join(f"{row['currency']} {row['amount']} of {row['kind']}" for row in rows)


def _row(kind: str, currency: str, some: Iterable[SupplyCharge]) -> Row | None:
    """Return the sum of some charges as a row, or None if it is 0."""
    found = list(some)
    amount = sum((charge.amount for charge in found), Decimal(0)).normalize()
    if not amount:
        return None
    return {
        "kind": kind,
        "currency": currency,
        "amount": f"{amount:f}",
        "period_start": min(charge.start for charge in found),
        "period_end": max(charge.end for charge in found),
        "charges": len(found),
    }
