"""Why a server refuses calls is known by what it says of itself."""

from __future__ import annotations

import pytest

from gateway.counters.redis.address import (
    WHY,
    facts_of,
    files_failing,
    refusal_in,
    replica_lags,
    why_refused,
)

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
