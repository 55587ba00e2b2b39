"""Calls of a function that leave in one write: one command a group, each answered for itself."""

from __future__ import annotations

import asyncio

import hiredis
import pytest
import redis

from gateway.core.model import HoldRequest, Settlement, SettleResult, Verdict
from gateway.core.wait import Wait, in_task
from gateway.counters.admission.counters import Counters
from gateway.counters.layouts import packing
from gateway.counters.redis import keys
from gateway.counters.redis.calls import (
    ACCOUNTS_MAX,
    CALLS_MAX,
    NEWER_CODE,
    AnotherType,
    BatchWaiters,
    Call,
    CallTemplate,
    Reply,
    VerbEncoding,
    bulks,
    commands,
    key_in,
    refused,
)
from gateway.counters.redis.connection import RedisConnection, encode
from gateway.errors import CountersRefused, CountersUnavailable, NewerLayout, ScriptFailed
from tests.builders import CHAT, World, driven, new_id, together
from tests.conftest import ValkeyServer
from tests.counters.conftest import Connect
from tests.counters.fake_redis import bulk, fake_redis
from tests.counters.lease_stage import Employ
from tests.waiting import eventually

IDS = [f"{number:036d}" for number in range(200)]


def group(verb: str = "reserve", rank: int = 1, partition: int = 7) -> VerbEncoding:
    shared = (keys.deadlines(partition), keys.outbox(partition), keys.marker(partition))
    return VerbEncoding(verb, rank, shared, "h:", packing.ALONE[verb])


def call(of: VerbEncoding, accounts: tuple[str, ...], number: int, *arguments: bytes) -> Call:
    form = CallTemplate(of, accounts, len(arguments))
    return Wait(), form, IDS[number].encode(), bulks(*arguments)


def sent(calls: list[Call], *, spread: bool = False) -> list[tuple[list[bytes], int]]:
    """Each command by its parts, and how many calls it is."""
    found = []
    for _, command, count in commands(calls, spread=spread):
        reader = hiredis.Reader()
        reader.feed(command)
        found.append((reader.gets(), count))
        assert reader.gets() is False
    return found


def test_one_call_is_a_call_of_its_own() -> None:
    [(parts, count)] = sent([call(group(), ("a", "b"), 3, b"first", b"second")])
    assert (parts[0], parts[2], count) == (b"FCALL", b"6", 1)
    assert parts[3:] == [
        b"tk:{p07}:d", b"tk:{p07}:x", b"tk:{p07}:m", b"a", b"b", b"h:" + IDS[3].encode(), b"first", b"second",
    ]  # fmt: skip


def test_key_of_a_command_is_its_first_key() -> None:
    [(_, command, _)] = commands([call(group(), ("a", "b"), 3, b"first", b"second")], spread=False)
    assert key_in(command) == b"tk:{p07}:d"
    assert key_in(encode(b"MSET", b"x", b"\r\n", b"y", b"")) == b"x"
    assert key_in(encode(b"PING")) == b""


def test_calls_of_a_group_are_one_that_names_each_account_once() -> None:
    of = group()
    calls = [call(of, ("a", "b"), 0, b"1"), call(of, ("a", "c", "b"), 1, b"2", b"3")]
    [(parts, count)] = sent(calls)
    assert (parts[2], count) == (b"8", 2)
    assert parts[6:11] == [b"a", b"b", b"c", *(b"h:" + one.encode() for one in IDS[:2])]
    assert parts[11:] == [b"\1\2\3\1\2\2\3\2\3\2\4\3", b"1", b"2", b"3"]


