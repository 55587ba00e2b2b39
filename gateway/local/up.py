"""`tollkeeper up`: everything on one machine, started, watched and stopped in order.

Databases first and side by side, then the schema, the keeper, the demo data through its Admin
API, the gateway last. Stopping goes the other way: gateways finish their calls and settle, the
keeper flushes, the databases close. What the gateway and the keeper do is not known here.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from gateway.errors import StartError
from gateway.local import demo, leftovers, ports, postgres, valkey
from gateway.local.announce import Voice
from gateway.local.child import Child, Program
from gateway.local.data_directory import DataDirectory, opened

KEEPER_READY_MAX_S = 90.0
EXTERNAL_WAIT_S = 5.0
SERVING_TRIES_MAX = 500
PROBES_PER_WORKER = 6
NO_SUCH_SERVICE = "/services/no-such-service/"
DEFAULT_PORTS = {"redis": 6379, "rediss": 6379, "postgresql": 5432, "postgres": 5432}


@dataclass(frozen=True, slots=True)
class Options:
    """What a person asked for. Empty URLs mean "embedded"; port 0 is any free one.

    `demo_upstream` starts one unless `upstream` is given; `grace_s` is how long a gateway may
    take to finish its calls.
    """

    data_dir: Path
    gateway_host: str
    gateway_port: int
    admin_host: str
    admin_port: int
    workers: int
    redis_url: str
    database_url: str
    upstream: str
    admin_token: str
    readonly_token: str
    key_pepper: str
    demo: bool
    demo_upstream: bool
    grace_s: float


@dataclass(frozen=True, slots=True)
class Endpoints:
    """What the started parts are reached by, secrets included."""

    redis_url: str
    database_url: str
    upstream_url: str | None
    admin_token: str
    readonly_token: str
    key_pepper: str
    gateway_port: int
    admin_port: int
    data_dir: Path

    def __repr__(self) -> str:
        return f"Endpoints(gateway_port={self.gateway_port}, admin_port={self.admin_port})"


@dataclass(frozen=True, slots=True)
class Parts:
    """What `up` runs but does not know: command lines, the settings line, the schema.

    `settings_line` is what a gateway worker or keeper reads first from its standard input.
    `migrate` blocks and may raise anything.
    """

    gateway: Sequence[str]
    keeper: Sequence[str]
    demo_upstream: Callable[[int], Sequence[str]]
    settings_line: Callable[[Endpoints], bytes]
    migrate: Callable[[str], object]


async def up(options: Options, parts: Parts, voice: Voice) -> None:
    """Run everything until SIGINT or SIGTERM; `StartError`, on one line, if it cannot start."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def asked_to_stop() -> None:
        voice.say("still stopping, in order" if stop.is_set() else "stopping: calls first, databases last")
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, asked_to_stop)
    with ExitStack() as locks:
        data = locks.enter_context(opened(options.data_dir))
        house = House(data, voice)
        starting = asyncio.create_task(_start(house, options, parts, voice, locks))
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()
                await stopping
        finally:
            stopping.cancel()
            starting.cancel()
            with contextlib.suppress(asyncio.CancelledError, StartError):
                await starting
            await house.stop()
            if stop.is_set():
                voice.say("stopped")


