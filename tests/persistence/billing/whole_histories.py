"""Random histories with all that can be told late: events and amendments of cycles that are over, minimum
commitments, top-ups with invoices of their own, payments; and everything delivered again at their end.

What is owed is counted by another way, by fractions, of what happened.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, time
from decimal import Decimal
from fractions import Fraction
from operator import itemgetter
from typing import Any

from hypothesis import strategies as st

from gateway.core.accounts.outbox import EventKind
from gateway.errors import Conflict
from tests.persistence.april import April
from tests.persistence.billing.carried import LateTokens
from tests.persistence.billing.histories import STEPS, History
from tests.persistence.billing.owed import BY_TOKENS, DAY, Owed, days, ladder
from tests.persistence.billing.test_events import send
from tests.persistence.billing.test_top_ups import post
from tests.persistence.scenario import Account, document

MORE = st.one_of(
    STEPS,
    STEPS,
    st.tuples(st.just("late"), st.tuples(st.integers(1, 300), st.integers(1, 30_000))),
    st.tuples(st.just("late"), st.tuples(st.integers(1, 40), st.integers(1, 30_000))),
    st.tuples(st.just("call"), st.integers(1, 9_000)),
    st.tuples(st.just("amend"), st.tuples(st.integers(0, 9), st.integers(1, 100))),
    st.tuples(st.just("pay"), st.tuples(st.integers(0, 9), st.sampled_from([1, 2, 3]))),
    st.tuples(
        st.just("top_up"),
        st.tuples(st.sampled_from(["now", "prepaid"]), st.integers(1, 5_000), st.integers(1, 99_999)),
    ),
    st.tuples(st.just("commit"), st.sampled_from([None, "5.00", "77.77", "1000.00", "0.000000001"])),
)
# What is told of debt: while it is carried on, and once it is not.
TOLD: list[tuple[str, Any]] = [
    ("change", ("Blocks", "now")), ("call", 900), ("tokens", 2_900), ("change", ("Carries", "now")),
    ("call", 700), ("change", ("Owes", "now")), ("wait", 3), ("amend", (0, 50)), ("wait", 33),
    ("late", (36, 400)), ("call", 300), ("wait", 30), ("late", (40, 500)), ("late", (66, 600)),
    ("amend", (1, 40)), ("change", ("Carries", "now")), ("wait", 31), ("late", (35, 800)),
    ("change", ("Blocks", "now")), ("late", (70, 250)), ("amend", (0, 90)), ("wait", 31),
    ("late", (130, 111)), ("edit", ("Owes", False)), ("call", 4_000), ("change", ("Owes", "now")),
    ("edit", ("Owes", True)), ("late", (33, 77)), ("wait", 32), ("late", (33, 88)), ("amend", (0, 10)),
    ("wait", 32), ("late", (65, 99)),
]  # fmt: skip


@dataclass
class Cycle:
    """From one reset to the next: where each plan within it ended, and what was told of it late."""

    began: datetime
    spans: list[tuple[datetime, int, int | None]] = field(default_factory=list)
    # When it was used, how many tokens, and when it was told.
    late: list[tuple[datetime, int, datetime]] = field(default_factory=list)

    def owed(self) -> Fraction:
        """Tokens beyond each plan, but for what earlier ones of the cycle were."""
        money, most = Fraction(0), 0
        for ended, remaining, total in self.spans:
            _, _, policy, price = BY_TOKENS[total] if total is not None else ("", 0, "", None)
            if policy == "bill" and price is not None:
                beyond = sum(tokens for at, tokens, told in self.late if at < ended <= told) - remaining
                money += max(0, beyond - most) * Fraction(price)
                most = max(most, beyond)
        return money


@dataclass
class Wholly(Owed):
    """The same with cycles that are told of late, minimums, and where each amount was supplied."""

    cycles: list[Cycle] = field(default_factory=list)
    used_on: list[tuple[date, Fraction]] = field(default_factory=list)
    minimums: dict[date, Fraction] = field(default_factory=dict)
    account: Account = field(default_factory=lambda: Account(0, 0))

    @property
    def now(self) -> datetime:
        """When the account moves next."""
        return datetime.fromtimestamp(self.account.at_ms / 1000, UTC)

    def ended(self, remaining: int, total: int | None) -> None:
        self.follow(1)
        self.cycles[-1].spans.append((self.now, remaining, total))

    def more(self, span: tuple[datetime, datetime]) -> int:
        told = self.carried.told
        return sum(each.tokens for each in told if each.is_of(*span) and span[1] <= each.told)

    def follow(self, cycles: int) -> None:
        """As many cycles as the account had have begun."""
        while len(self.cycles) < cycles:
            self.cycles.append(Cycle(self.now))

    def used(self, day: date, units: int, tiers: Any) -> None:
        month = (day.year, day.month)
        before = self.units.get(month, 0)
        self.units[month] = before + units
        self.used_on.append((day, ladder(tiers, before + units) - ladder(tiers, before)))

    def whole(self, today: date) -> Fraction:
        """All that is owed by a day."""
        facts = sum((money for _, money in self.used_on), self.others)
        facts += sum((cycle.owed() for cycle in self.cycles), Fraction(0))
        facts += sum((money for _, money in self.early), Fraction(0))
        return self.fees(today) + facts + sum(self.missing(today), Fraction(0)) - self.credited

    def missing(self, today: date) -> Iterator[Fraction]:
        """What each cycle of a subscription that is over lacks to its minimum."""
        for anchor, least in self.minimums.items():
            terms = [term for term in self.terms if term.anchor == anchor]
            end, number = max(term.end for term in terms), 0
            last = terms[-1]
            while (first := last._begins(number)) < min(end, today):
                following = last._begins(number + 1)
                over, whole = min(following, end), (following - first).days
                if over <= today:
                    begins = max(first, min(max(last.free_until, first), over))
                    part = replace(last, cost=least)
                    due = part._rounded(Fraction((over - first).days, whole)) - part._rounded(
                        Fraction((begins - first).days, whole)
                    )
                    yield max(due - self._came_to(first, over), Fraction(0))
                number += 1

    def _came_to(self, first: date, end: date) -> Fraction:
        inside = [money for day, money in (*self.used_on, *self.early) if first <= day < end]
        inside += [cycle.owed() for cycle in self.cycles if first <= cycle.began.date() < end]
        inside += [
            term.fee(day) for term in self.terms for day in days(max(first, term.start), min(end, term.end))
        ]
        return sum(inside, Fraction(0))


class WholeHistory(History):
    """One organization through time, with all that is told late."""

    owed: Wholly

    def __init__(self, april: April) -> None:
        super().__init__(april)
        self.owed = Wholly()
        self.every: list[tuple[bytes, bytes]] = []
        self.calls: list[tuple[str, int, datetime]] = []
        # Events that moved a quota, and when that was.
        self.counted: dict[str, datetime] = {}
        self.events: list[tuple[str, datetime, int]] = []
        self.paid: list[tuple[int, Decimal, str]] = []
        self.minimum: str | None = None

    async def begin(self) -> None:
        await super().begin()
        self.owed.account = self.april.account

    async def end(self) -> None:
        await super().end()
        await self._on_paper()
        charged = "SELECT count(*), sum(amount) FROM charge"
        before = self.april.rows(charged)
        for at in range(0, len(self.every), 200):
            self.april.account.entries = self.every[at : at + 200]
            self.april.flush()
        for event_id, at, tokens in self.events:
            told = await send(self.april, self.april.account.tenant_id, at, tokens, event_id)
            assert (told["accepted"], told["duplicates"]) == (0, 1)
        for invoice, amount, reference in self.paid:
            await self.april.do("invoices", "payments", invoice, amount=amount, reference=reference)
        await self.april.loop("top-ups").turn()
        await self.april.charge(self.ids["organization"])
        assert self.april.rows(charged) == before
        await self._check()

    async def _on_paper(self) -> None:
        """Documents come to what is owed before tax, but for half a cent of each thing that is billed."""
        [(paper, bases)] = self.april.rows(
            "SELECT coalesce(sum(l.amount), 0), count(DISTINCT l.basis) FROM invoice_line AS l"
            " JOIN invoice AS i ON i.id = l.invoice_id"
            " WHERE i.status = 'finalized' AND l.kind NOT IN ('credits_consumed', 'tax')",
        )
        assert isinstance(bases, int)
        assert abs(Fraction(str(paper)) - self.owed.whole(self.today)) <= Fraction(bases, 200)

    async def _check(self) -> None:
        [(charged,)] = self.april.rows("SELECT coalesce(sum(amount), 0) FROM charge")
        assert Fraction(str(charged)) == self.owed.whole(self.today)
        assert self.april.broken() == []

    async def _at(self, day: date) -> None:
        await super()._at(day)
        self.owed.follow(self.april.account.cycle)

    async def _reset(self) -> int:
        seq = await super()._reset()
        self.owed.follow(self.april.account.cycle)
        return seq

    async def _follow(self) -> None:
        await super()._follow()
        self.owed.follow(self.april.account.cycle)

    async def _flush(self) -> None:
        self.every += self.april.account.entries
        await super()._flush()

    async def _commit(self, least: str | None) -> None:
        """What subscriptions from now on come to at least."""
        self.minimum = least

    async def _subscribe(self, how: dict[str, Any]) -> None:
        known = len(self.owed.terms)
        await super()._subscribe(how if self.minimum is None else how | {"least": self.minimum})
        if len(self.owed.terms) > known and self.minimum is not None:
            self.owed.minimums[self.owed.terms[-1].anchor] = Fraction(self.minimum)

    async def _call(self, tokens: int) -> None:
        """A call that may be amended."""
        if self.april.account.seq:
            request, at = str(uuid.uuid4()), self.owed.now
            self.april.account.consume(
                tokens, request_id=request, metadata=b'{"model":"gpt-4o","input":%d,"output":0}' % tokens
            )
            self.calls.append((request, tokens, at))
            await self._flush()

    async def _amend(self, how: tuple[int, int]) -> None:
        """Take a part of a call back, once its cycle is over."""
        number, percent = how
        over = [
            call for call in self.calls if self._cycle_at(call[2]) not in {None, len(self.owed.cycles) - 1}
        ]
        if not over:
            return
        call = over[number % len(over)]
        self.calls.remove(call)
        request, tokens, at = call
        back = max(1, tokens * percent // 100)
        await self.april.do("amendments", "create", request_id=request, reason="a test", tokens=back)
        self._told(at, -back, self.counted.get(request))
        for write, payload in self._writes("amend"):
            self._correct(write, payload)
        self._agree_on(at)
        await self._flush()

    async def _late(self, how: tuple[int, int]) -> None:
        """Use of a cycle that is over, or of a plan of the one that runs, told now."""
        ago, tokens = how
        at = datetime.combine(self.today - ago * DAY, time(6), UTC)
        if self._cycle_at(at) is None:
            return
        if self._cycle_at(at) == len(self.owed.cycles) - 1 and self.april.account.total is None:
            return
        event_id = str(uuid.uuid4())
        told = await send(self.april, self.april.account.tenant_id, at, tokens, event_id)
        # What nobody would be charged for, since no plan was in force then, is rejected.
        self.events += [(event_id, at, tokens)] if told["accepted"] else []
        self._told(at, tokens)
        for write, payload in self._writes("use"):
            if payload["counts_tokens"]:
                counted = self.owed.now
                facts = b'{"model":"gpt-4o","input":%d,"output":0}' % tokens
                self.april.account.consume(payload["weighed"], request_id=write, metadata=facts)
                self.owed.carried.told[-1].seq = self.april.account.seq
                self.calls.append((write, tokens, at))
                self.counted[write] = counted
        self._agree_on(at)
        await self._flush()

    async def _ordered(self, how: tuple[str, int, int]) -> bool:
        """Order credits; whether somebody can pay that, else it is refused."""
        invoicing, credits_, cost = how
        unit_cost = Decimal(cost) / 10_000
        if credits_ * unit_cost < Decimal("0.01"):
            return False
        await self.april.do(
            "credit-additions", "create", organization_id=self.ids["organization"], invoicing=invoicing,
            credits_added=credits_, unit_cost=unit_cost,
        )  # fmt: skip
        self.owed.others += credits_ * Fraction(unit_cost)
        return True

    async def _top_up(self, how: tuple[str, int, int]) -> None:
        if not await self._ordered(how):
            return
        self._post()
        assert await self.april.loop("top-ups").turn() == 1
        [(made,)] = self.april.rows("SELECT max(invoice_id) FROM credit_addition")
        assert isinstance(made, int)
        self.open.append(made)

    async def _pay(self, how: tuple[int, int]) -> None:
        """A part of what is due, or all of it."""
        number, parts = how
        if not self.open:
            return
        made = self.open[number % len(self.open)]
        row = await self.april.store.get("invoices", made)
        due = Decimal(str(row["amount_due"] or 0))
        amount = (due / parts).quantize(Decimal("0.01"))
        if amount <= 0:
            return
        reference = str(uuid.uuid4())
        after = await self.april.do("invoices", "payments", made, amount=amount, reference=reference)
        assert Decimal(str(after["amount_due"])) == due - amount
        self.paid.append((made, amount, reference))
        self._post()

    async def _void(self, number: int) -> None:
        """Refused of what is paid, or has credits waiting."""
        with suppress(Conflict):
            await super()._void(number)

    def _post(self) -> None:
        """Credits that wait for the counters."""
        post(self.april)

    def _cycle_at(self, at: datetime) -> int | None:
        """Which cycle a moment is in."""
        begun = [number for number, cycle in enumerate(self.owed.cycles) if cycle.began <= at]
        return begun[-1] if begun else None

    def _told(self, at: datetime, tokens: int, counted: datetime | None = None) -> None:
        """Tokens of a time; those of an event are taken back of where it was `counted` too."""
        moments = [at] if counted is None else [counted, at]
        for number, since in {self._cycle_at(each): each for each in moments}.items():
            assert number is not None
            self.owed.cycles[number].late.append((since, tokens, self.owed.now))
        self.owed.carried.told.append(LateTokens(at, tokens, self.owed.now, counted=counted))

    def _agree_on(self, at: datetime) -> None:
        """What was told last moves the quota where its cycle runs, or its debt is carried on up to now."""
        runs = self._cycle_at(at) == len(self.owed.cycles) - 1
        told = self.owed.carried.told[-1]
        assert (told.seq is not None) == (runs or self.owed.carried.goes_on(at)), told

    # What the counters do.

    def _writes(self, verb: str, *, look: bool = False) -> list[tuple[str, dict[str, Any]]]:
        """Control writes that wait, in their order."""
        state = "pending" if look else "applied"
        found: Any = self.april.rows(
            "UPDATE control_write SET state = %s WHERE state = 'pending' AND verb = %s"
            " RETURNING position, id::text, payload",
            [state, verb],
        )
        return [(str(request), payload) for _, request, payload in sorted(found, key=itemgetter(0))]

    def _correct(self, request: str, payload: dict[str, Any]) -> None:
        """As `settle` moves what differs: tokens."""
        if payload["tokens"]:
            self.april.account.grant(EventKind.ADJUST, payload["tokens"], request, metadata=told_of(payload))
            self.owed.carried.told[-1].seq = self.april.account.seq


def told_of(payload: dict[str, Any]) -> bytes:
    """What the counters say of an amendment with what it moves."""
    return document(**{name: payload[name] for name in ("corrects", "reason", "supplied_on", "told_on")})


# An event of a plan that has ended is taken back in part, a month later.
TOLD_BACK: list[tuple[str, Any]] = [
    ("wait", 3), ("call", 1_500), ("wait", 2), ("change", ("Blocks", "now")), ("late", (1, 900)),
    ("wait", 40), ("amend", (1, 50)), ("amend", (0, 10)),
]  # fmt: skip
