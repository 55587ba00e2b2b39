"""The servers everything else needs: Redis, PostgreSQL, the demo upstream; embedded or somebody's own."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import HTTPSHandler, OpenerDirector, ProxyHandler, build_opener

from gateway.background.flushing.share import HELD_S
from gateway.core.credentials import TlsFiles
from gateway.errors import SettingError, StartError
from gateway.local import ports, processes
from gateway.local.data_directory import DataDirectory, opened
from gateway.local.embedded import postgres, valkey
from gateway.local.ports import ReservedPort, Voice
from gateway.local.processes import Child, ProcessSpec
from gateway.run.schema import admit_writer, migrate
from gateway.run.serving import command
from gateway.run.tls_port import check_files
from gateway.settings.checking import PREFIXES
from gateway.settings.settings import PREFIX, Settings
from gateway.tls.certificates import pinned

# The running children of one data directory: who they are, and the order in which they stop.


class Supervisor:
    """The running children of one data directory, in the order they are stopped."""

    STOP_ORDER = ("gateway", "demo upstream", "keeper", "redis", "postgres")

    def __init__(self, data: DataDirectory, voice: Voice) -> None:
        self.data = data
        self.voice = voice
        self.held: ReservedPort | None = None
        self._children: list[tuple[str, Child]] = []
        self._complete = False

    async def run(self, role: str, program: ProcessSpec) -> None:
        """Start a program and keep it running until `stop`."""
        child = Child(program, self.voice.say, self._note)
        self._children.append((role, child))
        try:
            await child.start()
        except StartError:
            self._children.remove((role, child))
            raise

    async def tell(self, role: str, line: bytes) -> None:
        """Tell every program of a role other settings."""
        await asyncio.gather(*(child.tell(line) for child in self.children(role)))

    def pids(self) -> dict[str, Any]:
        """Current process ids by role; None for what is not run here or is just starting again."""

        def of(role: str) -> list[int]:
            return [child.pid for child in self.children(role) if child.pid is not None]

        return {
            "gateway": of("gateway"),
            **{role: next(iter(of(role)), None) for role in ("keeper", "redis", "postgres")},
        }

    def children(self, role: str) -> list[Child]:
        """Those of a role."""
        return [child for each, child in self._children if each == role]

    async def stop(self) -> None:
        """Stop all children, role by role. The gateway's port is its workers' alone from now on."""
        if self.held is not None:
            self.held.close()
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
            processes.noted_child(child.pid)
            for role, child in self._children
            if role not in {"redis", "postgres"}
        ]
        self.data.write("processes.json", {"programs": [note for note in ours if note]})


# What `up` is asked to do, and what it runs for that.


# So long a keeper is still listed that was killed; with room.
LISTED_S = HELD_S + 1.0


def _migrate(url: str) -> object:
    return migrate(url, wait_s=LISTED_S)


@dataclass(frozen=True, slots=True)
class Options:
    """What a person asked for. Empty URLs mean "embedded", of the owner "the same"; port 0 is any free one.

    `demo_upstream` starts one unless `upstream` is given, the base URL of every upstream. `command` makes
    the command line of a process of ours; `migrate` and `admit_writer` block, and may raise anything.
    `read` reads the settings again, for secrets that change.
    """

    settings: Settings
    upstream: str
    demo: bool
    demo_upstream: bool
    command: Callable[..., tuple[str, ...]] = command
    migrate: Callable[[str], object] = _migrate
    admit_writer: Callable[[str, str], str] = admit_writer
    read: Callable[[], Settings] | None = None


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
    port = ports.free_port(int(data.read("ports.json").get("redis", 0)))
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
    port = ports.free_port(int(data.read("ports.json").get("postgres", 0)))
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
    port = ports.free_port(int(supervisor.data.read("ports.json").get("demo_upstream", 0)))

    async def ready(_pid: int) -> bool:
        return await ports.port_answers("127.0.0.1", port, 1.0)

    argv = options.command("demo-upstream", str(port), "--worker")
    await supervisor.run(
        "demo upstream", ProcessSpec("demo upstream", argv, ready, stdin=b"{}", stop_max_s=5.0)
    )
    return f"http://127.0.0.1:{port}"


async def _reachable(url: str, what: str, option: str) -> None:
    """StartError where nobody listens there; of several places one is enough."""
    parts = urlsplit(url)
    if parts.scheme == "unix" or not parts.hostname:
        return
    usual = DEFAULT_PORTS.get(parts.scheme.partition("+")[0], 0)
    places = [urlsplit(f"//{one}") for one in parts.netloc.rpartition("@")[2].split(",")]
    for place in places:
        if place.hostname and await ports.port_answers(
            place.hostname, place.port or usual, EXTERNAL_WAIT_S / len(places)
        ):
            return
    shown = ", ".join(f"{place.hostname}:{place.port or usual}" for place in places)
    raise StartError(f"{what} at {shown} ({option}) does not answer")


# The embedded PostgreSQL of a data directory, started for one command and without the rest.


@asynccontextmanager
async def postgres_alone(data_dir: Path) -> AsyncIterator[str]:
    """Start it, lend its URL, stop it."""
    with opened(data_dir) as data:
        supervisor = Supervisor(data, Voice())
        try:
            yield await start_postgres(supervisor, data.secrets()["database_password"])
        finally:
            await supervisor.stop()


# The ports of `up`, as `up` itself reaches them: their URLs, and the trusted certificate.


# The variables of the certificate that commands show to the Admin API.
SHOWN = (f"{PREFIX}ADMIN_CERT_FILE", f"{PREFIX}ADMIN_KEY_FILE")


def check(settings: Settings) -> None:
    """`SettingError` where a file of TLS cannot be used, or a child could not be reached."""
    check_files(settings, "gateway", "admin")
    if settings.admin_tls_client_ca_file and not all(os.environ.get(name) for name in SHOWN):
        said = f"{PREFIX}ADMIN_TLS_CLIENT_CA_FILE asks for certificates"
        raise SettingError(f"{said}, so `up` needs one of its own: set {SHOWN[0]} and {SHOWN[1]}")
    opener_of(settings, "admin")


def gateway_url_of(settings: Settings) -> str:
    """Where this machine reaches the gateway."""
    host = ports.reachable_host(settings.gateway_host)
    return settings.url_of("gateway", host, settings.gateway_port)


def admin_url_of(settings: Settings) -> str:
    """Where this machine reaches the Admin API."""
    return settings.url_of("admin", ports.reachable_host(settings.admin_host), settings.admin_port)


def opener_of(settings: Settings, port: str) -> OpenerDirector:
    """What a port is called with: it must have the very certificate that settings name."""
    files = settings.tls_files(port)
    if files is None:
        return build_opener(ProxyHandler({}))
    shown = [os.environ.get(name, "") for name in SHOWN] if files.authority else ["", ""]
    trusted = f"{PREFIX}{PREFIXES[port].upper()}CERT_FILE"
    tls = pinned(TlsFiles(files.certificate, *shown), f"{PREFIX}ADMIN_", trusted)
    return build_opener(ProxyHandler({}), HTTPSHandler(context=tls))


def ca_file_of(settings: Settings) -> dict[str, str]:
    """What commands beside the data directory trust, where the Admin API speaks TLS."""
    files = settings.tls_files("admin")
    return {"admin_ca_file": str(Path(files.certificate).absolute())} if files is not None else {}