def test_calls_of_many_groups_are_one_where_the_server_takes_them_so() -> None:
    """What each group has for itself comes first, then the markers and accounts of each, then the holds."""
    here, there = group(), group(partition=8)
    calls = [
        call(here, ("a", "b"), 0, b"1"),
        call(there, ("c", "b"), 1, b"2", b"3"),
        call(here, ("a",), 2, b"4"),
    ]
    [(parts, count)] = sent(calls, spread=True)
    assert (parts[2], count) == (b"13", 3)
    assert parts[3:7] == [b"tk:{p07}:d", b"tk:{p07}:x", b"tk:{p08}:d", b"tk:{p08}:x"]
    assert parts[7:13] == [b"tk:{p07}:m", b"a", b"b", b"tk:{p08}:m", b"c", b"b"]
    assert parts[13:16] == [b"h:" + IDS[at].encode() for at in (0, 2, 1)]
    assert parts[16:] == [b"\2\2\2\1\2\2\3\1\1\2\1\2\2", b"1", b"4", b"2", b"3"]
    assert [count for _, count in sent(calls)] == [2, 1]


def test_it_is_what_the_scripts_are_told(world: World) -> None:
    """As the packing has it, which the tests of the scripts go by."""
    requests = [
        HoldRequest(world.caller, one, user, CHAT, 1, 1)
        for one, user in zip(IDS, ("", "ann", "bob"), strict=False)
    ]
    alone = [packing.reserve(world.run_id, 1, 1000, one, 5) for one in requests]
    names, arguments = together("reserve", alone)
    hold = alone[0][0][-1].removesuffix(IDS[0])
    of = VerbEncoding("reserve", 1, alone[0][0][:3], hold, packing.ALONE["reserve"])
    calls: list[Call] = [
        (Wait(), CallTemplate(of, own[3:-1], len(said)), one.encode(), bulks(*said))
        for one, (own, said) in zip(IDS, alone, strict=False)
    ]
    [(parts, _)] = sent(calls, spread=True)
    assert parts[3:] == [*(name.encode() for name in names), *arguments]


@pytest.mark.parametrize("accounts", [(), ("a",), ("a", "b", "a"), tuple("abcdefghi")])
def test_calls_of_one_form_are_told_as_any_others(accounts: tuple[str, ...]) -> None:
    of, there = group(), group(partition=8)
    one, other = (CallTemplate(of, accounts, 2), CallTemplate(of, accounts, 2))
    elsewhere = call(there, ("x",), 9, b"x")

    def calls(*forms: CallTemplate) -> list[Call]:
        each: list[Call] = [
            (Wait(), form, IDS[at].encode(), bulks(b"%d" % at, b"second")) for at, form in enumerate(forms)
        ]
        return [*each, elsewhere]

    for many in (2, 3, CALLS_MAX - 1, CALLS_MAX, CALLS_MAX + 1):
        alike, mixed = calls(*[one] * many), calls(*[one] * (many - 1), other)
        assert sent(alike, spread=True) == sent(mixed, spread=True)


def test_groups_leave_by_their_rank_and_calls_in_their_order() -> None:
    takes, gives, elsewhere = group(), group("settle", 0), group("settle", 0, partition=8)
    calls = [
        call(of, ("a",), at, b"%d" % at) for at, of in enumerate([takes, gives, elsewhere, takes, gives])
    ]
    assert [(parts[-count:], count) for parts, count in sent(calls)] == [
        ([b"1", b"4"], 2),
        ([b"2"], 1),
        ([b"0", b"3"], 2),
    ]


@pytest.mark.parametrize("partitions", [1, 2, CALLS_MAX, CALLS_MAX + 1])
def test_as_many_are_together_as_may_be(partitions: int) -> None:
    of = [group(partition=at) for at in range(partitions)]
    calls = [call(of[at % partitions], ("a",), at, b"") for at in range(CALLS_MAX + 1)]
    assert [count for _, count in sent(calls, spread=True)] == [CALLS_MAX, 1]
    assert all(sent([*calls, *calls], spread=True)[at][1] <= CALLS_MAX for at in range(3))


