"""`tollkeeper up`: starts, watches and stops everything on one machine, in order.

Our own processes start first and load their code. Meanwhile the databases start side by side, and then the
schema is brought up to date. Then the keeper and the gateways get their settings, and demo data is created
through the Admin API. Stopping is in reverse: gateways finish and settle their calls, the keeper flushes, the
databases close.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.request import HTTPSHandler, OpenerDirector, ProxyHandler, build_opener

from gateway.background.flushing.flusher import HELD_S
from gateway.core.calls.routes import EVERYBODY
from gateway.core.certificates import TlsFiles
from gateway.core.network import DIRECT, Proxies, authority
from gateway.errors import SettingError, StartError, TollkeeperError
from gateway.feature import features
from gateway.files import split_servers
from gateway.local import leftovers, ports
from gateway.local.data_directory import DataDirectory, open_directory
from gateway.local.demo import seed as demo
from gateway.local.embedded import postgres, valkey
from gateway.local.ports import JsonVoice, ReservedPort, Voice
from gateway.local.processes import Child, ProcessSpec, command, run_to_end
from gateway.run import schema
from gateway.run.lifecycle import forever, until_stopped
from gateway.run.process_vitals import few_files
from gateway.run.reload import (
    KEEPERS_RENEWABLE,
    KEPT_BY_KEEPERS,
    RENEWABLE,
    Renewal,
    SettingsListener,
    keep_renewing,
    watch_credentials,
)
from gateway.run.schema import admit_writer, migrate
from gateway.run.serving import (
    find_home,
    gateway_port,
    gateway_workers,
    resolved,
    tell_restarts,
    tell_slips,
)
from gateway.run.tls_port import check_files
from gateway.settings.config_file import default_table
from gateway.settings.settings import PREFIX, Settings, to_json
from gateway.settings.tls_files import PREFIXES
from gateway.telemetry import logs
from gateway.tls.certificates import pinned

READY_S_MAX = 90.0
# The log file of our own processes, in the data directory, if a person watches standard error.
LOG = "tollkeeper.log"
# The facts in `up.json`, for commands that are run with this data directory.
NOTED = (
    "gateway_url", "admin_url", "admin_token", "api_key", "redis_url", "database_url", "upstream_url",
)  # fmt: skip
SERVING_TRIES_MAX = 200
PROBES_PER_WORKER = 6
NO_SUCH_SERVICE = "/services/no-such-service/"
USAGE_PATH = "/.tollkeeper/usage"
UNASKED = "the gateway was not asked: TOLLKEEPER_TLS_CLIENT_CA_FILE lets in who has a certificate alone"
UNKNOWN_KEY = f"tk_{'0' * 32}"


def up(
    config: Path | None, *, upstream: str, demo: bool, json: bool, **settings_given: str | int | None
) -> None:
    """Run Redis, PostgreSQL, a keeper and gateways on this machine until stopped.

    `upstream` replaces all upstreams; `demo` starts a demo upstream; `json` logs in JSON.
    """
    find_home()
    read = partial(resolved, config, "all", **settings_given)
    settings = read()
    configured = settings.table != default_table(os.environ).through(settings.proxies)
    if upstream:
        settings = settings.with_upstream(upstream)
    settings.table.check_services({})
    logs.configure(settings.log_level)
    voice = JsonVoice(logs.logger("tollkeeper.up")) if json else Voice()
    tell_slips(settings, "all", voice.warn)
    if few := few_files(settings):
        voice.warn(few)
    apart = not json and sys.stderr.isatty()
    starts_demo = demo and not configured
    run_up(Options(settings, upstream, demo=demo, demo_upstream=starts_demo, read=read, apart=apart), voice)


def run_up(options: Options, voice: Voice) -> None:
    """Run all processes until SIGINT or SIGTERM; `StartError` if one fails. `voice` prints messages."""
    try:
        run_to_end(asyncio.run, _up(options, voice))
    except BaseExceptionGroup as group:
        found = group.subgroup(StartError)
        if found is None:
            raise
        first: BaseException = found
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        raise first from group


async def _up(options: Options, voice: Voice) -> None:
    """Run all processes of `tollkeeper up` until a signal stops them."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_stop_signal() -> None:
        voice.say("still stopping, in order" if stop.is_set() else "stopping: calls first, databases last")
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, on_stop_signal)
    with ExitStack() as locks:
        data = locks.enter_context(open_directory(Path(options.settings.data_dir)))
        supervisor = Supervisor(data, voice)
        try:
            await until_stopped(_start(supervisor, options, locks), stop)
        finally:
            await supervisor.stop()
            if stop.is_set():
                voice.say("stopped")


