"""What doctor says of servers as they are met: what is wrong, of which setting, and what to do."""

from __future__ import annotations

import asyncio
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis
import trustme

from gateway.core.calls.routes import UpstreamTarget
from gateway.counters.admission.stored import encode_catalogue
from gateway.errors import SettingError
from gateway.extras import LIBRARIES, install
from gateway.http.tally import Tally
from gateway.ops import hints
from gateway.ops.doctor import _data_directory, _open_files, examine, upstream_finding
from gateway.ops.doctor_redis import Finding, verification
from gateway.settings.settings import Settings, load
from gateway.telemetry.metrics import publish
from tests.certificates import authority_until, issued, write
from tests.conftest import ValkeyServer, free_port
from tests.http.fakes import answer
from tests.http.stage import FakeUpstream
from tests.signing import ISSUER, issuer, jwks
from tests.waiting import eventually

SECRET = "not-for-anybodys-eyes"


@pytest.mark.parametrize(
    ("vouched", "well", "said"),
    [(b"", True, "no keeper"), (b"this", True, "has verified"), (b"another", False, "run the keeper")],
)
def test_a_server_that_no_keeper_has_compared_is_what_refuses_calls(
    vouched: bytes, well: bool, said: str
) -> None:
    finding = verification("redis", vouched, b"this")
    assert finding.well is well
    assert said in finding.says


def settings(folder: Path, **values: Any) -> Settings:
    """Enough to run with, but for what a test says; upstreams are left out."""
    filled = {"admin_token": SECRET, "key_pepper": SECRET, "data_dir": str(folder)} | values
    return load({}).with_values(**filled, upstreams=())


async def wrong(settings: Settings, role: str = "all") -> list[Finding]:
    """What doctor finds wrong, but for scripts that no keeper brought; a secret is in nothing it says."""
    found = [each async for each in examine(settings, role)]
    assert not [each for each in found if SECRET in each.says]
    return [each for each in found if each.well is False and "scripts are not loaded" not in each.says]


def one(found: list[Finding], subject: str) -> str:
    """What is said of the only thing that is wrong."""
    (finding,) = found
    assert finding.subject == subject
    return finding.says


async def test_the_keys_of_an_issuer_are_read(tmp_path: Path) -> None:
    async def said(**rules: Any) -> Finding:
        asked = settings(tmp_path, issuers=(issuer(**rules),))
        (finding,) = [each async for each in examine(asked, "serve") if each.subject == f"issuer {ISSUER}"]
        return finding

    place = tmp_path / "keys.json"
    missing = await said(jwks_file=str(place))
    assert not missing.well
    assert "No such file" in missing.says
    assert "correct jwks_file" in missing.says
    place.write_bytes(jwks())
    assert await said(jwks_file=str(place)) == Finding(
        True, f"issuer {ISSUER}", "1 keys were read, for RS256"
    )
    other = await said(jwks_file=str(place), algorithms=("ES256",))
    assert not other.well
    assert "none of its 1 keys is for ES256" in other.says
    asked = settings(tmp_path, issuers=(issuer(jwks_file=str(place)),))
    assert not [each async for each in examine(asked, "keeper") if each.subject.startswith("issuer")]


async def test_a_feed_of_use_has_somebody_who_answers(tmp_path: Path) -> None:
    nobody = {"usage_feed": "openmeter", "usage_feed_url": f"http://127.0.0.1:{free_port()}"}
    found = {each.subject: each.says for each in await wrong(settings(tmp_path, **nobody), "keeper")}
    assert "does not accept connections" in found["usage feed openmeter"]
    assert "usage feed openmeter" not in {
        each.subject for each in await wrong(settings(tmp_path, **nobody), "serve")
    }


