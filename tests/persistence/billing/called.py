"""Random histories of calls at tiers, at cost and for credits, which are amended and rated again.

The counters are played: what control writes say is moved as the scripts would.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest

from gateway.admin.http import bodies
from gateway.admin.resources.catalogue import PriceAmend, PriceCreate
from gateway.core.accounts.call_facts import CallFacts, write_facts
from gateway.core.accounts.outbox import EventKind, EventNote
from gateway.core.billing import events
from gateway.core.billing.money import IN_MONEY, PriceTier, read_tiers
from gateway.errors import Conflict
from tests.persistence.april import April, service
from tests.persistence.billing.histories import DAY, NANO
from tests.persistence.billing.papers import Paper, half_up
from tests.persistence.billing.test_postpaid import Books
from tests.persistence.billing.whole_histories import WholeHistory, Wholly, told_of

MARKUP, MODEL = Fraction("1.25"), "dated"


@dataclass
class Call:
    """A call as it was charged: each part of its units with the price of one; at cost, since when its price is."""

    request: str
    used_at: datetime
    told: date
    amount: int
    counts: tuple[int, int] = (0, 0)
    parts: list[tuple[int, Fraction]] = field(default_factory=list)
    since: datetime | None = None

    @property
    def day(self) -> date:
        return self.used_at.date()


@dataclass
class All(Wholly):
    """All that is owed, with credits beyond the balance."""

    books: Books = field(default_factory=Books)

    def whole(self, today: date) -> Fraction:
        return super().whole(today) + self.books.charged


def parts_of(tiers: Sequence[PriceTier], before: int, units: int) -> list[tuple[int, Fraction]]:
    """Unit by unit, how many cost how much."""
    found: list[tuple[int, Fraction]] = []
    for unit in range(before + 1, before + units + 1):
        price = next(
            Fraction(tier.unit_price)
            for tier in tiers
            if tier.up_to is None or (unit if unit > 0 else 1 - unit) <= tier.up_to
        )
        if found and found[-1][1] == price:
            found[-1] = (found[-1][0] + 1, price)
        else:
            found.append((1, price))
    return found


class Called(WholeHistory):
    """One organization through time, with calls of all kinds."""

    owed: All

    def __init__(self, april: April) -> None:
        super().__init__(april)
        self.owed = All()
        kinds = ("tokens", "units", "credits", "amount", "changed")
        self.made: dict[str, list[Call]] = {kind: [] for kind in kinds}
        self.prices: list[tuple[datetime, int]] = []
        self.price_ids: dict[datetime, int] = {}
        self.papers: dict[int, Paper] = {}
        # By the day that it was told on, and the day it was used on.
        self.at_cost: dict[tuple[date, date], int] = {}

    async def begin(self) -> None:
        await super().begin()
        at_cost = {"at_cost": {"markup": str(Decimal("1.25"))}}
        self.ids["at-cost"] = await service(self.april, "at-cost", "Pay-Per-Use", pricing=at_cost)
        self.ids["image"] = await service(self.april, "image-gen", "Consumption", credits=1)
        await self._set_price(datetime(2025, 1, 1, tzinfo=UTC), 2 * NANO)

    def _spent(self, credits_: int) -> None:
        raise NotImplementedError

    # What is used.

    async def _cost_call(self, counts: tuple[int, int]) -> None:
        await self._used_at_cost(str(uuid.uuid4()), counts, self.owed.now)

    async def _cost_event(self, how: tuple[int, int]) -> None:
        ago, tokens = how
        at = datetime.combine(self.today - ago * DAY, time(6), UTC)
        event = {
            "id": str(uuid.uuid4()), "source": "test", "type": "use", "time": at,
            "subject": f"tenant:{self.april.account.tenant_id}",
            "data": {"service": "at-cost", "model": MODEL, "usage": {"input": tokens}},
        }  # fmt: skip
        for accepted in (1, 0):
            told = await self.april.do("events", "create", events=[(0, event)], rejected=[])
            assert told["accepted"] == accepted
        *_, (request, payload) = self._writes("use")  # those before tell of tokens alone
        assert payload["units"] == self._charged((tokens, 0), at)
        await self._used_at_cost(request, (tokens, 0), at, events.read(payload).facts)

    async def _used_at_cost(
        self, request: str, counts: tuple[int, int], at: datetime, told: CallFacts | None = None
    ) -> None:
        units = self._charged(counts, at)
        since, _ = self._rate(at)
        facts = told or CallFacts(
            model=MODEL, counts=(counts[0], 0, 0, 0, counts[1], 0, 0, 0, 0, 0), total=sum(counts), status=200,
            cost=self._price_of(counts, at), currency="USD", price_id=self.price_ids[since],
        )  # fmt: skip
        note = EventNote.LATE if told else 0
        self._use(units, IN_MONEY, self.ids["at-cost"], request, write_facts(facts), note=int(note))
        self.made["amount"].append(Call(request, at, self.today, units, counts, since=since))
        self._costs(units, at.date())
        await self._flush()

    async def _unit_call(self, units: int) -> None:
        tiers, month = self.april.account.tiers, (self.today.year, self.today.month)
        before, request = self.owed.units.get(month, 0), str(uuid.uuid4())
        parts = parts_of(tiers, before, units)
        self._use(units, tiers, self.ids["service"], request)
        self.owed.units[month] = before + units
        self.owed.used_on.append((self.today, self._worth(parts)))
        self.made["units"].append(Call(request, self.owed.now, self.today, units, parts=parts))
        await self._flush()

    async def _credit_call(self, credits_: int) -> None:
        request, account = str(uuid.uuid4()), self.april.account
        account.service_id = self.ids["image"]
        account.consume(None, credits_=credits_, request_id=request)
        account.service_id = self.ids["service"]
        self.made["credits"].append(Call(request, self.owed.now, self.today, credits_))
        self._spent(credits_)
        await self._flush()

    async def _call(self, tokens: int) -> None:
        await super()._call(tokens)
        self._take_calls()

    async def _late(self, how: tuple[int, int]) -> None:
        await super()._late(how)
        self._take_calls()

    def _take_calls(self) -> None:
        for request, amount, at in self.calls:
            self.made["tokens"].append(Call(request, at, self.today, amount))
        self.calls.clear()

    # What is told late, or otherwise.

    async def _price(self, how: tuple[int, int]) -> None:
        ago, rate = how
        at = datetime.combine(self.today - ago * DAY, time(0, len(self.prices) % 60), UTC)
        if all(at != since for since, _ in self.prices):
            await self._set_price(at, rate)

    async def _set_price(self, at: datetime, rate: int) -> None:
        """What a million tokens cost from a time on; those of answers cost three times as much."""
        per_million = [f"{Decimal(nano).scaleb(-9):f}" for nano in (rate, 3 * rate)]
        asked = {
            "model": MODEL, "currency": "USD", "input": per_million[0], "output": per_million[1],
            "effective_from": at.isoformat(),
        }  # fmt: skip
        made = await self.april.do("prices", "create", **bodies.check_body(PriceCreate, asked))
        await self.april.rate()
        self.price_ids[at] = int(made["id"])
        billed = {told for paper in self.papers.values() if not paper.is_void for told in paper.at_cost}
        self.prices.append((at, rate))
        moved: dict[str, int] = {}
        for call in self.made["amount"]:
            open_ = (call.told, call.day) not in billed
            if at <= call.used_at and open_ and self._rate(call.used_at) == (at, rate):
                units = self._charged(call.counts, call.used_at)
                if units != call.amount:
                    moved[call.request] = units - call.amount
                    self._costs(units - call.amount, call.day)
                call.amount, call.since = units, at
        await self._moved_by(moved)

    async def _right(self, how: tuple[int, int]) -> None:
        """Set a price right as if it had always been so: its calls follow, those that invoices have too."""
        number, rate = how
        at, was = self.prices[number % len(self.prices)]
        if rate == was:
            return
        per_million = [f"{Decimal(nano).scaleb(-9):f}" for nano in (rate, 3 * rate)]
        asked = {"input": per_million[0], "output": per_million[1], "reason": "typed wrong"}
        made = await self.april.do(
            "prices", "amend", self.price_ids[at], **bodies.check_body(PriceAmend, asked)
        )
        await self.april.rate()
        self.price_ids[at] = int(made["id"])
        self.prices[number % len(self.prices)] = at, rate
        moved: dict[str, int] = {}
        for call in self.made["amount"]:
            if call.since == at and (more := self._charged(call.counts, at) - call.amount):
                moved[call.request] = more
                self._costs(more, call.day)
                call.amount += more
        await self._moved_by(moved)

    async def _moved_by(self, moved: dict[str, int]) -> None:
        """The counters are told of just these differences, by call."""
        writes = {str(payload["corrects"]): (request, payload) for request, payload in self._writes("amend")}
        assert {request: -payload["units"] for request, (_, payload) in writes.items()} == moved
        for request, payload in writes.values():
            self._correct(request, payload)
        await self._flush()

    async def _change_call(self, how: tuple[str, int, int, str]) -> None:
        """Take some of a call back, or charge it more; once, a second time is refused."""
        kind, number, percent, way = how
        calls = [call for call in self.made[kind] if kind != "tokens" or self._is_counted(call)]
        if not calls:
            return
        call = calls[number % len(calls)]
        many = max(1, call.amount * percent // 100)
        if way == "IN" and many > call.amount:
            return
        said: dict[str, Any] = {kind: Decimal(many).scaleb(-9) if kind == "amount" else many}
        asked = {"request_id": call.request, "reason": "a test", "direction": way, **said}
        await self.april.do("amendments", "create", **asked)
        self.made[kind].remove(call)
        self.made["changed"].append(call)
        with pytest.raises(Conflict):
            await self.april.do("amendments", "create", **asked)
        writes, sign = self._writes("amend"), 1 if way == "OUT" else -1
        await getattr(self, f"_change_{kind}")(call, sign * many)
        for request, payload in writes:
            self._correct(request, payload)
        if kind == "tokens":
            self._agree_on(call.used_at)
        await self._flush()

    async def _change_tokens(self, call: Call, more: int) -> None:
        self._told(call.used_at, more, self.counted.get(call.request))

    async def _change_units(self, call: Call, more: int) -> None:
        """The last ones at first, each at what it cost; more cost what the last one did."""
        left, worth = -more, Fraction(0)
        for units, price in reversed(call.parts):
            taken = min(units, max(left, 0))
            worth, left = worth - taken * price, left - taken
        if more > 0:
            worth = more * call.parts[-1][1]
        month = (self.today.year, self.today.month)
        self.owed.units[month] = self.owed.units.get(month, 0) + more
        self.owed.used_on.append((call.day, worth))

    async def _change_credits(self, _: Call, more: int) -> None:
        if more > 0:
            self._spent(more)  # those that come back are an addition

    async def _change_amount(self, call: Call, more: int) -> None:
        self._costs(more, call.day)

    # How it is counted.

    def _rate(self, at: datetime) -> tuple[datetime, int]:
        return max(price for price in self.prices if price[0] <= at)

    def _price_of(self, counts: tuple[int, int], at: datetime) -> int:
        _, rate = self._rate(at)
        return half_up(Fraction(counts[0] * rate + counts[1] * 3 * rate, 10**6))

    def _charged(self, counts: tuple[int, int], at: datetime) -> int:
        return half_up(self._price_of(counts, at) * MARKUP)

    def _costs(self, units: int, day: date) -> None:
        """Units of money that are told today, of use on a day."""
        told = (self.today, day)
        self.at_cost[told] = self.at_cost.get(told, 0) + max(0, units)
        self.owed.used_on.append((day, Fraction(units, NANO)))

    def _worth(self, parts: Sequence[tuple[int, Fraction]]) -> Fraction:
        return sum((units * price for units, price in parts), Fraction(0))

    def _is_counted(self, call: Call) -> bool:
        """Whether its cycle is over, or runs by a plan."""
        cycle = self._cycle_at(call.used_at)
        runs = cycle == len(self.owed.cycles) - 1
        return cycle is not None and (not runs or self.april.account.total is not None)

    # What the counters do.

    def _use(
        self, units: int, tiers: Sequence[PriceTier], of: int, request: str, metadata: bytes | None = None,
        **facts: Any,
    ) -> None:  # fmt: skip
        account = self.april.account
        had, account.tiers, account.service_id = account.tiers, tuple(tiers), of
        if metadata is not None:
            facts["metadata"] = metadata
        account.consume(None, units=units, request_id=request, **facts)
        account.tiers, account.service_id = had, self.ids["service"]

    def _correct(self, request: str, payload: dict[str, Any]) -> None:
        """As `settle` moves what differs."""
        super()._correct(request, payload)
        account, told = self.april.account, told_of(payload)
        if payload["units"]:
            tiers = read_tiers(bytes.fromhex(payload["tiers"]))
            self._use(-payload["units"], tiers, payload["service_id"], request, told, kind=EventKind.ADJUST)
        if payload.get("credits"):
            account.consume(
                None, credits_=-payload["credits"], request_id=request, metadata=told, kind=EventKind.ADJUST
            )
