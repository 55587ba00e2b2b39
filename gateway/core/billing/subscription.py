"""A subscription through time: cycles from its anchor day, and segments with the plan in force and its cost.

Days are UTC days and spans are half-open: a subscription that starts on the 1st and ends on the 16th was in
force for 15 days. Pure: today is an argument.
"""

from __future__ import annotations

from calendar import monthrange
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from decimal import Decimal

from gateway.core.billing.money import EXACT
from gateway.errors import Conflict

MONTHS = {"monthly": 1, "quarterly": 3, "annual": 12}
# The end of a subscription that renews until somebody ends it.
NO_END = date.max
ADVANCE, ARREARS = "advance", "arrears"
# Terms of a running subscription that may change from a day on; and the reason for a new price of its plan.
TERMS = ("discount", "minimum", "negotiated_cost", "quantity")
REPRICED = "repriced"


@dataclass(frozen=True, slots=True)
class SegmentTerms:
    """Terms of a segment besides its plan.

    `billing` says when the fee of a whole cycle is due; None charges each day once it is over. Days before
    `trial_end` are free, days before `discount_end` (None: all days) have the discount. Each cycle costs at
    least `minimum_commitment`.
    """

    billing: str | None = None
    trial_end: date | None = None
    discount_rate: Decimal | None = None
    discount_end: date | None = None
    minimum_commitment: Decimal | None = None


AGREED_NOTHING = SegmentTerms()


@dataclass(frozen=True, slots=True)
class PlanSegment:
    """A plan in force from `start` to `end` (exclusive). Its cycles count from `anchor`.

    `cost` is the price of a whole cycle: `quantity` times the plan's price, or the price `negotiated`. `id`
    is 0 until it is stored.
    """

    plan_id: int
    interval: str
    cost: Decimal
    anchor: date
    start: date
    end: date
    id: int = 0
    terms: SegmentTerms = AGREED_NOTHING
    quantity: int = 1
    negotiated: bool = False

    @property
    def unit_cost(self) -> Decimal:
        """The price of a whole cycle for a quantity of one."""
        return EXACT.divide(self.cost, Decimal(self.quantity))

    def is_free(self, day: date) -> bool:
        """Return whether the day is in the trial."""
        return self.terms.trial_end is not None and day < self.terms.trial_end

    def discount_of(self, day: date) -> Decimal:
        """Return the discount on the day's fee as a fraction."""
        ends = self.terms.discount_end
        return (self.terms.discount_rate or Decimal(0)) if ends is None or day < ends else Decimal(0)

    def term_of(self, day: date) -> tuple[date, date]:
        """Return the first and last (exclusive) day of the billing cycle of `day`, cut to this segment."""
        first, following = cycle_of(self.anchor, self.interval, day)
        return max(first, self.start), min(following, self.end)


@dataclass(frozen=True, slots=True)
class Subscription:
    """One organization's subscription: its segments, oldest first, and the pending change, if any.

    `cancel_at` is the day of a cancellation; then `end` is the same day.
    """

    segments: tuple[PlanSegment, ...]
    next_plan_id: int | None = None
    change_at: date | None = None
    cancel_at: date | None = None

    @property
    def current(self) -> PlanSegment:
        """The last segment: the plan that is in force, or that was the last one."""
        return self.segments[-1]

    @property
    def end(self) -> date:
        """The first day on which the subscription is no longer in force."""
        return self.current.end


def midnight(day: date) -> datetime:
    """Return the begin of a day in UTC."""
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


def boundary(anchor: date, interval: str, cycles: int) -> date:
    """Return the day on which `cycles` billing cycles since `anchor` end, and the next one begins.

    It has the anchor's day of the month, or the last day of a shorter month.
    """
    months = anchor.year * 12 + anchor.month - 1 + cycles * MONTHS[interval]
    year, month = divmod(months, 12)
    return date(year, month + 1, min(anchor.day, monthrange(year, month + 1)[1]))


def cycle_of(anchor: date, interval: str, day: date) -> tuple[date, date]:
    """Return the first day of the cycle that contains a day, and the first day of the next one."""
    months = (day.year - anchor.year) * 12 + day.month - anchor.month
    cycles = months // MONTHS[interval]
    while boundary(anchor, interval, cycles) > day:
        cycles -= 1
    while boundary(anchor, interval, cycles + 1) <= day:
        cycles += 1
    return boundary(anchor, interval, cycles), boundary(anchor, interval, cycles + 1)


def begin(plan_id: int, interval: str, cost: Decimal, start: date, end: date) -> Subscription:
    """Return a new subscription to a plan at `cost` a cycle. Its cycles count from the day `start`."""
    return Subscription((PlanSegment(plan_id, interval, cost, start, start, end),))


def agree(
    subscription: Subscription, terms: SegmentTerms, quantity: int, *, negotiated: bool
) -> Subscription:
    """Return a new subscription with the agreed `terms`, and with its cost times `quantity`.

    `negotiated` marks a cost that differs from the plan's price.
    """
    segments = tuple(
        replace(segment, terms=terms, cost=segment.cost * quantity, quantity=quantity, negotiated=negotiated)
        for segment in subscription.segments
    )
    return replace(subscription, segments=segments)


