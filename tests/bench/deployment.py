"""A deployment of any size: PostgreSQL that fills itself, keepers and gateways as processes, calls by us.

Who calls is in PostgreSQL alone at first: a keeper that starts brings Redis to it, as after a loss.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import psycopg
import redis

from gateway.core.model import PARTITIONS
from gateway.counters.redis import keys
from gateway.settings.config_file import default_table
from gateway.settings.settings import Settings
from tests.bench.machine import BenchError, cpu_s, rss_mib, signal_all
from tests.conftest import ValkeyServer, free_port
from tests.faults.servers import Program
from tests.valkey_cluster import ValkeyCluster

PEPPER = "scale-pepper-0123456789abcdef"
ADMIN_TOKEN = "scale-admin-token-0123456789"
GRANTED = 10**12
READY_S_MAX = 300.0
LOOK_S = 0.05
LIMITS = json.dumps({"requests_per_minute": 10**7, "tokens_per_minute": 10**10, "concurrency": 10**5})
# From `first` to `last`: an organization each, and in it a tenant with a quota that has begun.
TENANTS = (
    "INSERT INTO organization (name) SELECT 'o' || n FROM generate_series({first}, {last}) AS n",
    """INSERT INTO tenant (organization_id, name, plan_id, user_limits)
SELECT n, 't' || n, 1, '{user_limits}' FROM generate_series({first}, {last}) AS n""",
    """INSERT INTO tenant_quota (tenant_id, plan_id, total, tokens_remaining, tokens_granted, last_seq, epoch,
                          cycle)
SELECT n, 1, {granted}, {granted}, {granted}, 1, 1, 1 FROM generate_series({first}, {last}) AS n""",
    """INSERT INTO token_ledger (tenant_id, transaction_type, amount, total_remaining, direction, created_at,
                          epoch, seq, cycle)
