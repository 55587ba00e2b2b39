"""One deployment to break: Valkey, PostgreSQL, gateways, keepers, and a proxy on every link between them.

Processes are real and each is one this world started. Everything the harness does itself (proxies,
upstream, callers) runs on one event loop; what blocks goes to a thread.
"""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import psycopg
import redis
import uvloop

from gateway.settings.config_file import default_table
from gateway.settings.settings import Settings
from persistence.schema import migrate
from tests.conftest import free_port
from tests.faults.proxy import Proxy
from tests.faults.servers import Postgres, Program, Valkey
from tests.faults.truth import Upstream

T = TypeVar("T")
ADMIN_TOKEN = "faults-admin-token-0123456789"
PEPPER = "faults-pepper-0123456789abcdef"
HOLD_TTL_S = 3.0
# Long enough for a machine that does much else: nobody waits longer than it takes.
SERVING_S_MAX = 180.0
LOOK_S, ENDED_S_MAX = 0.02, 10.0


class FaultError(AssertionError):
    """A promise was broken, or the harness could not go on; the message says which."""


class MissingError(FaultError):
    """A row needs a program that is not here and cannot be had."""


@dataclass(slots=True)
class Node:
    """A gateway or a keeper with the proxies on its links. `port` is its own, behind no proxy."""

    program: Program
    port: int
    redis: Proxy
    sql: Proxy | None = None
    clients: Proxy | None = None

    def door(self) -> int:
        """The port where callers find it: its proxy's, or its own."""
        return self.clients.port if self.clients is not None else self.port