async def _start(supervisor: Supervisor, options: Options, locks: ExitStack) -> None:
    """Start servers, gateway and keeper in order, and report where they are once calls are answered."""
    data, voice, settings = supervisor.data, supervisor.voice, options.settings
    check(settings)
    ports.refuse_unknown((settings.gateway_port,))
    held = locks.enter_context(gateway_port(settings))
    admin = locks.enter_context(
        ports.held_port(settings.admin_host, settings.admin_port, "Admin API (--admin-port)")
    )
    supervisor.held = (held, admin)
    if data.read("processes.json"):
        await asyncio.to_thread(leftovers.stop_leftovers, data, voice.say)
    secrets = data.secrets()
    if (log := options.log(data.path)) is not None:
        if log.exists():
            log.replace(log.with_name(f"{LOG}.1"))  # only the last start, since nothing else bounds it
        voice.step(f"the gateway and the keeper log to {log}")
    programs = _ours(options, settings.with_values(admin_port=admin.number), held, admin)
    for role, program in programs:  # they load their code while the servers start
        await supervisor.load(role, program)
    async with asyncio.TaskGroup() as beside:
        upstream_url = _upstream(supervisor, options, beside)  # no call reaches it before everything is ready
        redis_url, near_url, database_url = await start_servers(supervisor, options, secrets)
        voice.step("bringing the schema up to date")
        keeper_url = await _migrate(options, database_url, secrets["writer_password"])
        here = partial(
            _complete_settings, secrets=secrets, upstream_url=upstream_url or options.upstream,
            proxies=None if options.upstream else DIRECT, redis_url=near_url, database_url=keeper_url,
            gateway_port=held.number, admin_port=admin.number, data_dir=str(data.path),
            seller=demo.DEMO_SELLER if options.demo else {},
        )  # fmt: skip
        settings = here(settings)
        await _start_ours(supervisor, options, settings, held, admin)
    gateway_url, admin_url = gateway_url_of(settings), admin_url_of(settings)
    key = ""
    if options.demo:
        voice.step("looking after the demo organization")
        database = options.settings.database_url or "embedded"
        key = await asyncio.to_thread(
            demo.seed, data, admin_url, settings.admin_token, database, opener_of(settings, "admin")
        )
        if not key:
            voice.say("the demo tenant is gone, and with it the demo key")
    if settings.tls_client_ca_file:  # only a client with a certificate could test it
        voice.say(UNASKED)
    else:
        # Wait until calls are really decided: services and keys are known. The test asks for a service that
        # does not exist: it costs nothing, and only a worker that knows the services can say so. Only a
        # verified Redis says that a key is unknown.
        status_of = partial(demo.status_of, opener=opener_of(settings, "gateway"))
        await _until_answers(partial(status_of, f"{gateway_url}{NO_SUCH_SERVICE}"), 404, settings.workers)
        headers = {"Authorization": f"Bearer {key or UNKNOWN_KEY}"}
        asked = partial(status_of, f"{gateway_url}{USAGE_PATH}", headers)
        await _until_answers(asked, 200 if key else 401, settings.workers)
    facts: dict[str, Any] = {
        "gateway_url": gateway_url,
        "admin_url": admin_url,
        "admin_token": settings.admin_token,
        "api_key": key or None,
        "redis_url": redis_url,
        "database_url": database_url,
        "upstream_url": upstream_url,
        "data_dir": str(data.path),
        "pids": supervisor.pids(),
    }
    noted = {name: facts[name] for name in NOTED} | {"keeper_database_url": keeper_url}
    data.write("up.json", noted | ca_file_of(settings))
    voice.ready(facts, first_call(options, settings, gateway_url, key))
    if options.read is not None:
        read = partial(_read_here, options.read, here)
        await _watching(supervisor, renewal_of(settings, read))