async def _start(house: House, options: Options, parts: Parts, voice: Voice, locks: ExitStack) -> None:
    data = house.data
    gateway_port = _reserve(locks, options.gateway_host, options.gateway_port, "gateway (--gateway-port)")
    with ports.reserved(options.admin_host, options.admin_port, "Admin API (--admin-port)") as socket:
        admin_port: int = socket.getsockname()[1]
    if data.read("processes.json"):
        await asyncio.to_thread(leftovers.stop_leftovers, data, voice.say)
    secrets = data.secrets()
    redis_url, database_url, upstream_url = await _start_servers(house, options, parts, secrets)
    endpoints = Endpoints(
        redis_url=redis_url,
        database_url=database_url,
        upstream_url=upstream_url,
        admin_token=options.admin_token or secrets["admin_token"],
        readonly_token=options.readonly_token,
        key_pepper=options.key_pepper or secrets["key_pepper"],
        gateway_port=gateway_port,
        admin_port=admin_port,
        data_dir=data.path,
    )
    voice.step("bringing the schema up to date")
    await _migrate(parts, database_url)
    settings = parts.settings_line(endpoints)
    voice.step("starting the keeper")
    await house.run("keeper", _keeper(options, parts, endpoints, settings))
    key = ""
    if options.demo:
        voice.step("making the demo organization")
        key = await asyncio.to_thread(
            demo.seed, data, _url(options.admin_host, admin_port), endpoints.admin_token
        )
    voice.step(f"starting {options.workers} gateway worker{'s' if options.workers > 1 else ''}")
    await asyncio.gather(
        *(
            house.run("gateway", _gateway(options, parts, endpoints, settings, n))
            for n in range(options.workers)
        )
    )
    gateway_url = _url(options.gateway_host, gateway_port)
    await _until_serving(gateway_url, key, options.workers)
    facts: dict[str, Any] = {
        "gateway_url": gateway_url,
        "admin_url": _url(options.admin_host, admin_port),
        "admin_token": endpoints.admin_token,
        "api_key": key or None,
        "redis_url": redis_url,
        "database_url": database_url,
        "upstream_url": upstream_url,
        "data_dir": str(data.path),
        "pids": house.pids(),
    }
    data.write(
        "up.json", {name: facts[name] for name in ("gateway_url", "admin_url", "admin_token", "api_key")}
    )
    voice.ready(facts)


async def _start_servers(
    house: House, options: Options, parts: Parts, secrets: dict[str, str]
) -> tuple[str, str, str | None]:
    """Redis, PostgreSQL and the demo upstream side by side; their URLs."""
    data = house.data
    async with asyncio.TaskGroup() as group:
        redis = group.create_task(_start_redis(house, options, secrets["redis_password"]))
        database = group.create_task(_start_postgres(house, options, secrets["database_password"]))
        upstream = group.create_task(_start_upstream(house, options, parts))
    house.voice.step(f"databases are up in {data.path}")
    return redis.result(), database.result(), upstream.result()


async def _start_redis(house: House, options: Options, password: str) -> str:
    if options.redis_url:
        await _reachable(options.redis_url, "Redis", "--redis-url")
        return options.redis_url
    data = house.data
    house.voice.step("starting Valkey")
    port = ports.free(int(data.read("ports.json").get("redis", 0)))
    await house.run("redis", valkey.program(data.redis, data.logs / "valkey.log", port, password))
    data.write("ports.json", data.read("ports.json") | {"redis": port})
    return valkey.url(port, password)


async def _start_postgres(house: House, options: Options, password: str) -> str:
    if options.database_url:
        await _reachable(options.database_url, "PostgreSQL", "--database-url")
        return options.database_url
    data = house.data
    house.voice.step("starting PostgreSQL" if data.postgres.exists() else "creating the PostgreSQL cluster")
    await asyncio.to_thread(postgres.initialise, data.postgres, password)
    port = ports.free(int(data.read("ports.json").get("postgres", 0)))
    await house.run("postgres", postgres.program(data.postgres, data.logs / "postgres.log", port))
    data.write("ports.json", data.read("ports.json") | {"postgres": port})
    return postgres.url(port, password)


async def _start_upstream(house: House, options: Options, parts: Parts) -> str | None:
    if options.upstream or not options.demo_upstream:
        return options.upstream or None
    port = ports.free(int(house.data.read("ports.json").get("demo_upstream", 0)))

    async def ready(_pid: int) -> bool:
        return await ports.answers("127.0.0.1", port, 1.0)

    argv = tuple(parts.demo_upstream(port))
    await house.run("demo upstream", Program("demo upstream", argv, ready, stdin=b"{}", stop_max_s=5.0))
    return f"http://127.0.0.1:{port}"


async def _reachable(url: str, what: str, option: str) -> None:
    parts = urlsplit(url)
    if parts.scheme == "unix" or not parts.hostname:
        return
    port = parts.port or DEFAULT_PORTS.get(parts.scheme.partition("+")[0], 0)
    if not await ports.answers(parts.hostname, port, EXTERNAL_WAIT_S):
        raise StartError(f"{what} at {parts.hostname}:{port} ({option}) does not answer")


async def _migrate(parts: Parts, database_url: str) -> None:
    try:
        await asyncio.to_thread(parts.migrate, database_url)
    except Exception as error:  # whatever the port raises is told on one line
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise StartError(f"the schema cannot be brought up to date: {lines[0]}") from error


