"""What is kept of callers: how much, how long, and that nobody is served by what changed a second ago."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field, replace

import pytest
import redis
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.core.accounts.definitions import NegotiatedTerms, OrganizationTerms
from gateway.core.model import Caller
from gateway.core.wait import in_task
from gateway.counters.admission.cache import CacheLimits
from gateway.counters.admission.callers import AGAIN_S, IDENTITY_S, KNOWN_S_MAX, Directory
from gateway.counters.admission.key_changes import HEARD
from gateway.counters.admission.lookup_queue import LookupQueue
from gateway.counters.admission.stored import encode_catalogue, encode_identity, encode_terms
from gateway.counters.redis import keys
from gateway.counters.redis.address import parse_url
from gateway.counters.redis.connection import RedisConnection, encode
from gateway.errors import CountersUnavailable, InvalidApiKey, Overloaded
from tests.builders import CREDITS, driven
from tests.counters.admission.held_relay import HeldRelay
from tests.counters.admission.test_callers_cached import CALLER, DIGEST, Clock, Desk
from tests.counters.admission.test_callers_invalidated import later, reads
from tests.search import examples
from tests.waiting import eventually

COUNTS_WITHIN_S = 1.0


@pytest.fixture
async def told(valkey: str) -> AsyncIterator[Desk]:
    """A desk that is told what changes, and may look up two at once, while three wait."""
    clock = Clock()
    wire = RedisConnection(parse_url(valkey), clock, hears=HEARD)
    bounds = CacheLimits(look_ups_max=2, look_ups_waiting_max=3, unknown_max=50)
    desk = Desk(Directory(wire, clock, bounds=bounds), wire, clock, redis.Redis.from_url(valkey))
    await wire.open()
    desk.know()
    desk.verify()
    await later(desk, 0.0)
    yield desk
    await wire.close()


async def read_again(desk: Desk) -> None:
    """Wait until those who are due were read once more."""
    task = desk.directory._rereading.task
    assert task is not None
    await asyncio.wait_for(task, 30)


# --- how long ---------------------------------------------------------------------------


async def test_who_calls_all_the_time_is_read_again_in_the_background(told: Desk) -> None:
    known = await told.identify()
    before, again = reads(told), reads(told, "mget")
    for _ in range(int(AGAIN_S / IDENTITY_S) + 2):
        await later(told)
        assert told.directory.cached(DIGEST) is known
    await read_again(told)
    assert (reads(told), reads(told, "mget")) == (before, again + 1)  # its terms as well
    for _ in range(int(AGAIN_S / IDENTITY_S) - 2):
        await later(told)
        assert told.directory.cached(DIGEST) is known
    assert (reads(told), reads(told, "mget")) == (before, again + 1)


async def test_nobody_holds_for_longer_than_a_minute_whatever_is_told(told: Desk) -> None:
    await told.identify()
    await later(told, KNOWN_S_MAX - 0.1)
    told.directory._rereading.due[DIGEST] = None  # it waits for its turn for ever
    assert told.directory.cached(DIGEST) == CALLER
    await later(told, IDENTITY_S)
    assert told.directory.cached(DIGEST) is None
    before = reads(told)
    assert await told.identify() == CALLER
    assert reads(told) == before + 2


async def test_who_is_read_again_and_is_gone_is_nobody(told: Desk) -> None:
    await told.identify()
    told.wire.hearing.listeners = []  # a server that forgets to tell
    told.client.delete(keys.identity(DIGEST))
    await later(told, AGAIN_S + 1)
    assert told.directory.cached(DIGEST) == CALLER
    await read_again(told)
    with pytest.raises(InvalidApiKey):
        await told.identify()


async def test_those_who_are_read_again_together_are_each_found_as_they_are_now(told: Desk) -> None:
    """Some are as they were, one is another, one is gone; one's terms are others. None of it was told."""
    callers = [replace(CALLER, key_id=100 + n, organization_id=20 + n % 3) for n in range(9)]
    digests = [f"{n:064x}" for n in range(9)]
    for digest, caller in zip(digests, callers, strict=True):
        told.client.set(keys.identity(digest), encode_identity(caller))
    await later(told)
    for digest, caller in zip(digests, callers, strict=True):
        assert await told.identify(digest) == caller
    told.wire.hearing.listeners = []  # a server that forgets to tell
    told.client.set(keys.identity(digests[1]), encode_identity(replace(callers[1], key_id=77)))
    told.client.delete(keys.identity(digests[2]))
    terms = OrganizationTerms(negotiated=(NegotiatedTerms(CREDITS.id, credits=9),))
    told.client.set(keys.organization_terms(20), encode_terms(20, terms))
    await later(told, AGAIN_S + 1)
    before, again = reads(told), reads(told, "mget")
    assert [told.directory.cached(digest) for digest in digests] == callers
    await read_again(told)
    assert (reads(told), reads(told, "mget")) == (before, again + 1)
    await later(told)
    assert [told.directory.cached(digest) is not None for digest in digests] == [
        False, False, False, False, True, True, False, True, True,
    ]  # fmt: skip
    assert reads(told) == before
    assert (await told.identify(digests[1])).key_id == 77
    with pytest.raises(InvalidApiKey):
        await told.identify(digests[2])
    assert await told.identify(digests[0]) == callers[0]
    assert told.directory.cached(digests[3]) == callers[3]


