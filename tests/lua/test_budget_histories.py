"""Any life of budgets is what a small model makes of it: calls, time in zones, late and early definitions,
streams, reclaims, what comes late, replays, resets, overrides and raises of one owner. What entries say adds up
to what windows count.

The server's clock goes on by itself: time that passes is taken off what is stored.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import redis
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.core.accounts.budgets import (
    DEFINED_WINDOW,
    Budget,
    PersonalOverride,
    PersonalRaise,
    account_of,
    define_windows,
    owner_in,
)
from gateway.core.accounts.intervals import window_bounds
from gateway.core.billing.price_book import TokenRate
from gateway.core.model import BudgetAccount, HoldExtension, SettleResult, Verdict
from gateway.core.times import HOUR_MS
from gateway.counters.layouts import packing
from gateway.counters.layouts.states import BUDGET, WindowState, pack_windows
from gateway.counters.redis import keys
from tests.builders import Call, World, new_id
from tests.search import examples

HOURLY = Budget(1, "hour", "money", 100, "hour", "Asia/Kolkata")
DAILY = Budget(2, "day", "tokens", 150, "day", "America/New_York")
EVER = Budget(3, "ever", "requests", 20, "total")
MONTHLY = Budget(4, "month", "money", 250, "month", "Europe/Berlin", 31, enforce=False, each="user")
WEEKLY = Budget(5, "week", "money", 180, "week", "Pacific/Chatham", 3, each="user")
GROUPS = (HOURLY, DAILY, EVER), (MONTHLY, WEEKLY)
NAMES = account_of(1, HOURLY), account_of(1, MONTHLY, "ann")
# The next to last Sunday of October: clocks go back in Berlin a week later, in New York two.
BEGIN_MS = 1_792_900_000_000 // 900_000 * 900_000 + 420_000
EXAMPLES = 60
STEP_MS, STEPS = 900_000, (1, 4, 96, 7 * 96, 31 * 96)
RATE = TokenRate(0, 10**6, 10**6, in_money=True)


@dataclass(slots=True)
class Window:
    """One window as the model has it; times are the model's."""

    budget: Budget
    limit: float = 0
    start: int = 0
    next: int = 0
    after: int = 0
    used: int = 0
    held: int = 0

    def come(self, now: int, defined_at: int | None) -> Window:
        """As it is now, by the definition of a moment or by itself: what has ended by then stays so."""
        self.end(now)
        if defined_at is not None:
            start, next_, after = window_bounds(
                self.budget.interval, self.budget.time_zone, self.budget.anchor_day, defined_at
            )
            begun = self.start == 0 and self.next > now  # a clock ahead made it: nobody knew when
            if start > now:
                self.next, self.after = start, next_
            elif start >= self.start and not (begun and 0 < next_ <= now):
                self.used = self.used if begun or start == self.start else 0
                self.start, self.next, self.after = start, next_, after
        self.end(now)
        return self

    def end(self, now: int) -> None:
        """Begin the next interval, as often as one has ended; hours follow one another."""
        while 0 < self.next <= now:
            follows = self.budget.interval == "hour" and self.after
            self.start, self.next, self.used = self.next, self.after, 0
            self.after = self.after + HOUR_MS if follows else 0

    def amount(self, money: int, tokens: int, requests: int) -> int:
        return {"money": money, "tokens": tokens, "requests": requests}[self.budget.unit]


@dataclass(slots=True)
class Held:
    """What a call holds, and in which accounts."""

    accounts: tuple[int, ...]
    money: int
    tokens: int


