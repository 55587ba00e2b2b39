"""Calls that moved no account have their row as well, once, and what was learned later reaches it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from gateway.core.accounts.call_facts import CallFacts, write_facts
from gateway.core.accounts.flush_batch import fan_out
from gateway.core.accounts.holds import ReclaimPolicy
from gateway.core.model import Service
from gateway.counters.keeper.outbox import Outbox
from gateway.counters.layouts import packing
from gateway.counters.redis import keys
from tests.background.backend import Backend
from tests.background.flushing.test_late import drained, paid
from tests.builders import CHAT, CREDITS, ONE_TIME, UNITS, Call
from tests.persistence.scenario import broken

FAILED = CallFacts(
    model="m", status=504, duration_ms=7, route="/v1/chat/completions", session="s", reason="upstream_timeout"
)
USED = CallFacts(model="m", status=200, counts=(5, 0, 0, 0, 2, 0, 0, 0, 0, 0), total=7, units=1, cost=9,
                 currency="USD", price_id=3, session="s")  # fmt: skip
SAID: dict[str, Any] = {"attribution": "7\t8\tv3", "metadata": write_facts(USED)}


def calls(backend: Backend) -> list[dict[str, Any]]:
    return backend.rows("SELECT *, request_id::text AS request FROM call ORDER BY id")


def rolled_up(backend: Backend) -> list[tuple[Any, ...]]:
    found = backend.rows(
        "SELECT sum(requests) AS r, sum(refused) AS f, sum(tokens) AS t, sum(credits) AS c, sum(cost) AS m"
        " FROM usage_rollup WHERE span = 'hour' AND requests <> 0"
    )
    return [tuple(map(int, row.values())) for row in found]


def failed(call: Call) -> None:
    call.settle(mode=packing.MODE_RELEASE, attribution="7\t8\tv3", metadata=write_facts(FAILED))


async def test_a_failed_call_has_a_row_that_says_why_and_costs_nothing(backend: Backend) -> None:
    world = await backend.settle_in(100)
    call = world.reserve(need=50, user="ann")
    failed(call)
    failed(call)  # sent again, it finds no hold
    await backend.flush()
    [row] = calls(backend)
    told = ("request", "status", "reason", "duration_ms", "model", "route", "session", "tokens",
            "credits", "units", "cost", "project_id", "content_id", "feature_version",
            "service_id")  # fmt: skip
    assert [row[name] for name in told] == [
        call.id, 504, "upstream_timeout", 7, "m", "/v1/chat/completions", "s", 0, 0,
        0, None, 8, 7, "v3", CHAT.id,
    ]  # fmt: skip
    assert row["user_id"] is not None
    assert rolled_up(backend) == [(1, 0, 0, 0, 0)]
    assert (world.tenant.used, world.tenant.held, world.tenant.inflight) == (0, 0, 0)
    assert len(backend.ledger(world.caller.tenant_id)) == 1
    assert await broken(backend.database) == []


async def test_a_row_is_written_once_however_often_its_entry_comes(backend: Backend) -> None:
    world = await backend.settle_in(100)
    await backend.flush()
    for _ in range(3):
        failed(world.reserve(need=1))
        world.reserve(need=1).settle(tokens=7, **SAID)
    there = await Outbox(backend.counters).read({world.p: b""}, 100)
    await backend.writer.write(fan_out(there))  # and dies before it deletes what is stored
    assert len(calls(backend)) == 6
    await backend.flush()
    assert len(calls(backend)) == 6
    assert rolled_up(backend) == [(6, 0, 21, 0, 27)]
    assert world.events() == []


async def test_a_call_that_rides_free_has_a_row(backend: Backend) -> None:
    world = await backend.settle_in(100)
    await paid(backend, world)
    payer, rider = (world.reserve(service=ONE_TIME, credits_=50) for _ in range(2))
    for call in (payer, rider):
        call.settle(credits=50, **SAID)
    await backend.flush()
    assert [(row["request"], row["credits"], row["tokens"]) for row in calls(backend)] == [
        (payer.id, 50, 7), (rider.id, 0, 7),
    ]  # fmt: skip
    assert {row["project_id"] for row in calls(backend)} == {8}
    assert rolled_up(backend) == [(2, 0, 14, 50, 18)]
    assert await broken(backend.database) == []


async def test_a_call_nobody_settled_has_a_row_that_says_so_and_its_settlement_fills_it(
    backend: Backend,
) -> None:
    world = await backend.settle_in(100)
    call = world.reserve(need=50)
    call.reclaim(metadata=b'{"estimated":true,"reclaimed":true}')
    await backend.flush()
    [row] = calls(backend)
    assert (row["reason"], row["tokens"], row["model"], row["status"]) == ("reclaimed", 0, None, 0)
    call.settle(tokens=7, **SAID)
    await drained(backend)
    [row] = calls(backend)
    told = ("reason", "tokens", "model", "status", "session", "project_id", "cost")
    assert [row[name] for name in told] == [None, 7, "m", 200, "s", 8, 9]
    assert rolled_up(backend) == [(1, 0, 7, 0, 9)]
    assert backend.ledger(world.caller.tenant_id)[-1] == (2, "consume", -7, 93)
    assert await broken(backend.database) == []


async def test_a_reclaimed_call_that_used_what_was_charged_keeps_no_empty_row(backend: Backend) -> None:
    world = await backend.settle_in(100)
    call = world.reserve(need=50)
    call.reclaim(tokens=7, metadata=b'{"estimated":true,"reclaimed":true}')
    call.settle(tokens=7, **SAID)
    await drained(backend)
    [row] = calls(backend)
    told = ("tokens", "model", "status", "estimated", "session", "project_id", "feature_version", "cost")
    assert [row[name] for name in told] == [7, "m", 200, False, "s", 8, "v3", 9]
    assert backend.ledger(world.caller.tenant_id)[1:] == [(2, "consume", -7, 93)]
    assert (world.tenant.remaining, world.late()) == (93, [])
    assert await broken(backend.database) == []


@pytest.mark.parametrize("used", [12, 40])
async def test_credits_given_back_reach_the_row_of_their_call(backend: Backend, used: int) -> None:
    world = await backend.settle_in(100)
    await paid(backend, world)
    call = world.reserve(service=CREDITS, credits_=30)
    call.reclaim(tokens=7, credits=30, metadata=b'{"estimated":true,"reclaimed":true}')
    for _ in range(2):
        call.settle(credits=used, metadata=write_facts(msgspec.structs.replace(USED, total=7)))
    await drained(backend)
    await backend.push()
    await backend.flush()
    assert [(row["credits"], row["model"]) for row in calls(backend)] == [(used, "m")]
    assert rolled_up(backend) == [(1, 0, 7, used, 9)]
    assert world.organization.balance == 100 - used
    assert await broken(backend.database) == []


@pytest.mark.parametrize(
    ("service", "policy", "seen", "units"),
    [
        (CHAT, ReclaimPolicy.CHARGE_OBSERVED, 0, 0),
        (CREDITS, ReclaimPolicy.CHARGE_OBSERVED, 4, 3),
        (UNITS, ReclaimPolicy.RELEASE, 4, 0),
        (UNITS, ReclaimPolicy.CHARGE_HOLD, 0, 3),
    ],
)
async def test_a_call_nobody_settled_is_of_the_units_its_hold_has(
    backend: Backend, service: Service, policy: ReclaimPolicy, seen: int, units: int
) -> None:
    world = await backend.settle_in(100)
    await paid(backend, world)
    call = world.reserve(need=5, service=replace(service, counts_tokens=True), units=3, ttl_ms=1)
    call.extend(observed=seen)
    world.client.zadd(keys.deadlines(world.p), {call.id: 1})
    [hold] = await backend.keeping.expired(10)
    assert await backend.keeping.reclaim(hold, hold.charge(policy))
    await backend.flush()
    assert [(row["reason"], row["units"]) for row in calls(backend)] == [("reclaimed", units)]
    call.settle(tokens=7, units=5, metadata=write_facts(msgspec.structs.replace(USED, units=5)))
    await drained(backend)
    assert [(row["reason"], row["units"]) for row in calls(backend)] == [(None, 5)]
    assert await broken(backend.database) == []
