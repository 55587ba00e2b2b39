"""The commands as a person types them: one line and exit status 1 for what is wrong."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest
import redis

from gateway.extras import version
from gateway.local.ports import usage_line
from persistence.schema import migrate
from persistence.schema.standing import NEEDED
from tests.conftest import ValkeyServer, free_port
from tests.deploy.processes import Process
from tests.run.supervisor.conftest import ROOT
from tests.waiting import HUNG_S, wait_until

# One that serves no program of today.
NEWER_SCHEMA = """
UPDATE alembic_version SET version_num = '9999';
COMMENT ON TABLE alembic_version IS 'runs from 9999'"""


def environment(**settings: str) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("TOLLKEEPER_")}
    return (
        clean | {"PYTHONPATH": str(ROOT)} | {f"TOLLKEEPER_{name}": value for name, value in settings.items()}
    )


def run(*words: str, cwd: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gateway", *words],
        capture_output=True,
        text=True,
        timeout=HUNG_S,
        check=False,
        cwd=cwd,
        env=environment(**settings),
    )


@pytest.mark.parametrize(
    ("words", "settings", "said"),
    [
        (
            ["up"],
            {"HOLD_TTL": "3"},
            "TOLLKEEPER_HOLD_TTL='3' is not a setting; did you mean TOLLKEEPER_HOLD_TTL_S?",
        ),
        (["up", "--upstream", "nowhere"], {}, "--upstream: not a base URL"),
        (["serve"], {"REDIS_URL": "redis://127.0.0.1:1/0"}, "TOLLKEEPER_KEY_PEPPER is not set"),
        (["keeper"], {"REDIS_URL": "redis://127.0.0.1:1/0"}, "TOLLKEEPER_DATABASE_URL is not set"),
        (["migrate"], {"DATABASE_URL": "postgresql://u:hush@127.0.0.1:1/d"}, "Connection refused"),
    ],
)
def test_what_is_wrong_is_said_on_one_line(
    tmp_path: Path, words: list[str], settings: dict[str, str], said: str
) -> None:
    done = run(*words, cwd=tmp_path, **settings)
    assert done.returncode == 1
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert said in done.stderr


def test_migrate_is_done_by_the_owner_where_one_is_named(tmp_path: Path, database: str) -> None:
    away = "postgresql://u:hush@127.0.0.1:1/d"
    named = {"DATABASE_URL": away, "DATABASE_OWNER_URL": database}
    for _ in range(2):  # it may be repeated
        done = run("migrate", cwd=tmp_path, **named)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        assert done.stdout.startswith("schema version ")
    assert run("migrate", "--database-url", away, cwd=tmp_path, **named).returncode == 1
    backup = run("backup", "--to", "file.tar", cwd=tmp_path, **named)
    assert backup.returncode == 0, backup.stderr


def test_migrate_without_the_right_to_make_roles_says_what_to_do_and_goes_on(
    tmp_path: Path, database: str
) -> None:
    name = database.rpartition("/")[2]
    with psycopg.connect(database, autocommit=True) as admin:
        admin.execute(f"CREATE ROLE {name}_owner LOGIN")
        admin.execute(f"ALTER DATABASE {name} OWNER TO {name}_owner")
    done = run(
        "migrate", "--json", cwd=tmp_path, DATABASE_URL=database.replace("postgres@", f"{name}_owner@")
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["schema_version"]
    assert len(done.stderr.splitlines()) == 1
    assert f'CREATE ROLE "{name}_writer"' in done.stderr


@pytest.mark.parametrize("attributes", ["IN ROLE pg_read_all_data"])
def test_a_keeper_who_may_not_write_says_so_on_one_line_and_does_not_start(
    tmp_path: Path, valkey: str, database: str, attributes: str
) -> None:
    migrate.upgrade(database)
    name = database.rpartition("/")[2]
    with psycopg.connect(database, autocommit=True) as admin:
        admin.execute(f"CREATE ROLE {name}_{len(attributes)} LOGIN {attributes}")
    stranger = database.replace("postgres@", f"{name}_{len(attributes)}@")
    done = run("keeper", cwd=tmp_path, REDIS_URL=valkey, DATABASE_URL=stranger, **KEEPER)
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if not line.startswith("{")]
    assert len(lines) == 1, done.stderr
    assert f'GRANT "{name}_writer" TO "{name}_{len(attributes)}"' in lines[0]


def test_a_schema_of_a_newer_version_is_told_in_one_line(tmp_path: Path, database: str) -> None:
    migrate.upgrade(database)
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(NEWER_SCHEMA)
    done = run("migrate", cwd=tmp_path, DATABASE_URL=database)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr
    assert "9999" in done.stderr


def test_the_line_that_shows_the_usage_works_from_here(tmp_path: Path) -> None:
    program = tmp_path / "a path" / "tollkeeper"
    program.parent.mkdir()
    program.touch()
    assert usage_line(tmp_path / ".tollkeeper", program, tmp_path) == "'a path/tollkeeper' usage"
    elsewhere = usage_line(tmp_path / "a b", program, tmp_path / "c")
    assert elsewhere == f"TOLLKEEPER_DATA_DIR='{tmp_path}/a b' '{program}' usage"
    assert usage_line(tmp_path / ".tollkeeper", tmp_path / "none", tmp_path) == "tollkeeper usage"


def test_doctor_says_what_is_wrong_and_what_is_well(tmp_path: Path, valkey: str, database: str) -> None:
    secrets = {"ADMIN_TOKEN": "an-admin-token-here", "KEY_PEPPER": "a-pepper-long-enough"}
    told = run("doctor", "--json", cwd=tmp_path, REDIS_URL=valkey, DATABASE_URL=database, **secrets)
    assert told.returncode == 1
    found = json.loads(told.stdout)
    assert found["well"] is False
    said = {one["subject"]: one["well"] for one in found["findings"]}
    assert (said["settings"], said["redis"], said["postgresql"]) == (True, True, False)


def test_a_lone_serve_runs_without_postgresql(tmp_path: Path, valkey: str) -> None:
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "gateway",
            "serve",
            "--gateway-port",
            "0",
            "--ops-port",
            "0",
            "--workers",
            "2",
        ],
        stderr=subprocess.PIPE,
        cwd=tmp_path,
        text=True,
        env=environment(
            REDIS_URL=valkey, KEY_PEPPER="a-pepper-long-enough", DATA_DIR=str(tmp_path), OPS_HOST="127.0.0.1"
        ),
    )
    try:
        assert process.stderr is not None
        line = next(line for line in process.stderr if "serving on " in line)
        said = json.loads(line)["event"].removeprefix("serving on ")
        gateway, ops = said.split(", health and metrics on ")
        assert get(f"http://{gateway.strip()}/v1/models")[0] == 401
        assert get(f"http://{ops.strip()}/livez")[0] == 200
        status, body = get(f"http://{ops.strip()}/readyz")
        assert status == 503
        assert json.loads(body)["dependencies"] == {
            "gateway": True, "redis": True, "counters_verified": False, "every_partition": False,
            "configuration": True, "disk": True, "open_files": True, "clock": True, "accounts": True,
        }  # fmt: skip
        # What a keeper says once it has compared this very server.
        with redis.Redis.from_url(valkey) as client:
            client.set("tk:verified:{p00}", client.info("server")["run_id"])
        wait_until(lambda: get(f"http://{ops.strip()}/readyz")[0] == 200)
        wait_until(lambda: 'status="401"' in get(f"http://{ops.strip()}/metrics")[1])
        assert get(f"http://{ops.strip()}/other")[0] == 404
        assert allowed(f"http://{ops.strip()}/livez") == (405, "GET, HEAD")
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(HUNG_S) == 0
        assert process.stderr is not None
        process.stderr.close()


def test_a_gateway_that_may_open_few_files_says_so_once_and_never_runs_out_of_them(
    tmp_path: Path, valkey: str
) -> None:
    """Hundreds of clients come: some are served, others are told that there are too many."""
    port, ops = free_port(), free_port()
    ports = ("--gateway-port", str(port), "--ops-port", str(ops))
    environ = {"TOLLKEEPER_REDIS_URL": valkey, "TOLLKEEPER_KEY_PEPPER": "a-pepper-long-enough"}
    environ |= {"TOLLKEEPER_DATA_DIR": str(tmp_path), "TOLLKEEPER_OPS_HOST": "127.0.0.1"}
    limited = ("/bin/sh", "-c", f'ulimit -n {FEW_FILES}; exec "$0" -m gateway "$@"', sys.executable)
    process = Process(
        tmp_path, "gateway", ["serve", *ports], environ | {"PYTHONPATH": str(ROOT)}, program=limited
    )
    try:
        wait_until(lambda: "serving on" in process.said, HUNG_S)
        with ExitStack() as clients:
            for _ in range(2 * FEW_FILES):
                clients.enter_context(socket.create_connection(("127.0.0.1", port)))
            wait_until(lambda: number(ops, "tollkeeper_connections_refused_total"))
            assert json.loads(asked(ops, "/readyz")[1])["dependencies"]["redis"] is True
            assert number(ops, 'tollkeeper_open_files{process="gateway"}') < FEW_FILES
        wait_until(lambda: status_of(port) == 401)
    finally:
        assert process.stop() == 0
    assert process.said.count(f"a process may have {FEW_FILES} open files") == 1
    assert "Too many open files" not in process.said
    assert "Traceback" not in process.said


def number(ops: int, name: str) -> float:
    """What `/metrics` says of a series; 0 before there is one."""
    lines = asked(ops, "/metrics")[1].decode().splitlines()
    return next((float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"{name} ")), 0.0)


def status_of(port: int) -> int | None:
    """What a caller without a credential is answered; None where nobody answers."""
    try:
        return get(f"http://127.0.0.1:{port}/v1/models")[0]
    except OSError:
        return None


FEW_FILES = 200
PEPPER = {"KEY_PEPPER": "a-pepper-long-enough"}
KEEPER = PEPPER | {"ADMIN_TOKEN": "an-admin-token-here", "ADMIN_PORT": "0"}


def test_serve_waits_for_redis_saying_so_and_serves_without(tmp_path: Path) -> None:
    """Nobody behind it is held up: calls are 503 until Redis is there, and readiness says so."""
    counters, port, ops = ValkeyServer(tmp_path), free_port(), free_port()
    environ = {
        "TOLLKEEPER_REDIS_URL": counters.url, "TOLLKEEPER_OPS_HOST": "127.0.0.1",
        "TOLLKEEPER_START_WAIT_S": "0.5",
        "TOLLKEEPER_DATA_DIR": str(tmp_path / "data"), "TOLLKEEPER_KEY_PEPPER": PEPPER["KEY_PEPPER"],
    }  # fmt: skip
    serve = Process(
        tmp_path, "serve", ["serve", "--gateway-port", str(port), "--ops-port", str(ops)], environ
    )
    try:
        wait_until(lambda: "serving without Redis" in serve.said, HUNG_S)
        assert "waiting for Redis" in serve.said
        assert "Redis cannot be reached, after 0.5 s: " in serve.said
        wait_until(lambda: asked(ops, "/readyz")[0] == 503 and asked(port, "/v1/models")[0] != 0, HUNG_S)
        assert json.loads(asked(ops, "/readyz")[1])["dependencies"]["redis"] is False
        assert asked(ops, "/livez")[0] == 200
        assert asked(port, "/v1/models", authorization="Bearer tk_0123456789abcdef0123456789abcdef")[0] == 503
        counters.start()
        wait_until(lambda: json.loads(asked(ops, "/readyz")[1])["dependencies"]["redis"], HUNG_S)
        assert serve.running
    finally:
        assert serve.stop() == 0
        counters.stop()


def test_serve_ends_where_redis_refuses_it(tmp_path: Path, valkey: str) -> None:
    done = run(
        "serve", "--gateway-port", "0", "--ops-port", "0", cwd=tmp_path, START_WAIT_S="0.5",
        REDIS_URL=valkey.replace("redis://", "redis://nobody:hush@"), DATA_DIR=str(tmp_path), **PEPPER,
    )  # fmt: skip
    assert done.returncode == 1
    assert "WRONGPASS" in done.stderr
    assert "hush" not in done.stderr


def test_serve_ends_where_redis_would_delete_counters(
    tmp_path: Path, own_valkey: Callable[..., ValkeyServer]
) -> None:
    """At once, and not after its wait."""
    server = own_valkey("--maxmemory-policy", "allkeys-lru")
    done = run(
        "serve", "--gateway-port", "0", "--ops-port", "0", cwd=tmp_path, START_WAIT_S="3600",
        REDIS_URL=server.url, DATA_DIR=str(tmp_path), **PEPPER,
    )  # fmt: skip
    assert done.returncode == 1
    assert "maxmemory-policy allkeys-lru, which deletes counters: set it to noeviction" in done.stderr


def asked(port: int, path: str, **fields: str) -> tuple[int, bytes]:
    """Status and body; status 0 where nobody answers."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers=fields)
    try:
        with urllib.request.urlopen(request, timeout=HUNG_S) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()
    except OSError:
        return 0, b""


