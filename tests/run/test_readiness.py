"""A probe answers in time, whatever it asks does."""

from __future__ import annotations

import asyncio
import shutil
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import redis

from gateway.__main__ import main
from gateway.core.model import PARTITIONS, Service
from gateway.core.processes import report, report_availability
from gateway.core.wait import in_task
from gateway.counters.admission.stored import encode_catalogue
from gateway.counters.redis import keys
from gateway.counters.redis.address import WHY, parse_url
from gateway.counters.redis.cluster import WHY_MOVING, RedisConnections
from gateway.counters.redis.connection import RedisConnection, encode
from gateway.errors import CountersUnavailable, StartError
from gateway.run.cached_lookup import CachedLookup
from gateway.run.health import TOLD_ALONE, DiskWatch, RedisState, of_gateway, tell_of_redis
from gateway.run.probes import Probe, unanswered
from gateway.run.reaching import ASK_INTERVAL_S, catalogue_of, wait_until_reached
from gateway.settings.settings import Settings, load
from tests.conftest import ValkeyServer, free_port
from tests.waiting import eventually

SERVER = "127.0.0.1:7001"
OF_WORKERS = ("redis", "counters_verified", "every_partition")


async def test_what_answers_is_told_and_an_error_is_a_no() -> None:
    async def refuses() -> bool:
        raise OSError("nobody there")

    assert await Probe(lambda: asyncio.sleep(0, True)).answers()
    assert not await Probe(lambda: asyncio.sleep(0, False)).answers()
    assert not await Probe(refuses).answers()


async def test_what_hangs_is_a_no_in_time_and_asked_once() -> None:
    asked, release = [], asyncio.Event()

    async def hangs() -> bool:
        asked.append(1)
        return await release.wait()

    probe = Probe(hangs, answer_s_max=0.01)
    assert [await probe.answers() for _ in range(3)] == [False] * 3
    assert len(asked) == 1
    release.set()
    await asyncio.sleep(0)
    assert await Probe(hangs).answers()
    assert await probe.answers()


async def test_whoever_asks_within_a_moment_has_what_was_found_and_one_at_a_time_looks() -> None:
    looks, now, wrong = [0], [0.0], [False]

    async def look() -> int:
        looks[0] += 1
        await asyncio.sleep(0)
        if wrong[0]:
            raise OSError("nobody there")
        return looks[0]

    recent = CachedLookup(look, fresh_s=1.0, clock=lambda: now[0])
    assert await asyncio.gather(*(recent.now() for _ in range(5))) == [1] * 5
    now[0], wrong[0] = 1.0, True
    with pytest.raises(OSError, match="nobody there"):
        await recent.now()
    wrong[0] = False
    assert await recent.now() == 3, "a failure is not kept"


async def test_unanswered_names_each_server_that_is_dead_or_hangs(
    own_valkey: Callable[..., ValkeyServer],
) -> None:
    servers = [own_valkey() for _ in range(3)]
    _, dead, hung = servers
    wires = [RedisConnection(parse_url(one.url), time.monotonic) for one in servers]
    try:
        for one in wires:
            await one.open()
        assert await unanswered(wires) == {}
        dead.stop()
        await eventually(lambda: wires[1].cause)
        assert hung.process
        hung.process.send_signal(signal.SIGSTOP)
        found = await unanswered(wires, answer_s_max=0.5)
        assert found.keys() == {f"127.0.0.1:{dead.port}", f"127.0.0.1:{hung.port}"}
        assert "Connect" in found[f"127.0.0.1:{dead.port}"]
        assert found[f"127.0.0.1:{hung.port}"] == "does not answer in time"
        assert await unanswered([]) == {}
    finally:
        if hung.process:
            hung.process.send_signal(signal.SIGCONT)
        for one in wires:
            await one.close()


@pytest.mark.parametrize(
    ("away", "unverified", "ready", "every"),
    [
        (0, 0, True, True),
        (21, 0, True, False),
        (0, 21, True, "21 of 64 partitions wait for a keeper to verify them"),
        (21, 21, True, False),
        (PARTITIONS, 0, False, False),
        (0, PARTITIONS, False, "64 of 64 partitions wait for a keeper to verify them"),
    ],
)
async def test_a_gateway_is_ready_while_it_serves_any_partition(
    tmp_path: Path, away: int, unverified: int, ready: bool, every: bool | str
) -> None:
    settings = Settings(data_dir=str(tmp_path), gateway_host="127.0.0.1")
    disk = DiskWatch(settings, lambda *_, **__: None)
    nobody = await of_gateway(dict, lambda: False, disk)
    assert not any(report_availability(nobody)[name] for name in ("gateway", *OF_WORKERS))
    silent = dict.fromkeys(("redis", "every_partition"), "no worker reports its state")
    assert report(False, nobody)["reasons"] == {"gateway": "no worker accepts calls", **silent}
    numbers = {"workers": 1, "partitions_away": away, "partitions_unverified": unverified}
    said = dict(await of_gateway(lambda: numbers, lambda: True, disk))
    disk.full = (str(tmp_path),)  # as was seen last
    full = await of_gateway(lambda: numbers, lambda: True, disk)
    assert full["disk"] == f"the disk of {tmp_path} is full"
    two = await of_gateway(lambda: {name: 2 * number for name, number in numbers.items()}, lambda: True, disk)
    assert said.pop("every_partition") == two["every_partition"] == every
    names = ("disk", "configuration", "open_files", "clock", "accounts")
    assert [said.pop(name) for name in names] == [True] * 5
    assert all(report_availability(said).values()) is ready
    assert said.keys() == {"gateway", "redis", "counters_verified"}


