"""The pusher: intents reach the counters in order, once, whenever they can."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from gateway.background.timed.pusher import Pusher
from gateway.core.accounts.definitions import ControlWrite
from gateway.core.model import INTEGER_MAX, Verdict
from gateway.counters.admission.stored import decode_identity
from gateway.counters.redis import keys
from gateway.errors import CountersUnavailable, OutOfRange
from tests.background.backend import backend_at

# --- alone ------------------------------------------------------------------------------


@dataclass
class Waiting:
    """Writes of one account and what became of them."""

    writes: list[ControlWrite]
    done: list[str] = field(default_factory=list)
    never: list[tuple[str, str]] = field(default_factory=list)

    async def applied(self, write: ControlWrite) -> None:
        self.done.append(write.id)

    async def refused(self, write: ControlWrite, reason: str) -> None:
        self.never.append((write.id, reason))


class Source:
    """Accounts in memory."""

    def __init__(self, **accounts: list[str]) -> None:
        self.by_account = {
            name: Waiting([ControlWrite(one, at, name, "recharge") for at, one in enumerate(ids)])
            for name, ids in accounts.items()
        }

    async def accounts(self, count: int, partitions: Sequence[int] | None = None) -> list[str]:
        assert partitions is None
        return list(self.by_account)[:count]

    @asynccontextmanager
    async def waiting(self, account: str) -> AsyncIterator[Waiting]:
        yield self.by_account[account]


class Target:
    """Counters that answer as told."""

    def __init__(self, **answers: bool | Exception) -> None:
        self.answers = answers
        self.asked: list[str] = []

    async def apply(self, write: ControlWrite) -> bool:
        self.asked.append(write.id)
        answer = self.answers.get(write.id, True)
        if isinstance(answer, Exception):
            raise answer
        return answer


async def test_an_accounts_writes_are_applied_in_their_order() -> None:
    source, target = Source(a=["1", "2", "3"]), Target()
    assert await Pusher(source, target).push("a") is True
    assert target.asked == source.by_account["a"].done == ["1", "2", "3"]


@pytest.mark.parametrize("answer", [False, CountersUnavailable()])
async def test_a_write_that_must_wait_keeps_those_behind_it_waiting(answer: bool | Exception) -> None:
    source, target = Source(a=["1", "2", "3"], b=["4"]), Target(**{"2": answer})
    assert await Pusher(source, target).push_all() == 1
    assert target.asked == ["1", "2", "4"]
    assert (source.by_account["a"].done, source.by_account["b"].done) == (["1"], ["4"])


async def test_a_write_that_can_never_be_applied_is_refused_and_the_next_one_goes_on() -> None:
    source, target = Source(a=["1", "2"]), Target(**{"1": OutOfRange()})
    assert await Pusher(source, target).push("a") is True
    waiting = source.by_account["a"]
    assert ([one for one, _ in waiting.never], waiting.done) == (["1"], ["2"])
    assert "9007199254740991" in waiting.never[0][1]


# --- with the counters and the database -------------------------------------------------


async def test_what_people_write_is_in_force_and_done_by_its_row(valkey: str, migrated: str) -> None:
    async with backend_at(valkey, migrated) as backend:
        world = await backend.settle_in(100)
        tenant_id = world.caller.tenant_id
        await backend.write("tenants", "recharge", tenant_id, amount=50)
        await backend.write("tenants", "adjust", tenant_id, amount=30, direction="OUT", reason="too much")
        await backend.write("tenants", "reset", tenant_id)
        await backend.write("tenants", "block", tenant_id)
        assert await backend.push() == 0
        assert (world.tenant.remaining, world.tenant.manual_block) == (100, True)
        assert {state for _, verb, state in backend.writes() if verb != "define"} == {"applied"}
        assert {state for _, verb, state in backend.writes() if verb == "define"} == {"done"}
        await backend.flush()
        assert backend.ledger(tenant_id) == [
            (1, "reset", 100, 100),
            (2, "recharge", 50, 150),
            (3, "adjust", -30, 120),
            (4, "reset", -20, 100),
        ]
        assert backend.rows("select metadata from token_ledger where seq = 3")[0]["metadata"] == {
            "reason": "too much"
        }
        assert {state for _, _, state in backend.writes()} == {"done"}
        assert world.client.hlen(keys.control(world.p)) == 0


async def test_pushing_again_changes_nothing(valkey: str, migrated: str) -> None:
    async with backend_at(valkey, migrated) as backend:
        world = await backend.settle_in(100)
        await backend.write("tenants", "recharge", world.caller.tenant_id, amount=50)
        assert sum(await asyncio.gather(backend.push(), backend.push())) == 0
        backend.rows("update control_write set state = 'pending' where verb <> 'define' returning id")
        assert await backend.push() == 0
        assert world.tenant.remaining == 150


async def test_two_keepers_push_one_account_once(valkey: str, migrated: str) -> None:
    async with backend_at(valkey, migrated) as one, backend_at(valkey, migrated) as other:
        world = await one.settle_in(100)
        for _ in range(5):
            await one.write("tenants", "recharge", world.caller.tenant_id, amount=1)
        await asyncio.gather(one.push(), other.push())
        assert world.tenant.remaining == 105
        assert [event.seq for event in world.events()] == [1, 2, 3, 4, 5, 6]


async def test_what_a_key_makes_of_users_is_written_anew(valkey: str, migrated: str) -> None:
    async with backend_at(valkey, migrated) as backend:
        world = await backend.settle_in(100)
        name = keys.identity(backend.rows("select digest from api_key")[0]["digest"])
        for wanted in ("require", "ignore", "accept"):
            await backend.write("api-keys", "change", world.caller.key_id, user_header=wanted)
            await backend.push()
            assert decode_identity(world.client.get(name)).h == wanted
            world.client.flushall()
            await backend.verify()
            assert decode_identity(world.client.get(name)).h == wanted


async def test_a_revoked_key_is_refused_at_once(valkey: str, migrated: str) -> None:
    async with backend_at(valkey, migrated) as backend:
        world = await backend.settle_in(100)
        digest = backend.rows("select digest from api_key")[0]["digest"]
        assert world.client.exists(keys.identity(digest))
        await backend.write("api-keys", "revoke", world.caller.key_id)
        await backend.push()
        assert not world.client.exists(keys.identity(digest))
        assert world.reserve().verdict is Verdict.REVOKED


async def test_limits_and_plans_reach_the_counters(valkey: str, migrated: str) -> None:
    async with backend_at(valkey, migrated) as backend:
        world = await backend.settle_in(100, reset_interval="daily")
        caller = world.caller
        limits = {"requests_per_minute": 5, "concurrency": 2}
        await backend.write(
            "tenants", "change", caller.tenant_id, limits=limits, user_limits={"concurrency": 1}
        )
        await backend.write("organizations", "change", caller.organization_id, limits=limits)
        await backend.write("api-keys", "change", caller.key_id, limits=limits)
        bigger = await backend.made("token-plans", name="bigger", total_amount=500)
        await backend.write("tenant-quotas", "change", caller.tenant_id, plan_id=bigger)
        assert await backend.push() == 0
        for state in (world.tenant, world.organization, world.key):
            assert (state.rpm, state.concurrency) == (5, 2)
        assert (world.tenant.user_concurrency, world.tenant.remaining) == (1, 500)


async def test_writes_wait_while_redis_is_away_or_unverified(valkey: str, migrated: str) -> None:
    async with backend_at(valkey, migrated) as backend:
        world = await backend.settle_in(100)
        world.client.delete(keys.marker(world.p))
        await backend.write("tenants", "recharge", world.caller.tenant_id, amount=1)
        assert await backend.push() == 1
        await backend.wire.close()
        assert await backend.push() == 1
        assert backend.writes()[-1][2] == "pending"


async def test_what_would_leave_the_range_is_refused_for_good(valkey: str, migrated: str) -> None:
    async with backend_at(valkey, migrated) as backend:
        world = await backend.settle_in(INTEGER_MAX)
        written = await backend.write("tenants", "recharge", world.caller.tenant_id, amount=1)
        assert await backend.push() == 0
        assert backend.writes()[-1][2] == "refused"
        reason = await backend.store.refusal([intent.id for intent in written.intents])
        assert reason is not None
        assert "9007199254740991" in reason
