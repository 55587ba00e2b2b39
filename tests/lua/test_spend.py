"""Pay-Per-Use in the scripts: graduated tiers by the month, the cap, and what is held of it."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.billing.money import FOLD, IN_MONEY, PriceTier, ServicePricing, folded, spend_micro
from gateway.core.model import INTEGER_MAX, LimitKind, Service, SettleResult, Verdict
from gateway.counters.layouts import states
from gateway.counters.redis import keys
from tests.builders import ONE_TIME, UNITS, World
from tests.lua.conftest import AMONG_OTHERS
from tests.search import examples


def tiered(*tiers: tuple[int | None, str]) -> Service:
    return replace(
        UNITS, pricing=ServicePricing(tuple(PriceTier(end, Decimal(price)) for end, price in tiers))
    )


TIERED = tiered((10, "0.0010"), (None, "0.0008"))  # 1,000 and 800 millionths
LADDERED = tiered((10, "0.0010"), (None, "0.000000000007"))
MONEY = replace(UNITS, pricing=ServicePricing(IN_MONEY))
FLAT = tiered((None, "0.00001"))  # 10 millionths


def kept(world: World, service: Service = UNITS) -> states.ActivationState:
    return states.unpack(states.ActivationState, world.get(keys.activation(world.p, 1, service.id)))


def use(world: World, units: int, service: Service = TIERED) -> None:
    assert world.reserve(service=service, units=units).settle(units=units) is SettleResult.DONE


# --- what units cost --------------------------------------------------------------------


def test_units_of_a_month_climb_the_tiers(world: World) -> None:
    for units in (4, 5, 3, 2):
        use(world, units)
    entries = world.events()
    assert [one.spend for one in entries] == [4000, 5000, 1000 + 2 * 800, 1600]
    assert [(one.spend_seq, one.spent) for one in entries] == [(1, 4000), (2, 9000), (3, 11600), (4, 13200)]
    assert (kept(world).quantity, world.organization.spent) == (14, 13200)


PRICES = st.decimals(0, 1000, places=12, allow_nan=False)
LADDER = st.lists(st.tuples(st.integers(1, 10**6), PRICES), max_size=5)


@AMONG_OTHERS
@settings(max_examples=examples(60))
@given(steps=LADDER, last=PRICES, uses=st.lists(st.integers(1, 3 * 10**6), min_size=1, max_size=4))
def test_any_ladder_costs_what_the_arithmetic_of_invoices_says(
    world: World, steps: list[tuple[int, Decimal]], last: Decimal, uses: list[int]
) -> None:
    end, tiers = 0, []
    for width, price in steps:
        end += width
        tiers.append(PriceTier(end, price))
    service = replace(UNITS, pricing=ServicePricing((*tiers, PriceTier(None, last))))
    world.client.delete(keys.activation(world.p, 1, UNITS.id), keys.outbox(world.p))
    for units in uses:
        use(world, units, service)
    expected = [spend_micro(service.pricing.tiers, sum(uses[:at]), units) for at, units in enumerate(uses)]
    assert [one.spend for one in world.events()] == expected


@AMONG_OTHERS
@settings(max_examples=examples(60))
@given(uses=st.lists(st.integers(1, 4 * FOLD), min_size=1, max_size=12))
def test_money_of_a_month_is_exact_however_many_billionths_it_is(world: World, uses: list[int]) -> None:
    key = keys.activation(world.p, 1, MONEY.id, in_money=True)
    world.client.delete(key, keys.outbox(world.p))
    world.put_organization(spent=0)
    for units in uses:
        use(world, units, MONEY)
    expected = [spend_micro(IN_MONEY, sum(uses[:at]), units) for at, units in enumerate(uses)]
    assert [one.spend for one in world.events()] == expected
    assert world.organization.spent == sum(expected)
    assert states.unpack(states.ActivationState, world.get(key)).quantity == folded(sum(uses)) < 2 * FOLD


def test_units_in_tiers_are_folded_where_the_last_one_has_begun(world: World) -> None:
    for units in (20, 3 * FOLD, 3 * FOLD, 3 * FOLD, 7):
        use(world, units, LADDERED)
    before = [0, 20, 20 + 3 * FOLD, 20 + 6 * FOLD, 20 + 9 * FOLD]
    tiers = LADDERED.pricing.tiers
    assert [one.spend for one in world.events()] == [
        spend_micro(tiers, at, one.units) for at, one in zip(before, world.events(), strict=True)
    ]
    assert kept(world).quantity == FOLD + 27


def test_without_a_cap_no_units_in_flight_are_too_many(world: World) -> None:
    calls = [world.reserve(service=MONEY, units=INTEGER_MAX) for _ in range(3)]
    assert {call.verdict for call in calls} == {Verdict.ADMITTED}
    world.define_organization(cap=10**15)
    late = world.reserve(service=MONEY, units=1)
    assert (late.verdict, late.decision.kind) == (Verdict.QUOTA_HELD, LimitKind.SPEND)
    for call in calls:
        call.settle(units=1000)
    assert (world.organization.spent, world.organization.spend_held) == (3, 0)
    assert world.reserve(service=MONEY, units=1).verdict is Verdict.ADMITTED


def test_a_new_month_begins_at_the_first_tier_and_at_zero(world: World) -> None:
    use(world, 12)
    month = kept(world).month
    assert world.organization.month == month
    stale = states.ActivationState(month=month - 1, quantity=12)
    assert world.rebuild(keys.activation(world.p, 1, UNITS.id), states.pack(stale)) == 1
    world.put_organization(month=month - 1)
    use(world, 2)
    assert (kept(world), world.organization.spent) == (states.ActivationState(month=month, quantity=2), 2000)
    assert world.events()[-1].spent == 2000


def test_a_clock_that_jumps_back_starts_no_month_anew(world: World) -> None:
    use(world, 12)
    month = kept(world).month + 1
    world.rebuild(
        keys.activation(world.p, 1, UNITS.id), states.pack(states.ActivationState(month=month, quantity=12))
    )
    world.put_organization(month=month)
    use(world, 1)
    assert (kept(world).quantity, world.events()[-1].spend) == (13, 800)


def test_units_are_counted_where_they_cost_nothing_yet(world: World) -> None:
    use(world, 9, UNITS)
    assert world.organization.spent == 0
    use(world, 2)
    assert world.events()[-1].spend == 1000 + 800


def test_a_one_time_service_that_became_pay_per_use_stays_paid(world: World) -> None:
    world.grant("credits", 50)
    world.reserve(service=ONE_TIME, credits_=50).settle(credits=50)
    use(world, 3, replace(TIERED, id=ONE_TIME.id))
    assert (kept(world, ONE_TIME).flags, kept(world, ONE_TIME).quantity) == (states.ACTIVE, 3)
    world.reserve(service=ONE_TIME, credits_=50).settle(credits=50)
    assert (world.organization.balance, kept(world, ONE_TIME).quantity) == (0, 3)


def test_a_call_keeps_the_tiers_it_was_admitted_at(world: World) -> None:
    world.define_organization(cap=10**9)
    call = world.reserve(service=TIERED, units=5)
    (state, user, tiers) = states.unpack_hold(world.get(keys.hold(world.p, call.id)))
    assert (state.units, user, len(tiers)) == (5, "", 48)
    call.extend(observed=1)
    assert states.unpack_hold(world.get(keys.hold(world.p, call.id)))[2] == tiers


# --- the cap ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("units", "verdict"),
    [
        (60, Verdict.ADMITTED),
        (61, Verdict.QUOTA_HELD),
        (80, Verdict.QUOTA_HELD),
        (81, Verdict.SPEND_CAP_REACHED),
    ],
)
def test_a_cap_covers_what_is_neither_spent_nor_held(world: World, units: int, verdict: Verdict) -> None:
    """Of 1,000 millionths 200 are spent and 200 held."""
    world.define_organization(cap=1000)
    use(world, 20, FLAT)
    held = world.reserve(service=FLAT, units=20)
    before = world.everything()
    call = world.reserve(service=FLAT, units=units)
    assert call.verdict is verdict
    if verdict is not Verdict.ADMITTED:
        decision = call.decision
        assert (decision.kind, decision.used, decision.limit) == (LimitKind.SPEND, 200, 1000)
        assert decision.until_ms > world.now_ms()
        assert world.everything() == before
    held.release()
    assert world.organization.spend_held == (units * 10 if verdict is Verdict.ADMITTED else 0)


def test_the_answer_that_crosses_the_cap_is_charged_and_the_next_refused(world: World) -> None:
    world.define_organization(cap=1000)
    world.reserve(service=FLAT, units=1).settle(units=500)
    assert (world.organization.spent, world.organization.spend_held) == (5000, 0)
    assert world.reserve(service=FLAT).verdict is Verdict.SPEND_CAP_REACHED


def test_what_costs_nothing_is_covered_by_any_cap(world: World) -> None:
    world.define_organization(cap=0)
    assert world.reserve(service=FLAT).verdict is Verdict.SPEND_CAP_REACHED
    world.reserve(service=UNITS).release()
    assert world.reserve(service=tiered((5, "0"), (None, "1")), units=5).verdict is Verdict.ADMITTED


def test_a_cap_is_a_months(world: World) -> None:
    world.define_organization(cap=1000)
    use(world, 100, FLAT)
    assert world.reserve(service=FLAT).verdict is Verdict.SPEND_CAP_REACHED
    organization = world.organization
    world.put_organization(month=organization.month - 1)
    call = world.reserve(service=FLAT)
    assert (call.verdict, world.organization.spent) == (Verdict.ADMITTED, 1000)
    call.settle(units=1)
    assert (world.organization.spent, world.organization.month) == (10, organization.month)


def test_without_a_cap_nothing_is_held(world: World) -> None:
    call = world.reserve(service=TIERED, units=5)
    assert world.organization.spend_held == 0
    call.release()
    assert (world.organization.spend_held, world.organization.credits_held) == (0, 0)


# --- without a hold ---------------------------------------------------------------------


def test_a_reclaimed_call_gives_its_hold_back_and_costs_its_tiers(world: World) -> None:
    world.define_organization(cap=10**9)
    call = world.reserve(service=TIERED, units=5)
    assert call.reclaim(tokens=1, units=5) is SettleResult.DONE
    assert (world.organization.spend_held, world.organization.spent, kept(world).quantity) == (0, 5000, 5)


def test_a_settlement_without_a_hold_keeps_its_tiers(world: World) -> None:
    call = world.reserve(service=TIERED, units=5)
    world.client.delete(keys.hold(world.p, call.id))
    assert call.settle(units=5) is SettleResult.UNKNOWN
    (entry,) = world.late()
    assert len(entry[b"t"]) == 48
    assert call.post(units=5) is SettleResult.DONE
    assert call.post(units=5) is SettleResult.DONE
    assert (world.organization.spent, kept(world).quantity) == (5000, 5)
