"""Where Redis is, as its URL says: what is read of it, and what is refused since nobody would read it."""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trustme

from gateway.core.certificates import TlsFiles
from gateway.core.wait import in_task
from gateway.counters.redis.address import (
    WHY,
    ask_apart,
    facts_of,
    files_failing,
    parse_url,
    primary,
    refusal_in,
    replica_lags,
    why_refused,
)
from gateway.counters.redis.calls import Reply
from gateway.counters.redis.cluster import view_apart
from gateway.counters.redis.connection import RedisConnection, encode
from gateway.errors import CountersUnavailable, SettingError
from gateway.files import UrlFile
from tests.conftest import ValkeyServer
from tests.counters.conftest import Connect
from tests.waiting import eventually


@pytest.mark.parametrize(
    ("url", "host", "port", "database"),
    [
        ("redis://one", "one", 6379, 0),
        ("redis://one:7000/4", "one", 7000, 4),
        ("redis://[::1]:7000", "::1", 7000, 0),
        ("rediss://user:pw@one", "one", 6379, 0),
    ],
)
def test_addresses(url: str, host: str, port: int, database: int) -> None:
    address = parse_url(url)
    assert (address.host, address.port, address.database) == (host, port, database)
    assert (address.tls is not None) is url.startswith("rediss")


def test_sentinels_are_an_address() -> None:
    address = parse_url("redis+sentinel://me:p%40w@one:7000,[::1]/main/4?username=u&password=s%26t")
    assert (address.sentinels, address.primary_name) == ((("one", 7000), ("::1", 26379)), "main")
    assert (address.username, address.password, address.database) == ("me", "p@w", 4)
    assert (address.sentinel_username, address.sentinel_password) == ("u", "s&t")
    assert "p@w" not in repr(address)
    assert "s&t" not in repr(address)
    assert parse_url("rediss+sentinel://one/main").tls is not None


def test_members_of_a_cluster_are_an_address() -> None:
    address = parse_url("redis+cluster://me:p%40w@one:7000,[::1]")
    assert address.members == (("one", 7000), ("::1", 6379))
    assert (address.username, address.password, address.sentinels) == ("me", "p@w", ())
    assert "p@w" not in repr(address)
    assert parse_url("rediss+cluster://one").tls is not None


def test_servers_that_share_the_data_are_an_address() -> None:
    address = parse_url("redis+shards://me:p%40w@one:7000,[::1]/2")
    assert (address.shards, address.members, address.database) == ((("one", 7000), ("::1", 6379)), (), 2)
    assert (address.username, address.password) == ("me", "p@w")
    assert "p@w" not in repr(address)
    assert parse_url("rediss+shards://one,two").tls is not None


@pytest.mark.parametrize(
    "url",
    [
        # They name no place.
        "", "http://one", "redis://", "one:6379", "redis://one/first", "redis:///0", "unix://", "unix://one",
        "unix://[", "redis+cluster://", "redis+cluster://one:x", "redis+cluster://one:0",
        "redis+sentinel://one:0/main", "redis+cluster://one/1", "redis+sentinel://one",
        "redis+sentinel:///main", "redis+sentinel://one:x/main", "redis+sentinel://one/main/x",
        "redis+cluster://[::1", "redis+sentinel://[::1/main", "redis+cluster://" + ",".join(["one"] * 17),
        "redis+sentinel://" + ",".join(["one"] * 17) + "/main",
        # Who writes these means another database, or another way to connect.
        "redis://one?db=2", "rediss://one/0?ssl_cert_reqs=none", "redis://one/0#2", "unix:///one?database=2",
        "unix:///one?db=second", "redis+sentinel://one/main?db=2", "redis+sentinel://one/main#2",
        "redis+cluster://one#2", "redis+cluster://one?db=1", "redis+shards://one,two?db=1",
        "redis+shards://one,two/x", "redis+shards://one,one", "redis+shards://one", "redis+shards://",
        "redis+shards://" + ",".join(f"one{number}" for number in range(17)), "http+shards://one,two",
    ],
)  # fmt: skip
def test_what_names_no_place_or_more_than_is_read_is_refused(url: str) -> None:
    with pytest.raises(SettingError, match="REDIS_URL"):
        parse_url(url)


