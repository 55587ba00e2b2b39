"""Doctor knows users by what they may do, tells those of deploy/ apart, and does nothing in their names."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
import redis

from gateway.counters.keeper import client as keeper_client
from gateway.counters.redis.address import parse_url
from gateway.counters.redis.connection import RedisConnection
from gateway.ops import doctor_redis
from gateway.settings.settings import load
from persistence.schema import migrate
from tests.conftest import ValkeyServer
from tests.deploy.programs import redis_server
from tests.lua.test_restarted import Shipped
from tests.ops.test_doctor_managed import examined
from tests.tree import ROOT

GATEWAY, KEEPER = "tollkeeper-gateway", "tollkeeper-keeper"
ANYTHING = "on >hush resetchannels ~* +@all"
# Cannot be asked for within a transaction, or are the asking itself.
TRANSACTIONS = {"multi", "exec", "watch", "unwatch"}


def users() -> dict[str, str]:
    """What deploy/users.acl says of each user, with a password put in."""
    lines = re.findall(r"^user (\S+) (.*)$", (ROOT / "deploy" / "users.acl").read_text(), re.MULTILINE)
    return {name: re.sub(r">\S+", ">hush", rules) for name, rules in lines}


@pytest.fixture
async def server(own_valkey: Callable[..., ValkeyServer]) -> ValkeyServer:
    """A server that a keeper has brought the scripts to."""
    server = own_valkey()
    wire = RedisConnection(parse_url(server.url), time.monotonic)
    await wire.open()
    await wire.close()
    return server


def as_user(server: ValkeyServer, name: str, rules: str) -> str:
    """Make a user; the server's URL for it."""
    with redis.Redis.from_url(server.url) as client:
        client.execute_command("ACL", "SETUSER", name, "reset", *rules.split())
    return server.url.replace("://", f"://{name}:hush@")


async def seen(url: str, role: str) -> tuple[bool, str]:
    well, subject, says = await doctor_redis.redis_user_findings(parse_url(url), role, 5.0)
    assert subject == "redis user"
    return well, says


@pytest.mark.parametrize(("name", "role"), [(GATEWAY, "serve"), (KEEPER, "keeper")])
def test_what_is_asked_for_is_what_the_users_are_given(name: str, role: str) -> None:
    needed = keeper_client.needed_rights(role, clustered=True, database=1)
    lines = (*needed, b" ".join(keeper_client.ASKS_OF_DEFAULT).decode())
    given = {rule[1:] for rule in users()[name].split() if rule.startswith("+")}
    asked = {
        words[0]
        if f"{words[0]}|{words[1:][:1]}" in given
        else re.sub(r"^(acl|client|cluster|function|xinfo) (\w+).*", r"\1|\2", line)
        for line in (line.lower() for line in lines)
        for words in [line.split()]
    }
    assert {each.split()[0] for each in asked} == given - TRANSACTIONS
    keys = {word for line in lines for word in line.split() if word.startswith("tk:")}
    for rule in re.findall(r"(?:^|\s)(?:%R)?~(\S+)", users()[name]):
        assert any(key.startswith(rule.rstrip("*")) for key in keys), rule


@pytest.mark.parametrize(
    ("name", "role", "well", "said"),
    [
        (GATEWAY, "serve", True, "may do what a gateway does"),
        (KEEPER, "keeper", True, "may do what a keeper does"),
        (KEEPER, "all", True, "may do what a keeper does"),
        (GATEWAY, "keeper", False, "may not do what a keeper does (FUNCTION LOAD text and"),
        (KEEPER, "serve", False, "may write who has which key and what it costs"),
    ],
)
async def test_users_of_ours_are_told_apart(
    server: ValkeyServer, name: str, role: str, well: bool, said: str
) -> None:
    found = await seen(as_user(server, name, users()[name]), role)
    assert found[0] is well, found
    assert said in found[1]
    assert (
        well or f"use tollkeeper-{'gateway' if role == 'serve' else 'keeper'} of deploy/users.acl" in found[1]
    )
    with redis.Redis.from_url(server.url) as client:
        assert client.keys("*doctor*") == []  # nothing of what was asked for was done
        if role != "serve" and well:
            assert client.acl_log() == []  # and what is right leaves no trace