def first_call(options: Options, settings: Settings, gateway_url: str, key: str) -> str:
    """Return a curl command that works with this configuration, for the user to try first.

    It sends a chat if the upstream is given or the demo's, if the configuration has a model of OpenAI's API,
    or if a key for OpenAI is set. Otherwise it queries the usage of `key`, which needs no upstream.
    """
    upstreams = {upstream.name: upstream for upstream in settings.table.upstreams}
    if options.upstream or options.demo_upstream:
        return ports.curl_line(gateway_url, key)
    for rule in settings.table.models:
        speaks = any(upstreams[target.upstream].family == "openai" for target in rule.targets)
        if speaks and not rule.prefix and rule.organization_id == EVERYBODY and "'" not in rule.name:
            return ports.curl_line(gateway_url, key, rule.name)
    usual, ours = default_table({}).upstreams, upstreams.get("openai")
    of_openai = ours is not None and ours.base_url in {one.base_url for one in usual if one.name == "openai"}
    if ours is not None and of_openai and (ours.headers or ours.keys):
        return ports.curl_line(gateway_url, key)
    return f"curl -s {gateway_url}{USAGE_PATH} -H 'Authorization: Bearer {key}'"


def renewal_of(settings: Settings, read: Callable[[], Settings]) -> Renewal:
    """Return the `Renewal` (reload of settings) of a supervisor for its gateways and keeper."""
    return Renewal(settings, read, RENEWABLE | KEEPERS_RENEWABLE, KEPT_BY_KEEPERS)


def _complete_settings(
    written: Settings,
    *,
    secrets: dict[str, str],
    upstream_url: str,
    proxies: Proxies | None,
    redis_url: str,
    database_url: str,
    seller: dict[str, str],
    **values: str | int,
) -> Settings:
    """Return the `written` settings, completed with the servers and secrets of this machine.

    A given `upstream_url` replaces all upstreams, through these proxies. Values that the settings have
    already are kept, so that a later change of them is noticed.
    """
    settings = written.with_upstream(upstream_url, proxies) if upstream_url else written
    placed = settings.with_values(
        **values,
        **({} if settings.invoice_issuer else seller),
        redis_url=settings.redis_url or redis_url,
        database_url=settings.database_url or database_url,
        database_owner_url="",
        admin_token=settings.admin_token or secrets["admin_token"],
        key_pepper=settings.key_pepper or secrets["key_pepper"],
    )
    for feature in features():
        placed = placed.with_values(**feature.settings_here(placed, admin_url_of(placed)))
    return placed


def _read_here(read: Callable[[], Settings], here: Callable[[Settings], Settings]) -> Settings:
    """Return settings read again and completed by `here`; `SettingError` if they are invalid."""
    settings = here(read())
    settings.table.check_services({})
    return settings


async def _watching(supervisor: Supervisor, now: Renewal) -> None:
    """Apply a changed configuration and credentials, and count restarts, until cancelled.

    The keeper itself reloads tokens.
    """

    async def hand_on() -> None:
        await supervisor.tell("gateway", to_json(now.running.of_gateways))
        await supervisor.tell("keeper", to_json(now.running))

    log, told = (
        logs.logger("tollkeeper.up"),
        SettingsListener(hand_on, supervisor.voice.say, supervisor.voice.warn),
    )
    loops: dict[str, Callable[[], Awaitable[None]]] = {
        "settings": partial(keep_renewing, now, asyncio.Event(), told),
        "secrets": partial(watch_credentials, now, told),
        "restarts": partial(tell_restarts, now, partial(supervisor.children, "gateway")),
    }
    async with asyncio.TaskGroup() as group:
        for name, run in loops.items():
            group.create_task(forever(name, run, log))


async def _migrate(options: Options, database_url: str, password: str) -> str:
    """Migrate the schema as its owner; return the URL of the keeper's user, which owns nothing."""
    theirs = options.settings.database_url
    try:
        await asyncio.to_thread(options.migrate, options.settings.database_owner_url or database_url)
        return theirs or await asyncio.to_thread(options.admit_writer, database_url, password)
    except TollkeeperError as error:
        raise StartError(error.message) from error
    except Exception as error:  # any other error of the driver is reported on one line
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise StartError(f"the schema cannot be brought up to date: {lines[0]}") from error