@pytest.mark.parametrize("host", ["a..b", "a" * 64])
async def test_a_host_that_is_no_name_is_tried_until_it_is_another(valkey: str, host: str) -> None:
    """Sentinels and clusters say such as well."""
    good = parse_url(valkey)
    wire = RedisConnection(replace(good, host=host), time.monotonic)
    try:
        with pytest.raises(CountersUnavailable, match="no name of a host"):
            await wire.open()
        await eventually(lambda: "no name of a host" in wire.trouble)
        wire.address = good
        await eventually(lambda: wire.connected)
    finally:
        await wire.close()


async def test_sentinels_and_members_that_are_no_names_are_away() -> None:
    for url in ("redis+sentinel://a..b/main", "redis+cluster://a..b"):
        address = parse_url(url)
        with pytest.raises(CountersUnavailable):
            await (primary(address) if address.sentinels else view_apart(address, address.members))


# --- info -------------------------------------------------------------------------------
# Why a server refuses calls is known by what it says of itself.


WELL = {
    "loading": "0", "role": "master", "aof_enabled": "1", "aof_last_write_status": "ok",
    "rdb_last_bgsave_status": "ok", "used_memory": "900", "maxmemory": "1000",
    "mem_not_counted_for_evict": "0",
}  # fmt: skip


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ({}, ""),
        ({"loading": "1", "role": "slave"}, "LOADING"),
        ({"role": "slave"}, "READONLY"),
        ({"aof_last_write_status": "err"}, "MISCONF"),
        ({"aof_last_write_status": "err", "aof_enabled": "0"}, ""),
        ({"rdb_last_bgsave_status": "err"}, ""),  # whether it refuses then is not told
        ({"used_memory": "1000"}, "OOM"),
        ({"used_memory": "1040", "mem_not_counted_for_evict": "50"}, ""),
        ({"used_memory": "1040", "maxmemory": "0"}, ""),
    ],
)
def test_why_it_refuses(said: dict[str, str], code: str) -> None:
    assert why_refused(WELL | said) == code
    assert not code or WHY[code]


def test_files_that_fail_are_named() -> None:
    assert files_failing(WELL) == []
    failing = {"aof_last_write_status": "err", "rdb_last_bgsave_status": "err"}
    assert files_failing(WELL | failing) == ["append_only", "snapshot"]


def test_how_long_replicas_have_said_nothing() -> None:
    said = b"# Replication\r\nconnected_slaves:2\r\nslave0:ip=10.0.0.1,port=1,state=online,offset=1,lag=0\r\n"
    said += b"slave1:ip=10.0.0.2,port=1,state=online,offset=1,lag=42\r\nslave_priority:100\r\n"
    assert replica_lags(facts_of(said)) == [0, 42]
    assert replica_lags(facts_of(None)) == []


def test_a_code_in_an_answer() -> None:
    assert refusal_in("Redis refused: LOADING Redis is loading the dataset in memory") == "LOADING"
    assert refusal_in("no answer in time") == ""


# --- logins -----------------------------------------------------------------------------
# Who we are at Redis goes by the file of its URL as it is when a connection is made.


async def ask(wire: RedisConnection, *parts: bytes) -> Reply:
    return await in_task(wire.send(encode(*parts)))


async def test_a_password_is_read_again_from_the_file_of_its_url(
    own_valkey: Callable[..., ValkeyServer], connect: Connect, tmp_path: Path
) -> None:
    server, path = own_valkey(), tmp_path / "url"
    with server.connect() as admin:

        def rotate(password: str) -> None:
            path.write_text(server.url.replace("//", f"//app:{password}@"))
            admin.execute_command("ACL", "SETUSER", "app", "on", "allcommands", "allkeys", f">{password}")

        rotate("one")
        address = parse_url(UrlFile(path.read_text(), str(path)))
        wire = await connect(address)
        assert await ask(wire, b"ACL", b"WHOAMI") == b"app"
        rotate("two")
        admin.execute_command("ACL", "SETUSER", "app", "<one")
        assert await ask(wire, b"PING") == b"PONG"
        admin.execute_command("CLIENT", "KILL", "TYPE", "normal")

        async def is_app() -> bool:
            try:
                return bool(await ask(wire, b"ACL", b"WHOAMI") == b"app")
            except CountersUnavailable:
                return False

        await eventually(is_app)


