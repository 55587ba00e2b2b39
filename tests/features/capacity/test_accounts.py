"""The accounts of upstreams' capacity, asked as a worker asks them."""

from __future__ import annotations

from gateway.core.calls.routes import CapacityLimits
from gateway.counters.redis import keys
from gateway.features.capacity.accounts import CapacityAccounts, CapacityAsk, CapacityEnd
from tests.builders import World, driven
from tests.counters.conftest import Connect

LIMITS = CapacityLimits(tokens_per_minute=60, concurrency=2)


async def test_waiting_call_is_admitted_with_the_upstream_capacity_an_ended_call_returns(
    valkey: str, connect: Connect, world: World
) -> None:
    accounts = CapacityAccounts(await connect(valkey))
    asks = [CapacityAsk(name, "o1", 1, 0, 0, 0, 9, 0) for name in ("a", "b")]

    async def ask(asks: list[CapacityAsk], ended: list[CapacityEnd], over: list[str]) -> list[int]:
        found: list[int] = await driven(accounts.ask(("up", "m"), LIMITS, asks, ended, over, []))
        return found

    wait, *answers = await ask(asks, [], [])
    assert (answers, wait > 5_000) == ([1, 0], True)
    again = await ask(asks[1:], [CapacityEnd("o1", 1, 1, 0, 9)], ["a"])
    assert again == [0, 1]
    _, names = keys.capacity("up", "m")
    assert [world.client.exists(name) for name in names] == [1, 1]