def test_a_keeper_waits_for_both_databases_and_gives_up(tmp_path: Path, valkey: str) -> None:
    nobody = {"REDIS_URL": "redis://127.0.0.1:1/0", "DATABASE_URL": "postgresql://u:hush@127.0.0.1:1/d"}
    for there, name in (({}, "Redis"), ({"REDIS_URL": valkey}, "PostgreSQL")):
        done = run("keeper", cwd=tmp_path, START_WAIT_S="5", **(KEEPER | nobody | there))
        assert done.returncode == 1
        assert f"waiting for {name}" in done.stderr
        assert f"{name} cannot be reached, after 5 s: " in done.stderr
        assert "hush" not in done.stderr


def test_a_keeper_refuses_a_schema_it_was_not_written_for(tmp_path: Path, valkey: str, database: str) -> None:
    migrate.upgrade(database)
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(NEWER_SCHEMA)
    done = run("keeper", cwd=tmp_path, REDIS_URL=valkey, DATABASE_URL=database, **KEEPER)
    said = f"PostgreSQL has schema version 9999, this program knows {NEEDED} at most: run a newer one"
    # A busy machine may have told before that it waits for Redis.
    assert (done.returncode, done.stderr.splitlines()[-1]) == (1, f"tollkeeper: {said}")


