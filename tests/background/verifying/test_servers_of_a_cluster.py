"""What verifying one of several servers goes by: its own partitions, and who stands beside them."""

from __future__ import annotations

from gateway.core.model import PARTITIONS
from gateway.counters.redis import keys
from persistence.keeper.verification import LedgerReader
from tests.background.backend import backend_at


async def test_while_a_partition_is_not_verified_nobody_is_said_not_to_exist(
    valkey: str, migrated: str
) -> None:
    """It came with a slot, and who stands there may only not be there yet."""
    async with backend_at(valkey, migrated) as backend:
        await backend.verify()
        run_id, counters = backend.wire.run_id, backend.counters
        assert await counters.said_verified(run_id)
        assert await counters.said_verified(run_id, [7])
        assert not await counters.said_verified(run_id)
        await backend.verify()
        assert await counters.said_verified(run_id)


async def test_credentials_are_of_the_partitions_that_they_stand_beside(valkey: str, migrated: str) -> None:
    """Of a cluster another primary may have them than has their organization."""
    async with backend_at(valkey, migrated) as backend:
        for _ in range(3):
            await backend.settle_in()
        truths = LedgerReader(backend.engine, keys.partition_of, keys.partition_of_digest)
        whole = await truths.places(range(PARTITIONS), {})
        assert not whole.credentials
        found = [one for truth in (await truths.truth(whole.organizations)).values() for one in truth.keys]
        assert len(found) == 3
        for one in found:
            there, home = keys.partition_of_digest(one.digest), keys.partition_of(one.organization_id)
            assert (one.key_id in (await truths.places({there}, {})).credentials) is (there != home)
            assert one.key_id not in (await truths.places({there, home}, {})).credentials
            others = set(range(PARTITIONS)) - {there}
            assert one.key_id not in (await truths.places(others, {})).credentials
            assert await truths.credentials([one.key_id]) == [one]
