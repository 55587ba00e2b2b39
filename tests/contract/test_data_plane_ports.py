"""What the data plane relies on, promised alike by the fakes of its tests and by Redis."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gateway.calls import ports
from gateway.core.model import (
    Admitted,
    Caller,
    HoldExtension,
    HoldRequest,
    Limits,
    Refused,
    Scope,
    Service,
    Settlement,
    SettleResult,
    Verdict,
)
from gateway.counters.admission.callers import Directory
from gateway.counters.admission.counters import Counters
from gateway.counters.admission.stored import encode_catalogue, encode_identity
from gateway.counters.redis import keys
from gateway.counters.redis.address import parse_url
from gateway.counters.redis.connection import RedisConnection
from gateway.errors import CountersUnavailable, InvalidApiKey
from tests.builders import World, driven, new_id, settlement_log
from tests.http.fakes import CALLER, SERVICES, FakeCounters, FakeDirectory

DIGEST = "d" * 64
CHAT = SERVICES["chat"]


@dataclass
class Stand:
    """One implementation of both ports, and how to take it away."""

    directory: ports.DirectoryPort
    counters: ports.CountersPort
    caller: Caller
    chat: Service
    forget: Callable[[], Any]
    take_away: Callable[[], Any]
    in_use: Callable[[], int]


def fake() -> Stand:
    directory, counters = FakeDirectory(), FakeCounters()

    def forget() -> None:
        directory.known = False

    def take_away() -> None:
        directory.down, counters.decision, counters.settled = True, None, SettleResult.SPOOLED

    return Stand(
        directory, counters, CALLER, CHAT, forget, take_away,
        lambda: len(counters.holds) - len(counters.settlements),
    )  # fmt: skip


async def real(url: str, folder: Path) -> Stand:
    world = World(url)
    world.plan(90)
    world.define_key(Limits(requests_per_minute=60))
    world.define_tenant(Limits(tokens_per_minute=1000))
    wire = RedisConnection(parse_url(url), time.monotonic)
    await wire.open()
    world.client.set(keys.CATALOGUE, encode_catalogue(1, list(SERVICES.values())))
    world.client.set(keys.verified(0), wire.run_id)
    world.client.set(keys.identity(DIGEST), encode_identity(world.caller))
    directory = Directory(wire, time.monotonic)
    await driven(directory.refresh())
    counters = Counters(
        wire, directory, 30_000, time.monotonic,
        {verb: lambda _: None for verb in ("reserve", "settle", "extend")},
        log=settlement_log(folder),
    )  # fmt: skip

    async def take_away() -> None:
        await wire.close()

    return Stand(
        directory, counters, world.caller, CHAT,
        lambda: world.client.delete(keys.identity(DIGEST)), take_away, lambda: world.tenant.inflight,
    )  # fmt: skip


@pytest.fixture(params=["fake", "real"])
async def stand(request: pytest.FixtureRequest, valkey: str, tmp_path: Path) -> AsyncIterator[Stand]:
    made = fake() if request.param == "fake" else await real(valkey, tmp_path)
    yield made
    gone = made.take_away()
    if asyncio.iscoroutine(gone):
        await gone


async def away(stand: Stand) -> None:
    gone = stand.take_away()
    if asyncio.iscoroutine(gone):
        await gone


def hold(stand: Stand, need: int = 20) -> HoldRequest:
    return HoldRequest(stand.caller, new_id(), "", stand.chat, need, need)


def used(request: HoldRequest, tokens: int, *, charge: bool = True) -> Settlement:
    return Settlement(request.caller, request.request_id, "", request.service, charge=charge, tokens=tokens)


# --- directory --------------------------------------------------------------------------


async def test_nobody_is_cached_before_a_look(stand: Stand) -> None:
    assert stand.directory.cached("0" * 64) is None


async def test_a_known_digest_is_a_caller(stand: Stand) -> None:
    assert await driven(stand.directory.identify(DIGEST)) == stand.caller


async def test_an_unknown_digest_is_an_invalid_key(stand: Stand) -> None:
    stand.forget()
    with pytest.raises(InvalidApiKey):
        await driven(stand.directory.identify(DIGEST))


async def test_without_counters_nobody_is_invalid(stand: Stand) -> None:
    await away(stand)
    with pytest.raises(CountersUnavailable):
        await driven(stand.directory.identify(DIGEST))


async def test_services_are_found_by_key_or_not_at_all(stand: Stand) -> None:
    assert (stand.directory.service("chat"), stand.directory.service("nothing")) == (stand.chat, None)


# --- counters ---------------------------------------------------------------------------


async def test_an_admission_says_what_is_held_and_the_windows(stand: Stand) -> None:
    decision: Admitted | Refused = await driven(stand.counters.reserve(hold(stand)))
    assert (decision.verdict, decision.held_tokens) == (Verdict.ADMITTED, 20)
    assert decision.requests is not None
    assert decision.tokens is not None
    assert (decision.requests.scope, decision.requests.limit, decision.requests.used) == (Scope.KEY, 60, 1)
    assert (decision.tokens.scope, decision.tokens.limit, decision.tokens.used) == (Scope.TENANT, 1000, 20)
    assert decision.requests.reset_ms > 0
    assert decision.tokens.reset_ms > 0
    assert decision.now_ms > 0


@pytest.mark.parametrize("charge", [True, False])
async def test_a_hold_is_settled_and_nothing_stays_in_use(stand: Stand, charge: bool) -> None:
    request = hold(stand)
    await driven(stand.counters.reserve(request))
    assert stand.in_use() == 1
    assert await driven(stand.counters.settle(used(request, 5, charge=charge))) is SettleResult.DONE
    assert stand.in_use() == 0


async def test_away_is_said_and_never_guessed(stand: Stand) -> None:
    request = hold(stand)
    await driven(stand.counters.reserve(request))
    await away(stand)
    with pytest.raises(CountersUnavailable):
        await driven(stand.counters.reserve(hold(stand)))
    assert await driven(stand.counters.settle(used(request, 5))) is SettleResult.SPOOLED
    with pytest.raises(CountersUnavailable):
        await driven(stand.counters.settle(used(request, 5, charge=False)))


async def test_watching_asks_nothing_of_the_call(stand: Stand) -> None:
    request = hold(stand)
    await driven(stand.counters.reserve(request))
    observed = HoldExtension(request.caller, request.request_id, held=20, tokens=7)
    stand.counters.watch(observed)
    stand.counters.unwatch(observed)
    stand.counters.unwatch(observed)
    assert (observed.held, observed.tokens, observed.exhausted) == (20, 7, False)
