"""Where nobody has written since, and nothing comes due, PostgreSQL is asked nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Connection, event
from sqlalchemy.ext.asyncio import AsyncEngine

from persistence import engine as engines
from persistence.keeper.agenda import AHEAD_S, AgendaReader, Writes
from persistence.keeper.shares import KeeperShares
from tests.connections import connected

HELD_S = 3_600.0
PENDING = """
INSERT INTO control_write (id, partition, account, verb, payload)
VALUES (gen_random_uuid(), 0, 'catalogue', 'define', '{}')"""


@pytest.fixture
async def engine(migrated: str) -> AsyncIterator[AsyncEngine]:
    engine = engines.create(migrated, connections_max=1)
    yield engine
    await engine.dispose()


class Reader:
    """An agenda whose clock a test turns, and how many statements it took for each look."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.now, self.statements = datetime(2026, 3, 1, tzinfo=UTC), 0
        self.reader = AgendaReader(
            engine, lambda _: datetime.min.replace(tzinfo=UTC), lambda: self.now, lambda: 0.0
        )

        @event.listens_for(engine.sync_engine, "after_cursor_execute")
        def counted(_: Connection, *__: object) -> None:
            self.statements += 1

    async def look(self) -> tuple[set[str], int]:
        self.statements = 0
        return set(await self.reader.read()), self.statements


async def test_only_what_others_write_and_time_have_it_asked_again(
    engine: AsyncEngine, migrated: str
) -> None:
    agenda, keeper = Reader(engine), KeeperShares(engine, 0)
    await keeper.keep(range(64), (), HELD_S)
    assert (await agenda.look())[1] == 2
    assert (await agenda.look(), agenda.reader.written) == ((set(), 2), 2), "it looks ahead once"
    for _ in range(3):
        assert await agenda.look() == (set(), 1)
        await keeper.keep(range(64), (), HELD_S)
    with connected(migrated) as connection:
        connection.execute(PENDING)
        assert await agenda.look() == (set(), 1), "it is not committed"
        connection.commit()
        assert (await agenda.look(), agenda.reader.written) == (({"pusher"}, 2), 3)
        assert [(await agenda.look())[0] for _ in range(2)] == [{"pusher"}] * 2
        connection.execute("UPDATE control_write SET state = 'done', done_at = now()")
        assert (await agenda.look())[0] == {"pusher"}
        connection.commit()
    assert (await agenda.look())[0] == set()
    assert [(await agenda.look())[1] for _ in range(2)] == [2, 1]
    agenda.now += timedelta(seconds=AHEAD_S)
    assert [(await agenda.look())[1] for _ in range(2)] == [2, 1]


def test_a_look_sees_more_unless_all_that_began_since_were_keepers() -> None:
    before = Writes(10, 10, [9])
    assert not Writes(10, 10, [9]).has_more(before)
    assert not Writes(12, 12, [11, 10]).has_more(before)
    assert Writes(12, 12, [11, 9]).has_more(before), "another's transaction"
    assert Writes(10, 11, [10]).has_more(before), "one is not over"
    assert Writes(11, 11, [10]).has_more(Writes(9, 10, [9])), "one was not over"
    assert Writes(8, 8, [7]).has_more(before), "an older database"
    high = 5 << 32
    assert not Writes(high + 1, high + 1, [0]).has_more(Writes(high, high, [0xFFFFFFFF]))