async def test_who_is_read_again_while_redis_is_away_holds_no_longer_than_before(told: Desk) -> None:
    await told.identify()
    await later(told, AGAIN_S + 1)
    assert told.directory.cached(DIGEST) == CALLER
    await told.wire.close()
    await read_again(told)
    assert not told.directory._changes._reading
    told.clock.now += IDENTITY_S + 0.1
    assert told.directory.cached(DIGEST) is None


async def test_what_is_told_to_change_while_it_is_read_is_not_kept(valkey: str) -> None:
    """The answer was on its way when the key changed: who asked before that is served, and nobody else."""
    stage = Stage(valkey)
    await stage.begin()
    try:
        stage.relay.hold()
        asking = asyncio.create_task(driven_identify(stage))
        await eventually(lambda: stage.gets() > stage.gets_before)
        stage.write(stage.number + 1)
        stage.relay.let_through()
        assert (await asking).key_id == stage.number - 1
        assert stage.directory.cached(DIGEST) is None
        assert (await driven_identify(stage)).key_id == stage.number
    finally:
        await stage.end()


# --- how much ---------------------------------------------------------------------------


async def test_guesses_without_end_take_bounded_room_and_time(told: Desk) -> None:
    await told.identify()
    for number in range(400):
        with pytest.raises(InvalidApiKey):
            await told.identify(f"{number:064x}")
    assert len(told.directory._unknown) == 50
    assert len(told.directory._known) == 1
    assert not told.directory._changes._reading
    assert told.directory._turns.under_way == 0


async def test_guesses_wait_for_each_other_and_no_caller_waits_for_them(told: Desk) -> None:
    await told.identify()
    guesses = [asyncio.create_task(told.identify(f"{number:064x}")) for number in range(9)]
    await asyncio.sleep(0)
    assert told.directory._turns.under_way == 2
    assert told.directory.cached(DIGEST) == CALLER
    told.client.delete(keys.identity(DIGEST))  # who is known is looked up again beside them
    told.know(replace(CALLER, key_id=77))
    found = await asyncio.gather(*guesses, return_exceptions=True)
    assert [type(one) for one in found] == [InvalidApiKey] * 5 + [Overloaded] * 4
    await later(told)
    assert (await told.identify()).key_id == 77
    assert told.directory._turns.under_way == 0


async def test_who_does_not_want_to_wait_any_more_takes_nobodys_turn() -> None:
    turns = LookupQueue(1, 3)
    first, second, third, fourth = (turns.take() for _ in range(4))
    assert [one.granted for one in (first, second, third, fourth)] == [True, False, False, False]
    with pytest.raises(Overloaded):
        turns.take()
    turns.give_back(second)  # while it waits
    turns.give_back(first)
    assert third.granted
    turns.give_back(third)  # before it has gone on
    assert fourth.granted
    await in_task(fourth.wait)
    turns.give_back(fourth)
    assert turns.under_way == 0
    assert turns.take().granted


async def test_without_redis_all_who_wait_are_told_so(told: Desk) -> None:
    told.directory._turns = LookupQueue(1, 5000)
    guesses = [asyncio.create_task(told.identify(f"{number:064x}")) for number in range(3000)]
    await asyncio.sleep(0)
    await told.wire.close()
    found = await asyncio.gather(*guesses, return_exceptions=True)
    assert {type(one) for one in found} == {CountersUnavailable}
    assert told.directory._turns.under_way == 0


# --- a model: cache × Redis × what is told × lost connections -----------------------------


