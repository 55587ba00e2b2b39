"""Calls of plans that weigh kinds, behind the gateway: taken back, late, and after Redis was lost."""

from __future__ import annotations

from gateway.core.accounts.call_facts import CallFacts, write_facts
from gateway.core.accounts.holds import ExpiredHold, ReclaimPolicy
from gateway.core.accounts.weights import ONE, Weights
from gateway.core.model import HoldExtension, SettleResult
from gateway.counters.redis import keys
from tests.background.backend import Backend
from tests.background.flushing.test_late import drained
from tests.builders import World

TENTH = Weights.of(dict.fromkeys(("input", "output"), ONE // 10))


async def test_a_call_settled_after_its_reclaim_is_made_good_in_both_numbers(backend: Backend) -> None:
    world = await backend.settle_in(1000)
    call = world.reserve(need=500, quota=(50, 50, 0))
    live = HoldExtension(world.caller, call.id, 0, tokens=200, weights=TENTH, quota_tokens=20)
    world.extended([(live, 0)])
    (hold,) = await held(backend, world, call.id)
    assert (hold.observed, hold.quota_tokens, hold.held) == (200, 20, 50)
    assert await backend.keeping.reclaim(hold, hold.charge(ReclaimPolicy.CHARGE_OBSERVED))
    await backend.flush()
    assert tokens_of(backend, call.id) == 200
    used = {"tokens": 400, "quota_tokens": 130, "metadata": facts(100, 300)}
    for settled in (SettleResult.RECLAIMED, SettleResult.UNKNOWN):
        assert call.settle(**used) is settled
        await drained(backend)
        assert backend.ledger(world.caller.tenant_id) == [
            (1, "reset", 1000, 1000),
            (2, "consume", -20, 980),
            (3, "adjust", -110, 870),
        ]
        assert tokens_of(backend, call.id) == 400


async def test_a_call_that_never_arrived_is_posted_by_what_it_counts(backend: Backend) -> None:
    world = await backend.settle_in(1000)
    call = world.reserve(need=500, quota=(50, 50, 0))
    world.client.delete(keys.hold(world.p, call.id))
    used = {"tokens": 300, "quota_tokens": 30, "metadata": facts(0, 300)}
    assert [call.settle(**used), call.settle(**used)] == [SettleResult.UNKNOWN] * 2
    await drained(backend)
    assert backend.ledger(world.caller.tenant_id)[1:] == [(2, "consume", -30, 970)]
    assert tokens_of(backend, call.id) == 300


def facts(read: int, cached: int) -> bytes:
    counts = (read, cached, 0, 0, 0, 0, 0, 0, 0, 0)
    return write_facts(CallFacts(model="m", status=200, counts=counts, total=read + cached, units=1))


async def held(backend: Backend, world: World, request_id: str) -> list[ExpiredHold]:
    """The hold as the reclaimer finds it once its deadline has passed."""
    world.client.zadd(keys.deadlines(world.p), {request_id: 1})
    return [one for one in await backend.keeping.expired(100) if one.release.request_id == request_id]


def tokens_of(backend: Backend, request_id: str) -> int:
    (row,) = backend.rows("SELECT tokens FROM call WHERE request_id = %s", request_id)
    return int(row["tokens"])
