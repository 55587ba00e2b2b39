"""Units of calls in flight count into the price: a cap holds under any tiers and in any order of settling."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field, replace
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.billing.money import PriceTier, ServicePricing
from gateway.core.model import Service, SettleResult, Verdict
from gateway.counters.layouts import states
from gateway.counters.redis import keys
from tests.builders import UNITS, Call, World
from tests.lua.conftest import AMONG_OTHERS
from tests.search import examples

MICRO = 1_000_000


def tiered(id_: int, *tiers: tuple[int | None, str]) -> Service:
    return replace(
        UNITS, id=id_, pricing=ServicePricing(tuple(PriceTier(end, Decimal(price)) for end, price in tiers))
    )


RISING = tiered(4, (10, "0"), (None, "1"))


def kept(world: World, service: Service = RISING) -> states.ActivationState:
    return states.unpack(states.ActivationState, world.get(keys.activation(world.p, 1, service.id)))


def test_a_cap_under_rising_tiers_admits_what_it_pays_and_no_more(world: World) -> None:
    """Cap 5.00, ten units free and then 1.00 each: 15 of 300 calls at once."""
    world.define_organization(cap=5 * MICRO)
    calls = [world.reserve(service=RISING) for _ in range(300)]
    admitted = [call for call in calls if call.verdict is Verdict.ADMITTED]
    assert (len(admitted), world.organization.spend_held) == (15, 5 * MICRO)
    assert {call.verdict for call in calls[15:]} == {Verdict.QUOTA_HELD}
    random.Random(5).shuffle(admitted)
    for call in admitted:
        call.settle(units=1)
        assert world.reserve(service=RISING).verdict is not Verdict.ADMITTED
    assert (world.organization.spent, world.organization.spend_held) == (5 * MICRO, 0)
    assert (kept(world).held, kept(world).held_price) == (0, 0)


def end(call: Call, how: str, units: int) -> SettleResult:
    if how == "release":
        return call.release()
    return call.settle(units=units) if how == "settle" else call.reclaim(units=units)


# --- against a model --------------------------------------------------------------------


@dataclass
class Model:
    """What a month came to and what is in flight, in exact fractions."""

    cap: int
    ladders: list[list[tuple[int | None, Fraction]]]
    settled: list[int] = field(default_factory=lambda: [0, 0])
    held: list[int] = field(default_factory=lambda: [0, 0])
    worth: list[int] = field(default_factory=lambda: [0, 0])
    spent: int = 0

    def cost(self, which: int, units: int) -> int:
        total, below = Fraction(0), 0
        for to, price in self.ladders[which]:
            top = units if to is None else min(units, to)
            if top > below:
                total += (top - below) * price
                below = top
        return math.ceil(total * MICRO)

    def keep(self, which: int) -> None:
        """What is held for a service: what all of it in flight would cost now."""
        before = self.settled[which]
        self.worth[which] = self.cost(which, before + self.held[which]) - self.cost(which, before)

    @property
    def outlook(self) -> int:
        """What the month comes to where all that is in flight settles as it is held."""
        return self.spent + sum(self.worth)

    def reserve(self, which: int, units: int) -> bool:
        worth, at = list(self.worth), self.settled[which] + self.held[which]
        self.held[which] += units
        self.keep(which)
        if self.outlook <= self.cap or self.cost(which, at + units) == self.cost(which, at):
            return True
        self.held[which] -= units
        self.worth = worth
        return False

    def end(self, which: int, held: int, used: int) -> None:
        self.held[which] -= held
        self.spent += self.cost(which, self.settled[which] + used) - self.cost(which, self.settled[which])
        self.settled[which] += used
        self.keep(which)


PRICES = st.sampled_from(["0", "0.25", "0.5", "1", "3.000000000001"])
LADDERS = st.lists(st.tuples(st.integers(1, 8), PRICES), max_size=3)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("reserve"), st.integers(0, 1), st.integers(1, 6)),
        st.tuples(st.sampled_from(["settle", "release", "reclaim"]), st.integers(0, 99), st.integers(0, 6)),
        st.tuples(st.just("month"), st.just(0), st.just(0)),
    ),
    min_size=8,
    max_size=40,
)


def ladder(id_: int, steps: list[tuple[int, str]], last: str) -> Service:
    ends, tiers = 0, []
    for width, price in steps:
        ends += width
        tiers.append((ends, price))
    return tiered(id_, *tiers, (None, last))


@AMONG_OTHERS
@settings(max_examples=examples(100))
@given(st.integers(0, 20), st.tuples(LADDERS, LADDERS), st.tuples(PRICES, PRICES), STEPS)
def test_any_life_of_a_cap_is_the_models(
    world: World,
    cap: int,
    steps: tuple[list[tuple[int, str]], list[tuple[int, str]]],
    last: tuple[str, str],
    life: list[tuple[str, int, int]],
) -> None:
    services = [ladder(at + 4, steps[at], last[at]) for at in range(2)]
    world.client.delete(*(keys.activation(world.p, 1, one.id) for one in services))
    world.define_organization(cap=cap * MICRO)
    world.put_organization(spent=0, spend_held=0, month=0)
    ladders = [[(one.up_to, Fraction(one.unit_price)) for one in each.pricing.tiers] for each in services]
    model = Model(cap * MICRO, ladders)
    live: list[tuple[Call, int, int]] = []
    bounded = (
        True  # until a month changes under calls in flight: they were admitted at another month's prices
    )
    for what, at, units in life:
        if what == "reserve":
            call = world.reserve(service=services[at], units=units)
            assert (call.verdict is Verdict.ADMITTED) is model.reserve(at, units)
            live += [(call, at, units)] if call.verdict is Verdict.ADMITTED else []
        elif what == "month":
            bounded = bounded and not live
            model.settled, model.spent = [0, 0], 0
            for name in [keys.activation(world.p, 1, one.id) for one in services]:
                packed = world.get(name)
                if packed:
                    state = states.unpack(states.ActivationState, packed)
                    world.rebuild(name, states.pack(replace(state, month=state.month - 1)))
            world.put_organization(month=world.organization.month - 1)
        elif live:
            call, which, held = live.pop(at % len(live))
            used = 0 if what == "release" else min(units, held)
            assert end(call, what, used) is SettleResult.DONE
            model.end(which, held, used)
        if bounded:
            assert model.outlook <= model.cap
        assert world.organization.spend_held == sum(model.worth)
    if model.spent:
        assert world.organization.spent == model.spent
    for call, _, _ in live:
        call.release()
    assert world.organization.spend_held == 0


# --- across versions --------------------------------------------------------------------


def test_a_state_of_before_units_were_held_is_read(world: World) -> None:
    world.define_organization(cap=5 * MICRO)
    world.reserve(service=RISING).settle(units=9)
    name = keys.activation(world.p, 1, RISING.id)
    old = world.get(name)[1:34]  # nor had it a number
    world.rebuild(name, old)
    assert kept(world) == states.ActivationState(month=kept(world).month, quantity=9)
    assert [world.reserve(service=RISING).verdict is Verdict.ADMITTED for _ in range(7)] == [True] * 6 + [
        False
    ]


def test_a_hold_of_before_units_were_held_gives_its_price_back(world: World) -> None:
    world.define_organization(cap=5 * MICRO)
    call = world.reserve(service=RISING, units=12)
    hold = call.hold
    assert hold is not None
    name = keys.hold(world.p, call.id)
    packed = states.pack(replace(hold, credits=2 * MICRO)) + world.get(name)[129:]
    world.rebuild(name, packed)
    world.rebuild(keys.activation(world.p, 1, RISING.id), states.pack(states.ActivationState()))
    other = world.reserve(service=RISING)
    assert world.organization.spend_held == 2 * MICRO
    assert call.settle(units=12) is SettleResult.DONE
    assert (world.organization.spent, world.organization.spend_held) == (2 * MICRO, MICRO)
    other.release()
    assert (kept(world).held, world.organization.spend_held) == (0, 0)


def test_a_cap_set_while_calls_run_counts_them(world: World) -> None:
    calls = [world.reserve(service=RISING) for _ in range(14)]
    assert world.organization.spend_held == 0
    world.define_organization(cap=5 * MICRO)
    assert [world.reserve(service=RISING).verdict is Verdict.ADMITTED for _ in range(2)] == [True, False]
    for call in calls:
        call.settle(units=1)
    assert world.organization.spent == 4 * MICRO


@pytest.mark.parametrize("used", [0, 5])
def test_a_raise_counts_its_units_once(world: World, used: int) -> None:
    world.define_organization(cap=5 * MICRO)
    first = world.reserve(service=RISING, units=12)
    raised = first.raised(service=RISING, units=15)
    assert (raised.verdict, kept(world).held, world.organization.spend_held) == (
        Verdict.ADMITTED,
        15,
        5 * MICRO,
    )
    assert first.raised(service=RISING, units=16).verdict is Verdict.SPEND_CAP_REACHED
    end(raised, "settle" if used else "release", used)
    assert (kept(world).held, world.organization.spend_held) == (0, 0)