@pytest.mark.parametrize("role", ["serve", "keeper", "all"])
async def test_a_user_for_everything_is_well_and_said(
    own_valkey: Callable[..., ValkeyServer], role: str
) -> None:
    server = own_valkey()
    well, said = await seen(server.url, role)
    assert well
    assert said.startswith("default may do anything; tollkeeper-")
    assert (await seen(as_user(server, "one", ANYTHING), role))[0]


@pytest.mark.parametrize("role", ["serve", "keeper"])
@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ("-fcall", "(FCALL f 1 tk:{p0}:doctor)"),
        ("-xinfo|stream", "(XINFO STREAM "),
        ("-multi", "(MULTI"),
    ],
)
async def test_a_right_that_is_lacking_is_named(
    server: ValkeyServer, role: str, rule: str, said: str
) -> None:
    name = GATEWAY if role == "serve" else KEEPER
    well, says = await seen(as_user(server, name, f"{users()[name]} {rule}"), role)
    assert not well
    assert said in says


async def test_a_key_that_is_lacking_is_named(server: ValkeyServer) -> None:
    well, says = await seen(as_user(server, GATEWAY, users()[GATEWAY].replace("~tk:pulses:*", "")), "serve")
    assert not well
    assert "(ZREM tk:pulses:{p0} m)" in says


async def test_a_redis_that_is_away_is_told(server: ValkeyServer) -> None:
    server.stop()
    well, says = await seen(server.url, "serve")
    assert not well
    assert "start Redis" in says


@pytest.mark.parametrize("role", ["serve", "keeper"])
@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ("", ""),
        ("default off resetkeys -@all", "may not do what is in it (MSET and 10 more): this version forgets"),
        (
            "default off -pexpireat",
            '(PEXPIREAT): this version forgets what scripts wrote at each restart. Write "user',
        ),
        ("{} -acl|dryrun", "could not be asked by ACL DRYRUN (Redis refused: NOPERM"),
    ],
)
async def test_who_loads_the_file_is_asked_for(tmp_path: Path, role: str, rule: str, said: str) -> None:
    server = Shipped(tmp_path / "redis", redis_server())
    server.start()
    try:
        user = GATEWAY if role == "serve" else KEEPER
        wire = RedisConnection(parse_url(server.url_of(KEEPER)), time.monotonic)
        await wire.open()
        await wire.close()
        with server.connect() as client:
            client.acl_log_reset()
            if rule:
                client.execute_command("ACL", "SETUSER", *rule.format(user).split())
            found = await examined(server.url_of(user), role)
            of_default = [one.says for one in found if "the user default" in one.says and not one.well]
            assert bool(of_default) is bool(said)
            assert said in "".join(of_default)
            refused = [one["object"] for one in client.acl_log() if "acl" in one["object"]]
            assert refused == ["acl|dryrun"] * said.startswith("could")
    finally:
        server.stop()


def user_of(database: str, name: str, attributes: str = "") -> str:
    made = f"{database.rpartition('/')[2]}_{name}"
    with psycopg.connect(database, autocommit=True) as admin:
        admin.execute(f"CREATE ROLE {made} LOGIN {attributes}")
    return database.replace("postgres@", f"{made}@")


def execute(database: str, statement: str) -> None:
    with psycopg.connect(database, autocommit=True) as admin:
        admin.execute(statement)


