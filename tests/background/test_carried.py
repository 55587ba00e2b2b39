"""Parts of credits beyond one call: in rows, reclaimed, late, and after everything in Redis is lost."""

from __future__ import annotations

import random
from fractions import Fraction
from math import ceil

import pytest

from gateway.core.billing.money import NANO, whole_credits
from gateway.core.model import Service, SettleResult
from gateway.counters.redis import keys
from tests.background.backend import Backend, backend_at
from tests.builders import BY_TOKEN, Call, World
from tests.persistence.scenario import broken
from tests.search import histories


async def on_credit(backend: Backend) -> World:
    """An organization that may use a thousand credits it has not."""
    world = await backend.settle_in(None)
    await backend.write("organizations", "change", world.caller.organization_id, credit_limit=1000)
    await backend.push()
    return world


def hold(world: World, nano: int, service: Service = BY_TOKEN) -> Call:
    return world.reserve(service=service, credits_=whole_credits(nano)[0])


def settle(call: Call, nano: int) -> SettleResult:
    credits_, over = whole_credits(nano)
    return call.settle(credits=credits_, over=over)


async def drained(backend: Backend) -> None:
    """Rows of all that is there, what came late included, and of what is given back for it."""
    for _ in range(3):
        await backend.flush()
        await backend.late_settlements.drain()
        await backend.push()
    await backend.flush()


def account(backend: Backend, world: World) -> tuple[int, int]:
    (row,) = backend.rows(
        "select credit_balance, credit_ahead from organization where id = %s", world.caller.organization_id
    )
    return row["credit_balance"], row["credit_ahead"]


@pytest.mark.parametrize(
    ("reclaimed", "nano", "refunds"),
    [
        (1, 2_300_000_000, []),  # more by 1.3: two whole ones, 0.7 ahead
        (3, 700_000_000, [2]),  # less by 2.3: two back, 0.3 ahead
    ],
)
async def test_what_a_reclaim_charged_is_made_good_to_the_part(
    backend: Backend, reclaimed: int, nano: int, refunds: list[int]
) -> None:
    world = await on_credit(backend)
    service = BY_TOKEN
    call = world.reserve(service=service, credits_=5)
    call.reclaim(credits=reclaimed, metadata=b'{"reclaimed":true}')
    assert settle(call, nano) is SettleResult.RECLAIMED
    await drained(backend)
    given = backend.rows(
        "select credits_added from credit_addition where category = 'refund' and organization_id = %s",
        world.caller.organization_id,
    )
    assert [row["credits_added"] for row in given] == refunds
    whole, over = whole_credits(nano)
    assert account(backend, world) == (-whole, over)
    assert world.late() == []
    await drained(backend)  # nothing is made good twice
    assert account(backend, world) == (-whole, over)
    assert await broken(backend.database) == []


@pytest.mark.parametrize("seed", range(histories(1)))
async def test_whatever_happens_the_sum_is_charged_once_rounded_up(
    valkey: str, migrated: str, seed: int
) -> None:
    """Calls that settle, are reclaimed and then settle, come late, or are told twice, between losses."""
    drawn = random.Random(seed)
    cost = Fraction(0)
    async with backend_at(valkey, migrated) as backend:
        world = await on_credit(backend)
        for _ in range(40):
            nano, fate = drawn.randrange(1, 3 * NANO), drawn.choice("sssslrbfx")
            if fate == "f":
                await drained(backend)
                world.client.flushall()
                await backend.verify()
                continue
            call = hold(world, nano)
            if fate == "x":
                call.release()
                continue
            cost += Fraction(nano, NANO)
            if fate == "l":
                world.client.delete(keys.hold(world.p, call.id))
            elif fate == "r":
                call.reclaim(credits=drawn.randrange(4), metadata=b'{"reclaimed":true}')
            settle(call, nano)
            if fate == "b":
                settle(call, nano)  # told twice: the second is looked up and dropped
        await drained(backend)
        balance, ahead = account(backend, world)
        assert (world.organization.balance, world.organization.ahead) == (balance, ahead)
        # What was given back for less may leave whole ones ahead until the next charge takes them.
        assert -balance - Fraction(ahead, NANO) == cost
        settle(hold(world, 9 * NANO), 9 * NANO)
        await backend.flush()
        assert account(backend, world)[0] == -ceil(cost + 9)
        assert await broken(migrated) == []
