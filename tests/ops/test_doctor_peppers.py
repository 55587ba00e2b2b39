"""Doctor knows whether a keeper is there, and which peppers it, the rows and the settings have."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import psycopg
import pytest
import redis

from gateway.core.credentials import Peppers, peppers_of
from gateway.counters.keeper.presence import PRESENCE_KEPT_S, KeeperInfo, Presence, heard
from gateway.counters.redis.address import parse_url
from gateway.counters.redis.connection import RedisConnection
from gateway.ops.doctor import _called
from gateway.ops.doctor_redis import of_credentials, of_keeper
from gateway.settings.settings import Settings, load
from persistence.schema import migrate
from tests.waiting import eventually

EXAMPLE = Path(__file__).resolve().parents[2] / "deploy" / "config.example.yaml"
OURS, BEFORE, ANOTHER = "our-own-pepper-now", "our-pepper-before", "somebody-elses-one"
IDS = {name: Peppers(name.encode()).ids[0] for name in (OURS, BEFORE, ANOTHER)}
SETTINGS = Settings(key_pepper=OURS, earlier_key_peppers=BEFORE)


def told(heard: KeeperInfo | None, role: str = "all", *, before: bool = True) -> list[tuple[bool, str, str]]:
    return [(each.well, each.subject, each.says) for each in of_keeper(SETTINGS, role, heard, before)]


def test_a_keeper_that_is_gone_is_wrong_where_somebody_needs_one() -> None:
    for role, well in (("serve", False), ("all", False), ("keeper", True)):
        ((is_well, subject, _),) = told(None, role)
        assert (is_well, subject) == (well, "keeper")
    assert told(None, before=False) == []  # the first one starts later


@pytest.mark.parametrize(
    ("theirs", "well"),
    [
        ((OURS,), True), ((BEFORE,), True), ((OURS, ANOTHER), True),
        ((ANOTHER, OURS), False), ((ANOTHER,), False),
    ],
)  # fmt: skip
def test_keys_a_keeper_makes_are_known_here_or_that_is_wrong(theirs: tuple[str, ...], well: bool) -> None:
    here, pepper = told(KeeperInfo("9.9", tuple(IDS[one] for one in theirs)))
    assert here == (True, "keeper", "one of version 9.9 is there")
    assert pepper[:2] == (well, "pepper")
    assert IDS[theirs[0]] in pepper[2]
    assert well or "TOLLKEEPER_KEY_PEPPER" in pepper[2]


def test_accounts_that_the_keeper_cannot_read_are_wrong() -> None:
    _, (is_well, subject, says), *_ = told(KeeperInfo("9.9", (IDS[OURS],), unreadable=2))
    assert (is_well, subject) == (False, "keeper")
    assert "whose calls are refused: 2" in says
    assert "docs/operate/" in says


async def test_a_keeper_says_that_it_is_there_and_is_forgotten(valkey: str) -> None:
    wire = RedisConnection(parse_url(valkey), time.monotonic)
    await wire.open()
    saying = asyncio.create_task(Presence(wire, "9.9", ("one", "two"), lambda: 3).keep_saying())
    try:
        assert await eventually(lambda: heard(wire)) == KeeperInfo("9.9", ("one", "two"), 3)
        with redis.Redis.from_url(valkey) as client:
            assert 0 < client.ttl("tk:keepers") <= PRESENCE_KEPT_S
            client.flushall()
        assert await heard(wire) is None
    finally:
        saying.cancel()
        await wire.close()


@pytest.mark.parametrize("said", [b"no json", b"\xff", b"{}", b'{"version":"9.9","peppers":[]}', b"[1]"])
async def test_what_no_keeper_says_is_none(valkey: str, said: bytes) -> None:
    wire = RedisConnection(parse_url(valkey), time.monotonic)
    await wire.open()
    try:
        with redis.Redis.from_url(valkey) as client:
            client.set("tk:keepers", said)
            assert await heard(wire) is None
            client.delete("tk:keepers")
    finally:
        await wire.close()


def test_credentials_of_another_pepper_are_counted_and_those_of_an_earlier_one_keep_it(database: str) -> None:
    migrate.upgrade(database)
    assert [each.says for each in of_credentials(database, peppers_of(SETTINGS))] == [
        f"nothing is of the earlier {IDS[BEFORE]} any more: it can go"
    ]
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("INSERT INTO organization (id, name) OVERRIDING SYSTEM VALUE VALUES (1, 'o')")
        connection.execute(
            "INSERT INTO tenant (id, name, organization_id) OVERRIDING SYSTEM VALUE VALUES (1, 't', 1)"
        )
        for number, (pepper, revoked) in enumerate(
            [(OURS, None), (BEFORE, None), (ANOTHER, None), (ANOTHER, None), (ANOTHER, "2020-01-01")]
        ):
            connection.execute(
                "INSERT INTO api_key (tenant_id, name, digest, prefix, pepper, revoked_at)"
                " VALUES (1, 'k', %s, 'tk', %s, %s)",
                (f"{number:064x}", IDS[pepper], revoked),
            )
        connection.execute(
            "INSERT INTO admin_token (name, role, digest, prefix, pepper)"
            " VALUES ('a', 'admin', %s, 'ta', %s)",
            ("f" * 64, IDS[ANOTHER]),
        )
    found = {each.says: each.well for each in of_credentials(database, peppers_of(SETTINGS))}
    assert found[f"the earlier {IDS[BEFORE]} is needed for 1 API key"]
    (wrong,) = (says for says, well in found.items() if not well)
    assert wrong.startswith(f"of {IDS[ANOTHER]}, which is not taken: 2 API keys and 1 admin token")
    assert "TOLLKEEPER_EARLIER_KEY_PEPPERS" in wrong
    assert not any(one in says for says in found for one in (OURS, BEFORE, ANOTHER))


def test_no_upstream_is_tried_that_nothing_goes_to(tmp_path: Path) -> None:
    assert {"openai", "anthropic", "gemini", "search"} == {each.name for each in _called(load({}, EXAMPLE))}
    own = tmp_path / "config.yaml"
    own.write_text(
        "upstreams: {mine: {base_url: http://127.0.0.1:1}}\n"
        "routes: [{path: /v1/models, methods: [GET], upstream: mine}]\n"
    )
    assert [each.name for each in _called(load({}, own))] == ["mine"]