def agree_from(
    subscription: Subscription, values: Mapping[str, object], day: date, cost: Decimal
) -> Subscription:
    """Return the subscription with the terms in `values` changed from a day on, for the current plan.

    `cost` is the plan's price of a cycle on that day. A negotiated fee stays unless `values` names it. Days
    before keep their terms.
    """
    segments: list[PlanSegment] = []
    for segment in subscription.segments:
        behind = _change_segment(segment, values, cost)
        if segment.end <= day or segment.plan_id != subscription.current.plan_id or behind == segment:
            segments.append(segment)
            continue
        ended = replace(segment, end=max(day, segment.start))
        # A segment without days that is not stored is dropped.
        segments += [ended] if segment.id or ended.end > ended.start else []
        segments.append(replace(behind, start=ended.end, id=0))
    return replace(subscription, segments=tuple(segments))


def plan_since(subscription: Subscription) -> date:
    since = subscription.end
    for segment in reversed(subscription.segments):
        if segment.plan_id != subscription.current.plan_id:
            break
        since = segment.start
    return since


def change_now(subscription: Subscription, plan_id: int, cost: Decimal, today: date) -> Subscription:
    """Return the subscription with another plan from today on, and without a pending change of plan."""
    _segment_in_force(subscription, today)
    return _split(subscription, plan_id, cost, max(today, subscription.current.start))


def change_at_period_end(subscription: Subscription, plan_id: int, today: date) -> Subscription:
    """Return the subscription with a change of plan pending at the end of the current cycle.

    Raise `Conflict` if the subscription ends by then.
    """
    at = _period_end(subscription, today)
    if at >= subscription.end:
        raise Conflict(f"The subscription ends on {subscription.end}: there is no later period to change.")
    return replace(subscription, next_plan_id=plan_id, change_at=at)


def cancel(subscription: Subscription, today: date, *, now: bool) -> Subscription:
    """Cancel the subscription today, or at the end of the current cycle. A pending change is dropped."""
    at = min(_period_end(subscription, today), subscription.end)
    at = max(today, subscription.current.start) if now else at
    return Subscription(_ended(subscription, at), cancel_at=at)


def extend(subscription: Subscription, end: date, today: date) -> Subscription:
    """Move the end to another future day. A cancellation is revoked."""
    if subscription.end <= today:
        raise Conflict(f"The subscription ended on {subscription.end}; make a new one.")
    if end <= max(today, subscription.current.start):
        raise Conflict("The end must be a day to come, after the start of the plan in force.")
    extended, at = Subscription(_ended(subscription, end)), subscription.change_at
    if at is None or at >= end:
        return extended
    return replace(extended, next_plan_id=subscription.next_plan_id, change_at=at)


def advance(subscription: Subscription, cost: Decimal, today: date) -> Subscription:
    """Apply the pending change if its day has come."""
    at, plan_id = subscription.change_at, subscription.next_plan_id
    if at is None or plan_id is None or at > today:
        return subscription
    return _split(subscription, plan_id, cost, at)


def status(start: date, end: date, today: date) -> str:
    """Return `over`, `active` or `future`: the state on `today` of a span whose `end` is exclusive.

    A span of no days is over.
    """
    if end <= max(start, today):
        return "over"
    return "future" if today < start else "active"


def _change_segment(segment: PlanSegment, values: Mapping[str, object], cost: Decimal) -> PlanSegment:
    """Return a segment with the changed terms, quantity and fee in `values`; `cost` is the plan's price."""
    terms, negotiated, unit_cost = segment.terms, segment.negotiated, segment.unit_cost
    if "discount" in values:
        terms = replace(terms, discount_rate=_decimal(values["discount"]), discount_end=None)
    if "minimum" in values:
        terms = replace(terms, minimum_commitment=_decimal(values["minimum"]))
    if "negotiated_cost" in values:
        fee = _decimal(values["negotiated_cost"])
        negotiated, unit_cost = fee is not None, cost if fee is None else fee
    elif REPRICED in values and not negotiated:
        unit_cost = cost
    quantity = int(str(values.get("quantity", segment.quantity)))
    return replace(segment, terms=terms, cost=unit_cost * quantity, quantity=quantity, negotiated=negotiated)


def _decimal(value: object) -> Decimal | None:
    return None if value is None else Decimal(str(value))


def _split(subscription: Subscription, plan_id: int, cost: Decimal, at: date) -> Subscription:
    """Return the subscription with another plan from the day `at` on, and no pending change."""
    now = subscription.current
    following = replace(now, plan_id=plan_id, cost=cost * now.quantity, negotiated=False, start=at, id=0)
    segments = (*_ended(subscription, at), following)
    return replace(subscription, segments=segments, next_plan_id=None, change_at=None)


def _ended(subscription: Subscription, at: date) -> tuple[PlanSegment, ...]:
    """Return the segments of a subscription, with the end of the last one moved to the day `at`."""
    return (*subscription.segments[:-1], replace(subscription.current, end=at))


def _period_end(subscription: Subscription, today: date) -> date:
    """Return the end of the current cycle; `Conflict` if the subscription is over."""
    _segment_in_force(subscription, today)
    current = subscription.current
    return cycle_of(current.anchor, current.interval, max(today, current.start))[1]


def _segment_in_force(subscription: Subscription, today: date) -> None:
    if subscription.end <= today:
        raise Conflict(f"The subscription ended on {subscription.end}.")
