"""The real `tollkeeper up`: what its parts must be like on a running machine."""

from __future__ import annotations

import compileall
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
import redis

from gateway.local.data_directory import DataDirectory, open_directory
from gateway.local.demo import seed as demo
from gateway.local.embedded import postgres
from tests.run.supervisor.conftest import ROOT
from tests.waiting import HUNG_S, readable, wait_until

# Of a worker that finds its modules compiled: one that compiles them has 2 MB more.
# The same modules and objects take a tenth more from Python 3.14 on.
WORKER_BYTES_MAX = 54_000_000 if sys.version_info < (3, 14) else 61_000_000
TWINS = (
    "INSERT INTO app_user (organization_id, external_id)"
    " SELECT min(id), %(it)s FROM organization, generate_series(1, 2) AS twin GROUP BY twin"
)
BODY = {"model": "demo", "messages": [{"role": "user", "content": "Hello!"}]}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[dict[str, Any], Path]]:
    """`tollkeeper up --workers 2`, its facts and the file of its standard error."""
    compileall.compile_dir(ROOT / "gateway", quiet=2)
    place = tmp_path_factory.mktemp("real")
    with up(place, "--workers", "2", TOLLKEEPER_WORKER_SILENT_S_MAX="8") as found:
        yield found


@contextmanager
def up(place: Path, *more: str, **environ: str) -> Iterator[tuple[dict[str, Any], Path]]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("TOLLKEEPER_")}
    words = ["up", "--json", "--gateway-port", "0", "--admin-port", "0", "--data-dir", "data", *more]
    with (place / "stderr").open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "gateway", *words],
            stdout=subprocess.PIPE,
            stderr=stderr,
            cwd=place,
            env=clean | {"PYTHONPATH": str(ROOT)} | environ,
        )
    assert process.stdout is not None
    try:
        ready = readable(process.stdout, HUNG_S)
        line = process.stdout.readline() if ready else b""
        assert line, (place / "stderr").read_text()
        yield json.loads(line), place / "stderr"
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(HUNG_S) == 0
        process.stdout.close()


def pids(facts: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(facts["data_dir"]) / "pids.json").read_text())
    return found


def call(url: str, key: str, body: Any = None, method: str | None = None) -> tuple[int, Any]:
    request = urllib.request.Request(
        url, headers={"Authorization": f"Bearer {key}", "Content-Type": "application/json"}, method=method
    )
    if body is not None:
        request.data = json.dumps(body).encode()
    try:
        with urllib.request.urlopen(request, timeout=HUNG_S) as answer:
            return answer.status, json.loads(answer.read() or b"null")
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())
    except OSError:
        return 0, None


def metrics(facts: dict[str, Any]) -> str:
    with urllib.request.urlopen(f"{facts['admin_url']}/metrics", timeout=10) as answer:
        return str(answer.read().decode())


def charged(facts: dict[str, Any]) -> int:
    """Calls that are rows by now."""
    rows = "SELECT count(DISTINCT request_id) FROM token_ledger WHERE transaction_type = 'consume'"
    with psycopg.connect(facts["database_url"]) as connection:
        found = connection.execute(rows).fetchone()
    assert found is not None
    return int(found[0])


def chats(facts: dict[str, Any]) -> int:
    return call(f"{facts['gateway_url']}/v1/chat/completions", facts["api_key"], BODY)[0]


def test_the_demo_key_works_at_once_on_every_worker_and_all_are_seen(
    running: tuple[dict[str, Any], Path],
) -> None:
    facts, _ = running
    assert [chats(facts) for _ in range(12)] == [200] * 12
    status, echoed = call(f"{facts['gateway_url']}/services/echo/some/path?a=1", facts["api_key"], {"x": 1})
    assert (status, echoed["target"]) == (200, "/some/path?a=1")
    assert facts["api_key"] not in json.dumps(echoed)
    request = urllib.request.Request(
        f"{facts['gateway_url']}/v1/chat/completions", json.dumps(BODY).encode(),
        {"Authorization": f"Bearer {facts['api_key']}", "Content-Type": "application/json"},
    )  # fmt: skip
    with urllib.request.urlopen(request, timeout=HUNG_S) as answer:
        told = {name.lower() for name in answer.headers}
    limits = {f"x-ratelimit-{what}-{of}" for what in ("limit", "remaining") for of in ("requests", "tokens")}
    assert {*limits, "ratelimit", "ratelimit-policy", "x-tollkeeper-tokens-remaining"} <= told
    assert call(f"{facts['admin_url']}/readyz", "")[0] == 200

    def scraped() -> bool:
        text = metrics(facts)
        return 'tollkeeper_tokens_total{kind="total",service="chat"}' in text and "flush_rows_total{" in text

    wait_until(scraped)
    for pid in pids(facts)["gateway"]:
        assert psutil.Process(pid).memory_info().rss < WORKER_BYTES_MAX


