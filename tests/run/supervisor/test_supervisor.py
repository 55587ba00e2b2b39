"""`up` as a process: what it prints, keeps, restarts, and in which order it stops."""

from __future__ import annotations

import json
import os
import signal
import stat
from pathlib import Path

import psycopg
import pytest
import redis
import trustme

from tests import plain_http
from tests.certificates import issued
from tests.run.supervisor.conftest import Starter, Up, at_work_in, runs
from tests.waiting import wait_until


def events(up: Up) -> list[str]:
    """What the stand-ins noted: starts and stops without process ids."""
    return [line.rpartition(" ")[0] for line in (up.data_dir / "stand_in.log").read_text().splitlines()]


def test_up_prints_exactly_one_line_of_facts(start: Starter) -> None:
    up = start()
    facts = up.ready()
    assert set(facts) == {
        "gateway_url", "admin_url", "admin_token", "api_key", "redis_url", "database_url", "upstream_url",
        "data_dir", "pids",
    }  # fmt: skip
    assert set(facts["pids"]) == {"gateway", "keeper", "redis", "postgres"}
    assert facts["pids"] == up.pids()
    assert len(facts["pids"]["gateway"]) == 2
    noted = json.loads((up.data_dir / "up.json").read_text())
    assert noted["admin_url"] == facts["admin_url"]
    for name in ("up.json", "secrets.json", "redis/valkey.conf", "logs/postgres.log"):
        assert stat.S_IMODE((up.data_dir / name).stat().st_mode) == 0o600, name
    assert up.stop(signal.SIGTERM) == 0
    assert up.process.stdout is not None
    assert up.process.stdout.read() == b""


def test_it_says_that_a_gateway_was_not_asked_where_only_certificates_are_let_in(
    start: Starter, tmp_path: Path
) -> None:
    authority = trustme.CA()
    files = issued(tmp_path / "tls", authority, clients=authority)
    up = start(
        demo=False,
        tls_cert_file=files.certificate,
        tls_key_file=files.key,
        tls_client_ca_file=files.authority,
    )
    assert up.ready()["gateway_url"].startswith("https://")
    assert "the gateway was not asked: TOLLKEEPER_TLS_CLIENT_CA_FILE" in up.said()


def test_a_gateway_is_told_neither_database_nor_admin_token(start: Starter) -> None:
    up = start()
    up.ready()
    told = (up.data_dir / "stand_in.log.told").read_text().splitlines()
    assert {line.rpartition(" ")[0] for line in told} == {"keeper database_url", "keeper admin_token"}


def test_databases_are_durable_and_behind_passwords(start: Starter) -> None:
    facts = start().ready()
    server = redis.Redis.from_url(facts["redis_url"])
    assert server.config_get("appendonly")["appendonly"] == "yes"
    assert server.config_get("appendfsync")["appendfsync"] == "everysec"
    assert server.config_get("maxmemory-policy")["maxmemory-policy"] == "noeviction"
    with pytest.raises(redis.AuthenticationError):
        redis.Redis(port=server.get_connection_kwargs()["port"]).ping()
    with psycopg.connect(facts["database_url"]) as connection:
        for name, value in (("fsync", "on"), ("synchronous_commit", "on"), ("TimeZone", "UTC")):
            assert connection.execute(f"SHOW {name}").fetchone() == (value,)
        assert connection.info.server_version // 10_000 == 18
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(facts["database_url"].replace("tollkeeper:", "tollkeeper:not-"))


def test_a_second_start_keeps_secrets_key_and_data(start: Starter) -> None:
    first = start()
    before = first.ready()
    redis.Redis.from_url(before["redis_url"]).set("kept", "1")
    with psycopg.connect(before["database_url"]) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 1 AS one")
    assert first.stop() == 0
    after = start().ready()
    for name in ("admin_token", "api_key", "redis_url", "database_url"):
        assert after[name] == before[name]
    assert redis.Redis.from_url(after["redis_url"]).get("kept") == b"1"
    with psycopg.connect(after["database_url"]) as connection:
        assert connection.execute("SELECT one FROM kept").fetchone() == (1,)


@pytest.mark.parametrize("again", [False, True])
def test_sigint_stops_gateways_then_keeper_then_databases(start: Starter, again: bool) -> None:
    up = start()
    up.ready()
    pids = up.pids()
    up.process.send_signal(signal.SIGINT)
    if again:
        up.process.send_signal(signal.SIGINT)
    assert up.stop() == 0
    assert events(up)[-3:] == ["gateway stopped", "gateway stopped", "keeper stopped"]
    assert "database system is shut down" in (up.data_dir / "logs" / "postgres.log").read_text()
    assert "bye bye" in (up.data_dir / "logs" / "valkey.log").read_text()
    assert not any(runs(pid) for pid in (*pids["gateway"], pids["keeper"], pids["redis"], pids["postgres"]))
    assert not (up.data_dir / "pids.json").exists()