async def test_gateway_names_a_slot_that_is_being_moved_and_stays_ready(tmp_path: Path) -> None:
    wires = SimpleNamespace(wires=[], moving={12182: 31}, missing={}, servers=[])
    state = RedisState(cast("RedisConnections", wires), lambda *_, **__: None)
    await state.ask()
    numbers = {"workers": 1, **state.snapshot(), "partitions_taking": PARTITIONS}
    disk = DiskWatch(Settings(data_dir=str(tmp_path)), lambda *_, **__: None)
    said = await of_gateway(lambda: numbers, lambda: True, disk)
    assert said["every_partition"] == f"slot 12182: {WHY_MOVING}"
    assert [name for name, well in said.items() if well is not True] == ["every_partition"]


async def test_gateway_stays_ready_and_tells_of_accounts_that_cannot_be_read(tmp_path: Path) -> None:
    numbers = {"workers": 1, "left_alone": [("catalogue", 0), ("account", 1)]}
    disk = DiskWatch(Settings(data_dir=str(tmp_path)), lambda *_, **__: None)
    said = await of_gateway(lambda: numbers, lambda: True, disk)
    assert [name for name, well in said.items() if well is not True] == ["accounts"]
    assert "tollkeeper counters rebuild ORG" in str(said["accounts"])
    assert "accounts" in TOLD_ALONE


async def test_redis_state_logs_each_moved_slot_once() -> None:
    wires, said = SimpleNamespace(wires=[], moving={}, missing={}, servers=[]), list[tuple[str, object]]()
    state = RedisState(
        cast("RedisConnections", wires), lambda event, **facts: said.append((event, facts.get("slot")))
    )
    asking = asyncio.create_task(state.keep_asking(ask_s=0.001))
    try:
        for met in (1, 2, 3):
            wires.moving = {12182: met}
            await eventually(lambda met=met: state.moving == {12182: met})
        assert state.snapshot()["redis_slots_moving"] == [("12182", 3)]
        wires.moving = {}
        await eventually(lambda: state.moving == {})
        await eventually(lambda: len(said) == 2)
    finally:
        asking.cancel()
    assert said == [("redis slot is being moved", 12182), ("redis slot is at rest again", 12182)]


@pytest.mark.parametrize(
    ("refusing", "taking", "ready"),
    [({}, PARTITIONS, True), ({SERVER: 21}, 43, True), ({SERVER: PARTITIONS}, 0, False)],
)
async def test_a_gateway_whose_redis_refuses_all_calls_is_not_ready_and_says_why(
    tmp_path: Path, refusing: dict[str, int], taking: int, ready: bool
) -> None:
    settings = Settings(data_dir=str(tmp_path))
    disk = DiskWatch(settings, lambda *_, **__: None)
    numbers: dict[str, Any] = {"workers": 1, "partitions_taking": taking}
    numbers |= {"redis_reasons": [(server, "OOM: its memory is full", 1) for server in refusing]}
    numbers |= {"clock_offset_seconds": [("redis", -7200.0)]}
    said = await of_gateway(lambda: numbers, lambda: True, disk)
    assert said["redis"] == (True if ready else f"{SERVER}: OOM: its memory is full")
    assert said["every_partition"] == (f"{SERVER}: OOM: its memory is full" if refusing else True)
    assert said["clock"] == "the clock is 7,200 s behind that of redis"


# --- starting ---------------------------------------------------------------------------
# A process waits for what it needs, says so, and gives up or stops when it is told to.


CHAT = Service(1, "chat")


class Log:
    def __init__(self) -> None:
        self.said: list[tuple[str, Any]] = []

    def __call__(self, event: str, **facts: Any) -> None:
        self.said.append((event, facts["why"]))