def _ours(
    options: Options, settings: Settings, held: ReservedPort, admin: ReservedPort
) -> list[tuple[str, ProcessSpec]]:
    """Return (role, program) of the keeper and of each gateway.

    `held` and `admin` are the open ports of the gateways and of the keeper. Gateways get only their settings.
    """
    url, opener = f"{admin_url_of(settings)}/readyz", opener_of(settings, "admin")
    host = ports.reachable_host(settings.admin_host)

    async def ready(_pid: int) -> bool:
        listens = await ports.port_answers(host, settings.admin_port, 1.0)  # cheaper than a request
        return listens and await asyncio.to_thread(demo.status_of, url, None, opener) == 200

    given, told = admin.given(0, 1)
    keeper = ProcessSpec(
        "keeper", options.command("keeper", "--worker"), ready, READY_S_MAX, stdin=to_json(settings),
        given=given, environment=told, log=options.log(settings.data_dir),
    )  # fmt: skip
    workers = gateway_workers(options.command("serve", "--worker"), settings, held, READY_S_MAX)
    return [("keeper", keeper), *(("gateway", replace(worker, log=keeper.log)) for worker in workers)]


async def _start_ours(
    supervisor: Supervisor, options: Options, settings: Settings, held: ReservedPort, admin: ReservedPort
) -> None:
    """Start the keeper and the gateways on their open ports, and wait until all are ready.

    `held` is the port of the gateways, `admin` that of the keeper.
    """
    workers = settings.workers
    supervisor.voice.step(f"starting the keeper and {workers} gateway worker{'s' if workers > 1 else ''}")
    async with asyncio.TaskGroup() as group:
        for role, program in _ours(options, settings, held, admin):
            group.create_task(supervisor.run(role, program))


async def _until_answers(ask: Callable[[], int | None], wanted: int, workers: int) -> None:
    """Send requests with `ask` until a row of them get the status `wanted`, enough to reach all `workers`.

    StartError after too many tries. The kernel gives each new connection to any worker.
    """
    in_a_row, status = 0, None
    for _ in range(SERVING_TRIES_MAX):
        status = await asyncio.to_thread(ask)
        in_a_row = in_a_row + 1 if status == wanted else 0
        if in_a_row == PROBES_PER_WORKER * workers:
            return
        if status != wanted:
            await asyncio.sleep(0.2)
    hint = " to the demo key; was TOLLKEEPER_KEY_PEPPER changed?" if (wanted, status) == (200, 401) else ""
    raise StartError(f"the gateway does not serve: it answers {status or 'nothing'}{hint}")


class Supervisor:
    """The running children of one data directory, stopped in `STOP_ORDER`."""

    STOP_ORDER = ("gateway", "demo upstream", "keeper", "redis", "postgres")

    def __init__(self, data: DataDirectory, voice: Voice) -> None:
        self.data = data
        self.voice = voice
        self.held: Sequence[ReservedPort] = ()
        self._children: list[tuple[str, Child]] = []
        self._complete = False

    async def load(self, role: str, program: ProcessSpec) -> None:
        """Start a program without its settings; it loads its code until `run` is called."""
        child = Child(program, self.voice.say, self._note)
        self._children.append((role, child))
        await child.load()

    async def run(self, role: str, program: ProcessSpec) -> None:
        """Start a program and keep it running until `stop`."""
        child = next((child for child in self.children(role) if child.program.name == program.name), None)
        if child is None:
            child = Child(program, self.voice.say, self._note)
            self._children.append((role, child))
        child.program = program
        try:
            await child.start()
        except StartError:
            self._children.remove((role, child))
            raise

    async def tell(self, role: str, line: bytes) -> None:
        await asyncio.gather(*(child.tell(line) for child in self.children(role)))

    def pids(self) -> dict[str, Any]:
        """Return process ids by role; None for a process that does not run here, or is restarting."""

        def of(role: str) -> list[int]:
            return [child.pid for child in self.children(role) if child.pid is not None]

        return {
            "gateway": of("gateway"),
            **{role: next(iter(of(role)), None) for role in ("keeper", "redis", "postgres")},
        }

    def children(self, role: str) -> list[Child]:
        return [child for each, child in self._children if each == role]

    async def stop(self) -> None:
        """Stop all children, role by role, after closing the ports held for them."""
        for port in self.held:
            port.close()
        async with AsyncExitStack() as stack:  # each is stopped, whatever error another raises
            for role in reversed(self.STOP_ORDER):
                for child in self.children(role):
                    stack.push_async_callback(child.stop)
        for name in ("pids.json", "processes.json"):
            self.data.forget(name)

    def _note(self) -> None:
        """Store the running processes in the data directory; if that fails, warn and go on."""
        try:
            self._write_notes()
        except OSError as error:
            self.voice.warn(f"the data directory {self.data.path} cannot be written: {error.strerror}")

    def _write_notes(self) -> None:
        self.data.write("pids.json", self.pids())
        ours = [
            leftovers.noted_child(child.pid)
            for role, child in self._children
            if role not in {"redis", "postgres"}
        ]
        self.data.write("processes.json", {"programs": [note for note in ours if note]})


