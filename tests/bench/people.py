"""How late a row of one organization comes while a member of another asks for reports.

A whole `tollkeeper up`. Rounds are calm and flooded in turn. In each, calls of one tenant follow each other,
and PostgreSQL itself is asked until each has its row; staff ask for a list meanwhile. In a flood 8
connections ask `GET usage` by everything and by the hour, over an organization with some 2,000 rows of it.
Prints a line of JSON for each round, and the ratio of medians.
Usage: python -m tests.bench.people [--rounds 3] [--calls 20]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import psycopg

from tests.journey.stack import Stack

CONNECTIONS, USERS = 8, 60
POLL_S = 0.005
ROW_S_MAX = 60.0
WIDEST = (
    "/usage?group_by=organization,tenant,user,api_key,project,service,model&interval=hour"
    "&from=2026-01-01T00:00:00Z&limit=10000"
)


def main() -> int:
    """Calm and flooded rounds in turn."""
    parser = argparse.ArgumentParser(prog="people")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--calls", type=int, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tollkeeper-people-") as folder:
        stack = Stack(Path(folder) / "data")
        try:
            told = measured(stack, options.rounds, options.calls)
        finally:
            stack.stop()
    ratios = [flood["row_s"] / calm["row_s"] for calm, flood in zip(told[::2], told[1::2], strict=True)]
    print(json.dumps({"row_flood_over_calm": round(statistics.median(ratios), 2)}), flush=True)
    return 0


def measured(stack: Stack, rounds: int, calls: int) -> list[dict[str, Any]]:
    """What each round came to."""
    loud, loud_key = stack.tenant(10_000_000)
    quiet, key = stack.tenant(10_000_000)
    owner = stack.admin("GET", f"/tenants/{loud}")[1]["organization_id"]
    token = stack.make("admin-tokens", name="member", role="member", organization_id=owner)["token"]
    for number in range(USERS):
        assert stack.chat(loud_key, "3,4", x_tollkeeper_user=f"user {number}").status_code == 200
    stack.settled(loud, 1 + USERS)
    widen(stack)
    told = []
    for number in range(rounds):
        for flooded in (False, True):
            with flood(stack, token if flooded else None) as answered:
                found = round_of(stack, quiet, key, calls)
            load = psutil.getloadavg()[0]
            told.append({"round": number, "flooded": flooded, **found, **answered, "load": round(load, 1)})
            print(json.dumps(told[-1]), flush=True)
    return told


def widen(stack: Stack) -> None:
    """Have each hour of the loud organization be forty: the same use, hours ago."""
    with psycopg.connect(stack.database_url) as connection:
        columns = [
            name
            for (name,) in connection.execute(
                "SELECT column_name FROM information_schema.columns WHERE table_name = 'usage_rollup'"
            )
        ]
        taken = ", ".join("start - n * interval '1 hour'" if name == "start" else name for name in columns)
        connection.execute(
            f"INSERT INTO usage_rollup ({', '.join(columns)}) SELECT {taken} FROM usage_rollup,"
            " generate_series(1, 40) AS n WHERE span = (SELECT min(span) FROM usage_rollup)"
            " ON CONFLICT DO NOTHING"
        )


def round_of(stack: Stack, tenant: int, key: str, calls: int) -> dict[str, Any]:
    """Calls one after the other, each until it is a row."""
    rows, staff = [], []
    counted = f"SELECT count(*) FROM token_ledger WHERE tenant_id = {tenant}"
    with psycopg.connect(stack.database_url, autocommit=True) as connection:

        def count() -> int:
            row = connection.execute(counted).fetchone()
            assert row is not None
            return int(row[0])

        for _ in range(calls):
            before = count()
            assert stack.chat(key, "5,6").status_code == 200
            began = time.monotonic()
            while count() == before and time.monotonic() - began < ROW_S_MAX:
                time.sleep(POLL_S)
            rows.append(time.monotonic() - began)
            began = time.monotonic()
            assert stack.admin("GET", "/tenants?limit=1")[0] == 200
            staff.append(time.monotonic() - began)
    return {
        "row_s": round(statistics.median(rows), 3), "row_max_s": round(max(rows), 3),
        "staff_ms": round(1000 * statistics.median(staff)), "staff_max_ms": round(1000 * max(staff)),
    }  # fmt: skip


@contextmanager
def flood(stack: Stack, token: str | None) -> Iterator[dict[str, int]]:
    """Nothing for nobody's token; how many were answered once it is over, by status."""
    over, answered = threading.Event(), list[int]()
    counts: dict[str, int] = {}

    def ask() -> None:
        while not over.is_set():
            answered.append(stack.admin("GET", WIDEST, authorization=f"Bearer {token}")[0])

    with ThreadPoolExecutor(CONNECTIONS) as pool:
        asking = [pool.submit(ask) for _ in range(CONNECTIONS if token else 0)]
        try:
            yield counts
        finally:
            over.set()
            for each in asking:
                each.result()
            counts |= {f"answered_{status}": answered.count(status) for status in set(answered)}


if __name__ == "__main__":
    sys.exit(main())
