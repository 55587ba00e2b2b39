"""Keepers that are there have the partitions among them; one that is silent, or reaches none, has none."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.background.flushing.flusher import HELD_S, KeeperShare
from gateway.core.accounts.flush_batch import PartitionAssignment
from gateway.core.model import PARTITIONS
from gateway.errors import LedgerUnavailable
from persistence import engine as engines
from persistence.keeper.shares import KeeperShares
from tests.connections import connected
from tests.search import examples
from tests.waiting import eventually

ALL = range(PARTITIONS)
LONG_S = 3600.0
EXAMPLES_MAX = 12
# All know of each other, those who have too much give it away, those who lack it take it.
ROUNDS = 4


@pytest.fixture
async def engine(migrated: str) -> AsyncIterator[AsyncEngine]:
    engine = engines.create(migrated, connections_max=1)
    yield engine
    await engine.dispose()


class Member:
    """A keeper that does what it is told: what is leaving is given away the next time."""

    def __init__(self, engine: AsyncEngine, port: int = 0) -> None:
        self.ledger, self.told = KeeperShares(engine, port), PartitionAssignment()

    async def say(self, reached: Collection[int] = ALL, in_hand: Collection[int] = ()) -> frozenset[int]:
        self.told = await self.ledger.keep(reached, self.told.leaving.difference(in_hand), LONG_S)
        return self.told.own


async def settled(*members: Member) -> list[int]:
    """How many partitions each has once all have said it often enough."""
    for _ in range(ROUNDS):
        for one in members:
            await one.say()
    had = [one.told.own for one in members]
    assert sorted(p for own in had for p in own) == list(ALL), "each partition is somebody's, and one's alone"
    assert not any(one.told.leaving or one.told.lacking for one in members)
    return [len(own) for own in had]


def silence(database: str) -> None:
    """By the server's clock nobody has said anything for long."""
    with connected(database, autocommit=True) as connection:
        connection.execute("UPDATE keeper SET until = clock_timestamp() - interval '1 second'")


async def test_who_is_alone_has_all_and_the_next_ones_have_their_part(engine: AsyncEngine) -> None:
    first, second, third = (Member(engine) for _ in range(3))
    assert await first.say() == {*ALL}
    assert await settled(first, second) == [32, 32]
    assert sorted(await settled(first, second, third)) == [21, 21, 22]
    await second.ledger.leave()
    assert await settled(first, third) == [32, 32]


async def test_who_has_all_it_is_to_have_writes_of_itself_alone(engine: AsyncEngine, migrated: str) -> None:
    first, second = Member(engine), Member(engine)
    await settled(first, second)
    with connected(migrated, autocommit=True) as connection:
        rows = connection.execute("SELECT partition, xmin, xmax FROM keeper_partition").fetchall()
        [ends] = connection.execute("SELECT min(until) FROM keeper").fetchone() or [None]
        assert [len(await one.say()) for one in (first, second)] == [32, 32]
        assert connection.execute("SELECT partition, xmin, xmax FROM keeper_partition").fetchall() == rows
        assert connection.execute("SELECT min(until) > %s FROM keeper", [ends]).fetchone() == (True,)
        connection.execute("UPDATE keeper_partition SET keeper_id = %s", [second.ledger.id])
    assert await first.say() == frozenset(), "what somebody else took is not believed to be its own"
    assert await settled(first, second) == [32, 32]


async def test_what_is_in_hand_is_given_away_no_sooner_than_it_is_stored(engine: AsyncEngine) -> None:
    first, second = Member(engine), Member(engine)
    await first.say()
    assert await second.say() == frozenset()
    await first.say()
    leaving = first.told.leaving
    assert (len(leaving), first.told.own) == (32, {*ALL} - leaving)
    await first.say(in_hand={*ALL})
    assert await second.say() == frozenset()
    kept = min(leaving)
    await first.say(in_hand={kept})
    assert await second.say() == leaving - {kept}
    assert second.told.lacking == {kept}


async def test_a_silent_keeper_has_nothing_by_the_servers_clock(engine: AsyncEngine, migrated: str) -> None:
    silent, other = Member(engine), Member(engine)
    await silent.say()
    await other.say()
    silence(migrated)
    assert await other.say() == {*ALL}
    assert await silent.say() == frozenset()  # it speaks again, and takes nothing from who has it
    assert sorted(await settled(silent, other)) == [32, 32]