@dataclass(slots=True)
class Life:
    """The model, and the scripts beside it."""

    world: World
    now: int = BEGIN_MS
    accounts: dict[int, list[Window]] = field(default_factory=dict)
    calls: list[tuple[Call, Held | None]] = field(default_factory=list)
    # By budget and the window's beginning, as the model's time has it.
    counted: dict[tuple[int, int], int] = field(default_factory=dict)
    entries: dict[tuple[int, int], int] = field(default_factory=dict)
    posted: set[tuple[str, str]] = field(default_factory=set)
    # By budget what its owner may use, until when.
    raised: dict[int, tuple[int, int]] = field(default_factory=dict)
    # By budget what its owner has in place of it, until when.
    overridden: dict[int, tuple[int | None, int]] = field(default_factory=dict)
    shift: int = 0
    seen: int = 0

    def __post_init__(self) -> None:
        self.shift = self.now - self.world.now_ms()
        self.seen = len(self.world.events())

    # --- time -------------------------------------------------------------------------

    def passes(self, steps: int) -> None:
        """Time passes: all that is stored is that much older."""
        self.now += steps * STEP_MS
        shift = self.now - self.world.now_ms()
        for name in NAMES:
            key = keys.budget_account(self.world.p, name)
            moved = [self._moved(one, self.shift - shift) for one in self.world.windows(name)]
            if moved:
                calls = BUDGET.read(self.world.get(key)[: BUDGET.size])["calls"]
                self.world.client.set(key, pack_windows(moved, calls=calls))
        self.shift = shift

    def _moved(self, one: WindowState, by: int) -> WindowState:
        if one.budget_id == EVER.id:
            return one
        times = {name: getattr(one, name) for name in ("start", "next", "after")}
        return replace(one, **{name: at + by if at else 0 for name, at in times.items()})

    def asked(self, which: tuple[int, ...], at: int) -> tuple[BudgetAccount, ...]:
        """Accounts as they are defined at a moment, in the server's time."""
        found = []
        for one in which:
            owner = owner_in(NAMES[one])
            raises = {name: PersonalRaise(*said) for name, said in self.raised.items()}
            overrides = {name: PersonalOverride(*said) for name, said in self.overridden.items()}
            group = [
                replace(
                    each,
                    raises={owner: raises[each.id]} if each.id in raises else {},
                    overrides={owner: overrides[each.id]} if each.id in overrides else {},
                )
                for each in GROUPS[one]
            ]
            packed = b"".join(
                DEFINED_WINDOW.pack(budget_id, limit, *(time and time - self.shift for time in times), flags)
                for budget_id, limit, *times, flags in DEFINED_WINDOW.struct.iter_unpack(
                    define_windows(group, at, owner)
                )
            )
            found.append(BudgetAccount(NAMES[one], packed, enforced=True))
        return tuple(found)

    def windows(self, which: tuple[int, ...], defined_at: int | None = None) -> Iterator[Window]:
        for one in which:
            if one not in self.accounts and defined_at is not None:
                self.accounts[one] = [Window(budget) for budget in GROUPS[one]]
                for window in self.accounts[one]:
                    start, *_ = window_bounds(*_terms(window.budget), defined_at)
                    window.start = 0 if start > self.now else start
            for window in self.accounts.get(one, ()):
                if defined_at is not None:
                    window.limit = self._limit(window.budget, defined_at)
                yield window.come(self.now, defined_at)

    def _limit(self, budget: Budget, at: int) -> float:
        """What Ann may use: all she was given that is not over yet, by how far it goes."""
        raised_to, raised_until = self.raised.get(budget.id, (0, 0))
        given, given_until = self.overridden.get(budget.id, (0, 0))
        usual = float(budget.amount) if at >= given_until else float("inf") if given is None else float(given)
        if at >= raised_until:
            return usual
        return raised_to if at < given_until else max(usual, raised_to)

    def raise_one(self, budget: Budget, amount: int, steps: int) -> None:
        """Raise Ann alone, from the next definition on."""
        self.raised[budget.id] = amount, self.now + steps * STEP_MS

    def override_one(self, budget: Budget, amount: int | None, steps: int) -> None:
        """Give Ann alone another amount, from the next definition on."""
        self.overridden[budget.id] = amount, self.now + steps * STEP_MS

    # --- calls ------------------------------------------------------------------------

    def reserve(self, which: tuple[int, ...], money: int, least: int, tokens: int, lag: int) -> None:
        at = self.now + lag * STEP_MS
        call = self.world.reserve(
            budgets=self.asked(which, at), money=money, money_least=least, budget_tokens=tokens
        )
        before = {one: [replace(each) for each in found] for one, found in self.accounts.items()}
        got, verdict = {"money": money, "tokens": tokens, "requests": 1}, Verdict.ADMITTED
        windows = list(self.windows(which, at))
        for window in windows:
            unit, limit = window.budget.unit, window.limit
            need, left = got[unit], limit - window.used
            if not window.budget.enforce or not need or need <= left - window.held:
                continue
            lowest = min(least or need, need) if unit == "money" else need
            if lowest <= left - window.held:
                got[unit] = int(left - window.held)
            elif verdict is not Verdict.BUDGET_EXCEEDED:
                verdict = Verdict.BUDGET_EXCEEDED if lowest > left else Verdict.QUOTA_HELD
        assert call.verdict is verdict
        if verdict is not Verdict.ADMITTED:
            self.accounts = before
            return
        assert (call.decision.money_held, call.decision.budget_tokens_held) == (got["money"], got["tokens"])
        for window in windows:
            window.held += got[window.budget.unit]
        self.calls.append((call, Held(which, got["money"], got["tokens"])))

    def extend(self, at: int, seen: int) -> None:
        call, held = self.calls[at]
        names = tuple(one.name for one in call.request.budgets)
        live = HoldExtension(
            self.world.caller, call.id, 0, seen, budgets=names, money_rate=RATE, counts_budget_tokens=True
        )
        [(tokens, _, exhausted, money, budget_tokens)] = self.world.kept([(live, 0)])
        if held is None:
            assert tokens == -1
            return
        windows = list(self.windows(held.accounts))
        more = {"money": max(0, seen - held.money), "tokens": max(0, seen - held.tokens), "requests": 0}
        free = dict(more)
        for window in windows:
            if window.budget.enforce:
                left = max(0, window.limit - window.used - window.held)
                free[window.budget.unit] = int(min(free[window.budget.unit], left))
        free["requests"] = 0
        for window in windows:
            window.held += free[window.budget.unit]
        held.money, held.tokens = held.money + free["money"], held.tokens + free["tokens"]
        assert (exhausted, money, budget_tokens) == (int(free != more), held.money, held.tokens)

    def end(self, at: int, money: int, tokens: int, how: str) -> None:
        """Settle, release or reclaim a call; again it changes nothing, but for what a reclaim left."""
        call, held = self.calls[at]
        mode = {"settle": packing.MODE_CHARGE, "release": packing.MODE_RELEASE}.get(how, packing.MODE_RECLAIM)
        spent: dict[str, int] = {} if how == "release" else {"money": money, "budget_tokens": tokens}
        settled = call.settle(tokens, mode=mode, **spent)
        assert (settled is SettleResult.DONE) == (held is not None)
        if held is None:
            return
        self.calls[at] = call, None
        for window in self.windows(held.accounts):
            amount = window.amount(held.money, held.tokens, 1)
            window.held = max(0, window.held - amount)
        if how != "release":
            self._count(held.accounts, money, tokens, 1)

    def late(self, at: int, money: int, tokens: int, how: str) -> None:
        """Post a call, or what a correction of it differs by, with definitions of now."""
        call, held = self.calls[at]
        if held is not None:
            return
        which = tuple(NAMES.index(one.name) for one in call.request.budgets)
        call.request.budgets = self.asked(which, self.now)
        mode, requests = (packing.MODE_POST, 1) if how == "post" else (packing.MODE_CORRECT, 0)
        assert (
            call.settle(tokens, mode=mode, requests=requests, money=money, budget_tokens=tokens)
            is SettleResult.DONE
        )
        if (call.id, how) not in self.posted:  # once: the second is on its way to PostgreSQL
            self.posted.add((call.id, how))
            list(self.windows(which, self.now))
            self._count(which, money, tokens, requests)

    def reset(self, budget: Budget) -> None:
        one = next(at for at, group in enumerate(GROUPS) if budget in group)
        call = packing.grant(
            self.world.run_id, "budget", budget.id, new_id(),
            tenant_id=0, organization_id=1, accounts=[NAMES[one]],
        )  # fmt: skip
        assert packing.code_of(self.world.run("grant", call)) == 1
        # Nothing is written where nothing was used.
        if any(window.budget is budget and window.used for window in _come(self.accounts, one, self.now)):
            for window in self.windows((one,)):
                if window.budget is budget:
                    place = budget.id, window.start
                    self.counted[place] = self.counted.get(place, 0) - window.used
                    window.used = 0

    def _count(self, which: tuple[int, ...], money: int, tokens: int, requests: int) -> None:
        for window in self.windows(which):
            amount = window.amount(money, tokens, requests)
            window.used += amount
            place = window.budget.id, window.start
            self.counted[place] = self.counted.get(place, 0) + amount

    # --- what is compared -------------------------------------------------------------

    def check(self) -> None:
        for at, name in enumerate(NAMES):
            stored = {
                one.budget_id: (one.start and one.start + self.shift, one.used, one.held)
                for one in self.world.windows(name)
            }
            mine = {one.budget.id: (one.start, one.used, one.held) for one in self.accounts.get(at, ())}
            in_use = any(held is not None and at in held.accounts for _, held in self.calls)
            in_use = in_use or any(used or held for _, used, held in mine.values())
            if ":" in name and not in_use and not stored:
                self.accounts.pop(at, None)  # nobody's any more
                continue
            assert stored == mine
        units = {one.id: one.unit for group in GROUPS for one in group}
        events = self.world.events()
        for event in events[self.seen :]:
            sign = -1 if event.kind == 8 else 1
            amounts = {"money": event.money, "tokens": event.raw_tokens, "requests": event.requests}
            for budget_id, start, _ in event.budgets:
                place = budget_id, start and start + self.shift
                self.entries[place] = self.entries.get(place, 0) + sign * amounts[units[budget_id]]
        self.seen = len(events)
        assert _nothing_left_out(self.entries) == _nothing_left_out(self.counted)


