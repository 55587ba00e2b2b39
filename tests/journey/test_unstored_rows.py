"""Rows that cannot be stored, in a whole Tollkeeper: who is asked about it says so, and what mends it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

from tests import plain_http
from tests.journey.stack import Stack
from tests.tree import ROOT
from tests.waiting import HUNG_S, wait_until

# What a server says whose disk is full (PostgreSQL 18, src/backend/storage/smgr/md.c, `mdextend`).
FULL = """
CREATE FUNCTION extends() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN RAISE 'could not extend file "base/5/16384": No space left on device' USING ERRCODE = '53100'; END $$;
CREATE TRIGGER full_disk BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION extends()"""
TABLES = "token_ledger", "organization"


def doctor(stack: Stack) -> tuple[int, str]:
    """The exit status of `tollkeeper doctor --for keeper`, and what it prints as wrong."""
    words = "doctor", "--for", "keeper", "--data-dir", str(stack.data_dir)
    environ = {k: v for k, v in os.environ.items() if not k.startswith("TOLLKEEPER_")}
    ended = subprocess.run(
        [sys.executable, "-m", "gateway", *words],
        cwd=ROOT, env=environ, capture_output=True, text=True, timeout=HUNG_S, check=False,
    )  # fmt: skip
    return ended.returncode, "\n".join(line for line in ended.stdout.splitlines() if line[:5] == "WRONG")


def readiness(stack: Stack) -> tuple[int, dict[str, Any]]:
    answer = plain_http.get(f"{stack.admin_url}/readyz", timeout=HUNG_S)
    return answer.status_code, json.loads(answer.text)


@pytest.fixture
def owner(broken_stack: Stack) -> Iterator[psycopg.Connection]:
    with psycopg.connect(broken_stack.database_url, autocommit=True) as connection:
        yield connection


@contextmanager
def full_disk(owner: psycopg.Connection) -> Iterator[None]:
    """Let PostgreSQL refuse each row of two tables, as it does when its disk is full."""
    for number, table in enumerate(TABLES):
        made = FULL.format(table=table)
        owner.execute((made if not number else made[made.index("CREATE TRIGGER") :]).encode())
    try:
        yield
    finally:
        owner.execute(b"DROP FUNCTION extends() CASCADE")


def test_full_disk_of_postgresql_is_named_by_doctor_readiness_log_and_admin_api(
    broken_stack: Stack, owner: psycopg.Connection
) -> None:
    stack = broken_stack
    tenant, key = stack.tenant(1_000)
    assert doctor(stack)[1] == ""
    assert readiness(stack)[1]["dependencies"]["rows"] is True
    with full_disk(owner):
        assert stack.chat(key, "3,4").status_code == 200
        told = wait_until(lambda: (said := readiness(stack))[1].get("reasons", {}).get("rows") and said)
        status, wrong = doctor(stack)
        refused, problem = stack.admin("POST", "/organizations", {"name": "no room"})
    assert told[0] == 200, "people can still ask"
    assert "53100 could not extend file" in told[1]["reasons"]["rows"]
    assert status == 1
    assert "WRONG rows: no row could be stored for " in wrong
    assert wrong.count("53100 could not extend file") == 1
    assert "make room on the disk of PostgreSQL" in wrong
    assert (refused, problem["type"]) == (503, "urn:tollkeeper:problem:store_unavailable")
    assert problem["detail"].startswith("The disk of PostgreSQL is full")
    failed = [line for line in stack.log.read_text().splitlines() if "flush failed" in line]
    assert any("53100 could not extend file" in line for line in failed)
    stack.settled(tenant, 2)
    wait_until(lambda: readiness(stack)[1]["dependencies"]["rows"])
    wait_until(lambda: doctor(stack)[1] == "")


def test_doctor_names_the_session_that_has_locked_a_table(
    broken_stack: Stack, owner: psycopg.Connection
) -> None:
    _, key = broken_stack.tenant(1_000)
    with owner.transaction():
        owner.execute("LOCK TABLE call IN ACCESS EXCLUSIVE MODE")
        assert broken_stack.chat(key, "3,4").status_code == 200
        status, wrong = doctor(broken_stack)
    assert status == 1
    assert f"WRONG postgresql: call is locked by pid {owner.info.backend_pid}, for " in wrong
    assert f"SELECT pg_terminate_backend({owner.info.backend_pid})" in wrong


def test_doctor_names_the_session_that_holds_rows_a_keeper_waits_for(
    broken_stack: Stack, owner: psycopg.Connection
) -> None:
    tenant, key = broken_stack.tenant(1_000)
    with owner.transaction():
        owner.execute("SELECT 1 FROM tenant_quota FOR UPDATE")
        assert broken_stack.chat(key, "3,4").status_code == 200
        line = f"WRONG postgresql: rows of tenant_quota are held by pid {owner.info.backend_pid}, for "
        wrong = wait_until(lambda: line in (said := doctor(broken_stack)[1]) and said)
    assert [wrong.count(by) for by in (" are held by ", " is locked by ")] == [1, 0]
    broken_stack.settled(tenant, 1)


def test_doctor_names_accounts_in_quarantine_and_dead_letters(
    broken_stack: Stack, owner: psycopg.Connection
) -> None:
    for number in range(1, 9):
        owner.execute(
            "INSERT INTO quarantine (account, partition, organization_id, kind, entry_id, epoch, stored_seq,"
            " found_seq, reason) VALUES (%s, 0, 900000, 'gap', '1-0', 1, 0, 2, 'gap: movement 2 after 0')",
            (f"tenant:90000{number}",),
        )
    owner.execute(
        "INSERT INTO dead_letter (partition, entry_id, raw, reason) VALUES (0, '1-1', '', 'unknown_account')"
    )
    status, wrong = doctor(broken_stack)
    owner.execute("UPDATE quarantine SET released_at = now()")
    owner.execute("UPDATE dead_letter SET resolved_at = now(), resolution = 'resolved'")
    first = "tenant:900001, tenant:900002, tenant:900003 and 5 more"
    assert status == 1
    assert f"WRONG rows: accounts in quarantine: 8 ({first})" in wrong
    assert "tollkeeper quarantine list" in wrong
    assert "WRONG rows: dead letters, which are no rows: 1; see why by tollkeeper deadletter list" in wrong
    assert doctor(broken_stack) == (0, "")