async def test_nobody_has_what_its_keeper_does_not_reach(engine: AsyncEngine) -> None:
    near, far = Member(engine), Member(engine)
    await settled(near, far)
    for _ in range(3):
        await far.say(reached=range(16))
        await near.say()
    assert far.told.own == {p for p in range(16) if p not in near.told.own}
    assert near.told.own | far.told.own == {*ALL}
    assert near.told.own >= {*range(16, 64)}
    for one in (near, far, near):
        await one.say(reached=())
    assert near.told.own | far.told.own == {*ALL}, "where nobody reaches them, they stay whose they are"


async def test_whoever_begins_in_the_place_of_another_has_its_part_at_once(engine: AsyncEngine) -> None:
    killed, other = Member(engine, port=8081), Member(engine)
    await settled(killed, other)
    again = Member(engine, port=8081)
    assert len(await again.say()) == 32
    assert await settled(again, other) == [32, 32]


@settings(max_examples=examples(EXAMPLES_MAX))
@given(
    steps=st.lists(
        st.tuples(st.integers(0, 3), st.sampled_from(["say", "busy", "leave", "fall silent"])), max_size=40
    )
)
async def test_whatever_happens_no_partition_is_read_by_two(
    shared: str, steps: list[tuple[int, str]]
) -> None:
    """A keeper that fell silent does not count: it knows by its own clock that it has nothing."""
    engine = engines.create(shared, connections_max=1)
    silence(shared)
    members = [Member(engine) for _ in range(4)]
    try:
        for number, what in steps:
            one = members[number]
            if what == "leave":
                await one.ledger.leave()
                members[number] = Member(engine)
            elif what == "fall silent":
                with connected(shared, autocommit=True) as connection:
                    connection.execute(
                        "UPDATE keeper SET until = clock_timestamp() WHERE id = %s", [one.ledger.id]
                    )
                one.told = PartitionAssignment()
            else:
                await one.say(in_hand=ALL if what == "busy" else ())
            read = [p for each in members for p in each.told.own]
            assert len(read) == len({*read})
        assert sorted(await settled(*members)) == [16, 16, 16, 16]
    finally:
        for one in members:
            await one.ledger.leave()
        await engine.dispose()


class Paused:
    """A ledger that is away when a test says so."""

    def __init__(self) -> None:
        self.away, self.given = False, list[frozenset[int]]()

    async def keep(
        self, reached: Collection[int], left: Collection[int], held_s: float
    ) -> PartitionAssignment:
        if self.away:
            raise LedgerUnavailable
        self.given.append(frozenset(left))
        return PartitionAssignment(frozenset({1, 2}), frozenset({3, 4}))

    async def leave(self) -> None:
        pass


async def test_a_keeper_that_is_not_heard_reads_nothing_and_says_why() -> None:
    ledger, now = Paused(), [0.0]
    share = KeeperShare(ledger, lambda: now[0])
    assert share.partitions() == frozenset(), "before it was told anything"
    await share.renew(ALL, lambda: ())
    assert (share.partitions(), share.size, share.changing) == ({1, 2}, 2, True)
    now[0] += HELD_S
    ledger.away = True
    with pytest.raises(LedgerUnavailable):
        await share.renew(ALL, lambda: ())
    with pytest.raises(LedgerUnavailable):
        share.partitions()
    assert share.size == 0
    ledger.away = False
    await share.renew(ALL, lambda: {3})
    assert share.partitions() == {1, 2}
    assert ledger.given == [frozenset(), frozenset({4})]


async def test_what_is_reached_again_is_flushed_here_at_once(engine: AsyncEngine) -> None:
    reached = set(range(20))
    share = KeeperShare(KeeperShares(engine, 0), held_s=LONG_S, said_each_s=LONG_S)
    running = asyncio.create_task(share.run(lambda: reached, lambda: ()))
    await eventually(lambda: share.partitions() == set(range(20)))
    reached |= set(range(20, 40))  # their server is back
    await eventually(lambda: share.partitions() == set(range(40)))
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