def keepers(facts: dict[str, Any]) -> set[str]:
    """Whom PostgreSQL knows the keeper as."""
    with psycopg.connect(facts["database_url"]) as connection:
        found = connection.execute(
            "SELECT usename FROM pg_stat_activity"
            " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
        ).fetchall()
    return {name for (name,) in found}


def test_the_keeper_owns_nothing_and_nobody_is_superuser(running: tuple[dict[str, Any], Path]) -> None:
    facts, _ = running
    assert keepers(facts) == {"tollkeeper_writer"}
    with psycopg.connect(facts["database_url"]) as owner:
        owned = "SELECT count(*) FROM pg_class WHERE relowner = 'tollkeeper_writer'::regrole"
        assert owner.execute(owned).fetchone() == (0,)
        supers = "SELECT rolname FROM pg_roles WHERE rolsuper AND rolname <> 'postgres'"
        assert owner.execute(supers).fetchall() == []
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            owner.execute("COPY (SELECT 1) TO PROGRAM 'true'")
    noted = json.loads((Path(facts["data_dir"]) / "up.json").read_text())["keeper_database_url"]
    with psycopg.connect(noted) as keeper, pytest.raises(psycopg.errors.InsufficientPrivilege):
        keeper.execute("DELETE FROM token_ledger")


def test_doctor_knows_the_users_of_an_up(running: tuple[dict[str, Any], Path]) -> None:
    facts, _ = running
    clean = {name: value for name, value in os.environ.items() if not name.startswith("TOLLKEEPER_")}
    words = [sys.executable, "-m", "gateway", "doctor", "--for", "keeper", "--data-dir", facts["data_dir"]]
    done = subprocess.run(
        words, capture_output=True, text=True, timeout=HUNG_S, check=False, cwd=ROOT, env=clean
    )
    assert done.returncode == 0, done.stdout
    for each in (
        "postgresql user: tollkeeper_writer may do what a", "postgresql owner: tollkeeper owns the",
        "redis user: default may do anything",
    ):  # fmt: skip
        assert f"ok    {each}" in done.stdout


def test_a_directory_of_an_earlier_program_without_a_demo_gets_a_keeper_that_owns_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = "ALTER ROLE tollkeeper PASSWORD '{}';\nCREATE DATABASE tollkeeper;\n"
    monkeypatch.setattr(postgres, "_owned", alone.format)
    with open_directory(tmp_path / "data") as data:
        postgres.initialise(data.postgres, "of-an-earlier-program", superuser="tollkeeper")
        data.remember(database_password="of-an-earlier-program")
    for _ in range(2):
        with up(tmp_path, "--no-demo") as (facts, _):
            assert "of-an-earlier-program" in facts["database_url"]
            assert keepers(facts) == {"tollkeeper_writer"}
            assert not facts["api_key"]
            assert call(f"{facts['gateway_url']}/v1/chat/completions", "tk_" + "x" * 32, BODY)[0] == 401
            assert call(f"{facts['admin_url']}/admin/v1/tenants", facts["admin_token"])[1]["items"] == []


@pytest.mark.parametrize("role", ["gateway", "keeper"])
def test_a_killed_process_is_replaced_and_serves(running: tuple[dict[str, Any], Path], role: str) -> None:
    facts, stderr = running
    old = pids(facts)
    os.kill(old["gateway"][0] if role == "gateway" else old[role], signal.SIGKILL)
    wait_until(lambda: len(pids(facts)["gateway"]) == 2 and pids(facts)["keeper"] and pids(facts) != old)
    wait_until(lambda: all(chats(facts) == 200 for _ in range(6)))
    wait_until(lambda: call(f"{facts['admin_url']}/readyz", "")[0] == 200)
    assert "started again" in stderr.read_text()


