"""Doctor on servers that refuse what managed services do, in the ways they do it, and what works there."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import replace

import pytest
import redis

from gateway.core.calls.routes import UpstreamTarget
from gateway.counters.keeper import client as keeper_client
from gateway.counters.redis import keys
from gateway.counters.redis.address import parse_url
from gateway.counters.redis.connection import RedisConnection
from gateway.errors import CountersUnavailable
from gateway.http.upstream.pool import accounts_of
from gateway.ops.doctor_redis import Finding, examine_redis
from gateway.settings.settings import load
from tests.conftest import ValkeyServer, free_port
from tests.managed_services import SERVICES, user_of_all
from tests.tree import ROOT
from tests.waiting import eventually, wait_until

Start = Callable[..., ValkeyServer]


async def examined(url: str, role: str) -> list[Finding]:
    settings = load({}).with_values(redis_url=url, upstreams=())
    return [one async for one in examine_redis(settings, role)]


def wrong(found: list[Finding]) -> list[str]:
    return [one.says for one in found if one.well is False]


def without(*commands: str) -> tuple[str, ...]:
    """Options of a server that has these commands under no name, as ElastiCache has not CONFIG."""
    return tuple(word for command in commands for word in ("--rename-command", command, ""))


def of_a_cluster(start: Start, *options: str) -> ValkeyServer:
    """A cluster of one server, which has all slots."""
    server = start("--cluster-enabled", "yes", "--cluster-port", str(free_port()), *options)
    with redis.Redis(port=server.port) as client:
        client.execute_command("CLUSTER ADDSLOTSRANGE", "0", "16383")  # type: ignore[no-untyped-call]  # untyped in redis-py
        wait_until(lambda: client.execute_command("CLUSTER INFO")["cluster_state"] == "ok")  # type: ignore[no-untyped-call]  # the same
    return server


@pytest.mark.parametrize("name", SERVICES)
def test_no_service_refuses_what_there_is_no_doing_without(name: str) -> None:
    acl = (ROOT / "deploy" / "users.acl").read_text()
    given = set(re.findall(r" \+(\S+)", acl))
    without = (*keeper_client.WITHOUT, b" ".join(keeper_client.ASKS_OF_DEFAULT[:2]).decode())
    needless = {one.removesuffix(" OFF").lower().replace(" ", "|") for one in without}
    refused = {one for one in given if one in SERVICES[name] or one.partition("|")[0] in SERVICES[name]}
    assert given > needless
    assert refused <= needless


@pytest.mark.parametrize("name", SERVICES)
async def test_a_cluster_of_a_service_is_fit_for_its_user_for_everything(
    own_valkey: Start, name: str
) -> None:
    whole = [one for one in SERVICES[name] if "|" not in one]
    server = of_a_cluster(own_valkey, "--appendonly", "yes", *without(*whole))
    told = "config" not in whole
    covers = "cluster-require-full-coverage is " + ("yes" if told else "not told to this user")
    lacks = "; this server has no ASKING, so calls of a slot are refused while it moves key by key"
    wire = RedisConnection(parse_url(server.url), time.monotonic)  # as a keeper: it brings the scripts
    await wire.open()
    await wire.close()
    for role in ("serve", "keeper"):
        found = await examined(f"redis+cluster://127.0.0.1:{server.port}", role)
        user = next(one.says for one in found if one.subject.startswith("redis user"))
        assert user.startswith("default may do anything; tollkeeper-"), found
        assert user.endswith(lacks) is ("asking" in whole)
        assert len([one for one in found if covers in one.says]) == 1
        # Only what its owner chooses is wrong: this server was not told to go on without slots.
        assert [covers in one for one in wrong(found)] == [True] * told, found
        assert [one.says for one in found if "scripts are loaded" in one.says]


@pytest.mark.parametrize("name", SERVICES)
async def test_users_by_rights_are_fit_or_told_which_right_they_lack(own_valkey: Start, name: str) -> None:
    server = own_valkey("--appendonly", "yes", "--user", "managed", *user_of_all(name))
    url = server.url.replace("://", "://managed:hush@")
    assert wrong(await examined(url, "keeper")) == []
    with redis.Redis.from_url(server.url) as client:
        client.execute_command("ACL", "SETUSER", "managed", "-fcall")
    assert [one for one in wrong(await examined(url, "keeper")) if "(FCALL f 1 " in one]


async def test_a_server_that_tells_no_changes_is_used_and_said(own_valkey: Start) -> None:
    server = own_valkey("--appendonly", "yes", *without("CLIENT"))
    wire = RedisConnection(parse_url(server.url), time.monotonic, hears=(b"tk:id:",))
    await wire.open()
    assert wire.connected
    assert not wire.hearing.since
    await wire.close()
    found = await examined(server.url, "serve")
    assert wrong(found) == []
    said = [one.says for one in found if one.subject == "redis user"]
    assert "this server has no CLIENT TRACKING, so nothing is told that changes" in said[0]


async def test_a_server_without_functions_is_not_used_and_told_by_name(own_valkey: Start) -> None:
    server = own_valkey("--appendonly", "yes", *without("FUNCTION"))
    wire = RedisConnection(parse_url(server.url), time.monotonic)
    with pytest.raises(CountersUnavailable, match=r"unknown command 'FUNCTION'"):
        await wire.open()
    await eventually(lambda: "unknown command 'FUNCTION'" in wire.trouble)
    await wire.close()
    (said,) = wrong(await examined(server.url, "keeper"))
    assert "unknown command 'FUNCTION'" in said
    assert "Managed services" in said


async def test_a_command_that_a_server_lacks_is_not_taken_for_one_that_may_be_given(
    own_valkey: Start,
) -> None:
    server = own_valkey("--appendonly", "yes", *without("XADD"))
    (said,) = wrong(await examined(server.url, "keeper"))
    assert "this server has not what a keeper needs (XADD tk:{p0}:doctor * f 0)" in said
    assert "Managed services" in said


async def test_a_full_server_lacks_no_command(own_valkey: Start) -> None:
    server = own_valkey("--appendonly", "yes")
    await examined(server.url, "keeper")
    with redis.Redis.from_url(server.url) as client:
        client.config_set("maxmemory", "1")
    found = wrong(await examined(server.url, "keeper"))
    assert [one for one in found if "of its maxmemory" in one] == found


async def test_each_empty_account_of_an_upstream_has_a_line(own_valkey: Start) -> None:
    server = own_valkey("--appendonly", "yes")
    with redis.Redis.from_url(server.url) as client:
        for account, stored in (
            ("a", '["deepseek",402,1796000000000]'),
            ("b", '["anthropic",400,1796000060000]'),
        ):
            client.zadd(keys.EMPTY_ACCOUNTS, {account: 1796000120000})
            client.set(keys.empty_account(account), stored)
        client.zadd(keys.EMPTY_ACCOUNTS, {"newer": 1796000120000})
        client.set(keys.empty_account("newer"), '{"of": "another version"}')
    found = [one for one in await examined(server.url, "keeper") if one.subject.startswith("upstream")]
    assert [(one.well, one.subject, one.says.partition(":")[0].rpartition(", ")[2]) for one in found] == [
        (False, "upstream anthropic", "as it has said with 400 since 2026-11-30T00"),
        (False, "upstream deepseek", "as it has said with 402 since 2026-11-30T00"),
    ]


async def test_an_empty_account_with_a_changed_key_is_no_failed_check(own_valkey: Start) -> None:
    server = own_valkey("--appendonly", "yes")
    target = UpstreamTarget("deepseek", "https://api.deepseek.com", (("authorization", "Bearer new"),))
    old = replace(target, headers=(("authorization", "Bearer old"),))
    with redis.Redis.from_url(server.url) as client:
        for at, account in enumerate((
            *accounts_of(target, b"pepper"), *accounts_of(old, b"pepper"),
            f"{accounts_of(target, b'pepper')[0]}.organization-7",
        )):  # fmt: skip
            client.zadd(keys.EMPTY_ACCOUNTS, {account: 1796000120000})
            client.set(keys.empty_account(account), f'["deepseek",402,{1796000000000 + at}]')
    settings = load({}).with_values(redis_url=server.url, upstreams=(target,), key_pepper="pepper")
    for role, wells in (("serve", [False, None, False]), ("keeper", [False] * 3)):
        found = [one async for one in examine_redis(settings, role)]
        assert [one.well for one in found if one.subject == "upstream deepseek"] == wells
