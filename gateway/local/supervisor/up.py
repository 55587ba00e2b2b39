"""`tollkeeper up`: everything on one machine, started, watched and stopped in order.

Databases first and side by side, then the schema, the keeper, the demo data through its Admin
API, the gateway last. Stopping goes the other way: gateways finish their calls and settle, the
keeper flushes, the databases close. What the gateway and the keeper do is not known here.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from gateway.errors import StartError, TollkeeperError
from gateway.local import leftovers, ports
from gateway.local.announce import Voice
from gateway.local.child import Program
from gateway.local.data_directory import opened
from gateway.local.demo import seed as demo
from gateway.local.supervisor.parts import Endpoints, Options, Parts
from gateway.local.supervisor.servers import start_servers
from gateway.local.supervisor.supervisor import Supervisor

READY_MAX_S = 90.0
# Behind its grace a gateway breaks calls off and settles what came of them.
SETTLING_S_MAX = 6.0
# What `up.json` says to the commands run beside this data directory.
NOTED = (
    "gateway_url", "admin_url", "admin_token", "api_key", "redis_url", "database_url", "upstream_url",
)  # fmt: skip
SERVING_TRIES_MAX = 200
PROBES_PER_WORKER = 6
NO_SUCH_SERVICE = "/services/no-such-service/"
USAGE_PATH = "/.tollkeeper/usage"
UNKNOWN_KEY = f"tk_{'0' * 32}"


async def up(options: Options, parts: Parts, voice: Voice) -> None:
    """Run everything until SIGINT or SIGTERM; `StartError`, on one line, if it cannot start."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def asked_to_stop() -> None:
        voice.say("still stopping, in order" if stop.is_set() else "stopping: calls first, databases last")
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, asked_to_stop)
    with ExitStack() as locks:
        data = locks.enter_context(opened(options.data_dir))
        supervisor = Supervisor(data, voice)
        starting = asyncio.create_task(_start(supervisor, options, parts, locks))
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()
                await stopping
        finally:
            stopping.cancel()
            starting.cancel()
            await asyncio.wait({starting})
            await supervisor.stop()
            if stop.is_set():
                voice.say("stopped")


async def _start(supervisor: Supervisor, options: Options, parts: Parts, locks: ExitStack) -> None:
    data, voice = supervisor.data, supervisor.voice
    gateway_port = _reserve(locks, options.gateway_host, options.gateway_port, "gateway (--gateway-port)")
    with ports.reserved(options.admin_host, options.admin_port, "Admin API (--admin-port)") as socket:
        admin_port: int = socket.getsockname()[1]
    if data.read("processes.json"):
        await asyncio.to_thread(leftovers.stop_leftovers, data, voice.say)
    secrets = data.secrets()
    warming = asyncio.create_task(asyncio.to_thread(parts.prepare))
    redis_url, near_url, database_url, upstream_url = await start_servers(supervisor, options, parts, secrets)
    await warming
    voice.step("bringing the schema up to date")
    keeper_url = await _migrate(options, parts, database_url, secrets["writer_password"])
    endpoints = Endpoints(
        redis_url=near_url,
        database_url=keeper_url,
        upstream_url=upstream_url,
        admin_token=options.admin_token or secrets["admin_token"],
        readonly_token=options.readonly_token,
        key_pepper=options.key_pepper or secrets["key_pepper"],
        gateway_port=gateway_port,
        admin_port=admin_port,
        data_dir=data.path,
    )
    voice.step(
        f"starting the keeper and {options.workers} gateway worker{'s' if options.workers > 1 else ''}"
    )
    async with asyncio.TaskGroup() as group:
        group.create_task(supervisor.run("keeper", _keeper(options, parts, endpoints)))
        for number in range(options.workers):
            group.create_task(supervisor.run("gateway", _gateway(options, parts, endpoints, number)))
    key = ""
    if options.demo:
        voice.step("looking after the demo organization")
        key = await asyncio.to_thread(
            demo.seed,
            data,
            _url(options.admin_host, admin_port),
            endpoints.admin_token,
            options.database_url or "embedded",
        )
        if not key:
            voice.say("the demo tenant is gone, and with it the demo key")
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
        "pids": supervisor.pids(),
    }
    data.write("up.json", {name: facts[name] for name in NOTED} | {"keeper_database_url": keeper_url})
    voice.ready(facts)


async def _migrate(options: Options, parts: Parts, database_url: str, password: str) -> str:
    """Bring the schema up to date as its owner; the URL the keeper has, who owns nothing of ours."""
    try:
        await asyncio.to_thread(parts.migrate, options.database_owner_url or database_url)
        if options.database_url:
            return database_url
        return await asyncio.to_thread(parts.admit_writer, database_url, password)
    except TollkeeperError as error:
        raise StartError(error.message) from error
    except Exception as error:  # whatever else the port raises is told on one line
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise StartError(f"the schema cannot be brought up to date: {lines[0]}") from error


def _keeper(options: Options, parts: Parts, endpoints: Endpoints) -> Program:
    url = _url(options.admin_host, endpoints.admin_port)

    async def ready(_pid: int) -> bool:
        return await asyncio.to_thread(demo.status_of, f"{url}/readyz") == 200

    return Program("keeper", tuple(parts.keeper), ready, READY_MAX_S, stdin=parts.settings_line(endpoints))


def _gateway(options: Options, parts: Parts, endpoints: Endpoints, number: int) -> Program:
    # What a gateway does not know, nobody gets by way of it.
    data_plane = replace(endpoints, database_url="", admin_token="", readonly_token="")

    async def ready(pid: int) -> bool:
        return ports.listens(pid, endpoints.gateway_port)

    return Program(
        f"gateway worker {number + 1}",
        tuple(parts.gateway),
        ready,
        READY_MAX_S,
        stdin=parts.settings_line(data_plane),
        stop_max_s=options.grace_s + SETTLING_S_MAX,
    )


async def _until_serving(gateway_url: str, key: str, workers: int) -> None:
    """Wait until calls are really decided: services known, and who has a key and who has none.

    A service that does not exist is asked for: it costs nothing, and only a worker that knows
    the services can say so. That a key is unknown is said only once everything is verified.
    """
    await _until_answers(f"{gateway_url}{NO_SUCH_SERVICE}", {}, 404, workers)
    headers = {"Authorization": f"Bearer {key or UNKNOWN_KEY}"}
    await _until_answers(f"{gateway_url}{USAGE_PATH}", headers, 200 if key else 401, workers)


async def _until_answers(url: str, headers: dict[str, str], wanted: int, workers: int) -> None:
    """Each attempt is a new connection, which the kernel gives to any worker: a run stands for all."""
    in_a_row, status = 0, None
    for _ in range(SERVING_TRIES_MAX):
        status = await asyncio.to_thread(demo.status_of, url, headers)
        in_a_row = in_a_row + 1 if status == wanted else 0
        if in_a_row == PROBES_PER_WORKER * workers:
            return
        if status != wanted:
            await asyncio.sleep(0.2)
    hint = " to the demo key; was TOLLKEEPER_KEY_PEPPER changed?" if (wanted, status) == (200, 401) else ""
    raise StartError(f"the gateway does not serve: it answers {status or 'nothing'}{hint}")


def _reserve(locks: ExitStack, host: str, port: int, what: str) -> int:
    socket = locks.enter_context(ports.reserved(host, port, what))
    number: int = socket.getsockname()[1]
    return number


def _url(host: str, port: int) -> str:
    host = ports.reachable_host(host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


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
