"""Random histories of an organization, and what it owes by another way: by fractions, of what happened."""

from __future__ import annotations

import uuid
from dataclasses import replace
from datetime import UTC, date, datetime, time
from decimal import Decimal
from fractions import Fraction
from typing import Any

from hypothesis import strategies as st

from gateway.core.accounts.outbox import EventKind
from gateway.core.billing.money import PriceTier
from gateway.errors import Conflict
from tests.persistence.april import April, opened, plan, service
from tests.persistence.billing.carried import CARRY, Watched
from tests.persistence.billing.owed import DAY, NANO, PLANS, Owed, Term
from tests.persistence.credits import give
from tests.persistence.migrated import empty
from tests.persistence.scenario import document

__all__ = ["CARRIED", "DAY", "FIRST", "NANO", "STEPS", "History", "live"]

_TERMS = {"name": "Small", "billing_interval": "monthly", "billing": None, "renews": False, "trial": 0}
FIRST = _TERMS | {"off": "0", "off_for": None, "cost": None}
BEGINS = date(2026, 1, 1)
MONTHS = {"monthly": 1, "quarterly": 3, "annual": 12}
TIERS = (
    (PriceTier(1_000, Decimal("0.0010")), PriceTier(None, Decimal("0.0008"))),
    (PriceTier(None, Decimal("0.000000333333")),),
    (PriceTier(500, Decimal(0)), PriceTier(10_000, Decimal("0.0625")), PriceTier(None, Decimal("0.01"))),
)
NAMES, WHEN = st.sampled_from(sorted(PLANS)), st.sampled_from(["now", "period_end"])
STEPS = st.one_of(
    st.tuples(st.just("wait"), st.integers(1, 75)),
    st.tuples(st.just("wait"), st.integers(1, 75)),
    st.tuples(st.just("tokens"), st.integers(1, 20_000)),
    st.tuples(st.just("recharge"), st.integers(1, 5_000)),
    st.tuples(st.just("units"), st.integers(-300, 5_000).filter(bool)),
    st.tuples(st.just("tiers"), st.integers(0, len(TIERS) - 1)),
    st.tuples(st.just("buy"), st.tuples(st.integers(-500, 5_000).filter(bool), st.integers(0, 99_999))),
    st.tuples(
        st.just("change"), st.tuples(st.sampled_from(sorted(PLANS)), st.sampled_from(["now", "period_end"]))
    ),
    st.tuples(st.just("cancel"), WHEN),
    st.tuples(st.just("edit"), st.tuples(st.sampled_from(["Carries", "Owes"]), st.booleans())),
    st.tuples(
        st.just("subscribe"),
        st.fixed_dictionaries(
            {
                "name": NAMES,
                "billing_interval": st.sampled_from(sorted(MONTHS)),
                "billing": st.sampled_from([None, "advance", "arrears"]),
                "renews": st.booleans(),
                "trial": st.sampled_from([0, 0, 1, 14, 45]),
                "off": st.sampled_from(["0", "0", "0.2", "0.333333"]),
                "off_for": st.sampled_from([None, 20, 90]),
                "cost": st.sampled_from([None, None, "0.01", "333.33"]),
            }
        ),
    ),
    st.tuples(st.just("invoice"), st.integers(-20, 60)),
    st.tuples(st.just("invoice"), st.just(0)),
    st.tuples(st.just("void"), st.integers(0, 9)),
    st.tuples(st.just("note"), st.integers(0, 9)),
    st.tuples(st.just("void_note"), st.integers(0, 9)),
    st.tuples(st.just("charge"), st.none()),
    st.tuples(st.just("again"), st.none()),
)
# Debt goes from plan to plan, is paid back in part, forgiven, paid for in money, and carried on no more.
CARRIED: list[tuple[str, Any]] = [
    ("change", ("Blocks", "now")), ("tokens", 4_800), ("change", ("Carries", "now")), ("wait", 3),
    ("change", ("Owes", "now")), ("wait", 35), ("tokens", 900), ("wait", 29), ("edit", ("Owes", False)),
    ("wait", 40), ("edit", ("Owes", True)), ("tokens", 1_000), ("wait", 29),
    ("change", ("Large", "now")), ("wait", 2), ("tokens", 9_000), ("change", ("Carries", "now")),
    ("wait", 31), ("change", ("Owes", "period_end")), ("wait", 32), ("change", ("Blocks", "now")),
    ("tokens", 4_000), ("change", ("Owes", "now")), ("wait", 33), ("change", ("Blocks", "period_end")),
    ("wait", 33), ("change", ("Small", "now")), ("tokens", 8_000), ("change", ("Carries", "now")),
    ("tokens", 50), ("wait", 40), ("charge", None), ("invoice", 0), ("change", ("Blocks", "now")),
    ("tokens", 4_999), ("change", ("Owes", "now")), ("wait", 20), ("cancel", "now"), ("wait", 31),
]  # fmt: skip