def test_a_frozen_worker_is_replaced_and_every_answer_is_charged(
    running: tuple[dict[str, Any], Path],
) -> None:
    facts, stderr = running
    before, frozen = charged(facts), pids(facts)["gateway"][0]
    over = threading.Event()

    def calling() -> int:
        good = 0
        while not over.wait(0.1):
            good += chats(facts) == 200  # others hung with the worker, and broke off with it
        return good

    with ThreadPoolExecutor(4) as callers:
        calls = [callers.submit(calling) for _ in range(4)]
        try:
            wait_until(lambda: charged(facts) > before)
            os.kill(frozen, signal.SIGSTOP)
            wait_until(lambda: frozen not in pids(facts)["gateway"] and len(pids(facts)["gateway"]) == 2)
        finally:
            over.set()
        answered = sum(call.result() for call in calls)
    assert answered
    wait_until(lambda: charged(facts) - before >= answered)
    assert "without a beat" in stderr.read_text()
    wait_until(lambda: re.search(r'tollkeeper_worker_restarts_total{why="hung"} [1-9]', metrics(facts)))
    wait_until(lambda: all(chats(facts) == 200 for _ in range(6)))


def test_logs_are_json_lines_without_the_secrets(running: tuple[dict[str, Any], Path]) -> None:
    facts, stderr = running
    said = stderr.read_text()
    events = [json.loads(line)["event"] for line in said.splitlines()]
    assert {"starting Valkey", "gateway started", "ready"} <= set(events)
    for secret in (facts["admin_token"], facts["api_key"], facts["redis_url"], facts["database_url"]):
        assert secret not in said


@pytest.mark.parametrize(
    ("statement", "code"),
    [
        (TWINS, "23505"),
        ("INSERT INTO app_user (organization_id, external_id) VALUES (987654321, %(it)s)", "23503"),
        ("UPDATE api_key SET digest = %(it)s", "23514"),
        ("INSERT INTO tenant (name, organization_id) VALUES (%(it)s, NULL)", "23502"),
        ("INSERT INTO no_such_table VALUES (%(it)s)", "42P01"),
    ],
    ids=["unique", "foreign key", "check", "not null", "no table"],
)  # fmt: skip
def test_the_database_logs_codes_and_no_rows(
    running: tuple[dict[str, Any], Path], statement: str, code: str
) -> None:
    facts, stderr = running
    value, log = f"s3cr3t{code}" * 4, stderr.parent / "data" / "logs" / "postgres.log"
    for cursor in (psycopg.ClientCursor, psycopg.Cursor):  # written into the statement, and beside it
        before = log.read_text().count(code)
        with psycopg.connect(facts["database_url"], cursor_factory=cursor) as connection:
            with pytest.raises(psycopg.Error) as refused:
                connection.execute(statement.encode(), {"it": value})
            assert refused.value.sqlstate == code
        assert log.read_text().count(code) > before
    said = log.read_text()
    assert value not in said
    assert not re.search("DETAIL|CONTEXT|STATEMENT", said)


def test_a_demo_key_that_was_taken_away_is_followed_by_another() -> None:
    """In a directory with a name short enough for a socket, by which its own processes reach Redis."""
    with tempfile.TemporaryDirectory(prefix="tk-", dir="/tmp") as there:
        place = Path(there)
        with up(place) as (facts, _):
            with redis.Redis.from_url(facts["redis_url"]) as client:
                names = [str(entry["addr"]) for entry in client.client_list()]
            path = f"{facts['data_dir']}/redis/valkey.sock"
            assert sum(path in name for name in names) >= 2
            assert sum(name.startswith("127.0.0.1:") for name in names) == 1
            api, token = f"{facts['admin_url']}/admin/v1", facts["admin_token"]
            [key] = call(f"{api}/api-keys", token)[1]["items"]
            assert call(f"{api}/api-keys/{key['id']}/revoke", token, {})[0] == 200
            assert demo.seed(DataDirectory(place / "data"), facts["admin_url"], token, "embedded") not in {
                "", facts["api_key"]
            }  # fmt: skip
        with up(place) as (again, _):
            api = f"{again['admin_url']}/admin/v1"
            assert call(f"{again['gateway_url']}/.tollkeeper/usage", again["api_key"])[0] == 200
            [_, key] = call(f"{api}/api-keys", token)[1]["items"]
            call(f"{api}/api-keys/{key['id']}/revoke", token, {})
            call(f"{api}/tenants/{key['tenant_id']}", token, method="DELETE")
            for _ in range(2):
                assert demo.seed(DataDirectory(place / "data"), again["admin_url"], token, "embedded") == ""