async def test_what_is_set_needs_its_extras(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = settings(tmp_path, stripe_api_key="sk_test_1", issuers=(issuer(jwks_file="nowhere"),))

    async def said_for(role: str) -> dict[str, str]:
        return {each.subject: each.says async for each in examine(asked, role) if each.subject in LIBRARIES}

    assert await said_for("keeper") == {"stripe": "its libraries are installed"}
    for library in ("stripe", "jwt"):
        monkeypatch.setitem(sys.modules, library, None)
    brings = "is set, and its libraries are not installed: {}"
    assert await said_for("serve") == {"oidc": f"issuers {brings.format(install('oidc'))}"}
    stripe = {"stripe": f"TOLLKEEPER_STRIPE_API_KEY {brings.format(install('stripe'))}"}
    assert await said_for("keeper") == stripe
    for role, named in (("serve", "issuers"), ("keeper", "TOLLKEEPER_STRIPE_API_KEY"), ("all", "")):
        with pytest.raises(SettingError, match=f"{named}.* is set, and its libraries are not installed"):
            asked.require_extras(role)
    asked.require_extras("")


async def test_redis_must_keep_what_it_is_told(
    tmp_path: Path, own_valkey: Callable[..., ValkeyServer]
) -> None:
    redis = own_valkey("--appendonly", "no", "--maxmemory-policy", "allkeys-lru")
    policy, durable = await wrong(settings(tmp_path, redis_url=redis.url), "serve")
    assert "maxmemory-policy is allkeys-lru, which deletes counters: CONFIG SET" in policy.says
    assert "append-only file is off: CONFIG SET appendonly yes" in durable.says


async def test_redis_must_see_to_its_file_itself(
    tmp_path: Path, own_valkey: Callable[..., ValkeyServer]
) -> None:
    redis = own_valkey("--appendonly", "yes", "--appendfsync", "no")
    said = one(await wrong(settings(tmp_path, redis_url=redis.url), "serve"), "redis")
    assert "appendfsync is no" in said
    assert "CONFIG SET appendfsync everysec" in said


async def test_lists_that_nobody_has_are_wrong_once_they_were_written(
    tmp_path: Path, own_valkey: Callable[..., ValkeyServer]
) -> None:
    server = own_valkey("--appendonly", "yes")
    asked = settings(tmp_path, redis_url=server.url)
    assert not [one for one in await wrong(asked, "serve") if "not there" in one.says]
    with redis.Redis.from_url(server.url) as client:
        client.set("tk:verified:{p00}", client.info()["run_id"])
        client.set("tk:prices:head", b"{}")
        (said,) = [one.says for one in await wrong(asked, "serve") if "not there" in one.says]
        assert said.startswith("tk:catalogue, tk:prices: not there, so gateways that start refuse calls")
        client.rpush("tk:catalogue", "something else")
        client.set("tk:prices", "no list")
        (refused, odd) = [one.says for one in await wrong(asked, "serve") if one.says.startswith("tk:")]
        assert refused.startswith("tk:catalogue: ")
        assert "WRONGTYPE" in refused
        assert odd.startswith("tk:prices, tk:prices:head: no list that can be read, so gateways that start")
        client.mset({"tk:catalogue": b'{"version":1,"services":[]}', "tk:prices": b"{}"})
        await wrong(asked, "serve")  # services that nobody can read end no look
        client.set("tk:catalogue", encode_catalogue(1, []))
    assert not [one for one in await wrong(asked, "serve") if "not there" in one.says]


@pytest.mark.parametrize(
    ("connections", "may", "well", "said"),
    [
        (20_000, 1_000_000, True, "enough for 20,000 connections"),
        (20_000, 20_000, True, "not the 20,000 of TOLLKEEPER_CONNECTIONS_MAX"),
        (20_000, 256, False, "raise the limit (ulimit -n, LimitNOFILE=)"),
        (10, 256, True, "enough for 10 connections"),
    ],
)
def test_too_few_open_files_are_told(
    tmp_path: Path, connections: int, may: int, well: bool, said: str
) -> None:
    finding = _open_files(settings(tmp_path, connections_max=connections), may)
    assert finding.well is well
    assert said in finding.says


def test_a_disk_without_room_is_told(tmp_path: Path) -> None:
    finding = _data_directory(settings(tmp_path), shutil.disk_usage(tmp_path).total + 1)
    assert not finding.well
    assert finding.says.startswith(f"the disk of {tmp_path} has less than ")
    assert "make room" in finding.says


@pytest.mark.parametrize(("user", "hint"), [("", "take it out of"), ("somebody", "put the right user")])
async def test_a_password_redis_does_not_know(
    tmp_path: Path, own_valkey: Callable[..., ValkeyServer], user: str, hint: str
) -> None:
    url = own_valkey("--appendonly", "yes").url.replace("://", f"://{user}:{SECRET}@")
    said = one(await wrong(settings(tmp_path, redis_url=url), "serve"), "redis")
    assert hint in said
    assert "TOLLKEEPER_REDIS_URL" in said


async def test_something_else_answers_where_redis_should(tmp_path: Path) -> None:
    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    async with server:
        url = f"redis://:{SECRET}@127.0.0.1:{server.sockets[0].getsockname()[1]}/0"
        said = one(await wrong(settings(tmp_path, redis_url=url), "serve"), "redis")
    assert "what answers there is no Redis" in said


async def test_nobody_listens_where_redis_should(tmp_path: Path) -> None:
    url = f"redis://:{SECRET}@127.0.0.1:{free_port()}/0"
    said = one(await wrong(settings(tmp_path, redis_url=url), "serve"), "redis")
    assert "start Redis, or correct host and port of TOLLKEEPER_REDIS_URL" in said


async def test_redis_without_tls_is_asked_with_it(
    tmp_path: Path, own_valkey: Callable[..., ValkeyServer]
) -> None:
    url = own_valkey("--appendonly", "yes").url.replace("redis://", "rediss://")
    said = one(await wrong(settings(tmp_path, redis_url=url), "serve"), "redis")
    assert "TLS" in said
    assert "TOLLKEEPER_REDIS_URL" in said


async def test_files_for_tls_without_tls_are_a_mistake(
    tmp_path: Path, own_valkey: Callable[..., ValkeyServer]
) -> None:
    url = own_valkey("--appendonly", "yes").url
    found = await wrong(settings(tmp_path, redis_url=url, redis_ca_file="/etc/ca.pem"), "serve")
    assert "TOLLKEEPER_REDIS_URL must begin with rediss" in one(found, "redis")


async def test_a_database_without_the_schema_and_one_of_a_newer_program(
    tmp_path: Path, own_valkey: Callable[..., ValkeyServer], database: str
) -> None:
    given = settings(tmp_path, redis_url=own_valkey("--appendonly", "yes").url, database_url=database)
    said = one(await wrong(given, "keeper"), "postgresql")
    assert "has no schema" in said
    assert "run tollkeeper migrate" in said
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("CREATE TABLE alembic_version (version_num text)")
        connection.execute("INSERT INTO alembic_version VALUES ('9999')")
    said = one(await wrong(given, "keeper"), "postgresql")
    assert "schema version 9999" in said
    assert "run a newer one" in said


async def test_a_postgresql_that_does_not_let_us_in(
    tmp_path: Path, own_valkey: Callable[..., ValkeyServer], database: str
) -> None:
    redis_url = own_valkey("--appendonly", "yes").url
    away = f"postgresql://u:{SECRET}@127.0.0.1:{free_port()}/x"
    found = await wrong(settings(tmp_path, redis_url=redis_url, database_url=away), "keeper")
    assert "start PostgreSQL, or correct host and port of TOLLKEEPER_DATABASE_URL" in one(found, "postgresql")
    name = database.rpartition("/")[2].partition("?")[0]
    other = database.replace(f"/{name}", f"/{name}_that_is_not")
    found = await wrong(settings(tmp_path, redis_url=redis_url, database_url=other), "keeper")
    assert "create the database (ENCODING 'UTF8'), or put another into" in one(found, "postgresql")


async def test_what_is_not_set_is_named_with_what_would_be_right(tmp_path: Path) -> None:
    found = await wrong(settings(tmp_path, admin_token="", key_pepper=""))
    said = [each.says for each in found]
    for name in ("ADMIN_TOKEN", "KEY_PEPPER"):
        assert f"TOLLKEEPER_{name} is not set: 16 to 512 visible characters" in " ".join(said)
    assert "TOLLKEEPER_REDIS_URL is not set: a URL beginning with redis://" in " ".join(said)
    assert any(each.startswith("TOLLKEEPER_DATABASE_URL is not set") for each in said)


async def test_doctor_names_slips_in_settings(tmp_path: Path) -> None:
    asked = settings(
        tmp_path, gateway_port=7000, ops_port=7000, redis_servers=3, redis_url="redis://127.0.0.1:1"
    )
    found = [each async for each in examine(asked, "serve") if each.subject == "settings"]
    assert [each.well for each in found] == [True, False, None]
    said = "TOLLKEEPER_GATEWAY_PORT and TOLLKEEPER_OPS_PORT are both 7000: expected different ports"
    assert found[1].says.startswith(said)
    assert found[2].says.startswith("TOLLKEEPER_REDIS_SERVERS=3 has no effect")


@pytest.mark.parametrize(("mode", "is_told"), [(0o644, True), (0o602, True), (0o460, False), (0o600, False)])
async def test_doctor_names_files_of_secrets_open_to_every_user(
    tmp_path: Path, mode: int, is_told: bool
) -> None:
    pepper, key = tmp_path / "pepper", tmp_path / "key.pem"
    for file in (pepper, key):
        file.write_text(SECRET)
        file.chmod(mode)
    environ = {"TOLLKEEPER_KEY_PEPPER_FILE": str(pepper), "TOLLKEEPER_LEDGER_KEY_FILE": str(key)}
    asked = load(environ).with_values(data_dir=str(tmp_path), upstreams=())
    says = [each.says async for each in examine(asked, "serve") if each.well is None]
    wrong = f"every user of this machine may read or change it (mode {mode:04o}): chmod 600"
    assert says == [f"the file of a secret {file}: {wrong}" for file in (key, pepper) if is_told]


async def test_doctor_names_a_server_with_two_names_in_the_url(
    tmp_path: Path, own_valkey: Callable[..., ValkeyServer]
) -> None:
    port = own_valkey("--appendonly", "yes").port
    asked = settings(tmp_path, redis_url=f"redis+shards://127.0.0.1:{port},localhost:{port}")
    said = [each.says for each in await wrong(asked, "serve") if each.subject == "redis"]
    assert f"127.0.0.1:{port} and localhost:{port} are one server: name it once" in " ".join(said)


async def test_a_data_directory_nobody_can_write(
    tmp_path: Path, own_valkey: Callable[..., ValkeyServer]
) -> None:
    file = tmp_path / "file"
    file.touch()
    given = settings(file / "data", redis_url=own_valkey("--appendonly", "yes").url)
    assert "TOLLKEEPER_DATA_DIR" in one(await wrong(given, "serve"), "data directory")
    said = _data_directory(settings(Path("/proc/x"))).says
    assert said.startswith("/proc/x cannot be written by this user"), "and not that its disk is full"


async def test_an_upstream_that_is_away_is_told_with_its_reason(
    tmp_path: Path, own_valkey: Callable[..., ValkeyServer]
) -> None:
    given = settings(tmp_path, redis_url=own_valkey("--appendonly", "yes").url)
    upstreams = load({}).with_upstream(f"http://127.0.0.1:{free_port()}").upstreams[:1]
    said = one(await wrong(given.with_values(upstreams=upstreams), "serve"), "upstream openai")
    assert "Connect call failed" in said
    assert "correct base_url" in said


async def test_fields_that_an_upstream_did_not_get_are_named(tmp_path: Path) -> None:
    tally = Tally()
    for name in ("x-team", "cookie", "x-team"):
        tally.withheld("openai", name)
    given = settings(tmp_path)
    telling = asyncio.create_task(publish(given.metrics_dir, tally.snapshot))
    await eventually(lambda: any(given.metrics_dir.glob("*.json")))
    telling.cancel()
    found = [each async for each in examine(given, "serve") if each.subject == "upstream openai"]
    assert [(one.well, "of calls: cookie, x-team; name" in one.says) for one in found] == [(True, True)]


async def test_doctor_names_faults_of_holds_with_their_number(tmp_path: Path) -> None:
    results = [("unknown", 5), ("unheld", 2), ("unknown_account", 0)]
    given = settings(tmp_path)
    counted = {"settlements_unmatched": results}
    telling = asyncio.create_task(publish(given.metrics_dir, lambda: counted))
    await eventually(lambda: any(given.metrics_dir.glob("*.json")))
    telling.cancel()
    found = [each async for each in examine(given, "serve") if hints.UNMATCHED in each.says]
    assert [(one.well, one.says.partition(";")[0]) for one in found] == [
        (None, "an account held less than was given back: 2 times")
    ]


@pytest.mark.parametrize(
    ("family", "status", "well", "said"),
    [
        ("openai", "200 OK", True, "it takes our key"),
        ("anthropic", "401 Unauthorized", False, "GET /v1/models: put a valid key into OF_KEYS"),
        ("gemini", "500 Broken", None, "unknown: GET /v1beta/models is answered 500"),
        ("", "401 Unauthorized", True, "unknown: it has no free path"),
    ],
)
async def test_an_upstream_is_asked_whether_it_takes_our_key(
    family: str, status: str, well: bool | None, said: str
) -> None:
    upstream = FakeUpstream()
    await upstream.start()
    upstream.scripts += [[answer(b"{}", b"", status.encode())]]
    target = UpstreamTarget(
        "one", f"http://127.0.0.1:{upstream.port}", (("x-api-key", SECRET),), family=family, held=("OF_KEYS",)
    )
    found = await upstream_finding(target)
    await upstream.stop()
    assert (found.well, said in found.says) == (well, True), found.says
    assert SECRET not in found.says
    assert all(one.all(b"x-api-key") == [SECRET.encode()] for one in upstream.received)
    assert len(upstream.received) == bool(family)


async def test_an_upstream_that_is_built_in_is_looked_at_once_it_has_a_credential(tmp_path: Path) -> None:
    """Whoever uses one of them alone has nothing to mend about the others, and no way to them."""

    async def said(**environ: str) -> dict[str, Finding]:
        asked = load(environ).with_values(data_dir=str(tmp_path))
        targets = (replace(one, proxies=None) for one in asked.upstreams)
        found = [each async for each in examine(asked.with_values(upstreams=tuple(targets)), "serve")]
        return {each.subject: each for each in found if each.subject.startswith("upstream ")}

    assert {name: (one.well, "built in" in one.says) for name, one in (await said()).items()} == {
        f"upstream {name}": (True, True) for name in ("openai", "anthropic", "gemini")
    }


def test_whatever_is_said_there_is_something_to_do() -> None:
    for door in (hints.redis_hint, hints.postgresql_hint, hints.upstream_hint):
        assert door("something never heard of")


async def test_certificates_of_our_ports_are_looked_at(tmp_path: Path) -> None:
    authority = trustme.CA()
    files = issued(tmp_path / "tls", authority)
    pair = {"tls_cert_file": files.certificate, "tls_key_file": files.key}
    asking = settings(tmp_path, **pair, ops_tls_cert_file=files.certificate, ops_tls_key_file="/none")
    found = [one async for one in examine(asking, "serve")]
    said = {one.subject: one for one in found if one.subject.endswith(" port")}
    assert said["gateway port"].well
    assert "its certificate is valid until " in said["gateway port"].says
    assert not said["ops port"].well
    assert "TOLLKEEPER_OPS_TLS_KEY_FILE='/none' cannot be used: No such file" in said["ops port"].says
    over = authority.issue_cert("localhost", not_after=datetime(2020, 2, 3, tzinfo=UTC))
    write(tmp_path / "tls" / "cert.pem", over.cert_chain_pems[0].bytes())
    write(tmp_path / "tls" / "key.pem", over.private_key_pem.bytes())
    (one,) = [
        one async for one in examine(settings(tmp_path, **pair), "serve") if one.subject == "gateway port"
    ]
    assert not one.well
    assert "was valid until 2020-02-03" in one.says
    files = issued(tmp_path / "tls", authority, clients=authority)
    write(Path(files.authority), authority_until(datetime(2021, 2, 3, tzinfo=UTC)))
    asking = settings(tmp_path, **pair, tls_client_ca_file=files.authority)
    (one, _) = [each async for each in examine(asking, "serve") if each.subject == "gateway port"]
    assert not one.well
    assert "ended on 2021-02-03: put a new one into TOLLKEEPER_TLS_CLIENT_CA_FILE" in one.says