SELECT n, 'reset', {granted}, {granted}, 'IN', now(), 1, 1, 1 FROM generate_series({first}, {last}) AS n""",
)
# A key's digest is its HMAC under the pepper: RFC 2104 with SHA-256, whose blocks have 64 bytes.
KEYS = """INSERT INTO api_key (tenant_id, name, digest, prefix)
SELECT 1 + n % {tenants}, 'k' || n, encode(sha256(decode('{outer}', 'hex') || sha256(
           decode('{inner}', 'hex') || convert_to('tk_' || lpad(n::text, 29, '0'), 'UTF8'))), 'hex'),
       'tk_00000'
  FROM generate_series({first}, {last}) AS n"""
INNER, OUTER = (bytes(one ^ pad for one in PEPPER.encode().ljust(64, b"\0")).hex() for pad in (0x36, 0x5C))
PLAN = "INSERT INTO token_plan (name, total_amount, reset_interval) VALUES ('scale', {granted}, 'none')"
USERS = """INSERT INTO app_user (organization_id, external_id)
SELECT 1, 'user-' || lpad(n::text, 7, '0') FROM generate_series({first}, {last}) AS n"""


def key_of(number: int) -> str:
    """The API key with a number, from 0."""
    return f"tk_{number:029d}"


class Filled:
    """A database with so many tenants, keys and users; it only grows."""

    def __init__(self, server: str, name: str) -> None:
        self._server, self._name = server, name
        self.url = server.rsplit("/", 1)[0] + f"/{name}"
        self.tenants = self.keys = self.users = 0

    def make(self, template: str) -> None:
        """Make the database as the template is: migrated, with nobody in it."""
        with psycopg.connect(self._server, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {self._name} TEMPLATE {template}".encode())
        self._run(PLAN)

    def grow(self, tenants: int, all_keys: int, users: int) -> None:
        """Add what is missing; key n is of the tenant n modulo how many there are, users are of the first."""
        bounds = json.dumps(json.loads(LIMITS)) if users else "{}"
        if tenants > self.tenants:
            self._run(*TENANTS, first=self.tenants + 1, last=tenants, user_limits=bounds)
        if users > self.users:
            self._run(USERS, first=self.users + 1, last=users)
        if all_keys > self.keys:
            places = {"first": self.keys, "last": all_keys - 1, "tenants": tenants}
            self._run(KEYS, **places, inner=INNER, outer=OUTER)
        self._run("ANALYZE")
        self.tenants, self.keys, self.users = tenants, all_keys, users

    def drop(self) -> None:
        """Remove it, whoever is connected."""
        with psycopg.connect(self._server, autocommit=True) as connection:
            connection.execute(f"DROP DATABASE IF EXISTS {self._name} WITH (FORCE)".encode())

    def rows(self) -> int:
        """Calls in the ledger."""
        with psycopg.connect(self.url) as connection:
            query = "SELECT count(*) FROM token_ledger WHERE transaction_type = 'consume'"
            found = connection.execute(query).fetchone()
        return int(found[0]) if found else 0

    def _run(self, *statements: str, **values: object) -> None:
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute("SET session_replication_role = replica")
            for one in statements:
                connection.execute(one.format(granted=GRANTED, **values).encode())


class Counters:
    """One Valkey, or a cluster of three, as the measurements ask it."""

    def __init__(self, folder: Path, shards: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._cluster = ValkeyCluster(folder) if shards > 1 else None
        self._one = None if self._cluster else ValkeyServer(folder, "--appendonly", "no")

    def start(self) -> None:
        """Start it and wait until it answers."""
        (self._cluster or self._one).start()  # type: ignore[union-attr]  # one of them is there

    def stop(self) -> None:
        """End it."""
        (self._cluster or self._one).stop()  # type: ignore[union-attr]  # one of them is there

    @property
    def url(self) -> str:
        """The address of all of it."""
        return (self._cluster or self._one).url  # type: ignore[union-attr]  # one of them is there

    def _servers(self) -> Sequence[ValkeyServer]:
        return self._cluster.primaries if self._cluster else [self._one]  # type: ignore[list-item]  # one is there

    def pids(self) -> list[int]:
        """Processes that serve calls: the primaries."""
        return [one.process.pid for one in self._servers() if one.process is not None]

    def summed(self, field: str) -> int:
        """A number of INFO, over all primaries."""
        total = 0
        for one in self._servers():
            with redis.Redis(port=one.port, socket_timeout=30) as client:
                total += int(client.info()[field])
        return total

    def empty(self) -> None:
        """Forget everything."""
        for one in self._servers():
            with redis.Redis(port=one.port, socket_timeout=60) as client:
                client.flushall()

    def waiting(self) -> int:
        """Entries of the outbox."""
        clients = {one.port: redis.Redis(port=one.port, socket_timeout=30) for one in self._servers()}
        try:
            if self._cluster is None:
                (client,) = clients.values()
                pipe = client.pipeline(transaction=False)
                for partition in range(PARTITIONS):
                    pipe.xlen(keys.outbox(partition))
                return sum(pipe.execute())
            return sum(
                int(clients[one.port].xlen(keys.outbox(partition)))
                for one in self._cluster.primaries
                for partition in self._cluster.partitions_of(one)
            )
        finally:
            for client in clients.values():
                client.close()


@dataclass(frozen=True, slots=True)
class Running:
    """A process of ours and the port it answers on."""

    program: Program
    port: int


class Deployment:
    """Keepers and gateways over a database and a Redis; all are ended by `stop`."""

    def __init__(self, folder: Path, filled: Filled, counters: Counters, upstream_port: int) -> None:
        self.filled, self.counters = filled, counters
        self.keepers: list[Running] = []
        self.gateways: list[Running] = []
        self._folder, self._upstream, self._made = folder, f"http://127.0.0.1:{upstream_port}", 0

    def add_keeper(self) -> Running:
        """Start one more keeper."""
        port = free_port()
        one = self._start(
            "keeper", port, admin_port=port, admin_token=ADMIN_TOKEN, database_url=self.filled.url
        )
        self.keepers.append(one)
        return one

    def add_gateway(self) -> Running:
        """Start one more gateway, of one worker."""
        port = free_port()
        one = self._start("serve", port, gateway_port=port)
        self.gateways.append(one)
        return one

    def _start(self, role: str, port: int, **values: object) -> Running:
        self._made += 1
        folder = self._folder / f"{role}{self._made}"
        folder.mkdir()
        settings = Settings(key_pepper=PEPPER, log_level="warning").with_values(
            redis_url=self.counters.url, data_dir=str(folder), flush_interval_s=0.05, **values
        )
        if role == "serve":
            settings = settings.with_table(default_table({})).with_upstream(self._upstream)
        program = Program(role, settings, self._folder / f"{role}{self._made}.log")
        program.start()
        return Running(program, port)

    def remove(self, group: list[Running]) -> None:
        """Stop all of a group in order."""
        for one in group:
            one.program.send(signal.SIGTERM)
        for one in group:
            one.program.stop()
        group.clear()

    def stop(self) -> None:
        """Stop everything of ours."""
        self.thaw()
        self.remove(self.gateways)
        self.remove(self.keepers)

    def freeze(self) -> None:
        """Stop the keepers where they are."""
        signal_all([one.program.pid for one in self.keepers], signal.SIGSTOP)

    def thaw(self) -> None:
        """Let them go on."""
        signal_all([one.program.pid for one in self.keepers], signal.SIGCONT)

    def until_whole(self) -> float:
        """Wait until a keeper says that every partition is served; seconds since it was asked first."""
        return until(self.is_whole, "the keeper verifies")

    def is_whole(self, number: int = 0) -> bool:
        """Whether a keeper says that every partition is served."""
        return _whole(self.keepers[number].port)

    def drain(self) -> float:
        """Wait until every entry is a row; seconds."""
        return until(lambda: self.counters.waiting() == 0, "rows are written")

    def cpu_s(self, group: Iterable[Running]) -> float:
        """CPU that a group has used so far, seconds."""
        return cpu_s(one.program.pid for one in group)

    def memory_mib(self, group: Iterable[Running]) -> float:
        """Memory of one of a group, MiB: of the one that has most."""
        return max(rss_mib(one.program.pid) for one in group)


def until(true: Callable[[], bool], what: str, within_s: float = READY_S_MAX) -> float:
    """Wait for something; seconds it took."""
    began = time.monotonic()
    while not true():
        if time.monotonic() - began > within_s:
            raise BenchError(f"not within {within_s:g} s: {what}")
        time.sleep(LOOK_S)
    return time.monotonic() - began


def _whole(port: int) -> bool:
    with (
        suppress(OSError, URLError, ValueError),
        urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer,
    ):
        said: dict[str, bool] = json.loads(answer.read())["dependencies"]
        return all(said.values())
    return False


class Outside:
    """The upstream and the client, in a process of their own: what they take of a core is nobody's cost."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.caller"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.port = int(self._told()["port"])
        self.others: dict[str, int] = {}

    def call(self, ports: Sequence[int], first: int, count: int, of_keys: int, users: int) -> int:
        """Make calls; how many were answered 200. What became of others is in `others`, by status."""
        wish = {"ports": list(ports), "first": first, "count": count, "keys": of_keys, "users": users}
        assert self._process.stdin is not None
        print(json.dumps(wish), file=self._process.stdin, flush=True)
        told = self._told()
        self.others = told["others"]
        return int(told["served"])

    def _told(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise BenchError("the client ended")
        found: dict[str, Any] = json.loads(line)
        return found

    def close(self) -> None:
        """End it."""
        self._process.communicate()