def test_bytes_and_accounts_have_a_most() -> None:
    of = group()
    many = tuple(str(at) for at in range(ACCOUNTS_MAX - 1))
    assert [count for _, count in sent([call(of, ("x", *many), 0, b""), call(of, ("y",), 1, b"")])] == [1, 1]
    big = b"x" * 200_000
    assert [count for _, count in sent([call(of, ("a",), at, big) for at in range(3)])] == [1, 1, 1]
    apart = [call(group(partition=at), ("a",), at, big) for at in range(3)]
    assert [count for _, count in sent(apart, spread=True)] == [1, 1, 1]
    apart = [call(group(partition=at), ("x", *many), at, b"") for at in range(3)]
    assert [count for _, count in sent(apart, spread=True)] == [1, 1, 1]


def test_no_shape_is_as_long_as_the_argument_of_one() -> None:
    of = VerbEncoding("reserve", 1, ("m",), "h:", 9)
    [(parts, _)] = sent([call(of, ("a",), at, b"") for at in range(2)])
    assert parts[-3] == b"\1\2\1\1\1\2\1\1\2\0"


# --- answers ----------------------------------------------------------------------------------


async def outcome(wait: Wait[Reply]) -> Reply | type[BaseException]:
    try:
        return await in_task(wait)
    except CountersUnavailable as error:
        return type(error)


def each(waits: list[Wait[Reply]]) -> BatchWaiters:
    """Whom an answer of many is for."""
    form = CallTemplate(group(), ("a",), 1)
    return BatchWaiters([(wait, form, b"", b"") for wait in waits])


async def test_each_has_its_own_answer_or_refusal() -> None:
    waits: list[Wait[Reply]] = [Wait() for _ in range(3)]
    each(waits).set([b"one", hiredis.ReplyError("ERR no"), b"three"])  # type: ignore[list-item]  # as hiredis has it
    assert [await outcome(wait) for wait in waits] == [b"one", ScriptFailed, b"three"]


@pytest.mark.parametrize("reply", [b"one", [b"one"], [b"one", b"two", b"three"], None])
async def test_an_answer_to_others_is_nobodys(reply: Reply) -> None:
    waits: list[Wait[Reply]] = [Wait() for _ in range(2)]
    each(waits).set(reply)
    assert [await outcome(wait) for wait in waits] == [CountersRefused] * 2


async def test_who_gave_up_hears_his_own_answer() -> None:
    waits: list[Wait[Reply]] = [Wait() for _ in range(2)]
    heard: list[Reply] = []
    waits[1].give_up(heard.append)
    each(waits).set([b"one", b"two"])
    assert (await outcome(waits[0]), heard) == (b"one", [b"two"])


# --- over the wire ----------------------------------------------------------------------------


async def test_what_is_asked_for_in_between_stays_there(connect: Connect) -> None:
    async with fake_redis(
        lambda command: b"*2\r\n" + bulk(b"a") + bulk(b"b") if command[2] == b"6" else bulk(command[-1])
    ) as fake:
        wire = await connect(fake.url)
        of = group()
        form = CallTemplate(of, ("a",), 1)
        waits = [wire.send_call(form, IDS[at].encode(), bulks(b"%d" % at)) for at in range(2)]
        waits.append(wire.send(encode(b"ECHO", b"x", b"between")))
        waits.append(wire.send_call(form, IDS[3].encode(), bulks(b"last")))
        assert [await in_task(wait) for wait in waits] == [b"a", b"b", b"between", b"last"]
        assert [[command[0] for command in chunk] for chunk in fake.chunks] == [[b"FCALL", b"ECHO", b"FCALL"]]


async def test_all_of_a_lost_connection_are_told(connect: Connect) -> None:
    async with fake_redis(lambda _: None) as fake:
        wire = await connect(fake.url)
        form = CallTemplate(group(), ("a",), 1)
        waits = [wire.send_call(form, IDS[at].encode(), bulks(b"1")) for at in range(3)]
        await asyncio.sleep(0)
        late = wire.send_call(form, IDS[3].encode(), bulks(b"1"))
        wire.connection_lost(None)
        assert [await outcome(wait) for wait in (*waits, late)] == [CountersUnavailable] * 4