async def test_what_answers_in_the_end_is_reached() -> None:
    troubles, log = ["refused", "refused", ""], Log()

    async def trouble() -> str:
        return troubles.pop(0)

    assert await wait_until_reached("Redis", trouble, wait_s=60, stop=asyncio.Event(), log=log)
    assert log.said == [("waiting for Redis", "refused")]


@pytest.mark.parametrize(
    ("raw", "known"),
    [
        (encode_catalogue(1, [CHAT]), {"chat": CHAT}),
        (b"{", {}),
        (b'{"version":1,"services":[]}', {}),
        (b"", {}),
    ],
)
async def test_services_that_nobody_can_read_are_none(
    own_valkey: Callable[..., ValkeyServer], raw: bytes, known: dict[str, Service]
) -> None:
    url = own_valkey().url
    with redis.Redis.from_url(url) as client:
        client.set(keys.CATALOGUE, raw)
    assert await catalogue_of(load({"TOLLKEEPER_REDIS_URL": url})) == known


async def test_what_answers_at_once_is_not_mentioned() -> None:
    log = Log()

    async def trouble() -> str:
        return ""

    assert await wait_until_reached("Redis", trouble, wait_s=1, stop=asyncio.Event(), log=log)
    assert log.said == []


async def test_the_wait_ends_with_what_is_wrong() -> None:
    async def trouble() -> str:
        return "no such host"

    with pytest.raises(StartError, match=r"Redis cannot be reached, after 0\.1 s: no such host"):
        await wait_until_reached("Redis", trouble, wait_s=0.1, stop=asyncio.Event(), log=Log())


async def test_an_answer_that_never_comes_is_bounded() -> None:
    async def trouble() -> str:
        await asyncio.Event().wait()
        return ""

    with pytest.raises(StartError, match="no answer within"):
        await wait_until_reached("Redis", trouble, wait_s=0.1, stop=asyncio.Event(), log=Log())


async def test_a_process_told_to_stop_waits_no_longer() -> None:
    stop = asyncio.Event()
    stop.set()

    async def trouble() -> str:
        return "refused"

    assert not await wait_until_reached("Redis", trouble, wait_s=3_600, stop=stop, log=Log())


async def test_a_last_look_that_takes_its_time_still_says_what_is_wrong() -> None:
    """As a connection is asked after: for a while, and then with the reason it has met."""

    async def trouble() -> str:
        await asyncio.sleep(ASK_INTERVAL_S)
        return "wrong password"

    with pytest.raises(StartError, match="wrong password"):
        await wait_until_reached("Redis", trouble, wait_s=ASK_INTERVAL_S * 2, stop=asyncio.Event(), log=Log())


def test_a_migration_that_cannot_begin_says_of_which_setting_and_what_to_do(
    capsys: pytest.CaptureFixture[str],
) -> None:
    url = f"postgresql://u:p@127.0.0.1:{free_port()}/x"
    assert main(["migrate", "--database-url", url]) == 1
    told = capsys.readouterr().err
    assert "start PostgreSQL, or correct host and port of TOLLKEEPER_DATABASE_URL" in told
    assert told.startswith("tollkeeper: PostgreSQL cannot be used: "), "no schema was seen"
    assert len(told.splitlines()) == 1


# --- redis state ------------------------------------------------------------------------
# A Redis that is there and refuses is known by itself, and so is a clock that is another's.


Said = list[tuple[str, str]]


@asynccontextmanager
async def looked_at(
    server: ValkeyServer, said: Said, **made: Any
) -> AsyncIterator[tuple[RedisState, RedisConnection]]:
    wire = RedisConnection(parse_url(server.url), time.monotonic)
    await wire.open()

    def log(event: str, code: str = "", **_: object) -> None:
        said.append((event, code))

    state = RedisState(wire, log, **made)
    asking = asyncio.create_task(state.keep_asking(ask_s=0.01))
    try:
        yield state, wire
    finally:
        asking.cancel()
        await wire.close()


async def full(server: ValkeyServer, client: redis.Redis, wire: RedisConnection) -> None:
    client.config_set("maxmemory", 1)


async def of_another(server: ValkeyServer, client: redis.Redis, wire: RedisConnection) -> None:
    client.replicaof("127.0.0.1", str(free_port()))


async def without_a_disk(server: ValkeyServer, client: redis.Redis, wire: RedisConnection) -> None:
    """Its snapshot fails, and a write is answered so."""
    client.config_set("save", "1 1")
    shutil.rmtree(server.folder)
    client.set("x", 1)

    async def refused() -> bool:
        with suppress(redis.ResponseError):
            client.bgsave()
        with suppress(CountersUnavailable):
            await in_task(wire.send(encode(b"SET", b"x", b"1")))
        return wire.refusal[0] == "MISCONF"

    await eventually(refused)


