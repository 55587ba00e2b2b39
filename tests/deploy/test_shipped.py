"""`doctor` passes on each example that is shipped, and finds in each what is wrong with it."""

from __future__ import annotations

import asyncio
import os
import re
import ssl
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
import redis
import trustme

from gateway.counters.redis.address import parse_url
from gateway.counters.redis.connection import RedisConnection
from gateway.ops.doctor import examine
from gateway.ops.doctor_redis import Finding
from gateway.settings.config_file import default_table
from gateway.settings.settings import load
from persistence.schema import migrate
from tests.conftest import ValkeyServer
from tests.deploy import shipped
from tests.deploy.shipped import DEPLOY, Program, Servers
from tests.ops.test_doctor_users import GATEWAY, KEEPER, as_user, users
from tests.proxy_server import HERE, ProxyServer
from tests.tree import ROOT

# Of files under deploy/ these say how a process is started, or what it is started with.
SAYS = re.compile(
    r"TOLLKEEPER_[A-Z]|\btollkeeper (?:serve|keeper)\b|^(?:settings|upstreams|routes):", re.MULTILINE
)
# Those are no examples: they make the image or the release, document, watch, or run beside the others.
NO_EXAMPLES = re.compile(
    r"\.(?:md|py|sh|acl|json)$|^Dockerfile|^(?:monitoring|providers)/|(?:backup|archive)\.(?:service|timer)$|\.socket$"
)
NEEDED = {f"TOLLKEEPER_{name}" for name in ("KEY_PEPPER", "REDIS_URL", "DATABASE_URL", "ADMIN_TOKEN")}


@dataclass(frozen=True)
class Place:
    """Servers of this machine, and the way to every upstream: a proxy that leads to one that speaks TLS."""

    servers: Servers
    admin: redis.Redis
    proxy: ProxyServer
    folder: Path
    programs: dict[str, Program]
    untried: list[str]

    def wrong(self, program: Program, without: str = "") -> dict[str, str]:
        """What `doctor` finds wrong with a program, by subject; `without` one of its variables."""
        ways = {f"{name}_PROXY": f"http://{HERE}:{self.proxy.port}" for name in ("HTTP", "HTTPS")}
        given = {
            name: text for name, text in program.environ.items() if name.removesuffix("_FILE") != without
        }
        settings = load({**given, **ways, "TOLLKEEPER_DATA_DIR": str(self.folder)}, program.config)

        async def look() -> list[Finding]:
            return [each async for each in examine(settings, program.role)]

        found = asyncio.run(look())
        assert {"settings", "redis", "data directory"} <= {each.subject for each in found}
        return {each.subject: each.says for each in found if each.well is False}


@pytest.fixture(scope="module")
def servers(postgres: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Servers, str]]:
    """Redis as the compose file starts it, with the users of deploy/, and PostgreSQL with a keeper's."""
    valkey = ValkeyServer(
        tmp_path_factory.mktemp("valkey"), "--appendonly", "yes", "--appendfsync", "everysec",
        "--maxmemory", "64mb",
    )  # fmt: skip
    valkey.start()
    name = f"t{os.getpid()}_shipped"
    with psycopg.connect(postgres, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}")
        admin.execute(f"CREATE ROLE {name}_writer LOGIN")
    database = f"{postgres.rpartition('/')[0]}/{name}"
    migrate.upgrade(database)
    gateway, keeper = (as_user(valkey, user, users()[user]) for user in (GATEWAY, KEEPER))
    yield Servers(gateway, keeper, database.replace("postgres@", f"{name}_writer@")), valkey.url
    valkey.stop()
    with psycopg.connect(postgres, autocommit=True) as admin:
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
        admin.execute(f"DROP ROLE {name}_writer")


@pytest.fixture(scope="module")
def place(servers: tuple[Servers, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Upstreams are what the examples name them; whoever asks for one gets to a server here."""
    here, url = servers
    folder = tmp_path_factory.mktemp("shipped")
    found, untried = [*shipped.by_hand(here), *shipped.of_compose(here), *shipped.of_units(here)], []
    try:
        found += shipped.of_chart(here, folder)
    except pytest.skip.Exception as error:  # Helm cannot be had here
        untried.append(str(error))
    programs = {one.name: one for one in found}
    assert len(programs) == len(found)
    targets = [target for one in found for target in load(one.environ, one.config).upstreams]
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    hosts = {urlsplit(target.base_url).hostname or "" for target in targets}
    authority.issue_cert(*sorted(hosts)).configure_cert(context)
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    proxy = ProxyServer()
    with (
        pytest.MonkeyPatch.context() as patched,
        ProxyServer().running(context) as upstream,
        proxy.running(),
        redis.Redis.from_url(url) as admin,
    ):
        proxy.leads_to = HERE, upstream.port
        patched.setenv("SSL_CERT_FILE", str(folder / "ca.pem"))
        asyncio.run(_bring_scripts(url))
        yield Place(here, admin, proxy, folder, programs, untried)


async def _bring_scripts(url: str) -> None:
    """Load them, as the first keeper does."""
    wire = RedisConnection(parse_url(url), time.monotonic)
    await wire.open()
    await wire.close()


def test_doctor_passes_on_every_example(place: Place) -> None:
    assert {one.role for one in place.programs.values()} == {"serve", "keeper"}
    assert {one.name: found for one in place.programs.values() if (found := place.wrong(one))} == {}


def test_doctor_finds_in_each_example_what_was_not_filled_in(place: Place) -> None:
    looked = 0
    for one in place.programs.values():
        given = {name.removesuffix("_FILE") for name in one.environ}
        for variable in NEEDED & given:
            found = place.wrong(one, without=variable)
            assert any(variable in says for says in found.values()), (one.name, variable, found)
            looked += 1
    assert looked >= 2 * len(place.programs)


def test_doctor_finds_in_each_example_what_is_wrong_around_it(place: Place) -> None:
    """A Redis that drops counters, a password that is not the user's, and upstreams that nobody reaches."""
    proxy, leads_to = place.proxy, place.proxy.leads_to
    place.admin.config_set("maxmemory-policy", "allkeys-lru")
    proxy.says = b"HTTP/1.1 502 Bad Gateway\r\n\r\n"
    try:
        for one in place.programs.values():
            found = place.wrong(one)
            assert "maxmemory-policy" in str(found), one.name
            called = [subject for subject in found if subject.startswith("upstream ")]
            targets = load(one.environ, one.config).upstreams if one.role == "serve" else ()
            named = any(each not in default_table({}).upstreams for each in targets)
            assert bool(called) is named, one.name
            assert all("502 to CONNECT" in found[subject] for subject in called)
    finally:
        place.admin.config_set("maxmemory-policy", "noeviction")
        proxy.says, proxy.leads_to = None, leads_to


def test_no_example_is_forgotten(place: Place) -> None:
    """What says how a process is started is read by one of those above, or is named as what it is instead."""
    if place.untried:
        pytest.skip("; ".join(place.untried))
    known = {path.resolve() for one in place.programs.values() for path in one.of}
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "deploy"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout.splitlines()  # fmt: skip
    files = [ROOT / name for name in listed] or [path for path in DEPLOY.rglob("*") if path.is_file()]
    for path in files:
        name = path.relative_to(DEPLOY).as_posix()
        if path.is_file() and not NO_EXAMPLES.search(name) and SAYS.search(path.read_text(errors="replace")):
            assert path.resolve() in known, f"deploy/{name} is an example that nobody tries"
