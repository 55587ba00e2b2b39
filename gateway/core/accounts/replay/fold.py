"""Folds calls of the past through budgets: which calls each would have refused or substituted, and whose. Pure.

A call is refused where an enforced budget has used more than its limit with the call. A refused call is used in no
budget; a call without use always fits. Memory grows with owners, never with calls: each owner has one history in a
budget. From its first refused or substituted call on it has a second one, in which nothing was refused.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from operator import attrgetter
from typing import Any, Final, NamedTuple

from gateway.core.accounts.budgets import UNITS, Budget, owner_of
from gateway.core.accounts.intervals import DAY, window_bounds
from gateway.core.accounts.replay.calls import NOBODY, PriceOfCall, StoredCall, owner_reader
from gateway.core.accounts.replay.histories import AccountHistory, windows_of
from gateway.core.accounts.replay.steps import Position, Steps, StepTrial
from gateway.core.times import TimeZone, moment_of
from gateway.errors import Unprocessable

# Most budgets of a replay, most owners of each, most refused owners that are listed, and most days.
BUDGETS_MAX: Final = 20
OWNERS_MAX: Final = 200_000
OWNERS_LISTED_MAX: Final = 1_000
DAYS_MAX: Final = 400
# The longest that one takes, in seconds, and of a core (measured: 20 s for a million calls against five budgets).
REPLAY_S_MAX: Final = 300.0
REPLAY_CPU_S_MAX: Final = 120
# Facts of calls that budgets select by, and budgets of each, that are remembered.
SELECTIONS_MAX: Final = 65_536
# Of a hundred owners, so many are refused nothing with a suggested amount.
SUGGESTED: Final = (50, 90, 99)


@dataclass(frozen=True, slots=True)
class RefusedOwner:
    """An owner who was refused: how often, when first (Unix ms), and the most that it used in a window.

    `who` is empty for the account that callers without a value of `each` share.
    """

    who: str
    refused: int
    first_refusal_ms: int
    used_max: int


@dataclass(frozen=True, slots=True)
class DayOutcome:
    """What a budget used and refused on a day of its zone."""

    day: date
    used: int
    refused: int


@dataclass(frozen=True, slots=True)
class BudgetOutcome:
    """What one budget would have done. Costs are in nano-units, other amounts in the budget's unit as counted."""

    name: str
    unit: str
    refused: int
    refused_cost: int
    substituted: int
    saved: int
    first_refusal_ms: int | None
    owners: tuple[RefusedOwner, ...]
    owners_more: int
    by_day: tuple[DayOutcome, ...]
    least_amount: int
    suggestions: Mapping[str, int] | None


@dataclass(frozen=True, slots=True)
class Replayed:
    """What budgets would have done together; a call counts once."""

    calls: int
    refused: int
    refused_cost: int
    substituted: int
    saved: int
    items: tuple[BudgetOutcome, ...]


@dataclass(slots=True)
class _Divergence:
    """The history of an owner without any refusal, and how often the budget refused it."""

    free: AccountHistory
    refused: int = 0
    first_ms: int = 0


class _Days:
    """The days of a time zone within a period, and the one that runs."""

    __slots__ = ("dates", "ends", "index", "until_ms")

    def __init__(self, time_zone: str, from_ms: int, to_ms: int) -> None:
        self.dates, self.ends, self.index = list[date](), list[int](), 0
        at_ms, zone = from_ms, TimeZone(time_zone)
        while at_ms < to_ms:
            self.dates.append(moment_of(at_ms).astimezone(zone).date())
            at_ms = window_bounds(DAY, time_zone, 1, at_ms)[1]
            self.ends.append(at_ms)
        self.until_ms = self.ends[0]

    def move(self, at_ms: int) -> None:
        while at_ms >= self.until_ms:
            self.index += 1
            self.until_ms = self.ends[self.index]


