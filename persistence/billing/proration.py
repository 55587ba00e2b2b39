"""Ended plans, and the charges for tokens used ahead of the fees paid for them.

The end of a plan is stored with the change that ends it, and charged once the tenant's ledger has all its
use.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import date, datetime
from decimal import Decimal
from itertools import accumulate, groupby
from typing import Any, NamedTuple
from uuid import UUID, uuid4

from sqlalchemy import Connection, insert

from gateway.core.billing.charges import (
    COMMITMENT,
    COMMITTED,
    EARLY_USE,
    FEE,
    ONE_DAY,
    SUBSCRIPTION,
    SupplyCharge,
    charged_until,
    day_fees,
    fee_charge,
    part_of,
)
from gateway.core.billing.proration import (
    ALL,
    BILL,
    EarlyUse,
    PlanUsage,
    SegmentEnd,
    ahead,
    days_of,
    debt_end,
    fees_of,
    plan_end,
    token_cycle,
)
from gateway.core.billing.subscription import PlanSegment, SegmentTerms, cycle_of, midnight
from persistence.billing import plan_turns
from persistence.billing.sold_plans import TokenPlan, terms_of
from persistence.queries import query
from persistence.tables import plan_end as table


# Subscription segments in the form of the billing rules.
def segment_of(row: Any) -> PlanSegment:
    span = (row.anchor_date, row.start_date, row.end_date)
    terms = SegmentTerms(
        row.billing, row.trial_end, row.discount_rate, row.discount_end, row.minimum_commitment
    )
    return PlanSegment(
        row.plan_id, row.billing_interval, row.cost, *span, row.id, terms, row.quantity, row.negotiated
    )


# Days of subscriptions as charges: days not charged yet, and days that a segment lost.

_SEGMENTS = query("proration.segments", "Select segments of subscriptions", """
SELECT * FROM subscription_segment WHERE organization_id = ANY(cast(:organizations AS bigint[]))
 ORDER BY organization_id, start_date, id""")  # fmt: skip
# The charges for days of segments since a day: net, and without corrections.
_DAYS = query("proration.days", "Add up the charges of days of segments", """
SELECT c.source_id, c.kind, (c.period_start AT TIME ZONE 'UTC')::date AS day, count(*) AS rows,
       coalesce(sum(c.quantity) FILTER (WHERE c.reason NOT IN ('credited', 'credit_void')), 0) AS quantity,
       coalesce(sum(c.amount) FILTER (WHERE c.reason NOT IN ('credited', 'credit_void')), 0) AS amount
  FROM unnest(cast(:segments AS bigint[]), cast(:since AS date[])) AS s (id, since)
  JOIN charge AS c ON c.source = 'subscription_segment' AND c.source_id = s.id
   AND c.period_start >= cast(s.since AS timestamp) AT TIME ZONE 'UTC' GROUP BY 1, 2, 3""")  # fmt: skip
# Days that a segment lost and that have charges which do not cancel out.
_LOST = query("proration.lost", "Select charges of days that segments lost", """
SELECT s.organization_id, c.source_id, c.kind, (c.period_start AT TIME ZONE 'UTC')::date AS day,
       count(*) AS rows, sum(c.quantity) AS quantity, sum(c.amount) AS amount
  FROM subscription_segment AS s
  JOIN charge AS c ON c.source = 'subscription_segment' AND c.source_id = s.id
   AND c.period_start >= cast(s.end_date AS timestamp) AT TIME ZONE 'UTC'
 WHERE s.organization_id = ANY(cast(:organizations AS bigint[]))
 GROUP BY 1, 2, 3, 4 HAVING sum(c.quantity) <> 0 OR sum(c.amount) <> 0 ORDER BY 1, 2, 3, 4""")  # fmt: skip
_MOVE = query("proration.move", "Store how far segments are charged", """
UPDATE subscription_segment AS s SET charged_until = n.until
  FROM unnest(cast(:segments AS bigint[]), cast(:until AS date[])) AS n (id, until) WHERE s.id = n.id""")  # fmt: skip
_ADD = query("proration.add", "Add charges", """
INSERT INTO charge (organization_id, kind, period_start, period_end, quantity, unit_price, amount, currency,
                    source, source_id, reason, fact, tenant_id, service_id)