@dataclass
class Stage:
    """A worker behind a relay, a clock that is told, and what was true from when on."""

    valkey: str
    clock: Clock = field(default_factory=Clock)
    number: int = 0
    history: list[tuple[float, int]] = field(default_factory=list)
    gets_before: int = 0

    async def begin(self) -> None:
        self.client = redis.Redis.from_url(self.valkey)
        self.client.flushall()
        self.client.config_resetstat()
        self.relay = HeldRelay(self.valkey)
        await self.relay.begin()
        self.wire = RedisConnection(parse_url(self.relay.url), self.clock, hears=HEARD)
        self.directory = Directory(self.wire, self.clock, lambda: self.clock.now)
        await self.wire.open()
        self.client.set(keys.verified(0), self.wire.run_id)
        self.client.set(keys.CATALOGUE, encode_catalogue(1, [CREDITS]))
        await driven(self.directory.refresh())
        self.write(1)
        self.gets_before = self.gets()

    async def end(self) -> None:
        self.relay.let_through()
        await self.wire.close()
        await self.relay.end()
        self.client.close()

    def gets(self) -> int:
        found: int = self.client.info("commandstats").get("cmdstat_get", {"calls": 0})["calls"]
        return found

    def write(self, number: int) -> None:
        """From now on it is this key, at terms that say the same; 0: none."""
        self.number = number
        self.history.append((self.clock.now, number))
        if number:
            terms = OrganizationTerms((NegotiatedTerms(CREDITS.id, number),))
            both = {
                keys.identity(DIGEST): encode_identity(Caller(1, 7, number, keys.partition_of(1))),
                keys.organization_terms(1): encode_terms(number, terms),
            }
            self.client.mset(both)
        else:
            self.client.delete(keys.identity(DIGEST))

    def true_since(self, moment: float) -> set[int]:
        """What was true at that moment or later."""
        before = [number for at, number in self.history if at <= moment]
        return {*before[-1:], *(number for at, number in self.history if at > moment)}

    async def call(self) -> None:
        """Somebody calls: whoever he is, and whatever he pays, that was so a second before, or later."""
        began = self.clock.now
        try:
            caller = self.directory.cached(DIGEST) or await driven_identify(self)
        except InvalidApiKey:
            assert 0 in self.true_since(began - COUNTS_WITHIN_S), (began, self.history)
            return
        except CountersUnavailable:
            return
        allowed = self.true_since(began - COUNTS_WITHIN_S)
        assert caller.key_id in allowed, (began, self.history)
        service = self.directory.resolve(caller, CREDITS.key)
        assert service is not None
        assert service.credits in allowed, (began, self.history)

    def does(self, step: str, much: int) -> None:
        """One thing that happens."""
        if step == "change":
            self.write(max(number for _, number in self.history) + 1)
        elif step == "revoke":
            self.write(0)
        elif step == "flush":
            self.history.append((self.clock.now, 0))
            self.client.flushall()
            self.client.set(keys.verified(0), self.wire.run_id)
        elif step == "let_through":
            self.relay.let_through(much or None)
        elif step == "cut":
            self.relay.cut()
            if much:  # while nobody hears of it
                self.write(0)
        elif step in {"hold", "answers"}:
            getattr(self.relay, step)()

    async def go_on(self) -> None:
        """Whatever can go on does, as far as it can without what is held."""
        for _ in range(3):
            for _ in range(5):
                await asyncio.sleep(0)
            self.client.ping()
            if not self.relay.held:
                await eventually(lambda: self.wire.available)
                with suppress(CountersUnavailable):
                    await in_task(self.wire.send(encode(b"ECHO", b"here")))


async def driven_identify(stage: Stage) -> Caller:
    return await driven(stage.directory.identify(DIGEST))


# What happens, how much of it, and how long after what was before; then somebody calls.
STEPS = st.tuples(
    st.sampled_from(["nothing", "change", "revoke", "hold", "let_through", "answers", "cut", "flush"]),
    st.sampled_from([0, 0, 1, 9, 40, 160]),
    st.sampled_from([0.0, 0.05, 0.3, 0.75, 0.9, 1.1, 29.0, 40.0]),
)


@settings(max_examples=examples(60))
@given(st.lists(STEPS, min_size=4, max_size=30))
@example([("nothing", 0, 0.0), ("nothing", 0, 0.3), ("revoke", 0, 0.3), ("nothing", 0, 1.1)])
@example([("hold", 0, 0.0), ("change", 0, 0.3), ("let_through", 0, 0.0), ("nothing", 0, 1.1)])
@example(
    [
        ("nothing", 0, 0.0), ("hold", 0, 0.3), ("nothing", 0, 0.9), ("revoke", 0, 0.0), ("answers", 0, 0.9),
        ("nothing", 0, 0.3),
    ]
)  # fmt: skip
@example([("nothing", 0, 0.0), ("cut", 1, 0.0), ("nothing", 0, 0.9), ("nothing", 0, 0.3)])
def test_nobody_is_served_by_what_changed_more_than_a_second_ago(
    valkey: str, steps: list[tuple[str, int, float]]
) -> None:
    asyncio.run(_played(valkey, steps))


async def _played(valkey: str, steps: list[tuple[str, int, float]]) -> None:
    stage, calls = Stage(valkey), list[asyncio.Task[None]]()
    await stage.begin()
    try:
        for step, much, after_s in steps:
            stage.clock.now += after_s
            await stage.go_on()
            stage.does(step, much)
            calls.append(asyncio.create_task(stage.call()))
            await stage.go_on()
        stage.relay.let_through()
        await asyncio.gather(*calls)
    finally:
        await stage.end()