class _Meter:
    """One budget: the histories of its owners, and what it refused and substituted.

    `own` are the hashes of owners that have a limit of their own, which is then decided by `Budget.limit_of`. `strangers`
    are owners whom only calls that were sent as a substitute met: they use the budget, and count in no figure of owners.
    """

    __slots__ = (
        "_groups", "_groups_overridden", "_own_names", "_owners_listed_max", "_owners_max", "amount", "budget", "days", "divergences", "enforce", "first_refused",
        "has_steps", "histories", "is_plain", "owner", "place", "refused", "refused_by_day", "refused_cost", "refused_owners",
        "saved", "strangers", "substituted", "unit", "used_by_day", "windows",
    )  # fmt: skip

    def __init__(
        self, place: int, budget: Budget, days: _Days, owners_max: int, owners_listed_max: int
    ) -> None:
        self._owners_max, self._owners_listed_max = owners_max, owners_listed_max
        self.place, self.budget, self.days = place, budget, days
        self.unit, self.enforce, self.amount = UNITS.index(budget.unit), budget.enforce, budget.amount
        self.owner = owner_reader(budget.each)
        self.is_plain = not (budget.has_own or budget.raised_until_ms)
        self.has_steps = budget.enforce and bool(budget.steps)
        self.windows = windows_of(budget, None if self.is_plain else self._limit_later)
        self.histories, self.divergences = dict[object, Any](), dict[object, _Divergence]()
        self.strangers = set[object]()
        self.first_refused, self.refused_owners = list[object](), 0
        self.refused = self.refused_cost = self.substituted = self.saved = 0
        self.used_by_day, self.refused_by_day = [0] * len(days.dates), [0] * len(days.dates)
        self._groups_overridden = frozenset(budget.overridden_groups)
        self._own_names, self._groups = dict[object, str](), dict[object, tuple[int, ...]]()

    def meet(self, owner: object) -> AccountHistory:
        """Return the history of an owner whom a call as asked meets first."""
        if owner in self.strangers:
            self.strangers.remove(owner)
        else:
            self._keep(owner, self.open(owner))
        history: AccountHistory = self.histories[owner]
        return history

    def meet_substitute(self, owner: object, history: AccountHistory) -> None:
        """Store the history of an owner of a call that was sent as a substitute, if it was opened for that call."""
        if owner not in self.histories:
            self._keep(owner, history)
            self.strangers.add(owner)

    def open(self, owner: object) -> AccountHistory:
        """Return a new history for an owner, which is not kept."""
        if not self.is_plain and self.budget.each:
            name = owner_of(str(owner))
            if name in self.budget.overrides or name in self.budget.raises:
                self._own_names[owner] = name
        history: AccountHistory = self.windows.open()
        return history

    def _keep(self, owner: object, history: AccountHistory) -> None:
        """Store the history of a new owner; raise `Unprocessable` if it is one too many."""
        if len(self.histories) >= self._owners_max:
            why = f"has more than {self._owners_max} owners in these calls: choose a shorter period, or fewer calls"
            raise Unprocessable(errors=((f"budgets.{self.place}.each", why),))
        if type(owner) is str:
            owner = sys.intern(owner)  # other budgets may have the same one
        self.histories[owner] = history

    def limit(self, owner: object, call: StoredCall) -> int | None:
        """Return the limit of an owner at the time of one of its calls."""
        if self.is_plain:
            return self.amount
        if self._groups_overridden:
            if not self._groups_overridden.isdisjoint(call.groups):
                self._own_names.setdefault(owner, owner_of(str(owner)))
            if owner in self._own_names:
                self._groups[owner] = call.groups
        return self._limit_later(owner, call.at_ms)

    def _limit_later(self, owner: object, at_ms: int) -> int | None:
        """Return the limit of an owner at a time, in the groups of its last call."""
        name = self._own_names.get(owner)
        if name is None:
            return self.budget.limit_at(at_ms)
        return self.budget.limit_of(name, at_ms, self._groups.get(owner, ())).amount

    def diverge(self, owner: object) -> _Divergence:
        """Return the second history of an owner, which is a copy of its first one if there was none."""
        divergence = self.divergences.get(owner)
        if divergence is None:
            divergence = self.divergences[owner] = _Divergence(self.histories[owner].fork())
        return divergence

    def take(self, history: AccountHistory, at_ms: int, amount: int) -> None:
        """Add an admitted use above 0."""
        self.windows.take(history, at_ms, amount)
        self.used_by_day[self.days.index] += amount

    def take_freely(self, owner: object, at_ms: int, amount: int) -> None:
        """Add a use to what an owner had used without any refusal."""
        free = self.diverge(owner).free
        if at_ms >= free.until_ms:
            self.windows.roll(free, at_ms, owner)
        if amount:
            self.windows.take(free, at_ms, amount)

    def refuse(self, owner: object, call: StoredCall) -> None:
        """Count a call that this budget had no room for."""
        self.refused += 1
        self.refused_cost += call.cost
        self.refused_by_day[self.days.index] += 1
        divergence = self.diverge(owner)
        if not divergence.refused:
            divergence.first_ms = call.at_ms
            if len(self.first_refused) < self._owners_listed_max:
                self.first_refused.append(owner)
            self.refused_owners += 1
        divergence.refused += 1

    def result(self) -> BudgetOutcome:
        """Return what the budget did in the replay: refusals by owner and day, and sufficient amounts."""
        firsts = [self.divergences[owner] for owner in self.first_refused]
        owners = [
            RefusedOwner(str(owner), at.refused, at.first_ms, self.histories[owner].peak)
            for owner, at in zip(self.first_refused, firsts, strict=True)
        ]
        least_amounts = {
            owner: self.windows.least_amount(
                history if owner not in self.divergences else self.divergences[owner].free
            )
            for owner, history in self.histories.items()
            if owner not in self._own_names and owner not in self.strangers
        }
        least = max(least_amounts.values(), default=0)
        least_amounts.pop(NOBODY, None)  # suggestions are by values of `each`
        amounts = sorted(least_amounts.values())
        suggestions = {
            str(part): amounts[-(-len(amounts) * part // 100) - 1] for part in SUGGESTED if amounts
        }
        return BudgetOutcome(
            self.budget.name, self.budget.unit, self.refused, self.refused_cost, self.substituted, self.saved,
            firsts[0].first_ms if firsts else None,
            tuple(owners) if self.budget.each else (),
            self.refused_owners - len(owners) if self.budget.each else 0,
            tuple(map(DayOutcome, self.days.dates, self.used_by_day, self.refused_by_day)),
            least, suggestions or None,
        )  # fmt: skip


# A call in the account of one owner of a budget: the budget, the owner, its history, and the call's use. No class,
# as making one takes longer than all the rest.
_Share = tuple[_Meter, object, AccountHistory, int]


class _Trial(NamedTuple):
    """The shares of a call in its budgets, those that have no room for it, and its positions in those with steps."""

    shares: list[_Share]
    short: list[_Share]
    positions: list[Position]


class BudgetFold:
    """Budgets through which stored calls go, in the order of their time.

    Calls are from `from_ms` up to before `to_ms` (Unix ms). `price` is asked for the calls of steps alone.
    """

    def __init__(
        self, budgets: Sequence[Budget], from_ms: int, to_ms: int, price: PriceOfCall,
        *, owners_max: int = OWNERS_MAX, owners_listed_max: int = OWNERS_LISTED_MAX,
    ) -> None:  # fmt: skip
        days = {budget.time_zone: _Days(budget.time_zone, from_ms, to_ms) for budget in budgets}
        self._days = tuple(days.values())
        self._meters = [
            _Meter(place, budget, days[budget.time_zone], owners_max, owners_listed_max)
            for place, budget in enumerate(budgets)
        ]
        self._steps = Steps(budgets, price) if any(budget.steps for budget in budgets) else None
        self._facts, self._selected = _facts_selected_by(budgets), dict[object, tuple[_Meter, ...]]()
        self._calls = self._refused = self._refused_cost = self.substituted = self.saved = 0

    def add(self, call: StoredCall) -> None:
        """Add one call, which is not earlier than the calls before it."""
        for days in self._days:
            if call.at_ms >= days.until_ms:
                days.move(call.at_ms)
        self._calls += 1
        asked = self._try(call, "", call.cost)
        if self._steps is not None and asked.positions:
            self._aim(self._steps, call, asked)
        elif asked.short:
            self._refuse(call, asked)
        else:
            self._admit(call, asked)

    def result(self) -> Replayed:
        return Replayed(
            self._calls, self._refused, self._refused_cost, self.substituted, self.saved,
            tuple([meter.result() for meter in self._meters]),
        )  # fmt: skip

    def _select(self, call: StoredCall, model: str) -> tuple[_Meter, ...]:
        """Return the budgets that apply to a call sent as `model`, empty for the one asked for."""
        key = model, self._facts(call)
        selected = self._selected.get(key)
        if selected is None:
            if len(self._selected) >= SELECTIONS_MAX:
                self._selected.clear()
            attributes = call.attributes(model)
            selected = tuple([meter for meter in self._meters if meter.budget.matches(attributes)])
            self._selected[key] = selected
        return selected

    def _try(self, call: StoredCall, model: str, cost: int) -> _Trial:
        """Return the shares of a call, sent as `model` at a cost, without taking them."""
        trial, at_ms, amounts = _Trial([], [], []), call.at_ms, (cost, call.tokens, call.requests)
        for meter in self._select(call, model):
            owner = meter.owner(call)
            history = meter.histories.get(owner)
            if history is None or (meter.strangers and not model and owner in meter.strangers):
                history = meter.open(owner) if model else meter.meet(owner)
            if at_ms >= history.until_ms:
                meter.windows.roll(history, at_ms, owner)
            amount = amounts[meter.unit]
            share = meter, owner, history, amount
            trial.shares.append(share)
            limit = meter.amount if meter.is_plain else meter.limit(owner, call)
            if (
                limit is not None
                and amount
                and meter.enforce
                and history.used + amount > limit + history.carried
            ):
                trial.short.append(share)
            if meter.has_steps and limit is not None:
                trial.positions.append(Position(meter.place, history.used, limit + history.carried))
        return trial

    def _admit(self, call: StoredCall, trial: _Trial) -> None:
        at_ms = call.at_ms
        for meter, owner, history, amount in trial.shares:
            if amount:
                meter.take(history, at_ms, amount)
                if owner in meter.divergences:
                    meter.take_freely(owner, at_ms, amount)

    def _refuse(self, call: StoredCall, trial: _Trial) -> None:
        self._refused += 1
        self._refused_cost += call.cost
        for meter, owner, _, amount in trial.shares:
            meter.take_freely(owner, call.at_ms, amount)
        for meter, owner, _, _ in trial.short:
            meter.refuse(owner, call)

    def _aim(self, steps: Steps, call: StoredCall, asked: _Trial) -> None:
        """Send a call as the model that steps name, or as it was asked for."""

        def attempt(model: str, cost: int) -> StepTrial:
            trial = self._try(call, model, cost) if model else asked
            return StepTrial(not trial.short, tuple(trial.positions))

        aim = steps.aim(call, attempt)
        if not aim.model:
            (self._refuse if asked.short else self._admit)(call, asked)
            return
        trial, meter = self._try(call, aim.model, aim.cost), self._meters[aim.place]
        for it, owner, history, _ in trial.shares:
            it.meet_substitute(owner, history)
            it.diverge(owner)
        for it, owner, _, amount in asked.shares:
            it.take_freely(owner, call.at_ms, amount)
        for it, _, history, amount in trial.shares:
            if amount:
                it.take(history, call.at_ms, amount)
        for counts in (self, meter):
            counts.substituted += 1
            counts.saved += call.cost - aim.cost


def _facts_selected_by(budgets: Sequence[Budget]) -> Callable[[StoredCall], object]:
    """Return a function that returns the facts of a call by which these budgets select calls."""
    selected = {
        ("tenant_id",): any(budget.tenant_id for budget in budgets),
        ("api_key_id",): any(budget.api_key_id for budget in budgets),
        ("service_id",): any(budget.service_id for budget in budgets),
        ("user",): any(budget.user for budget in budgets),
        ("project_id",): any(budget.project_id is not None for budget in budgets),
        ("model", "response_model"): any(budget.model for budget in budgets),
        ("tags",): any(budget.tags for budget in budgets),
        ("groups",): any(budget.group_id for budget in budgets),
    }
    names = [name for facts, is_selected in selected.items() if is_selected for name in facts]
    return attrgetter(*names) if names else lambda call: None