# The options of `up`, and how it starts each part.

# How long a killed keeper is still listed, with a margin.
LISTED_S = HELD_S + 1.0
_migrate_own = partial(migrate, wait_s=LISTED_S)


@dataclass(frozen=True, slots=True)
class Options:
    """The options of `up`. An empty URL means "embedded", an empty owner URL "the same"; port 0 is any free
    one.

    `demo_upstream` starts the demo's, unless `upstream` is given, the base URL of every upstream. `command`
    returns the command line of our own process; `migrate` and `admit_writer` block, and may raise any error.
    `read` rereads the settings, for changed secrets. With `apart` our own processes log to a file, since a
    person watches standard error.
    """

    settings: Settings
    upstream: str
    demo: bool
    demo_upstream: bool
    command: Callable[..., tuple[str, ...]] = command
    migrate: Callable[[str], object] = _migrate_own
    admit_writer: Callable[[str, str], str] = admit_writer
    read: Callable[[], Settings] | None = None
    apart: bool = False

    def log(self, data_dir: str | Path) -> Path | None:
        return Path(data_dir).absolute() / "logs" / LOG if self.apart else None


EXTERNAL_WAIT_S = 5.0
SHARED_MEMORY_TRIES = 20
SHARED_MEMORY_WAIT_S = 0.5
DEFAULT_PORTS = {"redis": 6379, "rediss": 6379, "postgresql": 5432, "postgres": 5432}


async def start_servers(
    supervisor: Supervisor, options: Options, secrets: dict[str, str]
) -> tuple[str, str, str]:
    """Start Redis and PostgreSQL side by side; return their URLs.

    Redis has two: one to show, and one (a socket, if there is one server) for our own processes.
    """
    data, settings = supervisor.data, options.settings
    async with asyncio.TaskGroup() as group:
        redis = group.create_task(_redis(supervisor, settings, secrets["redis_password"]))
        database = group.create_task(
            _postgres(supervisor, settings.database_url, secrets["database_password"])
        )
        group.create_task(asyncio.to_thread(schema.load))
    supervisor.voice.step(f"databases are up in {data.path}")
    told, near = redis.result()
    return told, near, database.result()


async def _redis(supervisor: Supervisor, settings: Settings, password: str) -> tuple[str, str]:
    """Start Valkey, unless an address is given; return the URL for others and the one for this machine."""
    theirs, count = settings.redis_url, settings.redis_servers
    if theirs:
        await _reachable(theirs, "Redis", "--redis-url")
        return theirs, theirs
    data = supervisor.data
    known, folders = data.read("ports.json"), data.redis_folders(count)
    before = sum(name.startswith("redis") for name in known)
    if before not in (0, count):
        raise StartError(
            f"TOLLKEEPER_REDIS_SERVERS is {count}, and {data.path} has {before}: their number is chosen once;"
            " another data directory can have another"
        )
    supervisor.voice.step("starting Valkey")
    path, found = valkey.socket_of(data.redis) if count == 1 else None, dict[str, int]()
    for folder in folders:
        folder.mkdir(mode=0o700, exist_ok=True)
        port = found[folder.name] = ports.free_port(int(known.get(folder.name, 0)))
        log = data.logs / f"{folder.name.replace('redis', 'valkey')}.log"
        await supervisor.run("redis", valkey.program(folder, log, port, password, path, servers=count))
    data.write("ports.json", data.read("ports.json") | found)
    url = valkey.url([*found.values()], password)
    return url, valkey.socket_url(path, password) if path else url


async def _postgres(supervisor: Supervisor, theirs: str, password: str) -> str:
    if theirs:
        await _reachable(theirs, "PostgreSQL", "--database-url")
        return theirs
    return await start_postgres(supervisor, password)


async def start_postgres(supervisor: Supervisor, password: str) -> str:
    """Start the embedded PostgreSQL of a data directory, created if missing; return its URL."""
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
            # Sessions of a killed server need a moment to end.
            if "shared memory block" not in error.message or not left:
                raise
            await asyncio.sleep(SHARED_MEMORY_WAIT_S)
    data.write("ports.json", data.read("ports.json") | {"postgres": port})
    return postgres.url(port, password)