def _keeper(options: Options, parts: Parts, endpoints: Endpoints, settings: bytes) -> Program:
    url = _url(options.admin_host, endpoints.admin_port)

    async def ready(_pid: int) -> bool:
        return await asyncio.to_thread(demo.status_of, f"{url}/readyz") == 200

    return Program("keeper", tuple(parts.keeper), ready, KEEPER_READY_MAX_S, stdin=settings)


def _gateway(options: Options, parts: Parts, endpoints: Endpoints, settings: bytes, number: int) -> Program:
    async def ready(pid: int) -> bool:
        return ports.listens(pid, endpoints.gateway_port)

    return Program(
        f"gateway worker {number + 1}",
        tuple(parts.gateway),
        ready,
        stdin=settings,
        stop_max_s=options.grace_s + 5.0,
    )


async def _until_serving(gateway_url: str, key: str, workers: int) -> None:
    """Wait until calls with the key are really decided: counters verified, services known.

    A service that does not exist is asked for: it costs nothing, and only a worker that knows
    the services can say so. Each attempt is a new connection, which the kernel gives to any
    worker, so a run of answers stands for all of them.
    """
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    wanted = {404} if key else {401}
    in_a_row, status = 0, None
    for _ in range(SERVING_TRIES_MAX):
        status = await asyncio.to_thread(demo.status_of, f"{gateway_url}{NO_SUCH_SERVICE}", headers)
        in_a_row = in_a_row + 1 if status in wanted else 0
        if in_a_row == PROBES_PER_WORKER * workers:
            return
        if status not in wanted:
            await asyncio.sleep(0.2)
    raise StartError(f"the gateway does not serve: it answers {status or 'nothing'} to the demo key")


def _reserve(locks: ExitStack, host: str, port: int, what: str) -> int:
    socket = locks.enter_context(ports.reserved(host, port, what))
    number: int = socket.getsockname()[1]
    return number


def _url(host: str, port: int) -> str:
    host = ports.reachable_host(host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class House:
    """The running children of one data directory, in the order they are stopped."""

    STOP_ORDER = ("gateway", "demo upstream", "keeper", "redis", "postgres")

    def __init__(self, data: DataDirectory, voice: Voice) -> None:
        self.data = data
        self.voice = voice
        self._children: list[tuple[str, Child]] = []
        self._complete = False

    async def run(self, role: str, program: Program) -> None:
        """Start a program and keep it running until `stop`."""
        child = Child(program, self.voice.say, self._note)
        self._children.append((role, child))
        await child.start()

    def pids(self) -> dict[str, Any]:
        """Current process ids by role; None for what is not run here or is just starting again."""

        def of(role: str) -> list[int]:
            return [child.pid for each, child in self._children if each == role and child.pid is not None]

        return {
            "gateway": of("gateway"),
            **{role: next(iter(of(role)), None) for role in ("keeper", "redis", "postgres")},
        }

    async def stop(self) -> None:
        """Stop all children, role by role."""
        for role in self.STOP_ORDER:
            async with AsyncExitStack() as stack:
                for each, child in self._children:
                    if each == role:
                        stack.push_async_callback(child.stop)
        for name in ("pids.json", "processes.json"):
            self.data.forget(name)

    def _note(self) -> None:
        self.data.write("pids.json", self.pids())
        ours = [
            leftovers.noted(child.pid) for role, child in self._children if role not in {"redis", "postgres"}
        ]
        self.data.write("processes.json", {"programs": [note for note in ours if note]})


def run_up(options: Options, parts: Parts, voice: Voice) -> int:
    """The whole command: exit status 0 after an orderly stop, 1 with one line if it cannot start."""
    try:
        asyncio.run(up(options, parts, voice))
    except StartError as error:
        voice.fail(error.message)
        return 1
    except BaseExceptionGroup as group:
        first = _first_start_error(group)
        if first is None:
            raise
        voice.fail(first.message)
        return 1
    finally:
        sys.stderr.flush()
    return 0


def _first_start_error(group: BaseExceptionGroup[BaseException]) -> StartError | None:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            if (found := _first_start_error(error)) is not None:
                return found
        elif isinstance(error, StartError):
            return error
    return None