class World:
    """The deployment. `seed` decides everything that is drawn."""

    program_of: Callable[..., Program] = Program
    loop_of: Callable[[], asyncio.AbstractEventLoop] = staticmethod(uvloop.new_event_loop)

    def __init__(self, seed: int, *, gateways: int = 2, keepers: int = 1, **settings: Any) -> None:
        self.seed = seed
        self.draw = random.Random(seed)
        self.loop = self.loop_of()
        self.folder = Path(tempfile.mkdtemp(prefix="tollkeeper-faults-"))
        self.valkey = Valkey(self.folder / "valkey")
        self.postgres = Postgres(self.folder / "postgres")
        self.upstream = Upstream(seed)
        self.upstream_link = Proxy(0)
        self.gateways: list[Node] = []
        self.keepers: list[Node] = []
        self.restarts = True
        self._settings = settings
        self._sizes = gateways, keepers
        self._minding: asyncio.Task[None] | None = None

    # --- beginning and end ---------------------------------------------------------------

    def open(self) -> World:
        """Start everything and wait until it serves."""
        try:
            self.run(self._open())
        except BaseException:
            self.close()
            raise
        return self

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the world's loop."""
        return self.loop.run_until_complete(work)

    def close(self) -> None:
        """Stop everything and remove what it left."""
        self.restarts = False
        with suppress(Exception):
            self.run(self._close())
        for node in [*self.gateways, *self.keepers]:
            if node.program.process is not None and node.program.ended is None:
                node.program.process.kill()
                node.program.process.wait()
        self.stop_redis()
        self.postgres.stop()
        self.loop.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    async def _open(self) -> None:
        gateways, keepers = self._sizes
        await self.upstream.start()
        self.upstream_link.target = ("127.0.0.1", self.upstream.port)
        await self.upstream_link.start()
        await asyncio.to_thread(self.postgres.initialise)
        await asyncio.gather(asyncio.to_thread(self.postgres.start), self.start_redis())
        await asyncio.to_thread(migrate.upgrade, self.postgres.url)
        for _ in range(keepers):
            await self.add_keeper()
        for _ in range(gateways):
            await self.add_gateway()
        self._minding = asyncio.create_task(self._mind())
        await self.until(lambda: all(one.program.ended is None for one in self.keepers))
        await self.until_admin()

    async def _close(self) -> None:
        if self._minding is not None:
            self._minding.cancel()
        for node in self.gateways:
            node.program.crash = None
            await asyncio.to_thread(node.program.stop)
        for node in self.keepers:
            await asyncio.to_thread(node.program.stop)
        for proxy in self.links():
            await proxy.stop()
        await self.upstream.stop()
        left = asyncio.all_tasks() - {asyncio.current_task()} - self.dead_tasks()
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left, timeout=ENDED_S_MAX)

    def dead_tasks(self) -> set[asyncio.Task[Any]]:
        """Return tasks that never end."""
        return set()

    async def start_redis(self) -> None:
        """Start Redis and wait until it answers."""
        await asyncio.to_thread(self.valkey.start)

    def stop_redis(self) -> None:
        """End it without a word."""
        self.valkey.kill()

    def redis_address(self, link: Proxy) -> str:
        """Where a node with this proxy finds Redis."""
        return f"redis://127.0.0.1:{link.port}/0"

    def links(self) -> list[Proxy]:
        """Every proxy there is."""
        nodes = [*self.gateways, *self.keepers]
        found = [self.upstream_link, *(node.redis for node in nodes)]
        found += [one for node in nodes for one in (node.sql, node.clients) if one is not None]
        return found

    async def add_gateway(self, **environment: str) -> Node:
        """Start one more gateway."""
        link, clients = Proxy(self.valkey.port), Proxy(free_port())
        await link.start()
        await clients.start()
        number = len(self.gateways)
        made = self._made(
            redis_url=self.redis_address(link),
            gateway_port=clients.target[1],
            data_dir=str(self.folder / f"gateway{number}"),
        )
        upstream = f"http://127.0.0.1:{self.upstream_link.port}"
        settings = made.with_table(default_table({})).with_upstream(upstream)
        Path(settings.data_dir).mkdir(exist_ok=True)
        program = self.program_of("serve", settings, self.folder / f"gateway{number}.log", **environment)
        node = Node(program, clients.target[1], link, None, clients)
        self.gateways.append(node)
        program.start()
        return node

    async def add_keeper(self, **environment: str) -> Node:
        """Start one more keeper."""
        link, sql = Proxy(self.valkey.port), Proxy(self.postgres.port)
        await link.start()
        await sql.start()
        number, port = len(self.keepers), free_port()
        settings = self._made(
            redis_url=self.redis_address(link),
            database_url=f"postgresql://postgres@127.0.0.1:{sql.port}/postgres",
            admin_token=ADMIN_TOKEN,
            admin_port=port,
            flush_interval_s=0.05,
            data_dir=str(self.folder / f"keeper{number}"),
        )
        Path(settings.data_dir).mkdir(exist_ok=True)
        program = self.program_of("keeper", settings, self.folder / f"keeper{number}.log", **environment)
        node = Node(program, port, link, sql)
        self.keepers.append(node)
        program.start()
        return node

    async def remove(self, node: Node) -> None:
        """Stop one in order and forget it."""
        for group in (self.gateways, self.keepers):
            if node in group:
                group.remove(node)
        await asyncio.to_thread(node.program.stop)
        for link in (node.redis, node.sql, node.clients):
            if link is not None:
                await link.stop()

    def _made(self, **values: Any) -> Settings:
        return Settings(key_pepper=PEPPER, hold_ttl_s=HOLD_TTL_S, log_level="info").with_values(
            **values, **self._settings
        )

    async def _mind(self) -> None:
        """Start again what ended, as a supervisor would."""
        while True:
            for node in [*self.gateways, *self.keepers]:
                if self.restarts and node.program.ended is not None:
                    node.program.start()
            await asyncio.sleep(LOOK_S)

    def logs(self) -> list[Path]:
        """Where each process says what it does."""
        return [node.program.log for node in [*self.gateways, *self.keepers]]

    # --- looking -------------------------------------------------------------------------

    async def until(self, check: Callable[[], Any], within_s: float = SERVING_S_MAX, what: str = "") -> Any:
        """What `check` answers once it is true; `FaultError` where it never is in time."""
        end = self.loop.time() + within_s
        while not (found := check()):
            if self.loop.time() > end:
                raise FaultError(f"not within {within_s:g} s: {what or check}")
            await asyncio.sleep(LOOK_S)
        return found

    async def until_admin(self, within_s: float = SERVING_S_MAX) -> None:
        """Wait until a keeper is ready."""
        end = self.loop.time() + within_s
        while not await asyncio.to_thread(self._is_ready):
            if self.loop.time() > end:
                raise FaultError(f"no keeper is ready within {within_s:g} s")
            await asyncio.sleep(LOOK_S)

    def _is_ready(self) -> bool:
        with suppress(OSError):
            return bool(self.ready())
        return False

    def ready(self) -> dict[str, Any]:
        """What `/readyz` of a keeper that is ready says; OSError where it is not."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.keepers[0].port}/readyz", timeout=2) as answer:
            return dict(json.load(answer))

    def counters(self) -> redis.Redis:
        """A client of the Redis itself, behind no proxy."""
        return self.counters_of(self.valkey)

    def counters_of(self, valkey: Valkey) -> redis.Redis:
        """A client of some Redis."""
        return redis.Redis(port=valkey.port, socket_timeout=10)

    def rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """Rows of PostgreSQL itself, behind no proxy; none of a command that has none."""
        with psycopg.connect(self.postgres.url, connect_timeout=5, autocommit=True) as connection:
            found = connection.execute(query.encode(), values or None)
            return found.fetchall() if found.description else []

    def admin(self, method: str, path: str, body: Any = None, keeper: int = 0) -> Any:
        """One call of the Admin API that must succeed; its JSON."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.keepers[keeper].port}/admin/v1{path}",
            method=method,
            data=json.dumps(body).encode() if body is not None else None,
            headers={"authorization": f"Bearer {ADMIN_TOKEN}", "content-type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as error:
            raise FaultError(f"{method} {path}: {error.code} {error.read()[:300]!r}") from error

    def metrics(self, keeper: int = 0) -> dict[str, float]:
        """Samples of a keeper's metrics by name and labels as written."""
        url = f"http://127.0.0.1:{self.keepers[keeper].port}/metrics"
        with urllib.request.urlopen(url, timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        return {name: float(value) for name, _, value in (x.rpartition(" ") for x in lines if x[:1] != "#")}