async def test_calls_that_come_together_are_one_call_and_each_is_answered(
    world: World, employ: Employ
) -> None:
    """With the library lost on the way, and one of them that cannot be."""
    world.plan(1000)
    world.define_user("ann", packing.Limits(concurrency=9))
    world.client.set(world.user_key("bad"), b"\xff")
    worker = await employ(world)
    counters: Counters = worker.counters
    world.client.function_flush()
    users = ["ann"] * 5 + ["bad"] + ["ann"] * 6
    requests = [HoldRequest(world.caller, new_id(), user, CHAT, 10, 10) for user in users]
    before = calls_of(world.client)
    answers = await asyncio.gather(
        *(driven(counters.reserve(one)) for one in requests), return_exceptions=True
    )
    assert calls_of(world.client) - before == 2  # the first one found no library
    assert [getattr(one, "verdict", type(one)) for one in answers] == (
        [Verdict.ADMITTED] * 5 + [ScriptFailed] + [Verdict.ADMITTED] * 4 + [Verdict.CONCURRENCY_LIMITED] * 2
    )
    assert (world.tenant.held, world.tenant.inflight) == (90, 9)
    admitted = [
        one
        for one, said in zip(requests, answers, strict=True)
        if getattr(said, "verdict", None) is Verdict.ADMITTED
    ]
    used = [Settlement(one.caller, one.request_id, one.user, CHAT, charge=True, tokens=7) for one in admitted]
    before = calls_of(world.client)
    assert set(await asyncio.gather(*(driven(counters.settle(one)) for one in used))) == {SettleResult.DONE}
    assert calls_of(world.client) - before == 1
    assert (world.tenant.used, world.tenant.held, len(world.events())) == (63, 0, 10)


# --- calls of several partitions --------------------------------------------------------------


def one_of_each(wire: RedisConnection) -> list[Wait[Reply]]:
    """Ask for three calls in two partitions; each argument says whose it is."""
    forms = [CallTemplate(group(partition=at), ("a",), 1) for at in (7, 8)]
    return [wire.send_call(forms[at % 2], IDS[at].encode(), bulks(b"%d" % at)) for at in range(3)]


def in_turn(command: list[bytes]) -> bytes:
    """As a server answers that does what it is asked: with each call's argument."""
    count = int(command[2])
    arguments = command[3 + count :]
    if len(arguments) == 1:
        return bulk(arguments[0])
    return b"*%d\r\n" % len(arguments[1:]) + b"".join([bulk(one) for one in arguments[1:]])


def of_one_slot(command: list[bytes]) -> bytes:
    """As a cluster answers, whatever it said of itself."""
    tags = {name[3:8] for name in command[3 : 3 + int(command[2])] if name.startswith(b"tk:")}
    if len(tags) > 1:
        return b"-CROSSSLOT Keys in request don't hash to the same slot\r\n"
    return in_turn(command)


async def test_one_server_has_calls_of_several_partitions_as_one(connect: Connect) -> None:
    async with fake_redis(in_turn, b"standalone") as fake:
        wire = await connect(fake.url)
        assert [await in_task(wait) for wait in one_of_each(wire)] == [b"0", b"1", b"2"]
        assert [len(chunk) for chunk in fake.chunks] == [1]


@pytest.mark.parametrize("mode", [b"", b"cluster", b"something new"])
async def test_who_says_nothing_else_never_gets_two_partitions_in_one_call(
    connect: Connect, mode: bytes
) -> None:
    async with fake_redis(of_one_slot, mode) as fake:
        wire = await connect(fake.url)
        assert [await in_task(wait) for wait in one_of_each(wire)] == [b"0", b"1", b"2"]
        assert [len(chunk) for chunk in fake.chunks] == [2]


async def test_what_was_refused_for_its_slots_is_sent_apart_and_so_is_all_that_follows(
    connect: Connect,
) -> None:
    async with fake_redis(of_one_slot, b"standalone") as fake:
        wire = await connect(fake.url)
        for _ in range(2):
            assert [await in_task(wait) for wait in one_of_each(wire)] == [b"0", b"1", b"2"]
        assert [len(chunk) for chunk in fake.chunks] == [1, 2, 2]
        assert wire.available