def test_doctor_judges_what_the_process_in_question_needs(tmp_path: Path, valkey: str) -> None:
    lone = run("doctor", "--for", "serve", cwd=tmp_path, REDIS_URL=valkey, **PEPPER)
    said = lone.stdout.splitlines()
    assert any(line.startswith("ok    redis: ") for line in said)
    assert any(" upstream " in line for line in said)
    assert not any("postgresql" in line or "is not set" in line for line in said)
    keeper = run("doctor", "--for", "keeper", cwd=tmp_path, REDIS_URL=valkey, **PEPPER)
    assert keeper.returncode == 1
    assert "TOLLKEEPER_DATABASE_URL is not set" in keeper.stdout
    assert "upstream " not in keeper.stdout


def test_a_gateway_does_not_start_with_services_that_could_undercut_each_other(
    tmp_path: Path, valkey: str
) -> None:
    (tmp_path / "c.yaml").write_text(
        "upstreams: {mine: {base_url: 'http://127.0.0.1:9'}}\n"
        "services: {sms: {upstream: mine, paths: [/sms/*]}, freebie: {upstream: mine}}\n"
    )
    nowhere = "redis://127.0.0.1:1/0"
    for words, url in ((("serve",), nowhere), (("up", "--json"), valkey)):
        done = run(*words, "--config", "c.yaml", cwd=tmp_path, **PEPPER, REDIS_URL=url)
        assert done.returncode == 1, done.stderr
        assert (
            "services.freebie and services.sms: both get to the same paths of the upstream mine"
            in done.stderr
        )


def test_the_version_is_said(tmp_path: Path) -> None:
    done = run("--version", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"tollkeeper {version()}\n")


def allowed(url: str) -> tuple[int, str]:
    """What a POST is told of the methods there are."""
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(url, data=b"", timeout=10)
    refused.value.close()
    return refused.value.code, refused.value.headers["Allow"]


def get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
