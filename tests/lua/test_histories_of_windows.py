"""Any life of windows that roll, begin at first use or carry over is what a list of all its uses comes to.

The model has no ring and no sums: it lists every use with the moment of its admission, and adds up anew. Lengths are
drawn, since an hour or a day is also the length of an interval by the calendar.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction

import redis
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.accounts.budgets import Budget, account_of, define_windows
from gateway.core.accounts.outbox import EventKind, money_moved, sign_of
from gateway.core.accounts.windows import FIRST_USE, LENGTH_MAX_MS, ROLLING, Carry
from gateway.core.model import BudgetAccount, SettleResult, Verdict
from gateway.core.times import DAY_MS, HOUR_MS, MINUTE_MS
from gateway.counters.layouts import packing
from gateway.counters.layouts.states import pack_windows
from gateway.counters.redis import keys
from tests.builders import Call, new_id
from tests.lua.clocks import ClockWorld
from tests.search import examples

BEGIN = 4_102_488_000_000 // DAY_MS * DAY_MS
LARGE = 10**25
ROLLS = Budget(1, "rolls", "money", 100, "", window=ROLLING, length_ms=5 * HOUR_MS)
WIDE = Budget(2, "wide", "money", LARGE, "", window=ROLLING, length_ms=90 * MINUTE_MS)
BEGINS = Budget(3, "begins", "money", 120, "", window=FIRST_USE, length_ms=3 * HOUR_MS)
TOKENS = Budget(4, "tokens", "tokens", 50, "", window=ROLLING, length_ms=HOUR_MS)
CARRIES = Budget(5, "carries", "money", 80, "hour", carry=Carry(150))
OWES = Budget(6, "owes", "tokens", 40, "hour", carry=Carry(30, debt=True))
STARTS = Budget(7, "starts", "tokens", 60, "", window=FIRST_USE, length_ms=DAY_MS)
BUDGETS = ROLLS, WIDE, BEGINS, TOKENS, CARRIES, OWES, STARTS
NAME = account_of(1, ROLLS)
USUAL_MS = 5 * MINUTE_MS, 59 * MINUTE_MS, HOUR_MS, 5 * HOUR_MS, DAY_MS, 7 * DAY_MS, LENGTH_MAX_MS
LENGTHS = st.sampled_from(USUAL_MS) | st.integers(5, LENGTH_MAX_MS // MINUTE_MS).map(
    lambda minutes: minutes * MINUTE_MS
)


@dataclass
class Use:
    """A settled amount: when its call was admitted and settled, and the interval or window it fell in."""

    admitted: int
    amount: int
    at: int


@dataclass
class Model:
    """One budget: its limit, all uses ever, what is held, and resets."""

    budget: Budget
    limit: int
    uses: list[Use] = field(default_factory=list)
    held: int = 0
    began: int | None = None
    # By interval, the limit as calls have brought it last.
    limits: dict[int, int] = field(default_factory=dict)
    latest: int = 0

    def unit(self, money: int, tokens: int) -> int:
        return money if self.budget.unit == "money" else tokens

    def comes(self, now: int) -> None:
        """Time only moves forward for a window."""
        self.latest = max(self.latest, now)
        if self.began is not None and now >= self.began + self.budget.length_ms:
            self.began = None

    def counted_from(self, admitted: int, now: int) -> int:
        """Return from when a use counts: while a rolling window is ahead of the clock, no part of it is over."""
        if self.budget.window != ROLLING or now // self.part == self.latest // self.part:
            return min(admitted, self.latest)
        return max(min(admitted, self.latest), int((self.latest // self.part - 30) * self.part))

    @property
    def part(self) -> Fraction:
        return Fraction(self.budget.length_ms, 30)

    def used(self) -> int:
        return sum(use.amount for use in self.uses if self.counts(use))

    def counts(self, use: Use) -> bool:
        if self.budget.window == ROLLING:
            return (use.admitted // self.part + 31) * self.part > self.latest
        if self.budget.window == FIRST_USE:
            return self.began is not None and use.at >= self.began
        return use.at // HOUR_MS == self.latest // HOUR_MS

    def carried(self, hour: int | None = None) -> int:
        """What the interval carries, added up from that of the first use on."""
        if self.budget.carry is None or not self.uses:
            return 0
        hour = self.latest // HOUR_MS if hour is None else hour
        first = min(use.at // HOUR_MS for use in self.uses)
        carried, limit = 0, self.limit
        for passing in range(first, hour):
            limit = self.limits.get(passing, limit)
            used = sum(use.amount for use in self.uses if use.at // HOUR_MS == passing)
            left = limit + carried - used
            carried = min(self.budget.carry.max, left if self.budget.carry.debt else max(0, left))
        return carried

    def brought(self) -> None:
        self.limits[self.latest // HOUR_MS] = self.limit

    def free(self) -> int:
        return self.limit + self.carried() - self.used() - self.held

    def takes(self, amount: int, now: int) -> None:
        if self.budget.window == FIRST_USE and amount > 0 and self.began is None:
            self.began = now


class Life:
    """The models, and the scripts beside them."""

    def __init__(self, world: ClockWorld, lengths: Sequence[int]) -> None:
        self.world, drawn = world, iter(lengths)
        budgets = [
            replace(budget, length_ms=next(drawn)) if budget.length_ms else budget for budget in BUDGETS
        ]
        self.models = [Model(budget, budget.amount) for budget in budgets]
        self.open: list[tuple[Call, int, int, int]] = []
        # The use of windows that do not roll, by budget and start: only a reset lowers it.
        self.used: dict[tuple[int, int], int] = {}

    def account(self) -> BudgetAccount:
        now = [replace(model.budget, amount=model.limit) for model in self.models]
        return BudgetAccount(NAME, define_windows(now, self.world.at_ms), enforced=True)

    def comes(self) -> None:
        for model in self.models:
            model.comes(self.world.at_ms)

    def reserves(self, money: int, tokens: int) -> None:
        self.comes()
        call = self.world.reserve(budgets=(self.account(),), money=money, budget_tokens=tokens)
        fits = all((need := model.unit(money, tokens)) == 0 or need <= model.free() for model in self.models)
        assert (call.verdict is Verdict.ADMITTED) == fits, (
            call.decision,
            [model.free() for model in self.models],
        )
        if not fits:
            return
        for model in self.models:
            model.brought()
            model.takes(model.unit(money, tokens), self.world.at_ms)
            model.held += model.unit(money, tokens)
        self.open.append((call, money, tokens, self.world.at_ms))

    def settles(self, which: int, money: int, tokens: int) -> None:
        if not self.open:
            return
        call, *held, admitted = self.open.pop(which % len(self.open))
        self.comes()
        assert call.settle(money=money, budget_tokens=tokens) is SettleResult.DONE
        for model in self.models:
            model.held -= model.unit(*held)
            amount = model.unit(money, tokens)
            model.takes(amount, self.world.at_ms)
            if amount:
                at = model.counted_from(admitted, self.world.at_ms)
                model.uses.append(Use(at, amount, model.latest if model.began is None else model.began))

    def resets(self, which: int) -> None:
        self.comes()
        model = self.models[which]
        self.world.run("grant", packing.grant(
            self.world.run_id, "budget", model.budget.id, new_id(), tenant_id=7, organization_id=1, accounts=[NAME],
        ))  # fmt: skip
        for use in [use for use in model.uses if model.counts(use)]:
            use.amount = 0
        self.used = {place: used for place, used in self.used.items() if place[0] != model.budget.id}

    def changes(self, which: int, limit: int) -> None:
        self.models[which].limit = limit

    def restarts(self) -> None:
        """What is stored is packed anew, as a keeper does."""
        key = keys.budget_account(self.world.p, NAME)
        if self.world.get(key):
            self.world.client.set(key, pack_windows(self.world.windows(NAME)))

    def holds(self) -> None:
        """Compare what is stored, as of now, after a call that takes nothing."""
        self.comes()
        self.world.reserve(budgets=(self.account(),)).release()
        stored = {window.budget_id: window for window in self.world.windows(NAME)}
        for model in self.models:
            model.brought()
            window = stored[model.budget.id]
            assert (window.used, window.held) == (model.used(), model.held), model
            if window.carry is not None:
                assert window.carry.carried == model.carried(), model
            if model.budget.window == FIRST_USE:
                assert window.start == (model.began or 0)
            if model.budget.window != ROLLING:
                assert window.used >= self.used.get((window.budget_id, window.start), 0), model
                self.used[window.budget_id, window.start] = window.used

    def entries(self) -> None:
        """What entries say adds up to the uses, by the starts at which they count; what is carried was told."""
        moved = dict[tuple[int, int], int]()
        units = {model.budget.id: model for model in self.models}
        for event in self.world.events():
            for window in event.budgets:
                model = units[window.budget_id]
                amount = sign_of(event) * model.unit(money_moved(event), event.raw_tokens)
                if event.kind == EventKind.CARRY:
                    assert amount == model.carried(window.start_ms // HOUR_MS), (window, model)
                    continue
                place = window.budget_id, window.start_ms
                moved[place] = moved.get(place, 0) + amount
        for model in self.models:
            told = {
                start: amount for (id_, start), amount in moved.items() if id_ == model.budget.id and amount
            }
            since = model.budget.form.since(model.latest)
            now = sum(amount for start, amount in told.items() if start >= since)
            assert now == model.used() or model.budget.window == FIRST_USE, model


AMOUNTS = st.one_of(st.just(0), st.integers(1, 90))
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("reserves"), AMOUNTS, st.integers(0, 30)),
        st.tuples(st.just("settles"), st.integers(0, 9), st.one_of(AMOUNTS, st.just(10**17)), st.integers(0, 60)),
        st.tuples(st.just("passes"), st.one_of(
            st.integers(0, HOUR_MS), st.integers(0, 8 * HOUR_MS), st.integers(0, 8 * DAY_MS), st.integers(-9 * HOUR_MS, 0),
        )),
        st.tuples(st.just("resets"), st.integers(0, len(BUDGETS) - 1)),
        st.tuples(st.just("changes"), st.sampled_from([0, 2, 4, 5]), st.integers(10, 300)),
        st.tuples(st.just("restarts")),
    ),
    min_size=5,
    max_size=40,
)  # fmt: skip


@settings(max_examples=examples(300), deadline=None)
@given(lengths=st.tuples(*[LENGTHS for budget in BUDGETS if budget.length_ms]), steps=STEPS)
def test_history_of_windows_equals_the_sums_of_all_uses(
    valkey: str, lengths: tuple[int, ...], steps: list[tuple[object, ...]]
) -> None:
    redis.Redis.from_url(valkey).flushdb()
    world = ClockWorld(valkey, BEGIN)
    world.plan(None)
    life = Life(world, lengths)
    for verb, *arguments in steps:
        if verb == "passes":
            world.set_clock(max(BEGIN, world.at_ms + int(str(arguments[0]))))
        else:
            getattr(life, str(verb))(*arguments)
        life.holds()
    life.entries()
    world.client.close()