def _come(accounts: dict[int, list[Window]], one: int, now: int) -> list[Window]:
    """The windows of an account as they would be now."""
    return [replace(window).come(now, None) for window in accounts.get(one, ())]


def _terms(budget: Budget) -> tuple[str, str, int]:
    return budget.interval, budget.time_zone, budget.anchor_day


def _nothing_left_out(sums: dict[Any, int]) -> dict[Any, int]:
    return {place: amount for place, amount in sums.items() if amount}


amounts, calls = st.integers(0, 60), st.integers(0, 9)
reserves = st.tuples(
    st.just("reserve"),
    st.sampled_from([(0,), (1,), (0, 1)]),
    amounts,
    st.sampled_from([0, 0, 1, 30]),
    amounts,
    st.sampled_from([0, 0, 0, -1, -4, -96, 1, 4]),
)
ends = st.tuples(
    st.just("end"), calls, amounts, amounts, st.sampled_from(["settle", "settle", "release", "reclaim"])
)
passes = st.tuples(st.just("passes"), st.sampled_from(STEPS))
others = st.one_of(
    st.tuples(st.just("extend"), calls, st.integers(0, 90)),
    st.tuples(st.just("late"), calls, amounts, amounts, st.sampled_from(["post", "correct"])),
    st.tuples(st.just("raise_one"), st.just(WEEKLY), st.integers(100, 500), st.sampled_from(STEPS)),
    st.tuples(
        st.just("override_one"),
        st.sampled_from([MONTHLY, WEEKLY]),
        st.sampled_from([None, 0, 60, 150, 400]),
        st.sampled_from(STEPS),
    ),
    st.tuples(st.just("reset"), st.sampled_from([HOURLY, DAILY, EVER, WEEKLY])),
)
# Most lives have calls in flight while time passes.
steps = st.lists(st.one_of(reserves, reserves, ends, ends, passes, others), min_size=12, max_size=40)


MORE = ("reserve", (1,), 60, 0, 0, 0)


@settings(max_examples=examples(EXAMPLES))
@example(steps=[("raise_one", WEEKLY, 300, 96), *[MORE] * 4, ("extend", 0, 90), ("passes", 96), MORE])
@example(
    steps=[
        ("override_one", WEEKLY, 60, 96), MORE, MORE, ("raise_one", WEEKLY, 150, 1), MORE, MORE, ("passes", 1), MORE,
        ("override_one", WEEKLY, None, 96), *[MORE] * 9, ("extend", 0, 90), ("passes", 96), MORE,
    ]
)  # fmt: skip
@given(steps=steps)
def test_any_life_of_budgets_is_what_the_model_makes_of_it(valkey: str, steps: list[tuple[Any, ...]]) -> None:
    with redis.Redis.from_url(valkey) as client:
        client.flushall()
    world = World(valkey)
    world.plan(None)
    life = Life(world)
    for verb, *arguments in steps:
        if verb in {"extend", "end", "late"}:
            if not life.calls:
                continue
            arguments[0] %= len(life.calls)
        getattr(life, verb)(*arguments)
        life.check()
    world.client.close()