async def test_a_server_of_one_partition_that_refuses_for_slots_is_not_asked_again(connect: Connect) -> None:
    async with fake_redis(lambda _: b"-CROSSSLOT no\r\n", b"standalone") as fake:
        wire = await connect(fake.url)
        assert [await outcome(wait) for wait in one_of_each(wire)] == [CountersRefused] * 3
        assert [len(chunk) for chunk in fake.chunks] == [1, 2]


async def test_each_connection_asks_anew_whether_its_server_is_one(connect: Connect) -> None:
    """A cluster may come under the address of one that was none."""
    async with fake_redis(of_one_slot, b"standalone") as fake:
        wire = await connect(fake.url)
        fake.mode = b"cluster"
        wire._drop()  # as any loss does
        await eventually(lambda: fake.connections == 2 and wire.connected)
        assert [await in_task(wait) for wait in one_of_each(wire)] == [b"0", b"1", b"2"]
        assert [len(chunk) for chunk in fake.chunks] == [2]


async def test_organizations_of_several_partitions_are_one_call_of_a_real_server(
    world: World, employ: Employ
) -> None:
    worker, other = await employ(world), World(world.url, organization_id=2, tenant_id=17, key_id=13)
    assert other.p != world.p
    await _both_are_served(worker.counters, world, other, calls=1)
    other.client.close()


async def test_a_cluster_is_asked_for_each_partition_by_itself(
    valkey_cluster: ValkeyServer, employ: Employ
) -> None:
    url = valkey_cluster.url
    world, other = World(url), World(url, organization_id=2, tenant_id=17, key_id=13)
    worker = await employ(world)
    await _both_are_served(worker.counters, world, other, calls=2)
    world.client.close()
    other.client.close()


async def _both_are_served(counters: Counters, world: World, other: World, *, calls: int) -> None:
    """Two calls of the one and one of the other, reserved and settled."""
    for one in (world, other):
        one.plan(1000)
    requests = [HoldRequest(one.caller, new_id(), "", CHAT, 10, 10) for one in (world, other, world)]
    for _ in range(2):  # the first connection of a process has much to learn
        before = calls_of(world.client)
        answers = await asyncio.gather(*(driven(counters.reserve(one)) for one in requests))
        assert {one.verdict for one in answers} == {Verdict.ADMITTED}
        assert calls_of(world.client) - before == calls
        assert (world.tenant.held, other.tenant.held) == (20, 10)
        used = [Settlement(one.caller, one.request_id, "", CHAT, charge=True, tokens=7) for one in requests]
        assert set(await asyncio.gather(*(driven(counters.settle(one)) for one in used))) == {
            SettleResult.DONE
        }
        assert calls_of(world.client) - before == 2 * calls
        assert (world.tenant.held, other.tenant.held) == (0, 0)
    assert (world.tenant.used, other.tenant.used) == (28, 14)
    assert (len(world.events()), len(other.events())) == (5, 3)


def calls_of(client: redis.Redis) -> int:
    stats = client.info("commandstats")
    return int(stats.get("cmdstat_fcall", {}).get("calls", 0))


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        (f"{NEWER_CODE}tk:{{p01}}:t:7 is of layout 250", NewerLayout),
        (f"ERR of a key called {NEWER_CODE}", CountersRefused),
        ("WRONGTYPE Operation against a key holding the wrong kind of value", AnotherType),
        ("ERR of a key called WRONGTYPE", CountersRefused),
        ("ERR tk:{p01}:t:7 is of layout 250, this version knows up to 249", CountersRefused),
        (NEWER_CODE.strip() + "S are many", CountersRefused),
    ],
)
def test_what_a_newer_version_or_another_has_stored_is_known_by_its_code(
    said: str, kind: type[CountersRefused]
) -> None:
    """Words of a message, which may have names of others in them, decide nothing."""
    assert (type(refused(said)), refused(said).message) == (kind, f"Redis refused: {said}")
