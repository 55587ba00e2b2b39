"""Accounts that scripts keep opened are few: calls of more in turn find what is stored, whoever wrote it."""

from __future__ import annotations

import pytest

from tests.builders import World

# More than are kept, of now and of before.
MANY = 150


@pytest.mark.parametrize("together", [1, 40, 70, MANY])
def test_each_of_many_in_turn_goes_by_what_is_stored(valkey: str, together: int) -> None:
    worlds = [World(valkey, organization_id=n, tenant_id=n, key_id=n) for n in range(1, MANY + 1)]
    for world in worlds:
        world.plan(1000)
    for turn in range(1, 3):
        for first in range(0, MANY, together):
            calls = [world.reserve(need=5) for world in worlds[first : first + together]]
            stored = [call.world.get(call.world.tenant_key) for call in calls]
            for call in calls:
                call.settle(tokens=3)
            assert [call.world.tenant.used for call in calls] == [3 * turn] * len(calls)
            # Somebody brings back what was written here before.
            for call, before in zip(calls[::7], stored[::7], strict=True):
                after = call.world.get(call.world.tenant_key)
                assert before
                assert after
                call.world.client.set(call.world.tenant_key, before)
                again = call.world.reserve(need=5)
                assert (call.world.tenant.held, call.world.tenant.inflight) == (10, 2)
                again.release()
                assert (call.world.tenant.used, call.world.tenant.held) == (3 * (turn - 1), 5)
                call.world.client.set(call.world.tenant_key, after)