SELECT o.id, n.kind, n.start, n.upto, n.quantity, n.unit_price, n.amount, o.currency, n.source, n.source_id,
       :reason, n.fact, n.tenant_id, n.service_id
  FROM unnest(cast(:organizations AS bigint[]), cast(:kinds AS text[]), cast(:starts AS timestamptz[]),
              cast(:ends AS timestamptz[]), cast(:quantities AS numeric[]), cast(:unit_prices AS numeric[]),
              cast(:amounts AS numeric[]), cast(:sources AS text[]), cast(:source_ids AS bigint[]),
              cast(:facts AS text[]), cast(:tenants AS bigint[]),
              cast(:services AS bigint[])) WITH ORDINALITY
    AS n (organization_id, kind, start, upto, quantity, unit_price, amount, source, source_id, fact,
          tenant_id, service_id, place)
  JOIN organization AS o ON o.id = n.organization_id ORDER BY n.place
ON CONFLICT (fact) DO NOTHING""")  # fmt: skip


class NamedCharge(NamedTuple):
    organization_id: int
    fact: str
    charge: SupplyCharge


class SegmentDue(NamedTuple):
    """A segment with something to charge, and the day up to which it is then charged."""

    segment_id: int
    upto: date


def fee_rows_of(connection: Connection, organization_ids: Sequence[int]) -> Sequence[Any]:
    """Return all subscription segments of these organizations, by organization and day."""
    return connection.execute(_SEGMENTS, {"organizations": list(organization_ids)}).all()


def subscription_fees(
    connection: Connection, segments: Iterable[Any], until: date, *, today: date
) -> tuple[list[SegmentDue], list[NamedCharge]]:
    """Return up to which day each subscription segment is charged, and charges for the days before `until`.

    Cycles billed in advance that have begun `today` are charged whole. A day that one segment lost after it
    was charged is charged again to the segment that has it now.
    """
    rows, begun = list(segments), defaultdict[int, date](lambda: today + ONE_DAY)
    for row in rows:
        if row.charged_until is not None and row.charged_until > row.end_date:
            begun[row.organization_id] = max(begun[row.organization_id], row.charged_until)
    moved, open_ = [], []
    for row in rows:
        segment, at = segment_of(row), row.charged_until or row.start_date
        upto = max(min(at, segment.end), charged_until(segment, until, begun[row.organization_id]))
        if upto != row.charged_until and (upto > row.start_date or row.charged_until is not None):
            moved.append(SegmentDue(segment.id, upto))
            if upto > at:
                open_.append((row.organization_id, segment, at, upto))
    seen = _read_movements(connection, [(segment.id, at) for _, segment, at, _ in open_])
    found = []
    for organization_id, segment, at, upto in open_:
        for fee in day_fees(segment, at, upto):
            rest, number = _uncharged_fee(fee, segment, seen)
            if rest is not None:
                found.append(NamedCharge(organization_id, fact_of(fee, number), rest))
    return moved, found


def _uncharged_fee(
    fee: SupplyCharge, segment: PlanSegment, seen: dict[tuple[int, str, date], Any]
) -> tuple[SupplyCharge | None, int]:
    """Return the part of a day's fee that is not charged yet, or None, and its number of charges so far.

    `seen` are the stored charges by segment, kind and day.
    """
    known = seen.get((segment.id, fee.kind, fee.day))
    if known is None:
        return fee, 0
    if known.quantity == 1:
        return None, 0
    rest = fee_charge(fee.kind, segment.id, fee.day, 1 - known.quantity, fee.amount - known.amount)
    return rest, known.rows


def _read_movements(
    connection: Connection, since: Sequence[tuple[int, date]]
) -> dict[tuple[int, str, date], Any]:
    if not since:
        return {}
    segments, days = (list(column) for column in zip(*since, strict=True))
    rows = connection.execute(_DAYS, {"segments": segments, "since": days})
    return {(row.source_id, row.kind, row.day): row for row in rows}


def lost_fees(connection: Connection, organization_ids: Sequence[int]) -> list[NamedCharge]:
    """Return charges that cancel the fees of days on which a subscription segment no longer applies."""
    found = []
    for row in connection.execute(_LOST, {"organizations": list(organization_ids)}):
        charge = fee_charge(row.kind, row.source_id, row.day, -row.quantity, -row.amount)
        found.append(NamedCharge(row.organization_id, fact_of(charge, row.rows), charge))
    return found


def move_fees(connection: Connection, moved: Sequence[SegmentDue]) -> None:
    if moved:
        segments, days = (list(column) for column in zip(*moved, strict=True))
        connection.execute(_MOVE, {"segments": segments, "until": days})


def add_fees(connection: Connection, named: Sequence[NamedCharge], reason: str) -> None:
    """Store charges, each only once by the name of its fact; `reason` says why they are stored."""
    if not named:
        return
    charges = [owed.charge for owed in named]
    connection.execute(_ADD, {
        "organizations": [owed.organization_id for owed in named], "facts": [owed.fact for owed in named],
        "kinds": [charge.kind for charge in charges], "starts": [charge.start for charge in charges],
        "ends": [charge.end for charge in charges], "quantities": [Decimal(charge.quantity) for charge in charges],
        "unit_prices": [charge.unit_price for charge in charges], "amounts": [charge.amount for charge in charges],
        "tenants": [charge.tenant_id for charge in charges], "sources": [charge.source for charge in charges],
        "source_ids": [charge.source_id for charge in charges], "reason": reason,
        "services": [charge.service_id for charge in charges],
    })  # fmt: skip


def fact_of(fee: SupplyCharge, number: int) -> str:
    what = "segment" if fee.kind == FEE else fee.kind
    return f"{what}:{fee.source_id}:{fee.day}:{number}"


# Maximum of ended plans of one organization that are charged together.
ENDS_MAX = 1_000

# The condition for rows `plan_end AS e` whose control writes are in the ledger: for carried debt, the write
# that ended it, or a reset that forgave it. Debt of a cycle that was over before is never carried.
KNOWN_EARLY_USES = """(e.is_gone OR EXISTS (SELECT FROM token_ledger AS w WHERE w.tenant_id = e.tenant_id
        AND w.transaction_type <> 'consume' AND w.control_write_id = e.control_write_id))
   AND (NOT e.carries
        OR e.debt_counted IS NOT NULL AND (e.debt_write_id IS NULL OR EXISTS (SELECT FROM token_ledger AS w
              WHERE w.tenant_id = e.tenant_id AND w.transaction_type <> 'consume'
                AND w.control_write_id = e.debt_write_id))
        OR EXISTS (SELECT FROM token_ledger AS w JOIN token_ledger AS r ON r.tenant_id = w.tenant_id
                    AND r.transaction_type = 'reset' AND CASE WHEN r.seq < w.seq
                        THEN r.created_at >= e.cycle_ends_at ELSE r.metadata->'forgiven' IS NOT NULL END
              WHERE w.tenant_id = e.tenant_id AND w.transaction_type <> 'consume'
                AND w.control_write_id = e.control_write_id))"""
_OPEN = query("proration.open", "Select ended plans that are not settled", f"""
SELECT e.id, e.paid_from, e.cycle_ends_at FROM plan_end AS e
 WHERE e.organization_id = :organization AND e.quantity IS NULL AND {KNOWN_EARLY_USES}
 ORDER BY e.id LIMIT :count""")  # fmt: skip
# Ended plans that are settled, and whose sum may change by uses reported since a moment.
_TOLD = query("proration.told", "Select settled plans that late use may change", """
SELECT e.id, e.paid_from, e.cycle_ends_at
  FROM unnest(cast(:tenants AS bigint[]), cast(:since AS timestamptz[])) AS n (tenant_id, since)
  JOIN plan_end AS e ON e.tenant_id = n.tenant_id AND coalesce(e.cycle_ends_at, 'infinity') > n.since
 WHERE e.organization_id = :organization AND e.used IS NOT NULL ORDER BY e.id""")  # fmt: skip
# Cycles whose days or plans changed from a day on.
_MOVED = query("proration.moved", "Select cycles of tokens that changed", """
SELECT DISTINCT paid_from, cycle_ends_at FROM plan_end
 WHERE organization_id = :organization AND coalesce(cycle_ends_at, 'infinity') > :since AND used IS NOT NULL
 ORDER BY 1, 2""")  # fmt: skip
# All ended plans of these cycles: each of their tokens is charged once.
_CYCLES = query("proration.cycles", "Select the ended plans of cycles", """
SELECT e.* FROM plan_end AS e
  JOIN (SELECT DISTINCT * FROM unnest(cast(:days AS date[]), cast(:ends AS timestamptz[])) AS n (day, ends))
    AS n
    ON n.day = e.paid_from AND n.ends IS NOT DISTINCT FROM e.cycle_ends_at
 WHERE e.organization_id = :organization ORDER BY e.paid_from, e.cycle_ends_at, e.id""")  # fmt: skip
_WAITING = query("proration.waiting", "Select organizations with ended plans", """
SELECT DISTINCT organization_id FROM plan_end
 WHERE organization_id = ANY(cast(:organizations AS bigint[])) AND quantity IS NULL ORDER BY 1""")  # fmt: skip
_END_DEBT = query("proration.end_debt", "Store the end of carried debt", """
UPDATE plan_end SET debt_write_id = cast(:write AS uuid), debt_ends_at = cast(:ends AS timestamptz),
       debt_counted = :counted
 WHERE tenant_id = :tenant AND carries AND debt_counted IS NULL""")  # fmt: skip
_REGAIN = query("proration.regain", "Store tokens that a new plan has again", """
UPDATE plan_end SET regained = greatest(coalesce(regained, 0), :tokens)
 WHERE tenant_id = :tenant AND paid_from = :day
   AND cycle_ends_at IS NOT DISTINCT FROM cast(:ends AS timestamptz)
   AND counted < :tokens AND coalesce(regained, 0) < :tokens""")  # fmt: skip
_SETTLE = query("proration.settle", "Store the result of an ended plan", """
UPDATE plan_end SET used = :used, began = :began, debt = cast(:debt AS bigint), quantity = :quantity,
       amount = :amount, charges = charges + :charges WHERE id = :id""")  # fmt: skip


# The name of a fact, and its charge.
class EarlyCharge(NamedTuple):
    fact: str
    charge: SupplyCharge


# Tenants with late reports, and the first day of that use.
EarlyUseReport = Mapping[int, datetime]


class PlanRemoval(NamedTuple):
    """The tenant whose plan was removed, and the control write that did it (None for a deleted tenant).

    `anchor` is the day of the month on which the tenant's months begin.
    """

    tenant_id: int
    organization_id: int
    write_id: UUID | None
    anchor: int


class SettledEarlyUse(NamedTuple):
    """The result for an ended plan: its use by the ledger, tokens used ahead, and a charge for the rest."""

    end_id: int
    read: plan_turns.PlanTurns
    ahead: EarlyUse
    named: EarlyCharge | None


def note_early_use(
    connection: Connection, taken: PlanRemoval, ended: SegmentEnd, had: TokenPlan, then: TokenPlan | None
) -> None:
    """Store that the token plan `had` of a tenant ended, if its use may still have to be paid.

    `then` is the next plan, None if there is none.
    """
    found = plan_end(
        ended, terms_of(had, taken.anchor), None if then is None else terms_of(then, taken.anchor)
    )
    if found is None:
        return
    connection.execute(
        insert(table).values(
            organization_id=taken.organization_id, tenant_id=taken.tenant_id,
            control_write_id=taken.write_id or uuid4(), is_gone=taken.write_id is None,
            subscription_id=ended.subscription_id, anchor_date=ended.segment.anchor,
            paid_from=found.paid_from, cycle_ends_at=found.ends, total_amount=found.total,
            counted=found.counted, worth=found.worth, paid=found.paid, paid_until=found.until,
            carries=found.carries, supplied_from=found.begins, supplied_until=ended.last_day + ONE_DAY,
        )
    )  # fmt: skip


def end_debt(
    connection: Connection,
    taken: PlanRemoval,
    ended: SegmentEnd | None,
    had: TokenPlan,
    then: TokenPlan | None,
) -> None:
    """End the debt that the ending plan `had` carried from earlier plans, unless `then` carries it on.

    `then` is the next plan, None if there is none.
    """
    found = debt_end(
        ended, terms_of(had, taken.anchor), None if then is None else terms_of(then, taken.anchor)
    )
    if found is not None:
        here = {"tenant": taken.tenant_id, "write": taken.write_id, "ends": found.ends}
        connection.execute(_END_DEBT, {**here, "counted": found.counted})


def regain_early_use(
    connection: Connection, taken: PlanRemoval, then: TokenPlan, anchor: date, at: datetime
) -> None:
    """Store how many tokens used under plans that ended in this cycle the tenant's new plan `then` includes.

    `anchor` is the first day of the subscription, `at` a moment in the cycle.
    """
    terms = terms_of(then, taken.anchor)
    day, ends = token_cycle(terms, anchor, at)
    # A plan that bills its excess charges these tokens itself.
    included = ALL - 1 if terms.total is None else terms.total
    tokens = ALL if terms.policy == BILL else included
    connection.execute(_REGAIN, {"tenant": taken.tenant_id, "day": day, "ends": ends, "tokens": tokens})


def waiting_early_uses(connection: Connection, organization_ids: Sequence[int]) -> list[int]:
    """Return the ids of organizations with ended plans that are not settled yet, in order."""
    return list(connection.execute(_WAITING, {"organizations": list(organization_ids)}).scalars())


def owed_early_use(
    connection: Connection, organization_id: int, early_use_report: EarlyUseReport | None = None
) -> list[SettledEarlyUse]:
    """Return the ended token plans of an organization that are not charged yet, each with its result.

    With `early_use_report`, the late reports of use by tenant, return instead the plans that these reports change.
    """
    here: dict[str, Any] = {"organization": organization_id}
    if early_use_report is None:
        looked = connection.execute(_OPEN, {**here, "count": ENDS_MAX}).all()
    else:
        those = {"tenants": list(early_use_report), "since": list(early_use_report.values())}
        looked = connection.execute(_TOLD, {**here, **those}).all()
    return _owed_results(connection, organization_id, looked, {row.id for row in looked})


def moved_early_use(connection: Connection, organization_id: int, since: date) -> list[SettledEarlyUse]:
    """Return charged ended plans whose result differs now, because days or plans since a day were changed."""
    here = {"organization": organization_id, "since": midnight(since)}
    return _owed_results(connection, organization_id, connection.execute(_MOVED, here).all(), set())


def settle_early_use(connection: Connection, ends: Sequence[SettledEarlyUse]) -> None:
    for end in ends:
        values = {
            "id": end.end_id, "used": end.read.used, "began": end.read.began, "debt": end.read.debt,
            "quantity": end.ahead.tokens, "amount": end.ahead.amount,
            "charges": int(end.named is not None),
        }  # fmt: skip
        connection.execute(_SETTLE, values)


def _owed_results(
    connection: Connection, organization_id: int, cycles: Sequence[Any], unread: set[int]
) -> list[SettledEarlyUse]:
    """Return the results of all ended plans that lie in these cycles.

    The use of plans in `unread` is read from the ledger; the others have it stored.
    """
    if not cycles:
        return []
    wanted = {"days": [row.paid_from for row in cycles], "ends": [row.cycle_ends_at for row in cycles]}
    rows = connection.execute(_CYCLES, {"organization": organization_id, **wanted}).all()
    segments = [segment_of(row) for row in fee_rows_of(connection, [organization_id])]
    carried, found = plan_turns.Lots(connection), list[SettledEarlyUse]()
    for _, cycle in groupby(rows, key=lambda row: (row.paid_from, row.cycle_ends_at)):
        ends, before = list[tuple[Any, plan_turns.PlanTurns]](), Decimal(0)
        for row in cycle:
            if row.id in unread:
                ends.append((row, plan_turns.read_plan_turns(connection, row, carried)))
            elif row.used is not None:
                ends.append((row, plan_turns.PlanTurns(row.used, row.began, row.debt)))
            else:  # not known yet, or settled before this was kept
                before += row.amount or 0
        found += _settle_early_uses(ends, segments, before)
    return found


def _settle_early_uses(
    ends: Sequence[tuple[Any, plan_turns.PlanTurns]], segments: Sequence[PlanSegment], before: Decimal
) -> Iterator[SettledEarlyUse]:
    """Yield the ends of plans whose early use now costs another amount than was noted."""
    if not ends:
        return
    (row, _), used = ends[-1], [_read_use(*end, segments) for end in ends]
    # The current plan, or the last one.
    runs, whole = segments[0], (row.paid_from, row.paid_from)
    for segment in segments:
        days = days_of(segment, row.paid_from, row.cycle_ends_at, used[-1].until)
        if segment.start < days[1]:
            runs, whole = segment, days

    def fees(until: date | None) -> Decimal:
        return fees_of(segments, row.paid_from, whole[1] if until is None else until) + before

    # By the earlier cycles, so that the same fee is worth the same.
    as_before = replace(runs, anchor=row.anchor_date, start=whole[0], end=whole[1])
    owed = ahead(used, fees, fees_of([as_before], *whole))
    for (end, read), due in zip(ends, owed, strict=True):
        noted = (end.used, end.began, end.debt, end.quantity, end.amount)
        if (*read, due.tokens, due.amount) != noted:
            tokens, amount = due.tokens - (end.quantity or 0), due.amount - (end.amount or 0)
            named = None
            if amount:
                named = EarlyCharge(_fact(end), _charge(end, EarlyUse(tokens, amount, due.unit_price)))
            yield SettledEarlyUse(end.id, read, due, named)


def _read_use(row: Any, read: plan_turns.PlanTurns, segments: Sequence[PlanSegment]) -> PlanUsage:
    """Return the use of a plan that has ended, with the debt that counts."""
    # Debt that nobody carried on belongs to a cycle that was over before the plan ended.
    counted = row.counted if read.debt is not None or not row.carries else 0
    # Older keepers did not store it.
    ended = (segment.end for segment in segments if segment.anchor == row.anchor_date)
    until = row.paid_until or max((day for day in ended if day <= row.supplied_until), default=row.paid_from)
    return PlanUsage(
        row.tenant_id, read.began, until, row.total_amount, row.worth, read.used, counted, row.regained,
        read.debt,
    )  # fmt: skip


def _fact(row: Any) -> str:
    """Return the unique name of the charge for an ended plan; later corrections get a number."""
    return f"early:{row.control_write_id}" + (f":{row.charges}" if row.charges else "")


def _charge(row: Any, rest: EarlyUse) -> SupplyCharge:
    span = (midnight(row.supplied_from), midnight(row.supplied_until))
    return SupplyCharge(
        EARLY_USE, *span, Decimal(rest.tokens), rest.unit_price, rest.amount, SUBSCRIPTION,
        row.subscription_id, tenant_id=row.tenant_id,
    )  # fmt: skip


# The shortfall to the minimum of a subscription's cycle, once the cycle is over.
#
# Late reports count on the day of supply: then a part of the charge is refunded by another row.

_COMMITTED_SEGMENTS = query("proration.committed_segments", "Select segments with a minimum", """
SELECT * FROM subscription_segment AS s
 WHERE organization_id = :organization AND end_date > start_date
   AND EXISTS (SELECT FROM subscription_segment AS m
                WHERE m.organization_id = s.organization_id AND m.anchor_date = s.anchor_date
                  AND m.minimum_commitment IS NOT NULL)
 ORDER BY start_date, id""")  # fmt: skip
_SUBSCRIPTION = query("proration.subscription", "Select the subscription of an organization",
    "SELECT id FROM organization_subscription WHERE organization_id = :organization")  # fmt: skip
# By day of supply; credit notes are not included.
_CHARGED = query("proration.charged", "Add up the charges that count toward a minimum", """
SELECT (period_start AT TIME ZONE 'UTC')::date AS day, kind, sum(amount) AS amount, count(*) AS rows
  FROM charge
 WHERE organization_id = :organization AND kind = ANY(cast(:kinds AS text[]))
   AND reason NOT IN ('credited', 'credit_void')
   AND period_start >= cast(cast(:since AS date) AS timestamp) AT TIME ZONE 'UTC'
 GROUP BY 1, 2""")  # fmt: skip


def missing_to_commitments(
    connection: Connection, organization_id: int, until: date, more: Iterable[SupplyCharge]
) -> list[tuple[str, SupplyCharge]]:
    """Return charges for what is missing to the agreed minimum of cycles ended by `until`.

    Earlier such charges are subtracted. `more` are charges that count but are not stored yet. Each charge
    comes with its unique name (fact).
    """
    here = {"organization": organization_id}
    segments = [segment_of(row) for row in connection.execute(_COMMITTED_SEGMENTS, here)]
    if not segments:
        return []
    subscription_id = connection.execute(_SUBSCRIPTION, here).scalar_one()
    wanted = {"kinds": [*COMMITTED, COMMITMENT], "since": segments[0].start}
    charged = connection.execute(_CHARGED, here | wanted).all()
    had = {row.day: row for row in charged if row.kind == COMMITMENT}
    of_days = [(row.day, row.amount) for row in charged if row.kind != COMMITMENT]
    of_days += [(each.day, each.amount) for each in more if each.kind in COMMITTED]
    of_days.sort()
    days, sums = [day for day, _ in of_days], [*accumulate((sum_ for _, sum_ in of_days), initial=Decimal(0))]
    found = []
    for first, end, least in _cycles(segments, until):
        came_to = sums[bisect_left(days, end)] - sums[bisect_left(days, first)]
        rest = max(least - came_to, Decimal(0)) if least else least
        rows = 0
        if first in had:
            rest, rows = rest - had[first].amount, had[first].rows
        if rest:
            charge = SupplyCharge(
                COMMITMENT, midnight(first), midnight(end), Decimal(1 if rest > 0 else -1), abs(rest), rest,
                SUBSCRIPTION, subscription_id,
            )  # fmt: skip
            found.append((f"commitment:{subscription_id}:{first}:{rows}", charge))
    return found


def _cycles(segments: Sequence[PlanSegment], until: date) -> list[tuple[date, date, Decimal]]:
    """Return the cycles ended by `until`, cut to the subscription's time, as first day, end and minimum."""
    found = []
    for anchor in sorted({segment.anchor for segment in segments}):
        term = [segment for segment in segments if segment.anchor == anchor]
        end, day = max(segment.end for segment in term), anchor
        while day < min(end, until):
            first, following = cycle_of(anchor, term[-1].interval, day)
            over, whole = min(following, end), (following - first).days
            if over <= until:
                least = sum((_least(each, first, over, whole) for each in term), Decimal(0))
                found.append((first, over, least))
            day = following
    return found


def _least(segment: PlanSegment, first: date, over: date, whole: int) -> Decimal:
    """Return the minimum price for a segment's days in a cycle; a trial has none."""
    begins = max(first, segment.start, min(segment.terms.trial_end or first, over))
    days = (min(over, segment.end) - begins).days
    least = segment.terms.minimum_commitment
    if least is None or days <= 0:
        return Decimal(0)
    return part_of(least, (begins - first).days, days, whole)
