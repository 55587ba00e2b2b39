"""What doctor makes of Redis' own figures."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from gateway.ops.doctor_redis import durability_findings, examine_redis
from gateway.settings.settings import load
from tests.conftest import ValkeyServer, free_port

WELL = {
    "maxmemory_policy": "noeviction", "aof_enabled": "1", "maxmemory": "8000000000", "used_memory": "900",
}  # fmt: skip


def wrong(fsync: object = (), **info: str) -> list[str]:
    """What is said to be wrong."""
    return [says for well, _, says in durability_findings(WELL | info, fsync) if well is False]


def test_nothing_is_wrong_with_a_server_that_keeps_everything() -> None:
    assert wrong([b"appendfsync", b"everysec"]) == []
    assert wrong([b"appendfsync", b"always"], maxmemory="1000000000") == []


@pytest.mark.parametrize("fsync", [[b"appendfsync", b"no"], {b"appendfsync": b"no"}])
def test_a_file_that_the_system_writes_when_it_likes_is_wrong(fsync: object) -> None:
    assert ["appendfsync is no" in said for said in wrong(fsync)] == [True]
    hint = "CONFIG SET appendonly yes, and in its configuration, or let a replica follow"
    assert wrong(fsync, aof_enabled="0") == [f"append-only file is off: {hint}"]


def test_a_replica_is_as_good_as_a_file_as_long_as_it_takes_over() -> None:
    assert wrong(aof_enabled="0", connected_slaves="1") == []
    assert len(wrong(aof_enabled="0", connected_slaves="0")) == 1
    ((_, _, said),) = [
        one
        for one in durability_findings(WELL | {"aof_enabled": "0", "connected_slaves": "2"}, ())
        if "file" in one[2]
    ]
    assert "replicas that follow: 2. Let a replica take over before it starts again" in said


def test_a_policy_that_is_not_told_is_for_a_person_to_look_at() -> None:
    info = {name: value for name, value in WELL.items() if name != "maxmemory_policy"}
    first, *_ = durability_findings(info, ())
    assert first[0] is None
    assert "does not tell its maxmemory-policy: see that it is noeviction" in first[2]


@pytest.mark.parametrize("answer", [RuntimeError("NOPERM"), [], None])
def test_what_could_not_be_asked_is_said_and_is_neither_well_nor_wrong(answer: object) -> None:
    unknown = [
        says.partition(":")[0] for well, _, says in durability_findings(WELL, answer, 1.0) if well is None
    ]
    assert unknown == [
        "appendfsync is not told to this user",
        "this server does not tell its time (server_time_usec)",
    ]


def test_memory_without_a_limit_is_wrong_where_the_server_tells_its_policy() -> None:
    (said,) = wrong(maxmemory="0")
    assert "maxmemory is 0, so the system ends it where its memory is full: CONFIG SET maxmemory" in said
    managed = {"aof_enabled": "1", "maxmemory": "0", "used_memory": "900"}
    assert [says for well, _, says in durability_findings(managed, ()) if well is False] == []


@pytest.mark.parametrize(
    ("off_s", "says"), [(0, ""), (-9, ""), (7200, "7,200 s ahead"), (-60, "60 s behind")]
)
def test_a_clock_that_is_not_that_of_redis_is_told_with_how_far_it_is_off(off_s: int, says: str) -> None:
    info = WELL | {"server_time_usec": "1000000000000000"}
    ((well, subject, said),) = [
        one for one in durability_findings(info, (), 1e9 + off_s) if one[1] == "clock"
    ]
    assert (well, subject) == (not says, "clock")
    assert says in said


@pytest.mark.parametrize(("used", "is_wrong"), [(940, False), (950, True), (999, True)])
def test_memory_that_is_almost_used_up_is_wrong(used: int, is_wrong: bool) -> None:
    mebi = 1024 * 1024
    said = wrong(maxmemory=str(1000 * mebi), used_memory=str(used * mebi))
    full = (
        f"{used / 1000:.0%} of its maxmemory of 1000 MiB is used: when it is full, calls are refused. Raise"
    )
    assert said == ([f"{full} maxmemory"] if is_wrong else [])


@pytest.mark.parametrize(
    ("most", "used", "says"),
    [
        (1, 205_858_080, "196 MiB of its maxmemory of 1 B is used"),
        (2_048, 2_048, "100% of its maxmemory of 2 KiB is used"),
    ],
)
def test_full_memory_is_named_with_its_code_and_in_units_that_fit(most: int, used: int, says: str) -> None:
    """205,858,080 bytes are 196.3 times 1,048,576."""
    line = f"it refuses calls with OOM: its memory is full: {says}. Raise maxmemory"
    assert wrong(maxmemory=str(most), used_memory=str(used)) == [line]


@pytest.mark.parametrize(
    ("info", "says"),
    [
        ({"loading": "1"}, "it refuses calls with LOADING: it still reads its file"),
        ({"role": "slave"}, "it refuses calls with READONLY: it is a replica"),
        ({"aof_last_write_status": "err"}, "it refuses calls with MISCONF: it cannot write its file"),
        ({"rdb_last_bgsave_status": "err"}, "its last snapshot failed (rdb_last_bgsave_status)"),
    ],
)
def test_a_server_that_refuses_says_why(info: dict[str, str], says: str) -> None:
    (said,) = wrong(**info)
    assert said.startswith(says)


async def test_examine_redis_names_the_server_that_is_away_once(
    own_valkey: Callable[..., ValkeyServer],
) -> None:
    here, away = own_valkey("--appendonly", "yes"), free_port()
    settings = load({}).with_values(redis_url=f"redis+shards://127.0.0.1:{here.port},127.0.0.1:{away}")
    found = [finding.says async for finding in examine_redis(settings, "serve") if finding.well is False]
    assert [f"127.0.0.1:{away}" in says and "start Redis" in says for says in found] == [True]