class History:
    """One organization through time: the store, the account, and what is owed by our own count."""

    def __init__(self, april: April) -> None:
        self.april = april
        self.owed = Owed()
        self.today = BEGINS
        self.plans: dict[str, int] = {}
        self.ids: dict[str, int] = {}
        self.waits: tuple[date, str] | None = None
        self.invoiced_until = BEGINS
        self.open: list[int] = []
        self.notes: list[tuple[int, int, Fraction, set[tuple[int, date]]]] = []
        self.sent: list[tuple[bytes, bytes]] = []
        # Tokens beyond the plan as its cycle began, or as it was given; below zero there were fewer.
        self.beyond = 0
        self.began = datetime.min.replace(tzinfo=UTC)

    @property
    def now(self) -> datetime:
        """When the account moves next."""
        return datetime.fromtimestamp(self.april.account.at_ms / 1000, UTC)

    @property
    def term(self) -> Term | None:
        """The plan in force, or that will end."""
        return self.owed.terms[-1] if self.owed.terms and self.owed.terms[-1].end > self.today else None

    async def begin(self) -> None:
        await self.april.on(self._noon())
        for name, (cost, tokens, policy, price) in PLANS.items():
            self.plans[name] = await plan(
                self.april, name, cost, tokens, overage_policy=policy,
                overage_unit_price=None if price is None else Decimal(price),
            )  # fmt: skip
        self.ids["service"] = await service(self.april, "rerank", "Pay-Per-Use", pricing=None)
        made = await self.april.do("organizations", "create", name="Acme", tax_rate=Decimal(0))
        tenant = await self.april.do("tenants", "create", name="Main", organization_id=made["id"])
        self.ids["organization"] = made["id"]
        self.april.account = self.owed.carried.account = Watched(
            made["id"], tenant["id"], None, service_id=self.ids["service"], tiers=TIERS[0]
        )
        self.april.rows("UPDATE token_plan_price SET since = '2025-01-01' RETURNING plan_id")
        await self.april.on(self._noon())

    async def step(self, what: str, how: Any) -> None:
        await getattr(self, f"_{what}")(how)

    async def end(self) -> None:
        """Cancel what runs, and bill everything."""
        await self._cancel("now")
        await self._wait(1)
        for _ in range(2):
            await self.april.charge(self.ids["organization"])
        await self._check()
        await self._invoice(1)
        assert await self.april.store.unbilled(self.ids["organization"]) == []
        await self._check()

    async def _check(self) -> None:
        expected = self.owed.fees(self.today) + self.owed.others - self.owed.credited
        expected += sum((money for _, money in self.owed.early), Fraction(0))
        [(charged,)] = self.april.rows("SELECT coalesce(sum(amount), 0) FROM charge")
        assert Fraction(str(charged)) == expected
        assert self.april.broken() == []

    async def _wait(self, length: int) -> None:
        until = self.today + length * DAY
        while self.today < until:
            month = (self.today.replace(day=1) + 32 * DAY).replace(day=1)
            ends = self.term.end if self.term else until
            at = min(
                until,
                month,
                *(day for day in (self.waits[0] if self.waits else until, ends) if day > self.today),
            )
            await self._at(at)

    async def _at(self, day: date) -> None:
        account, had = self.april.account, self.april.account.total
        remaining, cycle = account.remaining, (self.beyond, self.began)
        self.today = day
        reset = await self._reset() if day.day == 1 and had is not None else None
        if self.waits and self.waits[0] <= day:
            self._split(self.waits[1], self.waits[0])
            self.waits = None
        left, seq = account.remaining, account.seq
        await self.april.on(self._noon(hour=0))
        if account.seq > seq:
            self.owed.ended(left, had)
            if reset is not None:  # what was used of the plan was of the cycle before
                self.owed.carried.passing.add(reset)
                self.beyond, self.began = cycle
            self._plan_moved(had, remaining, by_person=False, reset=reset)
            if reset is not None and account.total is not None:
                self.beyond, self.began = account.remaining - account.total, self.now
        await self._flush()
        self.april.now = self._noon()
        account.at_ms = int(self._noon().timestamp() * 1000)

    async def _reset(self) -> int:
        """The cycle is over, by the plan there is; its movement."""
        account = self.april.account
        account.at_ms = int(self._noon(hour=0).timestamp() * 1000)
        self.owed.ended(account.remaining, account.total)
        self.owed.charged_of_cycle = 0
        event = account.reset()
        self.beyond, self.began = account.remaining - (account.total or 0), self.now
        if event.seq in account.forgave:
            self.owed.carried.end(event.seq)
        await self._flush()
        return event.seq

    async def _edit(self, how: tuple[str, bool]) -> None:
        """A plan carries on, or not any more: with the next cycle, as far as nothing was owed for it."""
        name, carries = how
        total, policy = PLANS[name][1], CARRY if carries else "block"
        if self.owed.policy(total) == policy:
            return
        [(plan_id,)] = self.april.rows("SELECT id FROM token_plan WHERE name = %s", [name])
        await self.april.do("token-plans", "change", int(str(plan_id)), overage_policy=policy)
        self.april.rows("UPDATE token_plan_price SET since = %s WHERE since = (SELECT max(since) FROM"
            " token_plan_price WHERE plan_id = %s) AND plan_id = %s RETURNING plan_id",
            [self.now, plan_id, plan_id],
        )  # fmt: skip
        self.owed.policies[total] = policy
        account = self.april.account
        if account.total == total:
            account.forgives |= carries
            account.policy = policy
            self.owed.carried.changes.append((self.now, carries))
        account.at_ms += 1

    async def _tokens(self, count: int) -> None:
        if self.april.account.seq:
            self.april.account.consume(count)
            await self._flush()

    async def _recharge(self, count: int) -> None:
        if self.april.account.total is not None:
            self.april.account.grant(EventKind.RECHARGE, count)
            await self._flush()

    async def _units(self, count: int) -> None:
        account = self.april.account
        month = (self.today.year, self.today.month)
        if self.owed.units.get(month, 0) + count < 0:
            return
        self.owed.used(self.today, count, account.tiers)
        if count > 0:
            account.consume(None, units=count)
        else:
            corrects = document(corrects=str(uuid.uuid4()))
            account.consume(None, units=count, kind=EventKind.ADJUST, metadata=corrects)
        await self._flush()

    async def _tiers(self, number: int) -> None:
        # A service has one price in a month: what is given back is worth what the last units cost.
        if not self.owed.units.get((self.today.year, self.today.month)):
            self.april.account.tiers = TIERS[number]

    async def _buy(self, how: tuple[int, int]) -> None:
        credits_, cost = how
        unit_cost = Fraction(cost, 10_000)
        self.owed.others += credits_ * unit_cost
        give(self.april.url, self.april.account, credits_, unit_cost=str(Decimal(cost) / 10_000))
        await self._flush()

    async def _change(self, how: tuple[str, str]) -> None:
        name, when = how
        if self.term is None or self.term.start > self.today:
            return
        try:
            row = await self._act("change", plan_id=self.plans[name], when=when)
        except Conflict:
            return
        if when == "now":
            self._split(name, self.today)
            self.waits = None
        else:
            self.waits = (row["change_at"], name)

    async def _cancel(self, when: str) -> None:
        if self.term is None:
            return
        row = await self._act("cancel", when=when)
        self.owed.terms[-1].end = row["end_date"]
        self.waits = None

    async def _subscribe(self, how: dict[str, Any]) -> None:
        name, interval, months = how["name"], how["billing_interval"], MONTHS[how["billing_interval"]]
        if self.term is not None:
            return
        start = self.today
        if self.owed.terms:
            start = max(start, self.owed.terms[-1].end)
        end = date.max if how["renews"] else start + 400 * DAY
        agreed: dict[str, Any] = {}
        if how["trial"]:
            agreed["trial_end"] = start + how["trial"] * DAY
        if Decimal(how["off"]):
            agreed["discount_rate"] = Decimal(how["off"])
            if how["off_for"]:
                agreed["discount_end"] = start + how["off_for"] * DAY
        if how["cost"] is not None:
            agreed["negotiated_cost"] = Decimal(how["cost"])
        if how.get("least") is not None:
            agreed["minimum_commitment"] = Decimal(how["least"])
        row = await self.april.do(
            "organization-subscriptions", "create", organization_id=self.ids["organization"],
            plan_id=self.plans[name], start_date=start, end_date=None if how["renews"] else end,
            billing_interval=interval, billing=how["billing"], **agreed,
        )  # fmt: skip
        self.ids["subscription"] = row["id"]
        cost = self._cost(name, months) if how["cost"] is None else Fraction(how["cost"])
        self.owed.terms.append(
            Term(
                cost, months, start, start, end, how["billing"], agreed.get("trial_end", date.min),
                Fraction(how["off"]), agreed.get("discount_end", date.max),
            )
        )  # fmt: skip
        await self._follow()

    async def _invoice(self, ahead: int) -> None:
        start = self.invoiced_until
        until = max(self.today + ahead * DAY, start + DAY)
        made = await self.april.do(
            "invoices",
            "create",
            organization_id=self.ids["organization"],
            period_start=start,
            period_end=until,
        )
        if not made["lines"]:
            await self.april.do("invoices", "delete", made["id"])
            return
        done = await self.april.do("invoices", "finalize", made["id"])
        assert [line["amount"] for line in done["lines"]] == [line["amount"] for line in made["lines"]]
        self.open.append(done["id"])
        self.invoiced_until = until

    async def _void(self, number: int) -> None:
        if self.open:
            made = self.open.pop(number % len(self.open))
            await self.april.do("invoices", "void", made)

    async def _note(self, number: int) -> None:
        """Give a whole invoice back: what it had of days that are ours stays free, of all else its money."""
        if not self.open:
            return
        made = self.open.pop(number % len(self.open))
        found = self.april.rows(
            "SELECT c.kind, c.amount, c.quantity, c.source_id, (c.period_start AT TIME ZONE 'UTC')::date"
            "  FROM charge AS c WHERE invoice_id = %s",
            [made],
        )
        try:
            note = await self.april.do("invoices", "credit-note", made)
        except Conflict:
            return
        await self.april.do("invoices", "finalize", note["id"])
        segments = [row[0] for row in self.april.rows("SELECT id FROM subscription_segment ORDER BY id")]
        net: dict[tuple[int, date], int] = {}
        credited = Fraction(0)
        for kind, amount, quantity, segment, day in found:
            if kind not in {"subscription", "discount"}:
                credited += Fraction(str(amount))
            else:
                assert isinstance(day, date)
                place = (segments.index(segment), day)
                if kind == "subscription":
                    net[place] = net.get(place, 0) + int(Decimal(str(quantity)))
        places = {place for place, times in net.items() if times > 0}
        self.owed.credited += credited
        self.owed.given_back |= places
        self.notes.append((note["id"], made, credited, places))

    async def _void_note(self, number: int) -> None:
        if self.notes:
            note, made, credited, places = self.notes.pop(number % len(self.notes))
            await self.april.do("invoices", "void", note)
            self.owed.credited -= credited
            self.owed.given_back -= places
            self.open.append(made)

    async def _charge(self, _: None) -> None:
        await self.april.charge(self.ids["organization"])

    async def _again(self, _: None) -> None:
        self.april.account.entries = self.sent + self.april.account.entries
        self.april.flush()

    async def _act(self, verb: str, **values: object) -> dict[str, Any]:
        row = await self.april.do("organization-subscriptions", verb, self.ids["subscription"], **values)
        await self._follow()
        return row

    async def _follow(self) -> None:
        account = self.april.account
        seq, had, remaining = account.seq, account.total, account.remaining
        self.april.follow()
        if account.seq > seq and seq:
            self.owed.ended(remaining, had)
        if account.seq > seq:
            self._plan_moved(had, remaining, by_person=True)

    def _plan_moved(
        self, had: int | None, remaining: int, *, by_person: bool, reset: int | None = None
    ) -> None:
        """Another plan is there than the one that was: by a person now, or by the calendar at midnight."""
        account = self.april.account
        if had is not None:
            term = next(each for each in reversed(self.owed.terms) if by_person or each.end <= self.today)
            now = self.today if by_person else term.end
            used = had + min(self.beyond, 0) - remaining
            last = now if by_person else now - DAY
            span = (self.began, self.now)
            self.owed.plan_ended(
                term, now, last, total=had, then=account.total, used=used, span=span, seq=account.seq
            )
        elif account.total is not None:
            self.beyond, self.began = account.remaining - account.total, self.now
        if account.total is not None:
            self.owed.came(self.owed.terms[-1], self.today, account.total)
        self._debt_moved(account.total, reset)

    def _debt_moved(self, then: int | None, reset: int | None) -> None:
        """What was carried ends with a plan, where the next one does not carry on: that has what it has."""
        carried = self.owed.carried
        policy = None if then is None else self.owed.policy(then)
        carried.plans.append((self.now, policy == CARRY))
        if policy != CARRY:
            seq = self.april.account.seq
            carried.end(seq if reset is None else reset, seq, had=policy == "bill")

    async def _flush(self) -> None:
        self.sent = list(self.april.account.entries)
        self.april.flush()

    def _split(self, name: str, at: date) -> None:
        last = self.owed.terms[-1]
        at = max(at, last.start)
        self.owed.terms.append(replace(last, cost=self._cost(name, last.months), start=at))
        last.end = at

    def _cost(self, name: str, months: int) -> Fraction:
        return Fraction(PLANS[name][0]) * (10 if months == 12 else months)

    def _noon(self, hour: int = 12) -> datetime:
        return datetime.combine(self.today, time(hour), UTC)


async def live(of: type[History], url: str, steps: list[tuple[str, Any]]) -> None:
    empty(url)
    async with opened(url, datetime.combine(BEGINS, time(12), UTC)) as made:
        history = of(made)
        await history.begin()
        for what, how in steps:
            await history.step(what, how)
        await history.end()
