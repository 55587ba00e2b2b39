"""Where Redis is, as its URL says: what is read of it, and what is refused since nobody would read it."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from gateway.counters.redis.address import parse_url, primary
from gateway.counters.redis.cluster import view_apart
from gateway.counters.redis.connection import RedisConnection
from gateway.errors import CountersUnavailable, SettingError
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


@pytest.mark.parametrize(
    "url",
    [
        "redis+cluster://", "redis+cluster://one:x", "redis+cluster://one:0",
        "redis+sentinel://one:0/main", "redis+cluster://one/1", "redis+cluster://one?db=1",
        "redis+cluster://" + ",".join(["one"] * 17),
        "redis+sentinel://one", "redis+sentinel:///main", "redis+sentinel://one:x/main",
        "redis+sentinel://one/main/x", "redis+sentinel://" + ",".join(["one"] * 17) + "/main",
        "redis+cluster://[::1", "redis+sentinel://[::1/main",
    ],
)  # fmt: skip
def test_places_that_name_nothing_are_refused(url: str) -> None:
    with pytest.raises(SettingError, match="REDIS_URL"):
        parse_url(url)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "http://one",
        "redis://",
        "one:6379",
        "redis://one/first",
        "redis:///0",
        "unix://",
        "unix://one",
        "unix://[",
    ],
)
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(SettingError, match="REDIS_URL"):
        parse_url(url)


@pytest.mark.parametrize(
    "url",
    [
        "redis://one?db=2", "rediss://one/0?ssl_cert_reqs=none", "redis://one/0#2", "unix:///one?database=2",
        "unix:///one?db=second", "redis+sentinel://one/main?db=2", "redis+sentinel://one/main#2",
        "redis+cluster://one#2",
    ],
)  # fmt: skip
def test_what_nobody_would_read_of_an_address_is_refused(url: str) -> None:
    """Who writes it means another database, or another way to connect."""
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