def test_sentinels_and_members_are_asked_as_whom_the_file_names(tmp_path: Path) -> None:
    path = tmp_path / "url"
    for url in ("redis+sentinel://a:%s@h:1,i:2/main?username=s&password=%s", "redis+cluster://a:%s@h:1,i:2"):
        here = url.count("%s")
        path.write_text(url % (("new",) * here))
        address = parse_url(UrlFile(url % (("old",) * here), str(path))).now()
        assert (address.username, address.password) == ("a", "new")
        theirs = ("s", "new") if here == 2 else ("", "")
        assert (address.sentinel_username, address.sentinel_password) == theirs
        assert address == parse_url(url % (("new",) * here))


# --- secured ----------------------------------------------------------------------------
# TLS to Redis goes by its files as they are when a connection is made.


class Pair:
    """Files of an authority, and of our certificate and its key, that are put in others' place."""

    def __init__(self, folder: Path) -> None:
        self.files = TlsFiles(*(str(folder / name) for name in ("ca.pem", "cert.pem", "key.pem")))

    def put(self, authority: bytes, certificate: trustme.LeafCert) -> None:
        chain = b"".join(each.bytes() for each in certificate.cert_chain_pems)
        for path, content in zip(
            (self.files.authority, self.files.certificate, self.files.key),
            (authority, chain, certificate.private_key_pem.bytes()),
            strict=True,
        ):
            Path(path + ".new").write_bytes(content)
            Path(path + ".new").replace(path)


@asynccontextmanager
async def answering(authority: trustme.CA, clients: trustme.CA) -> AsyncIterator[int]:
    """Who answers PING as Redis does, to clients with a certificate of their authority alone; its port."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"PING\r\n")
            writer.write(b"+PONG\r\n")
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)
    clients.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


class Heard(logging.Handler):
    """What a logger says, whatever else listens to it."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> Heard:
    one, logger = Heard(), logging.getLogger("tollkeeper.redis")
    monkeypatch.setattr(logger, "handlers", [one])
    monkeypatch.setattr(logger, "disabled", False)
    return one


async def test_a_new_connection_is_made_with_what_the_files_hold_now(tmp_path: Path, heard: Heard) -> None:
    before, after, pair = trustme.CA(), trustme.CA(), Pair(tmp_path)
    pair.put(before.cert_pem.bytes(), before.issue_cert("gateway"))
    address = parse_url("rediss://localhost:1/0", pair.files)

    async def asked(port: int) -> object:
        return await ask_apart(address, ("localhost", port), ("", ""), ("PING",))

    async with answering(before, before) as old, answering(after, after) as new:
        assert await asked(old)
        with pytest.raises(CountersUnavailable):
            await asked(new)
        pair.put(after.cert_pem.bytes(), after.issue_cert("gateway"))
        assert await asked(new)
        with pytest.raises(CountersUnavailable):
            await asked(old)

        Path(pair.files.key).write_bytes(b"no key")
        heard.said.clear()
        assert await asked(new)
        assert await asked(new)
        assert heard.said == ["TLS to Redis is kept as it was"], "told once"
        pair.put(before.cert_pem.bytes(), before.issue_cert("gateway"))
        assert await asked(old)


def test_what_cannot_be_used_at_the_start_stops_it(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    pair.put(b"nothing", trustme.CA().issue_cert("gateway"))
    with pytest.raises(SettingError, match=r"TOLLKEEPER_REDIS_CA_FILE=.*cannot be used: not PEM"):
        parse_url("rediss://localhost:1/0", pair.files)