@pytest.mark.parametrize("role", ["gateway", "keeper", "redis", "postgres"])
def test_a_killed_child_is_started_again_and_said_so(start: Starter, role: str) -> None:
    up = start()
    facts = up.ready()
    of = lambda pids: pids["gateway"][0] if role == "gateway" else pids[role]  # noqa: E731  # a table of one line
    old = of(up.pids())
    os.kill(old, signal.SIGKILL)
    if role in ("gateway", "keeper"):  # who comes to its port meanwhile waits, and is not refused
        wait_until(lambda: not runs(old))
        url = facts["gateway_url" if role == "gateway" else "admin_url"]
        assert plain_http.get(url, timeout=60).status_code == 200

    def replaced() -> bool:
        gateways = up.pids()["gateway"]
        return (
            len(gateways) == 2 and old not in gateways
            if role == "gateway"
            else of(up.pids()) not in {old, None}
        )

    wait_until(replaced)
    wait_until(lambda: "started again" in up.said())
    assert f"(process {old}) was killed by SIGKILL" in up.said()
    if role == "redis":
        wait_until(lambda: _answers(facts["redis_url"]))
    if role == "postgres":
        wait_until(lambda: _connects(facts["database_url"]))
    assert up.stop() == 0


def _answers(url: str) -> bool:
    try:
        return bool(redis.Redis.from_url(url).ping())
    except redis.RedisError:
        return False


def _connects(url: str) -> bool:
    try:
        psycopg.connect(url).close()
    except psycopg.OperationalError:
        return False
    return True


def test_a_start_after_kill_9_finds_and_stops_what_was_left(start: Starter) -> None:
    up = start()
    facts = up.ready()
    with redis.Redis.from_url(facts["redis_url"], single_connection_client=True) as client:
        client.set("kept", "1")
        client.execute_command("WAITAOF", 1, 0, 30_000)
    old = up.pids()
    up.process.kill()
    up.process.wait()
    again = start()
    after = again.ready()
    assert not runs(old["redis"])
    assert not runs(old["postgres"])
    assert not any(map(runs, old["gateway"]))
    assert redis.Redis.from_url(after["redis_url"]).get("kept") == b"1"
    assert after["api_key"] == facts["api_key"]


def test_a_pid_file_with_somebody_elses_process_id_is_stale(start: Starter) -> None:
    up = start()
    up.ready()
    noted = (up.data_dir / "postgres" / "postmaster.pid").read_text()
    assert up.stop() == 0
    stranger = str(os.getpid())
    (up.data_dir / "postgres" / "postmaster.pid").write_text(
        "\n".join([stranger, *noted.splitlines()[1:]]) + "\n"
    )
    (up.data_dir / "redis" / "valkey.pid").write_text(stranger)
    (up.data_dir / "processes.json").write_text(
        json.dumps({"programs": [{"pid": os.getpid(), "started": 1.0}]})
    )
    start().ready()


def test_children_of_ours_end_when_up_is_killed(start: Starter) -> None:
    up = start()
    up.ready()
    pids = up.pids()
    up.process.kill()
    wait_until(lambda: not any(map(runs, [*pids["gateway"], pids["keeper"]])))
    assert sorted(events(up)[3:]) == ["gateway stopped", "gateway stopped", "keeper stopped"]


def test_a_stop_during_the_start_leaves_nothing_running(start: Starter) -> None:
    up = start()
    wait_until((up.data_dir / "redis" / "valkey.pid").exists)
    assert up.stop(signal.SIGTERM) == 0
    assert not at_work_in(up.data_dir)
    start().ready()


def test_a_data_directory_may_have_an_awkward_name(start: Starter) -> None:
    up = start('it\'s a "näme" \\ with # and spaces')
    facts = up.ready()
    assert _answers(facts["redis_url"])
    assert up.stop(signal.SIGHUP) == 0


def test_without_the_demo_there_is_no_key(start: Starter) -> None:
    facts = start(demo=False).ready()
    assert facts["api_key"] is None


def test_databases_of_ones_own_are_used_and_left_alone(start: Starter) -> None:
    facts = start("theirs").ready()
    up = start("ours", redis_url=facts["redis_url"], database_url=facts["database_url"])
    own = up.ready()
    assert own["redis_url"] == facts["redis_url"]
    assert own["database_url"] == facts["database_url"]
    assert own["pids"]["redis"] is None
    assert own["pids"]["postgres"] is None
    assert up.stop() == 0
    assert _answers(facts["redis_url"])
    assert _connects(facts["database_url"])


def test_another_database_gets_a_demo_organization_of_its_own(start: Starter) -> None:
    theirs = start("theirs").ready()
    first = start("ours")
    run = json.loads((first.data_dir / "secrets.json").read_text())["demo_run"] if first.ready() else ""
    assert first.stop() == 0
    start("ours", database_url=theirs["database_url"]).ready()
    assert json.loads((first.data_dir / "secrets.json").read_text())["demo_run"] != run


def test_the_demo_upstream_is_started_when_asked(start: Starter) -> None:
    facts = start(upstream="", demo_upstream=True).ready()
    assert facts["upstream_url"].startswith("http://127.0.0.1:")
