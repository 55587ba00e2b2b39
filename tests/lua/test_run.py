"""run: what opens, is looked up and ends, seen by its answers and its entries."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import pytest
import redis

from gateway.core.accounts.outbox import EventKind
from gateway.core.accounts.runs import (
    Run,
    end_of,
    packed_run,
    read_news,
    read_run,
    stored_run,
    told_again,
    wanted_run,
)
from gateway.core.layout import EARLIER
from gateway.core.model import INTEGER_MAX, Verdict
from gateway.counters.layouts import packing
from gateway.counters.redis import keys
from tests.builders import World

NUMBER = 2**52 + 8


def asked(world: World, verb: int, id_: str = "job", **more: object) -> tuple[int, bytes]:
    answer = world.run("run", packing.run(world.run_id, verb, world.caller, id_, **more))  # type: ignore[arg-type]  # as it takes them
    return packing.code_of(answer), answer[packing.RAN.size :]


def opened(world: World, field: str, ttl_ms: int = 60_000) -> tuple[int, bytes]:
    wanted = read_run(field)
    return asked(
        world, packing.RUN_OPEN, wanted.id, parent_id=wanted.parent_id, ttl_ms=ttl_ms, budget_id=NUMBER,
        packed=wanted_run(wanted),
    )  # fmt: skip


def kept(world: World, run: Run) -> tuple[int, bytes]:
    more = {"packed": packed_run(run), "entry": told_again(run, ended=False)}
    return asked(world, packing.RUN_KEEP, run.id, parent_id=run.parent_id, **more)


def found(world: World, packed: bytes) -> Run:
    return stored_run(world.caller.organization_id, world.caller.tenant_id, packed)


def test_one_is_opened_once_and_told_once(world: World) -> None:
    before = world.now_ms()
    code, packed = opened(world, "job; max=2.00; max_calls=7")
    run = found(world, packed)
    assert (code, run.budget_id, run.amount, run.calls_max, run.ended_ms) == (2, NUMBER, 2 * 10**9, 7, 0)
    assert before <= run.created_ms == run.expires_ms - 60_000 <= world.now_ms()
    assert opened(world, "job; max=9.00") == (packing.RUN_WAITS, packed)
    assert asked(world, packing.RUN_LOOK) == (packing.RUN_WAITS, packed)
    assert not world.events()  # a call that is refused now leaves none
    assert kept(world, run) == (2, packed)
    assert kept(world, run) == asked(world, packing.RUN_LOOK) == (1, packed)
    (entry,) = [one for one in world.events() if one.kind == EventKind.RUN]
    assert (entry.amount, entry.tenant_id) == (NUMBER, world.caller.tenant_id)
    assert entry.next_reset_ms == run.expires_ms
    news = read_news(entry.metadata)
    assert news is not None
    told = ("job", 2 * 10**9, 7, False, run.created_ms)
    assert (news.id, news.amount, news.calls_max, news.ended, news.created_ms) == told


def test_it_ends_once_with_the_calls_it_had(world: World) -> None:
    run = found(world, opened(world, "job")[1])
    kept(world, run)
    before = world.everything()
    assert (
        asked(world, packing.RUN_END, "other", packed=run.defined, entry=end_of(run))[0]
        == packing.RUN_UNKNOWN
    )
    assert world.everything() == before
    code, packed = asked(world, packing.RUN_END, packed=run.defined, entry=end_of(run))
    ended = found(world, packed)
    assert (code, ended.calls) == (2, 0)
    assert ended.ended_ms >= run.created_ms
    calls, amount = world.windows(run.account.name)
    assert (calls.used, amount.used) == (packing.ENDED_CALLS, 0)
    assert asked(world, packing.RUN_END, packed=run.defined, entry=end_of(run)) == (1, packed)
    assert [one.kind for one in world.events()].count(EventKind.RUN) == 2


def test_older_programs_admit_no_call_of_a_run_that_ended_either(world: World) -> None:
    world.client.set(keys.marker(world.p), packing.marker(world.run_id, 1, 1, EARLIER))
    run = found(world, opened(world, "job")[1])
    kept(world, run)
    ended = found(world, asked(world, packing.RUN_END, packed=run.defined, entry=end_of(run))[1])
    assert (ended.calls, bool(ended.ended_ms)) == (0, True)
    assert [one.used for one in world.windows(run.account.name)] == [INTEGER_MAX, 0]


def lives_ms(world: World, run: Run) -> list[int]:
    """How long a run is remembered, and how long each list has it, in milliseconds."""
    name, member = run.account.name, run.account.name.partition(":")[2]
    p, now_ms = world.p, world.now_ms()
    lists = [keys.runs(p, world.caller.tenant_id), keys.opened_runs(p, world.caller.key_id)]
    scores = [cast("float", world.client.zscore(one, member)) for one in lists]
    return [cast("int", world.client.pttl(keys.run(p, name))), *(int(one) - now_ms for one in scores)]


def test_one_is_forgotten_in_a_minute_unless_a_call_of_it_was_admitted(world: World) -> None:
    run = found(world, opened(world, "job")[1])
    assert max(lives_ms(world, run)) <= packing.RUN_WAITS_MS
    kept(world, run)
    assert min(lives_ms(world, run)) > packing.RUN_KEPT_MS
    child = found(world, opened(world, "child; parent=job")[1])
    asked(world, packing.RUN_END, "child", parent_id="job", packed=child.defined, entry=end_of(child))
    assert lives_ms(world, child)[0] > packing.RUN_KEPT_MS  # one that was ended stays so
    assert kept(world, child)[0] == 1
    world.client.delete(keys.run(world.p, run.account.name))
    assert kept(world, run) == (2, packed_run(run))


def test_a_clock_that_is_an_hour_ahead_begins_no_run_again(world: World) -> None:
    """Gateways that know that it has not expired would have its whole amount a second time."""
    world.plan(100)
    run = found(world, opened(world, "job; max=2.00")[1])
    world.reserve(budgets=(run.account,), money=run.amount).settle(money=run.amount)
    expired = replace(run, expires_ms=world.now_ms() - 3_600_000)
    assert world.reserve(budgets=(expired.account,), money=1).verdict is Verdict.BUDGET_EXCEEDED


@pytest.mark.parametrize("parent", ["nobody", "over"])
def test_a_child_of_what_is_not_open_changes_nothing(world: World, parent: str) -> None:
    over = found(world, opened(world, "over")[1])
    asked(world, packing.RUN_END, "over", packed=over.defined, entry=end_of(over))
    before = world.everything()
    assert opened(world, f"child; parent={parent}")[0] == packing.RUN_PARENT_OVER
    assert world.everything() == before


def test_an_unverified_partition_serves_none(world: World) -> None:
    world.client.delete(keys.marker(world.p))
    assert opened(world, "job")[0] == 0


def test_it_takes_nine_keys_and_four_arguments(world: World) -> None:
    with pytest.raises(redis.ResponseError, match="run takes 9 keys"):
        world.run("run", ((keys.marker(world.p),), (b"",)))
