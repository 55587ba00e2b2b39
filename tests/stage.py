"""One Tollkeeper in the test's own process: what a stack has in seven processes, in the loop of one thread.

A gateway worker, a keeper with all its loops, and its Admin API, composed by what composes them in their own
processes, on a Valkey and a database of their own; the demo upstream is in the same loop. It is made once for
all tests that ask for it, each of which has organizations of its own. Tests of processes, signals, files and
commands need a stack.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import cast

import uvloop

from gateway.app import serve_calls
from gateway.core.network import DIRECT
from gateway.local import ports
from gateway.local.data_directory import open_directory
from gateway.local.demo import seed, upstream
from gateway.local.parent_pipe import ParentPipe
from gateway.local.ports import ReservedPort
from gateway.local.processes import Child, ProcessSpec
from gateway.run.administration import Administration
from gateway.run.keeper import Keeper
from gateway.settings.settings import Settings, load
from gateway.telemetry.logs import OURS, JsonLines
from tests.conftest import ValkeyServer, free_port
from tests.databases import own_database
from tests.journey.stack import Stack
from tests.persistence.migrated import template_of
from tests.stacks import Switch
from tests.waiting import HUNG_S, wait_until

PLAIN = {"INVOICE_ISSUER": "Journeys Ltd"}


class PeopleHere:
    """The process of a keeper for people, as the keeper knows it, in the loop of that keeper."""

    program: ProcessSpec
    restarts: Mapping[str, int] = Counter()

    def __init__(self, settings: Settings, port: ReservedPort) -> None:
        self._settings, self._port = settings, port
        self._administration: Administration | None = None

    def listen(self, told: Callable[[bytes], object]) -> None:
        """Have lines of the keeper told, as a process has those of its pipe."""
        self._told = told

    async def start(self) -> None:
        self._administration = Administration(self._settings, cast("ParentPipe", self))
        await self._administration.start([one.dup() for one in self._port.sockets])

    async def send(self, line: bytes) -> None:
        self._told(line)

    async def stop(self) -> None:
        if self._administration is not None:
            await self._administration.stop()


async def keep(settings: Settings, stop: asyncio.Event, begun: Callable[[], object] = lambda: None) -> None:
    """Be a keeper with its Admin API until `stop` is set."""
    port = ports.held_port(settings.admin_host, settings.admin_port, "Admin API of a stage")
    keeper = Keeper(settings, people=(port, cast("Child", PeopleHere(settings, port))))
    try:
        if await keeper.start(stop):
            begun()
            await stop.wait()
    finally:
        await keeper.stop()


class Stage(Stack):
    """A gateway, a keeper and its Admin API in a thread; attributes as the line of `up` names them."""

    together = 1
    server: ValkeyServer

    def __init__(
        self, data_dir: Path, redis_url: str, database_url: str, config: Path | None = None, **environ: str
    ) -> None:
        self.data_dir, self.log = data_dir, data_dir.parent / f"{data_dir.name}.log"
        self.redis_url, self.database_url = redis_url, database_url
        self._config = config
        self._environ = {f"TOLLKEEPER_{name}": value for name, value in (PLAIN | environ).items()}
        self._logs = logging.FileHandler(self.log)
        self._logs.setFormatter(JsonLines())
        logging.getLogger(OURS).addHandler(self._logs)
        self.start()

    def start(self) -> None:
        """Begin the thread, and wait until calls are answered."""
        self._ended, self._failed = threading.Event(), list[BaseException]()
        self._begun = threading.Event()
        self._thread = threading.Thread(target=self._run, name="stage", daemon=True)
        self._thread.start()
        wait_until(lambda: self._begun.is_set() or self._failed, HUNG_S)
        self._raise()
        with open_directory(self.data_dir) as data:
            self.api_key = seed.seed(data, self.admin_url, self.admin_token, self.database_url)
        wait_until(self._answers, HUNG_S)

    def stop(self) -> int:
        """End all of it in its order."""
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(HUNG_S)
        assert not self._thread.is_alive()
        logging.getLogger(OURS).removeHandler(self._logs)
        self._logs.close()
        self._raise()
        return 0

    def _raise(self) -> None:
        for error in self._failed:
            raise error

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(self._serve())
        except BaseException as error:  # noqa: BLE001  # told in the thread of the test
            self._failed.append(error)

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        demo = await upstream.serve("127.0.0.1", 0)
        port = demo.sockets[0].getsockname()[1]
        self.upstream_url = f"http://127.0.0.1:{port}"
        self.switch = Switch(port)
        # A test may change the upstream of a stage with settings of its own.
        settings = self._settings(self.switch.url if self._config else self.upstream_url)
        self.admin_token = settings.admin_token
        self.gateway_url = settings.url_of("gateway", settings.gateway_host, settings.gateway_port)
        self.admin_url = settings.url_of("admin", settings.admin_host, settings.admin_port)
        begun, no_calls, no_keeper = asyncio.Event(), asyncio.Event(), asyncio.Event()
        async with asyncio.TaskGroup() as both:
            both.create_task(keep(settings, no_keeper, begun.set))
            await begun.wait()
            calls = both.create_task(serve_calls(settings.of_gateways, no_calls))
            self._begun.set()
            await self._stop.wait()
            no_calls.set()
            await calls
            no_keeper.set()
        self.switch.stop()
        demo.close()

    def _settings(self, upstream_url: str) -> Settings:
        return (
            load(self._environ, self._config)
            .with_upstream(upstream_url, DIRECT)
            .with_values(
                gateway_port=free_port(), admin_port=free_port(), data_dir=str(self.data_dir),
                redis_url=self.redis_url, database_url=self.database_url, **seed.DEMO_SELLER,
                admin_token=secrets.token_urlsafe(), key_pepper=secrets.token_urlsafe(),
            )
        )  # fmt: skip


@contextmanager
def staged(postgres: str, config: Path | None = None, **environ: str) -> Iterator[Stage]:
    """A stage on servers of its own."""
    with tempfile.TemporaryDirectory(prefix="tollkeeper-stage-") as folder, ExitStack() as ends:
        server = ValkeyServer(Path(folder))
        server.start()
        ends.callback(server.stop)
        name = f"stage{os.getpid()}_{time.monotonic_ns()}"
        database = ends.enter_context(own_database(postgres, name, template_of(postgres)))
        one = Stage(Path(folder) / "data", server.url, database, config, **environ)
        one.server = server
        ends.callback(one.stop)
        yield one
