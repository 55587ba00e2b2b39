"""The servers everything else needs: Redis, PostgreSQL, the demo upstream; embedded or somebody's own."""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit

from gateway.errors import StartError
from gateway.local import ports
from gateway.local.child import Program
from gateway.local.embedded import postgres, valkey
from gateway.run.supervisor.options import Options
from gateway.run.supervisor.supervisor import Supervisor

EXTERNAL_WAIT_S = 5.0
SHARED_MEMORY_TRIES = 20
SHARED_MEMORY_WAIT_S = 0.5
DEFAULT_PORTS = {"redis": 6379, "rediss": 6379, "postgresql": 5432, "postgres": 5432}


async def start_servers(
    supervisor: Supervisor, options: Options, secrets: dict[str, str]
) -> tuple[str, str, str, str | None]:
    """Redis, PostgreSQL and the demo upstream side by side; their URLs.

    Redis has two: the one to tell, and the one for the gateway's own processes.
    """
    data, settings = supervisor.data, options.settings
    async with asyncio.TaskGroup() as group:
        redis = group.create_task(_redis(supervisor, settings.redis_url, secrets["redis_password"]))
        database = group.create_task(
            _postgres(supervisor, settings.database_url, secrets["database_password"])
        )
        upstream = group.create_task(_upstream(supervisor, options))
    supervisor.voice.step(f"databases are up in {data.path}")
    told, near = redis.result()
    return told, near, database.result(), upstream.result()


async def _redis(supervisor: Supervisor, theirs: str, password: str) -> tuple[str, str]:
    if theirs:
        await _reachable(theirs, "Redis", "--redis-url")
        return theirs, theirs
    data = supervisor.data
    supervisor.voice.step("starting Valkey")
    port = ports.free(int(data.read("ports.json").get("redis", 0)))
    path = valkey.socket_of(data.redis)
    await supervisor.run("redis", valkey.program(data.redis, data.logs / "valkey.log", port, password, path))
    data.write("ports.json", data.read("ports.json") | {"redis": port})
    told = valkey.url(port, password)
    return told, valkey.socket_url(path, password) if path else told


async def _postgres(supervisor: Supervisor, theirs: str, password: str) -> str:
    if theirs:
        await _reachable(theirs, "PostgreSQL", "--database-url")
        return theirs
    return await start_postgres(supervisor, password)


async def start_postgres(supervisor: Supervisor, password: str) -> str:
    """The embedded PostgreSQL of a data directory, made where there is none; its URL."""
    data = supervisor.data
    supervisor.voice.step(
        "starting PostgreSQL" if data.postgres.exists() else "creating the PostgreSQL cluster"
    )
    await asyncio.to_thread(postgres.initialise, data.postgres, password)
    port = ports.free(int(data.read("ports.json").get("postgres", 0)))
    program = postgres.program(data.postgres, data.logs / "postgres.log", port)
    for left in reversed(range(SHARED_MEMORY_TRIES)):
        try:
            await supervisor.run("postgres", program)
            break
        except StartError as error:
            # Sessions of a server that was killed need a moment to notice.
            if "shared memory block" not in error.message or not left:
                raise
            await asyncio.sleep(SHARED_MEMORY_WAIT_S)
    data.write("ports.json", data.read("ports.json") | {"postgres": port})
    return postgres.url(port, password)


async def _upstream(supervisor: Supervisor, options: Options) -> str | None:
    if options.upstream or not options.demo_upstream:
        return options.upstream or None
    port = ports.free(int(supervisor.data.read("ports.json").get("demo_upstream", 0)))

    async def ready(_pid: int) -> bool:
        return await ports.answers("127.0.0.1", port, 1.0)

    argv = options.command("demo-upstream", str(port), "--worker")
    await supervisor.run("demo upstream", Program("demo upstream", argv, ready, stdin=b"{}", stop_max_s=5.0))
    return f"http://127.0.0.1:{port}"


async def _reachable(url: str, what: str, option: str) -> None:
    """StartError where nobody listens there; of several places one is enough."""
    parts = urlsplit(url)
    if parts.scheme == "unix" or not parts.hostname:
        return
    usual = DEFAULT_PORTS.get(parts.scheme.partition("+")[0], 0)
    places = [urlsplit(f"//{one}") for one in parts.netloc.rpartition("@")[2].split(",")]
    for place in places:
        if place.hostname and await ports.answers(
            place.hostname, place.port or usual, EXTERNAL_WAIT_S / len(places)
        ):
            return
    shown = ", ".join(f"{place.hostname}:{place.port or usual}" for place in places)
    raise StartError(f"{what} at {shown} ({option}) does not answer")
