"""A log that was acknowledged more than the data has moved says that the data is older."""

from __future__ import annotations

import pytest

from gateway.core.accounts.holds import movements
from gateway.core.model import PARTITIONS
from gateway.counters.redis import keys
from gateway.counters.settlement_log.settlement_record import Positions
from tests.builders import CREDITS, UNITS, World
from tests.counters.conftest import Connect

PRESENT = 5


@pytest.mark.parametrize("kind", ["tenant", "credits", "spend"])
@pytest.mark.parametrize(("beyond", "ahead"), [(0, False), (1, True)])
async def test_what_has_moved_further_than_the_data_is_ahead(
    world: World, connect: Connect, kind: str, beyond: int, ahead: bool
) -> None:
    world.plan(100)
    world.grant("credits", 100)
    for service in (CREDITS, UNITS):
        world.reserve(need=1, service=service, credits_=1).settle(tokens=1, credits=1, units=1)
    organization = world.organization
    stand = {
        "tenant": world.tenant.seq, "credits": organization.credit_seq, "spend": organization.spend_seq,
    }  # fmt: skip
    assert all(stand.values())
    seqs = stand | {kind: stand[kind] + beyond}
    positions = Positions([PRESENT] * PARTITIONS)
    moved = movements(
        world.p, world.tenant.tenant_id, organization.organization_id, epoch=PRESENT,
        seq=seqs["tenant"], moved=1, credit_seq=seqs["credits"], spend_seq=seqs["spend"],
    )  # fmt: skip
    positions.add(world.p, PRESENT, moved)
    assert await positions.are_ahead(await connect(world.url)) is ahead


async def test_an_account_that_is_not_there_has_not_moved(world: World, connect: Connect) -> None:
    world.plan(100)
    world.client.delete(keys.tenant_state(world.p, world.caller.tenant_id))
    positions = Positions([PRESENT] * PARTITIONS)
    positions.add(
        world.p, PRESENT, movements(world.p, world.caller.tenant_id, 1, epoch=PRESENT, seq=1, moved=1)
    )
    assert await positions.are_ahead(await connect(world.url))


@pytest.mark.parametrize(("epoch", "ahead"), [(PRESENT - 1, False), (PRESENT + 1, True)])
async def test_of_other_epochs_only_later_ones_say_something(
    world: World, connect: Connect, epoch: int, ahead: bool
) -> None:
    """What was acknowledged earlier is sent again anyway."""
    positions = Positions([PRESENT] * PARTITIONS)
    positions.add(0, epoch, movements(0, 7, 1, epoch=epoch, seq=10**9, moved=1))
    assert await positions.are_ahead(await connect(world.url)) is ahead


async def test_a_partition_that_is_not_verified_says_nothing(world: World, connect: Connect) -> None:
    positions = Positions([0] * PARTITIONS)
    positions.add(0, 3, movements(0, 7, 1, epoch=3, seq=10**9, moved=1))
    assert not await positions.are_ahead(await connect(world.url))