def _upstream(supervisor: Supervisor, options: Options, beside: asyncio.TaskGroup) -> str | None:
    """Return the URL of the given upstream, or of the demo upstream, which starts as a task of `beside`.

    None if the options name neither.
    """
    if options.upstream or not options.demo_upstream:
        return options.upstream or None
    port = ports.free_port(int(supervisor.data.read("ports.json").get("demo_upstream", 0)))

    async def ready(_pid: int) -> bool:
        return await ports.port_answers("127.0.0.1", port, 1.0)

    argv = options.command("demo-upstream", str(port), "--worker")
    log = options.log(supervisor.data.path)
    program = ProcessSpec("demo upstream", argv, ready, stdin=b"{}", stop_max_s=5.0, log=log)
    beside.create_task(supervisor.run("demo upstream", program))
    return f"http://127.0.0.1:{port}"


async def _reachable(url: str, what: str, option: str) -> None:
    """Raise StartError if no server listens at a URL; of several hosts one is enough.

    The message names the server `what` and the `option` that has the URL.
    """
    try:
        parts, servers = split_servers(url)
    except ValueError as error:
        raise StartError(f"the URL of {what} ({option}) cannot be read: {error}") from error
    usual = DEFAULT_PORTS.get(parts.scheme.partition("+")[0], 0)
    places = [(host, port or usual) for host, port in servers if host]
    if parts.scheme == "unix" or not places:
        return
    for place in places:
        if await ports.port_answers(*place, EXTERNAL_WAIT_S / len(places)):
            return
    shown = ", ".join(authority(*place) for place in places)
    raise StartError(f"{what} at {shown} ({option}) does not answer")


# The embedded PostgreSQL of a data directory, started alone for one command.
@asynccontextmanager
async def postgres_alone(data_dir: Path) -> AsyncIterator[str]:
    with open_directory(data_dir) as data:
        supervisor = Supervisor(data, Voice())
        try:
            yield await start_postgres(supervisor, data.secrets()["database_password"])
        finally:
            await supervisor.stop()


# The ports of `up` for `up` itself: their URLs, and the trusted certificate.

# The settings of the certificate that commands present to the Admin API.
SHOWN = (f"{PREFIX}ADMIN_CERT_FILE", f"{PREFIX}ADMIN_KEY_FILE")


def check(settings: Settings) -> None:
    """Raise `SettingError` if a TLS file is unusable, or `up` has no client certificate for the Admin API."""
    check_files(settings, "gateway", "admin")
    if settings.admin_tls_client_ca_file and not all(os.environ.get(name) for name in SHOWN):
        message = f"{PREFIX}ADMIN_TLS_CLIENT_CA_FILE asks for certificates"
        raise SettingError(f"{message}, so `up` needs one of its own: set {SHOWN[0]} and {SHOWN[1]}")
    opener_of(settings, "admin")


def gateway_url_of(settings: Settings) -> str:
    """Return the URL of the gateway for this machine."""
    host = ports.reachable_host(settings.gateway_host)
    return settings.url_of("gateway", host, settings.gateway_port)


def admin_url_of(settings: Settings) -> str:
    """Return the URL of the Admin API for this machine."""
    return settings.url_of("admin", ports.reachable_host(settings.admin_host), settings.admin_port)


def opener_of(settings: Settings, port: str) -> OpenerDirector:
    """Return a URL opener for a port of ours, which trusts only the certificate that the settings name."""
    files = settings.tls_files(port)
    no_proxy = ProxyHandler({})  # our ports are on this machine: a proxy of the environment is not asked
    if files is None:
        return build_opener(no_proxy)
    # A port with an authority of clients asks for a certificate; no other port needs to see ours.
    client_files = [os.environ.get(name, "") for name in SHOWN] if files.authority else ["", ""]
    trusted_setting = f"{PREFIX}{PREFIXES[port].upper()}CERT_FILE"
    # Errors on the client's files name the settings in SHOWN, whichever the port.
    tls = pinned(TlsFiles(files.certificate, *client_files), f"{PREFIX}ADMIN_", trusted_setting)
    return build_opener(no_proxy, HTTPSHandler(context=tls))


def ca_file_of(settings: Settings) -> dict[str, str]:
    """Return {"admin_ca_file": path}, for commands that use this data directory; {} without TLS."""
    files = settings.tls_files("admin")
    return {"admin_ca_file": str(Path(files.certificate).absolute())} if files is not None else {}
