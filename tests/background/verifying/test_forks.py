"""What waits in counters beside which another server went on: it is dropped where that was stored."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from gateway.counters.redis import keys
from tests.background.verifying.guarded import at_one, guarded, settle, verified
from tests.background.verifying.test_overtaken import there
from tests.conftest import ValkeyServer

START = Callable[..., ValkeyServer]


@pytest.mark.parametrize("waits", [1, 3], ids=["less than was stored", "more than was stored"])
async def test_what_waits_beside_what_another_server_went_on_with_is_dropped(
    own_valkey: START, migrated: str, waits: int
) -> None:
    """It is older than what was stored since: nothing of the stream comes behind that."""
    one, other = own_valkey(), own_valkey()
    async with guarded(one.url, migrated) as here, guarded(other.url, migrated) as elsewhere:
        world = await here.settle_in(10_000)
        await here.flush()
        settle(world, waits, 30)
        await elsewhere.verify()
        settle(there(world, elsewhere), 2, 5)
        await elsewhere.flush()
        await verified(here, world)
        assert world.tenant.used == 10
        assert world.client.xlen(keys.outbox(world.p)) == 0
        settle(world, 1, 7)
        await here.flush()
        at_one(here, world)