def test_a_keepers_user_of_postgresql_is_well_where_it_is_a_writer(database: str) -> None:
    migrate.upgrade(database)
    name = database.rpartition("/")[2]
    keeper = user_of(database, "keeper", f"IN ROLE {name}_writer")
    owner = (True, "postgresql owner", "postgres owns the tables")
    fine = (True, "postgresql user", f"{name}_keeper may do what a keeper does, and no more")
    assert doctor_redis.postgresql_user_findings(keeper, keeper) == [fine]
    assert doctor_redis.postgresql_user_findings(keeper, database) == [fine, owner]
    _, (well, subject, said) = doctor_redis.postgresql_user_findings(
        keeper, keeper + "?application_name=owner"
    )
    assert (well, subject) == (False, "postgresql owner")
    assert "does not own the tables" in said


def test_one_user_for_everything_is_well_and_said(database: str) -> None:
    name = database.rpartition("/")[2]
    owner = user_of(database, "owner")
    execute(database, f"ALTER DATABASE {name} OWNER TO {name}_owner")
    migrate.upgrade(owner)
    [(well, _, said)] = doctor_redis.postgresql_user_findings(owner, owner)
    assert well
    assert f"{name}_owner owns the tables; a keeper needs no more than to be in {name}_writer" in said
    [(well, _, said)] = doctor_redis.postgresql_user_findings(database, database)
    assert well
    assert said.startswith("postgres is superuser; a keeper needs no more")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("GRANT CREATE ON SCHEMA public TO {}", "may create objects in addition to the tables"),
        ("GRANT DELETE ON audit_log TO {}", "may change what is only to be added to"),
        ("GRANT pg_execute_server_program TO {}", "may reach files and programs of the server"),
    ],
)
def test_what_a_writer_may_beyond_a_keeper_is_said(database: str, more: str, said: str) -> None:
    migrate.upgrade(database)
    name = database.rpartition("/")[2]
    keeper = user_of(database, "keeper", f"IN ROLE {name}_writer")
    execute(database, more.format(f"{name}_keeper"))
    [(well, _, says)] = doctor_redis.postgresql_user_findings(keeper, keeper)
    assert well
    assert said in says


def test_what_a_keeper_lacks_is_wrong_and_says_what_to_grant(database: str) -> None:
    migrate.upgrade(database)
    name = database.rpartition("/")[2]
    stranger = user_of(database, "stranger")
    [(well, _, said)] = doctor_redis.postgresql_user_findings(stranger, stranger)
    assert not well
    assert re.search(r"may not do what a keeper does \(DELETE on \w+ and \d+ more\)", said)
    assert f'GRANT "{name}_writer" TO "{name}_stranger"' in said
    execute(database, f"GRANT {name}_writer TO {name}_stranger")
    execute(database, f"REVOKE EXECUTE ON FUNCTION drop_months FROM {name}_writer")
    [(well, _, said)] = doctor_redis.postgresql_user_findings(stranger, stranger)
    assert not well
    assert "(EXECUTE on drop_months): run tollkeeper migrate as the owner" in said
    migrate.upgrade(database)
    assert doctor_redis.postgresql_user_findings(stranger, stranger)[0][0]


@pytest.mark.parametrize("role", ["serve", "keeper", "all"])
async def test_nothing_is_written_to_redis_by_a_look(
    own_valkey: Callable[..., ValkeyServer], role: str
) -> None:
    server = own_valkey("--appendonly", "yes")
    with redis.Redis.from_url(server.url) as client:
        client.config_resetstat()
        settings = load({}).with_values(redis_url=server.url)
        found = [one async for one in doctor_redis.examine_redis(settings, role)]
        lacks = [one.says for one in found if "start a keeper first" in one.says]
        assert bool(lacks) == (role == "serve")
        given = client.info("commandstats")
        listed = client.execute_command("COMMAND")  # type: ignore[no-untyped-call]  # untyped in redis-py
        writing = {name for name, one in listed.items() if "write" in one["flags"]} | {"function|load"}
        assert "cmdstat_info" in given
        called = {name.removeprefix("cmdstat_") for name, one in given.items() if one["calls"]}
        assert not called & writing
        assert client.execute_command("FUNCTION", "LIST") == []  # type: ignore[no-untyped-call]  # the same
        assert client.dbsize() == 0