def well_again(client: redis.Redis, code: str) -> None:
    match code:
        case "OOM":
            client.config_set("maxmemory", 0)
        case "READONLY":
            client.replicaof("NO", "ONE")


@pytest.mark.parametrize(
    ("code", "break_it", "takes"),
    [("OOM", full, False), ("READONLY", of_another, False), ("MISCONF", without_a_disk, True)],
)
async def test_why_redis_refuses_is_told_until_it_takes_calls_again(
    own_valkey: Callable[..., ValkeyServer],
    code: str,
    break_it: Callable[[ValkeyServer, redis.Redis, RedisConnection], Awaitable[None]],
    takes: bool,
) -> None:
    """By what calls are answered alone a server is not given up: only calls can say that it is well again."""
    server, said = own_valkey("--save", ""), Said()
    with redis.Redis(port=server.port) as client:
        async with looked_at(server, said) as (state, wire):
            await eventually(state.figures)
            assert (state.taking, state.why) == (PARTITIONS, "")
            await break_it(server, client, wire)
            await eventually(lambda: state.refusing)
            assert state.snapshot()["partitions_refusing"] == [(code, PARTITIONS)]
            assert state.why == f"127.0.0.1:{server.port}: {code}: {WHY[code]}"
            assert (state.taking > 0) is takes
            if code == "MISCONF":
                assert state.figures()["redis_files_failing"] == [("append_only", 0), ("snapshot", 1)]
                client.config_set("save", "")  # else it does not end
            else:
                well_again(client, code)
                await eventually(lambda: state.taking == PARTITIONS and not state.refusing)
                await eventually(lambda: ("redis takes everything again", "") in said)
    assert said[0] == ("redis refuses", code)


async def test_memory_of_the_server_and_what_follows_it_are_figures(
    own_valkey: Callable[..., ValkeyServer],
) -> None:
    server, said = own_valkey("--maxmemory", "64mb"), Said()
    async with looked_at(server, said) as (state, _):
        await eventually(state.figures)
        before = state.figures()
        with redis.Redis(port=server.port) as client:
            client.set("much", b"x" * 4_000_000)
        # Besides the value the server has buffers, some of which it frees meanwhile: how many, its libc decides.
        wanted = int(str(before["redis_memory_used_bytes"])) + 3_500_000
        await eventually(lambda: int(str(state.figures()["redis_memory_used_bytes"])) > wanted)
    assert (before["redis_memory_max_bytes"], before["redis_replicas"]) == (64 * 1024 * 1024, 0)
    assert before["redis_files_failing"] == [("append_only", 0), ("snapshot", 0)]
    assert "redis_replica_lag_seconds" not in before
    assert not said


@pytest.mark.parametrize("ahead_s", [-7_200, 0, 7_200])
async def test_a_clock_that_is_wrong_is_told_by_how_much(
    own_valkey: Callable[..., ValkeyServer], ahead_s: int
) -> None:
    adjusted = list[float]()
    wrong = {"wall": lambda: time.time() + ahead_s, "adjust": adjusted.append}
    async with looked_at(own_valkey(), [], **wrong) as (state, _):
        await eventually(state.figures)
        assert abs(state.clock_off_s - ahead_s) < 5
        assert abs(adjusted[-1] - ahead_s) < 5
        assert ahead_s or adjusted[-1] == 0


# --- away -------------------------------------------------------------------------------
# Logs say when Redis goes and when it is back.


async def test_it_is_said_when_redis_goes_and_when_it_is_back() -> None:
    """Of several servers also when others are away than before, or as many others."""
    said: list[tuple[str, str, int, str]] = []
    first, second, third = (f"127.0.0.1:{port}" for port in (7001, 7002, 7003))
    servers = [(), (first,), (first,), (first, second), (second, third), (second,), (), ()]
    seen = iter([dict.fromkeys(names, "does not answer") for names in servers])

    class Seen:
        away = 0

        @property
        def missing(self) -> dict[str, str]:
            try:
                missing = next(seen)
            except StopIteration:
                raise asyncio.CancelledError from None
            self.away = 21 * len(missing)
            return missing

    def say(event: str, *, level: str, partitions: int = 0, why: str = "") -> None:
        said.append((event, level, partitions, why))

    with suppress(asyncio.CancelledError):
        await tell_of_redis(Seen(), say, look_s=0.0)
    assert said == [
        ("redis is away", "error", 21, "127.0.0.1:7001: does not answer"),
        ("redis is away", "error", 42, "127.0.0.1:7001, 127.0.0.1:7002: does not answer"),
        ("redis is away", "error", 42, "127.0.0.1:7002, 127.0.0.1:7003: does not answer"),
        ("redis is away", "error", 21, "127.0.0.1:7002: does not answer"),
        ("redis is back", "info", 0, ""),
    ]
