"""What one worker heard of an empty account, all workers know, and one of them asks it again."""

from __future__ import annotations

import asyncio
import time

from gateway.core.empty_accounts import FORGOTTEN_S, LEFT_ALONE_S
from gateway.counters.admission.empty_accounts import (
    NAME,
    SharedEmptyAccounts,
    StoredEmptyAccount,
    read_empty_accounts,
)
from gateway.counters.admission.key_changes import HEARD
from gateway.counters.redis import keys
from gateway.run.shard_loops import empty_accounts
from tests.builders import World, driven
from tests.counters.conftest import Connect
from tests.waiting import eventually

ACCOUNT = "0123456789abcdef"


class Worker:
    """A worker's table with a clock of its own, which began at another time than others'."""

    def __init__(self, connect: Connect, began: float) -> None:
        self._connect, self.now = connect, began

    async def start(self, url: str) -> Worker:
        self.wire = await self._connect(url)
        self.shared = SharedEmptyAccounts(self.wire, lambda: self.now)
        self.table = self.shared.table
        await self.shared.share()
        return self

    def note(self, status: int = 402) -> None:
        self.table.note(ACCOUNT, "deepseek", status, self.now)

    async def leaves_alone(self) -> tuple[bool, bool]:
        return await driven(self.table.leaves_alone(ACCOUNT, self.now))


async def both(url: str, connect: Connect) -> tuple[Worker, Worker]:
    """Return two workers; the first has noted an empty account."""
    first, second = [await Worker(connect, began).start(url) for began in (1_000, 77)]
    first.note()
    for worker in (first, second):
        await worker.shared.share()
    return first, second


async def test_an_account_that_a_worker_notes_is_left_alone_by_all_workers(
    valkey: str, connect: Connect, world: World
) -> None:
    first, second = await both(valkey, connect)
    assert await first.leaves_alone() == await second.leaves_alone() == (True, False)
    assert LEFT_ALONE_S - 1 < second.table.entries[ACCOUNT].until - second.now <= LEFT_ALONE_S
    stored = await read_empty_accounts(second.wire)
    now_ms = time.time() * 1000
    assert await empty_accounts(second.wire) == {"upstream_accounts_empty": [("deepseek", 1)]}
    assert stored == {ACCOUNT: StoredEmptyAccount("deepseek", 402, stored[ACCOUNT].since_ms)}
    assert now_ms - 5_000 < stored[ACCOUNT].since_ms <= now_ms + 1_000
    for name in (keys.EMPTY_ACCOUNTS, keys.empty_account(ACCOUNT)):
        assert FORGOTTEN_S - 5 < world.client.ttl(name) <= FORGOTTEN_S


async def test_only_a_single_worker_asks_an_account_again(
    valkey: str, connect: Connect, world: World
) -> None:
    first, second = await both(valkey, connect)
    world.client.delete(keys.empty_account_question(ACCOUNT))  # as after a minute
    first.now += LEFT_ALONE_S
    second.now += LEFT_ALONE_S
    found = await asyncio.gather(first.leaves_alone(), second.leaves_alone())
    assert sorted(found) == [(False, True), (True, False)]
    assert await first.leaves_alone() == await second.leaves_alone() == (True, False)


async def test_an_account_that_answered_is_open_for_all(valkey: str, connect: Connect, world: World) -> None:
    first, second = await both(valkey, connect)
    second.table.answered(ACCOUNT, second.now + 1)
    await second.shared.share()
    await first.shared.share()
    assert first.table.entries == second.table.entries == {}
    assert await read_empty_accounts(first.wire) == {}
    assert not world.client.keys(f"{keys.EMPTY_ACCOUNTS}*")


async def test_an_account_to_ask_again_is_due_for_all_workers(valkey: str, connect: Connect) -> None:
    first, second = await both(valkey, connect)
    first.table.ask_again(ACCOUNT, first.now)
    await first.shared.share()
    await second.shared.share()
    assert await second.leaves_alone() == (False, True)
    assert await first.leaves_alone() == (True, False)


async def test_the_first_answer_of_an_account_stays_until_a_good_answer(
    valkey: str, connect: Connect
) -> None:
    first, second = await both(valkey, connect)
    before = await read_empty_accounts(first.wire)
    second.now += LEFT_ALONE_S
    second.note(429)
    await second.shared.share()
    assert await read_empty_accounts(first.wire) == before


async def test_an_account_without_calls_for_a_day_is_forgotten(
    valkey: str, connect: Connect, world: World
) -> None:
    first, _ = await both(valkey, connect)
    world.client.zadd(NAME, {"old": (time.time() - FORGOTTEN_S - 60) * 1000})
    first.now += LEFT_ALONE_S
    first.note()
    await first.shared.share()
    assert world.client.zrange(NAME, 0, -1) == [ACCOUNT.encode()]


async def test_without_redis_each_worker_asks_for_itself(valkey: str, connect: Connect) -> None:
    first, _ = await both(valkey, connect)
    await first.wire.close()
    first.now += LEFT_ALONE_S
    assert await first.leaves_alone() == (False, True)
    assert await first.leaves_alone() == (True, False)


async def test_a_note_reaches_another_worker_at_once(valkey: str, connect: Connect) -> None:
    """Not at the next look, which is seconds away."""
    workers = [SharedEmptyAccounts(await connect(valkey, hears=HEARD), time.monotonic) for _ in range(2)]
    loops = [asyncio.create_task(one.keep_sharing(0.0)) for one in workers]
    await eventually(lambda: all(one._wires.of_key(NAME).hearing.since > 0 for one in workers))
    workers[0].table.note(ACCOUNT, "deepseek", 402, time.monotonic())
    await eventually(lambda: ACCOUNT in workers[1].table.entries)
    for loop in loops:
        loop.cancel()
